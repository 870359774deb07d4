//! End to end: real node processes, real connections, and everything that can go wrong with either.
//!
//! | file | what holds |
//! | --- | --- |
//! | `first_light.rs` | a reading goes from a gateway to a proof, on four replicas |
//! | `crashes.rs` | nothing that was acknowledged is lost, whoever is killed |
//! | `evidence.rs` | who contradicts itself is proven faulty by all others, for good |
//! | `history.rs` | a history that takes nothing for a while costs nothing that was promised |
//! | `hostile_messages.rs` | each bad message gets the answer that the protocol names |
//! | `hostile_ports.rs` | garbage on any port harms nobody |
//! | `operations.rs` | the ledger takes an admin's operations, and nobody else's |
//! | `publish.rs` | a file of readings is on the ledger once, whatever became of the runs |
//! | `refusals.rs` | who may not publish is told at once, and what to do |
//! | `transfer.rs` | a node that is behind, wiped or killed gets the ledger from the others, whoever lies |
//! | `starting.rs` | a node that must not start says what to do |
//! | `status.rs` | anyone can see whether the network advances, and if not, why |
//! | `audit.rs` | the history of a network that was killed is clean, and an altered one is not |
//! | `interop.rs` | gateways and MQTT tools that share no code with this program |
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod audit;
mod crashes;
mod device;
mod evidence;
mod first_light;
mod history;
mod hostile_messages;
mod hostile_ports;
#[cfg(feature = "interop")]
mod interop;
#[path = "../common/mqtt.rs"]
mod mqtt;
mod network;
mod operations;
mod policies;
mod publish;
mod refusals;
mod rows;
mod starting;
mod status;
mod transfer;
