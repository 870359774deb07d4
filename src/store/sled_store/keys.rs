//! Keys: one tree, one letter for each kind, big-endian numbers, so that everything that belongs
//! together is adjacent and one batch can change all kinds atomically.
//!
//! ```text
//! v                                      format version, u32
//! n                                      network id
//! d                                      number of the last save, u64
//! h                                      head
//! s ‖ key                                an entry of the state
//! w ‖ 04 ‖ client ‖ 00 ‖ seq / 16, u64   entries of the client's window: for each, seq % 16 and value
//! H ‖ height u64                         header
//! B ‖ height u64 ‖ part u32              a part of the block's bytes, at most 4 KiB
//! C ‖ height u64                         certificate
//! a ‖ client ‖ 00 ‖ seq mod 512, u16     an admission
//! x                                      height up to which records are indexed
//! t ‖ record key                         runs of records from this one on: key, stream, seq, place in the block
//! k ‖ hash of client ‖ record key        the same, of runs with records of the client
//! i ‖ hash of device ‖ record key        the same, of runs with records of the client's device
//! y                                      height up to which last written values are here
//! l ‖ hash of item                       the last written value of a data item: seq, index, item
//! q ‖ client                             number of the client's distinct data items, u64
//! ```

use crate::crypto::blake3_plain;
use crate::policy::ItemKey;
use crate::store::ledger::RecordKey;
use crate::types::{ClientId, Height, MessageSeq};

/// A value's largest part. sled keeps up to 17 values in one page, and pages of more than 128 KiB
/// in files of their own, which it never syncs; parts of this size stay below that.
pub(super) const PART_BYTES: usize = 4096;

/// Admissions of one client have so many slots: more than the window, so that whatever is in the
/// window has a slot of its own.
const ADMISSION_SLOTS: u64 = 512;
const _: () = assert!(ADMISSION_SLOTS > crate::store::ledger::ADMISSION_WINDOW);

pub(super) const VERSION: &[u8] = b"v";
pub(super) const NETWORK: &[u8] = b"n";
pub(super) const SAVES: &[u8] = b"d";
pub(super) const HEAD: &[u8] = b"h";
pub(super) const STATE: &[u8] = b"s";
pub(super) const WINDOWS: &[u8] = b"w";
pub(super) const CERTIFICATES: &[u8] = b"C";
pub(super) const ADMISSIONS: &[u8] = b"a";
pub(super) const INDEXED: &[u8] = b"x";
pub(super) const LAST_WRITTEN_UP_TO: &[u8] = b"y";

pub(super) fn state(key: &[u8]) -> Vec<u8> {
    [STATE, key].concat()
}

/// The key of a run of a window, which is what the keys of its entries begin with.
pub(super) fn window(window: &[u8], run: u64) -> Vec<u8> {
    [WINDOWS, window, &run.to_be_bytes()].concat()
}

/// The window and the run of such a key.
pub(super) fn window_of(key: &[u8]) -> Option<(&[u8], u64)> {
    let (window, run) = key.strip_prefix(WINDOWS)?.split_last_chunk()?;
    Some((window, u64::from_be_bytes(*run)))
}

pub(super) fn header(height: Height) -> [u8; 9] {
    at_height(b'H', height)
}

pub(super) fn certificate(height: Height) -> [u8; 9] {
    at_height(CERTIFICATES[0], height)
}

/// The prefix of all parts of a block.
pub(super) fn block(height: Height) -> [u8; 9] {
    at_height(b'B', height)
}

pub(super) fn block_part(height: Height, part: usize) -> [u8; 13] {
    let mut key = [0; 13];
    key[..9].copy_from_slice(&block(height));
    // 2^32 parts of 4 KiB are far beyond any block.
    key[9..].copy_from_slice(&u32::try_from(part).unwrap_or(u32::MAX).to_be_bytes());
    key
}

fn at_height(kind: u8, height: Height) -> [u8; 9] {
    let mut key = [kind; 9];
    key[1..].copy_from_slice(&height.0.to_be_bytes());
    key
}

/// The height in a key of [`certificate`].
pub(super) fn height_of(key: &[u8]) -> Option<Height> {
    key.get(1..)?.try_into().ok().map(|bytes| Height(u64::from_be_bytes(bytes)))
}

/// A later seq takes the slot of the one 512 below it, which nobody asks for any more.
pub(super) fn admission(client: &ClientId, seq: MessageSeq) -> Vec<u8> {
    let slot = u16::try_from(seq.0 % ADMISSION_SLOTS).unwrap_or_default();
    [ADMISSIONS, client.as_str().as_bytes(), &[0], &slot.to_be_bytes()].concat()
}

/// The prefix of all records.
pub(super) fn all_records() -> Vec<u8> {
    vec![b't']
}

/// The prefix of a client's records.
pub(super) fn client_records(client: &ClientId) -> Vec<u8> {
    name_prefix(b'k', &[client.as_str().as_bytes()])
}

/// The prefix of the records of a client's device.
pub(super) fn device_records(client: &ClientId, device: &str) -> Vec<u8> {
    name_prefix(b'i', &[client.as_str().as_bytes(), device.as_bytes()])
}

/// The key of a data item's last written value.
pub(super) fn last_written(item: &ItemKey) -> Vec<u8> {
    let ItemKey { client, device, service, num } = item;
    let num = num.to_be_bytes();
    name_prefix(b'l', &[client.as_str().as_bytes(), device.as_bytes(), service.as_bytes(), &num])
}

/// The key of the number of a client's data items.
pub(super) fn item_count(client: &ClientId) -> Vec<u8> {
    [b"q", client.as_str().as_bytes()].concat()
}

/// Names are hashed, so that keys stay short; each with its length, so that no two lists of names
/// give the same bytes.
fn name_prefix(kind: u8, names: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for name in names {
        bytes.extend_from_slice(&(name.len() as u64).to_be_bytes());
        bytes.extend_from_slice(name);
    }
    let mut prefix = vec![kind];
    prefix.extend_from_slice(&blake3_plain(&bytes).as_bytes()[..16]);
    prefix
}

/// The key of a record under one of the three prefixes.
pub(super) fn record(prefix: &[u8], key: RecordKey) -> Vec<u8> {
    [prefix, &key.to_bytes()].concat()
}
