//! Requests, which replicas order, and operations, which stand in blocks.
//!
//! A request is checked without any state before it is ordered: sizes, form, and the signature
//! under the key that it carries itself. Everything that depends on state (is the client
//! registered with that key, was the seq used, has the admin the right) is judged when it is
//! executed, where all replicas have the same state.

use std::sync::Arc;

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::codec;
use crate::crypto::{CryptoError, SecretKey, SignatureKind, VerifyingKey};
use crate::ledger::digest::HistoryDigest;
use crate::policy::PolicySet;
use crate::types::{ClientId, Hash, MessageSeq, NetworkId, NodeId, PublicKey, Signature};

/// The longest reason for a revocation, in bytes of UTF-8.
pub const MAX_REASON_BYTES: usize = 256;

/// One data item of a message that is to be written, with its place in the message.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct WrittenItem {
    /// 0-based index in the message's `data`.
    pub index: u32,
    /// The item bytes of PROTOCOL.md section 6: CBOR
    /// `[client_id, deviceId, serviceId, num, eventTime, value, unit or null]`.
    pub bytes: Vec<u8>,
}

/// A node's request to write items of one signed telemetry message.
///
/// It proves itself: `signature` covers `header`, `header` holds the items root, and `proof` leads
/// from the items to that root.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct WriteRequest {
    /// The node that admitted the message.
    pub node: NodeId,
    /// The key that the device signed with; whether it is registered is judged at execution.
    pub client_key: PublicKey,
    /// The telemetry header bytes (PROTOCOL.md section 6).
    pub header: Vec<u8>,
    /// The device's Ed25519 signature over COSE's `Sig_structure` of the header.
    pub signature: Signature,
    /// The items to write, ascending by index, at least one.
    pub items: Vec<WrittenItem>,
    /// Merkle multiproof from the items to the header's items root.
    pub proof: Vec<Hash>,
}

/// Settings of a client that stand on the ledger.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClientSettings {
    /// The client may send telemetry that is signed but not encrypted.
    pub plaintext: bool,
    /// The client is sent a proof bundle for each write request.
    pub receipts: bool,
}

/// What an admin can have done.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "action")]
pub enum AdminAction {
    /// Registers a client, or refuses if it is registered or was revoked.
    RegisterClient {
        /// The client.
        client: ClientId,
        /// Its identity key.
        key: PublicKey,
        /// Its settings.
        settings: ClientSettings,
    },
    /// Ends a client's right to have anything written.
    RevokeClient {
        /// The client.
        client: ClientId,
        /// The last seq that is still accepted.
        last_seq: MessageSeq,
        /// Why, for the auditor; at most 256 bytes.
        reason: String,
    },
    /// Puts other write policies in force, all at once.
    SetPolicies {
        /// The version in force that the admin has seen, 0 at genesis: of two admins who change the
        /// same version, one is refused and does not undo what the other did.
        replaces: u64,
        /// The rules from here on.
        policies: PolicySet,
    },
}

impl AdminAction {
    /// The client that it changes, if it changes one.
    pub const fn client(&self) -> Option<&ClientId> {
        match self {
            Self::RegisterClient { client, .. } | Self::RevokeClient { client, .. } => Some(client),
            Self::SetPolicies { .. } => None,
        }
    }
}

/// An admin's operation: names the network, carries an increasing sequence, and is signed.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct AdminOperation {
    /// The ledger that it is for.
    pub network: NetworkId,
    /// The admin's public key.
    pub admin: PublicKey,
    /// Strictly greater than that of this admin's last executed operation.
    pub sequence: u64,
    /// What to do.
    pub action: AdminAction,
    /// The admin's signature ([`crate::crypto::SignatureKind::AdminOperation`]) over the canonical
    /// encoding of `(admin, sequence, action)`.
    pub signature: Signature,
}

/// Why an admin's operation is invalid, whatever the state of the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AdminOperationError {
    /// Made for another ledger.
    #[error("the operation is for another network: sign it with this network's genesis document")]
    WrongNetwork,
    /// The admin's key or signature is bad.
    #[error("the admin's signature over the operation: {0}")]
    Signature(#[from] CryptoError),
    /// The key to be registered could not verify anything safely.
    #[error("the client's key is not a canonical Ed25519 public key of prime order")]
    ClientKey,
    /// The last seq of a revocation is above 2^53 - 1.
    #[error("the last seq of a revocation is at most {}", MessageSeq::MAX)]
    LastSeq,
    /// The reason of a revocation is too long.
    #[error("a reason has at most {MAX_REASON_BYTES} bytes")]
    Reason,
}

impl AdminOperation {
    /// Makes and signs an operation.
    pub fn sign(network: NetworkId, admin: &SecretKey, sequence: u64, action: AdminAction) -> Self {
        let public = admin.public();
        let content = codec::encode(&(public, sequence, &action));
        let signature = admin.sign(SignatureKind::AdminOperation, &network, &content);
        Self { network, admin: public, sequence, action, signature }
    }

    /// Checks all that needs no state: network, limits, signature.
    ///
    /// # Errors
    /// [`AdminOperationError`].
    pub fn verify(&self, network: &NetworkId) -> Result<(), AdminOperationError> {
        if self.network != *network {
            return Err(AdminOperationError::WrongNetwork);
        }
        match &self.action {
            AdminAction::RegisterClient { key, .. } => {
                VerifyingKey::parse(key).map_err(|_| AdminOperationError::ClientKey)?;
            }
            AdminAction::RevokeClient { last_seq, .. } if *last_seq > MessageSeq::MAX => {
                return Err(AdminOperationError::LastSeq);
            }
            AdminAction::RevokeClient { reason, .. } if reason.len() > MAX_REASON_BYTES => {
                return Err(AdminOperationError::Reason);
            }
            AdminAction::RevokeClient { .. } | AdminAction::SetPolicies { .. } => {}
        }
        let content = codec::encode(&(self.admin, self.sequence, &self.action));
        let key = VerifyingKey::parse(&self.admin)?;
        Ok(key.verify(SignatureKind::AdminOperation, network, &content, &self.signature)?)
    }
}

/// What PBFT orders.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Request {
    /// Write items of a message.
    Write(Arc<WriteRequest>),
    /// Execute an admin's operation, submitted through `node`.
    Admin {
        /// The node that took it in.
        node: NodeId,
        /// The operation.
        operation: AdminOperation,
    },
    /// Write what a node says about its history.
    Digest(HistoryDigest),
}

impl Request {
    /// The node that admitted it, as it says.
    pub fn node(&self) -> NodeId {
        match self {
            Self::Write(write) => write.node,
            Self::Admin { node, .. } => *node,
            Self::Digest(digest) => digest.node,
        }
    }
}

/// What stands in a block: a request that was executed.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Operation {
    /// Items were written.
    Write {
        /// The request as it was ordered.
        request: Arc<WriteRequest>,
        /// Indexes of the items that this operation wrote, ascending: those of the request that
        /// were not on the ledger before.
        written: Vec<u32>,
    },
    /// An admin's operation was executed.
    Admin(AdminOperation),
    /// What a node says about its history.
    Digest(HistoryDigest),
}
