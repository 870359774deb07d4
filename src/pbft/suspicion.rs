//! When the primary is given up (1999, sections 4.4 and 4.5.2), and when it must not be.
//!
//! | sign | limit | why an honest primary is safe |
//! | --- | --- | --- |
//! | requests wait and nothing is executed | `request_timeout` | restarts with each execution, here or elsewhere; stands still while this node's own executor is at work; while quorums prepare and commit batches, and while others are known to have executed more, up to `patience` times that: under overload the votes for many batches come before the last one for the first, and what holds up who is behind is not the primary |
//! | the oldest request of one node waits for its turn | `patience` times that | a primary takes the oldest of each node into each batch; what it may lack is forwarded to it at half of `request_timeout` |
//! | what was executed is not certified | likewise | others repeat their CHECKPOINTs; who cannot execute it is on its way to another view, where it can |
//! | any request waits in one view | `request_age_max` | no queue is longer than the pool |
//! | it says that it lost its log, and nothing is executed | `patience` times that | who has just come back hears within that time how far the others are; then what somebody repeats of a loss that is over is known to be old |
//! | two proposals for one number | at once | none signs them |
//!
//! With nothing to order nothing is suspected, so idle replicas change no views. All limits double
//! with each view that brought nothing (see [`crate::pbft::views`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::pbft::io::{Effect, Now, Output};
use crate::pbft::log::Phase;
use crate::pbft::notice::Suspicion;
use crate::pbft::replica::Replica;
use crate::pbft::settings::MAX_BATCH_BYTES;
use crate::planted::{Bug, planted};
use crate::types::{NodeId, SeqNum};

/// The most requests forwarded at a time: the oldest, which all others wait for. A node that gives its
/// requests to all but the primary fills a pool with them; at this pace the primary has all of them long
/// before any is too old.
pub(super) const FORWARDED_AT_A_TIME: usize = 512;

/// The oldest pending request of a node.
#[derive(Debug, Clone, Copy)]
struct Head {
    arrival: u64,
    since: Duration,
    forward_at: Duration,
}

/// What waits, and since when.
#[derive(Debug, Clone, Default)]
pub(super) struct Waiting {
    /// Since when anything waits without progress.
    pub(super) since: Option<Duration>,
    /// When a quorum last brought a batch on its way further, if one did.
    voted: Option<Duration>,
    heads: BTreeMap<NodeId, Head>,
    /// What others were known to have executed.
    known: SeqNum,
    /// The last stable checkpoint, and since when one that is executed waits to be.
    stable: SeqNum,
    pub(super) uncertified: Option<Duration>,
}

impl Replica {
    /// The time that the next step of the protocol may take in this view.
    pub(super) fn view_timeout(&self) -> Duration {
        self.views.timeout(self.settings.request_timeout, self.settings.request_timeout_max)
    }

    /// A view began, or execution moved on: patience starts anew.
    pub(super) fn progressed(&mut self, now: Now) {
        if let Some(since) = &mut self.waiting.since {
            *since = now.monotonic;
        }
    }

    /// A quorum prepared or committed a batch: its votes come, if only slowly.
    pub(super) const fn quorum_voted(&mut self, now: Now) {
        self.waiting.voted = Some(now.monotonic);
    }

    /// When it last did.
    pub(super) const fn last_vote(&self) -> Option<Duration> {
        self.waiting.voted
    }

    /// A view began, or this replica votes again: the primary gets the whole time.
    pub(super) fn wait_anew(&mut self, now: Now) {
        self.progressed(now);
        self.waiting.heads.clear();
        self.waiting.uncertified = None;
    }

    /// Looks at what waits; at the end of each step.
    pub(super) fn watch(&mut self, now: Now) {
        if self.settings.replicas.n() == 1 {
            return;
        }
        let known = self.checkpoints.known(&self.settings.replicas);
        if known > self.waiting.known {
            self.waiting.known = known;
            self.progressed(now);
        }
        let time = now.monotonic;
        self.waiting.since = self.anything_waits().then(|| self.waiting.since.unwrap_or(time));
        let stable = self.checkpoints.stable;
        let moved = std::mem::replace(&mut self.waiting.stable, stable) != stable;
        let since = self.waiting.uncertified.filter(|_| !moved).unwrap_or(time);
        self.waiting.uncertified = (stable < self.executed.sequence).then_some(since);
        let half = self.forward_interval();
        let heads = &mut self.waiting.heads;
        let oldest: BTreeMap<NodeId, u64> = self.pool.heads().collect();
        heads.retain(|node, head| oldest.get(node) == Some(&head.arrival));
        for (node, arrival) in oldest {
            heads.entry(node).or_insert(Head { arrival, since: time, forward_at: time + half });
        }
    }

    fn anything_waits(&self) -> bool {
        let ordered = |(_, slot): (_, &crate::pbft::log::Slot)| {
            slot.phase >= Phase::PrePrepared && !slot.requests.is_empty() || slot.carried.is_some()
        };
        self.pool.pending().0 > 0 || self.log.above(self.dispatched).any(ordered)
    }

    /// Whether the primary is judged at all: not by one that is on its way to another view, keeps
    /// silent, or is itself what the others wait for.
    fn judges(&self) -> bool {
        !self.is_changing() && self.silence.is_none() && self.settings.replicas.n() > 1
    }

    /// When the primary will have taken too long, if nothing moves.
    pub(super) fn suspicion_due(&self) -> Option<Duration> {
        self.suspicion().map(|(due, _)| due)
    }

    /// The same, and what it will have been.
    fn suspicion(&self) -> Option<(Duration, Suspicion)> {
        if !self.judges() || planted(Bug::NobodySuspected) {
            return None;
        }
        let timeout = self.view_timeout();
        let executing = self.dispatched > self.executed.sequence;
        let patience = timeout * self.settings.patience;
        // Each number brings this twice in a view at most, and not for longer than censorship could.
        let voted = self.waiting.voted.unwrap_or_default();
        let still = self.waiting.since.filter(|_| !executing);
        let most = patience.max(timeout);
        let lenient = if self.is_behind() { most } else { timeout };
        let still = still.map(|since| (since.max(voted) + lenient).min(since + most));
        let turn = self.waiting.heads.values().map(|head| head.since + patience).min();
        let uncertified = self.waiting.uncertified.map(|since| since + patience);
        let oldest = self.pool.oldest().map(|came| came.max(self.views.entered_at));
        let age = oldest.map(|since| since + timeout.max(self.settings.request_age_max));
        let silent = self.primary_silent_since().map(|since| since + most);
        [
            still.map(|due| (due, Suspicion::Timeout)),
            turn.map(|due| (due, Suspicion::Censorship)),
            uncertified.map(|due| (due, Suspicion::Uncertified)),
            age.map(|due| (due, Suspicion::RequestAge)),
            silent.map(|due| (due, Suspicion::SilentPrimary)),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Gives the primary up if it is time.
    pub(super) fn try_suspect(&mut self, now: Now, out: &mut Output) {
        if let Some((_, reason)) = self.suspicion().filter(|(due, _)| *due <= now.monotonic) {
            self.suspect(now, reason, out);
        }
        self.try_go_on(now, out);
    }

    /// To the next view, if this one does not begin in time. Where f+1 others vote it has begun, and
    /// the correct one among them can prove it: to leave it alone would help nobody, so its NEW-VIEW is
    /// fetched for as long as that takes.
    fn try_go_on(&mut self, now: Now, out: &mut Output) {
        let begun = self.views.seen_from(self.view).1.len() >= self.settings.replicas.weak_quorum();
        let more = now.monotonic + self.view_timeout();
        let Some(changing) = &mut self.views.changing else { return };
        if changing.deadline.is_none_or(|due| due > now.monotonic) {
            return;
        }
        if begun {
            changing.deadline = Some(more);
            return;
        }
        self.views.failed();
        self.start_view_change(now, self.view.next(), Suspicion::NoNewView, out);
    }

    /// The primary is slow or faulty: to the next view.
    pub(super) fn suspect(&mut self, now: Now, reason: Suspicion, out: &mut Output) {
        if !self.judges() {
            return;
        }
        // What it was to carry over is not through: the next one begins with the same, and more.
        let carried = self.executed.sequence >= self.views.carried_upto;
        if self.views.entered.is_some() && (self.views.executed_here == 0 || !carried) {
            self.views.failed();
        }
        self.start_view_change(now, self.view.next(), reason, out);
    }

    /// How long a request waits before it is forwarded, and once more. Does not grow with the time that a
    /// view gets: what waits must all be forwarded before anything is too old.
    fn forward_interval(&self) -> Duration {
        self.settings.request_timeout / 2
    }

    /// Who may propose what waits here: as long as no other view begins, the primary of the one that
    /// was given up, if others did not give it up.
    fn proposer(&self) -> NodeId {
        let view = self.witness.as_ref().map_or(self.view, |witness| witness.view);
        self.settings.replicas.primary(view)
    }

    /// When requests are to be forwarded, if they still wait. That is no vote: who keeps silent does
    /// it, too.
    pub(super) fn forward_due(&self) -> Option<Duration> {
        if self.settings.replicas.n() == 1 || self.proposer() == self.me {
            return None;
        }
        self.waiting.heads.values().map(|head| head.forward_at).min()
    }

    /// Forwards the oldest requests of those nodes whose turn does not come.
    pub(super) fn forward(&mut self, time: Duration, out: &mut Output) {
        if self.forward_due().is_none_or(|due| due > time) {
            return;
        }
        let half = self.forward_interval();
        let mut requests = Vec::new();
        let mut bytes = 0;
        for (node, head) in &mut self.waiting.heads {
            if head.forward_at > time {
                continue;
            }
            let before = requests.len();
            let mut old = self.pool.waiting_since(node, time.saturating_sub(half)).peekable();
            while let Some(request) = old.peek() {
                let with = bytes + request.bytes().len();
                if requests.len() == FORWARDED_AT_A_TIME || with > MAX_BATCH_BYTES {
                    break;
                }
                bytes = with;
                requests.extend(old.next().map(Arc::clone));
            }
            // A node for which nothing was left is due still, and has its turn with the next step.
            if requests.len() > before || old.peek().is_none() {
                head.forward_at = time + half;
            }
        }
        if !requests.is_empty() {
            out.effects.push(Effect::ForwardRequests { requests, to: self.proposer() });
        }
    }
}
