//! The swarm task: owns the swarm, turns commands into actions and what happens into events.
//!
//! It never waits for the node. Gossip for which the event queue has no room is dropped; requests
//! and connection changes wait in a short list, and while that is full the swarm is not polled, so
//! that the peers feel it. Commands are served even then: a node that waits for its command to be
//! taken while it should read events can never deadlock with the task.

mod connections;
mod gossip;
mod lookups;
mod requests;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use libp2p::core::transport::ListenerId;
use libp2p::request_response::ResponseChannel;
use libp2p::swarm::SwarmEvent;
use libp2p::{Multiaddr, PeerId, Swarm, identify, mdns};
use prometheus::Registry;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use self::connections::Peer;
use self::gossip::Retry;
use self::lookups::Lookup;
use self::requests::{InboundId, OutboundId, Waiting};
use crate::clock::SharedClock;
use crate::crypto::SecretKey;
use crate::network::announce::Directory;
use crate::network::behaviour::{self, Behaviour, BehaviourEvent, Topics};
use crate::network::conduct::{Conduct, Offence};
use crate::network::dialer::{self, Dialer};
use crate::network::handle::{Command, NetworkError, NetworkEvent, NetworkHandle, Places};
use crate::network::identity::{keypair_of, peer_of};
use crate::network::metrics::NetworkMetrics;
use crate::network::names::Names;
use crate::network::protocol::PeerResponse;
use crate::network::settings::{COMMAND_QUEUE, EVENT_QUEUE, NetworkSettings};
use crate::network::stream::Lane;
use crate::network::transport;
use crate::types::{NetworkId, NodeId, Timestamp};

/// Events other than gossip that wait for room in the event queue.
const OUTBOX: usize = 256;

/// How often the task looks at its timers: a fraction of the shortest of them.
const TICK: Duration = Duration::from_millis(250);

/// How long the system may take to report the addresses of a listener.
const LISTEN_WITHIN: Duration = Duration::from_secs(10);

/// How long a connection without any stream in use is kept: for ever, since direct requests may
/// come at any time. Strangers are found out by identify.
const IDLE_FOR: Duration = Duration::from_secs(365 * 24 * 3600);

/// The network of a node.
#[derive(Debug)]
pub struct Network;

impl Network {
    /// Starts the network on the current tokio runtime; returns when it listens.
    ///
    /// The receiver must be read all the time; when it is dropped, the network stops.
    ///
    /// # Errors
    /// [`NetworkError`] if the network cannot be set up or a listen address cannot be used.
    pub async fn start(
        settings: NetworkSettings,
        key: &SecretKey,
        network: NetworkId,
        clock: SharedClock,
        registry: &Registry,
    ) -> Result<(NetworkHandle, mpsc::Receiver<NetworkEvent>), NetworkError> {
        let (commands, command_queue) = mpsc::channel(COMMAND_QUEUE);
        let (events, event_queue) = mpsc::channel(EVENT_QUEUE);
        let queues = Queues { commands: command_queue, events };
        // Boxed, since it is large and would make the future of every caller large.
        let mut task = Box::new(Task::new(settings, key, network, clock, registry, queues)?);
        let listen_addresses = task.listen().await?;
        let handle =
            NetworkHandle { commands, node: key.node_id(), listen_addresses: listen_addresses.into() };
        let time = task.settings.time.clone();
        tokio::spawn(time.polls(task.run()));
        Ok((handle, event_queue))
    }
}

/// The task's ends of the queues.
struct Queues {
    commands: mpsc::Receiver<Command>,
    events: mpsc::Sender<NetworkEvent>,
}

/// The answer to an inbound request, once the node has given it.
type Answer = BoxFuture<'static, (InboundId, ResponseChannel<PeerResponse>, PeerResponse, Places)>;

pub(super) struct Task {
    swarm: Swarm<Behaviour>,
    queues: Queues,
    settings: NetworkSettings,
    key: SecretKey,
    network: NetworkId,
    topics: Topics,
    clock: SharedClock,
    metrics: NetworkMetrics,
    /// Addresses that this node listens on now.
    listening: BTreeSet<Multiaddr>,
    /// Listeners that have not reported an address yet, and what they were to listen on.
    unheard: HashMap<ListenerId, Multiaddr>,
    peers: BTreeMap<PeerId, Peer>,
    dialer: Dialer,
    names: Names,
    lookups: FuturesUnordered<Lookup>,
    conduct: Conduct,
    directory: Directory,
    reserved: BTreeSet<PeerId>,
    outbox: VecDeque<NetworkEvent>,
    retries: VecDeque<Retry>,
    outbound: HashMap<OutboundId, Waiting>,
    answers: FuturesUnordered<Answer>,
    /// The places of answers that are being sent.
    sending: HashMap<InboundId, Places>,
    /// When this node announces itself next (monotonic).
    announce_at: Duration,
    /// The time of its last announcement.
    announced: Timestamp,
}

impl Task {
    fn new(
        settings: NetworkSettings,
        key: &SecretKey,
        network: NetworkId,
        clock: SharedClock,
        registry: &Registry,
        queues: Queues,
    ) -> Result<Self, NetworkError> {
        let keypair = keypair_of(key).ok_or(NetworkError::BadKey)?;
        let local = keypair.public().to_peer_id();
        let transport = transport::build(&keypair, &network, settings.swarm_key.as_ref())?;
        let behaviour = Behaviour::new(&keypair, &network, &settings)?;
        let time = settings.time.clone();
        let config = libp2p::swarm::Config::with_executor(move |connection: BoxFuture<'static, ()>| {
            tokio::spawn(time.polls(connection));
        })
        .with_idle_connection_timeout(IDLE_FOR);
        let mut swarm = Swarm::new(transport, behaviour, local, config);
        for address in &settings.external {
            swarm.add_external_address(address.clone());
        }
        let (names, addresses) = Names::split(&settings.bootstrap, settings.resolve_interval);
        Ok(Self {
            swarm,
            queues,
            key: key.clone(),
            network,
            topics: Topics::of(&network),
            metrics: NetworkMetrics::register(registry)?,
            listening: BTreeSet::new(),
            unheard: HashMap::new(),
            peers: BTreeMap::new(),
            dialer: Dialer::new(local, &addresses),
            names,
            lookups: FuturesUnordered::new(),
            conduct: Conduct::default(),
            directory: Directory::default(),
            reserved: settings.reserved.iter().filter_map(peer_of).collect(),
            outbox: VecDeque::new(),
            retries: VecDeque::new(),
            outbound: HashMap::new(),
            answers: FuturesUnordered::new(),
            sending: HashMap::new(),
            announce_at: clock.monotonic(),
            announced: Timestamp(0),
            settings,
            clock,
        })
    }

    /// Opens the listeners and waits until each has an address.
    async fn listen(&mut self) -> Result<Vec<Multiaddr>, NetworkError> {
        for address in &self.settings.listen {
            transport::ensure_port_is_free(address).map_err(|reason| NetworkError::Listen {
                address: address.clone(),
                reason: reason.to_string(),
            })?;
        }
        for address in self.settings.listen.clone() {
            let listener = self.swarm.listen_on(address.clone()).map_err(|error| NetworkError::Listen {
                address: address.clone(),
                reason: error.to_string(),
            })?;
            self.unheard.insert(listener, address);
        }
        let heard = async {
            while !self.unheard.is_empty() {
                let event = self.swarm.select_next_some().await;
                if let SwarmEvent::ListenerClosed { listener_id, reason, .. } = &event
                    && let Some(address) = self.unheard.remove(listener_id)
                {
                    let reason = reason.as_ref().err().map_or_else(|| "closed".into(), ToString::to_string);
                    return Err(NetworkError::Listen { address, reason });
                }
                self.on_swarm_event(event);
            }
            Ok(())
        };
        match tokio::time::timeout(LISTEN_WITHIN, heard).await {
            Ok(result) => result?,
            Err(_) => {
                let address = self.settings.listen.first().cloned().unwrap_or_else(Multiaddr::empty);
                return Err(NetworkError::Listen { address, reason: "no address in time".to_owned() });
            }
        }
        Ok(self.listening.iter().cloned().collect())
    }

    async fn run(mut self: Box<Self>) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                command = self.queues.commands.recv() => match command {
                    None | Some(Command::Shutdown) => break,
                    Some(command) => self.on_command(command),
                },
                () = hand_over(&self.queues.events, &mut self.outbox), if !self.outbox.is_empty() => {}
                event = self.swarm.select_next_some(), if self.outbox.len() < OUTBOX => self.on_swarm_event(event),
                Some((id, channel, response, places)) = self.answers.next() => self.on_answer(id, channel, response, places),
                Some((name, answer)) = self.lookups.next() => self.on_lookup(name, answer),
                _ = ticks.tick() => self.on_tick(),
                () = self.queues.events.closed() => break,
            }
        }
        tracing::info!("the network has stopped");
        // Connections and listeners close before the handle's `shutdown` returns.
        drop(self.swarm);
        drop(self.queues);
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Broadcast { topic, data } => self.publish(topic, data, 0),
            Command::Report { id, verdict } => self.on_verdict(id, verdict),
            Command::Request { peer, request, answer } => self.on_request_command(peer, request, answer),
            Command::Peers(answer) => {
                let _caller_gone = answer.send(self.peers.values().map(Peer::status).collect());
            }
            Command::Announcements(answer) => {
                let _caller_gone = answer.send(self.directory.all());
            }
            Command::Reserve(nodes) => self.reserve(&nodes),
            // The loop ends on it before.
            Command::Shutdown => {}
        }
    }

    fn on_swarm_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour_event(event),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.on_connected(peer_id, connection_id, &endpoint);
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, cause, .. } => {
                self.on_closed(peer_id, connection_id, cause.as_ref());
            }
            SwarmEvent::OutgoingConnectionError { connection_id, error, .. } => {
                self.on_dial_failed(connection_id, &error);
            }
            SwarmEvent::IncomingConnectionError { send_back_addr, error, .. } => {
                self.metrics.connections.with_label_values(&["incoming_failed"]).inc();
                tracing::debug!(from = %send_back_addr, %error, "an incoming connection failed");
            }
            SwarmEvent::NewListenAddr { listener_id, address } => {
                tracing::info!(%address, "listening for nodes");
                self.unheard.remove(&listener_id);
                self.listening.insert(address);
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                tracing::warn!(%address, "no longer listening");
                self.listening.remove(&address);
            }
            SwarmEvent::ListenerClosed { addresses, reason, .. } => {
                tracing::error!(?addresses, ?reason, "a listener closed; other nodes cannot connect there");
                self.listening.retain(|address| !addresses.contains(address));
            }
            SwarmEvent::ListenerError { error, .. } => tracing::warn!(%error, "a listener has trouble"),
            _ => {}
        }
    }

    fn on_behaviour_event(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Gossip(event) => self.on_gossip_event(event),
            BehaviourEvent::Bundle(event) => self.on_direct_event(Lane::Bundle, event),
            BehaviourEvent::Fetch(event) => self.on_direct_event(Lane::Fetch, event),
            BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. }) => {
                self.on_identified(peer_id, &info.protocol_version);
            }
            BehaviourEvent::Ping(event) => self.on_probed(event),
            BehaviourEvent::Mdns(mdns::Event::Discovered(found)) => self.on_found(found),
            BehaviourEvent::Identify(_) | BehaviourEvent::Mdns(_) => {}
            BehaviourEvent::Limits(never) | BehaviourEvent::Blocked(never) => match never {},
        }
    }

    fn on_tick(&mut self) {
        let now = self.clock.monotonic();
        self.look_up_due(now);
        self.dial_due(now);
        self.cut_off_unidentified(now);
        self.lift_bans(now);
        self.retry_broadcasts(now);
        if self.announce_at <= now {
            self.announce(now);
        }
    }

    /// Notes what a peer did wrong, and cuts it off if that is enough.
    fn on_offence(&mut self, peer: PeerId, offence: Offence, detail: &dyn std::fmt::Display) {
        self.metrics.offences.with_label_values(&[offence.as_str()]).inc();
        let Some(ban) = self.conduct.note(peer, offence, self.clock.monotonic()) else { return };
        tracing::warn!(%peer, offence = offence.as_str(), %detail, ban_s = ban.as_secs(), "cut off a peer");
        self.swarm.behaviour_mut().blocked.block_peer(peer);
    }

    fn lift_bans(&mut self, now: Duration) {
        let blocked = &mut self.swarm.behaviour_mut().blocked;
        let over: Vec<PeerId> = blocked
            .blocked_peers()
            .iter()
            .filter(|peer| !self.conduct.is_banned(peer, now))
            .copied()
            .collect();
        for peer in over {
            blocked.unblock_peer(peer);
        }
        self.conduct.forget_old(now);
    }

    fn reserve(&mut self, nodes: &[NodeId]) {
        let reserved: BTreeSet<PeerId> = nodes.iter().filter_map(peer_of).collect();
        let limits = &mut self.swarm.behaviour_mut().limits;
        for peer in self.reserved.difference(&reserved) {
            limits.remove_peer_id(peer);
        }
        for peer in reserved.difference(&self.reserved) {
            limits.bypass_peer_id(peer);
        }
        self.reserved = reserved;
    }

    /// Whether addresses of this machine alone are worth learning: only where the settings name
    /// some, as in a cluster on one machine.
    fn uses_loopback(&self) -> bool {
        let NetworkSettings { listen, bootstrap, external, .. } = &self.settings;
        listen.iter().chain(bootstrap).chain(external).any(dialer::is_loopback)
    }

    /// Whether this peer says in identify what a node of this network says.
    fn is_our_version(&self, version: &str) -> bool {
        version == behaviour::protocol_version(&self.network)
    }
}

/// Hands the first event over when there is room; loses nothing when it is dropped before.
async fn hand_over(events: &mpsc::Sender<NetworkEvent>, outbox: &mut VecDeque<NetworkEvent>) {
    if let Ok(room) = events.reserve().await
        && let Some(event) = outbox.pop_front()
    {
        room.send(event);
    }
}
