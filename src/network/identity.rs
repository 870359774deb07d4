//! A node's Ed25519 key is its libp2p identity: node ids and peer ids name the same thing.
//!
//! A peer id is the protobuf of the public key in an identity multihash, so it can be turned back.
//! Peers with keys of another kind are no nodes.

use libp2p::PeerId;
use libp2p::identity::{self, ed25519};

use crate::crypto::{SecretKey, VerifyingKey};
use crate::types::{NodeId, PublicKey};

/// The peer id of a node; `None` if its bytes are no Ed25519 key, so that nobody can have it.
pub fn peer_of(node: &NodeId) -> Option<PeerId> {
    VerifyingKey::parse(&PublicKey(node.0)).ok()?;
    let key = ed25519::PublicKey::try_from_bytes(node.as_bytes()).ok()?;
    Some(PeerId::from_public_key(&identity::PublicKey::from(key)))
}

/// The same without a look at the curve, which takes longer than all else that a request costs its
/// sender: of a node that nobody can be, it names a peer that is never connected.
pub(super) fn peer_named(node: &NodeId) -> Option<PeerId> {
    /// Identity multihash of 36 bytes: protobuf of key type 1 (Ed25519) and 32 bytes.
    const PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];
    PeerId::from_bytes(&[PREFIX.as_slice(), node.as_bytes()].concat()).ok()
}

/// The node that a peer is; `None` if its key is not Ed25519, or is one that we would not verify
/// signatures with.
pub fn node_of(peer: &PeerId) -> Option<NodeId> {
    let multihash = peer.as_ref();
    let key = identity::PublicKey::try_decode_protobuf(multihash.digest()).ok()?;
    if PeerId::from_public_key(&key) != *peer {
        return None;
    }
    let node = NodeId(key.try_into_ed25519().ok()?.to_bytes());
    VerifyingKey::parse(&PublicKey(node.0)).ok()?;
    Some(node)
}

/// The libp2p key pair of a node's key; `None` never happens for a key of 32 bytes.
pub(super) fn keypair_of(key: &SecretKey) -> Option<identity::Keypair> {
    identity::Keypair::ed25519_from_bytes(*key.seed()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_id_and_its_peer_id_lead_to_each_other() {
        let key = SecretKey::from_seed(&[3; 32]);
        let peer = peer_of(&key.node_id()).unwrap();
        assert_eq!(keypair_of(&key).unwrap().public().to_peer_id(), peer);
        assert_eq!(node_of(&peer), Some(key.node_id()));
        assert_eq!(peer_named(&key.node_id()), Some(peer));
    }

    #[test]
    fn a_key_that_nobody_can_have_is_no_peer() {
        assert_eq!(peer_of(&NodeId([0; 32])), None);
    }

    #[test]
    fn a_peer_without_an_ed25519_key_is_no_node() {
        assert_eq!(node_of(&PeerId::random()), None);
    }
}
