//! What is kept, what is not, and what a restart finds.

use super::*;
use crate::crypto::SecretKey;
use crate::ledger::{ReplicaSet, ReplicaSetKeys};
use crate::pbft::Verified;
use crate::pbft::message::{Content, Prepare};
use crate::types::{NetworkId, SeqNum, View};

const NETWORK: NetworkId = NetworkId([7; 32]);
const LIMITS: EvidenceLimits = EvidenceLimits { per_replica: 3, all: 5 };

fn key(replica: u8) -> SecretKey {
    SecretKey::from_seed(&[replica + 1; 32])
}

/// Two PREPAREs of a replica, the second of which is for the batch `other`.
fn proven(replica: u8, sequence: u64, other: u8) -> Proven {
    let sign = |fill: u8| {
        let vote = Prepare { view: View(0), sequence: SeqNum(sequence), digest: Hash([fill; 32]) };
        Verified::sign(&key(replica), &NETWORK, Content::Prepare(vote)).signed().clone()
    };
    let replicas = ReplicaSet::new((0..4).map(|at| key(at).node_id()).collect()).unwrap();
    let keys = ReplicaSetKeys::new(&replicas).unwrap();
    Evidence::contradiction(&sign(200), &sign(other)).verify(&NETWORK, &keys).unwrap()
}

fn open(dir: &Path) -> EvidenceStore {
    EvidenceStore::open(&dir.join("evidence"), LIMITS).unwrap()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> =
        fs::read_dir(dir.join("evidence")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn evidence_is_there_after_a_restart_with_the_same_bytes_and_times() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    assert!(store.is_empty());
    let pieces = [proven(2, 5, 1), proven(1, 9, 1)];
    for (piece, seen) in pieces.iter().zip([70, 60]) {
        let key = EvidenceKey { seen: Timestamp(seen), id: piece.id };
        assert_eq!(store.keep(piece, Timestamp(seen)).unwrap(), Kept::New(key));
    }
    let before = store.page(None, 10);
    drop(store);
    let store = open(dir.path());
    assert_eq!(store.page(None, 10), before);
    assert_eq!(before.evidence.iter().map(|stored| stored.key.seen.0).collect::<Vec<_>>(), [60, 70]);
    for piece in &pieces {
        assert_eq!(store.bytes(&piece.id).unwrap().unwrap(), piece.bytes());
    }
    assert_eq!(store.bytes(&Hash([9; 32])).unwrap(), None);
    assert_eq!(store.keep(&pieces[0], Timestamp(99)).unwrap(), Kept::Known, "it knows them again");
    assert_eq!(store.len(), 2);
}

#[test]
fn the_first_proof_of_a_fault_is_enough() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let first = proven(1, 5, 1);
    assert!(matches!(store.keep(&first, Timestamp(1)).unwrap(), Kept::New(_)));
    let again = proven(1, 5, 2);
    assert_ne!(first.id, again.id);
    assert_eq!(store.would_keep(&again.fault), Some(Kept::Known));
    assert_eq!(store.keep(&again, Timestamp(2)).unwrap(), Kept::Known);
    assert!(store.would_keep(&proven(2, 5, 1).fault).is_none(), "another replica's is another fault");
    assert_eq!(files(dir.path()).len(), 1);
}

#[test]
fn a_faulty_replica_cannot_fill_the_disk_nor_push_out_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let keep = |replica, sequence| store.keep(&proven(replica, sequence, 1), Timestamp(sequence)).unwrap();
    for sequence in 1..=3 {
        assert!(matches!(keep(1, sequence), Kept::New(_)));
    }
    assert_eq!(keep(1, 4), Kept::Full);
    assert!(matches!((keep(2, 5), keep(3, 6)), (Kept::New(_), Kept::New(_))));
    assert_eq!(keep(2, 7), Kept::Full, "in all");
    let seen: Vec<u64> = store.page(None, 10).evidence.iter().map(|stored| stored.key.seen.0).collect();
    assert_eq!(seen, [1, 2, 3, 5, 6]);
    assert_eq!(files(dir.path()).len(), 5);
}

#[test]
fn pages_show_each_piece_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for sequence in 1..=3 {
        store.keep(&proven(1, sequence, 1), Timestamp(7)).unwrap();
    }
    let whole = store.page(None, 3);
    assert_eq!((whole.evidence.len(), whole.next), (3, None));
    let first = store.page(None, 2);
    let next = first.next.unwrap();
    assert_eq!(next.to_string().parse::<EvidenceKey>().unwrap(), next);
    let second = store.page(Some(next), 2);
    assert_eq!(second.next, None);
    assert_eq!([first.evidence, second.evidence].concat(), whole.evidence);
}

#[test]
fn only_what_this_program_wrote_is_a_key() {
    let good = EvidenceKey { seen: Timestamp(255), id: Hash([0xab; 32]) }.to_string();
    assert!(good.starts_with("00000000000000ff-abab"));
    let bad = [
        "",
        "-",
        &good[1..],
        &good.to_uppercase(),
        &good.replace('-', "+"),
        &good.replacen('0', "+", 1),
        &format!("{good}0"),
    ];
    for text in bad {
        assert!(text.parse::<EvidenceKey>().is_err(), "{text}");
    }
}

#[test]
fn what_a_crash_left_half_written_is_removed_and_what_was_altered_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for sequence in 1..=2 {
        store.keep(&proven(1, sequence, 1), Timestamp(sequence)).unwrap();
    }
    let good = files(dir.path());
    let half = good[0].with_extension(UNFINISHED);
    fs::write(&half, [1; 10]).unwrap();
    let mut altered = fs::read(&good[1]).unwrap();
    altered[30] ^= 1;
    fs::write(&good[1], &altered).unwrap();
    let altered_id = store.page(None, 2).evidence[1].key.id;
    assert!(matches!(store.bytes(&altered_id), Err(StoreError::Corrupt(_))), "it is not served");
    fs::write(dir.path().join("evidence/notes.txt"), "an operator's").unwrap();

    let store = open(dir.path());
    assert_eq!(store.len(), 1);
    assert!(!half.exists());
    assert_eq!(fs::read(&good[1]).unwrap(), altered, "for somebody to look at");
    assert!(dir.path().join("evidence/notes.txt").exists());
}

#[test]
fn a_disk_that_refuses_is_an_error_that_names_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    fs::remove_dir(dir.path().join("evidence")).unwrap();
    let error = store.keep(&proven(1, 1, 1), Timestamp(1)).unwrap_err();
    assert!(error.to_string().contains("cannot write") && error.to_string().contains("evidence"), "{error}");
    assert!(store.is_empty(), "nothing is told that is not on disk");
    fs::write(dir.path().join("evidence"), "no directory").unwrap();
    assert!(EvidenceStore::open(&dir.path().join("evidence"), LIMITS).is_err());
}

#[test]
fn what_is_no_file_of_evidence_is_left_alone_and_keeps_no_node_from_starting() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let Kept::New(key) = store.keep(&proven(1, 5, 1), Timestamp(1)).unwrap() else { panic!("not kept") };
    drop(store);
    let evidence = dir.path().join("evidence");
    let named =
        |at: u64| evidence.join(format!("{}.lmqevidence", EvidenceKey { seen: Timestamp(at), ..key }));
    fs::create_dir(evidence.join("notes.lmqevidence")).unwrap();
    fs::create_dir(named(2)).unwrap();
    std::os::unix::fs::symlink("/dev/zero", named(3)).unwrap();
    std::os::unix::fs::symlink("nowhere", named(4)).unwrap();
    // Sparse: as long as the disk is said to be, and nothing on it.
    File::create(named(5)).unwrap().set_len(1 << 40).unwrap();
    fs::create_dir(evidence.join("folder.new")).unwrap();
    fs::write(evidence.join("case-7.new"), "an operator's").unwrap();
    let unfinished = named(6).with_extension("new");
    fs::write(&unfinished, "half").unwrap();
    let before = files(dir.path()).len();
    let store = open(dir.path());
    assert_eq!(store.page(None, 10).evidence.iter().map(|stored| stored.key).collect::<Vec<_>>(), [key]);
    assert_eq!(files(dir.path()).len(), before - 1);
    assert!(!unfinished.exists(), "what a crash left of a write is removed");
}
