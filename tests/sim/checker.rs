//! What must always hold, whatever the weather.

use std::collections::BTreeSet;

use ledgermq::types::{Hash, Height, SeqNum, Timestamp};

use crate::cluster::Cluster;
use crate::node::written;

impl Cluster {
    /// Agreement and order: the same batch and the same result at each sequence number, the same
    /// block at each height, and no operation in two blocks.
    pub fn check(&mut self) {
        for at in (0..self.nodes.len()).filter(|at| !self.faulty.contains(at)) {
            let node = &self.nodes[at];
            let sizes = (node.executed.len(), node.checkpoints.len(), node.blocks.len());
            if self.checked[at] == sizes {
                continue;
            }
            for (sequence, batch) in node.executed.iter().rev().take(8) {
                let first = *self.batches.entry(*sequence).or_insert(*batch);
                if first != *batch {
                    self.fail(&format!("replicas disagree on batch {sequence}"));
                }
            }
            for (sequence, content) in node.checkpoints.iter().rev().take(8) {
                let first = *self.contents.entry(*sequence).or_insert(*content);
                if first != *content {
                    self.fail(&format!("replicas disagree on the result of {sequence}"));
                }
            }
            for (height, block) in node.blocks.iter().rev().take(8) {
                let hash = block.header.hash();
                if *self.blocks.entry(*height).or_insert(hash) != hash {
                    self.fail(&format!("replicas disagree on block {height}"));
                }
            }
            self.checked[at] = sizes;
        }
    }

    /// Over everything that is on the ledgers: whole, in order, and nothing twice.
    pub fn check_ledgers(&self) -> &Self {
        for at in self.reachable() {
            let node = &self.nodes[at];
            let mut seen = BTreeSet::new();
            let mut previous = (Height(0), Hash(self.network.0), SeqNum(0), Timestamp(0));
            for (height, block) in &node.blocks {
                let header = &block.header;
                assert_eq!((*height, header.previous), (previous.0.next(), previous.1), "chain at {at}");
                assert!(header.sequence > previous.2 && header.timestamp > previous.3, "order at {at}");
                previous = (*height, header.hash(), header.sequence, header.timestamp);
                for written in written(block) {
                    assert!(seen.insert(written.clone()), "{written:?} twice at {at}");
                }
            }
        }
        self
    }
}
