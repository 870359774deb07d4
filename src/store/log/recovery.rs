//! Opening a log that is there: what is good, what is a torn tail, what is damage.
//!
//! ```text
//! segment 1          segment 2                        last segment
//! [r1 r2 r3 r4] ───▶ [r5 r6 r7] ───▶ ... ───▶ [r8 r9 ▒▒▒▒▒▒]
//!  must be whole      must be whole           good │  └ a header in here with durable ≥ 10? damage
//!                                                  │    none? torn: cut off here
//! ```
//!
//! Everything in a segment that has a successor was synced before the successor was made, so
//! anything wrong there is damage. In the last one, whatever follows the good records is a torn
//! tail unless some header in it proves that the first missing entry was once on disk. After an
//! orderly stop the end mark proves that for all entries; after a crash, damage to the very last
//! group of records cannot be told from a torn write.

use std::fs::{self, File};
use std::path::Path;

use super::error::LogError;
use super::record::{self, HEADER_BYTES as RECORD_HEADER_BYTES, RecordHeader};
use super::segment::{self, HEADER_BYTES, Segment};
use super::{Entry, EntryKind, Position};
use crate::types::NetworkId;

/// The log as it was found.
pub(super) struct Recovered {
    /// Its segments, ascending; none if the log is new.
    pub segments: Vec<Segment>,
    /// The position of the last good entry; of a new log, [`Position::NONE`].
    pub last: Position,
}

/// Checks every record in `dir` and cuts a torn tail. What remains is durable.
pub(super) fn recover(dir: &Path, network: &NetworkId) -> Result<Recovered, LogError> {
    let files = segment::list(dir)?;
    let mut segments: Vec<Segment> = Vec::with_capacity(files.len());
    let mut last = files.first().map_or(Position::NONE, |(first, _)| Position(first.0.saturating_sub(1)));
    for (at, (first, path)) in files.iter().enumerate() {
        if *first != last.next() {
            return Err(LogError::damaged(
                path,
                0,
                "entries between the previous segment and this one are missing",
            ));
        }
        let bytes = read(path)?;
        let mut segment = Segment::parse(path, *first, &bytes, network)?;
        let good = good_records(&segment, &bytes)?;
        if good.end < bytes.len() {
            let is_last = at + 1 == files.len();
            if !(is_last && ends_in_order(&segment, &bytes, &good)) {
                check_torn(&segment, &bytes, &good, is_last)?;
                warn_of_torn_tail(path, bytes.len(), good.end);
            }
            cut_tail(path, good.end)?;
        }
        segment.bytes = good.end as u64;
        last = good.last;
        segments.push(segment);
    }
    if let Some(segment) = segments.last() {
        // Read back is not the same as on disk: the last process may have died before its sync.
        File::open(&segment.path)
            .and_then(|file| file.sync_all())
            .map_err(LogError::io("sync the log segment", &segment.path))?;
        segment::sync_dir(dir)?;
    }
    Ok(Recovered { segments, last })
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

fn entry_at(bytes: &[u8], at: usize, seed: u32) -> Option<(EntryKind, RecordHeader, &[u8])> {
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

fn warn_of_torn_tail(path: &Path, found: usize, good: usize) {
    tracing::warn!(
        segment = %path.display(), at = good, bytes = found - good,
        "the log ends in an unfinished write, which nobody was promised: cutting it off"
    );
}

fn cut_tail(path: &Path, good: usize) -> Result<(), LogError> {
    fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|file| file.set_len(good as u64).and_then(|()| file.sync_all()))
        .map_err(LogError::io("cut the torn tail of", path))
}

/// The entries of a log as it was opened, in order; reads one segment at a time.
#[derive(Debug)]
pub struct Replay {
    segments: std::vec::IntoIter<Segment>,
    current: Option<(Segment, Vec<u8>)>,
    at: usize,
}

impl Replay {
    pub(super) fn new(segments: Vec<Segment>) -> Self {
        Self { segments: segments.into_iter(), current: None, at: 0 }
    }

    fn try_next(&mut self) -> Result<Option<(Position, Entry)>, LogError> {
        loop {
            if let Some((segment, bytes)) = &self.current {
                if let Some((kind, header, payload)) = entry_at(bytes, self.at, segment.seed) {
                    self.at += RECORD_HEADER_BYTES + header.length;
                    return Ok(Some((header.position, Entry { kind, bytes: payload.to_vec() })));
                }
                if self.at != bytes.len() {
                    return Err(LogError::damaged(
                        &segment.path,
                        self.at,
                        "the file changed while it was read",
                    ));
                }
            }
            let Some(segment) = self.segments.next() else {
                self.current = None;
                return Ok(None);
            };
            let mut bytes = read(&segment.path)?;
            // The log may be appended to by now; entries of this run are not replayed.
            bytes.truncate(usize::try_from(segment.bytes).unwrap_or(usize::MAX));
            self.at = HEADER_BYTES;
            self.current = Some((segment, bytes));
        }
    }
}

impl Iterator for Replay {
    type Item = Result<(Position, Entry), LogError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.try_next();
        if next.is_err() {
            self.current = None;
            self.segments = Vec::new().into_iter();
        }
        next.transpose()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, LogError> {
    fs::read(path).map_err(LogError::io("read the log segment", path))
}
