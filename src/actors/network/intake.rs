//! The door for bundles of requests.
//!
//! A request is checked at the cost of this node, 40 µs each, and whoever is a replica may hand over
//! hundreds at once. The workers that check them are also those of the clients' own messages. So of each
//! replica one bundle at a time is worked on: a faulty one has one worker at most, and another's bundles, and
//! this node's clients, never wait behind more than one of its bundles. A correct node hands over one at a
//! time anyway. And no correct node hands over a request that is not valid: who does is refused for a
//! while, before any work. What of it is ordered by others is fetched as always.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::actors::verifier::RequestVerifier;
use crate::clock::SharedClock;
use crate::ledger::{UncheckedRequest, VerifiedRequest};
use crate::pbft::Source;
use crate::types::NodeId;

/// For so long nothing is taken from who handed over an invalid request: as long as a proof that does not
/// hold costs a replica.
const REFUSED_FOR: Duration = Duration::from_secs(60);

/// One door for each replica.
#[derive(Debug)]
pub struct Intake(BTreeMap<NodeId, Door>);

#[derive(Debug)]
struct Door {
    place: Arc<Semaphore>,
    /// Until when nothing is taken.
    refused: Mutex<Duration>,
}

impl Intake {
    /// Doors for `replicas`.
    pub fn new<'a>(replicas: impl IntoIterator<Item = &'a NodeId>) -> Self {
        let door = |_| Door { place: Arc::new(Semaphore::new(1)), refused: Mutex::default() };
        Self(replicas.into_iter().map(|node| (*node, door(node))).collect())
    }

    /// Waits until nothing else of `from` is worked on; nothing if it is no replica, or refused now. The
    /// network bounds how many requests of one peer wait for their answer.
    pub async fn enter(&self, from: &NodeId, clock: &SharedClock) -> Option<OwnedSemaphorePermit> {
        let door = self.0.get(from)?;
        let place = Arc::clone(&door.place).acquire_owned().await.ok()?;
        // What waited behind the bundle for which it is refused is refused as well.
        let is_refused = clock.monotonic() < *door.refused();
        (!is_refused).then_some(place)
    }

    /// The valid ones of the requests that `from` hands over and may hand over.
    pub async fn check(
        &self,
        from: &NodeId,
        source: Source,
        mut requests: Vec<UncheckedRequest>,
        verifier: &RequestVerifier,
        clock: &SharedClock,
    ) -> Vec<Arc<VerifiedRequest>> {
        // Others' limits in the pool are not this node's to use up: these it only forwards.
        requests.retain(|request| source != Source::Bundle || request.node() == *from);
        let asked = requests.len();
        let valid = verifier.verify(requests).await;
        let invalid = asked - valid.len();
        if let Some(door) = self.0.get(from).filter(|_| invalid > 0) {
            tracing::warn!(%from, invalid, "a bundle with invalid requests; its sender is refused for a minute");
            *door.refused() = clock.monotonic() + REFUSED_FOR;
        }
        valid
    }
}

impl Door {
    fn refused(&self) -> MutexGuard<'_, Duration> {
        // A time is whole between any two calls.
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use super::*;
    use crate::actors::verifier::Workers;
    use crate::clock::Clock;
    use crate::crypto::SecretKey;
    use crate::ledger::{AdminAction, AdminOperation, Request};
    use crate::types::{ClientId, MessageSeq, NetworkId, Timestamp};

    const NETWORK: NetworkId = NetworkId([1; 32]);

    /// Seconds that a test counts.
    struct Seconds(AtomicU64);

    impl Clock for Seconds {
        fn now(&self) -> Timestamp {
            Timestamp(self.0.load(Relaxed) * 1000)
        }

        fn monotonic(&self) -> Duration {
            Duration::from_secs(self.0.load(Relaxed))
        }
    }

    fn node(seed: u8) -> NodeId {
        SecretKey::from_seed(&[seed; 32]).node_id()
    }

    fn request(node: NodeId, is_valid: bool) -> UncheckedRequest {
        let client = ClientId::new("a/b").unwrap();
        let action = AdminAction::RevokeClient { client, last_seq: MessageSeq(1), reason: "lost".into() };
        let mut operation = AdminOperation::sign(NETWORK, &SecretKey::from_seed(&[9; 32]), 1, action);
        operation.signature.0[40] ^= u8::from(!is_valid);
        UncheckedRequest::new(Request::Admin { node, operation })
    }

    fn parts() -> (Intake, RequestVerifier, Arc<Seconds>, SharedClock) {
        let seconds = Arc::new(Seconds(AtomicU64::new(1)));
        let clock: SharedClock = Arc::clone(&seconds) as SharedClock;
        let intake = Intake::new(&[node(1), node(2)]);
        (intake, RequestVerifier::new(NETWORK, Workers::new()), seconds, clock)
    }

    #[tokio::test]
    async fn of_each_replica_one_bundle_at_a_time_is_worked_on_and_strangers_have_no_door() {
        let (intake, _, _, clock) = parts();
        let (first, second) = (node(1), node(2));
        let place = intake.enter(&first, &clock).await.unwrap();
        let mut next = std::pin::pin!(intake.enter(&first, &clock));
        assert!(futures::poll!(&mut next).is_pending());
        assert!(intake.enter(&second, &clock).await.is_some(), "another's door is its own");
        drop(place);
        assert!(next.await.is_some());
        assert!(intake.enter(&node(3), &clock).await.is_none());
    }

    #[tokio::test]
    async fn who_hands_over_an_invalid_request_is_refused_for_a_minute_with_what_waited_behind_it() {
        let (intake, verifier, seconds, clock) = parts();
        let (faulty, other) = (node(1), node(2));
        for source in [Source::Bundle, Source::Forwarded { by: faulty }] {
            let place = intake.enter(&faulty, &clock).await.unwrap();
            let mut waiting = std::pin::pin!(intake.enter(&faulty, &clock));
            assert!(futures::poll!(&mut waiting).is_pending());
            let requests = vec![request(faulty, false), request(faulty, true)];
            assert_eq!(intake.check(&faulty, source, requests, &verifier, &clock).await.len(), 1);
            drop(place);
            assert!(waiting.await.is_none() && intake.enter(&faulty, &clock).await.is_none());
            assert!(intake.enter(&other, &clock).await.is_some());
            seconds.0.fetch_add(61, Relaxed);
            assert!(intake.enter(&faulty, &clock).await.is_some());
        }
    }

    #[tokio::test]
    async fn requests_of_others_in_a_bundle_are_not_even_checked() {
        let (intake, verifier, _, clock) = parts();
        let (from, other) = (node(1), node(2));
        let requests = || vec![request(other, false), request(from, true)];
        let taken = intake.check(&from, Source::Bundle, requests(), &verifier, &clock).await;
        assert_eq!(taken.iter().map(|request| request.node()).collect::<Vec<_>>(), [from]);
        assert!(intake.enter(&from, &clock).await.is_some(), "nobody found the invalid one");
    }
}
