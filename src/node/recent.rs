//! An answer that many may have for a moment, so that asking often costs no more than asking now and then.
//!
//! `/v1/consensus` and `/v1/status` can be asked by anybody, as often as they like. What they say
//! comes from the consensus loop, which has better things to do than to answer each of them.

use std::time::Duration;

use tokio::sync::Mutex;

use crate::clock::SharedClock;

/// How old an answer may be that is given again.
pub(super) const FRESH_FOR: Duration = Duration::from_millis(100);

/// The last answer. Who asks while it is being made waits for it.
pub(super) struct Recent<T> {
    clock: SharedClock,
    kept: Mutex<Option<(Duration, T)>>,
}

impl<T: Clone> Recent<T> {
    pub(super) fn new(clock: SharedClock) -> Self {
        Self { clock, kept: Mutex::new(None) }
    }

    /// The last answer if it is fresh, and else the next one. No answer is not kept.
    pub(super) async fn get(&self, next: impl Future<Output = Option<T>>) -> Option<T> {
        let mut kept = self.kept.lock().await;
        let fresh = |made: Duration| self.clock.monotonic().saturating_sub(made) < FRESH_FOR;
        if let Some((_, answer)) = kept.as_ref().filter(|(made, _)| fresh(*made)) {
            return Some(answer.clone());
        }
        let answer = next.await;
        *kept = answer.clone().map(|answer| (self.clock.monotonic(), answer));
        answer
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures::future::join_all;

    use super::*;
    use crate::clock::Clock;
    use crate::types::Timestamp;

    #[derive(Default)]
    struct Watch(std::sync::Mutex<Duration>);

    impl Clock for Watch {
        fn now(&self) -> Timestamp {
            Timestamp(0)
        }

        fn monotonic(&self) -> Duration {
            *self.0.lock().unwrap()
        }
    }

    #[tokio::test]
    async fn a_flood_of_questions_is_one_question_each_tenth_of_a_second() {
        let clock = Arc::new(Watch::default());
        let recent = Recent::new(clock.clone());
        let asked = AtomicU32::new(0);
        let ask = || {
            recent.get(async {
                tokio::task::yield_now().await;
                Some(asked.fetch_add(1, Ordering::SeqCst))
            })
        };
        for round in 0..3 {
            let answers = join_all((0..1_000).map(|_| ask())).await;
            assert!(answers.iter().all(|answer| *answer == Some(round)), "one answer for all");
            *clock.0.lock().unwrap() += FRESH_FOR;
        }
        assert_eq!(asked.load(Ordering::SeqCst), 3);
        assert_eq!(recent.get(async { None }).await, None, "that nobody answers is not kept");
        assert_eq!(ask().await, Some(3));
    }
}
