//! Keeps the evidence that the core finds: verified once more, on disk, and only then told.
//!
//! ```text
//! Effect::Evidence ─▶ verify ─▶ EvidenceStore (synced) ─▶ log, metrics, /v1/evidence
//! ```
//!
//! The carrying out of effects waits for it, so that the contradicting messages are passed on after
//! their proof is safe. What is above the limits, or known, costs no disk and no signature check.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;

use super::verifier::Workers;
use crate::clock::SharedClock;
use crate::ledger::ReplicaSetKeys;
use crate::metrics::ConsensusMetrics;
use crate::pbft::evidence::Evidence;
use crate::store::evidence::{EvidenceStore, Kept};
use crate::types::{NetworkId, NodeId};

/// What evidence is verified, written and counted with.
pub struct KeeperParts {
    /// The ledger.
    pub network_id: NetworkId,
    /// The replicas' keys.
    pub keys: Arc<ReplicaSetKeys>,
    /// Where it goes.
    pub store: Arc<EvidenceStore>,
    /// Says when it was seen.
    pub clock: SharedClock,
    /// Verifies and writes it.
    pub workers: Workers,
    /// Counts it.
    pub metrics: ConsensusMetrics,
}

/// See the module.
pub struct EvidenceKeeper {
    parts: KeeperParts,
    /// Replicas against which the log said that there is enough.
    enough: Mutex<BTreeSet<NodeId>>,
}

impl EvidenceKeeper {
    /// A keeper; the metrics show at once what is kept from earlier runs.
    pub fn new(parts: KeeperParts) -> Self {
        let keeper = Self { parts, enough: Mutex::default() };
        keeper.show_stored();
        keeper
    }

    fn show_stored(&self) {
        let stored = i64::try_from(self.parts.store.len()).unwrap_or(i64::MAX);
        self.parts.metrics.evidence_stored.set(stored);
    }

    /// Keeps a piece of evidence and tells of it, unless this fault is proven already. Returns when
    /// it is on disk.
    ///
    /// # Errors
    /// The disk's; the node must not go on.
    pub async fn keep(&self, evidence: Evidence) -> anyhow::Result<()> {
        let fault = match evidence.claimed() {
            Ok(fault) => fault,
            Err(error) => {
                tracing::error!(%error, ?evidence, "the core took this for evidence, which it is not");
                return Ok(());
            }
        };
        let kept = match self.parts.store.would_keep(&fault) {
            Some(refused) => refused,
            None => self.write(evidence).await?,
        };
        match kept {
            Kept::Known => return Ok(()),
            Kept::Full if self.enough.lock().unwrap_or_else(PoisonError::into_inner).insert(fault.node) => {
                tracing::warn!(node = %fault.node, kind = fault.kind.as_str(),
                    "a replica is proven faulty once more: it {fault}; there is enough evidence, no more of it is kept");
            }
            Kept::Full => {}
            Kept::New(key) => {
                tracing::error!(node = %fault.node, kind = fault.kind.as_str(), evidence = %key.id,
                    "a replica is proven faulty: it {fault}; see \"Evidence\" in docs/CONSENSUS.md");
            }
        }
        self.parts.metrics.evidence.with_label_values(&[fault.kind.as_str()]).inc();
        self.show_stored();
        Ok(())
    }

    async fn write(&self, evidence: Evidence) -> anyhow::Result<Kept> {
        let (network, keys) = (self.parts.network_id, Arc::clone(&self.parts.keys));
        let (store, seen) = (Arc::clone(&self.parts.store), self.parts.clock.now());
        let write = move || match evidence.verify(&network, &keys) {
            Ok(proven) => store.keep(&proven, seen).map_err(anyhow::Error::new),
            Err(error) => {
                tracing::error!(%error, ?evidence, "the core took this for evidence, which it is not");
                Ok(Kept::Known)
            }
        };
        // Without an answer the node is stopping.
        self.parts.workers.run(write).await.unwrap_or(Ok(Kept::Known)).context("keeping evidence")
    }
}

#[cfg(test)]
#[path = "evidence_tests.rs"]
mod tests;
