//! How much may be accepted and not in the history yet, and from where on the log is needed for it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::device::telemetry::Message;
use crate::history::HistoryRow;
use crate::metrics::QueueGauge;
use crate::store::log::Position;

/// Messages that are accepted and not in the history: a minute of the full rate of one node. Their
/// bytes are limited by a setting besides.
pub const MAX_MESSAGES: usize = 131_072;

/// See the module. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Backlog(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    messages: Arc<Semaphore>,
    kib: Arc<Semaphore>,
    capacity_kib: usize,
    gauge: QueueGauge,
    pinned: Mutex<Pinned>,
}

#[derive(Debug, Default)]
struct Pinned {
    positions: BTreeSet<(Position, u64)>,
    next: u64,
}

/// A message's place among those that are not in the history; free again when it is dropped. What
/// it pins of the log is needed until [`Place::is_done`] was said: a node that stops says nothing.
#[derive(Debug)]
pub struct Place {
    backlog: Backlog,
    pinned: Mutex<Option<(Position, u64)>>,
    taken_kib: i64,
    _permits: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

impl Backlog {
    /// Room for messages of so many bytes. `gauge` shows how much is taken, in KiB.
    pub fn new(max_bytes: u64, gauge: QueueGauge) -> Self {
        let capacity_kib =
            usize::try_from(max_bytes / 1024).unwrap_or(usize::MAX).clamp(1, u32::MAX as usize);
        Self(Arc::new(Shared {
            messages: Arc::new(Semaphore::new(MAX_MESSAGES)),
            kib: Arc::new(Semaphore::new(capacity_kib)),
            capacity_kib,
            gauge,
            pinned: Mutex::default(),
        }))
    }

    /// Waits for room for a message.
    pub async fn place(&self, message: &Message) -> Option<Place> {
        let shared = &self.0;
        let kib = u32::try_from((HistoryRow::bytes(message) / 1024 + 1).min(shared.capacity_kib)).ok()?;
        if shared.kib.available_permits() < kib as usize || shared.messages.available_permits() == 0 {
            shared.gauge.full.inc();
        }
        let one = Arc::clone(&shared.messages).acquire_owned().await.ok()?;
        let bytes = Arc::clone(&shared.kib).acquire_many_owned(kib).await.ok()?;
        let taken_kib = i64::from(kib);
        shared.gauge.length.add(taken_kib);
        Some(Place { backlog: self.clone(), pinned: Mutex::new(None), taken_kib, _permits: (one, bytes) })
    }

    /// The first position of the log that is needed for what is not in the history; none if all is.
    pub fn needed_from(&self) -> Option<Position> {
        self.pinned().positions.first().map(|(position, _)| *position)
    }

    /// The log is needed from `position` on until `is_done` was said of what this gives back. Used for
    /// messages of before a restart, which take no room.
    pub(super) fn pin(&self, position: Position) -> (Position, u64) {
        let mut pinned = self.pinned();
        pinned.next += 1;
        let pin = (position, pinned.next);
        pinned.positions.insert(pin);
        pin
    }

    pub(super) fn is_done(&self, pin: (Position, u64)) {
        self.pinned().positions.remove(&pin);
    }

    fn pinned(&self) -> MutexGuard<'_, Pinned> {
        self.0.pinned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// The message's log entry is at or above `position`: to be said before it is appended.
    pub fn pin(&self, position: Position) {
        let pin = self.backlog.pin(position);
        let old = self.pinned.lock().unwrap_or_else(PoisonError::into_inner).replace(pin);
        if let Some(old) = old {
            self.backlog.is_done(old);
        }
    }

    /// The row and the fate of the message are in the history: the log is not needed for it.
    pub fn is_done(&self) {
        let pin = self.pinned.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(pin) = pin {
            self.backlog.is_done(pin);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.backlog.0.gauge.length.sub(self.taken_kib);
    }
}
