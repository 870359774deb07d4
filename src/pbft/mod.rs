//! PBFT: the replicated order of requests, as a pure state machine (Castro and Liskov 1999, 2002).
//!
//! ```text
//!   Request ──▶ pool ──▶ PRE-PREPARE ──▶ PREPARE ──▶ COMMIT ──▶ Execute ──▶ CHECKPOINT ──▶ Certified
//!                         primary        backups     all         in order     all            quorum
//! ```
//!
//! [`Replica::step`] is the only entry: an [`Input`] and the time go in, entries for the log and
//! [`Effect`]s come out. No async, clock, randomness, network or file: the consensus actor is a
//! thin shell around it, and `tests/sim` runs many of them in virtual time. Where the paper's
//! sections are named, (1999) is "Practical Byzantine Fault Tolerance". `docs/CONSENSUS.md` tells
//! the protocol as built.
//!
//! When the primary fails, the replicas change to the next view (1999, section 4.4):
//!
//! ```text
//!   suspicion ──▶ VIEW-CHANGE (what was prepared) ──▶ NEW-VIEW (carries it over) ──▶ as above
//!   any replica    all, logged                         the next primary, checked by all
//! ```

pub mod certificates;
pub mod diagnosis;
pub mod evidence;
pub mod footprint;
pub mod gate;
pub mod insight;
pub mod io;
pub mod message;
pub mod notice;
pub mod replica;
pub mod settings;
pub mod wal;

mod archive;
mod checkpoints;
mod log;
mod on_checkpoint;
mod on_new_view;
mod on_pre_prepare;
mod on_request;
mod on_view_change;
mod on_votes;
mod outbox;
mod pool;
mod propose;
mod recovery;
mod resend;
mod restore;
mod silence;
mod suspicion;
mod timers;
mod views;
mod witness;

#[cfg(test)]
mod tests;

pub use evidence::{Evidence, EvidenceError};
pub use footprint::Footprint;
pub use gate::{Gate, Pass};
pub use insight::Insight;
pub use io::{Effect, Input, Now, Output, Rejected, Source};
pub use message::{Batch, Envelope, MessageError, Signed, Verified};
pub use notice::{Notice, Suspicion};
pub use replica::{Replica, SetupError, Status};
pub use settings::Settings;
pub use wal::{Pin, Restored, WalEntry, WalError};
