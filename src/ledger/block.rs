//! Blocks: a header that chains and commits, and a body of operations.

use bincode::{Decode, Encode};
use serde::Serialize;

use crate::codec;
use crate::crypto::HashKind;
use crate::ledger::certificate::{Certificate, CertificateError, ReplicaSetKeys};
use crate::ledger::change::Head;
use crate::ledger::operation::Operation;
use crate::ledger::request::MAX_REQUEST_BYTES;
use crate::merkle::{MAX_LEAVES, MerkleError, Tree};
use crate::types::{Hash, Height, NetworkId, NodeId, SeqNum, Timestamp, View};

/// The version of headers that this program writes and takes.
pub const HEADER_VERSION: u16 = 1;

/// The most bytes that a block's operations have together. Execution keeps to it whatever was
/// ordered, so that any block can be fetched; a batch of 8 MiB and one more request fit.
pub const MAX_BLOCK_BYTES: usize = 2 * MAX_REQUEST_BYTES;

/// Why a block is none of this ledger.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// Another version of headers.
    #[error("the header has version {0}, this program knows version {HEADER_VERSION}")]
    Version(u16),
    /// A block of another ledger.
    #[error("the block is of another network")]
    WrongNetwork,
    /// Heights begin at 1, and so do sequence numbers.
    #[error("height and sequence of a block are at least 1")]
    Zero,
    /// Claims work where there is none.
    #[error("difficulty target and nonce of a block must be 0")]
    Work,
    /// The header's count is not that of the body, or not possible.
    #[error("the header counts {counted} operations, the block has {found}; 1 to {MAX_LEAVES} are possible")]
    Count {
        /// What the header says.
        counted: u32,
        /// Operations in the body.
        found: usize,
    },
    /// The body's Merkle tree cannot be built.
    #[error(transparent)]
    Merkle(#[from] MerkleError),
    /// The header commits to other operations.
    #[error("the operations are not those that the header commits to")]
    Root,
    /// Not the next block.
    #[error("block {found} does not follow block {expected_previous}")]
    Chain {
        /// The block's height.
        found: Height,
        /// The height of the block that it should have followed.
        expected_previous: Height,
    },
    /// The certificate is bad.
    #[error("the block's certificate: {0}")]
    Certificate(#[from] CertificateError),
    /// The certificate is for another block.
    #[error("the certificate is for another block")]
    ForeignCertificate,
}

/// A block's header. Its hash is the block's name and is what the next block points to.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Header {
    /// [`HEADER_VERSION`].
    pub version: u16,
    /// The ledger.
    pub network: NetworkId,
    /// 1 for the first block, one more for each.
    pub height: Height,
    /// The PBFT sequence number of the batch that it was made of.
    pub sequence: SeqNum,
    /// When the batch was proposed.
    pub timestamp: Timestamp,
    /// Hash of the previous header; of height 1, the network id.
    pub previous: Hash,
    /// Merkle root over the canonical bytes of the operations.
    pub merkle_root: Hash,
    /// How many operations the body has; at least 1.
    pub operation_count: u32,
    /// Hash of the replica set that certifies the next block.
    pub next_replica_set: Hash,
    /// The view in which the batch was first proposed.
    pub origin_view: View,
    /// The primary that first proposed it.
    pub proposer: NodeId,
    /// Always 0: PBFT has no work to prove. The paper lists the field.
    pub difficulty_target: u32,
    /// Always 0, for the same reason.
    pub nonce: u64,
}

impl Header {
    /// The block's hash.
    pub fn hash(&self) -> Hash {
        HashKind::BlockHeader.hash(&codec::encode(self))
    }

    /// Checks what can be seen from the header alone.
    ///
    /// # Errors
    /// [`BlockError`].
    pub fn check(&self, network: &NetworkId) -> Result<(), BlockError> {
        if self.version != HEADER_VERSION {
            return Err(BlockError::Version(self.version));
        }
        if self.network != *network {
            return Err(BlockError::WrongNetwork);
        }
        if self.height.0 == 0 || self.sequence.0 == 0 {
            return Err(BlockError::Zero);
        }
        if self.difficulty_target != 0 || self.nonce != 0 {
            return Err(BlockError::Work);
        }
        Ok(())
    }

    /// Checks the header and that `certificate` is a quorum's word for it; gives its hash.
    ///
    /// # Errors
    /// [`BlockError`].
    pub fn check_certified(
        &self,
        network: &NetworkId,
        certificate: &Certificate,
        keys: &ReplicaSetKeys,
    ) -> Result<Hash, BlockError> {
        self.check(network)?;
        let hash = self.hash();
        let content = &certificate.content;
        if content.block != hash || content.height != self.height || content.sequence < self.sequence {
            return Err(BlockError::ForeignCertificate);
        }
        certificate.verify(network, keys)?;
        Ok(hash)
    }
}

/// A block.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Block {
    /// The header.
    pub header: Header,
    /// The operations, in the order in which they were executed.
    pub operations: Vec<Operation>,
}

impl Block {
    /// Checks the block by itself: the header's rules, and that it commits to the body.
    ///
    /// # Errors
    /// [`BlockError`].
    pub fn check(&self, network: &NetworkId) -> Result<(), BlockError> {
        self.header.check(network)?;
        let (counted, found) = (self.header.operation_count, self.operations.len());
        if counted as usize != found {
            return Err(BlockError::Count { counted, found });
        }
        if self.tree()?.root() == self.header.merkle_root { Ok(()) } else { Err(BlockError::Root) }
    }

    /// The Merkle tree over the operations.
    ///
    /// # Errors
    /// [`MerkleError::Count`] if there are none or too many.
    pub fn tree(&self) -> Result<Tree, MerkleError> {
        let leaves: Vec<Vec<u8>> = self.operations.iter().map(codec::encode).collect();
        Tree::new(&leaves)
    }

    /// Checks that the block comes right after `head`.
    ///
    /// # Errors
    /// [`BlockError::Chain`].
    pub fn check_follows(&self, head: &Head) -> Result<(), BlockError> {
        let header = &self.header;
        let follows = header.height == head.height.next()
            && header.previous == head.block
            && header.sequence > head.sequence;
        let error = BlockError::Chain { found: header.height, expected_previous: head.height };
        if follows { Ok(()) } else { Err(error) }
    }
}

/// A block and the word of a quorum for it: what nodes fetch from each other. Only
/// [`CertifiedBlock::verify`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertifiedBlock {
    block: Block,
    certificate: Certificate,
}

impl CertifiedBlock {
    /// Checks a fetched block: header, body, and certificate by the replica set in force.
    ///
    /// # Errors
    /// [`BlockError`].
    pub fn verify(
        block: Block,
        certificate: Certificate,
        network: &NetworkId,
        keys: &ReplicaSetKeys,
    ) -> Result<Self, BlockError> {
        block.check(network)?;
        block.header.check_certified(network, &certificate, keys)?;
        Ok(Self { block, certificate })
    }

    /// The block.
    pub const fn block(&self) -> &Block {
        &self.block
    }

    /// Its certificate.
    pub const fn certificate(&self) -> &Certificate {
        &self.certificate
    }
}
