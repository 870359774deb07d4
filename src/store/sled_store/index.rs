//! The record index: which records a client, a device or a time has.
//!
//! Derived from the blocks alone, and of use with them only. The records of a message make runs of some
//! kilobytes, each under event time and place of its first record, with the place of its items in
//! the block's bytes; a key without value for the client and one for each device in the run find it by those. So a message of ten items costs three or four keys
//! rather than thirty, which would be most of what a node does. All keys end in the same
//! [`RecordKey`], so one cursor serves every query. The scan takes the narrowest prefix that the
//! query names, and checks the rest on each record.

use std::collections::BTreeSet;
use std::ops::Bound;

use bincode::{Decode, Encode};

use super::{failed, keys};
use crate::codec;
use crate::device::{self, Item};
use crate::ledger::{Block, Operation, WriteRequest, WrittenItem};
use crate::store::ledger::{MAX_PAGE_RECORDS, RecordKey, RecordPage, RecordQuery, StoreError, StoredRecord};
use crate::types::{Height, MessageSeq, Stream, Timestamp};

/// Records that one page looks at: a query that matches little goes on with the next page.
const MAX_SCANNED: usize = 10_000;
/// Bytes of items in a run, but for its last item: as with parts of blocks, values stay small.
const RUN_BYTES: usize = 4096;
/// An item has at most 1,536 bytes; stream and seq are small, and so are lengths and indexes.
const MAX_RUN_BYTES: usize = 64 * 1024;

/// Records of one message that follow each other, and where the block's bytes have them: the store holds
/// those already, and a page of small values is cheap to write again.
#[derive(Encode, Decode)]
struct Run {
    stream: Stream,
    seq: MessageSeq,
    /// Offset of the first item in the block's canonical bytes.
    from: u64,
    bytes: u32,
    count: u32,
}

/// Canonical bytes have 8 bytes of length before a list, and 4 that tell one variant from another.
const LIST_BYTES: usize = 8;
const VARIANT_BYTES: usize = 4;

/// Adds a block's records, each key by itself: a batch would hold up commits for long, and nothing
/// is gained by it. sled recovers a prefix of what was inserted, the height is raised last, and
/// every key is derived from the block: what a crash leaves half done is done again.
pub(super) fn add(db: &sled::Db, block: &Block) -> Result<(), StoreError> {
    let height = block.header.height;
    let mut at = codec::encoded_len(&block.header) + LIST_BYTES;
    for (operation, content) in (0_u32..).zip(&block.operations) {
        if let Operation::Write { request, written } = content {
            add_write(db, height, operation, at, request, written)?;
        }
        at += codec::encoded_len(content);
    }
    insert(db, keys::INDEXED, codec::encode(&height))
}

/// The records of the operation that begins at byte `at` of the block.
fn add_write(
    db: &sled::Db,
    height: Height,
    operation: u32,
    at: usize,
    request: &WriteRequest,
    written: &[u32],
) -> Result<(), StoreError> {
    let corrupt = || StoreError::Corrupt(format!("operation {operation} of block {height}"));
    let header = device::Header::decode(&request.header).map_err(|_| corrupt())?;
    let WriteRequest { node, client_key, header: header_bytes, signature, .. } = request;
    let before = codec::encoded_len(&(node, client_key, header_bytes, signature));
    let mut from = (at + VARIANT_BYTES + before + LIST_BYTES) as u64;
    let mut items = request.items.iter().peekable();
    let is_written = |item: &WrittenItem| written.binary_search(&item.index).is_ok();
    while let Some(first) = items.next() {
        let mut bytes = codec::encoded_len(first);
        if is_written(first) {
            let key = RecordKey { event_time: header.event_time, height, operation, item: first.index };
            let mut run = vec![first];
            while let Some(item) = items.next_if(|item| bytes < RUN_BYTES && is_written(item)) {
                bytes += codec::encoded_len(item);
                run.push(item);
            }
            let place = (from, u32::try_from(bytes).map_err(|_| corrupt())?);
            add_run(db, &header, key, &run, place).map_err(|error| error.unwrap_or_else(corrupt))?;
        }
        from += bytes as u64;
    }
    Ok(())
}

/// The run before the keys that name it, so that whoever finds them finds it. An error of `None`
/// is an item that cannot be read.
fn add_run(
    db: &sled::Db,
    header: &device::Header,
    key: RecordKey,
    items: &[&WrittenItem],
    (from, bytes): (u64, u32),
) -> Result<(), Option<StoreError>> {
    let (client, count) = (&header.client, u32::try_from(items.len()).map_err(|_| None)?);
    let run = Run { stream: header.stream.clone(), seq: header.seq, from, bytes, count };
    insert(db, &keys::record(&keys::all_records(), key), codec::encode(&run))?;
    insert(db, &keys::record(&keys::client_records(client), key), Vec::new())?;
    let mut devices = BTreeSet::new();
    for item in items {
        devices.insert(Item::decode(&item.bytes).map_err(|_| None)?.device);
    }
    for device in devices {
        insert(db, &keys::record(&keys::device_records(client, &device), key), Vec::new())?;
    }
    Ok(())
}

/// The items of a run, out of the parts of its block.
fn items(db: &sled::Db, height: Height, run: &Run) -> Result<Option<Vec<WrittenItem>>, StoreError> {
    let (Ok(from), bytes) = (usize::try_from(run.from), run.bytes as usize) else { return Ok(None) };
    let (first, last) = (from / keys::PART_BYTES, (from + bytes) / keys::PART_BYTES);
    if bytes > MAX_RUN_BYTES {
        return Ok(None);
    }
    let mut parts = Vec::with_capacity((last - first + 1) * keys::PART_BYTES);
    for part in first..=last {
        // The last one may not be there: the run ended with the one before.
        let Some(part) = db.get(keys::block_part(height, part)).map_err(failed)? else { break };
        parts.extend_from_slice(&part);
    }
    let start = from - first * keys::PART_BYTES;
    let Some(found) = parts.get(start..start + bytes) else { return Ok(None) };
    let list = [u64::from(run.count).to_be_bytes().as_slice(), found].concat();
    Ok(codec::decode::<{ MAX_RUN_BYTES + LIST_BYTES }, _>(&list).ok())
}

fn insert(db: &sled::Db, key: &[u8], value: Vec<u8>) -> Result<(), StoreError> {
    db.insert(key, value).map(|_| ()).map_err(failed)
}

/// One page of the answer.
pub(super) fn query(db: &sled::Db, query: &RecordQuery) -> Result<RecordPage, StoreError> {
    let prefix = narrowest_prefix(query);
    let Some(range) = range(db, &prefix, query)? else { return Ok(RecordPage::default()) };
    let limit = query.limit.clamp(1, MAX_PAGE_RECORDS);
    let mut page = RecordPage::default();
    let mut scanned = 0;
    for entry in db.range(range) {
        let (key, value) = entry.map_err(failed)?;
        let first = record_key(&key, prefix.len())?;
        let value = if prefix == keys::all_records() { value } else { run_value(db, first)? };
        let run: Run = codec::decode::<MAX_RUN_BYTES, _>(&value).map_err(|_| corrupt_record(first))?;
        let items = items(db, first.height, &run)?.ok_or_else(|| corrupt_record(first))?;
        for WrittenItem { index, bytes } in &items {
            let key = RecordKey { item: *index, ..first };
            if query.cursor.is_some_and(|cursor| key <= cursor) {
                continue;
            }
            if scanned == MAX_SCANNED || page.records.len() == limit {
                return Ok(page);
            }
            scanned += 1;
            let item = Item::decode(bytes).map_err(|_| corrupt_record(key))?;
            page.next = Some(key);
            if matches(query, &item) {
                page.records.push(StoredRecord { key, stream: run.stream.clone(), seq: run.seq, item });
            }
        }
    }
    page.next = None;
    Ok(page)
}

fn narrowest_prefix(query: &RecordQuery) -> Vec<u8> {
    match (&query.client, &query.device) {
        (Some(client), Some(device)) => keys::device_records(client, device),
        (Some(client), None) => keys::client_records(client),
        (None, _) => keys::all_records(),
    }
}

type KeyRange = (Bound<Vec<u8>>, Bound<Vec<u8>>);

/// The keys of runs between the query's times and from the run of its cursor on; `None` if there can
/// be none.
fn range(db: &sled::Db, prefix: &[u8], query: &RecordQuery) -> Result<Option<KeyRange>, StoreError> {
    let at = |time: Timestamp| {
        keys::record(prefix, RecordKey { event_time: time, height: Height(0), operation: 0, item: 0 })
    };
    let mut first = at(query.from.unwrap_or_default());
    if let Some(cursor) = query.cursor {
        first = first.max(run_of(db, prefix, cursor)?);
    }
    // Event times end with the year 9999, so nothing lies at or above this one.
    let end = at(query.to.unwrap_or(Timestamp(u64::MAX)));
    Ok((first < end).then_some((Bound::Included(first), Bound::Excluded(end))))
}

/// Where the run begins that may have records after this one: at a run of the same message, or here.
fn run_of(db: &sled::Db, prefix: &[u8], record: RecordKey) -> Result<Vec<u8>, StoreError> {
    let key = keys::record(prefix, record);
    let message = keys::record(prefix, RecordKey { item: 0, ..record });
    let before = db.range(message..=key.clone()).next_back().transpose().map_err(failed)?;
    Ok(before.map_or(key, |(run, _)| run.to_vec()))
}

fn record_key(key: &[u8], prefix: usize) -> Result<RecordKey, StoreError> {
    let bytes = key.get(prefix..).and_then(|bytes| bytes.try_into().ok());
    bytes
        .map(RecordKey::from_bytes)
        .ok_or_else(|| StoreError::Corrupt("a key of the record index".to_owned()))
}

/// The run that an entry by client or device names: stored before it.
fn run_value(db: &sled::Db, key: RecordKey) -> Result<sled::IVec, StoreError> {
    let value = db.get(keys::record(&keys::all_records(), key)).map_err(failed)?;
    value.ok_or_else(|| corrupt_record(key))
}

fn corrupt_record(key: RecordKey) -> StoreError {
    StoreError::Corrupt(format!("a record of block {}", key.height))
}

fn matches(query: &RecordQuery, item: &Item) -> bool {
    fn fits<T: PartialEq>(asked: Option<&T>, found: &T) -> bool {
        asked.is_none_or(|asked| asked == found)
    }
    fits(query.client.as_ref(), &item.client)
        && fits(query.device.as_ref(), &item.device)
        && fits(query.service.as_ref(), &item.service)
        && fits(query.num.as_ref(), &item.num)
}
