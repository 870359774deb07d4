//! Evidence that a replica is faulty, which anyone can check with the genesis document alone.
//!
//! ```text
//! "LMQFAULT" ‖ version (2 bytes) ‖ canonical Evidence:
//!   Contradiction  two messages that one replica signed and that no correct replica signs both
//!   FalseNewView   a NEW-VIEW and the VIEW-CHANGEs that it names, from which it does not follow
//! ```
//!
//! [`Evidence`] is what somebody claims; only [`Evidence::verify`] makes a [`Proven`] of it. A correct
//! replica logs a message before it sends it, and after a restart sends the same bytes again: so
//! whatever crashes, restarts and view changes do, nothing that it signed can be put together to
//! evidence. Two different VIEW-CHANGEs are none: a replica that lost its log may honestly say another
//! thing. docs/CONSENSUS.md has the rules and the bytes.

use std::fmt;

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::codec::{self, CodecError};
use crate::crypto::{HashKind, blake3_plain};
use crate::ledger::{CheckpointContent, Genesis, GenesisError, ReplicaSet, ReplicaSetKeys};
use crate::pbft::certificates::{NewView, Plan, ViewChange, plan};
use crate::pbft::message::{Content, MAX_ENVELOPE_BYTES, MessageError, PrePrepare, Signed};
use crate::types::{Hash, NetworkId, NodeId, SeqNum, View};

/// The first bytes of a piece of evidence.
pub const MAGIC: &[u8; 8] = b"LMQFAULT";

/// The version of evidence that this program writes and takes.
pub const EVIDENCE_VERSION: u16 = 1;

/// The most bytes that a piece of evidence has: a NEW-VIEW and the VIEW-CHANGEs of all replicas, each
/// of which fits into one message of gossip. Two messages for one slot have a few hundred bytes, and
/// two PRE-PREPAREs at most 128 KiB.
pub const MAX_EVIDENCE_BYTES: usize = (ReplicaSet::MAX + 1) * MAX_ENVELOPE_BYTES;

/// Why a piece of evidence proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceError {
    /// Does not begin as evidence does.
    #[error("not evidence: it does not begin with LMQFAULT")]
    NotEvidence,
    /// Another version.
    #[error("evidence of version {0}, this program knows version {EVIDENCE_VERSION}: use a newer one")]
    Version(u16),
    /// The rest is not canonical.
    #[error("the evidence is damaged: {0}")]
    Codec(#[from] CodecError),
    /// The genesis document is not valid.
    #[error("the genesis document: {0}")]
    Genesis(#[from] GenesisError),
    /// A message is not one that a replica of this network signed.
    #[error("{which}: {error}")]
    Message {
        /// Which one.
        which: Part,
        /// What is wrong with it.
        error: MessageError,
    },
    /// Two replicas may say different things.
    #[error("the messages are of two replicas, {first} and {second}: they may say different things")]
    TwoSenders {
        /// Who sent the first one.
        first: NodeId,
        /// Who sent the second one.
        second: NodeId,
    },
    /// The same message, maybe sent twice.
    #[error("both messages say the same")]
    Same,
    /// The same pair the other way round would be another file for the same fault.
    #[error("the messages do not stand in the order of their bytes")]
    Order,
    /// Two VIEW-CHANGEs.
    #[error("two VIEW-CHANGEs prove nothing: a replica that lost its log may honestly say another thing")]
    ViewChanges,
    /// Two messages that do not exclude each other.
    #[error(
        "the messages, {first} and {second}, are not about the same slot: a correct replica may sign both"
    )]
    Unrelated {
        /// The kind of the first one.
        first: &'static str,
        /// The kind of the second one.
        second: &'static str,
    },
    /// In the place of the NEW-VIEW stands something else.
    #[error("there is no NEW-VIEW in the place of the NEW-VIEW")]
    NoNewView,
    /// The VIEW-CHANGEs are not those that the NEW-VIEW names.
    #[error("the VIEW-CHANGEs are not those that the NEW-VIEW names, each once and in its order")]
    NotNamed,
    /// The NEW-VIEW is what it must be.
    #[error("the NEW-VIEW follows from the VIEW-CHANGEs that it names")]
    Follows,
}

/// A message's place in a piece of evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The first of two.
    First,
    /// The second of two.
    Second,
    /// The NEW-VIEW that is false.
    NewView,
    /// One of the VIEW-CHANGEs that it names, counted from 0.
    ViewChange(usize),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::First => f.write_str("the first message"),
            Self::Second => f.write_str("the second message"),
            Self::NewView => f.write_str("the NEW-VIEW"),
            Self::ViewChange(at) => write!(f, "VIEW-CHANGE {at}"),
        }
    }
}

/// Messages that are said to prove that their sender is faulty. Anybody may say so: see
/// [`Evidence::verify`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
// Rare, and boxed where it is one of many.
#[allow(clippy::large_enum_variant)]
pub enum Evidence {
    /// Two messages of one sender, ascending by their canonical bytes.
    Contradiction {
        /// The first one.
        first: Signed,
        /// The second one.
        second: Signed,
    },
    /// A NEW-VIEW that is not what its VIEW-CHANGEs make it.
    FalseNewView {
        /// The NEW-VIEW.
        new_view: Signed,
        /// The VIEW-CHANGEs that it names, in its order.
        view_changes: Vec<Signed>,
    },
}

/// What a replica did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// Two PRE-PREPAREs for one view and number.
    PrePrepare,
    /// Two PREPAREs for one view and number.
    Prepare,
    /// Two COMMITs for one view and number.
    Commit,
    /// Two CHECKPOINTs for one number.
    Checkpoint,
    /// Two NEW-VIEWs for one view.
    NewView,
    /// A PRE-PREPARE that contradicts the NEW-VIEW of its view.
    ContradictedNewView,
    /// A NEW-VIEW that does not follow from the VIEW-CHANGEs that it names.
    FalseNewView,
}

impl FaultKind {
    /// All kinds.
    pub const ALL: [Self; 7] = [
        Self::PrePrepare,
        Self::Prepare,
        Self::Commit,
        Self::Checkpoint,
        Self::NewView,
        Self::ContradictedNewView,
        Self::FalseNewView,
    ];

    /// Its name in metrics, and in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PrePrepare => "pre_prepare",
            Self::Prepare => "prepare",
            Self::Commit => "commit",
            Self::Checkpoint => "checkpoint",
            Self::NewView => "new_view",
            Self::ContradictedNewView => "contradicted_new_view",
            Self::FalseNewView => "false_new_view",
        }
    }
}

/// Who did what, and where. As text, what was done: "signed two different PREPAREs for view 3,
/// sequence 17".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Fault {
    /// The replica.
    pub node: NodeId,
    /// What it did.
    pub kind: FaultKind,
    /// In which view; a CHECKPOINT belongs to none.
    pub view: Option<View>,
    /// For which sequence number; a NEW-VIEW is about many.
    pub sequence: Option<SeqNum>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            FaultKind::PrePrepare => "two different PRE-PREPAREs",
            FaultKind::Prepare => "two different PREPAREs",
            FaultKind::Commit => "two different COMMITs",
            FaultKind::Checkpoint => "two different CHECKPOINTs",
            FaultKind::NewView => "two different NEW-VIEWs",
            FaultKind::ContradictedNewView => "a PRE-PREPARE that contradicts its own NEW-VIEW",
            FaultKind::FalseNewView => "a NEW-VIEW that does not follow from the VIEW-CHANGEs that it names",
        };
        write!(f, "signed {what}")?;
        match (self.view, self.sequence) {
            (Some(view), Some(sequence)) => write!(f, ", for view {view}, sequence {sequence}"),
            (Some(view), None) => write!(f, ", for view {view}"),
            (None, Some(sequence)) => write!(f, ", for sequence {sequence}"),
            (None, None) => Ok(()),
        }
    }
}

/// What one of the messages says, as far as it matters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "says")]
pub enum Said {
    /// This batch has this number; none of a NEW-VIEW that carries none over for it.
    Batch {
        /// The number.
        sequence: SeqNum,
        /// The batch's digest.
        batch: Option<Hash>,
    },
    /// This is the state after this number.
    State(CheckpointContent),
    /// A view begins like this.
    Begins {
        /// min-s: the stable checkpoint that it begins above.
        stable: SeqNum,
        /// max-s: up to here it carries batches over.
        carried_upto: SeqNum,
        /// BLAKE3 of the NEW-VIEW's content; none of what would have been right.
        content: Option<Hash>,
    },
    /// A VIEW-CHANGE leads to this view.
    Leads {
        /// The view.
        view: View,
    },
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Batch { sequence, batch: Some(batch) } => {
                write!(f, "at sequence {sequence} comes batch {batch}")
            }
            Self::Batch { sequence, batch: None } => write!(f, "at sequence {sequence} comes no batch"),
            Self::State(CheckpointContent { sequence, height, block, state }) => {
                write!(f, "after sequence {sequence}: height {height}, block {block}, state {state}")
            }
            Self::Begins { stable, carried_upto, content } => {
                write!(
                    f,
                    "the view begins above sequence {stable} and carries batches over up to {carried_upto}"
                )?;
                content.map_or(Ok(()), |content| write!(f, " (content {content})"))
            }
            Self::Leads { view } => write!(f, "the VIEW-CHANGEs lead to view {view}"),
        }
    }
}

/// What a piece of evidence proves. Only [`Evidence::verify`] makes one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Proven {
    /// The evidence's hash, by which the API names it.
    pub id: Hash,
    /// The ledger.
    pub network: NetworkId,
    /// Who did what.
    #[serde(flatten)]
    pub fault: Fault,
    /// Its number among the replicas.
    pub replica: u16,
    /// What the two messages say. Of a false NEW-VIEW: what it says, and what follows from its
    /// VIEW-CHANGEs, where they first differ.
    pub said: [Said; 2],
    #[serde(skip)]
    bytes: Vec<u8>,
}

impl Proven {
    /// The evidence's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Evidence {
    /// The claim that the sender of these messages contradicts itself.
    pub fn contradiction(one: &Signed, other: &Signed) -> Self {
        let (first, second) =
            if codec::encode(one) <= codec::encode(other) { (one, other) } else { (other, one) };
        Self::Contradiction { first: first.clone(), second: second.clone() }
    }

    /// The claim that a NEW-VIEW does not follow from the VIEW-CHANGEs that it names, which are these
    /// in its order.
    pub fn false_new_view(new_view: &Signed, view_changes: Vec<Signed>) -> Self {
        Self::FalseNewView { new_view: new_view.clone(), view_changes }
    }

    /// The evidence's bytes.
    pub fn encode(&self) -> Vec<u8> {
        [MAGIC.as_slice(), &EVIDENCE_VERSION.to_be_bytes(), &codec::encode(self)].concat()
    }

    /// Reads evidence, and proves nothing yet.
    ///
    /// # Errors
    /// [`EvidenceError::NotEvidence`], [`EvidenceError::Version`] or [`EvidenceError::Codec`].
    pub fn decode(bytes: &[u8]) -> Result<Self, EvidenceError> {
        let rest = bytes.strip_prefix(MAGIC).ok_or(EvidenceError::NotEvidence)?;
        let (version, rest) = rest.split_first_chunk().ok_or(EvidenceError::NotEvidence)?;
        let version = u16::from_be_bytes(*version);
        if version != EVIDENCE_VERSION {
            return Err(EvidenceError::Version(version));
        }
        Ok(codec::decode::<MAX_EVIDENCE_BYTES, Self>(rest)?)
    }

    /// The name of evidence with these bytes.
    pub fn id_of(bytes: &[u8]) -> Hash {
        HashKind::Evidence.hash(bytes)
    }

    /// Who is said to have done what. The messages fit together; nothing is proven by that.
    ///
    /// # Errors
    /// [`EvidenceError`]: they could not prove a fault, whoever signed them.
    pub fn claimed(&self) -> Result<Fault, EvidenceError> {
        match self {
            Self::Contradiction { first, second } => contradiction(first, second).map(|(fault, _)| fault),
            Self::FalseNewView { new_view, .. } => {
                let view = new_view_of(new_view)?.view;
                let kind = FaultKind::FalseNewView;
                Ok(Fault { node: new_view.sender, kind, view: Some(view), sequence: None })
            }
        }
    }

    /// Checks with the genesis document alone that a replica is faulty.
    ///
    /// # Errors
    /// [`EvidenceError`]: why this does not prove it.
    pub fn verify_with(&self, genesis: &Genesis) -> Result<Proven, EvidenceError> {
        genesis.check()?;
        let keys = ReplicaSetKeys::new(&genesis.replicas).map_err(|_| GenesisError::ReplicaKey)?;
        self.verify(&genesis.network_id(), &keys)
    }

    /// Checks that a replica of this network is faulty.
    ///
    /// # Errors
    /// [`EvidenceError`]: why this does not prove it.
    pub fn verify(&self, network: &NetworkId, keys: &ReplicaSetKeys) -> Result<Proven, EvidenceError> {
        let fault = self.claimed()?;
        let signed = |which, message: &Signed| match message.clone().verify(keys, network) {
            Ok(_) => Ok(()),
            Err(error) => Err(EvidenceError::Message { which, error }),
        };
        let said = match self {
            Self::Contradiction { first, second } => {
                let (_, said) = contradiction(first, second)?;
                signed(Part::First, first)?;
                signed(Part::Second, second)?;
                said
            }
            Self::FalseNewView { new_view, view_changes } => {
                signed(Part::NewView, new_view)?;
                let named = named(new_view_of(new_view)?, view_changes, keys.replicas())?;
                for (at, view_change) in view_changes.iter().enumerate() {
                    signed(Part::ViewChange(at), view_change)?;
                }
                difference(new_view_of(new_view)?, &named, keys.replicas())?
            }
        };
        let not_a_replica = MessageError::NotAReplica(fault.node);
        let replica = keys.replicas().index_of(&fault.node).and_then(|index| u16::try_from(index).ok());
        let replica = replica.ok_or(EvidenceError::Message { which: Part::First, error: not_a_replica })?;
        let bytes = self.encode();
        Ok(Proven { id: Self::id_of(&bytes), network: *network, fault, replica, said, bytes })
    }
}

/// What two messages contradict each other in, if a correct replica cannot have signed both.
fn contradiction(first: &Signed, second: &Signed) -> Result<(Fault, [Said; 2]), EvidenceError> {
    if first.sender != second.sender {
        return Err(EvidenceError::TwoSenders { first: first.sender, second: second.sender });
    }
    // Only what is signed counts: another signature under the same content is no contradiction.
    if first.content == second.content {
        return Err(EvidenceError::Same);
    }
    if codec::encode(first) > codec::encode(second) {
        return Err(EvidenceError::Order);
    }
    let unrelated = EvidenceError::Unrelated { first: name(&first.content), second: name(&second.content) };
    let (kind, said) = match (&first.content, &second.content) {
        (Content::PrePrepare(one), Content::PrePrepare(other)) => {
            (FaultKind::PrePrepare, [proposed(one), proposed(other)])
        }
        (Content::Prepare(one), Content::Prepare(other)) => {
            (FaultKind::Prepare, [voted(one.sequence, one.digest), voted(other.sequence, other.digest)])
        }
        (Content::Commit(one), Content::Commit(other)) => {
            (FaultKind::Commit, [voted(one.sequence, one.digest), voted(other.sequence, other.digest)])
        }
        (Content::Checkpoint(one), Content::Checkpoint(other)) => {
            (FaultKind::Checkpoint, [Said::State(*one), Said::State(*other)])
        }
        (Content::NewView(one), Content::NewView(other)) if one.view == other.view => {
            let fault =
                Fault { node: first.sender, kind: FaultKind::NewView, view: Some(one.view), sequence: None };
            return Ok((fault, [begins(one), begins(other)]));
        }
        (Content::PrePrepare(fresh), Content::NewView(new_view)) if fresh.view == new_view.view => {
            let carried = carried(new_view, fresh)?;
            let (view, sequence) = (Some(fresh.view), Some(fresh.sequence));
            let kind = FaultKind::ContradictedNewView;
            return Ok((Fault { node: first.sender, kind, view, sequence }, [proposed(fresh), carried]));
        }
        (Content::ViewChange(_), Content::ViewChange(_)) => return Err(EvidenceError::ViewChanges),
        _ => return Err(unrelated),
    };
    let slot = |content: &Content| (content.view(), content.sequence());
    if slot(&first.content) != slot(&second.content) {
        return Err(unrelated);
    }
    let (view, sequence) = slot(&first.content);
    Ok((Fault { node: first.sender, kind, view, sequence: Some(sequence) }, said))
}

/// What a NEW-VIEW carries over for the number of a proposal, if that is something else. Above what is
/// carried over, its primary proposes afresh.
fn carried(new_view: &NewView, fresh: &PrePrepare) -> Result<Said, EvidenceError> {
    let last = last_of(new_view);
    if fresh.sequence > last {
        return Err(EvidenceError::Unrelated {
            first: "a PRE-PREPARE",
            second: "a NEW-VIEW that ends below",
        });
    }
    let batch = new_view.numbered().find(|(sequence, _)| *sequence == fresh.sequence);
    let batch = batch.map(|(_, (digest, _))| *digest);
    if batch == Some(fresh.batch.digest()) {
        return Err(EvidenceError::Same);
    }
    Ok(Said::Batch { sequence: fresh.sequence, batch })
}

fn new_view_of(message: &Signed) -> Result<&NewView, EvidenceError> {
    match &message.content {
        Content::NewView(new_view) => Ok(new_view),
        _ => Err(EvidenceError::NoNewView),
    }
}

/// The VIEW-CHANGEs that a NEW-VIEW names, if these are they.
fn named<'a>(
    new_view: &NewView,
    messages: &'a [Signed],
    replicas: &ReplicaSet,
) -> Result<Vec<&'a ViewChange>, EvidenceError> {
    if messages.len() != new_view.view_changes.len() {
        return Err(EvidenceError::NotNamed);
    }
    let named = messages.iter().zip(&new_view.view_changes).map(|(message, (number, digest))| {
        let Content::ViewChange(view_change) = &message.content else { return None };
        let sender = replicas.members().get(usize::from(*number));
        (sender == Some(&message.sender) && view_change.digest() == *digest).then_some(view_change)
    });
    named.collect::<Option<_>>().ok_or(EvidenceError::NotNamed)
}

/// Where a NEW-VIEW first differs from what follows from its VIEW-CHANGEs.
fn difference(
    new_view: &NewView,
    view_changes: &[&ViewChange],
    replicas: &ReplicaSet,
) -> Result<[Said; 2], EvidenceError> {
    if let Some(other) = view_changes.iter().find(|view_change| view_change.view != new_view.view) {
        return Ok([Said::Leads { view: new_view.view }, Said::Leads { view: other.view }]);
    }
    let Plan { stable, carried } = plan(view_changes.iter().copied(), replicas);
    if stable != new_view.stable {
        let carried_upto = SeqNum(stable.0.saturating_add(carried.len() as u64));
        return Ok([begins(new_view), Said::Begins { stable, carried_upto, content: None }]);
    }
    let says = |at: usize| new_view.proposals.get(at).map(|(digest, _)| *digest);
    let follows = |at: usize| carried.get(at).map(|carried| carried.digest);
    let longest = carried.len().max(new_view.proposals.len());
    let at = (0..longest).find(|at| says(*at) != follows(*at)).ok_or(EvidenceError::Follows)?;
    let sequence = SeqNum(stable.0.saturating_add(1).saturating_add(at as u64));
    Ok([Said::Batch { sequence, batch: says(at) }, Said::Batch { sequence, batch: follows(at) }])
}

fn proposed(pre_prepare: &PrePrepare) -> Said {
    voted(pre_prepare.sequence, pre_prepare.batch.digest())
}

const fn voted(sequence: SeqNum, digest: Hash) -> Said {
    Said::Batch { sequence, batch: Some(digest) }
}

fn begins(new_view: &NewView) -> Said {
    let content = Some(blake3_plain(&codec::encode(new_view)));
    Said::Begins { stable: new_view.stable, carried_upto: last_of(new_view), content }
}

/// max-s, the last number that a NEW-VIEW carries over.
fn last_of(new_view: &NewView) -> SeqNum {
    SeqNum(new_view.stable.0.saturating_add(new_view.proposals.len() as u64))
}

const fn name(content: &Content) -> &'static str {
    match content {
        Content::PrePrepare(_) => "a PRE-PREPARE",
        Content::Prepare(_) => "a PREPARE",
        Content::Commit(_) => "a COMMIT",
        Content::Checkpoint(_) => "a CHECKPOINT",
        Content::ViewChange(_) => "a VIEW-CHANGE",
        Content::NewView(_) => "a NEW-VIEW",
        Content::Recovery(_) => "a RECOVERY",
    }
}
