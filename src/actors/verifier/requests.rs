//! The workers that check signatures, and the checks of other nodes' requests.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::Semaphore;

use crate::crypto::{CryptoError, VerifyingKey};
use crate::ledger::{UncheckedRequest, VerifiedRequest};
use crate::metrics::StageTime;
use crate::types::{Hash, NetworkId, PublicKey};

/// Bytes that are hashed, unpacked and parsed while other tasks of the thread wait: a tenth of a
/// millisecond.
pub(super) const LIGHT_BYTES: usize = 16 * 1024;

/// Signature checks for which they wait: half a millisecond.
const LIGHT_CHECKS: usize = 12;

/// A bounded pool of workers for signature checks.
#[derive(Debug, Clone)]
pub struct Workers(Arc<Semaphore>);

impl Workers {
    /// As many as there are cores, and one to fill the gaps.
    pub fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        Self(Arc::new(Semaphore::new(cores + 1)))
    }

    /// Runs `work` on a worker, waiting for one; nothing if the node is stopping.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let place = Arc::clone(&self.0).acquire_owned().await.ok()?;
        let done = tokio::task::spawn_blocking(move || {
            let result = work();
            drop(place);
            result
        });
        done.await.ok()
    }

    /// Runs `work` that takes a fraction of a millisecond, such as [`LIGHT_CHECKS`] checks of
    /// [`LIGHT_BYTES`] in all, on the calling task, with a place among the workers.
    async fn run_light<T>(&self, work: impl FnOnce() -> T) -> Option<T> {
        let _place = self.0.acquire().await.ok()?;
        Some(work())
    }

    /// One or the other.
    pub(super) async fn run_here_or_there<T: Send + 'static>(
        &self,
        is_light: bool,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        if is_light { self.run_light(work).await } else { self.run(work).await }
    }
}

impl Default for Workers {
    fn default() -> Self {
        Self::new()
    }
}

/// Keys of clients that are remembered, about 250 bytes each. A node that names keys without end
/// empties the memory, which costs what parsing costs, a tenth of a signature check.
const MAX_KEYS: usize = 16_384;

/// Keys that were parsed for requests.
#[derive(Debug, Clone, Default)]
struct ParsedKeys(Arc<Mutex<HashMap<PublicKey, VerifyingKey>>>);

impl ParsedKeys {
    fn parse(&self, key: &PublicKey) -> Result<VerifyingKey, CryptoError> {
        if let Some(known) = self.locked().get(key) {
            return Ok(*known);
        }
        let parsed = VerifyingKey::parse_any_order(key)?;
        let mut keys = self.locked();
        if keys.len() >= MAX_KEYS {
            keys.clear();
        }
        keys.insert(*key, parsed);
        Ok(parsed)
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<PublicKey, VerifyingKey>> {
        // A map is whole between any two calls.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Requests that are remembered, about 400 bytes each once they are executed: those of a full pool.
const MAX_KNOWN: usize = 65_536;

/// Requests that were found valid, for as long as somebody has them. Under load a node sends its requests
/// again and again until they are ordered, and to check each copy would make the load several times as high.
/// The digest is that of all bytes, signature and key among them, so a copy has the same verdict.
#[derive(Debug, Clone, Default)]
struct Known(Arc<Mutex<HashMap<Hash, Weak<VerifiedRequest>>>>);

impl Known {
    fn get(&self, digest: &Hash) -> Option<Arc<VerifiedRequest>> {
        self.locked().get(digest)?.upgrade()
    }

    fn note(&self, request: &Arc<VerifiedRequest>) {
        let mut known = self.locked();
        if known.len() >= MAX_KNOWN {
            known.retain(|_, request| request.strong_count() > 0);
            if known.len() > MAX_KNOWN / 2 {
                // Then each one more would look through all of them.
                known.clear();
            }
        }
        known.insert(request.digest(), Arc::downgrade(request));
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<Hash, Weak<VerifiedRequest>>> {
        // A map is whole between any two calls.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Checks requests of other nodes.
#[derive(Debug, Clone)]
pub struct RequestVerifier {
    network: NetworkId,
    workers: Workers,
    keys: ParsedKeys,
    known: Known,
    time: StageTime,
}

impl RequestVerifier {
    /// A verifier for one ledger.
    pub fn new(network: NetworkId, workers: Workers) -> Self {
        Self {
            network,
            workers,
            keys: ParsedKeys::default(),
            known: Known::default(),
            time: StageTime::default(),
        }
    }

    /// Counts the time of checks.
    #[must_use]
    pub fn timed(self, time: StageTime) -> Self {
        Self { time, ..self }
    }

    /// The valid ones of `requests`, in order.
    pub async fn verify(&self, requests: Vec<UncheckedRequest>) -> Vec<Arc<VerifiedRequest>> {
        let (network, keys, time) = (self.network, self.keys.clone(), self.time.clone());
        let known = self.known.clone();
        let bytes = || requests.iter().map(|request| request.bytes().len()).sum::<usize>();
        let is_light = requests.len() <= LIGHT_CHECKS && bytes() <= LIGHT_BYTES;
        let check = move || {
            let verified = requests.into_iter().filter_map(|request| {
                if let Some(known) = known.get(&request.digest()) {
                    return Some(known);
                }
                let node = request.node();
                let verified = request
                    .verify_with(&network, |key| keys.parse(key))
                    .inspect_err(|error| tracing::debug!(%node, %error, "invalid request"));
                let verified = Arc::new(verified.ok()?);
                known.note(&verified);
                Some(verified)
            });
            verified.collect()
        };
        self.workers.run_here_or_there(is_light, move || time.of(check)).await.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::SecretKey;
    use crate::ledger::{AdminAction, AdminOperation, Request};
    use crate::types::{ClientId, MessageSeq};

    const NETWORK: NetworkId = NetworkId([1; 32]);

    fn request() -> Request {
        let (key, client) = (SecretKey::from_seed(&[7; 32]), ClientId::new("a/b").unwrap());
        let action = AdminAction::RevokeClient { client, last_seq: MessageSeq(1), reason: "lost".into() };
        Request::Admin { node: key.node_id(), operation: AdminOperation::sign(NETWORK, &key, 1, action) }
    }

    fn unchecked() -> UncheckedRequest {
        UncheckedRequest::new(request())
    }

    #[tokio::test]
    async fn a_copy_of_a_request_that_somebody_has_is_not_checked_again() {
        let verifier = RequestVerifier::new(NETWORK, Workers::new());
        let first = verifier.verify(vec![unchecked()]).await;
        let second = verifier.verify(vec![unchecked(), unchecked()]).await;
        assert_eq!(second.len(), 2);
        assert!(second.iter().all(|copy| Arc::ptr_eq(copy, &first[0])), "the same, not a new one");
        drop((first, second));
        assert_eq!(verifier.verify(vec![unchecked()]).await.len(), 1, "forgotten, and checked anew");
    }

    #[tokio::test]
    async fn a_request_with_another_signature_is_no_copy() {
        let verifier = RequestVerifier::new(NETWORK, Workers::new());
        let held = verifier.verify(vec![unchecked()]).await;
        let Request::Admin { node, mut operation } = request() else { panic!("an operation") };
        operation.signature.0[40] ^= 1;
        let altered = UncheckedRequest::new(Request::Admin { node, operation });
        assert!(verifier.verify(vec![altered]).await.is_empty());
        assert_eq!(held.len(), 1);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let known = Known::default();
        let request = Arc::new(VerifiedRequest::verify(&NETWORK, request()).unwrap());
        let mut held = known.locked();
        for number in 0..MAX_KNOWN as u64 {
            let digest = crate::crypto::blake3_plain(&number.to_be_bytes());
            held.insert(digest, Weak::new());
        }
        drop(held);
        known.note(&request);
        assert_eq!(known.locked().len(), 1, "what nobody has is forgotten first");
        assert!(known.get(&request.digest()).is_some());
    }
}
