//! What is as it was is no finding, whatever happened on the way.

use ledgermq::history::audit::AuditVerdict;

use crate::world::World;

#[tokio::test]
async fn an_ordinary_history_is_clean_and_counted() {
    let world = World::ordinary().await;
    let report = world.audit(0).await;
    assert_eq!(report.verdict, AuditVerdict::Clean, "{report:#?}");
    let node = &report.nodes[0];
    assert_eq!((node.rows, node.covered, node.not_covered), (14, 12, 2));
    assert_eq!((node.digests, node.items, node.decisions), (2, 33, 33));
    assert_eq!((node.not_final, node.unjudged), (0, 0));
    assert_eq!(report.ledger.height.0, world.blocks.len() as u64);
}
