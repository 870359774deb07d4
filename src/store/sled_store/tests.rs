//! The store against restarts, crashes and a plain model.

use std::fs;
use std::sync::Arc;

use tempfile::TempDir;

use super::*;
use crate::device::{self, Item, Value};
use crate::ledger::block::HEADER_VERSION;
use crate::ledger::{CheckpointContent, Operation, WriteRequest, WrittenItem};
use crate::types::{
    ClientId, Hash, MessageSeq, NodeId, PublicKey, SeqNum, Signature, Stream, Timestamp, View,
};

mod crash;
mod last_written;
mod queries;
mod windows;

const NETWORK: NetworkId = NetworkId([7; 32]);

fn settings() -> StoreSettings {
    StoreSettings { cache_bytes: 16 * 1024 * 1024, ..StoreSettings::new(NETWORK) }
}

pub(super) fn open(dir: &Path) -> SledStore {
    SledStore::open(dir, &settings()).unwrap()
}

pub(super) fn genesis() -> Head {
    Head { sequence: SeqNum(0), height: Height(0), block: Hash(NETWORK.0), timestamp: Timestamp(1) }
}

pub(super) fn client(name: &str) -> ClientId {
    ClientId::new(format!("devices/{name}")).unwrap()
}

pub(super) fn item(client: &ClientId, device: &str, num: u32, event_time: u64) -> Item {
    Item {
        client: client.clone(),
        device: device.into(),
        service: "temperature".into(),
        num,
        event_time: Timestamp(event_time),
        value: Value::Integer(i64::from(num)),
        unit: None,
    }
}

/// A write of all `items` of one message, except those in `already`.
pub(super) fn write(seq: u64, items: &[Item], already: &[u32]) -> Operation {
    let header = device::Header {
        client: items[0].client.clone(),
        stream: Stream::new("env").unwrap(),
        seq: MessageSeq(seq),
        event_time: items[0].event_time,
        count: u32::try_from(items.len()).unwrap(),
        items_root: Hash([3; 32]),
        body_hash: Hash([4; 32]),
        unused_above: None,
    };
    let items: Vec<_> =
        (0..).zip(items).map(|(index, item)| WrittenItem { index, bytes: item.encode() }).collect();
    let written = items.iter().map(|item| item.index).filter(|index| !already.contains(index)).collect();
    Operation::Write {
        request: Arc::new(WriteRequest {
            node: NodeId([1; 32]),
            client_key: PublicKey([2; 32]),
            header: header.encode(),
            signature: Signature([5; 64]),
            items,
            proof: vec![],
        }),
        written,
    }
}

/// The block that follows `head`, and the head with it.
pub(super) fn next(head: &Head, operations: Vec<Operation>) -> (Head, Block) {
    let header = Header {
        version: HEADER_VERSION,
        network: NETWORK,
        height: head.height.next(),
        sequence: head.sequence.next(),
        timestamp: head.timestamp.plus_ms(1),
        previous: head.block,
        merkle_root: Hash([6; 32]),
        operation_count: u32::try_from(operations.len()).unwrap(),
        next_replica_set: Hash([7; 32]),
        origin_view: View(0),
        proposer: NodeId([1; 32]),
        difficulty_target: 0,
        nonce: 0,
    };
    let head = Head {
        sequence: header.sequence,
        height: header.height,
        block: header.hash(),
        timestamp: header.timestamp,
    };
    (head, Block { header, operations })
}

fn set(key: &str, value: &str) -> StateChange {
    StateChange { key: key.into(), value: Some(value.into()) }
}

fn certificate(head: &Head) -> Certificate {
    let content = CheckpointContent {
        sequence: head.sequence,
        height: head.height,
        block: head.block,
        state: Hash([8; 32]),
    };
    Certificate { content, signatures: vec![(0, Signature([9; 64]))] }
}

/// Commits `count` blocks, each of which sets the state entry "height"; returns the heads.
fn fill(store: &SledStore, from: &Head, count: u64) -> Vec<Head> {
    let mut heads = vec![from.clone()];
    for _ in 0..count {
        let last = heads.last().unwrap();
        let reading = item(&client("iot"), "th-01", 1, last.height.0);
        let (head, block) = next(last, vec![write(last.height.0 + 1, &[reading], &[])]);
        store.commit(&head, Some(&block), &[set("height", &head.height.to_string())]).unwrap();
        heads.push(head);
    }
    heads
}

#[test]
fn what_was_committed_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    assert_eq!(store.load().unwrap(), None);
    store.commit(&genesis(), None, &[set("admin", "a"), set("gone", "soon")]).unwrap();
    let reading = item(&client("iot"), "th-01", 1, 5);
    let (head, block) = next(&genesis(), vec![write(1, &[reading], &[])]);
    let removed = StateChange { key: "gone".into(), value: None };
    store.commit(&head, Some(&block), &[removed, set("client", "c")]).unwrap();
    store.put_certificate(&certificate(&head)).unwrap();
    let empty = Head { sequence: SeqNum(2), timestamp: Timestamp(9), ..head.clone() };
    store.commit(&empty, None, &[set("client", "d")]).unwrap();
    drop(store);

    let store = open(dir.path());
    let entries = vec![(b"admin".to_vec(), b"a".to_vec()), (b"client".to_vec(), b"d".to_vec())];
    assert_eq!(store.load().unwrap(), Some(Snapshot { head: empty, entries }));
    assert_eq!(store.block(Height(1)).unwrap(), Some(block.clone()));
    assert_eq!(store.header(Height(1)).unwrap(), Some(block.header));
    assert_eq!(store.certificate(Height(1)).unwrap(), Some(certificate(&head)));
    assert_eq!(store.certified_height(), Height(1));
    assert_eq!((store.block(Height(2)).unwrap(), store.header(Height(2)).unwrap()), (None, None));
    assert_eq!(store.certificate(Height(2)).unwrap(), None);
}

#[test]
fn a_big_block_comes_back_whole_and_makes_no_files_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let items: Vec<_> = (0..40_000).map(|num| item(&client("iot"), &"d".repeat(100), num, 5)).collect();
    let (head, block) = next(&genesis(), vec![write(1, &items, &[])]);
    store.commit(&head, Some(&block), &[]).unwrap();
    store.make_durable().unwrap();
    assert_eq!(store.block(Height(1)).unwrap(), Some(block));
    assert!(store.disk_bytes().unwrap() > 4 * 1024 * 1024);
    assert_eq!(fs::read_dir(dir.path().join("sled/blobs")).unwrap().count(), 0);
}

#[test]
fn a_block_that_could_not_be_read_again_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut operation = write(1, &[item(&client("iot"), "th-01", 1, 5)], &[]);
    if let Operation::Write { request, .. } = &mut operation {
        Arc::make_mut(request).items[0].bytes = vec![0; MAX_BLOCK_BYTES];
    }
    let (head, block) = next(&genesis(), vec![operation]);
    let refused = store.commit(&head, Some(&block), &[]);
    assert!(matches!(refused, Err(StoreError::BlockTooLarge { limit: MAX_BLOCK_BYTES, .. })));
    assert_eq!(store.load().unwrap(), None);
}

#[test]
fn a_commit_that_does_not_follow_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let heads = fill(&store, &genesis(), 2);
    let (head, block) = next(&heads[2], vec![]);
    let (_, foreign) = next(&heads[1], vec![]);
    let wrong = [
        (heads[2].clone(), None),
        (Head { height: Height(3), ..head.clone() }, None),
        (Head { height: Height(4), ..head.clone() }, Some(&block)),
        (Head { block: Hash([0; 32]), ..head.clone() }, Some(&block)),
        (head.clone(), Some(&foreign)),
        (Head { sequence: SeqNum(2), ..head.clone() }, Some(&block)),
    ];
    for (head, block) in wrong {
        let refused = store.commit(&head, block, &[set("height", "wrong")]);
        assert!(matches!(refused, Err(StoreError::OutOfOrder { .. })), "{head:?}");
    }
    assert_eq!(store.load().unwrap().unwrap().entries, [(b"height".to_vec(), b"2".to_vec())]);
    store.commit(&head, Some(&block), &[]).unwrap();
}

#[test]
fn only_the_certificate_of_the_block_that_is_here_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let heads = fill(&store, &genesis(), 2);
    store.put_certificate(&certificate(&heads[0])).unwrap();
    assert_eq!(store.certified_height(), Height(0));
    let unknown = Head { height: Height(3), ..heads[2].clone() };
    assert!(matches!(
        store.put_certificate(&certificate(&unknown)),
        Err(StoreError::UnknownBlock(Height(3)))
    ));
    let other = Head { block: Hash([0; 32]), ..heads[2].clone() };
    assert!(matches!(store.put_certificate(&certificate(&other)), Err(StoreError::OtherBlock { .. })));
    store.put_certificate(&certificate(&heads[2])).unwrap();
    let later = Head { sequence: SeqNum(9), ..heads[2].clone() };
    store.put_certificate(&certificate(&later)).unwrap();
    store.put_certificate(&certificate(&heads[1])).unwrap();
    assert_eq!(store.certificate(Height(2)).unwrap(), Some(certificate(&heads[2])), "the first one stays");
    assert_eq!(store.certified_height(), Height(2));
}

#[test]
fn a_snapshot_that_sled_did_not_finish_does_not_matter() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    fill(&store, &genesis(), 3);
    store.make_durable().unwrap();
    drop(store);
    fs::write(dir.path().join("sled/snap.FFFFFFFFFFFFFFFF.generating"), b"unfinished").unwrap();
    assert_eq!(open(dir.path()).load().unwrap().unwrap().head.height, Height(3));
}

#[test]
fn a_store_that_is_open_or_of_another_network_or_version_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    assert!(matches!(SledStore::open(dir.path(), &settings()), Err(StoreError::InUse(_))));
    store.db.insert(keys::VERSION, &9_u32.to_be_bytes()).unwrap();
    drop(store);
    assert!(matches!(SledStore::open(dir.path(), &settings()), Err(StoreError::Version { found: 9, .. })));

    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let other = StoreSettings { network: NetworkId([8; 32]), ..settings() };
    assert!(matches!(SledStore::open(dir.path(), &other), Err(StoreError::WrongNetwork { .. })));
}

#[test]
fn damaged_values_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let heads = fill(&store, &genesis(), 2);
    store.put_certificate(&certificate(&heads[1])).unwrap();
    store.db.insert(keys::header(Height(1)), b"x").unwrap();
    store.db.insert(keys::certificate(Height(1)), b"x").unwrap();
    store.db.remove(keys::block_part(Height(1), 0)).unwrap();
    store.db.insert(keys::block_part(Height(1), 1), b"x").unwrap();
    for error in [
        store.header(Height(1)).unwrap_err(),
        store.block(Height(1)).unwrap_err(),
        store.certificate(Height(1)).unwrap_err(),
    ] {
        assert!(matches!(&error, StoreError::Corrupt(what) if what.contains('1')), "{error}");
    }
    store.db.insert(keys::header(Height(2)), codec::encode(&next(&heads[0], vec![]).1.header)).unwrap();
    drop(store);
    assert!(matches!(SledStore::open(dir.path(), &settings()), Err(StoreError::Corrupt(_))));
}

#[test]
fn admissions_are_the_last_of_each_client() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let admission = |name: &str, seq: u64| AdmissionRecord {
        client: client(name),
        seq: MessageSeq(seq),
        header: Hash([u8::try_from(seq % 251).unwrap(); 32]),
        items: 2,
    };
    store.put_admissions(&(1..=700).map(|seq| admission("b", seq)).collect::<Vec<_>>()).unwrap();
    store.put_admissions(&[admission("a", 1), admission("a", 66_000), admission("a", 65_744)]).unwrap();
    store.put_admissions(&[admission("b", 100), admission("a", 65_743)]).unwrap();
    drop(store);
    let found = open(dir.path()).admissions().unwrap();
    let mut expected = vec![admission("a", 65_744), admission("a", 66_000)];
    expected.extend((444..=700).map(|seq| admission("b", seq)));
    assert_eq!(found, expected);
}
