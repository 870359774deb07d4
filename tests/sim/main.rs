//! A cluster of PBFT cores in virtual time, with real ledger state, a lossy network and disks that
//! forget what was not synced.
//!
//! Everything that happens comes from one queue of events and one seeded generator, so a seed
//! reproduces a run exactly. After every event the checker compares what all replicas executed.
//! A failing scenario prints the command that repeats it; `SIM_SEEDS=1000` runs more of them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::cast_possible_truncation)]

mod adversary;
mod checker;
mod clients;
mod cluster;
mod node;
mod rng;
mod scenarios;
