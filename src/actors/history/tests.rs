//! The task against a database that comes and goes: nothing is lost, nothing is written twice, the
//! log is kept as long as it is needed, and digests go where they belong.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::*;
use crate::actors::fatal;
use crate::actors::view::LedgerView;
use crate::clock::SystemClock;
use crate::history::tests::{NETWORK, file, node_key, row, tamper};
use crate::history::{
    HistoryError, HistoryStore, Location, ReadRow, RowStanding, SqlHistory, StoredDigest, StoredRow,
};
use crate::ledger::digest::rows_root;
use crate::ledger::{DigestRecord, HistoryDigest, Rejection};
use crate::metrics::Metrics;
use crate::store::Log;
use crate::store::log::{Entry, EntryKind, LogSettings, Position};
use crate::types::{Hash, Height, MessageSeq};

/// A database that can be unplugged, and then loses answers of what it did all the same.
struct Flaky {
    store: SqlHistory,
    gone: AtomicBool,
    answers_lost: AtomicBool,
}

impl Flaky {
    fn check(&self) -> Result<(), HistoryError> {
        if !self.gone.load(Relaxed) {
            return Ok(());
        }
        let location = self.store.location().to_string();
        Err(HistoryError::Unavailable { location, detail: "unplugged".into() })
    }
}

#[async_trait]
impl HistoryStore for Flaky {
    fn location(&self) -> &Location {
        self.store.location()
    }

    async fn open(&self) -> Result<(), HistoryError> {
        self.check()
    }

    async fn append(&self, above: u64, rows: &[HistoryRow]) -> Result<Vec<Option<u64>>, HistoryError> {
        if self.gone.load(Relaxed) && self.answers_lost.load(Relaxed) {
            self.store.append(above, rows).await?;
        }
        self.check()?;
        self.store.append(above, rows).await
    }

    async fn put_fates(&self, fates: &[(MessageKey, RowFate)]) -> Result<(), HistoryError> {
        self.check()?;
        self.store.put_fates(fates).await
    }

    async fn standing(&self, keys: &[MessageKey]) -> Result<Vec<RowStanding>, HistoryError> {
        self.check()?;
        self.store.standing(keys).await
    }

    async fn put_digest(&self, digest: &HistoryDigest, hashes: &[Hash]) -> Result<(), HistoryError> {
        self.check()?;
        self.store.put_digest(digest, hashes).await
    }

    async fn start_over(&self, first: u64, above: u64) -> Result<(), HistoryError> {
        self.check()?;
        self.store.start_over(first, above).await
    }

    async fn digest_is_final(&self, number: u64, height: Height) -> Result<(), HistoryError> {
        self.check()?;
        self.store.digest_is_final(number, height).await
    }

    async fn last_digest(&self) -> Result<Option<StoredDigest>, HistoryError> {
        self.check()?;
        self.store.last_digest().await
    }

    async fn digests(&self, after: u64, limit: u32) -> Result<Vec<StoredDigest>, HistoryError> {
        self.check()?;
        self.store.digests(after, limit).await
    }

    async fn rows(&self, after: u64, limit: u32) -> Result<Vec<ReadRow>, HistoryError> {
        self.check()?;
        HistoryStore::rows(&self.store, after, limit).await
    }
}

struct Bench {
    dir: tempfile::TempDir,
    store: Arc<Flaky>,
    metrics: Arc<Metrics>,
    view: Arc<LedgerView>,
    submitted: Arc<Mutex<Vec<HistoryDigest>>>,
    log: Log,
    backlog: Backlog,
    interval: Duration,
    max_rows: u32,
}

struct Running {
    feed: HistoryFeed,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Bench {
    fn new(max_rows: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = SqlHistory::new(file(dir.path()), NETWORK, node_key().node_id());
        let metrics = Metrics::new().unwrap();
        let settings = LogSettings::new(NETWORK, SystemClock::shared());
        let (log, _) = Log::open(&dir.path().join("log"), settings).unwrap();
        Self {
            store: Arc::new(Flaky {
                store,
                gone: AtomicBool::new(false),
                answers_lost: AtomicBool::new(false),
            }),
            view: Arc::default(),
            submitted: Arc::default(),
            backlog: Backlog::new(1 << 20, metrics.queues.queue("history_kib")),
            metrics,
            log,
            dir,
            interval: Duration::from_secs(3600),
            max_rows,
        }
    }

    fn start(&self) -> Running {
        let submitted = Arc::clone(&self.submitted);
        let (fatal, _reasons) = fatal();
        let parts = HistoryParts {
            store: Arc::clone(&self.store) as Arc<dyn HistoryStore>,
            network: NETWORK,
            key: node_key(),
            log: self.log.clone(),
            view: Arc::clone(&self.view),
            submit: Arc::new(move |digest| submitted.lock().unwrap().push(digest)),
            terms: DigestTerms { interval: self.interval, max_rows: self.max_rows },
            clock: SystemClock::shared(),
            metrics: self.metrics.history.clone(),
            fatal,
        };
        let (stop, stopping) = watch::channel(false);
        let (task, feed) = HistoryTask::new(parts, stopping);
        Running { feed, stop, task: tokio::spawn(task.run()) }
    }

    async fn place(&self, row: &HistoryRow, position: u64) -> Arc<Place> {
        let place = self.backlog.place(&row.message).await.unwrap();
        place.pin(Position(position));
        Arc::new(place)
    }

    async fn decide(&self, running: &Running, seq: u64) {
        let row = row(1, seq);
        let place = self.place(&row, seq).await;
        running.feed.decided(row.message, row.decision, Position::NONE, place);
    }

    async fn stored(&self) -> Vec<StoredRow> {
        let history = SqlHistory::new(file(self.dir.path()), NETWORK, node_key().node_id());
        let rows = HistoryStore::rows(&history, 0, 10_000).await.unwrap();
        rows.into_iter().map(Result::unwrap).collect()
    }

    /// The ledger has this digest, final.
    fn on_ledger(&self, digest: &HistoryDigest, height: u64) {
        let last_row = digest.first + u64::from(digest.rows) - 1;
        let height = Height(height);
        let record = DigestRecord { number: digest.number, hash: digest.hash(), last_row, height };
        self.view.put_digest(digest.node, record);
        self.view.update_progress(|progress| progress.certified_height = height);
    }

    fn last_submitted(&self) -> Option<HistoryDigest> {
        self.submitted.lock().unwrap().last().cloned()
    }
}

impl Running {
    fn is_final(&self, seq: u64, verdict: FinalVerdict) {
        let row = row(1, seq);
        let header = row.message.header();
        self.feed.is_final(&FinalMessage {
            client: header.client.clone(),
            stream: header.stream.clone(),
            seq: MessageSeq(seq),
            header: row.message.signed().hash(),
            items: header.count,
            verdict,
        });
    }

    async fn stop(self) {
        self.stop.send_replace(true);
        self.task.await.unwrap();
    }
}

fn written(height: u64) -> FinalVerdict {
    FinalVerdict::Written { items: vec![0, 1], height: Height(height), block: Hash([0; 32]) }
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("never: {what}");
}

#[tokio::test]
async fn the_log_is_needed_until_row_and_fate_are_in_the_history() {
    let bench = Bench::new(100);
    let running = bench.start();
    for seq in 1..=3 {
        bench.decide(&running, seq).await;
    }
    eventually("three rows", || bench.metrics.history.rows.get() == 3).await;
    assert_eq!(bench.backlog.needed_from(), Some(Position(1)), "no fate is known");
    running.is_final(1, written(7));
    running.is_final(3, FinalVerdict::NotWritten);
    eventually("the first is done", || bench.backlog.needed_from() == Some(Position(2))).await;
    running.is_final(2, FinalVerdict::Rejected(Rejection::WrongKey));
    eventually("all is in the history", || bench.backlog.needed_from().is_none()).await;
    assert_eq!(bench.metrics.queues.queue("history_kib").length.get(), 0);
    let fates: Vec<_> = bench.stored().await.into_iter().map(|row| row.fate.map(|fate| fate.fate)).collect();
    let rejected = Rejection::WrongKey.to_string();
    assert_eq!(fates, [Some("written".to_owned()), Some(rejected), None]);
    running.stop().await;
}

#[tokio::test]
async fn while_the_database_is_gone_places_run_out_and_when_it_is_back_nothing_is_missing() {
    let bench = Bench::new(1_000);
    let running = bench.start();
    bench.decide(&running, 1).await;
    eventually("the first row", || bench.metrics.history.rows.get() == 1).await;
    bench.store.gone.store(true, Relaxed);
    let mut accepted = 1;
    // A client whose message finds no place is told nothing, and keeps it.
    while tokio::time::timeout(Duration::from_millis(200), bench.decide(&running, accepted + 1)).await.is_ok()
    {
        accepted += 1;
        assert!(accepted < 10_000, "the backlog has no bound");
    }
    assert!(accepted > 100, "{accepted} messages fit into a MiB");
    eventually("it is noticed", || bench.metrics.history.available.get() == 0).await;
    assert!(bench.metrics.queues.queue("history_kib").full.get() > 0);
    bench.store.gone.store(false, Relaxed);
    for seq in 1..=accepted {
        running.is_final(seq, written(seq));
    }
    eventually("all is in the history", || bench.backlog.needed_from().is_none()).await;
    assert_eq!(bench.metrics.history.available.get(), 1);
    let stored = bench.stored().await;
    let seqs: Vec<_> = stored.iter().map(|row| row.seq).collect();
    assert_eq!(seqs, (1..=i64::try_from(accepted).unwrap()).collect::<Vec<_>>());
    assert!(stored.iter().all(|row| row.fate.is_some()));
    running.stop().await;
}

#[tokio::test]
async fn a_lost_answer_neither_doubles_a_row_nor_leaves_it_out_of_a_digest() {
    let bench = Bench::new(1_000);
    let running = bench.start();
    bench.decide(&running, 1).await;
    eventually("the first row", || bench.metrics.history.rows.get() == 1).await;
    bench.store.answers_lost.store(true, Relaxed);
    bench.store.gone.store(true, Relaxed);
    bench.decide(&running, 2).await;
    bench.decide(&running, 3).await;
    eventually("it is noticed", || bench.metrics.history.available.get() == 0).await;
    bench.store.gone.store(false, Relaxed);
    eventually("it is back", || bench.metrics.history.available.get() == 1).await;
    bench.decide(&running, 4).await;
    running.stop().await;
    let digest = bench.last_submitted().unwrap();
    let hashes: Vec<_> = (1..=4).map(|seq| row(1, seq).hash()).collect();
    assert_eq!((digest.first, digest.rows, digest.root), (1, 4, rows_root(&hashes).unwrap()));
    assert_eq!(bench.stored().await.len(), 4);
}

#[tokio::test]
async fn digests_follow_one_another_and_are_noted_when_they_are_final() {
    let bench = Bench::new(2);
    let running = bench.start();
    for seq in [1, 2, 3, 5] {
        bench.decide(&running, seq).await;
    }
    eventually("the first is submitted", || bench.last_submitted().is_some()).await;
    let first = bench.last_submitted().unwrap();
    assert_eq!((first.number, first.first, first.rows), (1, 1, 2));
    bench.on_ledger(&first, 6);
    eventually("the second is submitted", || bench.last_submitted().unwrap().number == 2).await;
    let second = bench.last_submitted().unwrap();
    assert_eq!((second.previous, second.first, second.rows), (first.hash(), 3, 2));
    let run = |seq| (MessageSeq(seq), MessageSeq(seq));
    assert_eq!(second.ranges[0].1, [run(3), run(5)]);
    bench.on_ledger(&second, 9);
    eventually("both are final", || bench.metrics.history.digests.get() == 2).await;
    running.stop().await;
    let kept = bench.store.digests(0, 9).await.unwrap();
    let heights: Vec<_> = kept.iter().map(|digest| (digest.number, digest.height)).collect();
    assert_eq!(heights, [(1, Some(6)), (2, Some(9))]);
}

#[tokio::test]
async fn a_restart_submits_the_same_digest_again_and_goes_on_behind_it() {
    let bench = Bench::new(1_000);
    let running = bench.start();
    bench.decide(&running, 1).await;
    running.stop().await;
    let first = bench.last_submitted().unwrap();
    bench.submitted.lock().unwrap().clear();
    let running = bench.start();
    eventually("it is submitted again", || bench.last_submitted() == Some(first.clone())).await;
    bench.on_ledger(&first, 3);
    bench.decide(&running, 1).await;
    bench.decide(&running, 2).await;
    running.stop().await;
    let second = bench.last_submitted().unwrap();
    assert_eq!((second.number, second.previous, second.first, second.rows), (2, first.hash(), 2, 1));
}

#[tokio::test]
async fn rows_of_a_run_that_was_killed_are_in_the_next_digest() {
    let bench = Bench::new(1_000);
    let running = bench.start();
    bench.decide(&running, 1).await;
    bench.decide(&running, 2).await;
    eventually("two rows", || bench.metrics.history.rows.get() == 2).await;
    running.task.abort();
    let running = bench.start();
    bench.decide(&running, 3).await;
    running.stop().await;
    let digest = bench.last_submitted().unwrap();
    let hashes: Vec<_> = (1..=3).map(|seq| row(1, seq).hash()).collect();
    assert_eq!((digest.first, digest.rows, digest.root), (1, 3, rows_root(&hashes).unwrap()));
}

#[tokio::test]
async fn a_history_that_was_taken_away_is_followed_by_one_with_higher_numbers() {
    let bench = Bench::new(1_000);
    let running = bench.start();
    bench.decide(&running, 1).await;
    running.stop().await;
    let first = bench.last_submitted().unwrap();
    bench.on_ledger(&first, 3);
    let anew = Bench { view: Arc::clone(&bench.view), ..Bench::new(1_000) };
    let running = anew.start();
    anew.decide(&running, 2).await;
    running.stop().await;
    let second = anew.last_submitted().unwrap();
    assert_eq!((second.number, second.previous, second.first), (2, first.hash(), 2));
    assert_eq!(anew.stored().await[0].number, 2);
}

#[tokio::test]
async fn a_history_that_begins_anew_before_the_ledger_is_known_moves_above_what_the_ledger_has() {
    let bench = Bench::new(2);
    let running = bench.start();
    for seq in 1..=4 {
        bench.decide(&running, seq).await;
    }
    eventually("the first is submitted", || bench.last_submitted().is_some()).await;
    bench.on_ledger(&bench.last_submitted().unwrap(), 3);
    eventually("the second is submitted", || bench.last_submitted().unwrap().number == 2).await;
    let second = bench.last_submitted().unwrap();
    bench.on_ledger(&second, 4);
    running.stop().await;

    // A node that was wiped: it hears of what it wrote only after it accepted something.
    let anew = Bench::new(2);
    let running = anew.start();
    for seq in 11..=13 {
        anew.decide(&running, seq).await;
        running.is_final(seq, written(9));
    }
    eventually("a first digest is submitted", || anew.last_submitted().is_some()).await;
    eventually("all is in the history", || anew.backlog.needed_from().is_none()).await;
    anew.submitted.lock().unwrap().clear();
    anew.on_ledger(&second, 4);
    eventually("another is submitted", || anew.last_submitted().is_some()).await;
    let third = anew.last_submitted().unwrap();
    assert_eq!((third.number, third.previous, third.first, third.rows), (3, second.hash(), 5, 2));
    anew.on_ledger(&third, 5);
    anew.decide(&running, 14).await;
    running.stop().await;
    let fourth = anew.last_submitted().unwrap();
    assert_eq!((fourth.number, fourth.first, fourth.rows), (4, 7, 2));
    let stored = anew.stored().await;
    let rows: Vec<_> = stored.iter().map(|row| (row.number, row.seq, row.items.len())).collect();
    assert_eq!(rows, [(5, 11, 4), (6, 12, 4), (7, 13, 4), (8, 14, 4)]);
    assert_eq!(stored.iter().filter(|row| row.fate.is_some()).count(), 3, "fates move with their rows");
    let hashes: Vec<_> = [11, 12].map(|seq| row(1, seq).hash()).into();
    assert_eq!(third.root, rows_root(&hashes).unwrap());
    let kept: Vec<_> = anew.store.digests(0, 9).await.unwrap().iter().map(|digest| digest.number).collect();
    assert_eq!(kept, [3, 4], "the first one, which the ledger refused, is forgotten");
}

#[tokio::test]
async fn a_row_waits_until_the_log_has_its_message() {
    let bench = Bench::new(100);
    let running = bench.start();
    let row = row(1, 1);
    let place = bench.place(&row, 1).await;
    running.feed.decided(row.message, row.decision, bench.log.last().next(), place);
    bench.decide(&running, 2).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(bench.stored().await.len(), 0, "a power cut would leave a row without a message");
    let entry = Entry { kind: EntryKind::AcceptedMessage, bytes: vec![1] };
    bench.log.append(vec![entry]).await.unwrap();
    eventually("two rows", || bench.metrics.history.rows.get() == 2).await;
    running.stop().await;
}

#[tokio::test]
async fn a_history_begun_before_the_ledger_is_fetched_is_numbered_above_what_that_has_digests_of() {
    let bench = Bench::new(1_000);
    let running = bench.start();
    bench.decide(&running, 1).await;
    running.stop().await;
    let first = bench.last_submitted().unwrap();
    let anew = Bench::new(1_000);
    let running = anew.start();
    eventually("it has begun", || anew.metrics.history.available.get() == 1).await;
    anew.on_ledger(&first, 3);
    anew.decide(&running, 2).await;
    running.stop().await;
    assert_eq!(anew.stored().await[0].number, 2);
    let second = anew.last_submitted().unwrap();
    assert_eq!((second.number, second.previous, second.first), (2, first.hash(), 2));
}

#[tokio::test]
async fn an_altered_digest_hides_no_row_from_the_digests_after_a_restart() {
    for sql in [
        "UPDATE digests SET first = 1000",
        "UPDATE digests SET number = 7, row_hashes = zeroblob(32000)",
        "UPDATE digests SET content = x'00', first = 1000",
    ] {
        let bench = Bench::new(1_000);
        let running = bench.start();
        bench.decide(&running, 1).await;
        running.stop().await;
        let first = bench.last_submitted().unwrap();
        bench.on_ledger(&first, 3);
        let running = bench.start();
        bench.decide(&running, 2).await;
        eventually("the second row", || bench.metrics.history.rows.get() == 2).await;
        running.task.abort();
        tamper(bench.dir.path(), sql).await;
        let running = bench.start();
        bench.decide(&running, 3).await;
        running.stop().await;
        let second = bench.last_submitted().unwrap();
        assert_eq!((second.number, second.first, second.rows), (2, 2, 2), "{sql}");
    }
}

#[tokio::test]
async fn a_row_that_the_database_leaves_out_is_noticed_and_stays_in_the_log() {
    let bench = Bench::new(1_000);
    let running = bench.start();
    bench.decide(&running, 1).await;
    eventually("a row", || bench.metrics.history.rows.get() == 1).await;
    tamper(
        bench.dir.path(),
        "CREATE TRIGGER swallow BEFORE INSERT ON messages BEGIN SELECT RAISE(IGNORE); END",
    )
    .await;
    bench.decide(&running, 2).await;
    eventually("it says so", || bench.metrics.history.available.get() == 0).await;
    assert_eq!((bench.stored().await.len(), bench.metrics.history.rows.get()), (1, 1));
    assert!(bench.backlog.needed_from().is_some(), "the log is needed");
    tamper(bench.dir.path(), "DROP TRIGGER swallow").await;
    eventually("it is written", || bench.metrics.history.rows.get() == 2).await;
    running.stop().await;
    assert_eq!(bench.stored().await.len(), 2);
    assert_eq!(bench.last_submitted().unwrap().rows, 2, "and digested");
}
