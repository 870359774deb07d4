//! Slow: everything it says comes late, each word by another time, just fast enough to be hoped for.

use super::{Adversary, Power};
use ledgermq::pbft::Envelope;

pub struct Slow;

impl Adversary for Slow {
    fn name(&self) -> &'static str {
        "slow"
    }

    fn on_send(&mut self, power: &mut Power<'_>, envelope: Envelope) {
        for to in power.others() {
            let late = power.rng.ms(50, 900);
            power.send_later(to, late, &envelope);
        }
    }
}
