//! So many bytes a second: an account that fills with time and is charged afterwards.
//!
//! What a request costs is known only when it is answered. So a request is let through while the
//! account is not in debt, and its bytes are charged when they are known; the debt is then waited
//! off. Over any time no more than the rate goes through, besides what was under way.
//!
//! Pure: time is an argument.

use std::time::Duration;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct Throttle {
    bytes_per_s: u64,
    /// Bytes that may be used; below 0 a debt. At most those of one second are saved up.
    balance: i128,
    counted: Duration,
}

impl Throttle {
    /// A full account that fills with so many bytes a second.
    pub const fn new(bytes_per_s: u64, now: Duration) -> Self {
        Self { bytes_per_s, balance: bytes_per_s as i128, counted: now }
    }

    /// Whether something may begin.
    pub fn is_open(&mut self, now: Duration) -> bool {
        let since = now.saturating_sub(self.counted);
        let earned = i128::from(self.bytes_per_s) * i128::try_from(since.as_nanos()).unwrap_or(i128::MAX)
            / 1_000_000_000;
        if earned > 0 {
            self.balance = (self.balance + earned).min(i128::from(self.bytes_per_s));
            self.counted = now;
        }
        self.balance > 0
    }

    /// Charges what something took.
    pub const fn charge(&mut self, bytes: u64) {
        self.balance -= bytes as i128;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn what_took_too_much_is_waited_off() {
        let mut throttle = Throttle::new(MIB, Duration::ZERO);
        assert!(throttle.is_open(Duration::ZERO));
        throttle.charge(3 * MIB);
        assert!(!throttle.is_open(Duration::from_millis(1_999)));
        assert!(throttle.is_open(Duration::from_millis(2_001)));
    }

    #[test]
    fn a_long_pause_saves_up_one_second() {
        let mut throttle = Throttle::new(MIB, Duration::ZERO);
        assert!(throttle.is_open(Duration::from_secs(1_000)));
        throttle.charge(MIB);
        assert!(!throttle.is_open(Duration::from_secs(1_000)));
    }

    proptest! {
        #[test]
        fn over_any_time_no_more_than_the_rate_goes_through(
            steps in prop::collection::vec((1..200_u64, 1..3 * MIB), 1..200)
        ) {
            let (mut throttle, mut now, mut through) = (Throttle::new(MIB, Duration::ZERO), 0, 0);
            for (ms, bytes) in steps {
                now += ms;
                if throttle.is_open(Duration::from_millis(now)) {
                    throttle.charge(bytes);
                    through += bytes;
                }
                let allowed = MIB + MIB * now / 1_000 + 3 * MIB;
                prop_assert!(through <= allowed, "{through} bytes in {now} ms");
            }
        }
    }
}
