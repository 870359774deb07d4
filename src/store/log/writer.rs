//! The one thread that writes the log.
//!
//! It takes whatever has queued up, writes it in one go, syncs, and tells the waiters. What arrives
//! during a sync is the next group, and accepted messages wait until [`LogSettings::gather`] after the
//! beginning of the last one: a sync costs the same for one message and for twenty, and wakes as many
//! threads. Votes do not wait, and take with them what does; nor does anything in a log that was idle. The first error ends the
//! thread: after a failed `fdatasync` the kernel may have dropped the pages, so trying again would
//! only look like success.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::error::LogError;
use super::segment::{self, Segment};
use super::{Counters, Entry, LogSettings, Position, SyncReport, record};

/// The most that one group has, unless a single append is larger: so much is written between two
/// syncs, and so long the first of the group waits for the last.
const MAX_GROUP_BYTES: usize = 8 * 1024 * 1024;
/// With so much queued, waiting for more gains nothing.
const ENOUGH_BYTES: usize = 1024 * 1024;

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
    /// Bytes of `appends`, and whether any of them is not to wait for more.
    bytes: usize,
    is_urgent: bool,
    /// What the thread waits for: else it will look by itself, and waking it is a system call for nothing.
    waits: Waits,
}

/// What the thread waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waits {
    /// Nothing: it is at work.
    Not,
    /// Any work.
    Work,
    /// The end of [`LogSettings::gather`], or work that does not wait for it.
    Urgent,
}

fn cost(entries: &[Entry]) -> usize {
    entries.iter().map(Entry::cost).sum()
}

impl Queue {
    /// Whether what is queued is to be written now, with more of it to come or not.
    fn is_due(&self) -> bool {
        self.is_urgent || self.closed || self.bytes >= ENOUGH_BYTES
    }

    /// What is written together.
    fn take_group(&mut self) -> Vec<Append> {
        let mut group = Vec::new();
        let mut bytes = 0;
        while let Some(append) = self.appends.pop_front() {
            let more = cost(&append.entries);
            if !group.is_empty() && bytes + more > MAX_GROUP_BYTES {
                self.appends.push_front(append);
                break;
            }
            bytes += more;
            group.push(append);
        }
        self.bytes -= bytes;
        // What does not fit goes with the next group, at once.
        self.is_urgent &= !self.appends.is_empty();
        group
    }

    /// Whether the thread is to be woken for what was queued.
    fn is_awaited(&self) -> bool {
        match self.waits {
            Waits::Not => false,
            Waits::Work => true,
            Waits::Urgent => self.is_due(),
        }
    }
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
                bytes: 0,
                is_urgent: false,
                waits: Waits::Not,
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
        queue.bytes += cost(&entries);
        queue.is_urgent |= entries.iter().any(|entry| entry.kind.is_urgent());
        queue.appends.push_back(Append { first, entries, _share: share });
        let is_awaited = queue.is_awaited();
        drop(queue);
        if is_awaited {
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

    /// Waits for work; messages that nobody waits for urgently are held back for as long as
    /// `still_to_gather` says when they come.
    fn next_work(&self, still_to_gather: impl Fn() -> Option<Duration>) -> Option<Work> {
        let mut queue = self.queue();
        loop {
            // First: under load something is always queued, and the log would grow for as long as that lasts.
            if let Some(below) = queue.cut.take() {
                return Some(Work::Cut(below));
            }
            if !queue.appends.is_empty() {
                if let (false, Some(gather)) = (queue.is_due(), still_to_gather()) {
                    queue.waits = Waits::Urgent;
                    let waited = self.wake.wait_timeout_while(queue, gather, |queue| !queue.is_due());
                    queue = waited.unwrap_or_else(PoisonError::into_inner).0;
                    queue.waits = Waits::Not;
                }
                return Some(Work::Write(queue.take_group()));
            }
            if queue.closed {
                return None;
            }
            queue.waits = Waits::Work;
            queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.waits = Waits::Not;
        }
    }

    /// Ends the log: with an error for all who wait, or in order.
    fn end(&self, failure: Option<LogError>) {
        self.status.send_modify(|status| {
            status.failure = failure;
            status.ended = true;
        });
        self.close();
        let mut queue = self.queue();
        queue.appends.clear();
        queue.bytes = 0;
    }
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
    /// When the last group was begun.
    pub began: Option<Duration>,
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
        while let Some(work) = self.shared.next_work(|| self.still_to_gather()) {
            match work {
                Work::Write(group) => {
                    self.began = Some(self.settings.clock.monotonic());
                    self.write(group)?;
                }
                Work::Cut(below) => self.delete_below(below)?,
            }
        }
        self.write_end_mark()
    }

    /// How long messages that come now are to wait for more; not at all if the last group is long ago.
    fn still_to_gather(&self) -> Option<Duration> {
        let since = self.settings.clock.monotonic().saturating_sub(self.began?);
        self.settings.gather.checked_sub(since).filter(|rest| !rest.is_zero())
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::EntryKind;
    use super::*;

    fn push(shared: &Shared, kind: EntryKind) {
        let share = Arc::clone(&shared.room).try_acquire_owned().unwrap();
        shared.push(vec![Entry { kind, bytes: vec![7; 40] }], share).unwrap();
    }

    #[test]
    fn what_nobody_needs_is_cut_also_while_there_is_always_something_to_write() {
        let shared = Shared::new(Position::NONE, Arc::new(Semaphore::new(9)));
        for kind in [EntryKind::Pbft, EntryKind::AcceptedMessage] {
            push(&shared, kind);
            shared.cut(Position(1));
            let gather = || Some(Duration::from_secs(3600));
            assert!(matches!(shared.next_work(gather), Some(Work::Cut(Position(1)))));
            assert!(matches!(shared.next_work(|| None), Some(Work::Write(group)) if group.len() == 1));
        }
    }

    #[test]
    fn what_does_not_fit_into_a_group_is_written_next_and_all_bytes_are_accounted_for() {
        let shared = Shared::new(Position::NONE, Arc::new(Semaphore::new(9)));
        let large = || vec![Entry { kind: EntryKind::Pbft, bytes: vec![7; MAX_GROUP_BYTES - 100] }];
        for _ in 0..2 {
            shared.push(large(), Arc::clone(&shared.room).try_acquire_owned().unwrap()).unwrap();
        }
        push(&shared, EntryKind::AcceptedMessage);
        let gather = || Some(Duration::from_secs(3600));
        for entries in [1, 2] {
            let work = shared.next_work(gather);
            assert!(matches!(work, Some(Work::Write(group)) if group.len() == entries));
        }
        let queue = shared.queue();
        assert_eq!((queue.bytes, queue.is_urgent, queue.is_due()), (0, false, false));
    }
}
