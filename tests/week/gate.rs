//! A history database that can be unplugged, and that counts what it was given.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use async_trait::async_trait;
use ledgermq::history::{
    HistoryError, HistoryRow, HistoryStore, Location, MessageKey, ReadRow, RowFate, RowStanding, SqlHistory,
    StoredDigest,
};
use ledgermq::ledger::HistoryDigest;
use ledgermq::types::{Hash, Height};

pub struct Gate {
    store: SqlHistory,
    gone: AtomicBool,
    /// Rows that were offered with success, those that were there among them.
    taken: AtomicU64,
    lost_answers: AtomicU64,
}

impl Gate {
    pub fn new(store: SqlHistory) -> Self {
        Self {
            store,
            gone: AtomicBool::new(false),
            taken: AtomicU64::new(0),
            lost_answers: AtomicU64::new(0),
        }
    }

    pub fn unplug(&self, gone: bool) {
        self.gone.store(gone, SeqCst);
    }

    pub fn is_gone(&self) -> bool {
        self.gone.load(SeqCst)
    }

    pub fn taken(&self) -> u64 {
        self.taken.load(SeqCst)
    }

    fn check(&self) -> Result<(), HistoryError> {
        if !self.is_gone() {
            return Ok(());
        }
        let location = self.store.location().to_string();
        Err(HistoryError::Unavailable { location, detail: "unplugged".into() })
    }
}

#[async_trait]
impl HistoryStore for Gate {
    fn location(&self) -> &Location {
        self.store.location()
    }

    async fn open(&self) -> Result<(), HistoryError> {
        self.store.open().await
    }

    /// Of the first try while it is unplugged only the answer is lost.
    async fn append(&self, above: u64, rows: &[HistoryRow]) -> Result<Vec<Option<u64>>, HistoryError> {
        if self.is_gone() && self.lost_answers.fetch_add(1, SeqCst) == 0 {
            self.store.append(above, rows).await?;
        }
        self.check()?;
        let numbers = self.store.append(above, rows).await?;
        self.taken.fetch_add(rows.len() as u64, SeqCst);
        Ok(numbers)
    }

    async fn put_fates(&self, fates: &[(MessageKey, RowFate)]) -> Result<(), HistoryError> {
        self.check()?;
        self.store.put_fates(fates).await
    }

    async fn standing(&self, keys: &[MessageKey]) -> Result<Vec<RowStanding>, HistoryError> {
        self.store.standing(keys).await
    }

    async fn put_digest(&self, digest: &HistoryDigest, hashes: &[Hash]) -> Result<(), HistoryError> {
        self.check()?;
        self.store.put_digest(digest, hashes).await
    }

    async fn start_over(&self, first: u64, above: u64) -> Result<(), HistoryError> {
        self.check()?;
        self.store.start_over(first, above).await
    }

    async fn digest_is_final(&self, number: u64, height: Height) -> Result<(), HistoryError> {
        self.check()?;
        self.store.digest_is_final(number, height).await
    }

    async fn last_digest(&self) -> Result<Option<StoredDigest>, HistoryError> {
        self.check()?;
        self.store.last_digest().await
    }

    async fn digests(&self, after: u64, limit: u32) -> Result<Vec<StoredDigest>, HistoryError> {
        self.check()?;
        self.store.digests(after, limit).await
    }

    async fn rows(&self, after: u64, limit: u32) -> Result<Vec<ReadRow>, HistoryError> {
        self.check()?;
        HistoryStore::rows(&self.store, after, limit).await
    }
}
