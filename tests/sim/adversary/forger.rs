//! Forger: it answers with blocks that were altered, with certificates that are stale, short or
//! signed by one alone, and sends messages in the names of others, with signatures that cannot be.

use ledgermq::ledger::{Block, Certificate};
use ledgermq::pbft::message::{Batch, Content};
use ledgermq::pbft::{Envelope, Signed};
use ledgermq::types::{SeqNum, Signature, Timestamp};

use super::{Adversary, Power};
use crate::rng::Rng;

#[derive(Default)]
pub struct Forger {
    /// A message of someone else, to be altered.
    model: Option<Signed>,
}

impl Adversary for Forger {
    fn name(&self) -> &'static str {
        "forger"
    }

    fn on_hear(&mut self, power: &mut Power<'_>, signed: &Signed) -> bool {
        if self.model.is_none() || power.rng.percent(20) {
            self.model = Some(signed.clone());
        }
        true
    }

    fn on_blocks(&mut self, rng: &mut Rng, blocks: &mut Vec<(Block, Certificate)>) {
        let last = blocks.last().map(|(_, certificate)| certificate.clone());
        for (block, certificate) in blocks {
            match rng.below(6) {
                0 => block.header.timestamp = Timestamp(block.header.timestamp.0 + 1),
                1 => certificate.signatures.truncate(1),
                2 => certificate.content.state.0[5] ^= 1,
                // Of another block.
                3 => certificate.clone_from(last.as_ref().unwrap()),
                // The same replica many times.
                4 => {
                    let first = certificate.signatures[0];
                    certificate.signatures.iter_mut().for_each(|signature| *signature = first);
                }
                _ => {}
            }
        }
    }

    fn on_certificates(&mut self, rng: &mut Rng, certificates: &mut Vec<Certificate>) {
        for certificate in certificates {
            match rng.below(4) {
                0 => certificate.signatures.truncate(1),
                1 => certificate.content.block.0[7] ^= 1,
                2 => certificate.signatures[0].1 = Signature([4; 64]),
                _ => {}
            }
        }
    }

    fn on_batches(&mut self, rng: &mut Rng, batches: &mut Vec<Batch>) {
        for batch in batches.iter_mut().filter(|_| rng.percent(60)) {
            batch.timestamp = Timestamp(batch.timestamp.0 + 1);
        }
    }

    fn on_proof(&mut self, rng: &mut Rng, messages: &mut Vec<Signed>) {
        match rng.below(4) {
            // A NEW-VIEW without what it rests on.
            0 => messages.truncate(1),
            1 => messages.reverse(),
            2 => {
                messages.iter_mut().skip(1).take(1).for_each(|message| message.signature = Signature([6; 64]))
            }
            _ => {}
        }
    }

    fn on_tick(&mut self, power: &mut Power<'_>) {
        let Some(mut signed) = self.model.clone() else { return };
        match &mut signed.content {
            Content::Prepare(prepare) => prepare.digest.0[0] ^= 1,
            Content::Commit(commit) => commit.digest.0[0] ^= 1,
            Content::Checkpoint(content) => content.sequence = SeqNum(content.sequence.0 + 1),
            _ => signed.signature = Signature([3; 64]),
        }
        let envelope = Envelope { attempt: power.rng.next() as u32, signed };
        power.lie_to_all(&envelope);
    }
}
