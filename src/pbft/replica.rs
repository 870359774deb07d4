//! The replica: its state, its one entry, and the order of work in a step.

use std::sync::Arc;
use std::time::Duration;

use crate::ledger::VerifiedRequest;
use crate::pbft::io::{Input, Now, Output};
use crate::pbft::settings::Settings;
use crate::pbft::wal::Restored;
use crate::types::{Hash, Height, NodeId, SeqNum, View};

/// Why a replica cannot start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    /// The key is not that of a replica.
    #[error(
        "the node key {0} is not one of the ledger's replicas; use the key that `ledgermq init` made for this node"
    )]
    NotAReplica(NodeId),
    /// A setting is out of its range.
    #[error("setting {name}: {problem}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// Where a replica stands, for metrics and the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// The current view.
    pub view: View,
    /// Its primary.
    pub primary: NodeId,
    /// The low watermark: the last stable checkpoint.
    pub stable: SeqNum,
    /// The last executed sequence number.
    pub executed: SeqNum,
    /// The height executed.
    pub height: Height,
    /// The last sequence number proposed or agreed to.
    pub accepted: SeqNum,
    /// What at least one correct other replica has executed, if that is more.
    pub known: SeqNum,
    /// Requests in the pool that are not ordered.
    pub pending: usize,
    /// Bytes of requests that are ordered and not stable.
    pub inflight_bytes: usize,
}

/// One replica of PBFT.
#[derive(Debug)]
pub struct Replica {
    settings: Settings,
}

impl Replica {
    /// A replica that goes on where its log ends. Its first step sends what it had sent again.
    ///
    /// # Errors
    /// [`SetupError`].
    pub fn new(settings: Settings, _restored: Restored) -> Result<Self, SetupError> {
        Ok(Self { settings })
    }

    /// Takes one input at one time.
    pub fn step(&mut self, _now: Now, _input: Input) -> Output {
        Output::default()
    }

    /// When to say [`Input::Tick`] at the latest, in monotonic time. May be past.
    pub fn next_deadline(&self) -> Option<Duration> {
        None
    }

    /// The request with this digest, if the replica has it: to answer others' fetches.
    pub fn request(&self, _digest: &Hash) -> Option<Arc<VerifiedRequest>> {
        None
    }

    /// Whether the pool takes another request of this node of so many bytes: admission waits
    /// while it does not.
    pub fn has_room(&self, _bytes: usize) -> bool {
        true
    }

    /// Where the replica stands.
    pub fn status(&self) -> Status {
        Status {
            view: View(0),
            primary: self.settings.replicas.primary(View(0)),
            stable: SeqNum(0),
            executed: SeqNum(0),
            height: Height(0),
            accepted: SeqNum(0),
            known: SeqNum(0),
            pending: 0,
            inflight_bytes: 0,
        }
    }
}
