//! A gatekeeper that remembers what it was asked, and a client that speaks MQTT byte by byte, so that
//! tests can send what no library would.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use ledgermq::broker::{
    Broker, BrokerSettings, ConnectRequest, ConnectVerdict, EmbeddedBroker, Gatekeeper, Session, Uplink,
    UplinkVerdict,
};
use ledgermq::clock::SystemClock;
use ledgermq::types::ClientId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

/// Longest that a test waits for anything.
pub const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    Connect(ClientId),
    Publish(Session, String, Bytes),
    Subscribed(Session),
    Disconnected(Session),
}

pub struct TestGate {
    tokens: Mutex<BTreeMap<ClientId, String>>,
    refuse_storage: Mutex<BTreeSet<String>>,
    pub events: Mutex<Vec<Event>>,
    /// A PUBLISH takes one permit before it is answered.
    pub storage: Semaphore,
    /// A CONNECT takes one permit before it is answered.
    pub door: Semaphore,
}

const PLENTY: usize = 1_000_000;

impl TestGate {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            tokens: Mutex::default(),
            refuse_storage: Mutex::default(),
            events: Mutex::default(),
            storage: Semaphore::new(PLENTY),
            door: Semaphore::new(PLENTY),
        })
    }

    pub fn register(&self, client: &str, token: &str) {
        self.tokens.lock().unwrap().insert(id(client), token.to_owned());
    }

    pub fn cannot_store(&self, topic: &str) {
        self.refuse_storage.lock().unwrap().insert(topic.to_owned());
    }

    pub fn count(&self, matching: impl Fn(&Event) -> bool) -> usize {
        self.events.lock().unwrap().iter().filter(|event| matching(event)).count()
    }

    pub fn published(&self) -> Vec<(Session, String, Bytes)> {
        let events = self.events.lock().unwrap();
        let publish = |event: &Event| match event {
            Event::Publish(session, topic, payload) => {
                Some((session.clone(), topic.clone(), payload.clone()))
            }
            _ => None,
        };
        events.iter().filter_map(publish).collect()
    }

    fn note(&self, event: Event) {
        self.events.lock().unwrap().push(event);
    }
}

#[async_trait]
impl Gatekeeper for TestGate {
    async fn connect(&self, request: ConnectRequest) -> ConnectVerdict {
        self.note(Event::Connect(request.client.clone()));
        let known = self.tokens.lock().unwrap().get(&request.client).cloned();
        self.door.acquire().await.unwrap().forget();
        match known {
            None => ConnectVerdict::Unregistered,
            Some(token) if request.password.as_deref() == Some(token.as_bytes()) => {
                ConnectVerdict::Registered
            }
            Some(_) => ConnectVerdict::Refuse,
        }
    }

    async fn publish(&self, uplink: Uplink) -> UplinkVerdict {
        let refused = self.refuse_storage.lock().unwrap().contains(&uplink.topic);
        self.note(Event::Publish(uplink.session, uplink.topic, uplink.payload));
        self.storage.acquire().await.unwrap().forget();
        if refused { UplinkVerdict::Disconnect } else { UplinkVerdict::Accepted }
    }

    async fn subscribed(&self, session: &Session) {
        self.note(Event::Subscribed(session.clone()));
    }

    async fn disconnected(&self, session: &Session) {
        self.note(Event::Disconnected(session.clone()));
    }
}

pub fn id(text: &str) -> ClientId {
    ClientId::new(text).unwrap()
}

pub fn settings() -> BrokerSettings {
    BrokerSettings::new("127.0.0.1:0".parse().unwrap())
}

pub struct World {
    pub gate: Arc<TestGate>,
    pub broker: EmbeddedBroker,
}

impl World {
    pub async fn new() -> Self {
        Self::with(settings()).await
    }

    pub async fn with(settings: BrokerSettings) -> Self {
        let gate = TestGate::new();
        gate.register("devices/iot", "secret");
        gate.register("devices/two", "secret2");
        let broker = EmbeddedBroker::start(settings, gate.clone(), SystemClock::shared()).await.unwrap();
        Self { gate, broker }
    }

    pub fn address(&self) -> SocketAddr {
        self.broker.local_addr()
    }

    pub async fn raw(&self, level: u8) -> Raw {
        Raw { level, stream: TcpStream::connect(self.address()).await.unwrap(), next_id: 1 }
    }

    /// A client that is already connected. It comes again while it is told to come later, which
    /// happens when the connection that it takes over is ending by itself at the same moment.
    pub async fn join(&self, level: u8, client: &str, token: &str) -> Raw {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let mut raw = self.raw(level).await;
            match raw.connect(&Connect::new(client, token)).await {
                Some(0) => return raw,
                later => assert!(matches!(later, Some(3 | 0x88)), "{client} got {later:?}"),
            }
            assert!(tokio::time::Instant::now() < deadline, "{client} is never let in");
        }
    }
}

/// Waits until `condition` holds.
pub async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never happened: {what}"));
}

pub struct Connect<'a> {
    pub client: &'a str,
    pub token: Option<&'a str>,
    pub clean: bool,
    pub will: Option<(&'a str, bool)>,
    pub keep_alive: u16,
    /// MQTT 5 only.
    pub session_expiry: u32,
}

impl<'a> Connect<'a> {
    pub fn new(client: &'a str, token: &'a str) -> Self {
        Self { client, token: Some(token), clean: true, will: None, keep_alive: 60, session_expiry: 0 }
    }

    pub fn stranger(client: &'a str) -> Self {
        Self { token: None, ..Self::new(client, "") }
    }

    pub fn persistent(self) -> Self {
        Self { clean: false, session_expiry: 3600, ..self }
    }
}

/// One packet: type and flags, then the body.
#[derive(Debug, Clone, PartialEq)]
pub struct Packet {
    pub head: u8,
    pub body: Vec<u8>,
}

/// MQTT by hand.
pub struct Raw {
    pub level: u8,
    pub stream: TcpStream,
    next_id: u16,
}

impl Raw {
    /// Sends CONNECT; the return or reason code of the CONNACK, `None` if there was none.
    pub async fn connect(&mut self, connect: &Connect<'_>) -> Option<u8> {
        self.send(0x10, &connect_body(self.level, connect)).await;
        let connack = self.receive().await?;
        assert_eq!(connack.head, 0x20);
        Some(connack.body[1])
    }

    /// The same; whether the CONNACK says that a session was present.
    pub async fn resume(&mut self, connect: &Connect<'_>) -> bool {
        self.send(0x10, &connect_body(self.level, connect)).await;
        let connack = self.receive().await.unwrap();
        assert_eq!((connack.head, connack.body[1]), (0x20, 0));
        connack.body[0] == 1
    }

    /// Sends PUBLISH and returns its packet id.
    pub async fn publish(&mut self, topic: &str, qos: u8, retain: bool, payload: &[u8]) -> u16 {
        let packet_id = self.packet_id();
        let mut body = string(topic);
        if qos > 0 {
            body.extend(packet_id.to_be_bytes());
        }
        if self.level == 5 {
            body.push(0);
        }
        body.extend(payload);
        self.send(0x30 | qos << 1 | u8::from(retain), &body).await;
        packet_id
    }

    /// Waits for the PUBACK of `packet_id`: its reason code (0 on 3.1.1), `None` if the connection ended.
    pub async fn puback(&mut self, packet_id: u16) -> Option<u8> {
        let packet = self.receive().await?;
        assert_eq!(packet.head, 0x40, "{packet:?}");
        assert_eq!(packet.body[..2], packet_id.to_be_bytes());
        Some(packet.body.get(2).copied().unwrap_or(0))
    }

    /// Subscribes; the return or reason code, `None` if the connection ended.
    pub async fn subscribe(&mut self, filter: &str) -> Option<u8> {
        let mut body = self.packet_id().to_be_bytes().to_vec();
        if self.level == 5 {
            body.push(0);
        }
        body.extend(string(filter));
        body.push(1);
        self.send(0x82, &body).await;
        let suback = self.receive().await?;
        assert_eq!(suback.head, 0x90, "{suback:?}");
        suback.body.last().copied()
    }

    pub async fn send(&mut self, head: u8, body: &[u8]) {
        let mut packet = vec![head];
        let mut rest = body.len();
        loop {
            let byte = u8::try_from(rest % 128).unwrap();
            rest /= 128;
            packet.push(if rest > 0 { byte | 0x80 } else { byte });
            if rest == 0 {
                break;
            }
        }
        packet.extend(body);
        // The broker may hang up in the middle of a packet; what follows from that is what is tested.
        let _ = self.stream.write_all(&packet).await;
    }

    /// The next packet, `None` if the connection ended.
    pub async fn receive(&mut self) -> Option<Packet> {
        tokio::time::timeout(PATIENCE, self.read_packet()).await.expect("an answer or the end")
    }

    /// Whether the broker still answers a PING, after whatever was sent before.
    pub async fn is_alive(&mut self) -> bool {
        self.send(0xc0, &[]).await;
        loop {
            match self.receive().await {
                None => return false,
                Some(packet) if packet.head == 0xd0 => return true,
                Some(_) => {}
            }
        }
    }

    async fn read_packet(&mut self) -> Option<Packet> {
        let head = self.stream.read_u8().await.ok()?;
        let (mut length, mut shift) = (0_usize, 0);
        loop {
            let byte = self.stream.read_u8().await.ok()?;
            length |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await.ok()?;
        Some(Packet { head, body })
    }

    fn packet_id(&mut self) -> u16 {
        self.next_id += 1;
        self.next_id
    }
}

fn connect_body(level: u8, connect: &Connect<'_>) -> Vec<u8> {
    let mut flags = u8::from(connect.clean) << 1;
    if connect.token.is_some() {
        flags |= 0xc0;
    }
    if let Some((_, retain)) = connect.will {
        flags |= 0x04 | u8::from(retain) << 5;
    }
    let mut body = string("MQTT");
    body.extend([level, flags]);
    body.extend(connect.keep_alive.to_be_bytes());
    if level == 5 {
        body.extend([5, 0x11]);
        body.extend(connect.session_expiry.to_be_bytes());
    }
    body.extend(string(connect.client));
    if let Some((topic, _)) = connect.will {
        if level == 5 {
            body.push(0);
        }
        body.extend(string(topic));
        body.extend(string("gone"));
    }
    if let Some(token) = connect.token {
        body.extend(string("account"));
        body.extend(string(token));
    }
    body
}

pub fn string(text: &str) -> Vec<u8> {
    let mut bytes = u16::try_from(text.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}
