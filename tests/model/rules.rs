//! What follows from a state: who can prove what, and what can be decided.

use std::collections::BTreeSet;

use crate::bounds::{Bounds, Mistake, REPLICAS};
use crate::plans::{Plans, possible_proofs, view_changes};
use crate::state::{Digest, Digests, Proof, Proposals, Slot, State, ViewChange};

/// VIEW-CHANGEs by their senders.
pub type Basis = Vec<(usize, ViewChange)>;

/// A state, with the rules of a run.
#[derive(Clone, Copy)]
pub struct Rules<'a> {
    pub bounds: &'a Bounds,
    pub plans: &'a Plans,
    pub state: &'a State,
}

impl Rules<'_> {
    pub fn slot(&self, at: usize, view: usize, number: usize) -> &Slot {
        &self.state.replicas[at].slots[view][number]
    }

    /// Whether a correct replica still votes in `view`.
    pub fn votes_in(&self, at: usize, view: usize) -> bool {
        let replica = &self.state.replicas[at];
        let given_up = view < usize::from(replica.view);
        replica.is_in(view) || given_up && self.bounds.makes(Mistake::OldViewVotes)
    }

    /// How many PREPAREs of distinct backups there can be; that of a faulty one always.
    pub fn prepares(&self, view: usize, number: usize, digest: Digest) -> usize {
        let primary = self.bounds.primaries[view];
        let backups = self.bounds.correct().filter(|at| *at != primary);
        let correct = backups.filter(|at| self.slot(*at, view, number).accepted.has(digest)).count();
        correct + usize::from(!self.bounds.is_led_by_liar(view))
    }

    /// How many COMMITs of distinct replicas there can be, if a correct one said it; that of the
    /// faulty one always.
    fn commits(&self, view: usize, number: usize, digest: Digest) -> usize {
        let correct = self.bounds.correct();
        let correct = correct.filter(|at| self.slot(*at, view, number).prepared.has(digest)).count();
        if correct > 0 { correct + 1 } else { 0 }
    }

    /// Whether the primary of `view` can have signed this proposal.
    fn is_proposed(&self, view: usize, number: usize, digest: Digest) -> bool {
        let primary = self.bounds.primaries[view];
        self.bounds.is_led_by_liar(view) || self.slot(primary, view, number).accepted.has(digest)
    }

    /// Whether there can be a certificate that this was prepared.
    pub fn is_provable(&self, view: usize, number: usize, digest: Digest) -> bool {
        self.is_proposed(view, number, digest)
            && self.prepares(view, number, digest) + 1 >= self.bounds.quorum
    }

    /// Whether a quorum of COMMITs can be there. More than that a replica has executed it.
    pub fn is_decided(&self, view: usize, number: usize, digest: Digest) -> bool {
        self.commits(view, number, digest) >= self.bounds.quorum
    }

    /// Whether a correct replica can execute this now: it said COMMIT, is in the view, and a quorum
    /// of COMMITs is there.
    pub fn can_commit(&self, at: usize, view: usize, number: usize, digest: Digest) -> bool {
        let replica = &self.state.replicas[at];
        replica.is_in(view)
            && self.slot(at, view, number).prepared.has(digest)
            && self.is_decided(view, number, digest)
    }

    /// Whether a correct replica that has given `view` up can execute this on a quorum of COMMITs, which
    /// it still listens to. It says nothing by that, and what is executed is decided in any case.
    pub fn can_witness(&self, at: usize, view: usize, number: usize, digest: Digest) -> bool {
        self.state.replicas[at].changing && self.is_decided(view, number, digest)
    }

    /// Every batch that can be decided at a number, in any view.
    pub fn decided(&self, number: usize) -> BTreeSet<Digest> {
        let mut decided = BTreeSet::new();
        for view in 0..self.bounds.views {
            let prepared = self.union(view, number, |slot| slot.prepared);
            decided.extend(prepared.iter().filter(|digest| self.is_decided(view, number, *digest)));
        }
        decided
    }

    /// How many batches can be proven to be prepared in one slot. Each has PREPAREs of correct
    /// replicas, or that of the correct primary.
    pub fn provable(&self, view: usize, number: usize) -> usize {
        let accepted = self.union(view, number, |slot| slot.accepted);
        accepted.iter().filter(|digest| self.is_provable(view, number, *digest)).count()
    }

    fn union(&self, view: usize, number: usize, of: fn(&Slot) -> Digests) -> Digests {
        let all = self.bounds.correct().map(|at| of(self.slot(at, view, number)));
        all.fold(Digests::default(), Digests::union)
    }

    /// Up to which number there can be a stable checkpoint: all up to there are decided.
    pub fn stable_upto(&self) -> usize {
        (0..self.bounds.numbers).take_while(|number| !self.decided(*number).is_empty()).count()
    }

    /// P of a correct replica that leaves for `view`: for each number the certificate of the highest
    /// view.
    pub fn own_prepared(&self, at: usize, view: usize, number: usize) -> Option<Proof> {
        let lowest = if self.bounds.makes(Mistake::EarlierViewsForgotten) {
            usize::from(self.state.replicas[at].view)
        } else {
            0
        };
        let proof = |earlier: usize| {
            let digest = self.slot(at, earlier, number).prepared.iter().next()?;
            Some(Proof { view: earlier as u8, digest })
        };
        (lowest..view).rev().find_map(proof)
    }

    /// Every VIEW-CHANGE for `view` that the faulty replica can prove.
    pub fn lies(&self, view: usize) -> Vec<ViewChange> {
        let proofs: Vec<_> = (0..self.bounds.numbers).map(|number| self.proofs(view, number)).collect();
        view_changes(self.stable_upto(), &proofs)
    }

    /// The certificates for a number that there can be from views below `view`, or that are believed.
    fn proofs(&self, view: usize, number: usize) -> Vec<Proof> {
        let believed = self.bounds.makes(Mistake::CertificatesBelieved);
        let mut proofs = possible_proofs(self.bounds, view);
        proofs.retain(|proof| believed || self.is_provable(usize::from(proof.view), number, proof.digest));
        proofs
    }

    /// Every V that a NEW-VIEW for `view` can name, of `most` VIEW-CHANGEs at most; with that of
    /// `including`, if it is given.
    pub fn bases(&self, view: usize, most: usize, including: Option<usize>) -> Vec<Basis> {
        let said = |at: usize| Some((at, self.state.replicas[at].said[view]?));
        let correct: Basis = self.bounds.correct().filter_map(said).collect();
        let least = self.bounds.quorum - usize::from(self.bounds.makes(Mistake::NewViewOfTooFew));
        if correct.len() + 1 < least {
            return Vec::new();
        }
        let lies = self.lies(view).into_iter().map(|lie| Some((self.bounds.byzantine, lie)));
        let lies: Vec<_> = std::iter::once(None).chain(lies).collect();
        let mut found = Vec::new();
        for chosen in 0..1_usize << correct.len() {
            let some = correct.iter().enumerate().filter(|(bit, _)| chosen & 1 << bit != 0);
            let some: Basis = some.map(|(_, view_change)| *view_change).collect();
            if including.is_some_and(|needed| some.iter().all(|(at, _)| *at != needed)) {
                continue;
            }
            let with = |lie: &Option<_>| some.iter().copied().chain(*lie).collect::<Basis>();
            let bases = lies.iter().map(with);
            found.extend(bases.filter(|basis| (least..=most).contains(&basis.len())));
        }
        found
    }

    /// Every V and O with which the correct primary of `view` can begin it: it takes the first
    /// VIEW-CHANGEs of a quorum, its own among them.
    pub fn beginnings(&self, view: usize) -> Vec<(Basis, Proposals)> {
        let primary = self.bounds.primaries[view];
        let quorum = self.bounds.quorum - usize::from(self.bounds.makes(Mistake::NewViewOfTooFew));
        self.with_plans(self.bases(view, quorum, Some(primary)))
    }

    /// Every V and O with which the faulty primary of `view` can begin it so that others believe it.
    pub fn false_beginnings(&self, view: usize) -> Vec<(Basis, Proposals)> {
        let mut found = self.with_plans(self.bases(view, REPLICAS, None));
        if self.bounds.makes(Mistake::ProposalsBelieved) {
            let Some((basis, _)) = found.first().cloned() else { return found };
            let any = |first| Proposals { stable: 0, carried: [first, None] };
            let digests = Digest::all(self.bounds).map(Some).chain([None]);
            found.extend(digests.map(|first| (basis.clone(), any(first))));
        }
        found
    }

    fn with_plans(&self, bases: Vec<Basis>) -> Vec<(Basis, Proposals)> {
        let mut found = Vec::new();
        for basis in bases {
            let proposals = self.plans.of(basis.iter().map(|(_, view_change)| *view_change));
            let open = proposals.stable == 0 && proposals.carried[0].is_none();
            if self.bounds.among_many && open {
                // Something above was prepared, so this number is filled.
                let filled = Proposals { carried: [Some(Digest::NULL), None], ..proposals };
                found.push((basis.clone(), filled));
            }
            found.push((basis, proposals));
        }
        found
    }
}
