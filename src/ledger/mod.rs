//! The ledger: what is ordered, how a batch is judged and becomes a block, and how anyone proves
//! that a reading is in one.
//!
//! ```text
//! Request ──stateless checks──▶ VerifiedRequest ──PBFT──▶ State::execute ──▶ Block + outcomes
//!                                                                             │
//!            ProofBundle ◀── Operation + path + header + Certificate ◀────────┘
//! ```
//!
//! Pure: no async, clock, randomness, network or file. All replicas that execute the same batches
//! have the same state, the same blocks and the same state digest.

pub mod block;
pub mod certificate;
pub mod change;
pub mod digest;
pub mod entry;
pub mod execute;
pub mod genesis;
pub mod index_set;
pub mod lattice;
pub mod operation;
pub mod outcome;
pub mod proof;
pub mod record;
pub mod request;
pub mod state;
#[cfg(test)]
mod tests;

pub use block::{Block, BlockError, CertifiedBlock, Header, MAX_BLOCK_BYTES};
pub use certificate::{Certificate, CertificateError, CheckpointContent, ReplicaSetKeys};
pub use change::{Head, StateChange};
pub use digest::{DigestError, HistoryDigest, MAX_DIGEST_ROWS};
pub use entry::{ClientRecord, DigestRecord, WindowEntry};
pub use genesis::{Genesis, GenesisError, ReplicaSet};
pub use operation::{
    AdminAction, AdminOperation, AdminOperationError, ClientSettings, Operation, Request, WriteRequest,
    WrittenItem,
};
pub use outcome::{ApplyError, Executed, Outcome, Rejection};
pub use proof::{Inclusion, MAX_BUNDLE_BYTES, ProofBundle, ProofError, Proven, ProvenBlock, Verifier};
pub use record::{Record, RecordError};
pub use request::{
    AdmittedMessage, Asked, MAX_REQUEST_BYTES, RequestError, Telemetry, UncheckedRequest, VerifiedRequest,
};
pub use state::{Policies, RestoreError, SEQ_WINDOW, State};
