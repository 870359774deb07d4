//! The queue of events: everything that happens, happens here, in an order that the seed decides.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use ledgermq::crypto::HashKind;
use ledgermq::ledger::{Block, Certificate, VerifiedRequest};
use ledgermq::pbft::message::Content;
use ledgermq::pbft::{Effect, Envelope, Input, Pass, Rejected, Signed, Source, Verified};
use ledgermq::store::log::Position;
use ledgermq::types::{Hash, Height, View};

use crate::cluster::Cluster;
use crate::node::CrashPoint;
use crate::planted::ShellBug;
use crate::property::Seen;

/// Gossip on its way: verified once for all who hear it, which is the same as each doing so.
pub struct Gossip {
    pub id: Hash,
    pub message: Verified,
    /// The adversary that made it up, if one did.
    pub liar: Option<usize>,
}

/// How often a core may want to be woken at one moment: what is due is done by then, or never.
const MOST_TICKS: u32 = 1_000;

pub enum Event {
    Step {
        node: usize,
        life: u64,
        input: Box<Input>,
    },
    Gossip {
        to: usize,
        gossip: Arc<Gossip>,
    },
    /// Gossip that a slow node has checked.
    Checked {
        to: usize,
        gossip: Arc<Gossip>,
    },
    Synced {
        node: usize,
        life: u64,
        position: Position,
        effects: Vec<Effect>,
        then: Option<CrashPoint>,
    },
    /// Accepted messages, read from the log, go to the core as it has room.
    Resume {
        node: usize,
        life: u64,
        requests: VecDeque<Arc<VerifiedRequest>>,
    },
    FetchRequests {
        at: usize,
        from: usize,
        digests: Vec<Hash>,
    },
    FetchBatches {
        at: usize,
        from: usize,
        digests: Vec<Hash>,
    },
    FetchView {
        at: usize,
        from: usize,
        view: View,
    },
    Proof {
        to: usize,
        messages: Vec<Signed>,
        liar: Option<usize>,
    },
    FetchBlocks {
        at: usize,
        from: usize,
        above: Height,
    },
    Blocks {
        to: usize,
        blocks: Vec<(Block, Certificate)>,
        liar: Option<usize>,
    },
    FetchCertificates {
        at: usize,
        from: usize,
        heights: Vec<Height>,
    },
    Certificates {
        to: usize,
        certificates: Vec<Certificate>,
    },
    Wake {
        node: usize,
        life: u64,
    },
    Crash {
        node: usize,
        life: u64,
    },
    Restart {
        node: usize,
    },
    AdversaryTick {
        at: usize,
    },
    /// The wall clock of a node is set: so much ahead of the true time.
    SetClock {
        node: usize,
        offset_ms: i64,
    },
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
        self.trail.event(at, &event);
        self.happen(event);
    }

    fn is_up(&self, node: usize, life: u64) -> bool {
        self.nodes[node].life == life && self.nodes[node].is_up()
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Step { node, life, input } if self.is_up(node, life) => drop(self.step(node, *input)),
            Event::Resume { node, life, requests } if self.is_up(node, life) => self.resume(node, requests),
            Event::Synced { node, life, position, effects, then } if self.is_up(node, life) => {
                self.on_synced(node, position, effects, then);
            }
            Event::Gossip { to, gossip } if self.nodes[to].check_us > 0 => self.queue(to, gossip),
            Event::Gossip { to, gossip } | Event::Checked { to, gossip } => self.hear(to, &gossip),
            Event::FetchRequests { at, from, digests } => self.answer_requests(at, from, &digests),
            Event::FetchBatches { at, from, digests } => self.answer_batches(at, from, &digests),
            Event::FetchView { at, from, view } => self.answer_view(at, from, view),
            Event::Proof { to, messages, liar } => self.take_proof(to, messages, liar),
            Event::FetchBlocks { at, from, above } => self.answer_blocks(at, from, above),
            Event::Blocks { to, blocks, liar } if self.nodes[to].is_up() => {
                let refused = self.nodes[to].blocks_refused;
                let synced = self.nodes[to].apply(blocks);
                self.deeds.heard(liar, self.nodes[to].blocks_refused > refused);
                if let Some(synced) = synced {
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
            Event::Crash { node, life } if self.is_up(node, life) => drop(self.crash(node)),
            Event::Restart { node } => drop(self.restart(node)),
            Event::AdversaryTick { at } => self.adversary_tick(at),
            Event::SetClock { node, offset_ms } => self.nodes[node].clock.offset_ms = offset_ms,
            // To an earlier life, or to a node that is down.
            _ => {}
        }
    }

    /// Like the feeder of a node, waits while the core has no room.
    fn resume(&mut self, node: usize, mut requests: VecDeque<Arc<VerifiedRequest>>) {
        while let Some(request) = requests.pop_front() {
            let replica = self.nodes[node].replica.as_ref();
            if !replica.is_some_and(|replica| replica.has_room(request.bytes().len())) {
                requests.push_front(request);
                let life = self.nodes[node].life;
                self.schedule(Duration::from_millis(5), Event::Resume { node, life, requests });
                return;
            }
            if !self.nodes[node].has_written(&request) {
                self.step(node, Input::Request { request, source: Source::Admitted });
            }
        }
    }

    /// The proof of a view is taken as a whole, if all that is in it is signed.
    fn take_proof(&mut self, to: usize, messages: Vec<Signed>, liar: Option<usize>) {
        let messages = messages.into_iter().map(|signed| self.gossip(&Envelope { attempt: 0, signed }));
        let messages: Option<Vec<_>> = messages.collect();
        self.deeds.heard(liar, messages.is_none());
        for gossip in messages.into_iter().flatten() {
            self.step(to, Input::Message(gossip.message.clone()));
        }
    }

    fn wake(&mut self, node: usize) {
        if self.nodes[node].wake_at.is_some_and(|at| at <= self.time) {
            self.nodes[node].wake_at = None;
        }
        let local = self.nodes[node].clock.monotonic(self.time);
        let due = self.nodes[node].replica.as_ref().and_then(|replica| replica.next_deadline());
        match due {
            Some(due) if due <= local => {
                let (at, ticks) = self.nodes[node].ticks;
                let ticks = if at == self.time { ticks + 1 } else { 1 };
                self.nodes[node].ticks = (self.time, ticks);
                if ticks > MOST_TICKS {
                    self.fail("idle", &format!("replica {node} wants to be woken again and again"));
                }
                self.step(node, Input::Tick);
            }
            Some(due) => self.wake_at(node, self.nodes[node].clock.when(due)),
            None => {}
        }
    }

    /// One step of the core of a node: its entries go to the disk, and its effects wait for that.
    /// Tells why the input was ignored, if it was.
    pub fn step(&mut self, node: usize, input: Input) -> Option<Rejected> {
        let now = self.nodes[node].clock.now(self.time);
        let replica = self.nodes[node].replica.as_mut()?;
        let output = replica.step(now, input);
        let due = replica.next_deadline();
        let rejected = output.rejected;
        self.trail.step(node, &output);
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
            return rejected;
        }
        let position = self.nodes[node].append(&output.wal);
        for effect in &output.effects {
            self.trace_all(|| format!("{node}, entries up to {}: {effect:?}", position.0));
        }
        let life = self.nodes[node].life;
        let synced_at = self.synced_at(node, !output.wal.is_empty());
        if self.planted == Some(ShellBug::SentBeforeSync) {
            for effect in output.effects {
                self.carry_out(node, effect);
            }
        } else if !output.is_empty() {
            let (effects, then) = (output.effects, crash.filter(|point| *point != CrashPoint::BeforeSync));
            self.schedule(synced_at - self.time, Event::Synced { node, life, position, effects, then });
        }
        if crash == Some(CrashPoint::BeforeSync) {
            self.nodes[node].crash_at = None;
            self.schedule((synced_at - self.time) / 2, Event::Crash { node, life });
        }
        if let Some(due) = due {
            self.wake_at(node, self.nodes[node].clock.when(due));
        }
        self.check(node);
        rejected
    }

    /// When what a node appends now is on its disk: disks sync in order, and effects wait for it in
    /// order.
    pub fn synced_at(&mut self, node: usize, has_entries: bool) -> Duration {
        let (low, high) = self.nodes[node].sync_us;
        let delay = if has_entries { self.rng.between(low, high) } else { 0 };
        let synced_at = self.nodes[node].disk_free_at.max(self.time + Duration::from_micros(delay));
        self.nodes[node].disk_free_at = synced_at;
        synced_at
    }

    fn on_synced(&mut self, node: usize, position: Position, effects: Vec<Effect>, then: Option<CrashPoint>) {
        if self.planted != Some(ShellBug::SyncThatLies) {
            self.nodes[node].synced(position);
            self.check(node);
        }
        let few = match then {
            Some(CrashPoint::AfterSync) => 0,
            Some(CrashPoint::BetweenEffects) => 1,
            _ => usize::MAX,
        };
        for effect in effects.into_iter().take(few) {
            self.carry_out(node, effect);
        }
        if then.is_some() {
            self.crash(node);
        }
    }

    /// A slow node checks one message after the other, and each signature in it takes its time. Its
    /// timers go on meanwhile.
    fn queue(&mut self, to: usize, gossip: Arc<Gossip>) {
        if !self.nodes[to].is_up() || self.seen[to].contains(&gossip.id) {
            return;
        }
        let signatures = match gossip.message.content() {
            Content::ViewChange(view_change) => 1 + view_change.prepared.len() * self.replicas.quorum(),
            Content::NewView(new_view) => 1 + new_view.proposals.len(),
            _ => 1,
        };
        let time = self.time;
        let node = &mut self.nodes[to];
        let takes = Duration::from_micros(node.check_us * u64::try_from(signatures).unwrap());
        node.checks_until = node.checks_until.max(time) + takes;
        let wait = node.checks_until - time;
        self.schedule(wait, Event::Checked { to, gossip });
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
            let rejected = self.step(to, Input::Message(gossip.message.clone()));
            if !self.world.faulty.contains(&to) {
                self.deeds.heard(gossip.liar, rejected.is_some());
            }
        }
    }

    /// Puts a message into the bytes that travel, reads them back and checks the signature.
    pub fn gossip(&mut self, envelope: &Envelope) -> Option<Arc<Gossip>> {
        let bytes = envelope.encode();
        let id = HashKind::Gossip.hash(&bytes);
        // The attempt comes first and is not signed: without it, repetitions are the same message.
        let inner = ledgermq::crypto::blake3_plain(&bytes[4..]);
        if let Some(message) = self.verified.get(&inner) {
            return Some(Arc::new(Gossip { id, message: message.clone(), liar: None }));
        }
        let read = Envelope::decode(&bytes).ok()?;
        let message = read.signed.verify(&self.set_keys, &self.network).ok()?;
        self.verified.insert(inner, message.clone());
        Some(Arc::new(Gossip { id, message, liar: None }))
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
        if let Seen::Sent(signed) = &seen {
            self.deeds.said(&self.world, node, signed);
        }
        self.nodes[node].news.push(seen);
        self.check(node);
    }
}
