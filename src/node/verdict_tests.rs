//! The verdict of a node on its network.

use std::time::Duration;

use super::*;
use crate::ledger::ReplicaSet;
use crate::pbft::insight::{Change, Other};
use crate::pbft::replica::Status;
use crate::pbft::{Suspicion, diagnosis::diagnose};
use crate::types::{Height, SeqNum, View};

const SECOND: Duration = Duration::from_secs(1);

fn id(at: usize) -> NodeId {
    NodeId([u8::try_from(at).unwrap() + 1; 32])
}

/// Node 0 of `n`, which are all well.
fn insight(n: usize) -> Insight {
    let replicas = ReplicaSet::new((0..n).map(id).collect()).unwrap();
    let ten = SeqNum(10);
    let other = |at| Other {
        node: id(at),
        executed: Some((ten, Height(10))),
        view: Some(View(0)),
        view_for: 60 * SECOND,
        leaving: false,
        silent_until: None,
        heard: Some(Duration::ZERO),
    };
    Insight {
        me: id(0),
        status: Status {
            view: View(0),
            primary: id(0),
            changing: false,
            silent: false,
            stable: ten,
            executed: ten,
            accepted: ten,
            known: ten,
            height: Height(10),
            pending: 0,
            inflight_bytes: 0,
        },
        high: SeqNum(266),
        batches: 0,
        running: 60 * SECOND,
        oldest_request: None,
        waiting: None,
        behind: None,
        executing: None,
        uncertified: None,
        timeout: SECOND,
        last_progress: Some(30 * SECOND),
        change: None,
        silent_until: None,
        listens: None,
        seen_view: Some(View(0)),
        next: None,
        others: (1..n).map(other).collect(),
        replicas,
    }
}

fn connected(insight: &Insight, missing: &[usize]) -> Facts {
    let there = insight.others.iter().map(|other| other.node);
    Facts {
        connected: there.filter(|node| !missing.iter().any(|at| id(*at) == *node)).collect(),
        missing_for: missing.iter().map(|at| (id(*at), 5 * SECOND)).collect(),
        ..Facts::default()
    }
}

fn verdict(insight: &Insight, missing: &[usize]) -> VerdictView {
    let facts = connected(insight, missing);
    judge(insight, &facts, &diagnose(insight, &facts))
}

/// The code, how many more failures are tolerated, and that `words` are told.
fn expect(found: &VerdictView, code: VerdictCode, tolerates: usize, words: &str) {
    assert_eq!((found.code, found.tolerates), (code, Some(tolerates)), "{found:?}");
    assert!(found.text.contains(words), "{words:?} is not in {found:?}");
}

#[test]
fn all_who_take_part_make_it_healthy_and_each_failure_takes_a_margin() {
    use VerdictCode::{Degraded, Halted, Healthy};
    for (n, missing, code, tolerates) in [
        (1, &[][..], Healthy, 0),
        (2, &[], Healthy, 0),
        (2, &[1], Halted, 0),
        (4, &[], Healthy, 1),
        (4, &[3], Degraded, 0),
        (4, &[2, 3], Halted, 0),
        (7, &[], Healthy, 2),
        (7, &[6], Degraded, 1),
        (7, &[5, 6], Degraded, 0),
        (7, &[4, 5, 6], Halted, 0),
    ] {
        let found = verdict(&insight(n), missing);
        assert_eq!((found.code, found.tolerates), (code, Some(tolerates)), "{n} {missing:?}: {found:?}");
    }
    let text = verdict(&insight(4), &[3]).text;
    assert!(
        text.contains("3 of 4 replicas take part, which tolerates 0 more failures: replica 3 ("),
        "{text}"
    );
    assert!(text.ends_with("is not connected"), "{text}");
    assert!(verdict(&insight(4), &[]).text.ends_with("which tolerates 1 more failure"));
}

#[test]
fn who_is_connected_and_does_not_take_part_is_not_counted() {
    let of = |change: &dyn Fn(&mut Other)| {
        let mut insight = insight(4);
        change(&mut insight.others[2]);
        verdict(&insight, &[])
    };
    let degraded = VerdictCode::Degraded;
    expect(&of(&|other| other.heard = Some(11 * SECOND)), degraded, 0, "is connected and silent");
    expect(&of(&|other| other.executed = Some((SeqNum(1), Height(1)))), degraded, 0, "is behind");
    expect(&of(&|other| other.silent_until = Some(SeqNum(266))), degraded, 0, "lost its log");
    let gone = of(&|other| (other.view, other.leaving) = (Some(View(1)), true));
    expect(&gone, degraded, 0, ") has left view 0 for 1, which has not begun");
    let moment = of(&|other| (other.view, other.view_for) = (Some(View(1)), SECOND / 2));
    expect(&moment, VerdictCode::Healthy, 1, "4 of 4");
}

#[test]
fn this_node_does_not_count_itself_when_it_does_not_take_part() {
    let degraded = VerdictCode::Degraded;
    let mut silent = insight(4);
    silent.status.silent = true;
    expect(&verdict(&silent, &[]), degraded, 0, "lost its log and does not vote yet");
    expect(&verdict(&silent, &[3]), VerdictCode::Halted, 0, "nothing becomes final: this node lost its log");
    let mut late = insight(4);
    late.seen_view = Some(View(3));
    late.others.iter_mut().for_each(|other| other.view = Some(View(3)));
    expect(&verdict(&late, &[]), degraded, 0, "is in view 0, and others vote in 3");
    let mut slow = insight(4);
    slow.executing = Some(5 * SECOND);
    expect(&verdict(&slow, &[]), degraded, 0, "is held up (executor_busy)");
}

#[test]
fn one_that_left_its_view_alone_is_no_halt_and_all_who_left_it_are() {
    let mut alone = insight(4);
    let change = |received: Vec<NodeId>, missing| Change {
        to: View(1),
        reason: Suspicion::Timeout,
        since: 5 * SECOND,
        received,
        missing,
        next_in: None,
    };
    alone.status.view = View(1);
    alone.change = Some(change(vec![id(0)], vec![id(1), id(2), id(3)]));
    expect(&verdict(&alone, &[]), VerdictCode::Degraded, 0, "has left its view for 1, which has not begun");
    expect(&verdict(&alone, &[3]), VerdictCode::Halted, 0, "1 of 3 VIEW-CHANGEs are in");
    let mut together = alone.clone();
    together.change = Some(change(vec![id(0), id(1)], vec![id(2), id(3)]));
    expect(&verdict(&together, &[]), VerdictCode::Halted, 0, "view 1 is to begin");
}

#[test]
fn what_holds_up_everybody_is_a_halt_and_a_busy_loop_tells_nothing() {
    let mut stuck = insight(4);
    (stuck.waiting, stuck.status.pending, stuck.oldest_request) = (Some(5 * SECOND), 1, Some(5 * SECOND));
    expect(&verdict(&stuck, &[]), VerdictCode::Halted, 0, "has not proposed it yet");
    let facts = Facts { loop_silent: Some(3 * SECOND), ..connected(&stuck, &[]) };
    let busy = judge(&stuck, &facts, &diagnose(&stuck, &facts));
    assert_eq!((busy.code, busy.tolerates), (VerdictCode::CannotTell, None));
}
