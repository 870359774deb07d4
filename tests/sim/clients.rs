//! The clients: one gateway for each node, with real signed telemetry.

use std::sync::Arc;
use std::time::Duration;

use ledgermq::crypto::SecretKey;
use ledgermq::device;
use ledgermq::device::item::{Item, Value};
use ledgermq::ledger::{
    AdminAction, AdminOperation, AdmittedMessage, ClientSettings, Request, VerifiedRequest,
};
use ledgermq::pbft::{Input, Source};
use ledgermq::types::{ClientId, Hash, MessageSeq, NetworkId, NodeId, Stream};

use crate::cluster::{Cluster, START};

pub const ADMIN_SEED: [u8; 32] = [99; 32];

impl Cluster {
    /// Every node's client is registered, in fair weather.
    pub fn register_clients(&mut self) {
        let admin = SecretKey::from_seed(&ADMIN_SEED);
        for at in 0..self.n() {
            let action = AdminAction::RegisterClient {
                client: client(at),
                key: device_key(at).public(),
                settings: ClientSettings::default(),
            };
            let operation = AdminOperation::sign(self.network, &admin, at as u64 + 1, action);
            let request = Request::Admin { node: self.keys[0].node_id(), operation };
            let request = Arc::new(VerifiedRequest::verify(&self.network, request).unwrap());
            self.step(0, Input::Request { request, source: Source::Admitted });
        }
        self.run_until(Duration::from_secs(1), "all clients are registered", |cluster| {
            let n = cluster.n();
            cluster.nodes.iter().all(|node| node.state.clients().count() == n && node.is_certified())
        });
    }

    /// The write request number `number` of the client of `node`.
    pub fn request(&self, node: usize, number: u64) -> Arc<VerifiedRequest> {
        write_request(self.network, self.keys[node].node_id(), client(node), number, &device_key(node))
    }

    /// The same message, admitted by another node.
    pub fn request_through(&self, of: usize, node: usize, number: u64) -> Arc<VerifiedRequest> {
        write_request(self.network, self.keys[node].node_id(), client(of), number, &device_key(of))
    }

    /// The same, but signed by a stranger.
    pub fn forged_request(&self, node: usize, number: u64) -> Arc<VerifiedRequest> {
        write_request(self.network, self.keys[node].node_id(), client(node), number, &device_key(50))
    }

    /// Of a client that is not registered.
    pub fn strangers_request(&self, node: usize, number: u64) -> Arc<VerifiedRequest> {
        let stranger = ClientId::new("not/registered").unwrap();
        write_request(self.network, self.keys[node].node_id(), stranger, number, &device_key(node))
    }
}

/// A write request of a client, admitted by a node.
pub fn write_request(
    network: NetworkId,
    node: NodeId,
    client: ClientId,
    number: u64,
    key: &SecretKey,
) -> Arc<VerifiedRequest> {
    let item = Item {
        client: client.clone(),
        device: "th-01".into(),
        service: "temperature".into(),
        num: 1,
        event_time: START,
        value: Value::Integer(number as i64),
        unit: None,
    };
    let items = vec![item.encode()];
    let header = device::Header {
        client,
        stream: Stream::new("env").unwrap(),
        seq: MessageSeq(number),
        event_time: START,
        count: 1,
        items_root: ledgermq::merkle::Tree::new(&items).unwrap().root(),
        body_hash: Hash([0; 32]),
        unused_above: None,
    };
    let header_bytes = header.encode();
    let message = AdmittedMessage {
        header: &header,
        header_bytes: &header_bytes,
        signature: device::header::sign(&network, &header_bytes, key),
        client_key: key.public(),
        items: &items,
    };
    Arc::new(VerifiedRequest::from_admitted(node, message, &[0]).unwrap())
}

pub fn client(node: usize) -> ClientId {
    ClientId::new(format!("gateways/{node}")).unwrap()
}

pub fn device_key(node: usize) -> SecretKey {
    SecretKey::from_seed(&[node as u8 + 101; 32])
}
