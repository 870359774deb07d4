//! Consensus: the thin shell around the pure PBFT core.
//!
//! ```text
//! requests, peers' messages, results ─▶ mailbox ─▶ Replica::step ─▶ Output { wal, effects }
//!                                                                        │ in order
//!                     network, Storage ◀── effects ◀── synced ◀── Log ◀──┘ (actors/effects.rs)
//! ```
//!
//! The core decides; this actor gives it time and input and hands each output to the effect
//! pipeline, which runs the effects only after the log has the entries. Deadlines are the core's:
//! they are looked at before every message, and an alarm task sends a [`Tick`] when one passes
//! while nothing else happens, so a busy mailbox cannot starve them. Fail-stop.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, ActorFutureExt as _, AsyncContext as _, Context, Handler, Message, MessageResult, WrapFuture as _};
use tokio::sync::{Notify, mpsc, watch};

use super::storage::BatchExecuted;
use crate::clock::SharedClock;
use crate::ledger::{Certificate, VerifiedRequest};
use crate::metrics::ConsensusMetrics;
use crate::pbft::{Input, Now, Output, Rejected, Replica, Source, Status, Verified};
use crate::types::{Hash, Timestamp};

/// Messages in the mailbox: about a second of the votes of 20 replicas. Beyond it senders wait;
/// gossip that waits too long is not passed on, and votes are sent again.
const MAILBOX: usize = 4_096;

/// Orders a request that this node admitted; false if the pool has no room now.
#[derive(Debug, Message)]
#[rtype(result = "bool")]
pub struct SubmitRequest(pub Arc<VerifiedRequest>);

/// Requests of other nodes, verified.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct PeerRequests {
    /// The requests.
    pub requests: Vec<Arc<VerifiedRequest>>,
    /// How they came.
    pub source: Source,
}

/// A PBFT message of another replica, its signature checked; answers whether gossip should pass
/// it on.
#[derive(Debug, Message)]
#[rtype(result = "bool")]
pub struct PeerMessage(pub Verified);

/// Blocks were fetched and applied up to this certificate.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct BlocksSynced {
    /// Of the last block applied.
    pub certificate: Certificate,
    /// That block's timestamp.
    pub timestamp: Timestamp,
}

/// A missing certificate was fetched, verified and stored.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct CertificateFetched(pub Certificate);

/// Asks for requests that a peer lacks.
#[derive(Debug, Message)]
#[rtype(result = "Vec<Arc<VerifiedRequest>>")]
pub struct LookUpRequests(pub Vec<Hash>);

/// Asks where the replica stands.
#[derive(Debug, Message)]
#[rtype(result = "Status")]
pub struct ReadStatus;

/// A deadline of the core has passed.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Tick;

/// The actor; see the module.
pub struct Consensus {
    replica: Replica,
    clock: SharedClock,
    outputs: mpsc::Sender<Output>,
    /// Outputs of the message at hand (two for each request of a bundle at most) that found no room;
    /// the next message waits for them.
    waiting: VecDeque<Output>,
    deadline: watch::Sender<Option<Duration>>,
    room: Arc<Notify>,
    metrics: ConsensusMetrics,
}

impl Consensus {
    /// The shell of `replica`. Its outputs go to the effect pipeline; `room` is notified whenever
    /// the request pool may have room again.
    pub fn new(
        replica: Replica,
        clock: SharedClock,
        outputs: mpsc::Sender<Output>,
        room: Arc<Notify>,
        metrics: ConsensusMetrics,
    ) -> Self {
        Self {
            replica,
            clock,
            outputs,
            waiting: VecDeque::new(),
            deadline: watch::Sender::new(None),
            room,
            metrics,
        }
    }

    fn now(&self) -> Now {
        Now { wall: self.clock.now(), monotonic: self.clock.monotonic() }
    }

    /// One input, and before it whatever deadline has passed.
    fn advance(&mut self, input: Input, ctx: &mut Context<Self>) -> Option<Rejected> {
        let now = self.now();
        if self.replica.next_deadline().is_some_and(|deadline| deadline <= now.monotonic) {
            let output = self.replica.step(now, Input::Tick);
            self.hand_on(output, ctx);
        }
        let mut output = self.replica.step(now, input);
        let rejected = output.rejected.take();
        self.hand_on(output, ctx);
        let deadline = self.replica.next_deadline();
        self.deadline.send_if_modified(|current| std::mem::replace(current, deadline) != deadline);
        self.room.notify_waiters();
        rejected
    }

    /// Passes an output to the effect pipeline. Outputs leave in the order of the steps that made
    /// them, whatever waits.
    fn hand_on(&mut self, output: Output, ctx: &mut Context<Self>) {
        if output.is_empty() {
            return;
        }
        if !self.waiting.is_empty() {
            self.waiting.push_back(output);
            return;
        }
        match self.outputs.try_send(output) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Closed(_)) => tracing::debug!("output left over at stop"),
            Err(mpsc::error::TrySendError::Full(output)) => {
                self.waiting.push_back(output);
                self.wait_for_outlet(ctx);
            }
        }
    }

    /// The log is slower than the core: no further message is handled until it has what waits.
    fn wait_for_outlet(&self, ctx: &mut Context<Self>) {
        let reserve = self.outputs.clone().reserve_owned().into_actor(self);
        ctx.wait(reserve.map(|permit, consensus, ctx| {
            let Ok(permit) = permit else {
                tracing::debug!("outputs left over at stop");
                return consensus.waiting.clear();
            };
            if let Some(output) = consensus.waiting.pop_front() {
                permit.send(output);
            }
            if !consensus.waiting.is_empty() {
                consensus.wait_for_outlet(ctx);
            }
        }));
    }

    /// Publishes where the replica stands.
    fn report(&self) {
        let status = self.replica.status();
        let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        self.metrics.view.set(number(status.view.0));
        self.metrics.sequence.set(number(status.executed.0));
        self.metrics.stable_sequence.set(number(status.stable.0));
        self.metrics.height.set(number(status.height.0));
        self.metrics.pool_requests.set(number(status.pending as u64));
    }
}

impl Actor for Consensus {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        let alarm = alarm(self.deadline.subscribe(), Arc::clone(&self.clock), ctx.address());
        tokio::spawn(alarm);
        self.advance(Input::Tick, ctx);
    }
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
        Rejected::OutOfOrder { .. } => "out_of_order",
    }
}

/// Sends a [`Tick`] whenever the core's deadline passes.
async fn alarm(
    mut deadline: watch::Receiver<Option<Duration>>,
    clock: SharedClock,
    consensus: actix::Addr<Consensus>,
) {
    loop {
        let next = *deadline.borrow_and_update();
        let wait = next.map(|next| next.saturating_sub(clock.monotonic()));
        let changed = match wait {
            Some(wait) => tokio::time::timeout(wait, deadline.changed()).await,
            None => Ok(deadline.changed().await),
        };
        match changed {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return,
            Err(_) => {
                if consensus.send(Tick).await.is_err() {
                    return;
                }
            }
        }
    }
}

impl Handler<SubmitRequest> for Consensus {
    type Result = bool;

    fn handle(&mut self, SubmitRequest(request): SubmitRequest, ctx: &mut Self::Context) -> bool {
        if !self.replica.has_room(request.bytes().len()) {
            return false;
        }
        let rejected = self.advance(Input::Request { request, source: Source::Admitted }, ctx);
        rejected != Some(Rejected::PoolFull)
    }
}

impl Handler<PeerRequests> for Consensus {
    type Result = ();

    fn handle(&mut self, PeerRequests { requests, source }: PeerRequests, ctx: &mut Self::Context) {
        for request in requests {
            if let Some(rejected) = self.advance(Input::Request { request, source }, ctx) {
                tracing::trace!(?source, %rejected, "request ignored");
            }
        }
    }
}

impl Handler<PeerMessage> for Consensus {
    type Result = bool;

    fn handle(&mut self, PeerMessage(message): PeerMessage, ctx: &mut Self::Context) -> bool {
        match self.advance(Input::Message(message), ctx) {
            None => true,
            Some(rejected) => {
                tracing::trace!(%rejected, "message ignored");
                self.metrics.messages_rejected.with_label_values(&[label(&rejected)]).inc();
                rejected.propagates()
            }
        }
    }
}

impl Handler<BatchExecuted> for Consensus {
    type Result = ();

    fn handle(&mut self, BatchExecuted(content): BatchExecuted, ctx: &mut Self::Context) {
        if let Some(rejected) = self.advance(Input::Executed(content), ctx) {
            tracing::debug!(sequence = %content.sequence, %rejected, "result ignored");
        }
        self.report();
    }
}

impl Handler<BlocksSynced> for Consensus {
    type Result = ();

    fn handle(&mut self, synced: BlocksSynced, ctx: &mut Self::Context) {
        let BlocksSynced { certificate, timestamp } = synced;
        if let Some(rejected) = self.advance(Input::BlocksSynced { certificate, timestamp }, ctx) {
            tracing::debug!(%rejected, "synced blocks brought nothing");
        }
        self.report();
    }
}

impl Handler<CertificateFetched> for Consensus {
    type Result = ();

    fn handle(&mut self, CertificateFetched(certificate): CertificateFetched, ctx: &mut Self::Context) {
        self.advance(Input::CertificateFetched(certificate), ctx);
    }
}

impl Handler<LookUpRequests> for Consensus {
    type Result = MessageResult<LookUpRequests>;

    fn handle(&mut self, LookUpRequests(digests): LookUpRequests, _: &mut Self::Context) -> Self::Result {
        MessageResult(digests.iter().filter_map(|digest| self.replica.request(digest)).collect())
    }
}

impl Handler<ReadStatus> for Consensus {
    type Result = MessageResult<ReadStatus>;

    fn handle(&mut self, _: ReadStatus, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.replica.status())
    }
}

impl Handler<Tick> for Consensus {
    type Result = ();

    fn handle(&mut self, _: Tick, ctx: &mut Self::Context) {
        self.advance(Input::Tick, ctx);
        self.report();
    }
}
