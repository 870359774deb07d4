//! Where a node's processor time goes: one counter for each stage of the work on a message.
//!
//! ```text
//! decode ─▶ verify ─▶ policy ─▶ requests ─▶ consensus ─▶ execute ─▶ store ─▶ acks
//!               └─▶ log ◀───────── votes ──────┘            index ◀───┘     (network: all between nodes)
//! ```
//!
//! What is counted is the time of the thread on the processor, so neither waiting nor other programs
//! are in it, and that no stage is in another: what a process used besides belongs to the broker, the
//! runtime and the system. To read a thread's time takes a fraction of a microsecond, so of pieces of
//! work that take few, one of [`SAMPLE`] is measured for all. `ledgermq bench --explain` shows the sums for each message.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
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

/// Of so many pieces of work that are done for each message, one is measured.
const SAMPLE: u64 = 8;

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
            STAGES.map(|stage| StageTime(Some(Arc::new(Stage::of(vec.with_label_values(&[stage]))))));
        Self { decode, verify, policy, log, network, requests, votes, consensus, execute, store, index, acks }
    }
}

/// The counter of one stage; the default counts nothing.
#[derive(Debug, Clone, Default)]
pub struct StageTime(Option<Arc<Stage>>);

#[derive(Debug)]
struct Stage {
    ns: IntCounter,
    /// How many pieces of work were sampled, measured or not.
    pieces: AtomicU64,
}

impl Stage {
    fn of(ns: IntCounter) -> Self {
        Self { ns, pieces: AtomicU64::new(0) }
    }

    /// Whether the next piece is measured. Spread by Fibonacci hashing: of a stage of two pieces a message
    /// the same one would else be measured each time.
    fn is_sampled(&self) -> bool {
        self.pieces.fetch_add(1, Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15) < u64::MAX / SAMPLE
    }

    /// Counts the time of `work` so many times.
    fn times<T>(&self, times: u64, work: impl FnOnce() -> T) -> T {
        let before = clock::thread_cpu_ns();
        let result = work();
        self.ns.inc_by(times * clock::thread_cpu_ns().saturating_sub(before));
        result
    }
}

impl StageTime {
    /// Does `work` and counts its time.
    pub fn of<T>(&self, work: impl FnOnce() -> T) -> T {
        match &self.0 {
            Some(stage) => stage.times(1, work),
            None => work(),
        }
    }

    /// Does `work`, as is done for each message, and measures one piece of eight for all.
    pub fn sampled<T>(&self, work: impl FnOnce() -> T) -> T {
        match &self.0 {
            Some(stage) if stage.is_sampled() => stage.times(SAMPLE, work),
            _ => work(),
        }
    }

    /// Counts all that the calling thread did so far, for a stage that has a thread of its own.
    pub fn whole_thread(&self) {
        if let Some(stage) = &self.0 {
            stage.ns.inc_by(clock::thread_cpu_ns().saturating_sub(stage.ns.get()));
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
        time.sampled(|| future.as_mut().poll(context))
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
        let counted = |time: &StageTime| time.0.as_ref().unwrap().ns.get();
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
    fn of_what_is_done_for_each_message_one_piece_stands_for_eight() {
        let metrics = Metrics::new().unwrap();
        let counted = |time: &StageTime| time.0.as_ref().unwrap().ns.get();
        (0..SAMPLE).for_each(|_| _ = metrics.stages.verify.sampled(busy));
        (0..SAMPLE).for_each(|_| _ = metrics.stages.decode.of(busy));
        let (sampled, all) = (counted(&metrics.stages.verify), counted(&metrics.stages.decode));
        assert!((all / 20..20 * all).contains(&sampled), "{sampled} ns, {all} ns");
    }

    #[test]
    fn a_thread_of_a_stage_is_counted_once_however_often_it_tells() {
        let metrics = Metrics::new().unwrap();
        let time = metrics.stages.log.clone();
        std::thread::spawn(move || {
            busy();
            time.whole_thread();
            let first = time.0.as_ref().unwrap().ns.get();
            time.whole_thread();
            let second = time.0.as_ref().unwrap().ns.get();
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
