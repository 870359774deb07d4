//! Random walks: guided by the model, which the core must follow, or free, with the model watching.

use ledgermq::pbft::{Signed, WalEntry};

use super::monitor::{Event, Monitor};
use crate::bounds::Bounds;
use crate::plans::{possible_proofs, view_changes};
use crate::protocol::Action;
use crate::rng::Rng;
use crate::rules::Basis;
use crate::state::{Digest, Proposals};

/// Steps of a guided walk: few have more before nothing is left to do.
const GUIDED_STEPS: usize = 60;

/// Steps of a free walk: many of them change nothing.
const FREE_STEPS: usize = 400;

/// What walks came across.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    pub proposed: usize,
    pub accepted: usize,
    pub prepared: usize,
    pub given_up: usize,
    pub begun: usize,
    pub entered: usize,
    pub committed: usize,
    pub committed_in_view_1: usize,
    pub committed_carried: usize,
    pub committed_null: usize,
    pub stable: usize,
    pub restarts: usize,
    pub refused: usize,
}

impl Tally {
    fn fields(&self) -> [usize; 12] {
        [
            self.proposed,
            self.accepted,
            self.prepared,
            self.given_up,
            self.begun,
            self.entered,
            self.committed,
            self.committed_in_view_1,
            self.committed_carried,
            self.committed_null,
            self.stable,
            self.restarts,
        ]
    }

    /// Whether everything came up; the null batch seldom does where nothing is aimed at.
    pub fn is_varied(&self) -> bool {
        let aimless = Self { committed_null: 1, ..self.clone() };
        aimless.fields().iter().all(|count| *count > 0)
    }

    pub fn add(&mut self, other: &Self) {
        let [
            proposed,
            accepted,
            prepared,
            given_up,
            begun,
            entered,
            committed,
            committed_in_view_1,
            committed_carried,
            committed_null,
            stable,
            restarts,
        ] = std::array::from_fn(|at| self.fields()[at] + other.fields()[at]);
        *self = Self {
            proposed,
            accepted,
            prepared,
            given_up,
            begun,
            entered,
            committed,
            committed_in_view_1,
            committed_carried,
            committed_null,
            stable,
            restarts,
            refused: self.refused + other.refused,
        };
    }

    fn count(&mut self, event: &Event) {
        match event {
            Event::Did(Action::Propose { .. }) => self.proposed += 1,
            Event::Did(Action::Accept { .. }) => self.accepted += 1,
            Event::Did(Action::Commit { .. }) => self.prepared += 1,
            Event::Did(Action::GiveUp { .. }) => self.given_up += 1,
            Event::Did(Action::Begin { .. }) => self.begun += 1,
            Event::Did(Action::Enter { .. }) => self.entered += 1,
            Event::Committed { view, digest, .. } => {
                self.committed += 1;
                self.committed_in_view_1 += usize::from(*view == 1);
                self.committed_null += usize::from(*digest == Digest::NULL);
                let carried = digest.origin().is_some_and(|(origin, _)| origin < *view);
                self.committed_carried += usize::from(carried);
            }
        }
    }
}

/// One walk.
pub struct Walk {
    monitor: Monitor,
    rng: Rng,
    seed: u64,
    pub tally: Tally,
}

impl Walk {
    pub fn new(bounds: Bounds, seed: u64) -> Self {
        Self { monitor: Monitor::new(bounds), rng: Rng::new(seed), seed, tally: Tally::default() }
    }

    /// Walks to the end. A failure names the seed.
    pub fn run(&mut self, step: fn(&mut Self)) {
        let byzantine = self.monitor.model.bounds.byzantine;
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| step(self)));
        if let Err(failure) = result {
            println!("the walk with replica {byzantine} faulty and seed {} fails", self.seed);
            std::panic::resume_unwind(failure);
        }
    }

    fn correct(&self) -> Vec<usize> {
        self.monitor.model.bounds.correct().collect()
    }

    fn follow(&mut self, at: usize, logged: Vec<WalEntry>) -> Vec<Event> {
        let events = self.monitor.follow(at, logged);
        events.iter().for_each(|event| self.tally.count(event));
        events
    }

    fn hear(&mut self, at: usize, message: &Signed) -> Vec<Event> {
        let logged = self.monitor.cluster.hear(at, message);
        self.follow(at, logged)
    }

    fn supply(&mut self, at: usize, number: usize, digest: Digest) -> Vec<Event> {
        let Some(batch) = self.monitor.cluster.batches.get(&(number, digest)).cloned() else {
            return Vec::new();
        };
        let logged = self.monitor.cluster.supply(at, &batch);
        self.follow(at, logged)
    }

    // ---- guided ----

    /// A walk on which the model picks what happens, and the core must do just that.
    pub fn guided(&mut self) {
        for _ in 0..GUIDED_STEPS {
            let possible = self.monitor.possible();
            // Every fourth walk leaves a gap below number 2, for the null batch to fill.
            let gap = |action: &Action| {
                self.seed.is_multiple_of(4) && matches!(action, Action::Commit { view: 0, number: 0, .. })
            };
            let feasible = possible.into_iter().filter(|action| self.is_feasible(action) && !gap(action));
            let feasible: Vec<Action> = feasible.collect();
            if feasible.is_empty() {
                break;
            }
            // Giving up is always possible, so it would come too early.
            let voting = |action: &&Action| !matches!(action, Action::GiveUp { .. });
            let votes: Vec<Action> = feasible.iter().filter(voting).copied().collect();
            let from = if votes.is_empty() || self.rng.percent(10) { &feasible } else { &votes };
            let action = self.rng.pick(from);
            let Some(events) = self.perform(&action) else { continue };
            assert!(
                events.contains(&Event::Did(action)),
                "the core does not do {action:?}, but {events:?}, in {:#?}",
                self.monitor.state
            );
            self.everybody_commits();
            self.everybody_is_certified();
            if self.rng.percent(10) {
                let at = self.rng.pick(&self.correct());
                self.restart(at);
            }
        }
    }

    /// Whether the replica is where it can do that. The model lets a replica say things about
    /// numbers that are stable already, where the core says nothing.
    fn is_feasible(&self, action: &Action) -> bool {
        let cluster = &self.monitor.cluster;
        let bounds = &self.monitor.model.bounds;
        let in_order = |at: usize, view: usize, number: usize| {
            let slots = self.monitor.state.replicas[at].slots[view];
            let stable = cluster.stable(at);
            number >= stable && (stable..number).all(|below| !slots[below].is_open())
        };
        match *action {
            Action::Propose { view, number } => {
                let at = bounds.primaries[view];
                let begun = self.monitor.state.begun[view].map_or(0, |begun| begun.stable);
                cluster.node(at).executed.sequence.0 >= u64::from(begun) && in_order(at, view, number)
            }
            Action::Accept { at, view, number, .. } => in_order(at, view, number),
            Action::Commit { at, number, .. } => number >= cluster.stable(at),
            Action::GiveUp { at, stable, .. } => stable == cluster.stable(at),
            Action::Begin { .. } | Action::Enter { .. } => true,
        }
    }

    /// Lets a replica do that; none if what it takes cannot be had.
    fn perform(&mut self, action: &Action) -> Option<Vec<Event>> {
        let mut events = Vec::new();
        match *action {
            Action::Propose { view, .. } => {
                let at = self.monitor.model.bounds.primaries[view];
                let logged = self.monitor.cluster.let_gather(at);
                events = self.follow(at, logged);
            }
            Action::Accept { at, view, number, digest } => {
                let proposal = self.proposal(view, number, digest)?;
                self.supply(at, number, digest);
                events = self.hear(at, &proposal);
            }
            Action::Commit { at, view, number, digest } => {
                for vote in self.prepares(view, number, digest) {
                    events.extend(self.hear(at, &vote));
                }
            }
            Action::GiveUp { at, view, .. } => events = self.give_up(at, view),
            Action::Begin { view, proposals } => {
                let beginnings = self.monitor.model.rules(&self.monitor.state).beginnings(view);
                let named = self.choose(view, beginnings, &proposals)?;
                let at = self.monitor.model.bounds.primaries[view];
                for (_, message) in named {
                    events.extend(self.hear(at, &message));
                }
            }
            Action::Enter { at, view, proposals } => events = self.enter(at, view, &proposals)?,
        }
        for event in events.clone() {
            // The primary may have begun as soon as it joined.
            let Event::Did(Action::Begin { view, proposals }) = event else { continue };
            let at = self.monitor.model.bounds.primaries[view];
            events.extend(self.supply_carried(at, &proposals));
        }
        Some(events)
    }

    fn proposal(&mut self, view: usize, number: usize, digest: Digest) -> Option<Signed> {
        let nth = digest.origin().filter(|(origin, _)| *origin == view)?.1;
        if self.monitor.model.bounds.is_led_by_liar(view) {
            return Some(self.monitor.lying_proposal(view, number, nth));
        }
        self.monitor.proposals.get(&(view, number, digest)).cloned()
    }

    fn prepares(&self, view: usize, number: usize, digest: Digest) -> Vec<Signed> {
        let said = self.correct().into_iter();
        let said = said.filter_map(|at| self.monitor.prepares.get(&(at, view, number, digest)).cloned());
        let led = self.monitor.model.bounds.is_led_by_liar(view);
        let lie = self.monitor.lying_prepare(view, number, digest).filter(|_| !led);
        said.chain(lie).collect()
    }

    /// By time, or because f+1 others do.
    fn give_up(&mut self, at: usize, view: usize) -> Vec<Event> {
        let stable = self.monitor.cluster.stable(at);
        let known =
            |(_, message): &(&(usize, usize), &Signed)| message.content.sequence().0 as usize <= stable;
        let others = self.monitor.view_changes.iter().filter(|((_, of), _)| *of == view).filter(known);
        let others: Vec<Signed> = others.take(2).map(|(_, message)| message.clone()).collect();
        if others.len() == 2 && self.rng.percent(50) {
            return others.iter().flat_map(|message| self.hear(at, message)).collect();
        }
        let logged = self.monitor.cluster.let_time_out(at);
        self.follow(at, logged)
    }

    /// The messages of one V that leads to these proposals.
    fn choose(
        &mut self,
        view: usize,
        from: Vec<(Basis, Proposals)>,
        proposals: &Proposals,
    ) -> Option<Vec<(usize, Signed)>> {
        let fitting = from.into_iter().filter(|(_, follows)| follows == proposals);
        let had = fitting.filter_map(|(basis, _)| self.monitor.view_changes(view, &basis));
        let had: Vec<Vec<(usize, Signed)>> = had.collect();
        if had.is_empty() { None } else { Some(had[self.rng.index(had.len())].clone()) }
    }

    fn enter(&mut self, at: usize, view: usize, proposals: &Proposals) -> Option<Vec<Event>> {
        let (new_view, named) = if self.monitor.model.bounds.is_led_by_liar(view) {
            let beginnings = self.monitor.model.rules(&self.monitor.state).false_beginnings(view);
            let named = self.choose(view, beginnings, proposals)?;
            let new_view = self.monitor.lying_new_view(view, &named, proposals)?;
            (new_view, named.into_iter().map(|(_, message)| message).collect())
        } else {
            self.monitor.new_views.get(&view)?.clone()
        };
        let mut events = self.hear(at, &new_view);
        for message in named {
            events.extend(self.hear(at, &message));
        }
        events.extend(self.supply_carried(at, proposals));
        for (number, digest) in proposals.carried.iter().enumerate() {
            let Some(digest) = *digest else { continue };
            let said = self.monitor.prepares.contains_key(&(at, view, number, digest));
            assert!(said || number < self.monitor.cluster.stable(at), "no PREPARE for what is carried over");
        }
        Some(events)
    }

    fn supply_carried(&mut self, at: usize, proposals: &Proposals) -> Vec<Event> {
        let carried = proposals.carried.iter().enumerate();
        let carried = carried.filter_map(|(number, digest)| Some((number, (*digest)?)));
        carried.flat_map(|(number, digest)| self.supply(at, number, digest)).collect()
    }

    /// Whoever can commit hears the COMMITs, now and then, and must do so.
    fn everybody_commits(&mut self) {
        let bounds = self.monitor.model.bounds.clone();
        let slots = (0..bounds.views).flat_map(|view| (0..bounds.numbers).map(move |number| (view, number)));
        for (view, number) in slots {
            for at in self.correct() {
                let rules = self.monitor.model.rules(&self.monitor.state);
                let accepted = rules.slot(at, view, number).accepted.iter().next();
                let Some(digest) = accepted.filter(|digest| rules.can_commit(at, view, number, *digest))
                else {
                    continue;
                };
                let done = self.monitor.cluster.stable(at) > number || self.has_committed(at, view, number);
                if done || self.rng.percent(50) {
                    continue;
                }
                let events = self.hear_commits(at, view, number, digest);
                let committed = Event::Committed { at, view, number, digest };
                assert!(events.contains(&committed), "{committed:?} does not happen, but {events:?}");
            }
        }
    }

    fn has_committed(&self, at: usize, view: usize, number: usize) -> bool {
        self.monitor.committed.contains(&(at, view, number))
    }

    fn hear_commits(&mut self, at: usize, view: usize, number: usize, digest: Digest) -> Vec<Event> {
        let said = self.correct().into_iter();
        let said = said.filter_map(|at| self.monitor.commits.get(&(at, view, number, digest)).cloned());
        let votes: Vec<Signed> = said.chain(self.monitor.lying_commit(view, number, digest)).collect();
        votes.iter().flat_map(|vote| self.hear(at, vote)).collect()
    }

    /// Whoever executed hears the CHECKPOINTs of a quorum, now and then.
    fn everybody_is_certified(&mut self) {
        for at in self.correct() {
            let cluster = &self.monitor.cluster;
            let next = cluster.stable(at) as u64 + 1;
            let replica = &self.monitor.state.replicas[at];
            let may = cluster.node(at).executed.sequence.0 >= next && !replica.changing;
            let Some(signed) = cluster.certifying(next).filter(|_| may) else { continue };
            if self.rng.percent(50) {
                continue;
            }
            for (_, message) in signed {
                self.hear(at, &message);
            }
            assert_eq!(self.monitor.cluster.stable(at) as u64, next, "a quorum certifies it");
            self.tally.stable += 1;
        }
    }

    fn restart(&mut self, at: usize) {
        let logged = self.monitor.cluster.restart(at);
        let events = self.follow(at, logged);
        assert!(events.is_empty(), "after a restart it does something new: {events:?}");
        self.tally.restarts += 1;
    }

    // ---- free ----

    /// A walk on which anything may be said to anybody, right or wrong.
    pub fn free(&mut self) {
        for _ in 0..FREE_STEPS {
            let there = self.correct().into_iter().filter(|at| self.monitor.cluster.view(*at).0 < 2);
            let there: Vec<usize> = there.collect();
            if there.is_empty() {
                break;
            }
            let at = self.rng.pick(&there);
            match self.rng.below(100) {
                0..55 => self.hear_something(at),
                55..80 => self.hear_a_lie(at),
                80..88 => self.hear_a_view(at),
                88..92 => {
                    let logged = self.monitor.cluster.let_gather(at);
                    self.follow(at, logged);
                }
                92..95 => {
                    let logged = self.monitor.cluster.let_time_out(at);
                    self.follow(at, logged);
                }
                95..98 => self.hear_checkpoints(at),
                _ => self.restart(at),
            }
            let known: Vec<_> = self.monitor.cluster.batches.keys().copied().collect();
            for (number, digest) in known {
                self.supply(at, number, digest);
            }
        }
    }

    /// What a correct replica said, once and for all.
    fn hear_something(&mut self, at: usize) {
        let monitor = &self.monitor;
        let said =
            monitor.proposals.values().chain(monitor.prepares.values()).chain(monitor.commits.values());
        let said: Vec<&Signed> = said.chain(monitor.view_changes.values()).collect();
        if said.is_empty() {
            return;
        }
        let message = said[self.rng.index(said.len())].clone();
        if message.sender != self.monitor.cluster.keys[at].node_id() {
            self.hear(at, &message);
        }
    }

    /// Something that the faulty replica signs.
    fn hear_a_lie(&mut self, at: usize) {
        let bounds = self.monitor.model.bounds.clone();
        let (view, number) = (self.rng.index(bounds.views), self.rng.index(bounds.numbers));
        let known =
            self.monitor.cluster.batches.keys().filter(|(of, _)| *of == number).map(|(_, name)| *name);
        let digest = self.rng.pick(&known.collect::<Vec<_>>());
        let lie = match self.rng.below(5) {
            nth @ 0..2 if bounds.is_led_by_liar(view) => {
                Some(self.monitor.lying_proposal(view, number, nth as usize))
            }
            0..3 => self.monitor.lying_prepare(view, number, digest),
            3 => self.monitor.lying_commit(view, number, digest),
            _ => self.a_view_change(1),
        };
        if let Some(lie) = lie {
            self.hear(at, &lie);
        }
    }

    /// A VIEW-CHANGE of the faulty replica with any P; none if nobody takes it. The core takes it just
    /// if the model says that it can be proven.
    fn a_view_change(&mut self, view: usize) -> Option<Signed> {
        let bounds = &self.monitor.model.bounds;
        let any = view_changes(bounds.numbers, &vec![possible_proofs(bounds, view); bounds.numbers]);
        let says = self.rng.pick(&any);
        let message = self.monitor.lying_view_change(view, &says)?;
        let provable = self.monitor.model.rules(&self.monitor.state).lies(view).contains(&says);
        let taken = self.monitor.cluster.verify(&message).is_some();
        assert_eq!(taken, provable, "{says:?} in {:#?}", self.monitor.state);
        self.tally.refused += usize::from(!taken);
        Some(message).filter(|_| taken)
    }

    /// A NEW-VIEW, right or wrong, with its VIEW-CHANGEs.
    fn hear_a_view(&mut self, at: usize) {
        let view = 1;
        let (new_view, named) = if self.monitor.model.bounds.is_led_by_liar(view) {
            let Some(lie) = self.a_new_view(view) else { return };
            lie
        } else {
            let Some(said) = self.monitor.new_views.get(&view).cloned() else { return };
            said
        };
        for message in std::iter::once(&new_view).chain(&named) {
            if message.sender != self.monitor.cluster.keys[at].node_id() {
                self.hear(at, message);
            }
        }
    }

    /// A NEW-VIEW of the faulty primary with any V and any O; none if it cannot even be verified.
    fn a_new_view(&mut self, view: usize) -> Option<(Signed, Vec<Signed>)> {
        let rules = self.monitor.model.rules(&self.monitor.state);
        let beginnings = rules.false_beginnings(view);
        if beginnings.is_empty() {
            return None;
        }
        let (mut basis, mut proposals) = beginnings[self.rng.index(beginnings.len())].clone();
        if self.rng.percent(30) {
            let digests: Vec<Digest> = Digest::all(&self.monitor.model.bounds).collect();
            let carried = std::array::from_fn(|_| Some(self.rng.pick(&digests)));
            proposals = Proposals { stable: 0, carried };
        } else if self.rng.percent(20) {
            basis.pop();
        }
        let named = self.monitor.view_changes(view, &basis)?;
        let new_view = self.monitor.lying_new_view(view, &named, &proposals)?;
        if self.monitor.cluster.verify(&new_view).is_none() {
            self.tally.refused += 1;
            return None;
        }
        Some((new_view, named.into_iter().map(|(_, message)| message).collect()))
    }

    fn hear_checkpoints(&mut self, at: usize) {
        let before = self.monitor.cluster.stable(at);
        let next = before as u64 + 1;
        for (_, message) in self.monitor.cluster.certifying(next).unwrap_or_default() {
            self.hear(at, &message);
        }
        self.tally.stable += usize::from(self.monitor.cluster.stable(at) > before);
    }
}
