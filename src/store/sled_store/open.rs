//! Opening sled, with what it needs around it.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::time::Duration;

use super::durable::io;
use super::{StoreSettings, failed, keys};
use crate::store::ledger::StoreError;
use crate::types::NetworkId;

/// 2: records are indexed in runs; 3: which name the bytes of the block; 4: and stand in chunks;
/// 5: entries of clients' windows stand together.
const VERSION: u32 = 5;
/// Five seconds in all for sled's threads to let go of a store that was dropped.
const LOCK_TRIES: u32 = 500;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// Opens the database in `dir`; the file is the lock on it.
pub(super) fn open(dir: &Path, settings: &StoreSettings) -> Result<(sled::Db, File), StoreError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io("make", dir))?;
    let lock = lock(dir)?;
    let sled_dir = dir.join("sled");
    remove_unfinished_snapshots(&sled_dir)?;
    let db = open_sled(&sled_dir, settings.cache_bytes).map_err(|error| match error {
        error if is_locked(&error) => StoreError::InUse(dir.to_owned()),
        error => StoreError::Unreadable { dir: dir.to_owned(), reason: error.to_string() },
    })?;
    check_owner(&db, dir, &settings.network)?;
    Ok((db, lock))
}

/// A store that was just dropped in this process may still be held by one of sled's threads, which
/// nothing waits for. Other processes are kept away by our own lock.
fn open_sled(sled_dir: &Path, cache_bytes: u64) -> sled::Result<sled::Db> {
    let mut tries = 0;
    loop {
        let config = sled::Config::new().path(sled_dir).cache_capacity(cache_bytes).flush_every_ms(None);
        match config.open() {
            Err(error) if is_locked(&error) && tries < LOCK_TRIES => {
                tries += 1;
                std::thread::sleep(LOCK_PAUSE);
            }
            opened => return opened,
        }
    }
}

/// sled gives this error no kind of its own.
fn is_locked(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error) if error.to_string().contains("could not acquire lock"))
}

fn lock(dir: &Path) -> Result<File, StoreError> {
    let path = dir.join("lock");
    let file =
        File::options().write(true).create(true).truncate(false).open(&path).map_err(io("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse(dir.to_owned())),
        Err(TryLockError::Error(error)) => Err(io("lock", &path)(error)),
    }
}

/// sled takes the highest of the files `snap.*` for its snapshot, even one that it was still
/// writing when the process was killed, and then reports corruption.
fn remove_unfinished_snapshots(sled_dir: &Path) -> Result<(), StoreError> {
    if !sled_dir.exists() {
        return Ok(());
    }
    for file in fs::read_dir(sled_dir).map_err(io("list", sled_dir))? {
        let file = file.map_err(io("list", sled_dir))?;
        let name = file.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            tracing::warn!(file = %file.path().display(), "removing a snapshot that sled did not finish");
            fs::remove_file(file.path()).map_err(io("remove", &file.path()))?;
        }
    }
    Ok(())
}

/// The store has this format and belongs to this ledger; a new one is marked so.
fn check_owner(db: &sled::Db, dir: &Path, network: &NetworkId) -> Result<(), StoreError> {
    let Some(version) = db.get(keys::VERSION).map_err(failed)? else {
        let mut batch = sled::Batch::default();
        batch.insert(keys::VERSION, &VERSION.to_be_bytes());
        batch.insert(keys::NETWORK, network.as_bytes());
        return db.apply_batch(batch).map_err(failed);
    };
    let corrupt = |what: &str| StoreError::Corrupt(what.to_owned());
    let found = version.as_ref().try_into().map(u32::from_be_bytes).map_err(|_| corrupt("the format"))?;
    if found != VERSION {
        return Err(StoreError::Version { dir: dir.to_owned(), expected: VERSION, found });
    }
    let owner = db.get(keys::NETWORK).map_err(failed)?.ok_or_else(|| corrupt("the network id"))?;
    let found = owner.as_ref().try_into().map(NetworkId).map_err(|_| corrupt("the network id"))?;
    if found != *network {
        return Err(StoreError::WrongNetwork { dir: dir.to_owned(), expected: *network, found });
    }
    Ok(())
}
