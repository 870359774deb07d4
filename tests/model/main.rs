//! The consensus protocol checked exhaustively: four replicas, one of them faulty, two and three
//! views, in every order in which anything can be said and heard. docs/MODEL.md says what is
//! modelled, why what is left out makes no difference, and how many states there are.
//!
//! ```text
//!  bounds ──▶ protocol (actions, states) ──▶ stateright ──▶ every state has every property
//!    │             │  rules: who can prove what
//!    │             └─ plans: O of V, by the core's own function
//!    └── from the core's own replica set: quorum, primaries
//!
//!  conformance: real replicas with real signatures and the model, side by side
//! ```
//!
//! `checks` runs the checker and compares the numbers of states with the document, `mistakes`
//! proves that it finds what is wrong, `conformance` that the model says of the core what is so.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::cast_possible_truncation)]

mod bounds;
mod checks;
mod conformance;
mod mistakes;
mod plans;
mod properties;
mod protocol;
#[allow(dead_code)] // The simulator uses more of it.
#[path = "../sim/rng.rs"]
mod rng;
mod rules;
mod state;
