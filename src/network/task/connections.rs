//! Connections: who is connected, who must be dialed, who is found out as a stranger.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use libp2p::core::ConnectedPoint;
use libp2p::swarm::dial_opts::DialOpts;
use libp2p::swarm::{ConnectionError, ConnectionId, DialError};
use libp2p::{Multiaddr, PeerId, ping};
use tokio::sync::Semaphore;

use super::Task;
use crate::network::conduct::{Offence, Rate};
use crate::network::dialer::{Failure, Target, reason};
use crate::network::handle::{NetworkEvent, PeerStatus};
use crate::network::identity::node_of;
use crate::network::settings::{
    CONNECTIONS_PER_PEER, IDENTIFY_WITHIN, INBOUND_REQUESTS_PER_PEER, UNJUDGED_GOSSIP_PER_PEER,
};
use crate::types::{NodeId, Timestamp};

/// Announcements that one peer may pass on at once, and then one each quarter of a second: several
/// times what 100 nodes make.
const ANNOUNCEMENT_BURST: u32 = 256;
const ANNOUNCEMENT_EVERY: Duration = Duration::from_millis(250);

/// A failing address is logged at these numbers of failures in a row, and at each 20th.
const LOG_FAILURES: [u32; 2] = [1, 5];

/// A connected peer.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) node: NodeId,
    pub(super) connections: BTreeMap<ConnectionId, Multiaddr>,
    pub(super) since: Timestamp,
    /// The same, monotonic.
    pub(super) connected_at: Duration,
    pub(super) identified: bool,
    pub(super) rtt: Option<Duration>,
    /// Places for gossip without a verdict.
    pub(super) gossip_places: Arc<Semaphore>,
    /// Places for requests without an answer.
    pub(super) request_places: Arc<Semaphore>,
    /// Our own requests to it without an answer.
    pub(super) outbound: usize,
    pub(super) announcements: Rate,
}

impl Peer {
    fn new(node: NodeId, since: Timestamp, now: Duration) -> Self {
        Self {
            node,
            connections: BTreeMap::new(),
            since,
            connected_at: now,
            identified: false,
            rtt: None,
            gossip_places: Arc::new(Semaphore::new(UNJUDGED_GOSSIP_PER_PEER)),
            request_places: Arc::new(Semaphore::new(INBOUND_REQUESTS_PER_PEER)),
            outbound: 0,
            announcements: Rate::new(ANNOUNCEMENT_BURST, ANNOUNCEMENT_EVERY, now),
        }
    }

    pub(super) fn status(&self) -> PeerStatus {
        PeerStatus {
            node: self.node,
            addresses: self.connections.values().cloned().collect(),
            connected_since: self.since,
            rtt: self.rtt,
        }
    }
}

impl Task {
    pub(super) fn dial_due(&mut self, now: Duration) {
        for attempt in self.dialer.due(now, |peer| self.peers.contains_key(peer)) {
            // A port of its own: if two nodes dial each other from their listen ports at the same
            // moment, TCP makes one connection of it, in which both believe to be the dialer.
            let options = match &attempt.target {
                Target::Peer(peer) => {
                    DialOpts::peer_id(*peer).addresses(attempt.addresses).allocate_new_port().build()
                }
                Target::Address(address) => {
                    DialOpts::unknown_peer_id().address(address.clone()).allocate_new_port().build()
                }
            };
            let connection = options.connection_id();
            match self.swarm.dial(options) {
                Ok(()) => self.dialer.on_dialing(attempt.target, connection),
                Err(error) => {
                    tracing::debug!(target = ?attempt.target, %error, "not dialed");
                    self.dialer.on_not_dialed(&attempt.target, now);
                }
            }
        }
    }

    /// mDNS found addresses of peers, each by itself.
    pub(super) fn on_found(&mut self, found: Vec<(PeerId, Multiaddr)>) {
        let mut by_peer: BTreeMap<PeerId, Vec<Multiaddr>> = BTreeMap::new();
        for (peer, address) in found {
            by_peer.entry(peer).or_default().push(address);
        }
        for (peer, addresses) in by_peer {
            tracing::debug!(%peer, ?addresses, "found by mDNS");
            self.dialer.learn(peer, addresses);
        }
    }

    pub(super) fn on_dial_failed(&mut self, connection: ConnectionId, error: &DialError) {
        let now = self.clock.monotonic();
        if let DialError::LocalPeerId { address } = error {
            tracing::debug!(%address, "this address is this node's own");
            self.dialer.on_self(connection, now);
            return;
        }
        self.metrics.connections.with_label_values(&["dial_failed"]).inc();
        let Some(Failure { failures, peer, address, told_elsewhere }) =
            self.dialer.on_failed(connection, now)
        else {
            return tracing::debug!(reason = reason(error), "a dial failed");
        };
        let node = peer.and_then(|peer| node_of(&peer)).map(|node| node.short());
        let node = node.unwrap_or_else(|| "not known yet".to_owned());
        let address = address.map(|address| address.to_string()).unwrap_or_default();
        let reason = reason(error);
        if !told_elsewhere && (LOG_FAILURES.contains(&failures) || failures % 20 == 0) {
            tracing::info!(node, address, reason, failures, "cannot reach a node; will try again");
        } else {
            tracing::debug!(node, address, reason, failures, "a dial failed");
        }
    }

    pub(super) fn on_connected(&mut self, peer: PeerId, connection: ConnectionId, endpoint: &ConnectedPoint) {
        self.metrics.connections.with_label_values(&["established"]).inc();
        if endpoint.is_dialer() {
            self.dialer.on_connected(connection, peer);
        }
        let Some(node) = node_of(&peer) else {
            self.on_offence(peer, Offence::Stranger, &"its key is not a node's");
            return;
        };
        let is_new = !self.peers.contains_key(&peer);
        let entry = self
            .peers
            .entry(peer)
            .or_insert_with(|| Peer::new(node, self.clock.now(), self.clock.monotonic()));
        entry.connections.insert(connection, endpoint.get_remote_address().clone());
        // Reserved peers are exempt from the general limits, not from this one.
        if entry.connections.len() > CONNECTIONS_PER_PEER as usize + 1 {
            self.swarm.close_connection(connection);
        }
        if is_new {
            self.metrics.peers.inc();
            tracing::info!(node = %node.short(), address = %endpoint.get_remote_address(), "node connected");
            self.outbox.push_back(NetworkEvent::Connected(node));
        }
    }

    pub(super) fn on_closed(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        cause: Option<&ConnectionError>,
    ) {
        self.metrics.connections.with_label_values(&["closed"]).inc();
        let Some(entry) = self.peers.get_mut(&peer) else { return };
        entry.connections.remove(&connection);
        if !entry.connections.is_empty() {
            return;
        }
        let (node, connected_at) = (entry.node, entry.connected_at);
        self.peers.remove(&peer);
        self.metrics.peers.dec();
        let now = self.clock.monotonic();
        self.dialer.on_disconnected(&peer, now.saturating_sub(connected_at), now);
        let cause = cause.map_or_else(|| "closed".to_owned(), ToString::to_string);
        tracing::info!(node = %node.short(), cause, "node disconnected");
        self.outbox.push_back(NetworkEvent::Disconnected(node));
    }

    pub(super) fn on_identified(&mut self, peer: PeerId, version: &str) {
        if self.is_our_version(version) {
            if let Some(peer) = self.peers.get_mut(&peer) {
                peer.identified = true;
            }
        } else {
            self.on_offence(peer, Offence::Stranger, &"it speaks another protocol");
        }
    }

    /// The first missed probe is silent, so a failure here is the second in a row.
    pub(super) fn on_probed(&mut self, event: ping::Event) {
        match event.result {
            Ok(rtt) => {
                self.metrics.rtt_ms.observe(rtt.as_secs_f64() * 1000.0);
                if let Some(peer) = self.peers.get_mut(&event.peer) {
                    peer.rtt = Some(rtt);
                }
            }
            Err(failure) => {
                tracing::info!(peer = %event.peer, %failure, "closing a connection that does not answer");
                self.swarm.close_connection(event.connection);
            }
        }
    }

    /// A peer must say what it is; whoever does not only takes up room.
    pub(super) fn cut_off_unidentified(&mut self, now: Duration) {
        let silent: Vec<PeerId> = self
            .peers
            .iter()
            .filter(|(_, peer)| !peer.identified && now.saturating_sub(peer.connected_at) > IDENTIFY_WITHIN)
            .map(|(peer, _)| *peer)
            .collect();
        for peer in silent {
            // No ban: the silence may as well be that of an overloaded machine.
            tracing::info!(%peer, "disconnecting a peer that did not identify itself in time");
            let _already_gone = self.swarm.disconnect_peer_id(peer);
        }
    }
}
