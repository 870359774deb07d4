//! The cluster: events in virtual time, faults, and the checker that runs after every event.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ledgermq::crypto::SecretKey;
use ledgermq::ledger::{
    Block, Certificate, CheckpointContent, Genesis, ReplicaSet, ReplicaSetKeys, VerifiedRequest,
    genesis::GENESIS_VERSION,
};
use ledgermq::pbft::{Effect, Envelope, Input, Now, Rejected, Replica, Settings, Signed, Source};
use ledgermq::types::{ClientId, Hash, Height, MessageSeq, NetworkId, NodeId, SeqNum, Timestamp, View};

use crate::clients::{ADMIN_SEED, client};
use crate::node::Node;
use crate::rng::Rng;

pub const START: Timestamp = Timestamp(1_767_225_600_000);

/// What the network does to each message.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    pub loss_percent: u64,
    pub duplicate_percent: u64,
    pub min_delay_us: u64,
    pub max_delay_us: u64,
}

impl Weather {
    pub const FAIR: Self =
        Self { loss_percent: 0, duplicate_percent: 0, min_delay_us: 200, max_delay_us: 2_000 };
    pub const STORM: Self =
        Self { loss_percent: 15, duplicate_percent: 10, min_delay_us: 200, max_delay_us: 40_000 };
}

enum Event {
    Step { node: usize, life: u64, input: Box<Input> },
    Gossip { to: usize, bytes: Vec<u8> },
    Synced { node: usize, life: u64, position: usize, effects: Vec<Effect> },
    FetchRequests { at: usize, from: usize, digests: Vec<Hash> },
    FetchBatches { at: usize, from: usize, digests: Vec<Hash> },
    FetchView { at: usize, from: usize, view: View },
    Messages { to: usize, messages: Vec<Signed> },
    FetchBlocks { at: usize, from: usize, above: Height },
    Blocks { to: usize, blocks: Vec<(Block, Certificate)> },
    FetchCertificates { at: usize, from: usize, heights: Vec<Height> },
    Certificates { to: usize, certificates: Vec<Certificate> },
    Wake { node: usize },
}

pub struct Cluster {
    pub seed: u64,
    pub network: NetworkId,
    pub replicas: ReplicaSet,
    pub keys: Vec<SecretKey>,
    set_keys: ReplicaSetKeys,
    pub nodes: Vec<Node>,
    pub rng: Rng,
    pub weather: Weather,
    /// Replicas that hear but are not heard.
    pub silent: BTreeSet<usize>,
    /// Replicas that neither hear nor are heard.
    pub cut_off: BTreeSet<usize>,
    /// Replicas whose state the checker does not believe.
    pub faulty: BTreeSet<usize>,
    pub time: Duration,
    events: BTreeMap<(Duration, u64), Event>,
    next_event: u64,
    /// How much was asked of each node.
    asked_of: Vec<u64>,
    /// What must be written in the end.
    pub asked: BTreeSet<(ClientId, MessageSeq)>,
    /// Bytes of gossip that each node has seen: gossipsub drops what it has seen.
    seen: Vec<BTreeSet<Hash>>,
    pub evidence: Vec<(Signed, Signed)>,
    // What the first replica that got there has; all others must have the same.
    pub batches: BTreeMap<SeqNum, Hash>,
    pub contents: BTreeMap<SeqNum, CheckpointContent>,
    pub blocks: BTreeMap<Height, Hash>,
    pub checked: Vec<(usize, usize, usize)>,
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
        let genesis = Genesis {
            version: GENESIS_VERSION,
            name: "simulated".to_owned(),
            created: START,
            replicas: replicas.clone(),
            admins: vec![SecretKey::from_seed(&ADMIN_SEED).public()],
        };
        let network = genesis.network_id();
        let node = |key: &SecretKey| {
            let mut settings = Settings::new(network, replicas.clone(), key.clone());
            change(&mut settings);
            Node::new(settings, &genesis)
        };
        let mut cluster = Self {
            seed,
            network,
            nodes: keys.iter().map(node).collect(),
            set_keys: ReplicaSetKeys::new(&replicas).unwrap(),
            replicas,
            keys,
            rng: Rng::new(seed),
            weather: Weather::FAIR,
            silent: BTreeSet::new(),
            cut_off: BTreeSet::new(),
            faulty: BTreeSet::new(),
            time: Duration::ZERO,
            events: BTreeMap::new(),
            next_event: 0,
            asked_of: vec![0; n],
            asked: BTreeSet::new(),
            seen: vec![BTreeSet::new(); n],
            evidence: Vec::new(),
            batches: BTreeMap::new(),
            contents: BTreeMap::new(),
            blocks: BTreeMap::new(),
            checked: vec![(0, 0, 0); n],
        };
        for node in 0..n {
            cluster.schedule(Duration::ZERO, Event::Wake { node });
        }
        cluster.register_clients();
        cluster
    }

    pub fn weather(mut self, weather: Weather) -> Self {
        self.weather = weather;
        self
    }

    // ---- what a scenario says ----

    /// A client of `node` asks for something.
    pub fn ask(&mut self, node: usize) -> &mut Self {
        if self.nodes[node].replica.is_some() {
            self.asked_of[node] += 1;
            let number = self.asked_of[node];
            self.asked.insert((client(node), MessageSeq(number)));
            self.ask_again(node, number);
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
        let request = self.write_request(node, ClientId::new("not/registered").unwrap(), number);
        self.step(node, Input::Request { request, source: Source::Admitted });
        self
    }

    /// Hands a request to a node that need not be new.
    pub fn ask_again(&mut self, node: usize, number: u64) -> &mut Self {
        let request = self.request(node, number);
        self.step(node, Input::Request { request, source: Source::Admitted });
        self
    }

    pub fn crash(&mut self, node: usize) -> &mut Self {
        if self.nodes[node].replica.is_some() {
            let survivors = self.rng.below(4) as usize;
            self.nodes[node].crash(survivors);
            self.seen[node].clear();
            self.checked[node] = (0, 0, 0);
        }
        self
    }

    /// From now on, what this node executes comes out differently.
    pub fn damage(&mut self, node: usize) -> &mut Self {
        self.nodes[node].damaged = true;
        self
    }

    pub fn restart(&mut self, node: usize) -> &mut Self {
        if self.nodes[node].replica.is_none() {
            self.nodes[node].restart();
            self.schedule(Duration::ZERO, Event::Wake { node });
            // The ingress log feeds the pool again with what was accepted and not yet answered.
            for number in 1..=self.asked_of[node] {
                if !self.nodes[node].written.contains(&(client(node), MessageSeq(number))) {
                    self.ask_again(node, number);
                }
            }
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
                self.fail(&format!("not within {limit:?}: {what}"));
            }
            self.next();
        }
        self
    }

    /// Until every correct node that is up has on its ledger what was asked for, and a
    /// certificate for each block.
    pub fn until_all_written(&mut self, limit: Duration) -> &mut Self {
        self.run_until(limit, "everything asked for is written everywhere and certified", |cluster| {
            cluster.reachable().all(|at| {
                let node = &cluster.nodes[at];
                cluster.asked.is_subset(&node.written) && node.uncertified().is_empty()
            })
        })
    }

    pub fn reachable(&self) -> impl Iterator<Item = usize> {
        (0..self.nodes.len()).filter(|at| {
            let apart = [&self.cut_off, &self.silent, &self.faulty].iter().any(|set| set.contains(at));
            self.nodes[*at].replica.is_some() && !apart
        })
    }

    pub fn node(&self, at: usize) -> &Node {
        &self.nodes[at]
    }

    pub fn index_of(&self, node: &NodeId) -> usize {
        self.replicas.index_of(node).unwrap()
    }

    pub fn fail(&self, what: &str) -> ! {
        let status = |node: &Node| {
            let unwritten = self.asked.difference(&node.written).count();
            let uncertified = node.uncertified();
            let status = node.replica.as_ref().map(Replica::status);
            format!("{unwritten} not written, {uncertified:?} not certified, {status:?}")
        };
        let status: Vec<_> = self.nodes.iter().map(status).collect();
        panic!(
            "{what}\nat {:?}, seed {}\n{}\nrepeat with: SIM_SEED={} cargo test --test sim",
            self.time,
            self.seed,
            status.join("\n"),
            self.seed
        );
    }

    // ---- how it runs ----

    fn schedule(&mut self, after: Duration, event: Event) {
        self.next_event += 1;
        self.events.insert((self.time + after, self.next_event), event);
    }

    fn now(&self) -> Now {
        Now { wall: START.plus_ms(self.time.as_millis() as u64), monotonic: self.time }
    }

    fn next(&mut self) {
        let Some(((at, _), event)) = self.events.pop_first() else { return };
        self.time = at;
        self.happen(event);
        self.check();
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Step { node, life, input } if self.nodes[node].life == life => self.step(node, *input),
            Event::Synced { node, life, position, effects } if self.nodes[node].life == life => {
                self.nodes[node].synced(position);
                for effect in effects {
                    self.carry_out(node, effect);
                }
            }
            Event::Gossip { to, bytes } => self.hear(to, &bytes),
            Event::FetchRequests { at, from, digests } => self.answer_requests(at, from, &digests),
            Event::FetchBatches { at, from, digests } => self.answer_batches(at, from, &digests),
            Event::FetchView { at, from, view } => {
                let messages = self.nodes[at].replica.as_ref().map(|replica| replica.view_proof(view));
                if let Some(messages) = messages.filter(|_| self.passes(at, from)) {
                    let delay = self.delay();
                    self.schedule(delay, Event::Messages { to: from, messages });
                }
            }
            Event::Messages { to, messages } => {
                for message in messages {
                    let verified = message.verify(&self.set_keys, &self.network).expect("a good proof");
                    self.step(to, Input::Message(verified));
                }
            }
            Event::FetchBlocks { at, from, above } => {
                let blocks = self.nodes[at].certified_above(above);
                if self.nodes[at].replica.is_some() && self.passes(at, from) {
                    let delay = self.delay();
                    self.schedule(delay, Event::Blocks { to: from, blocks });
                }
            }
            Event::Blocks { to, blocks } if self.nodes[to].replica.is_some() => {
                if let Some((certificate, block)) = self.nodes[to].apply(blocks) {
                    let timestamp = block.header.timestamp;
                    self.step(to, Input::BlocksSynced { certificate, timestamp });
                }
            }
            Event::FetchCertificates { at, from, heights } => {
                let found = heights.iter().filter_map(|height| self.nodes[at].certificates.get(height));
                let certificates = found.cloned().collect();
                if self.nodes[at].replica.is_some() && self.passes(at, from) {
                    let delay = self.delay();
                    self.schedule(delay, Event::Certificates { to: from, certificates });
                }
            }
            Event::Certificates { to, certificates } if self.nodes[to].replica.is_some() => {
                for certificate in certificates {
                    self.nodes[to].put_certificate(&certificate);
                    self.step(to, Input::CertificateFetched(certificate));
                }
            }
            Event::Wake { node } => self.wake(node),
            // To an earlier life, or to a node that is down.
            _ => {}
        }
    }

    fn wake(&mut self, node: usize) {
        let Some(replica) = &self.nodes[node].replica else { return };
        if replica.next_deadline().is_some_and(|due| due <= self.time) {
            self.step(node, Input::Tick);
        }
    }

    pub fn step(&mut self, node: usize, input: Input) {
        let now = self.now();
        let Some(replica) = &mut self.nodes[node].replica else { return };
        let output = replica.step(now, input);
        let due = replica.next_deadline();
        if let Some(rejected @ (Rejected::OutOfOrder { .. } | Rejected::PoolFull)) = output.rejected {
            assert!(matches!(rejected, Rejected::OutOfOrder { .. }), "{rejected}");
        }
        let position = self.nodes[node].append(&output.wal);
        let life = self.nodes[node].life;
        // Each node's disk syncs in order, in up to 2 ms, and effects wait for it in order.
        let delay = if output.wal.is_empty() { 0 } else { 1_000 + self.rng.below(1_000) };
        let synced_at = self.nodes[node].disk_free_at.max(self.time + Duration::from_micros(delay));
        self.nodes[node].disk_free_at = synced_at;
        if !output.is_empty() {
            let effects = output.effects;
            self.schedule(synced_at - self.time, Event::Synced { node, life, position, effects });
        }
        if let Some(due) = due {
            self.schedule(due.saturating_sub(self.time), Event::Wake { node });
        }
    }

    fn any_of(&mut self, nodes: &[NodeId]) -> usize {
        let pick = self.rng.below(nodes.len() as u64) as usize;
        self.index_of(&nodes[pick])
    }

    fn delay(&mut self) -> Duration {
        let Weather { min_delay_us, max_delay_us, .. } = self.weather;
        Duration::from_micros(min_delay_us + self.rng.below(max_delay_us - min_delay_us + 1))
    }

    /// Whether something that `from` sends reaches `to`.
    fn passes(&mut self, from: usize, to: usize) -> bool {
        let lost = self.rng.percent(self.weather.loss_percent);
        let cut = self.silent.contains(&from) || self.cut_off.contains(&from) || self.cut_off.contains(&to);
        !lost && !cut
    }

    /// Sends one envelope to one replica through the weather.
    pub fn send(&mut self, from: usize, to: usize, envelope: &Envelope) {
        let copies = if self.rng.percent(self.weather.duplicate_percent) { 2 } else { 1 };
        for _ in 0..copies {
            if self.passes(from, to) {
                let delay = self.delay();
                self.schedule(delay, Event::Gossip { to, bytes: envelope.encode() });
            }
        }
    }

    fn hear(&mut self, to: usize, bytes: &[u8]) {
        let id = ledgermq::crypto::HashKind::Gossip.hash(bytes);
        if self.nodes[to].replica.is_none() || !self.seen[to].insert(id) {
            return;
        }
        let envelope = Envelope::decode(bytes).expect("what was encoded");
        let verified = envelope.signed.verify(&self.set_keys, &self.network).expect("good signatures");
        self.step(to, Input::Message(verified));
    }

    fn carry_out(&mut self, node: usize, effect: Effect) {
        let n = self.nodes.len();
        let ask = |from: Vec<NodeId>, cluster: &Self| cluster.index_of(&from[0]);
        match effect {
            Effect::Broadcast(envelope) => {
                for to in (0..n).filter(|to| *to != node) {
                    self.send(node, to, &envelope);
                }
            }
            Effect::SendRequests { requests } => {
                for to in (0..n).filter(|to| *to != node) {
                    if self.passes(node, to) {
                        let delay = self.delay();
                        for request in &requests {
                            self.give(to, request, Source::Bundle, delay);
                        }
                    }
                }
            }
            Effect::FetchRequests { digests, from } => {
                let at = ask(from, self);
                if self.passes(node, at) {
                    let delay = self.delay();
                    self.schedule(delay, Event::FetchRequests { at, from: node, digests });
                }
            }
            Effect::ForwardRequests { requests, to } => {
                let to = self.index_of(&to);
                if self.passes(node, to) {
                    let delay = self.delay();
                    for request in &requests {
                        self.give(to, request, Source::Forwarded, delay);
                    }
                }
            }
            Effect::FetchBatches { digests, from } => {
                let at = ask(from, self);
                if self.passes(node, at) {
                    let delay = self.delay();
                    self.schedule(delay, Event::FetchBatches { at, from: node, digests });
                }
            }
            Effect::FetchView { view, from } => {
                let at = ask(from, self);
                if self.passes(node, at) {
                    let delay = self.delay();
                    self.schedule(delay, Event::FetchView { at, from: node, view });
                }
            }
            Effect::FetchBlocks { above, from, .. } => {
                let at = self.any_of(&from);
                if self.passes(node, at) {
                    let delay = self.delay();
                    self.schedule(delay, Event::FetchBlocks { at, from: node, above });
                }
            }
            Effect::FetchCertificates { heights, from } => {
                let at = self.any_of(&from);
                if self.passes(node, at) {
                    let delay = self.delay();
                    self.schedule(delay, Event::FetchCertificates { at, from: node, heights });
                }
            }
            Effect::Execute { sequence, batch, requests } => {
                if let Some(content) = self.nodes[node].execute(sequence, &batch, &requests) {
                    let life = self.nodes[node].life;
                    let input = Box::new(Input::Executed(content));
                    self.schedule(Duration::from_micros(300), Event::Step { node, life, input });
                }
            }
            Effect::Skip(content) => self.nodes[node].skip(&content),
            Effect::Certified(certificate) => self.nodes[node].put_certificate(&certificate),
            Effect::Diverged { own, other } => {
                self.fail(&format!("replica {node} says it diverged: {own:?} {other:?}"))
            }
            Effect::Evidence { first, second } => self.evidence.push((first, second)),
        }
    }

    fn give(&mut self, to: usize, request: &Arc<VerifiedRequest>, source: Source, after: Duration) {
        let life = self.nodes[to].life;
        let input = Box::new(Input::Request { request: Arc::clone(request), source });
        self.schedule(after, Event::Step { node: to, life, input });
    }

    fn answer_batches(&mut self, at: usize, from: usize, digests: &[Hash]) {
        let Some(replica) = &self.nodes[at].replica else { return };
        let found: Vec<_> = digests.iter().filter_map(|digest| replica.batch(digest)).collect();
        if self.passes(at, from) {
            let (delay, life) = (self.delay(), self.nodes[from].life);
            for batch in found {
                let input = Box::new(Input::Batch(batch));
                self.schedule(delay, Event::Step { node: from, life, input });
            }
        }
    }

    fn answer_requests(&mut self, at: usize, from: usize, digests: &[Hash]) {
        let Some(replica) = &self.nodes[at].replica else { return };
        let found: Vec<_> = digests.iter().filter_map(|digest| replica.request(digest)).collect();
        if self.passes(at, from) {
            let delay = self.delay();
            for request in found {
                self.give(from, &request, Source::Fetched, delay);
            }
        }
    }
}
