//! The number of the last save (`make_durable`), in a small file beside the database.
//!
//! ```text
//! file "durable":  u64 number, big-endian ‖ u32 CRC-32 of it
//! ```
//!
//! The log is cut as far as the store is durable. sled, when its file is damaged near the end,
//! comes up with an older state and says nothing; the node would then lack what was cut. The number
//! is in the database too, so an older state is known by its lower number.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::Path;
use std::sync::Arc;

use crate::store::ledger::StoreError;

const NAME: &str = "durable";

/// What was durable when the store was last used; `None` if nothing ever was.
pub(super) fn read(dir: &Path) -> Result<Option<u64>, StoreError> {
    let path = dir.join(NAME);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io("read", &path)(error)),
    };
    let damaged = || StoreError::Corrupt(path.display().to_string());
    let (number, crc) = bytes.split_first_chunk::<8>().ok_or_else(damaged)?;
    if *crc != crc32fast::hash(number).to_be_bytes() {
        return Err(damaged());
    }
    Ok(Some(u64::from_be_bytes(*number)))
}

/// Writes it down durably; the old one stays until the new one is whole.
pub(super) fn write(dir: &Path, number: u64) -> Result<(), StoreError> {
    let path = dir.join(NAME);
    let temporary = path.with_extension("new");
    let mut bytes = number.to_be_bytes().to_vec();
    bytes.extend_from_slice(&crc32fast::hash(&bytes).to_be_bytes());
    File::create(&temporary)
        .and_then(|mut file| file.write_all(&bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, &path))
        .and_then(|()| File::open(dir)?.sync_all())
        .map_err(io("write", &path))
}

/// Syncs everything in the file system that `dir` is on: sled may keep data in several files, and
/// its own flush syncs none of them.
pub(super) fn sync_file_system(dir: &Path) -> Result<(), StoreError> {
    let dir_file = File::open(dir).map_err(io("open", dir))?;
    #[cfg(target_os = "linux")]
    let synced = rustix::fs::syncfs(&dir_file);
    #[cfg(not(target_os = "linux"))]
    let synced = {
        rustix::fs::sync();
        rustix::fs::fsync(&dir_file)
    };
    synced.map_err(|error| io("sync", dir)(error.into()))
}

/// Wraps an error of the operating system.
pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StoreError {
    move |source| StoreError::Io { action, path: path.to_owned(), source: Arc::new(source) }
}
