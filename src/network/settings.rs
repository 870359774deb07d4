//! What an operator can set, and every limit of the network with its reason.
//!
//! | queue or table | bound | when it is full |
//! | --- | --- | --- |
//! | commands of the handle | [`COMMAND_QUEUE`] | the caller waits |
//! | events to the node | [`EVENT_QUEUE`] | gossip is dropped (ignored), requests wait |
//! | gossip of one peer that has no verdict yet | [`UNJUDGED_GOSSIP_PER_PEER`] | its gossip is ignored |
//! | broadcasts that wait for a second try | [`RETRY_QUEUE`] | the oldest is given up |
//! | requests of one peer that have no answer yet | [`INBOUND_REQUESTS_PER_PEER`] | it is told `Busy` |
//! | bytes of all unanswered requests | [`NetworkSettings::max_inbound_bytes`] | streams wait, then time out |
//! | our unanswered requests to one peer | [`OUTBOUND_REQUESTS_PER_PEER`] | the caller gets `Busy` |
//! | connections, finished or not | [`NetworkSettings::max_connections`] | refused, except reserved nodes |
//! | announcements kept | [`MAX_ANNOUNCEMENTS`] | the oldest of a node that is not connected goes |
//! | addresses to dial | [`MAX_DIAL_TARGETS`] | further ones are not learned |
//! | addresses of one name | [`MAX_ADDRESSES_PER_NAME`] | further ones are not dialed |
//! | peers remembered for misconduct | [`MAX_OFFENDERS`] | the one whose ban ends first is forgotten |

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use libp2p::Multiaddr;
use zeroize::Zeroize;

use crate::metrics::StageTime;
use crate::network::resolver::{Resolve, SystemResolver};
use crate::types::NodeId;

/// Commands on their way to the swarm task: more than all replicas' votes of a full PBFT window
/// would be pointless, since the task drains them far faster than they can be signed.
pub const COMMAND_QUEUE: usize = 1024;

/// Events on their way to the node: about a second of a busy cluster's gossip.
pub const EVENT_QUEUE: usize = 8192;

/// Gossip of one peer that the node has not judged yet: a quarter of [`EVENT_QUEUE`], so that one
/// flooding peer cannot take the place of the others, and more than a full PBFT window (256) of
/// PREPAREs, COMMITs and CHECKPOINTs with some of others that it passes on.
pub const UNJUDGED_GOSSIP_PER_PEER: usize = EVENT_QUEUE / 4;

/// Broadcasts that found no peer or full queues and are tried again. Few: PBFT re-sends by itself.
pub const RETRY_QUEUE: usize = 256;

/// How often a broadcast is tried again before it is given up.
pub const BROADCAST_RETRIES: u32 = 4;

/// The largest gossip message: a PRE-PREPARE names at most 512 digests (16 KiB), and a NEW-VIEW of
/// a window of 256 stays below this. Far below [`MAX_GOSSIP_FRAME_BYTES`], since the receiver
/// measures its whole read buffer.
pub const MAX_GOSSIP_BYTES: usize = 256 * 1024;

/// What gossipsub's decoder takes as one frame.
pub const MAX_GOSSIP_FRAME_BYTES: usize = 1024 * 1024;

/// Requests of one peer that wait for our answer, over all its connections.
pub const INBOUND_REQUESTS_PER_PEER: usize = 8;

/// Our requests to one peer that wait for its answer: not more than it would answer anyway.
pub const OUTBOUND_REQUESTS_PER_PEER: usize = INBOUND_REQUESTS_PER_PEER;

/// Announcements kept: more than the largest replica set (100) with as many ingress nodes.
pub const MAX_ANNOUNCEMENTS: usize = 256;

/// Peers and addresses that the dialer knows, configured ones included.
pub const MAX_DIAL_TARGETS: usize = 512;

/// Addresses taken of one name: more than the largest replica set (100).
pub const MAX_ADDRESSES_PER_NAME: usize = 128;

/// Addresses remembered for one node.
pub const MAX_ADDRESSES_PER_NODE: usize = 8;

/// Peers remembered for misconduct.
pub const MAX_OFFENDERS: usize = 1024;

/// Connections with one peer: two, since both sides may dial at the same moment.
pub const CONNECTIONS_PER_PEER: u32 = 2;

/// A connection must have identified itself as a node of this network within this time.
pub const IDENTIFY_WITHIN: Duration = Duration::from_secs(20);

/// Handshakes (TCP, swarm key, noise, yamux) take at most this long.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Settings of the network. Start from [`NetworkSettings::default`].
#[derive(Debug, Clone)]
pub struct NetworkSettings {
    /// Where to listen, for example `/ip4/0.0.0.0/tcp/7000`; port 0 takes a free one.
    pub listen: Vec<Multiaddr>,
    /// Addresses of nodes to connect to, with or without `/p2p/<peer id>`; dialed again and again
    /// while not connected. The node's own address may be among them. A name without a peer id stands
    /// for all of its addresses.
    pub bootstrap: Vec<Multiaddr>,
    /// How often such a name is resolved, give or take a fifth.
    pub resolve_interval: Duration,
    /// Who resolves it.
    pub resolver: Arc<dyn Resolve>,
    /// Addresses under which others reach this node, announced instead of the listen addresses
    /// (needed behind NAT, and where the node listens on all interfaces of a container).
    pub external: Vec<Multiaddr>,
    /// A key that all nodes share; without it strangers cannot connect at all.
    pub swarm_key: Option<SwarmKey>,
    /// Find nodes of the same local network by mDNS.
    pub mdns: bool,
    /// Nodes (the replicas) whose connections are never refused for lack of room.
    pub reserved: Vec<NodeId>,
    /// The MQTT endpoint to announce, for example `mqtt://10.0.0.1:1883`.
    pub mqtt: Option<String>,
    /// The HTTP endpoint to announce.
    pub api: Option<String>,
    /// The most connections, in and out; reserved nodes come on top.
    pub max_connections: u32,
    /// A request that has no answer after this time has failed.
    pub request_timeout: Duration,
    /// The most bytes that all requests together may take which arrived and are not answered.
    pub max_inbound_bytes: usize,
    /// How often the node announces itself.
    pub announce_interval: Duration,
    /// How often each connection is probed. One whose peer misses two probes in a row (each may take
    /// as long again) is closed: TCP alone would not notice for hours that a machine is gone.
    pub probe_interval: Duration,
    /// Counts the processor time of connections, and of what is behind them.
    pub time: StageTime,
}

impl Default for NetworkSettings {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            bootstrap: Vec::new(),
            resolve_interval: Duration::from_secs(10),
            resolver: Arc::new(SystemResolver),
            external: Vec::new(),
            swarm_key: None,
            mdns: false,
            reserved: Vec::new(),
            mqtt: None,
            api: None,
            max_connections: 128,
            time: StageTime::default(),
            request_timeout: Duration::from_secs(20),
            max_inbound_bytes: 128 * 1024 * 1024,
            announce_interval: Duration::from_secs(30),
            probe_interval: Duration::from_secs(5),
        }
    }
}

/// A pre-shared key of 32 bytes: connections are encrypted with it before anything else is said.
#[derive(Clone, PartialEq, Eq)]
pub struct SwarmKey([u8; 32]);

impl SwarmKey {
    /// A key of these bytes.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The key's bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl Drop for SwarmKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for SwarmKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SwarmKey(..)")
    }
}

/// Not a swarm key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a swarm key is 64 hex digits, alone or as the third line of a libp2p swarm key file (`/key/swarm/psk/1.0.0/`, `/base16/`, the digits)"
)]
pub struct InvalidSwarmKey;

impl FromStr for SwarmKey {
    type Err = InvalidSwarmKey;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lines: Vec<&str> = text.trim().lines().map(str::trim).collect();
        let digits = match lines.as_slice() {
            [digits] | ["/key/swarm/psk/1.0.0/", "/base16/", digits] => digits,
            _ => return Err(InvalidSwarmKey),
        };
        let mut bytes = [0; 32];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| InvalidSwarmKey)?;
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_swarm_key_is_read_from_hex_and_from_a_key_file() {
        let digits = "ab".repeat(32);
        let expected = SwarmKey::new([0xab; 32]);
        assert_eq!(digits.parse(), Ok(expected.clone()));
        assert_eq!(format!("/key/swarm/psk/1.0.0/\n/base16/\n{digits}\n").parse(), Ok(expected));
    }

    #[test]
    fn whatever_else_is_no_swarm_key_and_panics_nowhere() {
        for text in ["", "ab", &"zz".repeat(32), &"é".repeat(32), "/key/swarm/psk/1.0.0/\n/base64/\nx"] {
            assert_eq!(text.parse::<SwarmKey>(), Err(InvalidSwarmKey), "{text}");
        }
    }

    #[test]
    fn a_swarm_key_never_shows_in_logs() {
        assert_eq!(format!("{:?}", SwarmKey::new([0xab; 32])), "SwarmKey(..)");
    }
}
