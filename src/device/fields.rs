//! The kinds of control messages and their JSON fields (docs/PROTOCOL.md section 4).
//!
//! Binary values are base64url. Unknown fields are ignored; a field marked "if" in the protocol is
//! left out when it has no value, and null is read as absent.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::base64url;
use super::codes::{ErrorCode, ForbiddenReason, KeyFailCode, UnauthReason};
use super::handshake::MAX_EPOCH;
use super::ids::{KemKid, Nonce, PayloadKid};
use crate::types::{Hash, Height, MessageSeq, Stream, Timestamp};

/// What a control message is about: part of the bytes that are signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ControlKind {
    /// The client is not registered, or is revoked.
    Unauth,
    /// There is no valid payload key; carries the node's KEM key.
    Forbidden,
    /// A client hands over a payload key.
    Key,
    /// The payload key was accepted.
    KeySuccess,
    /// The payload key was refused.
    KeyFail,
    /// A telemetry message was accepted.
    Ack,
    /// A telemetry message was not accepted.
    Error,
}

impl ControlKind {
    /// The text that stands in the signed bytes.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unauth => "unauth",
            Self::Forbidden => "forbidden",
            Self::Key => "key",
            Self::KeySuccess => "key/success",
            Self::KeyFail => "key/fail",
            Self::Ack => "ack",
            Self::Error => "error",
        }
    }
}

/// The JSON fields of one kind of control message.
pub trait Fields: Serialize + DeserializeOwned {
    /// The kind that has these fields.
    const KIND: ControlKind;

    /// Whether the fields are in range and agree with each other; what this refuses counts as malformed.
    fn is_consistent(&self) -> bool {
        true
    }
}

/// Kind `unauth`, on `{id}/unauth`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unauth {
    /// Why.
    pub reason: UnauthReason,
    /// The node's clock.
    pub server_time: Timestamp,
}

/// Kind `forbidden`, on `{id}/forbidden`: hand over a payload key, sealed to this KEM key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forbidden {
    /// Why.
    pub reason: ForbiddenReason,
    /// The nonce of the request that this answers; absent if there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<Nonce>,
    /// Names the KEM key.
    pub kem_kid: KemKid,
    /// The KEM key's public half (X25519).
    #[serde(with = "base64url")]
    pub kem_key: [u8; 32],
    /// Until when the node opens what is sealed to it.
    pub kem_not_after: Timestamp,
    /// The highest seq that the node knows of this client; 0 if none.
    pub last_seq: MessageSeq,
    /// The last epoch that the node accepted from this client; 0 if none.
    pub last_epoch: u64,
    /// The node's clock.
    pub server_time: Timestamp,
}

/// Kind `key`, on `{id}/key`, the only one that a client signs: a payload key, sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyTransport {
    /// The KEM key that it is sealed to.
    pub kem_kid: KemKid,
    /// HPKE's encapsulated key.
    #[serde(with = "base64url")]
    pub enc: [u8; 32],
    /// The sealed payload key: 32 bytes and a tag of 16.
    #[serde(with = "base64url")]
    pub ct: [u8; 48],
    /// Above every epoch that the client used before.
    pub epoch: u64,
    /// Fresh; echoed in the answer.
    pub nonce: Nonce,
    /// The client's clock.
    pub time: Timestamp,
}

/// Kind `key/success`, on `{id}/key/success`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeySuccess {
    /// Names the payload key in telemetry envelopes.
    pub kid: PayloadKid,
    /// That of the key transport.
    pub nonce: Nonce,
    /// Until when the node takes messages under this key.
    pub not_after: Timestamp,
    /// For how many messages it does.
    pub max_messages: u64,
    /// The highest seq that the node knows of this client; 0 if none.
    pub last_seq: MessageSeq,
    /// The node's clock.
    pub server_time: Timestamp,
}

/// Kind `key/fail`, on `{id}/key/fail`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyFail {
    /// That of the key transport, if it could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<Nonce>,
    /// Why.
    pub code: KeyFailCode,
    /// The same for people.
    pub detail: String,
    /// The last epoch that the node accepted from this client; 0 if none.
    pub last_epoch: u64,
    /// The node's clock.
    pub server_time: Timestamp,
}

/// Kind `ack`, on `{id}/{stream}/datas` and `{id}/{stream}/success`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// The message's stream.
    pub stream: Stream,
    /// The message's seq.
    pub seq: MessageSeq,
    /// BLAKE3 of the header bytes.
    #[serde(with = "base64url")]
    pub header: Hash,
    /// How many data items it had.
    pub items: u32,
    /// Which of them (0-based) are on the ledger, ascending.
    pub written: Vec<u32>,
    /// The block that holds them, if any was written; of several the highest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub height: Option<Height>,
    /// That block's hash.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "base64url::option")]
    pub block: Option<Hash>,
    /// The node's clock.
    pub server_time: Timestamp,
}

/// Kind `error`, on `{id}/{stream}/error`: the message was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorReply {
    /// The stream of the message's topic.
    pub stream: Stream,
    /// The message's seq, if it could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<MessageSeq>,
    /// BLAKE3 of the header bytes, if they could be read.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "base64url::option")]
    pub header: Option<Hash>,
    /// Why.
    pub code: ErrorCode,
    /// The same for people.
    pub detail: String,
    /// The node's clock.
    pub server_time: Timestamp,
}

impl Fields for Unauth {
    const KIND: ControlKind = ControlKind::Unauth;
}

impl Fields for Forbidden {
    const KIND: ControlKind = ControlKind::Forbidden;

    fn is_consistent(&self) -> bool {
        self.last_seq <= MessageSeq::MAX && self.last_epoch <= MAX_EPOCH
    }
}

impl Fields for KeyTransport {
    const KIND: ControlKind = ControlKind::Key;
}

impl Fields for KeySuccess {
    const KIND: ControlKind = ControlKind::KeySuccess;

    fn is_consistent(&self) -> bool {
        self.last_seq <= MessageSeq::MAX
    }
}

impl Fields for KeyFail {
    const KIND: ControlKind = ControlKind::KeyFail;

    fn is_consistent(&self) -> bool {
        self.last_epoch <= MAX_EPOCH
    }
}

impl Fields for Ack {
    const KIND: ControlKind = ControlKind::Ack;

    fn is_consistent(&self) -> bool {
        let ascending = self.written.windows(2).all(|pair| pair[0] < pair[1]);
        let in_range = self.written.last().is_none_or(|last| *last < self.items);
        let is_seq = (1..=MessageSeq::MAX.0).contains(&self.seq.0);
        is_seq && ascending && in_range && self.height.is_some() == self.block.is_some()
    }
}

impl Fields for ErrorReply {
    const KIND: ControlKind = ControlKind::Error;

    fn is_consistent(&self) -> bool {
        self.seq.is_none_or(|seq| seq <= MessageSeq::MAX)
    }
}
