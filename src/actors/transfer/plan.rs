//! The plan of a transfer: what to ask whom next, what has come, what can be applied.
//!
//! ```text
//!  applied        taken           arrived        asked       missing
//! ──────────┤ being applied ├─■■■■■■──■■■──▒▒▒▒▒▒▒──▒▒▒▒···········│ as far as peers say to have
//! ```
//!
//! A range of heights is missing while it has neither arrived nor is asked of somebody who still
//! has time to answer. The lowest missing range goes to the least busy peer that may have it; what
//! an answer leaves out is missing again. A block with a quorum's certificate is right whoever sent
//! it, so blocks may arrive in any order, are checked outside before they come here, and leave in order.
//!
//! Nobody is waited for: who does not answer in time keeps the request counted against it, and the
//! range goes to another. Each failure makes the next pause of a peer longer; who sent something wrong is
//! left alone for half a minute and more. Bytes are bounded: what has arrived and, for each
//! request on its way, the longest answer.
//!
//! Peers say how high they are with each answer. One may lie: the target is the (f+1)-th highest,
//! and for what lies above it only peers that did nothing wrong are asked.
//!
//! Pure: time is an argument, and blocks are whatever `B` is.

use std::collections::BTreeMap;
use std::time::Duration;

use super::peer::{Peer, mean};
use super::throttle::Throttle;
use crate::types::{Height, NodeId};

/// Blocks of one request before any size is known: few, so that everybody is asked and says how high it is.
const FIRST_RANGE_BLOCKS: u64 = 8;

/// An answer should have about so many bytes: enough to make round trips cheap, and far below the longest.
const RANGE_BYTES: u64 = 4 << 20;

/// The shortest and the longest time that a peer has for an answer before it counts as late.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));

/// The same, before any answer came.
const FIRST_PATIENCE: Duration = Duration::from_secs(3);

/// The limits that a plan keeps.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Blocks of one request at most.
    pub range_blocks: u64,
    /// How far above the last applied block others are asked for.
    pub ahead_blocks: u64,
    /// Requests to one peer at once.
    pub requests_per_peer: usize,
    /// The longest answer there is.
    pub answer_bytes: u64,
    /// Bytes of blocks that are not applied, together with the longest answers of all requests on
    /// their way; at least [`Limits::least_buffer`], whatever is said here.
    pub buffered_bytes: u64,
    /// Bytes a second.
    pub bytes_per_s: u64,
    /// So many peers may lie.
    pub faulty: usize,
}

impl Limits {
    /// Bytes without which `faulty` peers that take requests and never answer could keep all room until
    /// the network gives those up: what they can hold, and two answers of others.
    pub const fn least_buffer(&self) -> u64 {
        (self.faulty as u64 * self.requests_per_peer as u64 + 2) * self.answer_bytes
    }
}

/// A request to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// Names it in [`Plan::answered`].
    pub id: u64,
    /// To whom.
    pub peer: NodeId,
    /// The first height.
    pub from: Height,
    /// How many blocks.
    pub count: u64,
}

/// What became of an [`Ask`].
#[derive(Debug)]
pub enum Answer<B> {
    /// Checked blocks with their sizes, ascending without gaps from the height asked for.
    Blocks {
        /// How high the peer says to be.
        head: Height,
        /// The blocks; maybe fewer than asked for, or none.
        blocks: Vec<(B, u64)>,
    },
    /// The peer has no time now.
    Busy,
    /// No connection, no answer, an error.
    Failed,
    /// Something that no correct peer sends.
    Bad,
}

/// A request on its way.
#[derive(Debug)]
struct Asked {
    ask: Ask,
    at: Duration,
    /// The peer took too long: its range is asked of others, and used from whoever answers first.
    late: bool,
}

impl Asked {
    const fn last(&self) -> u64 {
        self.ask.from.0 + self.ask.count - 1
    }
}

/// See the module.
#[derive(Debug)]
pub struct Plan<B> {
    limits: Limits,
    peers: BTreeMap<NodeId, Peer>,
    asked: BTreeMap<u64, Asked>,
    next_id: u64,
    /// The last block that the ledger has.
    applied: Height,
    /// The last block that was handed out to be applied.
    taken: Height,
    /// Bytes of the blocks between.
    taken_bytes: u64,
    arrived: BTreeMap<Height, (B, u64)>,
    arrived_bytes: u64,
    /// As far as a peer can be that has not said how high it is.
    bound: Height,
    /// A peer was asked for the block after the last applied one, and has none.
    at_the_top: bool,
    throttle: Throttle,
    /// Mean size of blocks; none before the first.
    block_bytes: Option<u64>,
    /// Mean time of an answer.
    answer_time: Option<Duration>,
}

impl<B> Plan<B> {
    /// A plan that begins above `applied`, with blocks up to `bound` at most as far as is known.
    pub fn new(
        limits: Limits,
        peers: impl IntoIterator<Item = NodeId>,
        applied: Height,
        bound: Height,
        now: Duration,
    ) -> Self {
        let peers = peers.into_iter().map(|node| (node, Peer::default())).collect();
        let buffered_bytes = limits.buffered_bytes.max(limits.least_buffer());
        Self {
            limits: Limits { buffered_bytes, ..limits },
            peers,
            asked: BTreeMap::new(),
            next_id: 0,
            applied,
            taken: applied,
            taken_bytes: 0,
            arrived: BTreeMap::new(),
            arrived_bytes: 0,
            bound,
            at_the_top: false,
            throttle: Throttle::new(limits.bytes_per_s, now),
            block_bytes: None,
            answer_time: None,
        }
    }

    /// The last block that the ledger has.
    pub const fn height(&self) -> Height {
        self.applied
    }

    /// The height to come to: the (f+1)-th highest that peers say to have, so that a correct one is not below
    /// it. Who has not said may be as high as anybody can be.
    pub fn target(&self) -> Height {
        let mut heads: Vec<Height> =
            self.peers.values().map(|peer| peer.head.unwrap_or(self.bound)).collect();
        heads.sort_unstable_by(|a, b| b.cmp(a));
        let target = heads.get(self.limits.faulty).or(heads.last());
        target.copied().unwrap_or_default().max(self.applied)
    }

    /// Whether enough peers have said how high they are.
    pub fn knows_target(&self) -> bool {
        let known = self.peers.values().filter(|peer| peer.head.is_some()).count();
        known > self.limits.faulty.min(self.peers.len().saturating_sub(1))
    }

    /// Peers that are not left alone at the moment.
    pub fn usable_peers(&self, now: Duration) -> usize {
        self.peers.values().filter(|peer| peer.not_before <= now).count()
    }

    /// Bytes of what has arrived and is not applied, and of the longest answers to what was asked.
    pub fn reserved_bytes(&self) -> u64 {
        self.arrived_bytes + self.taken_bytes + self.asked.len() as u64 * self.limits.answer_bytes
    }

    /// Nothing is left to be had: all that arrived is applied, as high as the target, and a peer
    /// that was asked for more has none.
    pub fn is_done(&self) -> bool {
        let waits = self.asked.values().any(|asked| !asked.late);
        let applies = self.taken > self.applied || self.arrived.contains_key(&self.taken.next());
        !waits && !applies && self.at_the_top && self.applied >= self.target()
    }

    /// At least one correct replica is not below `bound`, as was heard.
    pub fn raise_bound(&mut self, bound: Height) {
        if bound > self.bound {
            self.bound = bound;
            self.at_the_top = false;
        }
    }

    /// The ledger has come to `height`, by the blocks handed out or without them.
    pub fn reached(&mut self, height: Height) {
        if height > self.applied {
            self.applied = height;
            self.at_the_top = false;
        }
        if self.applied >= self.taken {
            self.taken = self.applied;
            self.taken_bytes = 0;
            let above = self.arrived.split_off(&self.applied.next());
            self.arrived = above;
            self.arrived_bytes = self.arrived.values().map(|(_, bytes)| bytes).sum();
        }
    }

    /// The ledger did not take what was handed out: everything above the last block is fetched again.
    pub fn refused(&mut self) {
        self.arrived.clear();
        (self.taken, self.taken_bytes, self.arrived_bytes) = (self.applied, 0, 0);
    }

    /// Looks who is late.
    pub fn on_time(&mut self, now: Duration) -> usize {
        let patience = self.patience();
        let mut late = 0;
        for asked in self.asked.values_mut().filter(|asked| !asked.late && now >= asked.at + patience) {
            asked.late = true;
            late += 1;
            if let Some(peer) = self.peers.get_mut(&asked.ask.peer) {
                peer.failed(now);
            }
        }
        late
    }

    fn patience(&self) -> Duration {
        let (least, most) = PATIENCE;
        self.answer_time.map_or(FIRST_PATIENCE, |mean| (4 * mean).clamp(least, most))
    }

    /// The next request to send, if there is room for one and somebody to ask. Ask until there is none.
    pub fn next_ask(&mut self, now: Duration) -> Option<Ask> {
        if !self.throttle.is_open(now) {
            return None;
        }
        let lowest = self.taken.0 + 1;
        for (from, last) in self.missing() {
            let Some(peer) = self.best_peer(now, Height(from)) else { continue };
            // One place is kept for the lowest range: without that nothing can be applied.
            let places = if from == lowest { 1 } else { 2 };
            if self.reserved_bytes() + places * self.limits.answer_bytes > self.limits.buffered_bytes {
                return None;
            }
            let head = self.peers.get(&peer).and_then(|peer| peer.head).unwrap_or(self.bound);
            return Some(self.ask(now, peer, from, last.min(head.0)));
        }
        self.probe(now)
    }

    /// Everything known is applied: somebody may have more by now.
    fn probe(&mut self, now: Duration) -> Option<Ask> {
        let idle = self.asked.values().all(|asked| asked.late) && self.taken == self.applied;
        let has_room = self.reserved_bytes() + self.limits.answer_bytes <= self.limits.buffered_bytes;
        if !idle || !has_room || self.at_the_top || self.applied < self.target() {
            return None;
        }
        let next = self.applied.next();
        let willing = |(node, peer): &(&NodeId, &Peer)| peer.is_good() && self.may_ask(node, peer, now, next);
        let Some((peer, _)) = self.peers.iter().filter(willing).max_by_key(|(_, peer)| peer.head) else {
            // Nobody who did nothing wrong is left: if there is more, consensus will say so.
            self.at_the_top = true;
            return None;
        };
        let (peer, count) = (*peer, self.range_blocks());
        Some(self.ask(now, peer, next.0, next.0 + count - 1))
    }

    fn ask(&mut self, now: Duration, peer: NodeId, from: u64, last: u64) -> Ask {
        let count = (last - from + 1).min(self.range_blocks());
        let ask = Ask { id: self.next_id, peer, from: Height(from), count };
        self.next_id += 1;
        self.asked.insert(ask.id, Asked { ask, at: now, late: false });
        ask
    }

    fn range_blocks(&self) -> u64 {
        let fitting = self.block_bytes.map_or(FIRST_RANGE_BLOCKS, |bytes| RANGE_BYTES / bytes.max(1));
        fitting.clamp(1, self.limits.range_blocks)
    }

    /// The missing ranges, ascending: first and last height.
    fn missing(&self) -> Vec<(u64, u64)> {
        let heads =
            self.peers.values().filter(|peer| !peer.is_dropped()).map(|peer| peer.head.unwrap_or(self.bound));
        let top =
            heads.max().unwrap_or_default().0.min(self.taken.0.saturating_add(self.limits.ahead_blocks));
        let waited_for = self.asked.values().filter(|asked| !asked.late);
        let waited_for = waited_for.map(|asked| (asked.ask.from.0, asked.last()));
        let mut there: Vec<(u64, u64)> = self.arrived.keys().map(|height| (height.0, height.0)).collect();
        there.extend(waited_for);
        there.sort_unstable();
        let (mut missing, mut next) = (Vec::new(), self.taken.0 + 1);
        for (from, last) in there {
            if from > next && next <= top {
                missing.push((next, top.min(from - 1)));
            }
            next = next.max(last + 1);
        }
        if next <= top {
            missing.push((next, top));
        }
        missing
    }

    /// Who should be asked for a height: of those who may have it the least busy, then who failed least.
    fn best_peer(&self, now: Duration, from: Height) -> Option<NodeId> {
        let target = self.target();
        let has = |peer: &Peer| peer.head.unwrap_or(self.bound) >= from && (from <= target || peer.is_good());
        let willing =
            self.peers.iter().filter(|(node, peer)| has(peer) && self.may_ask(node, peer, now, from));
        let order = |(node, peer): &(&NodeId, &Peer)| (self.in_flight(node), peer.failures, peer.answer_time);
        willing.min_by_key(order).map(|(node, _)| *node)
    }

    /// Whether a peer has a place left, and does not owe an answer for this height.
    fn may_ask(&self, node: &NodeId, peer: &Peer, now: Duration, from: Height) -> bool {
        let owes =
            |asked: &Asked| asked.ask.peer == *node && (asked.ask.from.0..=asked.last()).contains(&from.0);
        let places = peer.places(self.limits.requests_per_peer);
        peer.not_before <= now && self.in_flight(node) < places && !self.asked.values().any(owes)
    }

    fn in_flight(&self, node: &NodeId) -> usize {
        self.asked.values().filter(|asked| asked.ask.peer == *node).count()
    }

    /// An answer came, or none will.
    pub fn answered(&mut self, id: u64, answer: Answer<B>, now: Duration) {
        let Some(Asked { ask, at, .. }) = self.asked.remove(&id) else { return };
        let Some(peer) = self.peers.get_mut(&ask.peer) else { return };
        match answer {
            Answer::Busy => peer.busy(now),
            Answer::Failed => peer.failed(now),
            Answer::Bad => peer.lied(now),
            Answer::Blocks { head, blocks } if blocks.is_empty() => {
                let promised = peer.head.replace(head).is_some_and(|before| before >= ask.from);
                if promised || head >= ask.from {
                    peer.failed(now);
                } else if ask.from == self.applied.next() {
                    self.at_the_top = true;
                }
            }
            Answer::Blocks { head, blocks } => {
                let took = now.saturating_sub(at);
                peer.answered(head, took);
                self.answer_time = Some(mean(self.answer_time, took));
                self.arrive(ask.from, blocks);
            }
        }
    }

    fn arrive(&mut self, from: Height, blocks: Vec<(B, u64)>) {
        let total: u64 = blocks.iter().map(|(_, bytes)| bytes).sum();
        let size = total / (blocks.len() as u64).max(1);
        self.block_bytes = Some(self.block_bytes.map_or(size, |before| (3 * before + size) / 4));
        self.throttle.charge(total);
        for (height, (block, bytes)) in (from.0..).map(Height).zip(blocks) {
            if height > self.taken && !self.arrived.contains_key(&height) {
                self.arrived.insert(height, (block, bytes));
                self.arrived_bytes += bytes;
            }
        }
    }

    /// The next blocks to apply, in order, at least one if it is there; none while some are being
    /// applied.
    pub fn take(&mut self, most_blocks: usize, most_bytes: u64) -> Vec<B> {
        let mut blocks = Vec::new();
        if self.taken > self.applied {
            return blocks;
        }
        while let Some(entry) = self.arrived.first_entry() {
            let fits = blocks.is_empty() || self.taken_bytes + entry.get().1 <= most_bytes;
            if *entry.key() != self.taken.next() || blocks.len() >= most_blocks || !fits {
                break;
            }
            let (block, bytes) = entry.remove();
            self.arrived_bytes -= bytes;
            self.taken_bytes += bytes;
            self.taken = self.taken.next();
            blocks.push(block);
        }
        blocks
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
