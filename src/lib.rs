//! LedgerMQ: tamper-evident MQTT telemetry in one binary.
//!
//! Imports point one way:
//!
//! ```text
//! main → cli → node → actors → {broker, network, store, history, api}
//!      → {ledger, pbft, device, policy} → {crypto, codec, merkle} → types
//! ```

pub mod actors;
pub mod api;
pub mod broker;
pub mod cli;
pub mod clock;
pub mod codec;
pub mod config;
pub mod crypto;
pub mod device;
pub mod gateway;
pub mod history;
pub mod keyfile;
pub mod ledger;
pub mod merkle;
pub mod metrics;
pub mod network;
pub mod node;
pub mod pbft;
#[doc(hidden)]
pub mod planted;
pub mod policy;
pub mod store;
pub mod types;
mod wording;
