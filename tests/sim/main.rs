//! A deterministic simulator: clusters of real PBFT cores with real ledger state, in virtual time,
//! over a virtual network and virtual disks.
//!
//! ```text
//! seed ─▶ storm ─▶ faults, requests ─▶ events ─▶ cores ─▶ log entries ─▶ disk ─▶ effects ─▶ network
//!                                        │                                                    │
//!                                        └───────────◀───────── Byzantine replicas ◀──────────┘
//!                  after every event: all of property/; at the end: liveness, and the whole ledger
//! ```
//!
//! Everything that happens comes from one queue of events and one seeded generator, so a seed
//! reproduces a run exactly. `storm.rs` mixes all faults; `scenarios.rs` tells one story at a
//! time; `evil.rs` meets each adversary; `transfer.rs` catches up; `crashes.rs` crashes at every
//! step; `planted.rs` proves that mistakes are found. A failure prints the command that repeats it.
//! `docs/SIMULATOR.md` has the commands, and the exact statements of the properties.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::cast_possible_truncation)]
#![allow(clippy::cast_possible_wrap, clippy::cast_sign_loss)]

mod adversary;
mod audit;
mod clients;
mod cluster;
mod crashes;
mod directed;
mod disk;
mod effects;
mod events;
mod evil;
mod laggard;
mod network;
mod node;
mod overload;
mod planted;
mod property;
mod rng;
mod run;
mod scenarios;
mod storm;
mod timing;
mod trail;
mod transfer;
mod wiped;
