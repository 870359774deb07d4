//! What `ledgermq publish` says while nothing becomes final: that it waits, and why.
//!
//! Without a quorum nothing becomes final. A node still takes messages and acknowledges them with PUBACK, which
//! says that they are in its log; they become final once a quorum is there.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::ProgressBar;

use crate::cli::http::apis_below;
use crate::cli::waiting::{self, TOLD_AFTER, TOLD_EVERY};
use crate::clock::SharedClock;
use crate::gateway::Gateway;

/// How often progress is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Counts messages that got their answer, and those that wait for it with a PUBACK; clones count together.
#[derive(Debug, Clone, Default)]
pub(super) struct Answered(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    answered: AtomicU64,
    stored: AtomicU64,
}

impl Answered {
    /// One more has its PUBACK.
    pub(super) fn add_stored(&self) {
        self.0.stored.fetch_add(1, Ordering::Relaxed);
    }

    /// One more has its answer, which had its PUBACK before or not.
    pub(super) fn add(&self, was_stored: bool) {
        self.0.stored.fetch_sub(u64::from(was_stored), Ordering::Relaxed);
        self.0.answered.fetch_add(1, Ordering::Relaxed);
    }

    /// How many wait with a PUBACK.
    pub(super) fn stored(&self) -> u64 {
        self.0.stored.load(Ordering::Relaxed)
    }

    fn count(&self) -> u64 {
        self.0.answered.load(Ordering::Relaxed)
    }
}

/// What became of messages without an answer.
pub(super) fn not_final(unfinished: usize, stored: u64) -> String {
    let are = if unfinished == 1 { "message is" } else { "messages are" };
    format!(
        "{unfinished} {are} not final, {stored} of this run's acknowledged by a node and in its log; run the same \
         command again: it sends what has no answer yet, and nothing twice"
    )
}

/// Looks after one run.
pub(super) struct Watch<'a> {
    pub(super) gateway: &'a Gateway,
    pub(super) answered: Answered,
    pub(super) clock: SharedClock,
    pub(super) progress: ProgressBar,
    /// Where to find nodes that may say why.
    pub(super) network: Option<PathBuf>,
    /// When to give up.
    pub(super) limit: Option<Duration>,
}

impl Watch<'_> {
    /// Tells again and again while messages wait and none gets its answer; ends with an error at the
    /// limit, and otherwise never.
    pub(super) async fn run(self) -> anyhow::Error {
        let mut since = self.clock.monotonic();
        let mut seen = (self.answered.count(), self.gateway.unfinished());
        let mut told: Option<Duration> = None;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = self.clock.monotonic();
            let unfinished = self.gateway.unfinished();
            let count = self.answered.count();
            // Fewer without an answer here: messages of an earlier run.
            let moved = count != seen.0 || unfinished < seen.1 || unfinished == 0;
            seen = (count, unfinished);
            if moved {
                (since, told) = (now, None);
                continue;
            }
            let waited = now.saturating_sub(since);
            if self.limit.is_some_and(|limit| waited >= limit) {
                let left = not_final(unfinished, self.answered.stored());
                return anyhow::anyhow!("nothing became final for {} s: {left}", waited.as_secs());
            }
            let due = told.map_or(TOLD_AFTER, |told| told + TOLD_EVERY);
            if waited >= due {
                told = Some(waited);
                let (why, stored) = (self.why().await, self.answered.stored());
                self.progress.suspend(|| {
                    eprintln!(
                        "warning: nothing became final for {} s, {} ({stored} of this run's are in a node's \
                         log): {why}",
                        waited.as_secs(),
                        if unfinished == 1 {
                            "1 message waits".to_owned()
                        } else {
                            format!("{unfinished} messages wait")
                        }
                    );
                });
            }
        }
    }

    /// What the nodes say; the first that blocks counts.
    async fn why(&self) -> String {
        let Some(dir) = &self.network else {
            return "`ledgermq status --api URL` of a node says why".to_owned();
        };
        waiting::why(apis_below(dir).unwrap_or_default()).await
    }
}
