//! The genesis document as a file: JSON, which people read and compare; the network id is of its
//! canonical bytes, so spaces and line ends do not matter.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use crate::crypto::VerifyingKey;
use crate::ledger::Genesis;
use crate::ledger::genesis::GENESIS_VERSION;
use crate::types::PublicKey;

/// Longer than any genesis document: 100 replicas and as many admins are some 14 KiB.
const MAX_GENESIS_FILE_BYTES: u64 = 1 << 20;

/// The longest name of a network, in bytes.
const MAX_NAME_BYTES: usize = 64;

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
    #[error("{path} is not a genesis document: {problem}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// Reads a genesis document and checks all that needs nothing else.
///
/// # Errors
/// [`GenesisFileError`].
pub fn read_genesis(path: &Path) -> Result<Genesis, GenesisFileError> {
    let failed = |source| GenesisFileError::Read { path: path.to_owned(), source };
    let malformed = |problem: String| GenesisFileError::Malformed { path: path.to_owned(), problem };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(MAX_GENESIS_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_GENESIS_FILE_BYTES {
        return Err(malformed(format!("it is longer than {MAX_GENESIS_FILE_BYTES} bytes")));
    }
    let genesis = serde_json::from_slice(&bytes).map_err(|error| malformed(error.to_string()))?;
    check(&genesis).map_err(malformed)?;
    Ok(genesis)
}

/// Writes a genesis document to a new file.
///
/// # Errors
/// [`GenesisFileError`]; there may be a file of that name.
pub fn write_genesis(path: &Path, genesis: &Genesis) -> Result<(), GenesisFileError> {
    let write = || {
        let text = serde_json::to_string_pretty(genesis)?;
        let mut file = fs::OpenOptions::new().write(true).create_new(true).open(path)?;
        file.write_all(text.as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()
    };
    write().map_err(|source| GenesisFileError::Write { path: path.to_owned(), source })
}

fn check(genesis: &Genesis) -> Result<(), String> {
    if genesis.version != GENESIS_VERSION {
        return Err(format!("version {}, this program reads {GENESIS_VERSION}", genesis.version));
    }
    if !(1..=MAX_NAME_BYTES).contains(&genesis.name.len()) {
        return Err(format!("the name must have 1 to {MAX_NAME_BYTES} bytes"));
    }
    if genesis.admins.is_empty() || !genesis.admins.windows(2).all(|pair| pair[0] < pair[1]) {
        return Err("admins must be at least one key, ascending, each once".into());
    }
    let replicas = genesis.replicas.members().iter().map(|node| PublicKey::from(*node));
    for key in genesis.admins.iter().copied().chain(replicas) {
        VerifyingKey::parse(&key).map_err(|error| format!("{key} is {error}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::SecretKey;
    use crate::ledger::ReplicaSet;
    use crate::types::{NodeId, Timestamp};

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

    fn read_text(text: &str) -> Result<Genesis, GenesisFileError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("genesis.json");
        fs::write(&path, text).unwrap();
        read_genesis(&path)
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
    fn whatever_is_not_a_genesis_document_is_refused_and_says_why() {
        let with = |change: &dyn Fn(&mut Genesis)| {
            let mut genesis = genesis();
            change(&mut genesis);
            serde_json::to_string(&genesis).unwrap()
        };
        let good = with(&|_| {});
        for (text, says) in [
            (String::new(), "EOF"),
            (good.replace("\"name\"", "\"nome\""), "nome"),
            (good[..good.len() - 5].to_owned(), "EOF"),
            (with(&|genesis| genesis.version = 2), "version 2"),
            (with(&|genesis| genesis.name = "x".repeat(65)), "name"),
            (with(&|genesis| genesis.admins.clear()), "admins"),
            (with(&|genesis| genesis.admins.push(PublicKey([0; 32]))), "admins"),
            (with(&|genesis| genesis.admins = vec![PublicKey([0; 32])]), "public key"),
            (
                with(&|genesis| genesis.replicas = ReplicaSet::new(vec![NodeId([0; 32])]).unwrap()),
                "public key",
            ),
            (" ".repeat(1 << 21), "longer"),
        ] {
            let error = read_text(&text).unwrap_err().to_string();
            assert!(error.contains(says), "{says}: {error}");
        }
        assert!(matches!(read_genesis(Path::new("/nowhere")), Err(GenesisFileError::Read { .. })));
    }
}
