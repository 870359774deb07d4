//! Counting what the core and Storage do, with the labels of each counter looked up once.

use std::collections::HashMap;
use std::time::Duration;

use prometheus::{Histogram, IntCounter, IntGauge};

use crate::ledger::Outcome;
use crate::metrics::{ConsensusMetrics, QueueGauge, StageTime, Stages, StorageMetrics};
use crate::pbft::message::Content;
use crate::pbft::{Effect, Output, Rejected, Status};
use crate::types::{Hash, NodeId};

/// Own requests whose way into execution is timed at once: as many as the pool of one node holds
/// and some more; beyond it requests are ordered without being timed.
const MAX_TIMED: usize = 32_768;

/// The counters of one kind of PBFT message.
#[derive(Debug, Clone)]
struct MessageTally {
    received: IntCounter,
    sent: IntCounter,
}

impl MessageTally {
    fn new(metrics: &ConsensusMetrics, kind: &str) -> Self {
        Self {
            received: metrics.messages.with_label_values(&[kind, "in"]),
            sent: metrics.messages.with_label_values(&[kind, "out"]),
        }
    }
}

/// What Consensus counts.
#[derive(Debug)]
pub struct ConsensusTally {
    node: NodeId,
    metrics: ConsensusMetrics,
    pre_prepare: MessageTally,
    prepare: MessageTally,
    commit: MessageTally,
    checkpoint: MessageTally,
    view_change: MessageTally,
    new_view: MessageTally,
    recovery: MessageTally,
    outputs: QueueGauge,
    /// When own requests entered the pool.
    entered: HashMap<Hash, Duration>,
    time: StageTime,
}

impl ConsensusTally {
    /// The counters of node `node`; `outputs` is the queue of the core's outputs.
    pub fn new(node: NodeId, metrics: ConsensusMetrics, outputs: QueueGauge) -> Self {
        let tally = |kind| MessageTally::new(&metrics, kind);
        Self {
            pre_prepare: tally("pre_prepare"),
            prepare: tally("prepare"),
            commit: tally("commit"),
            checkpoint: tally("checkpoint"),
            view_change: tally("view_change"),
            new_view: tally("new_view"),
            recovery: tally("recovery"),
            node,
            outputs,
            entered: HashMap::new(),
            time: StageTime::default(),
            metrics,
        }
    }

    /// Counts the time of the thread, too, which Consensus has for itself.
    #[must_use]
    pub fn timed(self, time: StageTime) -> Self {
        Self { time, ..self }
    }

    fn kind(&self, content: &Content) -> &MessageTally {
        match content {
            Content::PrePrepare(_) => &self.pre_prepare,
            Content::Prepare(_) => &self.prepare,
            Content::Commit(_) => &self.commit,
            Content::Checkpoint(_) => &self.checkpoint,
            Content::ViewChange(_) => &self.view_change,
            Content::NewView(_) => &self.new_view,
            Content::Recovery(_) => &self.recovery,
        }
    }

    /// A message of another replica came.
    pub fn received(&self, content: &Content) {
        self.kind(content).received.inc();
    }

    /// The core had no use for a message.
    pub fn rejected(&self, rejected: &Rejected) {
        self.metrics.messages_rejected.with_label_values(&[label(rejected)]).inc();
    }

    /// An own request entered the pool.
    pub fn entered(&mut self, digest: Hash, now: Duration) {
        if self.entered.len() < MAX_TIMED {
            self.entered.entry(digest).or_insert(now);
        }
    }

    /// The core wants this done.
    pub fn output(&mut self, output: &Output, now: Duration) {
        for effect in &output.effects {
            self.effect(effect, now);
        }
    }

    fn effect(&mut self, effect: &Effect, now: Duration) {
        let fetch = |what| self.metrics.fetches.with_label_values(&[what]).inc();
        match effect {
            Effect::Broadcast(envelope) => {
                self.kind(&envelope.signed.content).sent.inc();
                if envelope.attempt > 0 {
                    self.metrics.resent.inc();
                }
            }
            Effect::Execute { requests, .. } => {
                for request in requests.iter().filter(|request| request.node() == self.node) {
                    if let Some(entered) = self.entered.remove(&request.digest()) {
                        let took = now.saturating_sub(entered);
                        self.metrics.order_ms.observe(took.as_secs_f64() * 1000.0);
                    }
                }
            }
            Effect::FetchRequests { .. } => fetch("requests"),
            Effect::FetchBlocks { .. } => fetch("blocks"),
            Effect::FetchCertificates { .. } => fetch("certificates"),
            Effect::FetchBatches { .. } => fetch("batches"),
            Effect::FetchView { .. } => fetch("view"),
            // Counted when it is on disk.
            Effect::Evidence(_)
            | Effect::SendRequests { .. }
            | Effect::ForwardRequests { .. }
            | Effect::Skip(_)
            | Effect::Certified(_)
            | Effect::Diverged { .. } => {}
        }
    }

    /// Outputs that wait for the log.
    pub fn outputs(&self, waiting: usize) {
        self.outputs.length.set(number(waiting as u64));
    }

    /// An output found no room on its way to the log.
    pub fn outputs_full(&self) {
        self.outputs.full.inc();
    }

    /// Where the replica stands.
    pub fn status(&self, status: &Status) {
        self.time.whole_thread();
        self.metrics.view.set(number(status.view.0));
        self.metrics.view_change_running.set(i64::from(status.changing));
        self.metrics.silent.set(i64::from(status.silent));
        self.metrics.sequence.set(number(status.executed.0));
        self.metrics.stable_sequence.set(number(status.stable.0));
        self.metrics.height.set(number(status.height.0));
        self.metrics.pool_requests.set(number(status.pending as u64));
        self.metrics.inflight_bytes.set(number(status.inflight_bytes as u64));
    }
}

fn number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The value of the metric's label for a reason.
const fn label(rejected: &Rejected) -> &'static str {
    match rejected {
        Rejected::Own => "own",
        Rejected::Duplicate => "duplicate",
        Rejected::BelowWatermark { .. } => "below_watermark",
        Rejected::AboveWatermark { .. } => "above_watermark",
        Rejected::OtherView { .. } => "other_view",
        Rejected::NotPrimary => "not_primary",
        Rejected::NotBackup => "not_backup",
        Rejected::InvalidBatch(_) => "invalid_batch",
        Rejected::Equivocation => "equivocation",
        Rejected::PoolFull => "pool_full",
        Rejected::WrongNode => "wrong_node",
        Rejected::NotWanted => "not_wanted",
        Rejected::ContradictsNewView => "contradicts_new_view",
        Rejected::BadNewView => "bad_new_view",
        Rejected::OutOfOrder { .. } => "out_of_order",
    }
}

/// What Storage counts.
#[derive(Debug, Clone)]
pub struct StorageTally {
    batches: IntCounter,
    batch_requests: Histogram,
    written: IntCounter,
    already_written: IntCounter,
    admin: IntCounter,
    digest: IntCounter,
    rejected: IntCounter,
    commit_ms: Histogram,
    blocks: IntCounter,
    certified_height: IntGauge,
    /// The time of execution.
    pub execute: StageTime,
    /// The time of writing to the store.
    pub store: StageTime,
}

impl StorageTally {
    /// The counters.
    pub fn new(consensus: &ConsensusMetrics, storage: &StorageMetrics) -> Self {
        let outcome = |outcome| consensus.requests.with_label_values(&[outcome]);
        Self {
            batches: consensus.batches.clone(),
            batch_requests: consensus.batch_requests.clone(),
            written: outcome("written"),
            already_written: outcome("already_written"),
            admin: outcome("admin"),
            digest: outcome("digest"),
            rejected: outcome("rejected"),
            commit_ms: storage.commit_ms.clone(),
            blocks: storage.blocks.clone(),
            certified_height: storage.certified_height.clone(),
            execute: StageTime::default(),
            store: StageTime::default(),
        }
    }

    /// Counts the time of execution and of the store, too.
    #[must_use]
    pub fn timed(self, stages: &Stages) -> Self {
        Self { execute: stages.execute.clone(), store: stages.store.clone(), ..self }
    }

    /// A batch was executed, with these outcomes.
    pub fn executed<'a>(&self, outcomes: impl ExactSizeIterator<Item = &'a Outcome>) {
        self.batches.inc();
        self.batch_requests.observe(outcomes.len() as f64);
        for outcome in outcomes {
            match outcome {
                Outcome::Written { .. } => self.written.inc(),
                Outcome::AlreadyWritten { .. } => self.already_written.inc(),
                Outcome::AdminExecuted { .. } => self.admin.inc(),
                Outcome::DigestExecuted { .. } => self.digest.inc(),
                Outcome::Rejected(_) => self.rejected.inc(),
            }
        }
    }

    /// What a batch, or a fetched block, did is in the store.
    pub fn stored(&self, made_block: bool, took: Duration) {
        self.commit_ms.observe(took.as_secs_f64() * 1000.0);
        self.blocks.inc_by(u64::from(made_block));
    }

    /// Blocks up to this height are final.
    pub fn certified(&self, height: crate::types::Height) {
        self.certified_height.set(number(height.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Rejection;
    use crate::metrics::Metrics;
    use crate::types::{Height, SeqNum};

    #[test]
    fn each_outcome_has_its_counter() {
        let metrics = Metrics::new().unwrap();
        let tally = StorageTally::new(&metrics.consensus, &metrics.storage);
        let already = Outcome::AlreadyWritten { height: Height(1), items: vec![0] };
        let rejected = Outcome::Rejected(Rejection::UnknownClient);
        tally.executed([&already, &rejected, &rejected].into_iter());
        tally.stored(true, Duration::from_millis(2));
        tally.certified(Height(7));
        let text = metrics.render().unwrap();
        for line in [
            "ledgermq_consensus_batches_total 1",
            "ledgermq_consensus_requests_total{outcome=\"already_written\"} 1",
            "ledgermq_consensus_requests_total{outcome=\"rejected\"} 2",
            "ledgermq_consensus_batch_requests_sum 3",
            "ledgermq_storage_commit_ms_count 1",
            "ledgermq_storage_blocks_total 1",
            "ledgermq_storage_certified_height 7",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn fetches_and_the_time_of_ordering_are_counted() {
        let metrics = Metrics::new().unwrap();
        let outputs = metrics.queues.queue("outputs");
        let mut tally = ConsensusTally::new(NodeId([1; 32]), metrics.consensus.clone(), outputs);
        tally.entered(Hash([1; 32]), Duration::from_secs(1));
        tally.outputs(3);
        tally.outputs_full();
        let blocks = Effect::FetchBlocks { above: Height(1), upto: SeqNum(3), from: Vec::new() };
        let output = Output { effects: vec![blocks], ..Output::default() };
        tally.output(&output, Duration::from_secs(2));
        let text = metrics.render().unwrap();
        for line in [
            "ledgermq_consensus_fetches_total{what=\"blocks\"} 1",
            "ledgermq_queue_length{queue=\"outputs\"} 3",
            "ledgermq_queue_full_total{queue=\"outputs\"} 1",
            "ledgermq_consensus_messages_total{direction=\"in\",kind=\"commit\"} 0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
