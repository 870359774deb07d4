//! The gateway SDK: everything that a client of PROTOCOL.md does, over one MQTT connection.
//!
//! ```no_run
//! # use ledgermq::gateway::{Gateway, GatewayOptions};
//! # async fn example(options: GatewayOptions) -> Result<(), Box<dyn std::error::Error>> {
//! let gateway = Gateway::connect(options).await?;
//! let stream = "env".parse()?;
//! let body = br#"{"count":1,"eventTime":1767225600000,
//!                 "data":[{"deviceId":"th-01","serviceId":"temperature","num":1,"value":36.5}]}"#;
//! let delivery = gateway.publish(&stream, body.to_vec()).await?;
//! let ack = delivery.done().await?; // final on the ledger, signed by a node
//! println!("seq {} at height {:?}", ack.seq, ack.height);
//! # Ok(()) }
//! ```
//!
//! A message is on disk before it is sent (see [`Delivery::stored`]), and stays there until a node has acknowledged it; the next
//! start sends it again. Its number is never used twice. [`Gateway::publish`] waits while the window of
//! unacknowledged messages is full: that is how back-pressure reaches the caller.
//!
//! ```text
//! publish ─▶ runner ─▶ journal (one thread, fdatasync) ─▶ session (pure) ─▶ link (rumqttc) ─▶ node
//!               ▲                                             │
//!               └──────────── acks, errors, keys ◀────────────┘
//! ```

mod journal;
mod link;
mod outbox;
mod random;
mod runner;
mod session;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use zeroize::Zeroizing;

use journal::Origin;
pub use journal::{JournalError, MAX_REFUSALS, Place};

use crate::clock::{SharedClock, SystemClock};
use crate::crypto::{self, CryptoError, SecretKey, VerifyingKey};
use crate::device::codes::{ACCEPTED_BEFORE, ErrorCode, UnauthReason};
pub use crate::device::control::Ack;
pub use crate::device::encoding::Encoding;
use crate::device::telemetry::TelemetryError;
use crate::types::{ClientId, Hash, MessageSeq, NetworkId, NodeId, Stream};

/// Publishes that wait for a number. Each holds one body; callers beyond it wait in `publish`.
const QUEUE: usize = 64;

/// Where a node, or a broker, takes MQTT connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
}

/// Who a gateway is, whom it believes and where it goes.
#[derive(Clone)]
pub struct GatewayOptions {
    /// The client id.
    pub client: ClientId,
    /// Its identity key.
    pub key: SecretKey,
    /// The network.
    pub network: NetworkId,
    /// The nodes whose word counts.
    pub nodes: Vec<NodeId>,
    /// Where to connect; the next one is tried when one fails.
    pub endpoints: Vec<Endpoint>,
    /// Directory for numbers used and messages not acknowledged. It belongs to this client alone.
    /// None: they are in memory only (see [`Self::in_memory`]).
    pub state: Option<PathBuf>,
    /// MQTT user name: the operator's account, free text.
    pub account: String,
    /// How bodies are compressed.
    pub encoding: Encoding,
    /// MQTT keep-alive; a dead connection is noticed within one and a half of it. At least 1 s.
    pub keep_alive: Duration,
    /// How long each token is good for. A new one is made for every connection.
    pub token_lifetime: Duration,
    /// Source of time.
    pub clock: SharedClock,
}

impl GatewayOptions {
    /// Options with the defaults of everything that has one.
    pub fn new(client: ClientId, key: SecretKey, network: NetworkId, state: impl Into<PathBuf>) -> Self {
        Self { state: Some(state.into()), ..Self::in_memory(client, key, network) }
    }

    /// The same for a client that keeps nothing on disk. What is not acknowledged is lost when the
    /// process ends, and each start leaves a gap in the client's numbers (PROTOCOL.md section 6): for
    /// load tests and for clients that live once.
    pub fn in_memory(client: ClientId, key: SecretKey, network: NetworkId) -> Self {
        Self {
            account: client.to_string(),
            client,
            key,
            network,
            nodes: Vec::new(),
            endpoints: Vec::new(),
            state: None,
            encoding: Encoding::default(),
            keep_alive: Duration::from_secs(30),
            token_lifetime: Duration::from_secs(10 * 60),
            clock: SystemClock::shared(),
        }
    }

    /// Adds a node whose word counts.
    #[must_use]
    pub fn trust(mut self, node: NodeId) -> Self {
        self.nodes.push(node);
        self
    }

    /// Adds a place to connect to.
    #[must_use]
    pub fn endpoint(mut self, host: impl Into<String>, port: u16) -> Self {
        self.endpoints.push(Endpoint { host: host.into(), port });
        self
    }
}

/// Why a gateway cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// No endpoint was given.
    #[error("no endpoint to connect to; name at least one")]
    NoEndpoint,
    /// No trusted node was given.
    #[error("no trusted node; without one no answer can be believed")]
    NoNode,
    /// A trusted node's id is no key.
    #[error("{node} is not a node's id: {reason}")]
    BadNode {
        /// The id.
        node: NodeId,
        /// What is wrong with it.
        reason: CryptoError,
    },
    /// No randomness.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
    /// The state cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// A node's final refusal of a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the node refused the message ({code}): {detail}")]
pub struct Refusal {
    /// Why.
    pub code: ErrorCode,
    /// In words.
    pub detail: String,
}

impl Refusal {
    /// Whether the node had accepted the message before, so that it is in the node's log, and the
    /// ledger did not take it. Otherwise no trace of it is left.
    pub fn was_accepted(&self) -> bool {
        self.detail.starts_with(ACCEPTED_BEFORE)
    }

    /// Whether the same reading under a new number cannot be a second copy of it. Of a number below the window
    /// nothing is known: the message may have become final before another copy of the client moved the window.
    pub fn may_be_tried_again(&self) -> bool {
        self.code != ErrorCode::SeqTooOld
    }
}

/// Why a message was not published.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PublishError {
    /// A node would refuse it; its number is not used.
    #[error(transparent)]
    Invalid(#[from] TelemetryError),
    /// A node refused it. The number is spent; a corrected message is a new one.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The state cannot be written. Nothing is sent that is not remembered.
    #[error("the gateway has stopped: {0}")]
    State(JournalError),
    /// The gateway was closed. What was accepted is sent at the next start.
    #[error("the gateway was closed")]
    Closed,
}

/// What a gateway is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Not connected; tries again by itself.
    Connecting {
        /// What went wrong last.
        reason: Option<String>,
    },
    /// A node did not let this client in: the key is not the one that it was registered with, or a clock is
    /// wrong. Tries again by itself, at the next endpoint.
    Denied {
        /// What the node answered.
        reason: String,
    },
    /// Connected; the node does not know this client, or not any more. Asks again by itself.
    Unregistered {
        /// The node's reason.
        reason: UnauthReason,
    },
    /// Connected; hands over a payload key.
    Handshaking,
    /// Messages are sent to this node.
    Ready {
        /// The node.
        node: NodeId,
    },
    /// Ended, because the state cannot be written or by [`Gateway::close`].
    Stopped,
}

/// A gateway that is not ready after the time given for it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("not ready in time; the gateway's last state is {status:?}")]
pub struct NotReady {
    /// What it was doing.
    pub status: Status,
}

/// A client of the ledger. Clones share one connection; it ends when all are dropped.
#[derive(Debug, Clone)]
pub struct Gateway {
    publishes: mpsc::Sender<runner::Publish>,
    closing: mpsc::Sender<oneshot::Sender<()>>,
    status: watch::Receiver<Status>,
    unfinished: watch::Receiver<usize>,
    refused: watch::Receiver<Vec<(MessageSeq, Refusal)>>,
    sources: Arc<Sources>,
}

/// What the state told of sources that can be read again when it was opened.
#[derive(Debug, Default)]
pub struct Sources {
    /// How far those used last, at most 64, had been taken up.
    pub places: Vec<Place>,
    /// Messages of them that were refused and not tried again, at most [`MAX_REFUSALS`]: the hash of the source up
    /// to each.
    pub refusals: BTreeSet<Hash>,
}

impl Gateway {
    /// Opens the state and starts connecting; does not wait for the connection (see [`Self::ready`]).
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`GatewayError`].
    pub async fn connect(options: GatewayOptions) -> Result<Self, GatewayError> {
        if options.endpoints.is_empty() {
            return Err(GatewayError::NoEndpoint);
        }
        if options.nodes.is_empty() {
            return Err(GatewayError::NoNode);
        }
        let parse = |node: &NodeId| {
            VerifyingKey::parse(&(*node).into())
                .map_err(|reason| GatewayError::BadNode { node: *node, reason })
        };
        let trusted = options.nodes.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
        let seed = Zeroizing::new(crypto::random_bytes()?);
        let (publishes, queue) = mpsc::channel(QUEUE);
        // One to close is enough; the others find the gateway closed.
        let (closing, close) = mpsc::channel(1);
        let (status, watch_status) = watch::channel(Status::Connecting { reason: None });
        let (unfinished, watch_unfinished) = watch::channel(0);
        let (refused, watch_refused) = watch::channel(Vec::new());
        let told = runner::Told { status, unfinished, refused };
        // Opening the state reads and writes files.
        let (runner, sources) = tokio::task::spawn_blocking(move || {
            runner::Runner::open(options, trusted, random::Random::new(&seed), told)
        })
        .await
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
        tokio::spawn(runner.run(queue, close));
        Ok(Self {
            publishes,
            closing,
            status: watch_status,
            unfinished: watch_unfinished,
            refused: watch_refused,
            sources: Arc::new(sources),
        })
    }

    /// Publishes a JSON body (PROTOCOL.md section 6) on a stream. Resolves when the message is signed and
    /// has its number, so that one caller can have many on their way, in order. Waits while the window of unacknowledged messages is full, and, for a client
    /// without a past on this disk, until a node has said where its numbers go on.
    ///
    /// # Errors
    /// [`PublishError::Invalid`] for a body that a node would refuse; [`PublishError::State`] and
    /// [`PublishError::Closed`] when the gateway has ended.
    pub async fn publish(&self, stream: &Stream, body: Vec<u8>) -> Result<Delivery, PublishError> {
        self.hand_over(stream, body, None).await
    }

    /// The same for a message of a source that can be read again, such as a file: the place behind it is kept with
    /// the message, in one write, instead of the one before it. A process that starts again finds it in
    /// [`Self::sources`], and goes on from there.
    ///
    /// # Errors
    /// As [`Self::publish`].
    pub async fn publish_from(
        &self,
        stream: &Stream,
        body: Vec<u8>,
        (before, behind): (Place, Place),
    ) -> Result<Delivery, PublishError> {
        self.hand_over(stream, body, Some(Origin::New(before, behind))).await
    }

    /// The same for one that was refused ([`Sources::refusals`]), with a number of its own: `hash` is that of the
    /// source up to it.
    ///
    /// # Errors
    /// As [`Self::publish`].
    pub async fn publish_again(
        &self,
        stream: &Stream,
        body: Vec<u8>,
        hash: Hash,
    ) -> Result<Delivery, PublishError> {
        self.hand_over(stream, body, Some(Origin::Again(hash))).await
    }

    /// What the state told of sources when it was opened.
    pub fn sources(&self) -> &Sources {
        &self.sources
    }

    async fn hand_over(
        &self,
        stream: &Stream,
        body: Vec<u8>,
        origin: Option<Origin>,
    ) -> Result<Delivery, PublishError> {
        let (reply, answer) = oneshot::channel();
        let publish = runner::Publish { stream: stream.clone(), body, origin, reply };
        self.publishes.send(publish).await.map_err(|_| PublishError::Closed)?;
        answer.await.map_err(|_| PublishError::Closed)?
    }

    /// What the gateway is doing, to be watched.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Number of messages that are not acknowledged, those of earlier runs included.
    pub fn unfinished(&self) -> usize {
        *self.unfinished.borrow()
    }

    /// Which messages that earlier runs left were refused in this one. Who waits for a [`Delivery`] is told by it.
    pub fn refused_of_earlier_runs(&self) -> Vec<(MessageSeq, Refusal)> {
        self.refused.borrow().clone()
    }

    /// Waits until messages can be sent; tells to which node.
    ///
    /// # Errors
    /// [`NotReady`] after `limit`, with what the gateway was doing then.
    pub async fn ready(&self, limit: Duration) -> Result<NodeId, NotReady> {
        let mut status = self.status.clone();
        let ready = async {
            match status.wait_for(|status| matches!(status, Status::Ready { .. } | Status::Stopped)).await {
                Ok(status) => match &*status {
                    Status::Ready { node } => Some(*node),
                    _ => None,
                },
                Err(_) => None,
            }
        };
        match tokio::time::timeout(limit, ready).await {
            Ok(Some(node)) => Ok(node),
            _ => Err(NotReady { status: self.status.borrow().clone() }),
        }
    }

    /// Waits until every message taken so far is acknowledged or refused, or the gateway has ended.
    pub async fn drained(&self) {
        let mut unfinished = self.unfinished.clone();
        // An error means that the gateway has ended.
        let _ = unfinished.wait_for(|count| *count == 0).await;
    }

    /// Ends the connection in good order. What is not acknowledged is sent at the next start.
    pub async fn close(self) {
        let (reply, closed) = oneshot::channel();
        if self.closing.send(reply).await.is_ok() {
            // Answered, or dropped by a gateway that ended by itself.
            let _ = closed.await;
        }
    }
}

/// A message on its way.
#[derive(Debug)]
pub struct Delivery {
    /// Its number.
    pub seq: MessageSeq,
    /// BLAKE3 of its header, as acks name it.
    pub header: Hash,
    stored: Fact,
    puback: Fact,
    done: oneshot::Receiver<Result<Ack, PublishError>>,
}

impl Delivery {
    /// Waits until the message is on this machine's disk: from then on it is sent until it is
    /// acknowledged, whatever happens to this process.
    ///
    /// # Errors
    /// [`PublishError::Closed`] if the gateway ended before; [`Self::done`] tells why.
    pub async fn stored(&mut self) -> Result<(), PublishError> {
        self.stored.wait().await
    }

    /// Waits for the broker's PUBACK: with an embedded broker, the node has the message on disk.
    ///
    /// # Errors
    /// [`PublishError::Closed`] if the gateway ended before; [`Self::done`] tells why.
    pub async fn puback(&mut self) -> Result<(), PublishError> {
        self.puback.wait().await
    }

    /// Waits for the node's signed word: the history row is stored and, if the policy picked any item,
    /// its block is final.
    ///
    /// # Errors
    /// [`PublishError`].
    pub async fn done(self) -> Result<Ack, PublishError> {
        self.done.await.unwrap_or(Err(PublishError::Closed))
    }
}

/// Something that happens once, or never.
#[derive(Debug)]
enum Fact {
    Awaited(oneshot::Receiver<()>),
    Known(Result<(), PublishError>),
}

impl Fact {
    async fn wait(&mut self) -> Result<(), PublishError> {
        if let Self::Awaited(told) = self {
            *self = Self::Known(told.await.map_err(|_| PublishError::Closed));
        }
        match self {
            Self::Known(outcome) => outcome.clone(),
            Self::Awaited(_) => Err(PublishError::Closed),
        }
    }
}
