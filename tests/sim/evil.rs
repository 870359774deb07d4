//! Each adversary meets a cluster of its own, and must really do its evil there: its lies are heard
//! by correct cores, refused where anybody can tell, and everything becomes final all the same.

use std::time::Duration;

use crate::adversary::censoring_primary::CensoringPrimary;
use crate::adversary::deeds::Deed;
use crate::adversary::equivocating_backup::EquivocatingBackup;
use crate::adversary::equivocating_primary::EquivocatingPrimary;
use crate::adversary::fickle::Fickle;
use crate::adversary::flooder::Flooder;
use crate::adversary::forger::Forger;
use crate::adversary::forwarder::Forwarder;
use crate::adversary::replayer::Replayer;
use crate::adversary::silent::Silent;
use crate::adversary::slow::Slow;
use crate::adversary::view_change_spammer::ViewChangeSpammer;
use crate::adversary::wrong_checkpoints::WrongCheckpoints;
use crate::adversary::{Adversary, colluders, twins};
use crate::cluster::Cluster;
use crate::rng::Rng;
use crate::run;
use crate::scenarios::after_a_liars_new_view;

/// Two seconds of requests through all nodes, and what the adversary at `at` did meanwhile.
fn live_with(t: &mut Cluster, at: usize) -> Deed {
    for round in 0..20 {
        for node in 0..t.n() {
            t.ask_times(node, 1 + round % 2);
        }
        t.run(Duration::from_millis(100));
    }
    t.until_all_final().check_ledgers();
    *t.deeds.of(at)
}

/// The same in a cluster of four.
fn meet(at: usize, adversary: Box<dyn Adversary>) -> (Cluster, Deed) {
    meet_with(7, at, adversary)
}

fn meet_with(seed: u64, at: usize, adversary: Box<dyn Adversary>) -> (Cluster, Deed) {
    let mut t = Cluster::new(seed, 4);
    t.title = adversary.name().to_owned();
    t.corrupt(at, adversary);
    let deed = live_with(&mut t, at);
    (t, deed)
}

#[test]
fn a_silent_primary_says_nothing_and_is_replaced() {
    let (t, deed) = meet(0, Box::new(Silent));
    assert!(deed.sent == 0 && deed.withheld > 0, "{deed:?}");
    assert!(t.views().max().unwrap() > 0);
}

#[test]
fn a_slow_primary_keeps_everybody_waiting() {
    let (_, deed) = meet(0, Box::new(Slow));
    assert!(deed.delayed > 100, "{deed:?}");
}

#[test]
fn an_equivocating_primary_is_heard_contradicted_and_shown() {
    // It is deposed after a few proposals, and of each only now and then somebody hears both.
    let is_shown = (1..=16).any(|seed| {
        let (t, deed) = meet_with(seed, 0, Box::<EquivocatingPrimary>::default());
        assert!(deed.contradictions > 0 && deed.heard > 0, "{deed:?}");
        deed.refused > 0 && !t.evidence.is_empty()
    });
    assert!(is_shown, "nobody kept what proves it");
}

#[test]
fn an_equivocating_backup_is_heard_and_shown() {
    let (t, deed) = meet(1, Box::new(EquivocatingBackup));
    assert!(deed.contradictions > 0 && deed.heard > 0, "{deed:?}");
    assert!(!t.evidence.is_empty(), "nobody kept what proves it");
}

#[test]
fn a_censoring_primary_withholds_one_nodes_requests_and_is_replaced() {
    let (t, deed) = meet(0, Box::new(CensoringPrimary { victim: 2 }));
    assert!(deed.withheld > 0 && deed.sent > 0, "{deed:?}");
    assert!(t.views().max().unwrap() > 0);
}

#[test]
fn a_spammer_of_view_changes_is_heard_and_moves_nobody() {
    let (t, deed) = meet(2, Box::<ViewChangeSpammer>::default());
    assert!(deed.heard > 10, "{deed:?}");
    assert_eq!(t.views().filter(|view| *view > 0).count(), 0, "one replica's word moved others");
}

#[test]
fn a_false_new_view_is_heard_and_refused() {
    let (mut refused, mut replaced) = (0, 0);
    for seed in 0..30 {
        let mut t = after_a_liars_new_view(seed);
        let deed = *t.deeds.of(1);
        assert!(deed.lies > 0 && deed.heard > 0, "{deed:?}");
        refused += deed.refused;
        replaced += u64::from(t.views().max().unwrap() > 1);
    }
    // Where nothing was prepared there is nothing to leave out, and the liar says the truth.
    assert!(refused > 0 && replaced > 0, "{refused} lies were refused, {replaced} liars replaced");
}

#[test]
fn a_forger_in_the_names_of_others_is_not_even_heard() {
    let (_, deed) = meet(2, Box::<Forger>::default());
    assert!(deed.unsigned > 10, "{deed:?}");
    assert_eq!(deed.contradictions, 0, "{deed:?}");
}

#[test]
fn a_replayer_is_heard_and_refused() {
    let (t, deed) = meet(2, Box::<Replayer>::default());
    assert!(deed.heard > 10 && deed.refused * 2 > deed.heard, "{deed:?}");
    assert!(t.evidence.is_empty(), "what is repeated contradicts nothing");
}

#[test]
fn a_flooder_is_heard_and_most_of_it_refused() {
    let (_, deed) = meet(2, Box::<Flooder>::default());
    assert!(deed.heard > 100 && deed.refused * 3 > deed.heard, "{deed:?}");
}

#[test]
fn a_forwarder_holds_nobody_up_and_deposes_nobody() {
    for seed in run::seeds(8) {
        let mut t = Cluster::new(seed, 4);
        t.corrupt(2, Box::<Forwarder>::default());
        let deed = live_with(&mut t, 2);
        assert!(deed.lies > 500 && deed.withheld > 0, "{deed:?}");
        assert_eq!(t.views().max(), Some(0), "seed {seed}: an honest primary was replaced");
    }
}

/// Each of the honest ones leads in turn, and is no longer the primary when the next one does.
#[test]
fn a_forwarder_holds_nobody_up_while_views_change() {
    for seed in run::seeds(8) {
        let mut t = Cluster::new(seed, 4);
        t.corrupt(3, Box::<Forwarder>::default());
        for primary in 0..3 {
            for node in 0..3 {
                t.ask_times(node, 3);
            }
            t.run(Duration::from_millis(3 + seed % 7)).crash(primary);
            t.ask_times((primary + 1) % 3, 2).run(Duration::from_secs(3));
            t.restart(primary).until_all_written(Duration::from_secs(20));
        }
        t.run(Duration::from_secs(5));
        let led = t.views().max();
        t.ask(0).ask(1).ask(2).until_all_final().run(Duration::from_secs(10)).check_ledgers();
        assert_eq!(t.views().max(), led, "seed {seed}: an honest primary was replaced");
    }
}

#[test]
fn wrong_checkpoints_are_heard_and_shown() {
    let (t, deed) = meet(2, Box::new(WrongCheckpoints));
    assert!(deed.heard > 0 && deed.contradictions > 0, "{deed:?}");
    assert!(!t.evidence.is_empty(), "nobody kept what proves it");
}

#[test]
fn twins_contradict_each_other() {
    // Whom each of them talks to is drawn; where one has nearly all to itself, the other says little.
    let contradictions: u64 = (0..6)
        .map(|seed| {
            let mut t = Cluster::new(seed, 4);
            let twin = twins::install(&mut t, 0);
            live_with(&mut t, 0);
            t.deeds.of(0).contradictions + t.deeds.of(twin).contradictions
        })
        .sum();
    assert!(contradictions > 0, "they agree on everything");
}

#[test]
fn a_fickle_replica_is_evil_in_more_than_one_way() {
    let fickle = Fickle::new(&mut Rng::new(3), 4);
    let (_, deed) = meet(1, Box::new(fickle));
    let ways = [deed.withheld, deed.delayed, deed.unsigned, deed.heard, deed.contradictions];
    assert!(ways.iter().filter(|way| **way > 0).count() > 1, "{deed:?}");
}

/// The adversaries lead views 0 to f-1, and every number that they propose is shown in two ways.
fn colluders_split_nobody(n: usize, seeds: u64) {
    for seed in run::seeds(seeds) {
        let mut t = Cluster::with(seed, n, |settings| settings.batch_max_requests = 2);
        t.title = format!("n = {n}, colluders");
        let gang: Vec<usize> = (0..t.world.f).collect();
        colluders::install(&mut t, &gang);
        live_with(&mut t, 0);
        let deeds: Vec<Deed> = gang.iter().map(|at| *t.deeds.of(*at)).collect();
        assert!(deeds[0].contradictions > 0, "{deeds:?}");
        assert!(deeds.iter().all(|deed| deed.heard > 0), "{deeds:?}");
    }
}

#[test]
fn a_colluding_pair_of_seven_splits_nobody() {
    colluders_split_nobody(7, 3);
}

#[test]
fn three_colluders_of_ten_split_nobody() {
    colluders_split_nobody(10, 1);
}
