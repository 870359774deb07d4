//! A client that never sends anything twice: MQTT by hand, on one node after the other.
//!
//! It takes PUBACK for what it is, a node's promise to finish the message, and forgets the message.
//! What had no PUBACK when the connection ended is lost or not: it may be on the ledger once. So
//! this client shows what the SDK, which sends again until it has success, would paper over.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use ledgermq::clock::{Clock as _, SystemClock};
use ledgermq::crypto::{SecretKey, VerifyingKey, random_bytes};
use ledgermq::device::compose::{Draft, compose};
use ledgermq::device::control::{self, Forbidden, FromNode, KeyTransport};
use ledgermq::device::encoding::Encoding;
use ledgermq::device::handshake::{self, PayloadKey};
use ledgermq::device::ids::{Nonce, PayloadKid};
use ledgermq::device::telemetry::seal;
use ledgermq::device::token;
use ledgermq::device::topics::Downlink;
use ledgermq::types::{ClientId, MessageSeq, NetworkId, NodeId, Stream};
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::load::Notebook;
use crate::mqtt::{Connect, Packet, Raw};
use crate::network::{TestNetwork, reading};

/// Longest that it waits for any one answer before it goes to the next node.
const PATIENCE: Duration = Duration::from_secs(3);

/// Rest before the next node is tried.
const REST: Duration = Duration::from_millis(100);

pub struct Plain {
    client: ClientId,
    key: SecretKey,
    network: NetworkId,
    nodes: Vec<VerifyingKey>,
    addresses: Vec<SocketAddr>,
    /// The node to go to next.
    at: usize,
    next: u64,
    notebook: Notebook,
}

/// A connection with a payload key.
struct Session {
    raw: Raw,
    kid: PayloadKid,
    payload_key: PayloadKey,
    /// Sent, and not final: place in the notebook by seq.
    open: BTreeMap<u64, usize>,
}

impl Plain {
    pub fn new(
        network: &TestNetwork,
        at: usize,
        client: ClientId,
        key: SecretKey,
        notebook: Notebook,
    ) -> Self {
        let nodes = &network.files().nodes;
        Self {
            client,
            key,
            network: network.id(),
            nodes: nodes.iter().map(|node| VerifyingKey::parse(&node.node.into()).unwrap()).collect(),
            addresses: nodes.iter().map(|node| SocketAddr::new(node.host, node.ports.mqtt)).collect(),
            at,
            next: 1,
            notebook,
        }
    }

    /// Publishes for ever, while it is let.
    pub async fn run(mut self, pace: Duration, mut running: watch::Receiver<bool>) {
        loop {
            let entered = tokio::time::timeout(PATIENCE, self.enter()).await;
            if let Ok(Some(mut session)) = entered {
                while self.publish(&mut session, pace, &mut running).await.is_some() {}
            }
            self.at = (self.at + 1) % self.addresses.len();
            tokio::time::sleep(REST).await;
        }
    }

    /// Connects and hands over a payload key; none if the node is not there, or ends it.
    async fn enter(&self) -> Option<Session> {
        let mut raw = Raw::try_dial(self.addresses[self.at], 4).await.ok()?;
        let now = SystemClock::new().now();
        let token = token::issue(&self.key, &self.network, &self.client, now, 600).unwrap();
        if raw.connect(&Connect::new(self.client.as_str(), &token)).await != Some(0) {
            return None;
        }
        raw.subscribe(&format!("{}/#", self.client)).await.filter(|code| *code == 1)?;
        let nonce = Nonce(random_bytes().unwrap());
        let topic = format!("{}/key", self.client);
        raw.publish(&topic, 1, false, nonce.as_bytes()).await;
        let forbidden = loop {
            if let Some(FromNode::Forbidden(forbidden)) = self.said(&mut raw).await? {
                break forbidden;
            }
        };
        let payload_key = PayloadKey::new(random_bytes().unwrap());
        raw.publish(&topic, 1, false, &self.transport(&forbidden, &payload_key)).await;
        loop {
            match self.said(&mut raw).await? {
                Some(FromNode::KeySuccess(success)) => {
                    return Some(Session { raw, kid: success.kid, payload_key, open: BTreeMap::new() });
                }
                Some(FromNode::KeyFail(_) | FromNode::Unauth(_)) => return None,
                _ => {}
            }
        }
    }

    fn transport(&self, forbidden: &Forbidden, payload_key: &PayloadKey) -> Vec<u8> {
        let randomness = Zeroizing::new(random_bytes().unwrap());
        let sealed =
            handshake::seal(&self.network, &self.client, &forbidden.kem_key, payload_key, &randomness)
                .unwrap();
        let time = SystemClock::new().now();
        let transport = KeyTransport {
            kem_kid: forbidden.kem_kid,
            enc: sealed.enc,
            ct: sealed.ct,
            epoch: time.0.max(forbidden.last_epoch + 1),
            nonce: Nonce(random_bytes().unwrap()),
            time,
        };
        control::sign(&self.network, &self.client, &self.key, &transport)
    }

    /// The next packet, if it is a node's word. Outer none: the connection has ended.
    async fn said(&self, raw: &mut Raw) -> Option<Option<FromNode>> {
        let packet = raw.receive().await?;
        Some(self.read(raw, &packet).await)
    }

    async fn read(&self, raw: &mut Raw, packet: &Packet) -> Option<FromNode> {
        if packet.head >> 4 != 3 {
            return None;
        }
        let (length, rest) = packet.body.split_first_chunk::<2>()?;
        let (topic, mut rest) = rest.split_at(usize::from(u16::from_be_bytes(*length)));
        if packet.head & 0x06 != 0 {
            let (id, after) = rest.split_first_chunk::<2>()?;
            raw.send(0x40, id).await;
            rest = after;
        }
        let downlink = Downlink::parse(&self.client, std::str::from_utf8(topic).ok()?)?;
        let opened: Result<(NodeId, FromNode), _> =
            control::open_from_node(&self.network, &self.client, &self.nodes, &downlink, rest);
        opened.ok().map(|(_, said)| said)
    }

    /// Sends one message and waits for its PUBACK; none when the connection is over, or hangs.
    async fn publish(
        &mut self,
        session: &mut Session,
        pace: Duration,
        running: &mut watch::Receiver<bool>,
    ) -> Option<()> {
        // Acks come meanwhile, and the end of the connection.
        self.listen(session, pace).await?;
        while !*running.borrow() {
            self.listen(session, pace).await?;
        }
        let seq = MessageSeq(self.next);
        self.next += 1;
        let (stream, published) = (Stream::new("env").unwrap(), self.notebook.now());
        let body = reading(SystemClock::new().now().0, 21.0, 41);
        let draft = Draft {
            client: &self.client,
            stream: &stream,
            seq,
            unused_above: None,
            body: &body,
            encoding: Encoding::Zstd,
        };
        let composed = compose(&self.network, &self.key, &draft).unwrap();
        let Session { kid, payload_key, .. } = session;
        let wire =
            seal(&composed.content, seq, kid, payload_key, &self.network, &self.client, &stream).unwrap();
        let at = self.notebook.sent(crate::load::GATEWAYS, seq, composed.header_hash, published);
        session.open.insert(seq.0, at);
        let packet_id = session.raw.publish(&format!("{}/env", self.client), 1, false, &wire).await;
        let acknowledged = async {
            loop {
                let packet = session.raw.receive().await?;
                if packet.head == 0x40 && packet.body[..2] == packet_id.to_be_bytes() {
                    self.notebook.puback(at);
                    return Some(());
                }
                let said = self.read(&mut session.raw, &packet).await;
                self.note(&mut session.open, said)?;
            }
        };
        tokio::time::timeout(PATIENCE, acknowledged).await.ok()?
    }

    /// Takes in what comes within this time.
    async fn listen(&self, session: &mut Session, time: Duration) -> Option<()> {
        let end = tokio::time::Instant::now() + time;
        loop {
            // Looks without reading: a packet that was read by half would be lost when time is up.
            match tokio::time::timeout_at(end, session.raw.stream.peek(&mut [0])).await {
                Err(_) => return Some(()),
                Ok(peeked) => peeked.ok().filter(|bytes| *bytes > 0)?,
            };
            let said = tokio::time::timeout(PATIENCE, self.said(&mut session.raw)).await.ok()??;
            self.note(&mut session.open, said)?;
        }
    }

    /// None if the payload key is gone: the next connection brings another.
    fn note(&self, open: &mut BTreeMap<u64, usize>, said: Option<FromNode>) -> Option<()> {
        match said {
            Some(FromNode::Ack(ack)) => {
                if let Some(at) = open.remove(&ack.seq.0) {
                    self.notebook.success(at, ack);
                }
            }
            Some(FromNode::Error(error)) if !error.code.may_retry() => {
                let at = error.seq.and_then(|seq| open.remove(&seq.0));
                if let Some(at) = at {
                    self.notebook.refused(at, format!("{}: {}", error.code, error.detail));
                }
            }
            Some(FromNode::Forbidden(_) | FromNode::Unauth(_)) => return None,
            _ => {}
        }
        Some(())
    }
}
