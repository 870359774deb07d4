//! LedgerMQ: tamper-evident MQTT telemetry in one binary.
//!
//! Imports point one way:
//!
//! ```text
//! main → cli → node → actors → {broker, network, store, history, api}
//!      → {ledger, pbft, device, policy} → {crypto, codec, merkle} → types
//! ```

pub mod clock;
pub mod codec;
pub mod crypto;
pub mod device;
pub mod ledger;
pub mod merkle;
pub mod pbft;
pub mod policy;
pub mod types;
