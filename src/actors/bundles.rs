//! Bundles: requests on their way to each of the other replicas, this node's own and those that
//! it forwards to the primary.
//!
//! One task for each replica sends one bundle at a time, with all that gathered since the last: a
//! replica that is slow gets fewer and larger bundles, and holds up nobody else. What does not fit
//! into its queue is left to the core, which sends requests again until they are ordered.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::crypto::SecretKey;
use crate::ledger::{MAX_REQUEST_BYTES, ReplicaSetKeys, VerifiedRequest};
use crate::network::{NetworkHandle, PeerRequest, SignedBundle};
use crate::types::{NetworkId, NodeId};

/// Requests that wait for their bundle to one replica: twice what one bundle carries. Each is
/// shared with the core's pool, so it costs a pointer.
const QUEUE: usize = 1_024;

/// Requests in one bundle: as many as in a batch.
const MAX_REQUESTS: usize = 512;

/// A request on its way, and whether it is forwarded: the primary takes these otherwise.
#[derive(Debug)]
struct Item {
    request: Arc<VerifiedRequest>,
    forwarded: bool,
}

/// The ways to all other replicas.
#[derive(Debug)]
pub struct Bundles(Vec<(NodeId, mpsc::Sender<Item>)>);

impl Bundles {
    /// Starts a task for each replica but this one, on the current tokio runtime; they end when
    /// this value is dropped.
    pub fn start(
        key: &SecretKey,
        network_id: NetworkId,
        keys: &ReplicaSetKeys,
        network: &NetworkHandle,
    ) -> Self {
        let own = key.node_id();
        let others = keys.replicas().members().iter().filter(|node| **node != own);
        let way = |node: &NodeId| {
            let (queue, requests) = mpsc::channel(QUEUE);
            let way = Way { node: *node, key: key.clone(), network_id, network: network.clone(), requests };
            tokio::spawn(way.run());
            (*node, queue)
        };
        Self(others.map(way).collect())
    }

    /// Puts requests that this node admitted on their way to everybody.
    pub fn send(&self, requests: &[Arc<VerifiedRequest>]) {
        self.put(requests, false, |_| true);
    }

    /// Puts requests that wait too long, own ones or others', on their way to the primary.
    pub fn forward(&self, to: NodeId, requests: &[Arc<VerifiedRequest>]) {
        self.put(requests, true, |node| *node == to);
    }

    fn put(&self, requests: &[Arc<VerifiedRequest>], forwarded: bool, to: impl Fn(&NodeId) -> bool) {
        for (node, queue) in self.0.iter().filter(|(node, _)| to(node)) {
            let item = |request| Item { request: Arc::clone(request), forwarded };
            let left = requests.iter().filter(|request| queue.try_send(item(request)).is_err()).count();
            if left > 0 {
                tracing::debug!(%node, left, "requests pile up for this replica; they are sent again later");
            }
        }
    }
}

struct Way {
    node: NodeId,
    key: SecretKey,
    network_id: NetworkId,
    network: NetworkHandle,
    requests: mpsc::Receiver<Item>,
}

impl Way {
    async fn run(mut self) {
        // What did not go with the last bundle.
        let mut over = None;
        while let Some(first) = match over.take() {
            Some(item) => Some(item),
            None => self.requests.recv().await,
        } {
            let forwarded = first.forwarded;
            let (bundle, left_over) = gather(first, || self.requests.try_recv().ok());
            over = left_over;
            let bodies = bundle.iter().map(|request| request.request().clone()).collect();
            let bundle = Arc::new(SignedBundle::sign(&self.key, &self.network_id, bodies));
            let request = if forwarded { PeerRequest::Forward(bundle) } else { PeerRequest::Bundle(bundle) };
            if let Err(error) = self.network.request(self.node, request).await {
                tracing::debug!(node = %self.node, %error, "bundle not taken; its requests are sent again");
            }
        }
    }
}

/// `first` and as many of the next as one bundle carries, and the one that is too many or is not sent
/// in the same way.
fn gather(first: Item, mut next: impl FnMut() -> Option<Item>) -> (Vec<Arc<VerifiedRequest>>, Option<Item>) {
    let forwarded = first.forwarded;
    let mut bytes = first.request.bytes().len();
    let mut bundle = vec![first.request];
    while bundle.len() < MAX_REQUESTS {
        let Some(item) = next() else { break };
        bytes += item.request.bytes().len();
        if bytes > MAX_REQUEST_BYTES || item.forwarded != forwarded {
            return (bundle, Some(item));
        }
        bundle.push(item.request);
    }
    (bundle, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{AdminAction, AdminOperation, Request};
    use crate::types::{ClientId, MessageSeq};

    fn request(reason_bytes: usize) -> Arc<VerifiedRequest> {
        let (key, network) = (SecretKey::from_seed(&[7; 32]), NetworkId([1; 32]));
        let action = AdminAction::RevokeClient {
            client: ClientId::new("a/b").unwrap(),
            last_seq: MessageSeq(1),
            reason: "x".repeat(reason_bytes),
        };
        let operation = AdminOperation::sign(network, &key, 1, action);
        let request = Request::Admin { node: key.node_id(), operation };
        Arc::new(VerifiedRequest::verify(&network, request).unwrap())
    }

    #[test]
    fn a_bundle_takes_what_waits_up_to_its_limit_and_loses_nothing() {
        let item = || Item { request: request(10), forwarded: false };
        let mut waiting: Vec<Item> = (0..700).map(|_| item()).collect();
        let first = waiting.pop().unwrap();
        let (bundle, over) = gather(first, || waiting.pop());
        assert_eq!((bundle.len(), over.is_none(), waiting.len()), (MAX_REQUESTS, true, 700 - MAX_REQUESTS));
        let (bundle, _) = gather(waiting.pop().unwrap(), || waiting.pop());
        assert_eq!((bundle.len(), waiting.len()), (700 - MAX_REQUESTS, 0));
    }

    #[test]
    fn forwarded_requests_go_in_bundles_of_their_own() {
        let item = |forwarded| Item { request: request(10), forwarded };
        let mut waiting = vec![item(false), item(true), item(true)];
        let (bundle, over) = gather(item(true), || waiting.pop());
        assert_eq!((bundle.len(), over.map(|item| item.forwarded)), (3, Some(false)));
    }
}
