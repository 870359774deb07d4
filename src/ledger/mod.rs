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
pub mod genesis;
pub mod operation;

pub use block::{Block, Header};
pub use certificate::{Certificate, CheckpointContent};
pub use genesis::{Genesis, ReplicaSet};
pub use operation::{
    AdminAction, AdminOperation, ClientSettings, Operation, Request, WriteRequest, WrittenItem,
};
