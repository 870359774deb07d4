//! One MQTT connection: rumqttc, used for one connection and then thrown away.
//!
//! rumqttc would resend by itself after a reconnect; here the session does, in order and under a new
//! payload key. So each connection gets a client of its own, a clean MQTT session and an epoch, and
//! nothing of an earlier connection can be taken for news of this one.
//!
//! A task of its own polls rumqttc, since publishing from the loop that polls would freeze it. What it
//! sees goes to the runner over a bounded channel: a slow runner slows the socket.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Event, EventLoop, MqttOptions, NetworkOptions, Outgoing,
    Packet, QoS, StateError, SubscribeFilter, SubscribeReasonCode,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::Endpoint;
use super::session::MAX_INFLIGHT;
use crate::device::control::MAX_CONTROL_BYTES;
use crate::device::topics;
use crate::types::{ClientId, MessageSeq};

/// Requests between session and rumqttc: every message that may be in flight, and keys.
const REQUESTS: usize = MAX_INFLIGHT + 16;
/// rumqttc's own window, never to be reached: all messages in flight, and keys.
const WINDOW: u16 = 200;
/// Longest packet to a node: a telemetry message and its topic.
const MAX_OUTGOING: usize = 4 * 1024 * 1024 + 4 * 1024;
/// Longest packet from a node: a control message or a receipt, and its topic.
const MAX_INCOMING: usize = 8 * MAX_CONTROL_BYTES;
/// Longest wait for a connection.
const CONNECT_TIMEOUT_S: u64 = 10;

/// Names a connection of this process; later ones are larger.
pub(super) type Epoch = u64;

/// What happened on a connection.
#[derive(Debug)]
pub(super) enum LinkEvent {
    /// Connected and subscribed.
    Up,
    /// A message for this client.
    Downlink { topic: String, payload: Bytes },
    /// The broker has acknowledged a telemetry message.
    PubAck(MessageSeq),
    /// The connection has ended; nothing follows.
    Down { reason: String },
    /// The node answered, and did not let this client in; nothing follows.
    Denied { reason: String },
}

/// Who connects, and how.
pub(super) struct Dial<'a> {
    pub(super) client: &'a ClientId,
    pub(super) account: &'a str,
    pub(super) token: String,
    pub(super) endpoint: &'a Endpoint,
    pub(super) keep_alive: Duration,
}

/// What was published and not yet given a packet id, in order; `None` is a key.
type Order = Arc<Mutex<VecDeque<Option<MessageSeq>>>>;

/// A connection; ends when dropped.
pub(super) struct Link {
    pub(super) epoch: Epoch,
    client: AsyncClient,
    order: Order,
    poller: JoinHandle<()>,
}

impl Link {
    /// Starts to connect; what happens is told to `events`.
    pub(super) fn dial(epoch: Epoch, dial: Dial<'_>, events: mpsc::Sender<(Epoch, LinkEvent)>) -> Self {
        let mut options = MqttOptions::new(dial.client.as_str(), &dial.endpoint.host, dial.endpoint.port);
        options
            .set_credentials(dial.account, dial.token)
            .set_keep_alive(dial.keep_alive.max(Duration::from_secs(1)))
            .set_clean_session(true)
            .set_inflight(WINDOW)
            .set_max_packet_size(MAX_INCOMING, MAX_OUTGOING);
        let (client, mut events_in) = AsyncClient::new(options, REQUESTS);
        let mut network = NetworkOptions::new();
        network.set_tcp_nodelay(true);
        network.set_connection_timeout(CONNECT_TIMEOUT_S);
        events_in.set_network_options(network);
        let order = Order::default();
        let poller = Poller {
            endpoint: format!("{}:{}", dial.endpoint.host, dial.endpoint.port),
            client: client.clone(),
            filters: topics::reply_filters(dial.client),
            order: Arc::clone(&order),
            waiting: VecDeque::new(),
        };
        let poller = tokio::spawn(async move {
            let ended = poller.run(events_in, epoch, &events).await;
            // Nobody listens any more if this fails.
            let _ = events.send((epoch, ended)).await;
        });
        Self { epoch, client, order, poller }
    }

    /// Publishes without waiting; false if rumqttc does not take it, which ends the connection.
    pub(super) fn publish(&self, topic: String, seq: Option<MessageSeq>, payload: Vec<u8>) -> bool {
        // Held across both, so that the order here is the order there.
        let mut order = locked(&self.order);
        order.push_back(seq);
        self.client.try_publish(topic, QoS::AtLeastOnce, false, payload).is_ok()
    }

    /// Says goodbye; the connection ends once that is sent.
    pub(super) fn disconnect(&self) -> bool {
        self.client.try_disconnect().is_ok()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.poller.abort();
    }
}

struct Poller {
    /// Where it leads, for a person.
    endpoint: String,
    client: AsyncClient,
    filters: Vec<String>,
    order: Order,
    /// Packet ids without PUBACK.
    waiting: VecDeque<(u16, Option<MessageSeq>)>,
}

impl Poller {
    /// Runs the connection to its end, and says why it ended.
    async fn run(
        mut self,
        mut mqtt: EventLoop,
        epoch: Epoch,
        events: &mpsc::Sender<(Epoch, LinkEvent)>,
    ) -> LinkEvent {
        let closed = || LinkEvent::Down { reason: "closed".to_owned() };
        loop {
            let event = match mqtt.poll().await {
                Ok(event) => event,
                Err(error) => return ended(&self.endpoint, &error),
            };
            let told = match event {
                Event::Incoming(packet) => match self.on_packet(packet) {
                    Ok(told) => told,
                    Err(reason) => return LinkEvent::Down { reason },
                },
                Event::Outgoing(Outgoing::Publish(packet_id)) => {
                    let sent = locked(&self.order).pop_front().flatten();
                    self.waiting.push_back((packet_id, sent));
                    None
                }
                Event::Outgoing(Outgoing::Disconnect) => return closed(),
                Event::Outgoing(_) => None,
            };
            if let Some(event) = told
                && events.send((epoch, event)).await.is_err()
            {
                return closed();
            }
        }
    }

    fn on_packet(&mut self, packet: Packet) -> Result<Option<LinkEvent>, String> {
        match packet {
            Packet::ConnAck(_) => {
                let filter = |path: &String| SubscribeFilter::new(path.clone(), QoS::AtLeastOnce);
                self.client
                    .try_subscribe_many(self.filters.iter().map(filter))
                    .map_err(|error| format!("cannot subscribe: {error}"))?;
                Ok(None)
            }
            Packet::SubAck(suback) => {
                if suback.return_codes.contains(&SubscribeReasonCode::Failure) {
                    return Err("the broker refused the subscription to the client's replies".to_owned());
                }
                Ok(Some(LinkEvent::Up))
            }
            Packet::Publish(publish) => {
                Ok(Some(LinkEvent::Downlink { topic: publish.topic, payload: publish.payload }))
            }
            Packet::PubAck(puback) => {
                let found = self.waiting.iter().position(|(packet_id, _)| *packet_id == puback.pkid);
                let seq = found.and_then(|index| self.waiting.remove(index)).and_then(|(_, seq)| seq);
                Ok(seq.map(LinkEvent::PubAck))
            }
            _ => Ok(None),
        }
    }
}

/// A CONNACK that says no to these credentials says so again; whatever else went wrong may pass.
fn ended(endpoint: &str, error: &ConnectionError) -> LinkEvent {
    use ConnectReturnCode::{BadUserNamePassword, NotAuthorized};
    let reason = match error {
        ConnectionError::Io(error) => format!("{endpoint}: {error}"),
        ConnectionError::MqttState(StateError::Io(error)) => format!("{endpoint}: {error}"),
        // What follows would be bytes of another protocol, taken for a packet.
        ConnectionError::NotConnAck(_) => format!("{endpoint} does not speak MQTT"),
        other => format!("{endpoint}: {other}"),
    };
    match error {
        ConnectionError::ConnectionRefused(NotAuthorized | BadUserNamePassword) => {
            LinkEvent::Denied { reason }
        }
        _ => LinkEvent::Down { reason },
    }
}

fn locked(order: &Order) -> MutexGuard<'_, VecDeque<Option<MessageSeq>>> {
    // A queue is whole between any two calls, so a panic elsewhere leaves it usable.
    order.lock().unwrap_or_else(PoisonError::into_inner)
}
