//! The request pool: what was asked for and is not yet executed and stable.
//!
//! ```text
//! insert ──▶ pending (a queue for each admitting node) ──order──▶ ordered ──cut──▶ remembered
//!               ▲                                                   │                (digest only)
//!               └──────────────────── release ──────────────────────┘
//! ```
//!
//! A request names its admitting node, and each node has its own queue with its own limits: none
//! can fill the pool or delay the requests of others, since batches take from the queues in turn. Only
//! what came from the admitting node itself stands in its queue: what another one forwards in its name
//! has a short queue of that other one ([`Lane`]).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::ledger::VerifiedRequest;
use crate::types::{Hash, NodeId, SeqNum};

/// Whose queue a pending request stands in, and whose limits it counts against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lane {
    /// Of the node that admitted it.
    Of(NodeId),
    /// Of the node that forwarded it: that the node which it names admitted it is only said.
    ForwardedBy(NodeId),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In the queue of its lane, under its number of arrival.
    Pending,
    /// In the batch of this sequence number.
    Ordered(SeqNum),
}

#[derive(Debug, Clone)]
struct Entry {
    request: Arc<VerifiedRequest>,
    lane: Lane,
    state: State,
    /// When it came first: its number of arrival, and the time.
    arrival: (u64, Duration),
    /// When it came last; decides whether its node has given it up.
    heard: Duration,
    /// Whether this node itself admitted it, and waits for its result.
    admitted: bool,
}

impl Entry {
    const fn is_forwarded(&self) -> bool {
        matches!(self.lane, Lane::ForwardedBy(_))
    }
}

#[derive(Debug, Clone, Default)]
struct Queue {
    order: BTreeMap<u64, (Hash, Duration)>,
    bytes: usize,
}

/// The pool.
#[derive(Debug, Clone, Default)]
pub(super) struct Pool {
    entries: BTreeMap<Hash, Entry>,
    queues: BTreeMap<Lane, Queue>,
    arrivals: u64,
    /// The lane whose request was taken last.
    served: Option<Lane>,
    /// Digests of executed batches, for [`crate::pbft::settings::WINDOW`] sequence numbers.
    /// When they were executed stands with them.
    executed: BTreeMap<SeqNum, (Duration, Vec<Hash>)>,
    /// Each with whether this node had admitted it by then.
    remembered: BTreeMap<Hash, bool>,
    /// Those that were executed and are ordered once more for who does not know it: it forwarded them,
    /// or this node itself admitted them only then.
    revived: BTreeMap<Hash, NodeId>,
}

impl Pool {
    /// Whether the request is here, or was executed not long ago.
    pub(super) fn knows(&self, digest: &Hash) -> bool {
        self.entries.contains_key(digest) || self.remembered.contains_key(digest)
    }

    /// Whether it was executed not long ago.
    pub(super) fn was_executed(&self, digest: &Hash) -> bool {
        self.remembered.contains_key(digest)
    }

    /// Whether it was executed not long ago, and this node did not wait for its result.
    pub(super) fn was_executed_unnoticed(&self, digest: &Hash) -> bool {
        self.remembered.get(digest).is_some_and(|admitted| !admitted)
    }

    /// This node admitted the request, which is here.
    pub(super) fn admit(&mut self, digest: &Hash) {
        if let Some(entry) = self.entries.get_mut(digest) {
            entry.admitted = true;
        }
    }

    pub(super) fn get(&self, digest: &Hash) -> Option<&Arc<VerifiedRequest>> {
        self.entries.get(digest).map(|entry| &entry.request)
    }

    pub(super) fn is_pending(&self, digest: &Hash) -> bool {
        self.entries.get(digest).is_some_and(|entry| entry.state == State::Pending)
    }

    /// Requests and bytes that are pending in `lane`.
    pub(super) fn pending_in(&self, lane: &Lane) -> (usize, usize) {
        self.queues.get(lane).map_or((0, 0), |queue| (queue.order.len(), queue.bytes))
    }

    /// Requests and bytes that are pending of all nodes.
    pub(super) fn pending(&self) -> (usize, usize) {
        let add = |(count, bytes), queue: &Queue| (count + queue.order.len(), bytes + queue.bytes);
        self.queues.values().fold((0, 0), add)
    }

    /// When the oldest pending request came.
    pub(super) fn oldest(&self) -> Option<Duration> {
        self.queues.values().filter_map(|queue| queue.order.values().next()).map(|(_, came)| *came).min()
    }

    /// Takes a request in, at the end of a lane's queue.
    pub(super) fn insert(&mut self, request: Arc<VerifiedRequest>, lane: Lane, now: Duration) {
        let digest = request.digest();
        if self.entries.contains_key(&digest) {
            return;
        }
        let arrival = self.arrive(now);
        self.enqueue(&request, lane, arrival);
        let state = State::Pending;
        self.entries.insert(digest, Entry { request, lane, state, arrival, heard: now, admitted: false });
    }

    /// Whether the request is here because somebody forwarded it.
    pub(super) fn is_forwarded(&self, digest: &Hash) -> bool {
        self.entries.get(digest).is_some_and(Entry::is_forwarded)
    }

    /// A request that somebody forwarded came from its admitting node, too: it waits in the queue of
    /// that one from now on, in the place that it has. If it is ordered, it will wait there should its
    /// batch come to nothing.
    pub(super) fn adopt(&mut self, digest: &Hash) {
        let Some(entry) = self.entries.get_mut(digest) else { return };
        let (request, arrival) = (Arc::clone(&entry.request), entry.arrival);
        let before = std::mem::replace(&mut entry.lane, Lane::Of(request.node()));
        if entry.state == State::Pending {
            self.dequeue(&request, before, arrival.0);
            self.enqueue(&request, Lane::Of(request.node()), arrival);
        }
    }

    fn arrive(&mut self, now: Duration) -> (u64, Duration) {
        self.arrivals += 1;
        (self.arrivals, now)
    }

    fn enqueue(&mut self, request: &VerifiedRequest, lane: Lane, (arrival, came): (u64, Duration)) {
        let queue = self.queues.entry(lane).or_default();
        if queue.order.insert(arrival, (request.digest(), came)).is_none() {
            queue.bytes += request.bytes().len();
        }
    }

    fn dequeue(&mut self, request: &VerifiedRequest, lane: Lane, arrival: u64) {
        let Some(queue) = self.queues.get_mut(&lane) else { return };
        if queue.order.remove(&arrival).is_some() {
            queue.bytes -= request.bytes().len();
        }
        if queue.order.is_empty() {
            self.queues.remove(&lane);
        }
    }

    /// The request came once more: its node still waits for it.
    pub(super) fn heard_again(&mut self, digest: &Hash, now: Duration) {
        if let Some(entry) = self.entries.get_mut(digest) {
            entry.heard = now;
        }
    }

    /// The next batch: one request of each lane in turn, in order of arrival at each, at most so
    /// many and of so many bytes, but at least one. They stay pending. A lane whose next request is too
    /// large for what is left waits, and the next batch begins with it: so a few large requests neither
    /// make the batches of all others small nor are put off.
    pub(super) fn next_batch(&mut self, max_requests: usize, max_bytes: usize) -> Vec<Arc<VerifiedRequest>> {
        let mut queues: VecDeque<_> =
            self.queues.iter().map(|(lane, queue)| (*lane, queue.order.values())).collect();
        let first = queues.partition_point(|(lane, _)| self.served.is_some_and(|served| *lane <= served));
        queues.rotate_left(first);
        let mut batch: Vec<Arc<VerifiedRequest>> = Vec::new();
        let mut bytes = 0;
        let (mut before, mut put_off) = (self.served, false);
        while batch.len() < max_requests {
            let Some((lane, mut queue)) = queues.pop_front() else { break };
            let Some(entry) = queue.next().and_then(|(digest, _)| self.entries.get(digest)) else { continue };
            let len = entry.request.bytes().len();
            if !batch.is_empty() && bytes + len > max_bytes {
                // The lane before the first such one counts as the one that was served last.
                put_off = true;
                continue;
            }
            bytes += len;
            batch.push(Arc::clone(&entry.request));
            if !put_off {
                before = Some(lane);
            }
            queues.push_back((lane, queue));
        }
        self.served = before;
        batch
    }

    /// The requests are in the batch of `sequence` now.
    pub(super) fn order(&mut self, sequence: SeqNum, requests: &[Arc<VerifiedRequest>], now: Duration) {
        for request in requests {
            let digest = request.digest();
            let (lane, arrival, admitted) = match self.entries.get(&digest) {
                Some(entry) => (entry.lane, entry.arrival, entry.admitted),
                None => (Lane::Of(request.node()), self.arrive(now), false),
            };
            self.dequeue(request, lane, arrival.0);
            let (request, state) = (Arc::clone(request), State::Ordered(sequence));
            self.entries.insert(digest, Entry { request, lane, state, arrival, heard: now, admitted });
        }
    }

    /// The batch of `sequence` came to nothing in its view: its requests wait again, each in its old
    /// place. Those that were executed with another batch are done with.
    pub(super) fn reopen(&mut self, sequence: SeqNum, requests: &[Arc<VerifiedRequest>]) {
        for request in requests {
            let digest = request.digest();
            if !self.is_ordered_at(&digest, sequence) {
                continue;
            }
            if self.remembered.contains_key(&digest) && !self.revived.contains_key(&digest) {
                self.entries.remove(&digest);
            } else if let Some(entry) = self.entries.get_mut(&digest) {
                entry.state = State::Pending;
                let (lane, arrival) = (entry.lane, entry.arrival);
                self.enqueue(request, lane, arrival);
            }
        }
    }

    /// Takes in a request that was executed, to be ordered once more for `by`, which does not know it.
    pub(super) fn revive(&mut self, request: Arc<VerifiedRequest>, by: NodeId, lane: Lane, now: Duration) {
        let digest = request.digest();
        if !self.entries.contains_key(&digest) {
            self.revived.insert(digest, by);
            self.insert(request, lane, now);
        }
    }

    /// How many requests are to be ordered once more for `by`.
    pub(super) fn revived_for(&self, by: NodeId) -> usize {
        self.revived.values().filter(|node| **node == by).count()
    }

    /// The number of arrival of the oldest pending request of each node, as far as it sent them itself.
    pub(super) fn heads(&self) -> impl Iterator<Item = (NodeId, u64)> {
        self.queues.iter().filter_map(|(lane, queue)| match lane {
            Lane::Of(node) => Some((*node, *queue.order.keys().next()?)),
            Lane::ForwardedBy(_) => None,
        })
    }

    /// The pending requests that `node` sent itself and that came before `time`, oldest first.
    pub(super) fn waiting_since(
        &self,
        node: &NodeId,
        time: Duration,
    ) -> impl Iterator<Item = &Arc<VerifiedRequest>> {
        let order = self.queues.get(&Lane::Of(*node)).into_iter().flat_map(|queue| queue.order.values());
        let old = order.take_while(move |(_, came)| *came <= time);
        old.filter_map(|(digest, _)| self.get(digest))
    }

    /// The state jumped: which of the pending requests were executed is not known. Those of other
    /// nodes are dropped; they come again if their nodes still wait for them.
    pub(super) fn drop_pending_of_others(&mut self, own: &NodeId) {
        self.drop_pending(|entry| entry.request.node() != *own);
    }

    /// Drops what others forwarded and that is pending: who is not the primary cannot order it, and the
    /// primary need not have it. Who forwarded it gives it to that one.
    pub(super) fn drop_forwarded(&mut self) {
        self.drop_pending(Entry::is_forwarded);
    }

    /// The batch of `sequence` was handed to execution: its requests are not taken again.
    pub(super) fn executed(&mut self, sequence: SeqNum, requests: &[Arc<VerifiedRequest>], now: Duration) {
        let digests = requests.iter().map(|request| request.digest());
        self.remember(sequence, digests.map(|digest| (digest, self.is_admitted(&digest))).collect(), now);
    }

    /// Blocks up to `sequence`, which were fetched, have these requests: they are done with, but
    /// for bodies that a later proposal still needs.
    pub(super) fn written(&mut self, sequence: SeqNum, digests: &[Hash], now: Duration) {
        let done = digests.iter().map(|digest| (*digest, self.is_admitted(digest))).collect();
        for digest in digests {
            let needed = |entry: &Entry| matches!(entry.state, State::Ordered(at) if at > sequence);
            if self.entries.get(digest).is_some_and(|entry| !needed(entry))
                && let Some(entry) = self.entries.remove(digest)
            {
                self.dequeue(&entry.request, entry.lane, entry.arrival.0);
            }
        }
        self.remember(sequence, done, now);
    }

    /// Whether the request is here and this node admitted it.
    pub(super) fn is_admitted(&self, digest: &Hash) -> bool {
        self.entries.get(digest).is_some_and(|entry| entry.admitted)
    }

    /// These are done with; each with whether this node had admitted it.
    fn remember(&mut self, sequence: SeqNum, done: BTreeMap<Hash, bool>, now: Duration) {
        self.revived.retain(|revived, _| !done.contains_key(revived));
        let (at, known) = self.executed.entry(sequence).or_default();
        *at = now;
        known.extend(done.keys());
        for (digest, admitted) in done {
            *self.remembered.entry(digest).or_default() |= admitted;
        }
    }

    /// The batch of `sequence` was passed over without being executed here. Own requests are asked
    /// for again, so that their outcome is learned; those of others are dropped. Gives the own ones.
    pub(super) fn release(
        &mut self,
        sequence: SeqNum,
        requests: &[Arc<VerifiedRequest>],
        own: &NodeId,
        now: Duration,
    ) -> Vec<Hash> {
        let mut again = Vec::new();
        for request in requests {
            let digest = request.digest();
            if !self.is_ordered_at(&digest, sequence) {
                continue;
            }
            self.entries.remove(&digest);
            self.revived.remove(&digest);
            if request.node() == *own {
                self.insert(Arc::clone(request), Lane::Of(*own), now);
                self.admit(&digest);
                again.push(digest);
            }
        }
        again
    }

    /// The batch of `sequence` is stable: its bodies are needed no more.
    pub(super) fn forget(&mut self, sequence: SeqNum, requests: &[Arc<VerifiedRequest>]) {
        for request in requests {
            if self.is_ordered_at(&request.digest(), sequence) {
                self.entries.remove(&request.digest());
            }
        }
    }

    fn is_ordered_at(&self, digest: &Hash, sequence: SeqNum) -> bool {
        self.entries.get(digest).is_some_and(|entry| entry.state == State::Ordered(sequence))
    }

    /// Forgets the digests of batches at or below `sequence`.
    pub(super) fn forget_executed(&mut self, sequence: SeqNum) {
        let kept = self.executed.split_off(&sequence.next());
        for (_, digests) in std::mem::replace(&mut self.executed, kept).into_values() {
            for digest in digests {
                self.remembered.remove(&digest);
            }
        }
    }

    /// Forgets the digests of batches that were executed before `since`.
    pub(super) fn forget_executed_before(&mut self, since: Duration) {
        let old = self.executed.iter().take_while(|(_, (at, _))| *at < since);
        if let Some(last) = old.map(|(sequence, _)| *sequence).last() {
            self.forget_executed(last);
        }
    }

    /// Drops the pending requests of other nodes that were last heard of before `since`.
    pub(super) fn expire(&mut self, since: Duration, own: &NodeId) {
        self.drop_pending(|entry| entry.heard < since && entry.request.node() != *own);
    }

    fn drop_pending(&mut self, unwanted: impl Fn(&Entry) -> bool) {
        let pending = self.entries.iter().filter(|(_, entry)| entry.state == State::Pending);
        let dropped: Vec<Hash> =
            pending.filter(|(_, entry)| unwanted(entry)).map(|(digest, _)| *digest).collect();
        for digest in dropped {
            self.revived.remove(&digest);
            if let Some(entry) = self.entries.remove(&digest) {
                self.dequeue(&entry.request, entry.lane, entry.arrival.0);
            }
        }
    }
}
