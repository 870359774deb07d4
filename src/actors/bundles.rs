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

/// The ways to all other replicas.
#[derive(Debug)]
pub struct Bundles(Vec<(NodeId, mpsc::Sender<Arc<VerifiedRequest>>)>);

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

    /// Puts requests on their way to everybody.
    pub fn send(&self, requests: &[Arc<VerifiedRequest>]) {
        self.put(requests, |_| true);
    }

    /// Puts requests on their way to one replica.
    pub fn send_to(&self, to: NodeId, requests: &[Arc<VerifiedRequest>]) {
        self.put(requests, |node| *node == to);
    }

    fn put(&self, requests: &[Arc<VerifiedRequest>], to: impl Fn(&NodeId) -> bool) {
        for (node, queue) in self.0.iter().filter(|(node, _)| to(node)) {
            let left = requests.iter().filter(|request| queue.try_send(Arc::clone(request)).is_err()).count();
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
    requests: mpsc::Receiver<Arc<VerifiedRequest>>,
}

impl Way {
    async fn run(mut self) {
        // A request that made the last bundle too long.
        let mut over = None;
        while let Some(first) = match over.take() {
            Some(request) => Some(request),
            None => self.requests.recv().await,
        } {
            let (bundle, left_over) = gather(first, || self.requests.try_recv().ok());
            over = left_over;
            let bodies = bundle.iter().map(|request| request.request().clone()).collect();
            let bundle = Arc::new(SignedBundle::sign(&self.key, &self.network_id, bodies));
            if let Err(error) = self.network.request(self.node, PeerRequest::Bundle(bundle)).await {
                tracing::debug!(node = %self.node, %error, "bundle not taken; its requests are sent again");
            }
        }
    }
}

/// `first` and as many of the next as one bundle carries, and the one that was too many.
fn gather(
    first: Arc<VerifiedRequest>,
    mut next: impl FnMut() -> Option<Arc<VerifiedRequest>>,
) -> (Vec<Arc<VerifiedRequest>>, Option<Arc<VerifiedRequest>>) {
    let mut bytes = first.bytes().len();
    let mut bundle = vec![first];
    while bundle.len() < MAX_REQUESTS {
        let Some(request) = next() else { break };
        bytes += request.bytes().len();
        if bytes > MAX_REQUEST_BYTES {
            return (bundle, Some(request));
        }
        bundle.push(request);
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
        let mut waiting = vec![request(10); 700];
        let first = waiting.pop().unwrap();
        let (bundle, over) = gather(first, || waiting.pop());
        assert_eq!((bundle.len(), over.is_none(), waiting.len()), (MAX_REQUESTS, true, 700 - MAX_REQUESTS));
        let (bundle, _) = gather(waiting.pop().unwrap(), || waiting.pop());
        assert_eq!((bundle.len(), waiting.len()), (700 - MAX_REQUESTS, 0));
    }
}
