//! Which messages this node has accepted, and how far each is: the memory behind "PUBACK means it
//! is on disk", "the same ack again" and "a seq is never reused".
//!
//! For each client the last 257 seqs are known with their header hashes. A message is *pending*
//! from just before its log entry until its fate is final; the log is not cut below the oldest
//! pending one. The rest survives restarts in the store, written at each checkpoint before the log
//! is cut. Bounded by the clients on the ledger.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::FinalVerdict;
use crate::device::window::{SeqWindow, Verdict};
use crate::store::ledger::AdmissionRecord;
use crate::store::log::Position;
use crate::types::{ClientId, Hash, MessageSeq};

/// What this node knows of a message that it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Not seen before.
    New,
    /// Accepted and on its way: its ack comes when it is final.
    Pending,
    /// Final; this was its fate.
    Final(FinalVerdict),
    /// Accepted before the last restart, and final as far as this node is concerned: the ledger
    /// knows its fate.
    Settled,
    /// Another message was accepted under this seq.
    Reused,
    /// Below the window.
    TooOld,
}

#[derive(Debug, Default)]
struct Client {
    window: SeqWindow,
    /// What is known beyond the header, of the seqs in the window.
    fates: BTreeMap<MessageSeq, Fate>,
}

#[derive(Debug, Clone)]
struct Fate {
    items: u32,
    state: FateState,
}

#[derive(Debug, Clone)]
enum FateState {
    Pending { first_needed: Position },
    Final(FinalVerdict),
    Settled,
}

/// See the module. Shared by the workers of the Verifier, Ingress and the upkeep.
#[derive(Debug, Default)]
pub struct Admission {
    clients: Mutex<HashMap<ClientId, Arc<Mutex<Client>>>>,
    /// Positions below which the log must not be cut, with the message that each belongs to.
    pending: Mutex<BTreeSet<(Position, ClientId, MessageSeq)>>,
    /// Accepted since the last checkpoint of the store.
    changed: Mutex<Vec<AdmissionRecord>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds one of these; a poisoned one would still be consistent.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Admission {
    /// What survived in the store.
    pub fn restore(records: Vec<AdmissionRecord>) -> Self {
        let admission = Self::default();
        for AdmissionRecord { client, seq, header, items } in records {
            admission.put(&client, seq, header, Fate { items, state: FateState::Settled });
        }
        admission
    }

    /// What is known of a message. Changes nothing.
    pub fn judge(&self, client: &ClientId, seq: MessageSeq, header: &Hash) -> Standing {
        let Some(client) = lock(&self.clients).get(client).cloned() else { return Standing::New };
        let client = lock(&client);
        standing(&client, seq, header)
    }

    /// Takes a verified message as pending, if it is still new: of two that race for a seq, one
    /// gets [`Standing::New`]. `first_needed` is a position at or below that of its log entry to be.
    pub fn admit(
        &self,
        client: &ClientId,
        seq: MessageSeq,
        header: Hash,
        items: u32,
        first_needed: Position,
    ) -> Standing {
        let entry = self.entry(client);
        let mut held = lock(&entry);
        let standing = standing(&held, seq, &header);
        if standing == Standing::New {
            let state = FateState::Pending { first_needed };
            put(&mut held, seq, header, Fate { items, state });
            lock(&self.pending).insert((first_needed, client.clone(), seq));
            lock(&self.changed).push(AdmissionRecord { client: client.clone(), seq, header, items });
        }
        standing
    }

    /// Makes a message of the log pending again, whatever the store says: its fate was not known
    /// when the node stopped. `position` is that of its log entry.
    pub fn reopen(&self, client: &ClientId, seq: MessageSeq, header: Hash, items: u32, position: Position) {
        let state = FateState::Pending { first_needed: position };
        lock(&self.pending).insert((position, client.clone(), seq));
        self.put(client, seq, header, Fate { items, state });
    }

    /// Notes the fate of a message; true if it was pending, so that its client is told once.
    pub fn settle(&self, client: &ClientId, seq: MessageSeq, verdict: FinalVerdict) -> bool {
        let entry = self.entry(client);
        let mut held = lock(&entry);
        let Some(fate) = held.fates.get_mut(&seq) else { return false };
        let FateState::Pending { first_needed } = fate.state else { return false };
        fate.state = FateState::Final(verdict);
        lock(&self.pending).remove(&(first_needed, client.clone(), seq));
        true
    }

    /// How many items an accepted message has, if it is still known.
    pub fn items(&self, client: &ClientId, seq: MessageSeq) -> Option<u32> {
        let client = lock(&self.clients).get(client).cloned()?;
        let client = lock(&client);
        client.fates.get(&seq).map(|fate| fate.items)
    }

    /// The highest seq accepted from a client; 0 if none.
    pub fn highest(&self, client: &ClientId) -> MessageSeq {
        let held = lock(&self.clients).get(client).cloned();
        held.map_or(MessageSeq(0), |client| lock(&client).window.highest())
    }

    /// How many messages are accepted and not final.
    pub fn pending_count(&self) -> usize {
        lock(&self.pending).len()
    }

    /// The first log position that a pending message still needs; none if none is pending.
    pub fn needed_from(&self) -> Option<Position> {
        lock(&self.pending).first().map(|(position, ..)| *position)
    }

    /// What was accepted since the last call, for the store.
    pub fn take_changed(&self) -> Vec<AdmissionRecord> {
        std::mem::take(&mut *lock(&self.changed))
    }

    fn entry(&self, client: &ClientId) -> Arc<Mutex<Client>> {
        Arc::clone(lock(&self.clients).entry(client.clone()).or_default())
    }

    fn put(&self, client: &ClientId, seq: MessageSeq, header: Hash, fate: Fate) {
        put(&mut lock(&self.entry(client)), seq, header, fate);
    }
}

fn put(client: &mut Client, seq: MessageSeq, header: Hash, fate: Fate) {
    client.window.record(seq, header);
    client.fates.insert(seq, fate);
    let lowest = MessageSeq(client.window.highest().0.saturating_sub(crate::device::window::SEQ_WINDOW));
    // A pending fate is kept below the window, too: its client still waits for it.
    client.fates.retain(|seq, fate| *seq >= lowest || matches!(fate.state, FateState::Pending { .. }));
}

fn standing(client: &Client, seq: MessageSeq, header: &Hash) -> Standing {
    match client.window.judge(seq, header) {
        Verdict::New => Standing::New,
        Verdict::Reused => Standing::Reused,
        Verdict::TooOld => Standing::TooOld,
        Verdict::Seen => match client.fates.get(&seq).map(|fate| &fate.state) {
            Some(FateState::Pending { .. }) => Standing::Pending,
            Some(FateState::Final(verdict)) => Standing::Final(verdict.clone()),
            Some(FateState::Settled) | None => Standing::Settled,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client() -> ClientId {
        ClientId::new("devices/iot").unwrap()
    }

    fn admit(admission: &Admission, seq: u64, header: u8, at: u64) -> Standing {
        admission.admit(&client(), MessageSeq(seq), Hash([header; 32]), 2, Position(at))
    }

    #[test]
    fn a_message_is_new_once_then_pending_then_final() {
        let admission = Admission::default();
        assert_eq!(admit(&admission, 1, 1, 10), Standing::New);
        assert_eq!(admit(&admission, 1, 1, 11), Standing::Pending);
        assert_eq!(admit(&admission, 1, 2, 11), Standing::Reused);
        assert!(admission.settle(&client(), MessageSeq(1), FinalVerdict::NotWritten));
        assert!(!admission.settle(&client(), MessageSeq(1), FinalVerdict::NotWritten));
        assert_eq!(admit(&admission, 1, 1, 12), Standing::Final(FinalVerdict::NotWritten));
    }

    #[test]
    fn the_log_is_needed_from_the_oldest_pending_message_on() {
        let admission = Admission::default();
        assert_eq!(admission.needed_from(), None);
        for seq in 1..=3 {
            admit(&admission, seq, 1, 10 * seq);
        }
        admission.settle(&client(), MessageSeq(2), FinalVerdict::NotWritten);
        assert_eq!(admission.needed_from(), Some(Position(10)));
        admission.settle(&client(), MessageSeq(1), FinalVerdict::NotWritten);
        assert_eq!(admission.needed_from(), Some(Position(30)));
        assert_eq!(admission.pending_count(), 1);
    }

    #[test]
    fn what_the_store_kept_is_settled_and_never_accepted_twice() {
        let admission = Admission::default();
        admit(&admission, 7, 1, 1);
        let restored = Admission::restore(admission.take_changed());
        assert!(admission.take_changed().is_empty());
        assert_eq!(admit(&restored, 7, 1, 1), Standing::Settled);
        assert_eq!(admit(&restored, 7, 2, 1), Standing::Reused);
        assert_eq!(restored.highest(&client()), MessageSeq(7));
        assert_eq!(restored.items(&client(), MessageSeq(7)), Some(2));
    }

    #[test]
    fn a_message_of_the_log_is_pending_again_after_a_restart() {
        let admission = Admission::default();
        admit(&admission, 7, 1, 1);
        let restored = Admission::restore(admission.take_changed());
        restored.reopen(&client(), MessageSeq(7), Hash([1; 32]), 2, Position(1));
        assert_eq!(restored.needed_from(), Some(Position(1)));
        assert!(restored.settle(&client(), MessageSeq(7), FinalVerdict::NotWritten));
    }

    #[test]
    fn what_falls_below_the_window_is_too_old_and_forgotten() {
        let admission = Admission::default();
        for seq in 1..=300 {
            admit(&admission, seq, 1, seq);
            admission.settle(&client(), MessageSeq(seq), FinalVerdict::NotWritten);
        }
        assert_eq!(admit(&admission, 43, 1, 400), Standing::TooOld);
        assert_eq!(admission.items(&client(), MessageSeq(43)), None);
    }
}
