//! Segments: the files of the log, each named by the position of its first entry in hex.
//!
//! ```text
//!  0  8 bytes   "LMQ-LOG\n"
//!  8  u32       format version
//! 12  32 bytes  network id
//! 44  u64       position of the first entry
//! 52  u32       seed of this segment's CRCs, random
//! 56  u32       CRC-32 of bytes 0..56
//! 60  ..        records
//! ```
//!
//! A segment is made under a temporary name, synced, and then renamed, so a segment that has its
//! name has its header. The next one is begun only when all of the previous one is on disk.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::Position;
use super::error::LogError;
use super::record::{crc, u32_at, u64_at};
use crate::crypto::random_bytes;
use crate::types::NetworkId;

/// Bytes before the first record.
pub(super) const HEADER_BYTES: usize = 60;
const MAGIC: &[u8; 8] = b"LMQ-LOG\n";
const VERSION: u32 = 1;
const SUFFIX: &str = "log";
const SUFFIX_NEW: &str = "new";

/// One segment file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    /// The position of its first entry.
    pub first: Position,
    /// The file.
    pub path: PathBuf,
    /// The seed of its CRCs.
    pub seed: u32,
    /// Its length: header and good records.
    pub bytes: u64,
}

impl Segment {
    /// Makes the segment that starts at `first`, durably, and opens it to be appended to.
    pub(super) fn create(dir: &Path, network: &NetworkId, first: Position) -> Result<(Self, File), LogError> {
        let seed = u32::from_be_bytes(random_bytes().map_err(|_| LogError::NoRandomness)?);
        let temporary = dir.join(format!("{:016x}.{SUFFIX_NEW}", first.0));
        let path = dir.join(file_name(first));
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(LogError::io("create the log segment", &temporary))?;
        file.write_all(&encode_header(network, first, seed))
            .and_then(|()| file.sync_all())
            .map_err(LogError::io("write the log segment", &temporary))?;
        fs::rename(&temporary, &path).map_err(LogError::io("name the log segment", &path))?;
        sync_dir(dir)?;
        Ok((Self { first, path, seed, bytes: HEADER_BYTES as u64 }, file))
    }

    /// Checks the header of the file at `path`, whose name says that it starts at `first`.
    pub(super) fn parse(
        path: &Path,
        first: Position,
        bytes: &[u8],
        network: &NetworkId,
    ) -> Result<Self, LogError> {
        let damaged = |detail| Err(LogError::damaged(path, 0, detail));
        let Some((header, _)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
            return damaged("the segment is shorter than its header");
        };
        if header[..8] != MAGIC[..] {
            return damaged("this is no log segment");
        }
        if u32_at(header, 8) != VERSION {
            return Err(LogError::Version {
                path: path.to_owned(),
                expected: VERSION,
                found: u32_at(header, 8),
            });
        }
        if u32_at(header, 56) != crc(0, &header[..56]) {
            return damaged("the segment's header is damaged");
        }
        let mut found = NetworkId([0; 32]);
        found.0.copy_from_slice(&header[12..44]);
        if found != *network {
            return Err(LogError::WrongNetwork { path: path.to_owned(), expected: *network, found });
        }
        if u64_at(header, 44) != first.0 {
            return damaged("the segment's name is not that of its first entry");
        }
        Ok(Self { first, path: path.to_owned(), seed: u32_at(header, 52), bytes: bytes.len() as u64 })
    }
}

/// The name of the segment that starts at `first`.
pub(super) fn file_name(first: Position) -> String {
    format!("{:016x}.{SUFFIX}", first.0)
}

/// What a new segment consists of.
pub(super) fn encode_header(network: &NetworkId, first: Position, seed: u32) -> Vec<u8> {
    let mut header = Vec::with_capacity(HEADER_BYTES);
    header.extend_from_slice(MAGIC);
    header.extend_from_slice(&VERSION.to_be_bytes());
    header.extend_from_slice(network.as_bytes());
    header.extend_from_slice(&first.0.to_be_bytes());
    header.extend_from_slice(&seed.to_be_bytes());
    let header_crc = crc(0, &header);
    header.extend_from_slice(&header_crc.to_be_bytes());
    header
}

/// Reads the headers of the segments in `dir`, and changes nothing: a node may run there.
pub(super) fn check(dir: &Path, network: &NetworkId) -> Result<(), LogError> {
    let failed = || LogError::io("list", dir);
    let files = match fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        files => files.map_err(failed())?,
    };
    for file in files {
        let path = file.map_err(failed())?.path();
        if path.extension().and_then(|suffix| suffix.to_str()) != Some(SUFFIX) {
            continue;
        }
        let mut header = Vec::with_capacity(HEADER_BYTES);
        let read = File::open(&path).and_then(|file| file.take(HEADER_BYTES as u64).read_to_end(&mut header));
        match read {
            // A running node removes segments that it needs no more.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            read => read.map_err(LogError::io("read", &path))?,
        };
        Segment::parse(&path, position(&path)?, &header, network)?;
    }
    Ok(())
}

/// The position in a segment's name.
fn position(path: &Path) -> Result<Position, LogError> {
    let name = path.file_stem().and_then(|name| name.to_str()).filter(|name| name.len() == 16);
    name.and_then(|name| u64::from_str_radix(name, 16).ok())
        .map(Position)
        .ok_or_else(|| LogError::damaged(path, 0, "the file's name is no position"))
}

/// The segments in `dir` by their names, ascending. Removes those that were never finished.
pub(super) fn list(dir: &Path) -> Result<Vec<(Position, PathBuf)>, LogError> {
    let mut found = Vec::new();
    let failed = || LogError::io("list", dir);
    for file in fs::read_dir(dir).map_err(failed())? {
        let path = file.map_err(failed())?.path();
        let suffix = path.extension().and_then(|suffix| suffix.to_str());
        if suffix == Some(SUFFIX_NEW) {
            fs::remove_file(&path).map_err(LogError::io("remove", &path))?;
        } else if suffix == Some(SUFFIX) {
            found.push((position(&path)?, path));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Makes the directory's entries durable, after a file was made, renamed or deleted in it.
pub(super) fn sync_dir(dir: &Path) -> Result<(), LogError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(LogError::io("sync the directory", dir))
}
