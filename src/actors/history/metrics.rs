//! Whether the database takes what it is given, told once each time that this changes.

use std::time::Duration;

use crate::history::HistoryError;
use crate::metrics::HistoryMetrics;

/// The first pause after an error, doubled with each further one up to the last.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// See the module.
#[derive(Debug)]
pub(super) struct Health {
    metrics: HistoryMetrics,
    pause: Option<Duration>,
}

impl Health {
    pub(super) fn new(metrics: HistoryMetrics) -> Self {
        Self { metrics, pause: None }
    }

    pub(super) const fn metrics(&self) -> &HistoryMetrics {
        &self.metrics
    }

    /// Something was written or read.
    pub(super) fn good(&mut self) {
        self.metrics.available.set(1);
        if self.pause.take().is_some() {
            tracing::info!("the history is back; it is given what the log holds for it");
        }
    }

    /// Something failed: how long to wait before it is tried again.
    pub(super) fn bad(&mut self, error: &HistoryError) -> Duration {
        self.metrics.available.set(0);
        self.metrics.failures.inc();
        if self.pause.is_none() {
            tracing::error!(%error, "the history cannot be written; the log keeps what is not in it, and it is tried again");
        }
        let (first, last) = PAUSES;
        let pause = self.pause.map_or(first, |pause| (2 * pause).min(last));
        self.pause = Some(pause);
        pause
    }
}
