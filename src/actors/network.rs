//! Network: judges what other nodes send and hands the good part to Consensus; answers what they
//! ask.
//!
//! Gossip is passed on only after its verdict: a message that is malformed or has a bad signature
//! counts against the peer that brought it, one that Consensus has no use for is left alone. All
//! work is bounded by the places that the network hands out with each event, so events are worked
//! on beside each other and a slow one holds up nobody else.

mod intake;

use std::sync::{Arc, Mutex, PoisonError};

use actix::{Actor, Addr, Context, Handler, Message};
use tokio::sync::mpsc;

pub use intake::Intake;

use super::Fatal;
use super::consensus::{Consensus, LookUpBatches, LookUpRequests, LookUpView, PeerMessage, PeerRequests};
use super::fatal::Vital;
use super::transfer::serve::Serving;
use super::verifier::{RequestVerifier, Workers};
use crate::clock::SharedClock;
use crate::codec;
use crate::ledger::{Block, Certificate, ReplicaSetKeys};
use crate::metrics::StageTime;
use crate::network::{
    Bundled, GossipId, NetworkEvent, NetworkHandle, PeerRequest, PeerResponse, Responder, SignedBundle,
    Topic, Verdict,
};
use crate::pbft::message::MAX_SLOT_ENVELOPE_BYTES;
use crate::pbft::{Envelope, Gate, MessageError, Pass, Source, Verified};
use crate::store::LedgerStore;
use crate::types::{Hash, Height, NetworkId, NodeId};

/// Events in the mailbox; the network's own queue of 4,096 stands before it.
const MAILBOX: usize = 256;

/// Something happened on the network.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct PeerEvent(pub NetworkEvent);

/// What the judging of events needs.
#[derive(Clone)]
pub struct Judge {
    /// The ledger.
    pub network_id: NetworkId,
    /// The replicas' keys.
    pub keys: Arc<ReplicaSetKeys>,
    /// The way back to the network.
    pub network: NetworkHandle,
    /// Where the good part goes.
    pub consensus: Addr<Consensus>,
    /// Bounds what one replica can make this node check.
    pub gate: Arc<Mutex<Gate>>,
    /// Bounds what one replica's requests can make it check.
    pub intake: Arc<Intake>,
    /// Checks requests.
    pub verifier: RequestVerifier,
    /// Checks what has many signatures.
    pub workers: Workers,
    /// What blocks this node has.
    pub store: Arc<dyn LedgerStore>,
    /// How much of them it gives.
    pub serving: Serving,
    /// Time, for that and for the gate.
    pub clock: SharedClock,
    /// Counts the time of checks of PBFT messages.
    pub votes: StageTime,
    /// Counts that of bundles' signatures.
    pub requests: StageTime,
}

/// The actor; see the module.
pub struct Network {
    judge: Judge,
    _vital: Vital,
}

impl Network {
    /// Starts the actor and the task that feeds it, on the current arbiter.
    pub fn start_with(judge: Judge, mut events: mpsc::Receiver<NetworkEvent>, fatal: &Fatal) -> Addr<Self> {
        let network = Self { judge, _vital: fatal.vital("Network") }.start();
        let feed = network.clone();
        // Ends when the swarm does, which nothing restarts.
        let vital = fatal.vital("the connection with other nodes");
        tokio::spawn(async move {
            let _vital = vital;
            while let Some(event) = events.recv().await {
                if feed.send(PeerEvent(event)).await.is_err() {
                    return;
                }
            }
        });
        network
    }
}

impl Actor for Network {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
    }
}

impl Handler<PeerEvent> for Network {
    type Result = ();

    fn handle(&mut self, PeerEvent(event): PeerEvent, _: &mut Self::Context) {
        match event {
            NetworkEvent::Gossip { id, topic: Topic::Pbft, data, from } => {
                tokio::spawn(self.judge.clone().gossip(id, data, from));
            }
            NetworkEvent::Gossip { topic: Topic::Announce, .. } => {}
            NetworkEvent::Request { from, request, responder } => {
                tokio::spawn(self.judge.clone().request(from, request, responder));
            }
            NetworkEvent::Connected(node) => tracing::debug!(%node, "connected"),
            NetworkEvent::Disconnected(node) => tracing::debug!(%node, "disconnected"),
        }
    }
}

impl Judge {
    async fn gossip(self, id: GossipId, data: Vec<u8>, from: NodeId) {
        let large = data.len() > MAX_SLOT_ENVELOPE_BYTES / 4;
        let judge = self.clone();
        let check = move || judge.votes.of(|| judge.verify(&data));
        // A VIEW-CHANGE may hold hundreds of signatures.
        let message = if large { self.workers.run(check).await } else { Some(check()) };
        let Some(message) = message else { return };
        let verdict = match message {
            Ok(Some(message)) => match self.consensus.send(PeerMessage(message)).await {
                Ok(true) => Verdict::Accept,
                Ok(false) | Err(_) => Verdict::Ignore,
            },
            Ok(None) => Verdict::Ignore,
            Err(error) => {
                tracing::warn!(%from, %error, "bad gossip");
                Verdict::Reject
            }
        };
        if self.network.report(id, verdict).await.is_err() {
            tracing::debug!("the network stopped before a verdict");
        }
    }

    /// Checks a message, as far as its sender may ask for that; nothing if it may not now.
    fn verify(&self, data: &[u8]) -> Result<Option<Verified>, MessageError> {
        let signed = Envelope::decode(data)?.signed;
        let message = signed.authenticate(&self.keys, &self.network_id)?;
        let now = self.clock.monotonic();
        let gate = || self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        // Not locked while the proofs are checked.
        let pass = gate().admit(now, message);
        match pass {
            Pass::Known(message) => Ok(Some(message)),
            Pass::Later => Ok(None),
            Pass::Check(ticket) => {
                let (settlement, result) = ticket.check(&self.keys, &self.network_id);
                gate().settle(now, settlement);
                result.map(Some)
            }
        }
    }

    async fn request(self, from: NodeId, request: PeerRequest, responder: Responder) {
        let response = match request {
            PeerRequest::Bundle(bundle) => {
                self.bundle(from, Arc::unwrap_or_clone(bundle), Source::Bundle).await
            }
            PeerRequest::Forward(bundle) => {
                self.bundle(from, Arc::unwrap_or_clone(bundle), Source::Forwarded { by: from }).await
            }
            PeerRequest::FetchRequests(digests) => self.look_up_requests(digests).await,
            PeerRequest::FetchBatches(digests) => {
                let found = self.consensus.send(LookUpBatches(digests)).await;
                found.map_or(PeerResponse::Busy, PeerResponse::batches)
            }
            PeerRequest::FetchView(view) => {
                let found = self.consensus.send(LookUpView(view)).await;
                found.map_or(PeerResponse::Busy, PeerResponse::view)
            }
            PeerRequest::FetchBlocks { from: first, max } => {
                return self.blocks(from, first, max, responder).await;
            }
        };
        responder.respond(response);
    }

    async fn bundle(&self, from: NodeId, bundle: SignedBundle, source: Source) -> PeerResponse {
        // Before any work: whoever may connect could make this node verify signatures for nothing.
        let Some(key) = self.keys.get(&from) else { return PeerResponse::Busy };
        let Some(_place) = self.intake.enter(&from, &self.clock).await else { return PeerResponse::Busy };
        if bundle.node != from || self.requests.of(|| bundle.verify_with(&self.network_id, key)).is_err() {
            tracing::warn!(%from, "a bundle that its sender did not sign");
            return PeerResponse::Busy;
        }
        let requests = bundle.requests.into_iter().map(Bundled::into_unchecked).collect();
        let requests = self.intake.check(&from, source, requests, &self.verifier, &self.clock).await;
        let taken =
            requests.is_empty() || self.consensus.send(PeerRequests { requests, source }).await.is_ok();
        if taken { PeerResponse::Accepted } else { PeerResponse::Busy }
    }

    async fn look_up_requests(&self, digests: Vec<Hash>) -> PeerResponse {
        match self.consensus.send(LookUpRequests(digests)).await {
            Ok(found) => PeerResponse::requests(found.into_iter().map(|request| request.request().clone())),
            Err(_) => PeerResponse::Busy,
        }
    }

    /// Gives blocks, as far as this node gives any now.
    async fn blocks(&self, node: NodeId, first: Height, max: u32, responder: Responder) {
        let Some(leave) = self.serving.enter(node, self.clock.monotonic()) else {
            return responder.respond(PeerResponse::Busy);
        };
        let store = Arc::clone(&self.store);
        let answer = tokio::task::spawn_blocking(move || {
            let read = |height| match (store.block(height), store.certificate(height)) {
                (Ok(block), Ok(certificate)) => block.zip(certificate),
                (Err(error), _) | (_, Err(error)) => {
                    tracing::error!(%height, %error, "a block that a peer asked for cannot be read");
                    None
                }
            };
            let response = certified_blocks(read, store.certified_height(), first, max);
            let (count, bytes) = match &response {
                PeerResponse::Blocks { blocks, .. } => (blocks.len(), codec::encoded_len(&response)),
                _ => (0, 0),
            };
            (response, count, bytes as u64)
        });
        let Ok((response, blocks, bytes)) = answer.await else { return };
        let [own, of_all] = self.serving.served(leave, blocks, bytes);
        responder.holding(own).holding(of_all).respond(response);
    }
}

/// Blocks with certificates from a height on, until one is missing or the answer is full. Read one by
/// one: a peer asks for hundreds, of which a few may fill the answer.
fn certified_blocks(
    read: impl Fn(Height) -> Option<(Block, Certificate)>,
    head: Height,
    from: Height,
    max: u32,
) -> PeerResponse {
    let heights = from.0..from.0.saturating_add(u64::from(max));
    PeerResponse::blocks(head, heights.map_while(|height| read(Height(height))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::block::Header;
    use crate::ledger::{CheckpointContent, Operation, WriteRequest, WrittenItem};
    use crate::types::{PublicKey, SeqNum, Signature, Timestamp, View};
    use std::cell::Cell;

    /// A block of about 5 MiB; nobody looks into it here.
    fn block(height: Height) -> (Block, Certificate) {
        let zero = Hash([0; 32]);
        let request = WriteRequest {
            node: NodeId([0; 32]),
            client_key: PublicKey([0; 32]),
            header: Vec::new(),
            signature: Signature([0; 64]),
            items: vec![WrittenItem { index: 0, bytes: vec![0; 5 << 20] }],
            proof: Vec::new(),
        };
        let header = Header {
            version: 1,
            network: NetworkId([0; 32]),
            height,
            sequence: SeqNum(height.0),
            timestamp: Timestamp(0),
            previous: zero,
            merkle_root: zero,
            operation_count: 1,
            next_replica_set: zero,
            origin_view: View(0),
            proposer: NodeId([0; 32]),
            difficulty_target: 0,
            nonce: 0,
        };
        let content = CheckpointContent { sequence: SeqNum(height.0), height, block: zero, state: zero };
        let operations = vec![Operation::Write { request: Arc::new(request), written: vec![0] }];
        (Block { header, operations }, Certificate { content, signatures: Vec::new() })
    }

    #[test]
    fn no_more_blocks_are_read_for_a_peer_than_an_answer_carries() {
        let read = Cell::new(0);
        let answer = certified_blocks(
            |height| {
                read.set(read.get() + 1);
                Some(block(height))
            },
            Height(9),
            Height(1),
            64,
        );
        let PeerResponse::Blocks { blocks, head: Height(9) } = answer else { panic!("no blocks") };
        assert_eq!((blocks.len(), read.get()), (2, 3));
    }
}
