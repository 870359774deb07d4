//! The ledger store in sled.
//!
//! - Everything is in one tree, so a commit is one batch, and sled applies a batch wholly or not at
//!   all, also across a crash. Keys are in `keys`, the clients' windows in `windows`, the record
//!   index in `index`.
//! - sled's `flush` gives the data to the kernel, no more; `make_durable` syncs the file system
//!   after it, and then writes the number of this save into a file beside. A store that opens with
//!   a lower number is damaged, and is refused.
//! - sled's own timer is off: only `make_durable` flushes, and after a crash the log replays the rest.
//! - A kill during sled's open can leave a `snap.*.generating`, on which the next open stumbles;
//!   it is removed first.

mod durable;
mod index;
mod keys;
mod last_written;
mod open;
mod recent;
#[cfg(test)]
mod tests;
mod windows;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bincode::{Decode, Encode};

use self::last_written::LastWrittenItems;
use self::recent::RecentBlocks;
use super::ledger::{
    ADMISSION_WINDOW, AdmissionRecord, CertifiedCommit, LedgerStore, RecordPage, RecordQuery, Snapshot,
    StoreError,
};
use crate::codec;
use crate::ledger::{Block, Certificate, Head, Header, StateChange};
use crate::policy::{ItemKey, LastWritten};
use crate::types::{ClientId, Height, NetworkId};

/// No block has more bytes: a batch is closed at 8 MiB, and its last request may have 8 MiB more.
const MAX_BLOCK_BYTES: usize = 32 * 1024 * 1024;
/// No value but a block is longer: a certificate of 100 replicas has 7 KiB.
const MAX_VALUE_BYTES: usize = 64 * 1024;

/// Settings of the store.
#[derive(Debug, Clone)]
pub struct StoreSettings {
    /// The ledger; a store of another one is refused.
    pub network: NetworkId,
    /// How much sled may keep in memory.
    pub cache_bytes: u64,
}

impl StoreSettings {
    /// The default of `cache_bytes`: 128 MiB; sled's own of 1 GiB is too much beside a broker.
    pub const CACHE_BYTES: u64 = 128 * 1024 * 1024;

    /// The defaults.
    pub fn new(network: NetworkId) -> Self {
        Self { network, cache_bytes: Self::CACHE_BYTES }
    }
}

/// The ledger store in sled.
pub struct SledStore {
    db: sled::Db,
    dir: PathBuf,
    /// The last commit; held while one is made.
    head: Mutex<Option<Head>>,
    /// How often the store was made durable; held while it is.
    saves: Mutex<u64>,
    /// Held while blocks are indexed.
    indexing: Mutex<()>,
    indexed: AtomicU64,
    last_written: LastWrittenItems,
    recent: RecentBlocks,
    certified: AtomicU64,
    /// Held for as long as the store is open.
    _lock: File,
}

impl std::fmt::Debug for SledStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SledStore").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl SledStore {
    /// Opens the store in `dir`, or makes a new one there.
    ///
    /// # Errors
    /// [`StoreError`]: each says what to do.
    pub fn open(dir: &Path, settings: &StoreSettings) -> Result<Self, StoreError> {
        let (db, lock) = open::open(dir, settings)?;
        let mut store = Self {
            db,
            dir: dir.to_owned(),
            head: Mutex::new(None),
            saves: Mutex::new(0),
            indexing: Mutex::new(()),
            indexed: AtomicU64::new(0),
            last_written: LastWrittenItems::default(),
            recent: RecentBlocks::default(),
            certified: AtomicU64::new(0),
            _lock: lock,
        };
        let head = store.read::<MAX_VALUE_BYTES, Head>(keys::HEAD, || "the head".to_owned())?;
        let saves: u64 = store.read::<8, _>(keys::SAVES, || "the last save".to_owned())?.unwrap_or_default();
        store.check_saves(saves)?;
        store.check_head(head.as_ref())?;
        store.saves = Mutex::new(saves);
        let indexed: Option<Height> = store.read::<8, _>(keys::INDEXED, || "the index".to_owned())?;
        store.indexed = AtomicU64::new(indexed.unwrap_or_default().0);
        store.certified = AtomicU64::new(store.last_certificate()?.0);
        store.head = Mutex::new(head);
        store.recover_last_written()?;
        Ok(store)
    }

    /// Takes up the blocks that are in the record index and whose last written values were only in
    /// memory, or were never made: a store of an older program has none.
    fn recover_last_written(&mut self) -> Result<(), StoreError> {
        let saved: Option<Height> =
            self.read::<8, _>(keys::LAST_WRITTEN_UP_TO, || "the last written values".to_owned())?;
        let saved = saved.unwrap_or_default();
        self.last_written = LastWrittenItems::open(saved);
        for height in (saved.0 + 1..=self.indexed_height().0).map(Height) {
            let block = self.block(height)?.ok_or_else(|| StoreError::Corrupt(format!("block {height}")))?;
            self.last_written.add(&self.db, &block)?;
        }
        Ok(())
    }

    /// Bytes on disk.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub fn disk_bytes(&self) -> Result<u64, StoreError> {
        self.db.size_on_disk().map_err(failed)
    }

    /// Everything that was durable is here.
    fn check_saves(&self, found: u64) -> Result<(), StoreError> {
        match durable::read(&self.dir)? {
            Some(durable) if found < durable => {
                Err(StoreError::RolledBack { dir: self.dir.clone(), durable, found })
            }
            _ => Ok(()),
        }
    }

    /// The head's block is here.
    fn check_head(&self, head: Option<&Head>) -> Result<(), StoreError> {
        let Some(head) = head.filter(|head| head.height > Height(0)) else { return Ok(()) };
        match self.header(head.height)? {
            Some(header) if header.hash() == head.block => Ok(()),
            _ => Err(StoreError::Corrupt(format!("block {}, the last one,", head.height))),
        }
    }

    fn last_certificate(&self) -> Result<Height, StoreError> {
        match self.db.scan_prefix(keys::CERTIFICATES).next_back() {
            None => Ok(Height(0)),
            Some(last) => {
                let (key, _) = last.map_err(failed)?;
                keys::height_of(&key).ok_or_else(|| StoreError::Corrupt("a certificate's height".to_owned()))
            }
        }
    }

    /// The value at `key`; `what` names it if it is damaged.
    fn read<const LIMIT: usize, T: Encode + Decode<()>>(
        &self,
        key: &[u8],
        what: impl Fn() -> String,
    ) -> Result<Option<T>, StoreError> {
        let Some(bytes) = self.db.get(key).map_err(failed)? else { return Ok(None) };
        codec::decode::<LIMIT, T>(&bytes).map(Some).map_err(|_| StoreError::Corrupt(what()))
    }

    fn apply(&self, batch: sled::Batch) -> Result<(), StoreError> {
        self.db.apply_batch(batch).map_err(failed)
    }
}

impl LedgerStore for SledStore {
    fn load(&self) -> Result<Option<Snapshot>, StoreError> {
        let head = lock(&self.head);
        let Some(head) = head.as_ref() else { return Ok(None) };
        let mut entries = Vec::new();
        for entry in self.db.scan_prefix(keys::STATE) {
            let (key, value) = entry.map_err(failed)?;
            entries.push((key[keys::STATE.len()..].to_vec(), value.to_vec()));
        }
        entries.extend(windows::load(&self.db)?);
        Ok(Some(Snapshot { head: head.clone(), entries }))
    }

    fn commit(&self, head: &Head, block: Option<&Block>, changes: &[StateChange]) -> Result<(), StoreError> {
        let mut last = lock(&self.head);
        if !follows(last.as_ref(), head, block) {
            return Err(StoreError::OutOfOrder { sequence: head.sequence, height: head.height });
        }
        let (mut batch, mut state) = (sled::Batch::default(), windows::Changes::new(&self.db));
        state.put(&mut batch, changes)?;
        state.finish(&mut batch);
        let bytes = block.map(|block| put_block(&mut batch, block)).transpose()?;
        batch.insert(keys::HEAD, codec::encode(head));
        self.apply(batch)?;
        *last = Some(head.clone());
        if let Some((block, bytes)) = block.zip(bytes) {
            self.recent.put(block, bytes);
        }
        Ok(())
    }

    fn commit_certified(&self, commits: &[CertifiedCommit<'_>]) -> Result<(), StoreError> {
        let Some(highest) = commits.last().map(|commit| &commit.head) else { return Ok(()) };
        let mut last = lock(&self.head);
        let (mut before, mut batch) = (last.as_ref(), sled::Batch::default());
        let mut state = windows::Changes::new(&self.db);
        for CertifiedCommit { head, certified, changes } in commits {
            let (block, certificate) = (certified.block(), certified.certificate());
            if !follows(before, head, Some(block)) {
                return Err(StoreError::OutOfOrder { sequence: head.sequence, height: head.height });
            }
            // `follows` has seen that the block is the head's, and `CertifiedBlock` that it is the certificate's.
            state.put(&mut batch, changes)?;
            put_block(&mut batch, block)?;
            batch.insert(&keys::certificate(head.height), codec::encode(certificate));
            before = Some(head);
        }
        state.finish(&mut batch);
        batch.insert(keys::HEAD, codec::encode(highest));
        self.apply(batch)?;
        self.certified.fetch_max(highest.height.0, Relaxed);
        *last = Some(highest.clone());
        Ok(())
    }

    fn put_certificate(&self, certificate: &Certificate) -> Result<(), StoreError> {
        let content = &certificate.content;
        if content.height == Height(0) {
            return Ok(());
        }
        let header = self.header(content.height)?.ok_or(StoreError::UnknownBlock(content.height))?;
        let stored = header.hash();
        if stored != content.block {
            return Err(StoreError::OtherBlock { height: content.height, certified: content.block, stored });
        }
        let key = keys::certificate(content.height);
        if !self.db.contains_key(key).map_err(failed)? {
            self.db.insert(key, codec::encode(certificate)).map_err(failed)?;
            self.certified.fetch_max(content.height.0, Relaxed);
        }
        Ok(())
    }

    fn header(&self, height: Height) -> Result<Option<Header>, StoreError> {
        self.read::<MAX_VALUE_BYTES, _>(&keys::header(height), || format!("header {height}"))
    }

    fn block(&self, height: Height) -> Result<Option<Block>, StoreError> {
        let mut bytes = Vec::new();
        for part in self.db.scan_prefix(keys::block(height)) {
            bytes.extend_from_slice(&part.map_err(failed)?.1);
        }
        if bytes.is_empty() {
            return Ok(None);
        }
        codec::decode::<MAX_BLOCK_BYTES, _>(&bytes)
            .map(Some)
            .map_err(|_| StoreError::Corrupt(format!("block {height}")))
    }

    fn take_recent(&self, height: Height) -> Option<Block> {
        self.recent.take(height)
    }

    fn certificate(&self, height: Height) -> Result<Option<Certificate>, StoreError> {
        let what = || format!("the certificate of block {height}");
        self.read::<MAX_VALUE_BYTES, _>(&keys::certificate(height), what)
    }

    fn certified_height(&self) -> Height {
        Height(self.certified.load(Relaxed))
    }

    fn records(&self, query: &RecordQuery) -> Result<RecordPage, StoreError> {
        index::query(&self.db, query)
    }

    fn index(&self, blocks: &[Block]) -> Result<(), StoreError> {
        let _indexing = lock(&self.indexing);
        let mut expected = self.indexed_height().next();
        let mut new = Vec::with_capacity(blocks.len());
        for block in blocks {
            let found = block.header.height;
            if found > expected {
                return Err(StoreError::IndexGap { expected, found });
            }
            if found == expected {
                new.push(block);
                expected = found.next();
            }
        }
        index::add(&self.db, new.iter().copied())?;
        for block in new {
            self.last_written.add(&self.db, block)?;
            self.indexed.store(block.header.height.0, Relaxed);
        }
        Ok(())
    }

    fn indexed_height(&self) -> Height {
        Height(self.indexed.load(Relaxed))
    }

    fn last_written(&self, item: &ItemKey) -> Result<Option<LastWritten>, StoreError> {
        self.last_written.get(&self.db, item)
    }

    fn item_count(&self, client: &ClientId) -> Result<u64, StoreError> {
        self.last_written.count(&self.db, client)
    }

    fn put_admissions(&self, admissions: &[AdmissionRecord]) -> Result<(), StoreError> {
        let mut latest: BTreeMap<Vec<u8>, &AdmissionRecord> = BTreeMap::new();
        for admission in admissions {
            let slot = latest.entry(keys::admission(&admission.client, admission.seq)).or_insert(admission);
            if slot.seq < admission.seq {
                *slot = admission;
            }
        }
        let mut batch = sled::Batch::default();
        for (key, admission) in latest {
            let there: Option<AdmissionRecord> = self.read::<MAX_VALUE_BYTES, _>(&key, admission_name)?;
            if there.is_none_or(|there| there.seq < admission.seq) {
                batch.insert(key, codec::encode(admission));
            }
        }
        self.apply(batch)
    }

    fn admissions(&self) -> Result<Vec<AdmissionRecord>, StoreError> {
        let mut found = Vec::new();
        for entry in self.db.scan_prefix(keys::ADMISSIONS) {
            let (_, value) = entry.map_err(failed)?;
            let admission: AdmissionRecord = codec::decode::<MAX_VALUE_BYTES, _>(&value)
                .map_err(|_| StoreError::Corrupt(admission_name()))?;
            found.push(admission);
        }
        found.sort_unstable_by(|a, b| (&a.client, a.seq).cmp(&(&b.client, b.seq)));
        let mut highest = BTreeMap::new();
        for admission in &found {
            highest.insert(admission.client.clone(), admission.seq);
        }
        found
            .retain(|one| highest.get(&one.client).is_none_or(|high| one.seq.0 + ADMISSION_WINDOW >= high.0));
        Ok(found)
    }

    fn make_durable(&self) -> Result<(), StoreError> {
        let mut saves = lock(&self.saves);
        let number = *saves + 1;
        self.db.insert(keys::SAVES, codec::encode(&number)).map_err(failed)?;
        self.db.flush().map_err(failed)?;
        durable::sync_file_system(&self.dir)?;
        durable::write(&self.dir, number)?;
        *saves = number;
        Ok(())
    }
}

/// Whether a commit is the next one. The first may be genesis, or the first batch.
fn follows(last: Option<&Head>, head: &Head, block: Option<&Block>) -> bool {
    let in_sequence = last.is_none_or(|last| last.sequence < head.sequence);
    let below = last.map(|last| last.height).unwrap_or_default();
    let in_height = match block {
        Some(block) => {
            head.height == below.next()
                && block.header.height == head.height
                && block.header.hash() == head.block
                && last.is_none_or(|last| block.header.previous == last.block)
        }
        None => head.height == below && last.is_none_or(|last| last.block == head.block),
    };
    in_sequence && in_height
}

/// Returns how many bytes it has.
fn put_block(batch: &mut sled::Batch, block: &Block) -> Result<usize, StoreError> {
    let height = block.header.height;
    batch.insert(&keys::header(height), codec::encode(&block.header));
    let encoded = encode_block(block)?;
    for (part, bytes) in encoded.chunks(keys::PART_BYTES).enumerate() {
        batch.insert(&keys::block_part(height, part), bytes);
    }
    Ok(encoded.len())
}

fn encode_block(block: &Block) -> Result<Vec<u8>, StoreError> {
    let encoded = codec::encode(block);
    let (height, bytes, limit) = (block.header.height, encoded.len(), MAX_BLOCK_BYTES);
    if bytes > limit { Err(StoreError::BlockTooLarge { height, bytes, limit }) } else { Ok(encoded) }
}

fn admission_name() -> String {
    "an admission".to_owned()
}

/// A poisoned lock is taken as it is: nothing in its holders panics half-way.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[allow(clippy::needless_pass_by_value)] // as `map_err` hands it over
fn failed(error: sled::Error) -> StoreError {
    match error {
        sled::Error::Corruption { .. } => StoreError::Corrupt("a page of the database".to_owned()),
        error => StoreError::Database(error.to_string()),
    }
}
