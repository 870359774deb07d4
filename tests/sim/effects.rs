//! What a core wants done, carried out on the virtual network, ledger and disk.

use std::sync::Arc;
use std::time::Duration;

use ledgermq::ledger::{Certificate, VerifiedRequest};
use ledgermq::pbft::message::Content;
use ledgermq::pbft::{Effect, Envelope, Input, Source};
use ledgermq::types::{Hash, Height, NodeId, View};

use crate::cluster::Cluster;
use crate::events::{Event, Gossip};
use crate::planted::ShellBug;
use crate::property::Seen;

impl Cluster {
    pub fn carry_out(&mut self, node: usize, effect: Effect) {
        match effect {
            Effect::Broadcast(envelope) => self.broadcast(node, envelope),
            Effect::SendRequests { requests } => self.send_requests(node, &requests),
            Effect::FetchRequests { digests, from } => {
                self.ask_peer(node, from[0], |at, from| Event::FetchRequests { at, from, digests });
            }
            Effect::ForwardRequests { requests, to } => {
                let to = self.index_of(&to);
                if self.adversary_forwards(node, to) && self.passes(node, to) {
                    let delay = self.delay();
                    for request in &requests {
                        let own = request.node() == self.world.node_id(node);
                        let bundle = own && self.planted == Some(ShellBug::ForwardedAsBundle);
                        let by = self.world.node_id(node);
                        let source = if bundle { Source::Bundle } else { Source::Forwarded { by } };
                        self.give(to, request, source, delay);
                    }
                }
            }
            Effect::FetchBatches { digests, from } => {
                self.ask_peer(node, from[0], |at, from| Event::FetchBatches { at, from, digests });
            }
            Effect::FetchView { view, from } => {
                self.ask_peer(node, from[0], |at, from| Event::FetchView { at, from, view });
            }
            Effect::FetchBlocks { above, from, .. } => {
                // One after the other: who does not answer is not asked again and again.
                self.nodes[node].block_fetches += 1;
                let peer = from[self.nodes[node].block_fetches % from.len()];
                self.ask_peer(node, peer, |at, from| Event::FetchBlocks { at, from, above });
            }
            Effect::FetchCertificates { heights, from } => {
                let peer = self.rng.pick(&from);
                self.ask_peer(node, peer, |at, from| Event::FetchCertificates { at, from, heights });
            }
            Effect::Execute { sequence, batch, requests } => {
                if let Some(content) = self.nodes[node].execute(sequence, &batch, &requests) {
                    self.check(node);
                    let life = self.nodes[node].life;
                    let input = Box::new(Input::Executed(content));
                    self.schedule(Duration::from_micros(300), Event::Step { node, life, input });
                }
            }
            Effect::Skip(content) => {
                self.nodes[node].skip(&content);
                self.check(node);
            }
            Effect::Certified(certificate) => {
                if self.planted != Some(ShellBug::CertificatesLost) {
                    self.nodes[node].put_certificate(&certificate);
                    self.check(node);
                }
            }
            Effect::Diverged { own, other } => {
                self.diverged.insert(node);
                if !self.world.faulty.contains(&node) {
                    self.fail("agreement", &format!("replica {node} says it diverged: {own:?} {other:?}"));
                }
            }
            Effect::Evidence(evidence) => {
                self.saw(node, Seen::Evidence(evidence.clone()));
                self.evidence.push(*evidence);
            }
        }
    }

    fn broadcast(&mut self, node: usize, envelope: Envelope) {
        if self.planted == Some(ShellBug::OldVotesRepeated) {
            self.repeat_old_vote(node, &envelope);
        }
        if self.planted == Some(ShellBug::NothingRepeated) && envelope.attempt > 0 {
            return;
        }
        if self.adversaries.contains_key(&node) {
            self.adversary_sends(node, envelope);
            return;
        }
        // A proof that others signed is passed on; that is no word of this replica.
        if envelope.signed.sender == self.world.node_id(node) {
            self.saw(node, Seen::Sent(Arc::new(envelope.signed.clone())));
        }
        let Some(gossip) = self.gossip(&envelope) else { return };
        for to in (0..self.instances()).filter(|to| *to != node) {
            self.send(node, to, &gossip, Duration::ZERO);
        }
    }

    /// What the mistake does: it says once more what it said before it gave a view up.
    fn repeat_old_vote(&mut self, node: usize, envelope: &Envelope) {
        if envelope.signed.sender != self.world.node_id(node) {
            return;
        }
        let giving_up = matches!(envelope.signed.content, Content::ViewChange(_));
        let last = self.last_votes.insert(node, envelope.clone());
        let last = last.filter(|last| last.signed.content.view() < envelope.signed.content.view());
        if let Some(vote) = last.filter(|_| giving_up) {
            self.saw(node, Seen::Sent(Arc::new(envelope.signed.clone())));
            self.saw(node, Seen::Sent(Arc::new(vote.signed)));
        }
    }

    /// Sends to one instance through the weather.
    pub fn send(&mut self, from: usize, to: usize, gossip: &Arc<Gossip>, later: Duration) {
        let copies = if self.rng.percent(self.weather.duplicate_percent) { 2 } else { 1 };
        for _ in 0..copies {
            if self.passes(from, to) {
                let delay = later + self.delay();
                self.schedule(delay, Event::Gossip { to, gossip: Arc::clone(gossip) });
            }
        }
    }

    fn send_requests(&mut self, node: usize, requests: &[Arc<VerifiedRequest>]) {
        for to in (0..self.instances()).filter(|to| *to != node) {
            if self.adversary_forwards(node, to) && self.passes(node, to) {
                let delay = self.delay();
                for request in requests {
                    self.give(to, request, Source::Bundle, delay);
                }
            }
        }
    }

    pub fn give(&mut self, to: usize, request: &Arc<VerifiedRequest>, source: Source, after: Duration) {
        if self.adversary_takes(to, request) {
            let life = self.nodes[to].life;
            let input = Box::new(Input::Request { request: Arc::clone(request), source });
            self.schedule(after, Event::Step { node: to, life, input });
        }
    }

    /// Asks an instance of a replica for something.
    fn ask_peer(&mut self, node: usize, peer: NodeId, event: impl FnOnce(usize, usize) -> Event) {
        let identity = self.index_of(&peer);
        let instances = &self.world.identities;
        let candidates: Vec<usize> = (0..instances.len()).filter(|at| instances[*at] == identity).collect();
        let at = self.rng.pick(&candidates);
        if self.passes(node, at) {
            let delay = self.delay();
            self.schedule(delay, event(at, node));
        }
    }

    pub fn delay(&mut self) -> Duration {
        self.weather.delay(&mut self.rng)
    }

    /// Whether something that `from` sends reaches `to`.
    pub fn passes(&mut self, from: usize, to: usize) -> bool {
        let lost = self.rng.percent(self.weather.loss_percent);
        let apart = self.silent.contains(&from) || self.cut_off.contains(&from) || self.cut_off.contains(&to);
        !lost && !apart && !self.links.is_cut(from, to)
    }

    pub fn answer_requests(&mut self, at: usize, from: usize, digests: &[Hash]) {
        let Some(replica) = &self.nodes[at].replica else { return };
        let found: Vec<_> = digests.iter().filter_map(|digest| replica.request(digest)).collect();
        if self.adversary_forwards(at, from) && self.passes(at, from) {
            let delay = self.delay();
            for request in found {
                self.give(from, &request, Source::Fetched, delay);
            }
        }
    }

    pub fn answer_batches(&mut self, at: usize, from: usize, digests: &[Hash]) {
        let Some(replica) = &self.nodes[at].replica else { return };
        let found: Vec<_> = digests.iter().filter_map(|digest| replica.batch(digest)).collect();
        let mut found = found;
        self.adversary_falsifies(at, |adversary, rng| adversary.on_batches(rng, &mut found));
        if self.adversary_forwards(at, from) && self.passes(at, from) {
            let (delay, life) = (self.delay(), self.nodes[from].life);
            // Whoever asked takes only what it asked for.
            for batch in found.into_iter().filter(|batch| digests.contains(&batch.digest())) {
                let input = Box::new(Input::Batch(batch));
                self.schedule(delay, Event::Step { node: from, life, input });
            }
        }
    }

    pub fn answer_view(&mut self, at: usize, from: usize, view: View) {
        let Some(replica) = &self.nodes[at].replica else { return };
        let mut messages = replica.view_proof(view);
        let liar = self.adversary_falsifies(at, |adversary, rng| adversary.on_proof(rng, &mut messages));
        if self.adversary_forwards(at, from) && self.passes(at, from) {
            let delay = self.delay();
            self.schedule(delay, Event::Proof { to: from, messages, liar });
        }
    }

    pub fn answer_blocks(&mut self, at: usize, from: usize, above: Height) {
        if !self.nodes[at].is_up() {
            return;
        }
        let mut blocks = self.nodes[at].certified_above(above);
        let liar = self.adversary_falsifies(at, |adversary, rng| adversary.on_blocks(rng, &mut blocks));
        if self.adversary_forwards(at, from) && self.passes(at, from) {
            let delay = self.delay();
            self.schedule(delay, Event::Blocks { to: from, blocks, liar });
        }
    }

    pub fn answer_certificates(&mut self, at: usize, from: usize, heights: &[Height]) {
        if !self.nodes[at].is_up() {
            return;
        }
        let found = heights.iter().filter_map(|height| self.nodes[at].certificates.get(height));
        let mut certificates: Vec<Certificate> = found.cloned().collect();
        self.adversary_falsifies(at, |adversary, rng| adversary.on_certificates(rng, &mut certificates));
        if self.adversary_forwards(at, from) && self.passes(at, from) {
            let delay = self.delay();
            self.schedule(delay, Event::Certificates { to: from, certificates });
        }
    }
}
