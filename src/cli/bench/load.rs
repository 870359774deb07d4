//! The load: every client signs and sends its messages when they are due, and counts what becomes
//! of them.
//!
//! ```text
//! due ─▶ gateway.publish ─▶ PUBACK ─▶ ack: final
//!  ╰──────── puback_ms ───────╯        │
//!  ╰──────────── final_ms ─────────────╯
//! ```
//!
//! A message is due at a time that its rate gives, whether or not those before it are through. So a
//! network that stands still for a second shows in every message that was due in that second (no
//! "coordinated omission"). Messages that were due and not final when the run ended count with the
//! time that they had waited by then, and as errors.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinError, JoinSet};

use super::body::Bodies;
use super::target::Client;
use super::timeline::Timeline;
use crate::cli::latency::Latencies;
use crate::clock::{Clock as _, SystemClock};
use crate::gateway::{Delivery, Gateway, PublishError};
use crate::types::Stream;

/// How long messages may still become final after the load has ended.
pub(super) const DRAIN: Duration = Duration::from_secs(30);

/// A message that could not be sent in time, since too many before it were not final.
const NOT_SENT: &str = "not_sent";
/// A message that was not final in time.
const NOT_FINAL: &str = "not_final";
/// The connection's end took the message with it.
const CLOSED: &str = "closed";

/// What the clients do.
pub(super) struct Plan {
    pub(super) bodies: Bodies,
    /// Messages a second, of all clients together; as fast as acks allow, if none.
    pub(super) rate: Option<u32>,
    pub(super) duration: Duration,
    /// Its monotonic time starts with the load.
    pub(super) clock: SystemClock,
    pub(super) timeline: Timeline,
}

impl Plan {
    /// When a message of a client is due; none after the end.
    fn due(&self, client: u32, clients: u32, number: u64) -> Option<Duration> {
        let due = match self.rate {
            None => self.clock.monotonic(),
            Some(rate) => {
                let position = u64::from(client) + number * u64::from(clients);
                Duration::from_nanos(
                    u64::try_from(u128::from(position) * 1_000_000_000 / u128::from(rate))
                        .unwrap_or(u64::MAX),
                )
            }
        };
        Some(due).filter(|due| *due < self.duration)
    }

    /// Messages of a client that are due before the end, from this one on.
    fn due_from(&self, client: u32, clients: u32, number: u64) -> impl Iterator<Item = Duration> {
        let paced = self.rate.is_some();
        (number..).take_while(move |_| paced).map_while(move |number| self.due(client, clients, number))
    }
}

/// What became of messages.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Messages that were due.
    pub(super) offered: u64,
    /// Those of them that a node had on its disk before the load ended.
    pub(super) accepted: u64,
    /// Those of them that were final before the load ended.
    pub(super) finals: u64,
    /// Data items on the ledger by then.
    pub(super) items: u64,
    /// The same as `finals`, at the end of all.
    pub(super) finals_in_the_end: u64,
    pub(super) puback: Latencies,
    pub(super) done: Latencies,
    pub(super) errors: BTreeMap<String, u64>,
}

impl Tally {
    pub(super) fn merge(&mut self, other: Self) {
        self.offered += other.offered;
        self.accepted += other.accepted;
        self.finals += other.finals;
        self.items += other.items;
        self.finals_in_the_end += other.finals_in_the_end;
        self.puback.extend(&other.puback);
        self.done.extend(&other.done);
        for (code, count) in other.errors {
            *self.errors.entry(code).or_default() += count;
        }
    }

    fn add(&mut self, way: Way, plan: &Plan) {
        let Way { due, puback, done } = way;
        if let Some(at) = puback {
            self.pubacked(due, at, plan);
        }
        match done {
            Ok((at, items)) => {
                self.done.record(at.saturating_sub(due));
                self.finals_in_the_end += 1;
                if at <= plan.duration {
                    self.finals += 1;
                    self.items += items;
                }
            }
            Err(code) => self.error(code),
        }
    }

    fn pubacked(&mut self, due: Duration, at: Duration, plan: &Plan) {
        self.puback.record(at.saturating_sub(due));
        self.accepted += u64::from(at <= plan.duration);
    }

    /// A message that never came through: it has waited at least until now, for its PUBACK as well if none
    /// came.
    fn give_up(&mut self, due: Duration, puback: Option<Duration>, now: Duration, code: &str, plan: &Plan) {
        match puback {
            Some(at) => self.pubacked(due, at, plan),
            None => self.puback.record(now.saturating_sub(due)),
        }
        self.done.record(now.saturating_sub(due));
        self.error(code.to_owned());
    }

    fn error(&mut self, code: String) {
        *self.errors.entry(code).or_default() += 1;
    }
}

/// One message's way; times count from the start of the load.
struct Way {
    due: Duration,
    puback: Option<Duration>,
    /// When it was final and how many items were written, or the code of its error.
    done: Result<(Duration, u64), String>,
}

/// Runs all clients to the end of the load, and until their messages are final.
pub(super) async fn run(plan: &Arc<Plan>, clients: Vec<Client>) -> anyhow::Result<Tally> {
    let count = u32::try_from(clients.len())?;
    let mut running = JoinSet::new();
    for (client, number) in clients.into_iter().zip(0..) {
        running.spawn(drive(Arc::clone(plan), client, number, count));
    }
    let mut tally = Tally::default();
    while let Some(of_client) = running.join_next().await {
        tally.merge(of_client??);
    }
    Ok(tally)
}

/// One client.
async fn drive(plan: Arc<Plan>, client: Client, at: u32, clients: u32) -> anyhow::Result<Tally> {
    let stream: Stream = "load".parse()?;
    let mut sender = Sender { plan, gateway: client.0, underway: JoinSet::new(), tally: Tally::default() };
    let mut number = 0;
    while let Some(due) = sender.plan.due(at, clients, number) {
        let wait = due.saturating_sub(sender.plan.clock.monotonic());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        if !sender.send(&stream, due, number).await? {
            break;
        }
        number += 1;
        while let Some(way) = sender.underway.try_join_next() {
            sender.tally.add(way?, &sender.plan);
        }
    }
    let (plan, now) = (Arc::clone(&sender.plan), sender.plan.clock.monotonic());
    for due in plan.due_from(at, clients, number) {
        sender.tally.offered += 1;
        sender.tally.give_up(due, None, now, NOT_SENT, &plan);
    }
    sender.drain().await
}

struct Sender {
    plan: Arc<Plan>,
    gateway: Gateway,
    underway: JoinSet<Way>,
    tally: Tally,
}

impl Sender {
    /// Sends one message; false if the load ended while its turn had not come.
    async fn send(&mut self, stream: &Stream, due: Duration, number: u64) -> anyhow::Result<bool> {
        let body = self.plan.bodies.body(self.plan.clock.now(), number);
        let left = self.plan.duration.saturating_sub(self.plan.clock.monotonic());
        let Ok(published) = tokio::time::timeout(left, self.gateway.publish(stream, body)).await else {
            return Ok(false);
        };
        self.tally.offered += 1;
        match published {
            Ok(delivery) => {
                self.underway.spawn(follow(Arc::clone(&self.plan), due, delivery));
                Ok(true)
            }
            Err(PublishError::Refused(refusal)) => {
                self.tally.error(refusal.code.to_string());
                Ok(true)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn drain(mut self) -> anyhow::Result<Tally> {
        let until = self.plan.duration + DRAIN;
        let left = until.saturating_sub(self.plan.clock.monotonic());
        let finished = async {
            while let Some(way) = self.underway.join_next().await {
                self.tally.add(way?, &self.plan);
            }
            Ok::<_, JoinError>(())
        };
        if let Ok(finished) = tokio::time::timeout(left, finished).await {
            finished?;
        }
        // Its end is the end of what is still underway, too.
        self.gateway.close().await;
        let now = self.plan.clock.monotonic();
        while let Some(way) = self.underway.join_next().await {
            match way? {
                Way { due, puback, done: Err(code) } if code == CLOSED => {
                    self.tally.give_up(due, puback, now, NOT_FINAL, &self.plan);
                }
                way => self.tally.add(way, &self.plan),
            }
        }
        Ok(self.tally)
    }
}

async fn follow(plan: Arc<Plan>, due: Duration, mut delivery: Delivery) -> Way {
    let puback = delivery.puback().await.ok().map(|()| plan.clock.monotonic());
    let done = match delivery.done().await {
        Ok(ack) => {
            let at = plan.clock.monotonic();
            plan.timeline.became_final(due, at);
            Ok((at, ack.written.len() as u64))
        }
        Err(PublishError::Refused(refusal)) => Err(refusal.code.to_string()),
        Err(_) => Err(CLOSED.to_owned()),
    };
    Way { due, puback, done }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(rate: Option<u32>) -> Plan {
        let duration = Duration::from_secs(2);
        let bodies = Bodies::new(1, None).unwrap();
        Plan { bodies, rate, duration, clock: SystemClock::new(), timeline: Timeline::new(duration) }
    }

    #[test]
    fn clients_take_turns_and_together_keep_the_rate() {
        let plan = plan(Some(30));
        let mut due: Vec<_> = (0..4).flat_map(|client| plan.due_from(client, 4, 0)).collect();
        due.sort_unstable();
        assert_eq!(due.len(), 60);
        for (position, due) in due.into_iter().enumerate() {
            let expected = position as f64 / 30.0;
            assert!((due.as_secs_f64() - expected).abs() < 1e-6, "{due:?} is not {expected}");
        }
    }

    #[test]
    fn as_fast_as_acks_allow_nothing_is_due_that_was_not_sent() {
        let plan = plan(None);
        assert!(plan.due(0, 4, 1_000).is_some());
        assert_eq!(plan.due_from(0, 4, 0).count(), 0);
    }

    #[test]
    fn what_never_came_through_counts_with_its_wait() {
        let plan = plan(Some(1));
        let mut tally = Tally::default();
        let [early, late] = [1, 3].map(Duration::from_secs);
        let way = |at| Way { due: Duration::ZERO, puback: Some(at), done: Ok((at, 10)) };
        tally.add(way(early), &plan);
        tally.add(way(late), &plan);
        let now = Duration::from_secs(9);
        tally.give_up(Duration::ZERO, Some(early), now, NOT_FINAL, &plan);
        assert_eq!((tally.accepted, tally.finals, tally.items, tally.finals_in_the_end), (2, 1, 10, 2));
        assert_eq!((tally.puback.count(), tally.puback.percentiles().max), (3, 3_000.0));
        tally.give_up(Duration::ZERO, None, now, NOT_SENT, &plan);
        assert_eq!((tally.puback.count(), tally.puback.percentiles().max), (4, 9_000.0));
        assert_eq!((tally.errors.get(NOT_FINAL), tally.errors.get(NOT_SENT)), (Some(&1), Some(&1)));
        assert_eq!(tally.done.percentiles().max, 9_000.0);
        let mut sum = Tally::default();
        sum.merge(tally);
        assert_eq!((sum.done.count(), sum.errors.len()), (4, 2));
    }
}
