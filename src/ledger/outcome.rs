//! What execution says: of each request, and of the batch as a whole.

use crate::device::codes::ErrorCode;
use crate::ledger::block::{Block, BlockError};
use crate::ledger::certificate::CheckpointContent;
use crate::ledger::change::StateChange;
use crate::types::{Hash, Height, MessageSeq};

/// Why a request was consumed without effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The client is not registered.
    #[error("the client is not registered")]
    UnknownClient,
    /// The client was revoked, and the seq is above the last one that is accepted.
    #[error("the client was revoked after seq {last_seq}")]
    Revoked {
        /// The last seq that is accepted.
        last_seq: MessageSeq,
    },
    /// The message was signed with a key that is not the client's.
    #[error("the message is not signed with the client's registered key")]
    WrongKey,
    /// Another message with this seq is on the ledger.
    #[error("another message with this seq is on the ledger")]
    SeqReused,
    /// More than [`crate::ledger::SEQ_WINDOW`] below the client's highest seq on the ledger.
    #[error("the seq is too far below {highest}, the highest on the ledger")]
    SeqTooOld {
        /// The highest seq of the client that is on the ledger.
        highest: MessageSeq,
    },
    /// The block has no room: only if a faulty primary proposed too much.
    #[error("the block is full: send it again")]
    BlockFull,
    /// The key that signed the operation is no admin's.
    #[error("the key that signed the operation is not an admin of this network")]
    NotAnAdmin,
    /// The admin's sequence does not increase: replayed, or overtaken by a later operation.
    #[error("the admin's last executed operation has sequence {last}: sign with a greater one")]
    StaleAdminSequence {
        /// The sequence of the admin's last executed operation.
        last: u64,
    },
    /// Policies that replace a version that is not in force.
    #[error(
        "version {current} of the policies is in force, not the one that these replace: look at it, and say that yours replace {current} if they are to take its place"
    )]
    StalePolicies {
        /// The version in force.
        current: u64,
    },
    /// The node whose history a digest is of is no replica.
    #[error("the node of the history digest is no replica of this network")]
    NotAReplica,
    /// A history digest does not follow the node's last one.
    #[error("the node's last history digest has number {last}, and this one does not follow it")]
    DigestOrder {
        /// The number of the last one.
        last: u64,
    },
    /// The client to be registered is registered.
    #[error("the client is registered already")]
    AlreadyRegistered,
    /// The client to be registered or revoked was revoked before.
    #[error("the client was revoked; a revoked client id is never used again")]
    AlreadyRevoked,
}

impl Rejection {
    /// The code that PROTOCOL.md section 6 has for it in an `error`; nothing if the answer to the
    /// client is `unauth`, or goes to an admin.
    pub const fn error_code(&self) -> Option<ErrorCode> {
        match self {
            Self::WrongKey => Some(ErrorCode::BadSignature),
            Self::SeqReused => Some(ErrorCode::SeqReused),
            Self::SeqTooOld { .. } => Some(ErrorCode::SeqTooOld),
            Self::BlockFull => Some(ErrorCode::Overloaded),
            Self::UnknownClient
            | Self::Revoked { .. }
            | Self::NotAnAdmin
            | Self::NotAReplica
            | Self::DigestOrder { .. }
            | Self::StaleAdminSequence { .. }
            | Self::StalePolicies { .. }
            | Self::AlreadyRegistered
            | Self::AlreadyRevoked => None,
        }
    }
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Items were written.
    Written {
        /// The block's height.
        height: Height,
        /// The block's hash.
        block: Hash,
        /// The place of the operation in the block.
        operation: u32,
        /// All items of the message that are on the ledger now.
        items: Vec<u32>,
    },
    /// All its items were on the ledger already.
    AlreadyWritten {
        /// The height of the block that wrote the last of the message's items.
        height: Height,
        /// All items of the message that are on the ledger.
        items: Vec<u32>,
    },
    /// The admin's operation was executed.
    AdminExecuted {
        /// The block's height.
        height: Height,
        /// The place of the operation in the block.
        operation: u32,
    },
    /// The history digest stands on the ledger.
    DigestExecuted {
        /// The block's height.
        height: Height,
        /// The place of the operation in the block.
        operation: u32,
    },
    /// Consumed without effect.
    Rejected(Rejection),
}

/// What executing a batch gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executed {
    /// What this replica's CHECKPOINT signs.
    pub checkpoint: CheckpointContent,
    /// The block, unless the batch left nothing.
    pub block: Option<Block>,
    /// What became of each request, by digest, in the batch's order.
    pub outcomes: Vec<(Hash, Outcome)>,
    /// What changed in the state, in order; a key may occur more than once.
    pub changes: Vec<StateChange>,
}

/// Why a certified block or checkpoint could not be followed. The state is not to be used then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// Not the next block; the state is as it was.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// Execution came to another block or state than a quorum certified.
    #[error(
        "executing block {height} gives another result than a quorum certified: this node's state or \
         program differs from theirs; stop it, remove its ledger and let it sync again"
    )]
    Diverged {
        /// The block's height.
        height: Height,
    },
}
