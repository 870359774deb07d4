//! The one task that writes the history: batches of rows and fates, digests behind them, and
//! patience with a database that is gone.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::backlog::Place;
use super::digester::{Digester, Sealed, Step};
use super::metrics::Health;
use super::{HistoryFeed, Told};
use crate::actors::Fatal;
use crate::actors::view::LedgerView;
use crate::clock::SharedClock;
use crate::codec;
use crate::crypto::SecretKey;
use crate::device::Header;
use crate::history::{
    HistoryError, HistoryRow, HistoryStore, MessageKey, ReadRow, RowFate, StoredDigest, StoredRow,
};
use crate::ledger::{DigestRecord, HistoryDigest, MAX_REQUEST_BYTES};
use crate::metrics::HistoryMetrics;
use crate::store::Log;
use crate::store::log::Position;
use crate::types::{ClientId, Hash, MessageSeq, NetworkId};

/// Messages in one transaction: about a quarter of a second of ingest at the full rate.
const BATCH: usize = 512;

/// How long the first of a batch waits for others: each transaction costs a sync of the disk, for which
/// the log waits, too. Nobody waits for the history.
const GATHER: Duration = Duration::from_millis(200);

/// How often digests are looked after.
const TICK: Duration = Duration::from_millis(250);

/// Rows read at once when the rows without a digest are looked for at the start.
const PAGE: u32 = 256;

/// How long an orderly stop waits for the last digest to be on the ledger.
const LAST_DIGEST: Duration = Duration::from_secs(2);

/// Hands a digest to be ordered; may be called again with the same.
pub type SubmitDigest = Arc<dyn Fn(HistoryDigest) + Send + Sync>;

/// When digests are made.
#[derive(Debug, Clone, Copy)]
pub struct DigestTerms {
    /// The longest that a row waits for a digest.
    pub interval: Duration,
    /// The most rows of a digest.
    pub max_rows: u32,
}

/// What the task works with.
#[derive(Clone)]
pub struct HistoryParts {
    /// The database.
    pub store: Arc<dyn HistoryStore>,
    /// The ledger.
    pub network: NetworkId,
    /// This node's key, for digests.
    pub key: SecretKey,
    /// The log: a message that it may lose is not written here.
    pub log: Log,
    /// Shows which digests are on the ledger.
    pub view: Arc<LedgerView>,
    /// Hands on digests.
    pub submit: SubmitDigest,
    /// When they are made.
    pub terms: DigestTerms,
    /// The clock.
    pub clock: SharedClock,
    /// Counters.
    pub metrics: HistoryMetrics,
    /// Stops the node.
    pub fatal: Fatal,
}

/// See the module.
pub struct HistoryTask {
    parts: HistoryParts,
    told: mpsc::Receiver<Told>,
    stop: watch::Receiver<bool>,
    health: Health,
    digester: Digester,
    /// New rows have numbers above this.
    above: u64,
    /// The last row that a digest of this node covers; by what is signed, whatever columns say.
    covered: u64,
    /// Whether rows may be in the database that the digester was not told of.
    unsure: bool,
    /// Rows whose fate is not known.
    awaiting: HashMap<MessageKey, Arc<Place>>,
}

impl HistoryTask {
    /// The task, and the way to it. It is to be spawned with [`HistoryTask::run`].
    pub fn new(parts: HistoryParts, stop: watch::Receiver<bool>) -> (Self, HistoryFeed) {
        let (feed, told) = HistoryFeed::new(parts.fatal.clone());
        let health = Health::new(parts.metrics.clone());
        let digester = Digester::new(parts.network, parts.key.clone(), parts.terms.max_rows);
        let awaiting = HashMap::new();
        (Self { parts, told, stop, health, digester, above: 0, covered: 0, unsure: true, awaiting }, feed)
    }

    /// Writes until the node stops, and then what is queued and a last digest.
    pub async fn run(mut self) {
        let _vital = self.parts.fatal.vital("the history");
        let _given_up_at_stop = Box::pin(self.work()).await;
    }

    /// None when the node stops while the database is gone: the log keeps the rest.
    async fn work(&mut self) -> Option<()> {
        self.begin().await?;
        let mut batch = Vec::with_capacity(BATCH);
        let mut stop = self.stop.clone();
        loop {
            let stopping = tokio::select! {
                _ = self.told.recv_many(&mut batch, BATCH) => false,
                () = tokio::time::sleep(TICK) => false,
                _ = stop.wait_for(|stop| *stop) => true,
            };
            if !batch.is_empty() && !stopping {
                tokio::time::sleep(GATHER).await;
            }
            self.write_queued(&mut batch).await?;
            self.tend_digests(stopping).await?;
            if stopping {
                return self.last_digest().await;
            }
        }
    }

    /// Writes the batch and what else is in the queue.
    async fn write_queued(&mut self, batch: &mut Vec<Told>) -> Option<()> {
        loop {
            while batch.len() < BATCH
                && let Ok(told) = self.told.try_recv()
            {
                batch.push(told);
            }
            if batch.is_empty() {
                return Some(());
            }
            self.write(std::mem::take(batch)).await?;
        }
    }

    /// Something failed. Some when it is to be tried again, none when the node stops.
    async fn failed(&mut self, error: HistoryError) -> Option<()> {
        let pause = self.health.bad(&error);
        match error {
            HistoryError::WrongNetwork { .. }
            | HistoryError::NewerSchema { .. }
            | HistoryError::Foreign { .. }
            | HistoryError::Url { .. } => {
                self.parts.fatal.stop(anyhow::Error::new(error).context("writing the history"));
                return None;
            }
            _ => {}
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => Some(()),
            _ = self.stop.wait_for(|stop| *stop) => None,
        }
    }

    /// Takes up where an earlier run ended.
    async fn begin(&mut self) -> Option<()> {
        let node = self.parts.key.node_id();
        let on_ledger = self.parts.view.history_digest(&node);
        let on_ledger_number = on_ledger.map_or(0, |record| record.number);
        let (last, mut unwritten) = loop {
            match self.kept_digests(on_ledger_number).await {
                Ok(kept) => break kept,
                Err(error) => self.failed(error).await?,
            }
        };
        unwritten.retain(|digest| self.is_own(digest));
        let kept = last.as_ref().and_then(decoded).filter(|digest| self.is_own(digest));
        let on_ledger_row = on_ledger.map_or(0, |record| record.last_row);
        self.covered = match (&last, &kept) {
            (None, _) => 0,
            (Some(_), Some(kept)) => last_row(kept),
            // It was altered: the ledger's word counts. Rows of digests after that are in `unwritten`.
            (Some(_), None) => unwritten.iter().map(last_row).fold(on_ledger_row, u64::max),
        };
        self.digester.restore(on_ledger, kept.map(|digest| (digest.number, digest.hash())), unwritten);
        self.above = self.covered.max(on_ledger_row);
        self.find_open(self.covered).await
    }

    fn is_own(&self, digest: &HistoryDigest) -> bool {
        let is_own = digest.node == self.parts.key.node_id() && digest.verify(&self.parts.network).is_ok();
        if !is_own {
            tracing::error!(number = digest.number, "a digest in the history was altered; it is left out");
        }
        is_own
    }

    /// The last digest that is kept, and those that may not be on the ledger.
    async fn kept_digests(
        &self,
        on_ledger: u64,
    ) -> Result<(Option<StoredDigest>, Vec<HistoryDigest>), HistoryError> {
        let store = &self.parts.store;
        let last = store.last_digest().await?;
        let mut after = on_ledger.saturating_sub(1);
        let mut unwritten = Vec::new();
        loop {
            let page = store.digests(after, 1).await?;
            let Some(digest) = page.into_iter().next() else { return Ok((last, unwritten)) };
            after = digest.number;
            if digest.height.is_none() {
                unwritten.extend(decoded(&digest));
            }
        }
    }

    /// Finds the rows above `after`, which no digest covers.
    async fn find_open(&mut self, mut after: u64) -> Option<()> {
        self.digester.clear_open();
        loop {
            let page = match self.parts.store.rows(after, PAGE).await {
                Ok(page) => page,
                Err(error) => {
                    self.failed(error).await?;
                    continue;
                }
            };
            self.health.good();
            if page.is_empty() {
                self.unsure = false;
                return Some(());
            }
            for row in page {
                let (number, hash, message) = found(row);
                after = number;
                let now = self.parts.clock.monotonic();
                if let Some(sealed) = self.digester.add(number, hash, message, now) {
                    self.keep(sealed).await?;
                }
            }
        }
    }

    async fn write(&mut self, batch: Vec<Told>) -> Option<()> {
        let (mut rows, mut places, mut fates) = (Vec::new(), Vec::new(), Vec::new());
        let mut logged = Position::NONE;
        for told in batch {
            match told {
                Told::Row(row, position, place) => {
                    logged = logged.max(position);
                    places.push((row.key(), place));
                    rows.push(row);
                }
                Told::Fate(key, fate) => fates.push((key, fate)),
            }
        }
        if !rows.is_empty() {
            // After a power cut a message that the log lost is judged anew, and perhaps otherwise. If the log
            // fails, the node stops.
            self.parts.log.synced(logged).await.ok()?;
            self.append(&rows).await?;
            self.awaiting.extend(places);
        }
        let known: Vec<(MessageKey, RowFate)> =
            fates.iter().filter_map(|(key, fate)| Some((key.clone(), fate.clone()?))).collect();
        if !known.is_empty() {
            self.put_fates(&known).await?;
        }
        for (key, _) in fates {
            if let Some(place) = self.awaiting.remove(&key) {
                place.is_done();
            }
        }
        Some(())
    }

    async fn append(&mut self, rows: &[HistoryRow]) -> Option<()> {
        let started = self.parts.clock.monotonic();
        // A node that lost its ledger with its history fetches blocks while it begins anew.
        let on_ledger = self.parts.view.history_digest(&self.parts.key.node_id());
        if let Some((record, first)) = self.digester.behind(on_ledger) {
            self.rebase(record, first).await?;
        }
        let numbers = loop {
            match self.parts.store.append(self.above, rows).await {
                Ok(numbers) => break numbers,
                // It may be there all the same.
                Err(error) => {
                    self.unsure = true;
                    self.failed(error).await?;
                }
            }
        };
        self.health.good();
        let took = self.parts.clock.monotonic().saturating_sub(started);
        self.health.metrics().append_ms.observe(took.as_secs_f64() * 1000.0);
        let new = numbers.iter().flatten().count() as u64;
        self.health.metrics().rows.inc_by(new);
        if self.unsure {
            return self.find_open(self.covered).await;
        }
        for (row, number) in rows.iter().zip(numbers) {
            let Some(number) = number else { continue };
            let now = self.parts.clock.monotonic();
            let header = row.message.header();
            let message = Some((header.client.clone(), header.seq));
            if let Some(sealed) = self.digester.add(number, row.hash(), message, now) {
                self.keep(sealed).await?;
            }
        }
        Some(())
    }

    async fn put_fates(&mut self, fates: &[(MessageKey, RowFate)]) -> Option<()> {
        loop {
            match self.parts.store.put_fates(fates).await {
                Ok(()) => {
                    self.health.good();
                    return Some(());
                }
                Err(error) => self.failed(error).await?,
            }
        }
    }

    /// Keeps a digest before it is submitted: after a restart it must be the same.
    async fn keep(&mut self, (digest, hashes): Sealed) -> Option<()> {
        loop {
            match self.parts.store.put_digest(&digest, &hashes).await {
                Ok(()) => {
                    self.health.good();
                    self.covered = last_row(&digest);
                    self.above = self.above.max(self.covered);
                    tracing::debug!(number = digest.number, rows = digest.rows, "a history digest was made");
                    return Some(());
                }
                Err(error) => self.failed(error).await?,
            }
        }
    }

    /// Makes a digest if it is time, and sees to those that are not final.
    async fn tend_digests(&mut self, now_or_never: bool) -> Option<()> {
        let now = self.parts.clock.monotonic();
        let is_due = now_or_never || self.digester.is_due(self.parts.terms.interval, now);
        if is_due && let Some(sealed) = self.digester.seal() {
            self.keep(sealed).await?;
        }
        let node = self.parts.key.node_id();
        loop {
            let (on_ledger, progress) = (self.parts.view.history_digest(&node), self.parts.view.progress());
            let step = self.digester.step(on_ledger, progress.certified_height, now);
            self.health
                .metrics()
                .digests_open
                .set(i64::try_from(self.digester.unwritten()).unwrap_or(i64::MAX));
            match step {
                Step::Wait => return Some(()),
                Step::Submit(digest) => {
                    (self.parts.submit)(digest);
                    return Some(());
                }
                Step::IsFinal { number, height } => {
                    self.health.metrics().digests.inc();
                    loop {
                        match self.parts.store.digest_is_final(number, height).await {
                            Ok(()) => break,
                            Err(error) => self.failed(error).await?,
                        }
                    }
                }
                Step::Rebase(record, first) => self.rebase(record, first).await?,
            }
        }
    }

    /// The ledger has digests of this node that this history does not have: it was lost, or another one
    /// was put in its place. What is here, from `first` on, follows those.
    async fn rebase(&mut self, record: DigestRecord, first: u64) -> Option<()> {
        tracing::error!(
            on_ledger = record.number,
            "the ledger has digests of rows that this history does not have; if it was not replaced on purpose, \
             somebody took rows away: run ledgermq audit"
        );
        while let Err(error) = self.parts.store.start_over(first, record.last_row).await {
            self.failed(error).await?;
        }
        self.digester.begin_anew(record);
        self.above = self.above.max(record.last_row);
        self.covered = record.last_row.max(first.saturating_sub(1));
        self.find_open(self.covered).await
    }

    /// The node stops in order: waits a moment for the last digest.
    async fn last_digest(&mut self) -> Option<()> {
        let until = self.parts.clock.monotonic() + LAST_DIGEST;
        while self.digester.unwritten() > 0 && self.parts.clock.monotonic() < until {
            tokio::time::sleep(TICK / 10).await;
            self.tend_digests(false).await?;
        }
        Some(())
    }
}

/// The last row that a digest covers.
fn last_row(digest: &HistoryDigest) -> u64 {
    digest.first.saturating_add(u64::from(digest.rows).saturating_sub(1))
}

/// The digest as it was signed, if it is the one of that number.
fn decoded(digest: &StoredDigest) -> Option<HistoryDigest> {
    let decoded = codec::decode::<MAX_REQUEST_BYTES, HistoryDigest>(&digest.content);
    let damaged = |error: &codec::CodecError| {
        tracing::error!(number = digest.number, %error, "a digest in the history is damaged");
    };
    let signed = decoded.inspect_err(damaged).ok()?;
    if signed.number != digest.number {
        tracing::error!(
            number = digest.number,
            signed = signed.number,
            "a digest in the history was altered"
        );
        return None;
    }
    Some(signed)
}

/// What a digest needs of a row that was found in the database. A row that cannot be read has no
/// hash that is right; it keeps its place, and the audit names it.
fn found(row: ReadRow) -> (u64, Hash, Option<(ClientId, MessageSeq)>) {
    let (number, row) = match row {
        Ok(row) => (row.number, Some(row)),
        Err(unreadable) => (unreadable.number, None),
    };
    let hash = row.as_ref().map_or(Hash([0; 32]), StoredRow::hash);
    let header = row.and_then(|row| Header::decode(&row.header).ok());
    if header.is_none() {
        tracing::error!(number, "a row of the history was altered; run ledgermq audit");
    }
    (number, hash, header.map(|header| (header.client, header.seq)))
}
