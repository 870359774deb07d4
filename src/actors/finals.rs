//! The one way in which a message becomes final: its fate is noted, then its client is told.
//!
//! Whoever learns a fate (Policy, Storage) says so here. Only the first fate of a message that is
//! pending goes on to Ingress, so blocks fetched from other nodes, which name messages that were
//! final long ago, make no traffic; and the pipe holds at most [`super::admission::MAX_PENDING`],
//! since a message keeps its place until its client was told.

use std::sync::Arc;

use actix::Message;
use prometheus::Histogram;

use super::admission::{Admission, Place};
use super::bases::Bases;
use super::history::HistoryFeed;
use super::{Feeder, FinalMessage, FinalVerdict};
use crate::clock::SharedClock;

/// Tells a client what became of its message.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct TellFinal {
    /// The message and its fate.
    pub message: FinalMessage,
    /// To be dropped when the client was told.
    pub place: Option<Place>,
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Finals {
    admission: Arc<Admission>,
    bases: Arc<Bases>,
    history: Option<HistoryFeed>,
    to_ingress: Feeder<TellFinal>,
    clock: SharedClock,
    final_ms: Histogram,
}

impl Finals {
    /// Notes fates in `admission` and `bases`, and sends those that are new on `to_ingress`.
    pub fn new(
        admission: Arc<Admission>,
        bases: Arc<Bases>,
        to_ingress: Feeder<TellFinal>,
        clock: SharedClock,
        final_ms: Histogram,
    ) -> Self {
        Self { admission, bases, history: None, to_ingress, clock, final_ms }
    }

    /// The same, and the history is told, too.
    #[must_use]
    pub fn with_history(mut self, history: HistoryFeed) -> Self {
        self.history = Some(history);
        self
    }

    /// A message is final. Does nothing if it was so before, or is not this node's.
    pub fn tell(&self, message: FinalMessage) {
        self.bases.settled(&message);
        let FinalMessage { client, seq, header, verdict, .. } = &message;
        let Some(settled) = self.admission.settle(client, *seq, header, verdict.clone()) else { return };
        if let (Some(received), false) = (settled.received, matches!(verdict, FinalVerdict::Rejected(_))) {
            let took = self.clock.monotonic().saturating_sub(received);
            self.final_ms.observe(took.as_secs_f64() * 1000.0);
        }
        if let Some(history) = &self.history {
            history.is_final(&message);
        }
        self.to_ingress.put_now(TellFinal { message, place: settled.place });
    }

    /// Whether the client of this message still waits to be told.
    pub fn is_pending(&self, message: &FinalMessage) -> bool {
        self.admission.is_pending(&message.client, message.seq, &message.header)
    }
}
