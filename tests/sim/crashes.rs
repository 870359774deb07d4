//! Crashes at every step boundary, before and after each write to the log, and view changes forced
//! at every sequence number: no luck is needed to meet them.

use std::time::Duration;

use ledgermq::types::SeqNum;

use crate::cluster::Cluster;
use crate::node::CrashPoint;
use crate::run;

const SHORT: Duration = Duration::from_millis(60);

/// A little work, with a change of view in the middle of it.
fn work(t: &mut Cluster) {
    t.ask(0).ask(1).run(SHORT);
    t.ask(2).ask(3).run(SHORT);
}

/// Steps that a node takes at work.
fn steps_of(node: usize) -> u64 {
    let mut t = Cluster::new(1, 4);
    let before = t.nodes[node].steps;
    work(&mut t);
    t.until_all_final();
    t.nodes[node].steps - before
}

/// Crashes one node at one point of one of its steps; it is up again after `down`.
fn crash_once(node: usize, step: u64, point: CrashPoint, down: Duration) -> u64 {
    let mut t = Cluster::new(step, 4);
    t.title = format!("{node} crashes {point:?} in step {step}");
    t.crash_in(node, step, point);
    work(&mut t);
    t.run(down).heal();
    t.ask(0).ask(1).until_all_final().check_ledgers();
    assert!(t.evidence.is_empty());
    t.happened
}

#[test]
fn the_primary_crashes_at_every_point_of_every_step() {
    run::all("the_primary_crashes", 1..steps_of(0), |step| {
        CrashPoint::ALL.iter().map(|point| crash_once(0, step, *point, SHORT)).sum()
    });
}

#[test]
fn the_primary_crashes_at_every_point_of_every_step_and_is_replaced() {
    run::all("the_primary_crashes_at_every_point_of_every_step_and", 1..steps_of(0), |step| {
        let down = Duration::from_secs(5);
        CrashPoint::ALL.iter().map(|point| crash_once(0, step, *point, down)).sum()
    });
}

#[test]
fn a_backup_crashes_at_every_point_of_every_step() {
    run::all("a_backup_crashes", 1..steps_of(1), |step| {
        CrashPoint::ALL.iter().map(|point| crash_once(1, step, *point, SHORT)).sum()
    });
}

/// Whoever is primary is no longer heard as soon as a number is executed anywhere, until its view
/// is given up; again at each of the next numbers.
fn depose_at_every_sequence(n: usize, numbers: u64) -> u64 {
    let mut t = Cluster::with(n as u64, n, |settings| settings.batch_max_requests = 1);
    t.title = format!("n = {n}, a view change at every number");
    let first = t.node(0).state.head().sequence.0;
    for number in 1..=numbers {
        for node in 0..n {
            t.ask(node);
        }
        let wanted = SeqNum(first + number);
        t.run_until(Duration::from_secs(60), "the next number is executed", |t| {
            t.nodes.iter().any(|node| node.state.head().sequence >= wanted)
        });
        let view = t.views().max().unwrap();
        let primary = (view % n as u64) as usize;
        t.silent.insert(primary);
        // Idle replicas suspect nobody.
        for node in (0..n).filter(|node| *node != primary) {
            t.ask(node);
        }
        t.run_until(Duration::from_secs(60), "the view is given up", |t| t.views().any(|at| at > view));
        t.silent.clear();
    }
    t.until_all_final().check_ledgers();
    assert!(t.evidence.is_empty());
    assert!(t.views().max().unwrap() >= numbers, "there was a view change at every number");
    t.happened
}

#[test]
fn views_change_at_every_sequence_number_for_every_size() {
    run::all("views_change_at_every_sequence_number", 2..11, |n| depose_at_every_sequence(n as usize, 6));
}

impl Cluster {
    /// The views that the replicas are in.
    pub fn views(&self) -> impl Iterator<Item = u64> {
        self.nodes.iter().filter_map(|node| Some(node.replica.as_ref()?.status().view.0))
    }
}
