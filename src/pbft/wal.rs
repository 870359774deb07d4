//! What a replica must remember over a crash, as entries of the node's log.
//!
//! ```text
//! entry = tag (1 byte) ‖ content
//!   0  body       sequence (u64) ‖ canonical bytes of the request
//!   1  accepted   canonical Signed: a PRE-PREPARE of the primary that this backup agreed to
//!   2  sent       canonical Signed: an own message; after a restart these very bytes are sent again
//!   3  committed  canonical (view, sequence, digest)
//!   4  certified  canonical Certificate
//!   5  prepared   canonical Prepared, before the COMMIT that rests on it
//!   6  view change   canonical Signed: the own VIEW-CHANGE
//!   7  new view      canonical (Signed NEW-VIEW, list of its Signed VIEW-CHANGEs)
//!   8  silent        canonical bool: begin or end of not voting
//!   9  proven        nothing: who kept silent takes part like any other again
//! ```
//!
//! Bodies come before the vote that promises them. Each entry belongs to a sequence number; those
//! below the last stable checkpoint that is also durable in the ledger store are needed no more.
//! Where a replica is in its views belongs to no number: of each such kind the newest entry is
//! needed always ([`WalEntry::pin`]). The core writes them again every window, so that they do not
//! hold the whole log.

use std::sync::Arc;

use bincode::{Decode, Encode};

use crate::codec::{self, CodecError};
use crate::ledger::{Certificate, CheckpointContent, MAX_REQUEST_BYTES, RequestError, VerifiedRequest};
use crate::pbft::certificates::Prepared;
use crate::pbft::message::{MAX_ENVELOPE_BYTES, Signed};
use crate::types::{Hash, Height, NetworkId, SeqNum, Timestamp, View};

/// The longest entry: a body of the largest size, with tag and sequence number.
pub const MAX_WAL_ENTRY_BYTES: usize = MAX_REQUEST_BYTES + 9;

/// The longest entry of a new view: the VIEW-CHANGEs of a quorum of 100 replicas.
const MAX_NEW_VIEW_BYTES: usize = 70 * MAX_ENVELOPE_BYTES;

/// Why bytes of the log are not an entry. The log has checksums, so this is damage that they did
/// not see, or the log of another network or version.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// No such kind of entry.
    #[error("a consensus entry of the log has the unknown kind {0:?}; was it written by a newer version?")]
    Kind(Option<u8>),
    /// Its content is not canonical.
    #[error("a consensus entry of the log is damaged: {0}")]
    Codec(#[from] CodecError),
    /// A body that is no valid request of this network.
    #[error("a request in the log is not valid; is the log that of another network? {0}")]
    Request(#[from] RequestError),
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WalEntry {
    /// A request of a batch that this replica votes for, before the vote.
    Body {
        /// The batch's sequence number.
        sequence: SeqNum,
        /// The request.
        request: Arc<VerifiedRequest>,
    },
    /// The PRE-PREPARE of another replica that this one agreed to.
    Accepted(Signed),
    /// An own message, before it is sent.
    Sent(Signed),
    /// A batch is committed-local: it will be executed.
    Committed {
        /// The view in which it committed.
        view: View,
        /// Its sequence number.
        sequence: SeqNum,
        /// The batch's digest.
        digest: Hash,
    },
    /// A quorum executed up to here.
    Certified(Certificate),
    /// A batch is prepared, before COMMIT says so: what a later VIEW-CHANGE has to prove.
    Prepared(Prepared),
    /// The own VIEW-CHANGE: nothing for an earlier view is signed after it.
    ViewChange(Signed),
    /// The view that the replica is in.
    NewView {
        /// The NEW-VIEW.
        new_view: Signed,
        /// The VIEW-CHANGEs that it names.
        view_changes: Vec<Signed>,
    },
    /// Whether the replica keeps silent because it lost an earlier log; false once it votes again.
    Silent(bool),
    /// After [`WalEntry::Silent`]: the replica may make NEW-VIEWs again.
    Proven,
}

/// The kinds of entries of which the newest is needed whatever is executed and stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pin {
    /// [`WalEntry::ViewChange`].
    ViewChange,
    /// [`WalEntry::NewView`].
    NewView,
    /// [`WalEntry::Silent`] or [`WalEntry::Proven`].
    Silent,
}

#[derive(Encode, Decode)]
struct CommittedMark(View, SeqNum, Hash);

impl WalEntry {
    /// The sequence number that the entry belongs to. The entry is needed while this is at or
    /// above the last checkpoint that is both stable and durable.
    pub const fn sequence(&self) -> SeqNum {
        match self {
            Self::Body { sequence, .. } | Self::Committed { sequence, .. } => *sequence,
            Self::Accepted(signed) | Self::Sent(signed) => signed.content.sequence(),
            Self::Certified(certificate) => certificate.content.sequence,
            Self::Prepared(prepared) => prepared.sequence,
            Self::ViewChange(_) | Self::NewView { .. } | Self::Silent(_) | Self::Proven => SeqNum(0),
        }
    }

    /// The kind of which this entry is needed as long as it is the newest; if there is one, the
    /// sequence number says nothing.
    pub const fn pin(&self) -> Option<Pin> {
        match self {
            Self::ViewChange(_) => Some(Pin::ViewChange),
            Self::NewView { .. } => Some(Pin::NewView),
            Self::Silent(_) | Self::Proven => Some(Pin::Silent),
            _ => None,
        }
    }

    /// The entry's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let (tag, content) = match self {
            Self::Body { sequence, request } => {
                let mut content = codec::encode(sequence);
                content.extend_from_slice(request.bytes());
                (0, content)
            }
            Self::Accepted(signed) => (1, codec::encode(signed)),
            Self::Sent(signed) => (2, codec::encode(signed)),
            Self::Committed { view, sequence, digest } => {
                (3, codec::encode(&CommittedMark(*view, *sequence, *digest)))
            }
            Self::Certified(certificate) => (4, codec::encode(certificate)),
            Self::Prepared(prepared) => (5, codec::encode(prepared)),
            Self::ViewChange(signed) => (6, codec::encode(signed)),
            Self::NewView { new_view, view_changes } => (7, codec::encode(&(new_view, view_changes))),
            Self::Silent(silent) => (8, codec::encode(silent)),
            Self::Proven => (9, Vec::new()),
        };
        let mut bytes = Vec::with_capacity(1 + content.len());
        bytes.push(tag);
        bytes.extend(content);
        bytes
    }

    /// Reads an entry of the own log; a body is verified as if it came from a stranger.
    ///
    /// # Errors
    /// [`WalError`].
    pub fn decode(network: &NetworkId, bytes: &[u8]) -> Result<Self, WalError> {
        let (tag, content) = bytes.split_first().ok_or(WalError::Kind(None))?;
        match tag {
            0 => {
                let (sequence, request) = content.split_at(content.len().min(8));
                let sequence = codec::decode::<8, SeqNum>(sequence)?;
                let request = Arc::new(VerifiedRequest::verify_bytes(network, request)?);
                Ok(Self::Body { sequence, request })
            }
            1 => Ok(Self::Accepted(codec::decode::<MAX_ENVELOPE_BYTES, _>(content)?)),
            2 => Ok(Self::Sent(codec::decode::<MAX_ENVELOPE_BYTES, _>(content)?)),
            3 => {
                let CommittedMark(view, sequence, digest) = codec::decode::<64, _>(content)?;
                Ok(Self::Committed { view, sequence, digest })
            }
            4 => Ok(Self::Certified(codec::decode::<MAX_ENVELOPE_BYTES, _>(content)?)),
            5 => Ok(Self::Prepared(codec::decode::<MAX_ENVELOPE_BYTES, _>(content)?)),
            6 => Ok(Self::ViewChange(codec::decode::<MAX_ENVELOPE_BYTES, _>(content)?)),
            7 => {
                let (new_view, view_changes) = codec::decode::<MAX_NEW_VIEW_BYTES, _>(content)?;
                Ok(Self::NewView { new_view, view_changes })
            }
            8 => Ok(Self::Silent(codec::decode::<1, _>(content)?)),
            9 => codec::decode::<0, ()>(content).map(|()| Self::Proven).map_err(WalError::from),
            unknown => Err(WalError::Kind(Some(*unknown))),
        }
    }
}

/// What a replica starts from: the state that is on disk, and the entries of the log in the order
/// in which they were written.
#[derive(Debug, Clone)]
pub struct Restored {
    /// The last executed batch that the ledger store has, with the digest of the loaded state.
    pub executed: CheckpointContent,
    /// The timestamp of the ledger's head.
    pub timestamp: Timestamp,
    /// The highest certificate that the ledger store has, at or below `executed`.
    pub certificate: Option<Certificate>,
    /// Heights of blocks in the ledger store that lack their certificates; any number of them.
    pub uncertified: Vec<Height>,
    /// All entries that the log still has.
    pub entries: Vec<WalEntry>,
    /// The log that this key voted with is gone: the replica keeps silent until it cannot
    /// contradict what it may have signed.
    pub lost_log: bool,
}

impl Restored {
    /// The start of a replica whose log has no entries.
    pub const fn new(executed: CheckpointContent, timestamp: Timestamp) -> Self {
        Self {
            executed,
            timestamp,
            certificate: None,
            uncertified: Vec::new(),
            entries: Vec::new(),
            lost_log: false,
        }
    }
}
