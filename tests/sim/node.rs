//! One node: the core, its log on a virtual disk, and its ledger, as the actors of the program
//! hold them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ledgermq::crypto::blake3_plain;
use ledgermq::device;
use ledgermq::ledger::{
    Block, Certificate, CertifiedBlock, CheckpointContent, Genesis, Operation, ReplicaSetKeys, State,
    VerifiedRequest,
};
use ledgermq::pbft::{Batch, Gate, Input, Now, Replica, Restored, Settings, WalEntry};
use ledgermq::store::log::{Entry, EntryKind, Position};
use ledgermq::types::{ClientId, Hash, Height, MessageSeq, NetworkId, SeqNum, Timestamp};

use crate::clients::client;
use crate::cluster::START;
use crate::disk::{Disk, Mark};
use crate::property::Seen;
use crate::rng::Rng;

/// The messages of which a block writes something.
pub fn written(block: &Block) -> impl Iterator<Item = (ClientId, MessageSeq)> {
    block.operations.iter().filter_map(|operation| {
        let Operation::Write { request, .. } = operation else { return None };
        let header = device::Header::decode(&request.header).unwrap();
        Some((header.client, header.seq))
    })
}

/// How many sequence numbers lie between two moments at which the ledger store is made durable.
const DURABLE_EVERY: u64 = 10;

/// The shortest and the longest time that a sync takes, in microseconds.
const SYNC_US: (u64, u64) = (1_000, 2_000);

/// At which point of its next steps a node loses power.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrashPoint {
    /// Before the step's entries are handed to the disk.
    BeforeAppend,
    /// While they are on their way: any part of them survives.
    BeforeSync,
    /// When all are on the disk and nothing is sent.
    AfterSync,
    /// After the first of the effects was carried out.
    BetweenEffects,
    /// After all of them.
    AfterEffects,
}

impl CrashPoint {
    pub const ALL: [Self; 5] =
        [Self::BeforeAppend, Self::BeforeSync, Self::AfterSync, Self::BetweenEffects, Self::AfterEffects];
}

/// A node's clock: ahead or behind, and a little fast or slow. Its wall clock may be set; what
/// drives timers never jumps.
#[derive(Debug, Clone, Copy, Default)]
pub struct Clock {
    pub offset_ms: i64,
    pub drift_ppm: i64,
}

impl Clock {
    pub fn now(&self, time: Duration) -> Now {
        let micros = time.as_micros() as i64;
        let wall =
            START.0 as i64 + micros / 1_000 + self.offset_ms + micros / 1_000 * self.drift_ppm / 1_000_000;
        Now { wall: Timestamp(wall as u64), monotonic: self.monotonic(time) }
    }

    pub fn monotonic(&self, time: Duration) -> Duration {
        let micros = time.as_micros() as i64;
        Duration::from_micros((micros + micros * self.drift_ppm / 1_000_000) as u64)
    }

    /// When this clock shows `monotonic`, or a little later.
    pub fn when(&self, monotonic: Duration) -> Duration {
        let micros = monotonic.as_micros().min(i64::MAX as u128 / 2_000_000) as i64;
        Duration::from_micros((micros * 1_000_000 / (1_000_000 + self.drift_ppm) + 2) as u64)
    }
}

/// What is in the ledger store and on disk for good.
struct Durable {
    state: State,
    height: Height,
    /// Certificates that came since.
    later_certificates: BTreeSet<Height>,
}

pub struct Node {
    pub settings: Settings,
    network: NetworkId,
    keys: Arc<ReplicaSetKeys>,
    /// None while it is down.
    pub replica: Option<Replica>,
    pub disk: Disk,
    pub clock: Clock,
    pub state: State,
    pub blocks: BTreeMap<Height, Arc<Block>>,
    pub certificates: BTreeMap<Height, Certificate>,
    durable: Durable,
    /// What happened since the properties looked last.
    pub news: Vec<Seen>,
    /// What the blocks here wrote.
    pub written: BTreeSet<(ClientId, MessageSeq)>,
    /// The client whose messages it takes.
    client: ClientId,
    /// Counts its lives: what is on its way to an earlier one is void.
    pub life: u64,
    /// Counts its steps over all lives.
    pub steps: u64,
    /// Loses power at this step.
    pub crash_at: Option<(u64, CrashPoint)>,
    pub blocks_fetched: usize,
    /// Answers with blocks that proved nothing.
    pub blocks_refused: usize,
    pub skips: usize,
    /// When all that was appended so far is synced.
    pub disk_free_at: Duration,
    /// When it was woken last, and how often at that moment.
    pub ticks: (Duration, u32),
    /// How often it asked others for blocks.
    pub block_fetches: usize,
    /// When it is to be woken next.
    pub wake_at: Option<Duration>,
    /// How many sequence numbers lie between two moments at which its ledger store is made durable.
    pub durable_every: u64,
    /// How long its disk takes to sync, at least and at most.
    pub sync_us: (u64, u64),
    /// Its executions come out wrong.
    pub damaged: bool,
    /// Its log is gone, and it knows.
    pub lost_log: bool,
    /// What it takes from whom.
    pub gate: Gate,
    /// How long it takes to check one signature of gossip; nothing unless it is slow.
    pub check_us: u64,
    /// When all gossip that came so far is checked.
    pub checks_until: Duration,
}

impl Node {
    pub fn new(settings: Settings, genesis: &Genesis, keys: Arc<ReplicaSetKeys>, rng: Rng) -> Self {
        let state = State::genesis(genesis);
        let identity = settings.replicas.index_of(&settings.key.node_id()).unwrap();
        let client = client(identity);
        let durable =
            Durable { state: state.clone(), height: Height(0), later_certificates: BTreeSet::new() };
        let restored = Restored::new(state.checkpoint(), state.head().timestamp);
        let replica = Some(Replica::new(settings.clone(), restored).unwrap());
        Self {
            disk: Disk::new(settings.network, rng),
            network: settings.network,
            settings,
            keys,
            replica,
            clock: Clock::default(),
            state,
            blocks: BTreeMap::new(),
            certificates: BTreeMap::new(),
            durable,
            news: Vec::new(),
            written: BTreeSet::new(),
            client,
            life: 0,
            steps: 0,
            crash_at: None,
            blocks_fetched: 0,
            blocks_refused: 0,
            skips: 0,
            disk_free_at: Duration::ZERO,
            ticks: (Duration::ZERO, 0),
            block_fetches: 0,
            wake_at: None,
            durable_every: DURABLE_EVERY,
            sync_us: SYNC_US,
            damaged: false,
            lost_log: false,
            gate: Gate::default(),
            check_us: 0,
            checks_until: Duration::ZERO,
        }
    }

    pub fn is_up(&self) -> bool {
        self.replica.is_some()
    }

    /// Appends entries of the core; gives the position of the last.
    pub fn append(&mut self, entries: &[WalEntry]) -> Position {
        let record = |entry: &WalEntry| {
            let bytes = entry.encode();
            let (promise, sequence) = (promise_of(entry, &bytes), entry.sequence());
            (Entry { kind: EntryKind::Pbft, bytes }, Mark::Core { promise, sequence, pin: entry.pin() })
        };
        self.disk.append(entries.iter().map(record).collect())
    }

    /// Appends a message that the node took from its client.
    pub fn accept(&mut self, number: u64, request: &VerifiedRequest) -> Position {
        let entry = Entry { kind: EntryKind::AcceptedMessage, bytes: request.bytes().to_vec() };
        self.disk.append(vec![(entry, Mark::Accepted { number })])
    }

    pub fn synced(&mut self, upto: Position) {
        let marks = self.disk.sync(upto);
        self.durable_now(&marks);
    }

    fn durable_now(&mut self, marks: &[Mark]) {
        let promises = marks.iter().filter_map(|mark| match mark {
            Mark::Core { promise, .. } => Some(*promise),
            Mark::Accepted { .. } => None,
        });
        self.news.push(Seen::Synced(promises.collect()));
    }

    /// Power is lost. Gives the numbers of accepted messages that are lost with it.
    ///
    /// # Errors
    /// If the log does not hold what it must.
    pub fn crash(&mut self) -> Result<Vec<u64>, String> {
        let wreck = self.disk.crash()?;
        self.durable_now(&wreck.survived);
        self.replica = None;
        self.gate = Gate::default();
        self.life += 1;
        self.crash_at = None;
        self.wake_at = None;
        self.disk_free_at = Duration::ZERO;
        let Durable { state, height, later_certificates } = &mut self.durable;
        self.state = State::restore(self.network, state.head().clone(), state.entries()).unwrap();
        self.blocks.split_off(&height.next());
        self.certificates.split_off(&height.next());
        for height in std::mem::take(later_certificates) {
            self.certificates.remove(&height);
        }
        self.written = self.blocks.values().flat_map(|block| written(block)).collect();
        let numbers = wreck.lost.into_iter().filter_map(|mark| match mark {
            Mark::Accepted { number } => Some(number),
            Mark::Core { .. } => None,
        });
        Ok(numbers.collect())
    }

    /// Log and ledger are gone: the node is as on its first day.
    pub fn wipe(&mut self, genesis: &Genesis) {
        self.disk.lose();
        self.state = State::genesis(genesis);
        let state = self.state.clone();
        self.durable = Durable { state, height: Height(0), later_certificates: BTreeSet::new() };
        self.blocks.clear();
        self.certificates.clear();
        self.written.clear();
    }

    /// Starts again from what the disk has. Gives the messages that were accepted and are not on
    /// the ledger, as far as this node knows.
    ///
    /// # Errors
    /// If the log does not read, or the core refuses to start.
    pub fn restart(
        &mut self,
        forgets: impl Fn(&WalEntry) -> bool,
    ) -> Result<Vec<Arc<VerifiedRequest>>, String> {
        let (mut entries, mut accepted) = (Vec::new(), Vec::new());
        for entry in self.disk.read()? {
            if entry.kind == EntryKind::AcceptedMessage {
                let request = VerifiedRequest::verify_bytes(&self.network, &entry.bytes);
                accepted.push(Arc::new(request.map_err(|error| error.to_string())?));
            } else {
                let entry =
                    WalEntry::decode(&self.network, &entry.bytes).map_err(|error| error.to_string())?;
                entries.extend((!forgets(&entry)).then_some(entry));
            }
        }
        let executed = self.state.checkpoint();
        let restored = Restored {
            executed,
            timestamp: self.state.head().timestamp,
            certificate: self.certificates.values().last().cloned(),
            uncertified: self.uncertified(),
            entries,
            lost_log: self.lost_log && self.disk.is_empty(),
        };
        let replica = Replica::new(self.settings.clone(), restored).map_err(|error| error.to_string())?;
        self.replica = Some(replica);
        self.news.push(Seen::Started(executed));
        accepted.retain(|request| !self.has_written(request));
        Ok(accepted)
    }

    /// Whether something of this message is on the ledger here.
    pub fn has_written(&self, request: &VerifiedRequest) -> bool {
        let header = request.telemetry().map(|telemetry| &telemetry.header);
        header.is_some_and(|header| self.written.contains(&(header.client.clone(), header.seq)))
    }

    pub fn execute(
        &mut self,
        sequence: SeqNum,
        batch: &Batch,
        requests: &[Arc<VerifiedRequest>],
    ) -> Option<CheckpointContent> {
        if sequence <= self.state.head().sequence {
            return None;
        }
        let mut done = self.state.execute(sequence, batch, requests);
        done.checkpoint.state.0[0] ^= u8::from(self.damaged);
        self.news.push(Seen::Executed { sequence, batch: batch.digest() });
        self.store(done.checkpoint, done.block);
        Some(done.checkpoint)
    }

    fn store(&mut self, checkpoint: CheckpointContent, block: Option<Block>) {
        if let Some(block) = block {
            let block = Arc::new(block);
            self.news.push(Seen::Block(Arc::clone(&block)));
            self.written.extend(written(&block));
            self.blocks.insert(block.header.height, block);
        }
        self.news.push(Seen::Reached(checkpoint));
        let before = self.durable.state.head().sequence.0;
        if checkpoint.sequence.0 >= before + self.durable_every {
            self.make_durable();
        }
    }

    /// A storage checkpoint: everything so far is on disk, and the log is cut from its start.
    fn make_durable(&mut self) {
        let height = self.state.head().height;
        self.durable = Durable { state: self.state.clone(), height, later_certificates: BTreeSet::new() };
        let stable = self.replica.as_ref().unwrap().status().stable;
        let needed_from = stable.min(self.state.head().sequence);
        let (client, settled) = (&self.client, &self.written);
        self.disk.cut(|mark| match mark {
            Mark::Core { sequence, .. } => *sequence >= needed_from,
            Mark::Accepted { number } => !settled.contains(&(client.clone(), MessageSeq(*number))),
        });
    }

    pub fn skip(&mut self, content: &CheckpointContent) {
        // Blocks that were fetched may have brought the state further than the core knows.
        if content.sequence <= self.state.head().sequence {
            return;
        }
        self.state.skip_to(content).unwrap();
        self.skips += 1;
        self.news.push(Seen::Skipped(*content));
    }

    /// Stores a certificate that the core made, or one that was fetched and verified.
    pub fn put_certificate(&mut self, certificate: &Certificate) {
        let height = certificate.content.height;
        // Some come again after a restart; those that are there are there for good already.
        if self.blocks.contains_key(&height) && !self.certificates.contains_key(&height) {
            self.durable.later_certificates.insert(height);
            self.certificates.insert(height, certificate.clone());
        }
    }

    /// A certificate from a peer is taken only if it verifies and is that of the block here.
    pub fn take_certificate(&mut self, certificate: &Certificate) -> bool {
        let block = self.blocks.get(&certificate.content.height);
        let fits = block.is_some_and(|block| block.header.hash() == certificate.content.block);
        let good = fits && certificate.verify(&self.network, &self.keys).is_ok();
        if good {
            self.news.push(Seen::Certified(certificate.clone()));
            self.put_certificate(certificate);
        }
        good
    }

    /// Blocks that lack their certificates.
    pub fn uncertified(&self) -> Vec<Height> {
        self.blocks.keys().filter(|height| !self.certificates.contains_key(height)).copied().collect()
    }

    pub fn is_certified(&self) -> bool {
        self.blocks.len() == self.certificates.len()
    }

    /// Blocks above `height` that have certificates, as a peer gets them.
    pub fn certified_above(&self, height: Height) -> Vec<(Block, Certificate)> {
        let above = self.blocks.range(height.next()..);
        above
            .map_while(|(at, block)| Some((Block::clone(block), self.certificates.get(at)?.clone())))
            .take(64)
            .collect()
    }

    /// Applies fetched blocks; gives what the core is told if any was new. What does not
    /// verify, and all after it, is not taken.
    pub fn apply(&mut self, blocks: Vec<(Block, Certificate)>) -> Option<Input> {
        let (mut last, mut requests) = (None, Vec::new());
        for (block, certificate) in blocks {
            if block.header.height != self.state.head().height.next() {
                continue;
            }
            let Ok(certified) = CertifiedBlock::verify(block, certificate, &self.network, &self.keys) else {
                self.blocks_refused += 1;
                break;
            };
            let done = self.state.apply(&certified).expect("the same result as the quorum's");
            self.blocks_fetched += 1;
            requests.extend(done.outcomes.iter().map(|(digest, _)| *digest));
            self.store(done.checkpoint, done.block);
            self.news.push(Seen::Certified(certified.certificate().clone()));
            self.put_certificate(certified.certificate());
            last = Some((certified.certificate().clone(), certified.block().header.timestamp));
        }
        last.map(|(certificate, timestamp)| Input::BlocksSynced { certificate, timestamp, requests })
    }
}

/// The hash by which the properties know an entry of a log: of an own message, that of the message.
fn promise_of(entry: &WalEntry, bytes: &[u8]) -> Hash {
    match entry {
        WalEntry::ViewChange(signed) | WalEntry::NewView { new_view: signed, .. } => {
            blake3_plain(&WalEntry::Sent(signed.clone()).encode())
        }
        _ => blake3_plain(bytes),
    }
}
