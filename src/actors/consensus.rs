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

use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, AsyncContext as _, Context, Handler, Message, MessageResult, WrapFuture as _};
use tokio::sync::{Notify, mpsc, watch};

use super::storage::BatchExecuted;
use crate::clock::SharedClock;
use crate::ledger::{Certificate, VerifiedRequest};
use crate::metrics::ConsensusMetrics;
use crate::pbft::{Batch, Input, Now, Output, Rejected, Replica, Signed, Source, Status, Verified};
use crate::types::{Hash, Timestamp, View};

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

/// Batches that a new view carries over, as peers gave them; the core checks them by digest.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct PeerBatches(pub Vec<Batch>);

/// Asks for batches that a peer lacks.
#[derive(Debug, Message)]
#[rtype(result = "Vec<Batch>")]
pub struct LookUpBatches(pub Vec<Hash>);

/// Asks for the proof of the view that the replica is in, if it is this one or a later one.
#[derive(Debug, Message)]
#[rtype(result = "Vec<Signed>")]
pub struct LookUpView(pub View);

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
        Self { replica, clock, outputs, deadline: watch::Sender::new(None), room, metrics }
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

    fn hand_on(&self, output: Output, ctx: &mut Context<Self>) {
        if output.is_empty() {
            return;
        }
        match self.outputs.try_send(output) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Closed(_)) => tracing::debug!("output left over at stop"),
            Err(mpsc::error::TrySendError::Full(output)) => {
                // The log is slower than the core: no further message is handled until it is in.
                let outputs = self.outputs.clone();
                let wait = async move {
                    let _stopping = outputs.send(output).await;
                };
                ctx.wait(wait.into_actor(self));
            }
        }
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
        Rejected::ContradictsNewView => "contradicts_new_view",
        Rejected::BadNewView => "bad_new_view",
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

impl Handler<PeerBatches> for Consensus {
    type Result = ();

    fn handle(&mut self, PeerBatches(batches): PeerBatches, ctx: &mut Self::Context) {
        for batch in batches {
            if let Some(rejected) = self.advance(Input::Batch(batch), ctx) {
                tracing::trace!(%rejected, "batch ignored");
            }
        }
    }
}

impl Handler<LookUpBatches> for Consensus {
    type Result = MessageResult<LookUpBatches>;

    fn handle(&mut self, LookUpBatches(digests): LookUpBatches, _: &mut Self::Context) -> Self::Result {
        MessageResult(digests.iter().filter_map(|digest| self.replica.batch(digest)).collect())
    }
}

impl Handler<LookUpView> for Consensus {
    type Result = MessageResult<LookUpView>;

    fn handle(&mut self, LookUpView(view): LookUpView, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.replica.view_proof(view))
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
