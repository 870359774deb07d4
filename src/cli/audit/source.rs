//! Where an audit's ledger and history come from. Neither is trusted, and neither is changed.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use tempfile::TempDir;
use url::Url;

use crate::api::{MAX_CERTIFIED_ANSWER, decode_certified};
use crate::cli::http::Nodes;
use crate::history::audit::AuditedLedger;
use crate::history::{Location, Stopping};
use crate::ledger::Genesis;
use crate::store::{LedgerStore as _, SledStore, StoreError, StoreSettings};
use crate::types::{ClientId, Height};

/// The most blocks in a row that wait for a later one's certificate, since anybody can make such blocks without
/// end: four times what a replica may be ahead of its last certificate.
const MAX_UNCERTIFIED_BLOCKS: u64 = 4 * crate::pbft::settings::WINDOW;

/// Why there may be nothing yet.
const NEVER_STARTED: &str = "a node that was never started has none yet";

/// What may be given as a history.
pub(super) const WHAT_HISTORY: &str =
    "give a SQLite file, the data directory of a node, or postgres://user:password@host/database";

/// The history that somebody names: a URL, a file, or a node's data directory.
pub(in crate::cli) fn history(text: &str) -> anyhow::Result<Location> {
    let location = Location::parse(text).map_err(super::for_auditor)?;
    let Location::Sqlite(path) = &location else { return Ok(location) };
    if !path.try_exists().with_context(|| cannot_look(path))? {
        bail!("there is no history {}; {WHAT_HISTORY}; {NEVER_STARTED}", path.display());
    }
    if !path.is_dir() {
        return Ok(location);
    }
    // A data directory, what `ledgermq init` made around it, or where the file lies.
    let files = ["history/history.sqlite", "data/history/history.sqlite", "history.sqlite"];
    let found = first_there(files.map(|file| path.join(file)))?;
    found.map(Location::Sqlite).with_context(|| {
        format!(
            "{} has no history/history.sqlite: give the data directory of a node, or the file; {NEVER_STARTED}",
            path.display()
        )
    })
}

/// Which part of a ledger an audit is about.
#[derive(Debug, Clone, Default)]
pub(in crate::cli) struct Wanted {
    /// Only messages of this client.
    pub(super) only: Option<ClientId>,
    /// Up to this block, or the next that a certificate proves.
    pub(super) until: Option<Height>,
}

impl Wanted {
    fn is_enough(&self, ledger: &AuditedLedger) -> bool {
        self.until.is_some_and(|until| ledger.certified_height() >= until)
    }
}

/// The ledger in a data directory. It is copied first, since the store cannot be opened without being written.
pub(in crate::cli) fn from_directory(
    genesis: &Genesis,
    dir: &Path,
    wanted: &Wanted,
    stopping: &Stopping,
) -> anyhow::Result<AuditedLedger> {
    let copy = copy_of(&ledger_dir(dir)?, stopping)?;
    let network = genesis.network_id();
    let store = SledStore::open(copy.path(), &StoreSettings::new(network)).map_err(|error| match error {
        StoreError::WrongNetwork { expected, found, .. } => anyhow!(
            "the ledger in {} belongs to network {found}, the genesis document to {expected}: give those that \
             belong together",
            dir.display()
        ),
        error => anyhow::Error::new(error).context(format!("reading a copy of the ledger in {}", dir.display())),
    })?;
    let mut ledger = AuditedLedger::new(genesis)?.only(wanted.only.clone());
    for height in (1..=store.certified_height().0).map(Height) {
        stopping.check()?;
        if wanted.is_enough(&ledger) {
            break;
        }
        let Some(block) = store.block(height)? else {
            bail!("the ledger in {} lacks block {height}: take it from another node", dir.display());
        };
        ledger.add(&block, store.certificate(height)?.as_ref())?;
    }
    if ledger.height() == Height(0) {
        bail!("the ledger in {} has no certified block: take it from another node", dir.display());
    }
    Ok(ledger)
}

/// The directory of the store in a data directory.
fn ledger_dir(dir: &Path) -> anyhow::Result<PathBuf> {
    let is_there = dir.try_exists().with_context(|| cannot_look(dir))?;
    let found = first_there(["ledger/sled", "data/ledger/sled", "sled"].map(|store| dir.join(store)))?;
    found.and_then(|store| Some(store.parent()?.to_owned())).with_context(|| {
        let is = if is_there { "has no ledger in it" } else { "is not there" };
        format!("{} {is}: give the data directory of a node, or a copy of it; {NEVER_STARTED}", dir.display())
    })
}

/// What is said if it is not even known whether something is there.
fn cannot_look(path: &Path) -> String {
    format!("cannot look for {}: check the rights to it and to the directories above", path.display())
}

/// The first of these that is there.
fn first_there<const N: usize>(paths: [PathBuf; N]) -> anyhow::Result<Option<PathBuf>> {
    for path in paths {
        match path.try_exists() {
            Ok(true) => return Ok(Some(path)),
            Ok(false) => {}
            // What was given is a file.
            Err(error) if error.kind() == ErrorKind::NotADirectory => {}
            Err(error) => return Err(error).with_context(|| cannot_look(&path)),
        }
    }
    Ok(None)
}

/// A copy of a store that nobody writes meanwhile.
fn copy_of(dir: &Path, stopping: &Stopping) -> anyhow::Result<TempDir> {
    // Held until all is copied. A copy may be without this file.
    let lock = File::open(dir.join("lock")).ok();
    if let Some(Err(error)) = lock.as_ref().map(File::try_lock_shared) {
        match error {
            TryLockError::WouldBlock => bail!(
                "the ledger in {} is in use: stop the node first, or ask it with --node URL",
                dir.display()
            ),
            TryLockError::Error(error) => {
                return Err(error).with_context(|| format!("cannot lock {}", dir.display()));
            }
        }
    }
    let copy = TempDir::with_prefix("ledgermq-audit-").context("cannot make a temporary directory")?;
    copy_files(dir, copy.path(), stopping).with_context(|| {
        format!(
            "cannot copy the ledger in {} to {}; it needs as much room there, set TMPDIR to another place",
            dir.display(),
            copy.path().display()
        )
    })?;
    Ok(copy)
}

fn copy_files(from: &Path, to: &Path, stopping: &Stopping) -> std::io::Result<()> {
    for entry in fs::read_dir(from)? {
        stopping.check()?;
        let entry = entry?;
        let (kind, target) = (entry.file_type()?, to.join(entry.file_name()));
        if kind.is_dir() {
            fs::create_dir(&target)?;
            copy_files(&entry.path(), &target, stopping)?;
        } else if kind.is_file() && entry.file_name() != "lock" {
            stopping.copy(&entry.path(), &target)?;
            // The evidence may be read-only; its copy is opened to be written.
            fs::set_permissions(&target, fs::Permissions::from_mode(0o600))?;
        }
    }
    Ok(())
}

/// The ledger that a node gives; each block is verified, so it need not be trusted.
pub(in crate::cli) async fn from_api(
    genesis: &Genesis,
    api: Url,
    wanted: &Wanted,
) -> anyhow::Result<AuditedLedger> {
    let nodes = Nodes::new(vec![api.clone()])?.reading(MAX_CERTIFIED_ANSWER);
    let mut ledger = AuditedLedger::new(genesis)?.only(wanted.only.clone());
    'fetched: loop {
        let path = format!("/v1/certified-blocks?from={}", ledger.height().next());
        let answer = nodes.bytes(&path).await?;
        let blocks = decode_certified(&answer)
            .with_context(|| format!("{api} gives no blocks of this version: ask another node"))?;
        if blocks.is_empty() {
            break;
        }
        for (block, certificate) in blocks {
            let added = ledger.add(&block, certificate.as_ref());
            added.with_context(|| {
                format!("{api} gives a ledger that does not hold; is it of this network?")
            })?;
            if ledger.height().0 - ledger.certified_height().0 > MAX_UNCERTIFIED_BLOCKS {
                bail!("{api} gives more and more blocks that no certificate proves: ask another node");
            }
            if wanted.is_enough(&ledger) {
                break 'fetched;
            }
        }
    }
    if ledger.certified_height() < ledger.height() {
        bail!("{api} gives blocks that no certificate proves: ask again, or another node");
    }
    if ledger.height() == Height(0) {
        bail!("{api} has no certified block yet: ask another node");
    }
    Ok(ledger)
}
