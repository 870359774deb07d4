//! What a view change proves: prepared certificates, VIEW-CHANGE and NEW-VIEW (1999, section 4.4).
//!
//! ```text
//! VIEW-CHANGE = v, C: certificate of the last stable checkpoint, P: a Prepared for each number above
//! Prepared    = view, n, digest, the primary's PRE-PREPARE signature, q-1 PREPARE signatures
//! NEW-VIEW    = v, min-s, V: (replica, hash) of q VIEW-CHANGEs, O: (digest, PRE-PREPARE signature)
//!               for every number from min-s + 1 to max-s
//! ```
//!
//! All of it names batches by digest, and V names messages by hash (as in the paper's journal
//! version of 2002), so each message fits into one of gossip; who lacks a VIEW-CHANGE or a batch
//! fetches it. [`plan`] is the function that makes O of V: the new primary and everybody who checks
//! it use the same.

use bincode::{Decode, Encode};

use crate::codec;
use crate::crypto::{CryptoError, HashKind, SignatureKind};
use crate::ledger::{Certificate, CertificateError, ReplicaSet, ReplicaSetKeys};
use crate::pbft::message::{Batch, Prepare, proposal_bytes};
use crate::pbft::settings::window;
use crate::planted::{Bug, planted};
use crate::types::{Hash, NetworkId, NodeId, SeqNum, Signature, View};

/// Why a VIEW-CHANGE or NEW-VIEW proves nothing. Its sender is faulty: correct ones check first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// View 0 needs no change to it.
    #[error("nothing leads to view 0")]
    ViewZero,
    /// The checkpoint has no certificate that holds.
    #[error("the stable checkpoint is not certified: {0}")]
    Checkpoint(#[from] CertificateError),
    /// Prepared numbers do not ascend within the window above the checkpoint.
    #[error("the prepared numbers must ascend within the window above the checkpoint")]
    Numbers,
    /// Something was prepared in a view that comes later.
    #[error("batch {0} cannot have been prepared in that view")]
    PreparedLater(SeqNum),
    /// Not q-1 distinct backups.
    #[error("the certificate of batch {0} needs PREPAREs of q-1 distinct backups, ascending")]
    Backups(SeqNum),
    /// A signature in it does not verify.
    #[error("a signature about batch {0} does not verify")]
    Signature(SeqNum),
    /// NEW-VIEW of another replica than its primary.
    #[error("a NEW-VIEW of a replica that is not the view's primary")]
    NotPrimary,
    /// V does not name a quorum.
    #[error("a NEW-VIEW must name the VIEW-CHANGEs of a quorum of distinct replicas, ascending")]
    NoQuorum,
}

/// Proof that a batch was prepared (1999, section 4.2): nothing else can have been prepared for
/// that view and number.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Prepared {
    /// The view.
    pub view: View,
    /// The number.
    pub sequence: SeqNum,
    /// The batch's digest.
    pub digest: Hash,
    /// The signature of the view's primary under PRE-PREPARE.
    pub pre_prepare: Signature,
    /// Numbers of q-1 backups, ascending, and their signatures under PREPARE.
    pub prepares: Vec<(u16, Signature)>,
}

impl Prepared {
    /// The bytes of one without signatures of backups.
    pub const FIXED_BYTES: usize = 8 + 8 + 32 + 64 + 8;

    /// The bytes that each such signature adds.
    pub const BYTES_PER_SIGNATURE: usize = 2 + 64;

    fn verify(&self, network: &NetworkId, keys: &ReplicaSetKeys) -> Result<(), ProofError> {
        let Self { view, sequence, digest, .. } = *self;
        let replicas = keys.replicas();
        let primary = replicas.primary(view);
        let ascend = self.prepares.is_sorted_by(|one, next| one.0 < next.0);
        if !ascend || self.prepares.len() + 1 != replicas.quorum() {
            return Err(ProofError::Backups(sequence));
        }
        let bad = |_: CryptoError| ProofError::Signature(sequence);
        let key = |node: &NodeId| keys.get(node).ok_or(ProofError::Backups(sequence));
        let proposal = proposal_bytes(view, sequence, digest);
        key(&primary)?
            .verify(SignatureKind::PrePrepare, network, &proposal, &self.pre_prepare)
            .map_err(bad)?;
        let vote = codec::encode(&Prepare { view, sequence, digest });
        for (number, signature) in &self.prepares {
            let backup = replicas
                .members()
                .get(usize::from(*number))
                .filter(|node| **node != primary || planted(Bug::PrepareOfPrimaryCounted));
            let backup = backup.ok_or(ProofError::Backups(sequence))?;
            key(backup)?.verify(SignatureKind::Prepare, network, &vote, signature).map_err(bad)?;
        }
        Ok(())
    }

    /// Who has the batch and its requests: those who signed.
    pub(super) fn holders(&self, replicas: &ReplicaSet) -> Vec<NodeId> {
        let backup = |(number, _): &(u16, Signature)| replicas.members().get(usize::from(*number)).copied();
        let backups = self.prepares.iter().filter_map(backup);
        backups.chain([replicas.primary(self.view)]).collect()
    }
}

/// `<VIEW-CHANGE, v+1, n, C, P, i>` (1999, section 4.4).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct ViewChange {
    /// The view that the sender wants to go to.
    pub view: View,
    /// C, and with it n: the last stable checkpoint; none is the genesis.
    pub checkpoint: Option<Certificate>,
    /// P: for each number above n that was prepared at the sender, the certificate of the highest
    /// view; ascending.
    pub prepared: Vec<Prepared>,
}

impl ViewChange {
    /// n, the last stable checkpoint's number.
    pub const fn stable(&self) -> SeqNum {
        match &self.checkpoint {
            Some(certificate) => certificate.content.sequence,
            None => SeqNum(0),
        }
    }

    /// What a NEW-VIEW names it by, beside its sender.
    pub fn digest(&self) -> Hash {
        HashKind::ViewChange.hash(&codec::encode(self))
    }

    pub(super) fn verify(&self, network: &NetworkId, keys: &ReplicaSetKeys) -> Result<(), ProofError> {
        if self.view == View(0) {
            return Err(ProofError::ViewZero);
        }
        let (low, window) = (self.stable(), window(keys.replicas()));
        let within =
            |proof: &Prepared| proof.sequence > low && proof.sequence.0 <= low.0.saturating_add(window);
        let ascend = self.prepared.is_sorted_by(|one, next| one.sequence < next.sequence);
        if !ascend || !self.prepared.iter().all(within) {
            return Err(ProofError::Numbers);
        }
        if let Some(later) = self.prepared.iter().find(|proof| proof.view >= self.view) {
            return Err(ProofError::PreparedLater(later.sequence));
        }
        if let Some(certificate) = &self.checkpoint {
            certificate.verify(network, keys)?;
        }
        self.prepared.iter().try_for_each(|proof| proof.verify(network, keys))
    }
}

/// `<NEW-VIEW, v+1, V, O>` (1999, section 4.4).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct NewView {
    /// The view that begins.
    pub view: View,
    /// min-s: the highest stable checkpoint in V.
    pub stable: SeqNum,
    /// V: numbers of replicas, ascending, and the hashes of their VIEW-CHANGEs.
    pub view_changes: Vec<(u16, Hash)>,
    /// O: for each number above min-s, the batch's digest and the signature of the PRE-PREPARE that
    /// proposes it in this view.
    pub proposals: Vec<(Hash, Signature)>,
}

impl NewView {
    pub(super) fn verify(
        &self,
        sender: &NodeId,
        network: &NetworkId,
        keys: &ReplicaSetKeys,
    ) -> Result<(), ProofError> {
        let replicas = keys.replicas();
        if self.view == View(0) {
            return Err(ProofError::ViewZero);
        }
        if replicas.primary(self.view) != *sender {
            return Err(ProofError::NotPrimary);
        }
        let ascend = self.view_changes.is_sorted_by(|one, next| one.0 < next.0);
        let members = self.view_changes.iter().all(|(number, _)| usize::from(*number) < replicas.n());
        if !ascend || !members || self.view_changes.len() < replicas.quorum() {
            return Err(ProofError::NoQuorum);
        }
        if self.proposals.len() as u64 > window(replicas) {
            return Err(ProofError::Numbers);
        }
        let key = keys.get(sender).ok_or(ProofError::NotPrimary)?;
        for (sequence, (digest, signature)) in self.numbered() {
            let proposal = proposal_bytes(self.view, sequence, *digest);
            key.verify(SignatureKind::PrePrepare, network, &proposal, signature)
                .map_err(|_| ProofError::Signature(sequence))?;
        }
        Ok(())
    }

    /// O with its numbers.
    pub(super) fn numbered(&self) -> impl Iterator<Item = (SeqNum, &(Hash, Signature))> {
        let numbers = (self.stable.0.saturating_add(1)..).map(SeqNum);
        numbers.zip(&self.proposals)
    }

    /// O as it stands there, whatever follows from V.
    pub(super) fn believed(&self) -> Plan {
        let carried = |(digest, _): &(Hash, Signature)| Carried { digest: *digest, holders: Vec::new() };
        Plan { stable: self.stable, carried: self.proposals.iter().map(carried).collect() }
    }

    /// Whether this is the NEW-VIEW that follows from `plan`.
    pub(super) fn follows(&self, plan: &Plan) -> bool {
        let proposed = self.proposals.iter().map(|(digest, _)| *digest);
        self.stable == plan.stable && proposed.eq(plan.carried.iter().map(|carried| carried.digest))
    }
}

/// What a set of VIEW-CHANGEs makes a new view begin with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// min-s.
    pub stable: SeqNum,
    /// For each number from min-s + 1 to max-s.
    pub carried: Vec<Carried>,
}

/// A batch that is proposed again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carried {
    /// The batch's digest.
    pub digest: Hash,
    /// Who has it; nobody need be asked for a null batch.
    pub holders: Vec<NodeId>,
}

/// O of V (1999, section 4.4): the highest stable checkpoint, and above it, for each number up to the
/// highest prepared one, what was prepared in the highest view, or the null batch. `tests/model` checks
/// the protocol with this very function.
pub fn plan<'a>(view_changes: impl Iterator<Item = &'a ViewChange> + Clone, replicas: &ReplicaSet) -> Plan {
    let stable = view_changes.clone().map(ViewChange::stable).max().unwrap_or_default();
    let prepared = view_changes.flat_map(|view_change| &view_change.prepared);
    let mut chosen = std::collections::BTreeMap::<SeqNum, &Prepared>::new();
    for proof in prepared.filter(|proof| proof.sequence > stable && !planted(Bug::PSetIgnored)) {
        let best = chosen.entry(proof.sequence).or_insert(proof);
        // Two digests for one view and number cannot both be prepared; the order is a formality.
        if (proof.view, proof.digest) > (best.view, best.digest) {
            *best = proof;
        }
    }
    let last = chosen.last_key_value().map_or(stable, |(sequence, _)| *sequence);
    let null = Batch::null().digest();
    let carried = |sequence| match chosen.get(&SeqNum(sequence)) {
        Some(proof) => Carried { digest: proof.digest, holders: proof.holders(replicas) },
        None => Carried { digest: null, holders: Vec::new() },
    };
    Plan { stable, carried: (stable.0.saturating_add(1)..=last.0).map(carried).collect() }
}
