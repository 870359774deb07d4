//! The encrypted envelope of a telemetry message (docs/PROTOCOL.md section 6): COSE_Encrypt0 with
//! ChaCha20/Poly1305 under a payload key.
//!
//! ```text
//! protected  a3 01 18 18 04 50 kid 06 48 seq   {1: 24, 4: kid, 6: seq as 8 bytes (partial IV)}
//! nonce      4 zero bytes ‖ seq
//! AAD        ["ledgermq", 1, "telemetry", network id, topic]
//! plaintext  content
//! ```
//!
//! The nonce is made of the seq alone. That is safe because a client signs one content for a seq and
//! never another, so under one payload key a nonce always meets the same plaintext.

use std::fmt;

use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{ChaCha20Poly1305, Key, Nonce};

use super::cose::{self, Encrypt0};
use super::handshake::PayloadKey;
use super::ids::PayloadKid;
use super::telemetry::{Content, Limits, Reference, TelemetryError};
use super::topics;
use crate::types::{ClientId, MessageSeq, NetworkId, Stream};

/// The protected header up to the payload key's id, and between that and the seq.
const PROTECTED_KID: &[u8] = &[0xa3, 0x01, 0x18, 0x18, 0x04, 0x50];
const PROTECTED_SEQ: &[u8] = &[0x06, 0x48];

/// An encrypted message, not decrypted yet.
#[derive(Clone, PartialEq, Eq)]
pub struct Envelope {
    kid: PayloadKid,
    seq: MessageSeq,
    ciphertext: Vec<u8>,
}

impl Envelope {
    /// Takes a message apart.
    ///
    /// # Errors
    /// [`TelemetryError::Envelope`].
    pub fn decode(bytes: &[u8]) -> Result<Self, TelemetryError> {
        let Encrypt0 { protected, ciphertext } =
            Encrypt0::decode(bytes).map_err(|_| TelemetryError::Envelope)?;
        let (kid, seq) = read_protected(protected).ok_or(TelemetryError::Envelope)?;
        Ok(Self { kid, seq, ciphertext: ciphertext.to_vec() })
    }

    /// Names the payload key; look it up together with the client id.
    pub const fn kid(&self) -> PayloadKid {
        self.kid
    }

    /// The seq that the nonce is made of.
    pub const fn seq(&self) -> MessageSeq {
        self.seq
    }

    /// What an answer can name.
    pub const fn reference(&self) -> Reference {
        Reference { seq: Some(self.seq), header: None }
    }

    /// Decrypts a message that came on the topic of `client` and `stream`.
    ///
    /// # Errors
    /// [`TelemetryError::Undecryptable`] or [`TelemetryError::Content`].
    pub fn decrypt(
        &self,
        key: &PayloadKey,
        network: &NetworkId,
        client: &ClientId,
        stream: &Stream,
    ) -> Result<Content, TelemetryError> {
        let aad = envelope_aad(&protected(&self.kid, self.seq), network, client, stream);
        let content = cipher(key)
            .decrypt(&nonce(self.seq), Payload { msg: &self.ciphertext, aad: &aad })
            .map_err(|_| TelemetryError::Undecryptable)?;
        Content::from_envelope(&content, self.seq)
    }
}

impl fmt::Debug for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Envelope({}, seq {}, {} bytes)", self.kid, self.seq, self.ciphertext.len())
    }
}

/// Encrypts content to a node; the client's side of [`Envelope::decrypt`].
///
/// The nonce is made of `seq` alone: under one payload key, seal a seq with one content only.
///
/// # Errors
/// [`TelemetryError::TooLong`] if the content is beyond what the cipher takes (256 GiB).
pub fn seal(
    content: &[u8],
    seq: MessageSeq,
    kid: &PayloadKid,
    key: &PayloadKey,
    network: &NetworkId,
    client: &ClientId,
    stream: &Stream,
) -> Result<Vec<u8>, TelemetryError> {
    let protected = protected(kid, seq);
    let aad = envelope_aad(&protected, network, client, stream);
    let ciphertext = cipher(key)
        .encrypt(&nonce(seq), Payload { msg: content, aad: &aad })
        .map_err(|_| TelemetryError::TooLong { len: content.len(), limit: Limits::default().wire_bytes })?;
    Ok(Encrypt0 { protected: &protected, ciphertext: &ciphertext }.encode())
}

fn protected(kid: &PayloadKid, seq: MessageSeq) -> Vec<u8> {
    [PROTECTED_KID, kid.as_bytes(), PROTECTED_SEQ, &seq.0.to_be_bytes()].concat()
}

fn read_protected(protected: &[u8]) -> Option<(PayloadKid, MessageSeq)> {
    let (kid, rest) = protected.strip_prefix(PROTECTED_KID)?.split_first_chunk::<16>()?;
    let seq = MessageSeq(u64::from_be_bytes(rest.strip_prefix(PROTECTED_SEQ)?.try_into().ok()?));
    (1..=MessageSeq::MAX.0).contains(&seq.0).then_some((PayloadKid(*kid), seq))
}

fn envelope_aad(protected: &[u8], network: &NetworkId, client: &ClientId, stream: &Stream) -> Vec<u8> {
    let topic = topics::telemetry(client, stream);
    cose::encryption_aad(protected, &cose::domain("telemetry", network, Some(&topic)))
}

fn cipher(key: &PayloadKey) -> ChaCha20Poly1305 {
    ChaCha20Poly1305::new(&Key::from(*key.as_bytes()))
}

/// 4 zero bytes ‖ seq.
fn nonce(seq: MessageSeq) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&seq.0.to_be_bytes());
    Nonce::from(nonce)
}
