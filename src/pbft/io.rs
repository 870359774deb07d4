//! Everything that can happen to a replica, and everything that it can want done.
//!
//! ```text
//!            Input ──▶ Replica::step ──▶ Output { wal, effects, rejected, notices }
//!                                          │     │
//!                       1. append and sync ┘     └ 2. only then carry out, in order
//! ```

use std::sync::Arc;
use std::time::Duration;

use crate::ledger::{Certificate, CheckpointContent, VerifiedRequest};
use crate::pbft::evidence::Evidence;
use crate::pbft::message::{Batch, Envelope, Verified};
use crate::pbft::notice::Notice;
use crate::pbft::wal::WalEntry;
use crate::types::{Hash, Height, NodeId, SeqNum, Timestamp, View};

/// The time at which a step happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// What the clock on the wall says; goes into proposals and judges them.
    pub wall: Timestamp,
    /// Time since some fixed moment, never going back; drives timers.
    pub monotonic: Duration,
}

/// How a request came here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// This node admitted it.
    Admitted,
    /// In a bundle that its admitting node signed; the caller has checked that it is that node's.
    Bundle,
    /// As an answer to [`Effect::FetchRequests`], from whomever.
    Fetched,
    /// From a replica that waits for its execution, and may not know that it was executed.
    Forwarded {
        /// Which replica; the caller has checked that it is.
        by: NodeId,
    },
}

/// Everything that can happen.
#[derive(Debug, Clone)]
pub enum Input {
    /// A request that passed its stateless checks (1999, section 4.1).
    Request {
        /// The request.
        request: Arc<VerifiedRequest>,
        /// How it came here.
        source: Source,
    },
    /// The same for several that came together: what a step looks at besides is looked at once.
    Requests {
        /// The requests.
        requests: Vec<Arc<VerifiedRequest>>,
        /// How they came here.
        source: Source,
    },
    /// A message of another replica, its signature checked (1999, sections 4.2 and 4.3).
    Message(Verified),
    /// The batch of [`Effect::Execute`] was executed, with this result.
    Executed(CheckpointContent),
    /// Blocks fetched after [`Effect::FetchBlocks`] were applied to the state, the last of them
    /// with this certificate, which was verified (1999, section 5.3: state transfer).
    BlocksSynced {
        /// The certificate of the last block applied.
        certificate: Certificate,
        /// That block's timestamp.
        timestamp: Timestamp,
        /// The digests of the requests that these blocks wrote; of an admin's operation, of which
        /// a block does not say who handed it in, at least the digest that an own request has. The
        /// caller applies few blocks at a time, so these are few.
        requests: Vec<Hash>,
    },
    /// A certificate fetched after [`Effect::FetchCertificates`], which was verified and stored.
    CertificateFetched(Certificate),
    /// A batch fetched after [`Effect::FetchBatches`], from whomever.
    Batch(Batch),
    /// Time has passed: [`crate::pbft::Replica::next_deadline`] is reached. What is due is done with
    /// every other input, too, except that a primary is given up, or a view that does not begin, with
    /// this one alone: say it after whatever has come before.
    Tick,
}

/// Everything that is to be done, in order, after the entries of the same output are on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Send to all replicas over gossip.
    Broadcast(Envelope),
    /// Send requests that this node admitted to all other replicas, as one signed bundle.
    SendRequests {
        /// The requests, at most 512 of together at most 8 MiB.
        requests: Vec<Arc<VerifiedRequest>>,
    },
    /// Hand requests of any node, this one too, which wait for too long, to the primary: it may lack
    /// them, or this replica may not know that they were executed.
    /// They come there as [`Source::Forwarded`].
    ForwardRequests {
        /// The requests, at most 64 of together at most 8 MiB.
        requests: Vec<Arc<VerifiedRequest>>,
        /// The primary.
        to: NodeId,
    },
    /// Ask for batches that a new view carries over and this replica does not know. The answers
    /// come back as [`Input::Batch`].
    FetchBatches {
        /// The batches' digests.
        digests: Vec<Hash>,
        /// Who should have them, the best first; another order each time.
        from: Vec<NodeId>,
    },
    /// Others are in a view that this replica has no NEW-VIEW for, or lacks VIEW-CHANGEs of: ask for
    /// [`crate::pbft::Replica::view_proof`]. The answer's messages come back as [`Input::Message`],
    /// in its order.
    FetchView {
        /// The view.
        view: View,
        /// Who says to be in it, the best first; another order each time. Or one who may be.
        from: Vec<NodeId>,
    },
    /// Ask for the bodies of a proposal. The answers come back as [`Input::Request`].
    FetchRequests {
        /// The missing requests' digests.
        digests: Vec<Hash>,
        /// Who should have them, the best first; another order each time.
        from: Vec<NodeId>,
    },
    /// Others have executed what this replica cannot: fetch certified blocks, verify and apply
    /// them, then say [`Input::BlocksSynced`]. Asked again while it is so; one fetch at a time is
    /// enough, and nothing is lost if it fails.
    FetchBlocks {
        /// The height that this replica has.
        above: Height,
        /// At least one correct replica has executed up to here.
        upto: SeqNum,
        /// Who says to be there.
        from: Vec<NodeId>,
    },
    /// The blocks at these heights were executed here but their certificates' signatures got
    /// lost: fetch the certificates, verify and store them, then say
    /// [`Input::CertificateFetched`] for each.
    FetchCertificates {
        /// The heights, ascending.
        heights: Vec<Height>,
        /// Who should have them.
        from: Vec<NodeId>,
    },
    /// Execute a batch (1999, section 4.2: committed-local, in order of sequence numbers), then
    /// say [`Input::Executed`]; the next one comes after that. Sequence numbers ascend without
    /// gaps, except over what [`Effect::Skip`] and [`Input::BlocksSynced`] covered. An executor whose state is already
    /// at or above `sequence` ignores it.
    Execute {
        /// Its sequence number.
        sequence: SeqNum,
        /// The batch.
        batch: Batch,
        /// Its requests, in the batch's order.
        requests: Vec<Arc<VerifiedRequest>>,
    },
    /// The batches up to here changed nothing (same block, same state), as f+1 replicas say: move
    /// the head's sequence number on. No answer is expected.
    Skip(CheckpointContent),
    /// A quorum executed up to here with this result: store the block's certificate. Certificates
    /// of different sequence numbers may come in any order; after a restart some come again.
    Certified(Certificate),
    /// A quorum has another result than this replica: its state is damaged or its program
    /// differs. The node must stop and say so.
    Diverged {
        /// What this replica has.
        own: CheckpointContent,
        /// What the others have.
        other: CheckpointContent,
    },
    /// A replica is proven faulty: keep the proof. Of each replica, kind and slot it comes once, as
    /// far as the core remembers; after a restart it may come again.
    Evidence(Box<Evidence>),
}

/// What a step gives.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct Output {
    /// To be on disk before any effect is carried out.
    pub wal: Vec<WalEntry>,
    /// To be carried out then.
    pub effects: Vec<Effect>,
    /// Why the input was ignored, if it was; of several requests, why the first was.
    pub rejected: Option<Rejected>,
    /// Which of several requests were ignored, and why.
    pub refused: Vec<(Hash, Rejected)>,
    /// What people should hear of.
    pub notices: Vec<Notice>,
}

impl Output {
    /// Whether there is nothing to do; there may be something to tell.
    pub const fn is_empty(&self) -> bool {
        self.wal.is_empty() && self.effects.is_empty()
    }
}

/// Why an input was ignored. Never an error of this replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// The own message, come back.
    #[error("own message")]
    Own,
    /// Known already.
    #[error("duplicate")]
    Duplicate,
    /// At or below the low watermark.
    #[error("below the low watermark {low}")]
    BelowWatermark {
        /// The low watermark.
        low: SeqNum,
    },
    /// Above the high watermark: this replica may be behind.
    #[error("above the high watermark {high}")]
    AboveWatermark {
        /// The high watermark.
        high: SeqNum,
    },
    /// For another view than the current one.
    #[error("for another view than {view}")]
    OtherView {
        /// The current view.
        view: View,
    },
    /// A PRE-PREPARE of a backup, or a request that was forwarded to one.
    #[error("a proposal of a replica that is not the primary, or a request forwarded to one")]
    NotPrimary,
    /// A PREPARE of the primary, whose PRE-PREPARE stands for it.
    #[error("a PREPARE of the primary")]
    NotBackup,
    /// A batch that no correct primary proposes.
    #[error("invalid batch: {0}")]
    InvalidBatch(&'static str),
    /// Another message for the same slot of the same sender was there first.
    #[error("contradicts an earlier message of its sender")]
    Equivocation,
    /// The node has as many requests pending as it may have.
    #[error("too many requests of this node are pending")]
    PoolFull,
    /// Names another node than the one that it may come from.
    #[error("names an admitting node that it cannot come from")]
    WrongNode,
    /// A fetched request that no proposal lacks.
    #[error("was not asked for")]
    NotWanted,
    /// A fresh proposal for a number that the new view carries over from earlier ones, or for other
    /// content than it carries.
    #[error("contradicts the NEW-VIEW")]
    ContradictsNewView,
    /// A NEW-VIEW whose proposals do not follow from its VIEW-CHANGEs.
    #[error("the NEW-VIEW does not follow from its VIEW-CHANGEs")]
    BadNewView,
    /// A result or certificate for a sequence number that is not the next one.
    #[error("out of order: {expected} is next")]
    OutOfOrder {
        /// What would be taken.
        expected: SeqNum,
    },
}

impl Rejected {
    /// Whether the message may still be of use to others, and gossip should carry it on.
    pub const fn propagates(&self) -> bool {
        matches!(
            self,
            Self::Own
                | Self::Duplicate
                | Self::BelowWatermark { .. }
                | Self::AboveWatermark { .. }
                | Self::OtherView { .. }
        )
    }
}
