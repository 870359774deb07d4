//! Which messages this node has accepted, and how far each is: the memory behind "PUBACK means it
//! is on disk", "the same ack again" and "a seq is never reused".
//!
//! ```text
//! admit ──▶ pending, not logged ──logged──▶ pending ──settle──▶ final (told once)
//! log at the start ──▶ resume: pending      note_final: settled
//! ```
//!
//! For each client the last 257 seqs are known with their header hashes. A message is *pending*
//! from just before its log entry until its fate is final; the log is not cut below the oldest
//! pending one. The rest survives restarts in the store, written at each checkpoint before the log
//! is cut, and never before the message itself is on disk: what the store names and the log never
//! had would be acknowledged without being there.
//!
//! Bounded by the clients on the ledger, and by [`MAX_PENDING`] messages that are not final.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::FinalVerdict;
use crate::device::window::{SEQ_WINDOW, SeqWindow, Verdict};
use crate::store::ledger::AdmissionRecord;
use crate::store::log::Position;
use crate::types::{ClientId, Hash, MessageSeq};

/// Messages that are accepted and whose clients were not told their fate: seconds of the full rate
/// of one node. While there are so many, no further one is accepted, and clients wait.
pub const MAX_PENDING: usize = 32_768;

/// What this node knows of a message that it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Not seen before.
    New,
    /// Accepted and on its way: its ack comes when it is final.
    Pending {
        /// Where the log has it; none if it is still on its way there.
        logged: Option<Position>,
    },
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

/// A place among the messages that are not final; free again when it is dropped.
#[derive(Debug)]
pub struct Place(#[allow(dead_code, reason = "frees the place when dropped")] OwnedSemaphorePermit);

/// What is left of a pending message when its fate is known.
#[derive(Debug)]
pub struct SettledMessage {
    /// When it arrived, on the monotonic clock; none if that was before a restart.
    pub received: Option<Duration>,
    /// Its place, to be dropped when its client was told.
    pub place: Option<Place>,
}

#[derive(Debug, Default)]
struct Client {
    window: SeqWindow,
    /// What is known beyond the header, of the seqs in the window.
    fates: BTreeMap<MessageSeq, Fate>,
    /// What the store does not have yet.
    unsaved: BTreeSet<MessageSeq>,
}

#[derive(Debug)]
struct Fate {
    header: Hash,
    items: u32,
    state: FateState,
}

#[derive(Debug)]
enum FateState {
    Pending(Pending),
    Final(FinalVerdict),
    Settled,
}

#[derive(Debug)]
struct Pending {
    /// A position at or below that of its log entry.
    first_needed: Position,
    logged: Option<Position>,
    received: Option<Duration>,
    place: Option<Place>,
}

/// See the module. Shared by the workers of the Verifier, Storage, Ingress and the upkeep.
#[derive(Debug)]
pub struct Admission {
    clients: Mutex<HashMap<ClientId, Arc<Mutex<Client>>>>,
    /// Positions below which the log must not be cut, with the message that each belongs to.
    pending: Mutex<BTreeSet<(Position, ClientId, MessageSeq)>>,
    places: Arc<Semaphore>,
}

impl Default for Admission {
    fn default() -> Self {
        Self {
            clients: Mutex::default(),
            pending: Mutex::default(),
            places: Arc::new(Semaphore::new(MAX_PENDING)),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds one of these; a poisoned one would still be consistent.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Admission {
    /// What survived in the store.
    pub fn restore(records: Vec<AdmissionRecord>) -> Self {
        let admission = Self::default();
        for record in records {
            admission.put(&record, FateState::Settled);
        }
        admission
    }

    /// A message of the log whose client was told its fate; the store may not know of it yet.
    pub fn note_final(&self, record: &AdmissionRecord) {
        self.put(record, FateState::Settled);
        lock(&self.entry(&record.client)).unsaved.insert(record.seq);
    }

    /// Makes a message of the log pending again, whatever the store says: its fate was not known
    /// when the node stopped. `position` is that of its log entry.
    pub fn resume(&self, record: &AdmissionRecord, position: Position) {
        // The places were enough before the restart, so they are now.
        let place = Arc::clone(&self.places).try_acquire_owned().ok().map(Place);
        let pending = Pending { first_needed: position, logged: Some(position), received: None, place };
        lock(&self.pending).insert((position, record.client.clone(), record.seq));
        self.put(record, FateState::Pending(pending));
        lock(&self.entry(&record.client)).unsaved.insert(record.seq);
    }

    /// What is known of a message. Changes nothing.
    pub fn judge(&self, client: &ClientId, seq: MessageSeq, header: &Hash) -> Standing {
        let Some(client) = lock(&self.clients).get(client).cloned() else { return Standing::New };
        let client = lock(&client);
        standing(&client, seq, header)
    }

    /// Waits for a place among the messages that are not final.
    pub async fn place(&self) -> Option<Place> {
        Arc::clone(&self.places).acquire_owned().await.ok().map(Place)
    }

    /// Takes a verified message as pending, if it is still new: of two that race for a seq, one
    /// gets [`Standing::New`]. `first_needed` is a position at or below that of its log entry to be.
    pub fn admit(
        &self,
        record: &AdmissionRecord,
        first_needed: Position,
        received: Duration,
        place: Place,
    ) -> Standing {
        let entry = self.entry(&record.client);
        let mut held = lock(&entry);
        let standing = standing(&held, record.seq, &record.header);
        if standing == Standing::New {
            let pending =
                Pending { first_needed, logged: None, received: Some(received), place: Some(place) };
            put(&mut held, record, FateState::Pending(pending));
            lock(&self.pending).insert((first_needed, record.client.clone(), record.seq));
        }
        standing
    }

    /// A message that was admitted is in the log, at `position`. To be said before anybody can
    /// settle it, so that the store hears of it before the log is cut there.
    pub fn logged(&self, client: &ClientId, seq: MessageSeq, position: Position) {
        let entry = self.entry(client);
        let mut held = lock(&entry);
        held.unsaved.insert(seq);
        if let Some(Fate { state: FateState::Pending(pending), .. }) = held.fates.get_mut(&seq) {
            pending.logged = Some(position);
        }
    }

    /// Whether this very message is accepted and not final.
    pub fn is_pending(&self, client: &ClientId, seq: MessageSeq, header: &Hash) -> bool {
        let Some(client) = lock(&self.clients).get(client).cloned() else { return false };
        let client = lock(&client);
        let fate = client.fates.get(&seq).filter(|fate| fate.header == *header);
        fate.is_some_and(|fate| matches!(fate.state, FateState::Pending(_)))
    }

    /// Notes the fate of a message; something if it was pending, so that its client is told once.
    pub fn settle(
        &self,
        client: &ClientId,
        seq: MessageSeq,
        header: &Hash,
        verdict: FinalVerdict,
    ) -> Option<SettledMessage> {
        let entry = lock(&self.clients).get(client).cloned()?;
        let mut held = lock(&entry);
        let fate = held.fates.get_mut(&seq).filter(|fate| fate.header == *header)?;
        if !matches!(fate.state, FateState::Pending(_)) {
            return None;
        }
        match std::mem::replace(&mut fate.state, FateState::Final(verdict)) {
            FateState::Pending(Pending { first_needed, received, place, .. }) => {
                lock(&self.pending).remove(&(first_needed, client.clone(), seq));
                Some(SettledMessage { received, place })
            }
            FateState::Final(_) | FateState::Settled => None,
        }
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
        let clients: Vec<_> =
            lock(&self.clients).iter().map(|(id, client)| (id.clone(), Arc::clone(client))).collect();
        let mut changed = Vec::new();
        for (id, client) in clients {
            let mut client = lock(&client);
            let unsaved = std::mem::take(&mut client.unsaved);
            changed.extend(unsaved.into_iter().filter_map(|seq| {
                let Fate { header, items, .. } = client.fates.get(&seq)?;
                Some(AdmissionRecord { client: id.clone(), seq, header: *header, items: *items })
            }));
        }
        changed
    }

    fn entry(&self, client: &ClientId) -> Arc<Mutex<Client>> {
        let mut clients = lock(&self.clients);
        match clients.get(client) {
            Some(entry) => Arc::clone(entry),
            None => Arc::clone(clients.entry(client.clone()).or_default()),
        }
    }

    fn put(&self, record: &AdmissionRecord, state: FateState) {
        put(&mut lock(&self.entry(&record.client)), record, state);
    }
}

fn put(client: &mut Client, record: &AdmissionRecord, state: FateState) {
    let AdmissionRecord { seq, header, items, .. } = *record;
    client.window.record(seq, header);
    client.fates.insert(seq, Fate { header, items, state });
    let lowest = MessageSeq(client.window.highest().0.saturating_sub(SEQ_WINDOW));
    // A pending fate is kept below the window, too: its client still waits for it.
    let outside = client.fates.range(..lowest);
    let done = outside.filter(|(_, fate)| !matches!(fate.state, FateState::Pending(_)));
    for seq in done.map(|(seq, _)| *seq).collect::<Vec<_>>() {
        client.fates.remove(&seq);
    }
    client.unsaved = client.unsaved.split_off(&lowest);
}

fn standing(client: &Client, seq: MessageSeq, header: &Hash) -> Standing {
    match client.window.judge(seq, header) {
        Verdict::New => Standing::New,
        Verdict::Reused => Standing::Reused,
        Verdict::TooOld => Standing::TooOld,
        Verdict::Seen => match client.fates.get(&seq).map(|fate| &fate.state) {
            Some(FateState::Pending(pending)) => Standing::Pending { logged: pending.logged },
            Some(FateState::Final(verdict)) => Standing::Final(verdict.clone()),
            Some(FateState::Settled) | None => Standing::Settled,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOME_TIME: Duration = Duration::from_secs(7);

    fn client() -> ClientId {
        ClientId::new("devices/iot").unwrap()
    }

    fn record(seq: u64, header: u8) -> AdmissionRecord {
        AdmissionRecord { client: client(), seq: MessageSeq(seq), header: Hash([header; 32]), items: 2 }
    }

    fn admit(admission: &Admission, seq: u64, header: u8, at: u64) -> Standing {
        let place = Place(Arc::clone(&admission.places).try_acquire_owned().unwrap());
        let standing = admission.admit(&record(seq, header), Position(at), SOME_TIME, place);
        if standing == Standing::New {
            admission.logged(&client(), MessageSeq(seq), Position(at + 1));
        }
        standing
    }

    fn settle(admission: &Admission, seq: u64) -> Option<SettledMessage> {
        admission.settle(&client(), MessageSeq(seq), &Hash([1; 32]), FinalVerdict::NotWritten)
    }

    #[test]
    fn a_message_is_new_once_then_pending_then_final() {
        let admission = Admission::default();
        assert_eq!(admit(&admission, 1, 1, 10), Standing::New);
        assert_eq!(admit(&admission, 1, 1, 11), Standing::Pending { logged: Some(Position(11)) });
        assert_eq!(admit(&admission, 1, 2, 11), Standing::Reused);
        assert_eq!(settle(&admission, 1).unwrap().received, Some(SOME_TIME));
        assert!(settle(&admission, 1).is_none());
        assert_eq!(admit(&admission, 1, 1, 12), Standing::Final(FinalVerdict::NotWritten));
    }

    #[tokio::test]
    async fn a_repeated_message_is_known_not_to_be_in_the_log_yet() {
        let admission = Admission::default();
        let place = admission.place().await.unwrap();
        admission.admit(&record(1, 1), Position(10), SOME_TIME, place);
        let judged = admission.judge(&client(), MessageSeq(1), &Hash([1; 32]));
        assert_eq!(judged, Standing::Pending { logged: None });
        assert!(admission.take_changed().is_empty(), "the store hears only of what the log has");
        admission.logged(&client(), MessageSeq(1), Position(12));
        assert_eq!(admission.take_changed(), [record(1, 1)]);
    }

    #[test]
    fn the_fate_of_another_message_with_the_same_seq_settles_nothing() {
        let admission = Admission::default();
        admit(&admission, 1, 1, 10);
        let other = Hash([2; 32]);
        assert!(admission.settle(&client(), MessageSeq(1), &other, FinalVerdict::NotWritten).is_none());
        assert!(!admission.is_pending(&client(), MessageSeq(1), &other));
        assert!(admission.is_pending(&client(), MessageSeq(1), &Hash([1; 32])));
    }

    #[test]
    fn the_log_is_needed_from_the_oldest_pending_message_on() {
        let admission = Admission::default();
        assert_eq!(admission.needed_from(), None);
        for seq in 1..=3 {
            admit(&admission, seq, 1, 10 * seq);
        }
        settle(&admission, 2);
        assert_eq!(admission.needed_from(), Some(Position(10)));
        settle(&admission, 1);
        assert_eq!(admission.needed_from(), Some(Position(30)));
        assert_eq!(admission.pending_count(), 1);
    }

    #[test]
    fn a_place_is_free_again_when_the_client_was_told() {
        let admission = Admission::default();
        admit(&admission, 1, 1, 10);
        assert_eq!(admission.places.available_permits(), MAX_PENDING - 1);
        let settled = settle(&admission, 1);
        assert_eq!(admission.places.available_permits(), MAX_PENDING - 1);
        drop(settled);
        assert_eq!(admission.places.available_permits(), MAX_PENDING);
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
    }

    #[test]
    fn what_only_the_log_kept_is_known_and_told_to_the_store() {
        let restored = Admission::default();
        restored.note_final(&record(7, 1));
        restored.resume(&record(8, 1), Position(30));
        assert_eq!(admit(&restored, 7, 2, 1), Standing::Reused);
        assert_eq!(admit(&restored, 8, 1, 1), Standing::Pending { logged: Some(Position(30)) });
        assert_eq!(restored.take_changed(), [record(7, 1), record(8, 1)]);
    }

    #[test]
    fn a_message_of_the_log_is_pending_again_after_a_restart() {
        let admission = Admission::default();
        admit(&admission, 7, 1, 1);
        let restored = Admission::restore(admission.take_changed());
        restored.resume(&record(7, 1), Position(1));
        assert_eq!(restored.needed_from(), Some(Position(1)));
        assert_eq!(settle(&restored, 7).unwrap().received, None);
        assert_eq!(restored.places.available_permits(), MAX_PENDING);
    }

    #[test]
    fn what_falls_below_the_window_is_too_old_and_forgotten_unless_it_is_pending() {
        let admission = Admission::default();
        admit(&admission, 1, 1, 1);
        for seq in 2..=300 {
            admit(&admission, seq, 1, seq);
            settle(&admission, seq);
        }
        assert_eq!(admit(&admission, 43, 1, 400), Standing::TooOld);
        assert_eq!(admission.take_changed().len(), 257);
        assert!(settle(&admission, 43).is_none());
        assert!(settle(&admission, 1).is_some());
    }
}
