//! The history in SQLite files: what is written is read, twice is once, and what is wrong is said.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use sqlx::{Connection as _, Executor as _};

use super::*;
use crate::codec;
use crate::crypto::{SecretKey, VerifyingKey};
use crate::device::Value;
use crate::device::compose::{Draft, compose};
use crate::device::encoding::Encoding;
use crate::device::telemetry::{Content, Limits, Message};
use crate::ledger::digest::{ranges_of, rows_root};
use crate::ledger::index_set::IndexSet;
use crate::types::{ClientId, MessageSeq, NetworkId, Stream, Timestamp};

pub(crate) const NETWORK: NetworkId = NetworkId([1; 32]);
const TIME: Timestamp = Timestamp(1_767_225_600_000);

pub(crate) fn client(number: u8) -> ClientId {
    ClientId::new(format!("devices/c{number}")).unwrap()
}

pub(crate) fn node_key() -> SecretKey {
    SecretKey::from_seed(&[1; 32])
}

/// A message with these JSON values.
pub(crate) fn message_of(client: &ClientId, seq: u64, values: &[String]) -> Arc<Message> {
    let item = |(num, value)| {
        format!(r#"{{"deviceId":"th-01","serviceId":"temp","num":{num},"value":{value},"unit":"Cel"}}"#)
    };
    let items: Vec<String> = (1..).zip(values).map(item).collect();
    let (count, data) = (items.len(), items.join(","));
    let body = format!(r#"{{"count":{count},"eventTime":{},"data":[{data}]}}"#, TIME.0 + seq);
    let key = SecretKey::from_seed(&[50; 32]);
    let stream = Stream::new("env").unwrap();
    let seq = MessageSeq(seq);
    let draft = Draft {
        client,
        stream: &stream,
        seq,
        unused_above: None,
        body: body.as_bytes(),
        encoding: Encoding::Identity,
    };
    let content = Content::decode(&compose(&NETWORK, &key, &draft).unwrap().content).unwrap();
    let key = VerifyingKey::parse(&key.public()).unwrap();
    let verified = content.verify(&key, &NETWORK, client, &stream).unwrap();
    Arc::new(verified.check_body(&Limits::default(), TIME.plus_ms(seq.0)).unwrap())
}

pub(crate) fn row(number: u8, seq: u64) -> HistoryRow {
    let values = ["36".to_owned(), "-0.5".to_owned(), "true".to_owned(), "\"on\"".to_owned()];
    HistoryRow { message: message_of(&client(number), seq, &values), decision: vec![number, 7] }
}

pub(crate) fn file(dir: &Path) -> Location {
    Location::of_node(None, dir).unwrap()
}

fn history(dir: &Path) -> SqlHistory {
    SqlHistory::new(file(dir), NETWORK, node_key().node_id())
}

async fn read_all(history: &SqlHistory) -> Vec<StoredRow> {
    let (mut all, mut after) = (Vec::new(), 0);
    loop {
        let page = HistoryStore::rows(history, after, 3).await.unwrap();
        let Some(Ok(last)) = page.last() else { return all };
        after = last.number;
        all.extend(page.into_iter().map(Result::unwrap));
    }
}

/// Does something to the file with SQL, as somebody with access to it could.
pub(crate) async fn tamper(dir: &Path, sql: &'static str) {
    let Location::Sqlite(path) = file(dir) else { panic!("not a file") };
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path).create_if_missing(true);
    let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
    connection.execute(sql).await.unwrap();
    connection.close().await.unwrap();
}

#[tokio::test]
async fn what_is_written_is_read_in_order_with_its_items() {
    let dir = tempfile::tempdir().unwrap();
    let history = history(dir.path());
    let rows = [row(1, 5), row(2, 1), row(1, 3), row(1, 4)];
    let numbers = history.append(0, &rows).await.unwrap();
    assert_eq!(numbers, [Some(1), Some(2), Some(3), Some(4)]);
    let stored = read_all(&history).await;
    for ((stored, row), number) in stored.iter().zip(&rows).zip(1..) {
        let signed = row.message.signed();
        assert_eq!((stored.number, stored.node), (number, node_key().node_id()));
        assert_eq!((&stored.header[..], &stored.body[..]), (signed.bytes(), row.message.body()));
        assert_eq!((&stored.decision, stored.hash()), (&row.decision, row.hash()));
        assert_eq!(stored.header_hash, signed.hash().as_bytes());
        assert_eq!(stored.client, signed.header().client.as_str());
        assert!(
            stored
                .items
                .iter()
                .zip(row.message.items())
                .enumerate()
                .all(|(at, (one, other))| one.is(at, other))
        );
        let values: Vec<_> = stored.items.iter().map(|item| item.value.clone().unwrap()).collect();
        let expected =
            [Value::Integer(36), Value::Float(-0.5), Value::Boolean(true), Value::Text("on".into())];
        assert_eq!(values, expected);
        assert_eq!(stored.fate, None);
    }
    assert_eq!(stored.len(), 4);
}

#[tokio::test]
async fn only_the_owner_can_read_the_files() {
    let dir = tempfile::tempdir().unwrap();
    let history = history(dir.path());
    history.append(0, &[row(1, 1)]).await.unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir.path().join("history")), 0o700);
    let files: Vec<_> = std::fs::read_dir(dir.path().join("history")).unwrap().map(Result::unwrap).collect();
    assert!(files.len() >= 2, "the write-ahead log is there");
    for file in files {
        assert_eq!(mode(&file.path()), 0o600, "{:?}", file.path());
    }
}

#[tokio::test]
async fn fates_are_noted_once_and_only_for_messages_that_are_there() {
    let dir = tempfile::tempdir().unwrap();
    let history = history(dir.path());
    let rows = [row(1, 1), row(1, 2), row(1, 3)];
    history.append(0, &rows).await.unwrap();
    let written = |height| RowFate::Written { height: Height(height), items: vec![0, 2] };
    let fates = [
        (rows[1].key(), written(7)),
        (row(9, 9).key(), written(8)),
        (rows[2].key(), RowFate::Rejected("the seq is too far below 900".into())),
    ];
    history.put_fates(&fates).await.unwrap();
    history.put_fates(&[(rows[1].key(), written(9))]).await.unwrap();
    let stored = read_all(&history).await;
    assert_eq!(stored[0].fate, None);
    let items: IndexSet = [0, 2].into_iter().collect();
    let fate = StoredFate { fate: "written".into(), height: Some(7), items: Some(codec::encode(&items)) };
    assert_eq!(stored[1].fate, Some(fate));
    assert_eq!(stored[2].fate.as_ref().unwrap().fate, "the seq is too far below 900");
    let keys = [rows[0].key(), rows[1].key(), row(9, 9).key()];
    let standing = |stored, has_fate| RowStanding { stored, has_fate };
    let expected = [standing(true, false), standing(true, true), standing(false, false)];
    assert_eq!(history.standing(&keys).await.unwrap(), expected);
}

#[tokio::test]
async fn digests_are_kept_with_the_hashes_of_their_rows() {
    let dir = tempfile::tempdir().unwrap();
    let history = history(dir.path());
    assert_eq!(history.last_digest().await.unwrap(), None);
    let rows = [row(1, 1), row(1, 2)];
    history.append(0, &rows).await.unwrap();
    let hashes: Vec<_> = rows.iter().map(HistoryRow::hash).collect();
    let root = rows_root(&hashes).unwrap();
    let ranges = ranges_of(rows.iter().map(|row| (row.key().0, row.key().1)));
    let digest = HistoryDigest::sign(&NETWORK, &node_key(), (1, Hash([0; 32])), (1, 2, root), ranges);
    history.put_digest(&digest, &hashes).await.unwrap();
    history.put_digest(&digest, &hashes).await.unwrap();
    let stored = history.last_digest().await.unwrap().unwrap();
    assert_eq!((stored.number, stored.first, &stored.row_hashes), (1, 1, &hashes));
    assert_eq!((stored.content, stored.height), (codec::encode(&digest), None));
    history.digest_is_final(1, Height(6)).await.unwrap();
    assert_eq!(history.digests(0, 9).await.unwrap()[0].height, Some(6));
    history.start_over(1, 40).await.unwrap();
    assert_eq!(history.last_digest().await.unwrap(), None);
    let numbers =
        |rows: Vec<StoredRow>| rows.iter().map(|row| (row.number, row.items.len())).collect::<Vec<_>>();
    assert_eq!(
        numbers(read_all(&history).await),
        [(41, 4), (42, 4)],
        "the rows come after what the ledger has"
    );
    history.start_over(41, 40).await.unwrap();
    assert_eq!(numbers(read_all(&history).await), [(41, 4), (42, 4)], "which they do already");
}

#[tokio::test]
async fn what_the_database_refuses_is_told_from_a_database_that_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let history = history(dir.path());
    history.append(0, &[row(1, 1)]).await.unwrap();
    tamper(dir.path(), "ALTER TABLE items RENAME TO taken_away").await;
    let refused = history.append(0, &[row(1, 2)]).await.unwrap_err();
    assert!(matches!(refused, HistoryError::Refused { .. }) && !refused.may_pass(), "{refused}");
    assert!(refused.to_string().contains("no such table: items"), "{refused}");
    tamper(dir.path(), "ALTER TABLE taken_away RENAME TO items").await;
    assert_eq!(history.append(0, &[row(1, 1), row(1, 2)]).await.unwrap(), [None, Some(2)]);
}

#[tokio::test]
async fn what_a_trigger_leaves_out_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let history = history(dir.path());
    let key = |row: &HistoryRow| (row.key(), RowFate::Rejected("late".into()));
    history.append(0, &[row(1, 1)]).await.unwrap();
    for (table, sql) in [
        ("messages", "CREATE TRIGGER t BEFORE INSERT ON messages BEGIN SELECT RAISE(IGNORE); END"),
        (
            "items",
            "CREATE TRIGGER t BEFORE INSERT ON items WHEN NEW.item = 1 BEGIN SELECT RAISE(IGNORE); END",
        ),
        ("fates", "CREATE TRIGGER t BEFORE INSERT ON fates BEGIN SELECT RAISE(IGNORE); END"),
    ] {
        tamper(dir.path(), sql).await;
        let result = match table {
            "fates" => history.put_fates(&[key(&row(1, 1))]).await,
            _ => history.append(0, &[row(1, 2), row(1, 3)]).await.map(drop),
        };
        let told = result.unwrap_err().to_string();
        assert!(told.contains("were not written") && told.contains(table), "{told}");
        assert_eq!(read_all(&history).await.len(), 1, "nothing of it is there");
        tamper(dir.path(), "DROP TRIGGER t").await;
    }
    history.put_fates(&[key(&row(1, 1))]).await.unwrap();
    history.put_fates(&[key(&row(1, 1))]).await.unwrap();
    assert_eq!(history.append(0, &[row(1, 2)]).await.unwrap(), [Some(2)]);
}

#[tokio::test]
async fn rows_whose_numbers_have_no_room_are_not_moved_and_the_database_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let history = history(dir.path());
    history.append(0, &[row(1, 1), row(1, 2)]).await.unwrap();
    tamper(dir.path(), "UPDATE messages SET number = 9223372036854775800 WHERE number = 2").await;
    for above in [100, i64::MAX as u64, u64::MAX] {
        let told = history.start_over(1, above).await.unwrap_err().to_string();
        assert!(told.contains("take away"), "{told}");
    }
    let numbers: Vec<u64> = read_all(&history).await.iter().map(|row| row.number).collect();
    assert_eq!(numbers, [1, 9_223_372_036_854_775_800]);
    tamper(dir.path(), "DELETE FROM messages WHERE number > 1").await;
    history.start_over(1, 100).await.unwrap();
    assert_eq!(read_all(&history).await[0].number, 101);
}

#[tokio::test]
async fn nodes_that_share_a_database_have_rows_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let other = SecretKey::from_seed(&[2; 32]).node_id();
    let (one, other_history) = (history(dir.path()), SqlHistory::new(file(dir.path()), NETWORK, other));
    assert_eq!(one.append(0, &[row(1, 1), row(1, 2)]).await.unwrap(), [Some(1), Some(2)]);
    assert_eq!(other_history.append(0, &[row(1, 2), row(1, 3)]).await.unwrap(), [Some(1), Some(2)]);
    assert_eq!(one.append(0, &[row(1, 3)]).await.unwrap(), [Some(3)]);
    assert_eq!(one.append(70, &[row(1, 3), row(1, 4)]).await.unwrap(), [None, Some(71)]);
    assert_eq!(one.append(70, &[row(1, 5)]).await.unwrap(), [Some(72)]);
    let reader = SqlReader::open(file(dir.path()), &NETWORK).await.unwrap();
    assert_eq!(reader.nodes(), [node_key().node_id(), other]);
    assert_eq!(reader.rows(&other, 0, 100).await.unwrap().len(), 2);
    assert_eq!(reader.rows(&NodeId([9; 32]), 0, 100).await.unwrap().len(), 0);
}

#[tokio::test]
async fn a_row_of_the_wrong_kind_is_named_and_the_others_are_read() {
    let dir = tempfile::tempdir().unwrap();
    history(dir.path()).append(0, &[row(1, 1), row(1, 2), row(1, 3)]).await.unwrap();
    tamper(dir.path(), "UPDATE messages SET body = 7 WHERE number = 2").await;
    tamper(dir.path(), "INSERT INTO items SELECT node, 77, item, device, service, num, event_time, 1, 2.0, NULL, NULL, unit FROM items WHERE number = 1").await;
    let reader = SqlReader::open(file(dir.path()), &NETWORK).await.unwrap();
    let rows = reader.rows(&node_key().node_id(), 0, 100).await.unwrap();
    assert_eq!(rows.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
    assert_eq!(rows[1].as_ref().unwrap_err().number, 2);
    assert_eq!(reader.strays(&node_key().node_id(), 10).await.unwrap(), [77]);
}

#[tokio::test]
async fn the_history_of_another_network_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    history(dir.path()).append(0, &[row(1, 1)]).await.unwrap();
    let other = SqlHistory::new(file(dir.path()), NetworkId([2; 32]), node_key().node_id());
    let refused = other.open().await.unwrap_err();
    assert!(matches!(refused, HistoryError::WrongNetwork { .. }) && !refused.may_pass(), "{refused}");
    assert_eq!(read_all(&history(dir.path())).await.len(), 1);
}

#[tokio::test]
async fn a_newer_schema_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    history(dir.path()).append(0, &[row(1, 1)]).await.unwrap();
    tamper(dir.path(), "UPDATE ledgermq SET value = '2' WHERE name = 'schema'").await;
    let refused = history(dir.path()).open().await.unwrap_err();
    assert!(
        matches!(&refused, HistoryError::NewerSchema { found, known: 1, .. } if found == "2"),
        "{refused}"
    );
    assert!(matches!(
        SqlReader::open(file(dir.path()), &NETWORK).await,
        Err(HistoryError::NewerSchema { .. })
    ));
    tamper(dir.path(), "UPDATE ledgermq SET value = '1' WHERE name = 'schema'").await;
    assert_eq!(read_all(&history(dir.path())).await.len(), 1);
}

#[tokio::test]
async fn tables_of_another_program_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("history")).unwrap();
    tamper(dir.path(), "CREATE TABLE accounts (name TEXT)").await;
    let refused = history(dir.path()).open().await.unwrap_err();
    assert!(matches!(refused, HistoryError::Foreign { .. }), "{refused}");
}

#[tokio::test]
async fn an_empty_database_can_be_written_but_not_read() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("history")).unwrap();
    tamper(dir.path(), "PRAGMA user_version = 0").await;
    let refused = SqlReader::open(file(dir.path()), &NETWORK).await.unwrap_err();
    assert!(matches!(refused, HistoryError::Empty { .. }), "{refused}");
    history(dir.path()).open().await.unwrap();
    assert!(SqlReader::open(file(dir.path()), &NETWORK).await.unwrap().nodes().len() == 1);
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("history")).unwrap();
    let path = dir.path().join("history/history.sqlite");
    let text = "no database, but longer than the header of one, which has a hundred bytes".repeat(20);
    std::fs::write(&path, &text).unwrap();
    let refused = history(dir.path()).open().await.unwrap_err();
    assert!(matches!(refused, HistoryError::Damaged { .. }) && !refused.may_pass(), "{refused}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    let gone = SqlReader::open(Location::Sqlite(dir.path().join("none.sqlite")), &NETWORK).await;
    assert!(matches!(gone, Err(HistoryError::File { .. })), "a reader makes no file");
    assert!(!dir.path().join("none.sqlite").exists());
}

#[tokio::test]
async fn a_damaged_page_is_an_error_and_never_an_answer() {
    let dir = tempfile::tempdir().unwrap();
    let rows: Vec<_> = (1..200).map(|seq| row(1, seq)).collect();
    let whole = history(dir.path());
    whole.append(0, &rows).await.unwrap();
    drop(whole);
    tamper(dir.path(), "PRAGMA wal_checkpoint(TRUNCATE)").await;
    let path = dir.path().join("history/history.sqlite");
    let mut bytes = std::fs::read(&path).unwrap();
    let len = bytes.len();
    bytes[8192..len - 4096].fill(0xa5);
    std::fs::write(&path, bytes).unwrap();
    let damaged = history(dir.path());
    let error = HistoryStore::rows(&damaged, 0, 500).await.unwrap_err();
    assert!(matches!(error, HistoryError::Damaged { .. }), "{error}");
    assert!(damaged.append(0, &[row(1, 999)]).await.is_err());
}

#[tokio::test]
async fn what_a_lock_holds_back_can_be_written_when_it_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let history = history(dir.path());
    history.append(0, &[row(1, 1)]).await.unwrap();
    let Location::Sqlite(path) = file(dir.path()) else { panic!("not a file") };
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
    let mut holder = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
    holder.execute("BEGIN IMMEDIATE").await.unwrap();
    let refused = history.append(0, &[row(1, 2)]).await.unwrap_err();
    assert!(refused.may_pass() && refused.to_string().contains("locked"), "{refused}");
    holder.execute("COMMIT").await.unwrap();
    assert_eq!(history.append(0, &[row(1, 1), row(1, 2)]).await.unwrap(), [None, Some(2)]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn batches_with_repeats_and_reopenings_are_what_a_model_keeps(
        batches in proptest::collection::vec((proptest::collection::vec((1_u8..4, 1_u64..12), 0..9), any::<bool>()), 1..8),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let mut store = history(dir.path());
            let mut model: BTreeMap<(u8, u64), u64> = BTreeMap::new();
            for (batch, reopen) in batches {
                if reopen {
                    store = history(dir.path());
                }
                let rows: Vec<_> = batch.iter().map(|(number, seq)| row(*number, *seq)).collect();
                let mut expected = Vec::new();
                for key in batch {
                    let next = model.len() as u64 + 1;
                    let is_new = !model.contains_key(&key);
                    model.entry(key).or_insert(next);
                    expected.push(is_new.then_some(next));
                }
                prop_assert_eq!(store.append(0, &rows).await.unwrap(), expected);
            }
            let stored = read_all(&store).await;
            prop_assert_eq!(stored.len(), model.len());
            for ((number, seq), at) in model {
                let found = &stored[usize::try_from(at).unwrap() - 1];
                prop_assert_eq!(found.hash(), row(number, seq).hash());
                prop_assert_eq!(found.items.len(), 4);
            }
            Ok(())
        })?;
    }
}
