//! Telemetry messages as a node takes them (docs/PROTOCOL.md section 6), one type for each step.
//!
//! ```text
//! bytes ──▶ Wire ─┬─▶ Envelope ──decrypt──▶ Content ──verify──▶ VerifiedMessage ──check_body──▶ Message
//!                 └─▶ Content (plaintext) ──────┘        seq window between ┘
//! ```
//!
//! The order is the protocol's: nothing is decompressed or parsed as JSON before its signature is
//! good, and a [`VerifiedMessage`] comes from [`Content::verify`] alone. Whatever is refused says
//! with which code ([`TelemetryError::code`]); what a refusal can name is in [`Reference`].

use std::fmt;

use super::body::{Body, BodyError};
use super::codes::ErrorCode;
use super::cose::{self, ENCRYPT0_FIRST_BYTE, Reader, Sign1};
use super::encoding::{Encoding, EncodingError};
pub use super::envelope::{Envelope, seal};
use super::header::{self, Header, HeaderError, PROTECTED_EDDSA};
use super::item::Item;
use crate::crypto::VerifyingKey;
use crate::merkle::Tree;
use crate::types::{ClientId, Hash, MessageSeq, NetworkId, PublicKey, Signature, Stream, Timestamp};

/// What a node takes; its settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The longest message on the wire.
    pub wire_bytes: usize,
    /// The longest body, decompressed.
    pub body_bytes: usize,
    /// How far `eventTime` may be ahead of the node's clock.
    pub ahead_ms: u64,
}

impl Default for Limits {
    /// 4 MiB, 16 MiB and 5 minutes.
    fn default() -> Self {
        Self { wire_bytes: 4 << 20, body_bytes: 16 << 20, ahead_ms: 5 * 60 * 1000 }
    }
}

/// Why a telemetry message was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TelemetryError {
    /// Too long on the wire.
    #[error("the message has {len} bytes, at most {limit} are taken; send fewer items at once")]
    TooLong {
        /// Bytes found.
        len: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// Neither an envelope nor plaintext content.
    #[error("not a tagged COSE_Encrypt0 with protected header {{1: 24, 4: kid, 6: seq}}")]
    Envelope,
    /// What was decrypted, or sent in plaintext, is not content.
    #[error("the content is not [COSE_Sign1, encoding, body] in deterministic CBOR")]
    Content,
    /// The header is none.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// Another key, topic, seq or network than the sender's, or altered on the way.
    #[error("the envelope does not decrypt under its payload key for this topic")]
    Undecryptable,
    /// The envelope and the header disagree about the seq.
    #[error("the envelope's seq is {envelope}, the header's {header}")]
    EnvelopeSeq {
        /// In the envelope.
        envelope: MessageSeq,
        /// In the header.
        header: MessageSeq,
    },
    /// Sent in plaintext by a client that has to encrypt.
    #[error("this client has to encrypt its telemetry")]
    EncryptionRequired,
    /// Not signed by the client.
    #[error("the signature does not verify under the client's registered key")]
    BadSignature,
    /// Signed for another topic.
    #[error("the message is signed for {client}/{stream}, which is not the topic it came on")]
    WrongTopic {
        /// The client in the header.
        client: ClientId,
        /// The stream in the header.
        stream: Stream,
    },
    /// The body cannot be decompressed.
    #[error(transparent)]
    Encoding(#[from] EncodingError),
    /// The body is another than the header names.
    #[error("the body's hash is not the one in the header")]
    BodyHash,
    /// The body is of another time than the header says.
    #[error("the body's eventTime is {body}, the header's {header}")]
    EventTime {
        /// In the body.
        body: Timestamp,
        /// In the header.
        header: Timestamp,
    },
    /// The body breaks a rule of the protocol.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// The header's count is not the body's.
    #[error("the header counts {header} items, the body has {body}")]
    Count {
        /// In the header.
        header: u32,
        /// In the body.
        body: usize,
    },
    /// The items are others than the header names.
    #[error("the items do not lead to the items root in the header")]
    Root,
    /// `eventTime` is ahead of the node's clock.
    #[error("eventTime is {ahead_ms} ms ahead of the node's clock; check the client's clock")]
    ClockAhead {
        /// How far.
        ahead_ms: u64,
    },
}

impl TelemetryError {
    /// The code for the control message `error`.
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::TooLong { .. } | Self::Encoding(EncodingError::TooLarge { .. }) => ErrorCode::TooLarge,
            Self::Body(BodyError::Count { .. }) | Self::Count { .. } => ErrorCode::CountMismatch,
            Self::Envelope | Self::Content | Self::Header(_) | Self::Body(_) => ErrorCode::Malformed,
            Self::Undecryptable | Self::EnvelopeSeq { .. } => ErrorCode::BadEnvelope,
            Self::EncryptionRequired => ErrorCode::EncryptionRequired,
            Self::BadSignature => ErrorCode::BadSignature,
            Self::WrongTopic { .. } => ErrorCode::WrongTopic,
            Self::Encoding(_) => ErrorCode::BadEncoding,
            Self::BodyHash | Self::EventTime { .. } => ErrorCode::BadBody,
            Self::Root => ErrorCode::BadRoot,
            Self::ClockAhead { .. } => ErrorCode::ClockAhead,
        }
    }
}

/// What an answer can name of a message that may not be good: nothing here is verified.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reference {
    /// The seq, if it could be read.
    pub seq: Option<MessageSeq>,
    /// BLAKE3 of the header bytes, if they could be read.
    pub header: Option<Hash>,
}

/// What came on a telemetry topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wire {
    /// Encrypted to a node.
    Encrypted(Envelope),
    /// Signed only; good from clients whose ledger entry says `plaintext: true`, and from no other.
    Plaintext(Content),
}

impl Wire {
    /// Takes a message apart; the first byte tells the two forms.
    ///
    /// # Errors
    /// [`TelemetryError::TooLong`], [`TelemetryError::Envelope`] or [`TelemetryError::Content`].
    pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Self, TelemetryError> {
        if bytes.len() > limits.wire_bytes {
            return Err(TelemetryError::TooLong { len: bytes.len(), limit: limits.wire_bytes });
        }
        match bytes.first() {
            Some(&ENCRYPT0_FIRST_BYTE) => Envelope::decode(bytes).map(Self::Encrypted),
            Some(&CONTENT_FIRST_BYTE) => Content::decode(bytes).map(Self::Plaintext),
            _ => Err(TelemetryError::Envelope),
        }
    }

    /// What an answer can name.
    pub fn reference(&self) -> Reference {
        match self {
            Self::Encrypted(envelope) => envelope.reference(),
            Self::Plaintext(content) => content.reference(),
        }
    }
}

/// The first byte of content: the head of an array of three.
const CONTENT_FIRST_BYTE: u8 = 0x83;

/// A signed message and its compressed body, neither verified nor decompressed.
#[derive(Clone, PartialEq, Eq)]
pub struct Content {
    header: Vec<u8>,
    signature: Signature,
    encoding: u64,
    body: Vec<u8>,
    envelope_seq: Option<MessageSeq>,
}

impl Content {
    /// Content of a header, its signature and a body under its encoding.
    pub(super) const fn new(
        header: Vec<u8>,
        signature: Signature,
        encoding: Encoding,
        body: Vec<u8>,
    ) -> Self {
        Self { header, signature, encoding: encoding.number() as u64, body, envelope_seq: None }
    }

    /// Takes content apart: CBOR `[signed message, encoding, body]`.
    ///
    /// # Errors
    /// [`TelemetryError::Content`].
    pub fn decode(bytes: &[u8]) -> Result<Self, TelemetryError> {
        Self::read(bytes).map_err(|_| TelemetryError::Content)
    }

    /// Takes content apart that came out of an envelope of this seq.
    pub(super) fn from_envelope(bytes: &[u8], seq: MessageSeq) -> Result<Self, TelemetryError> {
        Ok(Self { envelope_seq: Some(seq), ..Self::decode(bytes)? })
    }

    fn read(bytes: &[u8]) -> Result<Self, cose::Malformed> {
        let mut reader = Reader::new(bytes);
        reader.expect(&[CONTENT_FIRST_BYTE])?;
        let Sign1 { protected, payload, signature } = Sign1::read(&mut reader)?;
        let encoding = reader.unsigned()?;
        let body = reader.byte_string()?;
        reader.end()?;
        if protected != PROTECTED_EDDSA {
            return Err(cose::Malformed);
        }
        Ok(Self { header: payload.to_vec(), signature, encoding, body: body.to_vec(), envelope_seq: None })
    }

    /// The content's bytes: what is encrypted, and what a log or spool keeps.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.header.len() + self.body.len() + 96);
        out.push(CONTENT_FIRST_BYTE);
        self.signed().append_to(&mut out);
        cose::append_unsigned(&mut out, self.encoding);
        cose::append_byte_string(&mut out, &self.body);
        out
    }

    /// The signed message alone: the tagged COSE_Sign1.
    pub fn signed_message(&self) -> Vec<u8> {
        self.signed().encode()
    }

    fn signed(&self) -> Sign1<'_> {
        Sign1 { protected: PROTECTED_EDDSA, payload: &self.header, signature: self.signature }
    }

    /// What an answer can name.
    pub fn reference(&self) -> Reference {
        let seq = Header::decode(&self.header).ok().map(|header| header.seq).or(self.envelope_seq);
        Reference { seq, header: Some(Header::hash_of(&self.header)) }
    }

    /// The header's bytes, as they came.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// How many bytes there are to hash and parse, header and unpacked body: of a frame that says it, which is
    /// then held to it; none if it does not say.
    pub fn unpacked_len(&self) -> Option<usize> {
        let body = Encoding::from_number(self.encoding).map_or(Some(0), |of| of.unpacked_len(&self.body));
        Some(self.header.len() + self.body.len() + body?)
    }

    /// Verifies the signature under the client's registered key, and that the header is for the
    /// topic it came on and for the envelope it came in.
    ///
    /// # Errors
    /// [`TelemetryError`]: of signature, header, topic or envelope, in this order.
    pub fn verify(
        self,
        key: &VerifyingKey,
        network: &NetworkId,
        client: &ClientId,
        stream: &Stream,
    ) -> Result<VerifiedMessage, TelemetryError> {
        header::verify(network, &self.header, &self.signature, key)
            .map_err(|_| TelemetryError::BadSignature)?;
        let header = Header::decode(&self.header)?;
        if header.client != *client || header.stream != *stream {
            return Err(TelemetryError::WrongTopic { client: header.client, stream: header.stream });
        }
        if let Some(envelope) = self.envelope_seq.filter(|seq| *seq != header.seq) {
            return Err(TelemetryError::EnvelopeSeq { envelope, header: header.seq });
        }
        let proof = SignedHeader {
            header,
            hash: Header::hash_of(&self.header),
            bytes: self.header,
            signature: self.signature,
            client_key: key.public(),
        };
        Ok(VerifiedMessage { signed: proof, encoding: self.encoding, body: self.body })
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Content({:?}, {} bytes)", self.reference(), self.body.len())
    }
}

/// A header whose signature was verified. Made by [`Content::verify`] alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedHeader {
    header: Header,
    hash: Hash,
    bytes: Vec<u8>,
    signature: Signature,
    client_key: PublicKey,
}

impl SignedHeader {
    /// What the client signed.
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// BLAKE3 of the header bytes, which acks name.
    pub const fn hash(&self) -> Hash {
        self.hash
    }

    /// The header bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The client's signature over them.
    pub const fn signature(&self) -> Signature {
        self.signature
    }

    /// The key that it verifies under.
    pub const fn client_key(&self) -> PublicKey {
        self.client_key
    }
}

/// A message that its client signed, for the topic it came on; its body is still compressed. This
/// is the moment to judge its seq.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifiedMessage {
    signed: SignedHeader,
    encoding: u64,
    body: Vec<u8>,
}

impl VerifiedMessage {
    /// The header, with all that proves it.
    pub const fn signed(&self) -> &SignedHeader {
        &self.signed
    }

    /// What the client signed.
    pub const fn header(&self) -> &Header {
        &self.signed.header
    }

    /// What an answer can name.
    pub const fn reference(&self) -> Reference {
        Reference { seq: Some(self.signed.header.seq), header: Some(self.signed.hash) }
    }

    /// Decompresses and reads the body and checks that it is the one that the client signed.
    ///
    /// # Errors
    /// [`TelemetryError`]: of encoding, body hash, JSON, count, items root or clock, in this order.
    pub fn check_body(self, limits: &Limits, now: Timestamp) -> Result<Message, TelemetryError> {
        let header = &self.signed.header;
        let json = Encoding::from_number(self.encoding)?.decompress(&self.body, limits.body_bytes)?;
        if crate::crypto::blake3_plain(&json) != header.body_hash {
            return Err(TelemetryError::BodyHash);
        }
        let body = Body::parse(&header.client, &json)?;
        if usize::try_from(header.count) != Ok(body.items.len()) {
            return Err(TelemetryError::Count { header: header.count, body: body.items.len() });
        }
        if body.event_time != header.event_time {
            return Err(TelemetryError::EventTime { body: body.event_time, header: header.event_time });
        }
        let item_bytes: Vec<Vec<u8>> = body.items.iter().map(Item::encode).collect();
        let root = Tree::new(&item_bytes).map_err(|_| TelemetryError::Root)?.root();
        if root != header.items_root {
            return Err(TelemetryError::Root);
        }
        let ahead_ms = header.event_time.since(now);
        if ahead_ms > limits.ahead_ms {
            return Err(TelemetryError::ClockAhead { ahead_ms });
        }
        Ok(Message { signed: self.signed, body: json, items: body.items, item_bytes })
    }
}

impl fmt::Debug for VerifiedMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifiedMessage({:?}, {} bytes)", self.signed.header, self.body.len())
    }
}

/// A message that passed every check. Made by [`VerifiedMessage::check_body`] alone.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    signed: SignedHeader,
    body: Vec<u8>,
    items: Vec<Item>,
    item_bytes: Vec<Vec<u8>>,
}

impl Message {
    /// The header, with all that proves it.
    pub const fn signed(&self) -> &SignedHeader {
        &self.signed
    }

    /// What the client signed.
    pub const fn header(&self) -> &Header {
        &self.signed.header
    }

    /// The JSON body as it was signed.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// The data items, in order.
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// The bytes of each item: the leaves of the tree under the header's items root.
    pub fn item_bytes(&self) -> &[Vec<u8>] {
        &self.item_bytes
    }

    /// What an answer can name.
    pub const fn reference(&self) -> Reference {
        Reference { seq: Some(self.signed.header.seq), header: Some(self.signed.hash) }
    }
}

#[cfg(test)]
#[path = "telemetry_tests.rs"]
mod tests;
