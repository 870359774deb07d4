//! Flooder: votes for numbers far and near, views that are not, CHECKPOINTs from the future, and
//! requests without end: whatever could make another's memory grow.

use ledgermq::ledger::CheckpointContent;
use ledgermq::pbft::message::{Commit, Content, Prepare};
use ledgermq::types::{Hash, Height, SeqNum, View};

use super::{Adversary, Power};
use crate::clients::{client, device_key, write_request};

/// The client's numbers of its useless requests, above all that are asked for.
const FIRST_REQUEST: u64 = 1_000;

/// More requests than a pool takes of one node.
const BURST: u64 = 150;

/// How often it can be bothered.
const ROUNDS: u64 = 60;

#[derive(Default)]
pub struct Flooder {
    rounds: u64,
}

impl Adversary for Flooder {
    fn name(&self) -> &'static str {
        "flooder"
    }

    fn on_tick(&mut self, power: &mut Power<'_>) {
        self.rounds += 1;
        if self.rounds > ROUNDS {
            return;
        }
        let to = power.others()[power.rng.index(power.n - 1)];
        for _ in 0..4 {
            let far = power.rng.pick(&[1, 10, 250, 256, 257, 300, 100_000]);
            let view = View(power.view.0 + power.rng.pick(&[0, 0, 0, 1, 7]));
            let sequence = SeqNum(power.stable.0 + far);
            let digest = Hash([power.rng.next() as u8; 32]);
            let content = match power.rng.below(3) {
                0 => Content::Prepare(Prepare { view, sequence, digest }),
                1 => Content::Commit(Commit { view, sequence, digest }),
                _ => {
                    let height = Height(sequence.0);
                    Content::Checkpoint(CheckpointContent { sequence, height, block: digest, state: digest })
                }
            };
            let envelope = power.sign(content);
            power.lie(to, &envelope);
        }
        // Once as many as it can, then a few all the time.
        let many = if self.rounds == 1 { BURST } else { 2 };
        for number in 0..many {
            let number = FIRST_REQUEST + self.rounds * BURST + number;
            let (node, me) = (power.node_id(), power.me);
            let request = write_request(power.network, node, client(me), number, &device_key(me + 60));
            power.bundle(to, request);
        }
    }
}
