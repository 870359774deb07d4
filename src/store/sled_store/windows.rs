//! The clients' windows in the store: the entries of a window, some sixty bytes each, stand together.
//!
//! ```text
//! state entry 04 ‖ client ‖ 00 ‖ seq  ──▶  w ‖ 04 ‖ client ‖ 00 ‖ seq / 16   (seq % 16, value) …
//!                                          s ‖ the entry's key           its value, if it is long
//! ```
//!
//! Each message of a client adds an entry and takes away an old one. As keys of their own these would
//! be most of what a commit costs: sled pays for each key, and hardly for its bytes. So sixteen numbers that
//! follow each other share a value, which a commit reads and writes once, however many of its messages
//! are in it. Values above [`LONG`] bytes stand alone, so that no shared one grows beyond a part of a block.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use bincode::{Decode, Encode};

use super::{failed, keys};
use crate::codec;
use crate::ledger::StateChange;
use crate::store::ledger::StoreError;

/// Numbers that share a value.
const TOGETHER: u64 = 16;
/// A longer value stands alone: a message of more than 1,600 items.
const LONG: usize = 256;
/// Sixteen of the longest, with their numbers and lengths.
const MAX_VALUE_BYTES: usize = 8 * 1024;

/// Key and value of an entry of the state.
type StateEntry = (Vec<u8>, Vec<u8>);

/// One number of a run: its place, and its value if that is not under a key of its own.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
struct Slot {
    place: u8,
    value: Option<Vec<u8>>,
}

/// Changes of the state on their way into a batch.
pub(super) struct Changes<'a> {
    db: &'a sled::Db,
    /// The runs that change, as they will be.
    runs: BTreeMap<Vec<u8>, Vec<Slot>>,
}

impl<'a> Changes<'a> {
    pub(super) fn new(db: &'a sled::Db) -> Self {
        Self { db, runs: BTreeMap::new() }
    }

    /// Takes changes up; a later one of a key takes the place of an earlier one.
    pub(super) fn put(&mut self, batch: &mut sled::Batch, changes: &[StateChange]) -> Result<(), StoreError> {
        for change in changes {
            let StateChange { key, value } = change;
            let value = value.as_deref();
            match change.window() {
                Some((window, number)) => self.put_numbered(batch, key, window, number, value)?,
                None => put_alone(batch, key, value),
            }
        }
        Ok(())
    }

    fn put_numbered(
        &mut self,
        batch: &mut sled::Batch,
        key: &[u8],
        window: &[u8],
        number: u64,
        value: Option<&[u8]>,
    ) -> Result<(), StoreError> {
        let run = match self.runs.entry(keys::window(window, number / TOGETHER)) {
            Entry::Occupied(run) => run.into_mut(),
            Entry::Vacant(place) => {
                let there = self.db.get(place.key()).map_err(failed)?;
                let there = there.map(|bytes| decode(&bytes)).transpose()?;
                place.insert(there.unwrap_or_default())
            }
        };
        let (place, is_long) = (place(number), value.is_some_and(|value| value.len() > LONG));
        let found = run.binary_search_by_key(&place, |slot| slot.place);
        if is_long || found.is_ok_and(|at| run[at].value.is_none()) {
            put_alone(batch, key, value.filter(|_| is_long));
        }
        let new = value.map(|value| Slot { place, value: (!is_long).then(|| value.to_vec()) });
        match (found, new) {
            (Ok(at), Some(new)) => run[at] = new,
            (Ok(at), None) => _ = run.remove(at),
            (Err(at), Some(new)) => run.insert(at, new),
            (Err(_), None) => {}
        }
        Ok(())
    }

    /// Puts the runs into the batch.
    pub(super) fn finish(self, batch: &mut sled::Batch) {
        for (key, run) in self.runs {
            if run.is_empty() {
                batch.remove(key);
            } else {
                batch.insert(key, codec::encode(&run));
            }
        }
    }
}

/// All entries that stand together, with the keys that they have in the state.
pub(super) fn load(db: &sled::Db) -> Result<Vec<StateEntry>, StoreError> {
    let mut entries = Vec::new();
    for run in db.scan_prefix(keys::WINDOWS) {
        let (key, bytes) = run.map_err(failed)?;
        let (window, run) = keys::window_of(&key).ok_or_else(corrupt)?;
        for Slot { place, value } in decode(&bytes)? {
            let Some(value) = value else { continue };
            let number = run.checked_mul(TOGETHER).ok_or_else(corrupt)? + u64::from(place);
            entries.push((StateChange::window_key(window, number), value));
        }
    }
    Ok(entries)
}

fn put_alone(batch: &mut sled::Batch, key: &[u8], value: Option<&[u8]>) {
    match value {
        Some(value) => batch.insert(keys::state(key), value),
        None => batch.remove(keys::state(key)),
    }
}

fn place(number: u64) -> u8 {
    u8::try_from(number % TOGETHER).unwrap_or_default()
}

fn decode(bytes: &[u8]) -> Result<Vec<Slot>, StoreError> {
    let run = codec::decode::<MAX_VALUE_BYTES, Vec<Slot>>(bytes).map_err(|_| corrupt())?;
    let is_whole =
        run.is_sorted_by(|a, b| a.place < b.place) && run.iter().all(|slot| u64::from(slot.place) < TOGETHER);
    if is_whole && !run.is_empty() { Ok(run) } else { Err(corrupt()) }
}

fn corrupt() -> StoreError {
    StoreError::Corrupt("a client's window".to_owned())
}
