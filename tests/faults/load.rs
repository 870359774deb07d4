//! Clients that publish through different nodes during a whole fault, and write down every word that
//! they are given.
//!
//! Gateways are the SDK's: they send again until they have signed success. A [`crate::plain`] client
//! stands for those that do not: it takes a PUBACK for a promise and goes away.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use ledgermq::clock::{Clock as _, SystemClock};
use ledgermq::device::control::Ack;
use ledgermq::gateway::{Delivery, Gateway};
use ledgermq::types::{ClientId, Hash, MessageSeq, Stream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::checker::{Sent, Told};
use crate::network::{TestNetwork, reading};
use crate::plain::Plain;

/// Pause between two messages of a client: load enough for something to be on its way whenever a
/// fault begins, on a machine that runs four nodes without optimisation.
const PACE: Duration = Duration::from_millis(120);

/// Gateways of the SDK; client `i` prefers node `i`, and the plain client has the node after them.
pub const GATEWAYS: usize = 3;

/// Data items of each message.
pub const ITEMS: u32 = 2;

/// A message, with times since the load began.
#[derive(Debug, Clone)]
pub struct Message {
    pub client: usize,
    pub seq: MessageSeq,
    pub message: Hash,
    pub published: Duration,
    pub puback: Option<Duration>,
    pub done: Option<Duration>,
    pub told: Told,
}

/// What all clients know.
#[derive(Clone)]
pub struct Notebook {
    clock: Arc<SystemClock>,
    messages: Arc<Mutex<Vec<Message>>>,
}

impl Notebook {
    pub fn now(&self) -> Duration {
        self.clock.monotonic()
    }

    pub fn messages(&self) -> MutexGuard<'_, Vec<Message>> {
        self.messages.lock().unwrap()
    }

    /// Notes a message that is about to be sent; gives its place.
    pub fn sent(&self, client: usize, seq: MessageSeq, message: Hash, published: Duration) -> usize {
        let mut messages = self.messages();
        let told = Told::Nothing;
        messages.push(Message { client, seq, message, published, puback: None, done: None, told });
        messages.len() - 1
    }

    pub fn puback(&self, at: usize) {
        let now = self.now();
        let message = &mut self.messages()[at];
        message.puback.get_or_insert(now);
        if message.told == Told::Nothing {
            message.told = Told::Puback;
        }
    }

    pub fn success(&self, at: usize, ack: Ack) {
        let now = self.now();
        let message = &mut self.messages()[at];
        message.done = Some(now);
        message.told = Told::Success(Box::new(ack));
    }

    pub fn refused(&self, at: usize, why: String) {
        self.messages()[at].told = Told::Refused(why);
    }

    /// Messages published at `since` or later that are final.
    pub fn finals_since(&self, since: Duration) -> Vec<Message> {
        let messages = self.messages();
        messages.iter().filter(|at| at.published >= since && at.done.is_some()).cloned().collect()
    }
}

/// All clients of a network.
pub struct Load {
    pub notebook: Notebook,
    clients: Vec<ClientId>,
    gateways: Vec<Gateway>,
    running: watch::Sender<bool>,
    publishers: Vec<JoinHandle<()>>,
}

impl Load {
    /// Registers the clients and lets them publish.
    pub async fn start(network: &mut TestNetwork) -> Self {
        let clock = Arc::new(SystemClock::new());
        let notebook = Notebook { clock, messages: Arc::default() };
        let (running, watch_running) = watch::channel(true);
        let (mut clients, mut gateways, mut publishers) = (Vec::new(), Vec::new(), Vec::new());
        let n = network.n();
        for client in 0..GATEWAYS {
            let name = format!("devices/gateway-{client}");
            let key = network.register(&name).await;
            let nodes: Vec<usize> = (0..n).map(|at| (client + at) % n).collect();
            let gateway = network.gateway(&name, &key, &nodes).await;
            let (handle, notebook, running) = (gateway.clone(), notebook.clone(), watch_running.clone());
            publishers.push(tokio::spawn(publish(handle, client, notebook, running)));
            clients.push(ClientId::new(name).unwrap());
            gateways.push(gateway);
        }
        let name = ClientId::new("devices/plain").unwrap();
        let key = network.register(name.as_str()).await;
        let plain = Plain::new(network, GATEWAYS, name.clone(), key, notebook.clone());
        publishers.push(tokio::spawn(plain.run(PACE, watch_running)));
        clients.push(name);
        Self { notebook, clients, gateways, running, publishers }
    }

    /// Lets no client send anything new; what is on its way goes on.
    pub fn pause(&self) {
        self.running.send_replace(false);
    }

    pub fn resume(&self) {
        self.running.send_replace(true);
    }

    /// Whether every message of the gateways is final or refused.
    pub fn is_drained(&self) -> bool {
        self.gateways.iter().all(|gateway| gateway.unfinished() == 0)
            && self
                .notebook
                .messages()
                .iter()
                .filter(|at| at.client < GATEWAYS)
                .all(|at| at.done.is_some() || matches!(at.told, Told::Refused(_)))
    }

    /// All messages, for the checker.
    pub fn sent(&self) -> Vec<Sent> {
        let messages = self.notebook.messages();
        let sent = |message: &Message| Sent {
            client: self.clients[message.client].clone(),
            seq: message.seq,
            message: message.message,
            items: ITEMS,
            told: message.told.clone(),
        };
        messages.iter().map(sent).collect()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.publishers.iter().for_each(JoinHandle::abort);
    }
}

async fn publish(gateway: Gateway, client: usize, notebook: Notebook, mut running: watch::Receiver<bool>) {
    let stream = Stream::new("env").unwrap();
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        pace.tick().await;
        if running.wait_for(|running| *running).await.is_err() {
            return;
        }
        let published = notebook.now();
        let body = reading(SystemClock::new().now().0, 20.0, 40);
        let Ok(delivery) = gateway.publish(&stream, body).await else { return };
        let at = notebook.sent(client, delivery.seq, delivery.header, published);
        tokio::spawn(follow(delivery, at, notebook.clone()));
    }
}

async fn follow(mut delivery: Delivery, at: usize, notebook: Notebook) {
    if delivery.puback().await.is_ok() {
        notebook.puback(at);
    }
    match delivery.done().await {
        Ok(ack) => notebook.success(at, ack),
        // The test has ended, and with it the gateway.
        Err(ledgermq::gateway::PublishError::Closed) => {}
        Err(error) => notebook.refused(at, error.to_string()),
    }
}
