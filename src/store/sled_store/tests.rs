//! The store against restarts, crashes and a plain model.

use std::fs;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::device::{self, Item, Value};
use crate::ledger::block::HEADER_VERSION;
use crate::ledger::{CheckpointContent, Operation, WriteRequest, WrittenItem};
use crate::store::ledger::{RecordKey, StoredRecord};
use crate::types::{
    ClientId, Hash, MessageSeq, NodeId, PublicKey, SeqNum, Signature, Stream, Timestamp, View,
};

const NETWORK: NetworkId = NetworkId([7; 32]);

fn settings() -> StoreSettings {
    StoreSettings { cache_bytes: 16 * 1024 * 1024, ..StoreSettings::new(NETWORK) }
}

fn open(dir: &Path) -> SledStore {
    SledStore::open(dir, &settings()).unwrap()
}

fn genesis() -> Head {
    Head { sequence: SeqNum(0), height: Height(0), block: Hash(NETWORK.0), timestamp: Timestamp(1) }
}

fn client(name: &str) -> ClientId {
    ClientId::new(format!("devices/{name}")).unwrap()
}

fn item(client: &ClientId, device: &str, num: u32, event_time: u64) -> Item {
    Item {
        client: client.clone(),
        device: device.to_owned(),
        service: "temperature".to_owned(),
        num,
        event_time: Timestamp(event_time),
        value: Value::Integer(i64::from(num)),
        unit: None,
    }
}

/// A write of all `items` of one message, except those in `already`.
fn write(seq: u64, items: &[Item], already: &[u32]) -> Operation {
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
        request: WriteRequest {
            node: NodeId([1; 32]),
            client_key: PublicKey([2; 32]),
            header: header.encode(),
            signature: Signature([5; 64]),
            items,
            proof: vec![],
        },
        written,
    }
}

/// The block that follows `head`, and the head with it.
fn next(head: &Head, operations: Vec<Operation>) -> (Head, Block) {
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

/// What the disk would hold if the node were killed now.
fn crash_image(dir: &Path) -> TempDir {
    let image = tempfile::tempdir().unwrap();
    copy(dir, image.path());
    image
}

fn copy(from: &Path, to: &Path) {
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        let target = to.join(file.file_name());
        if file.path().is_dir() {
            fs::create_dir(&target).unwrap();
            copy(&file.path(), &target);
        } else {
            fs::copy(file.path(), target).unwrap();
        }
    }
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
fn after_a_crash_everything_up_to_make_durable_is_there_and_commits_are_whole() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let heads = fill(&store, &genesis(), 40);
    store.make_durable().unwrap();
    fill(&store, &heads[40], 40);
    let image = crash_image(dir.path());
    let found = open(image.path());
    let snapshot = found.load().unwrap().unwrap();
    let height = snapshot.head.height;
    assert!(height >= Height(40));
    assert_eq!(snapshot.entries, [(b"height".to_vec(), height.to_string().into_bytes())]);
    for at in 1..=height.0 {
        assert_eq!(found.block(Height(at)).unwrap(), store.block(Height(at)).unwrap());
    }
    assert_eq!(found.block(height.next()).unwrap(), None);
    fill(&found, &snapshot.head, 3);
}

#[test]
fn a_store_that_lost_what_was_durable_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let heads = fill(&store, &genesis(), 5);
    store.make_durable().unwrap();
    let old = crash_image(dir.path());
    fill(&store, &heads[5], 5);
    store.make_durable().unwrap();
    fs::copy(dir.path().join("durable"), old.path().join("durable")).unwrap();
    let refused = SledStore::open(old.path(), &settings());
    assert!(matches!(refused, Err(StoreError::RolledBack { durable: 2, found: 1, .. })));

    let empty = tempfile::tempdir().unwrap();
    fs::copy(dir.path().join("durable"), empty.path().join("durable")).unwrap();
    assert!(matches!(SledStore::open(empty.path(), &settings()), Err(StoreError::RolledBack { .. })));
    fs::write(empty.path().join("durable"), [0; 12]).unwrap();
    assert!(matches!(SledStore::open(empty.path(), &settings()), Err(StoreError::Corrupt(_))));
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
fn damage_anywhere_in_the_database_never_passes_for_a_whole_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    fill(&store, &genesis(), 300);
    store.make_durable().unwrap();
    drop(store);
    let store = open(dir.path());
    let blocks: Vec<_> = (1..=300).map(|at| store.block(Height(at)).unwrap()).collect();
    fill(&store, &store.load().unwrap().unwrap().head, 20);
    store.make_durable().unwrap();
    drop(store);
    let whole = fs::read(dir.path().join("sled/db")).unwrap();
    let mut refused = 0;
    // Not in step with sled's own sizes, and not where the file was never written.
    let places = (3..whole.len()).step_by(9_973).filter(|at| whole[*at] != 0);
    for at in places {
        let image = crash_image(dir.path());
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        fs::write(image.path().join("sled/db"), bytes).unwrap();
        let found = SledStore::open(image.path(), &settings()).and_then(|store| {
            let head = store.load()?.map(|snapshot| snapshot.head.height);
            let blocks: Result<Vec<_>, _> = (1..=300).map(|at| store.block(Height(at))).collect();
            Ok((head, blocks?))
        });
        match found {
            Ok(found) => assert!(found == (Some(Height(320)), blocks.clone()), "byte {at}"),
            Err(error) => {
                assert!(error.to_string().contains("docs/STORAGE.md"), "{error}");
                refused += 1;
            }
        }
    }
    assert!(refused > 5, "only {refused} found");
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

#[test]
fn blocks_are_indexed_in_order_and_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    fill(&store, &genesis(), 3);
    let blocks: Vec<_> = (1..=3).map(|at| store.block(Height(at)).unwrap().unwrap()).collect();
    assert!(matches!(store.index(&blocks[1..]), Err(StoreError::IndexGap { expected: Height(1), .. })));
    store.index(&blocks[..2]).unwrap();
    store.index(&blocks).unwrap();
    drop(store);
    let store = open(dir.path());
    assert_eq!(store.indexed_height(), Height(3));
    assert_eq!(all_pages(&store, &RecordQuery { limit: 2, ..RecordQuery::default() }).len(), 3);
}

#[test]
fn only_what_an_operation_wrote_is_a_record() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let items = [0, 1, 2].map(|num| item(&client("iot"), "th-01", num, 5));
    store.index(&[next(&genesis(), vec![write(4, &items, &[1])]).1]).unwrap();
    let page = store.records(&RecordQuery { limit: 10, ..RecordQuery::default() }).unwrap();
    let key = |item| RecordKey { event_time: Timestamp(5), height: Height(1), operation: 0, item };
    let found: Vec<_> = page.records.iter().map(|record| (record.key, record.seq, &record.item)).collect();
    assert_eq!(found, [(key(0), MessageSeq(4), &items[0]), (key(2), MessageSeq(4), &items[2])]);
    assert_eq!(page.next, None);
}

#[test]
fn a_query_that_matches_little_goes_on_page_by_page() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let items: Vec<_> = (0..25_000).map(|num| item(&client("iot"), "th-01", num, 5)).collect();
    store.index(&[next(&genesis(), vec![write(1, &items, &[])]).1]).unwrap();
    let query = RecordQuery { num: Some(24_999), limit: 10, ..RecordQuery::default() };
    let first = store.records(&query).unwrap();
    assert!(first.records.is_empty() && first.next.is_some());
    assert_eq!(all_pages(&store, &query).len(), 1);
}

#[test]
fn a_cursor_survives_as_text() {
    let key =
        RecordKey { event_time: Timestamp(1 << 40), height: Height(1 << 33), operation: 7, item: 1 << 20 };
    assert_eq!(key.to_string().parse::<RecordKey>().unwrap(), key);
    for bad in ["", "00", "zz", &"0".repeat(50)] {
        assert!(bad.parse::<RecordKey>().is_err());
    }
}

/// Follows the cursors to the end.
fn all_pages(store: &SledStore, query: &RecordQuery) -> Vec<StoredRecord> {
    let mut query = query.clone();
    let mut found = Vec::new();
    loop {
        let page = store.records(&query).unwrap();
        assert!(page.records.len() <= query.limit.max(1));
        found.extend(page.records);
        match page.next {
            Some(next) => {
                assert!(query.cursor < Some(next), "a cursor goes on");
                query.cursor = Some(next);
            }
            None => return found,
        }
    }
}

fn any_item() -> impl Strategy<Value = (u8, u8, u32, u64)> {
    (0..3_u8, 0..3_u8, 0..3_u32, 0..12_u64)
}

fn any_query() -> impl Strategy<Value = RecordQuery> {
    let option = |strategy: std::ops::Range<u8>| prop::option::of(strategy);
    (option(0..4), option(0..4), option(0..2), option(0..4), option(0..13), option(0..13), 0..5_usize)
        .prop_map(|(name, device, service, num, from, to, limit)| RecordQuery {
            client: name.map(|name| client(&format!("c{name}"))),
            device: device.map(|device| format!("d{device}")),
            service: service.map(|at| ["temperature", "humidity"][usize::from(at)].to_owned()),
            num: num.map(u32::from),
            from: from.map(|from| Timestamp(from.into())),
            to: to.map(|to| Timestamp(to.into())),
            limit,
            cursor: None,
        })
}

fn in_model(query: &RecordQuery, record: &StoredRecord) -> bool {
    let item = &record.item;
    query.client.as_ref().is_none_or(|client| *client == item.client)
        && query.device.as_ref().is_none_or(|device| *device == item.device)
        && query.service.as_ref().is_none_or(|service| *service == item.service)
        && query.num.is_none_or(|num| num == item.num)
        && query.from.is_none_or(|from| item.event_time >= from)
        && query.to.is_none_or(|to| item.event_time < to)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn queries_find_what_a_plain_list_finds(
        messages in prop::collection::vec(any_item(), 1..40),
        queries in prop::collection::vec(any_query(), 1..24),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let mut head = genesis();
        let mut model = Vec::new();
        for (seq, operations) in (1..).zip(messages.chunks(3)) {
            let items: Vec<_> = operations
                .iter()
                .map(|(name, device, num, time)| item(&client(&format!("c{name}")), &format!("d{device}"), *num, *time))
                .collect();
            let writes = items.iter().map(|item| write(seq, std::slice::from_ref(item), &[])).collect();
            let (new, block) = next(&head, writes);
            head = new;
            store.index(&[block]).unwrap();
            model.extend((0..).zip(items).map(|(operation, item)| StoredRecord {
                key: RecordKey { event_time: item.event_time, height: head.height, operation, item: 0 },
                stream: Stream::new("env").unwrap(),
                seq: MessageSeq(seq),
                item,
            }));
        }
        model.sort_by_key(|record| record.key);
        for query in queries {
            let expected: Vec<_> = model.iter().filter(|record| in_model(&query, record)).cloned().collect();
            prop_assert_eq!(all_pages(&store, &query), expected, "{:?}", query);
        }
    }
}
