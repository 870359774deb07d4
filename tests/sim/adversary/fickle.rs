//! Fickle: it behaves in one way for a while, then in another, and correctly in between, so that
//! whoever learned to live with one meets the next.

use ledgermq::ledger::{Block, Certificate, VerifiedRequest};
use ledgermq::pbft::message::Batch;
use ledgermq::pbft::{Envelope, Signed};

use super::{Adversary, Power, steady};
use crate::rng::Rng;

pub struct Fickle {
    n: usize,
    /// None while it is correct.
    mood: Option<Box<dyn Adversary>>,
    /// Ticks until it changes.
    lasts: u64,
}

impl Fickle {
    pub fn new(rng: &mut Rng, n: usize) -> Self {
        Self { n, mood: Some(steady(rng, n)), lasts: rng.between(2, 20) }
    }
}

impl Adversary for Fickle {
    fn name(&self) -> &'static str {
        "fickle"
    }

    fn on_send(&mut self, power: &mut Power<'_>, envelope: Envelope) {
        match &mut self.mood {
            Some(mood) => mood.on_send(power, envelope),
            None => power.broadcast(&envelope),
        }
    }

    fn on_hear(&mut self, power: &mut Power<'_>, signed: &Signed) -> bool {
        self.mood.as_mut().is_none_or(|mood| mood.on_hear(power, signed))
    }

    fn takes_request(&mut self, request: &VerifiedRequest) -> bool {
        self.mood.as_mut().is_none_or(|mood| mood.takes_request(request))
    }

    fn forwards_requests(&mut self, to: usize) -> bool {
        self.mood.as_mut().is_none_or(|mood| mood.forwards_requests(to))
    }

    fn on_blocks(&mut self, rng: &mut Rng, blocks: &mut Vec<(Block, Certificate)>) {
        if let Some(mood) = &mut self.mood {
            mood.on_blocks(rng, blocks);
        }
    }

    fn on_certificates(&mut self, rng: &mut Rng, certificates: &mut Vec<Certificate>) {
        if let Some(mood) = &mut self.mood {
            mood.on_certificates(rng, certificates);
        }
    }

    fn on_batches(&mut self, rng: &mut Rng, batches: &mut Vec<Batch>) {
        if let Some(mood) = &mut self.mood {
            mood.on_batches(rng, batches);
        }
    }

    fn on_proof(&mut self, rng: &mut Rng, messages: &mut Vec<Signed>) {
        if let Some(mood) = &mut self.mood {
            mood.on_proof(rng, messages);
        }
    }

    fn on_tick(&mut self, power: &mut Power<'_>) {
        self.lasts = self.lasts.saturating_sub(1);
        if self.lasts == 0 {
            self.lasts = power.rng.between(2, 20);
            self.mood = power.rng.percent(75).then(|| steady(power.rng, self.n));
        }
        if let Some(mood) = &mut self.mood {
            mood.on_tick(power);
        }
    }
}
