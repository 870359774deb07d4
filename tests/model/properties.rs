//! What must hold in every state, and what must be possible, lest the model prove nothing.

use std::collections::BTreeSet;

use stateright::Property;

use crate::bounds::Bounds;
use crate::protocol::Protocol;
use crate::state::{Digest, State};

/// No two correct replicas decide different batches for one number, in whatever views.
pub const AGREEMENT: &str = "agreement";

/// All of a run.
pub fn all(bounds: &Bounds) -> Vec<Property<Protocol>> {
    let mut all = vec![
        Property::always(AGREEMENT, agreement),
        Property::always("validity", validity),
        Property::always("one certificate for a view and number", one_certificate),
    ];
    if bounds.mistake.is_some() {
        return all;
    }
    all.extend([
        Property::sometimes("a batch commits in view 0", |model, state| commits(model, state, 0, Some(0))),
        Property::sometimes("a fresh batch commits in view 1", |model, state| {
            commits(model, state, 1, Some(1))
        }),
        Property::sometimes("a batch of view 0 commits in view 1", |model, state| {
            commits(model, state, 1, Some(0))
        }),
        Property::sometimes("the null batch commits in view 1", |model, state| {
            commits(model, state, 1, None)
        }),
        Property::sometimes("what committed in view 0 commits again in view 1", commits_again),
        Property::sometimes("a view begins above a stable checkpoint", begins_above_checkpoint),
        Property::sometimes("what one replica prepared is given up", prepared_and_given_up),
    ]);
    if bounds.views > 2 {
        all.extend([
            Property::sometimes("a fresh batch commits in view 2", |model, state| {
                commits(model, state, 2, Some(2))
            }),
            Property::sometimes("a batch of view 1 commits in view 2", |model, state| {
                commits(model, state, 2, Some(1))
            }),
            Property::sometimes("a batch of view 0 commits in view 2", |model, state| {
                commits(model, state, 2, Some(0))
            }),
        ]);
    }
    all
}

fn agreement(model: &Protocol, state: &State) -> bool {
    let rules = model.rules(state);
    (0..model.bounds.numbers).all(|number| rules.decided(number).len() <= 1)
}

/// Only what a primary proposed is decided, and the null batch only after a view change.
fn validity(model: &Protocol, state: &State) -> bool {
    let bounds = &model.bounds;
    let proposed = |number: usize, digest: Digest| match digest.origin() {
        None => bounds.correct().any(|at| state.replicas[at].view > 0),
        Some((view, _)) => {
            let primary = bounds.primaries[view];
            bounds.is_led_by_liar(view) || state.replicas[primary].slots[view][number].accepted.has(digest)
        }
    };
    let rules = model.rules(state);
    (0..bounds.numbers).all(|number| rules.decided(number).into_iter().all(|digest| proposed(number, digest)))
}

/// What P of a VIEW-CHANGE rests on (1999, section 4.2): of two batches for one view and number, one
/// at most is prepared.
fn one_certificate(model: &Protocol, state: &State) -> bool {
    let rules = model.rules(state);
    let slots = (0..model.bounds.views).flat_map(|view| (0..model.bounds.numbers).map(move |at| (view, at)));
    slots.into_iter().all(|(view, number)| rules.provable(view, number) <= 1)
}

/// Whether a correct replica can now commit a batch of that origin in that view.
fn commits(model: &Protocol, state: &State, view: usize, origin: Option<usize>) -> bool {
    let rules = model.rules(state);
    let of_origin = |digest: &Digest| digest.origin().map(|(view, _)| view) == origin;
    let digests: BTreeSet<Digest> = Digest::all(&model.bounds).filter(of_origin).collect();
    let commits =
        |at: usize, number: usize| digests.iter().any(|digest| rules.can_commit(at, view, number, *digest));
    model.bounds.correct().any(|at| (0..model.bounds.numbers).any(|number| commits(at, number)))
}

fn commits_again(model: &Protocol, state: &State) -> bool {
    let rules = model.rules(state);
    let twice = |number: usize, digest: Digest| {
        rules.is_decided(0, number, digest) && rules.is_decided(1, number, digest)
    };
    (0..model.bounds.numbers).any(|number| Digest::all(&model.bounds).any(|digest| twice(number, digest)))
}

fn begins_above_checkpoint(model: &Protocol, state: &State) -> bool {
    model.bounds.correct().any(|at| {
        let replica = &state.replicas[at];
        replica.is_in(1) && replica.slots[1].iter().any(|slot| slot.closed)
    })
}

/// A batch that was prepared at one replica and committed nowhere need not be carried over.
fn prepared_and_given_up(model: &Protocol, state: &State) -> bool {
    let rules = model.rules(state);
    let given_up = |at: usize, number: usize| {
        let prepared = rules.slot(at, 0, number).prepared.iter().next();
        let other = |digest: &Digest| prepared.is_some_and(|prepared| prepared != *digest);
        rules.decided(number).iter().any(other)
    };
    model.bounds.correct().any(|at| (0..model.bounds.numbers).any(|number| given_up(at, number)))
}
