//! The blocks of the last commits, for whoever indexes them: to copy a block takes a tenth of the time
//! that it takes to read it again and to check that its bytes are canonical.

use std::collections::VecDeque;
use std::sync::Mutex;

use super::lock;
use crate::ledger::Block;
use crate::types::Height;

/// Canonical bytes of the blocks that are kept: several seconds at the full rate. Beyond it the oldest ones go,
/// and are read from the database.
const MAX_BYTES: usize = 4 << 20;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct RecentBlocks(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    /// With their lengths, in ascending order.
    blocks: VecDeque<(usize, Block)>,
    bytes: usize,
}

impl RecentBlocks {
    /// Keeps a block of so many bytes, which is above all before it.
    pub(super) fn put(&self, block: &Block, bytes: usize) {
        if bytes > MAX_BYTES {
            return;
        }
        let block = block.clone();
        let mut kept = lock(&self.0);
        kept.blocks.push_back((bytes, block));
        kept.bytes += bytes;
        while kept.bytes > MAX_BYTES {
            kept.pop();
        }
    }

    /// The block at a height, if it is here. It is not kept any longer, nor are those below it.
    pub(super) fn take(&self, height: Height) -> Option<Block> {
        let mut kept = lock(&self.0);
        loop {
            let first = kept.blocks.front()?.1.header.height;
            if first > height {
                return None;
            }
            let block = kept.pop();
            if first == height {
                return block;
            }
        }
    }
}

impl Kept {
    fn pop(&mut self) -> Option<Block> {
        let (bytes, block) = self.blocks.pop_front()?;
        self.bytes -= bytes;
        Some(block)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{genesis, next};
    use super::*;

    #[test]
    fn the_last_blocks_are_here_until_they_are_taken() {
        let (recent, mut head) = (RecentBlocks::default(), genesis());
        let mut blocks = Vec::new();
        for _ in 0..5 {
            let (later, block) = next(&head, vec![]);
            recent.put(&block, MAX_BYTES / 4);
            (head, blocks) = (later, [blocks, vec![block]].concat());
        }
        assert_eq!(recent.take(Height(1)), None, "five of a quarter are too many");
        assert_eq!(recent.take(Height(2)).as_ref(), Some(&blocks[1]));
        assert_eq!(recent.take(Height(4)).as_ref(), Some(&blocks[3]));
        assert_eq!(recent.take(Height(3)), None, "below one that was taken");
        recent.put(&next(&head, vec![]).1, MAX_BYTES + 1);
        assert_eq!(recent.take(Height(6)), None, "too large by itself");
        assert_eq!(lock(&recent.0).bytes, 0);
    }
}
