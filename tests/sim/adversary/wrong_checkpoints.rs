//! Wrong checkpoint digests: whatever it executes, it says that something else came out of it, or
//! that it is further than anyone can be.

use ledgermq::pbft::Envelope;
use ledgermq::pbft::message::Content;

use super::{Adversary, Power};

pub struct WrongCheckpoints;

impl Adversary for WrongCheckpoints {
    fn name(&self) -> &'static str {
        "wrong checkpoints"
    }

    fn on_send(&mut self, power: &mut Power<'_>, envelope: Envelope) {
        let Content::Checkpoint(truth) = envelope.signed.content else {
            power.broadcast(&envelope);
            return;
        };
        for to in power.others() {
            let mut lie = truth;
            match power.rng.below(4) {
                0 => lie.state.0[0] ^= 1,
                1 => lie.block.0[0] ^= 1,
                // As if batches that changed nothing had been executed since.
                2 => lie.sequence.0 += 3,
                _ => {}
            }
            let envelope = power.sign(Content::Checkpoint(lie));
            if lie == truth {
                power.send(to, &envelope);
            } else {
                power.lie(to, &envelope);
            }
        }
    }
}
