//! Own requests on their way to the other replicas: bundled at first, sent again until ordered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::ledger::VerifiedRequest;
use crate::pbft::pool::Pool;
use crate::pbft::settings::{MAX_BATCH_BYTES, Settings};
use crate::types::Hash;

/// The most requests of one bundle; the most bytes are those of the largest request.
pub(super) const BUNDLE_MAX_REQUESTS: usize = 512;

/// The most bundles of one step: what is left is due at once in the next, so that a long queue
/// does not hold up votes.
const BUNDLES_A_STEP: usize = 4;

/// When each own pending request is to be sent.
#[derive(Debug, Clone, Default)]
pub(super) struct Outbox {
    /// By time, then in the order in which they came.
    due: BTreeSet<(Duration, u64, Hash)>,
    waiting: BTreeMap<Hash, Waiting>,
    pushed: u64,
    /// When the last bundle was sent.
    sent: Option<Duration>,
}

#[derive(Debug, Clone, Copy)]
struct Waiting {
    /// Its place in `due`.
    due: Duration,
    number: u64,
    /// How long it waits after the next time that it is sent.
    interval: Duration,
    was_sent: bool,
}

impl Outbox {
    /// A request was admitted, or is asked for again. Each bundle costs every replica a signature and a
    /// stream, however few requests it has, so there is some time between two; who comes after a pause
    /// waits only a little for company.
    pub(super) fn push(&mut self, digest: Hash, now: Duration, settings: &Settings) {
        let soon = now + settings.bundle_delay / 4;
        let soon = self.sent.map_or(soon, |sent| soon.max(sent + settings.bundle_delay));
        let known = self.waiting.remove(&digest);
        if let Some(known) = known {
            self.due.remove(&(known.due, known.number, digest));
        }
        self.pushed += 1;
        let number = known.map_or(self.pushed, |known| known.number);
        let due = known.map_or(soon, |known| known.due.min(soon));
        let was_sent = known.is_some_and(|known| known.was_sent);
        self.due.insert((due, number, digest));
        self.waiting.insert(digest, Waiting { due, number, interval: settings.request_resend, was_sent });
    }

    /// Forgets `requests`, which are about to be proposed, and says which were never sent: whoever lacks
    /// those would have to ask. If the proposal comes to nothing, they are pushed again.
    pub(super) fn take(&mut self, requests: &[Arc<VerifiedRequest>]) -> Vec<Arc<VerifiedRequest>> {
        let mut unsent = Vec::new();
        for request in requests {
            let digest = request.digest();
            let Some(waiting) = self.waiting.remove(&digest) else { continue };
            self.due.remove(&(waiting.due, waiting.number, digest));
            if !waiting.was_sent {
                unsent.push(Arc::clone(request));
            }
        }
        unsent
    }

    /// How many requests are to be sent.
    pub(super) fn len(&self) -> usize {
        self.due.len()
    }

    /// When the next request is due.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        self.due.first().map(|(next, ..)| *next)
    }

    /// The bundles that are due. Requests that are no longer pending are forgotten.
    pub(super) fn bundles(
        &mut self,
        now: Duration,
        pool: &Pool,
        settings: &Settings,
    ) -> Vec<Vec<Arc<VerifiedRequest>>> {
        let mut bundles: Vec<Vec<Arc<VerifiedRequest>>> = Vec::new();
        let mut bytes = 0;
        // What was to wait a moment longer for company goes along.
        let horizon = now + settings.bundle_delay;
        if self.next_deadline().is_none_or(|first| first > now) {
            return bundles;
        }
        self.sent = Some(now);
        while let Some(&(next, _, digest)) = self.due.first() {
            if next > horizon {
                break;
            }
            let request = pool.get(&digest).filter(|_| pool.is_pending(&digest));
            let Some(request) = request else {
                self.due.pop_first();
                self.waiting.remove(&digest);
                continue;
            };
            let len = request.bytes().len();
            let has_room = bundles.last().is_some_and(|last| last.len() < BUNDLE_MAX_REQUESTS);
            if !has_room || bytes + len > MAX_BATCH_BYTES {
                if bundles.len() == BUNDLES_A_STEP {
                    break;
                }
                bundles.push(Vec::new());
                bytes = 0;
            }
            bytes += len;
            if let Some(bundle) = bundles.last_mut() {
                bundle.push(Arc::clone(request));
            }
            self.reschedule(digest, now, settings);
        }
        bundles
    }

    /// It is sent now, and again later.
    fn reschedule(&mut self, digest: Hash, now: Duration, settings: &Settings) {
        let Some(waiting) = self.waiting.get_mut(&digest) else { return };
        self.due.remove(&(waiting.due, waiting.number, digest));
        waiting.due = now + waiting.interval;
        waiting.interval = (waiting.interval * 2).min(settings.request_resend_max);
        waiting.was_sent = true;
        self.due.insert((waiting.due, waiting.number, digest));
    }
}
