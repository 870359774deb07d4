//! The queue of events: everything that happens, happens here, in an order that the seed decides.

use std::sync::Arc;
use std::time::Duration;

use ledgermq::crypto::HashKind;
use ledgermq::ledger::{Block, Certificate};
use ledgermq::pbft::{Effect, Envelope, Input, Pass, Signed, Verified};
use ledgermq::types::{Hash, Height, View};

use crate::cluster::Cluster;
use crate::node::CrashPoint;
use crate::planted::ShellBug;
use crate::property::Seen;

/// Gossip on its way: verified once for all who hear it, which is the same as each doing so.
pub struct Gossip {
    pub id: Hash,
    pub message: Verified,
}

pub enum Event {
    Step { node: usize, life: u64, input: Box<Input> },
    Gossip { to: usize, gossip: Arc<Gossip> },
    Synced { node: usize, life: u64, position: usize, effects: Vec<Effect>, then: Option<CrashPoint> },
    FetchRequests { at: usize, from: usize, digests: Vec<Hash> },
    FetchBatches { at: usize, from: usize, digests: Vec<Hash> },
    FetchView { at: usize, from: usize, view: View },
    Proof { to: usize, messages: Vec<Signed> },
    FetchBlocks { at: usize, from: usize, above: Height },
    Blocks { to: usize, blocks: Vec<(Block, Certificate)> },
    FetchCertificates { at: usize, from: usize, heights: Vec<Height> },
    Certificates { to: usize, certificates: Vec<Certificate> },
    Wake { node: usize, life: u64 },
    Crash { node: usize },
    Restart { node: usize },
    AdversaryTick { at: usize },
}

impl Cluster {
    pub fn schedule(&mut self, after: Duration, event: Event) {
        self.next_event += 1;
        self.events.insert((self.time + after, self.next_event), event);
    }

    /// Wakes a node at some time, unless it is woken before anyway.
    pub fn wake_at(&mut self, node: usize, at: Duration) {
        let at = at.max(self.time);
        if self.nodes[node].wake_at.is_none_or(|before| at < before) {
            self.nodes[node].wake_at = Some(at);
            let life = self.nodes[node].life;
            self.schedule(at - self.time, Event::Wake { node, life });
        }
    }

    pub fn next(&mut self) {
        let Some(((at, _), event)) = self.events.pop_first() else { return };
        self.time = at;
        self.happened += 1;
        self.happen(event);
    }

    fn is_up(&self, node: usize, life: u64) -> bool {
        self.nodes[node].life == life && self.nodes[node].is_up()
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Step { node, life, input } if self.is_up(node, life) => self.step(node, *input),
            Event::Synced { node, life, position, effects, then } if self.is_up(node, life) => {
                self.on_synced(node, position, effects, then);
            }
            Event::Gossip { to, gossip } => self.hear(to, &gossip),
            Event::FetchRequests { at, from, digests } => self.answer_requests(at, from, &digests),
            Event::FetchBatches { at, from, digests } => self.answer_batches(at, from, &digests),
            Event::FetchView { at, from, view } => self.answer_view(at, from, view),
            Event::Proof { to, messages } => {
                for signed in messages {
                    if let Some(gossip) = self.gossip(&Envelope { attempt: 0, signed }) {
                        self.step(to, Input::Message(gossip.message.clone()));
                    }
                }
            }
            Event::FetchBlocks { at, from, above } => self.answer_blocks(at, from, above),
            Event::Blocks { to, blocks } if self.nodes[to].is_up() => {
                if let Some(synced) = self.nodes[to].apply(blocks) {
                    self.check(to);
                    self.step(to, synced);
                }
            }
            Event::FetchCertificates { at, from, heights } => self.answer_certificates(at, from, &heights),
            Event::Certificates { to, certificates } if self.nodes[to].is_up() => {
                for certificate in certificates {
                    if self.nodes[to].take_certificate(&certificate) {
                        self.step(to, Input::CertificateFetched(certificate));
                    }
                }
            }
            Event::Wake { node, life } if self.is_up(node, life) => self.wake(node),
            Event::Crash { node } => drop(self.crash(node)),
            Event::Restart { node } => drop(self.restart(node)),
            Event::AdversaryTick { at } => self.adversary_tick(at),
            // To an earlier life, or to a node that is down.
            _ => {}
        }
    }

    fn wake(&mut self, node: usize) {
        if self.nodes[node].wake_at.is_some_and(|at| at <= self.time) {
            self.nodes[node].wake_at = None;
        }
        let local = self.nodes[node].clock.monotonic(self.time);
        let due = self.nodes[node].replica.as_ref().and_then(|replica| replica.next_deadline());
        match due {
            Some(due) if due <= local => self.step(node, Input::Tick),
            Some(due) => self.wake_at(node, self.nodes[node].clock.when(due)),
            None => {}
        }
    }

    /// One step of the core of a node: its entries go to the disk, and its effects wait for that.
    pub fn step(&mut self, node: usize, input: Input) {
        let now = self.nodes[node].clock.now(self.time);
        let Some(replica) = &mut self.nodes[node].replica else { return };
        let output = replica.step(now, input);
        let due = replica.next_deadline();
        if let Some(why) = output.rejected
            && crate::run::tracing() > 1
        {
            eprintln!("{:>12?} {node} ignores something: {why}", self.time);
        }
        let stepped = Seen::Stepped(Box::new((replica.status(), replica.footprint())));
        for effect in &output.effects {
            if let Effect::Certified(certificate) = effect {
                self.nodes[node].news.push(Seen::Certified(certificate.clone()));
            }
        }
        self.nodes[node].news.push(stepped);
        self.nodes[node].steps += 1;
        let crash = self.nodes[node].crash_at.filter(|(at, _)| self.nodes[node].steps >= *at);
        let crash = crash.map(|(_, point)| point).filter(|_| !output.is_empty());
        if crash == Some(CrashPoint::BeforeAppend) {
            self.crash(node);
            return;
        }
        let position = self.nodes[node].append(&output.wal);
        for effect in &output.effects {
            self.trace_all(|| format!("{node}, entries up to {position}: {effect:?}"));
        }
        let life = self.nodes[node].life;
        // Each node's disk syncs in order, in up to 2 ms, and effects wait for it in order.
        let delay = if output.wal.is_empty() { 0 } else { self.rng.between(1_000, 2_000) };
        let synced_at = self.nodes[node].disk_free_at.max(self.time + Duration::from_micros(delay));
        self.nodes[node].disk_free_at = synced_at;
        if self.planted == Some(ShellBug::SentBeforeSync) {
            for effect in output.effects {
                self.carry_out(node, effect);
            }
        } else if !output.is_empty() {
            let (effects, then) = (output.effects, crash.filter(|point| *point != CrashPoint::BeforeSync));
            self.schedule(synced_at - self.time, Event::Synced { node, life, position, effects, then });
        }
        if crash == Some(CrashPoint::BeforeSync) {
            let half = Duration::from_micros(delay / 2);
            self.nodes[node].crash_at = None;
            self.schedule(half, Event::Crash { node });
        }
        if let Some(due) = due {
            self.wake_at(node, self.nodes[node].clock.when(due));
        }
        self.check(node);
    }

    fn on_synced(&mut self, node: usize, position: usize, effects: Vec<Effect>, then: Option<CrashPoint>) {
        if self.planted != Some(ShellBug::SyncThatLies) {
            self.nodes[node].synced(position);
            self.check(node);
        }
        let few = match then {
            Some(CrashPoint::AfterSync) => 0,
            Some(_) => 1,
            None => usize::MAX,
        };
        for effect in effects.into_iter().take(few) {
            self.carry_out(node, effect);
        }
        if then.is_some() {
            self.crash(node);
        }
    }

    fn hear(&mut self, to: usize, gossip: &Gossip) {
        if !self.nodes[to].is_up() || !self.seen[to].insert(gossip.id) {
            return;
        }
        let node = &mut self.nodes[to];
        let local = node.clock.monotonic(self.time);
        match node.gate.admit(local, gossip.message.clone().into()) {
            Pass::Later => return,
            Pass::Check(ticket) => node.gate.settle(local, ticket.checked()),
            Pass::Known(_) => {}
        }
        if self.adversary_hears(to, gossip) {
            self.step(to, Input::Message(gossip.message.clone()));
        }
    }

    /// Puts a message into the bytes that travel, reads them back and checks the signature.
    pub fn gossip(&mut self, envelope: &Envelope) -> Option<Arc<Gossip>> {
        let bytes = envelope.encode();
        let id = HashKind::Gossip.hash(&bytes);
        // The attempt comes first and is not signed: without it, repetitions are the same message.
        let inner = ledgermq::crypto::blake3_plain(&bytes[4..]);
        if let Some(message) = self.verified.get(&inner) {
            return Some(Arc::new(Gossip { id, message: message.clone() }));
        }
        let read = Envelope::decode(&bytes).ok()?;
        let message = read.signed.verify(&self.set_keys, &self.network).ok()?;
        self.verified.insert(inner, message.clone());
        Some(Arc::new(Gossip { id, message }))
    }

    /// Shows the properties what is new at a node.
    pub fn check(&mut self, node: usize) {
        let news = std::mem::take(&mut self.nodes[node].news);
        for seen in news {
            for at in 0..self.properties.len() {
                let property = &mut self.properties[at];
                if let Err(broken) = property.check(&self.world, node, &seen) {
                    let name = property.name();
                    self.fail(name, &broken);
                }
            }
        }
    }

    pub fn saw(&mut self, node: usize, seen: Seen) {
        self.nodes[node].news.push(seen);
        self.check(node);
    }
}
