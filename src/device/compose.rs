//! Telemetry messages as a client makes them (docs/PROTOCOL.md section 6).
//!
//! [`compose`] reads the body exactly as a node will, so a message that would be refused for its
//! content is refused here, before its seq is spent: **a seq that was signed never gets another
//! header**. What it gives back is complete without a payload key; a client keeps the content bytes
//! until the ack comes, and seals them ([`super::telemetry::seal`]) for whichever node it is
//! connected to.

use super::body::Body;
use super::encoding::Encoding;
use super::header::{self, Header};
use super::item::Item;
use super::telemetry::{Content, Limits, TelemetryError};
use crate::crypto::{SecretKey, blake3_plain};
use crate::merkle::Tree;
use crate::types::{ClientId, Hash, MessageSeq, NetworkId, Stream};

/// What a message is to be made of.
#[derive(Debug, Clone, Copy)]
pub struct Draft<'a> {
    /// The client.
    pub client: &'a ClientId,
    /// The stream.
    pub stream: &'a Stream,
    /// Its number; never used before.
    pub seq: MessageSeq,
    /// Set in the first message after a loss of memory: numbers above this one and below `seq`
    /// were never used.
    pub unused_above: Option<MessageSeq>,
    /// The JSON body; it is kept as it is.
    pub body: &'a [u8],
    /// How to compress it.
    pub encoding: Encoding,
}

/// A signed message, ready to be sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Composed {
    /// What was signed.
    pub header: Header,
    /// BLAKE3 of its bytes, by which the ack names it.
    pub header_hash: Hash,
    /// Header, signature and compressed body, in one.
    pub content: Vec<u8>,
}

/// Checks, signs and compresses a message.
///
/// # Errors
/// [`TelemetryError`], as a node would refuse it; the seq is not spent then.
pub fn compose(network: &NetworkId, key: &SecretKey, draft: &Draft<'_>) -> Result<Composed, TelemetryError> {
    let limit = Limits::default().body_bytes;
    if draft.body.len() > limit {
        return Err(TelemetryError::TooLong { len: draft.body.len(), limit });
    }
    let body = Body::parse(draft.client, draft.body)?;
    let item_bytes: Vec<Vec<u8>> = body.items.iter().map(Item::encode).collect();
    let header = Header {
        client: draft.client.clone(),
        stream: draft.stream.clone(),
        seq: draft.seq,
        event_time: body.event_time,
        count: u32::try_from(body.items.len()).map_err(|_| TelemetryError::Root)?,
        items_root: Tree::new(&item_bytes).map_err(|_| TelemetryError::Root)?.root(),
        body_hash: blake3_plain(draft.body),
        unused_above: draft.unused_above,
    };
    let bytes = header.encode();
    Header::decode(&bytes)?;
    let body = draft.encoding.compress(draft.body)?;
    let signature = header::sign(network, &bytes, key);
    let header_hash = Header::hash_of(&bytes);
    let content = Content::new(bytes, signature, draft.encoding, body).encode();
    Ok(Composed { header, header_hash, content })
}
