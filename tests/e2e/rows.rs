//! What nodes have in their histories, and messages that are large enough to fill what may wait for them.

use std::collections::BTreeMap;
use std::time::Duration;

use ledgermq::clock::{Clock as _, SystemClock};
use ledgermq::gateway::{Delivery, Gateway};
use ledgermq::history::{HistoryReader as _, Location, SqlReader, StoredRow};
use ledgermq::types::{NodeId, Stream};

use crate::network::{TestNetwork, reading};

/// The least that `history.max_backlog_bytes` takes.
pub const SMALLEST_BACKLOG: &str = "16777216";

/// Whether a node's history takes what it is given.
pub const AVAILABLE: &str = "ledgermq_history_available";

/// How often a message found no room among those that are not in the history.
const FULL: &str = "ledgermq_queue_full_total{queue=\"history_kib\"}";

/// A PUBACK that has not come for so long is looked into.
const LONG: Duration = Duration::from_secs(4);

/// Where a node has its history if no other place is set.
pub fn file_of(network: &TestNetwork, at: usize) -> Location {
    Location::of_node(None, &network.local.node_dir(at).join("data")).unwrap()
}

/// All rows of a node.
pub async fn rows_at(network: &TestNetwork, location: &Location, node: &NodeId) -> Vec<StoredRow> {
    let reader = SqlReader::open(location.clone(), &network.id()).await.unwrap();
    let (mut rows, mut after) = (Vec::new(), 0);
    loop {
        let page = reader.rows(node, after, 100).await.unwrap();
        let Some(Ok(last)) = page.last() else { return rows };
        after = last.number;
        rows.extend(page.into_iter().map(Result::unwrap));
    }
}

/// Waits until a node's history has so many rows with their fates; each message is there once, and no
/// number is left out.
pub async fn each_once(network: &TestNetwork, at: usize, location: &Location, count: usize) {
    let node = network.files().nodes[at].node;
    let rows = network
        .eventually(&format!("{count} rows with fates in {location}"), async || {
            let rows = rows_at(network, location, &node).await;
            let is_whole = rows.len() >= count && rows.iter().all(|row| row.fate.is_some());
            is_whole.then_some(rows)
        })
        .await;
    let mut times = BTreeMap::<_, usize>::new();
    for (row, number) in rows.iter().zip(1..) {
        assert_eq!(row.number, number, "no number is left out");
        *times.entry((row.client.clone(), row.seq)).or_default() += 1;
        assert!(!row.items.is_empty());
    }
    assert_eq!((rows.len(), times.len()), (count, count), "each once");
}

/// A reading with so much space behind it: bodies are kept byte for byte.
fn large(at: usize) -> Vec<u8> {
    let mut body = reading(SystemClock::new().now().0, 20.0 + at as f64 / 10.0, 40);
    body.resize(400 * 1024, b' ');
    body
}

/// Publishes `count` large messages.
pub async fn publish(gateway: &Gateway, count: usize) -> Vec<Delivery> {
    let stream = Stream::new("env").unwrap();
    let mut deliveries = Vec::new();
    for at in 0..count {
        deliveries.push(gateway.publish(&stream, large(at)).await.unwrap());
    }
    deliveries
}

/// Publishes until PUBACKs are withheld since there is no room among what is not in the history. Gives all
/// messages, the last of which has no PUBACK.
pub async fn publish_until_withheld(network: &TestNetwork, at: usize, gateway: &Gateway) -> Vec<Delivery> {
    let mut deliveries = Vec::new();
    let before = network.metric(at, FULL).await;
    for _ in 0..400 {
        let mut delivery = publish(gateway, 1).await.remove(0);
        while tokio::time::timeout(LONG, delivery.puback()).await.is_err() {
            if network.metric(at, FULL).await > before {
                assert_eq!(network.metric(at, AVAILABLE).await, 0.0);
                deliveries.push(delivery);
                return deliveries;
            }
        }
        deliveries.push(delivery);
    }
    panic!("what waits for the history has no bound");
}

/// Waits until all of these are final.
pub async fn all_final(network: &TestNetwork, deliveries: Vec<Delivery>) {
    for delivery in deliveries {
        let ack = network.soon("it is final", delivery.done()).await.unwrap();
        assert_eq!(ack.written, [0, 1]);
    }
}

/// Waits until a node says that its history is there, or that it is not.
pub async fn history_is(network: &TestNetwork, at: usize, available: bool) {
    let value = if available { 1.0 } else { 0.0 };
    let question = async || (network.metric(at, AVAILABLE).await == value).then_some(());
    network.eventually(&format!("{AVAILABLE} {value}"), question).await;
}
