//! Upkeep of what is derived or must become durable, behind execution: the record index, the
//! store's checkpoints, and the cutting of the log.
//!
//! Order matters at a checkpoint: first the positions that are still needed are taken, then the
//! store is made durable, and only then the log is cut there. So whatever the log loses is in the
//! store for good.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::Fatal;
use super::admission::Admission;
use super::effects::WalMarks;
use super::view::LedgerView;
use crate::ledger::Block;
use crate::store::log::Holder;
use crate::store::{LedgerStore, Log, StoreError};
use crate::types::Height;

/// Blocks that are indexed together, at most.
const INDEX_BATCH: usize = 64;

/// How often the index is brought up to date.
const INDEX_INTERVAL: Duration = Duration::from_millis(50);

/// What the upkeep works on.
#[derive(Clone)]
pub struct Upkeep {
    /// The ledger's store.
    pub store: Arc<dyn LedgerStore>,
    /// The log.
    pub log: Log,
    /// Which PBFT entries are needed.
    pub marks: Arc<WalMarks>,
    /// Which accepted messages are needed.
    pub admission: Arc<Admission>,
    /// How far the ledger is.
    pub view: Arc<LedgerView>,
    /// How often the store is made durable.
    pub interval: Duration,
    /// The same, after so many bytes of log.
    pub bytes: u64,
    /// Stops the node.
    pub fatal: Fatal,
}

impl Upkeep {
    /// Indexes blocks behind execution until `stop` changes.
    pub async fn index(self, mut stop: watch::Receiver<bool>) {
        let mut interval = tokio::time::interval(INDEX_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = interval.tick() => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
            let parts = self.clone();
            let done = tokio::task::spawn_blocking(move || parts.index_behind()).await;
            if let Ok(Err(error)) = done {
                return self.fatal.stop(anyhow::Error::new(error).context("writing the record index"));
            }
        }
    }

    /// Indexes every block that is executed and not yet in the index.
    fn index_behind(&self) -> Result<(), StoreError> {
        let executed = self.view.progress().executed.height;
        loop {
            let from = self.store.indexed_height().next();
            let upto = Height(executed.0.min(from.0 + INDEX_BATCH as u64 - 1));
            let mut blocks: Vec<Block> = Vec::new();
            for height in from.0..=upto.0 {
                blocks.extend(self.store.block(Height(height))?);
            }
            if blocks.is_empty() {
                return Ok(());
            }
            self.store.index(&blocks)?;
        }
    }

    /// Makes the store durable and cuts the log, again and again until `stop` changes, and once
    /// more then.
    pub async fn checkpoint(self, mut stop: watch::Receiver<bool>) {
        let mut at_bytes = self.log.stats().bytes;
        let mut waited = Duration::ZERO;
        let step = Duration::from_millis(250).min(self.interval);
        loop {
            let stopping = tokio::select! {
                () = tokio::time::sleep(step) => false,
                _ = stop.wait_for(|stop| *stop) => true,
            };
            waited += step;
            let bytes = self.log.stats().bytes;
            let due = waited >= self.interval || bytes - at_bytes >= self.bytes;
            if (due && bytes != at_bytes) || stopping {
                (at_bytes, waited) = (bytes, Duration::ZERO);
                let parts = self.clone();
                match tokio::task::spawn_blocking(move || parts.make_durable()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => {
                        return self
                            .fatal
                            .stop(anyhow::Error::new(error).context("making the ledger durable"));
                    }
                    Err(_) => return,
                }
            }
            if stopping {
                return;
            }
        }
    }

    fn make_durable(&self) -> Result<(), StoreError> {
        // Everything appended after this point is kept, so it is read before what is needed.
        let end = self.log.last().next();
        let progress = self.view.progress();
        let settled = progress.executed.sequence.min(progress.certified);
        let consensus = self.marks.needed_from(settled).unwrap_or(end);
        let ingress = self.admission.needed_from().unwrap_or(end);
        self.store.put_admissions(&self.admission.take_changed())?;
        self.store.make_durable()?;
        self.log.set_low_mark(Holder::Consensus, consensus);
        self.log.set_low_mark(Holder::Ingress, ingress);
        self.log.cut(self.log.low_mark());
        Ok(())
    }
}
