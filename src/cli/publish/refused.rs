//! Which messages of files were taken up and are not on the ledger, since a node or the ledger refused them.
//!
//! A refusal may pass: a quota is raised, a clock is set right. So the next run of the same file tries these
//! messages again, with numbers of their own. Their hashes stand in a small file beside the gateway's journal.

use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use tempfile::NamedTempFile;

use crate::types::Hash;

const FILE: &str = "refused";

/// So many are remembered; of more the user is told to publish them again.
const MAX_REFUSED: usize = 100_000;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct RefusedMessages {
    directory: PathBuf,
    hashes: BTreeSet<Hash>,
}

impl RefusedMessages {
    /// Those that the client's state has.
    pub(super) fn read(state: &Path) -> anyhow::Result<Self> {
        let path = state.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let parse = |line: &str| {
            line.parse().map_err(|_| {
                anyhow!(
                    "{} is damaged: take it away; what was refused is not tried again then",
                    path.display()
                )
            })
        };
        let hashes = text.lines().map(parse).collect::<anyhow::Result<_>>()?;
        Ok(Self { directory: state.to_owned(), hashes })
    }

    /// Whether the message that ends at this place was refused.
    pub(super) fn contains(&self, place: &Hash) -> bool {
        self.hashes.contains(place)
    }

    /// Whether nothing was.
    pub(super) fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// It was refused.
    pub(super) fn add(&mut self, place: Hash) {
        if self.hashes.len() < MAX_REFUSED {
            self.hashes.insert(place);
        }
    }

    /// It is final, or on its way again.
    pub(super) fn remove(&mut self, place: &Hash) {
        self.hashes.remove(place);
    }

    /// Puts them in the place of those that the state has.
    pub(super) fn write(&self) -> anyhow::Result<()> {
        let path = self.directory.join(FILE);
        let failed = || format!("cannot write {}", path.display());
        if self.hashes.is_empty() {
            return match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => Err(error).with_context(failed),
                _ => Ok(()),
            };
        }
        let mut file = NamedTempFile::new_in(&self.directory).with_context(failed)?;
        for hash in &self.hashes {
            writeln!(file, "{hash}").with_context(failed)?;
        }
        file.as_file().sync_all().with_context(failed)?;
        file.persist(&path).with_context(failed)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_refused_is_known_to_the_next_run_until_it_is_final() {
        let state = tempfile::tempdir().unwrap();
        let read = || RefusedMessages::read(state.path()).unwrap();
        let [one, two] = [Hash([1; 32]), Hash([2; 32])];
        let mut refused = read();
        refused.add(one);
        refused.add(two);
        refused.write().unwrap();
        let mut refused = read();
        assert!(refused.contains(&one) && refused.contains(&two) && !refused.contains(&Hash([3; 32])));
        refused.remove(&one);
        refused.write().unwrap();
        assert!(!read().contains(&one) && read().contains(&two));
        let mut refused = read();
        refused.remove(&two);
        refused.write().unwrap();
        assert!(!state.path().join(FILE).exists());
        fs::write(state.path().join(FILE), "x\n").unwrap();
        assert!(RefusedMessages::read(state.path()).unwrap_err().to_string().contains("take it away"));
    }
}
