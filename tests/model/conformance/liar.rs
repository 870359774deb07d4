//! What the faulty replica signs: with real signatures, made of what others really said.

use ledgermq::ledger::Certificate;
use ledgermq::pbft::Signed;
use ledgermq::pbft::certificates::{NewView, Prepared, ViewChange};
use ledgermq::pbft::message::{Commit, Content, PrePrepare, Prepare};
use ledgermq::types::{SeqNum, Signature, View};

use super::monitor::Monitor;
use crate::bounds::{MAX_NUMBERS, replica_set};
use crate::rules::Basis;
use crate::state::{self, Digest, Proof, Proposals};

impl Monitor {
    /// PRE-PREPARE of the faulty replica.
    pub fn lying_proposal(&mut self, view: usize, number: usize, nth: usize) -> Signed {
        let batch = self.cluster.lie(view, number, nth);
        let sequence = SeqNum(number as u64 + 1);
        self.cluster.sign(Content::PrePrepare(PrePrepare { view: View(view as u64), sequence, batch }))
    }

    /// PREPARE of the faulty replica.
    pub fn lying_prepare(&self, view: usize, number: usize, digest: Digest) -> Option<Signed> {
        let digest = self.cluster.batches.get(&(number, digest))?.digest();
        let vote = Prepare { view: View(view as u64), sequence: SeqNum(number as u64 + 1), digest };
        Some(self.cluster.sign(Content::Prepare(vote)))
    }

    /// COMMIT of the faulty replica.
    pub fn lying_commit(&self, view: usize, number: usize, digest: Digest) -> Option<Signed> {
        let digest = self.cluster.batches.get(&(number, digest))?.digest();
        let vote = Commit { view: View(view as u64), sequence: SeqNum(number as u64 + 1), digest };
        Some(self.cluster.sign(Content::Commit(vote)))
    }

    /// VIEW-CHANGE of the faulty replica with the best proofs that it has: right ones, if there are
    /// such. None where a CHECKPOINT was never signed, since it cannot even name its content.
    pub fn lying_view_change(&self, view: usize, says: &state::ViewChange) -> Option<Signed> {
        let checkpoint = match u64::from(says.stable) {
            0 => None,
            number => {
                let signed = self.cluster.certifying(number)?;
                let Content::Checkpoint(content) = signed[0].1.content else { return None };
                let signatures = signed.iter().map(|(at, signed)| (*at as u16, signed.signature));
                Some(Certificate { content, signatures: signatures.collect() })
            }
        };
        let proofs = (0..MAX_NUMBERS).filter_map(|number| Some((number, says.prepared[number]?)));
        let prepared: Option<Vec<Prepared>> =
            proofs.map(|(number, proof)| self.proof(number, proof)).collect();
        let content = ViewChange { view: View(view as u64), checkpoint, prepared: prepared? };
        Some(self.cluster.sign(Content::ViewChange(content)))
    }

    /// A certificate, with signatures made up where there are not enough.
    fn proof(&self, number: usize, proof: Proof) -> Option<Prepared> {
        let view = usize::from(proof.view);
        let batch = self.cluster.batches.get(&(number, proof.digest))?.clone();
        let (digest, sequence) = (batch.digest(), SeqNum(number as u64 + 1));
        let primary = self.model.bounds.primaries[view];
        let faulty = self.model.bounds.byzantine;
        let forged = self.cluster.sign(Content::PrePrepare(PrePrepare {
            view: View(proof.view.into()),
            sequence,
            batch,
        }));
        let pre_prepare = self.proposals.get(&(view, number, proof.digest)).unwrap_or(&forged).signature;
        let backups = (0..self.cluster.keys.len()).filter(|at| *at != primary);
        let mut prepares: Vec<(u16, Signature)> = Vec::new();
        for at in backups.clone() {
            let vote = if at == faulty {
                self.lying_prepare(view, number, proof.digest)
            } else {
                self.prepares.get(&(at, view, number, proof.digest)).cloned()
            };
            prepares.extend(vote.map(|vote| (at as u16, vote.signature)));
        }
        let needed = replica_set().quorum() - 1;
        prepares.truncate(needed);
        let unsigned = backups.map(|at| at as u16).filter(|at| prepares.iter().all(|(with, _)| with != at));
        let invented: Vec<_> =
            unsigned.take(needed - prepares.len()).map(|at| (at, forged.signature)).collect();
        prepares.extend(invented);
        prepares.sort_by_key(|(at, _)| *at);
        Some(Prepared { view: View(proof.view.into()), sequence, digest, pre_prepare, prepares })
    }

    /// The VIEW-CHANGEs of a basis, if all of them can be had.
    pub fn view_changes(&self, view: usize, basis: &Basis) -> Option<Vec<(usize, Signed)>> {
        let message = |(at, says): &(usize, state::ViewChange)| {
            let message = if *at == self.model.bounds.byzantine {
                self.lying_view_change(view, says)?
            } else {
                self.view_changes.get(&(*at, view))?.clone()
            };
            Some((*at, message))
        };
        basis.iter().map(message).collect()
    }

    /// NEW-VIEW of the faulty replica.
    pub fn lying_new_view(&self, view: usize, named: &[(usize, Signed)], says: &Proposals) -> Option<Signed> {
        let mut view_changes = Vec::new();
        for (at, message) in named {
            let Content::ViewChange(view_change) = &message.content else { return None };
            view_changes.push((*at as u16, view_change.digest()));
        }
        view_changes.sort_by_key(|(at, _)| *at);
        let mut proposals = Vec::new();
        for number in usize::from(says.stable)..MAX_NUMBERS {
            let Some(digest) = says.carried[number] else { break };
            let batch = self.cluster.batches.get(&(number, digest))?.clone();
            let (digest, sequence) = (batch.digest(), SeqNum(number as u64 + 1));
            let signed = self.cluster.sign(Content::PrePrepare(PrePrepare {
                view: View(view as u64),
                sequence,
                batch,
            }));
            proposals.push((digest, signed.signature));
        }
        let (view, stable) = (View(view as u64), SeqNum(says.stable.into()));
        Some(self.cluster.sign(Content::NewView(NewView { view, stable, view_changes, proposals })))
    }
}
