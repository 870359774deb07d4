//! A request comes in (1999, section 4.1): into the pool, if its node has room there.

use std::sync::Arc;

use crate::ledger::VerifiedRequest;
use crate::pbft::io::{Now, Rejected, Source};
use crate::pbft::pool::Lane;
use crate::pbft::replica::Replica;
use crate::pbft::settings::MAX_BATCH_BYTES;
use crate::planted::{Bug, planted};
use crate::types::{Hash, NodeId};

/// Of how many proposals that are still to be judged the bodies are fetched at a time: enough to
/// hide the round trips, few enough to bound what a faulty primary makes others fetch.
pub(super) const FETCH_AHEAD: u64 = 8;

/// Executed requests that may be ordered once more at a time for one node that forwarded them; more are
/// refused, and forwarded again.
const MAX_REVIVED: usize = 64;

/// Requests pending at a time that one node forwarded, and their bytes unless it is one: two of its
/// effects' worth. More are refused, and forwarded again.
const MAX_FORWARDED: (usize, usize) = (128, MAX_BATCH_BYTES);

impl Replica {
    pub(super) fn on_requests(
        &mut self,
        now: Now,
        requests: Vec<Arc<VerifiedRequest>>,
        source: Source,
    ) -> Result<(), Rejected> {
        let taken = requests.into_iter().map(|request| self.on_request(now, request, source));
        taken.fold(Ok(()), Result::and)
    }

    pub(super) fn on_request(
        &mut self,
        now: Now,
        request: Arc<VerifiedRequest>,
        source: Source,
    ) -> Result<(), Rejected> {
        let digest = request.digest();
        let wanted = self.is_wanted(&digest);
        let others = matches!(source, Source::Fetched | Source::Forwarded { .. });
        if !others && (request.node() == self.me) != (source == Source::Admitted) {
            return Err(Rejected::WrongNode);
        }
        // Who forwards a request that was executed fetched the block, and cannot know which requests
        // it rests on: ordering it once more tells everybody, and changes nothing.
        if let Source::Forwarded { by } = source
            && self.pool.was_executed(&digest)
            && self.is_primary()
        {
            let revived = self.pool.revive(request, by, now.monotonic, MAX_REVIVED);
            return if revived { Ok(()) } else { Err(Rejected::Duplicate) };
        }
        if self.pool.knows(&digest) && !wanted {
            self.pool.heard_again(&digest, now.monotonic);
            let adopted = !others && self.pool.is_forwarded(&digest);
            if adopted && self.has_room_for(&request.node(), request.bytes().len()) {
                self.pool.adopt(&digest);
            }
            return Err(Rejected::Duplicate);
        }
        // Nobody else has a use for them, and they would take the room of the node that they name.
        if matches!(source, Source::Forwarded { .. }) && !wanted && !self.is_primary() {
            return Err(Rejected::NotPrimary);
        }
        // What an open proposal lacks is taken whatever its node has pending: it is ordered next.
        if !wanted {
            if source == Source::Fetched {
                return Err(Rejected::NotWanted);
            }
            if !self.settings.replicas.contains(&request.node()) {
                return Err(Rejected::WrongNode);
            }
            let has_room = match source {
                Source::Forwarded { by } => self.has_room_forwarded(by, request.bytes().len()),
                _ => self.has_room_for(&request.node(), request.bytes().len()),
            };
            if !has_room {
                return Err(Rejected::PoolFull);
            }
        }
        let lane = match source {
            Source::Forwarded { by } if !wanted => Lane::ForwardedBy(by),
            _ => Lane::Of(request.node()),
        };
        self.pool.insert(request, lane, now.monotonic);
        for (_, slot) in self.log.above_mut(self.accepted) {
            slot.missing.remove(&digest);
        }
        if source == Source::Admitted && self.settings.replicas.n() > 1 {
            self.outbox.push(digest, now.monotonic, &self.settings);
        }
        Ok(())
    }

    fn is_wanted(&self, digest: &Hash) -> bool {
        let last = self.accepted.0 + FETCH_AHEAD;
        let mut judged_next = self.log.above(self.accepted).take_while(|(sequence, _)| sequence.0 <= last);
        judged_next.any(|(_, slot)| slot.missing.contains(digest))
    }

    pub(super) fn has_room_for(&self, node: &NodeId, bytes: usize) -> bool {
        let (count, pending_bytes) = self.pool.pending_in(&Lane::Of(*node));
        if planted(Bug::PoolNotBounded) {
            return true;
        }
        count < self.settings.pool_max_requests && pending_bytes + bytes <= self.settings.pool_max_bytes
    }

    fn has_room_forwarded(&self, by: NodeId, bytes: usize) -> bool {
        let (count, pending_bytes) = self.pool.pending_in(&Lane::ForwardedBy(by));
        let (most, most_bytes) = MAX_FORWARDED;
        count < most && (count == 0 || pending_bytes + bytes <= most_bytes)
    }
}
