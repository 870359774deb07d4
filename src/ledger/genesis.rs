//! The genesis document: the one thing that a verifier has to trust.

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::codec;
use crate::crypto::{HashKind, VerifyingKey, blake3_plain};
use crate::planted::{Bug, planted};
use crate::types::{Hash, NetworkId, NodeId, PublicKey, Timestamp};
use crate::wording;

/// The version of genesis documents that this program writes and takes.
pub const GENESIS_VERSION: u16 = 1;

/// The longest name of a ledger, in bytes of UTF-8.
pub const MAX_LEDGER_NAME_BYTES: usize = 64;

/// The most admins that a genesis document may name.
pub const MAX_ADMINS: usize = 100;

/// Why a document is no genesis document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GenesisError {
    /// Not the JSON of one.
    #[error("not a genesis document: {0}; give the genesis.json that `ledgermq init` made")]
    Json(String),
    /// Another version.
    #[error("version {0}, this program knows version {GENESIS_VERSION}: use a newer one")]
    Version(u16),
    /// The name is empty or too long.
    #[error("the name must have 1 to {MAX_LEDGER_NAME_BYTES} bytes")]
    Name,
    /// Later than the year 9999.
    #[error("the time of creation is out of range")]
    Created,
    /// The admins are not in order, or none, or too many.
    #[error("the admins must be 1 to {MAX_ADMINS} distinct keys, in ascending order")]
    Admins,
    /// An admin's key is bad.
    #[error("an admin's key is not a canonical Ed25519 public key of prime order")]
    AdminKey,
    /// A replica's id is bad.
    #[error("a replica's id is not a canonical Ed25519 public key of prime order")]
    ReplicaKey,
}

/// Names a ledger's first replicas and admins. The network id is the BLAKE3 hash of its canonical
/// bytes, so no two ledgers share an id and none can be altered afterwards.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Genesis {
    /// [`GENESIS_VERSION`].
    pub version: u16,
    /// A name for people; 1 to 64 bytes.
    pub name: String,
    /// When it was made.
    pub created: Timestamp,
    /// The first replica set.
    pub replicas: ReplicaSet,
    /// The first admin keys, ascending; at least one.
    pub admins: Vec<PublicKey>,
}

impl Genesis {
    /// The id of the ledger that starts with this document.
    pub fn network_id(&self) -> NetworkId {
        NetworkId(blake3_plain(&codec::encode(self)).0)
    }

    /// Reads and checks the JSON form, which `ledgermq init` writes.
    ///
    /// # Errors
    /// [`GenesisError`].
    pub fn from_json(text: &str) -> Result<Self, GenesisError> {
        let genesis: Self =
            serde_json::from_str(text).map_err(|error| GenesisError::Json(wording::of_json(&error)))?;
        genesis.check()?;
        Ok(genesis)
    }

    /// The JSON form, for people to read and hand on. The network id is over the canonical bytes,
    /// so its spacing does not matter.
    ///
    /// # Panics
    /// Never: numbers, texts and lists always have a JSON form.
    #[allow(clippy::expect_used)]
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a genesis document has a JSON form")
    }

    /// Checks everything that a ledger needs of the document that it starts with.
    ///
    /// # Errors
    /// [`GenesisError`].
    pub fn check(&self) -> Result<(), GenesisError> {
        if self.version != GENESIS_VERSION {
            return Err(GenesisError::Version(self.version));
        }
        if !(1..=MAX_LEDGER_NAME_BYTES).contains(&self.name.len()) {
            return Err(GenesisError::Name);
        }
        if self.created > Timestamp::MAX {
            return Err(GenesisError::Created);
        }
        let ascending = self.admins.is_sorted_by(|one, next| one < next);
        if !(1..=MAX_ADMINS).contains(&self.admins.len()) || !ascending {
            return Err(GenesisError::Admins);
        }
        let good = |key: &PublicKey| VerifyingKey::parse(key).is_ok();
        if !self.admins.iter().all(good) {
            return Err(GenesisError::AdminKey);
        }
        let replicas = self.replicas.members();
        if replicas.iter().all(|node| good(&PublicKey::from(*node))) {
            Ok(())
        } else {
            Err(GenesisError::ReplicaKey)
        }
    }
}

/// The replicas that vote, ascending by id. Replica `i` of PBFT is `members()[i]`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Serialize)]
#[serde(transparent)]
pub struct ReplicaSet(Vec<NodeId>);

impl ReplicaSet {
    /// The most replicas that one set may have.
    pub const MAX: usize = 100;

    /// The set of `members`, in any order.
    ///
    /// # Errors
    /// [`InvalidReplicaSet`] if it is empty, too large, or names a node twice.
    pub fn new(mut members: Vec<NodeId>) -> Result<Self, InvalidReplicaSet> {
        members.sort_unstable();
        Self::from_sorted(members)
    }

    fn from_sorted(members: Vec<NodeId>) -> Result<Self, InvalidReplicaSet> {
        let ascending = members.windows(2).all(|pair| pair[0] < pair[1]);
        if members.is_empty() || members.len() > Self::MAX || !ascending {
            return Err(InvalidReplicaSet);
        }
        Ok(Self(members))
    }

    /// The replicas, ascending.
    pub fn members(&self) -> &[NodeId] {
        &self.0
    }

    /// n, the number of replicas.
    pub fn n(&self) -> usize {
        self.0.len()
    }

    /// f, the number of faulty replicas that are tolerated: `(n-1)/3`.
    pub fn f(&self) -> usize {
        (self.n() - 1) / 3
    }

    /// q, the size of a quorum: `⌈(n+f+1)/2⌉`. Two of them share a correct replica for every n.
    pub fn quorum(&self) -> usize {
        (self.n() + self.f() + 1).div_ceil(2) - usize::from(planted(Bug::QuorumOffByOne) && self.n() > 1)
    }

    /// f+1: among so many, one is correct.
    pub fn weak_quorum(&self) -> usize {
        self.f() + 1
    }

    /// Whether `node` is a replica.
    pub fn contains(&self, node: &NodeId) -> bool {
        self.0.binary_search(node).is_ok()
    }

    /// The replica's number.
    pub fn index_of(&self, node: &NodeId) -> Option<usize> {
        self.0.binary_search(node).ok()
    }

    /// The primary of a view: replica v mod n (the paper's formula 2).
    pub fn primary(&self, view: crate::types::View) -> NodeId {
        let n = self.0.len() as u64;
        self.0[usize::try_from(view.0 % n).unwrap_or_default()]
    }

    /// The hash that headers commit to.
    pub fn hash(&self) -> Hash {
        HashKind::ReplicaSet.hash(&codec::encode(self))
    }
}

/// Not a replica set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a replica set has 1 to 100 distinct members, in ascending order")]
pub struct InvalidReplicaSet;

impl<C> Decode<C> for ReplicaSet {
    fn decode<D: bincode::de::Decoder<Context = C>>(
        decoder: &mut D,
    ) -> Result<Self, bincode::error::DecodeError> {
        Self::from_sorted(Vec::decode(decoder)?)
            .map_err(|_| bincode::error::DecodeError::Other("replica set"))
    }
}

impl<'de, C> bincode::BorrowDecode<'de, C> for ReplicaSet {
    fn borrow_decode<D: bincode::de::BorrowDecoder<'de, Context = C>>(
        decoder: &mut D,
    ) -> Result<Self, bincode::error::DecodeError> {
        Self::decode(decoder)
    }
}

impl<'de> Deserialize<'de> for ReplicaSet {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_sorted(Vec::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(n: u8) -> ReplicaSet {
        ReplicaSet::new((0..n).map(|at| NodeId([at; 32])).collect()).unwrap()
    }

    #[test]
    fn quorums_intersect_in_a_correct_replica_and_can_form_without_the_faulty() {
        for n in 1..=100 {
            let set = set(n);
            assert!(2 * set.quorum() > set.n() + set.f(), "n = {n}");
            assert!(set.quorum() <= set.n() - set.f(), "n = {n}");
        }
        assert_eq!((set(4).f(), set(4).quorum(), set(6).quorum()), (1, 3, 4));
    }
}
