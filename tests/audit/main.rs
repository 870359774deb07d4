//! The audit of histories: clean ones are clean, and each thing that was done to one is found and
//! named.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cells;
mod clean;
mod command;
mod hostile;
mod interrupted;
#[cfg(feature = "interop")]
mod postgres;
mod served;
#[cfg(feature = "interop")]
#[path = "../history/server.rs"]
#[allow(dead_code)]
mod server;
mod tamper;
mod world;
