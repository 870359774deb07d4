//! A request comes in (1999, section 4.1): into the pool, if its node has room there.

use std::sync::Arc;

use crate::ledger::VerifiedRequest;
use crate::pbft::io::{Now, Output, Rejected, Source};
use crate::pbft::pool::Lane;
use crate::pbft::replica::Replica;
use crate::pbft::settings::MAX_BATCH_BYTES;
use crate::pbft::suspicion::FORWARDED_AT_A_TIME;
use crate::planted::{Bug, planted};
use crate::types::{Hash, NodeId};

/// Of how many proposals that are still to be judged the bodies are fetched at a time: enough to
/// hide the round trips, few enough to bound what a faulty primary makes others fetch.
pub(super) const FETCH_AHEAD: u64 = 8;

/// Executed requests that may be ordered once more at a time for one node that forwarded them; more are
/// refused, and forwarded again.
pub(super) const MAX_REVIVED: usize = 64;

/// Requests pending at a time that one node forwarded, and their bytes unless it is one: two of its
/// effects' worth. More are refused, and forwarded again.
pub(super) const MAX_FORWARDED: (usize, usize) = (2 * FORWARDED_AT_A_TIME, MAX_BATCH_BYTES);

impl Replica {
    pub(super) fn on_requests(
        &mut self,
        now: Now,
        requests: Vec<Arc<VerifiedRequest>>,
        source: Source,
        out: &mut Output,
    ) -> Result<(), Rejected> {
        for request in requests {
            let digest = request.digest();
            if let Err(rejected) = self.on_request(now, request, source) {
                out.refused.push((digest, rejected));
            }
        }
        out.refused.first().map_or(Ok(()), |(_, rejected)| Err(*rejected))
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
        if self.pool.was_executed(&digest) && self.try_revive(now, &request, source) {
            return Ok(());
        }
        if self.pool.knows(&digest) && !wanted {
            return self.on_known_request(now, &request, source);
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
        if source == Source::Admitted {
            self.send_to_others(now, digest);
        }
        Ok(())
    }

    /// A request that was executed is ordered once more for who cannot know it: that tells everybody, and
    /// changes nothing. Who forwards one fetched the block, which does not name the requests that it rests
    /// on. And a message may come to this node after somebody else had its request ordered in this node's
    /// name: the result went by unnoticed.
    fn try_revive(&mut self, now: Now, request: &Arc<VerifiedRequest>, source: Source) -> bool {
        let (digest, bytes) = (request.digest(), request.bytes().len());
        let (by, lane, has_room) = match source {
            Source::Forwarded { by } if self.is_primary() => {
                let has_room = self.has_room_forwarded(by, bytes) && self.pool.revived_for(by) < MAX_REVIVED;
                (by, Lane::ForwardedBy(by), has_room)
            }
            Source::Admitted if self.pool.was_executed_unnoticed(&digest) => {
                (self.me, Lane::Of(self.me), self.has_room_for(&self.me, bytes))
            }
            _ => return false,
        };
        if !has_room || self.pool.get(&digest).is_some() {
            return false;
        }
        self.pool.revive(Arc::clone(request), by, lane, now.monotonic);
        if source == Source::Admitted {
            self.send_to_others(now, digest);
        }
        true
    }

    /// A request that is here already comes from its own node now, or that node still waits for it.
    fn on_known_request(
        &mut self,
        now: Now,
        request: &Arc<VerifiedRequest>,
        source: Source,
    ) -> Result<(), Rejected> {
        let digest = request.digest();
        self.pool.heard_again(&digest, now.monotonic);
        let own = matches!(source, Source::Bundle | Source::Admitted);
        if own && self.pool.is_forwarded(&digest) && self.has_room_for(&request.node(), request.bytes().len())
        {
            self.pool.adopt(&digest);
        }
        // Somebody else had it ordered or forwarded it in this node's name: it is this node's from now on.
        let open = self.pool.get(&digest).is_some() && !self.pool.was_executed(&digest);
        if source == Source::Admitted && open && !self.pool.is_admitted(&digest) {
            self.send_to_others(now, digest);
            return Ok(());
        }
        Err(Rejected::Duplicate)
    }

    /// This node admitted the request, and waits for it; others shall have it.
    fn send_to_others(&mut self, now: Now, digest: Hash) {
        self.pool.admit(&digest);
        if self.settings.replicas.n() > 1 {
            self.outbox.push(digest, now.monotonic, &self.settings);
        }
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
