//! A small ledger for the tests of this module: four replicas, an admin, clients, signed messages.

use std::sync::Arc;

use crate::codec;
use crate::crypto::{SecretKey, SignatureKind, blake3_plain};
use crate::device::{self, Item, Value};
use crate::ledger::certificate::{Certificate, CheckpointContent, ReplicaSetKeys};
use crate::ledger::genesis::{GENESIS_VERSION, Genesis, ReplicaSet};
use crate::ledger::operation::{AdminAction, AdminOperation, ClientSettings, Request};
use crate::ledger::outcome::{Executed, Outcome};
use crate::ledger::request::{AdmittedMessage, VerifiedRequest};
use crate::ledger::state::State;
use crate::merkle::Tree;
use crate::pbft::message::Batch;
use crate::policy::{Pattern, PolicySet, Rule, RuleName, WritePolicy};
use crate::types::{ClientId, MessageSeq, NetworkId, NodeId, Signature, Stream, Timestamp, View};

/// The keys and the genesis document of a ledger.
pub(in crate::ledger) struct Net {
    pub(in crate::ledger) genesis: Genesis,
    pub(in crate::ledger) network: NetworkId,
    pub(in crate::ledger) admin: SecretKey,
    /// In the order of their numbers.
    pub(in crate::ledger) replicas: Vec<SecretKey>,
    pub(in crate::ledger) keys: ReplicaSetKeys,
}

/// A signed message.
#[derive(Clone)]
pub(in crate::ledger) struct SignedMessage {
    pub(in crate::ledger) key: SecretKey,
    pub(in crate::ledger) header: device::Header,
    pub(in crate::ledger) header_bytes: Vec<u8>,
    pub(in crate::ledger) signature: Signature,
    pub(in crate::ledger) items: Vec<Vec<u8>>,
}

pub(in crate::ledger) fn client(number: u8) -> ClientId {
    ClientId::new(format!("devices/c{number}")).unwrap()
}

pub(in crate::ledger) fn client_key(number: u8) -> SecretKey {
    SecretKey::from_seed(&[100 + number; 32])
}

pub(in crate::ledger) fn node(number: u8) -> NodeId {
    NodeId([number; 32])
}

impl Net {
    pub(in crate::ledger) fn new(n: u8) -> Self {
        let mut replicas: Vec<_> = (1..=n).map(|at| SecretKey::from_seed(&[at; 32])).collect();
        replicas.sort_by_key(SecretKey::node_id);
        let admin = SecretKey::from_seed(&[99; 32]);
        let genesis = Genesis {
            version: GENESIS_VERSION,
            name: "test".into(),
            created: Timestamp(1_767_225_600_000),
            replicas: ReplicaSet::new(replicas.iter().map(SecretKey::node_id).collect()).unwrap(),
            admins: vec![admin.public()],
        };
        let network = genesis.network_id();
        let keys = ReplicaSetKeys::new(&genesis.replicas).unwrap();
        Self { genesis, network, admin, replicas, keys }
    }

    /// The message `seq` of a client; messages of different `variant` differ in their items.
    pub(in crate::ledger) fn message(&self, number: u8, seq: u64, variant: i64, count: u32) -> SignedMessage {
        let key = client_key(number);
        let event_time = Timestamp(1_767_225_600_000 + seq);
        let item = |num| Item {
            client: client(number),
            device: "th-01".into(),
            service: "temperature".into(),
            num,
            event_time,
            value: Value::Integer(variant),
            unit: Some("Cel".into()),
        };
        let items: Vec<_> = (0..count).map(|num| item(num).encode()).collect();
        let header = device::Header {
            client: client(number),
            stream: Stream::new("env").unwrap(),
            seq: MessageSeq(seq),
            event_time,
            count,
            items_root: Tree::new(&items).unwrap().root(),
            body_hash: blake3_plain(b"body"),
            unused_above: None,
        };
        let header_bytes = header.encode();
        let signature = device::header::sign(&self.network, &header_bytes, &key);
        SignedMessage { key, header, header_bytes, signature, items }
    }

    /// The admin's request, not verified: tests of execution make many.
    pub(in crate::ledger) fn admin(&self, sequence: u64, action: AdminAction) -> Arc<VerifiedRequest> {
        let operation = AdminOperation::sign(self.network, &self.admin, sequence, action);
        let request = Request::Admin { node: node(1), operation };
        Arc::new(VerifiedRequest::verify(&self.network, request).unwrap())
    }

    pub(in crate::ledger) fn register(&self, sequence: u64, number: u8) -> Arc<VerifiedRequest> {
        let settings = ClientSettings::default();
        let (client, key) = (client(number), client_key(number).public());
        self.admin(sequence, AdminAction::RegisterClient { client, key, settings })
    }

    pub(in crate::ledger) fn revoke(&self, sequence: u64, number: u8, last_seq: u64) -> Arc<VerifiedRequest> {
        let (client, last_seq, reason) = (client(number), MessageSeq(last_seq), "stolen".into());
        self.admin(sequence, AdminAction::RevokeClient { client, last_seq, reason })
    }

    /// Puts one rule in force, under this name, that writes nothing.
    pub(in crate::ledger) fn set_policies(
        &self,
        sequence: u64,
        replaces: u64,
        name: &str,
    ) -> Arc<VerifiedRequest> {
        let any = Pattern::any;
        let (client, stream, device, service) = (any(), any(), any(), any());
        let (name, policy) = (RuleName::new(name).unwrap(), WritePolicy::Never);
        let policies = PolicySet::new(vec![Rule { name, client, stream, device, service, policy }]).unwrap();
        self.admin(sequence, AdminAction::SetPolicies { replaces, policies })
    }

    /// A certificate by these replicas.
    pub(in crate::ledger) fn certify(&self, content: CheckpointContent, signers: &[u16]) -> Certificate {
        let bytes = codec::encode(&content);
        let sign = |number: &u16| {
            let key = &self.replicas[usize::from(*number)];
            (*number, key.sign(SignatureKind::Checkpoint, &self.network, &bytes))
        };
        Certificate { content, signatures: signers.iter().map(sign).collect() }
    }
}

impl SignedMessage {
    /// The request of a node to write some of the items.
    pub(in crate::ledger) fn request(&self, by: NodeId, picked: &[u32]) -> Arc<VerifiedRequest> {
        let message = AdmittedMessage {
            header: &self.header,
            header_bytes: &self.header_bytes,
            signature: self.signature,
            client_key: self.key.public(),
            items: &self.items,
        };
        Arc::new(VerifiedRequest::from_admitted(by, message, picked).unwrap())
    }
}

/// Executes requests as the next batch.
pub(in crate::ledger) fn execute(state: &mut State, requests: &[Arc<VerifiedRequest>]) -> Executed {
    let sequence = state.head().sequence.next();
    let batch = Batch {
        requests: requests.iter().map(|request| request.digest()).collect(),
        timestamp: state.head().timestamp.plus_ms(1),
        origin_view: View(0),
        proposer: state.replicas().primary(View(0)),
    };
    state.execute(sequence, &batch, requests)
}

/// What became of each request.
pub(in crate::ledger) fn outcomes(executed: Executed) -> Vec<Outcome> {
    executed.outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}
