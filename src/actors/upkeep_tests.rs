//! What a checkpoint keeps of the log, and what it tells the store.

use super::super::fatal;
use super::*;
use crate::clock::SystemClock;
use crate::metrics::Metrics;
use crate::pbft::WalEntry;
use crate::store::ledger::AdmissionRecord;
use crate::store::log::{Entry, EntryKind, LogSettings};
use crate::store::{SledStore, StoreSettings};
use crate::types::{ClientId, Hash, MessageSeq, NetworkId, SeqNum, View};

fn upkeep(dir: &std::path::Path) -> Upkeep {
    let network = NetworkId([7; 32]);
    let (metrics, clock) = (Metrics::new().unwrap(), SystemClock::shared());
    let (log, _) = Log::open(&dir.join("log"), LogSettings::new(network, Arc::clone(&clock))).unwrap();
    Upkeep {
        store: Arc::new(SledStore::open(&dir.join("ledger"), &StoreSettings::new(network)).unwrap()),
        log,
        marks: Arc::default(),
        admission: Arc::default(),
        view: Arc::default(),
        interval: Duration::from_secs(10),
        bytes: 1 << 20,
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
    assert_eq!(upkeep.needed(), Needed { consensus: end, ingress: end });
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
    assert_eq!(upkeep.needed(), Needed { consensus: Position(1), ingress: Position(2) });
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
