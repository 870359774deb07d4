//! Equivocating primary: it proposes one batch to some and another to the rest, under one number,
//! and votes for both, so that either may win wherever its votes are missing.

use std::collections::BTreeMap;

use ledgermq::pbft::Envelope;
use ledgermq::pbft::message::{Batch, Commit, Content, PrePrepare, Prepare};
use ledgermq::types::{SeqNum, View};

use super::{Adversary, Power};

#[derive(Default)]
pub struct EquivocatingPrimary {
    /// The other batch for each of its proposals.
    others: BTreeMap<(View, SeqNum), Batch>,
}

impl Adversary for EquivocatingPrimary {
    fn name(&self) -> &'static str {
        "equivocating primary"
    }

    fn on_send(&mut self, power: &mut Power<'_>, envelope: Envelope) {
        match envelope.signed.content.clone() {
            Content::PrePrepare(pre_prepare) if pre_prepare.batch.proposer == power.node_id() => {
                self.propose_both(power, &envelope, &pre_prepare);
            }
            Content::Commit(commit) => {
                self.vote_for_both(power, commit);
                power.broadcast(&envelope);
            }
            _ => power.broadcast(&envelope),
        }
    }
}

impl EquivocatingPrimary {
    fn propose_both(&mut self, power: &mut Power<'_>, first: &Envelope, pre_prepare: &PrePrepare) {
        let mut batch = pre_prepare.batch.clone();
        batch.timestamp.0 += 1;
        if batch.requests.len() > 1 {
            batch.requests.reverse();
        }
        let slot = (pre_prepare.view, pre_prepare.sequence);
        let batch = self.others.entry(slot).or_insert(batch).clone();
        let digests = [pre_prepare.batch.digest(), batch.digest()];
        let second = power.sign(Content::PrePrepare(PrePrepare { batch, ..pre_prepare.clone() }));
        for to in power.others() {
            // Some hear only one, now and then somebody hears both.
            if to % 2 == 0 || power.rng.percent(5) {
                power.lie(to, first);
            }
            if to % 2 == 1 || power.rng.percent(5) {
                power.lie(to, &second);
            }
        }
        let (view, sequence) = slot;
        for digest in digests {
            // A PREPARE of the primary counts for nothing; it tries.
            let prepare = power.sign(Content::Prepare(Prepare { view, sequence, digest }));
            let commit = power.sign(Content::Commit(Commit { view, sequence, digest }));
            for to in power.others().into_iter().filter(|to| (to % 2 == 0) == (digest == digests[0])) {
                power.lie(to, &prepare);
                power.lie(to, &commit);
            }
        }
    }

    fn vote_for_both(&mut self, power: &mut Power<'_>, commit: Commit) {
        let Some(batch) = self.others.get(&(commit.view, commit.sequence)) else { return };
        let digest = batch.digest();
        let other = power.sign(Content::Commit(Commit { digest, ..commit }));
        power.lie_to_all(&other);
    }
}
