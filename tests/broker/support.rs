//! A gatekeeper that remembers what it was asked, and a broker in front of it.

#[path = "../common/mqtt.rs"]
pub mod mqtt;

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
use tokio::sync::Semaphore;

pub use mqtt::{Connect, PATIENCE, Raw};

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
        Raw::dial(self.address(), level).await
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
