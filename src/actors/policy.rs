//! Policy: decides which items of a verified message go on the ledger, and hands them on.
//!
//! ```text
//! ApplyPolicy ─▶ pick ─▶ queue ─▶ [one task: all that waits, in one message] ─▶ Consensus
//! ```
//!
//! A message without a picked item is final here: its client is told at once. Messages are decided
//! one after the other, in the order in which they were admitted. Consensus takes as many at once
//! as have gathered while it was busy, since a way there and back for each would bound the rate.
//! While the request pool is full, the task waits for room, and everything before it with it.
//!
//! A request that Consensus knows already, which happens after a restart, may have been executed
//! when nobody listened. It is asked for again now and then until the message is final: the core
//! forgets executed requests after a while, and executing one again tells its fate.

use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, AtomicResponse, Context, Handler, Message, Recipient, WrapFuture as _};
use tokio::sync::{Notify, mpsc};

use super::consensus::{Submission, SubmitRequest, SubmitRequests};
use super::fatal::Vital;
use super::finals::Finals;
use super::verifier::Admitted;
use super::{FinalMessage, FinalVerdict};
use crate::ledger::{AdmittedMessage, RequestError, VerifiedRequest};
use crate::metrics::IngressMetrics;
use crate::policy::WritePolicy;
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

/// A verified message that is in the log.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ApplyPolicy(pub Arc<Admitted>);

/// The actor; see the module.
pub struct Policy {
    node: NodeId,
    policy: WritePolicy,
    queue: mpsc::Sender<Picked>,
    finals: Finals,
    metrics: IngressMetrics,
}

impl Policy {
    /// Policy of node `node`. `room` is notified when the request pool may have room again. To be
    /// called on a tokio runtime: what hands requests on to Consensus starts here, since `started`
    /// may run when the runtime is gone.
    pub fn new(
        node: NodeId,
        policy: WritePolicy,
        consensus: (Recipient<SubmitRequest>, Recipient<SubmitRequests>),
        room: Arc<Notify>,
        finals: Finals,
        metrics: IngressMetrics,
        vital: Vital,
    ) -> Self {
        let (queue, picked) = mpsc::channel(QUEUE);
        let (one, many) = consensus;
        tokio::spawn(Submitter { one, many, room, finals: finals.clone(), picked, _vital: vital }.run());
        Self { node, policy, queue, finals, metrics }
    }

    /// The request to write what the policy picks; none if it picks nothing.
    fn request(&self, admitted: &Admitted) -> Result<Option<VerifiedRequest>, RequestError> {
        let message = &admitted.message;
        let picked: Vec<u32> = (0_u32..)
            .zip(message.items())
            .filter(|(_, item)| self.policy.judge(None, item.event_time, &item.value).writes())
            .map(|(index, _)| index)
            .collect();
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
}

impl Actor for Policy {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
    }
}

impl Handler<ApplyPolicy> for Policy {
    // Atomic: while this one waits for room, the mailbox is not read.
    type Result = AtomicResponse<Self, ()>;

    fn handle(&mut self, ApplyPolicy(admitted): ApplyPolicy, _: &mut Self::Context) -> Self::Result {
        let request = self.request(&admitted);
        let message = final_unwritten(&admitted);
        let (queue, finals) = (self.queue.clone(), self.finals.clone());
        let work = async move {
            match request {
                Ok(Some(request)) => {
                    let picked = Picked { request: Arc::new(request), message, _admitted: admitted };
                    let _stopping_if_closed = queue.send(picked).await;
                }
                Ok(None) => finals.tell(message),
                // The Verifier bounds what a request can be, so no client can cause this. The message
                // stays pending: its client was promised an answer that is true.
                Err(error) => tracing::error!(client = %message.client, seq = message.seq.0, %error,
                    "a verified message makes no request"),
            }
        };
        AtomicResponse::new(Box::pin(work.into_actor(self)))
    }
}

/// A request on its way to Consensus.
struct Picked {
    request: Arc<VerifiedRequest>,
    message: FinalMessage,
    /// Its room among what is ahead is taken until Consensus has it.
    _admitted: Arc<Admitted>,
}

/// Hands requests to Consensus, in order; it ends with the actor, and the node with it.
struct Submitter {
    one: Recipient<SubmitRequest>,
    many: Recipient<SubmitRequests>,
    room: Arc<Notify>,
    finals: Finals,
    picked: mpsc::Receiver<Picked>,
    _vital: Vital,
}

impl Submitter {
    async fn run(mut self) {
        let mut waiting = Vec::with_capacity(TOGETHER);
        while self.picked.recv_many(&mut waiting, TOGETHER).await > 0 {
            while !waiting.is_empty() {
                let announced = self.room.notified();
                let requests = waiting.iter().map(|picked| Arc::clone(&picked.request)).collect();
                let Ok(submissions) = self.many.send(SubmitRequests(requests)).await else { return };
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
            tokio::spawn(ask_again(self.one.clone(), self.finals.clone(), message, request));
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
