//! Stories in which a planted mistake makes two honest replicas disagree. In the storm these
//! mistakes show as lost liveness first; here each leads straight to the breach of safety that it
//! stands for. Without the mistake each story ends well.
//!
//! ```text
//! view 0: batch A commits at replica 2 alone ─▶ 2 is cut off ─▶ view 1 without it ─▶ what of A?
//! ```

use std::time::Duration;

use ledgermq::ledger::CheckpointContent;
use ledgermq::pbft::message::{Batch, Commit, Content, PrePrepare, Prepare};
use ledgermq::pbft::{Envelope, Signed};
use ledgermq::types::{SeqNum, View};

use crate::adversary::{Adversary, Power};
use crate::cluster::Cluster;
use crate::run::{self, seeds};

const SECOND: Duration = Duration::from_secs(1);

fn view(t: &Cluster, at: usize) -> View {
    t.node(at).replica.as_ref().unwrap().status().view
}

fn accepted(t: &Cluster, at: usize) -> SeqNum {
    t.node(at).replica.as_ref().unwrap().status().accepted
}

fn executed(t: &Cluster, at: usize) -> SeqNum {
    t.node(at).state.head().sequence
}

/// Batch A of primary 0 is agreed to by all and prepared at 1, 2 and 3; only 2 executes it. Then 0, 1
/// and 3 are in view 1 or on the way, and 2 is cut off.
fn one_executes_and_is_cut_off(t: &mut Cluster) {
    let next = executed(t, 0).next();
    for (from, to) in [(1, 3), (3, 1)] {
        t.links.cut_one_way(from, to);
    }
    t.ask(2);
    t.run_until(SECOND, "all agree to A", |t| (0..4).all(|at| accepted(t, at) == next));
    // Of the primary nothing is heard any more; so 1 and 3 have only two COMMITs each.
    t.cut_off.insert(0);
    t.run_until(SECOND / 2, "2 executes A", |t| executed(t, 2) == next);
    t.cut_off.insert(2);
    t.run_until(5 * SECOND, "the others give view 0 up", |t| {
        [0, 1, 3].iter().all(|at| view(t, *at) > View(0))
    });
    assert!([0, 1, 3].iter().all(|at| executed(t, *at) < next), "2 alone executed it");
    t.links.heal();
    t.cut_off.remove(&0);
}

/// The new view of 0, 1 and 3 must bring A again.
pub fn what_one_executed_comes_again_in_the_next_view(seed: u64) -> u64 {
    let mut t = Cluster::with(seed, 4, |settings| settings.batch_max_requests = 1);
    one_executes_and_is_cut_off(&mut t);
    t.ask(0).ask(1).run(8 * SECOND).heal();
    t.ask(3).until_all_final().check_ledgers();
    assert!(t.evidence.is_empty());
    t.happened
}

#[test]
fn what_one_replica_executed_comes_again_in_the_next_view() {
    let name = "directed::what_one_replica_executed_comes_again_in_the_next_view";
    run::all(name, seeds(10), what_one_executed_comes_again_in_the_next_view);
}

/// As the primary of a view it puts null batches where something was prepared, and then commits to
/// whatever anybody votes for.
struct FalsePrimary;

impl Adversary for FalsePrimary {
    fn name(&self) -> &'static str {
        "false primary"
    }

    fn on_send(&mut self, power: &mut Power<'_>, envelope: Envelope) {
        let Content::NewView(mut new_view) = envelope.signed.content.clone() else {
            return power.broadcast(&envelope);
        };
        for (at, proposal) in new_view.proposals.iter_mut().enumerate() {
            let sequence = SeqNum(new_view.stable.0 + 1 + at as u64);
            let null = PrePrepare { view: new_view.view, sequence, batch: Batch::null() };
            let digest = null.batch.digest();
            *proposal = (digest, power.sign(Content::PrePrepare(null)).signed.signature);
        }
        let lie = power.sign(Content::NewView(new_view));
        power.broadcast(&lie);
    }

    fn on_hear(&mut self, power: &mut Power<'_>, heard: &Signed) -> bool {
        commit_to_whatever(power, heard);
        true
    }
}

/// A COMMIT for each PREPARE of a later view than the first.
fn commit_to_whatever(power: &mut Power<'_>, heard: &Signed) {
    if let Content::Prepare(Prepare { view, sequence, digest }) = heard.content
        && view > View(0)
    {
        let commit = power.sign(Content::Commit(Commit { view, sequence, digest }));
        power.broadcast(&commit);
    }
}

/// The primary of the new view hides A; who recomputes O sees it.
pub fn a_new_view_that_hides_what_one_executed(seed: u64) -> u64 {
    let mut t = Cluster::with(seed, 4, |settings| settings.batch_max_requests = 1);
    t.corrupt(1, Box::new(FalsePrimary));
    one_executes_and_is_cut_off(&mut t);
    t.run(8 * SECOND).heal();
    t.ask(3).until_all_final().check_ledgers();
    t.happened
}

#[test]
fn a_new_view_that_hides_what_one_replica_executed_is_refused() {
    let name = "directed::a_new_view_that_hides_what_one_replica_executed_is_refused";
    run::all(name, seeds(10), a_new_view_that_hides_what_one_executed);
}

/// In view 0 it says only what the story makes it say; later it is correct, but for the votes that
/// it gives to everything.
struct YesMan;

impl Adversary for YesMan {
    fn name(&self) -> &'static str {
        "yes-man"
    }

    fn on_send(&mut self, power: &mut Power<'_>, envelope: Envelope) {
        if envelope.signed.content.view() != Some(View(0)) {
            power.broadcast(&envelope);
        }
    }

    fn on_hear(&mut self, power: &mut Power<'_>, heard: &Signed) -> bool {
        commit_to_whatever(power, heard);
        if let Content::Prepare(prepare) = heard.content
            && prepare.view > View(0)
        {
            let vote = power.sign(Content::Prepare(prepare));
            power.broadcast(&vote);
        }
        true
    }
}

/// The primary shows A to 1 and 2 and B to 3, and adds its own PREPARE for B: that is no second vote.
pub fn a_primary_that_votes_for_its_own_proposal(seed: u64) -> u64 {
    let mut t = Cluster::with(seed, 4, |settings| settings.batch_max_requests = 1);
    t.cut_off.insert(0);
    t.ask(1).ask(2).run(SECOND / 20);
    let next = executed(&t, 1).next().0;
    let (one, other) = (t.request(1, 1).digest(), t.request(2, 1).digest());
    let a = t.batch(0, vec![one], 1_000);
    // Between two proofs of one view the higher digest would win.
    let after = (1_001..).find(|ms| t.batch(0, vec![other], *ms).digest() > a.digest()).unwrap();
    let b = t.batch(0, vec![other], after);
    t.corrupt(0, Box::new(YesMan));
    t.cut_off.clear();
    let said = [
        (1, t.pre_prepare(0, next, a.clone())),
        (2, t.pre_prepare(0, next, a.clone())),
        (3, t.pre_prepare(0, next, b.clone())),
        (3, t.prepare(0, next, b.digest())),
        (2, t.commit(0, next, a.digest())),
    ];
    for (to, envelope) in said {
        t.inject(0, to, Duration::ZERO, &envelope);
    }
    t.run_until(SECOND / 2, "2 executes A", |t| executed(t, 2) == SeqNum(next));
    t.cut_off.insert(2);
    t.run(8 * SECOND).heal();
    t.ask(3).until_all_final().check_ledgers();
    t.happened
}

#[test]
fn a_primarys_vote_for_its_own_proposal_counts_once() {
    let name = "directed::a_primarys_vote_for_its_own_proposal_counts_once";
    run::all(name, seeds(10), a_primary_that_votes_for_its_own_proposal);
}

/// It says nothing but what the story makes it say.
struct Mute;

impl Adversary for Mute {
    fn name(&self) -> &'static str {
        "mute"
    }

    fn on_send(&mut self, _: &mut Power<'_>, _: Envelope) {}
}

/// One replica tells another one, which was away, that nothing happened meanwhile.
pub fn one_says_that_nothing_happened(seed: u64) -> u64 {
    let mut t = Cluster::new(seed, 4);
    t.ask(1).until_all_written(10 * SECOND);
    t.cut_off.insert(3);
    t.ask(1).ask(2).until_all_written(10 * SECOND);
    t.corrupt(0, Box::new(Mute));
    let lie = CheckpointContent { sequence: executed(&t, 1), ..t.node(3).state.checkpoint() };
    t.cut_off.clear();
    let lie = t.forge(0, Content::Checkpoint(lie));
    t.inject(0, 3, Duration::ZERO, &lie);
    t.run(5 * SECOND);
    t.ask(3).until_all_final().check_ledgers();
    t.happened
}

#[test]
fn one_replicas_word_that_nothing_happened_is_not_enough() {
    let name = "directed::one_replicas_word_that_nothing_happened_is_not_enough";
    run::all(name, seeds(10), one_says_that_nothing_happened);
}
