//! The entries of the ledger's state: what the state digest is over and what storage keeps.
//!
//! ```text
//! key                                        value (canonical)
//! 0x00                                       network id
//! 0x01                                       the replica set
//! 0x02 ‖ admin key                           sequence of the admin's last executed operation
//! 0x03 ‖ client id                           (key, settings, registered, revoked)
//! 0x04 ‖ client id ‖ 0x00 ‖ seq (8 bytes BE) (header hash, items written, height)
//! 0x05                                       (version, write policies in force); none at genesis
//! 0x06 ‖ version (8 bytes BE)                (height, operation) that put a version in force
//! 0x07 ‖ node id                             (number, hash, last row, height) of its last history digest
//! ```
//!
//! A client id has no zero byte, so keys are unambiguous, and a client's written messages lie side
//! by side in the order of their numbers.

use bincode::{Decode, Encode};
use serde::Serialize;

use crate::codec::{self, CodecError};
use crate::ledger::genesis::ReplicaSet;
use crate::ledger::index_set::IndexSet;
use crate::ledger::operation::ClientSettings;
use crate::policy::{MAX_POLICY_BYTES, PolicySet};
use crate::types::{ClientId, Hash, Height, MessageSeq, NetworkId, NodeId, PublicKey};

/// What the ledger says about a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct ClientRecord {
    /// Its identity key.
    pub key: PublicKey,
    /// Its settings.
    pub settings: ClientSettings,
    /// The block that registered it, and the place of that operation in it.
    pub registered: (Height, u32),
    /// The last seq that is accepted, if it was revoked.
    pub revoked: Option<MessageSeq>,
}

/// What the ledger says about one of a client's recent messages.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct WindowEntry {
    /// The hash of the header that holds this seq.
    pub header: Hash,
    /// The items of the message that are on the ledger.
    pub written: IndexSet,
    /// The block that wrote the last of them.
    pub height: Height,
}

/// What the ledger says about a node's last history digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct DigestRecord {
    /// Its number.
    pub number: u64,
    /// Its hash, which the next one names.
    pub hash: Hash,
    /// The number of the last row that it covers.
    pub last_row: u64,
    /// The block that it is in.
    pub height: Height,
}

/// The most bytes that an entry's value has: the write policies; a replica set of 100, or a bitmap of
/// 65,536 items, has less.
const MAX_VALUE_BYTES: usize = MAX_POLICY_BYTES + 8;

/// An entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    Network(NetworkId),
    Replicas(ReplicaSet),
    Admin(PublicKey, u64),
    Client(ClientId, ClientRecord),
    Written(ClientId, MessageSeq, WindowEntry),
    Policies(u64, PolicySet),
    PoliciesAt(u64, (Height, u32)),
    Digest(NodeId, DigestRecord),
}

/// Why bytes are not an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// The key has none of the forms.
    #[error("the key {0} is none of a state entry")]
    Key(String),
    /// The value does not decode.
    #[error("the value of the state entry {key}: {error}")]
    Value {
        /// The entry's key, in hex.
        key: String,
        /// What is wrong with its value.
        error: CodecError,
    },
}

/// What keys of written messages begin with.
pub(super) const WRITTEN: u8 = 4;

pub(super) fn admin_key(admin: &PublicKey) -> Vec<u8> {
    [&[2], admin.as_bytes().as_slice()].concat()
}

pub(super) fn client_key(client: &ClientId) -> Vec<u8> {
    [&[3], client.as_str().as_bytes()].concat()
}

pub(super) fn written_key(client: &ClientId, seq: MessageSeq) -> Vec<u8> {
    [&[WRITTEN], client.as_str().as_bytes(), &[0], &seq.0.to_be_bytes()].concat()
}

pub(super) fn policies_at_key(version: u64) -> Vec<u8> {
    [&[6], version.to_be_bytes().as_slice()].concat()
}

impl Entry {
    pub(super) fn encode(&self) -> (Vec<u8>, Vec<u8>) {
        match self {
            Self::Network(network) => (vec![0], codec::encode(network)),
            Self::Replicas(replicas) => (vec![1], codec::encode(replicas)),
            Self::Admin(admin, sequence) => (admin_key(admin), codec::encode(sequence)),
            Self::Client(client, record) => (client_key(client), codec::encode(record)),
            Self::Written(client, seq, entry) => (written_key(client, *seq), codec::encode(entry)),
            Self::Policies(version, policies) => (vec![5], codec::encode(&(*version, policies))),
            Self::PoliciesAt(version, place) => (policies_at_key(*version), codec::encode(place)),
            Self::Digest(node, record) => {
                ([&[7], node.as_bytes().as_slice()].concat(), codec::encode(record))
            }
        }
    }

    pub(super) fn decode(key: &[u8], value: &[u8]) -> Result<Self, EntryError> {
        let no_key = || EntryError::Key(hex::encode(key));
        let client = |bytes: &[u8]| {
            let text = std::str::from_utf8(bytes).map_err(|_| no_key())?;
            ClientId::new(text).map_err(|_| no_key())
        };
        Ok(match key {
            [0] => Self::Network(decode_value(key, value)?),
            [1] => Self::Replicas(decode_value(key, value)?),
            [2, admin @ ..] => {
                Self::Admin(PublicKey(admin.try_into().map_err(|_| no_key())?), decode_value(key, value)?)
            }
            [3, id @ ..] => Self::Client(client(id)?, decode_value(key, value)?),
            [4, rest @ ..] => {
                let (rest, seq) = rest.split_last_chunk().ok_or_else(no_key)?;
                let (zero, id) = rest.split_last().ok_or_else(no_key)?;
                let entry: WindowEntry = decode_value(key, value)?;
                if *zero != 0 || !entry.written.is_canonical() {
                    return Err(no_key());
                }
                Self::Written(client(id)?, MessageSeq(u64::from_be_bytes(*seq)), entry)
            }
            [5] => {
                let (version, policies) = decode_value(key, value)?;
                Self::Policies(version, policies)
            }
            [6, version @ ..] => {
                let version = u64::from_be_bytes(version.try_into().map_err(|_| no_key())?);
                Self::PoliciesAt(version, decode_value(key, value)?)
            }
            [7, node @ ..] => {
                Self::Digest(NodeId(node.try_into().map_err(|_| no_key())?), decode_value(key, value)?)
            }
            _ => return Err(no_key()),
        })
    }
}

fn decode_value<T: Encode + Decode<()>>(key: &[u8], value: &[u8]) -> Result<T, EntryError> {
    codec::decode::<MAX_VALUE_BYTES, T>(value)
        .map_err(|error| EntryError::Value { key: hex::encode(key), error })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_kind_of_entry_survives_the_round_trip() {
        let client = ClientId::new("devices/iot").unwrap();
        let record = ClientRecord {
            key: PublicKey([7; 32]),
            settings: ClientSettings { plaintext: true, receipts: false },
            registered: (Height(3), 1),
            revoked: Some(MessageSeq(9)),
        };
        let written = (0..65_536).collect();
        let entry = WindowEntry { header: Hash([1; 32]), written, height: Height(4) };
        let digest = DigestRecord { number: 3, hash: Hash([9; 32]), last_row: 70, height: Height(8) };
        let replicas = ReplicaSet::new((0..100).map(|at| NodeId([at; 32])).collect()).unwrap();
        for entry in [
            Entry::Network(NetworkId([1; 32])),
            Entry::Replicas(replicas),
            Entry::Admin(PublicKey([2; 32]), 7),
            Entry::Digest(NodeId([4; 32]), digest),
            Entry::Client(client.clone(), record),
            Entry::Written(client, MessageSeq(5), entry),
            Entry::Policies(2, PolicySet::default()),
            Entry::PoliciesAt(2, (Height(7), 3)),
        ] {
            let (key, value) = entry.encode();
            assert_eq!(Entry::decode(&key, &value), Ok(entry));
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(key in proptest::collection::vec(0_u8..8, 0..50), value in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = Entry::decode(&key, &value);
        }
    }
}
