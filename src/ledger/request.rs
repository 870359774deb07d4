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

use std::sync::Arc;

use crate::codec::{self, CodecError};
use crate::crypto::{CryptoError, HashKind, VerifyingKey};
use crate::device::{self, HeaderError, Item, ItemError};
use crate::ledger::digest::{DigestError, HistoryDigest};
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
    /// A history digest is invalid.
    #[error(transparent)]
    Digest(#[from] DigestError),
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

/// A request with its canonical bytes and their digest, of which nothing else is known: who has seen it
/// verified under this digest need not verify it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UncheckedRequest {
    digest: Hash,
    bytes: Vec<u8>,
    request: Request,
}

impl UncheckedRequest {
    /// A request as it came.
    pub fn new(request: Request) -> Self {
        let bytes = codec::encode(&request);
        Self::of(request, bytes)
    }

    fn of(request: Request, bytes: Vec<u8>) -> Self {
        Self { digest: HashKind::Request.hash(&bytes), bytes, request }
    }

    /// The digest that it has once it is verified.
    pub const fn digest(&self) -> Hash {
        self.digest
    }

    /// The canonical bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The node that admitted it, as it says.
    pub fn node(&self) -> NodeId {
        self.request.node()
    }

    /// Checks it: [`VerifiedRequest::verify_with`].
    ///
    /// # Errors
    /// [`RequestError`]: the first rule that it breaks.
    pub fn verify_with(
        self,
        network: &NetworkId,
        parse: impl FnOnce(&PublicKey) -> Result<VerifyingKey, CryptoError>,
    ) -> Result<VerifiedRequest, RequestError> {
        let Self { digest, bytes, request } = self;
        check_size(bytes.len())?;
        let telemetry = match &request {
            Request::Write(write) => Some(check_write(network, write, parse)?),
            Request::Admin { operation, .. } => {
                operation.verify(network)?;
                None
            }
            Request::Digest(digest) => {
                digest.verify(network)?;
                None
            }
        };
        Ok(VerifiedRequest { digest, bytes, request, telemetry })
    }
}

/// What a verified request asks for.
#[derive(Debug, Clone, Copy)]
pub enum Asked<'a> {
    /// Items are to be written.
    Write(&'a Arc<WriteRequest>, &'a Telemetry),
    /// An admin's operation is to be executed.
    Admin(&'a AdminOperation),
    /// A history digest is to be written.
    Digest(&'a HistoryDigest),
}

impl VerifiedRequest {
    /// Checks a request that came from another node.
    ///
    /// # Errors
    /// [`RequestError`]: the first rule that it breaks.
    pub fn verify(network: &NetworkId, request: Request) -> Result<Self, RequestError> {
        Self::verify_with(network, request, VerifyingKey::parse_any_order)
    }

    /// The same where many requests have the same keys: `parse` is [`VerifyingKey::parse_any_order`],
    /// or remembers what that gave.
    ///
    /// # Errors
    /// [`RequestError`]: the first rule that it breaks.
    pub fn verify_with(
        network: &NetworkId,
        request: Request,
        parse: impl FnOnce(&PublicKey) -> Result<VerifyingKey, CryptoError>,
    ) -> Result<Self, RequestError> {
        UncheckedRequest::new(request).verify_with(network, parse)
    }

    /// Checks a request given as its canonical bytes.
    ///
    /// # Errors
    /// [`RequestError`]: the first rule that it breaks.
    pub fn verify_bytes(network: &NetworkId, bytes: &[u8]) -> Result<Self, RequestError> {
        let request = codec::decode::<MAX_REQUEST_BYTES, _>(bytes)?;
        UncheckedRequest::of(request, bytes.to_vec()).verify_with(network, VerifyingKey::parse_any_order)
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
        let request = Request::Write(Arc::new(WriteRequest {
            node,
            client_key: message.client_key,
            header: message.header_bytes.to_vec(),
            signature: message.signature,
            items,
            proof,
        }));
        let bytes = codec::encode(&request);
        check_size(bytes.len())?;
        let hash = device::Header::hash_of(message.header_bytes);
        let telemetry = Telemetry { header: message.header.clone(), hash };
        let UncheckedRequest { digest, bytes, request } = UncheckedRequest::of(request, bytes);
        Ok(Self { digest, bytes, request, telemetry: Some(telemetry) })
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
    pub fn node(&self) -> NodeId {
        self.request.node()
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
            (Request::Digest(digest), _) => Asked::Digest(digest),
            (Request::Write(_), None) => unreachable!("a verified write request has a header"),
        }
    }
}

const fn check_size(len: usize) -> Result<(), RequestError> {
    if len > MAX_REQUEST_BYTES { Err(RequestError::TooLarge { len }) } else { Ok(()) }
}

/// Cheap checks first; the signature, which costs most, last.
fn check_write(
    network: &NetworkId,
    write: &WriteRequest,
    parse: impl FnOnce(&PublicKey) -> Result<VerifyingKey, CryptoError>,
) -> Result<Telemetry, RequestError> {
    let header = check_items(write)?;
    // At execution the key must be the registered one, whose order was checked in full.
    let key = parse(&write.client_key)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::SecretKey;
    use crate::ledger::operation::{AdminAction, ClientSettings};
    use crate::ledger::tests::fixture::{Net, client, node};
    use crate::types::MessageSeq;
    use proptest::prelude::*;

    fn write_of(request: &VerifiedRequest) -> WriteRequest {
        match request.request() {
            Request::Write(write) => WriteRequest::clone(write),
            Request::Admin { .. } | Request::Digest(_) => panic!("not a write request"),
        }
    }

    #[test]
    fn what_a_node_admitted_is_what_the_others_verify() {
        let net = Net::new(4);
        let message = net.message(1, 1, 20, 7);
        for picked in [&[0_u32, 1, 2, 3, 4, 5, 6][..], &[0], &[6], &[1, 4, 5]] {
            let own = message.request(node(1), picked);
            assert_eq!(VerifiedRequest::verify(&net.network, own.request().clone()).as_ref(), Ok(&*own));
            assert_eq!(VerifiedRequest::verify_bytes(&net.network, own.bytes()).as_ref(), Ok(&*own));
            assert_eq!(write_of(&own).items.iter().map(|item| item.index).collect::<Vec<_>>(), picked);
        }
    }

    #[test]
    fn picks_that_no_message_has_are_refused() {
        let net = Net::new(4);
        let message = net.message(1, 1, 20, 3);
        let admitted = AdmittedMessage {
            header: &message.header,
            header_bytes: &message.header_bytes,
            signature: message.signature,
            client_key: message.key.public(),
            items: &message.items,
        };
        for bad in [&[][..], &[3], &[1, 0], &[1, 1], &[0, 1, 3], &[0, 2, 1], &[0, 1, 2, 3]] {
            let refused = VerifiedRequest::from_admitted(node(1), admitted, bad);
            assert!(matches!(refused, Err(RequestError::Merkle(_))), "{bad:?}");
        }
    }

    #[test]
    fn whatever_the_device_did_not_sign_is_refused() {
        let net = Net::new(4);
        let good = write_of(&net.message(1, 1, 20, 3).request(node(1), &[0, 2]));
        let other = write_of(&net.message(1, 1, 21, 3).request(node(1), &[0, 2]));
        let foreign = write_of(&net.message(2, 1, 20, 3).request(node(1), &[0, 2]));
        let verify =
            |write| VerifiedRequest::verify(&net.network, Request::Write(Arc::new(write))).map(|_| ());
        assert_eq!(verify(good.clone()), Ok(()));

        let bad_signature = Err(RequestError::Signature(CryptoError::BadSignature));
        assert_eq!(verify(WriteRequest { signature: other.signature, ..good.clone() }), bad_signature);
        assert_eq!(verify(WriteRequest { client_key: foreign.client_key, ..good.clone() }), bad_signature);
        assert_eq!(
            verify(WriteRequest { header: other.header, ..good.clone() }),
            Err(MerkleError::Root.into())
        );
        assert_eq!(
            verify(WriteRequest { items: other.items, ..good.clone() }),
            Err(MerkleError::Root.into())
        );
        assert_eq!(
            verify(WriteRequest { items: foreign.items, ..good.clone() }),
            Err(RequestError::ForeignItem { index: 0 })
        );
        assert_eq!(verify(WriteRequest { items: vec![], ..good.clone() }), Err(MerkleError::Count.into()));
        let mut surplus = good.clone();
        surplus.proof.push(Hash([0; 32]));
        assert!(matches!(verify(surplus), Err(RequestError::Merkle(MerkleError::Length { .. }))));
        let mut reordered = good.clone();
        reordered.items.reverse();
        assert_eq!(verify(reordered), Err(MerkleError::Index.into()));
        let mut twice = good.clone();
        twice.items[1] = twice.items[0].clone();
        assert_eq!(verify(twice), Err(MerkleError::Index.into()));
        let mut no_item = good.clone();
        no_item.items[0].bytes.pop();
        let error = ItemError::Malformed;
        assert_eq!(verify(no_item), Err(RequestError::Item { index: 0, error }));
        let mut no_header = good;
        no_header.header.pop();
        assert_eq!(verify(no_header), Err(HeaderError::Malformed.into()));
    }

    #[test]
    fn a_request_for_another_network_is_refused() {
        let net = Net::new(4);
        let request = net.message(1, 1, 20, 1).request(node(1), &[0]).request().clone();
        let refused = VerifiedRequest::verify(&NetworkId([9; 32]), request).map(|_| ());
        assert_eq!(refused, Err(RequestError::Signature(CryptoError::BadSignature)));
        let refused = VerifiedRequest::verify(&NetworkId([9; 32]), net.register(1, 1).request().clone());
        assert_eq!(refused, Err(RequestError::Admin(AdminOperationError::WrongNetwork)));
    }

    #[test]
    fn a_request_above_the_limit_is_refused() {
        let net = Net::new(4);
        let mut write = write_of(&net.message(1, 1, 20, 1).request(node(1), &[0]));
        write.items[0].bytes = vec![0; MAX_REQUEST_BYTES];
        let request = Request::Write(Arc::new(write));
        let len = codec::encode(&request).len();
        assert_eq!(VerifiedRequest::verify(&net.network, request), Err(RequestError::TooLarge { len }));
    }

    #[test]
    fn an_admins_operation_is_bound_to_its_content() {
        let net = Net::new(4);
        let verify = |operation: AdminOperation| operation.verify(&net.network);
        let action = |reason: &str, last_seq| AdminAction::RevokeClient {
            client: client(1),
            last_seq: MessageSeq(last_seq),
            reason: reason.into(),
        };
        let sign = |action| AdminOperation::sign(net.network, &net.admin, 1, action);
        let good = sign(action("stolen", 5));
        assert_eq!(verify(good.clone()), Ok(()));

        let bad_signature = Err(AdminOperationError::Signature(CryptoError::BadSignature));
        assert_eq!(verify(AdminOperation { sequence: 2, ..good.clone() }), bad_signature);
        assert_eq!(verify(AdminOperation { action: action("stolen", 6), ..good.clone() }), bad_signature);
        let other = SecretKey::from_seed(&[98; 32]).public();
        assert_eq!(verify(AdminOperation { admin: other, ..good }), bad_signature);
        assert_eq!(verify(sign(action(&"x".repeat(257), 5))), Err(AdminOperationError::Reason));
        assert_eq!(verify(sign(action("", MessageSeq::MAX.0 + 1))), Err(AdminOperationError::LastSeq));
        let (client, settings) = (client(1), ClientSettings::default());
        let weak = AdminAction::RegisterClient { client, key: PublicKey([0; 32]), settings };
        assert_eq!(verify(sign(weak)), Err(AdminOperationError::ClientKey));
    }

    #[test]
    fn an_admins_operation_survives_json() {
        let net = Net::new(4);
        for request in [net.register(1, 1), net.revoke(2, 1, 7)] {
            let Asked::Admin(operation) = request.asked() else { panic!("not an admin's operation") };
            let json = serde_json::to_string(operation).unwrap();
            assert_eq!(serde_json::from_str::<AdminOperation>(&json).unwrap(), *operation);
        }
    }

    proptest! {
        #[test]
        fn any_altered_byte_is_another_request_or_none(at in any::<prop::sample::Index>(), flip in 1_u8..) {
            let net = Net::new(1);
            let good = net.message(1, 1, 20, 5).request(node(1), &[1, 3]);
            let mut bytes = good.bytes().to_vec();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            match VerifiedRequest::verify_bytes(&net.network, &bytes) {
                Err(_) => {}
                // Only the name of the admitting node is not the device's to sign.
                Ok(altered) => {
                    prop_assert!((4..36).contains(&at), "byte {at} was altered unseen");
                    prop_assert_ne!(altered.digest(), good.digest());
                }
            }
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = VerifiedRequest::verify_bytes(&NetworkId([1; 32]), &bytes);
        }
    }
}
