//! Evidence against replicas, each piece in a file of its own, for as long as the node has its data.
//!
//! ```text
//! data_dir/evidence/{when it was first seen, 16 hex digits of milliseconds}-{id, 64}.lmqevidence
//! ```
//!
//! A file is written under another name, synced, and renamed: so it is whole or not there, and on
//! disk before anybody is told. The first proof of a fault is enough: a second one of the same
//! replica, kind and slot is not kept, nor what is above the limits, so that a faulty replica cannot
//! fill the disk. Nothing is ever removed; an operator who has seen to a fault may delete its file
//! while the node is stopped. A file that is not what was written is named in the log and left alone.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, PoisonError, RwLock};

use crate::pbft::evidence::{Evidence, Fault, MAX_EVIDENCE_BYTES, Proven};
use crate::store::ledger::StoreError;
use crate::types::{Hash, NodeId, ParseError, Timestamp};

/// What the names of the files end in.
const EXTENSION: &str = "lmqevidence";

/// The same, while a file is written.
const UNFINISHED: &str = "new";

/// No file is longer: evidence, and some bytes before it.
const MAX_FILE_BYTES: u64 = MAX_EVIDENCE_BYTES as u64 + 64;

/// How much evidence is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EvidenceLimits {
    /// Pieces against each replica.
    pub per_replica: usize,
    /// Pieces in all.
    pub all: usize,
}

/// A piece's place in the list: by the time at which this node first saw it, then by id. As text it
/// is the file's name without its ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct EvidenceKey {
    /// When it was first seen here.
    pub seen: Timestamp,
    /// The hash of its bytes.
    pub id: Hash,
}

impl fmt::Display for EvidenceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{}", self.seen.0, self.id)
    }
}

impl FromStr for EvidenceKey {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let wrong = ParseError::Hex { expected: 16 + 2 * Hash::LEN };
        let (seen, id) = text.split_once('-').filter(|(seen, _)| seen.len() == 16).ok_or(wrong.clone())?;
        let seen = u64::from_str_radix(seen, 16).map_err(|_| wrong.clone())?;
        let key = Self { seen: Timestamp(seen), id: id.parse().map_err(|_| wrong.clone())? };
        // One text for each key: whatever else parses is not what this program wrote.
        if key.to_string() == text { Ok(key) } else { Err(wrong) }
    }
}

/// A piece that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredEvidence {
    /// When it was seen, and its id.
    pub key: EvidenceKey,
    /// Who did what.
    pub fault: Fault,
    /// The length of its file.
    pub bytes: u64,
}

/// A part of the list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EvidencePage {
    /// The oldest first.
    pub evidence: Vec<StoredEvidence>,
    /// What to go on after; none at the end.
    pub next: Option<EvidenceKey>,
}

/// What became of a piece of evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It is on disk now.
    New(EvidenceKey),
    /// This fault is proven already.
    Known,
    /// There is enough against this replica, or in all.
    Full,
}

/// See the module.
#[derive(Debug)]
pub struct EvidenceStore {
    dir: PathBuf,
    limits: EvidenceLimits,
    /// Held while a file is written.
    kept: RwLock<BTreeMap<EvidenceKey, StoredEvidence>>,
}

impl EvidenceStore {
    /// Opens the store in `dir`, which is made if it is not there.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn open(dir: &Path, limits: EvidenceLimits) -> Result<Self, StoreError> {
        fs::create_dir_all(dir).map_err(io("make", dir))?;
        let mut kept = BTreeMap::new();
        for entry in fs::read_dir(dir).map_err(io("read", dir))? {
            let path = entry.map_err(io("read", dir))?.path();
            let extension = path.extension().and_then(|extension| extension.to_str());
            if extension == Some(UNFINISHED) && key_of(&path).is_some() && is_regular(&path)? {
                // Nobody was told of it; whoever repeats it is heard again.
                fs::remove_file(&path).map_err(io("remove", &path))?;
            } else if extension == Some(EXTENSION) {
                match read(&path)? {
                    Some(stored) => drop(kept.insert(stored.key, stored)),
                    None => tracing::error!(
                        file = %path.display(),
                        "this is not the evidence that was written; it is left out, move it away"
                    ),
                }
            }
        }
        Ok(Self { dir: dir.to_owned(), limits, kept: RwLock::new(kept) })
    }

    /// Whether a proof of this fault would be kept, or why not. Reads no file.
    pub fn would_keep(&self, fault: &Fault) -> Option<Kept> {
        refusal(&self.read(), fault, self.limits)
    }

    /// Keeps a piece of evidence, if it is the first for its fault and there is room; returns when it
    /// is on disk.
    ///
    /// # Errors
    /// [`StoreError::Io`]; do not go on after it.
    pub fn keep(&self, proven: &Proven, seen: Timestamp) -> Result<Kept, StoreError> {
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(refused) = refusal(&kept, &proven.fault, self.limits) {
            return Ok(refused);
        }
        let key = EvidenceKey { seen, id: proven.id };
        self.write(&key, proven.bytes())?;
        let stored = StoredEvidence { key, fault: proven.fault, bytes: proven.bytes().len() as u64 };
        kept.insert(key, stored);
        Ok(Kept::New(key))
    }

    /// How many pieces are kept.
    pub fn len(&self) -> usize {
        self.read().len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// At most `limit` pieces, the oldest first, from `after` on.
    pub fn page(&self, after: Option<EvidenceKey>, limit: usize) -> EvidencePage {
        let kept = self.read();
        let start = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        let mut rest = kept.range((start, std::ops::Bound::Unbounded)).map(|(_, stored)| *stored);
        let evidence: Vec<_> = rest.by_ref().take(limit).collect();
        let next = rest.next().and(evidence.last()).map(|last| last.key);
        EvidencePage { evidence, next }
    }

    /// The bytes of one piece.
    ///
    /// # Errors
    /// [`StoreError`]: the file cannot be read, or is not what was written.
    pub fn bytes(&self, id: &Hash) -> Result<Option<Vec<u8>>, StoreError> {
        let key = self.read().keys().find(|key| key.id == *id).copied();
        let Some(key) = key else { return Ok(None) };
        let path = self.path(&key);
        let bytes = fs::read(&path).map_err(io("read", &path))?;
        if Evidence::id_of(&bytes) == *id {
            Ok(Some(bytes))
        } else {
            Err(StoreError::Corrupt(path.display().to_string()))
        }
    }

    fn write(&self, key: &EvidenceKey, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.path(key);
        let unfinished = path.with_extension(UNFINISHED);
        File::create(&unfinished)
            .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&unfinished, &path))
            .and_then(|()| File::open(&self.dir)?.sync_all())
            .map_err(io("write", &path))
    }

    fn path(&self, key: &EvidenceKey) -> PathBuf {
        self.dir.join(format!("{key}.{EXTENSION}"))
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<EvidenceKey, StoredEvidence>> {
        self.kept.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refusal(
    kept: &BTreeMap<EvidenceKey, StoredEvidence>,
    fault: &Fault,
    limits: EvidenceLimits,
) -> Option<Kept> {
    let of = |node: &NodeId| kept.values().filter(|stored| stored.fault.node == *node).count();
    if kept.values().any(|stored| stored.fault == *fault) {
        Some(Kept::Known)
    } else if kept.len() >= limits.all || of(&fault.node) >= limits.per_replica {
        Some(Kept::Full)
    } else {
        None
    }
}

/// What a file is evidence of; none if it is not what was written.
fn read(path: &Path) -> Result<Option<StoredEvidence>, StoreError> {
    // A directory cannot be read, a pipe has no end, and a link is not what was written.
    let Some(key) = key_of(path) else { return Ok(None) };
    if !is_regular(path)? {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(io("open", path))?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(io("read", path))?;
    // The id in the name was that of proven evidence: so whatever has this hash is proven.
    if bytes.len() as u64 > MAX_FILE_BYTES || key.id != Evidence::id_of(&bytes) {
        return Ok(None);
    }
    let fault = Evidence::decode(&bytes).and_then(|evidence| evidence.claimed()).ok();
    Ok(fault.map(|fault| StoredEvidence { key, fault, bytes: bytes.len() as u64 }))
}

/// What a file's name says.
fn key_of(path: &Path) -> Option<EvidenceKey> {
    path.file_stem()?.to_str()?.parse().ok()
}

fn is_regular(path: &Path) -> Result<bool, StoreError> {
    fs::symlink_metadata(path).map(|found| found.is_file()).map_err(io("look at", path))
}

/// Wraps an error of the operating system.
fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StoreError {
    move |source| StoreError::Io { action, path: path.to_owned(), source: Arc::new(source) }
}

#[cfg(test)]
#[path = "evidence_tests.rs"]
mod tests;
