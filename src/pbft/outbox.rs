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
    intervals: BTreeMap<Hash, Duration>,
    pushed: u64,
}

impl Outbox {
    /// A request was admitted, or is asked for again.
    pub(super) fn push(&mut self, digest: Hash, now: Duration, settings: &Settings) {
        if self.intervals.insert(digest, settings.request_resend).is_none() {
            self.pushed += 1;
            self.due.insert((now + settings.bundle_delay, self.pushed, digest));
        }
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
        while let Some(&(next, number, digest)) = self.due.first() {
            if next > horizon {
                break;
            }
            let request = pool.get(&digest).filter(|_| pool.is_pending(&digest));
            let Some(request) = request else {
                self.due.pop_first();
                self.intervals.remove(&digest);
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
            self.due.pop_first();
            self.reschedule(number, digest, now, settings);
        }
        bundles
    }

    fn reschedule(&mut self, number: u64, digest: Hash, now: Duration, settings: &Settings) {
        let interval = self.intervals.entry(digest).or_insert(settings.request_resend);
        self.due.insert((now + *interval, number, digest));
        *interval = (*interval * 2).min(settings.request_resend_max);
    }
}
