//! What must always hold, whatever the weather.

use std::collections::BTreeSet;

use ledgermq::pbft::message::Content;
use ledgermq::types::{Hash, Height, SeqNum, Timestamp};

use crate::cluster::Cluster;
use crate::node::{Fact, written};

impl Cluster {
    /// Agreement and order: the same batch and the same result at each sequence number, the same
    /// block at each height. Looks at what is new since the last event.
    pub fn check(&mut self) {
        for at in 0..self.nodes.len() {
            let news = std::mem::take(&mut self.nodes[at].news);
            if self.faulty.contains(&at) {
                continue;
            }
            for fact in news {
                match fact {
                    Fact::Executed(sequence, batch) => {
                        if *self.batches.entry(sequence).or_insert(batch) != batch {
                            self.fail(&format!("replicas disagree on batch {sequence}"));
                        }
                    }
                    Fact::Reached(content) => {
                        if *self.contents.entry(content.sequence).or_insert(content) != content {
                            self.fail(&format!("replicas disagree on the result of {}", content.sequence));
                        }
                    }
                    Fact::Block(height, hash) => {
                        if *self.blocks.entry(height).or_insert(hash) != hash {
                            self.fail(&format!("replicas disagree on block {height}"));
                        }
                    }
                }
            }
        }
    }

    /// A correct replica signs one message of a kind for a view and sequence number, in all its
    /// lives.
    pub fn check_promise(&mut self, at: usize, content: &Content) {
        if self.faulty.contains(&at) {
            return;
        }
        let slot = (at, content.signature_kind().as_str(), content.view(), content.sequence());
        if *self.promises.entry(slot).or_insert_with(|| content.clone()) != *content {
            self.fail(&format!("replica {at} contradicts itself: {content:?}"));
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
