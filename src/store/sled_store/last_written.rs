//! The last written value of each data item, and how many data items each client has.
//!
//! Derived from the blocks alone, behind the record index. An item that is written ten times a second
//! would cost ten keys a second, so changes gather in memory and only the newest of each item goes to
//! the database, at the latest after [`MAX_BLOCKS`] blocks or [`MAX_ITEMS`] items. `y` says up to which
//! block that is done: what a crash takes from memory is read from the blocks again at the next start.
//!
//! "Newest" is by event time, then by seq, then by the place in the message: the order in which items
//! were executed does not matter, so every node has the same last value.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Mutex;

use bincode::{Decode, Encode};

use super::{failed, keys, lock};
use crate::codec;
use crate::device::{self, Item};
use crate::ledger::{Block, Operation, WriteRequest};
use crate::policy::{Base, BaseRef, ItemKey, LastWritten};
use crate::store::ledger::StoreError;
use crate::types::{ClientId, Height, MessageSeq};

/// So many blocks are read again at a start, at most.
const MAX_BLOCKS: u64 = 256;
/// So many changed items are in memory, at most, and those of one block.
const MAX_ITEMS: usize = 4_096;
/// Items in one batch of the database: readers wait for no longer.
const TOGETHER: usize = 64;
/// An item has at most 1,536 bytes; seq, index and length are small.
const MAX_VALUE_BYTES: usize = 2_048;

/// A value of the database: where the item stands, and its bytes.
#[derive(Debug, Clone, Encode, Decode)]
struct Stored {
    seq: MessageSeq,
    index: u32,
    item: Vec<u8>,
}

/// An item that changed since it was last put into the database.
#[derive(Debug)]
struct Changed {
    last: LastWritten,
    /// Its bytes.
    item: Vec<u8>,
    /// The database does not know it at all.
    is_new: bool,
}

#[derive(Debug, Default)]
struct Changes {
    items: HashMap<ItemKey, Changed>,
    /// How many of them are new, for each client.
    new: HashMap<ClientId, u64>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct LastWrittenItems {
    changes: Mutex<Changes>,
    /// Up to which block the database knows all; held while it is written.
    saved: Mutex<Height>,
}

impl LastWrittenItems {
    /// What the database has.
    pub(super) fn open(saved: Height) -> Self {
        Self { saved: Mutex::new(saved), ..Self::default() }
    }

    /// Up to which block the database knows all.
    pub(super) fn saved(&self) -> Height {
        *lock(&self.saved)
    }

    /// Takes up what a block writes; blocks come in order, each at least once.
    pub(super) fn add(&self, db: &sled::Db, block: &Block) -> Result<(), StoreError> {
        let height = block.header.height;
        for (operation, content) in (0_u32..).zip(&block.operations) {
            let Operation::Write { request, written } = content else { continue };
            self.add_write(db, request, written)?
                .ok_or_else(|| StoreError::Corrupt(format!("operation {operation} of block {height}")))?;
        }
        let due = lock(&self.changes).items.len() >= MAX_ITEMS || height.0 >= self.saved().0 + MAX_BLOCKS;
        if due { self.save(db, height) } else { Ok(()) }
    }

    /// None if something cannot be read that execution has read before.
    fn add_write(
        &self,
        db: &sled::Db,
        write: &WriteRequest,
        written: &[u32],
    ) -> Result<Option<()>, StoreError> {
        let Ok(header) = device::Header::decode(&write.header) else { return Ok(None) };
        let mut changes = lock(&self.changes);
        for item in write.items.iter().filter(|item| written.binary_search(&item.index).is_ok()) {
            let at = BaseRef { seq: header.seq, index: item.index };
            let Some((key, last)) = read_item(at, &item.bytes) else { return Ok(None) };
            changes.note(db, key, last, &item.bytes)?;
        }
        Ok(Some(()))
    }

    /// The last written value of an item.
    pub(super) fn get(&self, db: &sled::Db, item: &ItemKey) -> Result<Option<LastWritten>, StoreError> {
        if let Some(changed) = lock(&self.changes).items.get(item) {
            return Ok(Some(changed.last.clone()));
        }
        // Whatever leaves `changes` is in the database before.
        read(db, item)
    }

    /// How many distinct data items of a client were written.
    pub(super) fn count(&self, db: &sled::Db, client: &ClientId) -> Result<u64, StoreError> {
        // Held, so that no item is counted twice, or not at all, on its way to the database.
        let changes = lock(&self.changes);
        Ok(read_count(db, client)? + changes.new.get(client).copied().unwrap_or_default())
    }

    /// Puts all changes into the database; they hold all blocks up to `height`.
    fn save(&self, db: &sled::Db, height: Height) -> Result<(), StoreError> {
        let mut saved = lock(&self.saved);
        while lock(&self.changes).save_some(db)? {}
        db.insert(keys::LAST_WRITTEN_UP_TO, codec::encode(&height)).map_err(failed)?;
        *saved = height;
        Ok(())
    }
}

impl Changes {
    fn note(
        &mut self,
        db: &sled::Db,
        key: ItemKey,
        last: LastWritten,
        item: &[u8],
    ) -> Result<(), StoreError> {
        match self.items.entry(key) {
            Entry::Occupied(mut there) => {
                let there = there.get_mut();
                if last.is_newer_than(&there.last) {
                    there.last = last;
                    // In place: most items are written again long before they go to the database.
                    there.item.clear();
                    there.item.extend_from_slice(item);
                }
            }
            Entry::Vacant(place) => match read(db, place.key())? {
                Some(known) if !last.is_newer_than(&known) => {}
                known => {
                    let is_new = known.is_none();
                    if is_new {
                        *self.new.entry(place.key().client.clone()).or_default() += 1;
                    }
                    place.insert(Changed { last, item: item.to_vec(), is_new });
                }
            },
        }
        Ok(())
    }

    /// Moves some to the database; false if there are no more. New items and their number change
    /// together, also across a crash: one batch is applied wholly or not at all.
    fn save_some(&mut self, db: &sled::Db) -> Result<bool, StoreError> {
        let some: Vec<ItemKey> = self.items.keys().take(TOGETHER).cloned().collect();
        if some.is_empty() {
            return Ok(false);
        }
        let (mut batch, mut more) = (sled::Batch::default(), HashMap::<&ClientId, u64>::new());
        for key in &some {
            let Some(Changed { last, item, is_new }) = self.items.get(key) else { continue };
            let stored = Stored { seq: last.at.seq, index: last.at.index, item: item.clone() };
            batch.insert(keys::last_written(key), codec::encode(&stored));
            if *is_new {
                *more.entry(&key.client).or_default() += 1;
            }
        }
        for (client, more) in &more {
            batch.insert(keys::item_count(client), codec::encode(&(read_count(db, client)? + more)));
        }
        db.apply_batch(batch).map_err(failed)?;
        for (client, saved) in more {
            if let Some(new) = self.new.get_mut(client) {
                *new = new.saturating_sub(saved);
            }
        }
        self.new.retain(|_, new| *new > 0);
        for key in &some {
            self.items.remove(key);
        }
        Ok(true)
    }
}

/// What an item's bytes, which stand at that place, say.
fn read_item(at: BaseRef, bytes: &[u8]) -> Option<(ItemKey, LastWritten)> {
    let Item { client, device, service, num, event_time, value, .. } = Item::decode_again(bytes).ok()?;
    Some((ItemKey { client, device, service, num }, LastWritten { at, base: Base { event_time, value } }))
}

fn read(db: &sled::Db, item: &ItemKey) -> Result<Option<LastWritten>, StoreError> {
    let corrupt = || StoreError::Corrupt(format!("the last written value of an item of {}", item.client));
    let Some(bytes) = db.get(keys::last_written(item)).map_err(failed)? else { return Ok(None) };
    let stored: Stored = codec::decode::<MAX_VALUE_BYTES, _>(&bytes).map_err(|_| corrupt())?;
    let at = BaseRef { seq: stored.seq, index: stored.index };
    let (key, last) = read_item(at, &stored.item).ok_or_else(corrupt)?;
    if key == *item { Ok(Some(last)) } else { Err(corrupt()) }
}

fn read_count(db: &sled::Db, client: &ClientId) -> Result<u64, StoreError> {
    let Some(bytes) = db.get(keys::item_count(client)).map_err(failed)? else { return Ok(0) };
    codec::decode::<8, u64>(&bytes)
        .map_err(|_| StoreError::Corrupt(format!("the number of items of {client}")))
}
