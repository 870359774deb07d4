//! Where a node's processor time goes: one counter for each stage of the work on a message.
//!
//! ```text
//! decode ─▶ verify ─▶ policy ─▶ requests ─▶ consensus ─▶ execute ─▶ store ─▶ acks
//!               └─▶ log ◀───────── votes ──────┘            index ◀───┘     (network: all between nodes)
//! ```
//!
//! What is counted is the time of the thread on the processor, so neither waiting nor other programs
//! are in it, and that no stage is in another: what a process used besides belongs to the broker, the
//! runtime and the system. To read a thread's time takes a fraction of a microsecond, so only pieces
//! of work that take several are measured. `ledgermq bench --explain` shows the sums for each message.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use prometheus::{IntCounter, IntCounterVec};

use crate::clock;

/// The names of the stages, in the order of a message's way.
pub const STAGES: [&str; 12] = [
    "decode",
    "verify",
    "policy",
    "log",
    "network",
    "requests",
    "votes",
    "consensus",
    "execute",
    "store",
    "index",
    "acks",
];

/// The counters of all stages.
#[derive(Debug, Clone, Default)]
pub struct Stages {
    /// A PUBLISH's payload is taken apart and decrypted.
    pub decode: StageTime,
    /// Signature, body and items of a client's message are checked.
    pub verify: StageTime,
    /// Items are picked, and the request is made.
    pub policy: StageTime,
    /// The log's thread.
    pub log: StageTime,
    /// Connections between nodes: encryption, streams, gossip, codecs.
    pub network: StageTime,
    /// Requests of other nodes are checked.
    pub requests: StageTime,
    /// PBFT messages of other nodes are checked.
    pub votes: StageTime,
    /// The thread of Consensus.
    pub consensus: StageTime,
    /// Batches are executed.
    pub execute: StageTime,
    /// Blocks and certificates are written to the ledger's store.
    pub store: StageTime,
    /// Records are indexed.
    pub index: StageTime,
    /// Answers to clients are signed.
    pub acks: StageTime,
}

impl Stages {
    /// The counters of `vec`, whose label is the stage's name.
    pub(super) fn of(vec: &IntCounterVec) -> Self {
        let [decode, verify, policy, log, network, requests, votes, consensus, execute, store, index, acks] =
            STAGES.map(|stage| StageTime(Some(vec.with_label_values(&[stage]))));
        Self { decode, verify, policy, log, network, requests, votes, consensus, execute, store, index, acks }
    }
}

/// The counter of one stage; the default counts nothing.
#[derive(Debug, Clone, Default)]
pub struct StageTime(Option<IntCounter>);

impl StageTime {
    /// Does `work` and counts its time.
    pub fn of<T>(&self, work: impl FnOnce() -> T) -> T {
        let Some(counter) = &self.0 else { return work() };
        let before = clock::thread_cpu_ns();
        let result = work();
        counter.inc_by(clock::thread_cpu_ns().saturating_sub(before));
        result
    }

    /// Counts all that the calling thread did so far, for a stage that has a thread of its own.
    pub fn whole_thread(&self) {
        if let Some(counter) = &self.0 {
            counter.inc_by(clock::thread_cpu_ns().saturating_sub(counter.get()));
        }
    }

    /// `future`, with the time of its polls counted.
    pub fn polls<F: Future + Send + 'static>(&self, future: F) -> Polls<F> {
        Polls { time: self.clone(), future: Box::pin(future) }
    }
}

/// A future whose polls are counted: see [`StageTime::polls`].
#[derive(Debug)]
pub struct Polls<F> {
    time: StageTime,
    future: Pin<Box<F>>,
}

impl<F: Future> Future for Polls<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Self { time, future } = &mut *self;
        time.of(|| future.as_mut().poll(context))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    fn busy() -> u64 {
        (0..200_000_u64).fold(0, |sum, number| std::hint::black_box(sum ^ number.wrapping_mul(31)))
    }

    #[tokio::test]
    async fn what_a_stage_does_is_counted_and_waiting_is_not() {
        let metrics = Metrics::new().unwrap();
        let counted = |time: &StageTime| time.0.as_ref().unwrap().get();
        metrics.stages.verify.of(busy);
        let once = counted(&metrics.stages.verify);
        assert!(once > 1_000, "{once} ns");
        let waiting = async {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            busy()
        };
        metrics.stages.network.polls(waiting).await;
        let polled = counted(&metrics.stages.network);
        assert!((1_000..50_000_000).contains(&polled), "{polled} ns");
        let text = metrics.render().unwrap();
        assert!(STAGES.iter().all(|stage| text.contains(&format!("{{stage=\"{stage}\"}}"))), "{text}");
    }

    #[test]
    fn a_thread_of_a_stage_is_counted_once_however_often_it_tells() {
        let metrics = Metrics::new().unwrap();
        let time = metrics.stages.log.clone();
        std::thread::spawn(move || {
            busy();
            time.whole_thread();
            let first = time.0.as_ref().unwrap().get();
            time.whole_thread();
            let second = time.0.as_ref().unwrap().get();
            assert!(first > 0 && second < 2 * first + 1_000_000, "{first} ns, {second} ns");
        })
        .join()
        .unwrap();
    }

    #[test]
    fn the_metrics_page_names_every_stage() {
        let page = include_str!("../../docs/METRICS.md");
        for stage in STAGES {
            assert!(page.contains(&format!("| `{stage}` | ")), "docs/METRICS.md lacks the stage {stage}");
        }
    }
}
