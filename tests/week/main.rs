//! A week of operation in virtual time, audited: several nodes and clients, and everything that
//! happens to them that must never look like tampering.
//!
//! ```text
//! seed ─▶ plan ─▶ events ─▶ clients ─▶ nodes: admission, judging, log, history ─▶ requests ─▶ order ─▶ blocks
//!                                        └──────◀─ execute, fetch, certify, index ──◀──────────┘
//! at the end: every node's history is audited: no finding; then it is tampered with: each is found
//! ```
//!
//! Late, repeated and reordered data, messages that two nodes have, restarts with what the log has, a node
//! that was wiped, a history that was gone, policies that change while messages are on their way, keys that are
//! replaced, refusals, numbers used twice. What nodes do with messages, the ledger and the history is the
//! program's own code; the network and consensus are stood in for (`order.rs`), since tests/sim is about those.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::cast_possible_truncation)]
#![allow(clippy::cast_possible_wrap, clippy::cast_sign_loss, clippy::cast_precision_loss)]

mod clock;
mod device;
mod gate;
mod ledger;
mod node;
mod order;
mod plan;
#[path = "../sim/rng.rs"]
#[allow(dead_code)]
mod rng;
mod sites;
mod world;

use sites::Remains;

fn week(seed: u64) -> Remains {
    actix::System::new().block_on(plan::week(seed))
}

#[test]
fn a_week_is_eventful() {
    let remains = week(1);
    for (what, count) in &remains.counts {
        println!("{count:6} {what}");
    }
    println!("{:?}", remains.refused);
    println!("{} blocks", remains.blocks.len());
}
