//! When messages became final, in steps of ten milliseconds: what shows an outage.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// How finely it is told when something happened.
const STEP: Duration = Duration::from_millis(10);

/// Times count from the start of the load. All clients write to it.
#[derive(Debug)]
pub(super) struct Timeline {
    finals: Vec<AtomicU32>,
    /// When something broke, in microseconds; never, before.
    broke_us: AtomicU64,
    /// When the first message was final that was due after that.
    recovered_us: AtomicU64,
}

const NEVER: u64 = u64::MAX;

impl Timeline {
    /// A timeline of this length; what comes later is not noted.
    pub(super) fn new(length: Duration) -> Self {
        let steps = length.as_millis().div_ceil(STEP.as_millis());
        let steps = usize::try_from(steps).unwrap_or(usize::MAX);
        Self {
            finals: (0..steps).map(|_| AtomicU32::new(0)).collect(),
            broke_us: AtomicU64::new(NEVER),
            recovered_us: AtomicU64::new(NEVER),
        }
    }

    /// A message that was due at one time became final at another.
    pub(super) fn became_final(&self, due: Duration, at: Duration) {
        if let Some(step) = self.finals.get(step_of(at)) {
            step.fetch_add(1, Ordering::Relaxed);
        }
        if micros(due) >= self.broke_us.load(Ordering::Relaxed) {
            self.recovered_us.fetch_min(micros(at), Ordering::Relaxed);
        }
    }

    /// Something breaks at this time.
    pub(super) fn breaks(&self, at: Duration) {
        self.broke_us.store(micros(at), Ordering::Relaxed);
    }

    /// When the first message was final that was due after the break.
    pub(super) fn recovered(&self) -> Option<Duration> {
        let us = self.recovered_us.load(Ordering::Relaxed);
        (us != NEVER).then(|| Duration::from_micros(us))
    }

    /// Messages that became final from one time to another, each second.
    pub(super) fn finals_per_s(&self, from: Duration, to: Duration) -> f64 {
        let steps = self.finals.get(step_of(from)..step_of(to).min(self.finals.len())).unwrap_or_default();
        let finals: f64 = steps.iter().map(|step| f64::from(step.load(Ordering::Relaxed))).sum();
        let seconds = to.saturating_sub(from).max(STEP).as_secs_f64();
        finals / seconds
    }
}

fn step_of(at: Duration) -> usize {
    usize::try_from(at.as_millis() / STEP.as_millis()).unwrap_or(usize::MAX)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(NEVER)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn rates_are_those_of_their_time() {
        let timeline = Timeline::new(ms(1000));
        for at in 0..100 {
            timeline.became_final(ms(0), ms(at * 5));
        }
        assert_eq!(timeline.finals_per_s(ms(0), ms(500)), 200.0);
        assert_eq!(timeline.finals_per_s(ms(0), ms(1000)), 100.0);
        assert_eq!(timeline.finals_per_s(ms(500), ms(1000)), 0.0);
        timeline.became_final(ms(0), ms(5000));
        assert_eq!(timeline.finals_per_s(ms(2000), ms(9000)), 0.0, "later than the timeline");
    }

    #[test]
    fn what_was_due_before_the_break_is_no_recovery() {
        let timeline = Timeline::new(ms(1000));
        timeline.became_final(ms(90), ms(95));
        timeline.breaks(ms(100));
        timeline.became_final(ms(99), ms(150));
        assert_eq!(timeline.recovered(), None);
        timeline.became_final(ms(101), ms(400));
        timeline.became_final(ms(102), ms(390));
        assert_eq!(timeline.recovered(), Some(ms(390)));
    }
}
