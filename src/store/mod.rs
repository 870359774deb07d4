//! What a node keeps on disk: one log and one ledger store.
//!
//! ```text
//!   accepted messages ─┐                           ┌─▶ PUBACK, PBFT effects (after the sync)
//!   PBFT entries ──────┴─▶ Log: append, fdatasync ─┘
//!                            │ replay after a restart
//!                            ▼
//!   executed batches ─────▶ LedgerStore (sled): blocks, certificates, state, record index
//!                            │ make_durable every 10 s or 64 MiB
//!                            └─▶ Log::cut below what nobody needs any more
//! ```
//!
//! What must not be lost is in the [`log`] before anybody is told; the [`ledger`] store may lag
//! behind, since the log replays into it, and is made durable only before the log is cut. [`evidence`]
//! against replicas lies in files of its own. Byte
//! layouts, rules and what an operator does on damage are in `docs/STORAGE.md`.

pub mod evidence;
pub mod ledger;
pub mod log;
pub mod sled_store;

pub use evidence::{EvidenceLimits, EvidenceStore};
pub use ledger::{CertifiedCommit, LedgerStore, StoreError};
pub use log::{Log, LogError};
pub use sled_store::{SledStore, StoreSettings};
