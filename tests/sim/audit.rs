//! The ledgers at the end of a run, looked at as a whole: in order, chained, and nothing twice.

use std::collections::BTreeSet;

use ledgermq::types::{Hash, Height, SeqNum, Timestamp};

use crate::cluster::Cluster;
use crate::node::written;

impl Cluster {
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
