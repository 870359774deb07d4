//! The audit of histories: clean ones are clean, and each thing that was done to one is found and
//! named.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cells;
mod clean;
mod command;
mod served;
mod tamper;
mod world;
