//! What a checkpoint keeps of the log, and what it tells the store.

use super::super::bases::BasesLimits;
use super::super::fatal;
use super::*;
use crate::clock::SystemClock;
use crate::ledger::block::Header;
use crate::ledger::{Block, Certificate, CheckpointContent, Head};
use crate::metrics::Metrics;
use crate::pbft::WalEntry;
use crate::store::ledger::AdmissionRecord;
use crate::store::log::{Entry, EntryKind, LogSettings};
use crate::store::{SledStore, StoreSettings};
use crate::types::{ClientId, Hash, Height, MessageSeq, NetworkId, NodeId, SeqNum, Timestamp, View};

fn upkeep(dir: &std::path::Path) -> Upkeep {
    let network = NetworkId([7; 32]);
    let (metrics, clock) = (Metrics::new().unwrap(), SystemClock::shared());
    let (log, _) = Log::open(&dir.join("log"), LogSettings::new(network, Arc::clone(&clock))).unwrap();
    let store: Arc<dyn LedgerStore> =
        Arc::new(SledStore::open(&dir.join("ledger"), &StoreSettings::new(network)).unwrap());
    let limits = BasesLimits { cached_items: 16, open_items: 16 };
    Upkeep {
        bases: Arc::new(Bases::new(Arc::clone(&store), limits, metrics.queues.queue("open_items"))),
        store,
        log,
        marks: Arc::default(),
        admission: Arc::default(),
        backlog: Backlog::new(1 << 20, metrics.queues.queue("history_kib")),
        view: Arc::default(),
        interval: Duration::from_secs(10),
        bytes: 1 << 20,
        time: metrics.stages.index.clone(),
        clock,
        metrics: metrics.storage.clone(),
        accepted: metrics.queues.queue("accepted"),
        fatal: fatal().0,
    }
}

fn record(seq: u64) -> AdmissionRecord {
    let client = ClientId::new("devices/iot").unwrap();
    AdmissionRecord { client, seq: MessageSeq(seq), header: Hash([1; 32]), items: 1 }
}

async fn append(upkeep: &Upkeep) -> Position {
    let entry = Entry { kind: EntryKind::AcceptedMessage, bytes: vec![1] };
    upkeep.log.append(vec![entry]).await.unwrap()
}

#[tokio::test]
async fn without_anything_open_the_log_is_needed_from_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let upkeep = upkeep(dir.path());
    let end = append(&upkeep).await.next();
    assert_eq!(upkeep.needed(), Needed { consensus: end, ingress: end, history: end });
}

#[tokio::test]
async fn the_log_is_kept_for_pending_messages_and_for_what_is_not_settled() {
    let dir = tempfile::tempdir().unwrap();
    let upkeep = upkeep(dir.path());
    for _ in 0..3 {
        append(&upkeep).await;
    }
    upkeep.admission.resume(&record(1), Position(2));
    for (sequence, position) in [(4, 1), (5, 3)] {
        let (view, digest) = (View(0), Hash([0; 32]));
        let entry = WalEntry::Committed { view, sequence: SeqNum(sequence), digest };
        upkeep.marks.note(&entry, Position(position));
    }
    let (consensus, ingress) = (Position(1), Position(2));
    let history = upkeep.log.last().next();
    assert_eq!(upkeep.needed(), Needed { consensus, ingress, history });
    upkeep.view.update_progress(|progress| progress.executed.sequence = SeqNum(5));
    assert_eq!(upkeep.needed().consensus, Position(1), "executed, and not certified");
    upkeep.view.update_progress(|progress| progress.certified = SeqNum(5));
    assert_eq!(upkeep.needed().consensus, Position(3));
}

#[tokio::test]
async fn a_checkpoint_saves_what_was_accepted_and_measures_itself() {
    let dir = tempfile::tempdir().unwrap();
    let upkeep = upkeep(dir.path());
    append(&upkeep).await;
    upkeep.admission.note_final(&record(1));
    upkeep.save().await.unwrap();
    upkeep.measure();
    assert_eq!(upkeep.store.admissions().unwrap(), [record(1)]);
    assert!(upkeep.admission.take_changed().is_empty());
    assert_eq!(upkeep.metrics.checkpoint_ms.get_sample_count(), 1);
    assert!(upkeep.metrics.log_size_bytes.get() > 0);
    assert_eq!(upkeep.log.low_mark(), upkeep.log.last().next());
}

/// A block without operations, and the ledger's head after it.
fn block(height: u64, previous: Hash) -> (Block, Head) {
    let header = Header {
        version: 1,
        network: NetworkId([7; 32]),
        height: Height(height),
        sequence: SeqNum(height),
        timestamp: Timestamp(height),
        previous,
        merkle_root: Hash([0; 32]),
        operation_count: 0,
        next_replica_set: Hash([0; 32]),
        origin_view: View(0),
        proposer: NodeId([0; 32]),
        difficulty_target: 0,
        nonce: 0,
    };
    let (sequence, height, timestamp) = (header.sequence, header.height, header.timestamp);
    let head = Head { sequence, height, block: header.hash(), timestamp };
    (Block { header, operations: Vec::new() }, head)
}

#[tokio::test]
async fn a_block_that_is_executed_and_not_certified_is_not_listed() {
    let dir = tempfile::tempdir().unwrap();
    let upkeep = upkeep(dir.path());
    let (first, head) = block(1, Hash([0; 32]));
    let (second, next) = block(2, head.block);
    for (block, head) in [(&first, &head), (&second, &next)] {
        upkeep.store.commit(head, Some(block), &[]).unwrap();
        let executed = CheckpointContent {
            sequence: head.sequence,
            height: head.height,
            block: head.block,
            state: Hash([0; 32]),
        };
        upkeep.view.update_progress(|progress| progress.executed = executed);
    }
    let (_stop, running) = watch::channel(false);
    upkeep.index_behind(&running).unwrap();
    assert_eq!(upkeep.store.indexed_height(), Height(0));
    let content =
        CheckpointContent { sequence: SeqNum(1), height: Height(1), block: head.block, state: Hash([0; 32]) };
    upkeep.store.put_certificate(&Certificate { content, signatures: Vec::new() }).unwrap();
    upkeep.index_behind(&running).unwrap();
    assert_eq!(upkeep.store.indexed_height(), Height(1));
}

#[tokio::test]
async fn the_log_is_kept_for_what_is_not_in_the_history() {
    let dir = tempfile::tempdir().unwrap();
    let upkeep = upkeep(dir.path());
    let position = append(&upkeep).await;
    append(&upkeep).await;
    let row = crate::history::tests::row(1, 1);
    let place = upkeep.backlog.place(&row.message).await.unwrap();
    place.pin(position);
    assert_eq!(upkeep.needed().history, position);
    upkeep.save().await.unwrap();
    assert_eq!(upkeep.log.low_mark(), position);
    place.is_done();
    assert_eq!(upkeep.needed().history, upkeep.log.last().next());
    upkeep.save().await.unwrap();
    assert_eq!(upkeep.log.low_mark(), upkeep.log.last().next());
}
