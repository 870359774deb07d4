//! The ledger takes an admin's operations, once and for this network, and nobody else's.

use ledgermq::crypto::SecretKey;
use ledgermq::ledger::{AdminAction, ClientSettings};
use ledgermq::types::{ClientId, MessageSeq, NetworkId};

use crate::network::TestNetwork;

fn registration(client: &str) -> AdminAction {
    let key = SecretKey::generate().unwrap().public();
    let settings = ClientSettings::default();
    AdminAction::RegisterClient { client: ClientId::new(client).unwrap(), key, settings }
}

fn revocation(client: &str) -> AdminAction {
    let reason = "lost".to_owned();
    AdminAction::RevokeClient { client: ClientId::new(client).unwrap(), last_seq: MessageSeq(0), reason }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_fresh_operations_of_an_admin_of_this_network_are_executed() {
    let network = TestNetwork::start(1).await;
    let (admin, id) = (network.admin.clone(), network.id());
    let good = network.sign_operation(&admin, id, registration("devices/iot"));
    let (status, answer) = network.post_operation(0, &good).await;
    assert_eq!((status, answer["height"].as_u64()), (200, Some(1)), "{answer}");

    let stranger = SecretKey::generate().unwrap();
    let mut changed = network.sign_operation(&admin, id, registration("devices/two"));
    changed.action = registration("devices/three");
    let mut older = network.sign_operation(&admin, id, registration("devices/two"));
    older = ledgermq::ledger::AdminOperation::sign(id, &admin, 1, older.action);
    for (what, operation, expected, says) in [
        ("replayed", good, 409, "greater"),
        ("older than the last", older, 409, "greater"),
        ("changed after it was signed", changed, 400, "signature"),
        (
            "by a key that is no admin's",
            network.sign_operation(&stranger, id, registration("devices/two")),
            409,
            "not an admin",
        ),
        (
            "for another network",
            network.sign_operation(&admin, NetworkId([9; 32]), registration("devices/two")),
            400,
            "another network",
        ),
        ("a second time", network.sign_operation(&admin, id, registration("devices/iot")), 409, "registered"),
        (
            "of nobody",
            network.sign_operation(&admin, id, revocation("devices/nobody")),
            409,
            "not registered",
        ),
    ] {
        let (status, problem) = network.post_operation(0, &operation).await;
        assert_eq!(status, expected, "{what}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains(says), "{what}: {problem}");
        assert!(problem["type"].as_str().unwrap().starts_with("urn:ledgermq:problem:"), "{what}: {problem}");
    }
    // What was refused is in no block.
    assert_eq!(network.certified_height(0).await, 1);
    let clients = network.get(0, "/v1/clients").await;
    assert_eq!(clients["clients"].as_array().unwrap().len(), 1, "{clients}");

    let (status, _) =
        network.post_operation(0, &network.sign_operation(&admin, id, revocation("devices/iot"))).await;
    assert_eq!(status, 200);
    let again = network.sign_operation(&admin, id, registration("devices/iot"));
    let (status, problem) = network.post_operation(0, &again).await;
    assert_eq!(status, 409, "a revoked client id is never used again: {problem}");
}
