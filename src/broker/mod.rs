//! The MQTT side of a node, behind two traits.
//!
//! ```text
//! client ──CONNECT/PUBLISH/SUBSCRIBE──▶ Broker ──asks──▶ Gatekeeper (the node: registration, keys, log)
//! client ◀──────CONNACK/PUBACK────────── Broker ◀─verdict─ Gatekeeper
//! client ◀──────────downlink──────────── Broker ◀─publish─ the node
//! ```
//!
//! A [`Broker`] speaks MQTT and keeps sessions. Whatever needs knowledge of the ledger it asks its
//! [`Gatekeeper`], one question at a time for each connection, and it acts only on the answer: a
//! PUBLISH is acknowledged after [`Gatekeeper::publish`] has resolved, never before. That is how
//! back-pressure reaches the client's socket. Uplink is never routed to another client; downlink is
//! published by the node alone.
//!
//! A broker holds its clients to PROTOCOL.md sections 2 and 3 (client ids, own topics, no wills, no
//! retained messages). The node checks all of it again, since an external broker may not.

mod door;
mod embedded;
mod hooks;
mod registry;
mod settings;
mod shared;

use std::net::SocketAddr;

use async_trait::async_trait;
use bytes::Bytes;

pub use embedded::EmbeddedBroker;
pub use settings::BrokerSettings;

use crate::types::ClientId;

/// Names one MQTT connection for the lifetime of the process; a client that reconnects gets a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// What the ledger knew of a client when it connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Standing {
    /// Registered, and it proved to hold its identity key by a valid token.
    Registered,
    /// Not registered: connected without proof, may only be told so.
    Unregistered,
}

/// One client's live connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Session {
    /// Who.
    pub client: ClientId,
    /// Which of its connections.
    pub connection: ConnectionId,
    /// Whether it proved who it is.
    pub standing: Standing,
}

/// The MQTT version that a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProtocolVersion {
    /// MQTT 3.1.
    V31,
    /// MQTT 3.1.1.
    V311,
    /// MQTT 5.0.
    V5,
}

/// A CONNECT whose client id has the right form and which carries no will.
#[derive(Debug, Clone)]
pub struct ConnectRequest {
    /// The client id.
    pub client: ClientId,
    /// The connection to be, as it will stand in [`Session::connection`].
    pub connection: ConnectionId,
    /// User name: the operator's account, free text.
    pub username: Option<String>,
    /// Password: the token (a JWT).
    pub password: Option<Bytes>,
    /// Whether the client asks for a session without a past (3.1.1: clean session).
    pub clean_start: bool,
    /// The MQTT version spoken.
    pub protocol: ProtocolVersion,
    /// Where the client connects from.
    pub remote: SocketAddr,
}

/// The node's answer to a CONNECT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectVerdict {
    /// Come in, and take over whatever session the client has.
    Registered,
    /// Come in as a stranger: clean session, few messages, told `unauth`.
    Unregistered,
    /// Stay out: missing or bad token (3.1.1: 5, 5.0: 0x87).
    Refuse,
}

/// A PUBLISH of a client, on a topic that the broker found to be its own.
#[derive(Debug, Clone)]
pub struct Uplink {
    /// Who sent it, over which connection.
    pub session: Session,
    /// The topic, `{client id}/…`.
    pub topic: String,
    /// The payload, as it came.
    pub payload: Bytes,
}

/// The node's answer to a PUBLISH.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UplinkVerdict {
    /// Stored or judged; acknowledge it (a refusal for its content is told in a control message).
    Accepted,
    /// Not the client's topic: 0x87 on MQTT 5, disconnected on 3.1.1.
    NotAuthorized,
    /// The node cannot store it now: disconnect without acknowledging, so that the client keeps it.
    Disconnect,
}

/// What a broker asks and tells the node. Implementations answer in bounded time: one connection's
/// packets wait for the answer, those of other connections do not.
#[async_trait]
pub trait Gatekeeper: Send + Sync + 'static {
    /// Judges a CONNECT: who may come in. Each that is not refused ends in one
    /// [`Gatekeeper::disconnected`], even if the client goes away during the handshake.
    async fn connect(&self, request: ConnectRequest) -> ConnectVerdict;

    /// Takes a PUBLISH. The client's PUBACK waits until this resolves.
    async fn publish(&self, uplink: Uplink) -> UplinkVerdict;

    /// A subscription of the client stands. A stranger is told `unauth` now.
    async fn subscribed(&self, session: &Session);

    /// The connection ended, however it ended. Another one of the same client may already be up.
    async fn disconnected(&self, session: &Session);
}

/// Quality of service of a downlink message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DownlinkQos {
    /// At most once: dropped if the client is away.
    AtMostOnce,
    /// At least once: queued in the client's session within the session's limits.
    AtLeastOnce,
}

/// What a node needs of a broker, embedded or external.
#[async_trait]
pub trait Broker: Send + Sync + 'static {
    /// Publishes a downlink message to one client's subscriptions. Resolves when the message is in
    /// the client's queue (or was found to have no subscriber, which is not an error).
    ///
    /// # Errors
    /// [`BrokerError::ForeignTopic`], and [`BrokerError::Stopped`] after [`Broker::stop`].
    async fn publish(
        &self,
        client: &ClientId,
        topic: &str,
        payload: Bytes,
        qos: DownlinkQos,
    ) -> Result<(), BrokerError>;

    /// Closes the client's connection, if it has one; with [`Closing::Erase`] its session too. Whoever
    /// was let in by an earlier verdict and is still shaking hands is closed as well. Not to be awaited
    /// within a [`Gatekeeper`] call of the same client: the connection waits for that call.
    ///
    /// # Errors
    /// [`BrokerError::Stopped`] after [`Broker::stop`].
    async fn close_client(&self, client: &ClientId, closing: Closing) -> Result<(), BrokerError>;

    /// Where clients connect to, once bound.
    fn local_addr(&self) -> SocketAddr;

    /// Closes all connections and stops listening. Resolves when no connection is left or a limit
    /// of time has passed.
    async fn stop(&self);
}

/// What is left of a client after [`Broker::close_client`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closing {
    /// The connection ends, the session (subscriptions, queued downlink) stays.
    KeepSession,
    /// Nothing stays: after registration, rotation and revocation.
    Erase,
}

/// Why a broker could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The address is in use, or is not this machine's.
    #[error(
        "cannot listen for mqtt on {address}: {reason}; stop what uses it, or set mqtt.listen to another address"
    )]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// What the operating system said.
        reason: String,
    },
    /// A downlink message to a topic that is not the client's, which would reach somebody else.
    #[error("{topic} is not a topic of {client}")]
    ForeignTopic {
        /// The client.
        client: ClientId,
        /// The topic.
        topic: String,
    },
    /// The broker was stopped.
    #[error("the mqtt broker was stopped")]
    Stopped,
}
