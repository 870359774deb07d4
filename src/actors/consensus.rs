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
//! every message does what is due, so a busy mailbox cannot starve them, but for one thing: the
//! primary is judged only by a [`Tick`]. An alarm task puts it behind what already waits in the
//! mailbox, and after a pause of the process behind what the network brings in next. So nobody is given
//! up on stale knowledge, and no flood delays the judgement by more than a mailbox. Fail-stop.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use actix::{
    Actor, ActorFutureExt as _, AsyncContext as _, Context, Handler, Message, MessageResult, WrapFuture as _,
};
use tokio::sync::{Notify, mpsc, watch};

use super::fatal::Vital;
use super::notices::Notices;
use super::storage::BatchExecuted;
use super::tally::ConsensusTally;
use crate::clock::SharedClock;
use crate::ledger::{Certificate, VerifiedRequest};
use crate::pbft::{Batch, Input, Insight, Now, Output, Rejected, Replica, Signed, Source, Status, Verified};
use crate::types::{Hash, Timestamp, View};

/// Messages in the mailbox: about a second of the votes of 20 replicas. Beyond it senders wait;
/// gossip that waits too long is not passed on, and votes are sent again.
const MAILBOX: usize = 4_096;

/// The alarm looks at the clock this often, to notice when the process was stopped.
const BEAT: Duration = Duration::from_millis(250);

/// Who comes so much too late was stopped, or had no processor.
const LATE: Duration = Duration::from_millis(250);

/// So long after a pause the network has time to bring in what came meanwhile.
const GRACE: Duration = Duration::from_millis(500);

/// Orders a request that this node admitted.
#[derive(Debug, Message)]
#[rtype(result = "Submission")]
pub struct SubmitRequest(pub Arc<VerifiedRequest>);

/// Orders requests that this node admitted, as far as the pool has room: answers what became of the
/// first of them, up to the one for which there was none.
#[derive(Debug, Message)]
#[rtype(result = "Vec<Submission>")]
pub struct SubmitRequests(pub Vec<Arc<VerifiedRequest>>);

/// What became of a [`SubmitRequest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, actix::MessageResponse)]
pub enum Submission {
    /// In the pool.
    Taken,
    /// In the pool before, or executed not long ago: it may have no result of its own any more.
    Known,
    /// The pool has no room now.
    NoRoom,
}

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
    /// The requests that the blocks wrote: see [`Input::BlocksSynced`].
    pub requests: Vec<Hash>,
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

/// Asks where the replica stands, with all that helps to tell why.
#[derive(Debug, Message)]
#[rtype(result = "Insight")]
pub struct ReadInsight;

/// A deadline of the core has passed.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Tick;

/// The actor; see the module.
pub struct Consensus {
    replica: Replica,
    clock: SharedClock,
    outputs: mpsc::Sender<Output>,
    /// Outputs that found no room in `outputs`, oldest first. While there are any, no message is
    /// handled, so these are what one handler made.
    backlog: VecDeque<Output>,
    deadline: watch::Sender<Option<Duration>>,
    room: Arc<Notify>,
    tally: ConsensusTally,
    notices: Notices,
    _vital: Vital,
}

impl Consensus {
    /// The shell of `replica`. Its outputs go to the effect pipeline; `room` is notified whenever
    /// the request pool may have room again.
    pub fn new(
        replica: Replica,
        clock: SharedClock,
        outputs: mpsc::Sender<Output>,
        room: Arc<Notify>,
        tally: ConsensusTally,
        notices: Notices,
        vital: Vital,
    ) -> Self {
        let (backlog, deadline) = (VecDeque::new(), watch::Sender::new(None));
        Self { replica, clock, outputs, backlog, deadline, room, tally, notices, _vital: vital }
    }

    fn now(&self) -> Now {
        Now { wall: self.clock.now(), monotonic: self.clock.monotonic() }
    }

    /// One input.
    fn advance(&mut self, input: Input, ctx: &mut Context<Self>) -> Ignored {
        let mut output = self.replica.step(self.now(), input);
        let ignored = Ignored { rejected: output.rejected, refused: std::mem::take(&mut output.refused) };
        self.hand_on(output, ctx);
        let deadline = self.replica.next_deadline();
        self.deadline.send_if_modified(|current| std::mem::replace(current, deadline) != deadline);
        self.room.notify_waiters();
        ignored
    }

    fn hand_on(&mut self, mut output: Output, ctx: &mut Context<Self>) {
        for notice in output.notices.drain(..) {
            self.notices.tell(&notice);
        }
        if output.is_empty() {
            return;
        }
        self.tally.output(&output, self.clock.monotonic());
        if !self.backlog.is_empty() {
            // None overtakes another: votes and executions have an order.
            self.backlog.push_back(output);
            return;
        }
        match self.outputs.try_send(output) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Closed(_)) => tracing::debug!("output left over at stop"),
            Err(mpsc::error::TrySendError::Full(output)) => {
                self.tally.outputs_full();
                self.backlog.push_back(output);
                self.wait_for_room(ctx);
            }
        }
    }

    /// The log is slower than the core: no further message is handled until all outputs are in.
    fn wait_for_room(&self, ctx: &mut Context<Self>) {
        let outputs = self.outputs.clone();
        let room = async move { outputs.reserve_owned().await };
        ctx.wait(room.into_actor(self).map(|room, consensus, ctx| {
            let (Ok(room), Some(output)) = (room, consensus.backlog.pop_front()) else {
                return consensus.backlog.clear();
            };
            room.send(output);
            if !consensus.backlog.is_empty() {
                consensus.wait_for_room(ctx);
            }
        }));
    }

    /// Publishes where the replica stands.
    fn report(&self) {
        self.tally.status(&self.replica.status());
        self.tally.outputs(self.outputs.max_capacity() - self.outputs.capacity() + self.backlog.len());
    }
}

impl Actor for Consensus {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        let alarm = alarm(self.deadline.subscribe(), Arc::clone(&self.clock), ctx.address().recipient());
        tokio::spawn(alarm);
        self.advance(Input::Tick, ctx);
    }
}

/// Sends a [`Tick`] whenever the core's deadline passes. After a pause it first lets in what came
/// meanwhile: once, until it has been sent, so nobody can put it off for ever.
async fn alarm(
    mut deadline: watch::Receiver<Option<Duration>>,
    clock: SharedClock,
    consensus: actix::Recipient<Tick>,
) {
    let mut not_before = Duration::ZERO;
    let mut put_off = false;
    loop {
        let before = clock.monotonic();
        let next = deadline.borrow_and_update().map(|next| next.max(not_before));
        let wait = next.map_or(BEAT, |next| next.saturating_sub(before).min(BEAT));
        if let Ok(Err(_)) = tokio::time::timeout(wait, deadline.changed()).await {
            return;
        }
        let now = clock.monotonic();
        // Whose machine is always late would otherwise never be told.
        if now.saturating_sub(before) > BEAT + LATE && !put_off {
            not_before = now + GRACE;
            put_off = true;
        }
        if deadline.borrow().is_some_and(|due| due.max(not_before) <= now) {
            if consensus.send(Tick).await.is_err() {
                return;
            }
            put_off = false;
        }
    }
}

/// What of an input the core ignored, and why.
struct Ignored {
    rejected: Option<Rejected>,
    refused: Vec<(Hash, Rejected)>,
}

impl Consensus {
    fn submit(&mut self, request: Arc<VerifiedRequest>, ctx: &mut Context<Self>) -> Submission {
        if !self.replica.has_room(request.bytes().len()) {
            return Submission::NoRoom;
        }
        let digest = request.digest();
        match self.advance(Input::Request { request, source: Source::Admitted }, ctx).rejected {
            None => {
                self.tally.entered(digest, self.clock.monotonic());
                Submission::Taken
            }
            Some(Rejected::PoolFull) => Submission::NoRoom,
            Some(rejected) => {
                tracing::debug!(digest = %digest.short(), %rejected, "own request not taken");
                Submission::Known
            }
        }
    }
}

impl Handler<SubmitRequest> for Consensus {
    type Result = Submission;

    fn handle(&mut self, SubmitRequest(request): SubmitRequest, ctx: &mut Self::Context) -> Submission {
        self.submit(request, ctx)
    }
}

impl Handler<SubmitRequests> for Consensus {
    type Result = Vec<Submission>;

    /// One step for all that there is room for: a step costs much the same for one and for many.
    fn handle(
        &mut self,
        SubmitRequests(mut requests): SubmitRequests,
        ctx: &mut Self::Context,
    ) -> Self::Result {
        requests.truncate(self.replica.room_for(&requests));
        if requests.is_empty() {
            return Vec::new();
        }
        let digests: Vec<Hash> = requests.iter().map(|request| request.digest()).collect();
        let refused = self.advance(Input::Requests { requests, source: Source::Admitted }, ctx).refused;
        let now = self.clock.monotonic();
        let submission = |digest| match refused.iter().find(|(refused, _)| *refused == digest) {
            None => {
                self.tally.entered(digest, now);
                Submission::Taken
            }
            Some((_, rejected)) => {
                tracing::debug!(digest = %digest.short(), %rejected, "own request not taken");
                Submission::Known
            }
        };
        digests.into_iter().map(submission).collect()
    }
}

impl Handler<PeerRequests> for Consensus {
    type Result = ();

    fn handle(&mut self, PeerRequests { requests, source }: PeerRequests, ctx: &mut Self::Context) {
        if let Some(rejected) = self.advance(Input::Requests { requests, source }, ctx).rejected {
            tracing::trace!(?source, %rejected, "a request ignored");
        }
    }
}

impl Handler<PeerMessage> for Consensus {
    type Result = bool;

    fn handle(&mut self, PeerMessage(message): PeerMessage, ctx: &mut Self::Context) -> bool {
        self.tally.received(message.content());
        match self.advance(Input::Message(message), ctx).rejected {
            None => true,
            Some(rejected) => {
                tracing::trace!(%rejected, "message ignored");
                self.tally.rejected(&rejected);
                rejected.propagates()
            }
        }
    }
}

impl Handler<BatchExecuted> for Consensus {
    type Result = ();

    fn handle(&mut self, BatchExecuted(content): BatchExecuted, ctx: &mut Self::Context) {
        if let Some(rejected) = self.advance(Input::Executed(content), ctx).rejected {
            tracing::debug!(sequence = %content.sequence, %rejected, "result ignored");
        }
        self.report();
    }
}

impl Handler<BlocksSynced> for Consensus {
    type Result = ();

    fn handle(&mut self, synced: BlocksSynced, ctx: &mut Self::Context) {
        let BlocksSynced { certificate, timestamp, requests } = synced;
        let input = Input::BlocksSynced { certificate, timestamp, requests };
        if let Some(rejected) = self.advance(input, ctx).rejected {
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
            if let Some(rejected) = self.advance(Input::Batch(batch), ctx).rejected {
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

impl Handler<ReadInsight> for Consensus {
    type Result = MessageResult<ReadInsight>;

    fn handle(&mut self, _: ReadInsight, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.replica.insight(self.clock.monotonic()))
    }
}

impl Handler<Tick> for Consensus {
    type Result = ();

    fn handle(&mut self, _: Tick, ctx: &mut Self::Context) {
        self.advance(Input::Tick, ctx);
        self.report();
    }
}

#[cfg(test)]
#[path = "consensus_tests.rs"]
mod tests;
