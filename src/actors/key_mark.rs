//! The mark beside the node key that says: this key has voted.
//!
//! The log knows what a key has signed. If log and ledger are gone together, what is left looks like
//! a first start, and a node that took it for one could contradict what it said before. So before
//! the first vote is sent, and after the log has it, a file `<node key>.used` is made beside the key.
//! A node that finds the mark and no log has lost it (`docs/CONSENSUS.md`, "A lost log").
//!
//! Where the key lies in a directory that cannot be written to, as a mounted Secret is, the setting
//! `node_key_mark` names another place. Without that there is no mark, and the rule for nodes without
//! one holds; the log says so once.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use anyhow::Context as _;

use crate::config::Config;

/// What the file says to whoever opens it.
const TEXT: &str = "This node key has voted. Keep this file with the key: without it, a node whose data directory \
                    is gone takes itself for a new one and may contradict what it signed before.\n";

/// The mark of one key; see the module. Cheap to clone.
#[derive(Debug, Clone)]
pub struct KeyMark {
    file: Arc<PathBuf>,
    /// Nothing is left to do: it is there, or cannot be made.
    settled: Arc<AtomicBool>,
}

impl KeyMark {
    /// That of the node with these settings.
    pub fn of(config: &Config) -> Self {
        match &config.node_key_mark {
            Some(mark) => Self::at(mark.clone()),
            None => Self::beside(&config.node_key),
        }
    }

    /// Beside the key in `node_key`.
    fn beside(node_key: &Path) -> Self {
        let mut file = node_key.as_os_str().to_owned();
        file.push(".used");
        Self::at(PathBuf::from(file))
    }

    fn at(file: PathBuf) -> Self {
        let settled = Arc::new(AtomicBool::new(file.exists()));
        Self { file: Arc::new(file), settled }
    }

    /// Whether the key has voted before.
    pub fn is_there(&self) -> bool {
        self.file.exists()
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.file
    }

    /// Makes the mark, durably, if it is not there.
    ///
    /// # Errors
    /// The disk failed; a directory that cannot be written to is none.
    pub async fn make(&self) -> anyhow::Result<()> {
        if self.settled.load(Relaxed) {
            return Ok(());
        }
        let mark = self.clone();
        tokio::task::spawn_blocking(move || mark.write()).await??;
        self.settled.store(true, Relaxed);
        Ok(())
    }

    fn write(&self) -> anyhow::Result<()> {
        let file = self.path();
        let shown = file.display();
        match OpenOptions::new().write(true).create(true).truncate(true).open(file) {
            Ok(mut made) => {
                made.write_all(TEXT.as_bytes()).with_context(|| format!("writing {shown}"))?;
                made.sync_all().with_context(|| format!("syncing {shown}"))?;
                let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
                File::open(dir)
                    .and_then(|dir| dir.sync_all())
                    .with_context(|| format!("syncing {}", dir.display()))
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) =>
            {
                tracing::warn!(
                    file = %shown, %error,
                    "the mark that this key has voted cannot be made: should the data directory be lost, this node \
                     cannot tell that from a first start; set node_key_mark, and see \"A lost log\" in docs/CONSENSUS.md"
                );
                Ok(())
            }
            Err(error) => {
                Err(error).with_context(|| format!("making {shown}; check the disk (space, permissions)"))
            }
        }
    }
}

/// Removes a mark, for tests that want a key that was never used.
#[cfg(test)]
fn forget(mark: &KeyMark) {
    std::fs::remove_file(mark.path()).unwrap();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_mark_that_was_made_is_found_again_and_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("node.key");
        let mark = KeyMark::beside(&key);
        assert!(!mark.is_there());
        mark.make().await.unwrap();
        assert_eq!(mark.path(), dir.path().join("node.key.used"));
        assert!(mark.is_there() && KeyMark::beside(&key).is_there());
        forget(&mark);
        mark.make().await.unwrap();
        assert!(!mark.is_there(), "it does not look again for each vote");
    }

    #[tokio::test]
    async fn the_settings_say_where_the_mark_is() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("secret/node.key");
        let mut config = Config { node_key: key.clone(), ..Config::default() };
        assert_eq!(KeyMark::of(&config).path(), KeyMark::beside(&key).path());
        config.node_key_mark = Some(dir.path().join("key.used"));
        KeyMark::of(&config).make().await.unwrap();
        assert!(KeyMark::of(&config).is_there() && dir.path().join("key.used").exists());
    }

    #[tokio::test]
    async fn a_mark_that_cannot_be_made_for_want_of_a_directory_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let error = KeyMark::beside(&dir.path().join("gone/node.key")).make().await.unwrap_err();
        assert!(format!("{error:#}").contains("node.key.used"), "{error:#}");
    }
}
