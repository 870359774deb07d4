//! How far a transfer is: for the log, the metrics and whoever asks.

use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::actors::notices::is_worth_a_line;
use crate::metrics::TransferMetrics;
use crate::types::Height;

/// How often a line is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// Over which time rates are measured.
const RATE_INTERVAL: Duration = Duration::from_secs(1);

/// A transfer of fewer blocks is a hiccup of the network: it is logged for those who look for it.
const WORTH_A_LINE: u64 = 64;

/// How far the fetching of blocks is; of the last transfer, if none is under way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct TransferProgress {
    /// Whether a transfer is under way.
    pub active: bool,
    /// The height at which it began.
    pub from: Height,
    /// The height that is reached.
    pub height: Height,
    /// The height to come to. It moves while the others go on.
    pub target: Height,
    /// Blocks applied in this transfer.
    pub blocks: u64,
    /// Bytes received in this transfer.
    pub bytes: u64,
    /// Peers that it can ask now.
    pub peers: usize,
    /// Blocks applied a second, lately.
    pub blocks_per_s: f64,
    /// Bytes received a second, lately.
    pub bytes_per_s: f64,
    /// Seconds until the target is reached, if all goes on like this; none if nothing moves.
    pub eta_s: Option<u64>,
}

/// Where the progress is shown.
#[derive(Debug, Default)]
pub struct TransferBoard(RwLock<TransferProgress>);

impl TransferBoard {
    /// How far it is.
    pub fn read(&self) -> TransferProgress {
        *self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, progress: TransferProgress) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = progress;
    }
}

/// Follows one transfer.
pub(super) struct Reporter<'a> {
    board: &'a TransferBoard,
    metrics: &'a TransferMetrics,
    progress: TransferProgress,
    started: Duration,
    logged: Option<Duration>,
    /// When the rates were measured, and what was done by then.
    measured: (Duration, u64, u64),
}

impl<'a> Reporter<'a> {
    pub(super) fn new(
        board: &'a TransferBoard,
        metrics: &'a TransferMetrics,
        from: Height,
        now: Duration,
    ) -> Self {
        metrics.active.set(1);
        let progress = TransferProgress { active: true, from, height: from, ..TransferProgress::default() };
        Self { board, metrics, progress, started: now, logged: None, measured: (now, 0, 0) }
    }

    /// Bytes came.
    pub(super) fn received(&mut self, bytes: u64) {
        self.progress.bytes += bytes;
        self.metrics.bytes.inc_by(bytes);
    }

    /// Where it stands now; `known` is whether the target is more than a guess.
    pub(super) fn at(&mut self, height: Height, target: Height, known: bool, peers: usize, now: Duration) {
        let progress = &mut self.progress;
        (progress.height, progress.target, progress.peers) = (height, target, peers);
        self.measure(now);
        self.board.write(self.progress);
        self.metrics.height.set(number(height.0));
        self.metrics.target_height.set(number(target.0));
        let large = target.0.saturating_sub(self.progress.from.0) >= WORTH_A_LINE;
        match self.logged {
            None if known && (large || is_worth_a_line(now.saturating_sub(self.started))) => {
                tracing::info!(from = %self.progress.from, to = %target, peers, "behind: fetching blocks");
                self.logged = Some(now);
            }
            Some(at) if now >= at + LOG_INTERVAL => {
                self.logged = Some(now);
                self.log("fetching blocks");
            }
            _ => {}
        }
    }

    /// Blocks were applied.
    pub(super) fn applied(&mut self, blocks: u64) {
        self.progress.blocks += blocks;
        self.metrics.blocks.inc_by(blocks);
    }

    fn measure(&mut self, now: Duration) {
        let (at, blocks, bytes) = self.measured;
        let since = now.saturating_sub(at);
        if since < RATE_INTERVAL {
            return;
        }
        let progress = &mut self.progress;
        let rate = |done: u64, before: u64, mean: f64| {
            let rate = (done - before) as f64 / since.as_secs_f64();
            if mean > 0.0 { f64::midpoint(mean, rate) } else { rate }
        };
        progress.blocks_per_s = rate(progress.blocks, blocks, progress.blocks_per_s);
        progress.bytes_per_s = rate(progress.bytes, bytes, progress.bytes_per_s);
        let left = progress.target.0.saturating_sub(progress.height.0);
        // Seconds of years do not matter, and a cast of a large float saturates.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let eta = (progress.blocks_per_s > 0.1).then(|| (left as f64 / progress.blocks_per_s).ceil() as u64);
        progress.eta_s = eta;
        self.measured = (now, progress.blocks, progress.bytes);
    }

    fn log(&self, what: &str) {
        let TransferProgress { height, target, blocks_per_s, bytes_per_s, peers, .. } = self.progress;
        let eta_s = self.progress.eta_s.map_or_else(|| "unknown".to_owned(), |eta| eta.to_string());
        let (blocks_per_s, mb_per_s) = (format!("{blocks_per_s:.0}"), format!("{:.2}", bytes_per_s / 1e6));
        tracing::info!(%height, %target, blocks_per_s, mb_per_s, eta_s, peers, "{what}");
    }

    /// The transfer is over.
    pub(super) fn done(mut self, now: Duration) {
        self.progress.active = false;
        let took = now.saturating_sub(self.started).as_secs_f64();
        let TransferProgress { from, height, blocks, bytes, .. } = self.progress;
        self.progress.eta_s = None;
        self.progress.blocks_per_s = blocks as f64 / took.max(0.001);
        self.progress.bytes_per_s = bytes as f64 / took.max(0.001);
        self.board.write(self.progress);
        let (blocks_per_s, mb_per_s) =
            (format!("{:.0}", self.progress.blocks_per_s), format!("{:.2}", self.progress.bytes_per_s / 1e6));
        if self.logged.is_some() {
            let took_s = format!("{took:.1}");
            tracing::info!(%from, %height, blocks, bytes, took_s, blocks_per_s, mb_per_s, "fetched all blocks");
        } else {
            tracing::debug!(%from, %height, blocks, bytes, "fetched some blocks");
        }
    }
}

impl Drop for Reporter<'_> {
    fn drop(&mut self) {
        self.metrics.active.set(0);
    }
}

fn number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn progress_shows_rates_and_the_time_that_is_left() {
        let (board, metrics) = (TransferBoard::default(), Metrics::new().unwrap());
        let mut reporter = Reporter::new(&board, &metrics.transfer, Height(10), Duration::ZERO);
        assert_eq!(metrics.transfer.active.get(), 1);
        reporter.received(4_000);
        reporter.applied(100);
        reporter.at(Height(110), Height(310), true, 3, Duration::from_secs(2));
        let progress = board.read();
        assert!(progress.active && progress.eta_s == Some(4), "{progress:?}");
        assert!((progress.blocks_per_s - 50.0).abs() < 0.01 && (progress.bytes_per_s - 2_000.0).abs() < 0.01);
        assert_eq!((metrics.transfer.height.get(), metrics.transfer.target_height.get()), (110, 310));
        reporter.applied(200);
        reporter.at(Height(310), Height(310), true, 3, Duration::from_secs(6));
        reporter.done(Duration::from_secs(6));
        let progress = board.read();
        assert!(!progress.active && progress.blocks == 300, "{progress:?}");
        assert_eq!((metrics.transfer.active.get(), metrics.transfer.blocks.get()), (0, 300));
    }
}
