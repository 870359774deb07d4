//! A node's side of the device protocol, as small as it can be: real keys, real envelopes, no ledger.
//! What a test wants to go wrong goes wrong here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use ledgermq::broker::{
    Broker, BrokerSettings, ConnectRequest, ConnectVerdict, DownlinkQos, EmbeddedBroker, Gatekeeper, Session,
    Standing, Uplink as BrokerUplink, UplinkVerdict,
};
use ledgermq::clock::{Clock, SystemClock};
use ledgermq::crypto::{SecretKey, VerifyingKey, random_bytes};
use ledgermq::device::codes::{ErrorCode, ForbiddenReason, KeyFailCode, UnauthReason};
use ledgermq::device::control::{self, Ack, ErrorReply, Fields, Forbidden, KeyFail, KeySuccess, Unauth};
use ledgermq::device::handshake::{KemKeyPair, KeyUplink, PayloadKey};
use ledgermq::device::ids::{Nonce, PayloadKid};
use ledgermq::device::telemetry::{Limits, Message, Wire};
use ledgermq::device::token;
use ledgermq::device::topics::{Downlink, Uplink};
use ledgermq::types::{ClientId, Hash, MessageSeq, NetworkId, Stream, Timestamp};
use zeroize::Zeroizing;

pub const NETWORK: NetworkId = NetworkId([9; 32]);
pub const PATIENCE: Duration = Duration::from_secs(30);
const KEY_LIFETIME_MS: u64 = 60_000;

/// What goes wrong.
#[derive(Debug, Default)]
pub struct Faults {
    /// Acks that are not sent although the message is accepted.
    pub lost_acks: u32,
    /// Messages answered with `overloaded`.
    pub overloads: u32,
    /// Key transports refused.
    pub refused_keys: u32,
    /// `error` for these streams.
    pub refused_streams: BTreeMap<Stream, ErrorCode>,
    /// No answer to telemetry on these streams, ever.
    pub mute_streams: BTreeSet<Stream>,
    /// Messages that a payload key is good for.
    pub key_messages: Option<u64>,
    /// Every downlink is preceded by a forged one.
    pub forge: bool,
}

#[derive(Default)]
struct State {
    registered: BTreeMap<ClientId, VerifyingKey>,
    keys: BTreeMap<ClientId, (PayloadKid, PayloadKey, u64)>,
    last_seq: BTreeMap<ClientId, MessageSeq>,
    last_epoch: u64,
    accepted: Vec<Message>,
    headers: BTreeMap<(ClientId, MessageSeq), Hash>,
    /// Seqs in the order of arrival, repeats included.
    arrivals: Vec<u64>,
}

pub struct TestNode {
    pub key: SecretKey,
    kem: KemKeyPair,
    clock: SystemClock,
    state: Mutex<State>,
    pub faults: Mutex<Faults>,
    broker: OnceLock<Arc<EmbeddedBroker>>,
}

impl TestNode {
    pub async fn start() -> Arc<Self> {
        Self::start_at("127.0.0.1:0".parse().unwrap(), 7).await
    }

    pub async fn start_at(listen: SocketAddr, seed: u8) -> Arc<Self> {
        let key = SecretKey::from_seed(&[seed; 32]);
        let private = Zeroizing::new(random_bytes().unwrap());
        let kem = KemKeyPair::new(&key.node_id(), &private, random_bytes().unwrap(), Timestamp::MAX);
        let node = Arc::new(Self {
            key,
            kem,
            clock: SystemClock::new(),
            state: Mutex::default(),
            faults: Mutex::default(),
            broker: OnceLock::new(),
        });
        let settings = BrokerSettings::new(listen);
        let broker = EmbeddedBroker::start(settings, node.clone(), SystemClock::shared()).await.unwrap();
        assert!(node.broker.set(Arc::new(broker)).is_ok());
        node
    }

    pub fn broker(&self) -> &EmbeddedBroker {
        self.broker.get().unwrap()
    }

    pub fn register(&self, client: &ClientId, key: &SecretKey) {
        let key = VerifyingKey::parse(&key.public()).unwrap();
        self.state.lock().unwrap().registered.insert(client.clone(), key);
    }

    /// As after a restart: payload keys are in memory only.
    pub fn forget_keys(&self) {
        self.state.lock().unwrap().keys.clear();
    }

    pub fn set_last_seq(&self, client: &ClientId, seq: u64) {
        self.state.lock().unwrap().last_seq.insert(client.clone(), MessageSeq(seq));
    }

    /// Seqs accepted, each once, in order of acceptance.
    pub fn accepted(&self) -> Vec<u64> {
        self.state.lock().unwrap().accepted.iter().map(|message| message.header().seq.0).collect()
    }

    pub fn arrivals(&self) -> Vec<u64> {
        self.state.lock().unwrap().arrivals.clone()
    }

    pub fn with_message<T>(&self, index: usize, f: impl FnOnce(&Message) -> T) -> T {
        f(&self.state.lock().unwrap().accepted[index])
    }

    async fn say<F: Fields>(&self, client: &ClientId, topic: Downlink, fields: &F) {
        if self.faults.lock().unwrap().forge {
            let forger = SecretKey::from_seed(&[66; 32]);
            self.publish(client, &topic, control::sign(&NETWORK, client, &forger, fields)).await;
            self.publish(client, &topic, b"garbage".to_vec()).await;
        }
        self.publish(client, &topic, control::sign(&NETWORK, client, &self.key, fields)).await;
    }

    async fn publish(&self, client: &ClientId, topic: &Downlink, bytes: Vec<u8>) {
        let Some(broker) = self.broker.get() else { return };
        let (topic, payload) = (topic.topic(client), Bytes::from(bytes));
        // After a stop nobody is there to be answered.
        let _ = broker.publish(client, &topic, payload, DownlinkQos::AtLeastOnce).await;
    }

    async fn forbid(&self, client: &ClientId, nonce: Option<Nonce>) {
        let (last_seq, last_epoch) = {
            let state = self.state.lock().unwrap();
            (state.last_seq.get(client).copied().unwrap_or_default(), state.last_epoch)
        };
        let forbidden = Forbidden {
            reason: ForbiddenReason::NoKey,
            nonce,
            kem_kid: self.kem.kid(),
            kem_key: *self.kem.public(),
            kem_not_after: self.kem.not_after(),
            last_seq,
            last_epoch,
            server_time: self.clock.now(),
        };
        self.say(client, Downlink::Forbidden, &forbidden).await;
    }

    async fn on_key(&self, client: &ClientId, payload: &[u8]) {
        let signed = match KeyUplink::parse(payload).unwrap() {
            KeyUplink::Ask { nonce } => return self.forbid(client, nonce).await,
            KeyUplink::Transport(signed) => signed,
        };
        let (verifying, last_epoch) = {
            let state = self.state.lock().unwrap();
            (state.registered[client], state.last_epoch)
        };
        let message: control::KeyTransport = signed.verify(&NETWORK, client, &verifying).unwrap();
        let now = self.clock.now();
        let refused = {
            let mut faults = self.faults.lock().unwrap();
            let refused = faults.refused_keys > 0;
            faults.refused_keys = faults.refused_keys.saturating_sub(1);
            refused
        };
        let opened = self.kem.accept(&NETWORK, client, &message, last_epoch, now);
        match opened.and_then(|opened| if refused { Err(KeyFailCode::BadCiphertext) } else { Ok(opened) }) {
            Err(code) => {
                let nonce = Some(message.nonce);
                let fail = KeyFail { nonce, code, detail: "test".to_owned(), last_epoch, server_time: now };
                self.say(client, Downlink::KeyFail, &fail).await;
            }
            Ok((kid, key)) => {
                let max_messages = self.faults.lock().unwrap().key_messages.unwrap_or(1 << 20);
                let last_seq = {
                    let mut state = self.state.lock().unwrap();
                    state.last_epoch = message.epoch;
                    state.keys.insert(client.clone(), (kid, key, max_messages));
                    state.last_seq.get(client).copied().unwrap_or_default()
                };
                let success = KeySuccess {
                    kid,
                    nonce: message.nonce,
                    not_after: now.plus_ms(KEY_LIFETIME_MS),
                    max_messages,
                    last_seq,
                    server_time: now,
                };
                self.say(client, Downlink::KeySuccess, &success).await;
            }
        }
    }

    async fn on_telemetry(&self, client: &ClientId, stream: Stream, payload: &[u8]) {
        let Some(message) = self.open(client, &stream, payload) else {
            return self.forbid(client, None).await;
        };
        let (seq, header) = (message.header().seq, message.signed().hash());
        let now = self.clock.now();
        let code = {
            let mut faults = self.faults.lock().unwrap();
            if faults.overloads > 0 {
                faults.overloads -= 1;
                Some(ErrorCode::Overloaded)
            } else {
                faults.refused_streams.get(&stream).copied()
            }
        };
        if let Some(code) = code {
            let (seq, header, detail) = (Some(seq), Some(header), "test".to_owned());
            let error = ErrorReply { stream: stream.clone(), seq, header, code, detail, server_time: now };
            return self.say(client, Downlink::Error(stream), &error).await;
        }
        let items = message.header().count;
        self.accept(client, message);
        {
            let mut faults = self.faults.lock().unwrap();
            if faults.mute_streams.contains(&stream) {
                return;
            }
            if faults.lost_acks > 0 {
                faults.lost_acks -= 1;
                return;
            }
        }
        let ack = Ack {
            stream: stream.clone(),
            seq,
            header,
            items,
            written: Vec::new(),
            height: None,
            block: None,
            server_time: now,
        };
        self.say(client, Downlink::Success(stream), &ack).await;
    }

    /// Decrypts and verifies; `None` if there is no such key.
    fn open(&self, client: &ClientId, stream: &Stream, payload: &[u8]) -> Option<Message> {
        let limits = Limits::default();
        let Wire::Encrypted(envelope) = Wire::decode(payload, &limits).unwrap() else {
            panic!("the gateway sent plaintext");
        };
        let mut state = self.state.lock().unwrap();
        state.arrivals.push(envelope.seq().0);
        let verifying = state.registered[client];
        let (kid, key, left) = state.keys.get_mut(client)?;
        if *kid != envelope.kid() || *left == 0 {
            return None;
        }
        *left -= 1;
        let content = envelope.decrypt(key, &NETWORK, client, stream).unwrap();
        let verified = content.verify(&verifying, &NETWORK, client, stream).unwrap();
        Some(verified.check_body(&limits, self.clock.now()).unwrap())
    }

    /// A seq that comes again must be the same message.
    fn accept(&self, client: &ClientId, message: Message) {
        let mut state = self.state.lock().unwrap();
        let (seq, header) = (message.header().seq, message.signed().hash());
        let known = state.headers.insert((client.clone(), seq), header);
        assert!(known.is_none_or(|known| known == header), "seq {seq} was reused");
        if known.is_none() {
            let last = state.last_seq.entry(client.clone()).or_default();
            *last = (*last).max(seq);
            state.accepted.push(message);
        }
    }
}

#[async_trait]
impl Gatekeeper for TestNode {
    async fn connect(&self, request: ConnectRequest) -> ConnectVerdict {
        let known = self.state.lock().unwrap().registered.get(&request.client).copied();
        let Some(key) = known else { return ConnectVerdict::Unregistered };
        let password = request.password.unwrap_or_default();
        let now = self.clock.now();
        let max_s = token::DEFAULT_MAX_LIFETIME_S;
        match token::verify(&password, &key, &NETWORK, &request.client, now, max_s) {
            Ok(_) => ConnectVerdict::Registered,
            Err(_) => ConnectVerdict::Refuse,
        }
    }

    async fn publish(&self, uplink: BrokerUplink) -> UplinkVerdict {
        let client = &uplink.session.client;
        if uplink.session.standing == Standing::Unregistered {
            self.subscribed(&uplink.session).await;
            return UplinkVerdict::Accepted;
        }
        match Uplink::parse(client, &uplink.topic).unwrap() {
            Uplink::Key => self.on_key(client, &uplink.payload).await,
            Uplink::Telemetry(stream) => self.on_telemetry(client, stream, &uplink.payload).await,
        }
        UplinkVerdict::Accepted
    }

    async fn subscribed(&self, session: &Session) {
        if session.standing == Standing::Unregistered {
            let unauth = Unauth { reason: UnauthReason::NotRegistered, server_time: self.clock.now() };
            self.say(&session.client, Downlink::Unauth, &unauth).await;
        }
    }

    async fn disconnected(&self, _: &Session) {}
}
