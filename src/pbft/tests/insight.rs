//! What a replica tells of itself, and what follows from it.

use super::view_change::{bare, bench};
use super::*;
use crate::pbft::diagnosis::{self, Code, Facts, ReplicaState, diagnose};
use crate::pbft::{Insight, Notice, Suspicion};
use crate::types::NodeId;

const SECOND: Duration = Duration::from_secs(1);

impl Bench {
    fn insight(&self) -> Insight {
        self.replica.insight(self.now.monotonic)
    }

    fn id(&self, at: usize) -> NodeId {
        self.keys[at].node_id()
    }

    /// Connected with these replicas; the others have been missing for 12 s.
    fn connected(&self, with: &[usize]) -> Facts {
        let others = (0..self.keys.len()).filter(|at| self.id(*at) != self.replica.me);
        let missing = others.filter(|at| !with.contains(at));
        Facts {
            connected: with.iter().map(|at| self.id(*at)).collect(),
            missing_for: missing.map(|at| (self.id(at), 12 * SECOND)).collect(),
            ..Facts::default()
        }
    }

    /// Codes, each with a `!` if it blocks.
    fn why(&self, facts: &Facts) -> Vec<String> {
        let told = |reason: &diagnosis::Reason| {
            format!("{}{}", reason.code.code(), if reason.blocks { "!" } else { "" })
        };
        diagnose(&self.insight(), facts).why.iter().map(told).collect()
    }

    fn text(&self, facts: &Facts, code: Code) -> String {
        let found = diagnose(&self.insight(), facts);
        found.why.into_iter().find(|reason| reason.code == code).unwrap().text
    }

    fn says(&self, facts: &Facts, code: Code, words: &[&str]) {
        let text = self.text(facts, code);
        for word in words {
            assert!(text.contains(word), "{word:?} is not in {text:?}");
        }
    }

    /// Batch 1 of one request, as far as this backup's PREPARE.
    fn agreed(&mut self) -> Hash {
        let _ = self.ask(2, 1);
        let batch = self.batch(&[self.request(2, 1)], 5);
        let _ = self.propose(1, &batch);
        batch.digest()
    }
}

/// A backup that gives nobody up, so that what waits goes on waiting.
fn patient() -> Bench {
    Bench::new(4, 1)
}

fn silent() -> Bench {
    let keys = keys(4);
    let restored = Restored { lost_log: true, ..Restored::new(result(5, 5), START) };
    let replica = Replica::new(settings(&keys, 1), restored).unwrap();
    let now = Now { wall: START.plus_ms(1_000), monotonic: SECOND };
    Bench { keys, replica, now, wal: Vec::new() }
}

#[test]
fn idle_and_connected_is_well() {
    let mut t = patient();
    let _ = t.wait(60 * SECOND);
    let all = t.connected(&[0, 2, 3]);
    assert_eq!(t.why(&all), ["nothing_to_order"]);
    assert!(diagnose(&t.insight(), &all).advancing());
    assert_eq!(t.why(&t.connected(&[0, 2])), ["nothing_to_order"], "one of four may be missing");
}

#[test]
fn without_a_quorum_the_missing_are_named() {
    let t = patient();
    let facts = t.connected(&[2]);
    assert_eq!(t.why(&facts), ["no_quorum_connected!", "nothing_to_order"]);
    let (first, other) = (t.id(0).short(), t.id(3).short());
    let words =
        ["3 of 4 replicas are needed", "2 are connected", "replica 0 (", "(for 12.0 s)", &first, &other];
    t.says(&facts, Code::NoQuorumConnected, &words);
    assert!(!t.text(&facts, Code::NoQuorumConnected).contains("replica 2"));
}

#[test]
fn a_primary_that_proposes_nothing_is_named() {
    let mut t = patient();
    let _ = t.ask(2, 1);
    let facts = t.connected(&[0, 2, 3]);
    assert!(t.why(&facts).is_empty(), "a moment is no trouble");
    let _ = t.wait(3 * SECOND);
    assert_eq!(t.why(&facts), ["waiting_for_primary!"]);
    t.says(&facts, Code::WaitingForPrimary, &["1 request has waited up to 3.0 s", "replica 0"]);
}

#[test]
fn what_this_node_lacks_of_a_proposal_is_told() {
    let mut t = patient();
    let batch = t.batch(&[t.request(2, 1), t.request(2, 2)], 5);
    let _ = t.propose(1, &batch);
    let _ = t.ask(3, 9);
    let _ = t.wait(2 * SECOND);
    let facts = t.connected(&[0, 2, 3]);
    assert_eq!(t.why(&facts), ["this_node_lacks_requests!"]);
    t.says(&facts, Code::ThisNodeLacksRequests, &["lacks 2 requests of what batch 1 orders"]);
}

#[test]
fn connected_backups_that_do_not_prepare_are_told_from_those_that_are_away() {
    let mut t = patient();
    t.agreed();
    let _ = t.wait(2 * SECOND);
    let facts = t.connected(&[0, 2, 3]);
    assert_eq!(t.why(&facts), ["backups_lack_requests!"]);
    t.says(&facts, Code::BackupsLackRequests, &["batch 1 has 2 of 3", "replica 2", "replica 3"]);
    let mut t = patient();
    let digest = t.agreed();
    let _ = t.hear(2, prepare(1, digest));
    let _ = t.wait(2 * SECOND);
    let facts = t.connected(&[0, 2]);
    assert_eq!(t.why(&facts), ["waiting_for_votes!"]);
    let words = ["batch 1 has 1 of 3 COMMITs", "replica 0", "replica 2", "replica 3"];
    t.says(&facts, Code::WaitingForVotes, &words);
}

#[test]
fn a_proposal_that_is_not_agreed_to_is_told() {
    let mut t = patient();
    let _ = t.ask(2, 1);
    let mut batch = t.batch(&[t.request(2, 1)], 5);
    batch.timestamp = Timestamp(1);
    let _ = t.propose(1, &batch);
    let _ = t.wait(2 * SECOND);
    assert_eq!(t.why(&t.connected(&[0, 2, 3])), ["proposal_refused!"]);
}

#[test]
fn a_view_change_tells_who_is_missing_and_then_what_it_waits_for() {
    let mut t = bench(1);
    let _ = t.ask(2, 1);
    let _ = t.wait(SECOND * 3 / 2);
    let facts = t.connected(&[0, 2, 3]);
    assert_eq!(t.why(&facts), ["view_change_running!"]);
    let words = ["view 1 is to begin", "(timeout)", "1 of 3 VIEW-CHANGEs", "replica 0", "replica 3"];
    t.says(&facts, Code::ViewChangeRunning, &words);
    // Who sent no VIEW-CHANGE is not missing: it may be well. Who is away is.
    let text = t.text(&t.connected(&[0, 2]), Code::ViewChangeRunning);
    let well = format!("replica 2 ({}) are connected and sent none, so may be well", t.id(2).short());
    let away = format!("; replica 3 ({}) is not connected", t.id(3).short());
    assert!(text.contains(&well) && text.contains(&away) && !text.contains("missing"), "{text}");
    let change = t.insight().change.unwrap();
    assert_eq!((change.reason, change.received), (Suspicion::Timeout, vec![t.id(1)]));
    assert!(change.since >= SECOND * 4 / 10 && change.since <= SECOND * 6 / 10, "{:?}", change.since);
    assert_eq!(change.next_in, None, "alone it goes no further");

    // Replica 3 is to be the primary of view 3, and is waited for.
    let mut t = bench(1);
    for from in [0, 2] {
        let _ = t.hear(from, bare(3));
    }
    let words = ["view 3 is to begin", "(joined)", "NEW-VIEW of replica 3", "the next primary's turn"];
    t.says(&facts, Code::ViewChangeRunning, &words);
    assert_eq!(t.insight().change.unwrap().missing, [t.id(3)]);
}

#[test]
fn notices_tell_the_turns_of_a_view_change_once_each() {
    let mut t = bench(1);
    let first = t.id(0);
    let mut notices = t.hear(2, bare(1)).notices;
    notices.extend(t.hear(3, bare(1)).notices);
    let began =
        Notice::ViewChangeBegan { reason: Suspicion::Joined, from: View(0), old_primary: first, to: View(1) };
    let took = Some(Duration::ZERO);
    let entered = Notice::ViewBegan { view: View(1), primary: t.id(1), took, carried: 0 };
    assert_eq!(notices, [began, entered], "this replica is the primary of view 1");
    assert!(t.hear(2, bare(1)).notices.is_empty());
}

#[test]
fn the_time_of_a_view_change_runs_from_the_last_view_in_force() {
    let mut t = bench(1);
    let _ = t.ask(2, 1);
    let _ = t.wait(SECOND * 3 / 2);
    let left = t.now.monotonic;
    for from in [0, 2] {
        let _ = t.hear(from, bare(4));
    }
    let _ = t.wait(SECOND / 2);
    let since = t.insight().change.unwrap().since;
    assert!(since > t.now.monotonic - left, "not from the second VIEW-CHANGE on: {since:?}");
}

#[test]
fn a_batch_that_does_not_get_executed_is_the_executors_fault() {
    let mut t = patient();
    let _ = t.commit_batch(1);
    let facts = t.connected(&[0, 2, 3]);
    assert!(t.why(&facts).is_empty());
    let _ = t.wait(2 * SECOND);
    assert_eq!(t.why(&facts), ["executor_busy!"]);
    t.says(&facts, Code::ExecutorBusy, &["batch 1 has been in execution here for 2.0 s"]);
}

#[test]
fn what_is_executed_and_not_certified_is_told() {
    let mut t = patient();
    let _ = t.commit_batch(1);
    let _ = t.step(Input::Executed(result(1, 1)));
    let _ = t.hear(2, Content::Checkpoint(result(1, 1)));
    let _ = t.wait(2 * SECOND);
    let facts = t.connected(&[0, 2, 3]);
    assert_eq!(t.why(&facts), ["waiting_for_checkpoints!"]);
    t.says(&facts, Code::WaitingForCheckpoints, &["2 of 3", "missing: replica 0", "replica 3"]);
    let _ = t.hear(3, Content::Checkpoint(result(1, 1)));
    assert_eq!(t.why(&facts), ["nothing_to_order"]);
}

#[test]
fn a_node_that_lags_by_a_few_numbers_does_not_tell_it_again_and_again() {
    let mut t = patient();
    for height in 1..=8 {
        let _ = t.hear(0, Content::Checkpoint(result(height, height)));
        let _ = t.hear(2, Content::Checkpoint(result(height, height)));
        t.now.monotonic += SECOND / 4;
        assert_eq!(t.step(Input::Tick).notices, []);
    }
}

#[test]
fn a_node_that_is_behind_says_how_far_and_tells_it_once() {
    let mut t = patient();
    let _ = t.hear(0, Content::Checkpoint(result(40, 40)));
    let _ = t.hear(2, Content::Checkpoint(result(41, 41)));
    let facts = t.connected(&[0, 2, 3]);
    let mut notices = Vec::new();
    for _ in 0..8 {
        t.now.monotonic += SECOND / 4;
        notices.extend(t.step(Input::Tick).notices);
    }
    assert_eq!(notices, [Notice::FellBehind { executed: SeqNum(0), known: SeqNum(40) }]);
    assert_eq!(t.why(&facts)[0], "this_node_is_behind!");
    t.says(&facts, Code::ThisNodeIsBehind, &["has executed 0 of 40"]);

    let replicas = t.insight().replicas;
    let nodes = [0, 2, 3].map(|at| &t.keys[at]);
    let certificate = crate::ledger::Certificate {
        content: result(40, 40),
        signatures: nodes
            .iter()
            .map(|key| {
                let number = u16::try_from(replicas.index_of(&key.node_id()).unwrap()).unwrap();
                let message = Verified::sign(key, &NETWORK, Content::Checkpoint(result(40, 40)));
                (number, message.signed().signature)
            })
            .collect(),
    };
    let synced = Input::BlocksSynced { certificate, timestamp: START, requests: Vec::new() };
    let output = t.step(synced);
    assert!(
        matches!(output.notices[..], [Notice::CaughtUp { executed: SeqNum(40), .. }]),
        "{:?}",
        output.notices
    );
    assert!(diagnose(&t.insight(), &facts).advancing(), "{:?}", t.why(&facts));
}

#[test]
fn silence_after_a_lost_log_is_told_with_its_end() {
    let mut t = silent();
    let output = t.step(Input::Tick);
    assert!(output.notices.contains(&Notice::FellSilent), "{:?}", output.notices);
    let facts = t.connected(&[0, 2, 3]);
    let first =
        ["lost its log", "nothing need be done", "it has listened", "in about 16.0 s if nothing else"];
    t.says(&facts, Code::ThisNodeIsSilent, &first);
    let few = ["that takes 3 connected others, and there are 2: bring them back"];
    t.says(&t.connected(&[0, 2]), Code::ThisNodeIsSilent, &few);
    let blocks = |facts: &Facts, t: &Bench| {
        diagnose(&t.insight(), facts).why.iter().any(|why| why.code == Code::ThisNodeIsSilent && why.blocks)
    };
    assert!(!blocks(&facts, &t), "three others are enough");
    assert!(blocks(&t.connected(&[0, 2]), &t), "two others and one without a vote are not");
    for from in [0, 2, 3] {
        let _ = t.hear(from, Content::Checkpoint(result(5, 5)));
    }
    let _ = t.wait(11 * SECOND);
    let then = [
        "votes again once 261 is certified here, and 5 is now, in about 6.0 s",
        "stop this node and do that",
    ];
    t.says(&facts, Code::ThisNodeIsSilent, &then);
    assert_eq!(diagnosis::votes_again_in(&t.insight()), Some(6 * SECOND));
}

#[test]
fn of_two_replicas_one_that_lost_its_log_is_told_to_bring_it_back() {
    let keys = keys(2);
    let restored = Restored { lost_log: true, ..Restored::new(result(5, 5), START) };
    let replica = Replica::new(settings(&keys, 1), restored).unwrap();
    let now = Now { wall: START.plus_ms(1_000), monotonic: SECOND };
    let t = Bench { keys, replica, now, wal: Vec::new() };
    let facts = t.connected(&[0]);
    t.says(&facts, Code::ThisNodeIsSilent, &["never will by itself", "stop this node and do that"]);
    assert_eq!(diagnosis::votes_again_in(&t.insight()), None);
}

#[test]
fn another_replica_that_lost_its_log_is_told_until_it_votes_again() {
    use crate::pbft::message::Recovery;
    let mut t = patient();
    let facts = t.connected(&[0, 2, 3]);
    let _ = t.hear(3, Content::Checkpoint(result(1, 1)));
    let _ = t.hear(3, Content::Recovery(Recovery { until: SeqNum(200) }));
    assert_eq!(diagnosis::state(&t.id(3), &t.insight(), &facts), ReplicaState::LostLog);
    let _ = t.hear(3, Content::Checkpoint(result(200, 1)));
    assert_ne!(diagnosis::state(&t.id(3), &t.insight(), &facts), ReplicaState::LostLog);
}

#[test]
fn one_that_left_the_view_alone_is_told_after_a_moment() {
    let mut t = patient();
    let facts = t.connected(&[0, 2, 3]);
    let state = |t: &Bench| diagnosis::state(&t.id(3), &t.insight(), &facts);
    let _ = t.hear(3, bare(1));
    assert_eq!(state(&t), ReplicaState::Ok, "the others may be about to follow");
    let _ = t.wait(2 * SECOND);
    assert_eq!(state(&t), ReplicaState::OtherView);
    let insight = t.insight();
    let gone = insight.others.iter().find(|other| other.node == t.id(3)).unwrap();
    assert!(gone.leaving && gone.view == Some(View(1)));
    assert_eq!(insight.seen_view, None, "a VIEW-CHANGE is no vote");
}

#[test]
fn a_full_window_is_told() {
    let t = patient();
    let mut insight = t.insight();
    insight.waiting = Some(5 * SECOND);
    insight.status.accepted = insight.high;
    let found = diagnose(&insight, &t.connected(&[0, 2, 3]));
    assert_eq!(found.blocking().unwrap().code, Code::WindowFull);
}

#[test]
fn what_nothing_explains_is_not_called_well() {
    let t = patient();
    let mut insight = t.insight();
    insight.waiting = Some(5 * SECOND);
    let found = diagnose(&insight, &t.connected(&[0, 2, 3]));
    assert_eq!(found.blocking().unwrap().code, Code::NoProgress);
}

#[test]
fn a_slow_disk_and_a_busy_loop_come_before_what_follows_from_them() {
    let mut t = patient();
    let _ = t.ask(2, 1);
    let _ = t.wait(2 * SECOND);
    let facts = Facts { log_waits: Some(2 * SECOND), ..t.connected(&[0, 2, 3]) };
    assert_eq!(t.why(&facts), ["log_disk_slow!"]);
    t.says(&facts, Code::LogDiskSlow, &["2.0 s", "disk is slow or hangs"]);
    let facts = Facts { loop_silent: Some(90 * SECOND), ..facts };
    assert_eq!(t.why(&facts), ["loop_busy!", "log_disk_slow!"]);
    t.says(&facts, Code::LoopBusy, &["1 min 30 s"]);
    let facts = Facts { log_waits: Some(SECOND / 2), loop_silent: Some(SECOND / 2), ..facts };
    assert_eq!(t.why(&facts), ["waiting_for_primary!"], "half a second is nothing");
}

#[test]
fn each_replica_is_what_it_is_for_the_reason_that_the_page_names() {
    let mut t = patient();
    let facts = t.connected(&[0, 2]);
    let states = |t: &Bench, facts: &Facts| -> Vec<ReplicaState> {
        (0..4).map(|at| diagnosis::state(&t.id(at), &t.insight(), facts)).collect()
    };
    use ReplicaState::{Behind, Disconnected, Ok, Silent, ThisNode};
    let _ = t.wait(60 * SECOND);
    assert_eq!(states(&t, &facts), [Ok, ThisNode, Ok, Disconnected], "nothing was executed: no word is due");
    for sequence in 1..=3 {
        let _ = t.commit_batch(sequence);
        let _ = t.step(Input::Executed(result(sequence, sequence)));
    }
    for from in [2, 3] {
        let _ = t.hear(from, Content::Checkpoint(result(3, 3)));
    }
    let _ = t.hear(PRIMARY, Content::Checkpoint(result(1, 1)));
    assert_eq!(states(&t, &facts), [Ok, ThisNode, Ok, Disconnected], "its CHECKPOINTs are under way");
    let _ = t.wait(2 * SECOND);
    assert_eq!(states(&t, &facts), [Behind, ThisNode, Ok, Disconnected]);
    let insight = t.insight();
    let first = insight.others.iter().find(|other| other.node == t.id(0)).unwrap();
    assert_eq!(diagnosis::behind(first, &insight), 2);
    assert_eq!((first.executed, first.view), (Some((SeqNum(1), Height(1))), Some(View(0))));
    assert_eq!(first.heard, Some(2 * SECOND));
    let _ = t.hear(PRIMARY, Content::Checkpoint(result(3, 3)));
    assert_eq!(states(&t, &facts), [Ok, ThisNode, Ok, Disconnected]);
    let _ = t.wait(10 * SECOND);
    assert_eq!(states(&t, &facts), [Silent, ThisNode, Silent, Disconnected]);
}

#[test]
fn far_behind_is_behind_under_load_too() {
    let t = patient();
    let mut insight = t.insight();
    insight.status.executed = SeqNum(20);
    insight.last_progress = Some(Duration::ZERO);
    let facts = t.connected(&[0, 2, 3]);
    for (executed, expected) in [(12, ReplicaState::Ok), (11, ReplicaState::Behind)] {
        insight.others[0].executed = Some((SeqNum(executed), Height(executed)));
        assert_eq!(diagnosis::state(&t.id(0), &insight, &facts), expected, "{executed}");
    }
}

#[test]
fn an_old_message_does_not_take_a_replica_back_to_an_earlier_view() {
    let mut t = patient();
    let _ = t.hear(2, bare(3));
    let _ = t.hear(2, bare(1));
    let insight = t.insight();
    assert_eq!(insight.others.iter().find(|other| other.node == t.id(2)).unwrap().view, Some(View(3)));
}

#[test]
fn lengths_of_time_are_told_in_units_that_fit() {
    let told = |millis| diagnosis::told(Some(Duration::from_millis(millis)));
    assert_eq!(
        [told(7), told(1_250), told(61_000), told(7_380_000)],
        ["7 ms", "1.2 s", "1 min 1 s", "2 h 3 min"]
    );
}
