//! The directory that `ledgermq init` makes, as the other commands find their way in it.

use std::path::{Path, PathBuf};

use anyhow::bail;

use super::arguments::wrong;
use crate::config::Config;
use crate::ledger::ReplicaSet;

/// A path that was given, or else the one that `ledgermq init` gives a file of that name.
pub(super) fn file(
    given: Option<&PathBuf>,
    network: Option<&PathBuf>,
    option: &str,
    name: &str,
) -> anyhow::Result<PathBuf> {
    match (given, network) {
        (Some(path), _) => Ok(path.clone()),
        (None, Some(dir)) => Ok(existing(dir)?.join(name)),
        (None, None) => {
            Err(wrong(format_args!("give {option} FILE, or --network DIR as `ledgermq init` made it")))
        }
    }
}

fn existing(dir: &Path) -> anyhow::Result<&Path> {
    if !dir.is_dir() {
        bail!(
            "there is no directory {}: give --network the directory that `ledgermq init` made",
            dir.display()
        );
    }
    Ok(dir)
}

/// The settings of all nodes in `dir`; at least one.
pub(super) fn node_settings(dir: &Path) -> anyhow::Result<Vec<Config>> {
    let dir = existing(dir)?;
    let files = (0..ReplicaSet::MAX).map(|at| dir.join(format!("node-{at}")).join("node.toml"));
    let settings = files.take_while(|path| path.is_file()).map(|path| Ok(Config::load(&path)?));
    let settings: Vec<Config> = settings.collect::<anyhow::Result<_>>()?;
    if settings.is_empty() {
        bail!("{} is no directory of `ledgermq init`: it has no node-0/node.toml", dir.display());
    }
    Ok(settings)
}
