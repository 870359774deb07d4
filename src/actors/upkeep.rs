//! Upkeep of what is derived or must become durable, behind execution: the record index, the
//! store's checkpoints, and the cutting of the log.
//!
//! Order matters at a checkpoint: first the positions that are still needed are taken, then what
//! was accepted, and when that is on disk the store hears of it and is made durable, and only then
//! the log is cut. So whatever the log loses is in the store for good, and the store names no
//! message that a power cut took from the log.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::Fatal;
use super::admission::Admission;
use super::bases::Bases;
use super::effects::WalMarks;
use super::history::Backlog;
use super::view::LedgerView;
use crate::clock::SharedClock;
use crate::ledger::{Block, Operation};
use crate::metrics::{QueueGauge, StageTime, StorageMetrics};
use crate::store::log::{Holder, Position};
use crate::store::{LedgerStore, Log, StoreError};

/// How often the index is brought up to date: what several blocks add to one list costs hardly
/// more than what of one does.
const INDEX_INTERVAL: Duration = Duration::from_millis(200);

/// Bytes of items in blocks that are indexed together, but for the last: so much is in memory besides.
const INDEX_TOGETHER: usize = 1 << 20;

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
    /// Which of them are not in the history.
    pub backlog: Backlog,
    /// Is told what is indexed.
    pub bases: Arc<Bases>,
    /// How far the ledger is.
    pub view: Arc<LedgerView>,
    /// How often the store is made durable.
    pub interval: Duration,
    /// The same, after so many bytes of log.
    pub bytes: u64,
    /// Counts the time of indexing.
    pub time: StageTime,
    /// Measures checkpoints.
    pub clock: SharedClock,
    /// Counters.
    pub metrics: StorageMetrics,
    /// Shows how many messages are accepted and not final.
    pub accepted: QueueGauge,
    /// Stops the node.
    pub fatal: Fatal,
}

/// What of the log is still needed, read before a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Needed {
    consensus: Position,
    ingress: Position,
    history: Position,
}

impl Upkeep {
    /// Indexes blocks behind their certificates until `stop` changes.
    pub async fn index(self, mut stop: watch::Receiver<bool>) {
        let _vital = self.fatal.vital("the writing of the record index");
        let mut interval = tokio::time::interval(INDEX_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = interval.tick() => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
            let (parts, stop) = (self.clone(), stop.clone());
            let index = move || parts.time.of(|| parts.index_behind(&stop));
            match tokio::task::spawn_blocking(index).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    return self.fatal.stop(anyhow::Error::new(error).context("writing the record index"));
                }
                Err(_) => return,
            }
        }
    }

    /// Indexes every block that is certified and not yet in the index, some at a time: a block may have
    /// many megabytes. What is listed is on the ledger: nobody vouches yet for a block that was executed
    /// here alone.
    fn index_behind(&self, stop: &watch::Receiver<bool>) -> Result<(), StoreError> {
        while !*stop.borrow() {
            let (blocks, certified) = (self.next_blocks()?, self.store.certified_height());
            let Some(last) = blocks.last().map(|block| block.header.height) else { break };
            self.store.index(&blocks)?;
            blocks.iter().for_each(|block| self.bases.indexed(block));
            self.metrics.indexed_height.set(number(last.0));
            if last >= certified {
                break;
            }
        }
        Ok(())
    }

    /// The next blocks to be indexed; at least one if there is any.
    fn next_blocks(&self) -> Result<Vec<Block>, StoreError> {
        let (mut blocks, mut bytes) = (Vec::new(), 0);
        let mut next = self.store.indexed_height().next();
        while next <= self.store.certified_height() && bytes < INDEX_TOGETHER {
            let block = match self.store.take_recent(next) {
                Some(block) => Some(block),
                None => self.store.block(next)?,
            };
            let Some(block) = block else { break };
            bytes += item_bytes(&block);
            blocks.push(block);
            next = next.next();
        }
        Ok(blocks)
    }

    /// Makes the store durable and cuts the log, again and again until `stop` changes, and once
    /// more then.
    pub async fn checkpoint(self, mut stop: watch::Receiver<bool>) {
        let _vital = self.fatal.vital("the saving of the ledger");
        let mut at_bytes = self.log.stats().bytes;
        let mut waited = Duration::ZERO;
        let step = Duration::from_millis(250).min(self.interval);
        loop {
            let stopping = tokio::select! {
                () = tokio::time::sleep(step) => false,
                _ = stop.wait_for(|stop| *stop) => true,
            };
            waited += step;
            self.measure();
            let bytes = self.log.stats().bytes;
            let due = waited >= self.interval || bytes - at_bytes >= self.bytes;
            if (due && bytes != at_bytes) || stopping {
                (at_bytes, waited) = (bytes, Duration::ZERO);
                if let Err(error) = self.save().await {
                    return self.fatal.stop(error.context("making the ledger durable"));
                }
            }
            if stopping {
                return;
            }
        }
    }

    fn measure(&self) {
        let stats = self.log.stats();
        self.metrics.log_size_bytes.set(number(stats.disk_bytes));
        self.metrics.log_queued_bytes.set(number(stats.queued_bytes));
        self.metrics.indexed_height.set(number(self.store.indexed_height().0));
        self.accepted.length.set(number(self.admission.pending_count() as u64));
    }

    /// One checkpoint.
    async fn save(&self) -> anyhow::Result<()> {
        let needed = self.needed();
        let accepted = self.admission.take_changed();
        // All of these are in the log by now, and not later than here.
        self.log.synced(self.log.last()).await?;
        let (store, clock) = (Arc::clone(&self.store), Arc::clone(&self.clock));
        let took = tokio::task::spawn_blocking(move || {
            let started = clock.monotonic();
            store.put_admissions(&accepted)?;
            store.make_durable()?;
            Ok::<_, StoreError>(clock.monotonic().saturating_sub(started))
        });
        let took = took.await??;
        self.metrics.checkpoint_ms.observe(took.as_secs_f64() * 1000.0);
        self.log.set_low_mark(Holder::Consensus, needed.consensus);
        self.log.set_low_mark(Holder::Ingress, needed.ingress);
        self.log.set_low_mark(Holder::History, needed.history);
        self.log.cut(self.log.low_mark());
        Ok(())
    }

    fn needed(&self) -> Needed {
        // Everything appended after this point is kept, so it is read before what is needed.
        let end = self.log.last().next();
        let progress = self.view.progress();
        let settled = progress.executed.sequence.min(progress.certified);
        Needed {
            consensus: self.marks.needed_from(settled).unwrap_or(end).min(end),
            // A message is pinned for the history while its admission pins it: so that one is looked at first.
            ingress: self.admission.needed_from().unwrap_or(end).min(end),
            history: self.backlog.needed_from().unwrap_or(end).min(end),
        }
    }
}

fn item_bytes(block: &Block) -> usize {
    let writes = block.operations.iter().filter_map(|operation| match operation {
        Operation::Write { request, .. } => Some(&request.items),
        Operation::Admin(_) | Operation::Digest(_) => None,
    });
    writes.flatten().map(|item| item.bytes.len()).sum()
}

fn number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
#[path = "upkeep_tests.rs"]
mod tests;
