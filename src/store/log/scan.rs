//! What of a log's bytes is good, what is a torn tail, and what is damage: the decisions of
//! `recovery.rs`, without its files. `image.rs` takes them for logs that have none.
//!
//! Segments are shown in their order. In each, records are read as long as they are whole and next
//! in number; what follows them must be nothing, or the end mark, or what a crash may leave of a
//! write that nobody was told of.

use std::path::Path;

use super::error::LogError;
use super::record::{self, HEADER_BYTES as RECORD_HEADER_BYTES, RecordHeader};
use super::segment::{HEADER_BYTES, Segment};
use super::{EntryKind, Position};
use crate::types::NetworkId;

/// A walk over the segments of a log.
pub(super) struct Scan<'a> {
    network: &'a NetworkId,
    /// The last good entry of the segments so far; none before the first.
    last: Option<Position>,
}

/// What a segment is worth.
pub(super) struct Scanned {
    /// It, with the length of what is good.
    pub segment: Segment,
    /// Where its good records end; what follows is to be cut off.
    pub end: usize,
    /// Whether an unfinished write follows them.
    pub is_torn: bool,
}

impl<'a> Scan<'a> {
    pub(super) const fn new(network: &'a NetworkId) -> Self {
        Self { network, last: None }
    }

    /// The position of the last good entry; of a log without segments, [`Position::NONE`].
    pub(super) fn last(&self) -> Position {
        self.last.unwrap_or(Position::NONE)
    }

    /// Looks at the next segment, whose name says that it starts at `first`.
    pub(super) fn segment(
        &mut self,
        path: &Path,
        first: Position,
        bytes: &[u8],
        is_last: bool,
    ) -> Result<Scanned, LogError> {
        if self.last.is_some_and(|last| first != last.next()) {
            let detail = "entries between the previous segment and this one are missing";
            return Err(LogError::damaged(path, 0, detail));
        }
        let mut segment = Segment::parse(path, first, bytes, self.network)?;
        let good = good_records(&segment, bytes)?;
        let in_order = good.end == bytes.len() || is_last && ends_in_order(&segment, bytes, &good);
        if !in_order {
            check_torn(&segment, bytes, &good, is_last)?;
        }
        segment.bytes = good.end as u64;
        self.last = Some(good.last);
        Ok(Scanned { segment, end: good.end, is_torn: !in_order })
    }
}

struct Good {
    last: Position,
    end: usize,
}

/// How far the records of a segment are good.
fn good_records(segment: &Segment, bytes: &[u8]) -> Result<Good, LogError> {
    let mut good = Good { last: Position(segment.first.0.saturating_sub(1)), end: HEADER_BYTES };
    while let Some((_, header, _)) = entry_at(bytes, good.end, segment.seed) {
        if header.position != good.last.next() {
            return Err(LogError::damaged(&segment.path, good.end, "the entry here is not the next one"));
        }
        good.last = header.position;
        good.end += RECORD_HEADER_BYTES + header.length;
    }
    Ok(good)
}

/// The entry whose record begins at `at`, if it is whole.
pub(super) fn entry_at(bytes: &[u8], at: usize, seed: u32) -> Option<(EntryKind, RecordHeader, &[u8])> {
    let bytes = bytes.get(at..)?;
    let header = RecordHeader::parse(bytes, seed)?;
    Some((header.kind?, header, header.payload(bytes, seed)?))
}

/// Whether nothing but the end mark follows the good records.
fn ends_in_order(segment: &Segment, bytes: &[u8], good: &Good) -> bool {
    bytes[good.end..] == record::end_mark(good.last, segment.seed)
}

/// What follows the good records is a torn tail; anything else is an error.
fn check_torn(segment: &Segment, bytes: &[u8], good: &Good, is_last: bool) -> Result<(), LogError> {
    let damaged = |detail| Err(LogError::damaged(&segment.path, good.end, detail));
    if !is_last {
        return damaged("an entry is damaged, and a later segment shows that it was safe on disk");
    }
    let promised = good.last.next();
    let proves = |at: usize| {
        RecordHeader::parse(&bytes[at..], segment.seed).is_some_and(|header| header.durable >= promised)
    };
    if (good.end..bytes.len()).any(proves) {
        return damaged("an entry is damaged, and a later one shows that it was safe on disk");
    }
    Ok(())
}
