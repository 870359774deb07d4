//! Settings of a broker: each limit with its default and what happens when it is reached.

use std::net::SocketAddr;
use std::time::Duration;

/// Settings of the embedded broker.
#[derive(Debug, Clone)]
pub struct BrokerSettings {
    /// Where to listen. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Largest MQTT packet taken; a bigger one ends the connection. The default is 4 MiB of payload
    /// (PROTOCOL.md section 6) and room for the topic and properties.
    pub max_packet_bytes: u32,
    /// Most connections at a time, those without a CONNECT included; one too many is closed at once.
    /// Each takes three open files, so the limit of open files may allow fewer.
    pub max_connections: u32,
    /// Most sessions at a time, connected or kept for an absent client. A CONNECT beyond it is told
    /// that the server is unavailable.
    pub max_sessions: u32,
    /// Most unregistered clients connected at a time; more are refused, so that strangers can never
    /// use up [`Self::max_sessions`].
    pub max_strangers: u32,
    /// Most unacknowledged packets each way in a session: a client's whole window of seqs fits.
    pub max_inflight: u16,
    /// Most downlink messages kept for a client that does not read; the oldest is dropped (a client
    /// that misses an ack sends its message again and is answered again).
    pub max_queued_downlink: usize,
    /// How long a session outlives its connection; on MQTT 5 the client may ask for less.
    pub session_expiry: Duration,
    /// How long a client may take to its first bytes, and from there to the end of the handshake.
    pub handshake_timeout: Duration,
    /// How long the client's socket may refuse to take a packet before the connection is closed.
    pub send_timeout: Duration,
}

impl BrokerSettings {
    /// The defaults, listening on `listen`.
    pub fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            max_packet_bytes: 4 * 1024 * 1024 + 4 * 1024,
            max_connections: 10_000,
            max_sessions: 10_000,
            max_strangers: 256,
            max_inflight: 256,
            max_queued_downlink: 1_024,
            session_expiry: Duration::from_secs(2 * 60 * 60),
            handshake_timeout: Duration::from_secs(10),
            send_timeout: Duration::from_secs(10),
        }
    }
}
