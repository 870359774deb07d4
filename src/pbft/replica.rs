//! The replica: its state, its one entry, and the order of work in a step.

use std::sync::Arc;
use std::time::Duration;

use crate::ledger::{CheckpointContent, VerifiedRequest};
use crate::pbft::checkpoints::Checkpoints;
use crate::pbft::io::{Effect, Input, Now, Output, Rejected};
use crate::pbft::log::Log;
use crate::pbft::message::{Content, Envelope, Verified};
use crate::pbft::outbox::Outbox;
use crate::pbft::pool::Pool;
use crate::pbft::settings::{MAX_BATCH_BYTES, MAX_BATCH_REQUESTS, Settings};
use crate::pbft::wal::Restored;
use crate::planted::{Bug, planted};
use crate::types::{Hash, Height, NodeId, SeqNum, Timestamp, View};

/// Why a replica cannot start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    /// The key is not that of a replica.
    #[error(
        "the node key {0} is not one of the ledger's replicas; use the key that `ledgermq init` made for this node"
    )]
    NotAReplica(NodeId),
    /// A body that a vote promised is not in the log.
    #[error(
        "the log lacks a request of batch {0}, which this node has voted for; restore the data directory from a backup, or start with an empty one under a new node key"
    )]
    IncompleteLog(SeqNum),
    /// A setting is out of its range.
    #[error("setting {name}: {problem}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// Where a replica stands, for metrics and the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// The current view.
    pub view: View,
    /// Its primary.
    pub primary: NodeId,
    /// The low watermark: the last stable checkpoint.
    pub stable: SeqNum,
    /// The last executed sequence number.
    pub executed: SeqNum,
    /// The height executed.
    pub height: Height,
    /// The last sequence number proposed or agreed to.
    pub accepted: SeqNum,
    /// What at least one correct other replica has executed.
    pub known: SeqNum,
    /// Requests in the pool that are not ordered.
    pub pending: usize,
    /// Bytes of requests that are ordered and not stable.
    pub inflight_bytes: usize,
}

/// When execution was last known to fall behind or to move on.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Progress {
    /// When execution moved last.
    pub(super) last: Duration,
    /// Since when others are known to be ahead.
    pub(super) behind_since: Option<Duration>,
    /// When blocks were asked for last.
    pub(super) blocks_asked: Option<Duration>,
    /// When certificates were asked for last.
    pub(super) certificates_asked: Option<Duration>,
    /// When the own state was told last.
    pub(super) status_told: Duration,
    /// When the pool was last searched for requests given up.
    pub(super) expired: Duration,
}

/// One replica of PBFT.
#[derive(Debug, Clone)]
pub struct Replica {
    pub(super) settings: Settings,
    pub(super) me: NodeId,
    pub(super) view: View,
    pub(super) log: Log,
    pub(super) pool: Pool,
    pub(super) outbox: Outbox,
    pub(super) checkpoints: Checkpoints,
    /// The state that is reached.
    pub(super) executed: CheckpointContent,
    /// The last sequence number handed to execution, or passed over.
    pub(super) dispatched: SeqNum,
    /// All up to here were proposed, agreed to, or passed over.
    pub(super) accepted: SeqNum,
    /// The timestamp of the batch at `accepted`, as far as it is known.
    pub(super) last_timestamp: Timestamp,
    pub(super) progress: Progress,
    pub(super) started: bool,
    /// The highest sequence number that the log spoke of at the start: nothing is proposed up to
    /// there, since it may have been proposed before.
    pub(super) restored_upto: SeqNum,
}

impl Replica {
    /// A replica that goes on where its log ends. Its first step, due at once, executes what was
    /// committed and not yet executed, and sends what it had sent again.
    ///
    /// # Errors
    /// [`SetupError`].
    pub fn new(settings: Settings, restored: Restored) -> Result<Self, SetupError> {
        check(&settings)?;
        let me = settings.key.node_id();
        let mut replica = Self {
            settings,
            me,
            view: View(0),
            log: Log::default(),
            pool: Pool::default(),
            outbox: Outbox::default(),
            checkpoints: Checkpoints::new(SeqNum(0)),
            executed: restored.executed,
            dispatched: restored.executed.sequence,
            accepted: restored.executed.sequence,
            last_timestamp: restored.timestamp,
            progress: Progress::default(),
            started: false,
            restored_upto: SeqNum(0),
        };
        replica.restore(restored)?;
        Ok(replica)
    }

    /// Takes one input at one time. The caller brings the entries of the output to the disk, and
    /// then carries out the effects.
    pub fn step(&mut self, now: Now, input: Input) -> Output {
        let mut out = Output::default();
        let taken = match input {
            Input::Request { request, source } => self.on_request(now, request, source),
            Input::Message(message) => self.on_message(now, message, &mut out),
            Input::Executed(content) => self.on_executed(now, content, &mut out),
            Input::BlocksSynced { certificate, timestamp } => {
                self.on_blocks_synced(now, certificate, timestamp, &mut out)
            }
            Input::CertificateFetched(certificate) => self.on_certificate_fetched(certificate, &mut out),
            Input::Tick => Ok(()),
        };
        out.rejected = taken.err();
        if !std::mem::replace(&mut self.started, true) {
            self.start(now, &mut out);
        }
        self.try_accept(now, &mut out);
        self.try_propose(now, &mut out);
        self.try_execute(now, &mut out);
        self.on_time(now, &mut out);
        self.assert_invariants();
        out
    }

    fn on_message(&mut self, now: Now, message: Verified, out: &mut Output) -> Result<(), Rejected> {
        if message.sender() == self.me {
            return Err(Rejected::Own);
        }
        match *message.content() {
            Content::Checkpoint(content) => self.on_checkpoint(now, content, message, out),
            Content::PrePrepare(_) => self.on_pre_prepare(now, message, out),
            Content::Prepare(prepare) => self.on_prepare(now, prepare, message, out),
            Content::Commit(commit) => self.on_commit(now, commit, message, out),
        }
    }

    /// The request with this digest, if the replica has it: to answer others' fetches.
    pub fn request(&self, digest: &Hash) -> Option<Arc<VerifiedRequest>> {
        self.pool.get(digest).cloned()
    }

    /// Whether the pool takes another request of this node of so many bytes: admission waits
    /// while it does not.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.has_room_for(&self.me, bytes)
    }

    /// Where the replica stands.
    pub fn status(&self) -> Status {
        Status {
            view: self.view,
            primary: self.primary(),
            stable: self.checkpoints.stable,
            executed: self.executed.sequence,
            height: self.executed.height,
            accepted: self.accepted,
            known: self.checkpoints.known(&self.settings.replicas),
            pending: self.pool.pending().0,
            inflight_bytes: self.log.bytes(),
        }
    }

    pub(super) fn primary(&self) -> NodeId {
        self.settings.replicas.primary(self.view)
    }

    pub(super) fn is_primary(&self) -> bool {
        self.primary() == self.me
    }

    pub(super) fn others(&self) -> impl Iterator<Item = NodeId> {
        self.settings.replicas.members().iter().copied().filter(|node| *node != self.me)
    }

    pub(super) const fn high_watermark(&self) -> SeqNum {
        self.checkpoints.high()
    }

    /// Whether a slot message is for the current view and between the watermarks.
    pub(super) fn check_slot(&self, view: View, sequence: SeqNum) -> Result<(), Rejected> {
        if sequence <= self.checkpoints.stable {
            return Err(Rejected::BelowWatermark { low: self.checkpoints.stable });
        }
        if sequence > self.high_watermark() && !planted(Bug::WatermarkNotChecked) {
            return Err(Rejected::AboveWatermark { high: self.high_watermark() });
        }
        if view != self.view {
            return Err(Rejected::OtherView { view: self.view });
        }
        Ok(())
    }

    /// Sends a message for the first time.
    pub(super) fn broadcast(&self, message: &Verified, out: &mut Output) {
        self.send(message, 0, out);
    }

    /// Sends a message again. The attempt, which makes it a new one for gossip, comes from the
    /// clock: it differs from those before a crash, too.
    pub(super) fn repeat(&self, now: Now, message: &Verified, out: &mut Output) {
        let attempt = u32::try_from(now.wall.0 & u64::from(u32::MAX)).unwrap_or(u32::MAX);
        self.send(message, attempt.max(1), out);
    }

    fn send(&self, message: &Verified, attempt: u32, out: &mut Output) {
        if self.settings.replicas.n() > 1 {
            out.effects.push(Effect::Broadcast(Envelope { attempt, signed: message.signed().clone() }));
        }
    }

    /// # Panics
    /// If the replica contradicts itself: going on could break its promises.
    fn assert_invariants(&self) {
        let stable = self.checkpoints.stable;
        assert!(stable <= self.executed.sequence, "stable implies executed");
        assert!(self.executed.sequence <= self.dispatched, "executed implies handed to execution");
        assert!(self.dispatched <= self.accepted, "handed to execution implies agreed to");
        let first = self.log.iter().next().map(|(sequence, _)| sequence);
        assert!(first.is_none_or(|first| first > stable), "the log begins above the low watermark");
    }
}

fn check(settings: &Settings) -> Result<(), SetupError> {
    let me = settings.key.node_id();
    if !settings.replicas.contains(&me) {
        return Err(SetupError::NotAReplica(me));
    }
    let bad = |name, problem| Err(SetupError::Setting { name, problem });
    if !(1..=MAX_BATCH_REQUESTS).contains(&settings.batch_max_requests) {
        return bad("batch_max_requests", "must be 1 to 1024");
    }
    if !(1..=MAX_BATCH_BYTES).contains(&settings.batch_max_bytes) {
        return bad("batch_max_bytes", "must be 1 to 8388608");
    }
    if settings.inflight_max_bytes < 2 * MAX_BATCH_BYTES {
        return bad("inflight_max_bytes", "must be at least two batches, 16777216");
    }
    if settings.pool_max_bytes < MAX_BATCH_BYTES || settings.pool_max_requests == 0 {
        return bad(
            "pool_max_bytes and pool_max_requests",
            "must leave room for the largest request, 8388608",
        );
    }
    let timers = [
        settings.resend_initial,
        settings.request_resend,
        settings.request_expiry,
        settings.request_memory,
        settings.fetch_interval,
        settings.status_interval,
    ];
    if timers.iter().any(Duration::is_zero) {
        return bad("intervals of repeating, fetching, forgetting and status", "must be above 0");
    }
    Ok(())
}
