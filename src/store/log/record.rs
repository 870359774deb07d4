//! Records: how one entry of the log lies in its segment. Integers are big-endian.
//!
//! ```text
//!  0  u32  header CRC: CRC-32, seeded, of bytes 4..29
//!  4  u32  payload CRC: CRC-32, seeded, of the payload
//!  8  u32  length of the payload
//! 12  u8   kind
//! 13  u64  position of this entry
//! 21  u64  durable: the position up to which all was on disk when this record was written
//! 29  ..   payload
//! ```
//!
//! `durable` tells a torn tail from damage. Records that were being written when the power went
//! may be missing in any order, and nobody was told of them; but a header whose `durable` reaches
//! a position proves that the record there was once safe on disk. The seed is random for each
//! segment, so that no payload can be made to look like a record.
//!
//! A log that is closed in order ends with an end mark: a header of kind 0 for the next position,
//! which says that everything before is durable. It is cut off when the log is opened again.

use super::{Entry, EntryKind, MAX_ENTRY_BYTES, Position};

/// Bytes before the payload.
pub(super) const HEADER_BYTES: usize = 29;
const END_MARK: u8 = 0;

/// A record's header, found intact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RecordHeader {
    pub payload_crc: u32,
    pub length: usize,
    /// What the entry is; none for an end mark.
    pub kind: Option<EntryKind>,
    pub position: Position,
    pub durable: Position,
}

impl RecordHeader {
    /// The header at the start of `bytes`, if an intact one is there.
    pub(super) fn parse(bytes: &[u8], seed: u32) -> Option<Self> {
        let (header, _) = bytes.split_first_chunk::<HEADER_BYTES>()?;
        let kind = if header[12] == END_MARK { None } else { Some(EntryKind::from_byte(header[12])?) };
        let length = usize::try_from(u32_at(header, 8)).ok()?;
        let durable = Position(u64_at(header, 21));
        let position = Position(u64_at(header, 13));
        let plausible = length <= MAX_ENTRY_BYTES && durable < position;
        if !plausible || u32_at(header, 0) != crc(seed, &header[4..]) {
            return None;
        }
        Some(Self { payload_crc: u32_at(header, 4), length, kind, position, durable })
    }

    /// The payload in `bytes`, which start with this header, if it is intact.
    pub(super) fn payload<'a>(&self, bytes: &'a [u8], seed: u32) -> Option<&'a [u8]> {
        let payload = bytes.get(HEADER_BYTES..HEADER_BYTES + self.length)?;
        (crc(seed, payload) == self.payload_crc).then_some(payload)
    }
}

/// Appends the records of adjacent entries to `out`, the first of them at `first`.
pub(super) fn encode_group(
    out: &mut Vec<u8>,
    entries: &[Entry],
    first: Position,
    durable: Position,
    seed: u32,
) {
    for (entry, position) in entries.iter().zip(first.0..) {
        encode(out, entry, Position(position), durable, seed);
    }
}

/// Appends the record of `entry` to `out`.
pub(super) fn encode(out: &mut Vec<u8>, entry: &Entry, position: Position, durable: Position, seed: u32) {
    encode_parts(out, entry.kind.to_byte(), &entry.bytes, position, durable, seed);
}

/// The end mark of a log whose last entry, at `last`, is durable.
pub(super) fn end_mark(last: Position, seed: u32) -> Vec<u8> {
    let mut mark = Vec::with_capacity(HEADER_BYTES);
    encode_parts(&mut mark, END_MARK, &[], last.next(), last, seed);
    mark
}

fn encode_parts(
    out: &mut Vec<u8>,
    kind: u8,
    payload: &[u8],
    position: Position,
    durable: Position,
    seed: u32,
) {
    let mut header = [0; HEADER_BYTES];
    header[4..8].copy_from_slice(&crc(seed, payload).to_be_bytes());
    // Entries are at most MAX_ENTRY_BYTES, which fits; checked when they are queued.
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    header[8..12].copy_from_slice(&length.to_be_bytes());
    header[12] = kind;
    header[13..21].copy_from_slice(&position.0.to_be_bytes());
    header[21..29].copy_from_slice(&durable.0.to_be_bytes());
    let header_crc = crc(seed, &header[4..]);
    header[..4].copy_from_slice(&header_crc.to_be_bytes());
    out.extend_from_slice(&header);
    out.extend_from_slice(payload);
}

/// CRC-32 of `bytes`, started with `seed`.
pub(super) fn crc(seed: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(bytes);
    hasher.finalize()
}

/// The big-endian integer at `at`; 0 if `bytes` end before.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |chunk| u32::from_be_bytes(*chunk))
}

/// The big-endian integer at `at`; 0 if `bytes` end before.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |chunk| u64::from_be_bytes(*chunk))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(seed: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        let entry = Entry { kind: EntryKind::Pbft, bytes: b"a vote".to_vec() };
        encode(&mut bytes, &entry, Position(7), Position(5), seed);
        bytes
    }

    #[test]
    fn a_record_survives_the_round_trip() {
        let bytes = record(3);
        let header = RecordHeader::parse(&bytes, 3).unwrap();
        assert_eq!(
            (header.kind, header.position, header.durable),
            (Some(EntryKind::Pbft), Position(7), Position(5))
        );
        assert_eq!(header.payload(&bytes, 3), Some(&b"a vote"[..]));
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let good = record(3);
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let found = RecordHeader::parse(&bytes, 3).and_then(|header| header.payload(&bytes, 3));
            assert_eq!(found, None, "bit {bit}");
        }
    }

    #[test]
    fn a_record_of_another_segment_is_refused() {
        assert_eq!(RecordHeader::parse(&record(3), 4), None);
    }
}
