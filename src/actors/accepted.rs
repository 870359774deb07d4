//! What is known of an accepted message after its checks: its record in the log, and its room ahead.
//!
//! Verifier makes an [`Admitted`] of each message that it accepts, Policy logs it as
//! [`LogRecord::Accepted`] with its decision, and Ingress adds [`LogRecord::Final`] when its fate is
//! known. After a restart the log's [`LoggedMessage`]s are verified and taken up again.

use std::sync::Arc;

use bincode::{Decode, Encode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::history::Place;
use crate::codec;
use crate::crypto::VerifyingKey;
use crate::device::telemetry::{Content, Limits, Message, TelemetryError};
use crate::metrics::QueueGauge;
use crate::policy::Decision;
use crate::store::log::{Entry, EntryKind, MAX_ENTRY_BYTES};
use crate::types::{ClientId, MessageSeq, NetworkId, PublicKey, Stream, Timestamp};

/// A message as the log keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct LoggedMessage {
    /// Whose it is.
    pub client: ClientId,
    /// The topic's stream.
    pub stream: Stream,
    /// The key that was registered.
    pub key: PublicKey,
    /// The decrypted content, as its client made it.
    pub content: Vec<u8>,
}

impl LoggedMessage {
    /// The message again. It was in time and within the limits when it was accepted.
    ///
    /// # Errors
    /// [`TelemetryError`]: the log is not what was written.
    pub fn verify(&self, network: &NetworkId) -> Result<Message, TelemetryError> {
        let key = VerifyingKey::parse(&self.key).map_err(|_| TelemetryError::BadSignature)?;
        let content = Content::decode(&self.content)?;
        let verified = content.verify(&key, network, &self.client, &self.stream)?;
        let limits = Limits { ahead_ms: u64::MAX, body_bytes: MAX_ENTRY_BYTES, ..Limits::default() };
        verified.check_body(&limits, Timestamp::MAX)
    }
}

/// What [`EntryKind::AcceptedMessage`] entries hold.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum LogRecord {
    /// A message was accepted, and this was decided of its items.
    Accepted(LoggedMessage, Decision),
    /// The fate of a message is known and its client is being told: nothing is left to do.
    Final {
        /// Whose it is.
        client: ClientId,
        /// Its number.
        seq: MessageSeq,
        /// Whether it is on the ledger, at least in part.
        is_written: bool,
    },
}

impl LogRecord {
    /// The record as an entry of the log.
    pub fn entry(&self) -> Entry {
        Entry { kind: EntryKind::AcceptedMessage, bytes: codec::encode(self) }
    }

    /// Reads an entry.
    ///
    /// # Errors
    /// The bytes are no record: the log is damaged or of another version.
    pub fn decode(bytes: &[u8]) -> Result<Self, codec::CodecError> {
        codec::decode::<MAX_ENTRY_BYTES, _>(bytes)
    }
}

/// A verified message that has a place in the log.
#[derive(Debug)]
pub struct Admitted {
    /// The message.
    pub message: Arc<Message>,
    /// Its place among those that are not in the history.
    pub history: Arc<Place>,
    /// Its part of what may be [`Ahead`]; free again when Policy is done with it.
    _share: Option<Share>,
}

impl Admitted {
    /// The message with its places.
    pub(super) fn new(message: Arc<Message>, history: Arc<Place>, share: Option<Share>) -> Self {
        Self { message, history, _share: share }
    }
}

/// How many KiB of accepted messages may wait for the request pool, unpacked: 64 MiB. While there
/// are so many, no further one is accepted, and clients wait.
const AHEAD_KIB: usize = 64 * 1024;

/// Room for accepted messages on their way to the request pool.
#[derive(Debug, Clone)]
pub struct Ahead {
    room: Arc<Semaphore>,
    gauge: QueueGauge,
}

/// What one message takes of the room; given back when it is dropped.
#[derive(Debug)]
pub struct Share {
    _kib: OwnedSemaphorePermit,
    taken: i64,
    gauge: QueueGauge,
}

impl Ahead {
    /// All of the room; `gauge` shows how much is taken, in KiB.
    pub fn new(gauge: QueueGauge) -> Self {
        Self { room: Arc::new(Semaphore::new(AHEAD_KIB)), gauge }
    }

    /// Waits for room for a message of so many bytes. None if the node stops.
    pub(super) async fn share(&self, bytes: usize) -> Option<Share> {
        let kib = u32::try_from((bytes / 1024 + 1).min(AHEAD_KIB)).ok()?;
        if self.room.available_permits() < kib as usize {
            self.gauge.full.inc();
        }
        let permit = Arc::clone(&self.room).acquire_many_owned(kib).await.ok()?;
        let taken = i64::from(kib);
        self.gauge.length.add(taken);
        Some(Share { _kib: permit, taken, gauge: self.gauge.clone() })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.gauge.length.sub(self.taken);
    }
}
