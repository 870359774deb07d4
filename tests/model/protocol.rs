//! The model for stateright: what can happen next, and what must hold.
//!
//! Each action is one thing that a correct replica says. What it heard before is the action's
//! condition: that enough was said by then. Hearing itself changes nothing that others can see, so
//! it is no action of its own.

use std::collections::BTreeSet;

use stateright::{Model, Property};

use crate::bounds::{Bounds, Mistake};
use crate::plans::Plans;
use crate::properties;
use crate::rules::Rules;
use crate::state::{Digest, Proposals, State, ViewChange};

/// What a correct replica says. Numbers count from 0 here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The primary: PRE-PREPARE of a fresh batch (1999, section 4.2).
    Propose { view: usize, number: usize },
    /// A backup, on a PRE-PREPARE: PREPARE (section 4.2).
    Accept { at: usize, view: usize, number: usize, digest: Digest },
    /// Anybody, on PREPAREs of q-1 backups: COMMIT (section 4.2).
    Commit { at: usize, view: usize, number: usize, digest: Digest },
    /// Anybody: VIEW-CHANGE to `view` with a stable checkpoint (section 4.4).
    GiveUp { at: usize, view: usize, stable: usize },
    /// The primary, on the VIEW-CHANGEs of a quorum: NEW-VIEW, with the PRE-PREPAREs in it.
    Begin { view: usize, proposals: Proposals },
    /// A backup, on NEW-VIEW and its VIEW-CHANGEs: PREPARE for all that is carried over.
    Enter { at: usize, view: usize, proposals: Proposals },
}

/// The model of one run.
#[derive(Debug)]
pub struct Protocol {
    pub bounds: Bounds,
    pub plans: Plans,
}

impl Protocol {
    pub fn new(bounds: Bounds) -> Self {
        let plans = Plans::new(&bounds);
        Self { bounds, plans }
    }

    pub fn rules<'a>(&'a self, state: &'a State) -> Rules<'a> {
        Rules { bounds: &self.bounds, plans: &self.plans, state }
    }

    fn votes(&self, state: &State, at: usize, actions: &mut Vec<Action>) {
        let rules = self.rules(state);
        for view in (0..self.bounds.views).filter(|view| rules.votes_in(at, *view)) {
            for number in 0..self.bounds.numbers {
                // In order, but for what is stable by now: that need not be voted for.
                let below = state.replicas[at].slots[view][..number].iter().enumerate();
                if below.skip(rules.stable_upto()).all(|(_, slot)| !slot.is_open()) {
                    self.agreements(rules, at, view, number, actions);
                }
                let slot = rules.slot(at, view, number);
                for digest in slot.accepted.iter().filter(|digest| !slot.prepared.has(*digest)) {
                    let enough = rules.prepares(view, number, digest) + 1 >= self.bounds.quorum;
                    if enough || self.bounds.makes(Mistake::CommitWithoutPrepares) {
                        actions.push(Action::Commit { at, view, number, digest });
                    }
                }
            }
        }
    }

    /// Fresh proposals, made or agreed to.
    fn agreements(&self, rules: Rules<'_>, at: usize, view: usize, number: usize, actions: &mut Vec<Action>) {
        let slot = rules.slot(at, view, number);
        if self.bounds.primaries[view] == at {
            if slot.is_open() {
                actions.push(Action::Propose { view, number });
            }
            return;
        }
        for nth in 0..self.bounds.fresh(view) {
            let digest = Digest::fresh(view, nth);
            let again = self.bounds.makes(Mistake::EquivocationAccepted);
            let takes = slot.is_open() || again && !slot.closed && !slot.accepted.has(digest);
            if takes && self.is_offered(rules, view, number, nth) {
                actions.push(Action::Accept { at, view, number, digest });
            }
        }
    }

    /// Whether the primary can have proposed its `nth` fresh batch. A faulty one's batches are named
    /// in the order in which correct replicas agree to them.
    fn is_offered(&self, rules: Rules<'_>, view: usize, number: usize, nth: usize) -> bool {
        let said = |at: usize, nth| rules.slot(at, view, number).accepted.has(Digest::fresh(view, nth));
        if self.bounds.is_led_by_liar(view) {
            nth == 0 || !self.bounds.named_in_order || self.bounds.correct().any(|at| said(at, nth - 1))
        } else {
            said(self.bounds.primaries[view], nth)
        }
    }

    fn view_changes(&self, state: &State, at: usize, actions: &mut Vec<Action>) {
        let rules = self.rules(state);
        let replica = &state.replicas[at];
        for view in usize::from(replica.view) + 1..self.bounds.views {
            let certified = 0..=rules.stable_upto();
            actions.extend(certified.map(|stable| Action::GiveUp { at, view, stable }));
        }
        let view = usize::from(replica.view);
        if !replica.changing {
            return;
        }
        if self.bounds.primaries[view] == at {
            let beginnings = rules.beginnings(view).into_iter().map(|(_, proposals)| proposals);
            let beginnings: BTreeSet<Proposals> = beginnings.collect();
            actions.extend(beginnings.into_iter().map(|proposals| Action::Begin { view, proposals }));
            return;
        }
        let begun: BTreeSet<Proposals> = if self.bounds.is_led_by_liar(view) {
            rules.false_beginnings(view).into_iter().map(|(_, proposals)| proposals).collect()
        } else {
            state.begun[view].into_iter().collect()
        };
        actions.extend(begun.into_iter().map(|proposals| Action::Enter { at, view, proposals }));
    }

    fn give_up(&self, state: &mut State, at: usize, view: usize, stable: usize) {
        let mut view_change = ViewChange { stable: stable as u8, ..ViewChange::default() };
        for number in stable..self.bounds.numbers {
            view_change.prepared[number] = self.rules(state).own_prepared(at, view, number);
        }
        let replica = &mut state.replicas[at];
        // What is closed in a view that is over makes no difference.
        replica.slots[usize::from(replica.view)].iter_mut().for_each(|slot| slot.closed = false);
        replica.view = view as u8;
        replica.changing = true;
        replica.said[view] = Some(view_change);
    }

    fn enter(&self, state: &mut State, at: usize, view: usize, proposals: &Proposals) {
        let replica = &mut state.replicas[at];
        replica.changing = false;
        let own = replica.said[view].map_or(0, |view_change| view_change.stable);
        for number in 0..self.bounds.numbers {
            let slot = &mut replica.slots[view][number];
            slot.closed = number < usize::from(proposals.stable.max(own));
            let carried = proposals.carried[number].filter(|_| !slot.closed);
            if let Some(digest) = carried.filter(|_| !self.bounds.makes(Mistake::CarriedProposedAfresh)) {
                slot.accepted.add(digest);
            }
        }
    }

    /// What the state is after an action.
    pub fn after(&self, state: &State, action: &Action) -> State {
        let mut next = state.clone();
        match *action {
            Action::Propose { view, number } => {
                let slot = &mut next.replicas[self.bounds.primaries[view]].slots[view][number];
                slot.accepted.add(Digest::fresh(view, 0));
            }
            Action::Accept { at, view, number, digest } => {
                next.replicas[at].slots[view][number].accepted.add(digest);
            }
            Action::Commit { at, view, number, digest } => {
                next.replicas[at].slots[view][number].prepared.add(digest);
            }
            Action::GiveUp { at, view, stable } => self.give_up(&mut next, at, view, stable),
            Action::Begin { view, proposals } => {
                next.begun[view] = Some(proposals);
                self.enter(&mut next, self.bounds.primaries[view], view, &proposals);
            }
            Action::Enter { at, view, proposals } => self.enter(&mut next, at, view, &proposals),
        }
        next
    }

    /// Whether nothing is lost if a correct replica does this as soon as it can. PREPAREs for the one
    /// proposal of a correct primary, and COMMITs in the last view, make more things possible and
    /// nothing impossible: they are in no P, and stand in the way of no other batch.
    fn is_forced(&self, action: &Action) -> bool {
        match *action {
            Action::Propose { .. } => true,
            Action::Accept { view, .. } => !self.bounds.is_led_by_liar(view),
            Action::Commit { view, .. } => view + 1 == self.bounds.views,
            Action::GiveUp { .. } | Action::Begin { .. } | Action::Enter { .. } => false,
        }
    }

    /// Everything that is forced is done, until nothing is left of it.
    fn settle(&self, mut state: State) -> State {
        let mut actions = Vec::new();
        loop {
            self.bounds.correct().for_each(|at| self.votes(&state, at, &mut actions));
            actions.retain(|action| self.is_forced(action));
            if actions.is_empty() {
                return state;
            }
            for action in actions.drain(..) {
                state = self.after(&state, &action);
            }
        }
    }

    /// Of states that differ only in which of two like backups is which, one.
    fn canonical(&self, mut state: State) -> State {
        if self.bounds.eager {
            state = self.settle(state);
        }
        for (one, other) in self.bounds.alike() {
            if state.replicas[one] > state.replicas[other] {
                state.replicas.swap(one, other);
            }
        }
        state
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.canonical(State::default())]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for at in self.bounds.correct() {
            self.votes(state, at, actions);
            self.view_changes(state, at, actions);
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        Some(self.canonical(self.after(state, &action)))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all(&self.bounds)
    }
}
