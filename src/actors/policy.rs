//! Policy: decides which items of a verified message go on the ledger, and hands them on.
//!
//! A message without a picked item is final here: its client is told at once. Messages are decided
//! one after the other, in the order in which they were admitted; while the request pool is full,
//! the actor waits for room, and everything before it with it.

use std::sync::Arc;
use std::time::Duration;

use actix::{
    Actor, ActorFutureExt as _, Context, Handler, Message, Recipient, ResponseActFuture, WrapFuture as _,
};
use tokio::sync::Notify;

use super::consensus::SubmitRequest;
use super::verifier::Admitted;
use super::{Feeder, FinalMessage, FinalVerdict};
use crate::ledger::{AdmittedMessage, VerifiedRequest};
use crate::metrics::IngressMetrics;
use crate::policy::{WritePolicy, pick};
use crate::types::NodeId;

/// Messages in the mailbox: a fraction of a second of ingest; the Verifier waits beyond it.
const MAILBOX: usize = 1_024;

/// Room in the request pool is looked for again after this time even if nobody announced it.
const ROOM_CHECK: Duration = Duration::from_millis(50);

/// A verified message that is in the log.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ApplyPolicy(pub Arc<Admitted>);

/// The actor; see the module.
pub struct Policy {
    node: NodeId,
    policy: WritePolicy,
    consensus: Recipient<SubmitRequest>,
    room: Arc<Notify>,
    finals: Feeder<FinalMessage>,
    metrics: IngressMetrics,
}

impl Policy {
    /// Policy of node `node`. `room` is notified when the request pool may have room again.
    pub fn new(
        node: NodeId,
        policy: WritePolicy,
        consensus: Recipient<SubmitRequest>,
        room: Arc<Notify>,
        finals: Feeder<FinalMessage>,
        metrics: IngressMetrics,
    ) -> Self {
        Self { node, policy, consensus, room, finals, metrics }
    }

    /// The request to write what the policy picks; none if it picks nothing.
    fn request(&self, admitted: &Admitted) -> Option<VerifiedRequest> {
        let message = &admitted.message;
        let picked = pick(message.items(), |_| self.policy);
        self.metrics.items.inc_by(message.items().len() as u64);
        self.metrics.items_picked.inc_by(picked.len() as u64);
        if picked.is_empty() {
            return None;
        }
        let signed = message.signed();
        let parts = AdmittedMessage {
            header: signed.header(),
            header_bytes: signed.bytes(),
            signature: signed.signature(),
            client_key: signed.client_key(),
            items: message.item_bytes(),
        };
        // The Verifier bounds what a request can be, so this is no error that a client can cause.
        VerifiedRequest::from_admitted(self.node, parts, &picked)
            .inspect_err(|error| tracing::error!(%error, "verified message makes no request"))
            .ok()
    }
}

impl Actor for Policy {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
    }
}

impl Handler<ApplyPolicy> for Policy {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, ApplyPolicy(admitted): ApplyPolicy, _: &mut Self::Context) -> Self::Result {
        let request = self.request(&admitted).map(Arc::new);
        let (consensus, room, finals) = (self.consensus.clone(), Arc::clone(&self.room), self.finals.clone());
        let work = async move {
            match request {
                Some(request) => submit(&consensus, &room, request).await,
                None => finals.put(final_unwritten(&admitted)).await,
            }
        };
        Box::pin(work.into_actor(self).map(|(), _, _| ()))
    }
}

/// Submits a request, waiting for room in the pool.
pub(crate) async fn submit(
    consensus: &Recipient<SubmitRequest>,
    room: &Notify,
    request: Arc<VerifiedRequest>,
) {
    loop {
        let announced = room.notified();
        match consensus.send(SubmitRequest(Arc::clone(&request))).await {
            Ok(false) => {
                let _checked_again = tokio::time::timeout(ROOM_CHECK, announced).await;
            }
            Ok(true) | Err(_) => return,
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
