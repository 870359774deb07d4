//! CHECKPOINTs and the certificates that they make (1999, section 4.3).
//!
//! A quorum of equal CHECKPOINTs for a sequence number is its certificate. The highest certified
//! number that this replica has executed is the low watermark. Numbers below it whose certificate
//! is still incomplete stay open for one more window: each block should have its own certificate,
//! not only every so many. What others say about numbers far above is kept as one claim for each
//! replica; f+1 claims show that this replica is behind.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::ledger::{Certificate, CheckpointContent, ReplicaSet};
use crate::pbft::io::Rejected;
use crate::pbft::message::{Content, Signed, Verified};
use crate::pbft::resend::Resend;
use crate::pbft::settings::WINDOW;
use crate::planted::{Bug, planted};
use crate::types::{Height, NodeId, SeqNum};

/// The own CHECKPOINT of one sequence number.
#[derive(Debug, Clone)]
pub(super) struct OwnCheckpoint {
    pub(super) content: CheckpointContent,
    pub(super) message: Verified,
    /// A block came of this sequence number, which needs its certificate.
    pub(super) made_block: bool,
    pub(super) resend: Resend,
    /// When it was sent again because another replica seemed to lack it.
    pub(super) answered: Option<Duration>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Slot {
    pub(super) own: Option<OwnCheckpoint>,
    /// The CHECKPOINT of each replica, the own one too; none once there is a certificate.
    votes: BTreeMap<NodeId, (CheckpointContent, Verified)>,
    pub(super) certificate: Option<Certificate>,
    /// Who was seen to contradict itself; told once each.
    contradicted: BTreeSet<NodeId>,
}

/// What [`Checkpoints::insert`] found.
pub(super) enum Inserted {
    New,
    Known(Rejected),
    /// The sender's earlier, different CHECKPOINT for the same sequence number.
    Contradicts(Box<Signed>),
}

/// All CHECKPOINTs within a window around the low watermark.
#[derive(Debug, Clone)]
pub(super) struct Checkpoints {
    slots: BTreeMap<SeqNum, Slot>,
    /// The highest CHECKPOINT heard of each other replica.
    claims: BTreeMap<NodeId, CheckpointContent>,
    /// The highest of each that passes numbers only: with the block and state that this replica has
    /// reached. A claim may be of a block beyond, which cannot be certified before this replica moves.
    passing: BTreeMap<NodeId, CheckpointContent>,
    /// The low watermark.
    pub(super) stable: SeqNum,
    /// Numbers between the watermarks.
    window: u64,
    /// Blocks whose certificates got lost before a restart.
    pub(super) uncertified: BTreeSet<Height>,
}

impl Checkpoints {
    pub(super) fn new(stable: SeqNum, window: u64) -> Self {
        let (slots, claims, passing) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { slots, claims, passing, stable, window, uncertified: BTreeSet::new() }
    }

    pub(super) fn get(&self, sequence: SeqNum) -> Option<&Slot> {
        self.slots.get(&sequence)
    }

    pub(super) fn slot(&mut self, sequence: SeqNum) -> &mut Slot {
        self.slots.entry(sequence).or_default()
    }

    /// The own CHECKPOINTs that are still to be repeated: the certificate is missing, and either
    /// the watermark waits for it or a block does. The lowest first.
    pub(super) fn open(&self) -> impl Iterator<Item = (SeqNum, &OwnCheckpoint)> {
        let open = self.slots.iter().filter(|(_, slot)| slot.certificate.is_none());
        open.filter_map(|(sequence, slot)| Some((*sequence, slot.own.as_ref()?)))
            .filter(|(sequence, own)| *sequence > self.stable || own.made_block)
    }

    /// The same, to count repetitions.
    pub(super) fn open_mut(&mut self) -> impl Iterator<Item = &mut OwnCheckpoint> {
        let stable = self.stable;
        let open = self.slots.iter_mut().filter(|(_, slot)| slot.certificate.is_none());
        open.filter_map(|(sequence, slot)| Some((*sequence, slot.own.as_mut()?)))
            .filter(move |(sequence, own)| *sequence > stable || own.made_block)
            .map(|(_, own)| own)
    }

    /// The certificates of sequence numbers up to `executed`.
    pub(super) fn certificates(&self, executed: SeqNum) -> impl Iterator<Item = &Certificate> {
        self.slots.range(..=executed).filter_map(|(_, slot)| slot.certificate.as_ref())
    }

    /// The last sequence number that CHECKPOINTs are collected for.
    pub(super) const fn high(&self) -> SeqNum {
        SeqNum(self.stable.0.saturating_add(self.window))
    }

    /// The last sequence number that they are no longer collected for.
    pub(super) const fn low(&self) -> SeqNum {
        SeqNum(self.stable.0.saturating_sub(WINDOW))
    }

    /// How many CHECKPOINTs and claims are kept.
    pub(super) fn held(&self) -> (usize, usize) {
        (self.slots.values().map(|slot| slot.votes.len().max(1)).sum(), self.claims.len())
    }

    /// Remembers the highest that `node` says it executed; `executed` is what this replica has.
    pub(super) fn claim(&mut self, node: NodeId, content: CheckpointContent, executed: &CheckpointContent) {
        let claim = self.claims.entry(node).or_insert(content);
        if content.sequence > claim.sequence {
            *claim = content;
        }
        if passes(&content, executed) {
            let passing = self.passing.entry(node).or_insert(content);
            if content.sequence > passing.sequence || !passes(passing, executed) {
                *passing = content;
            }
        }
    }

    /// The highest CHECKPOINT heard of `node`.
    pub(super) fn claim_of(&self, node: &NodeId) -> Option<&CheckpointContent> {
        self.claims.get(node)
    }

    /// What at least one correct other replica has executed: the (f+1)-th highest claim.
    pub(super) fn known(&self, replicas: &ReplicaSet) -> SeqNum {
        let mut claims: Vec<SeqNum> = self.claims.values().map(|claim| claim.sequence).collect();
        claims.sort_unstable_by(|a, b| b.cmp(a));
        claims.get(replicas.f()).copied().unwrap_or_default()
    }

    /// The claim that `rank - 1` others are at or above, once `heard_of` others have made one.
    pub(super) fn ranked_claim(&self, heard_of: usize, rank: usize) -> Option<SeqNum> {
        let mut claims: Vec<SeqNum> = self.claims.values().map(|claim| claim.sequence).collect();
        claims.sort_unstable_by(|a, b| b.cmp(a));
        claims.get(rank - 1).copied().filter(|_| claims.len() >= heard_of)
    }

    /// Who claims to have executed `sequence`.
    pub(super) fn claimants(&self, sequence: SeqNum) -> Vec<NodeId> {
        self.claims.iter().filter(|(_, claim)| claim.sequence >= sequence).map(|(node, _)| *node).collect()
    }

    /// A claim that f+1 replicas share, above `executed` and with the same block and state.
    pub(super) fn unchanged_since(
        &self,
        executed: &CheckpointContent,
        replicas: &ReplicaSet,
    ) -> Option<CheckpointContent> {
        let heard = || self.claims.iter().chain(&self.passing);
        let shared = |content: &&CheckpointContent| {
            let weak_quorum = if planted(Bug::SkipOnOneWord) { 1 } else { replicas.weak_quorum() };
            let by: BTreeSet<&NodeId> =
                heard().filter(|(_, other)| other == content).map(|(node, _)| node).collect();
            by.len() >= weak_quorum
        };
        let passing = heard().map(|(_, content)| content).filter(|content| passes(content, executed));
        passing.filter(shared).max_by_key(|content| content.sequence).copied()
    }

    /// Takes a CHECKPOINT in; only the first of a sender counts.
    pub(super) fn insert(&mut self, content: CheckpointContent, vote: Verified) -> Inserted {
        let slot = self.slot(content.sequence);
        if slot.certificate.is_some() {
            return Inserted::Known(Rejected::Duplicate);
        }
        let sender = vote.sender();
        match slot.votes.get(&sender) {
            None => {
                slot.votes.insert(sender, (content, vote));
                Inserted::New
            }
            Some((earlier, _)) if *earlier == content => Inserted::Known(Rejected::Duplicate),
            Some((_, earlier)) if slot.contradicted.insert(sender) => {
                Inserted::Contradicts(Box::new(earlier.signed().clone()))
            }
            Some(_) => Inserted::Known(Rejected::Equivocation),
        }
    }

    /// The CHECKPOINT of `sender` that the certificate of the same number has, if it is another one;
    /// told once.
    pub(super) fn contradicts_certificate(
        &mut self,
        content: &CheckpointContent,
        sender: NodeId,
        replicas: &ReplicaSet,
    ) -> Option<Signed> {
        let slot = self.slots.get_mut(&content.sequence)?;
        let certificate = slot.certificate.as_ref().filter(|certificate| certificate.content != *content)?;
        let number = u16::try_from(replicas.index_of(&sender)?).ok()?;
        let (_, signature) = certificate.signatures.iter().find(|(signer, _)| *signer == number)?;
        let (content, signature) = (Content::Checkpoint(certificate.content), *signature);
        slot.contradicted.insert(sender).then_some(Signed { sender, content, signature })
    }

    /// The certificate that the votes for `sequence` make, if it is complete and new.
    pub(super) fn certificate(&self, sequence: SeqNum, replicas: &ReplicaSet) -> Option<Certificate> {
        let slot = self.slots.get(&sequence).filter(|slot| slot.certificate.is_none())?;
        let agreed = |content: &CheckpointContent| {
            let quorum = if planted(Bug::CheckpointOfOneReplica) { 1 } else { replicas.quorum() };
            slot.votes.values().filter(|(voted, _)| voted == content).count() >= quorum
        };
        let content = slot.votes.values().map(|(content, _)| *content).find(agreed)?;
        let signatures = slot.votes.iter().filter(|(_, (voted, _))| *voted == content);
        let signatures = signatures
            .filter_map(|(node, (_, vote))| {
                let index = u16::try_from(replicas.index_of(node)?).ok()?;
                Some((index, vote.signed().signature))
            })
            .collect();
        Some(Certificate { content, signatures })
    }

    /// The certificate of `sequence` is known.
    pub(super) fn certified(&mut self, certificate: Certificate) {
        self.close(certificate.content.height);
        let slot = self.slot(certificate.content.sequence);
        slot.votes.clear();
        slot.certificate = Some(certificate);
    }

    /// The block at `height` has its certificate, maybe that of a later batch that made no block.
    pub(super) fn close(&mut self, height: Height) {
        self.uncertified.remove(&height);
        for own in self.open_mut().filter(|own| own.content.height == height) {
            own.made_block = false;
        }
    }

    /// Moves the low watermark, and drops what is a window below it.
    pub(super) fn advance(&mut self, stable: SeqNum) {
        self.stable = self.stable.max(stable);
        self.slots = self.slots.split_off(&self.low().next());
    }

    /// Heights whose blocks were executed long ago and whose certificates are still missing,
    /// ascending.
    pub(super) fn gaps(&self, attempts: u32, most: usize) -> Vec<Height> {
        let below = self.open().take_while(|(sequence, _)| *sequence <= self.stable);
        let given_up = below.filter(|(_, own)| own.resend.attempt >= attempts);
        let given_up: BTreeSet<Height> = given_up.map(|(_, own)| own.content.height).collect();
        self.uncertified.union(&given_up).copied().take(most).collect()
    }
}

/// Whether a CHECKPOINT is of a higher number with the same block and state.
fn passes(content: &CheckpointContent, executed: &CheckpointContent) -> bool {
    content.sequence > executed.sequence
        && (content.height, content.block, content.state) == (executed.height, executed.block, executed.state)
}

impl OwnCheckpoint {
    pub(super) fn new(message: Verified, made_block: bool, resend: Resend) -> Option<Self> {
        let Content::Checkpoint(content) = *message.content() else { return None };
        Some(Self { content, message, made_block, resend, answered: None })
    }
}
