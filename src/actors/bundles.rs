//! Bundles: requests on their way to each of the other replicas, this node's own and those that
//! it forwards to the primary.
//!
//! One task for each replica sends one bundle at a time, with all that gathered since the last: a
//! replica that is slow gets fewer and larger bundles, and holds up nobody else. Those that get the
//! same bundle get the same signature. What does not fit into a queue is left to the core, which sends
//! requests again until they are ordered.

use std::sync::{Arc, OnceLock};

use tokio::sync::mpsc;

use crate::crypto::SecretKey;
use crate::ledger::{MAX_REQUEST_BYTES, ReplicaSetKeys, VerifiedRequest};
use crate::network::{Bundled, NetworkHandle, PeerRequest, SignedBundle};
use crate::types::{NetworkId, NodeId};

/// Parcels that wait for their bundle to one replica: a second or two of them. Requests are shared with
/// the core's pool, so each costs a pointer.
const QUEUE: usize = 64;

/// Requests in one bundle: as many as in a batch.
const MAX_REQUESTS: usize = 512;

/// Requests that were put on their way together, and whether they are forwarded: the primary takes
/// these otherwise. At most [`MAX_REQUESTS`], of [`MAX_REQUEST_BYTES`] in all unless it is one.
#[derive(Debug)]
struct Parcel {
    requests: Vec<Arc<VerifiedRequest>>,
    bytes: usize,
    forwarded: bool,
    /// The bundle of these alone.
    signed: OnceLock<Arc<SignedBundle>>,
}

impl Parcel {
    /// Parcels of the requests, in order.
    fn of(requests: &[Arc<VerifiedRequest>], forwarded: bool) -> Vec<Arc<Self>> {
        let mut parcels: Vec<Self> = Vec::new();
        for request in requests {
            let bytes = request.bytes().len();
            match parcels.last_mut().filter(|last| last.has_room(1, bytes)) {
                Some(last) => {
                    last.requests.push(Arc::clone(request));
                    last.bytes += bytes;
                }
                None => {
                    let requests = vec![Arc::clone(request)];
                    parcels.push(Self { requests, bytes, forwarded, signed: OnceLock::new() });
                }
            }
        }
        parcels.into_iter().map(Arc::new).collect()
    }

    const fn has_room(&self, requests: usize, bytes: usize) -> bool {
        self.requests.len() + requests <= MAX_REQUESTS && self.bytes + bytes <= MAX_REQUEST_BYTES
    }
}

/// The ways to all other replicas.
#[derive(Debug)]
pub struct Bundles(Vec<(NodeId, mpsc::Sender<Arc<Parcel>>)>);

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
            let (queue, parcels) = mpsc::channel(QUEUE);
            let way = Way { node: *node, key: key.clone(), network_id, network: network.clone(), parcels };
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
        for parcel in Parcel::of(requests, forwarded) {
            for (node, queue) in self.0.iter().filter(|(node, _)| to(node)) {
                if queue.try_send(Arc::clone(&parcel)).is_err() {
                    let left = parcel.requests.len();
                    tracing::debug!(%node, left, "requests pile up for this replica; they are sent again later");
                }
            }
        }
    }
}

struct Way {
    node: NodeId,
    key: SecretKey,
    network_id: NetworkId,
    network: NetworkHandle,
    parcels: mpsc::Receiver<Arc<Parcel>>,
}

impl Way {
    async fn run(mut self) {
        // What did not go with the last bundle.
        let mut over = None;
        while let Some(first) = match over.take() {
            Some(parcel) => Some(parcel),
            None => self.parcels.recv().await,
        } {
            let forwarded = first.forwarded;
            let (parcels, left_over) = gather(first, || self.parcels.try_recv().ok());
            over = left_over;
            let bundle = self.bundle(&parcels);
            let request = if forwarded { PeerRequest::Forward(bundle) } else { PeerRequest::Bundle(bundle) };
            if let Err(error) = self.network.request(self.node, request).await {
                tracing::debug!(node = %self.node, %error, "bundle not taken; its requests are sent again");
            }
        }
    }

    /// The parcels in one bundle; that of a single parcel is signed once for all replicas.
    fn bundle(&self, parcels: &[Arc<Parcel>]) -> Arc<SignedBundle> {
        let sign = || {
            let requests = parcels.iter().flat_map(|parcel| &parcel.requests);
            let requests = requests.map(|request| Bundled::Known(Arc::clone(request))).collect();
            Arc::new(SignedBundle::sign(&self.key, &self.network_id, requests))
        };
        match parcels {
            [alone] => Arc::clone(alone.signed.get_or_init(sign)),
            _ => sign(),
        }
    }
}

/// `first` and as many of the next as one bundle carries, and the one that is too many or is not sent
/// in the same way.
fn gather(
    first: Arc<Parcel>,
    mut next: impl FnMut() -> Option<Arc<Parcel>>,
) -> (Vec<Arc<Parcel>>, Option<Arc<Parcel>>) {
    let (mut requests, mut bytes) = (first.requests.len(), first.bytes);
    let mut parcels = vec![first];
    while requests < MAX_REQUESTS {
        let Some(parcel) = next() else { break };
        if !parcel.has_room(requests, bytes) || parcel.forwarded != parcels[0].forwarded {
            return (parcels, Some(parcel));
        }
        requests += parcel.requests.len();
        bytes += parcel.bytes;
        parcels.push(parcel);
    }
    (parcels, None)
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

    fn parcel(requests: usize, forwarded: bool) -> Arc<Parcel> {
        let requests: Vec<_> = (0..requests).map(|_| request(10)).collect();
        let mut parcels = Parcel::of(&requests, forwarded);
        assert_eq!(parcels.len(), 1);
        parcels.pop().unwrap()
    }

    #[test]
    fn requests_become_parcels_within_the_limits_of_a_bundle() {
        let requests: Vec<_> = (0..2 * MAX_REQUESTS + 1).map(|_| request(10)).collect();
        let lens: Vec<_> = Parcel::of(&requests, false).iter().map(|parcel| parcel.requests.len()).collect();
        assert_eq!(lens, [MAX_REQUESTS, MAX_REQUESTS, 1]);
        let parcel = &Parcel::of(&requests[..3], true)[0];
        assert_eq!((parcel.bytes, parcel.forwarded), (3 * requests[0].bytes().len(), true));
        assert!(!parcel.has_room(1, MAX_REQUEST_BYTES) && parcel.has_room(1, 1));
    }

    #[test]
    fn a_bundle_takes_what_waits_up_to_its_limit_and_loses_nothing() {
        let mut waiting: Vec<_> = (0..7).map(|_| parcel(100, false)).collect();
        let first = waiting.pop().unwrap();
        let (bundle, over) = gather(first, || waiting.pop());
        assert_eq!((bundle.len(), over.is_some(), waiting.len()), (5, true, 1));
        let (bundle, over) = gather(over.unwrap(), || waiting.pop());
        assert_eq!((bundle.len(), over.is_none(), waiting.len()), (2, true, 0));
    }

    #[test]
    fn forwarded_requests_go_in_bundles_of_their_own() {
        let mut waiting = vec![parcel(1, false), parcel(1, true), parcel(1, true)];
        let (bundle, over) = gather(parcel(1, true), || waiting.pop());
        assert_eq!((bundle.len(), over.map(|parcel| parcel.forwarded)), (3, Some(false)));
    }
}
