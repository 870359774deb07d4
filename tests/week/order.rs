//! What the replicas agree on: batches of what was submitted, executed, and certified by a quorum.
//!
//! Consensus itself has its own simulator (tests/sim). Here its result is what matters: one order that all
//! nodes execute, each in its time, and blocks with certificates of real signatures.

use std::sync::Arc;

use ledgermq::codec;
use ledgermq::crypto::{SecretKey, SignatureKind};
use ledgermq::ledger::{
    Certificate, CertifiedBlock, CheckpointContent, Executed, Genesis, Outcome, ReplicaSetKeys, State,
    VerifiedRequest,
};
use ledgermq::pbft::message::Batch;
use ledgermq::types::{NetworkId, SeqNum, Timestamp, View};

use crate::rng::Rng;

/// A batch with all that is known of it.
pub struct Ordered {
    pub sequence: SeqNum,
    pub batch: Batch,
    pub requests: Vec<Arc<VerifiedRequest>>,
    pub checkpoint: CheckpointContent,
    pub certificate: Certificate,
    /// None if it left nothing.
    pub certified: Option<CertifiedBlock>,
}

pub struct Order {
    network: NetworkId,
    /// In the order of the replica set.
    keys: Vec<SecretKey>,
    set: ReplicaSetKeys,
    state: State,
    pool: Vec<Arc<VerifiedRequest>>,
    pub done: Vec<Arc<Ordered>>,
    /// Why requests were refused.
    pub refused: Vec<String>,
}

impl Order {
    pub fn new(genesis: &Genesis, mut keys: Vec<SecretKey>) -> Self {
        keys.sort_by_key(SecretKey::node_id);
        Self {
            network: genesis.network_id(),
            keys,
            set: ReplicaSetKeys::new(&genesis.replicas).unwrap(),
            state: State::genesis(genesis),
            pool: Vec::new(),
            done: Vec::new(),
            refused: Vec::new(),
        }
    }

    pub fn submit(&mut self, request: Arc<VerifiedRequest>) {
        if !self.pool.iter().any(|waiting| waiting.digest() == request.digest()) {
            self.pool.push(request);
        }
    }

    /// All blocks.
    pub fn blocks(&self) -> Vec<CertifiedBlock> {
        self.done.iter().filter_map(|one| one.certified.clone()).collect()
    }

    pub fn is_idle(&self) -> bool {
        self.pool.is_empty()
    }

    /// Orders most of what waits; some of it comes later than what was submitted after it.
    pub fn propose(&mut self, now: Timestamp, rng: &mut Rng) {
        let is_write = |request: &VerifiedRequest| request.telemetry().is_some();
        let may_wait = |request: &Arc<VerifiedRequest>| is_write(request) && rng.percent(15);
        let (later, mut requests): (Vec<_>, Vec<_>) = self.pool.drain(..).partition(may_wait);
        self.pool = later;
        if requests.len() > 1 && requests.iter().all(|request| is_write(request)) && rng.percent(20) {
            let at = rng.index(requests.len() - 1);
            requests.swap(at, at + 1);
        }
        if requests.is_empty() {
            return;
        }
        let sequence = self.state.head().sequence.next();
        let view = View(rng.below(4));
        let batch = Batch {
            requests: requests.iter().map(|request| request.digest()).collect(),
            timestamp: now,
            origin_view: view,
            proposer: self.keys[view.0 as usize % self.keys.len()].node_id(),
        };
        let Executed { checkpoint, block, outcomes, .. } = self.state.execute(sequence, &batch, &requests);
        for (_, outcome) in &outcomes {
            if let Outcome::Rejected(rejection) = outcome {
                self.refused.push(format!("{rejection:?}"));
            }
        }
        let certificate = self.certify(checkpoint, rng);
        let certified = block.map(|block| {
            CertifiedBlock::verify(block, certificate.clone(), &self.network, &self.set).unwrap()
        });
        self.done.push(Arc::new(Ordered { sequence, batch, requests, checkpoint, certificate, certified }));
    }

    /// Signed by a quorum, not always the same.
    fn certify(&self, content: CheckpointContent, rng: &mut Rng) -> Certificate {
        let left_out = rng.index(self.keys.len());
        let signers = self.keys.iter().enumerate().filter(|(at, _)| *at != left_out);
        let bytes = codec::encode(&content);
        let sign = |(at, key): (usize, &SecretKey)| {
            (at as u16, key.sign(SignatureKind::Checkpoint, &self.network, &bytes))
        };
        Certificate { content, signatures: signers.map(sign).collect() }
    }
}
