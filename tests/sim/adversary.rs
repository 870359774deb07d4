//! Replicas that lie: they sign what no correct replica would.

use ledgermq::codec;
use ledgermq::crypto::SignatureKind;
use ledgermq::pbft::message::{Batch, Commit, Content, PrePrepare, Prepare};
use ledgermq::pbft::{Envelope, Signed};
use ledgermq::types::{Hash, SeqNum, View};

use crate::cluster::Cluster;

impl Cluster {
    /// Signs anything in the name of a replica.
    pub fn forge(&self, at: usize, content: Content) -> Envelope {
        let key = &self.keys[at];
        let (kind, bytes) = match &content {
            Content::PrePrepare(content) => (
                SignatureKind::PrePrepare,
                codec::encode(&(content.view, content.sequence, content.batch.digest())),
            ),
            Content::Prepare(content) => (SignatureKind::Prepare, codec::encode(content)),
            Content::Commit(content) => (SignatureKind::Commit, codec::encode(content)),
            Content::Checkpoint(content) => (SignatureKind::Checkpoint, codec::encode(content)),
            Content::ViewChange(content) => (SignatureKind::ViewChange, codec::encode(content)),
            Content::NewView(content) => (SignatureKind::NewView, codec::encode(content)),
        };
        let signature = key.sign(kind, &self.network, &bytes);
        Envelope { attempt: 0, signed: Signed { sender: key.node_id(), content, signature } }
    }

    /// A batch as the primary `at` of view 0 may propose it.
    pub fn batch(&self, at: usize, requests: Vec<Hash>, after_ms: u64) -> Batch {
        let timestamp = ledgermq::types::Timestamp(1_767_225_600_001 + after_ms);
        Batch { requests, timestamp, origin_view: View(0), proposer: self.keys[at].node_id() }
    }

    pub fn pre_prepare(&self, at: usize, sequence: u64, batch: Batch) -> Envelope {
        let content = PrePrepare { view: View(0), sequence: SeqNum(sequence), batch };
        self.forge(at, Content::PrePrepare(content))
    }

    pub fn prepare(&self, at: usize, sequence: u64, digest: Hash) -> Envelope {
        self.forge(at, Content::Prepare(Prepare { view: View(0), sequence: SeqNum(sequence), digest }))
    }

    pub fn commit(&self, at: usize, sequence: u64, digest: Hash) -> Envelope {
        self.forge(at, Content::Commit(Commit { view: View(0), sequence: SeqNum(sequence), digest }))
    }
}
