//! The model proved: with each mistake the checker finds two correct replicas that disagree.

use std::collections::BTreeSet;

use ledgermq::clock::{Clock as _, SystemClock};
use stateright::{Checker, HasDiscoveries};

use crate::bounds::{Bounds, Mistake, REPLICAS};
use crate::checks::checker;
use crate::properties::AGREEMENT;
use crate::protocol::Protocol;

/// The steps to a disagreement, if there can be one.
fn disagreement(bounds: Bounds) -> Option<usize> {
    let first = HasDiscoveries::AllOf(BTreeSet::from([AGREEMENT]));
    let checked = checker(Protocol::new(bounds)).finish_when(first).spawn_bfs().join();
    checked.discovery(AGREEMENT).map(|path| path.into_actions().len())
}

/// Which replica has to be faulty for a disagreement, with this mistake made.
fn victims(mistake: Mistake, views: usize) -> Vec<usize> {
    let begun = SystemClock::new();
    let found = |byzantine: &usize| {
        let steps = disagreement(Bounds::any_number(*byzantine, views).eagerly().with(mistake));
        println!("{mistake:?}: replica {byzantine} is faulty: {steps:?} steps, {:?}", begun.monotonic());
        steps.is_some()
    };
    (0..REPLICAS).filter(found).collect()
}

/// It makes no difference which one.
const ANY: [usize; 4] = [0, 1, 2, 3];

/// Only primaries propose: those of view 0 and view 1.
const PRIMARIES: [usize; 2] = [0, 1];

#[test]
fn a_quorum_that_is_too_small_is_found() {
    assert_eq!(victims(Mistake::QuorumTooSmall, 2), ANY);
}

#[test]
fn a_commit_that_waits_for_no_prepares_is_found() {
    assert_eq!(victims(Mistake::CommitWithoutPrepares, 2), [0]);
}

#[test]
fn proposals_that_contradict_and_are_both_accepted_are_found() {
    assert_eq!(victims(Mistake::EquivocationAccepted, 2), PRIMARIES);
}

#[test]
fn votes_for_a_view_that_was_given_up_are_found() {
    assert_eq!(victims(Mistake::OldViewVotes, 2), ANY);
}

#[test]
fn a_new_view_that_ignores_what_was_prepared_is_found() {
    assert_eq!(victims(Mistake::PreparedIgnored, 2), ANY);
}

#[test]
fn certificates_that_nobody_checks_are_found() {
    assert_eq!(victims(Mistake::CertificatesBelieved, 2), ANY);
}

#[test]
fn a_new_view_that_nobody_computes_again_is_found() {
    assert_eq!(victims(Mistake::ProposalsBelieved, 2), [1]);
}

#[test]
fn a_new_view_of_too_few_view_changes_is_found() {
    assert_eq!(victims(Mistake::NewViewOfTooFew, 2), ANY);
}

#[test]
fn a_carried_number_that_is_proposed_afresh_is_found() {
    assert_eq!(victims(Mistake::CarriedProposedAfresh, 2), ANY);
}

#[test]
fn the_lower_of_two_certificates_is_found() {
    assert_eq!(victims(Mistake::LowestViewChosen, 3), ANY);
}

#[test]
fn certificates_of_earlier_views_that_are_forgotten_are_found() {
    assert_eq!(victims(Mistake::EarlierViewsForgotten, 3), ANY);
}

/// The checker works with the core's own functions: what is planted there, it finds.
#[cfg(feature = "planted-bugs")]
#[test]
fn what_is_planted_in_the_core_is_found_by_the_model() {
    use ledgermq::planted::{self, Bug};
    for bug in [Bug::PSetIgnored, Bug::QuorumOffByOne] {
        planted::with(Some(bug));
        let bounds = Bounds::any_number(0, 2);
        let model = Protocol::new(bounds);
        planted::with(None);
        let first = HasDiscoveries::AllOf(BTreeSet::from([AGREEMENT]));
        let checked = checker(model).finish_when(first).spawn_bfs().join();
        assert!(checked.discovery(AGREEMENT).is_some(), "{bug:?} was not found");
    }
}
