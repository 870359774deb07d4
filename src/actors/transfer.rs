//! State transfer.
pub mod plan;
mod peer;
pub mod throttle;
