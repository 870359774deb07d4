//! Write policies come into force by an admin's operation, one version after the other.

use super::fixture::{Net, execute, outcomes};
use crate::ledger::{Executed, Outcome, Rejection, State};
use crate::types::Height;

fn set(state: &mut State, net: &Net, sequence: u64, replaces: u64, name: &str) -> Executed {
    execute(state, &[net.set_policies(sequence, replaces, name)])
}

fn names(state: &State) -> Vec<&str> {
    state.policies().set.rules().iter().map(|rule| rule.name.as_str()).collect()
}

#[test]
fn each_set_of_policies_is_a_version_and_its_place_is_known() {
    let net = Net::new(4);
    let mut state = State::genesis(&net.genesis);
    assert_eq!((state.policies().version, names(&state).len()), (0, 0));
    execute(&mut state, &[net.register(1, 1), net.set_policies(2, 0, "first")]);
    set(&mut state, &net, 3, 1, "second");
    assert_eq!((state.policies().version, names(&state)), (2, vec!["second"]));
    let places: Vec<_> = state.policies().places.clone().into_iter().collect();
    assert_eq!(places, [(1, (Height(1), 1)), (2, (Height(2), 0))]);
}

#[test]
fn policies_that_replace_another_version_than_the_one_in_force_are_refused() {
    let net = Net::new(4);
    let mut state = State::genesis(&net.genesis);
    set(&mut state, &net, 1, 0, "first");
    let digest = state.digest();
    for replaces in [0, 2, u64::MAX] {
        let refused = outcomes(set(&mut state, &net, 2, replaces, "late"));
        assert_eq!(refused, [Outcome::Rejected(Rejection::StalePolicies { current: 1 })]);
    }
    assert_eq!((names(&state), state.digest()), (vec!["first"], digest));
}

#[test]
fn policies_survive_storage() {
    let net = Net::new(4);
    let mut state = State::genesis(&net.genesis);
    set(&mut state, &net, 1, 0, "first");
    set(&mut state, &net, 2, 1, "second");
    let entries: Vec<_> = state.entries().collect();
    let restored = State::restore(net.network, state.head().clone(), entries.clone()).unwrap();
    assert_eq!(restored, state);
    for lost in 0..entries.len() {
        let mut some = entries.clone();
        let (key, _) = some.remove(lost);
        let restored = State::restore(net.network, state.head().clone(), some);
        let is_admin = key.first() == Some(&2);
        assert!(is_admin || restored.is_err(), "without {key:?}: {restored:?}");
    }
}
