//! Tests that span the modules of the ledger; what concerns one module is tested in it.

pub(super) mod fixture;

mod catch_up;
mod digests;
mod execution;
mod policies;
mod proof;
mod properties;
mod vectors;
