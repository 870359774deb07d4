//! The record index: which records a client, a device's item or a time has.
//!
//! Derived from the blocks alone. A record lies once, under its event time and place in the
//! ledger; two more keys without value find it by client and by data item. All three end in the
//! same [`RecordKey`], so one cursor serves every query. The scan takes the narrowest prefix that
//! the query names, and checks the rest on each record.

use std::ops::Bound;

use bincode::{Decode, Encode};

use super::{failed, keys};
use crate::codec;
use crate::device::{self, Item};
use crate::ledger::{Block, Operation, WriteRequest};
use crate::store::ledger::{MAX_PAGE_RECORDS, RecordKey, RecordPage, RecordQuery, StoreError, StoredRecord};
use crate::types::{Height, MessageSeq, Stream, Timestamp};

/// Keys that go into one batch: sled holds up readers and commits for so long, some milliseconds.
const MAX_BATCH_KEYS: usize = 1024;
/// Index entries that one page looks at: a query that matches little goes on with the next page.
const MAX_SCANNED: usize = 10_000;
/// An item has at most 1,536 bytes; stream and seq are small.
const MAX_RECORD_BYTES: usize = 4096;

#[derive(Encode, Decode)]
struct RecordValue {
    stream: Stream,
    seq: MessageSeq,
    item: Vec<u8>,
}

/// Adds a block's records. What a crash leaves half done is done again: every key is derived from
/// the block, and the height is raised with the last of them.
pub(super) fn add(db: &sled::Db, block: &Block) -> Result<(), StoreError> {
    let height = block.header.height;
    let mut batch = Batch { db, batch: sled::Batch::default(), keys: 0 };
    for (operation, content) in (0_u32..).zip(&block.operations) {
        if let Operation::Write { request, written } = content {
            add_write(&mut batch, height, operation, request, written)?;
        }
    }
    batch.batch.insert(keys::INDEXED, codec::encode(&height));
    batch.apply()
}

struct Batch<'a> {
    db: &'a sled::Db,
    batch: sled::Batch,
    keys: usize,
}

impl Batch<'_> {
    fn insert(&mut self, key: Vec<u8>, value: Vec<u8>) -> Result<(), StoreError> {
        self.batch.insert(key, value);
        self.keys += 1;
        if self.keys < MAX_BATCH_KEYS { Ok(()) } else { self.apply() }
    }

    fn apply(&mut self) -> Result<(), StoreError> {
        self.keys = 0;
        self.db.apply_batch(std::mem::take(&mut self.batch)).map_err(failed)
    }
}

fn add_write(
    batch: &mut Batch<'_>,
    height: Height,
    operation: u32,
    request: &WriteRequest,
    written: &[u32],
) -> Result<(), StoreError> {
    let corrupt = || StoreError::Corrupt(format!("operation {operation} of block {height}"));
    let header = device::Header::decode(&request.header).map_err(|_| corrupt())?;
    for item in request.items.iter().filter(|item| written.binary_search(&item.index).is_ok()) {
        let decoded = Item::decode(&item.bytes).map_err(|_| corrupt())?;
        let key = RecordKey { event_time: decoded.event_time, height, operation, item: item.index };
        let value = RecordValue { stream: header.stream.clone(), seq: header.seq, item: item.bytes.clone() };
        batch.insert(keys::record(&keys::all_records(), key), codec::encode(&value))?;
        batch.insert(keys::record(&keys::client_records(&decoded.client), key), Vec::new())?;
        let name = keys::item_records(&decoded.client, &decoded.device, &decoded.service, decoded.num);
        batch.insert(keys::record(&name, key), Vec::new())?;
    }
    Ok(())
}

/// One page of the answer.
pub(super) fn query(db: &sled::Db, query: &RecordQuery) -> Result<RecordPage, StoreError> {
    let prefix = narrowest_prefix(query);
    let Some(range) = range(&prefix, query) else { return Ok(RecordPage::default()) };
    let limit = query.limit.clamp(1, MAX_PAGE_RECORDS);
    let mut page = RecordPage::default();
    for (scanned, entry) in db.range(range).enumerate() {
        let (key, value) = entry.map_err(failed)?;
        let key = record_key(&key, prefix.len())?;
        if scanned == MAX_SCANNED || page.records.len() == limit {
            return Ok(page);
        }
        let value = if prefix == keys::all_records() { value } else { record_value(db, key)? };
        let record = decode(key, &value)?;
        page.next = Some(key);
        if matches(query, &record) {
            page.records.push(record);
        }
    }
    page.next = None;
    Ok(page)
}

fn narrowest_prefix(query: &RecordQuery) -> Vec<u8> {
    match query {
        RecordQuery {
            client: Some(client),
            device: Some(device),
            service: Some(service),
            num: Some(num),
            ..
        } => keys::item_records(client, device, service, *num),
        RecordQuery { client: Some(client), .. } => keys::client_records(client),
        _ => keys::all_records(),
    }
}

type KeyRange = (Bound<Vec<u8>>, Bound<Vec<u8>>);

/// The keys between the query's times and after its cursor; `None` if there can be none.
fn range(prefix: &[u8], query: &RecordQuery) -> Option<KeyRange> {
    let at = |time: Timestamp| {
        keys::record(prefix, RecordKey { event_time: time, height: Height(0), operation: 0, item: 0 })
    };
    let from = Bound::Included(at(query.from.unwrap_or_default()));
    let start = match query.cursor.map(|cursor| keys::record(prefix, cursor)) {
        Some(cursor) if cursor >= at(query.from.unwrap_or_default()) => Bound::Excluded(cursor),
        _ => from,
    };
    // Event times end with the year 9999, so nothing lies at or above this one.
    let end = at(query.to.unwrap_or(Timestamp(u64::MAX)));
    let (Bound::Included(first) | Bound::Excluded(first)) = &start else { return None };
    (*first < end).then_some((start, Bound::Excluded(end)))
}

fn record_key(key: &[u8], prefix: usize) -> Result<RecordKey, StoreError> {
    let bytes = key.get(prefix..).and_then(|bytes| bytes.try_into().ok());
    bytes
        .map(RecordKey::from_bytes)
        .ok_or_else(|| StoreError::Corrupt("a key of the record index".to_owned()))
}

/// The record that an entry by client or item names: stored before it, or with it.
fn record_value(db: &sled::Db, key: RecordKey) -> Result<sled::IVec, StoreError> {
    let value = db.get(keys::record(&keys::all_records(), key)).map_err(failed)?;
    value.ok_or_else(|| corrupt_record(key))
}

fn decode(key: RecordKey, value: &[u8]) -> Result<StoredRecord, StoreError> {
    let value: RecordValue = codec::decode::<MAX_RECORD_BYTES, _>(value).map_err(|_| corrupt_record(key))?;
    let item = Item::decode(&value.item).map_err(|_| corrupt_record(key))?;
    Ok(StoredRecord { key, stream: value.stream, seq: value.seq, item })
}

fn corrupt_record(key: RecordKey) -> StoreError {
    StoreError::Corrupt(format!("a record of block {}", key.height))
}

fn matches(query: &RecordQuery, record: &StoredRecord) -> bool {
    fn fits<T: PartialEq>(asked: Option<&T>, found: &T) -> bool {
        asked.is_none_or(|asked| asked == found)
    }
    let item = &record.item;
    fits(query.client.as_ref(), &item.client)
        && fits(query.device.as_ref(), &item.device)
        && fits(query.service.as_ref(), &item.service)
        && fits(query.num.as_ref(), &item.num)
}
