//! Policy: decides which items of a verified message go on the ledger, logs that, and hands them on.
//!
//! ```text
//! AcceptMessage ─▶ judge ─▶ log: message and decision ─▶ queue ─▶ [one task] ─▶ Consensus
//! RepeatDecision ────────── the decision of the log ───▶ queue        │ synced, all that waits at once
//! ```
//!
//! Messages are decided one after the other, in the order in which they were admitted, against what
//! [`Bases`] knows. A decision is made once: it stands in the log in one entry with its message, and
//! nothing of it leaves the node before that is on disk, so that a restart never asks for another part
//! of a message than before. A message without a picked item is final here: its client is told at once.
//!
//! Consensus takes as many at once as have gathered while it was busy, since a way there and back for
//! each would bound the rate. While the request pool is full, the task waits for room, and everything
//! before it with it.
//!
//! A request that Consensus knows already, which happens after a restart, may have been executed
//! when nobody listened. It is asked for again now and then until the message is final: the core
//! forgets executed requests after a while, and executing one again tells its fate.

use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, AtomicResponse, Context, Handler, Message, Recipient, WrapFuture as _};
use tokio::sync::{Notify, mpsc};

use super::accepted::{Admitted, LogRecord, LoggedMessage};
use super::admission::Admission;
use super::bases::Bases;
use super::consensus::{Submission, SubmitRequest, SubmitRequests};
use super::fatal::Vital;
use super::finals::Finals;
use super::history::HistoryFeed;
use super::view::LedgerView;
use super::{Fatal, FinalMessage, FinalVerdict};
use crate::ledger::{AdmittedMessage, RequestError, VerifiedRequest};
use crate::metrics::{IngressMetrics, StageTime};
use crate::policy::Decision;
use crate::store::Log;
use crate::store::log::Position;
use crate::types::NodeId;

/// Messages in the mailbox: a fraction of a second of ingest; the Verifier waits beyond it.
const MAILBOX: usize = 1_024;

/// Requests on their way to Consensus: as many again. The actor waits when it is full.
const QUEUE: usize = 1_024;

/// Requests in one message to Consensus: a fraction of a batch, so that votes never wait long.
const TOGETHER: usize = 64;

/// Room in the request pool is looked for again after this time even if nobody announced it.
const ROOM_CHECK: Duration = Duration::from_millis(50);

/// How long until a request that Consensus knew already is submitted once more.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// A verified message that has a place among the admitted ones: it is to be decided and logged. The
/// answer is where the log has it, on its way to the disk; none if the node stops.
#[derive(Debug, Message)]
#[rtype(result = "Option<Position>")]
pub struct AcceptMessage {
    /// The message.
    pub admitted: Arc<Admitted>,
    /// The same as the log keeps it.
    pub logged: LoggedMessage,
}

/// A message of the log, with the decision that was made of it.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct RepeatDecision {
    /// The message.
    pub admitted: Arc<Admitted>,
    /// What was decided.
    pub decision: Decision,
}

/// What the actor works with.
#[derive(Clone)]
pub struct PolicyParts {
    /// This node.
    pub node: NodeId,
    /// The policies in force.
    pub view: Arc<LedgerView>,
    /// What items are judged against.
    pub bases: Arc<Bases>,
    /// Where accepted messages go.
    pub log: Log,
    /// Is told what the log has.
    pub admission: Arc<Admission>,
    /// Takes requests, one or many.
    pub consensus: (Recipient<SubmitRequest>, Recipient<SubmitRequests>),
    /// Is notified when the request pool may have room again.
    pub room: Arc<Notify>,
    /// Where messages end of which nothing is written.
    pub finals: Finals,
    /// Where all of them go.
    pub history: HistoryFeed,
    /// Counters.
    pub metrics: IngressMetrics,
    /// Counts the time of deciding, and of making requests.
    pub time: StageTime,
    /// Stops the node.
    pub fatal: Fatal,
}

/// The actor; see the module.
pub struct Policy {
    parts: PolicyParts,
    queue: mpsc::Sender<Picked>,
}

impl Policy {
    /// The actor with its parts. To be called on a tokio runtime: what hands requests on to Consensus
    /// starts here, since `started` may run when the runtime is gone.
    pub fn new(parts: PolicyParts) -> Self {
        let (queue, picked) = mpsc::channel(QUEUE);
        let submitter = Submitter {
            consensus: parts.consensus.clone(),
            room: Arc::clone(&parts.room),
            log: parts.log.clone(),
            finals: parts.finals.clone(),
            picked,
            _vital: parts.fatal.vital("Policy"),
        };
        tokio::spawn(submitter.run());
        Self { parts, queue }
    }
}

impl PolicyParts {
    /// Decides, and appends message and decision to the log.
    async fn accept(
        &self,
        admitted: &Admitted,
        logged: LoggedMessage,
    ) -> anyhow::Result<(Position, Decision)> {
        let message = &admitted.message;
        let header = message.header();
        let policies = self.view.policies();
        let judge = || self.bases.judge(&policies, header.stream.as_str(), header.seq, message.items());
        let decision = self.time.sampled(judge)?;
        for item in &decision.items {
            self.metrics.decisions.with_label_values(&[item.verdict.name()]).inc();
        }
        let record = LogRecord::Accepted(logged, decision.clone());
        let position = self.log.append(vec![record.entry()]).await?;
        self.admission.logged(&header.client, header.seq, position);
        self.history.decided(Arc::clone(message), decision.bytes(), position, Arc::clone(&admitted.history));
        Ok((position, decision))
    }

    /// The request to write what was picked; none if nothing was.
    fn request(
        &self,
        admitted: &Admitted,
        decision: &Decision,
    ) -> Result<Option<VerifiedRequest>, RequestError> {
        let message = &admitted.message;
        let picked = decision.picked();
        self.metrics.items.inc_by(message.items().len() as u64);
        self.metrics.items_picked.inc_by(picked.len() as u64);
        if picked.is_empty() {
            return Ok(None);
        }
        let signed = message.signed();
        let parts = AdmittedMessage {
            header: signed.header(),
            header_bytes: signed.bytes(),
            signature: signed.signature(),
            client_key: signed.client_key(),
            items: message.item_bytes(),
        };
        VerifiedRequest::from_admitted(self.node, parts, &picked).map(Some)
    }

    /// Hands on what was picked, once the log has it on disk.
    async fn hand_on(
        &self,
        queue: &mpsc::Sender<Picked>,
        admitted: Arc<Admitted>,
        decision: &Decision,
        position: Position,
    ) {
        let message = final_unwritten(&admitted);
        match self.time.sampled(|| self.request(&admitted, decision)) {
            Ok(Some(request)) => {
                let picked = Picked { request: Arc::new(request), message, position, _admitted: admitted };
                let _stopping_if_closed = queue.send(picked).await;
            }
            Ok(None) => self.finals.tell(message),
            // The Verifier bounds what a request can be, so no client can cause this. The message
            // stays pending: its client was promised an answer that is true.
            Err(error) => tracing::error!(client = %message.client, seq = message.seq.0, %error,
                "a verified message makes no request"),
        }
    }
}

impl Actor for Policy {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
    }
}

impl Handler<AcceptMessage> for Policy {
    // Atomic: while this one waits for room, the mailbox is not read.
    type Result = AtomicResponse<Self, Option<Position>>;

    fn handle(&mut self, accept: AcceptMessage, _: &mut Self::Context) -> Self::Result {
        let AcceptMessage { admitted, logged } = accept;
        let (parts, queue) = (self.parts.clone(), self.queue.clone());
        let work = async move {
            match parts.accept(&admitted, logged).await {
                Ok((position, decision)) => {
                    parts.hand_on(&queue, admitted, &decision, position).await;
                    Some(position)
                }
                Err(error) => {
                    parts.fatal.stop(error.context("deciding what of a message is written"));
                    None
                }
            }
        };
        AtomicResponse::new(Box::pin(work.into_actor(self)))
    }
}

impl Handler<RepeatDecision> for Policy {
    type Result = AtomicResponse<Self, ()>;

    fn handle(&mut self, repeat: RepeatDecision, _: &mut Self::Context) -> Self::Result {
        let RepeatDecision { admitted, decision } = repeat;
        let (parts, queue) = (self.parts.clone(), self.queue.clone());
        // It was read from the log, so it is there.
        let work = async move { parts.hand_on(&queue, admitted, &decision, Position::NONE).await };
        AtomicResponse::new(Box::pin(work.into_actor(self)))
    }
}

/// A request on its way to Consensus.
struct Picked {
    request: Arc<VerifiedRequest>,
    message: FinalMessage,
    /// Where the log has message and decision.
    position: Position,
    /// Its room among what is ahead is taken until Consensus has it.
    _admitted: Arc<Admitted>,
}

/// Hands requests to Consensus, in order; it ends with the actor, and the node with it.
struct Submitter {
    consensus: (Recipient<SubmitRequest>, Recipient<SubmitRequests>),
    room: Arc<Notify>,
    log: Log,
    finals: Finals,
    picked: mpsc::Receiver<Picked>,
    _vital: Vital,
}

impl Submitter {
    async fn run(mut self) {
        let mut waiting: Vec<Picked> = Vec::with_capacity(TOGETHER);
        while self.picked.recv_many(&mut waiting, TOGETHER).await > 0 {
            let last = waiting.iter().map(|picked| picked.position).max().unwrap_or_default();
            if self.log.synced(last).await.is_err() {
                // Whoever watches the log stops the node.
                return;
            }
            while !waiting.is_empty() {
                let announced = self.room.notified();
                let requests = waiting.iter().map(|picked| Arc::clone(&picked.request)).collect();
                let Ok(submissions) = self.consensus.1.send(SubmitRequests(requests)).await else { return };
                let taken = submissions.len();
                for (picked, submission) in waiting.drain(..taken.min(waiting.len())).zip(submissions) {
                    self.submitted(picked, submission);
                }
                if !waiting.is_empty() {
                    let _checked_again = tokio::time::timeout(ROOM_CHECK, announced).await;
                }
            }
        }
    }

    fn submitted(&self, picked: Picked, submission: Submission) {
        if submission == Submission::Known {
            let Picked { request, message, .. } = picked;
            // As many as there are messages that are not final.
            tokio::spawn(ask_again(self.consensus.0.clone(), self.finals.clone(), message, request));
        }
    }
}

/// Submits a request again and again while its message is not final.
async fn ask_again(
    consensus: Recipient<SubmitRequest>,
    finals: Finals,
    message: FinalMessage,
    request: Arc<VerifiedRequest>,
) {
    loop {
        tokio::time::sleep(ASK_AGAIN).await;
        if !finals.is_pending(&message) {
            return;
        }
        match consensus.send(SubmitRequest(Arc::clone(&request))).await {
            Ok(Submission::Known | Submission::NoRoom) => {}
            Ok(Submission::Taken) | Err(_) => return,
        }
    }
}

/// Submits a request, waiting for room in the pool; nothing if the node stops.
pub(crate) async fn submit(
    consensus: &Recipient<SubmitRequest>,
    room: &Notify,
    request: Arc<VerifiedRequest>,
) -> Option<Submission> {
    loop {
        let announced = room.notified();
        match consensus.send(SubmitRequest(Arc::clone(&request))).await {
            Ok(Submission::NoRoom) => {
                let _checked_again = tokio::time::timeout(ROOM_CHECK, announced).await;
            }
            Ok(submission) => return Some(submission),
            Err(_) => return None,
        }
    }
}

fn final_unwritten(admitted: &Admitted) -> FinalMessage {
    let signed = admitted.message.signed();
    let header = signed.header();
    FinalMessage {
        client: header.client.clone(),
        stream: header.stream.clone(),
        seq: header.seq,
        header: signed.hash(),
        items: header.count,
        verdict: FinalVerdict::NotWritten,
    }
}
