//! Replayer: it repeats what anyone ever said, to anyone, at any time, as new gossip.

use ledgermq::pbft::{Envelope, Signed};

use super::{Adversary, Power};

/// How much it remembers.
const MEMORY: usize = 200;

#[derive(Default)]
pub struct Replayer {
    heard: Vec<Signed>,
}

impl Adversary for Replayer {
    fn name(&self) -> &'static str {
        "replayer"
    }

    fn on_hear(&mut self, power: &mut Power<'_>, signed: &Signed) -> bool {
        if self.heard.len() < MEMORY {
            self.heard.push(signed.clone());
        } else {
            let at = power.rng.index(MEMORY);
            self.heard[at] = signed.clone();
        }
        true
    }

    fn on_tick(&mut self, power: &mut Power<'_>) {
        for _ in 0..self.heard.len().min(3) {
            let signed = self.heard[power.rng.index(self.heard.len())].clone();
            let to = power.others()[power.rng.index(power.n - 1)];
            let envelope = Envelope { attempt: power.rng.next() as u32, signed };
            power.lie(to, &envelope);
        }
    }
}
