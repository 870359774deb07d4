//! Whether the database takes what it is given: told when that changes, when the reason does, and again
//! now and then for as long as it lasts.

use std::time::Duration;

use crate::history::HistoryError;
use crate::metrics::HistoryMetrics;

/// The first pause after an error, doubled with each further one up to the last.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// An error that stays is told again after this time.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub(super) struct Health {
    metrics: HistoryMetrics,
    pause: Option<Duration>,
    /// What was told last, and how long ago.
    told: Option<(String, Duration)>,
}

impl Health {
    pub(super) fn new(metrics: HistoryMetrics) -> Self {
        Self { metrics, pause: None, told: None }
    }

    pub(super) const fn metrics(&self) -> &HistoryMetrics {
        &self.metrics
    }

    /// Something was written or read.
    pub(super) fn good(&mut self) {
        self.metrics.available.set(1);
        if self.pause.take().is_some() {
            self.told = None;
            tracing::info!("the history is back; it is given what the log holds for it");
        }
    }

    /// Something failed: how long to wait before it is tried again.
    pub(super) fn bad(&mut self, error: &HistoryError) -> Duration {
        self.metrics.available.set(0);
        self.metrics.failures.inc();
        let text = error.to_string();
        if self.told.as_ref().is_none_or(|(told, ago)| *told != text || *ago >= TELL_AGAIN) {
            tracing::error!(error = %text, "the history cannot be written; the log keeps what is not in it, and it is tried again");
            self.told = Some((text, Duration::ZERO));
        }
        let (first, last) = PAUSES;
        let pause = self.pause.map_or(first, |pause| (2 * pause).min(last));
        self.pause = Some(pause);
        if let Some((_, ago)) = &mut self.told {
            *ago += pause;
        }
        pause
    }
}
