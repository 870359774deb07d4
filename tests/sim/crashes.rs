//! Crashes at every step boundary, before and after each write to the log, with the log torn inside
//! its writes; and view changes forced at every sequence number: no luck is needed to meet them.

use std::time::Duration;

use ledgermq::types::SeqNum;

use crate::cluster::Cluster;
use crate::node::CrashPoint;
use crate::run;

const SHORT: Duration = Duration::from_millis(60);
const LONG: Duration = Duration::from_secs(5);

/// What goes on while a node crashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// Two rounds of requests.
    Normal,
    /// The same; and the first primary falls silent between them, and is replaced.
    ViewChange,
}

impl Work {
    fn happen(self, t: &mut Cluster) {
        let n = t.n();
        t.ask(0).ask(1 % n).run(SHORT);
        t.ask(2 % n).ask(3 % n);
        if self == Self::ViewChange {
            t.run(Duration::from_millis(4));
            t.silent.insert(0);
            t.ask(1 % n).run(Duration::from_millis(2_500));
            t.silent.clear();
        }
        t.run(SHORT);
    }
}

/// Steps that a node takes at work.
fn steps_of(n: usize, node: usize, work: Work) -> u64 {
    let mut t = Cluster::new(1, n);
    let before = t.nodes[node].steps;
    work.happen(&mut t);
    t.until_all_final();
    t.nodes[node].steps - before
}

/// Crashes one node at one point of one of its steps; it is up again after `down`.
fn crash_once(n: usize, node: usize, work: Work, (step, point): (u64, CrashPoint), down: Duration) -> u64 {
    let mut t = Cluster::new(step, n);
    t.title = format!("n = {n}, {work:?}, {node} crashes {point:?} in step {step}");
    t.crash_in(node, step, point);
    work.happen(&mut t);
    t.run(down).heal();
    finish(t)
}

fn finish(mut t: Cluster) -> u64 {
    let second = 1 % t.n();
    t.ask(0).ask(second).until_all_final().check_ledgers();
    assert!(t.evidence.is_empty(), "what was promised before a crash is kept: {}", t.title);
    t.happened
}

/// Crashes a node of four at every point of every step.
fn crash_everywhere(test: &str, node: usize, work: Work, down: Duration) {
    run::all(test, 1..steps_of(4, node, work), |step| {
        CrashPoint::ALL.iter().map(|point| crash_once(4, node, work, (step, *point), down)).sum()
    });
}

#[test]
fn the_primary_crashes_at_every_point_of_every_step() {
    crash_everywhere("crashes::the_primary_crashes_at_every_point_of_every_step", 0, Work::Normal, SHORT);
}

#[test]
fn the_primary_crashes_at_every_point_of_every_step_and_is_replaced() {
    let name = "crashes::the_primary_crashes_at_every_point_of_every_step_and_is_replaced";
    crash_everywhere(name, 0, Work::Normal, LONG);
}

#[test]
fn a_backup_crashes_at_every_point_of_every_step() {
    crash_everywhere("crashes::a_backup_crashes_at_every_point_of_every_step", 1, Work::Normal, SHORT);
}

#[test]
fn the_next_primary_crashes_at_every_point_of_a_view_change() {
    let name = "crashes::the_next_primary_crashes_at_every_point_of_a_view_change";
    crash_everywhere(name, 1, Work::ViewChange, SHORT);
}

#[test]
fn a_backup_crashes_at_every_point_of_a_view_change() {
    crash_everywhere("crashes::a_backup_crashes_at_every_point_of_a_view_change", 2, Work::ViewChange, LONG);
}

#[test]
fn clusters_of_every_size_survive_a_crash_at_every_point_of_every_step() {
    let sizes = [1, 2, 3, 5, 6, 7, 8, 9, 10];
    let name = "crashes::clusters_of_every_size_survive_a_crash_at_every_point_of_every_step";
    let runs: Vec<(usize, u64)> =
        sizes.iter().flat_map(|n| (1..steps_of(*n, 0, Work::Normal)).map(|step| (*n, step))).collect();
    run::all(name, 0..runs.len() as u64, |seed| {
        let (n, step) = runs[seed as usize];
        // One point each: all points are met in neighbouring steps.
        let point = CrashPoint::ALL[seed as usize % CrashPoint::ALL.len()];
        crash_once(n, 0, Work::Normal, (step, point), SHORT)
    });
}

#[test]
fn a_node_that_crashes_again_in_any_step_of_its_recovery_keeps_its_promises() {
    let name = "crashes::a_node_that_crashes_again_in_any_step_of_its_recovery_keeps_its_promises";
    run::all(name, 1..steps_of(4, 0, Work::Normal), |step| {
        let again = |(number, point): (u64, &CrashPoint)| {
            let mut t = Cluster::new(step, 4);
            let node = (step % 2) as usize;
            t.title = format!("{node} crashes in step {step}, then {point:?} in step {number} after that");
            t.crash_in(node, step, CrashPoint::AfterSync);
            Work::Normal.happen(&mut t);
            t.restart(node).crash_in(node, number, *point);
            t.run(SHORT).heal();
            finish(t)
        };
        (1..4).flat_map(|number| CrashPoint::ALL.iter().map(move |point| (number, point))).map(again).sum()
    });
}

#[test]
fn a_log_torn_inside_any_write_of_the_primary_is_cut_and_goes_on() {
    let name = "crashes::a_log_torn_inside_any_write_of_the_primary_is_cut_and_goes_on";
    // Not each byte of each write, but other bytes of each: `store/log/tests.rs` takes every one.
    let stride = 61;
    run::all(name, 1..steps_of(4, 0, Work::Normal), |step| {
        let (mut events, mut left) = (0, step as usize % stride);
        loop {
            let mut t = Cluster::new(step, 4);
            t.title = format!("0 crashes in step {step} with {left} bytes of its last writes on disk");
            t.nodes[0].disk.tear_at = Some(left);
            t.crash_in(0, step, CrashPoint::BeforeSync);
            t.ask(0).ask(1).run(SHORT);
            let torn = t.nodes[0].disk.torn_of;
            t.heal();
            events += finish(t);
            left += stride;
            if torn.is_none_or(|torn| left > torn) {
                return events;
            }
        }
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
        // Else the one that is cut off may be ahead of the others, who wait for it.
        t.run_until(Duration::from_secs(60), "everybody is in one view", Cluster::is_in_one_view);
        let view = t.view_of_a_quorum();
        let primary = (view % n as u64) as usize;
        t.silent.insert(primary);
        // Idle replicas suspect nobody.
        for node in (0..n).filter(|node| *node != primary) {
            t.ask(node);
        }
        t.run_until(Duration::from_secs(60), "the view is given up", |t| t.view_of_a_quorum() > view);
        t.silent.clear();
    }
    t.until_all_final().check_ledgers();
    assert!(t.evidence.is_empty());
    assert!(t.view_of_a_quorum() >= numbers, "there was a view change at every number");
    t.happened
}

#[test]
fn views_change_at_every_sequence_number_for_every_size() {
    let name = "crashes::views_change_at_every_sequence_number_for_every_size";
    run::all(name, 2..11, |n| depose_at_every_sequence(n as usize, 6));
}

impl Cluster {
    /// The highest view that a quorum is in, or beyond.
    fn view_of_a_quorum(&self) -> u64 {
        let mut views: Vec<u64> = self.views().collect();
        views.sort_unstable_by(|a, b| b.cmp(a));
        views[self.world.quorum - 1]
    }

    fn is_in_one_view(&self) -> bool {
        let statuses = || self.nodes.iter().filter_map(|node| Some(node.replica.as_ref()?.status()));
        let first = statuses().next().map(|status| status.view);
        statuses().all(|status| !status.changing && Some(status.view) == first)
    }

    /// The views that the replicas are in.
    pub fn views(&self) -> impl Iterator<Item = u64> {
        self.nodes.iter().filter_map(|node| Some(node.replica.as_ref()?.status().view.0))
    }
}
