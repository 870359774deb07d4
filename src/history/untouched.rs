//! Reading a SQLite file without leaving a trace: one that a running node writes, a copy, or one on
//! a read-only disk.
//!
//! | beside the file | it is | read |
//! | --- | --- | --- |
//! | `-wal` and `-shm` | in use, or copied from a node that was | read-only; SQLite's readers hold no writer back |
//! | neither | closed in order | as an immutable file, without any lock |
//! | `-wal` alone | a copy of a file in use | from a copy of both, in a temporary directory |
//!
//! In the first case, when SQLite would have to write (on a read-only disk), a copy is read, too.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use sqlx::ConnectOptions as _;
use sqlx::sqlite::SqliteConnectOptions;
use tempfile::TempDir;
use url::Url;

use super::copying::Stopping;
use super::error::HistoryError;

/// Where SQLite says in a file's header that it has a write-ahead log.
const WRITE_VERSION_AT: usize = 18;
const WRITE_AHEAD: u8 = 2;

/// Codes with which SQLite says that it would have to write: cannot open, read-only, and two of its
/// details: recovery, and no shared memory.
const NEEDS_WRITING: [&str; 4] = ["14", "8", "264", "520"];

/// The file, and its write-ahead log.
const PARTS: [&str; 2] = ["", "-wal"];

/// How often a file is copied that somebody writes meanwhile.
const COPY_TRIES: u32 = 5;

/// How a file is read.
#[derive(Debug)]
pub(super) struct Untouched {
    /// For sqlx.
    pub(super) url: Url,
    /// While this file is not there, nobody else has the database open.
    pub(super) alone_without: Option<PathBuf>,
    /// What is read, if it is a copy.
    pub(super) copy: Option<TempDir>,
}

impl Untouched {
    /// Finds out how a file is to be read.
    pub(super) fn plan(path: &Path, stopping: &Stopping) -> Result<Self, HistoryError> {
        let failed = |source| HistoryError::File { location: path.display().to_string(), source };
        if fs::metadata(path).map_err(failed)?.is_dir() {
            return Err(failed(io::ErrorKind::IsADirectory.into()));
        }
        // SQLite has its other files beside what a symbolic link leads to.
        let path = &fs::canonicalize(path).map_err(failed)?;
        let (wal, shm) = (beside(path, "-wal"), beside(path, "-shm"));
        match (wal.exists(), shm.exists()) {
            (true, false) => Self::copied(path, stopping),
            (false, _) if is_write_ahead(path).map_err(failed)? => {
                Ok(Self { url: url(path, true), alone_without: Some(wal), copy: None })
            }
            _ => Ok(Self { url: url(path, false), alone_without: None, copy: None }),
        }
    }

    /// A copy of the file and its write-ahead log.
    pub(super) fn copied(path: &Path, stopping: &Stopping) -> Result<Self, HistoryError> {
        let failed = |source| HistoryError::File { location: path.display().to_string(), source };
        let path = &fs::canonicalize(path).map_err(failed)?;
        let dir = TempDir::with_prefix("ledgermq-audit-").map_err(failed)?;
        let copy = dir.path().join("history.sqlite");
        copy_still(path, &copy, |from, to| stopping.copy(from, to)).map_err(failed)?;
        Ok(Self { url: url(&copy, false), alone_without: None, copy: Some(dir) })
    }

    /// What to think of if rows are not there: SQLite keeps the last ones in the write-ahead log.
    pub(super) fn note(&self) -> Option<String> {
        let wal = self.alone_without.as_ref()?.file_name()?.to_string_lossy().into_owned();
        Some(format!(
            "the file was in WAL mode and there is no {wal} beside it, which is so if its node was stopped in order: if \
             this is a copy, copy it again with its -wal, or with sqlite3 and .backup"
        ))
    }

    /// Whether this error goes away where there is a copy that SQLite may write beside.
    pub(super) fn would_help(&self, error: &sqlx::Error) -> bool {
        let code = match error {
            sqlx::Error::Database(error) => error.code(),
            _ => None,
        };
        self.copy.is_none() && code.is_some_and(|code| NEEDS_WRITING.contains(&code.as_ref()))
    }
}

/// Copies a file and its write-ahead log as they were at one moment: again, if somebody wrote either meanwhile.
fn copy_still(
    path: &Path,
    copy: &Path,
    mut copy_file: impl FnMut(&Path, &Path) -> io::Result<()>,
) -> io::Result<()> {
    for _ in 0..COPY_TRIES {
        let before = stamps(path)?;
        for (suffix, _) in PARTS.into_iter().zip(&before).filter(|(_, stamp)| stamp.is_some()) {
            let to = beside(copy, suffix);
            if to.exists() {
                fs::remove_file(&to)?;
            }
            copy_file(&beside(path, suffix), &to)?;
            fs::set_permissions(&to, fs::Permissions::from_mode(0o600))?;
        }
        if stamps(path)? == before {
            return Ok(());
        }
        let wal = beside(copy, PARTS[1]);
        if wal.exists() {
            fs::remove_file(wal)?;
        }
    }
    Err(io::Error::other(
        "it is written while it is copied: stop its node, or copy it with sqlite3 and .backup",
    ))
}

/// Which file it is, how long, and when it was written: seconds and nanoseconds.
type Stamp = (u64, u64, i64, i64);

/// Of each part, none if it is not there.
fn stamps(path: &Path) -> io::Result<Vec<Option<Stamp>>> {
    let stamp = |suffix| match fs::metadata(beside(path, suffix)) {
        Ok(file) => Ok(Some((file.ino(), file.len(), file.mtime(), file.mtime_nsec()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    PARTS.into_iter().map(stamp).collect()
}

fn url(path: &Path, immutable: bool) -> Url {
    SqliteConnectOptions::new().filename(path).read_only(true).immutable(immutable).to_url_lossy()
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// Whether the file says that it has a write-ahead log, which is gone if it was closed in order.
fn is_write_ahead(path: &Path) -> io::Result<bool> {
    let mut header = Vec::new();
    File::open(path)?.take(WRITE_VERSION_AT as u64 + 1).read_to_end(&mut header)?;
    Ok(header.get(WRITE_VERSION_AT) == Some(&WRITE_AHEAD))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_written_while_it_is_copied_is_copied_again() {
        let dir = tempfile::tempdir().unwrap();
        let (path, copy) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&path, "database").unwrap();
        fs::write(beside(&path, "-wal"), "log").unwrap();
        let mut copied = 0;
        let copy_with = |writes: u32, copied: &mut u32| {
            copy_still(&path, &copy, |from, to| {
                *copied += 1;
                fs::copy(from, to)?;
                // A checkpoint after the file, and before its log.
                if *copied <= 2 * writes {
                    fs::write(&path, "more ".repeat(*copied as usize))?;
                }
                Ok(())
            })
        };
        copy_with(2, &mut copied).unwrap();
        assert_eq!((copied, fs::read(&copy).unwrap()), (6, fs::read(&path).unwrap()));
        copied = 0;
        let endless = copy_with(u32::MAX / 2, &mut copied).unwrap_err().to_string();
        assert!(endless.contains("written while it is copied"), "{endless}");
    }
}
