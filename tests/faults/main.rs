//! Faults in real processes, under load: four nodes, clients that publish through each of them, and a
//! checker that compares all nodes' blocks and every word that a client was given.
//!
//! | file | what holds |
//! | --- | --- |
//! | `kills.rs` | any nodes may be killed in any order, and come back in any order |
//! | `pauses.rs` | a primary that stands still is replaced, and joins again |
//! | `logs.rs` | a log that is torn, damaged or gone is told apart, and nothing is lost |
//! | `partitions.rs` | no partition makes two ledgers, and all heal (network namespaces: feature `interop`) |
//! | `full_disk.rs` | a node whose disk is full stops, says so, and comes back (feature `interop`) |
//! | `history.rs` | the history's disk is full, PostgreSQL goes away under load (feature `interop`) |
//! | `shared.rs` | log and history on one full disk; PostgreSQL as the history of four nodes under load (feature `interop`) |
//! | `checker.rs` | the checker, and `checker_tests.rs` which shows that it finds what is wrong |
//! | `load.rs`, `plain.rs` | the clients |
//! | `site.rs`, `table.rs` | a network under load; how long each fault was felt |
//!
//! docs/FAULTS.md tells what is promised and what was measured. Four nodes are heavy for a small
//! machine, so the tests take turns.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod checker;
mod checker_tests;
#[cfg(feature = "interop")]
mod full_disk;
#[cfg(feature = "interop")]
mod history;
mod kills;
mod load;
mod logs;
#[path = "../common/mqtt.rs"]
#[allow(dead_code)]
mod mqtt;
#[cfg(feature = "interop")]
mod netns;
#[path = "../e2e/network.rs"]
#[allow(dead_code)]
mod network;
#[cfg(feature = "interop")]
mod partitions;
mod pauses;
mod plain;
#[cfg(feature = "interop")]
#[path = "../e2e/rows.rs"]
mod rows;
#[cfg(feature = "interop")]
#[path = "../history/server.rs"]
mod server;
#[cfg(feature = "interop")]
mod shared;
mod site;
mod table;

use tokio::sync::{Mutex, MutexGuard};

/// Held by the test whose nodes run.
static TURN: Mutex<()> = Mutex::const_new(());

/// Waits until no other test's nodes run.
async fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().await
}

/// Whether the long tables are to be run: `FAULTS_ALL=1`.
fn is_long() -> bool {
    std::env::var_os("FAULTS_ALL").is_some()
}
