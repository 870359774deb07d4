//! A fingerprint of a run: every event and what every step gave, in order. Two runs of one seed
//! that differ anywhere have different ones.

use std::time::Duration;

use ledgermq::pbft::{Effect, Output};

use crate::events::Event;

/// FNV-1a over all that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trail(u64);

impl Default for Trail {
    fn default() -> Self {
        Self(0xCBF2_9CE4_8422_2325)
    }
}

impl Trail {
    fn mix(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3);
        }
    }

    fn number(&mut self, number: u64) {
        self.mix(&number.to_be_bytes());
    }

    /// Something happens.
    pub fn event(&mut self, at: Duration, event: &Event) {
        self.number(at.as_nanos() as u64);
        let (kind, node) = match event {
            Event::Step { node, .. } => (0, node),
            Event::Gossip { to, gossip } => {
                self.mix(&gossip.id.0[..8]);
                (1, to)
            }
            Event::Synced { node, position, .. } => {
                self.number(position.0);
                (2, node)
            }
            Event::FetchRequests { at, .. } => (3, at),
            Event::FetchBatches { at, .. } => (4, at),
            Event::FetchView { at, .. } => (5, at),
            Event::Proof { to, .. } => (6, to),
            Event::FetchBlocks { at, .. } => (7, at),
            Event::Blocks { to, .. } => (8, to),
            Event::FetchCertificates { at, .. } => (9, at),
            Event::Certificates { to, .. } => (10, to),
            Event::Wake { node, .. } => (11, node),
            Event::Crash { node, .. } => (12, node),
            Event::Restart { node } => (13, node),
            Event::AdversaryTick { at } => (14, at),
            Event::Resume { node, .. } => (15, node),
            Event::SetClock { node, .. } => (16, node),
            Event::Checked { to, .. } => (17, to),
        };
        self.number(kind << 32 | *node as u64);
    }

    /// A core answers.
    pub fn step(&mut self, node: usize, output: &Output) {
        self.number(node as u64);
        for entry in &output.wal {
            self.number(entry.sequence().0);
        }
        for effect in &output.effects {
            match effect {
                // A signature stands for all that it signs.
                Effect::Broadcast(envelope) => self.mix(&envelope.signed.signature.0[..8]),
                _ => self.number(1),
            }
        }
        self.number(output.rejected.is_some().into());
    }
}
