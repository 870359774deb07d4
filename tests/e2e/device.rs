//! A client of the device protocol, step by step, so that tests can take a wrong one.

use std::collections::VecDeque;

use ledgermq::clock::{Clock as _, SystemClock};
use ledgermq::crypto::{SecretKey, VerifyingKey, blake3_plain, random_bytes};
use ledgermq::device::Header;
use ledgermq::device::compose::{Composed, Draft, compose};
use ledgermq::device::control::{self, Ack, ErrorReply, Forbidden, FromNode, KeySuccess, KeyTransport};
use ledgermq::device::cose::{self, Sign1};
use ledgermq::device::encoding::Encoding;
use ledgermq::device::handshake::{PayloadKey, seal as seal_key};
use ledgermq::device::header;
use ledgermq::device::ids::{Nonce, PayloadKid};
use ledgermq::device::telemetry::seal;
use ledgermq::device::token;
use ledgermq::device::topics::Downlink;
use ledgermq::types::{ClientId, Hash, MessageSeq, NetworkId, NodeId, Stream, Timestamp};
use zeroize::Zeroizing;

use crate::mqtt::{Connect, Packet, Raw};
use crate::network::TestNetwork;

pub struct Device {
    pub raw: Raw,
    pub client: ClientId,
    pub key: SecretKey,
    network: NetworkId,
    nodes: Vec<VerifyingKey>,
    payload_key: Option<(PayloadKid, PayloadKey)>,
    arrived: VecDeque<(String, FromNode)>,
}

pub fn now() -> Timestamp {
    SystemClock::new().now()
}

pub fn stream() -> Stream {
    Stream::new("env").unwrap()
}

impl Device {
    /// Connected to node `at` as a registered client, and subscribed.
    pub async fn connect(network: &TestNetwork, at: usize, client: &str, key: &SecretKey, level: u8) -> Self {
        let mut device = Self::enter(network, at, client, key, level, true).await;
        device.subscribe().await;
        device
    }

    /// Connected to node 0 without a token, and not subscribed.
    pub async fn stranger(network: &TestNetwork, client: &str, level: u8) -> Self {
        Self::enter(network, 0, client, &SecretKey::generate().unwrap(), level, false).await
    }

    /// Comes again while it is told to come later: the connection that it takes over may be ending
    /// by itself at the same moment.
    async fn enter(
        network: &TestNetwork,
        at: usize,
        client: &str,
        key: &SecretKey,
        level: u8,
        has_token: bool,
    ) -> Self {
        let try_once = async || {
            let mut device = Self::dial(network, at, client, key, level).await;
            let token = has_token.then(|| device.token());
            let connect = Connect { token: token.as_deref(), ..Connect::stranger(client) };
            match device.raw.connect(&connect).await {
                Some(0) => Some(device),
                later => {
                    assert!(matches!(later, Some(3 | 0x88)), "{client} got {later:?}");
                    None
                }
            }
        };
        network.eventually("the client is let in", try_once).await
    }

    /// The same, with a payload key.
    pub async fn ready(network: &TestNetwork, at: usize, client: &str, key: &SecretKey, level: u8) -> Self {
        let mut device = Self::connect(network, at, client, key, level).await;
        device.hand_over_key().await;
        device
    }

    /// A connection without a CONNECT yet.
    pub async fn dial(network: &TestNetwork, at: usize, client: &str, key: &SecretKey, level: u8) -> Self {
        Self {
            raw: Raw::dial(("127.0.0.1", network.ports(at).mqtt), level).await,
            client: ClientId::new(client).unwrap(),
            key: key.clone(),
            network: network.id(),
            nodes: network
                .files()
                .nodes
                .iter()
                .map(|node| VerifyingKey::parse(&node.node.into()).unwrap())
                .collect(),
            payload_key: None,
            arrived: VecDeque::new(),
        }
    }

    pub fn token(&self) -> String {
        token::issue(&self.key, &self.network, &self.client, now(), 600).unwrap()
    }

    pub async fn subscribe(&mut self) {
        let filter = format!("{}/#", self.client);
        assert_eq!(self.raw.subscribe(&filter).await, Some(1));
    }

    /// Asks for the KEM key and hands over a payload key.
    pub async fn hand_over_key(&mut self) -> KeySuccess {
        let nonce = Nonce(random_bytes().unwrap());
        self.publish("key", nonce.as_bytes()).await;
        let forbidden = self.forbidden().await;
        assert_eq!(forbidden.nonce, Some(nonce));
        self.answer(&forbidden).await
    }

    /// Hands over a payload key to the node that said `forbidden`.
    pub async fn answer(&mut self, forbidden: &Forbidden) -> KeySuccess {
        let payload_key = PayloadKey::new(random_bytes().unwrap());
        let randomness = Zeroizing::new(random_bytes().unwrap());
        let sealed =
            seal_key(&self.network, &self.client, &forbidden.kem_key, &payload_key, &randomness).unwrap();
        let transport = KeyTransport {
            kem_kid: forbidden.kem_kid,
            enc: sealed.enc,
            ct: sealed.ct,
            epoch: now().0.max(forbidden.last_epoch + 1),
            nonce: Nonce(random_bytes().unwrap()),
            time: now(),
        };
        let message = control::sign(&self.network, &self.client, &self.key, &transport);
        self.publish("key", &message).await;
        match self.next_but_acks().await {
            FromNode::KeySuccess(success) => {
                assert_eq!(success.nonce, transport.nonce);
                self.payload_key = Some((success.kid, payload_key));
                success
            }
            other => panic!("key/success was expected: {other:?}"),
        }
    }

    pub fn compose(&self, seq: u64, body: &[u8]) -> Composed {
        let (client, stream) = (&self.client, &stream());
        let seq = MessageSeq(seq);
        let draft = Draft { client, stream, seq, unused_above: None, body, encoding: Encoding::Zstd };
        compose(&self.network, &self.key, &draft).unwrap()
    }

    /// Encrypts content to the node that has the payload key.
    pub fn seal(&self, seq: u64, content: &[u8]) -> Vec<u8> {
        let (kid, key) = self.payload_key.as_ref().expect("a payload key was handed over");
        seal(content, MessageSeq(seq), kid, key, &self.network, &self.client, &stream()).unwrap()
    }

    /// A message that `compose` would refuse to make: signed, with this header and body.
    pub fn forge(&self, header: &Header, signer: &SecretKey, encoding: u64, body: &[u8]) -> Vec<u8> {
        let payload = header.encode();
        let signature = header::sign(&self.network, &payload, signer);
        let protected = header::PROTECTED_EDDSA;
        let mut content = vec![0x83];
        Sign1 { protected, payload: &payload, signature }.append_to(&mut content);
        cose::append_unsigned(&mut content, encoding);
        cose::append_byte_string(&mut content, body);
        content
    }

    /// A header for `body` with a root that fits nothing.
    pub fn header(&self, seq: u64, body: &[u8]) -> Header {
        Header {
            client: self.client.clone(),
            stream: stream(),
            seq: MessageSeq(seq),
            event_time: now(),
            count: 2,
            items_root: Hash([7; 32]),
            body_hash: blake3_plain(body),
            unused_above: None,
        }
    }

    /// Sends a good message and gives its PUBACK's reason code.
    pub async fn send(&mut self, seq: u64, body: &[u8]) -> Option<u8> {
        let composed = self.compose(seq, body);
        let wire = self.seal(seq, &composed.content);
        self.publish("env", &wire).await
    }

    /// Publishes below the client's topic; the PUBACK's reason code, none if the connection ended.
    pub async fn publish(&mut self, below: &str, payload: &[u8]) -> Option<u8> {
        let topic = format!("{}/{below}", self.client);
        let packet_id = self.raw.publish(&topic, 1, false, payload).await;
        loop {
            let packet = self.raw.receive().await?;
            match packet.head >> 4 {
                3 => self.on_publish(&packet).await,
                4 if packet.body[..2] == packet_id.to_be_bytes() => {
                    // "No matching subscribers" of MQTT 5 is a success: nobody but the node reads uplink.
                    return packet.body.get(2).map(|code| if *code == 0x10 { 0 } else { *code }).or(Some(0));
                }
                // DISCONNECT of MQTT 5: the end of the connection follows.
                14 => {}
                _ => panic!("unexpected {packet:?}"),
            }
        }
    }

    /// The next message of a node: the last parts of its topic, and what it says.
    pub async fn next(&mut self) -> (String, FromNode) {
        self.next_or_end().await.expect("a message and not the end of the connection")
    }

    pub async fn next_or_end(&mut self) -> Option<(String, FromNode)> {
        loop {
            if let Some(next) = self.arrived.pop_front() {
                return Some(next);
            }
            let packet = self.raw.receive().await?;
            match packet.head >> 4 {
                3 => self.on_publish(&packet).await,
                14 => {}
                _ => panic!("unexpected {packet:?}"),
            }
        }
    }

    async fn on_publish(&mut self, packet: &Packet) {
        let (topic, packet_id, payload) = read_publish(packet, self.raw.level);
        if let Some(packet_id) = packet_id {
            self.raw.send(0x40, &packet_id).await;
        }
        let (below, said) = self.open(&topic, &payload);
        self.arrived.push_back((below, said));
    }

    /// Opens a downlink message, which must be signed by a node of the network.
    fn open(&self, topic: &str, payload: &[u8]) -> (String, FromNode) {
        let downlink = Downlink::parse(&self.client, topic).unwrap_or_else(|| panic!("{topic}"));
        let opened: Result<(NodeId, FromNode), _> =
            control::open_from_node(&self.network, &self.client, &self.nodes, &downlink, payload);
        let (_, said) = opened.unwrap_or_else(|error| panic!("{topic}: {error}"));
        (downlink.to_string(), said)
    }

    pub async fn ack(&mut self) -> Ack {
        match self.next().await {
            (_, FromNode::Ack(ack)) => ack,
            other => panic!("an ack was expected: {other:?}"),
        }
    }

    /// The ack of this message. Those of others may come again before it: a node that was
    /// restarted does not know which of them arrived.
    pub async fn ack_of(&mut self, seq: u64) -> Ack {
        loop {
            let ack = self.ack().await;
            if ack.seq.0 == seq {
                return ack;
            }
        }
    }

    /// The next message that is no ack; acks before it are kept.
    async fn next_but_acks(&mut self) -> FromNode {
        let mut acks = VecDeque::new();
        let said = loop {
            match self.next().await {
                ack @ (_, FromNode::Ack(_)) => acks.push_back(ack),
                (_, other) => break other,
            }
        };
        acks.append(&mut self.arrived);
        self.arrived = acks;
        said
    }

    pub async fn error(&mut self) -> ErrorReply {
        match self.next_but_acks().await {
            FromNode::Error(error) => error,
            other => panic!("an error was expected: {other:?}"),
        }
    }

    pub async fn forbidden(&mut self) -> Forbidden {
        match self.next_but_acks().await {
            FromNode::Forbidden(forbidden) => forbidden,
            other => panic!("forbidden was expected: {other:?}"),
        }
    }
}

/// Topic, packet id if there is one, and payload.
fn read_publish(packet: &Packet, level: u8) -> (String, Option<[u8; 2]>, Vec<u8>) {
    let (length, rest) = packet.body.split_first_chunk::<2>().unwrap();
    let (topic, mut rest) = rest.split_at(usize::from(u16::from_be_bytes(*length)));
    let mut packet_id = None;
    if packet.head & 0x06 != 0 {
        let (id, after) = rest.split_first_chunk::<2>().unwrap();
        (packet_id, rest) = (Some(*id), after);
    }
    if level == 5 {
        let length = usize::from(rest[0]);
        assert!(length < 128, "a node sends few properties");
        rest = &rest[1 + length..];
    }
    (String::from_utf8(topic.to_vec()).unwrap(), packet_id, rest.to_vec())
}
