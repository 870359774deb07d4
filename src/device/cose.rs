//! COSE_Sign1 and COSE_Encrypt0 (RFC 9052), the two envelopes of the device protocol.
//!
//! ```text
//! COSE_Sign1    d2 84 bstr(protected) a0 bstr(payload) bstr(signature, 64 bytes)
//! COSE_Encrypt0 d0 83 bstr(protected) a0 bstr(ciphertext)
//! ```
//!
//! There is one encoding of each: tagged, unprotected header empty, lengths in their shortest form
//! (RFC 8949 section 4.2.1), nothing after the last byte. Protected headers are compared as bytes
//! with the few that the protocol knows, never interpreted. Reading borrows and allocates nothing.

use crate::types::Signature;

/// The tag and array head of a COSE_Sign1.
const SIGN1_HEAD: &[u8] = &[0xd2, 0x84];
/// The tag and array head of a COSE_Encrypt0.
const ENCRYPT0_HEAD: &[u8] = &[0xd0, 0x83];
/// An empty map: the only unprotected header there is.
const EMPTY_MAP: &[u8] = &[0xa0];

/// The first byte of a COSE_Encrypt0, which tells it from content in plaintext.
pub const ENCRYPT0_FIRST_BYTE: u8 = 0xd0;

const MAJOR_UNSIGNED: u8 = 0;
const MAJOR_BYTES: u8 = 2;
const MAJOR_TEXT: u8 = 3;
const MAJOR_ARRAY: u8 = 4;

/// Not the one encoding that the protocol takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a tagged COSE message in deterministic CBOR with an empty unprotected header")]
pub struct Malformed;

/// A COSE_Sign1, taken apart but not verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sign1<'a> {
    /// The protected header's bytes.
    pub protected: &'a [u8],
    /// What is signed.
    pub payload: &'a [u8],
    /// Ed25519's.
    pub signature: Signature,
}

impl<'a> Sign1<'a> {
    /// Takes a whole input apart.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let message = Self::read(&mut reader)?;
        reader.end()?;
        Ok(message)
    }

    /// Takes apart what stands at the reader's place.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        reader.expect(SIGN1_HEAD)?;
        let protected = reader.byte_string()?;
        reader.expect(EMPTY_MAP)?;
        let payload = reader.byte_string()?;
        let signature = Signature(reader.byte_string()?.try_into().map_err(|_| Malformed)?);
        Ok(Self { protected, payload, signature })
    }

    /// The message's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.protected.len() + self.payload.len() + 80);
        self.append_to(&mut out);
        out
    }

    /// Appends the message's bytes.
    pub fn append_to(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(SIGN1_HEAD);
        append_byte_string(out, self.protected);
        out.extend_from_slice(EMPTY_MAP);
        append_byte_string(out, self.payload);
        append_byte_string(out, &self.signature.0);
    }
}

/// A COSE_Encrypt0, taken apart but not decrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encrypt0<'a> {
    /// The protected header's bytes.
    pub protected: &'a [u8],
    /// Ciphertext with its tag.
    pub ciphertext: &'a [u8],
}

impl<'a> Encrypt0<'a> {
    /// Takes a whole input apart.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        reader.expect(ENCRYPT0_HEAD)?;
        let protected = reader.byte_string()?;
        reader.expect(EMPTY_MAP)?;
        let ciphertext = reader.byte_string()?;
        reader.end()?;
        Ok(Self { protected, ciphertext })
    }

    /// The message's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.protected.len() + self.ciphertext.len() + 16);
        out.extend_from_slice(ENCRYPT0_HEAD);
        append_byte_string(&mut out, self.protected);
        out.extend_from_slice(EMPTY_MAP);
        append_byte_string(&mut out, self.ciphertext);
        out
    }
}

/// `Sig_structure` of RFC 9052 section 4.4: the bytes that a COSE_Sign1's signature covers.
pub fn signature_input(protected: &[u8], external_aad: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(32 + protected.len() + external_aad.len() + payload.len());
    append_head(&mut out, MAJOR_ARRAY, 4);
    append_text(&mut out, "Signature1");
    append_byte_string(&mut out, protected);
    append_byte_string(&mut out, external_aad);
    append_byte_string(&mut out, payload);
    out
}

/// `Enc_structure` of RFC 9052 section 5.3: the AAD of a COSE_Encrypt0.
pub fn encryption_aad(protected: &[u8], external_aad: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(32 + protected.len() + external_aad.len());
    append_head(&mut out, MAJOR_ARRAY, 3);
    append_text(&mut out, "Encrypt0");
    append_byte_string(&mut out, protected);
    append_byte_string(&mut out, external_aad);
    out
}

/// `["ledgermq", 1, kind, network id]`, and `rest` if there is one: the external AAD of every
/// construction, and HPKE's `info`.
pub fn domain(kind: &str, network: &crate::types::NetworkId, rest: Option<&str>) -> Vec<u8> {
    let mut out = Vec::with_capacity(80 + kind.len() + rest.map_or(0, str::len));
    append_head(&mut out, MAJOR_ARRAY, if rest.is_some() { 5 } else { 4 });
    append_text(&mut out, "ledgermq");
    out.push(1);
    append_text(&mut out, kind);
    append_byte_string(&mut out, network.as_bytes());
    if let Some(rest) = rest {
        append_text(&mut out, rest);
    }
    out
}

/// Appends a CBOR unsigned integer.
pub fn append_unsigned(out: &mut Vec<u8>, number: u64) {
    append_head(out, MAJOR_UNSIGNED, number);
}

/// Appends a CBOR byte string.
pub fn append_byte_string(out: &mut Vec<u8>, bytes: &[u8]) {
    append_head(out, MAJOR_BYTES, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn append_text(out: &mut Vec<u8>, text: &str) {
    append_head(out, MAJOR_TEXT, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

/// Appends a major type and its argument in the shortest form.
fn append_head(out: &mut Vec<u8>, major: u8, argument: u64) {
    let major = major << 5;
    let be = argument.to_be_bytes();
    match argument {
        0..=23 => out.push(major | be[7]),
        24..=0xff => out.extend_from_slice(&[major | 24, be[7]]),
        0x100..=0xffff => {
            out.push(major | 25);
            out.extend_from_slice(&be[6..]);
        }
        0x1_0000..=0xffff_ffff => {
            out.push(major | 26);
            out.extend_from_slice(&be[4..]);
        }
        _ => {
            out.push(major | 27);
            out.extend_from_slice(&be);
        }
    }
}

/// Reads deterministic CBOR from front to back, without allocating.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// At the first byte of `bytes`.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Takes exactly these bytes.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn expect(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        self.rest = self.rest.strip_prefix(bytes).ok_or(Malformed)?;
        Ok(())
    }

    /// Takes one byte.
    ///
    /// # Errors
    /// [`Malformed`] at the end.
    pub fn byte(&mut self) -> Result<u8, Malformed> {
        let (first, rest) = self.rest.split_first().ok_or(Malformed)?;
        self.rest = rest;
        Ok(*first)
    }

    /// Takes an unsigned integer in its shortest form.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn unsigned(&mut self) -> Result<u64, Malformed> {
        self.argument(MAJOR_UNSIGNED)
    }

    /// Takes a byte string of definite length, its length in the shortest form.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn byte_string(&mut self) -> Result<&'a [u8], Malformed> {
        let len = self.argument(MAJOR_BYTES)?;
        self.take(usize::try_from(len).map_err(|_| Malformed)?)
    }

    /// Nothing may be left.
    ///
    /// # Errors
    /// [`Malformed`].
    pub const fn end(&self) -> Result<(), Malformed> {
        if self.rest.is_empty() { Ok(()) } else { Err(Malformed) }
    }

    /// Takes the head of an item of this major type, and gives its argument.
    fn argument(&mut self, major: u8) -> Result<u64, Malformed> {
        let first = self.byte()?;
        if first >> 5 != major {
            return Err(Malformed);
        }
        let (argument, least) = match first & 0x1f {
            short @ 0..=23 => (u64::from(short), 0),
            24 => (self.number(1)?, 24),
            25 => (self.number(2)?, 0x100),
            26 => (self.number(4)?, 0x1_0000),
            27 => (self.number(8)?, 0x1_0000_0000),
            _ => return Err(Malformed),
        };
        if argument < least { Err(Malformed) } else { Ok(argument) }
    }

    fn number(&mut self, bytes: usize) -> Result<u64, Malformed> {
        Ok(self.take(bytes)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(Malformed)?;
        self.rest = rest;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::NetworkId;
    use proptest::prelude::*;

    fn message(payload: &[u8]) -> Vec<u8> {
        Sign1 { protected: &[0xa1, 0x01, 0x27], payload, signature: Signature([7; 64]) }.encode()
    }

    #[test]
    fn lengths_are_in_their_shortest_form_both_ways() {
        for len in [0, 23, 24, 255, 256, 65_535, 65_536] {
            let payload = vec![1; len];
            let bytes = message(&payload);
            assert_eq!(Sign1::decode(&bytes).unwrap().payload, payload, "{len}");
            let mut independent = minicbor::Encoder::new(Vec::new());
            independent.bytes(&payload).unwrap();
            let mut ours = Vec::new();
            append_byte_string(&mut ours, &payload);
            assert_eq!(ours, independent.into_writer(), "{len}");
        }
    }

    #[test]
    fn longer_forms_of_a_length_are_refused() {
        for head in [
            &[0x58, 23][..],
            &[0x59, 0, 255],
            &[0x5a, 0, 0, 255, 255],
            &[0x5b, 0, 0, 0, 0, 0, 0, 0, 1],
            &[0x5f],
            &[0x5c],
        ] {
            let mut bytes = head.to_vec();
            bytes.extend_from_slice(&[0; 70_000]);
            assert_eq!(Reader::new(&bytes).byte_string(), Err(Malformed), "{head:?}");
        }
    }

    #[test]
    fn a_huge_claimed_length_is_refused() {
        let bytes = [0x5b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
        assert_eq!(Reader::new(&bytes).byte_string(), Err(Malformed));
    }

    #[test]
    fn untagged_detached_or_with_an_unprotected_header_is_refused() {
        let good = message(b"x");
        assert!(Sign1::decode(&good[1..]).is_err(), "untagged");
        let mut unprotected = good.clone();
        unprotected.splice(6..7, [0xa1, 0x01, 0x27]);
        assert!(Sign1::decode(&unprotected).is_err(), "unprotected header");
        let mut detached = good.clone();
        detached.splice(7..9, [0xf6]);
        assert!(Sign1::decode(&detached).is_err(), "detached payload");
        let mut surplus = good;
        surplus.push(0);
        assert!(Sign1::decode(&surplus).is_err(), "surplus byte");
    }

    #[test]
    fn the_domain_is_the_cbor_array_of_the_protocol() {
        let mut e = minicbor::Encoder::new(Vec::new());
        e.array(5).unwrap().str("ledgermq").unwrap().u8(1).unwrap().str("ack").unwrap();
        e.bytes(&[9; 32]).unwrap().str("devices/iot").unwrap();
        assert_eq!(domain("ack", &NetworkId([9; 32]), Some("devices/iot")), e.into_writer());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_and_decode_only_to_themselves(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(message) = Sign1::decode(&bytes) {
                prop_assert_eq!(message.encode(), bytes.clone());
            }
            if let Ok(message) = Encrypt0::decode(&bytes) {
                prop_assert_eq!(message.encode(), bytes);
            }
        }

        #[test]
        fn altered_messages_decode_only_to_themselves(
            payload in prop::collection::vec(any::<u8>(), 0..300), at in any::<prop::sample::Index>(), flip in 1_u8..,
        ) {
            let mut bytes = message(&payload);
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            if let Ok(message) = Sign1::decode(&bytes) {
                prop_assert_eq!(message.encode(), bytes);
            }
        }
    }
}
