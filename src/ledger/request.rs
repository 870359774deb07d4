//! Requests that were found valid without any state: the only ones that PBFT orders.
//!
//! ```text
//! Request ──sizes, form, header, items, Merkle proof, signature──▶ VerifiedRequest
//! ```
//!
//! All replicas agree on what is checked here, whatever their state, so no request is valid for
//! one and invalid for another. The signature is judged under the key that the request carries:
//! whether that key is registered, the seq free, the admin entitled, is judged at execution. The
//! canonical bytes and the digest are made once and kept, for the log, the block and the votes.

use crate::codec::{self, CodecError};
use crate::crypto::{CryptoError, HashKind, VerifyingKey};
use crate::device::{self, HeaderError, Item, ItemError};
use crate::ledger::operation::{AdminOperation, AdminOperationError, Request, WriteRequest, WrittenItem};
use crate::merkle::{self, MerkleError};
use crate::types::{Hash, NetworkId, NodeId, PublicKey, Signature};

/// The most canonical bytes that a request may have. Part of the protocol: all replicas must agree
/// on it. Enough for 65,536 items of 110 bytes; a message whose picked items need more is refused
/// by the node that admits it.
pub const MAX_REQUEST_BYTES: usize = 8 * 1024 * 1024;

/// Why a request is invalid, whatever the state of the ledger.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Not the canonical bytes of a request.
    #[error("not a request: {0}")]
    Codec(#[from] CodecError),
    /// More than [`MAX_REQUEST_BYTES`].
    #[error(
        "the request has {len} bytes, at most {MAX_REQUEST_BYTES} are allowed: send messages with fewer items"
    )]
    TooLarge {
        /// Its length.
        len: usize,
    },
    /// The telemetry header is not one.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The device's key or signature is bad.
    #[error("the device's signature over the header: {0}")]
    Signature(#[from] CryptoError),
    /// One of the items is not one.
    #[error("item {index}: {error}")]
    Item {
        /// Its index in the message.
        index: u32,
        /// What is wrong.
        error: ItemError,
    },
    /// One of the items names another client or time than the header.
    #[error("item {index} names another client or event time than the header")]
    ForeignItem {
        /// Its index in the message.
        index: u32,
    },
    /// The items are not in the message that was signed.
    #[error("the items are not those that the device signed: {0}")]
    Merkle(#[from] MerkleError),
    /// An admin's operation is invalid.
    #[error(transparent)]
    Admin(#[from] AdminOperationError),
}

/// A message that this node has verified itself, as far as a write request needs it.
#[derive(Debug, Clone, Copy)]
pub struct AdmittedMessage<'a> {
    /// The decoded header.
    pub header: &'a device::Header,
    /// Its bytes.
    pub header_bytes: &'a [u8],
    /// The device's signature over them.
    pub signature: Signature,
    /// The key that verified it.
    pub client_key: PublicKey,
    /// The item bytes of the whole message, in order.
    pub items: &'a [Vec<u8>],
}

/// The telemetry header of a write request, decoded and hashed once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Telemetry {
    /// The header.
    pub header: device::Header,
    /// BLAKE3 of its bytes, as acks name it.
    pub hash: Hash,
}

/// A request that passed every check that needs no state; made by verification only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedRequest {
    digest: Hash,
    bytes: Vec<u8>,
    request: Request,
    telemetry: Option<Telemetry>,
}

/// What a verified request asks for.
#[derive(Debug, Clone, Copy)]
pub enum Asked<'a> {
    /// Items are to be written.
    Write(&'a WriteRequest, &'a Telemetry),
    /// An admin's operation is to be executed.
    Admin(&'a AdminOperation),
}

impl VerifiedRequest {
    /// Checks a request that came from another node.
    ///
    /// # Errors
    /// [`RequestError`]: the first rule that it breaks.
    pub fn verify(network: &NetworkId, request: Request) -> Result<Self, RequestError> {
        let bytes = codec::encode(&request);
        Self::check(network, request, bytes)
    }

    /// Checks a request given as its canonical bytes.
    ///
    /// # Errors
    /// [`RequestError`]: the first rule that it breaks.
    pub fn verify_bytes(network: &NetworkId, bytes: &[u8]) -> Result<Self, RequestError> {
        let request = codec::decode::<MAX_REQUEST_BYTES, _>(bytes)?;
        Self::check(network, request, bytes.to_vec())
    }

    fn check(network: &NetworkId, request: Request, bytes: Vec<u8>) -> Result<Self, RequestError> {
        check_size(bytes.len())?;
        let telemetry = match &request {
            Request::Write(write) => Some(check_write(network, write)?),
            Request::Admin { operation, .. } => {
                operation.verify(network)?;
                None
            }
        };
        Ok(Self::of_checked(request, bytes, telemetry))
    }

    /// The request of node `node` to write the items at `picked` (ascending) of a message that it
    /// has verified itself: no signature is checked again.
    ///
    /// # Errors
    /// [`RequestError::Merkle`] if `picked` is empty, not ascending or out of range, and
    /// [`RequestError::TooLarge`].
    pub fn from_admitted(
        node: NodeId,
        message: AdmittedMessage<'_>,
        picked: &[u32],
    ) -> Result<Self, RequestError> {
        let whole = picked.len() == message.items.len();
        // A proof of all leaves has no hashes, so the usual case needs no tree.
        let proof = if whole { Vec::new() } else { merkle::Tree::new(message.items)?.prove(picked)? };
        let items = picked
            .iter()
            .zip(0_u32..)
            .map(|(&index, at)| {
                let bytes = message.items.get(index as usize).filter(|_| !whole || index == at);
                let bytes = bytes.ok_or(MerkleError::Index)?.clone();
                Ok(WrittenItem { index, bytes })
            })
            .collect::<Result<Vec<_>, MerkleError>>()?;
        if items.is_empty() {
            return Err(MerkleError::Count.into());
        }
        let request = Request::Write(WriteRequest {
            node,
            client_key: message.client_key,
            header: message.header_bytes.to_vec(),
            signature: message.signature,
            items,
            proof,
        });
        let bytes = codec::encode(&request);
        check_size(bytes.len())?;
        let hash = device::Header::hash_of(message.header_bytes);
        let telemetry = Telemetry { header: message.header.clone(), hash };
        Ok(Self::of_checked(request, bytes, Some(telemetry)))
    }

    fn of_checked(request: Request, bytes: Vec<u8>, telemetry: Option<Telemetry>) -> Self {
        Self { digest: HashKind::Request.hash(&bytes), bytes, request, telemetry }
    }

    /// PBFT's request digest: the hash of the canonical bytes.
    pub const fn digest(&self) -> Hash {
        self.digest
    }

    /// The canonical bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The request.
    pub const fn request(&self) -> &Request {
        &self.request
    }

    /// The telemetry header, of a write request.
    pub const fn telemetry(&self) -> Option<&Telemetry> {
        self.telemetry.as_ref()
    }

    /// The node that admitted it.
    pub const fn node(&self) -> NodeId {
        match &self.request {
            Request::Write(write) => write.node,
            Request::Admin { node, .. } => *node,
        }
    }

    /// What it asks for, with what verification found out.
    ///
    /// # Panics
    /// Never: each constructor gives a write request its header.
    #[allow(clippy::unreachable)]
    pub fn asked(&self) -> Asked<'_> {
        match (&self.request, &self.telemetry) {
            (Request::Write(write), Some(telemetry)) => Asked::Write(write, telemetry),
            (Request::Admin { operation, .. }, _) => Asked::Admin(operation),
            (Request::Write(_), None) => unreachable!("a verified write request has a header"),
        }
    }
}

const fn check_size(len: usize) -> Result<(), RequestError> {
    if len > MAX_REQUEST_BYTES { Err(RequestError::TooLarge { len }) } else { Ok(()) }
}

/// Cheap checks first; the signature, which costs most, last.
fn check_write(network: &NetworkId, write: &WriteRequest) -> Result<Telemetry, RequestError> {
    let header = check_items(write)?;
    // At execution the key must be the registered one, whose order was checked in full.
    let key = VerifyingKey::parse_any_order(&write.client_key)?;
    device::header::verify(network, &write.header, &write.signature, &key)?;
    let hash = device::Header::hash_of(&write.header);
    Ok(Telemetry { header, hash })
}

/// Checks that the items are those of the header: their form, client, time, and place in its tree.
pub(super) fn check_items(write: &WriteRequest) -> Result<device::Header, RequestError> {
    let header = device::Header::decode(&write.header)?;
    let mut leaves = Vec::with_capacity(write.items.len());
    for WrittenItem { index, bytes } in &write.items {
        let item = Item::decode(bytes).map_err(|error| RequestError::Item { index: *index, error })?;
        if item.client != header.client || item.event_time != header.event_time {
            return Err(RequestError::ForeignItem { index: *index });
        }
        leaves.push((*index, bytes.as_slice()));
    }
    merkle::verify(&header.items_root, header.count as usize, &leaves, &write.proof)?;
    Ok(header)
}
