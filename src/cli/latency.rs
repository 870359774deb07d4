//! How long things took: percentiles of milliseconds.
//!
//! Times are counted in a histogram of high dynamic range: whatever was measured, and however long,
//! it takes some hundred kilobytes at most, and each percentile is right to three digits.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Digits that percentiles are right to.
const DIGITS: u8 = 3;

/// The longest time that is told apart from longer ones, in microseconds: an hour.
const LONGEST_US: u64 = 3_600_000_000;

/// Times that were measured.
#[derive(Debug, Clone, Default)]
pub struct Latencies {
    histogram: Option<Histogram<u64>>,
    /// The longest, which the histogram knows to three digits only.
    longest_us: u64,
}

/// Half of the times were at most `p50`, 99 of 100 at most `p99`. All 0 if nothing was measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// The median.
    pub p50: f64,
    /// The 95th percentile.
    pub p95: f64,
    /// The 99th percentile.
    pub p99: f64,
    /// The longest.
    pub max: f64,
}

impl Latencies {
    /// Adds a time.
    pub fn record(&mut self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(LONGEST_US).clamp(1, LONGEST_US);
        self.longest_us = self.longest_us.max(us);
        if let Some(histogram) = self.histogram() {
            histogram.saturating_record(us);
        }
    }

    /// Adds the times of `other`.
    pub fn extend(&mut self, other: &Self) {
        self.longest_us = self.longest_us.max(other.longest_us);
        if let (Some(other), Some(histogram)) = (&other.histogram, self.histogram()) {
            // Both have the same bounds.
            let _ = histogram.add(other);
        }
    }

    /// How many times were measured.
    pub fn count(&self) -> u64 {
        self.histogram.as_ref().map_or(0, Histogram::len)
    }

    /// The percentiles, in milliseconds with one digit after the point.
    pub fn percentiles(&self) -> Percentiles {
        let Some(histogram) = self.histogram.as_ref().filter(|histogram| !histogram.is_empty()) else {
            return Percentiles::default();
        };
        let at = |quantile| tenths(histogram.value_at_quantile(quantile).min(self.longest_us));
        Percentiles { p50: at(0.5), p95: at(0.95), p99: at(0.99), max: tenths(self.longest_us) }
    }

    /// Made when the first time is measured. The bounds are constants that are fine.
    fn histogram(&mut self) -> Option<&mut Histogram<u64>> {
        if self.histogram.is_none() {
            self.histogram = Histogram::new_with_bounds(1, LONGEST_US, DIGITS).ok();
        }
        self.histogram.as_mut()
    }
}

#[allow(clippy::cast_precision_loss)]
fn tenths(us: u64) -> f64 {
    // An hour of microseconds is far below what a float holds exactly.
    (us as f64 / 100.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let (mut times, mut others) = (Latencies::default(), Latencies::default());
        for ms in (1..=200).rev() {
            let of = if ms % 2 == 0 { &mut times } else { &mut others };
            of.record(Duration::from_millis(ms));
        }
        times.extend(&others);
        assert_eq!(times.count(), 200);
        let expected = Percentiles { p50: 100.0, p95: 190.0, p99: 198.0, max: 200.0 };
        let found = times.percentiles();
        for (found, expected) in [
            (found.p50, expected.p50),
            (found.p95, expected.p95),
            (found.p99, expected.p99),
            (found.max, expected.max),
        ] {
            assert!((found - expected).abs() <= expected / 1000.0 + 0.05, "{found} is not {expected}");
        }
    }

    #[test]
    fn few_times_and_none_have_percentiles_too() {
        assert_eq!(Latencies::default().percentiles(), Percentiles::default());
        let mut times = Latencies::default();
        times.record(Duration::from_micros(1540));
        assert_eq!(times.percentiles(), Percentiles { p50: 1.5, p95: 1.5, p99: 1.5, max: 1.5 });
    }

    #[test]
    fn no_time_is_too_short_or_too_long() {
        let mut times = Latencies::default();
        times.record(Duration::ZERO);
        times.record(Duration::MAX);
        assert_eq!((times.count(), times.percentiles().max), (2, 3_600_000.0));
    }
}
