//! Evidence is on disk before it is told, and told once.

use super::*;
use crate::clock::SystemClock;
use crate::crypto::SecretKey;
use crate::ledger::ReplicaSet;
use crate::metrics::Metrics;
use crate::pbft::Verified;
use crate::pbft::message::{Content, Prepare};
use crate::store::evidence::EvidenceLimits;
use crate::types::{Hash, SeqNum, View};

const NETWORK: NetworkId = NetworkId([7; 32]);

fn keeper(dir: &std::path::Path) -> EvidenceKeeper {
    let limits = EvidenceLimits { per_replica: 2, all: 8 };
    let replicas = ReplicaSet::new(vec![SecretKey::from_seed(&[1; 32]).node_id()]).unwrap();
    EvidenceKeeper::new(KeeperParts {
        network_id: NETWORK,
        keys: Arc::new(ReplicaSetKeys::new(&replicas).unwrap()),
        store: Arc::new(EvidenceStore::open(dir, limits).unwrap()),
        clock: SystemClock::shared(),
        workers: Workers::new(),
        metrics: Metrics::new().unwrap().consensus.clone(),
    })
}

/// Two PREPAREs of the holder of a key.
fn evidence(seed: u8, sequence: u64) -> Evidence {
    let sign = |fill: u8| {
        let vote = Prepare { view: View(0), sequence: SeqNum(sequence), digest: Hash([fill; 32]) };
        let key = SecretKey::from_seed(&[seed; 32]);
        Verified::sign(&key, &NETWORK, Content::Prepare(vote)).signed().clone()
    };
    Evidence::contradiction(&sign(1), &sign(2))
}

/// How many faults were counted, and how many pieces are shown to be stored.
fn counted(keeper: &EvidenceKeeper) -> (u64, i64) {
    let metrics = &keeper.parts.metrics;
    (metrics.evidence.with_label_values(&["prepare"]).get(), metrics.evidence_stored.get())
}

#[tokio::test]
async fn each_fault_is_counted_once_and_the_gauge_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let first = keeper(dir.path());
    for sequence in [1, 1, 2, 1] {
        first.keep(evidence(1, sequence)).await.unwrap();
    }
    assert_eq!(counted(&first), (2, 2));
    first.keep(evidence(1, 3)).await.unwrap();
    assert_eq!(counted(&first), (3, 2), "counted, though there is enough");
    let again = keeper(dir.path());
    assert_eq!(counted(&again), (0, 2));
    again.keep(evidence(1, 1)).await.unwrap();
    assert_eq!(counted(&again), (0, 2), "known from before");
}

#[tokio::test]
async fn what_proves_nothing_is_neither_kept_nor_counted() {
    let dir = tempfile::tempdir().unwrap();
    let keeper = keeper(dir.path());
    keeper.keep(evidence(9, 1)).await.unwrap();
    let Evidence::Contradiction { first, .. } = evidence(1, 1) else { panic!() };
    keeper.keep(Evidence::contradiction(&first, &first)).await.unwrap();
    assert_eq!((counted(&keeper), keeper.parts.store.len()), ((0, 0), 0));
}

#[tokio::test]
async fn a_disk_that_refuses_stops_the_node_before_anything_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let keeper = keeper(&dir.path().join("evidence"));
    std::fs::remove_dir(dir.path().join("evidence")).unwrap();
    let error = keeper.keep(evidence(1, 1)).await.unwrap_err();
    assert!(format!("{error:#}").contains("keeping evidence: cannot write"), "{error:#}");
    assert_eq!(counted(&keeper), (0, 0));
}
