//! The cluster: what it consists of, and the words that scenarios are told in. How it runs is in
//! `events.rs` and `effects.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ledgermq::crypto::SecretKey;
use ledgermq::ledger::{Genesis, ReplicaSet, ReplicaSetKeys, VerifiedRequest, genesis::GENESIS_VERSION};
use ledgermq::pbft::{Envelope, Evidence, Input, Replica, Settings, Source, Verified};
use ledgermq::types::{Hash, MessageSeq, NetworkId, NodeId, Timestamp};

use crate::adversary::Adversary;
use crate::adversary::deeds::{Deed, Deeds};
use crate::clients::{ADMIN_SEED, client};
use crate::events::Event;
use crate::network::{Links, Weather};
use crate::node::{Clock, CrashPoint, Node};
use crate::planted::ShellBug;
use crate::property::{self, LIVENESS_LIMIT, Liveness, Property, World};
use crate::rng::Rng;
use crate::run;
use crate::trail::Trail;

pub const START: Timestamp = Timestamp(1_767_225_600_000);

pub struct Cluster {
    pub seed: u64,
    /// What else tells this run from others, for the message of a failure.
    pub title: String,
    /// A fingerprint of all that happened.
    pub trail: Trail,
    /// What the adversaries did.
    pub deeds: Deeds,
    pub network: NetworkId,
    pub replicas: ReplicaSet,
    pub keys: Vec<SecretKey>,
    pub set_keys: Arc<ReplicaSetKeys>,
    genesis: Genesis,
    /// The first n are the replicas; twins come after them.
    pub nodes: Vec<Node>,
    pub rng: Rng,
    pub weather: Weather,
    pub links: Links,
    /// Replicas that hear but are not heard.
    pub silent: BTreeSet<usize>,
    /// Replicas that neither hear nor are heard.
    pub cut_off: BTreeSet<usize>,
    pub adversaries: BTreeMap<usize, Box<dyn Adversary>>,
    pub world: World,
    pub properties: Vec<Box<dyn Property>>,
    pub liveness: Liveness,
    /// A mistake in the shell around the cores, to see that it is found.
    pub planted: Option<ShellBug>,
    /// For one of these mistakes: what each node said last.
    pub last_votes: BTreeMap<usize, Envelope>,
    pub time: Duration,
    pub events: BTreeMap<(Duration, u64), Event>,
    pub next_event: u64,
    /// Events that happened.
    pub happened: u64,
    /// How much was asked of each node.
    asked_of: Vec<u64>,
    /// Ids of gossip that each node has seen: gossipsub drops what it has seen.
    pub seen: Vec<BTreeSet<Hash>>,
    /// Messages whose signatures were checked: each needs that only once for all who hear it.
    pub verified: BTreeMap<Hash, Verified>,
    pub evidence: Vec<Evidence>,
    /// Byzantine replicas whose own core says that its state is damaged.
    pub diverged: BTreeSet<usize>,
}

impl Cluster {
    pub fn new(seed: u64, n: usize) -> Self {
        Self::with(seed, n, |_| {})
    }

    /// A cluster with changed settings.
    pub fn with(seed: u64, n: usize, change: impl Fn(&mut Settings)) -> Self {
        let mut keys: Vec<SecretKey> = (0..n).map(|at| SecretKey::from_seed(&[at as u8 + 1; 32])).collect();
        keys.sort_by_key(SecretKey::node_id);
        let replicas = ReplicaSet::new(keys.iter().map(SecretKey::node_id).collect()).unwrap();
        let admin = SecretKey::from_seed(&ADMIN_SEED).public();
        let genesis = Genesis {
            version: GENESIS_VERSION,
            name: "simulated".to_owned(),
            created: START,
            replicas: replicas.clone(),
            admins: vec![admin],
        };
        let network = genesis.network_id();
        let set_keys = Arc::new(ReplicaSetKeys::new(&replicas).unwrap());
        let mut rng = Rng::new(seed);
        let node = |key: &SecretKey| {
            let mut settings = Settings::new(network, replicas.clone(), key.clone());
            settings.pool_max_requests = property::POOL_MAX_REQUESTS;
            change(&mut settings);
            Node::new(settings, &genesis, Arc::clone(&set_keys), rng.fork())
        };
        let mut cluster = Self {
            seed,
            title: String::new(),
            network,
            trail: Trail::default(),
            deeds: Deeds::default(),
            nodes: keys.iter().map(node).collect(),
            world: World::new(network, replicas.clone(), admin),
            set_keys,
            replicas,
            keys,
            genesis,
            rng,
            weather: Weather::FAIR,
            links: Links::default(),
            silent: BTreeSet::new(),
            cut_off: BTreeSet::new(),
            adversaries: BTreeMap::new(),
            properties: property::all(),
            liveness: Liveness::default(),
            planted: None,
            last_votes: BTreeMap::new(),
            time: Duration::ZERO,
            events: BTreeMap::new(),
            next_event: 0,
            happened: 0,
            asked_of: vec![0; n],
            seen: vec![BTreeSet::new(); n],
            verified: BTreeMap::new(),
            evidence: Vec::new(),
            diverged: BTreeSet::new(),
        };
        for node in 0..n {
            cluster.wake_at(node, Duration::ZERO);
        }
        cluster.register_clients();
        cluster
    }

    pub fn weather(mut self, weather: Weather) -> Self {
        self.weather = weather;
        self
    }

    /// How many replicas the ledger has; there may be more instances.
    pub fn n(&self) -> usize {
        self.keys.len()
    }

    pub fn instances(&self) -> usize {
        self.nodes.len()
    }

    /// A replica turns Byzantine.
    pub fn corrupt(&mut self, at: usize, adversary: Box<dyn Adversary>) -> &mut Self {
        self.world.faulty.insert(at);
        self.adversaries.insert(at, adversary);
        self.schedule(Duration::from_millis(1), Event::AdversaryTick { at });
        self
    }

    /// Starts a second instance of replica `of`, with the same key and an empty disk, and makes
    /// both Byzantine. Gives its number.
    pub fn add_twin(&mut self, of: usize) -> usize {
        let settings = self.nodes[of].settings.clone();
        let rng = self.rng.fork();
        let twin = Node::new(settings, &self.genesis, Arc::clone(&self.set_keys), rng);
        let at = self.instances();
        self.nodes.push(twin);
        self.seen.push(BTreeSet::new());
        self.world.identities.push(of);
        self.world.faulty.extend([of, at]);
        self.wake_at(at, self.time);
        at
    }

    /// Sets a node's clock wrong.
    pub fn set_clock(&mut self, node: usize, clock: Clock) -> &mut Self {
        self.nodes[node].clock = clock;
        self
    }

    // ---- what a scenario says ----

    /// A client of `node` asks for something, if the node is up and has room.
    pub fn ask(&mut self, node: usize) -> &mut Self {
        let request = self.request(node, self.asked_of[node] + 1);
        let replica = self.nodes[node].replica.as_ref();
        if replica.is_some_and(|replica| replica.has_room(request.bytes().len())) {
            self.asked_of[node] += 1;
            // A Byzantine node may well forget what it was asked for.
            if !self.world.faulty.contains(&node) {
                self.liveness.asked(client(node), MessageSeq(self.asked_of[node]));
            }
            // Logged and handed on; the client hears of it when the log is synced.
            let position = self.nodes[node].accept(self.asked_of[node], &request);
            let (synced_at, life) = (self.synced_at(node, true), self.nodes[node].life);
            let synced = Event::Synced { node, life, position, effects: Vec::new(), then: None };
            self.schedule(synced_at - self.time, synced);
            self.step(node, Input::Request { request, source: Source::Admitted });
        }
        self
    }

    pub fn ask_times(&mut self, node: usize, times: usize) -> &mut Self {
        for _ in 0..times {
            self.ask(node);
        }
        self
    }

    /// A client that is not registered asks: its request is consumed and makes no block.
    pub fn ask_for_stranger(&mut self, node: usize, number: u64) -> &mut Self {
        let request = self.strangers_request(node, number);
        self.offer(node, request)
    }

    /// Someone asks in the name of the node's client, with another key.
    pub fn ask_with_wrong_key(&mut self, node: usize, number: u64) -> &mut Self {
        let request = self.forged_request(node, number);
        self.offer(node, request)
    }

    /// A message that the client of `of` gave its own node comes through another one, too.
    pub fn ask_through(&mut self, of: usize, node: usize, number: u64) -> &mut Self {
        let request = self.request_through(of, node, number);
        self.offer(node, request)
    }

    /// Hands a request to a node, as its ingress does: only if there is room.
    fn offer(&mut self, node: usize, request: Arc<VerifiedRequest>) -> &mut Self {
        let replica = self.nodes[node].replica.as_ref();
        if replica.is_some_and(|replica| replica.has_room(request.bytes().len())) {
            self.step(node, Input::Request { request, source: Source::Admitted });
        }
        self
    }

    pub fn asked_of(&self, node: usize) -> u64 {
        self.asked_of[node]
    }

    pub fn crash(&mut self, node: usize) -> &mut Self {
        if self.nodes[node].is_up() {
            let unsynced = self.nodes[node].disk.unsynced_bytes();
            match self.nodes[node].crash() {
                Ok(lost) => {
                    self.trace(|| format!("{node} crashes, with {unsynced} bytes not synced"));
                    // Nobody was told that they were accepted.
                    for number in lost {
                        self.liveness.withdraw(&client(node), MessageSeq(number));
                    }
                }
                Err(why) => self.fail("disk", &format!("the log of {node}: {why}")),
            }
            self.seen[node].clear();
            self.check(node);
        }
        self
    }

    /// The node loses power `steps` steps from now.
    pub fn crash_in(&mut self, node: usize, steps: u64, point: CrashPoint) -> &mut Self {
        self.nodes[node].crash_at = Some((self.nodes[node].steps + steps, point));
        self
    }

    /// Down, and its log with it.
    pub fn lose_disk(&mut self, node: usize) -> &mut Self {
        self.crash(node);
        self.nodes[node].disk.lose();
        // What was accepted and had not gone to others is gone: the disk broke its promise.
        if !self.world.faulty.contains(&node) {
            self.liveness.forget(&client(node), &self.nodes[node].written);
        }
        self
    }

    /// The same, and the node knows it when it starts again.
    pub fn lose_log(&mut self, node: usize) -> &mut Self {
        self.nodes[node].lost_log = true;
        self.lose_disk(node)
    }

    /// Down, and its log and ledger with it.
    pub fn wipe(&mut self, node: usize) -> &mut Self {
        self.lose_disk(node);
        self.nodes[node].wipe(&self.genesis);
        self.properties.iter_mut().for_each(|property| property.wiped(node));
        self
    }

    /// What each Byzantine replica did, and what kind it is.
    pub fn adversary_deeds(&mut self) -> Vec<(&'static str, Deed)> {
        let faulty = self.world.faulty.clone();
        let kind = |at: &usize| self.adversaries.get(at).map_or("twins", |adversary| adversary.name());
        let kinds: Vec<_> = faulty.iter().map(|at| (*at, kind(at))).collect();
        kinds.into_iter().map(|(at, kind)| (kind, *self.deeds.of(at))).collect()
    }

    /// From now on, what this node executes comes out differently.
    pub fn damage(&mut self, node: usize) -> &mut Self {
        self.nodes[node].damaged = true;
        self
    }

    pub fn restart(&mut self, node: usize) -> &mut Self {
        if !self.nodes[node].is_up() {
            self.trace(|| format!("{node} starts again"));
            let bug = self.planted;
            let accepted = match self.nodes[node].restart(|entry| bug.is_some_and(|bug| bug.forgets(entry))) {
                Ok(accepted) => accepted,
                Err(why) => self.fail("restart", &format!("replica {node} cannot start: {why}")),
            };
            self.check(node);
            self.wake_at(node, self.time);
            // The log feeds the pool again with what was accepted and not yet written.
            let (life, requests) = (self.nodes[node].life, accepted.into());
            self.schedule(Duration::ZERO, Event::Resume { node, life, requests });
        }
        self
    }

    /// Faults of network, disks and processes end; Byzantine replicas and wrong clocks stay.
    pub fn heal(&mut self) -> &mut Self {
        self.trace(|| "all faults end".to_owned());
        self.weather = Weather::FAIR;
        self.links.heal();
        self.cut_off.clear();
        self.silent.clear();
        for event in self.events.values_mut() {
            match event {
                Event::Synced { then, .. } => *then = None,
                Event::Crash { life, .. } => *life = u64::MAX,
                _ => {}
            }
        }
        for node in 0..self.instances() {
            self.nodes[node].crash_at = None;
            self.restart(node);
        }
        self
    }

    /// Lets time pass.
    pub fn run(&mut self, time: Duration) -> &mut Self {
        let end = self.time + time;
        while self.events.first_key_value().is_some_and(|((at, _), _)| *at <= end) {
            self.next();
        }
        self.time = end;
        self
    }

    /// Lets time pass until `done`, at most `limit`.
    pub fn run_until(&mut self, limit: Duration, what: &str, done: impl Fn(&Self) -> bool) -> &mut Self {
        let end = self.time + limit;
        while !done(self) {
            let due = self.events.first_key_value().map(|((at, _), _)| *at);
            if due.is_none_or(|at| at > end) {
                self.fail("liveness", &format!("not within {limit:?}: {what}"));
            }
            self.next();
        }
        self
    }

    /// Until every correct node that is up has on its ledger what was asked for, and a
    /// certificate for each block.
    pub fn until_all_written(&mut self, limit: Duration) -> &mut Self {
        self.run_until(limit, "everything asked for is written everywhere and certified", |cluster| {
            cluster.reachable().all(|at| cluster.liveness.is_final_at(&cluster.nodes[at]))
        })
    }

    /// The liveness property, once faults have stopped.
    pub fn until_all_final(&mut self) -> &mut Self {
        self.until_all_written(LIVENESS_LIMIT)
    }

    /// Until no pool of a cluster without Byzantine replicas has anything to wait for: then all who
    /// asked for something have their answer, also for what changed nothing and is on no block.
    pub fn until_nothing_waits(&mut self) -> &mut Self {
        if !self.world.faulty.is_empty() {
            return self;
        }
        self.run_until(LIVENESS_LIMIT, "nothing waits in any pool", |cluster| {
            let statuses = cluster.nodes.iter().filter_map(|node| Some(node.replica.as_ref()?.status()));
            statuses.into_iter().all(|status| status.pending == 0)
        })
    }

    /// Those who are up, correct, and can talk with each other.
    pub fn reachable(&self) -> impl Iterator<Item = usize> {
        (0..self.n()).filter(|at| {
            let apart = [&self.cut_off, &self.silent, &self.world.faulty].iter().any(|set| set.contains(at));
            self.nodes[*at].is_up() && !apart
        })
    }

    pub fn node(&self, at: usize) -> &Node {
        &self.nodes[at]
    }

    /// An instance of the replica.
    pub fn index_of(&self, node: &NodeId) -> usize {
        self.replicas.index_of(node).unwrap()
    }

    /// Ends the run with all that is needed to repeat it.
    pub fn fail(&self, property: &str, what: &str) -> ! {
        let status = |node: &Node| {
            let missing = self.liveness.missing_at(node);
            let status = node.replica.as_ref().map(Replica::status);
            format!("{missing} not written, {:?} not certified, {status:?}", node.uncertified())
        };
        let status: Vec<_> = self.nodes.iter().map(status).collect();
        panic!(
            "[{property}] {what}\nat {:?}, seed {}, {}, after {} events\n{}{}",
            self.time,
            self.seed,
            self.title,
            self.happened,
            status.join("\n"),
            run::command_here(self.seed),
        );
    }

    /// Tells what happens, with SIM_TRACE=1.
    pub fn trace(&self, what: impl FnOnce() -> String) {
        if run::tracing() > 0 {
            eprintln!("{:>12?} {}", self.time, what());
        }
    }

    /// Tells everything, with SIM_TRACE=2.
    pub fn trace_all(&self, what: impl FnOnce() -> String) {
        if run::tracing() > 1 {
            eprintln!("{:>12?} {}", self.time, what());
        }
    }
}
