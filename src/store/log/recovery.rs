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
//! group of records cannot be told from a torn write. `scan.rs` decides that; here are the files.

use std::fs::{self, File};
use std::path::Path;

use super::error::LogError;
use super::record::HEADER_BYTES as RECORD_HEADER_BYTES;
use super::scan::{Scan, entry_at};
use super::segment::{self, HEADER_BYTES, Segment};
use super::{Entry, Position};
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
    let mut scan = Scan::new(network);
    for (at, (first, path)) in files.iter().enumerate() {
        let bytes = read(path)?;
        let is_last = at + 1 == files.len();
        let found = scan.segment(path, *first, &bytes, is_last)?;
        if found.is_torn {
            warn_of_torn_tail(path, bytes.len(), found.end);
        }
        if found.end < bytes.len() {
            cut_tail(path, found.end)?;
        }
        segments.push(found.segment);
    }
    if let Some(segment) = segments.last() {
        // Read back is not the same as on disk: the last process may have died before its sync.
        File::open(&segment.path)
            .and_then(|file| file.sync_all())
            .map_err(LogError::io("sync the log segment", &segment.path))?;
        segment::sync_dir(dir)?;
    }
    Ok(Recovered { segments, last: scan.last() })
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
