//! How long things take in virtual time, at default settings: what `docs/CONSENSUS.md` states.

use std::time::Duration;

use ledgermq::pbft::Envelope;
use ledgermq::pbft::message::{Content, Recovery};
use ledgermq::types::SeqNum;

use crate::adversary::censoring_primary::CensoringPrimary;
use crate::adversary::{Adversary, Power};
use crate::cluster::Cluster;
use crate::run::seeds;

const SECOND: Duration = Duration::from_secs(1);

/// How long until all is final at all who are up; at most `limit`.
fn time_to_final(t: &mut Cluster, limit: Duration) -> Duration {
    let before = t.time;
    t.until_all_written(limit);
    t.time - before
}

/// The longest time over some seeds.
fn longest(what: &str, run: impl Fn(u64) -> Duration) -> Duration {
    let longest = seeds(3).map(run).max().unwrap_or_default();
    println!("{what}: {longest:?}");
    longest
}

fn ask_all(t: &mut Cluster, but: usize) {
    for node in but..t.n() {
        t.ask_times(node, 3);
    }
}

/// The first `dead` primaries die while every other node has requests.
fn after_the_death_of(n: usize, dead: usize, seed: u64, limit: Duration) -> Duration {
    let mut t = Cluster::new(seed, n);
    ask_all(&mut t, 0);
    t.until_all_written(SECOND);
    for primary in 0..dead {
        t.crash(primary);
    }
    ask_all(&mut t, dead);
    let time = time_to_final(&mut t, limit);
    t.check_ledgers();
    time
}

#[test]
fn after_the_primarys_death_requests_are_final_within_two_seconds() {
    for n in [4, 7, 10] {
        let time =
            longest(&format!("primary dead, n = {n}"), |seed| after_the_death_of(n, 1, seed, 2 * SECOND));
        assert!(time < 2 * SECOND, "{time:?}");
    }
}

#[test]
fn two_dead_primaries_in_a_row_cost_the_timeout_twice_and_a_third_of_them_twice_that() {
    let two = longest("two primaries dead, n = 7", |seed| after_the_death_of(7, 2, seed, 4 * SECOND));
    assert!((2 * SECOND..SECOND * 5 / 2).contains(&two), "1 s of patience and 1 s for the NEW-VIEW: {two:?}");
    let three = longest("three primaries dead, n = 10", |seed| after_the_death_of(10, 3, seed, 8 * SECOND));
    assert!((4 * SECOND..5 * SECOND).contains(&three), "and 2 s for the next one: {three:?}");
}

/// A primary whose proposals come one by one, each so much after the one before.
struct Late {
    by: Duration,
    made: u32,
}

impl Late {
    fn by(by: Duration) -> Box<Self> {
        Box::new(Self { by, made: 0 })
    }
}

impl Adversary for Late {
    fn name(&self) -> &'static str {
        "late primary"
    }

    fn on_send(&mut self, power: &mut Power<'_>, envelope: Envelope) {
        let proposal = matches!(envelope.signed.content, Content::PrePrepare(_));
        if !proposal {
            return power.broadcast(&envelope);
        }
        if envelope.attempt == 0 {
            self.made += 1;
            for to in power.others() {
                power.send_later(to, self.by * self.made, &envelope);
            }
        }
    }
}

#[test]
fn a_primary_slower_than_the_timeout_is_replaced_like_a_dead_one() {
    let time = longest("primary slower than the timeout", |seed| {
        let mut t = Cluster::new(seed, 4);
        t.corrupt(0, Late::by(SECOND * 11 / 10));
        ask_all(&mut t, 1);
        time_to_final(&mut t, 3 * SECOND)
    });
    assert!(time < 2 * SECOND, "{time:?}");
}

#[test]
fn a_primary_that_is_as_slow_as_it_may_be_holds_no_request_up_for_longer_than_promised() {
    // One request in each batch, each batch just in time: a hundred requests would take 90 s.
    let time = longest("primary just fast enough", |seed| {
        let mut t = Cluster::with(seed, 4, |settings| settings.batch_max_requests = 1);
        t.corrupt(0, Late::by(SECOND * 9 / 10));
        t.ask_times(1, 50).ask_times(2, 50);
        time_to_final(&mut t, 40 * SECOND)
    });
    assert!(time < 34 * SECOND, "request_age_max, a view change, and the rest at full speed: {time:?}");
}

#[test]
fn what_a_censoring_primary_leaves_out_is_final_after_the_patience_of_four_timeouts() {
    let time = longest("censoring primary", |seed| {
        let mut t = Cluster::new(seed, 4);
        t.corrupt(0, Box::new(CensoringPrimary { victim: 3 }));
        t.ask(3);
        let before = t.time;
        // Others' requests go on all the while: nothing stands still.
        while t.node(3).replica.as_ref().unwrap().status().view.0 == 0 {
            t.ask(1).ask(2).run(SECOND / 10);
            assert!(t.time - before < 8 * SECOND, "it is not replaced");
        }
        t.until_all_written(2 * SECOND);
        t.time - before
    });
    assert!((4 * SECOND..5 * SECOND).contains(&time), "{time:?}");
}

#[test]
fn in_an_idle_cluster_a_replica_that_lost_its_log_votes_again_within_half_a_minute() {
    for n in [3, 4, 7] {
        for lost in [0, n - 1] {
            let what = format!("log lost, idle, n = {n}, replica {lost}");
            let time = longest(&what, |seed| {
                let mut t = Cluster::new(seed, n);
                ask_all(&mut t, 0);
                t.until_all_written(SECOND).lose_disk(lost);
                t.nodes[lost].lost_log = true;
                t.run(SECOND).restart(lost);
                let before = t.time;
                t.run_until(30 * SECOND, "it votes", |t| {
                    !t.node(lost).replica.as_ref().unwrap().status().silent
                });
                let time = t.time - before;
                // And it counts: with another f of them dead, a quorum needs it.
                t.run(SECOND);
                for dead in (0..n).filter(|at| *at != lost).take((n - 1) / 3) {
                    t.crash(dead);
                }
                t.ask(lost).until_all_written(60 * SECOND).check_ledgers();
                assert!(t.evidence.is_empty());
                time
            });
            assert!(time < 25 * SECOND, "{time:?}");
        }
    }
}

/// It lost nothing, and says so all the time.
struct Pretender;

impl Adversary for Pretender {
    fn name(&self) -> &'static str {
        "pretender"
    }

    fn on_tick(&mut self, power: &mut Power<'_>) {
        let until = SeqNum(power.stable.0 + 2 * ledgermq::pbft::settings::WINDOW);
        let lie = power.sign(Content::Recovery(Recovery { until }));
        power.broadcast(&lie);
    }
}

#[test]
fn who_pretends_to_have_lost_its_log_makes_the_others_work_for_a_while_and_no_longer() {
    let mut t = Cluster::new(1, 4);
    t.corrupt(3, Box::new(Pretender)).run(120 * SECOND);
    let head = t.node(1).state.head().clone();
    assert!(head.sequence < SeqNum(530), "two windows: {head:?}");
    t.ask(1).until_all_final().check_ledgers();
}
