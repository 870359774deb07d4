//! The telemetry header: what a device signs for a whole message (PROTOCOL.md section 6).
//!
//! ```text
//! {1: client id, 2: stream, 3: seq, 4: eventTime, 5: count, 6: items root, 7: BLAKE3(body), 8?: n}
//! ```
//!
//! Deterministic CBOR (RFC 8949 section 4.2.1). The signature is COSE_Sign1's (RFC 9052 section
//! 4.4) with protected header `{1: -8}` and external AAD `["ledgermq", 1, "telemetry", network id]`.

use minicbor::{Decoder, Encoder};

use super::cose;
use crate::crypto::{CryptoError, SecretKey, VerifyingKey, blake3_plain};
use crate::types::{ClientId, Hash, MessageSeq, NetworkId, Signature, Stream, Timestamp};

/// The longest header there is: two names of 129 and 64 bytes, two hashes and numbers.
pub const MAX_HEADER_BYTES: usize = 512;

/// The most data items that a message has.
pub const MAX_ITEMS: u32 = 65_536;

/// The bytes of COSE's protected header `{1: -8}` (alg: EdDSA).
pub const PROTECTED_EDDSA: &[u8] = &[0xa1, 0x01, 0x27];

/// Why bytes are not a telemetry header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Not the deterministic CBOR map of PROTOCOL.md section 6.
    #[error("not a telemetry header in deterministic CBOR")]
    Malformed,
    /// A number out of the range that the protocol gives it.
    #[error("a number of the telemetry header is out of range")]
    OutOfRange,
}

/// What the device signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Key 1.
    pub client: ClientId,
    /// Key 2.
    pub stream: Stream,
    /// Key 3: 1 to 2^53 - 1.
    pub seq: MessageSeq,
    /// Key 4.
    pub event_time: Timestamp,
    /// Key 5: number of data items, 1 to 65,536.
    pub count: u32,
    /// Key 6: root of the Merkle tree over the item bytes.
    pub items_root: Hash,
    /// Key 7: BLAKE3 of the uncompressed JSON body.
    pub body_hash: Hash,
    /// Key 8, in the first message after a loss of memory: numbers above this one and below `seq`
    /// were never used.
    pub unused_above: Option<MessageSeq>,
}

impl Header {
    /// The header's bytes.
    ///
    /// # Panics
    /// Never: encoding into memory does not fail.
    #[allow(clippy::expect_used)]
    pub fn encode(&self) -> Vec<u8> {
        self.try_encode().expect("encoding into memory does not fail")
    }

    fn try_encode(&self) -> Result<Vec<u8>, minicbor::encode::Error<std::convert::Infallible>> {
        let mut e = Encoder::new(Vec::with_capacity(160));
        e.map(if self.unused_above.is_some() { 8 } else { 7 })?;
        e.u8(1)?.str(self.client.as_str())?;
        e.u8(2)?.str(self.stream.as_str())?;
        e.u8(3)?.u64(self.seq.0)?;
        e.u8(4)?.u64(self.event_time.0)?;
        e.u8(5)?.u32(self.count)?;
        e.u8(6)?.bytes(self.items_root.as_bytes())?;
        e.u8(7)?.bytes(self.body_hash.as_bytes())?;
        if let Some(unused) = self.unused_above {
            e.u8(8)?.u64(unused.0)?;
        }
        Ok(e.into_writer())
    }

    /// Parses a header's bytes; takes nothing but the one deterministic encoding.
    ///
    /// # Errors
    /// [`HeaderError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, HeaderError> {
        if bytes.len() > MAX_HEADER_BYTES {
            return Err(HeaderError::Malformed);
        }
        let header = Self::read(bytes).map_err(|_| HeaderError::Malformed)?;
        let in_range = (1..=MessageSeq::MAX.0).contains(&header.seq.0)
            && header.event_time <= Timestamp::MAX
            && (1..=MAX_ITEMS).contains(&header.count)
            && header.unused_above.is_none_or(|unused| unused < header.seq);
        if !in_range {
            return Err(HeaderError::OutOfRange);
        }
        if header.encode() != bytes {
            return Err(HeaderError::Malformed);
        }
        Ok(header)
    }

    fn read(bytes: &[u8]) -> Result<Self, minicbor::decode::Error> {
        let mut d = Decoder::new(bytes);
        let keys = d.map()?.unwrap_or_default();
        let header = Self {
            client: ClientId::new(key(&mut d, 1)?.str()?).map_err(custom)?,
            stream: Stream::new(key(&mut d, 2)?.str()?).map_err(custom)?,
            seq: MessageSeq(key(&mut d, 3)?.u64()?),
            event_time: Timestamp(key(&mut d, 4)?.u64()?),
            count: key(&mut d, 5)?.u32()?,
            items_root: hash(key(&mut d, 6)?)?,
            body_hash: hash(key(&mut d, 7)?)?,
            unused_above: if keys == 8 { Some(MessageSeq(key(&mut d, 8)?.u64()?)) } else { None },
        };
        Ok(header)
    }

    /// The hash that acks name: BLAKE3 of the header bytes.
    pub fn hash_of(bytes: &[u8]) -> Hash {
        blake3_plain(bytes)
    }
}

fn key<'a, 'b>(d: &'a mut Decoder<'b>, expected: u8) -> Result<&'a mut Decoder<'b>, minicbor::decode::Error> {
    if d.u8()? == expected { Ok(d) } else { Err(minicbor::decode::Error::message("unexpected key")) }
}

fn hash(d: &mut Decoder<'_>) -> Result<Hash, minicbor::decode::Error> {
    <[u8; 32]>::try_from(d.bytes()?).map(Hash).map_err(custom)
}

fn custom<E: std::fmt::Display>(error: E) -> minicbor::decode::Error {
    minicbor::decode::Error::message(error)
}

/// COSE's `Sig_structure` for a telemetry header: the bytes that the device's signature covers.
pub fn signature_input(network: &NetworkId, header: &[u8]) -> Vec<u8> {
    cose::signature_input(PROTECTED_EDDSA, &cose::domain("telemetry", network, None), header)
}

/// Signs a header with the client's identity key.
pub fn sign(network: &NetworkId, header: &[u8], key: &SecretKey) -> Signature {
    key.sign_raw(&signature_input(network, header))
}

/// Verifies a device's signature over a header.
///
/// # Errors
/// [`CryptoError::BadSignature`].
pub fn verify(
    network: &NetworkId,
    header: &[u8],
    signature: &Signature,
    key: &VerifyingKey,
) -> Result<(), CryptoError> {
    key.verify_raw(&signature_input(network, header), signature)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            client: ClientId::new("devices/iot").unwrap(),
            stream: Stream::new("env").unwrap(),
            seq: MessageSeq(1),
            event_time: Timestamp(1_767_225_600_000),
            count: 2,
            items_root: Hash([3; 32]),
            body_hash: Hash([4; 32]),
            unused_above: None,
        }
    }

    #[test]
    fn a_header_survives_the_round_trip() {
        for unused_above in [None, Some(MessageSeq(0))] {
            let header = Header { unused_above, ..header() };
            assert_eq!(Header::decode(&header.encode()), Ok(header));
        }
    }

    #[test]
    fn every_truncation_and_every_surplus_byte_is_refused() {
        let bytes = header().encode();
        for len in 0..bytes.len() {
            assert!(Header::decode(&bytes[..len]).is_err(), "{len}");
        }
        let mut surplus = bytes;
        surplus.push(0);
        assert_eq!(Header::decode(&surplus), Err(HeaderError::Malformed));
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        let bad = [
            Header { seq: MessageSeq(0), ..header() },
            Header { seq: MessageSeq(MessageSeq::MAX.0 + 1), ..header() },
            Header { count: 0, ..header() },
            Header { count: 65_537, ..header() },
            Header { event_time: Timestamp::MAX.plus_ms(1), ..header() },
            Header { unused_above: Some(MessageSeq(1)), ..header() },
        ];
        for header in bad {
            assert_eq!(Header::decode(&header.encode()), Err(HeaderError::OutOfRange), "{header:?}");
        }
    }

    #[test]
    fn a_signature_is_bound_to_the_network() {
        let key = SecretKey::from_seed(&[7; 32]);
        let verifying = VerifyingKey::parse(&key.public()).unwrap();
        let bytes = header().encode();
        let signature = sign(&NetworkId([1; 32]), &bytes, &key);
        assert_eq!(verify(&NetworkId([1; 32]), &bytes, &signature, &verifying), Ok(()));
        assert!(verify(&NetworkId([2; 32]), &bytes, &signature, &verifying).is_err());
    }
}
