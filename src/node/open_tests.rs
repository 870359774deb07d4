//! What of the log's messages is taken up at a start.

use super::*;
use crate::crypto::SecretKey;
use crate::device::compose::{Draft, compose};
use crate::device::encoding::Encoding;
use crate::ledger::ReplicaSet;
use crate::ledger::genesis::GENESIS_VERSION;
use crate::metrics::Metrics;
use crate::policy::{Decision, ItemDecision, Verdict};
use crate::types::{Stream, Timestamp};

const BODY: &[u8] =
    br#"{"count":1,"eventTime":5,"data":[{"deviceId":"th-01","serviceId":"temperature","num":1,"value":20}]}"#;

fn key() -> SecretKey {
    SecretKey::from_seed(&[1; 32])
}

fn genesis() -> Genesis {
    let replicas = ReplicaSet::new(vec![key().node_id()]).unwrap();
    let admins = vec![SecretKey::from_seed(&[2; 32]).public()];
    Genesis { version: GENESIS_VERSION, name: "test".into(), created: Timestamp(1), replicas, admins }
}

fn client() -> ClientId {
    ClientId::new("devices/iot").unwrap()
}

fn accepted(network: &NetworkId, seq: u64, decisions: usize) -> LogRecord {
    let (client, stream) = (client(), Stream::new("env").unwrap());
    let draft = Draft {
        client: &client,
        stream: &stream,
        seq: MessageSeq(seq),
        unused_above: None,
        body: BODY,
        encoding: Encoding::Identity,
    };
    let content = compose(network, &key(), &draft).unwrap().content;
    let items = vec![ItemDecision { verdict: Verdict::First, base: None }; decisions];
    LogRecord::Accepted(
        LoggedMessage { client, stream, key: key().public(), content },
        Decision { policies: 0, items },
    )
}

fn done(seq: u64, is_written: bool) -> LogRecord {
    LogRecord::Final { client: client(), seq: MessageSeq(seq), is_written }
}

#[test]
fn what_was_submitted_and_is_not_indexed_is_taken_up_with_its_decision() {
    let (genesis, dir) = (genesis(), tempfile::tempdir().unwrap());
    let (network, state) = (genesis.network_id(), State::genesis(&genesis));
    let mut found = Accepted::new(&state, Height(0));
    // 1 waits; 2 is final, and its block was not on disk; of 3 nothing was written.
    let records = [1, 2, 3].map(|seq| accepted(&network, seq, 1));
    for (at, record) in (1..).zip(records.into_iter().chain([done(2, true), done(3, false)])) {
        found.note(Position(at), &record.entry().bytes).unwrap();
    }
    let admission = Admission::default();
    let (unfinished, finished, unindexed) = found.into_admission(&admission);
    assert_eq!(unfinished.iter().map(|one| one.position).collect::<Vec<_>>(), [Position(1)]);
    assert_eq!(finished.iter().map(|one| one.position).collect::<Vec<_>>(), [Position(2), Position(3)]);
    assert_eq!(unindexed, [0]);
    assert_eq!(admission.pending_count(), 1);
    let store = SledStore::open(dir.path(), &StoreSettings::new(network)).unwrap();
    let store: Arc<dyn LedgerStore> = Arc::new(store);
    let gauge = Metrics::new().unwrap().queues.queue("open_items");
    let bases = Bases::new(store, BasesLimits { cached_items: 8, open_items: 8 }, gauge);
    take_up(&bases, &network, &finished[0].message, &finished[0].decision).unwrap();
    take_up(&bases, &network, &unfinished[0].message, &unfinished[0].decision).unwrap();
    assert_eq!(bases.open_count(), 2);
}

#[test]
fn a_decision_that_is_not_of_its_message_is_damage() {
    let genesis = genesis();
    let state = State::genesis(&genesis);
    let mut found = Accepted::new(&state, Height(0));
    let record = accepted(&genesis.network_id(), 1, 2);
    let error = found.note(Position(7), &record.entry().bytes).unwrap_err();
    assert!(error.to_string().contains("entry 7 of the log"), "{error}");
}
