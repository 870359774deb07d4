//! How long things took: percentiles of milliseconds.

use std::time::Duration;

use serde::Serialize;

/// Times that were measured.
#[derive(Debug, Clone, Default)]
pub struct Latencies(Vec<f64>);

/// Half of the times were at most `p50`, 99 of 100 at most `p99`. All 0 if nothing was measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// The median.
    pub p50: f64,
    /// The 99th percentile.
    pub p99: f64,
    /// The longest.
    pub max: f64,
}

impl Latencies {
    /// Adds a time.
    pub fn record(&mut self, took: Duration) {
        self.0.push(took.as_secs_f64() * 1000.0);
    }

    /// Adds the times of `other`.
    pub fn extend(&mut self, other: &Self) {
        self.0.extend_from_slice(&other.0);
    }

    /// The percentiles, in milliseconds with one digit after the point.
    pub fn percentiles(mut self) -> Percentiles {
        self.0.sort_unstable_by(f64::total_cmp);
        // The nearest rank: the smallest time that so many of a hundred do not exceed.
        let at = |percent: usize| {
            let rank = (self.0.len() * percent).div_ceil(100).max(1);
            self.0.get(rank - 1).map_or(0.0, |ms| (ms * 10.0).round() / 10.0)
        };
        Percentiles { p50: at(50), p99: at(99), max: at(100) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let mut times = Latencies::default();
        for ms in (1..=200).rev() {
            times.record(Duration::from_millis(ms));
        }
        assert_eq!(times.percentiles(), Percentiles { p50: 100.0, p99: 198.0, max: 200.0 });
    }

    #[test]
    fn few_times_and_none_have_percentiles_too() {
        assert_eq!(Latencies::default().percentiles(), Percentiles::default());
        let mut times = Latencies::default();
        times.record(Duration::from_micros(1540));
        assert_eq!(times.percentiles(), Percentiles { p50: 1.5, p99: 1.5, max: 1.5 });
    }
}
