//! The record index: which records a client, a device or a time has.
//!
//! Derived from the blocks alone, and of use with them only. The records of a message make runs of some
//! kilobytes, each under event time and place of its first record, with the place of its items in
//! the block's bytes. Each run stands in three kinds of lists: that of all, of its client, and of each device in
//! it. What an insert into sled costs hardly depends on its size, but it splits a page with every eighth key;
//! so a list is kept in chunks of up to [`CHUNK`] runs, each under the key of its first, and the runs of
//! many blocks are added to a list at once. So ten thousand items a second cost some hundred inserts
//! rather than thirty thousand, which would be most of what a node does. All keys end in the same
//! [`RecordKey`], so one cursor serves every query. The scan takes the narrowest list that the
//! query names, and checks the rest on each record.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
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
/// Runs in a chunk of a list: about 2 KiB. Each change writes it again.
const CHUNK: usize = 32;
/// A stream's name has at most 64 bytes, the rest of a run is of fixed length.
const MAX_CHUNK_BYTES: usize = 16 * 1024;

/// Records of one message that follow each other, and where the block's bytes have them: the store holds
/// those already, and a page of small values is cheap to write again.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
struct Run {
    /// The place of the first one in the order of queries.
    key: [u8; RecordKey::LEN],
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

/// Runs to be added, by the prefix of their list; ordered by their keys.
type Lists = BTreeMap<Vec<u8>, Runs>;

/// Runs by their keys.
type Runs = BTreeMap<[u8; RecordKey::LEN], Run>;

/// What a list becomes: its new chunks, in order.
#[derive(Debug, Default)]
struct Changes {
    chunks: Vec<(Vec<u8>, Vec<u8>)>,
    /// Runs go from one chunk to another.
    splits: bool,
}

/// Adds the records of blocks, each list by itself: a batch of all would hold up commits for long, and
/// nothing is gained by it. sled recovers a prefix of what was inserted, the height is raised last, and
/// every run is derived from its block and stands in a list once: what a crash leaves half done is done again.
pub(super) fn add<'a>(db: &sled::Db, blocks: impl IntoIterator<Item = &'a Block>) -> Result<(), StoreError> {
    let (mut lists, mut last) = (Lists::new(), None);
    for block in blocks {
        let height = block.header.height;
        let mut at = codec::encoded_len(&block.header) + LIST_BYTES;
        for (operation, content) in (0_u32..).zip(&block.operations) {
            if let Operation::Write { request, written } = content {
                add_write(&mut lists, height, operation, at, request, written)
                    .ok_or_else(|| StoreError::Corrupt(format!("operation {operation} of block {height}")))?;
            }
            at += codec::encoded_len(content);
        }
        last = Some(height);
    }
    for (prefix, runs) in lists {
        add_to_list(db, &prefix, runs)?;
    }
    match last {
        Some(height) => db.insert(keys::INDEXED, codec::encode(&height)).map(|_| ()).map_err(failed),
        None => Ok(()),
    }
}

/// The records of the operation that begins at byte `at` of the block; none if something cannot be read
/// that execution has read before.
fn add_write(
    lists: &mut Lists,
    height: Height,
    operation: u32,
    at: usize,
    request: &WriteRequest,
    written: &[u32],
) -> Option<()> {
    let header = device::Header::decode(&request.header).ok()?;
    let WriteRequest { node, client_key, header: header_bytes, signature, .. } = request;
    let before = codec::encoded_len(&(node, client_key, header_bytes, signature));
    let mut from = (at + VARIANT_BYTES + before + LIST_BYTES) as u64;
    let mut items = request.items.iter().peekable();
    let is_written = |item: &WrittenItem| written.binary_search(&item.index).is_ok();
    while let Some(first) = items.next() {
        let mut bytes = codec::encoded_len(first);
        if is_written(first) {
            let key = RecordKey { event_time: header.event_time, height, operation, item: first.index };
            let (mut count, mut devices) = (1, BTreeSet::from([Item::device_of(&first.bytes)?]));
            while let Some(item) = items.next_if(|item| bytes < RUN_BYTES && is_written(item)) {
                bytes += codec::encoded_len(item);
                count += 1;
                devices.insert(Item::device_of(&item.bytes)?);
            }
            let (key, stream) = (key.to_bytes(), header.stream.clone());
            let run = Run { key, stream, seq: header.seq, from, bytes: u32::try_from(bytes).ok()?, count };
            let named = devices.iter().map(|device| keys::device_records(&header.client, device));
            for prefix in named.chain([keys::client_records(&header.client), keys::all_records()]) {
                lists.entry(prefix).or_default().insert(key, run.clone());
            }
        }
        from += bytes as u64;
    }
    Some(())
}

/// Adds runs to the chunks that they belong to: each to the last one that begins at or before it.
///
/// sled writes a batch to the disk at once and by itself, and an insert with many others. So what comes in order
/// is inserted chunk by chunk: if a crash leaves the later ones out, they are derived again. What splits a chunk
/// goes in one batch, so that after a crash no run is in two.
fn add_to_list(db: &sled::Db, prefix: &[u8], runs: Runs) -> Result<(), StoreError> {
    let Changes { chunks, splits } = changes_of_list(db, prefix, runs)?;
    if splits {
        let mut batch = sled::Batch::default();
        for (key, value) in chunks {
            batch.insert(key, value);
        }
        return db.apply_batch(batch).map_err(failed);
    }
    for (key, value) in chunks {
        db.insert(key, value).map_err(failed)?;
    }
    Ok(())
}

fn changes_of_list(db: &sled::Db, prefix: &[u8], mut runs: Runs) -> Result<Changes, StoreError> {
    let mut changes = Changes::default();
    // No chunk is written twice: all that follow begin with `later` or after it.
    while let Some((first, _)) = runs.first_key_value() {
        let first = list_key(prefix, first);
        let chunk = db.range(prefix..=first.as_slice()).next_back().transpose().map_err(failed)?;
        let after: KeyRange = (Bound::Excluded(first), Bound::Excluded(list_end(prefix)));
        let next = db.range(after).next();
        let next = next.transpose().map_err(failed)?;
        let next = next.map(|(key, _)| run_key(&key, prefix.len())).transpose()?;
        let later = next.map_or_else(BTreeMap::new, |next| runs.split_off(&next));
        let there = chunk.map(|(_, chunk)| decode_chunk(&chunk)).transpose()?.unwrap_or_default();
        put_chunks(prefix, there, runs, &mut changes);
        runs = later;
    }
    Ok(changes)
}

/// A chunk with what comes to it; if that is too much for one, several. What comes in order fills each chunk; else
/// all have room for more.
fn put_chunks(prefix: &[u8], there: Vec<Run>, new: Runs, changes: &mut Changes) {
    let in_order =
        there.last().is_none_or(|last| new.first_key_value().is_some_and(|(key, _)| *key > last.key));
    let mut runs: BTreeMap<_, _> = there.into_iter().map(|run| (run.key, run)).collect();
    runs.extend(new);
    let runs: Vec<Run> = runs.into_values().collect();
    let each = if in_order { CHUNK } else { runs.len().div_ceil(runs.len().div_ceil(CHUNK).max(1)).max(1) };
    for chunk in runs.chunks(each) {
        if let Some(first) = chunk.first() {
            changes.chunks.push((list_key(prefix, &first.key), codec::encode(&chunk)));
        }
    }
    changes.splits |= !in_order && runs.len() > each;
}

fn decode_chunk(bytes: &[u8]) -> Result<Vec<Run>, StoreError> {
    codec::decode::<MAX_CHUNK_BYTES, _>(bytes).map_err(|_| corrupt_list())
}

/// Above every key of the list: event times end with the year 9999.
fn list_end(prefix: &[u8]) -> Vec<u8> {
    list_key(prefix, &[0xff; RecordKey::LEN])
}

fn list_key(prefix: &[u8], key: &[u8; RecordKey::LEN]) -> Vec<u8> {
    [prefix, key].concat()
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

/// One page of the answer.
pub(super) fn query(db: &sled::Db, query: &RecordQuery) -> Result<RecordPage, StoreError> {
    let prefix = narrowest_prefix(query);
    let Some(range) = range(db, &prefix, query)? else { return Ok(RecordPage::default()) };
    page_of(db, query, db.range(range).map(|entry| entry.map(|(_, chunk)| chunk)))
}

/// A page of the records in `chunks`. Blocks may be indexed meanwhile: a chunk that was read before it was split
/// is followed by its own second half. So what comes again is passed over, as what was on earlier pages is.
fn page_of(
    db: &sled::Db,
    query: &RecordQuery,
    chunks: impl Iterator<Item = sled::Result<sled::IVec>>,
) -> Result<RecordPage, StoreError> {
    let limit = query.limit.clamp(1, MAX_PAGE_RECORDS);
    let mut page = RecordPage::default();
    let mut scanned = 0;
    for chunk in chunks {
        let runs = decode_chunk(&chunk.map_err(failed)?)?;
        for (at, run) in runs.iter().enumerate() {
            let seen = page.next.max(query.cursor);
            let first = RecordKey::from_bytes(&run.key);
            let is_too_early = query.from.is_some_and(|from| first.event_time < from);
            // All records of a run come before the next one.
            let is_seen = runs.get(at + 1).is_some_and(|next| seen >= Some(RecordKey::from_bytes(&next.key)));
            if is_too_early || is_seen {
                continue;
            }
            if query.to.is_some_and(|to| first.event_time >= to) {
                page.next = None;
                return Ok(page);
            }
            let items = items(db, first.height, run)?.ok_or_else(|| corrupt_record(first))?;
            for WrittenItem { index, bytes } in &items {
                let key = RecordKey { item: *index, ..first };
                if seen.is_some_and(|seen| key <= seen) {
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

/// The keys of the chunks that may have runs between the query's times, from the run of its cursor on;
/// `None` if there can be none.
fn range(db: &sled::Db, prefix: &[u8], query: &RecordQuery) -> Result<Option<KeyRange>, StoreError> {
    let at = |time: Timestamp| {
        keys::record(prefix, RecordKey { event_time: time, height: Height(0), operation: 0, item: 0 })
    };
    let mut first = at(query.from.unwrap_or_default());
    if let Some(cursor) = query.cursor {
        first = first.max(keys::record(prefix, cursor));
    }
    // Event times end with the year 9999, so nothing lies at or above this one.
    let end = at(query.to.unwrap_or(Timestamp(u64::MAX)));
    if first >= end {
        return Ok(None);
    }
    let chunk = db.range(prefix..=first.as_slice()).next_back().transpose().map_err(failed)?;
    let first = chunk.map_or(first, |(key, _)| key.to_vec());
    Ok(Some((Bound::Included(first), Bound::Excluded(end))))
}

fn run_key(key: &[u8], prefix: usize) -> Result<[u8; RecordKey::LEN], StoreError> {
    key.get(prefix..).and_then(|bytes| bytes.try_into().ok()).ok_or_else(corrupt_list)
}

fn corrupt_list() -> StoreError {
    StoreError::Corrupt("a list of the record index".to_owned())
}

fn corrupt_record(key: RecordKey) -> StoreError {
    StoreError::Corrupt(format!("a record of block {}", key.height))
}

fn matches(query: &RecordQuery, item: &Item) -> bool {
    fn fits<T, U: PartialEq<T>>(asked: Option<&T>, found: &U) -> bool {
        asked.is_none_or(|asked| found == asked)
    }
    fits(query.client.as_ref(), &item.client)
        && fits(query.device.as_ref(), &item.device)
        && fits(query.service.as_ref(), &item.service)
        && fits(query.num.as_ref(), &item.num)
}
