//! Keys, signatures and hashes, each with a domain.
//!
//! - Ed25519 (RFC 8032), verified strictly: small-order and non-canonical points are refused, so
//!   all who check a signature agree.
//! - What nodes and admins sign is `"ledgermq" ‖ len(kind) ‖ kind ‖ network id ‖ content`: a
//!   signature of one kind or network is never valid for another. What devices sign is COSE and
//!   lives in [`crate::device`].
//! - BLAKE3 in its key-derivation mode, with one context string for each kind of content.

use std::fmt;
use std::sync::LazyLock;

use curve25519_dalek::constants::EIGHT_TORSION;
use ed25519_dalek::{Signer as _, Verifier as _};

use crate::types::{Hash, NetworkId, NodeId, PublicKey, Signature};

/// Why a key or signature was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CryptoError {
    /// Not a point of the curve, not in canonical form, or not of prime order.
    #[error("not a canonical Ed25519 public key of prime order")]
    BadKey,
    /// The signature is not valid for key and content.
    #[error("the signature does not verify")]
    BadSignature,
    /// The operating system gave no random bytes.
    #[error("the operating system gave no random bytes")]
    NoRandomness,
}

/// What a signature of a node or an admin is for: part of the bytes that are signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignatureKind {
    /// A PBFT PRE-PREPARE.
    PrePrepare,
    /// A PBFT PREPARE.
    Prepare,
    /// A PBFT COMMIT.
    Commit,
    /// A PBFT CHECKPOINT; a quorum of these is a block's certificate.
    Checkpoint,
    /// A PBFT VIEW-CHANGE.
    ViewChange,
    /// A PBFT NEW-VIEW.
    NewView,
    /// The word of a replica that lost its log on when it votes again.
    Recovery,
    /// A bundle of requests that a node hands to the replicas.
    Bundle,
    /// A node's announcement of its key and addresses.
    Announcement,
    /// An admin's operation.
    AdminOperation,
    /// What a node says about the rows of its history.
    HistoryDigest,
}

impl SignatureKind {
    /// The text that stands in the signed bytes.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PrePrepare => "pre-prepare",
            Self::Prepare => "prepare",
            Self::Commit => "commit",
            Self::Checkpoint => "checkpoint",
            Self::ViewChange => "view-change",
            Self::NewView => "new-view",
            Self::Recovery => "recovery",
            Self::Bundle => "bundle",
            Self::Announcement => "announcement",
            Self::AdminOperation => "admin-operation",
            Self::HistoryDigest => "history-digest",
        }
    }
}

/// What a hash is of: picks BLAKE3's key-derivation context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HashKind {
    /// A block header; its hash is the block's.
    BlockHeader,
    /// A request (PBFT's request digest).
    Request,
    /// A batch of requests as proposed.
    Batch,
    /// A VIEW-CHANGE, as a NEW-VIEW names it.
    ViewChange,
    /// A replica set.
    ReplicaSet,
    /// An entry of the ledger's state, before it goes into the lattice hash.
    StateEntry,
    /// The lattice hash's sum, and with it the state digest.
    StateDigest,
    /// A piece of evidence, for its id.
    Evidence,
    /// A gossip message, for its id.
    Gossip,
    /// A row of a node's history.
    HistoryRow,
    /// A history digest, as the next one names it.
    HistoryDigest,
}

impl HashKind {
    const fn context(self) -> &'static str {
        match self {
            Self::BlockHeader => "ledgermq v1 block header",
            Self::Request => "ledgermq v1 request",
            Self::Batch => "ledgermq v1 batch",
            Self::ViewChange => "ledgermq v1 view change",
            Self::ReplicaSet => "ledgermq v1 replica set",
            Self::StateEntry => "ledgermq v1 state entry",
            Self::StateDigest => "ledgermq v1 state digest",
            Self::Evidence => "ledgermq v1 evidence",
            Self::Gossip => "ledgermq v1 gossip",
            Self::HistoryRow => "ledgermq v1 history row",
            Self::HistoryDigest => "ledgermq v1 history digest",
        }
    }

    /// A hasher for content of this kind.
    pub fn hasher(self) -> blake3::Hasher {
        blake3::Hasher::new_derive_key(self.context())
    }

    /// The hash of `content`, of this kind.
    pub fn hash(self, content: &[u8]) -> Hash {
        Hash(*self.hasher().update(content).finalize().as_bytes())
    }
}

/// The plain BLAKE3 hash, as PROTOCOL.md uses it (header, body, network id).
pub fn blake3_plain(content: &[u8]) -> Hash {
    Hash(*blake3::hash(content).as_bytes())
}

/// `N` bytes from the operating system.
///
/// # Errors
/// [`CryptoError::NoRandomness`].
pub fn random_bytes<const N: usize>() -> Result<[u8; N], CryptoError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| CryptoError::NoRandomness)?;
    Ok(bytes)
}

/// An Ed25519 secret key; wiped from memory when dropped, never printed.
#[derive(Clone)]
pub struct SecretKey(ed25519_dalek::SigningKey);

impl SecretKey {
    /// A fresh key.
    ///
    /// # Errors
    /// [`CryptoError::NoRandomness`].
    pub fn generate() -> Result<Self, CryptoError> {
        Ok(Self::from_seed(&random_bytes()?))
    }

    /// The key of a 32-byte seed (RFC 8032's private key).
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(ed25519_dalek::SigningKey::from_bytes(seed))
    }

    /// The seed; whoever has it has the key.
    pub fn seed(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    /// The public half, as a node's id.
    pub fn node_id(&self) -> NodeId {
        NodeId(self.public().0)
    }

    /// Signs `content` in the domain of `kind` and `network`.
    pub fn sign(&self, kind: SignatureKind, network: &NetworkId, content: &[u8]) -> Signature {
        self.sign_raw(&signed_bytes(kind, network, content))
    }

    /// Signs bytes that carry their own domain (COSE's `Sig_structure`).
    pub fn sign_raw(&self, bytes: &[u8]) -> Signature {
        Signature(self.0.sign(bytes).to_bytes())
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey(of {})", self.public().short())
    }
}

/// A public key that was parsed and found good; parse once, verify often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifyingKey(ed25519_dalek::VerifyingKey);

impl VerifyingKey {
    /// Parses a key: a canonical encoding of a point of prime order (PROTOCOL.md section 1).
    ///
    /// # Errors
    /// [`CryptoError::BadKey`].
    pub fn parse(key: &PublicKey) -> Result<Self, CryptoError> {
        let parsed = ed25519_dalek::VerifyingKey::from_bytes(&key.0).map_err(|_| CryptoError::BadKey)?;
        let point = parsed.to_edwards();
        let canonical = point.compress().to_bytes() == key.0;
        if !canonical || parsed.is_weak() || !point.is_torsion_free() {
            return Err(CryptoError::BadKey);
        }
        Ok(Self(parsed))
    }

    /// Parses a key without checking that its order is prime, which costs as much as a signature.
    /// For a key that must afterwards equal one that [`VerifyingKey::parse`] took: verification
    /// refuses keys of small order, and all who verify agree.
    ///
    /// # Errors
    /// [`CryptoError::BadKey`].
    pub fn parse_any_order(key: &PublicKey) -> Result<Self, CryptoError> {
        ed25519_dalek::VerifyingKey::from_bytes(&key.0).map(Self).map_err(|_| CryptoError::BadKey)
    }

    /// The key's bytes.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.to_bytes())
    }

    /// Verifies a signature made with [`SecretKey::sign`].
    ///
    /// # Errors
    /// [`CryptoError::BadSignature`].
    pub fn verify(
        &self,
        kind: SignatureKind,
        network: &NetworkId,
        content: &[u8],
        signature: &Signature,
    ) -> Result<(), CryptoError> {
        self.verify_raw(&signed_bytes(kind, network, content), signature)
    }

    /// Verifies a signature over bytes that carry their own domain.
    ///
    /// # Errors
    /// [`CryptoError::BadSignature`].
    pub fn verify_raw(&self, bytes: &[u8], signature: &Signature) -> Result<(), CryptoError> {
        // The verdict of `verify_strict`, at four fifths of its price: that decompresses R to see
        // whether its order is small. Plain verification compares R's bytes with the canonical encoding
        // of the point that it must be, so of those that pass only eight encodings are of small order.
        let signature = ed25519_dalek::Signature::from_bytes(&signature.0);
        if is_small_order_encoding(signature.r_bytes()) || self.0.is_weak() {
            return Err(CryptoError::BadSignature);
        }
        self.0.verify(bytes, &signature).map_err(|_| CryptoError::BadSignature)
    }
}

/// Whether these are the canonical bytes of a point whose order is 8 or a divisor of it.
fn is_small_order_encoding(bytes: &[u8; 32]) -> bool {
    static SMALL: LazyLock<[[u8; 32]; 8]> =
        LazyLock::new(|| EIGHT_TORSION.map(|point| point.compress().to_bytes()));
    SMALL.contains(bytes)
}

fn signed_bytes(kind: SignatureKind, network: &NetworkId, content: &[u8]) -> Vec<u8> {
    let kind = kind.as_str().as_bytes();
    let mut bytes = Vec::with_capacity(8 + 1 + kind.len() + NetworkId::LEN + content.len());
    bytes.extend_from_slice(b"ledgermq");
    bytes.extend(u8::try_from(kind.len()));
    bytes.extend_from_slice(kind);
    bytes.extend_from_slice(network.as_bytes());
    bytes.extend_from_slice(content);
    bytes
}

#[cfg(test)]
mod strict_tests;
#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const NETWORK: NetworkId = NetworkId([1; 32]);

    #[test]
    fn a_signature_is_bound_to_kind_network_content_and_key() {
        let key = SecretKey::from_seed(&[7; 32]);
        let verifying = VerifyingKey::parse(&key.public()).unwrap();
        let signature = key.sign(SignatureKind::Commit, &NETWORK, b"content");
        let check = |kind, network, content: &[u8]| verifying.verify(kind, network, content, &signature);
        assert_eq!(check(SignatureKind::Commit, &NETWORK, b"content"), Ok(()));
        let bad = Err(CryptoError::BadSignature);
        assert_eq!(check(SignatureKind::Prepare, &NETWORK, b"content"), bad);
        assert_eq!(check(SignatureKind::Commit, &NetworkId([2; 32]), b"content"), bad);
        assert_eq!(check(SignatureKind::Commit, &NETWORK, b"other"), bad);
        let other = VerifyingKey::parse(&SecretKey::from_seed(&[8; 32]).public()).unwrap();
        assert_eq!(other.verify(SignatureKind::Commit, &NETWORK, b"content", &signature), bad);
    }

    #[test]
    fn weak_and_non_canonical_keys_are_refused() {
        // The identity, a point of order 2, and the identity with y = p + 1 (not canonical).
        let mut identity = [0; 32];
        identity[0] = 1;
        let mut order_two = [0xff; 32];
        order_two[0] = 0xec;
        order_two[31] = 0x7f;
        let mut not_canonical = [0xff; 32];
        not_canonical[0] = 0xee;
        not_canonical[31] = 0x7f;
        for bytes in [identity, order_two, not_canonical] {
            assert_eq!(VerifyingKey::parse(&PublicKey(bytes)), Err(CryptoError::BadKey));
        }
    }

    #[test]
    fn a_weak_key_verifies_nothing_even_if_its_order_was_not_checked() {
        let mut identity = [0; 32];
        identity[0] = 1;
        let key = VerifyingKey::parse_any_order(&PublicKey(identity)).unwrap();
        // R = identity and s = 0 fulfil the equation for every content.
        let mut signature = [0; 64];
        signature[0] = 1;
        assert_eq!(key.verify_raw(b"content", &Signature(signature)), Err(CryptoError::BadSignature));
        assert_eq!(VerifyingKey::parse_any_order(&PublicKey([2; 32])), Err(CryptoError::BadKey));
    }

    /// The verdicts of this module and of dalek's `verify_strict`, which must agree.
    fn both(key: &VerifyingKey, content: &[u8], signature: [u8; 64]) -> bool {
        let ours = key.verify_raw(content, &Signature(signature)).is_ok();
        let strict = key.0.verify_strict(content, &ed25519_dalek::Signature::from_bytes(&signature)).is_ok();
        assert_eq!(ours, strict, "signature {}", hex::encode(signature));
        ours
    }

    #[test]
    fn every_r_of_small_order_is_refused_also_where_the_equation_holds() {
        // A key with a torsion component: R of small order fulfils the equation for some contents.
        let secret = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
        for torsion in EIGHT_TORSION {
            for r in EIGHT_TORSION {
                let mixed = secret.verifying_key().to_edwards() + torsion;
                let keys = [mixed.compress().to_bytes(), torsion.compress().to_bytes()];
                for key in keys {
                    let key = VerifyingKey::parse_any_order(&PublicKey(key)).unwrap();
                    let mut signature = [0; 64];
                    signature[..32].copy_from_slice(&r.compress().to_bytes());
                    for content in 0..16_u8 {
                        assert!(!both(&key, &[content], signature));
                    }
                }
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn the_verdict_is_that_of_strict_verification(
            seed: [u8; 32], content: Vec<u8>, at in 0..64_usize, flip: u8, r: [u8; 32], torsion in 0..8_usize,
        ) {
            let secret = SecretKey::from_seed(&seed);
            let key = VerifyingKey::parse(&secret.public()).unwrap();
            let good = secret.sign_raw(&content).0;
            assert!(both(&key, &content, good));
            let mut altered = good;
            altered[at] ^= flip;
            assert_eq!(both(&key, &content, altered), flip == 0);
            let mut foreign = good;
            foreign[..32].copy_from_slice(&r);
            both(&key, &content, foreign);
            let mixed = (key.0.to_edwards() + EIGHT_TORSION[torsion]).compress().to_bytes();
            let mixed = VerifyingKey::parse_any_order(&PublicKey(mixed)).unwrap();
            both(&mixed, &content, good);
        }
    }

    #[test]
    fn a_key_with_a_torsion_component_is_refused() {
        let key = ed25519_dalek::SigningKey::from_bytes(&[7; 32]).verifying_key().to_edwards();
        let torsion = curve25519_dalek::constants::EIGHT_TORSION[1];
        let mixed = (key + torsion).compress().to_bytes();
        assert_eq!(VerifyingKey::parse(&PublicKey(mixed)), Err(CryptoError::BadKey));
    }

    #[test]
    fn hashes_of_different_kinds_differ() {
        assert_ne!(HashKind::Request.hash(b"x"), HashKind::Batch.hash(b"x"));
    }
}
