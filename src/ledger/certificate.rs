//! Certificates: a quorum of CHECKPOINT signatures over one block and state.

use bincode::{Decode, Encode};
use serde::Serialize;

use crate::codec;
use crate::crypto::{CryptoError, SignatureKind, VerifyingKey};
use crate::ledger::genesis::ReplicaSet;
use crate::types::{Hash, Height, NetworkId, NodeId, PublicKey, SeqNum, Signature};

/// What a CHECKPOINT signs (Castro and Liskov 1999, section 4.3), in the domain
/// [`crate::crypto::SignatureKind::Checkpoint`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode, Serialize)]
pub struct CheckpointContent {
    /// The sequence number up to which everything was executed.
    pub sequence: SeqNum,
    /// The height of the last block then.
    pub height: Height,
    /// The hash of that block; at height 0 the network id.
    pub block: Hash,
    /// The digest of the state then.
    pub state: Hash,
}

/// Proof that a quorum of the replica set executed up to `content.sequence` with this result.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Certificate {
    /// What was signed.
    pub content: CheckpointContent,
    /// Replica number in its set, and its signature; ascending, distinct, a quorum or more.
    pub signatures: Vec<(u16, Signature)>,
}

/// Why a certificate certifies nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Too few signatures.
    #[error("{found} replicas signed, a quorum of {quorum} is needed")]
    NoQuorum {
        /// Signatures found.
        found: usize,
        /// Signatures needed.
        quorum: usize,
    },
    /// The replica numbers do not ascend, or one is not in the set.
    #[error("the replicas' numbers must ascend and be below {n}")]
    Replicas {
        /// The size of the set.
        n: usize,
    },
    /// One of the signatures is bad.
    #[error("the signature of replica {0} does not verify")]
    Signature(u16),
}

/// A replica set with its keys parsed, which costs as much as a signature: do it once.
#[derive(Debug, Clone)]
pub struct ReplicaSetKeys {
    replicas: ReplicaSet,
    keys: Vec<VerifyingKey>,
}

impl ReplicaSetKeys {
    /// Parses the keys of a replica set.
    ///
    /// # Errors
    /// [`CryptoError::BadKey`] if a member's id is no good public key.
    pub fn new(replicas: &ReplicaSet) -> Result<Self, CryptoError> {
        let parse = |node: &NodeId| VerifyingKey::parse(&PublicKey::from(*node));
        let keys = replicas.members().iter().map(parse).collect::<Result<_, _>>()?;
        Ok(Self { replicas: replicas.clone(), keys })
    }

    /// The set.
    pub const fn replicas(&self) -> &ReplicaSet {
        &self.replicas
    }

    /// The key of a replica.
    pub fn get(&self, node: &NodeId) -> Option<&VerifyingKey> {
        self.keys.get(self.replicas.index_of(node)?)
    }
}

impl Certificate {
    /// Checks that a quorum of distinct replicas signed, and that nothing else is in it.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn verify(&self, network: &NetworkId, keys: &ReplicaSetKeys) -> Result<(), CertificateError> {
        let (n, quorum, found) = (keys.replicas.n(), keys.replicas.quorum(), self.signatures.len());
        if !self.signatures.is_sorted_by(|one, next| one.0 < next.0) {
            return Err(CertificateError::Replicas { n });
        }
        if found < quorum {
            return Err(CertificateError::NoQuorum { found, quorum });
        }
        let content = codec::encode(&self.content);
        for (number, signature) in &self.signatures {
            let key = keys.keys.get(usize::from(*number)).ok_or(CertificateError::Replicas { n })?;
            key.verify(SignatureKind::Checkpoint, network, &content, signature)
                .map_err(|_| CertificateError::Signature(*number))?;
        }
        Ok(())
    }

    /// The replicas that signed; of a verified certificate.
    pub fn signers(&self, replicas: &ReplicaSet) -> Vec<NodeId> {
        let node = |(number, _): &(u16, Signature)| replicas.members().get(usize::from(*number)).copied();
        self.signatures.iter().filter_map(node).collect()
    }
}
