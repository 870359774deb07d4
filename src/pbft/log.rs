//! The message log: one slot for each sequence number and view between the watermarks.
//!
//! A slot holds at most one proposal and, of each replica, at most one PREPARE and one COMMIT: what
//! came first counts, and what contradicts it is evidence. So the memory that strangers can take
//! is bounded. All slots are of the current view: what earlier ones leave behind goes to the
//! [`crate::pbft::archive`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::ledger::{ReplicaSet, VerifiedRequest};
use crate::pbft::certificates::{Carried, Prepared};
use crate::pbft::io::Rejected;
use crate::pbft::message::{Batch, Signed, Verified};
use crate::pbft::resend::Resend;
use crate::planted::{Bug, planted};
use crate::types::{Hash, NodeId, SeqNum, Signature, View};

/// How far a batch has come here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Not agreed to: no proposal, or one that is still judged.
    #[default]
    Waiting,
    /// Agreed to: PRE-PREPARE or PREPARE was sent.
    PrePrepared,
    /// `prepared()` holds: COMMIT was sent.
    Prepared,
    /// `committed_local()` holds.
    Committed,
}

/// A PRE-PREPARE that was taken in.
#[derive(Debug, Clone)]
pub(super) struct Proposal {
    pub(super) message: Verified,
    pub(super) batch: Batch,
    pub(super) digest: Hash,
}

/// One kind of vote in one slot.
#[derive(Debug, Clone, Default)]
pub(super) struct Votes {
    votes: BTreeMap<NodeId, (Hash, Verified)>,
    contradicted: BTreeSet<NodeId>,
}

/// What [`Votes::insert`] found.
pub(super) enum Inserted {
    New,
    Known(Rejected),
    /// The sender's earlier, different vote; told once.
    Contradicts(Box<Signed>),
}

impl Votes {
    /// Takes a vote for `digest`; only the first of a sender counts.
    pub(super) fn insert(&mut self, digest: Hash, vote: Verified) -> Inserted {
        let sender = vote.sender();
        match self.votes.get(&sender) {
            None => {
                self.votes.insert(sender, (digest, vote));
                Inserted::New
            }
            Some((earlier, _)) if *earlier == digest => Inserted::Known(Rejected::Duplicate),
            Some((_, earlier)) if self.contradicted.insert(sender) => {
                Inserted::Contradicts(Box::new(earlier.signed().clone()))
            }
            Some(_) => Inserted::Known(Rejected::Equivocation),
        }
    }

    /// How many votes are kept.
    pub(super) fn len(&self) -> usize {
        self.votes.len()
    }

    /// How many replicas voted for `digest`.
    pub(super) fn count(&self, digest: &Hash) -> usize {
        if planted(Bug::VotesNotMatched) {
            return self.votes.len();
        }
        self.votes.values().filter(|(voted, _)| voted == digest).count()
    }

    /// The signatures of the first `count` replicas that voted for `digest`.
    pub(super) fn signatures(
        &self,
        digest: &Hash,
        count: usize,
        replicas: &ReplicaSet,
    ) -> Vec<(u16, Signature)> {
        let matching = self.votes.iter().filter(|(_, (voted, _))| voted == digest);
        let numbered = matching.filter_map(|(node, (_, vote))| {
            let number = u16::try_from(replicas.index_of(node)?).ok()?;
            Some((number, vote.signed().signature))
        });
        numbered.take(count).collect()
    }

    /// Who voted for `digest`.
    pub(super) fn voters(&self, digest: &Hash) -> impl Iterator<Item = NodeId> {
        self.votes.iter().filter(move |(_, (voted, _))| voted == digest).map(|(node, _)| *node)
    }
}

/// Everything about one sequence number in one view.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub(super) phase: Phase,
    pub(super) proposal: Option<Proposal>,
    pub(super) prepares: Votes,
    pub(super) commits: Votes,
    /// The bodies, from [`Phase::PrePrepared`] on, in the batch's order.
    pub(super) requests: Vec<Arc<VerifiedRequest>>,
    bytes: usize,
    /// Own messages, as signed once.
    pub(super) sent: Vec<Verified>,
    pub(super) resend: Resend,
    /// The certificate, from [`Phase::Prepared`] on.
    pub(super) prepared: Option<Prepared>,
    /// What the NEW-VIEW proposes here, and the signature of its PRE-PREPARE; the batch itself may
    /// still be unknown.
    pub(super) carried: Option<(Carried, Signature)>,
    /// Bodies that the proposal lacks while it is judged.
    pub(super) missing: BTreeSet<Hash>,
    /// When to ask for them, and how often that was done.
    pub(super) fetch_at: Duration,
    pub(super) fetches: usize,
    /// When the proposal's timestamp will be near enough to be judged.
    pub(super) judge_at: Option<Duration>,
    /// The proposal was judged and is not agreed to.
    pub(super) refused: bool,
    /// A second proposal was seen and told.
    pub(super) contradicted: bool,
}

impl Slot {
    pub(super) fn new(resend: Resend) -> Self {
        Self {
            phase: Phase::Waiting,
            proposal: None,
            prepares: Votes::default(),
            commits: Votes::default(),
            requests: Vec::new(),
            bytes: 0,
            sent: Vec::new(),
            resend,
            prepared: None,
            carried: None,
            missing: BTreeSet::new(),
            fetch_at: Duration::ZERO,
            fetches: 0,
            judge_at: None,
            refused: false,
            contradicted: false,
        }
    }

    /// `prepared()` (1999, section 4.2): agreed to, and q-1 matching PREPAREs of distinct backups.
    pub(super) fn prepared(&self, quorum: usize) -> bool {
        self.phase >= Phase::PrePrepared && self.matching(&self.prepares) + 1 >= quorum
    }

    /// `committed_local()` (1999, section 4.2): prepared, and q matching COMMITs.
    pub(super) fn committed_local(&self, quorum: usize) -> bool {
        let enough = self.matching(&self.commits) >= quorum || planted(Bug::ExecutedWhenPrepared);
        self.phase >= Phase::Prepared && enough
    }

    /// Votes that match the proposal.
    pub(super) fn matching(&self, votes: &Votes) -> usize {
        self.proposal.as_ref().map_or(0, |proposal| votes.count(&proposal.digest))
    }

    /// Gives the slot its bodies.
    pub(super) fn hold(&mut self, requests: Vec<Arc<VerifiedRequest>>) {
        self.bytes = requests.iter().map(|request| request.bytes().len()).sum();
        self.requests = requests;
    }
}

/// The slots above the low watermark.
#[derive(Debug, Clone, Default)]
pub(super) struct Log {
    slots: BTreeMap<(SeqNum, View), Slot>,
}

impl Log {
    pub(super) fn get(&self, sequence: SeqNum, view: View) -> Option<&Slot> {
        self.slots.get(&(sequence, view))
    }

    pub(super) fn get_mut(&mut self, sequence: SeqNum, view: View) -> Option<&mut Slot> {
        self.slots.get_mut(&(sequence, view))
    }

    pub(super) fn entry(&mut self, sequence: SeqNum, view: View, resend: Resend) -> &mut Slot {
        self.slots.entry((sequence, view)).or_insert_with(|| Slot::new(resend))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (SeqNum, &Slot)> {
        self.slots.iter().map(|((sequence, _), slot)| (*sequence, slot))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (SeqNum, &mut Slot)> {
        self.slots.iter_mut().map(|((sequence, _), slot)| (*sequence, slot))
    }

    /// The slots whose proposals are still to be judged, from `first` on.
    pub(super) fn above_mut(&mut self, after: SeqNum) -> impl Iterator<Item = (SeqNum, &mut Slot)> {
        self.slots.range_mut((after.next(), View(0))..).map(|((sequence, _), slot)| (*sequence, slot))
    }

    /// The same, to read.
    pub(super) fn above(&self, after: SeqNum) -> impl Iterator<Item = (SeqNum, &Slot)> {
        self.slots.range((after.next(), View(0))..).map(|((sequence, _), slot)| (*sequence, slot))
    }

    /// Drops and returns all slots of views below `view`.
    pub(super) fn leave(&mut self, view: View) -> Vec<(SeqNum, Slot)> {
        let left: Vec<_> = self.slots.keys().copied().filter(|(_, of)| *of < view).collect();
        left.into_iter().filter_map(|key| Some((key.0, self.slots.remove(&key)?))).collect()
    }

    /// Drops and returns all slots up to `stable`.
    pub(super) fn cut(&mut self, stable: SeqNum) -> impl Iterator<Item = (SeqNum, Slot)> + use<> {
        let kept = self.slots.split_off(&(stable.next(), View(0)));
        std::mem::replace(&mut self.slots, kept).into_iter().map(|((sequence, _), slot)| (sequence, slot))
    }

    /// Bytes of the bodies that the slots hold.
    pub(super) fn bytes(&self) -> usize {
        self.slots.values().map(|slot| slot.bytes).sum()
    }
}
