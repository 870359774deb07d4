//! Chunks of lists: what is added in any order, again, or half, and what is read while they change.

use proptest::prelude::*;

use super::super::tests::{client, genesis, item, next, open, write};
use super::*;
use crate::store::LedgerStore as _;
use crate::types::SeqNum;

const LIST: &[u8] = b"t";

fn database() -> sled::Db {
    sled::Config::new().temporary(true).open().unwrap()
}

/// A run that says nothing but its place.
fn run(event_time: u64) -> Run {
    let key = RecordKey { event_time: Timestamp(event_time), height: Height(7), operation: 0, item: 0 };
    let stream = Stream::new("env").unwrap();
    Run { key: key.to_bytes(), stream, seq: MessageSeq(event_time), from: event_time, bytes: 10, count: 1 }
}

fn runs(times: impl IntoIterator<Item = u64>) -> Runs {
    times.into_iter().map(|time| (run(time).key, run(time))).collect()
}

fn add(db: &sled::Db, times: impl IntoIterator<Item = u64>) {
    add_to_list(db, LIST, runs(times)).unwrap();
}

/// Adds, and is killed after some chunks; a batch is there wholly or not at all.
fn add_and_crash(db: &sled::Db, times: impl IntoIterator<Item = u64>, chunks: usize) {
    let changes = changes_of_list(db, LIST, runs(times)).unwrap();
    let survive = if changes.splits { 0 } else { chunks };
    for (key, value) in changes.chunks.into_iter().take(survive) {
        db.insert(key, value).unwrap();
    }
}

/// The runs of the list, by their times, of which every chunk is as it should be.
fn listed(db: &sled::Db) -> Vec<u64> {
    let mut found = Vec::new();
    for entry in db.scan_prefix(LIST) {
        let (key, value) = entry.unwrap();
        let runs = decode_chunk(&value).unwrap();
        assert!((1..=CHUNK).contains(&runs.len()), "{} runs in a chunk", runs.len());
        assert_eq!(key, list_key(LIST, &runs[0].key), "a chunk is under the key of its first run");
        assert!(runs.iter().all(|found| *found == run(found.from)));
        found.extend(runs.iter().map(|run| run.from));
    }
    assert!(found.is_sorted_by(|a, b| a < b), "each run once, in order");
    found
}

#[test]
fn what_comes_in_order_fills_chunks_and_a_chunk_that_is_full_is_left_as_it_is() {
    let db = database();
    let chunk = CHUNK as u64;
    add(&db, 0..chunk - 1);
    add(&db, [chunk - 1]);
    assert_eq!((listed(&db).len(), db.len()), (CHUNK, 1));
    add(&db, [chunk]);
    add(&db, chunk + 1..5 * chunk);
    assert_eq!((listed(&db).len(), db.len()), (5 * CHUNK, 5));
    add(&db, 0..5 * chunk);
    assert_eq!((listed(&db).len(), db.len()), (5 * CHUNK, 5), "nothing comes twice");
}

#[test]
fn what_comes_between_the_runs_of_a_full_chunk_or_before_the_first_one_is_listed() {
    let db = database();
    let chunk = CHUNK as u64;
    add(&db, (1..=2 * chunk).map(|at| 10 * at));
    add(&db, [5, 15, 10 * chunk + 1, 10 * chunk + 9, 20 * chunk + 1]);
    assert_eq!(listed(&db).len(), 2 * CHUNK + 5);
    assert_eq!(listed(&db).first(), Some(&5));
}

#[test]
fn a_page_that_is_read_while_a_chunk_is_split_has_each_record_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let client = client("iot");
    let message = |seq: u64, time: u64| write(seq, &[item(&client, "th-01", 1, time)], &[]);
    let in_order: Vec<_> = (0..CHUNK as u64).map(|at| message(at + 1, 10 * at)).collect();
    let first = next(&genesis(), in_order);
    let between = next(&first.0, vec![message(100, 5)]);
    let prefix = keys::all_records();
    let chunks = || -> Vec<_> { store.db.scan_prefix(&prefix).values().map(Result::unwrap).collect() };
    store.commit(&first.0, Some(&first.1), &[]).unwrap();
    store.index(&[first.1]).unwrap();
    let before = chunks();
    store.commit(&between.0, Some(&between.1), &[]).unwrap();
    store.index(&[between.1]).unwrap();
    let after = chunks();
    assert_eq!((before.len(), after.len()), (1, 2), "it was split");
    // Who reads the chunk before that and goes on after it.
    let read = [before[0].clone(), after[1].clone()];
    let mut query = RecordQuery { limit: 25, ..RecordQuery::default() };
    let mut found = Vec::new();
    loop {
        let page = page_of(&store.db, &query, read.iter().cloned().map(Ok)).unwrap();
        found.extend(page.records.iter().map(|record| record.key.event_time.0));
        assert!(page.next.is_none_or(|next| Some(next) > query.cursor));
        query.cursor = page.next;
        if page.next.is_none() {
            break;
        }
    }
    assert_eq!(found, (0..CHUNK as u64).map(|at| 10 * at).collect::<Vec<_>>());
    assert_eq!(store.load().unwrap().unwrap().head.sequence, SeqNum(2));
}

fn anywhere() -> impl Strategy<Value = BTreeSet<u64>> {
    prop::collection::btree_set(0..600_u64, 1..120)
}

fn in_order() -> impl Strategy<Value = BTreeSet<u64>> {
    (0..2_000_u64, 1..120_u64).prop_map(|(first, count)| (first..first + count).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_is_added_in_any_order_again_or_half_the_list_has_each_run_once(
        portions in prop::collection::vec(
            (prop_oneof![anywhere(), in_order()], 0..120_usize, 0..4_usize, any::<bool>()), 1..12,
        ),
    ) {
        let db = database();
        let mut model = BTreeSet::new();
        for (times, done_before, chunks, is_done_again) in portions {
            // Killed when so many runs were in their chunks, or so many chunks written; then all are added.
            add(&db, times.iter().copied().take(done_before));
            add_and_crash(&db, times.iter().copied(), chunks);
            add(&db, times.iter().copied());
            if is_done_again {
                add(&db, times.iter().copied());
            }
            model.extend(times);
            prop_assert_eq!(listed(&db), model.iter().copied().collect::<Vec<_>>());
        }
    }
}
