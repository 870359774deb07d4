//! The 16-byte names of key transport: nonces, and the ids of KEM keys and payload keys.
//!
//! Both kinds of key id begin with the first eight bytes of the node's id, so that several nodes on
//! one external broker can tell whose a message is without an answer from the others.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::base64url;
use crate::types::NodeId;

macro_rules! bytes16_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// The bytes.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                base64url::serialize(&self.0, serializer)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                base64url::deserialize(deserializer).map(Self)
            }
        }
    };
}

bytes16_newtype!(
    /// Fresh bytes that a client sends along and looks for in the answer.
    Nonce);
bytes16_newtype!(
    /// Names a node's KEM key: node id[0..8] ‖ 8 random bytes.
    KemKid);
bytes16_newtype!(
    /// Names a payload key: node id[0..8] ‖ BLAKE3(enc)[0..8]. Unique within a client only, so look
    /// it up together with the client id.
    PayloadKid);

impl KemKid {
    /// The name of a KEM key of `node`, from 8 random bytes.
    pub fn new(node: &NodeId, random: [u8; 8]) -> Self {
        Self(joined(node, &random))
    }

    /// Whether it begins as the names of `node`'s keys do.
    pub fn is_of(&self, node: &NodeId) -> bool {
        self.0[..8] == node.0[..8]
    }
}

impl PayloadKid {
    /// The name of the payload key that came to `node` under HPKE's encapsulated key `enc`.
    pub fn new(node: &NodeId, enc: &[u8; 32]) -> Self {
        Self(joined(node, blake3::hash(enc).as_bytes()))
    }

    /// Whether it begins as the names of `node`'s keys do.
    pub fn is_of(&self, node: &NodeId) -> bool {
        self.0[..8] == node.0[..8]
    }
}

/// The first 8 bytes of the node's id, then the first 8 of `tail`.
fn joined(node: &NodeId, tail: &[u8]) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().zip(node.0[..8].iter().chain(tail)) {
        *to = *from;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_say_whose_they_are() {
        let (node, other) = (NodeId([7; 32]), NodeId([8; 32]));
        let kem = KemKid::new(&node, [1; 8]);
        assert!(kem.is_of(&node) && !kem.is_of(&other));
        assert_eq!(kem.0[8..], [1; 8]);
        let payload = PayloadKid::new(&node, &[9; 32]);
        assert!(payload.is_of(&node) && !payload.is_of(&other));
        assert_eq!(payload.0[8..], blake3::hash(&[9; 32]).as_bytes()[..8]);
    }

    #[test]
    fn nonces_are_base64url_in_json() {
        let nonce = Nonce([0xfb; 16]);
        let json = serde_json::to_string(&nonce).unwrap();
        assert_eq!(json, "\"-_v7-_v7-_v7-_v7-_v7-w\"");
        assert_eq!(serde_json::from_str::<Nonce>(&json).unwrap(), nonce);
        assert!(serde_json::from_str::<Nonce>("\"-_v7\"").is_err());
    }
}
