//! The node's one log: accepted messages and PBFT entries, durable before anybody is told.
//!
//! ```text
//! append(entries) ─▶ bounded queue ─▶ one thread: write, fdatasync ─▶ synced(position)
//!     waits when full                 (group commit)                   wakes the waiters
//! ```
//!
//! - [`Log::open`] checks all that is there, cuts a torn tail, refuses damage, and hands back what
//!   the log holds as a [`Replay`].
//! - Entries are numbered by [`Position`]; those of one append are adjacent and in order. After a
//!   power cut the log holds a prefix of what was appended, and at least all that was synced.
//! - Three [`Holder`]s each say from where on they still need entries; [`Log::cut`] deletes whole
//!   segments that nobody needs.
//! - Any error of the disk is final: every waiter gets it, [`Log::failed`] resolves, and the node
//!   stops.

pub mod image;

mod error;
mod record;
mod recovery;
mod scan;
mod segment;
#[cfg(test)]
mod tests;
mod writer;

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};

pub use error::LogError;
pub use recovery::Replay;

use crate::clock::SharedClock;
use crate::types::NetworkId;
use segment::Segment;
use writer::{Shared, Status, Writer};

/// No entry is longer. A request has at most 8 MiB and a message at most 4 MiB on the wire and
/// 16 MiB unpacked; this leaves room for both in one entry.
pub const MAX_ENTRY_BYTES: usize = 32 * 1024 * 1024;

/// The number of an entry: 1 for the first that a log ever had, one more for each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub u64);

impl Position {
    /// Before the first entry.
    pub const NONE: Self = Self(0);

    /// The position after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// What an entry is; the log itself does not look inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EntryKind {
    /// A message that this node accepted from a client, and will acknowledge.
    AcceptedMessage,
    /// An entry of the PBFT core: a promise to the other replicas, or what it rests on.
    Pbft,
}

impl EntryKind {
    /// Whether it is synced at once. Every step of consensus waits for votes; a message waits for
    /// consensus anyway.
    const fn is_urgent(self) -> bool {
        matches!(self, Self::Pbft)
    }

    const fn to_byte(self) -> u8 {
        match self {
            Self::AcceptedMessage => 1,
            Self::Pbft => 2,
        }
    }

    const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::AcceptedMessage),
            2 => Some(Self::Pbft),
            _ => None,
        }
    }
}

/// One entry of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: EntryKind,
    /// Its bytes, at most [`MAX_ENTRY_BYTES`].
    pub bytes: Vec<u8>,
}

impl Entry {
    /// What it takes of queue and file.
    fn cost(&self) -> usize {
        record::HEADER_BYTES + self.bytes.len()
    }
}

/// Who needs entries of the log until they have done something with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Holder {
    /// Accepted messages, until their acknowledgement is final.
    Ingress,
    /// PBFT entries, until the checkpoint above them is stable and stored.
    Consensus,
    /// Accepted messages, until they and their fate are in the history.
    History,
}

/// One group that was written and synced, for metrics.
#[derive(Debug, Clone, Copy)]
pub struct SyncReport {
    /// Entries in the group.
    pub entries: u64,
    /// Bytes that were written.
    pub bytes: u64,
    /// How long writing and syncing took.
    pub took: Duration,
}

/// Is told of every group; runs in the log's thread, so it must be quick.
pub type SyncObserver = Box<dyn Fn(&SyncReport) + Send>;

/// Settings of the log.
pub struct LogSettings {
    /// The ledger that the entries belong to; a log of another one is refused.
    pub network: NetworkId,
    /// A new segment is begun when the last has so many bytes; a segment is read whole at start,
    /// and only whole ones are deleted. It may be exceeded by one group.
    pub segment_bytes: u64,
    /// Bytes that may be appended and not yet durable. When they are used up, `append` waits.
    pub max_queued_bytes: usize,
    /// Accepted messages are synced at most this soon after the sync before was begun, unless votes are:
    /// those that come together share one. None waits in an idle log.
    pub gather: Duration,
    /// Measures how long a sync takes.
    pub clock: SharedClock,
    /// Is told of every group that was synced.
    pub observer: Option<SyncObserver>,
}

impl LogSettings {
    /// The default of `segment_bytes`: 32 MiB, a fraction of a second to read.
    pub const SEGMENT_BYTES: u64 = 32 * 1024 * 1024;
    /// The default of `max_queued_bytes`: 64 MiB, about a second of a slow disk.
    pub const MAX_QUEUED_BYTES: usize = 64 * 1024 * 1024;

    /// The default of `gather`: 5 ms, a small part of the time to the signed acknowledgement.
    pub const GATHER: Duration = Duration::from_millis(5);

    /// The defaults.
    pub fn new(network: NetworkId, clock: SharedClock) -> Self {
        Self {
            network,
            segment_bytes: Self::SEGMENT_BYTES,
            max_queued_bytes: Self::MAX_QUEUED_BYTES,
            gather: Self::GATHER,
            clock,
            observer: None,
        }
    }
}

/// Counters of a log, since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogStats {
    /// Entries that were made durable.
    pub entries: u64,
    /// Bytes that were made durable, record headers included; never falls.
    pub bytes: u64,
    /// Groups that were written, each with one sync.
    pub groups: u64,
    /// Segments on disk.
    pub segments: u64,
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// Bytes appended and not yet durable.
    pub queued_bytes: u64,
}

#[derive(Debug, Default)]
struct Counters {
    entries: AtomicU64,
    bytes: AtomicU64,
    groups: AtomicU64,
    segments: AtomicU64,
    disk_bytes: AtomicU64,
}

/// A handle of the log; clones share it. The log closes when the last is dropped, after all that
/// was appended is durable.
#[derive(Clone)]
pub struct Log {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    capacity: usize,
    is_new: bool,
    first: Position,
    marks: Mutex<Marks>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug, Clone, Copy)]
struct Marks {
    ingress: Position,
    consensus: Position,
    history: Position,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").field("last", &self.last()).finish_non_exhaustive()
    }
}

impl Log {
    /// Whether the log in `dir`, if there is one, is of `network`. Only the heads of its files are read, and
    /// nothing is changed.
    ///
    /// # Errors
    /// [`LogError::WrongNetwork`], or that a head is damaged or cannot be read.
    pub fn check(dir: &Path, network: &NetworkId) -> Result<(), LogError> {
        segment::check(dir, network)
    }

    /// Opens the log in `dir`, or makes a new one there. Reads all of it: do it before the runtime
    /// is busy. The [`Replay`] has the entries that were found, and is to be read before the first
    /// [`Log::cut`].
    ///
    /// # Errors
    /// [`LogError`]: each says what to do. Nothing was changed then, except that a torn tail may
    /// have been cut.
    pub fn open(dir: &Path, settings: LogSettings) -> Result<(Self, Replay), LogError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(LogError::io("make the log's directory", dir))?;
        let lock = lock(dir)?;
        let recovered = recovery::recover(dir, &settings.network)?;
        let replay = Replay::new(recovered.segments.clone());
        let is_new = recovered.segments.is_empty();
        let mut segments = recovered.segments;
        let file = match segments.last() {
            Some(segment) => open_to_append(&segment.path)?,
            None => {
                let (segment, file) = Segment::create(dir, &settings.network, recovered.last.next())?;
                segments.push(segment);
                file
            }
        };
        let first = segments.first().map_or(Position(1), |segment| segment.first);
        let capacity = settings.max_queued_bytes.clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        let shared = Arc::new(Shared::new(recovered.last, Arc::new(Semaphore::new(capacity))));
        let writer = Writer {
            shared: Arc::clone(&shared),
            settings,
            dir: dir.to_owned(),
            segments,
            file,
            synced: recovered.last,
            buffer: Vec::new(),
            began: None,
            _lock: lock,
        };
        let thread = std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || writer.run())
            .map_err(LogError::io("start the thread of the log in", dir))?;
        let marks = Mutex::new(Marks { ingress: first, consensus: first, history: first });
        let inner = Inner { shared, capacity, is_new, first, marks, thread: Mutex::new(Some(thread)) };
        Ok((Self { inner: Arc::new(inner) }, replay))
    }

    /// Whether there was no log in the directory. A node that had one and lost it may have
    /// promised what it does not remember.
    pub fn is_new(&self) -> bool {
        self.inner.is_new
    }

    /// The position of the first entry that the log held when it was opened.
    pub fn first(&self) -> Position {
        self.inner.first
    }

    /// The position of the entry that was appended last, durable or not.
    pub fn last(&self) -> Position {
        self.inner.shared.last()
    }

    /// Appends entries, in order and adjacent; returns the position of the last. Waits while the
    /// queue is full. The entries are not durable yet: see [`Log::synced`]. If the future is
    /// dropped before it is ready, nothing was appended.
    ///
    /// # Errors
    /// [`LogError`]: an entry is too large, or the log failed or was closed.
    pub async fn append(&self, entries: Vec<Entry>) -> Result<Position, LogError> {
        if let Some(entry) = entries.iter().find(|entry| entry.bytes.len() > MAX_ENTRY_BYTES) {
            return Err(LogError::TooLarge { bytes: entry.bytes.len(), limit: MAX_ENTRY_BYTES });
        }
        // One append may be larger than the whole queue: then it has the queue for itself.
        let cost = entries.iter().map(Entry::cost).sum::<usize>().min(self.inner.capacity);
        let shared = &self.inner.shared;
        let cost = u32::try_from(cost).unwrap_or(u32::MAX);
        match Arc::clone(&shared.room).acquire_many_owned(cost).await {
            Ok(share) => shared.push(entries, share),
            Err(_) => Err(shared.status.borrow().failure.clone().unwrap_or(LogError::Closed)),
        }
    }

    /// Waits until everything up to `position` is on disk.
    ///
    /// # Errors
    /// [`LogError`]: the log failed or was closed before.
    pub async fn synced(&self, position: Position) -> Result<(), LogError> {
        let mut status = self.inner.shared.status.subscribe();
        let reached = |status: &Status| status.synced >= position || status.ended;
        match status.wait_for(reached).await {
            Ok(status) if status.synced >= position => Ok(()),
            Ok(status) => Err(status.failure.clone().unwrap_or(LogError::Closed)),
            Err(_) => Err(LogError::Closed),
        }
    }

    /// Appends entries and waits until they are on disk.
    ///
    /// # Errors
    /// As [`Log::append`] and [`Log::synced`].
    pub async fn append_synced(&self, entries: Vec<Entry>) -> Result<Position, LogError> {
        let position = self.append(entries).await?;
        self.synced(position).await?;
        Ok(position)
    }

    /// The position up to which all is on disk.
    pub fn synced_position(&self) -> Position {
        self.inner.shared.status.borrow().synced
    }

    /// Resolves when the log has failed, with why; never if it is closed in order. The node must
    /// stop then. The future holds no handle of the log.
    pub fn failed(&self) -> impl Future<Output = LogError> + Send + use<> {
        let mut status = self.inner.shared.status.subscribe();
        async move {
            let failed = status.wait_for(|status| status.failure.is_some()).await;
            match failed.ok().and_then(|status| status.failure.clone()) {
                Some(failure) => failure,
                None => std::future::pending().await,
            }
        }
    }

    /// `holder` needs no entry below `position` any more. Never goes back.
    pub fn set_low_mark(&self, holder: Holder, position: Position) {
        let mut marks = self.inner.marks.lock().unwrap_or_else(PoisonError::into_inner);
        let mark = match holder {
            Holder::Ingress => &mut marks.ingress,
            Holder::Consensus => &mut marks.consensus,
            Holder::History => &mut marks.history,
        };
        *mark = position.max(*mark);
    }

    /// The first position that any holder still needs. Take it, make the ledger store durable,
    /// then [`Log::cut`] there.
    pub fn low_mark(&self) -> Position {
        let marks = self.inner.marks.lock().unwrap_or_else(PoisonError::into_inner);
        marks.ingress.min(marks.consensus).min(marks.history)
    }

    /// Deletes the segments whose entries are all below `position`, but never one that a holder
    /// still needs. Done by the log's thread between two groups; an error fails the log.
    pub fn cut(&self, position: Position) {
        self.inner.shared.cut(position.min(self.low_mark()));
    }

    /// Counters, for metrics and for deciding when to make the ledger store durable.
    pub fn stats(&self) -> LogStats {
        let counters = &self.inner.shared.counters;
        let free = self.inner.shared.room.available_permits();
        LogStats {
            entries: counters.entries.load(Relaxed),
            bytes: counters.bytes.load(Relaxed),
            groups: counters.groups.load(Relaxed),
            segments: counters.segments.load(Relaxed),
            disk_bytes: counters.disk_bytes.load(Relaxed),
            queued_bytes: self.inner.capacity.saturating_sub(free) as u64,
        }
    }

    /// Closes the log for all handles: writes what is queued, syncs, and lets go of the directory.
    ///
    /// # Errors
    /// [`LogError`] if it has failed, now or before.
    pub async fn close(&self) -> Result<(), LogError> {
        self.inner.shared.close();
        let mut status: watch::Receiver<Status> = self.inner.shared.status.subscribe();
        match status.wait_for(|status| status.ended).await {
            Ok(status) => status.failure.clone().map_or(Ok(()), Err),
            Err(_) => Err(LogError::Closed),
        }
    }
}

impl Drop for Inner {
    /// Waits for the thread, for at most one group's write and sync.
    fn drop(&mut self) {
        self.shared.close();
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take() {
            // A panic of the thread was already reported by the panic hook.
            let _ended = thread.join();
        }
    }
}

fn lock(dir: &Path) -> Result<File, LogError> {
    let path = dir.join("lock");
    let failed = || LogError::io("lock", &path);
    let file = File::options().write(true).create(true).truncate(false).open(&path).map_err(failed())?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(LogError::InUse(dir.to_owned())),
        Err(TryLockError::Error(error)) => Err(failed()(error)),
    }
}

fn open_to_append(path: &Path) -> Result<File, LogError> {
    File::options().append(true).open(path).map_err(LogError::io("open the log segment", path))
}
