//! The record index against a plain list.

use proptest::prelude::*;

use super::*;
use crate::store::ledger::{RecordKey, StoredRecord};

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
    store_and_index(&store, &next(&genesis(), vec![write(4, &items, &[1])]));
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
    store_and_index(&store, &next(&genesis(), vec![write(1, &items, &[])]));
    let query = RecordQuery { num: Some(24_999), limit: 10, ..RecordQuery::default() };
    let first = store.records(&query).unwrap();
    assert!(first.records.is_empty() && first.next.is_some());
    assert_eq!(all_pages(&store, &query).len(), 1);
}

#[test]
fn a_message_that_takes_many_runs_is_listed_whole_whatever_the_page() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let device = |num: u32| ["a", "b"][usize::from(num.is_multiple_of(3))];
    let items: Vec<_> = (0..300).map(|num| item(&client("iot"), device(num), num, 5)).collect();
    let operations = vec![write(1, &items, &[0, 17]), write(2, &items, &[])];
    store_and_index(&store, &next(&genesis(), operations));
    let chunks = store.db.scan_prefix(keys::all_records()).count();
    assert!((1..8).contains(&chunks), "{chunks} chunks of runs of 598 records");
    for limit in [1, 7, 1000] {
        for device in [None, Some("a"), Some("b")] {
            let query = RecordQuery {
                client: device.map(|_| client("iot")),
                device: device.map(str::to_owned),
                limit,
                ..RecordQuery::default()
            };
            let found: Vec<_> = all_pages(&store, &query)
                .into_iter()
                .map(|record| (record.key.operation, record.key.item, record.item))
                .collect();
            let all = [1, 2]
                .into_iter()
                .flat_map(|seq| (0..).zip(&items).map(move |(at, item)| (seq - 1, at, item)));
            let written = all.filter(|(operation, at, _)| *operation == 1 || ![0, 17].contains(at));
            let wanted = written.filter(|(_, _, item)| device.is_none_or(|device| item.device == device));
            let wanted: Vec<_> = wanted.map(|(operation, at, item)| (operation, at, item.clone())).collect();
            assert_eq!(found, wanted, "{limit} {device:?}");
        }
    }
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

fn store_and_index(store: &SledStore, (head, block): &(Head, Block)) {
    store.commit(head, Some(block), &[]).unwrap();
    store.index(std::slice::from_ref(block)).unwrap();
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

/// Blocks of up to three messages of one item each, and their records in the order of queries.
fn blocks_of(messages: &[(u8, u8, u32, u64)]) -> (Vec<(Head, Block)>, Vec<StoredRecord>) {
    let (mut blocks, mut records): (Vec<(Head, Block)>, Vec<_>) = (Vec::new(), Vec::new());
    for (seq, operations) in (1..).zip(messages.chunks(3)) {
        let items: Vec<_> = operations
            .iter()
            .map(|(name, device, num, time)| {
                item(&client(&format!("c{name}")), &format!("d{device}"), *num, *time)
            })
            .collect();
        let writes = items.iter().map(|item| write(seq, std::slice::from_ref(item), &[])).collect();
        let made = next(blocks.last().map_or(&genesis(), |(head, _)| head), writes);
        records.extend((0..).zip(items).map(|(operation, item)| StoredRecord {
            key: RecordKey { event_time: item.event_time, height: made.0.height, operation, item: 0 },
            stream: Stream::new("env").unwrap(),
            seq: MessageSeq(seq),
            item,
        }));
        blocks.push(made);
    }
    records.sort_by_key(|record| record.key);
    (blocks, records)
}

/// Commits those of `blocks` that the store does not have.
fn catch_up(store: &SledStore, blocks: &[(Head, Block)]) {
    let height = store.load().unwrap().map_or(0, |snapshot| snapshot.head.height.0);
    for (head, block) in &blocks[usize::try_from(height).unwrap()..] {
        store.commit(head, Some(block), &[]).unwrap();
    }
}

/// Indexes up to `count` blocks at once.
fn index_next(store: &SledStore, blocks: &[(Head, Block)], count: usize) {
    let done = usize::try_from(store.indexed_height().0).unwrap();
    let portion: Vec<_> = blocks[done..].iter().take(count).map(|(_, block)| block.clone()).collect();
    store.index(&portion).unwrap();
}

/// What comes after a portion of blocks was indexed.
#[derive(Debug, Clone, Copy)]
enum After {
    Nothing,
    Restart,
    Save,
    /// As of what is on disk then.
    Kill,
    /// Before the height of the index was raised.
    Torn,
}

fn any_portion() -> impl Strategy<Value = (usize, After)> {
    let after = [After::Nothing, After::Restart, After::Save, After::Kill, After::Torn];
    (1..25_usize, prop::sample::select(after.to_vec()))
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
        let (blocks, model) = blocks_of(&messages);
        for made in &blocks {
            store_and_index(&store, made);
        }
        for query in queries {
            let expected: Vec<_> = model.iter().filter(|record| in_model(&query, record)).cloned().collect();
            prop_assert_eq!(all_pages(&store, &query), expected, "{:?}", query);
        }
    }

    #[test]
    fn what_is_indexed_in_portions_through_restarts_kills_and_torn_writes_is_what_a_plain_list_has(
        messages in prop::collection::vec(any_item(), 100..400),
        portions in prop::collection::vec(any_portion(), 1..10),
        queries in prop::collection::vec(any_query(), 1..8),
    ) {
        let mut dir = tempfile::tempdir().unwrap();
        let mut store = open(dir.path());
        let (blocks, model) = blocks_of(&messages);
        for (count, after) in portions {
            catch_up(&store, &blocks);
            let height = store.db.get(keys::INDEXED).unwrap();
            index_next(&store, &blocks, count);
            match after {
                After::Nothing => continue,
                After::Restart => {}
                After::Save => store.make_durable().unwrap(),
                After::Kill => dir = super::crash::crash_image(dir.path()),
                After::Torn => {
                    match height {
                        Some(height) => store.db.insert(keys::INDEXED, height).unwrap(),
                        None => store.db.remove(keys::INDEXED).unwrap(),
                    };
                }
            }
            drop(store);
            store = open(dir.path());
        }
        catch_up(&store, &blocks);
        index_next(&store, &blocks, blocks.len());
        for query in queries {
            let expected: Vec<_> = model.iter().filter(|record| in_model(&query, record)).cloned().collect();
            prop_assert_eq!(all_pages(&store, &query), expected, "{:?}", query);
        }
    }
}
