//! The words of the system: identifiers, numbers and times that every other module speaks in.
//!
//! Each is a newtype, so that a height can never be passed for a sequence number. Byte strings
//! print and parse as lower-case hex. Everything here encodes canonically (see [`crate::codec`]).

use std::fmt;
use std::str::FromStr;

use bincode::de::read::Reader as _;
use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};
use smol_str::SmolStr;

/// Why a text is not one of the identifiers of this module.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Not lower- or upper-case hex of the right length.
    #[error("expected {expected} hex digits")]
    Hex {
        /// Number of digits that the identifier has.
        expected: usize,
    },
    /// Not `group/name` as PROTOCOL.md section 1 wants it.
    #[error(
        "a client id is group/name, each 1 to 64 of A-Z a-z 0-9 _ -, and the group `verified` is reserved"
    )]
    ClientId,
    /// Not a stream name as PROTOCOL.md section 1 wants it.
    #[error("a stream is 1 to 64 of A-Z a-z 0-9 _ -, and not key, unauth, forbidden or update")]
    Stream,
}

macro_rules! bytes_newtype {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// Length in bytes.
            pub const LEN: usize = $len;

            /// The bytes.
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }

            /// The first eight hex digits, for logs.
            pub fn short(&self) -> String {
                hex::encode(&self.0[..4])
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.short())
            }
        }

        impl FromStr for $name {
            type Err = ParseError;

            fn from_str(text: &str) -> Result<Self, ParseError> {
                let mut bytes = [0; $len];
                hex::decode_to_slice(text, &mut bytes)
                    .map_err(|_| ParseError::Hex { expected: 2 * $len })?;
                Ok(Self(bytes))
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

bytes_newtype!(
    /// A BLAKE3 hash, of a kind that its context names.
    Hash, 32);
bytes_newtype!(
    /// Names one ledger: BLAKE3 of the canonical genesis document.
    NetworkId, 32);
bytes_newtype!(
    /// A node's Ed25519 public key: its libp2p identity and the key of its PBFT signatures.
    NodeId, 32);
bytes_newtype!(
    /// An Ed25519 public key of a client or an administrator, in its canonical encoding.
    PublicKey, 32);
bytes_newtype!(
    /// An Ed25519 signature (RFC 8032), R followed by S.
    Signature, 64);

impl From<NodeId> for PublicKey {
    fn from(node: NodeId) -> Self {
        Self(node.0)
    }
}

macro_rules! number_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode,
            Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The number after this one.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number_newtype!(
    /// A view of PBFT; the primary of view v is replica v mod n.
    View);
number_newtype!(
    /// A sequence number of PBFT. The first batch has 1; 0 stands for genesis. Never reset.
    SeqNum);
number_newtype!(
    /// A block's height. The first block has 1; 0 stands for genesis.
    Height);
number_newtype!(
    /// A client's number of a telemetry message (PROTOCOL.md section 1: seq).
    MessageSeq);
number_newtype!(
    /// Milliseconds since 1970-01-01T00:00:00Z.
    Timestamp);

impl MessageSeq {
    /// The highest seq there is: 2^53 - 1, which every JSON reader can hold.
    pub const MAX: Self = Self((1 << 53) - 1);
}

impl Timestamp {
    /// The last millisecond of the year 9999, the latest time that the protocol knows.
    pub const MAX: Self = Self(253_402_300_799_999);

    /// Milliseconds from `earlier` to `self`, 0 if `earlier` is later.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// This time and `ms` milliseconds more.
    #[must_use]
    pub const fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }
}

fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// The longest text of a newtype: a client's group and name, and what parts them.
const MAX_TEXT_BYTES: usize = 129;

/// Reads a text, as bincode writes it, into `buffer`; `None` if it is none, or too long.
fn read_text<'a, D: bincode::de::Decoder>(
    decoder: &mut D,
    buffer: &'a mut [u8; MAX_TEXT_BYTES],
) -> Option<&'a str> {
    let length = usize::try_from(u64::decode(decoder).ok()?).ok()?;
    let text = buffer.get_mut(..length)?;
    decoder.claim_bytes_read(length).ok()?;
    decoder.reader().read(text).ok()?;
    std::str::from_utf8(text).ok()
}

macro_rules! text_newtype {
    ($(#[$doc:meta])* $name:ident, $check:expr, $error:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(SmolStr);

        impl $name {
            /// Takes a text that has the form PROTOCOL.md section 1 names.
            ///
            /// # Errors
            /// [`ParseError`] if it has not.
            pub fn new(text: impl AsRef<str>) -> Result<Self, ParseError> {
                let text = text.as_ref();
                if ($check)(text) { Ok(Self(text.into())) } else { Err($error) }
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseError;

            fn from_str(text: &str) -> Result<Self, ParseError> {
                Self::new(text)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::new(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
            }
        }

        impl<C> Decode<C> for $name {
            fn decode<D: bincode::de::Decoder<Context = C>>(
                decoder: &mut D,
            ) -> Result<Self, bincode::error::DecodeError> {
                let mut text = [0; MAX_TEXT_BYTES];
                read_text(decoder, &mut text)
                    .and_then(|text| Self::new(text).ok())
                    .ok_or(bincode::error::DecodeError::Other(stringify!($name)))
            }
        }

        impl Encode for $name {
            fn encode<E: bincode::enc::Encoder>(
                &self,
                encoder: &mut E,
            ) -> Result<(), bincode::error::EncodeError> {
                self.as_str().encode(encoder)
            }
        }

        impl<'de, C> bincode::BorrowDecode<'de, C> for $name {
            fn borrow_decode<D: bincode::de::BorrowDecoder<'de, Context = C>>(
                decoder: &mut D,
            ) -> Result<Self, bincode::error::DecodeError> {
                Self::decode(decoder)
            }
        }
    };
}

text_newtype!(
    /// A client's (gateway's) id, `group/name`; also its MQTT client id and topic prefix.
    ClientId,
    |text: &str| text
        .split_once('/')
        .is_some_and(|(group, name)| is_name(group) && is_name(name) && group != "verified"),
    ParseError::ClientId
);

text_newtype!(
    /// The last part of a telemetry topic.
    Stream,
    |text: &str| is_name(text) && !matches!(text, "key" | "unauth" | "forbidden" | "update"),
    ParseError::Stream
);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::codec;

    #[test]
    fn client_ids_follow_the_protocol() {
        for good in ["devices/iot", "a/b", "A-1/_x"] {
            assert_eq!(ClientId::new(good).unwrap().as_str(), good);
        }
        for bad in ["", "devices", "/iot", "devices/", "a/b/c", "a/+", "#/b", "a b/c", "verified/x", "ä/b"] {
            assert_eq!(ClientId::new(bad), Err(ParseError::ClientId), "{bad}");
        }
        assert!(ClientId::new(format!("{}/b", "x".repeat(65))).is_err());
    }

    #[test]
    fn reserved_streams_are_refused() {
        assert!(Stream::new("env").is_ok());
        for bad in ["key", "unauth", "forbidden", "update", "", "a/b", "+"] {
            assert_eq!(Stream::new(bad), Err(ParseError::Stream), "{bad}");
        }
    }

    #[test]
    fn ids_are_encoded_as_the_texts_that_they_are() {
        let longest = format!("{}/{}", "x".repeat(64), "y".repeat(64));
        for text in ["a/b", "devices/a-gateway-with-a-long-name", &longest] {
            let bytes = codec::encode(&text.to_owned());
            assert_eq!(codec::encode(&ClientId::new(text).unwrap()), bytes);
            assert_eq!(codec::decode::<256, ClientId>(&bytes).unwrap().as_str(), text);
        }
        for bad in ["", "devices", &format!("{longest}y")] {
            assert!(codec::decode::<256, ClientId>(&codec::encode(&bad.to_owned())).is_err(), "{bad}");
        }
        let cut = &codec::encode(&longest)[..100];
        assert!(codec::decode::<256, ClientId>(cut).is_err());
        assert!(codec::decode::<256, ClientId>(b"\x03\xff/b").is_err());
    }

    #[test]
    fn hex_is_exact() {
        let hash = Hash([7; 32]);
        assert_eq!(hash.to_string().parse::<Hash>().unwrap(), hash);
        assert!("07".parse::<Hash>().is_err());
    }
}
