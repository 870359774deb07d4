//! What a transfer thinks of a peer: how high it is, how much it is asked, and from when on again.
//!
//! | what it did | pause |
//! | --- | --- |
//! | answered with blocks | none; one more request at once, up to the limit |
//! | said `Busy` | 100 ms, doubling to 5 s; one request at a time |
//! | failed, was late, had nothing of what it said to have | 250 ms, doubling to 30 s; one request at a time |
//! | sent something wrong | 30 s, doubling to 10 min; what it said of itself is forgotten |

use std::time::Duration;

use crate::types::Height;

const BUSY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
const FAILED: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
const LIED: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(600));

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Peer {
    /// How high it says to be.
    pub(super) head: Option<Height>,
    /// It is left alone until then.
    pub(super) not_before: Duration,
    /// Failures since it last answered well.
    pub(super) failures: u32,
    /// Mean time of its answers.
    pub(super) answer_time: Option<Duration>,
    /// Good answers since the last failure.
    good: usize,
    busy: u32,
    lies: u32,
    dropped: bool,
}

impl Peer {
    /// How many requests it may have at once.
    pub(super) fn places(&self, most: usize) -> usize {
        (1 + self.good).min(most)
    }

    /// It did nothing wrong since it last answered well.
    pub(super) const fn is_good(&self) -> bool {
        self.failures == 0 && !self.dropped
    }

    /// It sent something wrong, and nothing good since.
    pub(super) const fn is_dropped(&self) -> bool {
        self.dropped
    }

    pub(super) fn answered(&mut self, head: Height, took: Duration) {
        self.head = Some(head);
        self.answer_time = Some(mean(self.answer_time, took));
        (self.failures, self.busy, self.dropped) = (0, 0, false);
        self.good = self.good.saturating_add(1);
    }

    pub(super) fn busy(&mut self, now: Duration) {
        self.good = 0;
        self.not_before = now + doubled(BUSY, self.busy);
        self.busy = self.busy.saturating_add(1);
    }

    pub(super) fn failed(&mut self, now: Duration) {
        self.good = 0;
        self.not_before = self.not_before.max(now + doubled(FAILED, self.failures));
        self.failures = self.failures.saturating_add(1);
    }

    pub(super) fn lied(&mut self, now: Duration) {
        self.failed(now);
        (self.head, self.dropped) = (None, true);
        self.not_before = now + doubled(LIED, self.lies);
        self.lies = self.lies.saturating_add(1);
    }
}

fn doubled((first, most): (Duration, Duration), times: u32) -> Duration {
    first.saturating_mul(1 << times.min(16)).min(most)
}

/// The mean of what was before and, with a quarter of the weight, of what is new.
pub(super) fn mean(before: Option<Duration>, new: Duration) -> Duration {
    before.map_or(new, |before| (3 * before + new) / 4)
}
