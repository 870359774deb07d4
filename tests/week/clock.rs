//! The clock of the week: it moves when the world says so.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use ledgermq::clock::Clock;
use ledgermq::types::Timestamp;

/// When the week begins.
pub const START: Timestamp = Timestamp(1_767_225_600_000);

pub const MINUTE: u64 = 60_000;
pub const HOUR: u64 = 60 * MINUTE;
pub const DAY: u64 = 24 * HOUR;

/// Milliseconds since the week began.
#[derive(Debug, Default)]
pub struct WeekClock(AtomicU64);

impl WeekClock {
    pub fn set(&self, ms: u64) {
        self.0.fetch_max(ms, SeqCst);
    }

    pub fn ms(&self) -> u64 {
        self.0.load(SeqCst)
    }
}

impl Clock for WeekClock {
    fn now(&self) -> Timestamp {
        START.plus_ms(self.ms())
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.ms())
    }
}
