//! The libp2p behaviours that make up a node, and their settings.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use libp2p::allow_block_list::{self, BlockedPeers};
use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::gossipsub::{
    self, IdentTopic, IdentityTransform, MaxCountSubscriptionFilter, MessageAuthenticity, MessageId,
    TopicHash, ValidationMode, WhitelistSubscriptionFilter,
};
use libp2p::identity::{Keypair, PublicKey};
use libp2p::request_response::{self, ProtocolSupport};
use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::{PeerId, StreamProtocol, identify, mdns, ping};
use tokio::sync::Semaphore;

use crate::crypto::HashKind;
use crate::network::handle::{NetworkError, Topic};
use crate::network::identity::peer_of;
use crate::network::settings::{
    CONNECTIONS_PER_PEER, INBOUND_REQUESTS_PER_PEER, MAX_GOSSIP_BYTES, MAX_GOSSIP_FRAME_BYTES,
    NetworkSettings, OUTBOUND_REQUESTS_PER_PEER,
};
use crate::network::stream::{Lane, StreamCodec};
use crate::types::NetworkId;

/// Connections that are still in their handshakes, in each direction.
const MAX_PENDING_CONNECTIONS: u32 = 64;

/// Gossip ids are the first so many bytes of a hash: enough against chosen collisions.
const GOSSIP_ID_BYTES: usize = 20;

/// The receiver measures a message with its topic's name and the tags of its fields.
const GOSSIP_FRAME_BYTES: usize = 256;

/// How long the same bytes are a duplicate: longer than any message wanders through the mesh.
const DUPLICATE_FOR: Duration = Duration::from_secs(120);

/// Gossipsub names at most 5,000 ids in one IHAVE; ours are short, and this holds them.
const MAX_CONTROL_BYTES: usize = 256 * 1024;

/// Messages that wait for one peer's connection; then it is too slow, and loses them.
const GOSSIP_QUEUE_PER_PEER: usize = 4096;

/// All of a node's behaviours. `limits` and `blocked` come first: they refuse before others act.
#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    pub(super) limits: connection_limits::Behaviour,
    pub(super) blocked: allow_block_list::Behaviour<BlockedPeers>,
    pub(super) gossip: GossipBehaviour,
    pub(super) bundle: request_response::Behaviour<StreamCodec>,
    pub(super) fetch: request_response::Behaviour<StreamCodec>,
    pub(super) identify: identify::Behaviour,
    pub(super) ping: ping::Behaviour,
    pub(super) mdns: Toggle<mdns::tokio::Behaviour>,
}

type GossipBehaviour =
    gossipsub::Behaviour<IdentityTransform, MaxCountSubscriptionFilter<WhitelistSubscriptionFilter>>;

impl Behaviour {
    /// The behaviours of a node of `network`, subscribed to its topics.
    pub(super) fn new(
        keypair: &Keypair,
        network: &NetworkId,
        settings: &NetworkSettings,
    ) -> Result<Self, NetworkError> {
        let budget = StreamCodec::budget(settings.max_inbound_bytes);
        Ok(Self {
            limits: limits(settings),
            blocked: allow_block_list::Behaviour::default(),
            gossip: gossip(network)?,
            bundle: direct(Lane::Bundle, network, settings, &budget)?,
            fetch: direct(Lane::Fetch, network, settings, &budget)?,
            identify: identify::Behaviour::new(identify_config(network, keypair.public())),
            ping: ping::Behaviour::new(
                ping::Config::new()
                    .with_interval(settings.probe_interval)
                    .with_timeout(settings.probe_interval),
            ),
            mdns: mdns(settings, keypair.public().to_peer_id())?,
        })
    }

    /// The direct streams of a lane.
    pub(super) fn lane(&mut self, lane: Lane) -> &mut request_response::Behaviour<StreamCodec> {
        match lane {
            Lane::Bundle => &mut self.bundle,
            Lane::Fetch => &mut self.fetch,
        }
    }
}

/// The names of the topics in gossipsub.
#[derive(Debug)]
pub(super) struct Topics {
    pub(super) pbft: TopicHash,
    pub(super) announce: TopicHash,
}

impl Topics {
    pub(super) fn of(network: &NetworkId) -> Self {
        let hash = |at| topic(network, at).hash();
        Self { pbft: hash(Topic::Pbft), announce: hash(Topic::Announce) }
    }

    pub(super) const fn get(&self, topic: Topic) -> &TopicHash {
        match topic {
            Topic::Pbft => &self.pbft,
            Topic::Announce => &self.announce,
        }
    }
}

/// The name of a topic contains the network id.
fn topic(network: &NetworkId, topic: Topic) -> IdentTopic {
    let name = match topic {
        Topic::Pbft => "pbft",
        Topic::Announce => "announce",
    };
    IdentTopic::new(format!("/ledgermq/{network}/{name}"))
}

/// What a node of this network says in identify; who says anything else is a stranger.
pub(super) fn protocol_version(network: &NetworkId) -> String {
    format!("ledgermq/1/{network}")
}

fn limits(settings: &NetworkSettings) -> connection_limits::Behaviour {
    // A quarter stays for connections that this node makes itself, so that strangers who connect
    // can never cut it off from the nodes it knows.
    let most = settings.max_connections.max(4);
    let mut limits = connection_limits::Behaviour::new(
        ConnectionLimits::default()
            .with_max_pending_incoming(Some(MAX_PENDING_CONNECTIONS))
            .with_max_pending_outgoing(Some(MAX_PENDING_CONNECTIONS))
            .with_max_established_incoming(Some(most - most / 4))
            .with_max_established(Some(most))
            .with_max_established_per_peer(Some(CONNECTIONS_PER_PEER)),
    );
    for peer in settings.reserved.iter().filter_map(peer_of) {
        limits.bypass_peer_id(&peer);
    }
    limits
}

/// Gossipsub for 4 to 20 nodes: the default mesh sizes leave clusters this small stuck.
fn gossip(network: &NetworkId) -> Result<GossipBehaviour, NetworkError> {
    let topics = [Topic::Pbft, Topic::Announce].map(|at| topic(network, at));
    let mut config = gossipsub::ConfigBuilder::default();
    config
        .protocol_id_prefix(format!("/ledgermq/{network}/gossip"))
        .mesh_n(4)
        .mesh_n_low(2)
        .mesh_n_high(8)
        .mesh_outbound_min(1)
        .heartbeat_interval(Duration::from_millis(700))
        .heartbeat_initial_delay(Duration::from_millis(100))
        .flood_publish(true)
        // A verdict may take as long as the history: 10 heartbeats, 7 s.
        .history_length(10)
        .history_gossip(4)
        .validate_messages()
        // Messages carry signatures of their own.
        .validation_mode(ValidationMode::Anonymous)
        .message_id_fn(gossip_id)
        .duplicate_cache_time(DUPLICATE_FOR)
        .max_transmit_size(MAX_GOSSIP_FRAME_BYTES)
        .max_control_message_size(MAX_CONTROL_BYTES)
        .connection_handler_queue_len(GOSSIP_QUEUE_PER_PEER);
    for topic in &topics {
        config.max_transmit_size_for_topic(MAX_GOSSIP_BYTES + GOSSIP_FRAME_BYTES, topic.hash());
    }
    let config = config.build().map_err(|error| NetworkError::SetUp(format!("gossip: {error}")))?;
    let filter = MaxCountSubscriptionFilter {
        filter: WhitelistSubscriptionFilter(topics.iter().map(IdentTopic::hash).collect::<HashSet<_>>()),
        max_subscribed_topics: topics.len(),
        max_subscriptions_per_request: 2 * topics.len(),
    };
    let mut gossip =
        gossipsub::Behaviour::new_with_subscription_filter(MessageAuthenticity::Anonymous, config, filter)
            .map_err(|error| NetworkError::SetUp(format!("gossip: {error}")))?;
    for topic in &topics {
        gossip.subscribe(topic).map_err(|error| NetworkError::SetUp(format!("gossip: {error}")))?;
    }
    Ok(gossip)
}

/// Anonymous messages all have the same id by default; ours is the hash of topic and content.
fn gossip_id(message: &gossipsub::Message) -> MessageId {
    let mut hasher = HashKind::Gossip.hasher();
    hasher.update(message.topic.as_str().as_bytes()).update(&[0]).update(&message.data);
    MessageId::from(&hasher.finalize().as_bytes()[..GOSSIP_ID_BYTES])
}

fn direct(
    lane: Lane,
    network: &NetworkId,
    settings: &NetworkSettings,
    budget: &Arc<Semaphore>,
) -> Result<request_response::Behaviour<StreamCodec>, NetworkError> {
    let name = match lane {
        Lane::Bundle => "bundle",
        Lane::Fetch => "fetch",
    };
    let protocol = StreamProtocol::try_from_owned(format!("/ledgermq/{network}/{name}/1"))
        .map_err(|error| NetworkError::SetUp(format!("protocol name: {error}")))?;
    let config = request_response::Config::default()
        .with_request_timeout(settings.request_timeout)
        .with_max_concurrent_streams(INBOUND_REQUESTS_PER_PEER + OUTBOUND_REQUESTS_PER_PEER);
    let codec = StreamCodec::pattern(lane, Arc::clone(budget));
    Ok(request_response::Behaviour::with_codec(codec, [(protocol, ProtocolSupport::Full)], config))
}

fn identify_config(network: &NetworkId, key: PublicKey) -> identify::Config {
    // Addresses come from announcements, so identify keeps none.
    identify::Config::new(protocol_version(network), key)
        .with_agent_version(format!("ledgermq/{}", env!("CARGO_PKG_VERSION")))
        .with_cache_size(0)
}

fn mdns(settings: &NetworkSettings, local: PeerId) -> Result<Toggle<mdns::tokio::Behaviour>, NetworkError> {
    if !settings.mdns {
        return Ok(Toggle::from(None));
    }
    mdns::tokio::Behaviour::new(mdns::Config::default(), local)
        .map(|mdns| Toggle::from(Some(mdns)))
        .map_err(|error| NetworkError::SetUp(format!("mDNS (it can be switched off): {error}")))
}
