//! O of V, by the core's own function.
//!
//! The model names batches by small numbers; `certificates::plan` works on real VIEW-CHANGEs. The
//! few VIEW-CHANGEs that can come up are translated, given to the core in every combination, and
//! the answers kept in a table. Signatures play no part in it: what can be signed is a matter of
//! the model's rules, and `plan` does not look at them.

use std::collections::HashMap;

use ledgermq::ledger::{Certificate, CheckpointContent, ReplicaSet};
use ledgermq::pbft::Batch;
use ledgermq::pbft::certificates::{self, Prepared};
use ledgermq::types::{Hash, Height, SeqNum, Signature, View};

use crate::bounds::{Bounds, MAX_NUMBERS, Mistake, REPLICAS, replica_set};
use crate::state::{Digest, Proof, Proposals, ViewChange};

/// See the module.
#[derive(Debug)]
pub struct Plans(HashMap<Vec<ViewChange>, Proposals>);

impl Plans {
    /// The table of a run.
    pub fn new(bounds: &Bounds) -> Self {
        let mut plans = Self(HashMap::new());
        let set = replica_set();
        for view in 1..bounds.views {
            let proofs = vec![possible_proofs(bounds, view); bounds.numbers];
            let mut possible = view_changes(bounds.numbers, &proofs);
            possible.sort_unstable();
            let mut grown = vec![Vec::new()];
            for size in 1..=REPLICAS {
                grown = grown.iter().flat_map(|some| longer(some, &possible)).collect();
                if size + 1 < bounds.quorum {
                    continue;
                }
                for view_changes in &grown {
                    let proposals = proposals(bounds, view, view_changes, &set);
                    plans.0.insert(view_changes.clone(), proposals);
                }
            }
        }
        plans
    }

    /// O of these VIEW-CHANGEs.
    pub fn of(&self, view_changes: impl Iterator<Item = ViewChange>) -> Proposals {
        let mut key: Vec<ViewChange> = view_changes.collect();
        key.sort_unstable();
        *self.0.get(&key).unwrap_or_else(|| panic!("no correct replica takes {key:?}"))
    }
}

/// All certificates that can come up for one number before `view`.
pub fn possible_proofs(bounds: &Bounds, view: usize) -> Vec<Proof> {
    let all = (0..view).flat_map(|earlier| Digest::all(bounds).map(move |digest| (earlier, digest)));
    let possible = all.filter(|(earlier, digest)| match digest.origin() {
        None => *earlier > 0,
        Some((origin, _)) => origin <= *earlier,
    });
    possible.map(|(earlier, digest)| Proof { view: earlier as u8, digest }).collect()
}

/// Every VIEW-CHANGE with one of these certificates, or none, for each number above its checkpoint,
/// which is one up to `stable`.
pub fn view_changes(stable: usize, proofs: &[Vec<Proof>]) -> Vec<ViewChange> {
    let mut all = Vec::new();
    for stable in 0..=stable {
        let mut some = vec![ViewChange { stable: stable as u8, ..ViewChange::default() }];
        for (number, proofs) in proofs.iter().enumerate().skip(stable) {
            for proof in proofs {
                for without in 0..some.len() {
                    let mut with = some[without];
                    if with.prepared[number].is_none() {
                        with.prepared[number] = Some(*proof);
                        some.push(with);
                    }
                }
            }
        }
        all.extend(some);
    }
    all
}

/// The ascending lists that are one longer.
fn longer(some: &[ViewChange], possible: &[ViewChange]) -> Vec<Vec<ViewChange>> {
    let next = possible.iter().filter(|next| some.last().is_none_or(|last| last <= next));
    next.map(|next| some.iter().chain([next]).copied().collect()).collect()
}

fn proposals(bounds: &Bounds, view: usize, view_changes: &[ViewChange], set: &ReplicaSet) -> Proposals {
    let real: Vec<_> = view_changes.iter().map(|one| real(bounds, view, one)).collect();
    let plan = certificates::plan(real.iter(), set);
    let digests: HashMap<Hash, Digest> = Digest::all(bounds).map(|digest| (hash(digest), digest)).collect();
    let mut proposals = Proposals { stable: plan.stable.0 as u8, carried: [None; MAX_NUMBERS] };
    for (number, carried) in (plan.stable.0 as usize..).zip(plan.carried) {
        proposals.carried[number] = Some(digests[&carried.digest]);
    }
    proposals
}

/// A VIEW-CHANGE as the core knows it.
fn real(bounds: &Bounds, view: usize, of: &ViewChange) -> certificates::ViewChange {
    let upside_down = bounds.makes(Mistake::LowestViewChosen);
    let prepared = |(number, proof): (usize, &Option<Proof>)| {
        let proof = proof.filter(|_| !bounds.makes(Mistake::PreparedIgnored))?;
        let earlier = if upside_down { view - 1 - usize::from(proof.view) } else { usize::from(proof.view) };
        Some(Prepared {
            view: View(earlier as u64),
            sequence: SeqNum(number as u64 + 1),
            digest: hash(proof.digest),
            pre_prepare: Signature([0; 64]),
            prepares: Vec::new(),
        })
    };
    let certificate = |stable: u8| {
        let sequence = SeqNum(u64::from(stable));
        let (block, state) = (Hash([stable; 32]), Hash([stable; 32]));
        let content = CheckpointContent { sequence, height: Height(sequence.0), block, state };
        Certificate { content, signatures: Vec::new() }
    };
    certificates::ViewChange {
        view: View(view as u64),
        checkpoint: (of.stable > 0).then(|| certificate(of.stable)),
        prepared: of.prepared.iter().enumerate().filter_map(prepared).collect(),
    }
}

/// A hash for each of the model's digests.
fn hash(digest: Digest) -> Hash {
    match digest.origin() {
        None => Batch::null().digest(),
        Some((view, nth)) => Hash([1 + 16 * view as u8 + nth as u8; 32]),
    }
}
