//! Colluders: up to f replicas with one plan. The correct ones are two sides to them. Whichever of
//! them is primary proposes one batch to the one side and another to the other, and all of them vote
//! on each side for what that side was shown, PREPARE and COMMIT at once. When a view is given up
//! they hide what they know to be prepared, and a primary among them makes its NEW-VIEW from the
//! VIEW-CHANGEs of those who know least: so that what commits on one side lives on only through the
//! few correct replicas that every quorum must have.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use ledgermq::pbft::message::{Commit, Content, PrePrepare, Prepare};
use ledgermq::pbft::{Envelope, Signed};
use ledgermq::types::{Hash, NodeId, SeqNum, View};

use super::{Adversary, Power};
use crate::cluster::Cluster;

/// How often each of them votes for one number in one view.
const MOST_VOTES: u32 = 6;

/// What they have agreed on.
struct Plan {
    gang: BTreeSet<usize>,
    /// Correct replicas that are shown the first batch; the others see the second.
    first_side: BTreeSet<usize>,
    /// Their ids.
    first_ids: BTreeSet<NodeId>,
    /// The digests of both batches of each proposal.
    batches: BTreeMap<(View, SeqNum), [Hash; 2]>,
    /// Who has voted on them how often: once more now and then, since messages get lost.
    votes: BTreeMap<(usize, View, SeqNum), u32>,
}

impl Plan {
    fn shown_to(&self, to: usize, slot: (View, SeqNum)) -> Option<Hash> {
        let digests = self.batches.get(&slot)?;
        let is_first = self.first_side.contains(&to) || self.gang.contains(&to);
        Some(if is_first { digests[0] } else { digests[1] })
    }
}

pub struct Colluder(Rc<RefCell<Plan>>);

/// Turns `gang` into colluders. The first side gets just enough correct replicas to be a quorum with
/// them, so that something commits there and only there.
pub fn install(cluster: &mut Cluster, gang: &[usize]) {
    let correct = (0..cluster.n()).filter(|at| !gang.contains(at) && !cluster.world.faulty.contains(at));
    let mut correct: Vec<usize> = correct.collect();
    let wanted = cluster.world.quorum.saturating_sub(gang.len());
    let mut first_side = BTreeSet::new();
    while first_side.len() < wanted && !correct.is_empty() {
        let at = cluster.rng.index(correct.len());
        first_side.insert(correct.swap_remove(at));
    }
    let plan = Plan {
        gang: gang.iter().copied().collect(),
        first_ids: first_side.iter().map(|at| cluster.world.node_id(*at)).collect(),
        first_side,
        batches: BTreeMap::new(),
        votes: BTreeMap::new(),
    };
    let plan = Rc::new(RefCell::new(plan));
    for at in gang {
        cluster.corrupt(*at, Box::new(Colluder(Rc::clone(&plan))));
    }
}

impl Adversary for Colluder {
    fn name(&self) -> &'static str {
        "colluders"
    }

    fn on_send(&mut self, power: &mut Power<'_>, envelope: Envelope) {
        match envelope.signed.content.clone() {
            Content::PrePrepare(proposal) if proposal.batch.proposer == power.node_id() => {
                self.propose_both(power, &envelope, &proposal);
            }
            Content::Prepare(Prepare { view, sequence, .. })
            | Content::Commit(Commit { view, sequence, .. })
                if self.0.borrow().batches.contains_key(&(view, sequence)) =>
            {
                self.vote_on_both_sides(power, view, sequence);
            }
            Content::ViewChange(mut view_change) if envelope.signed.sender == power.node_id() => {
                view_change.prepared.clear();
                let lie = power.sign(Content::ViewChange(view_change));
                power.lie_to_all(&lie);
            }
            _ => power.broadcast(&envelope),
        }
    }

    fn on_hear(&mut self, power: &mut Power<'_>, signed: &Signed) -> bool {
        match &signed.content {
            Content::PrePrepare(PrePrepare { view, sequence, .. }) => {
                self.vote_on_both_sides(power, *view, *sequence);
                true
            }
            // Now and then it does without them, so that the view can begin at all.
            Content::ViewChange(_) => {
                !self.0.borrow().first_ids.contains(&signed.sender) || power.rng.percent(60)
            }
            _ => true,
        }
    }
}

impl Colluder {
    fn propose_both(&mut self, power: &mut Power<'_>, first: &Envelope, proposal: &PrePrepare) {
        let mut batch = proposal.batch.clone();
        batch.timestamp.0 += 1;
        let slot = (proposal.view, proposal.sequence);
        let digests = [proposal.batch.digest(), batch.digest()];
        self.0.borrow_mut().batches.insert(slot, digests);
        let second = power.sign(Content::PrePrepare(PrePrepare { batch, ..proposal.clone() }));
        for to in power.others() {
            let shown = self.0.borrow().shown_to(to, slot);
            power.lie(to, if shown == Some(digests[0]) { first } else { &second });
        }
        self.vote_on_both_sides(power, slot.0, slot.1);
    }

    fn vote_on_both_sides(&mut self, power: &mut Power<'_>, view: View, sequence: SeqNum) {
        let mut plan = self.0.borrow_mut();
        let Some(digests) = plan.batches.get(&(view, sequence)).copied() else { return };
        let votes = plan.votes.entry((power.me, view, sequence)).or_default();
        *votes += 1;
        if *votes > MOST_VOTES {
            return;
        }
        for digest in digests {
            let prepare = power.sign(Content::Prepare(Prepare { view, sequence, digest }));
            let commit = power.sign(Content::Commit(Commit { view, sequence, digest }));
            for to in power.others() {
                if plan.shown_to(to, (view, sequence)) == Some(digest) {
                    power.lie(to, &prepare);
                    power.lie(to, &commit);
                }
            }
        }
    }
}
