//! The node's side of the network: a handle for commands, and the events that come back.
//!
//! The handle can be cloned; all clones feed one bounded queue. Whoever holds a [`GossipId`] or a
//! [`Responder`] holds one of a peer's few places: give the verdict or the answer, or drop it, and
//! the place is free again.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use libp2p::gossipsub::MessageId;
use libp2p::{Multiaddr, PeerId};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use crate::network::announce::Announcement;
use crate::network::identity::peer_named;
use crate::network::protocol::{PeerRequest, PeerResponse};
use crate::network::settings::MAX_GOSSIP_BYTES;
use crate::types::{NodeId, Timestamp};

/// Why the network could not be started.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The node's key cannot be a libp2p identity.
    #[error("the node key is not usable as a network identity; make a new one with `ledgermq init`")]
    BadKey,
    /// The network stack could not be built.
    #[error("cannot set up the network: {0}")]
    SetUp(String),
    /// A listen address cannot be used.
    #[error(
        "cannot listen for nodes on {address}: {reason}; stop what uses it, or set p2p.listen to another address"
    )]
    Listen {
        /// The address.
        address: Multiaddr,
        /// What the system said.
        reason: String,
    },
    /// A metric of the same name is registered already.
    #[error("cannot register the network's metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// The swarm task has ended; the node should stop as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the network has stopped")]
pub struct Stopped;

/// Why something was not broadcast.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BroadcastError {
    /// Longer than [`MAX_GOSSIP_BYTES`].
    #[error("{len} bytes are too many for gossip, {MAX_GOSSIP_BYTES} are allowed")]
    TooLarge {
        /// Its length.
        len: usize,
    },
    /// See [`Stopped`].
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// Why a request has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// There is no connection with that node now.
    #[error("the node is not connected")]
    NotConnected,
    /// Too many requests to that node are unanswered already.
    #[error("too many requests to this node are unanswered")]
    Busy,
    /// No answer in time; the request may have been received.
    #[error("the node did not answer in time")]
    TimedOut,
    /// The request breaks a limit of [`crate::network::protocol`]; nothing was sent.
    #[error("the request is outside of the limits of the protocol")]
    OutOfLimits,
    /// The stream failed.
    #[error("the request failed: {0}")]
    Failed(String),
    /// See [`Stopped`].
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// What gossip is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    /// PBFT's phases. The node judges each message.
    Pbft,
    /// Announcements. The network makes and judges them by itself; they never become events.
    Announce,
}

/// What the node thinks of a gossip message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Valid: pass it on.
    Accept,
    /// Of no use (old, out of the window): do not pass it on, nobody is to blame.
    Ignore,
    /// Nobody honest would have passed it on (bad signature, malformed): counts against the peer
    /// that it came from, which is cut off after a few.
    Reject,
}

/// A gossip message that waits for its verdict. Dropping it means [`Verdict::Ignore`].
pub struct GossipId {
    pub(super) message: MessageId,
    pub(super) source: PeerId,
    pub(super) place: OwnedSemaphorePermit,
}

impl fmt::Debug for GossipId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GossipId({} from {})", self.message, self.source)
    }
}

/// Takes the answer to one request. Dropped without an answer, the peer is told
/// [`PeerResponse::Busy`].
pub struct Responder {
    pub(super) answer: oneshot::Sender<Answered>,
    /// The places that the request takes: one of its peer's, and its bytes. Free when the answer is sent, or
    /// when this drops without one.
    pub(super) places: Places,
}

/// Places in budgets, free when dropped.
pub(super) type Places = Vec<OwnedSemaphorePermit>;

/// An answer, and the places that it takes until it is sent.
pub(super) type Answered = (PeerResponse, Places);

impl Responder {
    /// Answers. Never waits; if the peer is gone or has given up, nothing happens. An answer that is
    /// too long to be sent becomes an error at the peer: use [`PeerResponse::requests`] and
    /// [`PeerResponse::blocks`] to make those.
    pub fn respond(self, response: PeerResponse) {
        let _gone = self.answer.send((response, self.places));
    }

    /// Takes a place of the node as well: it is free when the answer is sent, or will not be.
    #[must_use]
    pub fn holding(mut self, place: OwnedSemaphorePermit) -> Self {
        self.places.push(place);
        self
    }
}

impl fmt::Debug for Responder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Responder")
    }
}

/// What the network tells the node.
#[derive(Debug)]
pub enum NetworkEvent {
    /// A gossip message, which is passed on only after [`NetworkHandle::report`].
    Gossip {
        /// Names it in the verdict.
        id: GossipId,
        /// Its topic.
        topic: Topic,
        /// The message.
        data: Vec<u8>,
        /// The peer that passed it on; who made it is for the message to prove.
        from: NodeId,
    },
    /// A peer asks. `Bundle`s are not verified yet, except that they name `from` as their node.
    Request {
        /// Who asks.
        from: NodeId,
        /// What.
        request: PeerRequest,
        /// Takes the answer.
        responder: Responder,
    },
    /// A node is connected (reported once, however many connections there are).
    Connected(NodeId),
    /// The last connection with a node is closed.
    Disconnected(NodeId),
}

/// A connected peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStatus {
    /// Who it is.
    pub node: NodeId,
    /// The remote addresses of its connections.
    pub addresses: Vec<Multiaddr>,
    /// Since when.
    pub connected_since: Timestamp,
    /// The last round trip time measured, if any.
    pub rtt: Option<Duration>,
}

/// What the handle asks of the swarm task.
#[derive(Debug)]
pub(super) enum Command {
    Broadcast {
        topic: Topic,
        data: Vec<u8>,
    },
    Report {
        id: GossipId,
        verdict: Verdict,
    },
    Request {
        peer: PeerId,
        request: PeerRequest,
        answer: oneshot::Sender<Result<PeerResponse, RequestError>>,
    },
    Peers(oneshot::Sender<Vec<PeerStatus>>),
    Announcements(oneshot::Sender<Vec<Announcement>>),
    Reserve(Vec<NodeId>),
    Shutdown,
}

/// Commands to the network; cheap to clone.
#[derive(Debug, Clone)]
pub struct NetworkHandle {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) node: NodeId,
    pub(super) listen_addresses: Arc<[Multiaddr]>,
}

impl NetworkHandle {
    /// This node's id.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The addresses that the node listens on, with real ports, as they were found at the start.
    pub fn listen_addresses(&self) -> &[Multiaddr] {
        &self.listen_addresses
    }

    /// Gossips to all nodes. Returns when the message is queued: delivery is not guaranteed, and
    /// the same bytes within two minutes are a duplicate that nobody gets a second time.
    ///
    /// # Errors
    /// [`BroadcastError`] if it is too large or the network has stopped.
    pub async fn broadcast(&self, topic: Topic, data: Vec<u8>) -> Result<(), BroadcastError> {
        if data.len() > MAX_GOSSIP_BYTES {
            return Err(BroadcastError::TooLarge { len: data.len() });
        }
        Ok(self.send(Command::Broadcast { topic, data }).await?)
    }

    /// Gives the verdict on a gossip message; soon, since it is passed on for some seconds only.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn report(&self, id: GossipId, verdict: Verdict) -> Result<(), Stopped> {
        self.send(Command::Report { id, verdict }).await
    }

    /// Asks a connected node and waits for its answer, which is of the kind that the request wants
    /// (or [`PeerResponse::Busy`]) and otherwise unverified.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn request(&self, node: NodeId, request: PeerRequest) -> Result<PeerResponse, RequestError> {
        if !request.is_within_limits() {
            return Err(RequestError::OutOfLimits);
        }
        let peer = peer_named(&node).ok_or(RequestError::NotConnected)?;
        let (answer, answered) = oneshot::channel();
        self.send(Command::Request { peer, request, answer }).await?;
        answered.await.map_err(|_| Stopped)?
    }

    /// The nodes that are connected now, ascending by id.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn peers(&self) -> Result<Vec<PeerStatus>, Stopped> {
        self.ask(Command::Peers).await
    }

    /// The newest announcement of each known node, ascending by id, without this node's own.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn announcements(&self) -> Result<Vec<Announcement>, Stopped> {
        self.ask(Command::Announcements).await
    }

    /// Names the nodes (the replica set) whose connections are never refused for lack of room, in
    /// place of those named before.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn reserve(&self, nodes: Vec<NodeId>) -> Result<(), Stopped> {
        self.send(Command::Reserve(nodes)).await
    }

    /// Closes all connections and waits until the swarm task has ended.
    pub async fn shutdown(&self) {
        let _already_stopped = self.send(Command::Shutdown).await;
        self.commands.closed().await;
    }

    async fn send(&self, command: Command) -> Result<(), Stopped> {
        self.commands.send(command).await.map_err(|_| Stopped)
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Stopped> {
        let (answer, answered) = oneshot::channel();
        self.send(command(answer)).await?;
        answered.await.map_err(|_| Stopped)
    }
}
