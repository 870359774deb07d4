//! A log as bytes, without files: what the disk holds, to be torn as a crash may tear it, and read
//! back by the code that reads the files. `tests/sim` keeps the logs of its nodes in this form.
//!
//! ```text
//! SegmentImage::new ─▶ append(entries) ─▶ bytes ─▶ cut, zeroed, lost ─▶ recover: entries, or damage
//! ```

use std::path::PathBuf;

use super::error::LogError;
use super::record;
use super::scan::{Scan, entry_at};
use super::segment::{self, HEADER_BYTES};
use super::{Entry, Position};
use crate::types::NetworkId;

/// The bytes of one segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentImage {
    /// The position of its first entry, which the file would be named after.
    pub first: Position,
    /// What is in it.
    pub bytes: Vec<u8>,
    seed: u32,
}

impl SegmentImage {
    /// Bytes before the first record; a segment never has fewer.
    pub const HEADER_BYTES: usize = HEADER_BYTES;

    /// A segment without entries.
    pub fn new(network: &NetworkId, first: Position, seed: u32) -> Self {
        Self { first, bytes: segment::encode_header(network, first, seed), seed }
    }

    /// Appends one group of entries, of which the first gets the number `first`, while all up to
    /// `durable` is on disk.
    pub fn append(&mut self, entries: &[Entry], first: Position, durable: Position) {
        record::encode_group(&mut self.bytes, entries, first, durable, self.seed);
    }
}

/// Reads a log as [`super::Log::open`] does: cuts a torn tail off the last segment, and gives all
/// entries.
///
/// # Errors
/// [`LogError`]; the segments are unchanged then.
pub fn recover(
    network: &NetworkId,
    segments: &mut [SegmentImage],
) -> Result<Vec<(Position, Entry)>, LogError> {
    let (mut scan, mut entries) = (Scan::new(network), Vec::new());
    let count = segments.len();
    for (at, image) in segments.iter_mut().enumerate() {
        let path = PathBuf::from(segment::file_name(image.first));
        let found = scan.segment(&path, image.first, &image.bytes, at + 1 == count)?;
        image.bytes.truncate(found.end);
        image.seed = found.segment.seed;
        let mut at = HEADER_BYTES;
        while let Some((kind, header, payload)) = entry_at(&image.bytes, at, image.seed) {
            entries.push((header.position, Entry { kind, bytes: payload.to_vec() }));
            at += record::HEADER_BYTES + header.length;
        }
    }
    Ok(entries)
}
