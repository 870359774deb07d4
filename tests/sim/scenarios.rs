//! The scenarios, each over several seeds.

use std::time::Duration;

use ledgermq::types::SeqNum;

use crate::adversary::false_new_view::FalseNewView;
use crate::cluster::Cluster;
use crate::network::Weather;
use crate::run::{self, seeds};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn every_size_of_cluster_writes_what_each_node_is_asked_for() {
    for n in [1, 2, 3, 4, 6, 7] {
        let mut t = Cluster::new(1, n);
        for round in 0..10 {
            for node in 0..n {
                t.ask_times(node, 1 + round % 3);
            }
            t.run(Duration::from_millis(7));
        }
        t.until_all_written(10 * SECOND).check_ledgers();
        assert!(t.evidence.is_empty());
    }
}

#[test]
fn a_storm_of_loss_delay_reordering_and_duplicates_changes_nothing_but_the_time() {
    for seed in seeds(8) {
        let mut t = Cluster::new(seed, 4).weather(Weather::STORM);
        for node in 0..4 {
            t.ask_times(node, 15).run(Duration::from_millis(30));
            t.ask_times(node, 15).run(Duration::from_millis(30));
        }
        t.until_all_written(2 * MINUTE).check_ledgers();
        assert!(t.evidence.is_empty(), "correct replicas never contradict themselves");
    }
}

#[test]
fn one_silent_backup_holds_nothing_up() {
    for seed in seeds(8) {
        let mut t = Cluster::new(seed, 4).weather(Weather::STORM);
        t.silent.insert(3);
        t.ask_times(0, 20).ask_times(1, 20).ask_times(2, 20);
        t.until_all_written(2 * MINUTE).check_ledgers();
    }
}

#[test]
fn under_load_batches_grow_and_not_their_number() {
    let far = Weather { min_delay_us: 30_000, max_delay_us: 40_000, ..Weather::FAIR };
    let mut t = Cluster::new(1, 4).weather(far);
    for _ in 0..200 {
        t.ask(0).ask(1).run(Duration::from_millis(2));
    }
    t.until_all_written(10 * SECOND).check_ledgers();
    // 400 requests in as many milliseconds, and about 120 from proposal to execution.
    let blocks = t.node(0).blocks.len();
    assert!(blocks < 40, "{blocks} blocks");
}

#[test]
fn without_a_quorum_nothing_is_executed_and_with_it_everything_is() {
    let mut t = Cluster::new(1, 4);
    t.cut_off.extend([2, 3]);
    t.ask_times(1, 5).run(10 * SECOND);
    assert!(t.nodes.iter().all(|node| node.written.is_empty()), "only the registration");
    t.cut_off.clear();
    t.until_all_written(MINUTE).check_ledgers();
}

#[test]
fn each_replica_may_crash_and_goes_on_where_its_log_ends() {
    for seed in seeds(8) {
        let mut t = Cluster::new(seed, 4);
        for node in 0..4 {
            t.ask_times(node, 10).run(Duration::from_millis(4));
            t.crash(node).run(Duration::from_millis(1 + seed % 9));
            t.restart(node).ask_times((node + 1) % 4, 10).run(Duration::from_millis(20));
        }
        t.until_all_written(MINUTE).check_ledgers();
        assert!(t.evidence.is_empty(), "what was promised before a crash is kept");
    }
}

#[test]
fn a_whole_cluster_that_loses_power_comes_back_by_itself() {
    for seed in seeds(8) {
        let mut t = Cluster::new(seed, 4);
        for round in 0..5 {
            for node in 0..4 {
                t.ask_times(node, 12);
            }
            t.run(Duration::from_millis(3 + 4 * round + seed % 5));
            for node in 0..4 {
                t.crash(node);
            }
            t.run(SECOND);
            for node in 0..4 {
                t.restart(node);
            }
        }
        t.until_all_written(MINUTE).check_ledgers();
        assert!(t.evidence.is_empty());
    }
}

#[test]
fn a_single_replica_survives_crashes_at_any_moment() {
    for seed in seeds(20) {
        let mut t = Cluster::new(seed, 1);
        for _ in 0..6 {
            t.ask_times(0, 5).run(Duration::from_micros(1_000 + 700 * seed));
            t.crash(0).run(SECOND).restart(0);
        }
        t.until_all_written(MINUTE).check_ledgers();
    }
}

#[test]
fn a_single_replica_that_lacks_certificates_does_not_ask_itself_without_end() {
    let mut t = Cluster::new(1, 1);
    t.nodes[0].durable_every = 1;
    t.ask(0).until_all_written(SECOND).ask(0).until_all_written(SECOND);
    t.lose_disk(0).nodes[0].certificates.clear();
    t.restart(0).run(SECOND);
    assert!(!t.node(0).uncertified().is_empty());
}

#[test]
fn a_backup_that_missed_more_than_a_window_fetches_blocks() {
    let mut t = Cluster::with(3, 4, |settings| settings.batch_max_requests = 1);
    t.cut_off.insert(3);
    for _ in 0..70 {
        t.ask_times(1, 5).run(Duration::from_millis(20));
    }
    t.run(SECOND);
    assert!(t.node(0).state.head().sequence > SeqNum(300));
    t.cut_off.clear();
    t.until_all_written(MINUTE).check_ledgers();
    assert!(t.node(3).blocks_fetched > 256);
}

#[test]
fn a_backup_that_was_down_for_long_catches_up_when_nothing_else_happens() {
    let mut t = Cluster::new(5, 4);
    t.ask_times(0, 3).until_all_written(SECOND);
    t.crash(2);
    t.ask_times(0, 3).run(SECOND).ask_times(1, 3).run(10 * SECOND);
    t.restart(2).until_all_written(10 * SECOND).check_ledgers();
    assert!(t.node(2).blocks_fetched > 0);
}

#[test]
fn batches_that_change_nothing_are_passed_over_by_who_missed_them() {
    let mut t = Cluster::new(7, 4);
    t.ask(1).until_all_written(SECOND);
    t.cut_off.insert(3);
    let before = t.node(0).state.head().clone();
    for number in 1..9 {
        t.ask_for_stranger(0, number).run(SECOND / 10);
    }
    let head = t.node(0).state.head().clone();
    assert_eq!((head.sequence.0, head.height), (before.sequence.0 + 8, before.height));
    t.cut_off.clear();
    t.run_until(MINUTE, "the backup is there too", |t| t.node(3).state.head().sequence == head.sequence);
    assert_eq!((t.node(3).skips, t.node(3).blocks_fetched), (1, 0));
    t.ask(3).until_all_written(SECOND).check_ledgers();
}

#[test]
fn chaos_of_crashes_and_partitions_never_breaks_agreement_and_ends_in_progress() {
    for seed in seeds(12) {
        let mut t = Cluster::with(seed, 4, |settings| settings.batch_max_requests = 4);
        t.weather = Weather { loss_percent: 5, ..Weather::STORM };
        for _ in 0..60 {
            let node = t.rng.below(4) as usize;
            match t.rng.below(8) {
                0 => drop(t.crash(node)),
                1 | 2 => drop(t.restart(node)),
                3 => drop(t.cut_off.insert(node)),
                4 => t.cut_off.clear(),
                _ => drop(t.ask_times(node, 4)),
            }
            let pause = Duration::from_millis(t.rng.below(60));
            t.run(pause);
        }
        t.cut_off.clear();
        t.weather = Weather::FAIR;
        for node in 0..4 {
            t.restart(node);
        }
        t.until_all_written(2 * MINUTE).check_ledgers();
        assert!(t.evidence.is_empty(), "correct replicas never contradict themselves");
        t.run_until(5 * MINUTE, "no request is left over anywhere", |t| {
            t.nodes.iter().all(|node| node.replica.as_ref().unwrap().status().pending == 0)
        });
        t.check_ledgers();
    }
}

#[test]
fn a_primary_that_proposes_two_batches_for_one_number_is_shown_and_splits_nobody() {
    for seed in seeds(8) {
        let mut t = Cluster::new(seed, 4);
        t.world.faulty.insert(0);
        t.silent.insert(0);
        t.ask(1).ask(2).run(Duration::from_millis(50));
        let (one, other) = (t.request(1, 1).digest(), t.request(2, 1).digest());
        let batches = [t.batch(0, vec![one], 1), t.batch(0, vec![other], 2)];
        t.silent.clear();
        for to in 1..4 {
            let first = &batches[to % 2];
            let envelope = t.pre_prepare(0, 2, first.clone());
            t.inject(0, to, Duration::ZERO, &envelope);
        }
        t.run(Duration::from_millis(50));
        for to in 1..4 {
            for batch in &batches {
                let digest = batch.digest();
                for envelope in [t.pre_prepare(0, 2, batch.clone()), t.commit(0, 2, digest)] {
                    t.inject(0, to, Duration::ZERO, &envelope);
                }
            }
        }
        t.run(5 * SECOND).check_ledgers();
        assert!(!t.evidence.is_empty(), "the contradiction is exposed");
        let accused = t.evidence.iter().map(|evidence| evidence.claimed().unwrap().node);
        assert!(accused.into_iter().all(|node| node == t.keys[0].node_id()));
    }
}

#[test]
fn a_backup_that_votes_for_everything_cannot_make_others_commit() {
    let mut t = Cluster::new(2, 4);
    t.world.faulty.insert(3);
    let digest = ledgermq::types::Hash([9; 32]);
    for sequence in 1..10 {
        for to in 0..3 {
            for envelope in [t.prepare(3, 1 + sequence, digest), t.commit(3, 1 + sequence, digest)] {
                t.inject(3, to, Duration::ZERO, &envelope);
            }
        }
    }
    t.run(Duration::from_millis(50)).ask_times(0, 5).ask_times(1, 5).until_all_written(MINUTE);
    t.check_ledgers();
}

#[test]
#[should_panic(expected = "replicas disagree on the result")]
fn the_checker_sees_a_replica_whose_result_differs() {
    let mut t = Cluster::new(1, 4);
    t.ask(0).until_all_written(SECOND);
    t.damage(2).ask(0).run(5 * SECOND);
}

#[test]
#[should_panic(expected = "contradicts itself")]
fn the_checker_sees_a_primary_that_lost_its_log_propose_anew() {
    let mut t = Cluster::new(1, 4);
    t.cut_off.insert(0);
    t.ask(0).run(Duration::from_millis(20));
    t.lose_disk(0).restart(0).ask(0).run(SECOND);
}

#[test]
fn a_replica_whose_state_is_damaged_notices_it() {
    let mut t = Cluster::new(1, 4);
    t.ask(0).until_all_written(SECOND);
    t.world.faulty.insert(2);
    t.damage(2).ask(0).run(5 * SECOND);
    assert!(t.diverged.contains(&2));
}

#[test]
fn a_dead_primary_is_replaced_and_requests_are_final_within_two_seconds() {
    for n in [2, 3, 4, 5, 7, 10] {
        let mut t = Cluster::new(n as u64, n);
        t.ask_times(n - 1, 5).until_all_written(SECOND);
        t.crash(0).run(SECOND);
        t.ask_times(n - 1, 5);
        if n >= 4 {
            t.until_all_written(2 * SECOND);
        } else {
            // No replica of two or three may fail: they wait for it.
            t.run(5 * SECOND);
        }
        t.restart(0).ask(0).until_all_written(MINUTE).check_ledgers();
        assert!(t.evidence.is_empty());
    }
}

#[test]
fn a_primary_that_is_not_heard_is_replaced() {
    for seed in seeds(8) {
        let mut t = Cluster::new(seed, 4).weather(Weather::STORM);
        t.silent.insert(0);
        t.ask_times(1, 20).ask_times(2, 20).until_all_written(MINUTE).check_ledgers();
        t.silent.clear();
        t.ask(0).until_all_written(MINUTE).check_ledgers();
    }
}

#[test]
fn a_primary_that_dies_at_any_moment_takes_nothing_with_it() {
    for seed in seeds(30) {
        let mut t = Cluster::with(seed, 4, |settings| settings.batch_max_requests = 2);
        t.ask_times(1, 6).ask_times(2, 6).ask_times(3, 6).run(Duration::from_micros(1_000 + 400 * seed));
        t.crash(0).until_all_written(10 * SECOND);
        t.ask_times(3, 6).run(Duration::from_millis(5));
        t.restart(0).until_all_written(MINUTE).check_ledgers();
        assert!(t.evidence.is_empty());
    }
}

#[test]
fn primaries_that_die_one_after_another_are_all_replaced() {
    for (n, dead) in [(7, 2), (10, 3)] {
        let mut t = Cluster::new(3, n);
        for primary in 0..dead {
            t.ask_times(n - 1, 4).run(Duration::from_millis(3));
            t.crash(primary).run(Duration::from_millis(300));
        }
        t.ask_times(n - 1, 4).until_all_written(MINUTE);
        for primary in 0..dead {
            t.restart(primary).ask(primary);
        }
        t.until_all_written(MINUTE).check_ledgers();
    }
}

#[test]
fn idle_replicas_stay_in_their_view_and_one_that_was_away_finds_it() {
    let mut t = Cluster::new(4, 4);
    t.ask(1).until_all_written(SECOND).run(10 * MINUTE);
    assert!(t.nodes.iter().all(|node| node.replica.as_ref().unwrap().status().view.0 == 0));
    t.crash(0).run(SECOND).ask(1).until_all_written(10 * SECOND);
    t.restart(0).ask(0).until_all_written(10 * SECOND).check_ledgers();
    let views: Vec<u64> = t.nodes.iter().map(|node| node.replica.as_ref().unwrap().status().view.0).collect();
    assert_eq!(views, [1, 1, 1, 1]);
}

/// The primary goes away in the middle of its work, and the next one leaves out of its NEW-VIEW what
/// was prepared.
fn a_liar_makes_the_new_view(seed: u64) -> u64 {
    after_a_liars_new_view(seed).happened
}

/// How that ends.
pub fn after_a_liars_new_view(seed: u64) -> Cluster {
    let mut t = Cluster::with(seed, 4, |settings| settings.batch_max_requests = 1);
    t.corrupt(1, Box::new(FalseNewView));
    t.weather.max_delay_us = 6_000;
    t.ask_times(2, 3).ask_times(3, 3).run(Duration::from_micros(6_000 + 500 * (seed % 60)));
    // What the others still say reaches the one that leaves: it may be the only one to execute.
    for to in [2, 3] {
        t.links.cut_one_way(0, to);
        t.links.cut_one_way(5 - to, to);
    }
    t.run(Duration::from_millis(10));
    t.cut_off.insert(0);
    // Until the others have given it up, and with it their old votes.
    t.run(SECOND * 3 / 2);
    t.links.heal();
    t.run(8 * SECOND).heal();
    t.ask(0).ask(2).until_all_final().check_ledgers();
    t
}

#[test]
fn a_new_view_that_leaves_out_what_was_prepared_is_refused() {
    run::all(
        "scenarios::a_new_view_that_leaves_out_what_was_prepared_is_refused",
        seeds(30),
        a_liar_makes_the_new_view,
    );
}

#[test]
fn a_replica_that_lost_its_log_keeps_silent_until_it_cannot_contradict_itself() {
    for seed in seeds(8) {
        let mut t = Cluster::with(seed, 4, |settings| settings.batch_max_requests = 1);
        t.ask_times(1, 5).run(Duration::from_millis(3 + seed));
        let lost = (seed % 4) as usize;
        t.lose_disk(lost);
        t.nodes[lost].lost_log = true;
        t.run(Duration::from_millis(50)).restart(lost);
        for round in 0..30 {
            t.ask_times((round + 1) % 4, 3).run(Duration::from_millis(200));
        }
        t.until_all_final().check_ledgers();
        assert!(t.evidence.is_empty());
    }
}
