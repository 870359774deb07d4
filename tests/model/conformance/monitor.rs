//! Reads what real replicas log as actions of the model. Each must be possible there, with the
//! same content; then the model makes it, too.

use std::collections::{BTreeMap, BTreeSet};

use ledgermq::pbft::certificates::{NewView, ViewChange};
use ledgermq::pbft::message::{Content, PrePrepare};
use ledgermq::pbft::{Signed, WalEntry};
use ledgermq::types::{Hash, SeqNum, View};
use stateright::Model;

use super::cluster::Cluster;
use crate::bounds::Bounds;
use crate::protocol::{Action, Protocol};
use crate::state::{self, Digest, Proof, Proposals, State};

/// Something that a replica said or decided, in the model's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// An action of the model.
    Did(Action),
    /// A batch is committed-local at a replica.
    Committed { at: usize, view: usize, number: usize, digest: Digest },
}

/// The model and the replicas in one state, and what correct replicas said.
pub struct Monitor {
    pub model: Protocol,
    pub state: State,
    pub cluster: Cluster,
    pub proposals: BTreeMap<(usize, usize, Digest), Signed>,
    pub prepares: BTreeMap<(usize, usize, usize, Digest), Signed>,
    pub commits: BTreeMap<(usize, usize, usize, Digest), Signed>,
    pub view_changes: BTreeMap<(usize, usize), Signed>,
    pub new_views: BTreeMap<usize, (Signed, Vec<Signed>)>,
    /// Replica, view and number of what committed.
    pub committed: BTreeSet<(usize, usize, usize)>,
}

impl Monitor {
    pub fn new(bounds: Bounds) -> Self {
        Self {
            cluster: Cluster::new(&bounds),
            model: Protocol::new(bounds),
            state: State::default(),
            proposals: BTreeMap::new(),
            prepares: BTreeMap::new(),
            commits: BTreeMap::new(),
            view_changes: BTreeMap::new(),
            new_views: BTreeMap::new(),
            committed: BTreeSet::new(),
        }
    }

    /// What can happen next in the model.
    pub fn possible(&self) -> Vec<Action> {
        let mut actions = Vec::new();
        self.model.actions(&self.state, &mut actions);
        actions
    }

    /// Follows what replica `at` logged. Gives what it amounts to.
    ///
    /// # Panics
    /// If the model does not allow it.
    pub fn follow(&mut self, at: usize, logged: Vec<WalEntry>) -> Vec<Event> {
        logged.into_iter().filter_map(|entry| self.follow_entry(at, entry)).collect()
    }

    fn follow_entry(&mut self, at: usize, entry: WalEntry) -> Option<Event> {
        match entry {
            WalEntry::Sent(signed) => self.follow_message(at, signed),
            WalEntry::ViewChange(signed) => {
                let Content::ViewChange(content) = signed.content.clone() else { panic!("{signed:?}") };
                let view = self.view(content.view)?;
                self.view_changes.insert((at, view), signed);
                let says = self.read_view_change(&content);
                let event = self.do_it(Action::GiveUp { at, view, stable: usize::from(says.stable) });
                assert_eq!(self.state.replicas[at].said[view], Some(says), "C and P of the VIEW-CHANGE");
                event
            }
            WalEntry::NewView { new_view, view_changes } => {
                let Content::NewView(content) = new_view.content.clone() else { panic!("{new_view:?}") };
                let view = self.view(content.view)?;
                let proposals = self.read_new_view(&content);
                if self.model.bounds.primaries[view] == at {
                    self.new_views.insert(view, (new_view, view_changes));
                    return self.do_it(Action::Begin { view, proposals });
                }
                self.do_it(Action::Enter { at, view, proposals })
            }
            WalEntry::Committed { view, sequence, digest } => {
                let (view, number) = (self.view(view)?, self.number(sequence)?);
                let digest = self.cluster.name(number, digest).expect("a batch that was proposed");
                let rules = self.model.rules(&self.state);
                let allowed =
                    rules.can_commit(at, view, number, digest) || rules.can_witness(at, view, number, digest);
                assert!(
                    allowed,
                    "replica {at} commits {digest:?} at {number} in view {view}: {:#?}",
                    self.state
                );
                self.committed.insert((at, view, number));
                Some(Event::Committed { at, view, number, digest })
            }
            _ => None,
        }
    }

    fn follow_message(&mut self, at: usize, signed: Signed) -> Option<Event> {
        match signed.content.clone() {
            Content::PrePrepare(proposal) => self.follow_proposal(at, proposal, signed),
            Content::Prepare(vote) => {
                let (view, number, digest) = self.slot(vote.view, vote.sequence, vote.digest)?;
                self.prepares.insert((at, view, number, digest), signed);
                let known = self.state.replicas[at].slots[view][number].accepted.has(digest);
                if known { None } else { self.do_it(Action::Accept { at, view, number, digest }) }
            }
            Content::Commit(vote) => {
                let (view, number, digest) = self.slot(vote.view, vote.sequence, vote.digest)?;
                self.commits.insert((at, view, number, digest), signed);
                self.do_it(Action::Commit { at, view, number, digest })
            }
            Content::Checkpoint(content) => {
                let rules = self.model.rules(&self.state);
                assert!(content.sequence.0 as usize <= rules.stable_upto(), "executed before it is decided");
                self.cluster.checkpoints.insert((at, content.sequence.0), signed);
                None
            }
            other => panic!("{other:?} has its own entry"),
        }
    }

    fn follow_proposal(&mut self, at: usize, proposal: PrePrepare, signed: Signed) -> Option<Event> {
        let (view, number) = (self.view(proposal.view)?, self.number(proposal.sequence)?);
        let carried = self.cluster.name(number, proposal.batch.digest());
        let name = carried.unwrap_or(Digest::fresh(view, 0));
        self.cluster.batches.insert((number, name), proposal.batch);
        self.proposals.insert((view, number, name), signed);
        let known = self.state.replicas[at].slots[view][number].accepted.has(name);
        if known { None } else { self.do_it(Action::Propose { view, number }) }
    }

    fn do_it(&mut self, action: Action) -> Option<Event> {
        let possible = self.possible();
        assert!(
            possible.contains(&action),
            "the core does {action:?}, the model allows only {possible:?}, in {:#?}",
            self.state
        );
        self.state = self.model.after(&self.state, &action);
        Some(Event::Did(action))
    }

    fn read_view_change(&self, content: &ViewChange) -> state::ViewChange {
        let mut says = state::ViewChange { stable: content.stable().0 as u8, ..state::ViewChange::default() };
        for proof in &content.prepared {
            let Some((view, number, digest)) = self.slot(proof.view, proof.sequence, proof.digest) else {
                continue;
            };
            says.prepared[number] = Some(Proof { view: view as u8, digest });
        }
        says
    }

    fn read_new_view(&self, content: &NewView) -> Proposals {
        let mut says = Proposals { stable: content.stable.0 as u8, ..Proposals::default() };
        for (number, (digest, _)) in (content.stable.0 as usize..).zip(&content.proposals) {
            says.carried[number] = self.cluster.name(number, *digest);
        }
        says
    }

    fn slot(&self, view: View, sequence: SeqNum, digest: Hash) -> Option<(usize, usize, Digest)> {
        let (view, number) = (self.view(view)?, self.number(sequence)?);
        Some((view, number, self.cluster.name(number, digest).expect("a batch that was proposed")))
    }

    /// The model's view, if it is within its bounds.
    fn view(&self, view: View) -> Option<usize> {
        Some(view.0 as usize).filter(|view| *view < self.model.bounds.views)
    }

    /// The model's number, which counts from 0, likewise.
    fn number(&self, sequence: SeqNum) -> Option<usize> {
        Some(sequence.0 as usize - 1).filter(|number| *number < self.model.bounds.numbers)
    }
}
