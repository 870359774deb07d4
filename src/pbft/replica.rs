//! The replica: its state, its one entry, and the order of work in a step.

use std::sync::Arc;
use std::time::Duration;

use crate::ledger::{CheckpointContent, VerifiedRequest};
use crate::pbft::archive::Archive;
use crate::pbft::checkpoints::Checkpoints;
use crate::pbft::insight::Hearing;
use crate::pbft::io::{Effect, Input, Now, Output, Rejected};
use crate::pbft::log::Log;
use crate::pbft::message::{Batch, Content, Envelope, Signed, Verified};
use crate::pbft::outbox::Outbox;
use crate::pbft::pool::{Lane, Pool};
use crate::pbft::recovery::Recovering;
use crate::pbft::settings::{MAX_BATCH_BYTES, MAX_BATCH_REQUESTS, Settings, window};
use crate::pbft::silence::{Silence, Voice};
use crate::pbft::suspicion::Waiting;
use crate::pbft::views::Views;
use crate::pbft::wal::Restored;
use crate::pbft::witness::Witness;
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
    /// Whether the view has not begun here: its NEW-VIEW is waited for.
    pub changing: bool,
    /// Whether the replica does not vote because it lost an earlier log.
    pub silent: bool,
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
    /// When a batch was handed to execution last.
    pub(super) dispatched: Duration,
    /// Since when others are known to be ahead.
    pub(super) behind_since: Option<Duration>,
    /// When blocks were asked for last since then, and how often before.
    pub(super) blocks_asked: Option<Duration>,
    pub(super) block_fetches: usize,
    /// Whether it moved on by blocks last, and not by execution.
    pub(super) by_blocks: bool,
    /// When certificates were asked for last.
    pub(super) certificates_asked: Option<Duration>,
    /// When another was last asked for a later view, and how many were.
    pub(super) view_asked: Duration,
    pub(super) view_questions: usize,
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
    /// The current view, or the one on the way to which the replica is.
    pub(super) view: View,
    pub(super) views: Views,
    pub(super) log: Log,
    pub(super) archive: Archive,
    pub(super) waiting: Waiting,
    /// What it learns of the view that it gave up, until another one begins.
    pub(super) witness: Option<Witness>,
    pub(super) silence: Option<Silence>,
    /// What its log says about silence, if anything.
    pub(super) voice: Option<Voice>,
    /// Replicas that lost their logs and wait to vote again.
    pub(super) recovering: Recovering,
    /// It began without any log and has not voted yet.
    pub(super) newcomer: bool,
    pub(super) pool: Pool,
    pub(super) outbox: Outbox,
    pub(super) checkpoints: Checkpoints,
    /// The state that is reached.
    pub(super) executed: CheckpointContent,
    /// The last sequence number handed to execution, or passed over.
    pub(super) dispatched: SeqNum,
    /// All up to here were proposed, agreed to, or passed over in this view. A new view may begin
    /// below what is executed: those batches are voted for once more, not executed again.
    pub(super) accepted: SeqNum,
    /// The timestamp of the batch at `accepted`, as far as it is known.
    pub(super) last_timestamp: Timestamp,
    /// The timestamp of the batch at `dispatched`, likewise.
    pub(super) executed_timestamp: Timestamp,
    pub(super) progress: Progress,
    pub(super) hearing: Hearing,
    pub(super) started: bool,
    /// The highest number that the log spoke of at the start, in this view: nothing is proposed up
    /// to there, since it may have been proposed before.
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
        let window = window(&settings.replicas);
        let mut replica = Self {
            settings,
            me,
            view: View(0),
            views: Views::default(),
            log: Log::default(),
            archive: Archive::default(),
            waiting: Waiting::default(),
            witness: None,
            silence: restored.lost_log.then(Silence::default),
            voice: None,
            recovering: Recovering::default(),
            newcomer: restored.entries.is_empty() && restored.executed.sequence == SeqNum(0),
            pool: Pool::default(),
            outbox: Outbox::default(),
            checkpoints: Checkpoints::new(SeqNum(0), window),
            executed: restored.executed,
            dispatched: restored.executed.sequence,
            accepted: restored.executed.sequence,
            last_timestamp: restored.timestamp,
            executed_timestamp: restored.timestamp,
            progress: Progress::default(),
            hearing: Hearing::default(),
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
        let ticked = matches!(input, Input::Tick);
        let taken = match input {
            Input::Request { request, source } => self.on_request(now, request, source),
            Input::Requests { requests, source } => self.on_requests(now, requests, source, &mut out),
            Input::Message(message) => self.on_message(now, message, &mut out),
            Input::Executed(content) => self.on_executed(now, content, &mut out),
            Input::BlocksSynced { certificate, timestamp, requests } => {
                self.on_blocks_synced(now, certificate, timestamp, &requests, &mut out)
            }
            Input::CertificateFetched(certificate) => self.on_certificate_fetched(certificate, &mut out),
            Input::Batch(batch) => self.on_batch(&batch),
            Input::Tick => Ok(()),
        };
        out.rejected = taken.err().or(out.rejected);
        if !std::mem::replace(&mut self.started, true) {
            self.start(now, &mut out);
        }
        self.notice_lost_log(&mut out);
        self.try_speak(now, &mut out);
        // Other inputs may have waited, and what clears the primary may wait behind them.
        if ticked {
            self.try_suspect(now, &mut out);
        }
        self.try_accept(now, &mut out);
        self.try_propose(now, &mut out);
        self.try_witness(now, &mut out);
        self.try_execute(now, &mut out);
        self.watch(now);
        self.on_time(now, &mut out);
        self.note_behind(now, &mut out);
        self.log_views_again(&mut out);
        self.assert_invariants();
        out
    }

    fn on_message(&mut self, now: Now, message: Verified, out: &mut Output) -> Result<(), Rejected> {
        if message.sender() == self.me {
            return self.on_own(now, message, out);
        }
        self.note_heard(now, &message);
        match *message.content() {
            Content::Checkpoint(content) => self.on_checkpoint(now, content, message, out),
            Content::Recovery(recovery) => self.on_recovery(now, recovery, &message),
            Content::PrePrepare(ref proposed) if self.witnesses(proposed.view) => {
                self.witness_proposal(message)
            }
            Content::Commit(commit) if self.witnesses(commit.view) => self.witness_commit(commit, message),
            Content::PrePrepare(_) => self.on_pre_prepare(now, message, out),
            Content::Prepare(prepare) => self.on_prepare(now, prepare, message, out),
            Content::Commit(commit) => self.on_commit(now, commit, message, out),
            Content::ViewChange(ref view_change) => self.on_view_change(now, view_change.view, message, out),
            Content::NewView(ref new_view) => self.on_new_view(now, new_view.view, message, out),
        }
    }

    /// What proves the view that the replica is in, if it is `view` or a later one: its NEW-VIEW and
    /// the VIEW-CHANGEs that this names. To answer others' fetches.
    pub fn view_proof(&self, view: View) -> Vec<Signed> {
        let entered = self.views.entered.as_ref();
        let entered = entered.filter(|entered| entered.new_view.content().view() >= Some(view));
        let messages = entered.map(|entered| std::iter::once(&entered.new_view).chain(&entered.view_changes));
        messages.into_iter().flatten().map(|message| message.signed().clone()).collect()
    }

    /// The batch with this digest, if the replica agreed to it: to answer others' fetches.
    pub fn batch(&self, digest: &Hash) -> Option<Batch> {
        let proposals = self.log.iter().filter_map(|(_, slot)| slot.proposal.as_ref());
        let current = proposals.filter(|proposal| proposal.digest == *digest).map(|proposal| &proposal.batch);
        current.chain(self.archive.batch(digest)).next().cloned()
    }

    pub(super) const fn is_changing(&self) -> bool {
        self.views.changing.is_some()
    }

    /// The request with this digest, if the replica has it: to answer others' fetches.
    pub fn request(&self, digest: &Hash) -> Option<Arc<VerifiedRequest>> {
        self.pool.get(digest).or_else(|| self.archive.request(digest)).cloned()
    }

    /// Whether the pool takes another request of this node of so many bytes: admission waits
    /// while it does not.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.has_room_for(&self.me, bytes)
    }

    /// How many of these requests of this node the pool takes, from the first on.
    pub fn room_for(&self, requests: &[Arc<VerifiedRequest>]) -> usize {
        let (count, mut bytes) = self.pool.pending_in(&Lane::Of(self.me));
        let fits = requests.iter().take(self.settings.pool_max_requests.saturating_sub(count));
        fits.take_while(|request| {
            bytes += request.bytes().len();
            bytes <= self.settings.pool_max_bytes
        })
        .count()
    }

    /// Where the replica stands.
    pub fn status(&self) -> Status {
        Status {
            view: self.view,
            primary: self.primary(),
            changing: self.is_changing(),
            silent: self.is_silent(),
            stable: self.checkpoints.stable,
            executed: self.executed.sequence,
            height: self.executed.height,
            accepted: self.accepted,
            known: self.checkpoints.known(&self.settings.replicas),
            pending: self.pool.pending().0,
            inflight_bytes: self.log.bytes(),
        }
    }

    /// Numbers between the watermarks.
    pub(super) fn window(&self) -> u64 {
        window(&self.settings.replicas)
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

    /// Whether a slot message is for the current view and between the watermarks. Votes of a later
    /// view show that it has begun.
    pub(super) fn check_slot(
        &mut self,
        now: Now,
        sender: NodeId,
        view: View,
        sequence: SeqNum,
    ) -> Result<(), Rejected> {
        if view > self.view || view == self.view && self.is_changing() {
            self.views.see(sender, view);
            self.views.fetch_at.get_or_insert(now.monotonic + self.settings.fetch_delay);
        }
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
    if settings.request_timeout_max < settings.request_timeout || settings.patience == 0 {
        return bad("request_timeout, request_timeout_max and patience", "must ascend, and be above 0");
    }
    let timers = [
        settings.request_timeout,
        settings.resend_initial,
        settings.request_resend,
        settings.request_expiry,
        settings.request_memory,
        settings.fetch_interval,
        settings.status_interval,
    ];
    if timers.iter().any(Duration::is_zero) {
        return bad(
            "timeouts and intervals of repeating, fetching, forgetting and status",
            "must be above 0",
        );
    }
    Ok(())
}
