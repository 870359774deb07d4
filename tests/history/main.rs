//! The history in PostgreSQL: the same as in SQLite, and a server that goes away under load.
//!
//! Needs Debian's package `postgresql` (feature `interop`; `.ci/run` installs it). Each test starts a
//! server of its own in a temporary directory, as a user without rights, and ends it.

#![cfg(feature = "interop")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod messages;
mod server;

use std::sync::Arc;
use std::time::Duration;

use ledgermq::actors::history::{Backlog, DigestTerms, HistoryFeed, HistoryParts, HistoryTask};
use ledgermq::actors::view::LedgerView;
use ledgermq::actors::{FinalMessage, FinalVerdict, fatal};
use ledgermq::clock::SystemClock;
use ledgermq::history::{
    HistoryError, HistoryReader as _, HistoryRow, HistoryStore, Location, RowFate, SqlHistory, SqlReader,
};
use ledgermq::ledger::HistoryDigest;
use ledgermq::ledger::digest::{ranges_of, rows_root};
use ledgermq::metrics::Metrics;
use ledgermq::store::Log;
use ledgermq::store::log::{LogSettings, Position};
use ledgermq::types::{Hash, Height, NetworkId};
use messages::{NETWORK, node_key, row};
use server::Server;
use sqlx::{Connection as _, Executor as _};
use tokio::sync::watch;

fn history(server: &Server) -> SqlHistory {
    SqlHistory::new(location(server), NETWORK, node_key(1).node_id())
}

fn location(server: &Server) -> Location {
    Location::parse(&server.url()).unwrap()
}

async fn sql(server: &Server, statement: &'static str) {
    let mut connection = sqlx::PgConnection::connect(&server.url()).await.unwrap();
    connection.execute(statement).await.unwrap();
}

#[tokio::test]
async fn what_is_written_to_postgresql_is_read_in_order() {
    let server = Server::start();
    let history = history(&server);
    let rows: Vec<HistoryRow> = (1..=300).map(row).collect();
    let numbers = history.append(0, &rows).await.unwrap();
    assert_eq!(numbers, (1..=300).map(Some).collect::<Vec<_>>());
    assert_eq!(history.append(0, &rows[..2]).await.unwrap(), [None, None]);
    let written = RowFate::Written { height: Height(7), items: vec![0, 3] };
    let fates = [(rows[0].key(), written), (rows[1].key(), RowFate::Rejected("no".into()))];
    history.put_fates(&fates).await.unwrap();
    history.put_fates(&fates).await.unwrap();
    let standing = history.standing(&[rows[0].key(), rows[2].key(), row(999).key()]).await.unwrap();
    let standing: Vec<_> = standing.iter().map(|row| (row.stored, row.has_fate)).collect();
    assert_eq!(standing, [(true, true), (true, false), (false, false)]);

    let hashes: Vec<Hash> = rows.iter().map(HistoryRow::hash).collect();
    let ranges = ranges_of(rows.iter().map(|row| (row.key().0, row.key().1)));
    let rows_of = (1, 300, rows_root(&hashes).unwrap());
    let digest = HistoryDigest::sign(&NETWORK, &node_key(1), (1, Hash([0; 32])), rows_of, ranges);
    history.put_digest(&digest, &hashes).await.unwrap();
    history.digest_is_final(1, Height(9)).await.unwrap();

    let reader = SqlReader::open(location(&server), &NETWORK).await.unwrap();
    let node = node_key(1).node_id();
    let stored = reader.rows(&node, 0, 1_000).await.unwrap();
    for ((stored, row), number) in stored.iter().zip(&rows).zip(1..) {
        let stored = stored.as_ref().unwrap();
        assert_eq!((stored.number, stored.hash()), (number, row.hash()));
        assert_eq!(stored.body, row.message.body());
        let items = stored.items.iter().zip(row.message.items()).enumerate();
        assert!(items.clone().all(|(at, (one, other))| one.is(at, other)) && items.len() == 10);
    }
    assert_eq!(stored.len(), 300);
    assert_eq!(stored[0].as_ref().unwrap().fate.as_ref().unwrap().height, Some(7));
    let digests = reader.digests(&node, 0, 10).await.unwrap();
    assert_eq!((&digests[0].row_hashes, digests[0].height), (&hashes, Some(9)));
    sql(&server, "DELETE FROM messages WHERE number = 5").await;
    assert_eq!(reader.strays(&node, 10).await.unwrap(), [0; 0], "a reader sees one moment");
    let reader = SqlReader::open(location(&server), &NETWORK).await.unwrap();
    assert_eq!(reader.strays(&node, 10).await.unwrap(), [5]);
}

#[tokio::test]
async fn what_is_no_history_of_this_network_is_refused() {
    let server = Server::start();
    history(&server).open().await.unwrap();
    let other = SqlHistory::new(location(&server), NetworkId([9; 32]), node_key(1).node_id());
    assert!(matches!(other.open().await, Err(HistoryError::WrongNetwork { .. })));
    sql(&server, "UPDATE ledgermq SET value = '2' WHERE name = 'schema'").await;
    assert!(matches!(history(&server).open().await, Err(HistoryError::NewerSchema { .. })));
    sql(&server, "DROP TABLE ledgermq").await;
    assert!(matches!(history(&server).open().await, Err(HistoryError::Foreign { .. })));
}

#[tokio::test]
async fn nodes_that_start_together_make_one_schema() {
    let server = Server::start();
    let opening = (1..=6).map(|number| {
        let history = SqlHistory::new(location(&server), NETWORK, node_key(number).node_id());
        tokio::spawn(async move {
            // Two that ask for a number at once: one of them asks again.
            while let Err(error) = history.open().await {
                assert!(error.may_pass(), "{error}");
            }
            history.append(0, &[row(u64::from(number))]).await.unwrap()
        })
    });
    for task in opening.collect::<Vec<_>>() {
        assert_eq!(task.await.unwrap(), [Some(1)]);
    }
    let reader = SqlReader::open(location(&server), &NETWORK).await.unwrap();
    assert_eq!(reader.nodes().len(), 6);
}

/// Accepts messages as a node does, one after the other, and says how many.
async fn accept(
    backlog: Backlog,
    feed: HistoryFeed,
    accepted: watch::Sender<u64>,
    until: watch::Receiver<bool>,
) {
    for seq in 1.. {
        let row = row(seq);
        let place = tokio::select! {
            place = backlog.place(&row.message) => Arc::new(place.unwrap()),
            () = stopped(until.clone()) => return,
        };
        place.pin(Position(seq));
        let header = row.message.header().clone();
        let final_message = FinalMessage {
            client: header.client,
            stream: header.stream,
            seq: header.seq,
            header: row.message.signed().hash(),
            items: header.count,
            verdict: FinalVerdict::Written { items: vec![0], height: Height(seq), block: Hash([0; 32]) },
        };
        feed.decided(row.message, row.decision, Position::NONE, place);
        feed.is_final(&final_message);
        accepted.send_replace(seq);
        tokio::task::yield_now().await;
    }
}

async fn stopped(mut stop: watch::Receiver<bool>) {
    let _sender_is_kept = stop.wait_for(|stop| *stop).await;
}

/// Waits until the number stands still for a second, and gives it.
async fn stands_still(number: &watch::Receiver<u64>) -> u64 {
    loop {
        let before = *number.borrow();
        let mut number = number.clone();
        let moved = tokio::time::timeout(Duration::from_secs(1), number.wait_for(|now| *now != before));
        if moved.await.is_err() {
            return before;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_goes_away_under_load_holds_clients_back_and_loses_nothing() {
    let mut server = Server::start();
    let (metrics, dir) = (Metrics::new().unwrap(), tempfile::tempdir().unwrap());
    let parts = HistoryParts {
        store: Arc::new(history(&server)),
        network: NETWORK,
        key: node_key(1),
        log: Log::open(dir.path(), LogSettings::new(NETWORK, SystemClock::shared())).unwrap().0,
        view: Arc::<LedgerView>::default(),
        submit: Arc::new(|_| ()),
        terms: DigestTerms { interval: Duration::from_secs(3600), max_rows: 100 },
        clock: SystemClock::shared(),
        metrics: metrics.history.clone(),
        fatal: fatal().0,
    };
    let (stop, stopping) = watch::channel(false);
    let (task, feed) = HistoryTask::new(parts, stopping);
    let task = tokio::spawn(task.run());
    let backlog = Backlog::new(4 << 20, metrics.queues.queue("history_kib"));
    let ((accepted, number), (end, until)) = (watch::channel(0), watch::channel(false));
    let load = tokio::spawn(accept(backlog.clone(), feed, accepted, until));

    for kill in [Server::kill as fn(&mut Server), Server::stop] {
        let before = metrics.history.rows.get();
        while metrics.history.rows.get() < before + 500 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        kill(&mut server);
        let held = stands_still(&number).await;
        assert!(held > before, "some were accepted while it was gone");
        assert_eq!(metrics.history.available.get(), 0);
        assert!(backlog.needed_from().is_some(), "the log is kept for them");
        server.start_again();
        let mut number = number.clone();
        let goes_on = number.wait_for(|now| *now > held);
        tokio::time::timeout(Duration::from_secs(60), goes_on).await.expect("it goes on").unwrap();
    }
    end.send_replace(true);
    load.await.unwrap();
    while backlog.needed_from().is_some() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stop.send_replace(true);
    task.await.unwrap();

    let accepted = *number.borrow();
    let reader = SqlReader::open(location(&server), &NETWORK).await.unwrap();
    let (node, mut read) = (node_key(1).node_id(), 0);
    loop {
        let page = reader.rows(&node, read, 500).await.unwrap();
        if page.is_empty() {
            break;
        }
        for stored in page {
            let stored = stored.unwrap();
            read += 1;
            assert_eq!((stored.number, u64::try_from(stored.seq)), (read, Ok(read)), "once, in order");
            assert_eq!(stored.fate.unwrap().height, i64::try_from(read).ok());
        }
    }
    assert_eq!(read, accepted, "every accepted message is there");
    let covered: usize =
        reader.digests(&node, 0, 10_000).await.unwrap().iter().map(|digest| digest.row_hashes.len()).sum();
    assert_eq!(covered as u64, accepted, "and covered by a digest, once");
}
