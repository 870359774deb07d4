//! The genesis document as a file: JSON, which people read and compare; the network id is of its
//! canonical bytes, so spaces and line ends do not matter.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use crate::ledger::Genesis;
use crate::ledger::genesis::GenesisError;

/// Longer than any genesis document: 100 replicas and as many admins are some 14 KiB.
const MAX_GENESIS_FILE_BYTES: u64 = 1 << 20;

/// Why a genesis document cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GenesisFileError {
    /// The file cannot be read.
    #[error("cannot read the genesis document {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// The file cannot be written.
    #[error("cannot write the genesis document {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// The file is something else, or damaged.
    #[error("{path}: {error}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: GenesisError,
    },
}

/// Reads a genesis document and checks all that needs nothing else.
///
/// # Errors
/// [`GenesisFileError`].
pub fn read_genesis(path: &Path) -> Result<Genesis, GenesisFileError> {
    let failed = |source| GenesisFileError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    let mut file = File::open(path).map_err(failed)?.take(MAX_GENESIS_FILE_BYTES + 1);
    file.read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_GENESIS_FILE_BYTES {
        let long = format!("a genesis document has at most {MAX_GENESIS_FILE_BYTES} bytes");
        return Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, long)));
    }
    Genesis::from_json(&text).map_err(|error| GenesisFileError::Malformed { path: path.to_owned(), error })
}

/// Writes a genesis document to a new file.
///
/// # Errors
/// [`GenesisFileError`]; there may be a file of that name.
pub fn write_genesis(path: &Path, genesis: &Genesis) -> Result<(), GenesisFileError> {
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).open(path)?;
        writeln!(file, "{}", genesis.to_json())?;
        file.sync_all()
    };
    write().map_err(|source| GenesisFileError::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::SecretKey;
    use crate::ledger::ReplicaSet;
    use crate::ledger::genesis::GENESIS_VERSION;
    use crate::types::Timestamp;

    #[test]
    fn a_file_that_is_too_long_for_a_genesis_document_is_refused_as_that() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("genesis.json");
        let long = usize::try_from(MAX_GENESIS_FILE_BYTES).unwrap();
        fs::write(&path, " ".repeat(long + 1)).unwrap();
        let error = anyhow::Error::from(read_genesis(&path).unwrap_err());
        assert!(format!("{error:#}").contains("at most 1048576 bytes"), "{error:#}");
    }

    fn genesis() -> Genesis {
        let key = |seed| SecretKey::from_seed(&[seed; 32]);
        Genesis {
            version: GENESIS_VERSION,
            name: "test".into(),
            created: Timestamp(1_767_225_600_000),
            replicas: ReplicaSet::new(vec![key(1).node_id(), key(2).node_id()]).unwrap(),
            admins: vec![key(3).public()],
        }
    }

    #[test]
    fn a_genesis_document_survives_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("genesis.json");
        write_genesis(&path, &genesis()).unwrap();
        assert_eq!(read_genesis(&path).unwrap().network_id(), genesis().network_id());
        assert!(matches!(write_genesis(&path, &genesis()), Err(GenesisFileError::Write { .. })));
    }

    #[test]
    fn whatever_is_not_a_genesis_document_is_refused_and_the_file_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("genesis.json");
        let good = genesis().to_json();
        let bad = ["", "{}", &good[..good.len() - 5], &good.replace("\"version\": 1", "\"version\": 2")];
        for text in bad {
            fs::write(&path, text).unwrap();
            let error = read_genesis(&path).unwrap_err();
            assert!(matches!(error, GenesisFileError::Malformed { .. }), "{error}");
            assert!(error.to_string().contains("genesis.json"), "{error}");
        }
        fs::write(&path, [0xff; 64]).unwrap();
        assert!(matches!(read_genesis(&path), Err(GenesisFileError::Read { .. })));
        assert!(matches!(read_genesis(dir.path()), Err(GenesisFileError::Read { .. })));
    }
}
