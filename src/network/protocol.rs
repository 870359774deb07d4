//! What nodes ask each other on direct streams, and the answers.
//!
//! Two protocols, so that neither starves the other: `bundle` (large request, short answer) and
//! `fetch` (short request, large answer). On the stream a message is its length (four bytes,
//! big-endian) and its canonical bytes; what is longer than its limit is refused before it is read.

use std::sync::Arc;

use bincode::de::Decoder;
use bincode::enc::Encoder;
use bincode::enc::write::Writer as _;
use bincode::error::{DecodeError, EncodeError};
use bincode::{Decode, Encode};

use crate::codec::{self, CodecError};
use crate::crypto::{CryptoError, SecretKey, SignatureKind, VerifyingKey};
use crate::ledger::{Block, Certificate, Request, UncheckedRequest, VerifiedRequest};
use crate::pbft::{Batch, Signed};
use crate::types::{Hash, Height, NetworkId, NodeId, PublicKey, Signature, View};

/// The largest bundle and the largest answer: one request of the maximum size (8 MiB), or one block
/// of a full batch, with room to spare.
pub const MAX_LARGE_BYTES: usize = 12 * 1024 * 1024;

/// The largest fetch request: [`MAX_FETCH_DIGESTS`] digests and some.
pub const MAX_SMALL_BYTES: usize = 64 * 1024;

/// The most requests of one bundle: few milliseconds of signature checks.
pub const MAX_BUNDLE_REQUESTS: usize = 512;

/// The most requests that one fetch may name: two full batches.
pub const MAX_FETCH_DIGESTS: usize = 1024;

/// The most blocks that one fetch may ask for.
pub const MAX_FETCH_BLOCKS: u32 = 256;

/// A node asks another.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum PeerRequest {
    /// Take these requests into your pool: the sender admitted them. At most [`MAX_BUNDLE_REQUESTS`].
    Bundle(Arc<SignedBundle>),
    /// Give me the requests with these digests; at most [`MAX_FETCH_DIGESTS`].
    FetchRequests(Vec<Hash>),
    /// Give me the proposed batches with these digests; at most [`MAX_FETCH_DIGESTS`].
    FetchBatches(Vec<Hash>),
    /// Give me the NEW-VIEW of the view that you are in, if it is this one or a later one, and the
    /// VIEW-CHANGEs that it names.
    FetchView(View),
    /// Give me certified blocks, ascending and without gaps.
    FetchBlocks {
        /// The first height wanted.
        from: Height,
        /// How many at most; no more than [`MAX_FETCH_BLOCKS`].
        max: u32,
    },
    /// You are the primary: these requests, of whichever node, wait here for too long. If they were
    /// executed, the sender does not know it.
    Forward(Arc<SignedBundle>),
}

/// The answer to a [`PeerRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum PeerResponse {
    /// The bundle was taken.
    Accepted,
    /// Not now: ask again later, or somebody else.
    Busy,
    /// Those of the requests asked for that the node has and that fit, in any order.
    Requests(Vec<Request>),
    /// Those of the batches asked for that the node has and that fit, in any order.
    Batches(Vec<Batch>),
    /// The NEW-VIEW first; empty if the node is not there.
    View(Vec<Signed>),
    /// Those of the blocks asked for that the node has and that fit, ascending from the height
    /// asked for.
    Blocks {
        /// The height of the last block that the node has with its certificate.
        head: Height,
        /// The blocks; may be fewer than were asked for, or none.
        blocks: Vec<(Block, Certificate)>,
    },
}

impl PeerRequest {
    /// Whether a request keeps the limits that the protocol names; what does not is garbage.
    pub(super) fn is_within_limits(&self) -> bool {
        match self {
            Self::Bundle(bundle) | Self::Forward(bundle) => {
                (1..=MAX_BUNDLE_REQUESTS).contains(&bundle.requests.len())
            }
            Self::FetchView(_) => true,
            Self::FetchRequests(digests) | Self::FetchBatches(digests) => {
                (1..=MAX_FETCH_DIGESTS).contains(&digests.len())
            }
            Self::FetchBlocks { max, .. } => (1..=MAX_FETCH_BLOCKS).contains(max),
        }
    }

    /// The kind of answer that it wants.
    pub(super) const fn wants(&self) -> Answers {
        match self {
            Self::Bundle(_) | Self::Forward(_) => Answers::Accepted,
            Self::FetchRequests(_) => Answers::Requests,
            Self::FetchBatches(_) => Answers::Batches,
            Self::FetchView(_) => Answers::View,
            Self::FetchBlocks { .. } => Answers::Blocks,
        }
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode::<MAX_LARGE_BYTES, Self>(bytes)
    }
}

impl PeerResponse {
    /// As many of `requests` as one answer can carry.
    pub fn requests(requests: impl IntoIterator<Item = Request>) -> Self {
        Self::Requests(within_limit(requests))
    }

    /// As many of `batches` as one answer can carry.
    pub fn batches(batches: impl IntoIterator<Item = Batch>) -> Self {
        Self::Batches(within_limit(batches))
    }

    /// A view's proof; those of 20 replicas fit.
    pub fn view(messages: impl IntoIterator<Item = Signed>) -> Self {
        Self::View(within_limit(messages))
    }

    /// As many of `blocks`, from the first on, as one answer can carry, of a node that has them up to `head`.
    pub fn blocks(head: Height, blocks: impl IntoIterator<Item = (Block, Certificate)>) -> Self {
        Self::Blocks { head, blocks: within_limit(blocks) }
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode::<MAX_LARGE_BYTES, Self>(bytes)
    }
}

/// The kinds of answers besides `Busy`, which can answer everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answers {
    Accepted,
    Requests,
    Batches,
    View,
    Blocks,
}

impl Answers {
    /// Whether `response` is of this kind.
    pub(super) const fn is(self, response: &PeerResponse) -> bool {
        matches!(
            (self, response),
            (Self::Accepted, PeerResponse::Accepted)
                | (Self::Requests, PeerResponse::Requests(_))
                | (Self::Batches, PeerResponse::Batches(_))
                | (Self::View, PeerResponse::View(_))
                | (Self::Blocks, PeerResponse::Blocks { .. })
        )
    }
}

/// Takes items while their bytes fit into one message.
fn within_limit<T: Encode>(items: impl IntoIterator<Item = T>) -> Vec<T> {
    // The variant's tag, a height with blocks, and the length of the list come first.
    const OVERHEAD: usize = 4 + 8 + 8;
    let mut used = OVERHEAD;
    items
        .into_iter()
        .take_while(|item| {
            used += codec::encoded_len(item);
            used <= MAX_LARGE_BYTES
        })
        .collect()
}

/// Requests that a node hands to the replicas, signed by it.
///
/// The signature covers the node and the digests of the requests, so that two bundles with
/// different requests for one (client, seq) are evidence without their bodies.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct SignedBundle {
    /// The node that hands them over.
    pub node: NodeId,
    /// The requests: 1 to [`MAX_BUNDLE_REQUESTS`].
    pub requests: Vec<Bundled>,
    /// Its signature ([`SignatureKind::Bundle`]) over the canonical bytes of `(node, digests)`.
    pub signature: Signature,
}

impl SignedBundle {
    /// Bytes of a bundle besides its requests: the tag, node, length and signature.
    pub const OVERHEAD_BYTES: usize = 4 + NodeId::LEN + 8 + Signature::LEN;

    /// Signs `requests` as the node that has `key`. The canonical bytes of the requests and
    /// [`Self::OVERHEAD_BYTES`] together must not exceed [`MAX_LARGE_BYTES`], or the bundle cannot
    /// be sent.
    pub fn sign(key: &SecretKey, network: &NetworkId, requests: Vec<Bundled>) -> Self {
        let node = key.node_id();
        let content = signed_content(&node, &requests);
        let signature = key.sign(SignatureKind::Bundle, network, &content);
        Self { node, requests, signature }
    }

    /// Checks the node's signature. The requests' own signatures are checked by whoever takes them.
    ///
    /// # Errors
    /// [`CryptoError`] if the node's key is no key or the signature is not valid.
    pub fn verify(&self, network: &NetworkId) -> Result<(), CryptoError> {
        self.verify_with(network, &VerifyingKey::parse(&PublicKey::from(self.node))?)
    }

    /// The same with the node's key, which a replica has at hand: to parse it takes half as long as to
    /// check the signature.
    ///
    /// # Errors
    /// [`CryptoError::BadSignature`], also if the key is another node's.
    pub fn verify_with(&self, network: &NetworkId, key: &VerifyingKey) -> Result<(), CryptoError> {
        if key.public() != PublicKey::from(self.node) {
            return Err(CryptoError::BadSignature);
        }
        let content = signed_content(&self.node, &self.requests);
        key.verify(SignatureKind::Bundle, network, &content, &self.signature)
    }
}

fn signed_content(node: &NodeId, requests: &[Bundled]) -> Vec<u8> {
    let digests: Vec<Hash> = requests.iter().map(Bundled::digest).collect();
    codec::encode(&(node, digests))
}

/// A request in a bundle, with its canonical bytes and their digest: whoever sends it has both, and
/// whoever receives it needs both, so each makes them once. On the wire it is the request.
#[derive(Debug, Clone)]
pub enum Bundled {
    /// To be sent.
    Known(Arc<VerifiedRequest>),
    /// As it came.
    Received(Box<UncheckedRequest>),
}

impl Bundled {
    /// The digest of the request.
    pub fn digest(&self) -> Hash {
        match self {
            Self::Known(request) => request.digest(),
            Self::Received(request) => request.digest(),
        }
    }

    /// Its canonical bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Known(request) => request.bytes(),
            Self::Received(request) => request.bytes(),
        }
    }

    /// The request, to be verified.
    pub fn into_unchecked(self) -> UncheckedRequest {
        match self {
            Self::Known(request) => UncheckedRequest::new(request.request().clone()),
            Self::Received(request) => *request,
        }
    }
}

impl PartialEq for Bundled {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

impl Eq for Bundled {}

impl Encode for Bundled {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        encoder.writer().write(self.bytes())
    }
}

impl<Context> Decode<Context> for Bundled {
    fn decode<D: Decoder<Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
        Ok(Self::Received(Box::new(UncheckedRequest::new(Request::decode(decoder)?))))
    }
}

bincode::impl_borrow_decode!(Bundled);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::crypto::HashKind;
    use crate::ledger::{WriteRequest, WrittenItem};

    const NETWORK: NetworkId = NetworkId([1; 32]);

    fn bundled(seed: u8, bytes: usize) -> Bundled {
        Bundled::Received(Box::new(UncheckedRequest::new(request(seed, bytes))))
    }

    fn request(seed: u8, bytes: usize) -> Request {
        Request::Write(Arc::new(WriteRequest {
            node: NodeId([seed; 32]),
            client_key: PublicKey([seed; 32]),
            header: vec![seed; 90],
            signature: Signature([seed; 64]),
            items: vec![WrittenItem { index: 0, bytes: vec![seed; bytes] }],
            proof: Vec::new(),
        }))
    }

    #[test]
    fn a_bundle_is_bound_to_its_node_its_network_and_each_request() {
        let key = SecretKey::from_seed(&[7; 32]);
        let bundle = SignedBundle::sign(&key, &NETWORK, vec![bundled(1, 10), bundled(2, 10)]);
        assert_eq!(bundle.verify(&NETWORK), Ok(()));
        let [own, another] =
            [7, 8].map(|seed| VerifyingKey::parse(&SecretKey::from_seed(&[seed; 32]).public()));
        assert_eq!(bundle.verify_with(&NETWORK, &own.unwrap()), Ok(()));
        assert_eq!(bundle.verify_with(&NETWORK, &another.unwrap()), Err(CryptoError::BadSignature));
        assert_eq!(bundle.verify(&NetworkId([2; 32])), Err(CryptoError::BadSignature));
        let mut other_node = bundle.clone();
        other_node.node = SecretKey::from_seed(&[8; 32]).node_id();
        let mut swapped = bundle.clone();
        swapped.requests.reverse();
        let mut fewer = bundle.clone();
        fewer.requests.pop();
        let mut changed = bundle;
        changed.requests[0] = bundled(3, 10);
        for bad in [other_node, swapped, fewer, changed] {
            assert_eq!(bad.verify(&NETWORK), Err(CryptoError::BadSignature));
        }
    }

    #[test]
    fn a_bundled_request_is_the_request_on_the_wire() {
        let bytes = codec::encode(&vec![bundled(1, 10), bundled(2, 500)]);
        assert_eq!(bytes, codec::encode(&vec![request(1, 10), request(2, 500)]));
        let read: Vec<Bundled> = codec::decode::<4096, _>(&bytes).unwrap();
        assert_eq!(read, [bundled(1, 10), bundled(2, 500)]);
        assert_eq!(read[0].digest(), HashKind::Request.hash(&codec::encode(&request(1, 10))));
        let Err(CodecError::Malformed(_)) = codec::decode::<4096, Vec<Bundled>>(&bytes[..bytes.len() - 1])
        else {
            panic!("a byte is missing")
        };
    }

    #[test]
    fn a_bundle_of_a_node_whose_id_is_no_key_is_refused() {
        let key = SecretKey::from_seed(&[7; 32]);
        let mut bundle = SignedBundle::sign(&key, &NETWORK, vec![bundled(1, 10)]);
        bundle.node = NodeId([0; 32]);
        assert_eq!(bundle.verify(&NETWORK), Err(CryptoError::BadKey));
    }

    #[test]
    fn the_overhead_of_a_bundle_is_what_its_constant_says() {
        let one = bundled(1, 1000);
        let len = codec::encode(&request(1, 1000)).len();
        let bundle = SignedBundle::sign(&SecretKey::from_seed(&[7; 32]), &NETWORK, vec![one]);
        let sent = codec::encode(&PeerRequest::Bundle(bundle.into()));
        assert_eq!(sent.len(), SignedBundle::OVERHEAD_BYTES + len);
    }

    #[test]
    fn a_bundle_has_at_least_one_request_and_no_more_than_the_limit() {
        let key = SecretKey::from_seed(&[7; 32]);
        let within = [0, 1, MAX_BUNDLE_REQUESTS, MAX_BUNDLE_REQUESTS + 1].map(|count| {
            let bundle = Arc::new(SignedBundle::sign(&key, &NETWORK, vec![bundled(1, 1); count]));
            [PeerRequest::Bundle(Arc::clone(&bundle)), PeerRequest::Forward(bundle)]
                .map(|request| request.is_within_limits())
        });
        assert_eq!(within, [[false; 2], [true; 2], [true; 2], [false; 2]]);
    }

    #[test]
    fn an_answer_is_filled_up_to_the_limit_and_not_beyond() {
        let answer = PeerResponse::requests((0..20).map(|seed| request(seed, 1024 * 1024)));
        assert!(codec::encode(&answer).len() <= MAX_LARGE_BYTES);
        assert!(matches!(answer, PeerResponse::Requests(requests) if requests.len() == 11));
        let too_large = PeerResponse::requests([request(1, MAX_LARGE_BYTES)]);
        assert_eq!(too_large, PeerResponse::Requests(Vec::new()));
    }

    proptest! {
        #[test]
        fn what_was_encoded_decodes_and_one_byte_less_or_more_does_not(
            digests in prop::collection::vec(any::<[u8; 32]>(), 1..50)
        ) {
            let request = PeerRequest::FetchRequests(digests.into_iter().map(Hash).collect());
            let bytes = codec::encode(&request);
            prop_assert_eq!(PeerRequest::decode(&bytes), Ok(request));
            prop_assert!(PeerRequest::decode(&bytes[..bytes.len() - 1]).is_err());
            prop_assert!(PeerRequest::decode(&[&bytes[..], &[0]].concat()).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let _ = PeerRequest::decode(&bytes);
            let _ = PeerResponse::decode(&bytes);
        }
    }
}
