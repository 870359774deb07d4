//! The one thread that writes the log.
//!
//! It takes whatever has queued up, writes it in one go, syncs, and tells the waiters: the group
//! commit grows with the load and adds no delay of its own. What arrives during a sync is the next
//! group. The first error ends the thread: after a failed `fdatasync` the kernel may have dropped
//! the pages, so trying again would only look like success.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::error::LogError;
use super::segment::{self, Segment};
use super::{Counters, Entry, LogSettings, Position, SyncReport, record};

/// The most that one group has, unless a single append is larger: so much is written between two
/// syncs, and so long the first of the group waits for the last.
const MAX_GROUP_BYTES: usize = 8 * 1024 * 1024;

/// One call of `append`, waiting to be written.
pub(super) struct Append {
    pub first: Position,
    pub entries: Vec<Entry>,
    /// Its share of the queue; given back when it is durable.
    pub _share: OwnedSemaphorePermit,
}

/// What the thread and the handles share.
pub(super) struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    pub status: watch::Sender<Status>,
    pub room: Arc<Semaphore>,
    pub counters: Counters,
}

struct Queue {
    appends: VecDeque<Append>,
    cut: Option<Position>,
    last: Position,
    closed: bool,
    /// The thread waits for work: else it will look by itself, and waking it is a system call for nothing.
    is_waiting: bool,
}

/// How far the log is durable, and whether it failed.
#[derive(Debug, Clone)]
pub(super) struct Status {
    pub synced: Position,
    pub failure: Option<LogError>,
    pub ended: bool,
}

enum Work {
    Write(Vec<Append>),
    Cut(Position),
}

impl Shared {
    pub(super) fn new(last: Position, room: Arc<Semaphore>) -> Self {
        Self {
            queue: Mutex::new(Queue {
                appends: VecDeque::new(),
                cut: None,
                last,
                closed: false,
                is_waiting: false,
            }),
            wake: Condvar::new(),
            status: watch::Sender::new(Status { synced: last, failure: None, ended: false }),
            room,
            counters: Counters::default(),
        }
    }

    /// A poisoned lock is taken as it is: nothing in its holders panics half-way.
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues entries and gives the last its position.
    pub(super) fn push(
        &self,
        entries: Vec<Entry>,
        share: OwnedSemaphorePermit,
    ) -> Result<Position, LogError> {
        let mut queue = self.queue();
        if queue.closed || self.status.borrow().ended {
            return Err(self.status.borrow().failure.clone().unwrap_or(LogError::Closed));
        }
        if entries.is_empty() {
            return Ok(queue.last);
        }
        let first = queue.last.next();
        queue.last = Position(queue.last.0 + entries.len() as u64);
        let last = queue.last;
        queue.appends.push_back(Append { first, entries, _share: share });
        let is_waiting = queue.is_waiting;
        drop(queue);
        if is_waiting {
            self.wake.notify_one();
        }
        Ok(last)
    }

    /// The position of the entry appended last, durable or not.
    pub(super) fn last(&self) -> Position {
        self.queue().last
    }

    pub(super) fn cut(&self, below: Position) {
        let mut queue = self.queue();
        queue.cut = queue.cut.max(Some(below));
        drop(queue);
        self.wake.notify_one();
    }

    /// Nothing is queued any more; what is queued is still written.
    pub(super) fn close(&self) {
        self.queue().closed = true;
        self.room.close();
        self.wake.notify_one();
    }

    fn next_work(&self) -> Option<Work> {
        let mut queue = self.queue();
        loop {
            if !queue.appends.is_empty() {
                return Some(Work::Write(take_group(&mut queue.appends)));
            }
            if let Some(below) = queue.cut.take() {
                return Some(Work::Cut(below));
            }
            if queue.closed {
                return None;
            }
            queue.is_waiting = true;
            queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.is_waiting = false;
        }
    }

    /// Ends the log: with an error for all who wait, or in order.
    fn end(&self, failure: Option<LogError>) {
        self.status.send_modify(|status| {
            status.failure = failure;
            status.ended = true;
        });
        self.close();
        self.queue().appends.clear();
    }
}

fn take_group(appends: &mut VecDeque<Append>) -> Vec<Append> {
    let mut group = Vec::new();
    let mut bytes = 0;
    while let Some(append) = appends.pop_front() {
        let more: usize = append.entries.iter().map(Entry::cost).sum();
        if !group.is_empty() && bytes + more > MAX_GROUP_BYTES {
            appends.push_front(append);
            break;
        }
        bytes += more;
        group.push(append);
    }
    group
}

/// The thread's own state.
pub(super) struct Writer {
    pub shared: Arc<Shared>,
    pub settings: LogSettings,
    pub dir: PathBuf,
    /// All segments, ascending, the last being `file`; never empty.
    pub segments: Vec<Segment>,
    pub file: File,
    pub synced: Position,
    pub buffer: Vec<u8>,
    /// Held for as long as the log is open.
    pub _lock: File,
}

impl Writer {
    /// Runs until the log is closed or fails.
    pub(super) fn run(mut self) {
        self.count_segments();
        let failure = self.work().err();
        if let Some(error) = &failure {
            tracing::error!(%error, "the log failed");
        }
        let shared = Arc::clone(&self.shared);
        // The lock goes before anybody hears that the log has ended, so that it can be opened again.
        drop(self);
        shared.end(failure);
    }

    fn work(&mut self) -> Result<(), LogError> {
        while let Some(work) = self.shared.next_work() {
            match work {
                Work::Write(group) => self.write(group)?,
                Work::Cut(below) => self.delete_below(below)?,
            }
        }
        self.write_end_mark()
    }

    /// After this, whatever is damaged in the log is found when it is opened again.
    fn write_end_mark(&mut self) -> Result<(), LogError> {
        let Some(segment) = self.segments.last() else { return Ok(()) };
        let mark = record::end_mark(self.synced, segment.seed);
        self.file
            .write_all(&mark)
            .and_then(|()| self.file.sync_data())
            .map_err(LogError::io("end the log segment", &segment.path))
    }

    fn write(&mut self, group: Vec<Append>) -> Result<(), LogError> {
        self.rotate_if_full()?;
        let started = self.settings.clock.monotonic();
        let entries = self.encode(&group);
        let Some(segment) = self.segments.last_mut() else { return Ok(()) };
        self.file
            .write_all(&self.buffer)
            .map_err(LogError::io("append to the log segment", &segment.path))?;
        self.file.sync_data().map_err(LogError::io("sync the log segment", &segment.path))?;
        let bytes = self.buffer.len() as u64;
        segment.bytes += bytes;
        self.synced = Position(self.synced.0 + entries);
        self.shared.counters.groups.fetch_add(1, Relaxed);
        self.shared.counters.entries.fetch_add(entries, Relaxed);
        self.shared.counters.bytes.fetch_add(bytes, Relaxed);
        self.count_segments();
        let took = self.settings.clock.monotonic().saturating_sub(started);
        if let Some(observe) = &self.settings.observer {
            observe(&SyncReport { entries, bytes, took });
        }
        // Its share of the queue goes back before anybody hears of it: who heard finds the room.
        drop(group);
        self.shared.status.send_modify(|status| status.synced = self.synced);
        Ok(())
    }

    /// Puts the group's records into the buffer; returns how many.
    fn encode(&mut self, group: &[Append]) -> u64 {
        let seed = self.segments.last().map_or(0, |segment| segment.seed);
        self.buffer.clear();
        self.buffer.shrink_to(MAX_GROUP_BYTES);
        let mut entries = 0;
        for append in group {
            record::encode_group(&mut self.buffer, &append.entries, append.first, self.synced, seed);
            entries += append.entries.len() as u64;
        }
        entries
    }

    /// Begins a new segment when this one is full. All of this one is on disk by then.
    fn rotate_if_full(&mut self) -> Result<(), LogError> {
        let full = self.segments.last().is_none_or(|segment| segment.bytes >= self.settings.segment_bytes);
        if full {
            let (segment, file) = Segment::create(&self.dir, &self.settings.network, self.synced.next())?;
            self.segments.push(segment);
            self.file = file;
        }
        Ok(())
    }

    /// Deletes the segments that have only entries below `below`, oldest first, so that the rest
    /// stays whole if this is interrupted. The last one always stays.
    fn delete_below(&mut self, below: Position) -> Result<(), LogError> {
        let gone = self.segments.windows(2).take_while(|pair| pair[1].first <= below).count();
        if gone == 0 {
            return Ok(());
        }
        for segment in self.segments.drain(..gone) {
            fs::remove_file(&segment.path).map_err(LogError::io("delete the log segment", &segment.path))?;
            segment::sync_dir(&self.dir)?;
        }
        self.count_segments();
        Ok(())
    }

    fn count_segments(&self) {
        let bytes = self.segments.iter().map(|segment| segment.bytes).sum();
        self.shared.counters.disk_bytes.store(bytes, Relaxed);
        self.shared.counters.segments.store(self.segments.len() as u64, Relaxed);
    }
}
