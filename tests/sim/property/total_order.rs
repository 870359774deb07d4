//! Total order without gaps: each replica executes one sequence number after another, and each of
//! its blocks names the one before it. Gaps are closed by certified blocks, or passed over where
//! nothing changed.

use std::collections::BTreeMap;

use ledgermq::ledger::CheckpointContent;
use ledgermq::types::{Hash, Timestamp};

use super::{Broken, Property, Seen, World, ensure};

#[derive(Default)]
pub struct TotalOrder {
    heads: BTreeMap<usize, CheckpointContent>,
    timestamps: BTreeMap<Hash, Timestamp>,
}

impl Property for TotalOrder {
    fn name(&self) -> &'static str {
        "total order"
    }

    fn check(&mut self, world: &World, at: usize, seen: &Seen) -> Result<(), Broken> {
        if world.faulty.contains(&at) {
            return Ok(());
        }
        let genesis = Hash(world.network.0);
        let head = self.heads.get(&at).copied();
        let (sequence, height, block) =
            head.map_or((0, 0, genesis), |head| (head.sequence.0, head.height.0, head.block));
        match seen {
            Seen::Started(content) => {
                ensure!(content.sequence.0 <= sequence, "replica {at} woke up ahead of itself");
                self.heads.insert(at, *content);
            }
            Seen::Executed { sequence: executed, .. } => {
                ensure!(executed.0 == sequence + 1, "replica {at} executed {executed} after {sequence}");
            }
            Seen::Block(next) => {
                let header = &next.header;
                let follows = header.height.0 == height + 1 && header.previous == block;
                ensure!(follows, "block {} at replica {at} does not follow its chain", header.height);
                ensure!(header.sequence.0 > sequence, "block {} is out of order", header.height);
                let before = self.timestamps.get(&block).copied().unwrap_or_default();
                ensure!(header.timestamp > before, "block {} is not later than the last", header.height);
                self.timestamps.insert(header.hash(), header.timestamp);
            }
            Seen::Reached(content) => {
                ensure!(
                    content.sequence.0 > sequence,
                    "replica {at} went from {sequence} to {}",
                    content.sequence
                );
                self.heads.insert(at, *content);
            }
            Seen::Skipped(content) => {
                let unchanged = content.sequence.0 > sequence && content.block == block;
                ensure!(unchanged, "replica {at} passed over something that made a block");
                self.heads.insert(at, *content);
            }
            _ => {}
        }
        Ok(())
    }

    fn wiped(&mut self, at: usize) {
        self.heads.remove(&at);
    }
}
