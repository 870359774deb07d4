//! The network between nodes: libp2p over TCP, with gossip for PBFT's phases and the nodes'
//! announcements, and direct streams for whatever is large or has an answer.
//!
//! ```text
//!            commands (bounded)                 gossipsub  ── /pbft, /announce
//! actors ──▶ NetworkHandle ──▶ swarm task ◀──▶ request-response ── bundle, fetch
//!        ◀── NetworkEvent  ◀──              ◀──▶ identify, ping, mDNS, dialer
//!            events (bounded)
//! ```
//!
//! One task owns the swarm and never waits for anybody: commands and events pass through bounded
//! queues, and what happens when one is full is written at its constant in [`settings`].
//!
//! Being connected grants nothing. Who has a vote is the ledger's business; the network only says
//! which node (by its key) a message came from. Peers of another network cannot even finish the
//! handshake, and a peer that sends garbage is cut off for a while.

pub mod announce;
mod behaviour;
mod conduct;
mod dialer;
pub mod handle;
mod identity;
mod metrics;
mod names;
pub mod protocol;
mod resolver;
pub mod settings;
mod stream;
mod task;
mod transport;

pub use announce::{Announcement, SignedAnnouncement};
pub use handle::{
    BroadcastError, GossipId, NetworkError, NetworkEvent, NetworkHandle, PeerStatus, RequestError, Responder,
    Stopped, Topic, Verdict,
};
pub use identity::{node_of, peer_of};
pub use libp2p::Multiaddr;
pub use protocol::{Bundled, MAX_BUNDLE_REQUESTS, PeerRequest, PeerResponse, SignedBundle};
pub use resolver::{Resolve, SystemResolver};
pub use settings::{NetworkSettings, SwarmKey};
pub use task::Network;

#[cfg(test)]
mod tests;
