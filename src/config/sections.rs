//! The sections of the settings, with their defaults.
//!
//! Sizes are in bytes and times in milliseconds or seconds, as their names say; in the program a
//! time is a [`Duration`].

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use libp2p::Multiaddr;
use serde::{Deserialize, Serialize};

use crate::ledger::MAX_DIGEST_ROWS;
use crate::pbft::settings::defaults;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line, for log collectors.
    Json,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// A level (`error`, `warn`, `info`, `debug`, `trace`), or directives as `tracing` knows them:
    /// `info,ledgermq::pbft=debug`.
    pub level: String,
    /// For people or for machines.
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::default() }
    }
}

/// `[mqtt]`: the embedded broker and the device protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MqttConfig {
    /// Address that gateways connect to.
    pub listen: SocketAddr,
    /// `host:port` under which gateways reach this node, told to other nodes; none if it is not to
    /// be told.
    pub announce: Option<String>,
    /// The longest MQTT packet that is read; a longer one ends its connection.
    pub max_packet_bytes: u32,
    /// The longest JSON body after decompression; a longer one is `too_large`.
    pub max_body_bytes: u32,
    /// Sessions at once, connected or kept for an absent client; the next client is refused.
    pub max_connections: u32,
    /// Connections of clients that are not registered, of all connections.
    pub max_unregistered_connections: u32,
    /// Messages a minute that are read from a client that is not registered.
    pub unregistered_messages_per_minute: u32,
    /// Unacknowledged QoS 1 and 2 messages each way in a session: a client's whole window of seqs
    /// fits.
    pub max_inflight: u16,
    /// Messages to one client that wait behind those; above that the oldest reply is dropped, and
    /// the client gets it again when it sends its message again.
    pub max_queued_replies: u32,
    /// How long a session outlives its connection; on MQTT 5 a client may ask for less.
    #[serde(rename = "session_expiry_s", with = "seconds")]
    pub session_expiry: Duration,
    /// Longest life of a client's token.
    #[serde(rename = "token_max_age_s", with = "seconds")]
    pub token_max_age: Duration,
    /// How long a KEM key is offered before a fresh one takes its place.
    #[serde(rename = "kem_lifetime_s", with = "seconds")]
    pub kem_lifetime: Duration,
    /// How long a payload key is good.
    #[serde(rename = "payload_key_lifetime_s", with = "seconds")]
    pub payload_key_lifetime: Duration,
    /// For how many messages a payload key is good.
    pub payload_key_max_messages: u64,
    /// How far ahead of this node's clock an `eventTime` or an epoch may be.
    #[serde(rename = "clock_ahead_ms", with = "millis")]
    pub clock_ahead: Duration,
    /// Replies a minute, for each client, to what cannot be decrypted or is not signed by a
    /// registered client: nobody shall use a node to flood a client.
    pub unverified_replies_per_minute: u32,
    /// How long a message may wait for room in the node's queues before its client is disconnected
    /// without a PUBACK.
    #[serde(rename = "submit_timeout_ms", with = "millis")]
    pub submit_timeout: Duration,
}

impl Default for MqttConfig {
    fn default() -> Self {
        Self {
            listen: loopback(1883),
            announce: None,
            max_packet_bytes: 4 << 20,
            max_body_bytes: 16 << 20,
            max_connections: 10_000,
            max_unregistered_connections: 100,
            unregistered_messages_per_minute: 30,
            max_inflight: 256,
            max_queued_replies: 1024,
            session_expiry: Duration::from_secs(7200),
            token_max_age: Duration::from_secs(3600),
            kem_lifetime: Duration::from_secs(86_400),
            payload_key_lifetime: Duration::from_secs(86_400),
            payload_key_max_messages: 1 << 20,
            clock_ahead: Duration::from_secs(300),
            unverified_replies_per_minute: 30,
            submit_timeout: Duration::from_secs(2),
        }
    }
}

/// `[api]`: HTTP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ApiConfig {
    /// Address of the HTTP server.
    pub listen: SocketAddr,
    /// Base URL under which this node's API is reached, told to other nodes; none if it is not to
    /// be told.
    pub announce: Option<String>,
    /// Connections at once; the next waits in the kernel's queue.
    pub max_connections: u32,
    /// Address of a second HTTP server, which answers `/livez`, `/readyz` and `/metrics` and nothing
    /// else: whoever takes all connections of the first one keeps no probe waiting. None if probes
    /// use the first.
    pub probes_listen: Option<SocketAddr>,
    /// Connections to that one at once; each answers one request.
    pub probes_max_connections: u32,
    /// The longest request body.
    pub max_request_bytes: u32,
    /// How long a client may take to send a request, and a request to be answered.
    #[serde(rename = "request_timeout_ms", with = "millis")]
    pub request_timeout: Duration,
    /// How long `POST /v1/operations` waits for the operation to be final.
    #[serde(rename = "operation_timeout_ms", with = "millis")]
    pub operation_timeout: Duration,
    /// The most blocks, records or clients in one answer.
    pub max_page: u32,
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            listen: loopback(8080),
            announce: None,
            max_connections: 256,
            probes_listen: None,
            probes_max_connections: 64,
            max_request_bytes: 64 << 10,
            request_timeout: Duration::from_secs(10),
            operation_timeout: Duration::from_secs(20),
            max_page: 1000,
        }
    }
}

/// `[p2p]`: the network between nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct P2pConfig {
    /// Addresses to listen on.
    pub listen: Vec<Multiaddr>,
    /// Addresses of other nodes, dialed again and again while they are not connected. A DNS name
    /// without `/p2p/` and a peer id stands for all of its addresses.
    pub bootstrap: Vec<Multiaddr>,
    /// How often such a name is resolved again, give or take a fifth.
    #[serde(rename = "resolve_interval_s", with = "seconds")]
    pub resolve_interval: Duration,
    /// Addresses under which other nodes reach this one, when they are not those it listens on.
    pub announce: Vec<Multiaddr>,
    /// Whether to find nodes on the local network by multicast DNS.
    pub mdns: bool,
    /// The pre-shared key of the network; none lets any program open a connection (it still gets no
    /// vote).
    pub swarm_key: Option<PathBuf>,
    /// Connections to other nodes at once.
    pub max_connections: u32,
}

impl Default for P2pConfig {
    fn default() -> Self {
        Self {
            listen: vec![
                Multiaddr::empty()
                    .with(libp2p::multiaddr::Protocol::Ip4(Ipv4Addr::LOCALHOST))
                    .with(libp2p::multiaddr::Protocol::Tcp(7000)),
            ],
            bootstrap: Vec::new(),
            resolve_interval: Duration::from_secs(10),
            announce: Vec::new(),
            mdns: false,
            swarm_key: None,
            max_connections: 128,
        }
    }
}

/// `[consensus]`: batching, re-sending and the request pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConsensusConfig {
    /// How long the oldest request may wait before the primary proposes a batch that is not full.
    #[serde(rename = "batch_delay_ms", with = "millis")]
    pub batch_delay: Duration,
    /// Requests in a batch.
    pub batch_max_requests: u32,
    /// Bytes of all requests in a batch.
    pub batch_max_bytes: u32,
    /// While so many batches are proposed and not executed, only full ones are proposed.
    pub pipeline_batches: u32,
    /// The shortest time between two bundles of the requests that this node admitted, which gather meanwhile;
    /// the first one after a pause waits a quarter of it.
    #[serde(rename = "bundle_delay_ms", with = "millis")]
    pub bundle_delay: Duration,
    /// Own PBFT messages are sent again after this time, then after twice that, and so on ...
    #[serde(rename = "resend_interval_ms", with = "millis")]
    pub resend_interval: Duration,
    /// ... up to this, until their phase ends.
    #[serde(rename = "resend_max_interval_ms", with = "millis")]
    pub resend_max_interval: Duration,
    /// Own requests that nobody has proposed are sent again after this time, doubling ...
    #[serde(rename = "request_resend_interval_ms", with = "millis")]
    pub request_resend_interval: Duration,
    /// ... up to this.
    #[serde(rename = "request_resend_max_interval_ms", with = "millis")]
    pub request_resend_max_interval: Duration,
    /// How often missing requests and blocks are asked for again.
    #[serde(rename = "fetch_interval_ms", with = "millis")]
    pub fetch_interval: Duration,
    /// How long execution may stand still while requests wait before the primary is replaced;
    /// doubles with each primary that brings nothing ...
    #[serde(rename = "request_timeout_ms", with = "millis")]
    pub request_timeout: Duration,
    /// ... up to this.
    #[serde(rename = "request_timeout_max_ms", with = "millis")]
    pub request_timeout_max: Duration,
    /// Requests of each admitting node that wait to be ordered; above that more are refused, which
    /// an honest node feels as back-pressure.
    pub pool_max_requests: u32,
    /// Bytes of the same requests.
    pub pool_max_bytes: u64,
    /// Bytes of requests in batches that are proposed and not yet stable; above that nothing more
    /// is proposed or prepared.
    pub inflight_max_bytes: u64,
    /// Pieces of evidence that are kept against each faulty replica; the oldest stay.
    pub evidence_max_per_replica: u32,
    /// The same, against all replicas together.
    pub evidence_max: u32,
}

impl Default for ConsensusConfig {
    fn default() -> Self {
        Self {
            batch_delay: defaults::BATCH_DELAY,
            batch_max_requests: defaults::BATCH_MAX_REQUESTS,
            batch_max_bytes: defaults::BATCH_MAX_BYTES,
            pipeline_batches: defaults::PIPELINE_BATCHES,
            bundle_delay: defaults::BUNDLE_DELAY,
            resend_interval: defaults::RESEND_INITIAL,
            resend_max_interval: defaults::RESEND_MAX,
            request_resend_interval: defaults::REQUEST_RESEND,
            request_resend_max_interval: defaults::REQUEST_RESEND_MAX,
            fetch_interval: defaults::FETCH_INTERVAL,
            request_timeout: defaults::REQUEST_TIMEOUT,
            request_timeout_max: defaults::REQUEST_TIMEOUT_MAX,
            pool_max_requests: defaults::POOL_MAX_REQUESTS,
            pool_max_bytes: u64::from(defaults::POOL_MAX_BYTES),
            inflight_max_bytes: u64::from(defaults::INFLIGHT_MAX_BYTES),
            evidence_max_per_replica: 16,
            evidence_max: 256,
        }
    }
}

/// `[storage]`: the log and the ledger on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StorageConfig {
    /// Memory that sled caches pages in.
    pub cache_bytes: u64,
    /// How often the ledger is made durable and the log cut.
    #[serde(rename = "checkpoint_interval_ms", with = "millis")]
    pub checkpoint_interval: Duration,
    /// The same, after so many bytes of log.
    pub checkpoint_bytes: u64,
    /// Length of one file of the log.
    pub log_segment_bytes: u64,
    /// Bytes that wait to be written to the log; above that whoever appends waits.
    pub log_max_queued_bytes: u64,
    /// Accepted messages are synced at most this soon after the sync before was begun, so that those
    /// that come together share one.
    #[serde(rename = "log_gather_ms", with = "millis")]
    pub log_gather: Duration,
}

impl Default for StorageConfig {
    fn default() -> Self {
        Self {
            cache_bytes: 64 * MIB,
            checkpoint_interval: Duration::from_secs(10),
            checkpoint_bytes: 64 * MIB,
            log_segment_bytes: 64 * MIB,
            log_max_queued_bytes: 64 * MIB,
            log_gather: Duration::from_millis(5),
        }
    }
}

/// `[transfer]`: blocks that this node fetches while it is behind, and gives to nodes that are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TransferConfig {
    /// Bytes of blocks that are fetched a second.
    pub fetch_bytes_per_s: u64,
    /// Requests for blocks to one node at once.
    pub fetch_requests_each: u32,
    /// Bytes of fetched blocks that wait for those below them, and of the longest answers to what is
    /// asked for: 12 MiB each. At least what `f` nodes that never answer can hold, and two answers.
    /// Decoding takes as much again for a moment.
    pub max_buffered_bytes: u64,
    /// Bytes of blocks that are given to all nodes together in a second; then they are told to come
    /// back later. Each replica gets an even part of them, whatever the others take.
    pub serve_bytes_per_s: u64,
    /// The same for each replica, and for all nodes together that are none.
    pub serve_bytes_per_s_each: u64,
    /// Requests for blocks of all nodes that are worked on at once; others come back later. Each replica
    /// has one place of these for itself, and all other nodes have one together, also where that makes
    /// more of them.
    pub serve_requests: u32,
    /// The same for each replica, and for all nodes together that are none.
    pub serve_requests_each: u32,
}

impl Default for TransferConfig {
    fn default() -> Self {
        Self {
            fetch_bytes_per_s: 64 * MIB,
            fetch_requests_each: 2,
            max_buffered_bytes: 64 * MIB,
            serve_bytes_per_s: 64 * MIB,
            serve_bytes_per_s_each: 32 * MIB,
            serve_requests: 8,
            serve_requests_each: 2,
        }
    }
}

/// `[policy]`: the memory of what data items are judged against. The write policies themselves stand on
/// the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyConfig {
    /// Last written values in memory; others are read from the ledger's store.
    pub cached_items: u32,
    /// Data items that are submitted and not indexed yet; with more of them messages wait.
    pub max_open_items: u32,
}

impl Default for PolicyConfig {
    fn default() -> Self {
        Self { cached_items: 65_536, max_open_items: 262_144 }
    }
}

/// `[history]`: the database of all verified messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HistoryConfig {
    /// Where it is; none is a SQLite file in the data directory.
    pub url: Option<DatabaseUrl>,
    /// Bytes of accepted messages that are not in the history; above that no further one is accepted.
    pub max_backlog_bytes: u64,
    /// The longest that a row waits for a digest on the ledger.
    #[serde(rename = "digest_interval_s", with = "seconds")]
    pub digest_interval: Duration,
    /// Rows of one digest; with so many, one is made before the time.
    pub digest_max_rows: u32,
}

impl Default for HistoryConfig {
    fn default() -> Self {
        Self {
            url: None,
            max_backlog_bytes: 256 * MIB,
            digest_interval: Duration::from_secs(60),
            digest_max_rows: MAX_DIGEST_ROWS,
        }
    }
}

/// The URL of a database; its password is not shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DatabaseUrl(pub String);

impl std::fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DatabaseUrl(..)")
    }
}

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// A [`Duration`] as whole milliseconds.
mod millis {
    use super::{Deserialize, Duration};

    pub(super) fn serialize<S: serde::Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_millis)
    }
}

/// A [`Duration`] as whole seconds.
mod seconds {
    use super::{Deserialize, Duration};

    pub(super) fn serialize<S: serde::Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(time.as_secs())
    }

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_secs)
    }
}
