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

mod audited;
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

/// What must have happened in a week.
const EVENTFUL: [&str; 16] = [
    "catching up by fetching",
    "digests submitted",
    "histories lost",
    "histories unplugged or back",
    "keys replaced",
    "memories lost",
    "messages of the log offered again",
    "messages of which nothing is written",
    "messages repeated",
    "messages resumed",
    "nodes cut off",
    "nodes killed",
    "nodes stopped",
    "nodes wiped",
    "rows audited that no digest covered",
    "too many items",
];

/// Runs a week, audits what it left, and tampers with it.
fn audited_week(seed: u64) {
    actix::System::new().block_on(async {
        let remains = plan::week(seed).await;
        println!("seed {seed}; refused by the ledger: {:?}", remains.refused);
        for (what, count) in &remains.counts {
            println!("{count:6} {what}");
        }
        for what in EVENTFUL {
            assert!(remains.counts.contains_key(what), "a week without {what} shows nothing of it");
        }
        let of = |words| remains.refused.iter().any(|rejection| rejection.contains(words));
        assert!(of("Revoked") && of("SeqReused"), "{:?}", remains.refused);
        let reports = audited::no_false_alarm(&remains.sites, &remains.ledger).await;
        for report in &reports {
            println!("{:?}", report.nodes[0]);
        }
        audited::tampering_is_found(&remains).await;
    });
}

#[test]
fn a_first_week_is_audited_without_a_false_alarm_and_tampering_with_it_is_found() {
    audited_week(1);
}

#[test]
fn a_second_week_is_audited_without_a_false_alarm_and_tampering_with_it_is_found() {
    audited_week(2);
}

#[test]
fn a_third_week_is_audited_without_a_false_alarm_and_tampering_with_it_is_found() {
    audited_week(3);
}

/// Weeks of other seeds: `WEEK_SEEDS=10..20 cargo test --test week -- --ignored --nocapture`.
#[test]
#[ignore = "takes 20 seconds a seed"]
fn weeks_of_the_seeds_given() {
    let range = std::env::var("WEEK_SEEDS").expect("WEEK_SEEDS=from..to");
    let (from, to) = range.split_once("..").expect("WEEK_SEEDS=from..to");
    (from.parse().unwrap()..to.parse().unwrap()).for_each(audited_week);
}
