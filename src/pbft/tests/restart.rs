//! After a crash: what the log promises is kept, at whatever entry the log ends.

use std::collections::BTreeMap;

use super::*;
use crate::pbft::SetupError;

/// The first message for each slot and kind; panics if a later one differs.
type Promises = BTreeMap<(SeqNum, &'static str), Content>;

fn keep_promises(promises: &mut Promises, key: &SecretKey, effects: &[Effect]) {
    for content in sent_by(key, effects) {
        let slot = (content.sequence(), content.signature_kind().as_str());
        let first = promises.entry(slot).or_insert_with(|| content.clone());
        assert_eq!(*first, content, "a second message for {slot:?}");
    }
}

/// A backup (1) or primary (0) that went through batches 1 and 2 and into 3.
fn busy(at: usize) -> Bench {
    let mut t = Bench::with(4, at, |settings| settings.batch_max_requests = 1);
    if at == PRIMARY {
        for number in 1..=3 {
            let _ = t.ask(1, number);
            let digest = own_proposal(&t, number);
            for from in [1, 2] {
                let _ = t.hear(from, prepare(number, digest));
                let _ = t.hear(from, commit(number, digest));
            }
        }
    } else {
        for sequence in 1..=3 {
            let _ = t.commit_batch(sequence);
        }
    }
    for sequence in 1..=2 {
        let _ = t.step(Input::Executed(result(sequence, sequence)));
        for from in [2, 3] {
            let _ = t.hear(from, Content::Checkpoint(result(sequence, sequence)));
        }
    }
    t
}

fn own_proposal(t: &Bench, sequence: u64) -> Hash {
    t.replica.log.get(SeqNum(sequence), View(0)).unwrap().proposal.as_ref().unwrap().digest
}

/// The same node with the first `entries` entries of its log.
fn restarted(t: &Bench, entries: usize) -> Bench {
    let encoded = t.wal[..entries].iter().map(WalEntry::encode);
    let entries = encoded.map(|bytes| WalEntry::decode(&NETWORK, &bytes).unwrap()).collect();
    let restored = Restored { entries, ..Restored::new(genesis(), START) };
    let replica = Replica::new(t.replica.settings.clone(), restored).unwrap();
    Bench { keys: t.keys.clone(), replica, now: t.now, wal: Vec::new() }
}

/// What was sent when the log had `entries` entries.
fn promised(t: &Bench, entries: usize) -> Promises {
    let sent = t.wal[..entries].iter().filter_map(|entry| match entry {
        WalEntry::Sent(signed) => Some(signed.content.clone()),
        _ => None,
    });
    sent.map(|content| ((content.sequence(), content.signature_kind().as_str()), content)).collect()
}

#[test]
fn wherever_the_log_ends_nothing_is_signed_that_contradicts_it() {
    for at in [PRIMARY, 1] {
        let before = busy(at);
        for entries in 0..=before.wal.len() {
            let mut t = restarted(&before, entries);
            let mut promises = promised(&before, entries);
            let mut pending = t.wait(Duration::from_secs(3));
            // Other requests come in, and the primary speaks up again, about the same or anew.
            for number in [11, 12, 13] {
                pending.extend(t.ask(2, number).effects);
            }
            if at != PRIMARY {
                for sequence in 1..=3 {
                    let other = t.batch(&[t.request(2, 10 + sequence)], 2_000 + sequence);
                    pending.extend(t.propose(sequence, &other).effects);
                }
            }
            pending.extend(t.wait(Duration::from_secs(3)));
            keep_promises(&mut promises, &t.replica.settings.key, &pending);
        }
    }
}

#[test]
fn committed_batches_are_executed_again_in_order_with_their_bodies() {
    let before = busy(1);
    let mut t = restarted(&before, before.wal.len());
    let mut effects = t.step(Input::Tick).effects;
    let mut executed = Vec::new();
    for _ in 0..3 {
        let mut done = None;
        for effect in effects {
            if let Effect::Execute { sequence, batch, requests } = effect {
                let digests: Vec<Hash> = requests.iter().map(|request| request.digest()).collect();
                assert_eq!(digests, batch.requests);
                done = Some(sequence.0);
            }
        }
        let sequence = done.unwrap();
        executed.push(sequence);
        effects = t.step(Input::Executed(result(sequence, sequence))).effects;
    }
    assert_eq!(executed, [1, 2, 3]);
    assert_eq!(t.replica.status().stable, SeqNum(2), "certificates of the log count again");
}

#[test]
fn the_very_bytes_are_sent_again() {
    let before = busy(1);
    let logged: Vec<_> = before
        .wal
        .iter()
        .filter_map(|entry| match entry {
            WalEntry::Sent(signed) => Some(signed.clone()),
            _ => None,
        })
        .collect();
    let mut t = restarted(&before, before.wal.len());
    let again: Vec<_> = t
        .wait(Duration::from_millis(100))
        .into_iter()
        .filter_map(|effect| match effect {
            Effect::Broadcast(envelope) => Some(envelope),
            _ => None,
        })
        .collect();
    assert!(!again.is_empty());
    assert!(again.iter().all(|envelope| envelope.attempt != 0 && logged.contains(&envelope.signed)));
}

#[test]
fn a_log_that_lacks_a_promised_body_is_refused() {
    let before = busy(1);
    let mut entries = before.wal.clone();
    entries.retain(|entry| !matches!(entry, WalEntry::Body { sequence: SeqNum(3), .. }));
    let restored = Restored { entries, ..Restored::new(genesis(), START) };
    let refused = Replica::new(before.replica.settings.clone(), restored);
    assert_eq!(refused.err(), Some(SetupError::IncompleteLog(SeqNum(3))));
}

#[test]
fn state_without_its_checkpoint_in_the_log_is_signed_for_at_the_start() {
    let keys = keys(4);
    let restored = Restored { uncertified: vec![Height(5)], ..Restored::new(result(6, 5), START) };
    let mut replica = Replica::new(settings(&keys, 1), restored).unwrap();
    let now = Now { wall: START, monotonic: Duration::ZERO };
    let output = replica.step(now, Input::Tick);
    assert_eq!(sent(&output.effects)[0], Content::Checkpoint(result(6, 5)));
    assert!(matches!(&output.wal[..], [WalEntry::Sent(_)]));
}

#[test]
fn a_node_that_is_no_replica_and_bad_settings_are_refused() {
    let keys = keys(4);
    let start = || Restored::new(genesis(), START);
    let stranger = Settings { key: SecretKey::from_seed(&[77; 32]), ..settings(&keys, 0) };
    assert!(matches!(Replica::new(stranger, start()), Err(SetupError::NotAReplica(_))));
    let bad: [fn(&mut Settings); 4] = [
        |settings| settings.batch_max_requests = 0,
        |settings| settings.batch_max_bytes = usize::MAX,
        |settings| settings.inflight_max_bytes = 1,
        |settings| settings.resend_initial = Duration::ZERO,
    ];
    for change in bad {
        let mut settings = settings(&keys, 0);
        change(&mut settings);
        assert!(matches!(Replica::new(settings, start()), Err(SetupError::Setting { .. })));
    }
}
