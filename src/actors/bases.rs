//! Bases: what the values of data items are judged against, on this node.
//!
//! ```text
//! judge ──▶ open: submitted by this node, not indexed yet ─┐
//!                 │ indexed, or rejected                    ├─▶ the newer of the two is the base
//! index ──▶ recent (a cache) ──▶ LedgerStore::last_written ─┘
//! ```
//!
//! A value is judged against the newest that this node *submitted* or that its ledger has. What is
//! submitted stays in `open` until the index has it, or the ledger has refused it; nothing of that is
//! ever thrown away, so a node takes no further message while too much is open. The cache of what
//! the ledger has may forget anything at any time: then the store is asked, and gives the same.
//!
//! The number of distinct data items of each client is held to the quota of the policies in force, so
//! that invented names cannot grow the indexes without end.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::{FinalMessage, FinalVerdict};
use crate::device::{self, Item};
use crate::ledger::{Block, Operation, Policies};
use crate::metrics::QueueGauge;
use crate::policy::{Base, BaseRef, Decision, ItemDecision, ItemKey, LastWritten, WritePolicy};
use crate::store::{LedgerStore, StoreError};
use crate::types::{ClientId, Height, MessageSeq};

/// Sizes of the memory; see the settings of `[policy]`.
#[derive(Debug, Clone, Copy)]
pub struct BasesLimits {
    /// Last written values that are kept in memory; about 300 bytes each.
    pub cached_items: usize,
    /// Submitted values that are not indexed: while there are more, no message is accepted.
    pub open_items: usize,
}

/// A client has as many distinct data items as it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the client may have {quota} distinct data items and would have {items}; use the names it has, or have an admin \
     raise its quota with `ledgermq policy set`"
)]
pub struct TooManyItems {
    /// Its quota.
    pub quota: u32,
    /// How many it would have.
    pub items: u64,
}

/// See the module. Policy judges, the upkeep says what is indexed, Finals what became of messages.
pub struct Bases {
    store: Arc<dyn LedgerStore>,
    open_limit: usize,
    known: Mutex<Known>,
    room: Notify,
    gauge: QueueGauge,
}

#[derive(Debug)]
struct Known {
    open: HashMap<Arc<ItemKey>, Vec<LastWritten>>,
    open_count: usize,
    /// The open items of each message.
    messages: HashMap<(ClientId, MessageSeq), Vec<Arc<ItemKey>>>,
    /// Open items that the ledger had no value of when they were submitted.
    firsts: HashMap<ClientId, HashSet<Arc<ItemKey>>>,
    recent: Recent,
    /// The clients that have, or had, items in any of these: blocks have those of all other nodes'
    /// clients besides, which need not be read here.
    clients: HashSet<ClientId>,
    indexed: Height,
}

/// The last written values that were used last, in two generations: when the younger has half of what
/// may be kept, the older is forgotten. What is used moves to the younger.
#[derive(Debug, Default)]
struct Recent {
    younger: HashMap<ItemKey, LastWritten>,
    older: HashMap<ItemKey, LastWritten>,
    limit: usize,
}

impl Recent {
    fn get(&mut self, key: &ItemKey) -> Option<&LastWritten> {
        if let Some((key, last)) = self.older.remove_entry(key) {
            self.put(key, last);
        }
        self.younger.get(key)
    }

    fn put(&mut self, key: ItemKey, last: LastWritten) {
        if self.younger.len() >= (self.limit / 2).max(1) {
            self.older = std::mem::take(&mut self.younger);
        }
        self.younger.insert(key, last);
    }

    /// The ledger has a value; it counts if it is newer than the one that is known.
    fn update(&mut self, key: &ItemKey, last: &LastWritten) {
        let known = match self.younger.get_mut(key) {
            Some(known) => known,
            None => match self.older.get_mut(key) {
                Some(known) => known,
                None => return,
            },
        };
        if last.is_newer_than(known) {
            known.clone_from(last);
        }
    }
}

impl Bases {
    /// What the store has, and nothing open. `gauge` shows how much is.
    pub fn new(store: Arc<dyn LedgerStore>, limits: BasesLimits, gauge: QueueGauge) -> Self {
        let known = Known {
            open: HashMap::new(),
            open_count: 0,
            messages: HashMap::new(),
            firsts: HashMap::new(),
            recent: Recent { limit: limits.cached_items, ..Recent::default() },
            clients: HashSet::new(),
            indexed: store.indexed_height(),
        };
        Self { store, open_limit: limits.open_items, known: Mutex::new(known), room: Notify::new(), gauge }
    }

    /// Waits until there is room for the items of another message.
    pub async fn room(&self) {
        loop {
            let announced = self.room.notified();
            tokio::pin!(announced);
            announced.as_mut().enable();
            if self.known().open_count < self.open_limit {
                return;
            }
            self.gauge.full.inc();
            announced.await;
        }
    }

    /// Judges a message; what is to be written is open from here on.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn judge(
        &self,
        policies: &Policies,
        stream: &str,
        seq: MessageSeq,
        items: &[Item],
    ) -> Result<Decision, StoreError> {
        let mut known = self.known();
        let decide = |item: &Item| {
            let policy = policies.set.policy(stream, item);
            let last = if policy.needs_base() { known.last(&*self.store, &item.into())? } else { None };
            Ok(ItemDecision::make(policy, last.as_ref(), item.event_time, &item.value))
        };
        let items_decided = items.iter().map(decide).collect::<Result<_, StoreError>>()?;
        let decision = Decision { policies: policies.version, items: items_decided };
        self.submit(&mut known, seq, items, &decision)?;
        Ok(decision)
    }

    /// Takes up a message of before a restart, with the decision that was made then.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn resume(&self, seq: MessageSeq, items: &[Item], decision: &Decision) -> Result<(), StoreError> {
        self.submit(&mut self.known(), seq, items, decision)
    }

    /// Whether a client may have the items of a message besides those that it has.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn check_quota(
        &self,
        policies: &Policies,
        stream: &str,
        items: &[Item],
    ) -> Result<Result<(), TooManyItems>, StoreError> {
        let Some(client) = items.first().map(|item| &item.client) else { return Ok(Ok(())) };
        let quota = policies.set.quota(client);
        let mut known = self.known();
        // An item that was indexed since it was submitted may count twice here, and then is counted
        // once below.
        let open = known.firsts.get(client).map_or(0, HashSet::len);
        let count = self.store.item_count(client)?;
        if count + (open + items.len()) as u64 <= u64::from(quota) {
            return Ok(Ok(()));
        }
        let mut new = HashSet::new();
        for key in known.firsts.get(client).into_iter().flatten() {
            if self.store.last_written(key)?.is_none() {
                new.insert(ItemKey::clone(key));
            }
        }
        let before = new.len();
        for item in items.iter().filter(|item| policies.set.policy(stream, item) != WritePolicy::Never) {
            let key = ItemKey::from(item);
            if known.last(&*self.store, &key)?.is_none() {
                new.insert(key);
            }
        }
        // Read again: what was indexed in between is in this number and not in `new`.
        let count = self.store.item_count(client)?;
        let items = count + new.len() as u64;
        let fits = items <= u64::from(quota) || new.len() == before;
        Ok(if fits { Ok(()) } else { Err(TooManyItems { quota, items }) })
    }

    /// A block of this node's ledger is in the index of the store.
    pub fn indexed(&self, block: &Block) {
        let mut known = self.known();
        for operation in &block.operations {
            let Operation::Write { request, written } = operation else { continue };
            // Execution has read both before.
            let Ok(header) = device::Header::decode(&request.header) else { continue };
            if !known.clients.contains(&header.client) {
                continue;
            }
            for item in request.items.iter().filter(|item| written.binary_search(&item.index).is_ok()) {
                let Ok(decoded) = Item::decode_again(&item.bytes) else { continue };
                let at = BaseRef { seq: header.seq, index: item.index };
                known.indexed(at, decoded);
            }
            known.forget_closed(&header.client, header.seq);
        }
        known.indexed = known.indexed.max(block.header.height);
        self.changed(&known);
    }

    /// The fate of a message is known: what was refused never counts, and what is indexed is in the
    /// store.
    pub fn settled(&self, message: &FinalMessage) {
        let mut known = self.known();
        let is_over = match &message.verdict {
            FinalVerdict::Written { height, .. } => *height <= known.indexed,
            FinalVerdict::Rejected(_) | FinalVerdict::NotWritten => true,
        };
        if is_over {
            known.forget(&message.client, message.seq);
            self.changed(&known);
        }
    }

    /// How many submitted values are not indexed.
    pub fn open_count(&self) -> usize {
        self.known().open_count
    }

    fn submit(
        &self,
        known: &mut Known,
        seq: MessageSeq,
        items: &[Item],
        decision: &Decision,
    ) -> Result<(), StoreError> {
        let mut keys = Vec::new();
        for index in decision.picked() {
            let Some(item) = items.get(index as usize) else { continue };
            let key = Arc::new(ItemKey::from(item));
            let base = Base { event_time: item.event_time, value: item.value.clone() };
            let value = LastWritten { at: BaseRef { seq, index }, base };
            match known.on_ledger(&*self.store, &key)? {
                // It can be no base. Maybe the ledger has it by way of another node, and then no block that is
                // still to be indexed closes it.
                Some(last) if !value.is_newer_than(last) => continue,
                Some(_) => {}
                None => {
                    // One that is open already is there already.
                    known.firsts.entry(key.client.clone()).or_default().insert(Arc::clone(&key));
                }
            }
            known.open.entry(Arc::clone(&key)).or_default().push(value);
            keys.push(key);
        }
        if let (Some(item), false) = (items.first(), keys.is_empty()) {
            known.note_client(&item.client);
            known.open_count += keys.len();
            known.messages.entry((item.client.clone(), seq)).or_default().extend(keys);
            self.changed(known);
        }
        Ok(())
    }

    fn changed(&self, known: &Known) {
        self.gauge.length.set(i64::try_from(known.open_count).unwrap_or(i64::MAX));
        if known.open_count < self.open_limit {
            self.room.notify_waiters();
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Nothing panics while it is held; what it holds would still be consistent.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// The newest value that is submitted or on the ledger.
    fn last(&mut self, store: &dyn LedgerStore, key: &ItemKey) -> Result<Option<LastWritten>, StoreError> {
        let last = self.on_ledger(store, key)?.cloned();
        let open = self.open.get(key).into_iter().flatten();
        Ok(last
            .iter()
            .chain(open)
            .reduce(|one, other| if other.is_newer_than(one) { other } else { one })
            .cloned())
    }

    /// The newest value that is on the ledger.
    fn on_ledger(
        &mut self,
        store: &dyn LedgerStore,
        key: &ItemKey,
    ) -> Result<Option<&LastWritten>, StoreError> {
        if self.recent.get(key).is_none()
            && let Some(last) = store.last_written(key)?
        {
            self.recent.put(key.clone(), last);
            self.note_client(&key.client);
        }
        Ok(self.recent.get(key))
    }

    fn note_client(&mut self, client: &ClientId) {
        if !self.clients.contains(client) {
            self.clients.insert(client.clone());
        }
    }

    fn indexed(&mut self, at: BaseRef, item: Item) {
        let key = ItemKey::from(&item);
        let last = LastWritten { at, base: Base { event_time: item.event_time, value: item.value } };
        self.recent.update(&key, &last);
        self.close(&key, at.seq);
    }

    /// An item is not open any more.
    fn close(&mut self, key: &ItemKey, seq: MessageSeq) {
        let Some(values) = self.open.get_mut(key) else { return };
        let before = values.len();
        values.retain(|value| value.at.seq != seq);
        self.open_count -= before - values.len();
        if !values.is_empty() {
            return;
        }
        self.open.remove(key);
        if let Some(firsts) = self.firsts.get_mut(&key.client) {
            firsts.remove(key);
            if firsts.is_empty() {
                self.firsts.remove(&key.client);
            }
        }
    }

    fn forget(&mut self, client: &ClientId, seq: MessageSeq) {
        for key in self.messages.remove(&(client.clone(), seq)).unwrap_or_default() {
            self.close(&key, seq);
        }
    }

    /// Forgets a message none of whose items is open any more.
    fn forget_closed(&mut self, client: &ClientId, seq: MessageSeq) {
        let message = (client.clone(), seq);
        let Some(keys) = self.messages.get(&message) else { return };
        let is_open = |key: &Arc<ItemKey>| {
            self.open.get(key).is_some_and(|values| values.iter().any(|value| value.at.seq == seq))
        };
        if !keys.iter().any(is_open) {
            self.messages.remove(&message);
        }
    }
}

#[cfg(test)]
#[path = "bases_tests.rs"]
mod tests;
