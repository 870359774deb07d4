//! What `ledgermq publish` says while nothing becomes final: that it waits, and why.
//!
//! A network that has lost its quorum acknowledges nothing and loses nothing, so waiting is right.
//! Waiting without a word is not.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::join_all;
use indicatif::ProgressBar;

use super::http::{Nodes, apis_below};
use super::output::plain;
use super::status::MAX_ANSWER_BYTES;
use crate::api::ConsensusView;
use crate::clock::SharedClock;
use crate::gateway::Gateway;

/// How often progress is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// After so long without anything final it is told ...
const TOLD_AFTER: Duration = Duration::from_secs(5);

/// ... and after so long again.
const TOLD_EVERY: Duration = Duration::from_secs(30);

/// How long a node may take to say why.
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);

/// Counts messages that got their answer; clones count together.
#[derive(Debug, Clone, Default)]
pub(super) struct Answered(Arc<AtomicU64>);

impl Answered {
    /// One more.
    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
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
                return anyhow::anyhow!(
                    "nothing became final for {} s: {unfinished} messages are not acknowledged; the next run with the \
                     same --state sends them",
                    waited.as_secs()
                );
            }
            let due = told.map_or(TOLD_AFTER, |told| told + TOLD_EVERY);
            if waited >= due {
                told = Some(waited);
                let why = self.why().await;
                self.progress.suspend(|| {
                    eprintln!(
                        "warning: nothing became final for {} s, {unfinished} messages wait: {why}",
                        waited.as_secs()
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
        // All at once: several that hang must not keep the run from its limit for long.
        let asked = apis_below(dir).unwrap_or_default().into_iter().map(|api| async {
            let node = Nodes::new(vec![api]).ok()?.reading(MAX_ANSWER_BYTES);
            let answer = node.get::<ConsensusView>("/v1/consensus", &[]);
            tokio::time::timeout(ANSWERS_WITHIN, answer).await.ok()?.ok()
        });
        let answers: Vec<ConsensusView> = join_all(asked).await.into_iter().flatten().collect();
        if let Some(why) = answers.iter().flat_map(|answer| &answer.why).find(|why| why.blocks) {
            return plain(&why.text);
        }
        match answers.len() {
            0 => "no node's API answers; are they running?".to_owned(),
            _ => "the nodes say that they advance; is the gateway connected to one of them?".to_owned(),
        }
    }
}
