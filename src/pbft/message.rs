//! What replicas say to each other.
//!
//! Each message is signed by its sender in the domain of its kind and of the network, over the
//! canonical bytes of the content alone. [`Signed`] is what came from the network; only
//! [`Signed::verify`] makes a [`Verified`], and the core takes nothing else.

use bincode::{Decode, Encode};

use crate::codec::{self, CodecError};
use crate::crypto::{CryptoError, HashKind, SecretKey, SignatureKind};
use crate::ledger::{CheckpointContent, ReplicaSetKeys};
use crate::pbft::certificates::{self, NewView, ViewChange};
use crate::types::{Hash, NetworkId, NodeId, SeqNum, Signature, Timestamp, View};

/// The most bytes of one message in its envelope, which is what gossip carries. Only VIEW-CHANGE
/// comes near it: [`crate::pbft::settings::window`] sees to it that it fits.
pub const MAX_ENVELOPE_BYTES: usize = 256 << 10;

/// The most bytes of an envelope with any other message: twice what the largest PRE-PREPARE has.
pub const MAX_SLOT_ENVELOPE_BYTES: usize = 64 << 10;

/// The highest sequence number that a message may name: far beyond use, and small enough that
/// adding a window never overflows.
pub const MAX_SEQUENCE: SeqNum = SeqNum(u64::MAX >> 1);

/// The highest view that a message may name, likewise.
pub const MAX_VIEW: View = View(u64::MAX >> 1);

/// An ordered batch of request digests. Its digest covers all of it, unchanged when a later view
/// proposes it again; an empty batch is PBFT's null request.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Batch {
    /// Digests of the requests, in order of execution.
    pub requests: Vec<Hash>,
    /// When the proposer made it.
    pub timestamp: Timestamp,
    /// The view that first proposed it.
    pub origin_view: View,
    /// The primary that first proposed it.
    pub proposer: NodeId,
}

impl Batch {
    /// PBFT's null request (1999, section 4.4), which fills a number that a new view must not
    /// leave open: the same for every number and view, so its digest needs no agreement.
    pub const fn null() -> Self {
        Self {
            requests: Vec::new(),
            timestamp: Timestamp(0),
            origin_view: View(0),
            proposer: NodeId([0; NodeId::LEN]),
        }
    }

    /// The batch's digest: what PREPARE and COMMIT name.
    pub fn digest(&self) -> Hash {
        HashKind::Batch.hash(&codec::encode(self))
    }
}

/// `<<PRE-PREPARE, v, n, d>, m>` (1999, section 4.2). The signature covers view, number and the
/// batch's digest, so that a certificate proves the proposal without the batch.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct PrePrepare {
    /// v
    pub view: View,
    /// n
    pub sequence: SeqNum,
    /// The batch, whose digest is d.
    pub batch: Batch,
}

/// `<PREPARE, v, n, d, i>` (1999, section 4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Prepare {
    /// v
    pub view: View,
    /// n
    pub sequence: SeqNum,
    /// d, the batch's digest.
    pub digest: Hash,
}

/// `<COMMIT, v, n, D(m), i>` (1999, section 4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Commit {
    /// v
    pub view: View,
    /// n
    pub sequence: SeqNum,
    /// D(m), the batch's digest.
    pub digest: Hash,
}

/// `<RECOVERY, n, i>`: a replica that lost its log votes again once a checkpoint at or above n is
/// stable. The recovery request and recovery point of 2002, section 4.3.2, in one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Recovery {
    /// n
    pub until: SeqNum,
}

/// The content of a PBFT message; the sender stands in [`Signed`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Content {
    /// The primary proposes a batch.
    PrePrepare(PrePrepare),
    /// A backup agrees to the order.
    Prepare(Prepare),
    /// A replica saw it prepared.
    Commit(Commit),
    /// A replica executed up to here.
    Checkpoint(CheckpointContent),
    /// A replica gives up on the views below.
    ViewChange(ViewChange),
    /// The primary of a new view begins it.
    NewView(NewView),
    /// A replica that lost its log waits to vote again.
    Recovery(Recovery),
}

impl Content {
    /// The domain in which it is signed.
    pub const fn signature_kind(&self) -> SignatureKind {
        match self {
            Self::PrePrepare(_) => SignatureKind::PrePrepare,
            Self::Prepare(_) => SignatureKind::Prepare,
            Self::Commit(_) => SignatureKind::Commit,
            Self::Checkpoint(_) => SignatureKind::Checkpoint,
            Self::ViewChange(_) => SignatureKind::ViewChange,
            Self::NewView(_) => SignatureKind::NewView,
            Self::Recovery(_) => SignatureKind::Recovery,
        }
    }

    /// The sequence number that it is about; of VIEW-CHANGE and NEW-VIEW, the stable checkpoint.
    pub const fn sequence(&self) -> SeqNum {
        match self {
            Self::PrePrepare(pre_prepare) => pre_prepare.sequence,
            Self::Prepare(prepare) => prepare.sequence,
            Self::Commit(commit) => commit.sequence,
            Self::Checkpoint(checkpoint) => checkpoint.sequence,
            Self::ViewChange(view_change) => view_change.stable(),
            Self::NewView(new_view) => new_view.stable,
            Self::Recovery(recovery) => recovery.until,
        }
    }

    /// The view that it belongs to; CHECKPOINT and RECOVERY belong to none.
    pub const fn view(&self) -> Option<View> {
        match self {
            Self::PrePrepare(pre_prepare) => Some(pre_prepare.view),
            Self::Prepare(prepare) => Some(prepare.view),
            Self::Commit(commit) => Some(commit.view),
            Self::Checkpoint(_) => None,
            Self::ViewChange(view_change) => Some(view_change.view),
            Self::NewView(new_view) => Some(new_view.view),
            Self::Recovery(_) => None,
        }
    }

    fn signed_bytes(&self) -> Vec<u8> {
        match self {
            Self::PrePrepare(PrePrepare { view, sequence, batch }) => {
                proposal_bytes(*view, *sequence, batch.digest())
            }
            Self::Prepare(prepare) => codec::encode(prepare),
            Self::Commit(commit) => codec::encode(commit),
            Self::Checkpoint(checkpoint) => codec::encode(checkpoint),
            Self::ViewChange(view_change) => codec::encode(view_change),
            Self::NewView(new_view) => codec::encode(new_view),
            Self::Recovery(recovery) => codec::encode(recovery),
        }
    }
}

/// What the signature of a PRE-PREPARE covers.
pub(super) fn proposal_bytes(view: View, sequence: SeqNum, digest: Hash) -> Vec<u8> {
    codec::encode(&(view, sequence, digest))
}

/// A message as it travels: unverified until [`Signed::verify`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Signed {
    /// Who says so.
    pub sender: NodeId,
    /// What.
    pub content: Content,
    /// The sender's signature over the canonical bytes of the inner content.
    pub signature: Signature,
}

/// Why a message is not one of a replica of this network. Whoever passes it on is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Too long, or not a canonical encoding.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The sender is not a replica.
    #[error("the sender {0} is not a replica")]
    NotAReplica(NodeId),
    /// The signature does not verify.
    #[error(transparent)]
    Signature(#[from] CryptoError),
    /// Names a sequence number beyond all use.
    #[error("the sequence number is beyond all use")]
    Sequence,
    /// Names a view beyond all use.
    #[error("the view is beyond all use")]
    View,
    /// A VIEW-CHANGE or NEW-VIEW whose certificates do not prove what they say.
    #[error(transparent)]
    Proof(#[from] certificates::ProofError),
}

impl Signed {
    /// Checks that a replica signed this, and whatever other signatures are in it.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn verify(self, keys: &ReplicaSetKeys, network: &NetworkId) -> Result<Verified, MessageError> {
        self.authenticate(keys, network)?.prove(keys, network)
    }

    /// Checks that a replica signed this: one signature, whatever else is in it.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn authenticate(self, keys: &ReplicaSetKeys, network: &NetworkId) -> Result<Authentic, MessageError> {
        if self.content.sequence() > MAX_SEQUENCE {
            return Err(MessageError::Sequence);
        }
        if self.content.view().is_some_and(|view| view > MAX_VIEW) {
            return Err(MessageError::View);
        }
        let key = keys.get(&self.sender).ok_or(MessageError::NotAReplica(self.sender))?;
        key.verify(self.content.signature_kind(), network, &self.content.signed_bytes(), &self.signature)?;
        Ok(Authentic(self))
    }
}

/// A message that its sender signed; what it proves with the signatures of others is not checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authentic(Signed);

impl Authentic {
    /// Who says so.
    pub const fn sender(&self) -> NodeId {
        self.0.sender
    }

    /// What.
    pub const fn content(&self) -> &Content {
        &self.0.content
    }

    /// Checks whatever other signatures are in it. With [`crate::pbft::gate`], the only way to a
    /// [`Verified`] from the network.
    ///
    /// # Errors
    /// [`MessageError::Proof`].
    pub fn prove(self, keys: &ReplicaSetKeys, network: &NetworkId) -> Result<Verified, MessageError> {
        match &self.0.content {
            Content::ViewChange(view_change) => view_change.verify(network, keys)?,
            Content::NewView(new_view) => new_view.verify(&self.0.sender, network, keys)?,
            _ => {}
        }
        Ok(Verified(self.0))
    }

    /// The same content was proved before.
    pub(super) fn known(self) -> Verified {
        Verified(self.0)
    }
}

impl From<Verified> for Authentic {
    fn from(message: Verified) -> Self {
        Self(message.0)
    }
}

/// A message whose signature was checked, or that this replica signed itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified(Signed);

impl Verified {
    /// Signs an own message.
    pub fn sign(key: &SecretKey, network: &NetworkId, content: Content) -> Self {
        let signature = key.sign(content.signature_kind(), network, &content.signed_bytes());
        Self(Signed { sender: key.node_id(), content, signature })
    }

    /// A message from the own WAL: it was verified before it was written.
    pub(super) const fn from_wal(signed: Signed) -> Self {
        Self(signed)
    }

    /// The PRE-PREPARE of a batch that a NEW-VIEW carries over: its signature was verified there.
    pub(super) const fn carried(sender: NodeId, pre_prepare: PrePrepare, signature: Signature) -> Self {
        Self(Signed { sender, content: Content::PrePrepare(pre_prepare), signature })
    }

    /// Who says so.
    pub const fn sender(&self) -> NodeId {
        self.0.sender
    }

    /// What.
    pub const fn content(&self) -> &Content {
        &self.0.content
    }

    /// The message as it travels.
    pub const fn signed(&self) -> &Signed {
        &self.0
    }
}

/// What gossip carries. The attempt makes a message that is sent again another one for gossipsub,
/// which drops what it has seen; it is not signed, since nothing depends on it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Envelope {
    /// 0 at first; when it is sent again, another number each time.
    pub attempt: u32,
    /// The message.
    pub signed: Signed,
}

impl Envelope {
    /// The bytes on the wire.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// Reads bytes from the wire.
    ///
    /// # Errors
    /// [`MessageError::Codec`].
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let envelope = codec::decode::<MAX_ENVELOPE_BYTES, Self>(bytes)?;
        let large = matches!(envelope.signed.content, Content::ViewChange(_) | Content::NewView(_));
        if !large && bytes.len() > MAX_SLOT_ENVELOPE_BYTES {
            return Err(CodecError::TooLong { len: bytes.len(), limit: MAX_SLOT_ENVELOPE_BYTES }.into());
        }
        Ok(envelope)
    }
}
