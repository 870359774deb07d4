//! What earlier views left behind: for each number above the low watermark, the batches that this
//! replica agreed to.
//!
//! Three promises outlive a view. A prepared certificate goes into each VIEW-CHANGE until the
//! number is stable (1999, section 4.4). A committed batch is executed whatever the view. And the
//! bodies of every batch that this replica voted for stay here for others to fetch: a certificate
//! that somebody else holds may rest on that vote. One entry for each number and digest, so it
//! grows only by batches that a primary freshly proposed.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::ledger::VerifiedRequest;
use crate::pbft::certificates::Prepared;
use crate::pbft::log::{Phase, Slot};
use crate::pbft::message::Batch;
use crate::types::{Hash, SeqNum};

/// A batch that this replica agreed to in an earlier view.
#[derive(Debug, Clone)]
pub(super) struct Past {
    pub(super) batch: Batch,
    pub(super) requests: Vec<Arc<VerifiedRequest>>,
    /// The certificate of the highest view in which it was prepared here.
    pub(super) prepared: Option<Prepared>,
    pub(super) committed: bool,
}

/// All of them.
#[derive(Debug, Clone, Default)]
pub(super) struct Archive {
    past: BTreeMap<(SeqNum, Hash), Past>,
}

impl Archive {
    /// Takes over what a slot of the view that ends promises; nothing, if nothing was agreed to.
    pub(super) fn absorb(&mut self, sequence: SeqNum, slot: Slot) {
        let Some(proposal) = slot.proposal.filter(|_| slot.phase >= Phase::PrePrepared) else { return };
        let past = self.past.entry((sequence, proposal.digest)).or_insert_with(|| Past {
            batch: proposal.batch,
            requests: Vec::new(),
            prepared: None,
            committed: false,
        });
        if past.requests.is_empty() {
            past.requests = slot.requests;
        }
        past.committed |= slot.phase == Phase::Committed;
        if let Some(prepared) = slot.prepared
            && past.prepared.as_ref().is_none_or(|earlier| earlier.view < prepared.view)
        {
            past.prepared = Some(prepared);
        }
    }

    /// A batch committed in an earlier view, in which this replica may not have voted for it.
    pub(super) fn witness(
        &mut self,
        sequence: SeqNum,
        digest: Hash,
        batch: Batch,
        requests: &[Arc<VerifiedRequest>],
    ) {
        let unknown = || Past { batch, requests: Vec::new(), prepared: None, committed: false };
        let past = self.past.entry((sequence, digest)).or_insert_with(unknown);
        if past.requests.is_empty() {
            past.requests = requests.to_vec();
        }
        past.committed = true;
    }

    pub(super) fn get(&self, sequence: SeqNum, digest: Hash) -> Option<&Past> {
        self.past.get(&(sequence, digest))
    }

    /// The batch that committed at `sequence` in an earlier view.
    pub(super) fn committed(&self, sequence: SeqNum) -> Option<&Past> {
        self.at(sequence).find(|past| past.committed)
    }

    /// A batch by its digest, for who lacks it.
    pub(super) fn batch(&self, digest: &Hash) -> Option<&Batch> {
        self.past.iter().find(|((_, found), _)| found == digest).map(|(_, past)| &past.batch)
    }

    /// A body of one of the batches.
    pub(super) fn request(&self, digest: &Hash) -> Option<&Arc<VerifiedRequest>> {
        self.past.values().flat_map(|past| &past.requests).find(|request| request.digest() == *digest)
    }

    /// P (1999, section 4.4): for each number above `low` the certificate of the highest view.
    pub(super) fn prepared(&self, low: SeqNum) -> Vec<Prepared> {
        let mut highest = BTreeMap::<SeqNum, &Prepared>::new();
        let above = self.past.range((low.next(), Hash([0; 32]))..);
        for proof in above.filter_map(|(_, past)| past.prepared.as_ref()) {
            let best = highest.entry(proof.sequence).or_insert(proof);
            if proof.view > best.view {
                *best = proof;
            }
        }
        highest.into_values().cloned().collect()
    }

    /// What belongs to one number.
    pub(super) fn at(&self, sequence: SeqNum) -> impl Iterator<Item = &Past> {
        self.past.range((sequence, Hash([0; 32]))..=(sequence, Hash([0xff; 32]))).map(|(_, past)| past)
    }

    /// Drops and returns what belongs to numbers up to `stable`.
    pub(super) fn cut(&mut self, stable: SeqNum) -> impl Iterator<Item = (SeqNum, Past)> + use<> {
        let kept = self.past.split_off(&(stable.next(), Hash([0; 32])));
        std::mem::replace(&mut self.past, kept).into_iter().map(|((sequence, _), past)| (sequence, past))
    }

    /// The numbers, batches and bodies.
    pub(super) fn iter(&self) -> impl Iterator<Item = (SeqNum, &Past)> {
        self.past.iter().map(|((sequence, _), past)| (*sequence, past))
    }
}
