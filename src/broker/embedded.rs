//! The embedded broker: rmqtt in this process, MQTT 3.1.1 and 5 on one port.
//!
//! rmqtt is a library for brokers of any kind; this one is held to a narrow purpose. No retained
//! messages, no wills, no shared subscriptions, no anonymous sessions, no topic aliases; uplink goes to
//! the gatekeeper (see [`super::hooks`]), downlink to the one client whose topic it is.
//!
//! Three things rmqtt leaves to its user. It takes any number of silent connections: the door (see
//! [`super::door`]) stands in front of it. It has no call to stop: [`EmbeddedBroker::stop`] ends the
//! listener and closes every session itself. And a client that vanishes between CONNECT and CONNACK
//! leaves a session that nobody runs: [`housekeeping`] removes those.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use rmqtt::codec::types::Publish as Packet;
use rmqtt::context::ServerContext;
use rmqtt::fitter::{DefaultFitter, Fitter, FitterManager};
use rmqtt::net::{Builder, Listener};
use rmqtt::server::MqttServer;
use rmqtt::session::SessionState;
use rmqtt::types::{ConnectInfo, Disconnect, FitterType, From as Sender, Id, ListenerConfig, Publish, QoS};
use tokio::task::JoinHandle;

use super::door::{self, Door, Guests};
use super::registry::Registry;
use super::shared::Shared;
use super::{Broker, BrokerError, BrokerSettings, Closing, DownlinkQos, Gatekeeper, Standing, hooks};
use crate::clock::SharedClock;
use crate::device::topics;
use crate::types::ClientId;

/// rmqtt's name for this process; there is no cluster of brokers.
const NODE: u64 = 1;
/// rmqtt's key for the one listener.
const LISTENER: u16 = 1;
/// Two names of 64 bytes and the slash between them (PROTOCOL.md section 1).
const MAX_CLIENT_ID_LEN: usize = 129;
/// How many CONNECTs are judged at a time; more wait.
const MAX_HANDSHAKES: usize = 1_000;
/// How many subscriptions a client may hold: its replies are eight filters, or one with wildcards.
const MAX_SUBSCRIPTIONS: usize = 64;
/// How often sessions without a connection are looked for.
const HOUSEKEEPING_INTERVAL: Duration = Duration::from_secs(5);
/// How long the handshake of a client may keep [`Broker::close_client`] waiting, and in what steps.
const LOCK_ATTEMPTS: u32 = 500;
const LOCK_RETRY: Duration = Duration::from_millis(10);
/// How many sessions are closed at a time when the broker stops.
const CLOSE_CONCURRENCY: usize = 256;
/// Longest that stopping waits for connections to end.
const STOP_LIMIT: Duration = Duration::from_secs(10);
const STOP_POLL: Duration = Duration::from_millis(10);

/// The broker that a node runs by itself.
pub struct EmbeddedBroker {
    shared: Arc<Shared>,
    address: SocketAddr,
    tasks: [JoinHandle<()>; 3],
}

impl EmbeddedBroker {
    /// Binds, and serves clients from now on.
    ///
    /// # Errors
    /// [`BrokerError::Listen`] if the address cannot be bound.
    pub async fn start(
        settings: BrokerSettings,
        gatekeeper: Arc<dyn Gatekeeper>,
        clock: SharedClock,
    ) -> Result<Self, BrokerError> {
        let entrance = door::bind(settings.listen).map_err(|error| listen_error(&settings, &error))?;
        let address = entrance.local_addr().map_err(|error| listen_error(&settings, &error))?;
        let listener = bind(&settings)?;
        let inner = listener.local_addr().map_err(|error| listen_error(&settings, &error))?;
        let guests = Arc::<Guests>::default();
        let door = Door::new(&settings, inner, Arc::clone(&guests));
        let context = ServerContext::new()
            .node_id(NODE)
            .busy_check_enable(false)
            .mqtt_max_sessions(isize::try_from(settings.max_sessions).unwrap_or(isize::MAX))
            .build()
            .await;
        let shared = Arc::new(Shared {
            settings,
            gatekeeper,
            registry: Registry::default(),
            clock,
            guests,
            downlink_dropped: AtomicU64::new(0),
            context: context.clone(),
            stopped: AtomicBool::new(false),
        });
        *context.extends.fitter_mgr_mut().await = Box::new(Fitters { shared: Arc::clone(&shared) });
        hooks::install(context.extends.hook_mgr(), &shared).await;
        let server = MqttServer::new(context).listener_by_id(listener, LISTENER).build();
        let serve = tokio::spawn(async move {
            if let Err(error) = server.run().await {
                tracing::error!(%error, "the mqtt listener ended");
            }
        });
        let door = tokio::spawn(door.run(entrance));
        let tidy = tokio::spawn(housekeeping(Arc::clone(&shared)));
        tracing::info!(%address, "mqtt broker listening");
        Ok(Self { shared, address, tasks: [door, serve, tidy] })
    }

    /// Number of connections, those still shaking hands included.
    pub fn connections(&self) -> usize {
        self.shared.registry.len()
    }

    /// Number of downlink messages that were dropped since the start: queue full, session expired or
    /// client gone.
    pub fn downlink_dropped(&self) -> u64 {
        self.shared.downlink_dropped.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Broker for EmbeddedBroker {
    async fn publish(
        &self,
        client: &ClientId,
        topic: &str,
        payload: Bytes,
        qos: DownlinkQos,
    ) -> Result<(), BrokerError> {
        self.shared.check_running()?;
        if !topics::may_subscribe(client, topic) {
            return Err(BrokerError::ForeignTopic { client: client.clone(), topic: topic.to_owned() });
        }
        let packet = Packet {
            dup: false,
            retain: false,
            qos: match qos {
                DownlinkQos::AtMostOnce => QoS::AtMostOnce,
                DownlinkQos::AtLeastOnce => QoS::AtLeastOnce,
            },
            topic: topic.to_owned().into(),
            packet_id: None,
            payload,
            properties: Some(Default::default()),
        };
        let from = Sender::from_system(session_id(client));
        let publish = Publish::new(Box::new(packet), None, None, None);
        // Fails only in stores for retained and persisted messages, of which there are none.
        if let Err(error) = SessionState::forwards(&self.shared.context, from, publish, false, None).await {
            tracing::warn!(%client, topic, %error, "downlink message not forwarded");
        }
        Ok(())
    }

    async fn close_client(&self, client: &ClientId, closing: Closing) -> Result<(), BrokerError> {
        self.shared.check_running()?;
        self.shared.registry.revoke(client);
        self.shared.close(&session_id(client), closing == Closing::Erase).await;
        Ok(())
    }

    fn local_addr(&self) -> SocketAddr {
        self.address
    }

    async fn stop(&self) {
        self.shared.stopped.store(true, Ordering::Release);
        for task in &self.tasks {
            task.abort();
        }
        let ids: Vec<Id> = self.shared.session_ids().await;
        let closed = futures::stream::iter(ids)
            .for_each_concurrent(CLOSE_CONCURRENCY, |id| async move { self.shared.close(&id, true).await });
        let ended = async {
            closed.await;
            while self.shared.registry.len() > 0 {
                tokio::time::sleep(STOP_POLL).await;
            }
        };
        if tokio::time::timeout(STOP_LIMIT, ended).await.is_err() {
            tracing::warn!(
                connections = self.shared.registry.len(),
                "mqtt broker stopped with connections open"
            );
        }
    }
}

impl Drop for EmbeddedBroker {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Shared {
    pub(super) fn stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    fn check_running(&self) -> Result<(), BrokerError> {
        if self.stopped() { Err(BrokerError::Stopped) } else { Ok(()) }
    }

    /// Tells the gatekeeper that a connection ended, unless it was told before.
    pub(super) async fn disconnected(&self, id: &Id) {
        if let Some(session) = self.registry.remove(id) {
            self.gatekeeper.disconnected(&session).await;
        }
    }

    /// Ends and erases the session of exactly this connection, if it still has it.
    pub(super) async fn erase_if_same(&self, id: &Id) {
        if self.entry(id).await.id_same() == Some(true) {
            self.close(id, true).await;
        }
    }

    /// Ends the connection of the client that `id` names, and erases its session if asked.
    async fn close(&self, id: &Id, erase: bool) {
        for _ in 0..LOCK_ATTEMPTS {
            // The lock keeps handshakes of the same client out.
            let Ok(mut entry) = self.entry(id).await.try_lock().await else {
                tokio::time::sleep(LOCK_RETRY).await;
                continue;
            };
            if erase {
                if let Err(error) = entry.kick(true, true, true).await {
                    tracing::warn!(client = %id.client_id, %error, "session ended while it was closed");
                }
            } else if let Some(tx) = entry.tx() {
                let closed = rmqtt::types::Message::Closed(rmqtt::types::Reason::ConnectKicked(true));
                // Fails only if the session ended by itself.
                let _ = tx.unbounded_send(closed);
            }
            return;
        }
        tracing::warn!(client = %id.client_id, "not closed: it keeps connecting");
    }

    async fn entry(&self, id: &Id) -> Box<dyn rmqtt::shared::Entry> {
        self.context.extends.shared().await.entry(id.clone())
    }

    async fn session_ids(&self) -> Vec<Id> {
        let shared = self.context.extends.shared().await;
        shared.iter().filter_map(|entry| entry.session().map(|session| session.id.clone())).collect()
    }
}

/// Removes sessions that nobody runs and forgets connections whose handshake never ended.
async fn housekeeping(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(HOUSEKEEPING_INTERVAL).await;
        for id in shared.session_ids().await {
            let mut entry = shared.entry(&id).await;
            if entry.tx().is_some_and(|tx| tx.is_closed()) && entry.remove_with(&id).await.is_ok() {
                tracing::debug!(client = %id.client_id, "removed a session that nobody runs");
            }
        }
        let limit = shared.settings.handshake_timeout + HOUSEKEEPING_INTERVAL;
        let (unfinished, connected) = shared.registry.overdue(shared.clock.monotonic(), limit);
        for id in unfinished {
            shared.disconnected(&id).await;
        }
        for id in connected {
            if shared.entry(&id).await.id_same() != Some(true) {
                shared.disconnected(&id).await;
            }
        }
    }
}

/// Gives strangers a session that ends with the connection, whatever they ask for.
struct Fitters {
    shared: Arc<Shared>,
}

impl FitterManager for Fitters {
    fn create(&self, connect: Arc<ConnectInfo>, id: Id, config: ListenerConfig) -> FitterType {
        let slot = self.shared.registry.slot(&id);
        let registered = slot.is_some_and(|slot| slot.session.standing == Standing::Registered);
        let fitter = DefaultFitter::new(connect, id, config);
        if registered { Arc::new(fitter) } else { Arc::new(StrangerFitter(fitter)) }
    }
}

struct StrangerFitter(DefaultFitter);

impl Fitter for StrangerFitter {
    fn keep_alive(&self, keep_alive: &mut u16) -> rmqtt::Result<u16> {
        self.0.keep_alive(keep_alive)
    }

    fn max_mqueue_len(&self) -> usize {
        self.0.max_mqueue_len()
    }

    fn mqueue_rate_limit(&self) -> (std::num::NonZeroU32, Duration) {
        self.0.mqueue_rate_limit()
    }

    fn max_inflight(&self) -> NonZeroU16 {
        self.0.max_inflight()
    }

    fn session_expiry_interval(&self, _: Option<&Disconnect>) -> Duration {
        Duration::ZERO
    }

    fn message_expiry_interval(&self, publish: &Packet) -> Duration {
        self.0.message_expiry_interval(publish)
    }

    fn max_client_topic_aliases(&self) -> u16 {
        0
    }

    fn max_server_topic_aliases(&self) -> u16 {
        0
    }
}

fn bind(settings: &BrokerSettings) -> Result<Listener, BrokerError> {
    Builder::new()
        .name("mqtt")
        .laddr(door::inner_address())
        .nodelay(true)
        .allow_anonymous(false)
        .max_connections(usize::try_from(settings.max_connections).unwrap_or(usize::MAX))
        .max_handshaking_limit(MAX_HANDSHAKES)
        .handshake_timeout(settings.handshake_timeout)
        .send_timeout(settings.send_timeout)
        .max_packet_size(settings.max_packet_bytes)
        .max_clientid_len(MAX_CLIENT_ID_LEN)
        .max_inflight(NonZeroU16::new(settings.max_inflight).unwrap_or(NonZeroU16::MIN))
        .max_mqueue_len(settings.max_queued_downlink)
        .max_subscriptions(MAX_SUBSCRIPTIONS)
        .max_topic_aliases(0)
        .session_expiry_interval(settings.session_expiry)
        .max_session_expiry_interval(settings.session_expiry)
        // Downlink lives as long as its session, and is sent again only on a new connection.
        .message_expiry_interval(Duration::ZERO)
        .message_retry_interval(Duration::ZERO)
        .bind()
        .and_then(Listener::tcp)
        .map_err(|error| listen_error(settings, &error))
}

fn listen_error(settings: &BrokerSettings, error: &dyn std::fmt::Display) -> BrokerError {
    BrokerError::Listen { address: settings.listen, reason: error.to_string() }
}

fn session_id(client: &ClientId) -> Id {
    Id::from(NODE, client.as_str().to_owned().into())
}
