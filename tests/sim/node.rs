//! One node: the core, its log, and its ledger, as the actors of the program will hold them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ledgermq::device;
use ledgermq::ledger::{
    Block, Certificate, CertifiedBlock, CheckpointContent, Genesis, Operation, ReplicaSetKeys, State,
    VerifiedRequest,
};
use ledgermq::pbft::{Batch, Replica, Restored, Settings, WalEntry};
use ledgermq::types::{ClientId, Hash, Height, MessageSeq, NetworkId, SeqNum};

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

/// What is on disk for good.
#[derive(Clone)]
struct Durable {
    state: Entries,
    blocks: BTreeMap<Height, Block>,
    certificates: BTreeMap<Height, Certificate>,
}

#[derive(Clone)]
struct Entries {
    head: ledgermq::ledger::Head,
    entries: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entries {
    fn of(state: &State) -> Self {
        Self { head: state.head().clone(), entries: state.entries().collect() }
    }
}

pub struct Node {
    pub settings: Settings,
    network: NetworkId,
    keys: ReplicaSetKeys,
    /// None while it is down.
    pub replica: Option<Replica>,
    /// Entries as bytes; those from `synced` on are lost in a crash, but for a random part.
    wal: Vec<Vec<u8>>,
    synced: usize,
    pub state: State,
    pub blocks: BTreeMap<Height, Block>,
    pub certificates: BTreeMap<Height, Certificate>,
    durable: Durable,
    /// What it executed itself, for the checker.
    pub executed: BTreeMap<SeqNum, Hash>,
    /// What the blocks here wrote.
    pub written: BTreeSet<(ClientId, MessageSeq)>,
    pub checkpoints: BTreeMap<SeqNum, CheckpointContent>,
    /// Counts its lives: what is on its way to an earlier one is void.
    pub life: u64,
    pub blocks_fetched: usize,
    pub skips: usize,
    /// When all that was appended so far is synced.
    pub disk_free_at: Duration,
    /// Its executions come out wrong.
    pub damaged: bool,
}

impl Node {
    pub fn new(settings: Settings, genesis: &Genesis) -> Self {
        let state = State::genesis(genesis);
        let durable =
            Durable { state: Entries::of(&state), blocks: BTreeMap::new(), certificates: BTreeMap::new() };
        let network = settings.network;
        let keys = ReplicaSetKeys::new(&settings.replicas).unwrap();
        let restored = Restored::new(state.checkpoint(), state.head().timestamp);
        let replica = Some(Replica::new(settings.clone(), restored).unwrap());
        Self {
            settings,
            network,
            keys,
            replica,
            wal: Vec::new(),
            synced: 0,
            state,
            blocks: BTreeMap::new(),
            certificates: BTreeMap::new(),
            durable,
            executed: BTreeMap::new(),
            written: BTreeSet::new(),
            checkpoints: BTreeMap::new(),
            life: 0,
            blocks_fetched: 0,
            skips: 0,
            disk_free_at: Duration::ZERO,
            damaged: false,
        }
    }

    /// Appends entries; gives the length at which they are synced.
    pub fn append(&mut self, entries: &[WalEntry]) -> usize {
        self.wal.extend(entries.iter().map(WalEntry::encode));
        self.wal.len()
    }

    pub fn synced(&mut self, upto: usize) {
        self.synced = self.synced.max(upto).min(self.wal.len());
    }

    /// Power is lost: of what was not synced, the first `survivors` entries happen to remain.
    pub fn crash(&mut self, survivors: usize) {
        self.replica = None;
        self.life += 1;
        let kept = (self.synced + survivors).min(self.wal.len());
        self.wal.truncate(kept);
        self.synced = self.wal.len();
        let Durable { state, blocks, certificates } = self.durable.clone();
        self.state = State::restore(self.network, state.head, state.entries).unwrap();
        self.written = blocks.values().flat_map(written).collect();
        self.blocks = blocks;
        self.certificates = certificates;
    }

    pub fn restart(&mut self) {
        let decode = |bytes: &Vec<u8>| WalEntry::decode(&self.network, bytes).unwrap();
        let executed = self.state.checkpoint();
        let restored = Restored {
            executed,
            timestamp: self.state.head().timestamp,
            certificate: self.certificates.values().last().cloned(),
            uncertified: self.uncertified(),
            entries: self.wal.iter().map(decode).collect(),
            lost_log: false,
        };
        self.replica = Some(Replica::new(self.settings.clone(), restored).unwrap());
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
        self.executed.insert(sequence, batch.digest());
        self.store(done.checkpoint, done.block);
        Some(done.checkpoint)
    }

    fn store(&mut self, checkpoint: CheckpointContent, block: Option<Block>) {
        self.checkpoints.insert(checkpoint.sequence, checkpoint);
        if let Some(block) = block {
            self.written.extend(written(&block));
            self.blocks.insert(block.header.height, block);
        }
        let before = self.durable.state.head.sequence.0;
        if checkpoint.sequence.0 >= before + DURABLE_EVERY {
            self.make_durable();
        }
    }

    /// A storage checkpoint: everything so far is on disk, and the log is cut from its start.
    fn make_durable(&mut self) {
        let (blocks, certificates) = (self.blocks.clone(), self.certificates.clone());
        self.durable = Durable { state: Entries::of(&self.state), blocks, certificates };
        let stable = self.replica.as_ref().unwrap().status().stable;
        let needed_from = stable.min(self.state.head().sequence);
        let decode = |bytes: &Vec<u8>| WalEntry::decode(&self.network, bytes).unwrap();
        let synced: Vec<WalEntry> = self.wal[..self.synced].iter().map(decode).collect();
        let newest = |pin| synced.iter().rposition(|entry| entry.pin() == Some(pin));
        let old = |(at, entry): &(usize, &WalEntry)| match entry.pin() {
            Some(pin) => newest(pin) != Some(*at),
            None => entry.sequence() < needed_from,
        };
        let cut = synced.iter().enumerate().take_while(old).count();
        self.wal.drain(..cut);
        self.synced -= cut;
    }

    pub fn skip(&mut self, content: &CheckpointContent) {
        self.state.skip_to(content).unwrap();
        self.skips += 1;
        self.checkpoints.insert(content.sequence, *content);
    }

    pub fn put_certificate(&mut self, certificate: &Certificate) {
        certificate.verify(&self.network, &self.keys).expect("a certificate that verifies");
        let height = certificate.content.height;
        if height > Height(0) {
            assert_eq!(self.blocks[&height].header.hash(), certificate.content.block);
            self.certificates.insert(height, certificate.clone());
        }
    }

    /// Blocks that lack their certificates.
    pub fn uncertified(&self) -> Vec<Height> {
        self.blocks.keys().filter(|height| !self.certificates.contains_key(height)).copied().collect()
    }

    /// Blocks above `height` that have certificates, as a peer gets them.
    pub fn certified_above(&self, height: Height) -> Vec<(Block, Certificate)> {
        let above = self.blocks.range(height.next()..);
        above
            .map_while(|(at, block)| Some((block.clone(), self.certificates.get(at)?.clone())))
            .take(64)
            .collect()
    }

    /// Applies fetched blocks; gives the last one's certificate if any was new.
    pub fn apply(&mut self, blocks: Vec<(Block, Certificate)>) -> Option<(Certificate, Block)> {
        let mut last = None;
        for (block, certificate) in blocks {
            if block.header.height != self.state.head().height.next() {
                continue;
            }
            let certified =
                CertifiedBlock::verify(block, certificate, &self.network, &self.keys).expect("a good block");
            let done = self.state.apply(&certified).expect("the same result as the quorum's");
            self.blocks_fetched += 1;
            self.store(done.checkpoint, done.block);
            self.certificates.insert(certified.block().header.height, certified.certificate().clone());
            last = Some((certified.certificate().clone(), certified.block().clone()));
        }
        last
    }
}
