//! State transfer: who is behind, wiped or without its log fetches blocks, over bad networks and from
//! peers that lie, and takes part again.

use std::time::Duration;

use ledgermq::types::SeqNum;

use crate::adversary::forger::Forger;
use crate::adversary::silent::Silent;
use crate::cluster::Cluster;
use crate::network::Weather;
use crate::run::seeds;

const SECOND: Duration = Duration::from_secs(1);

/// More numbers than a window, without the replicas that are away.
const MANY: u64 = 300;

/// A cluster in which each request is a number of its own.
fn cluster(seed: u64, n: usize) -> Cluster {
    Cluster::with(seed, n, |settings| settings.batch_max_requests = 1)
}

/// Requests through `node` until so many numbers are executed there.
fn execute_many(t: &mut Cluster, node: usize) {
    let wanted = SeqNum(t.node(node).state.head().sequence.0 + MANY);
    while t.node(node).state.head().sequence < wanted {
        t.ask_times(node, 5).run(Duration::from_millis(20));
    }
    t.run(SECOND);
}

#[test]
fn blocks_come_over_a_network_that_loses_delays_and_doubles() {
    for seed in seeds(2) {
        let mut t = cluster(seed, 4);
        t.cut_off.insert(3);
        execute_many(&mut t, 1);
        t.cut_off.clear();
        t.weather =
            Weather { loss_percent: 30, duplicate_percent: 20, min_delay_us: 200, max_delay_us: 200_000 };
        t.until_all_final().check_ledgers();
        assert!(t.node(3).blocks_fetched as u64 > MANY / 2, "{} blocks", t.node(3).blocks_fetched);
    }
}

#[test]
fn altered_blocks_and_forged_certificates_of_lying_peers_are_refused() {
    for seed in seeds(2) {
        let mut t = cluster(seed, 7);
        t.corrupt(1, Box::<Forger>::default()).corrupt(2, Box::<Forger>::default());
        t.cut_off.insert(6);
        execute_many(&mut t, 3);
        t.cut_off.clear();
        t.weather.loss_percent = 10;
        t.until_all_final().check_ledgers();
        assert!(t.node(6).blocks_fetched as u64 > MANY / 2, "{} blocks", t.node(6).blocks_fetched);
        assert!(t.node(6).blocks_refused > 0, "seed {seed}: nobody lied to it");
    }
}

#[test]
fn peers_that_answer_nothing_hold_nobody_up_who_is_behind() {
    for seed in seeds(2) {
        let mut t = cluster(seed, 4);
        t.cut_off.insert(3);
        execute_many(&mut t, 1);
        t.corrupt(2, Box::new(Silent));
        t.cut_off.clear();
        t.until_all_final().check_ledgers();
        assert!(t.deeds.of(2).withheld > 0);
    }
}

#[test]
fn a_replica_that_crashes_while_it_fetches_goes_on_where_it_was() {
    for seed in seeds(2) {
        let mut t = cluster(seed, 4);
        t.cut_off.insert(3);
        execute_many(&mut t, 1);
        t.cut_off.clear();
        for _ in 0..4 {
            let before = t.node(3).blocks_fetched;
            t.run_until(10 * SECOND, "it fetches", |t| {
                t.node(3).blocks_fetched > before || t.liveness.is_final_at(t.node(3))
            });
            t.crash(3).run(SECOND / 10).restart(3);
        }
        t.until_all_final().check_ledgers();
    }
}

#[test]
fn a_wiped_replica_fetches_the_whole_ledger_and_votes_only_when_it_is_safe() {
    for seed in seeds(2) {
        let mut t = cluster(seed, 4);
        execute_many(&mut t, 1);
        t.wipe(3).run(SECOND).restart(3);
        t.run_until(20 * SECOND, "it has the ledger", |t| t.liveness.is_final_at(t.node(3)));
        let silent = |t: &Cluster| t.node(3).replica.as_ref().unwrap().status().silent;
        assert!(silent(&t), "it may have voted for any of those that it now fetched");
        // It listens first, then stays silent for a window above what it heard.
        t.run(12 * SECOND);
        execute_many(&mut t, 1);
        t.run_until(20 * SECOND, "it votes again", |t| !silent(t));
        // It is needed now.
        t.crash(2).ask(1).until_all_written(10 * SECOND).restart(2);
        t.ask(3).until_all_final().check_ledgers();
        assert!(t.evidence.is_empty());
    }
}
