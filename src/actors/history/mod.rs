//! History: writes every decided message to the history database, and what became of it.
//!
//! ```text
//! Verifier ─ place ─▶ Policy ─ row ─▶ ┌───────┐  batches   ┌──────────┐
//!                      Finals ─ fate ─▶│ queue │ ─────────▶ │ database │
//!                                      └───────┘            └──────────┘
//! numbers and hashes of new rows ─▶ digests ─▶ Consensus ─▶ the ledger
//! ```
//!
//! The log holds what is not in the database yet: each accepted message has a [`Place`] from before
//! its log entry until its row and its fate are there, and the log is not cut below the first place
//! ([`Backlog::needed_from`]). Places are limited, in messages and bytes; while there is none, no
//! further message is accepted and its PUBACK is withheld. So a database that is gone costs nothing
//! until the places are used up, and nothing is ever dropped.
//!
//! After a restart the rows of all messages that the log still has are offered again
//! (`replay.rs`); what is there already stays as it is.

mod backlog;
mod digester;
mod metrics;
mod replay;
#[cfg(test)]
mod tests;
mod writer;

use std::sync::Arc;

use tokio::sync::mpsc;

pub use backlog::{Backlog, Place};
pub use replay::{Finished, replay};
pub use writer::{DigestTerms, HistoryParts, HistoryTask, SubmitDigest};

use super::{Fatal, FinalMessage, FinalVerdict};
use crate::device::telemetry::Message;
use crate::history::{HistoryRow, MessageKey, RowFate};
use crate::store::log::Position;

/// What the task is told.
#[derive(Debug)]
enum Told {
    /// A message was decided; where the log has it.
    Row(HistoryRow, Position, Arc<Place>),
    /// A message is final.
    Fate(MessageKey, Option<RowFate>),
}

/// The way into the history. Cheap to clone.
#[derive(Debug, Clone)]
pub struct HistoryFeed {
    queue: mpsc::Sender<Told>,
    fatal: Fatal,
}

impl HistoryFeed {
    /// A feed and what it leads to: room for one row and one fate of each message that has a place.
    fn new(fatal: Fatal) -> (Self, mpsc::Receiver<Told>) {
        let (queue, told) = mpsc::channel(2 * backlog::MAX_MESSAGES);
        (Self { queue, fatal }, told)
    }

    /// A feed that nobody reads, for tests of other actors.
    #[cfg(test)]
    pub(crate) fn to_nowhere(fatal: Fatal) -> Self {
        Self::new(fatal).0
    }

    /// A message was decided, and its log entry is at `position`. To be said before anybody can know its
    /// fate; it is written once that entry is on disk.
    pub fn decided(&self, message: Arc<Message>, decision: Vec<u8>, position: Position, place: Arc<Place>) {
        self.put(Told::Row(HistoryRow { message, decision }, position, place));
    }

    /// A message is final; said once for each that was decided.
    pub fn is_final(&self, message: &FinalMessage) {
        let fate = match &message.verdict {
            FinalVerdict::Written { items, height, .. } => {
                Some(RowFate::Written { height: *height, items: items.clone() })
            }
            FinalVerdict::NotWritten => None,
            FinalVerdict::Rejected(rejection) => Some(RowFate::Rejected(rejection.to_string())),
        };
        self.put(Told::Fate((message.client.clone(), message.seq, message.header), fate));
    }

    fn put(&self, told: Told) {
        match self.queue.try_send(told) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Closed(_)) => {
                tracing::debug!("the history has stopped; the log keeps the message");
            }
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.fatal.stop(anyhow::anyhow!("the queue of the history overflowed its bound"));
            }
        }
    }
}
