//! Proof bundles: a file that proves, with nothing but the genesis document, that data items were
//! measured, signed and written.
//!
//! ```text
//! "LMQPROOF" ‖ version (2 bytes) ‖ canonical (registration, write), each an inclusion:
//!
//! operation ──Merkle path──▶ header ──hash──▶ certificate ──signatures──▶ genesis: replicas
//!     │
//!     ├ registration: admin's signature ──▶ genesis: admins;  client ──▶ identity key
//!     └ write: items ──multiproof──▶ telemetry header ──signature──▶ identity key
//! ```
//!
//! Every byte is covered: altering any of them makes verification fail. What the bundle proves
//! beyond signatures (the client was not revoked, the seq was not used by another message) is the
//! word of the quorum, which executed the operation. docs/LEDGER.md has the bytes.

use bincode::{Decode, Encode};
use serde::Serialize;

use crate::codec::{self, CodecError};
use crate::crypto::{CryptoError, VerifyingKey};
use crate::device;
use crate::ledger::block::{Block, BlockError, Header};
use crate::ledger::certificate::{Certificate, ReplicaSetKeys};
use crate::ledger::genesis::{Genesis, GenesisError};
use crate::ledger::operation::{AdminAction, AdminOperation, AdminOperationError, Operation, WriteRequest};
use crate::ledger::record::{Record, RecordError};
use crate::ledger::request::{MAX_REQUEST_BYTES, RequestError, check_items};
use crate::merkle::{self, MerkleError, Tree};
use crate::types::{
    ClientId, Hash, Height, MessageSeq, NetworkId, NodeId, PublicKey, SeqNum, Stream, Timestamp,
};

/// The first bytes of a bundle.
pub const MAGIC: &[u8; 8] = b"LMQPROOF";

/// The version of bundles that this program writes and takes.
pub const BUNDLE_VERSION: u16 = 1;

/// The most bytes that a bundle has: a request at its limit, the list of its 65,536 indexes, and
/// 256 KiB for headers, certificates and paths, of which 100 replicas fill a tenth.
pub const MAX_BUNDLE_BYTES: usize = MAX_REQUEST_BYTES + 512 * 1024;

/// Why an operation is not proven to be on the ledger.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InclusionError {
    /// The block's header or certificate is bad.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// The header names another replica set than genesis.
    #[error(
        "block {0} names another replica set than the genesis document: this version knows no set changes"
    )]
    ReplicaSet(Height),
    /// The path does not lead from the operation to the block.
    #[error("the operation is not in block {height}: {error}")]
    Merkle {
        /// The block's height.
        height: Height,
        /// Which rule the path breaks.
        error: MerkleError,
    },
}

/// Why a bundle proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// Does not begin as a bundle does.
    #[error("not a proof bundle: it does not begin with LMQPROOF")]
    NotABundle,
    /// Another version.
    #[error("a proof bundle of version {0}, this program knows version {BUNDLE_VERSION}: use a newer one")]
    Version(u16),
    /// The rest is not canonical.
    #[error("the proof bundle is damaged: {0}")]
    Codec(#[from] CodecError),
    /// The genesis document is not valid.
    #[error("the genesis document: {0}")]
    Genesis(#[from] GenesisError),
    /// The client's registration is not on the ledger.
    #[error("the client's registration: {0}")]
    Registration(InclusionError),
    /// The write is not on the ledger.
    #[error("the write: {0}")]
    Write(InclusionError),
    /// In the place of the registration stands something else.
    #[error("the bundle holds no registration of a client")]
    NoRegistration,
    /// In the place of the write stands something else.
    #[error("the bundle holds no write request")]
    NoWrite,
    /// The operation that registers the client is not the admin's.
    #[error("the registration: {0}")]
    AdminOperation(#[from] AdminOperationError),
    /// The client was registered by a key that is no admin's.
    #[error(
        "the key that signed the registration is not an admin's in the genesis document: is the bundle of another \
         network?"
    )]
    NotAnAdmin,
    /// The registration is another client's, or with another key.
    #[error("the registration is of another client or key than the one that signed the message")]
    ForeignRegistration,
    /// The registration comes after the write.
    #[error("the registration is not before the write")]
    RegisteredLater,
    /// The header, an item or the proof that they belong together is bad.
    #[error("the message: {0}")]
    Request(#[from] RequestError),
    /// The device's key or signature is bad.
    #[error("the device's signature over the message: {0}")]
    DeviceSignature(CryptoError),
    /// The list of written items does not fit the request.
    #[error("the written items are not items of the request")]
    Written,
    /// An item cannot be read.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// An operation and the proof that it is in a certified block.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Inclusion {
    /// The block's header.
    pub header: Header,
    /// The quorum's word for that block.
    pub certificate: Certificate,
    /// The place of the operation in the block.
    pub index: u32,
    /// The operation.
    pub operation: Operation,
    /// Merkle path from the operation to the header's root.
    pub path: Vec<Hash>,
}

impl Inclusion {
    /// The proof for the operation at `index` of a block, whose tree is [`Block::tree`].
    ///
    /// # Errors
    /// [`MerkleError`] if there is no such operation.
    pub fn new(
        block: &Block,
        tree: &Tree,
        certificate: &Certificate,
        index: u32,
    ) -> Result<Self, MerkleError> {
        Ok(Self {
            header: block.header.clone(),
            certificate: certificate.clone(),
            index,
            operation: block.operations.get(index as usize).ok_or(MerkleError::Index)?.clone(),
            path: tree.prove(&[index])?,
        })
    }

    /// Checks the proof; gives the block's hash.
    fn verify(&self, network: &NetworkId, keys: &ReplicaSetKeys) -> Result<Hash, InclusionError> {
        let Header { height, merkle_root, operation_count, .. } = &self.header;
        let hash = self.header.check_certified(network, &self.certificate, keys)?;
        if self.header.next_replica_set != keys.replicas().hash() {
            return Err(InclusionError::ReplicaSet(*height));
        }
        let leaf = [(self.index, codec::encode(&self.operation))];
        merkle::verify(merkle_root, *operation_count as usize, &leaf, &self.path)
            .map_err(|error| InclusionError::Merkle { height: *height, error })?;
        Ok(hash)
    }

    fn place(&self) -> (Height, u32) {
        (self.header.height, self.index)
    }
}

/// Everything that it takes to prove one write.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct ProofBundle {
    /// The operation that registered the client's key.
    pub registration: Inclusion,
    /// The write.
    pub write: Inclusion,
}

impl ProofBundle {
    /// The bundle's bytes.
    pub fn encode(&self) -> Vec<u8> {
        [MAGIC.as_slice(), &BUNDLE_VERSION.to_be_bytes(), &codec::encode(self)].concat()
    }

    /// Reads a bundle, and proves nothing yet.
    ///
    /// # Errors
    /// [`ProofError::NotABundle`], [`ProofError::Version`] or [`ProofError::Codec`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ProofError> {
        let rest = bytes.strip_prefix(MAGIC).ok_or(ProofError::NotABundle)?;
        let (version, rest) = rest.split_first_chunk().ok_or(ProofError::NotABundle)?;
        let version = u16::from_be_bytes(*version);
        if version != BUNDLE_VERSION {
            return Err(ProofError::Version(version));
        }
        Ok(codec::decode::<MAX_BUNDLE_BYTES, Self>(rest)?)
    }

    /// Verifies the bundle with nothing but the genesis document.
    ///
    /// # Errors
    /// [`ProofError`]: what is wrong.
    pub fn verify(&self, genesis: &Genesis) -> Result<Proven, ProofError> {
        Verifier::new(genesis)?.verify(self)
    }
}

/// The block part of what is proven.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProvenBlock {
    /// Its height.
    pub height: Height,
    /// Its hash.
    pub hash: Hash,
    /// When its batch was proposed.
    pub timestamp: Timestamp,
    /// The PBFT sequence number of its batch.
    pub sequence: SeqNum,
    /// The place of the operation in it.
    pub operation: u32,
    /// The replicas that signed its certificate.
    pub signed_by: Vec<NodeId>,
}

/// What a bundle proves.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Proven {
    /// The ledger.
    pub network: NetworkId,
    /// Who sent it.
    pub client: ClientId,
    /// The identity key that it is signed with.
    pub client_key: PublicKey,
    /// The stream of the message.
    pub stream: Stream,
    /// The number of the message.
    pub seq: MessageSeq,
    /// When it was measured, as the client says.
    pub event_time: Timestamp,
    /// BLAKE3 of the telemetry header, as acks name it.
    pub header_hash: Hash,
    /// BLAKE3 of the message's JSON body.
    pub body_hash: Hash,
    /// How many data items the whole message has.
    pub message_items: u32,
    /// The data items that this operation wrote.
    pub records: Vec<Record>,
    /// The node that admitted the message.
    pub admitted_by: NodeId,
    /// The block that wrote them.
    pub block: ProvenBlock,
    /// The block that registered the client's key.
    pub registration: ProvenBlock,
    /// The admin who registered it.
    pub registered_by: PublicKey,
    /// n, the number of replicas.
    pub replicas: usize,
    /// How many of them must sign.
    pub quorum: usize,
}

/// Verifies many bundles of one ledger, parsing its replicas' keys once.
#[derive(Debug, Clone)]
pub struct Verifier {
    network: NetworkId,
    admins: Vec<PublicKey>,
    keys: ReplicaSetKeys,
}

impl Verifier {
    /// A verifier that trusts a genesis document.
    ///
    /// # Errors
    /// [`ProofError::Genesis`] if it is not valid.
    pub fn new(genesis: &Genesis) -> Result<Self, ProofError> {
        genesis.check()?;
        let keys = ReplicaSetKeys::new(&genesis.replicas).map_err(|_| GenesisError::ReplicaKey)?;
        Ok(Self { network: genesis.network_id(), admins: genesis.admins.clone(), keys })
    }

    /// Verifies a bundle.
    ///
    /// # Errors
    /// [`ProofError`]: what is wrong.
    pub fn verify(&self, bundle: &ProofBundle) -> Result<Proven, ProofError> {
        let ProofBundle { registration, write } = bundle;
        let (client, client_key, registered_by) = self.check_registration(registration)?;
        let (request, written) = match &write.operation {
            Operation::Write { request, written } => (request, written),
            Operation::Admin(_) | Operation::Digest(_) => return Err(ProofError::NoWrite),
        };
        let header = self.check_message(request, written)?;
        if header.client != *client || request.client_key != *client_key {
            return Err(ProofError::ForeignRegistration);
        }
        if registration.place() >= write.place() {
            return Err(ProofError::RegisteredLater);
        }
        let registration = self.proven_block(registration).map_err(ProofError::Registration)?;
        let block = self.proven_block(write).map_err(ProofError::Write)?;

        let mut records = Vec::with_capacity(written.len());
        Record::read(&write.header, write.index, request, written, &mut records)?;
        Ok(Proven {
            network: self.network,
            client: header.client,
            client_key: *client_key,
            stream: header.stream,
            seq: header.seq,
            event_time: header.event_time,
            header_hash: device::Header::hash_of(&request.header),
            body_hash: header.body_hash,
            message_items: header.count,
            records,
            admitted_by: request.node,
            block,
            registration,
            registered_by,
            replicas: self.keys.replicas().n(),
            quorum: self.keys.replicas().quorum(),
        })
    }

    /// Checks that an admin of genesis signed the registration.
    fn check_registration<'a>(
        &self,
        inclusion: &'a Inclusion,
    ) -> Result<(&'a ClientId, &'a PublicKey, PublicKey), ProofError> {
        let Operation::Admin(operation) = &inclusion.operation else {
            return Err(ProofError::NoRegistration);
        };
        let AdminOperation { admin, action: AdminAction::RegisterClient { client, key, .. }, .. } = operation
        else {
            return Err(ProofError::NoRegistration);
        };
        if !self.admins.contains(admin) {
            return Err(ProofError::NotAnAdmin);
        }
        operation.verify(&self.network)?;
        Ok((client, key, *admin))
    }

    /// Checks that the device signed the items.
    fn check_message(&self, request: &WriteRequest, written: &[u32]) -> Result<device::Header, ProofError> {
        let header = check_items(request)?;
        let key = VerifyingKey::parse(&request.client_key).map_err(ProofError::DeviceSignature)?;
        device::header::verify(&self.network, &request.header, &request.signature, &key)
            .map_err(ProofError::DeviceSignature)?;
        let of_request = |index| request.items.binary_search_by_key(index, |item| item.index).is_ok();
        let ascending = written.is_sorted_by(|one, next| one < next);
        if written.is_empty() || !ascending || !written.iter().all(of_request) {
            return Err(ProofError::Written);
        }
        Ok(header)
    }

    fn proven_block(&self, inclusion: &Inclusion) -> Result<ProvenBlock, InclusionError> {
        let hash = inclusion.verify(&self.network, &self.keys)?;
        let Header { height, timestamp, sequence, .. } = inclusion.header;
        let signed_by = inclusion.certificate.signers(self.keys.replicas());
        Ok(ProvenBlock { height, hash, timestamp, sequence, operation: inclusion.index, signed_by })
    }
}
