//! Liveness: when the faults of network, disks and processes stop (Byzantine replicas go on),
//! every admitted request becomes final within [`LIVENESS_LIMIT`] of virtual time: written and
//! certified at every correct replica.

use std::collections::BTreeSet;
use std::time::Duration;

use ledgermq::types::{ClientId, MessageSeq};

use crate::node::Node;

/// The stated time.
pub const LIVENESS_LIMIT: Duration = Duration::from_secs(120);

/// What was admitted, and must become final.
#[derive(Debug, Default)]
pub struct Liveness {
    asked: BTreeSet<(ClientId, MessageSeq)>,
}

impl Liveness {
    pub fn asked(&mut self, client: ClientId, seq: MessageSeq) {
        self.asked.insert((client, seq));
    }

    /// A request was lost in a crash before its client was told that it is accepted.
    pub fn withdraw(&mut self, client: &ClientId, seq: MessageSeq) {
        self.asked.remove(&(client.clone(), seq));
    }

    /// The node of a client lost its log, and with it what is not written yet.
    pub fn forget(&mut self, client: &ClientId, written: &BTreeSet<(ClientId, MessageSeq)>) {
        self.asked.retain(|asked| asked.0 != *client || written.contains(asked));
    }

    /// Whether everything is final at this node.
    pub fn is_final_at(&self, node: &Node) -> bool {
        node.written.len() >= self.asked.len() && node.is_certified() && self.asked.is_subset(&node.written)
    }

    /// How much is not written there.
    pub fn missing_at(&self, node: &Node) -> usize {
        self.asked.difference(&node.written).count()
    }
}
