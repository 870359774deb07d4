//! Byzantine replicas, one file each. Each has a whole correct core, so that it knows all that a
//! correct replica knows, and bends what goes in and out of it; it has its own key and nobody
//! else's. [`Deeds`] counts what they did and what became of it: an adversary that does nothing, or
//! whom nobody hears, proves nothing.

pub mod censoring_primary;
pub mod colluders;
pub mod deeds;
pub mod equivocating_backup;
pub mod equivocating_primary;
pub mod false_new_view;
pub mod fickle;
pub mod flooder;
pub mod forger;
pub mod forwarder;
pub mod replayer;
pub mod silent;
pub mod slow;
pub mod twins;
pub mod view_change_spammer;
pub mod wrong_checkpoints;

use std::sync::Arc;
use std::time::Duration;

use ledgermq::crypto::SecretKey;
use ledgermq::ledger::{Block, Certificate, VerifiedRequest};
use ledgermq::pbft::message::{Batch, Commit, Content, PrePrepare, Prepare, Verified};
use ledgermq::pbft::{Envelope, Signed, Source};
use ledgermq::types::{Hash, NetworkId, NodeId, SeqNum, Timestamp, View};

use crate::cluster::Cluster;
use crate::events::{Event, Gossip};
use crate::property::Seen;
use crate::rng::Rng;

/// How often an adversary acts by itself.
const TICK: Duration = Duration::from_millis(50);

/// What an adversary has at hand: its key, its clock and the network.
pub struct Power<'a> {
    pub me: usize,
    pub n: usize,
    pub key: &'a SecretKey,
    pub network: NetworkId,
    /// Its own view and low watermark.
    pub view: View,
    pub stable: SeqNum,
    /// The last certificate that it has.
    pub checkpoint: Option<Certificate>,
    pub rng: &'a mut Rng,
    pub(crate) out: Vec<Sending>,
    /// Requests to hand to an instance: in a bundle of this node, or forwarded by it.
    pub(crate) requests: Vec<(usize, Arc<VerifiedRequest>, Source)>,
}

/// A message on its way out of an adversary.
pub struct Sending {
    to: usize,
    after: Duration,
    envelope: Envelope,
    is_lie: bool,
}

impl Power<'_> {
    /// Signs anything in its own name.
    pub fn sign(&mut self, content: Content) -> Envelope {
        let signed = Verified::sign(self.key, &self.network, content).signed().clone();
        Envelope { attempt: self.rng.next() as u32, signed }
    }

    pub fn send(&mut self, to: usize, envelope: &Envelope) {
        self.send_later(to, Duration::ZERO, envelope);
    }

    pub fn send_later(&mut self, to: usize, after: Duration, envelope: &Envelope) {
        self.out.push(Sending { to, after, envelope: envelope.clone(), is_lie: false });
    }

    /// Sends what no correct replica would say, or would say now.
    pub fn lie(&mut self, to: usize, envelope: &Envelope) {
        self.out.push(Sending { to, after: Duration::ZERO, envelope: envelope.clone(), is_lie: true });
    }

    /// The same to all.
    pub fn lie_to_all(&mut self, envelope: &Envelope) {
        for to in self.others() {
            self.lie(to, envelope);
        }
    }

    pub fn broadcast(&mut self, envelope: &Envelope) {
        for to in self.others() {
            self.send(to, envelope);
        }
    }

    /// Gives a request of its own to `to`.
    pub fn bundle(&mut self, to: usize, request: Arc<VerifiedRequest>) {
        self.requests.push((to, request, Source::Bundle));
    }

    /// Forwards a request, whoever admitted it.
    pub fn forward(&mut self, to: usize, request: Arc<VerifiedRequest>) {
        let source = Source::Forwarded { by: self.node_id() };
        self.requests.push((to, request, source));
    }

    pub fn others(&self) -> Vec<usize> {
        (0..self.n).filter(|to| *to != self.me).collect()
    }

    pub fn node_id(&self) -> NodeId {
        self.key.node_id()
    }
}

/// What a Byzantine replica does otherwise than a correct one. What is not overridden is correct.
pub trait Adversary {
    fn name(&self) -> &'static str;

    /// Its core wants to send this to all.
    fn on_send(&mut self, power: &mut Power<'_>, envelope: Envelope) {
        power.broadcast(&envelope);
    }

    /// It hears this; false keeps it from its core.
    fn on_hear(&mut self, _: &mut Power<'_>, _: &Signed) -> bool {
        true
    }

    /// It is given a request; false keeps it from its core.
    fn takes_request(&mut self, _: &VerifiedRequest) -> bool {
        true
    }

    /// Its core wants to send bodies to `to`; false drops them.
    fn forwards_requests(&mut self, _to: usize) -> bool {
        true
    }

    /// It answers with these blocks.
    fn on_blocks(&mut self, _: &mut Rng, _: &mut Vec<(Block, Certificate)>) {}

    /// It answers with these certificates.
    fn on_certificates(&mut self, _: &mut Rng, _: &mut Vec<Certificate>) {}

    /// It answers with these batches.
    fn on_batches(&mut self, _: &mut Rng, _: &mut Vec<Batch>) {}

    /// It answers with this proof of a view.
    fn on_proof(&mut self, _: &mut Rng, _: &mut Vec<Signed>) {}

    /// Time passed.
    fn on_tick(&mut self, _: &mut Power<'_>) {}
}

/// All kinds, but for those that are more than one instance.
pub fn any(rng: &mut Rng, n: usize) -> Box<dyn Adversary> {
    if rng.percent(8) { Box::new(fickle::Fickle::new(rng, n)) } else { steady(rng, n) }
}

/// All kinds that stay as they are.
fn steady(rng: &mut Rng, n: usize) -> Box<dyn Adversary> {
    match rng.below(12) {
        0 => Box::new(silent::Silent),
        1 => Box::new(slow::Slow),
        2 => Box::<equivocating_primary::EquivocatingPrimary>::default(),
        3 => Box::new(equivocating_backup::EquivocatingBackup),
        4 => Box::new(censoring_primary::CensoringPrimary { victim: rng.index(n) }),
        5 => Box::<forger::Forger>::default(),
        6 => Box::<replayer::Replayer>::default(),
        7 => Box::<flooder::Flooder>::default(),
        8 => Box::<view_change_spammer::ViewChangeSpammer>::default(),
        9 => Box::new(false_new_view::FalseNewView),
        10 => Box::<forwarder::Forwarder>::default(),
        _ => Box::new(wrong_checkpoints::WrongCheckpoints),
    }
}

impl Cluster {
    /// Lets the adversary at `at` act, and sends what it wants sent.
    fn act<T>(&mut self, at: usize, act: impl FnOnce(&mut dyn Adversary, &mut Power<'_>) -> T) -> Option<T> {
        let mut adversary = self.adversaries.remove(&at)?;
        let (keys, n, network) = (self.keys.clone(), self.n(), self.network);
        let status = self.nodes[at].replica.as_ref().map(|replica| replica.status());
        let mut rng = self.rng.fork();
        let mut power = Power {
            me: at,
            n,
            key: &keys[at],
            network,
            view: status.map_or(View(0), |status| status.view),
            stable: status.map_or(SeqNum(0), |status| status.stable),
            checkpoint: self.nodes[at].certificates.values().last().cloned(),
            rng: &mut rng,
            out: Vec::new(),
            requests: Vec::new(),
        };
        let result = act(&mut *adversary, &mut power);
        let (out, requests) = (power.out, power.requests);
        self.adversaries.insert(at, adversary);
        for sending in out {
            self.deeds.sent(at, &sending.envelope, sending.is_lie, sending.after);
            self.inject_as(at, &sending);
        }
        for (to, request, source) in requests {
            self.deeds.of(at).lies += 1;
            if self.passes(at, to) {
                let delay = self.delay();
                self.give(to, &request, source, delay);
            }
        }
        Some(result)
    }

    /// Sends an envelope that no core made.
    pub fn inject(&mut self, from: usize, to: usize, after: Duration, envelope: &Envelope) {
        self.inject_as(from, &Sending { to, after, envelope: envelope.clone(), is_lie: true });
    }

    fn inject_as(&mut self, from: usize, sending: &Sending) {
        let envelope = &sending.envelope;
        if envelope.signed.sender == self.world.node_id(from) {
            self.saw(from, Seen::Sent(Arc::new(envelope.signed.clone())));
        }
        // What does not decode or verify is dropped by whoever hears it.
        let Some(gossip) = self.gossip(envelope) else {
            self.deeds.of(from).unsigned += 1;
            return;
        };
        let liar = sending.is_lie.then_some(from);
        let gossip = Arc::new(Gossip { id: gossip.id, message: gossip.message.clone(), liar });
        self.send(from, sending.to, &gossip, sending.after);
    }

    pub fn adversary_sends(&mut self, at: usize, envelope: Envelope) {
        let sent = self.deeds.of(at).sent;
        self.act(at, |adversary, power| adversary.on_send(power, envelope));
        if self.deeds.of(at).sent == sent {
            self.deeds.of(at).withheld += 1;
        }
    }

    pub fn adversary_hears(&mut self, at: usize, gossip: &Gossip) -> bool {
        if !self.adversaries.contains_key(&at) {
            return true;
        }
        self.act(at, |adversary, power| adversary.on_hear(power, gossip.message.signed())).unwrap_or(true)
    }

    pub fn adversary_takes(&mut self, at: usize, request: &VerifiedRequest) -> bool {
        let Some(adversary) = self.adversaries.get_mut(&at) else { return true };
        let takes = adversary.takes_request(request);
        self.deeds.of(at).withheld += u64::from(!takes);
        takes
    }

    pub fn adversary_forwards(&mut self, at: usize, to: usize) -> bool {
        let Some(adversary) = self.adversaries.get_mut(&at) else { return true };
        let forwards = adversary.forwards_requests(to);
        self.deeds.of(at).withheld += u64::from(!forwards);
        forwards
    }

    /// Lets the adversary at `at` change an answer; gives who lied, if it may have.
    pub fn adversary_falsifies(
        &mut self,
        at: usize,
        falsify: impl FnOnce(&mut dyn Adversary, &mut Rng),
    ) -> Option<usize> {
        let adversary = self.adversaries.get_mut(&at)?;
        falsify(&mut **adversary, &mut self.rng);
        Some(at)
    }

    pub fn adversary_tick(&mut self, at: usize) {
        self.schedule(TICK, Event::AdversaryTick { at });
        if self.nodes[at].is_up() {
            self.act(at, |adversary, power| adversary.on_tick(power));
        }
    }

    // ---- for scenarios that tell each lie by hand ----

    /// Signs anything in the name of a replica.
    pub fn forge(&self, at: usize, content: Content) -> Envelope {
        let signed = Verified::sign(&self.keys[at], &self.network, content).signed().clone();
        Envelope { attempt: 0, signed }
    }

    /// A batch as the primary `at` of view 0 may propose it.
    pub fn batch(&self, at: usize, requests: Vec<Hash>, after_ms: u64) -> Batch {
        let timestamp = Timestamp(1_767_225_600_001 + after_ms);
        Batch { requests, timestamp, origin_view: View(0), proposer: self.keys[at].node_id() }
    }

    pub fn pre_prepare(&self, at: usize, sequence: u64, batch: Batch) -> Envelope {
        let content = PrePrepare { view: View(0), sequence: SeqNum(sequence), batch };
        self.forge(at, Content::PrePrepare(content))
    }

    pub fn prepare(&self, at: usize, sequence: u64, digest: Hash) -> Envelope {
        self.forge(at, Content::Prepare(Prepare { view: View(0), sequence: SeqNum(sequence), digest }))
    }

    pub fn commit(&self, at: usize, sequence: u64, digest: Hash) -> Envelope {
        self.forge(at, Content::Commit(Commit { view: View(0), sequence: SeqNum(sequence), digest }))
    }
}
