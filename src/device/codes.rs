//! The codes and reasons of control messages (docs/PROTOCOL.md sections 4 to 6).
//!
//! On the wire each is its name in snake case. What a code says about trying again is here too, so
//! that the node and every client read it alike.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What the `detail` of an `error` begins with if the node had accepted the message before, so that it
/// is in its log (PROTOCOL.md section 6.4).
pub const ACCEPTED_BEFORE: &str = "accepted before; ";

/// Why a telemetry message was not accepted: `code` of the control message `error`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The node has more to do than it can; may be tried again.
    Overloaded,
    /// The client sends more than it may; may be tried again.
    RateLimited,
    /// Larger than the node takes, on the wire or decompressed.
    TooLarge,
    /// Not in the form of the protocol: envelope, content, header or JSON body.
    Malformed,
    /// Cannot be decrypted, or the envelope's seq is not the header's.
    BadEnvelope,
    /// The signature is not one of the client's registered key.
    BadSignature,
    /// Signed for another client or stream than the topic's.
    WrongTopic,
    /// Sent in plaintext by a client that has to encrypt.
    EncryptionRequired,
    /// Another message with this seq was accepted before.
    SeqReused,
    /// The seq lies below the window.
    SeqTooOld,
    /// Not compressed as the encoding says.
    BadEncoding,
    /// The body is not the one that the header names, by hash or by event time.
    BadBody,
    /// Header, `count` and the length of `data` do not agree.
    CountMismatch,
    /// The items do not lead to the header's items root.
    BadRoot,
    /// `eventTime` is too far ahead of the node's clock.
    ClockAhead,
    /// The client's quota of distinct data items is used up.
    TooManyItems,
    /// Signed with a key that was rotated away before this seq.
    KeyRotated,
}

impl ErrorCode {
    /// Every code.
    pub const ALL: [Self; 17] = [
        Self::Overloaded,
        Self::RateLimited,
        Self::TooLarge,
        Self::Malformed,
        Self::BadEnvelope,
        Self::BadSignature,
        Self::WrongTopic,
        Self::EncryptionRequired,
        Self::SeqReused,
        Self::SeqTooOld,
        Self::BadEncoding,
        Self::BadBody,
        Self::CountMismatch,
        Self::BadRoot,
        Self::ClockAhead,
        Self::TooManyItems,
        Self::KeyRotated,
    ];

    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Overloaded => "overloaded",
            Self::RateLimited => "rate_limited",
            Self::TooLarge => "too_large",
            Self::Malformed => "malformed",
            Self::BadEnvelope => "bad_envelope",
            Self::BadSignature => "bad_signature",
            Self::WrongTopic => "wrong_topic",
            Self::EncryptionRequired => "encryption_required",
            Self::SeqReused => "seq_reused",
            Self::SeqTooOld => "seq_too_old",
            Self::BadEncoding => "bad_encoding",
            Self::BadBody => "bad_body",
            Self::CountMismatch => "count_mismatch",
            Self::BadRoot => "bad_root",
            Self::ClockAhead => "clock_ahead",
            Self::TooManyItems => "too_many_items",
            Self::KeyRotated => "key_rotated",
        }
    }

    /// Whether the same bytes may be sent again later; every other code is final.
    pub const fn may_retry(self) -> bool {
        matches!(self, Self::Overloaded | Self::RateLimited)
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a payload key was refused: `code` of the control message `key/fail`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyFailCode {
    /// Not signed by the client's registered key, for this client and network.
    BadSignature,
    /// The epoch is not above the last one accepted.
    StaleEpoch,
    /// The epoch is more than 5 minutes ahead of the node's clock.
    EpochAhead,
    /// The KEM key is no longer the node's.
    KemExpired,
    /// The ciphertext does not open, or holds no payload key.
    BadCiphertext,
    /// Not a control message of kind `key`.
    Malformed,
}

impl KeyFailCode {
    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadSignature => "bad_signature",
            Self::StaleEpoch => "stale_epoch",
            Self::EpochAhead => "epoch_ahead",
            Self::KemExpired => "kem_expired",
            Self::BadCiphertext => "bad_ciphertext",
            Self::Malformed => "malformed",
        }
    }
}

impl fmt::Display for KeyFailCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a client has to hand over a payload key: `reason` of `forbidden`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ForbiddenReason {
    /// The node has no such payload key of this client; also the answer to a request for a KEM key.
    NoKey,
    /// The payload key's time is over, or its number of messages.
    KeyExpired,
}

/// Why a client is not let in: `reason` of `unauth`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnauthReason {
    /// The ledger does not know the client.
    NotRegistered,
    /// An admin ended the client's right to publish.
    Revoked,
}

impl fmt::Display for UnauthReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotRegistered => "not_registered",
            Self::Revoked => "revoked",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_on_the_wire_are_those_that_are_shown() {
        for code in ErrorCode::ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
        }
        use KeyFailCode::*;
        for code in [BadSignature, StaleEpoch, EpochAhead, KemExpired, BadCiphertext, Malformed] {
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
        }
        for reason in [UnauthReason::NotRegistered, UnauthReason::Revoked] {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.to_string());
        }
    }

    #[test]
    fn only_load_may_be_tried_again() {
        let retried: Vec<_> = ErrorCode::ALL.into_iter().filter(|code| code.may_retry()).collect();
        assert_eq!(retried, [ErrorCode::Overloaded, ErrorCode::RateLimited]);
    }
}
