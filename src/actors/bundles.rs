//! Bundles: requests on their way to each of the other replicas, this node's own and those that
//! it forwards to the primary.
//!
//! One task for each replica sends one bundle at a time, with all that gathered since the last: a
//! replica that is slow gets fewer and larger bundles, and holds up nobody else. Those that get the
//! same bundle get the same signature. What does not fit into a queue is left to the core, which sends
//! requests again until they are ordered. Queues are bounded in bytes, too: the core lets go of what is
//! executed, so for a replica that stalls they would hold what nobody else needs any more.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use tokio::sync::mpsc;

use crate::crypto::SecretKey;
use crate::ledger::{MAX_REQUEST_BYTES, ReplicaSetKeys, VerifiedRequest};
use crate::network::{Bundled, MAX_BUNDLE_REQUESTS, NetworkHandle, PeerRequest, SignedBundle};
use crate::types::{NetworkId, NodeId};

/// Parcels that wait for their bundle to one replica: a second or two of them.
const QUEUE: usize = 64;

/// Bytes of requests in them, unless it is one parcel: two bundles of the largest size.
const QUEUE_BYTES: usize = 2 * MAX_REQUEST_BYTES;

/// Requests that were put on their way together, and whether they are forwarded: the primary takes
/// these otherwise. At most [`MAX_BUNDLE_REQUESTS`], of [`MAX_REQUEST_BYTES`] in all unless it is one.
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
        self.requests.len() + requests <= MAX_BUNDLE_REQUESTS && self.bytes + bytes <= MAX_REQUEST_BYTES
    }
}

/// The ways to all other replicas.
#[derive(Debug)]
pub struct Bundles(Vec<(NodeId, Queue)>);

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
            let (queue, parcels) = queue();
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
                if !queue.put(Arc::clone(&parcel)) {
                    let left = parcel.requests.len();
                    tracing::debug!(%node, left, "requests pile up for this replica; they are sent again later");
                }
            }
        }
    }
}

/// Parcels for one replica, and how many bytes wait.
#[derive(Debug)]
struct Queue {
    parcels: mpsc::Sender<Arc<Parcel>>,
    bytes: Arc<AtomicUsize>,
}

/// The end of a [`Queue`] where parcels are taken out.
#[derive(Debug)]
struct Waiting {
    parcels: mpsc::Receiver<Arc<Parcel>>,
    bytes: Arc<AtomicUsize>,
}

fn queue() -> (Queue, Waiting) {
    let (sender, parcels) = mpsc::channel(QUEUE);
    let bytes = Arc::new(AtomicUsize::new(0));
    (Queue { parcels: sender, bytes: Arc::clone(&bytes) }, Waiting { parcels, bytes })
}

impl Queue {
    /// Puts a parcel in, unless there is no room. Only the effects' one task does.
    fn put(&self, parcel: Arc<Parcel>) -> bool {
        let (bytes, waiting) = (parcel.bytes, self.bytes.load(Relaxed));
        if waiting > 0 && waiting + bytes > QUEUE_BYTES {
            return false;
        }
        // Before it can be taken out.
        self.bytes.fetch_add(bytes, Relaxed);
        let is_in = self.parcels.try_send(parcel).is_ok();
        if !is_in {
            self.bytes.fetch_sub(bytes, Relaxed);
        }
        is_in
    }
}

impl Waiting {
    async fn next(&mut self) -> Option<Arc<Parcel>> {
        let parcel = self.parcels.recv().await?;
        self.bytes.fetch_sub(parcel.bytes, Relaxed);
        Some(parcel)
    }

    fn try_next(&mut self) -> Option<Arc<Parcel>> {
        let parcel = self.parcels.try_recv().ok()?;
        self.bytes.fetch_sub(parcel.bytes, Relaxed);
        Some(parcel)
    }
}

struct Way {
    node: NodeId,
    key: SecretKey,
    network_id: NetworkId,
    network: NetworkHandle,
    parcels: Waiting,
}

impl Way {
    async fn run(mut self) {
        // What did not go with the last bundle.
        let mut over = None;
        while let Some(first) = match over.take() {
            Some(parcel) => Some(parcel),
            None => self.parcels.next().await,
        } {
            let forwarded = first.forwarded;
            let (parcels, left_over) = gather(first, || self.parcels.try_next());
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
    while requests < MAX_BUNDLE_REQUESTS {
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
        let requests: Vec<_> = (0..2 * MAX_BUNDLE_REQUESTS + 1).map(|_| request(10)).collect();
        let lens: Vec<_> = Parcel::of(&requests, false).iter().map(|parcel| parcel.requests.len()).collect();
        assert_eq!(lens, [MAX_BUNDLE_REQUESTS, MAX_BUNDLE_REQUESTS, 1]);
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
    fn what_waits_for_a_replica_that_stalls_is_bounded_in_bytes() {
        let large = || {
            let bytes = 5 * MAX_REQUEST_BYTES / 8;
            Arc::new(Parcel { requests: Vec::new(), bytes, forwarded: false, signed: OnceLock::new() })
        };
        let (queue, mut waiting) = queue();
        let taken = (0..QUEUE).filter(|_| queue.put(large())).count();
        assert_eq!(taken, 3, "of 5 MiB each, within 16 MiB");
        assert!(waiting.try_next().is_some() && queue.put(large()) && !queue.put(large()));
        while waiting.try_next().is_some() {}
        assert_eq!(queue.bytes.load(Relaxed), 0);
        let small = (0..2 * QUEUE).filter(|_| queue.put(parcel(1, false))).count();
        assert_eq!(small, QUEUE);
        while waiting.try_next().is_some() {}
        assert_eq!(queue.bytes.load(Relaxed), 0, "what did not get in is not counted");
    }

    #[test]
    fn forwarded_requests_go_in_bundles_of_their_own() {
        let mut waiting = vec![parcel(1, false), parcel(1, true), parcel(1, true)];
        let (bundle, over) = gather(parcel(1, true), || waiting.pop());
        assert_eq!((bundle.len(), over.map(|parcel| parcel.forwarded)), (3, Some(false)));
    }
}
