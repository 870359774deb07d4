//! The week: one queue of events, one seeded generator, and everything that happens to clients, nodes
//! and the ledger in between.
//!
//! Databases and logs work in real time, so the queue stops every two hours of the week until every history
//! has what it was given.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ledgermq::crypto::SecretKey;
use ledgermq::history::audit::AuditedLedger;
use ledgermq::ledger::{
    AdminAction, AdminOperation, ClientSettings, Genesis, ReplicaSet, Request, VerifiedRequest,
};
use ledgermq::policy::PolicySet;
use ledgermq::types::NetworkId;

use crate::clock::{MINUTE, START, WeekClock};
use crate::device::Device;
use crate::node::{Answer, Net, Running};
use crate::order::Order;
use crate::rng::Rng;

/// How many nodes.
pub const NODES: usize = 4;

/// The most that may go by between two looks at the histories.
const STEP: u64 = 120 * MINUTE;

/// What a node loses while it does not run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    Nothing,
    /// Its history, and not its ledger and its log.
    History,
    Everything,
}

/// Something that happens.
pub enum Event {
    /// A client measures, sends, and does so again later.
    Measure(usize),
    /// A client measures and sends besides.
    Burst(usize),
    /// A message reaches a node: client, its message, node.
    Deliver(usize, usize, usize),
    /// A client that was not told anything tries another node.
    Retry(usize, usize),
    /// A request reaches the replicas, unless its node was started anew since.
    Submit(usize, u32, Arc<VerifiedRequest>),
    /// The primary proposes.
    Propose,
    /// A node executes what was ordered.
    CatchUp(usize),
    /// A node has certificates of that many batches.
    Certify(usize, u32, usize),
    /// A node indexes what is certified.
    Index(usize),
    /// A node makes its store durable and cuts its log.
    Save(usize),
    /// A node asks again for what is not final.
    AskAgain(usize),
    /// `kill -9`, and what is lost with it.
    Kill(usize, Loss),
    /// An orderly stop.
    Stop(usize),
    Start(usize),
    /// The replicas agree on nothing until then.
    Stall(u64),
    /// A node is cut off from the others, and not from its clients, until then.
    CutOff(usize, u64),
    /// A node's history is gone, or back.
    Unplug(usize, bool),
    Admin(AdminAction),
    /// A client is replaced by another with a key of its own.
    Replace(usize, String),
    /// A client loses its memory.
    Forget(usize),
    /// A copy of a client uses a number that was used.
    Clone(usize),
}

/// A node, running or not.
pub struct Site {
    pub key: SecretKey,
    pub dir: PathBuf,
    pub running: Option<Running>,
    /// How often it was started.
    pub starts: u32,
    pub cut_off_until: u64,
    /// How many batches are certified here.
    pub certified: usize,
    /// Whether it lost its history.
    pub has_lost: bool,
}

/// What happened, by name.
pub type Counts = BTreeMap<&'static str, usize>;

pub struct World {
    pub net: Arc<Net>,
    pub network: NetworkId,
    pub sites: Vec<Site>,
    pub devices: Vec<Device>,
    pub order: Order,
    /// What an auditor has of the blocks.
    pub ledger: AuditedLedger,
    pub counts: Counts,
    pub rng: Rng,
    admin: SecretKey,
    admin_sequence: u64,
    pub now: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: BTreeMap<(u64, u64), Event>,
    tie: u64,
    stalled_until: u64,
    is_proposing: bool,
    /// From here on clients measure nothing new.
    pub closes_at: u64,
    pub dir: tempfile::TempDir,
}

fn node_key(number: usize) -> SecretKey {
    SecretKey::from_seed(&[number as u8 + 1; 32])
}

impl World {
    pub async fn new(seed: u64) -> Self {
        let keys: Vec<_> = (0..NODES).map(node_key).collect();
        let admin = SecretKey::from_seed(&[99; 32]);
        let genesis = Genesis {
            version: 1,
            name: "week".to_owned(),
            created: START,
            replicas: ReplicaSet::new(keys.iter().map(SecretKey::node_id).collect()).unwrap(),
            admins: vec![admin.public()],
        };
        let (network, clock) = (genesis.network_id(), Arc::<WeekClock>::default());
        let net = Arc::new(Net { genesis, clock });
        let dir = tempfile::tempdir().unwrap();
        let mut sites = Vec::new();
        for (number, key) in keys.iter().enumerate() {
            let path = dir.path().join(format!("node-{number}"));
            std::fs::create_dir_all(&path).unwrap();
            let running = Some(Running::open(&net, key, &path).await);
            let key = key.clone();
            sites.push(Site {
                key,
                dir: path,
                running,
                starts: 0,
                cut_off_until: 0,
                certified: 0,
                has_lost: false,
            });
        }
        Self {
            order: Order::new(&net.genesis, keys),
            ledger: AuditedLedger::new(&net.genesis).unwrap(),
            net,
            network,
            sites,
            devices: Vec::new(),
            counts: Counts::new(),
            rng: Rng::new(seed),
            admin,
            admin_sequence: 0,
            now: 0,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            tie: 0,
            stalled_until: 0,
            is_proposing: false,
            closes_at: u64::MAX,
            dir,
        }
    }

    pub fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    pub fn at(&mut self, time: u64, event: Event) {
        self.tie += 1;
        let key = (time.max(self.now), self.tie);
        self.queue.push(Reverse(key));
        self.events.insert(key, event);
    }

    pub fn soon(&mut self, low: u64, high: u64, event: Event) {
        let time = self.now + self.rng.between(low, high);
        self.at(time, event);
    }

    /// A client that begins at `time`.
    pub fn join(&mut self, device: Device, time: u64) {
        let (client, key, settings) = (device.id.clone(), device.key.public(), ClientSettings::default());
        self.at(time, Event::Admin(AdminAction::RegisterClient { client, key, settings }));
        self.devices.push(device);
        self.at(time + MINUTE, Event::Measure(self.devices.len() - 1));
    }

    pub fn set_policies(&mut self, time: u64, replaces: u64, policies: PolicySet) {
        self.at(time, Event::Admin(AdminAction::SetPolicies { replaces, policies }));
    }

    /// Lets everything happen up to `time`.
    pub async fn run_until(&mut self, time: u64) {
        while self.now < time {
            let next = (self.now / STEP + 1) * STEP;
            self.run_events(next.min(time)).await;
            self.write_up().await;
        }
    }

    pub async fn run_events(&mut self, time: u64) {
        while let Some(Reverse(key)) = self.queue.peek().copied().filter(|Reverse((at, _))| *at <= time) {
            self.queue.pop();
            self.now = key.0;
            self.net.clock.set(self.now);
            if let Some(event) = self.events.remove(&key) {
                self.happens(event).await;
            }
        }
        self.now = time;
        self.net.clock.set(time);
    }

    /// Waits until every history has what it was given, and submits the digests that were made.
    async fn write_up(&mut self) {
        for _ in 0..20_000 {
            if self.sites.iter().filter_map(|site| site.running.as_ref()).all(Running::is_written_up) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        self.submit_digests();
    }

    pub fn submit_digests(&mut self) {
        for at in 0..NODES {
            let Some(node) = &self.sites[at].running else { continue };
            for digest in node.take_digests() {
                self.count("digests submitted");
                let request = VerifiedRequest::verify(&self.network, Request::Digest(digest)).unwrap();
                self.send(at, Arc::new(request));
            }
        }
    }

    /// A request is on its way from a node to the replicas.
    pub fn send(&mut self, at: usize, request: Arc<VerifiedRequest>) {
        let site = &self.sites[at];
        let (starts, begin) = (site.starts, self.now.max(site.cut_off_until));
        let delay =
            if self.rng.percent(5) { self.rng.below(10 * MINUTE) } else { self.rng.between(2, 3_000) };
        self.at(begin + delay, Event::Submit(at, starts, request));
    }

    async fn happens(&mut self, event: Event) {
        match event {
            Event::Measure(device) if self.now >= self.closes_at => self.devices[device].is_retired = true,
            Event::Measure(device) => {
                let count = if self.rng.percent(8) { 6 } else { 1 };
                self.measure(device, count);
                self.soon(5 * MINUTE, 55 * MINUTE, Event::Measure(device));
            }
            Event::Burst(device) => self.measure(device, 4),
            Event::Deliver(device, message, node) => self.deliver(device, message, node).await,
            Event::Retry(device, message) => self.retry(device, message),
            Event::Submit(node, starts, request) => {
                if self.sites[node].starts == starts {
                    self.submit(request);
                }
            }
            Event::Propose => self.propose(),
            Event::CatchUp(node) => self.catch_up(node).await,
            Event::Certify(node, starts, upto) => self.certify(node, starts, upto).await,
            Event::Index(node) => {
                if let Some(node) = &self.sites[node].running {
                    node.index();
                }
            }
            Event::Save(node) => {
                if let Some(node) = &self.sites[node].running {
                    node.save().await;
                }
                self.soon(60 * MINUTE, 300 * MINUTE, Event::Save(node));
            }
            Event::AskAgain(node) => self.ask_again(node),
            Event::Kill(node, loss) => self.kill(node, loss).await,
            Event::Stop(node) => self.stop(node).await,
            Event::Start(node) => self.start(node).await,
            other => self.disturb(other),
        }
    }

    fn disturb(&mut self, event: Event) {
        match event {
            Event::Stall(until) => self.stalled_until = until,
            Event::CutOff(node, until) => {
                self.count("nodes cut off");
                self.sites[node].cut_off_until = until;
                self.at(until, Event::CatchUp(node));
            }
            Event::Unplug(node, gone) => {
                if let Some(node) = &self.sites[node].running {
                    node.history.unplug(gone);
                }
                self.count("histories unplugged or back");
            }
            Event::Admin(action) => self.administer(action),
            Event::Replace(device, name) => self.replace(device, &name),
            Event::Forget(device) => {
                let device = &mut self.devices[device];
                let known = self.sites.iter().filter_map(|site| site.running.as_ref());
                let known = known.map(|node| node.last_seq(&device.id)).next().unwrap_or_default();
                device.forget(known);
                self.count("memories lost");
            }
            Event::Clone(device) => {
                let (now, network) = (self.now, self.network);
                let made = self.devices[device].measure_twice(&network, now, &mut self.rng);
                if let Some(message) = made {
                    let node = (self.devices[device].home + 1) % NODES;
                    self.count("numbers used twice");
                    self.soon(1, 5_000, Event::Deliver(device, message, node));
                }
            }
            _ => {}
        }
    }

    fn administer(&mut self, action: AdminAction) {
        self.admin_sequence += 1;
        let operation = AdminOperation::sign(self.network, &self.admin, self.admin_sequence, action);
        let node = self.sites[0].key.node_id();
        let request = VerifiedRequest::verify(&self.network, Request::Admin { node, operation }).unwrap();
        self.count("admin operations");
        self.submit(Arc::new(request));
    }

    /// Its successor is registered, and after a while it is revoked; what it sent meanwhile is on its way.
    fn replace(&mut self, at: usize, name: &str) {
        let last_seq = self.devices[at].last_seq();
        let (client, home) = (self.devices[at].id.clone(), self.devices[at].home);
        let reason = "its key is replaced".to_owned();
        let later = self.now + 40 * MINUTE;
        self.at(later - 2_000, Event::Burst(at));
        self.at(later, Event::Admin(AdminAction::RevokeClient { client, last_seq, reason }));
        let device = Device::new(name, home, &mut self.rng);
        self.join(device, self.now);
        self.count("keys replaced");
    }

    fn measure(&mut self, at: usize, count: usize) {
        let (now, network) = (self.now, self.network);
        for _ in 0..count {
            let Some(message) = self.devices[at].measure(&network, now, &mut self.rng) else { break };
            let home = self.devices[at].home;
            let node = if self.rng.percent(8) { self.rng.index(NODES) } else { home };
            self.soon(1, 4_000, Event::Deliver(at, message, node));
            if self.rng.percent(6) {
                let node = self.rng.index(NODES);
                self.soon(1, 60_000, Event::Deliver(at, message, node));
            }
            self.soon(3 * MINUTE, 15 * MINUTE, Event::Retry(at, message));
        }
    }

    async fn deliver(&mut self, at: usize, message: usize, node: usize) {
        let (device, site) = (&self.devices[at], &mut self.sites[node]);
        let Some(running) = &mut site.running else { return };
        let (client, stream) = (device.id.clone(), device.stream.clone());
        let content = device.sent[message].content.clone();
        match running.accept(&client, &stream, &content).await {
            Answer::Accepted(request) => {
                self.count("messages accepted");
                match request {
                    Some(request) => self.send(node, request),
                    None => self.count("messages of which nothing is written"),
                }
            }
            Answer::Known => self.count("messages repeated"),
            Answer::Refused("not registered") => self.count("not registered yet"),
            Answer::Refused(why) => {
                self.count(why);
                self.devices[at].is_retired |= why == "revoked";
                self.devices[at].sent[message].done = true;
            }
        }
        self.hear(node);
    }

    /// What a node says to clients.
    pub fn hear(&mut self, node: usize) {
        let Some(node) = &mut self.sites[node].running else { return };
        for (client, seq, header) in std::mem::take(&mut node.told) {
            let Some(device) = self.devices.iter_mut().find(|device| device.id == client) else { continue };
            let of_it = device.sent.iter_mut().filter(|sent| sent.seq == seq && sent.header == header);
            of_it.for_each(|sent| sent.done = true);
        }
    }

    fn retry(&mut self, at: usize, message: usize) {
        if self.devices[at].sent[message].done {
            return;
        }
        self.count("messages sent again");
        let node = self.rng.index(NODES);
        self.soon(1, 4_000, Event::Deliver(at, message, node));
        self.soon(3 * MINUTE, 30 * MINUTE, Event::Retry(at, message));
    }

    fn submit(&mut self, request: Arc<VerifiedRequest>) {
        self.order.submit(request);
        self.propose_soon();
    }

    fn propose_soon(&mut self) {
        if !std::mem::replace(&mut self.is_proposing, true) {
            let delay = self.rng.between(5, 20_000);
            self.at(self.stalled_until.max(self.now + delay), Event::Propose);
        }
    }

    fn propose(&mut self) {
        self.is_proposing = false;
        let now = START.plus_ms(self.now);
        self.order.propose(now, &mut self.rng);
        for node in 0..NODES {
            self.soon(1, 2_000, Event::CatchUp(node));
        }
        if !self.order.is_idle() {
            self.propose_soon();
        }
    }

    async fn catch_up(&mut self, at: usize) {
        let (now, site) = (self.now, &mut self.sites[at]);
        if now < site.cut_off_until {
            return;
        }
        let Some(node) = &mut site.running else { return };
        let head = node.state.lock().unwrap().head().sequence;
        let done: Vec<_> = self.order.done.iter().filter(|one| one.sequence > head).cloned().collect();
        // Who is far behind fetches what the others have certified.
        let fetched = done.len().saturating_sub(3);
        for (place, ordered) in done.iter().enumerate() {
            if place < fetched {
                node.fetch(ordered).await;
            } else {
                node.execute(ordered);
            }
        }
        let (starts, upto) = (site.starts, self.order.done.len());
        if fetched > 0 {
            self.count("catching up by fetching");
        }
        let slow = if self.rng.percent(3) { 20 * MINUTE } else { 500 };
        self.soon(1, slow, Event::Certify(at, starts, upto));
        self.hear(at);
    }

    async fn certify(&mut self, at: usize, starts: u32, upto: usize) {
        let site = &mut self.sites[at];
        if site.starts != starts || self.now < site.cut_off_until {
            return;
        }
        let Some(node) = &mut site.running else { return };
        for ordered in self.order.done.iter().take(upto).skip(site.certified) {
            node.certify(ordered).await;
        }
        site.certified = site.certified.max(upto);
        let slow = if self.rng.percent(10) { 30 * MINUTE } else { 2_000 };
        self.soon(1, slow, Event::Index(at));
        self.hear(at);
    }

    fn ask_again(&mut self, at: usize) {
        let site = &self.sites[at];
        if let Some(node) = site.running.as_ref().filter(|_| self.now >= site.cut_off_until) {
            for request in node.open.values().cloned().collect::<Vec<_>>() {
                self.count("requests submitted again");
                self.send(at, request);
            }
        }
        self.soon(20 * MINUTE, 40 * MINUTE, Event::AskAgain(at));
    }
}
