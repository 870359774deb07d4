//! The turns that the protocol takes, told in the log and counted.
//!
//! One `warn` when this replica leaves a view or falls silent, one `info` when that is over: so a log of
//! an hour without trouble has none of them, and trouble does not bury itself. Under load any replica is
//! behind the others for a moment now and then: that is told if it lasts.

use std::time::Duration;

use super::Fatal;
use crate::metrics::ConsensusMetrics;
use crate::pbft::{Notice, Suspicion};

/// Tells notices.
#[derive(Debug)]
pub struct Notices {
    metrics: ConsensusMetrics,
    fatal: Fatal,
}

impl Notices {
    /// Counts in `metrics`, with all reasons at 0 at first; `fatal` knows when the node stops.
    pub fn new(metrics: ConsensusMetrics, fatal: Fatal) -> Self {
        for reason in Suspicion::ALL.into_iter().filter(|reason| *reason != Suspicion::Restored) {
            metrics.view_changes.with_label_values(&[reason.code()]);
        }
        Self { metrics, fatal }
    }

    /// Tells one.
    pub fn tell(&self, notice: &Notice) {
        match *notice {
            Notice::ViewChangeBegan { reason, from, old_primary, to } => {
                self.metrics.view_changes.with_label_values(&[reason.code()]).inc();
                // The others are stopped with it, as at a restart of all: no trouble of theirs.
                if self.fatal.is_stopping() {
                    tracing::info!(reason = reason.code(), %from, %to, "leaving the view, while this node stops");
                    return;
                }
                tracing::warn!(
                    reason = reason.code(), %from, %to, old_primary = %old_primary.short(),
                    "leaving the view: a new primary is wanted"
                );
            }
            Notice::ViewBegan { view, primary, took, carried } => {
                let took_ms = took.map(|took| {
                    self.metrics.view_change_ms.observe(took.as_secs_f64() * 1000.0);
                    millis(took)
                });
                tracing::info!(%view, primary = %primary.short(), took_ms, carried, "a view has begun");
            }
            Notice::FellSilent => {
                tracing::warn!(
                    "this node has voted before and has lost its log: it follows the others and does not vote until it is \
                     past anything that it can have signed"
                );
            }
            Notice::SpeaksAgain { stable } => {
                tracing::info!(%stable, "this node votes again");
            }
            Notice::FellBehind { executed, known } => {
                tracing::debug!(%executed, %known, "behind the others: fetching their blocks");
            }
            Notice::CaughtUp { executed, took } if !is_worth_a_line(took) => {
                tracing::debug!(%executed, took_ms = millis(took), "caught up with the others");
            }
            Notice::CaughtUp { executed, took } => {
                tracing::info!(%executed, took_ms = millis(took), "caught up with the others");
            }
        }
    }
}

/// Whether a replica was behind for so long that somebody may have felt it.
pub(super) const fn is_worth_a_line(behind_for: Duration) -> bool {
    behind_for.as_millis() >= 1_000
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::fatal;
    use crate::metrics::Metrics;
    use crate::types::{NodeId, View};

    #[test]
    fn a_replica_that_catches_up_within_a_second_is_not_worth_a_line() {
        assert!(!is_worth_a_line(Duration::from_millis(999)));
        assert!(is_worth_a_line(Duration::from_secs(1)));
    }

    #[test]
    fn view_changes_are_counted_by_reason_and_timed() {
        let metrics = Metrics::new().unwrap();
        let notices = Notices::new(metrics.consensus.clone(), fatal().0);
        let (from, to, node) = (View(3), View(4), NodeId([1; 32]));
        let shows = |lines: &[&str]| {
            let text = metrics.render().unwrap();
            for line in lines {
                assert!(text.contains(line), "{line} is not in\n{text}");
            }
        };
        notices.tell(&Notice::ViewChangeBegan { reason: Suspicion::Censorship, from, old_primary: node, to });
        shows(&[
            "ledgermq_consensus_view_changes_total{reason=\"censorship\"} 1",
            "ledgermq_consensus_view_changes_total{reason=\"timeout\"} 0",
        ]);
        let took = Some(Duration::from_millis(1500));
        notices.tell(&Notice::ViewBegan { view: to, primary: node, took, carried: 2 });
        shows(&["ledgermq_consensus_view_change_ms_sum 1500"]);
    }
}
