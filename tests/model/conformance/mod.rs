//! The model and the core, side by side: real replicas with real signatures and real logs do what
//! the model says, and nothing that it does not allow.
//!
//! ```text
//!  walk ──picks an action──▶ model ──▶ what is to be heard ──▶ Replica::step
//!                              ▲                                   │ entries of the log
//!                              └──── the same state? ◀── actions ──┘
//! ```
//!
//! `cluster` holds the replicas, and what they signed; `liar` signs for the faulty one; `monitor`
//! reads the entries of their logs as actions of the model, each of which must be possible there;
//! `walk` picks what happens next.

mod cluster;
mod liar;
mod monitor;
mod walk;

use crate::bounds::{Bounds, REPLICAS};
use walk::Walk;

/// How many walks with each faulty replica.
const WALKS: u64 = 25;

/// Walks, or as many as the environment says.
fn walks() -> u64 {
    std::env::var("WALKS").map_or(WALKS, |text| text.parse().unwrap())
}

fn walk_with_each(step: fn(&mut Walk)) -> walk::Tally {
    let mut tally = walk::Tally::default();
    for byzantine in 0..REPLICAS {
        for seed in 0..walks() {
            let mut walk = Walk::new(Bounds::two_numbers(byzantine, 2).with_any_names(), seed);
            walk.run(step);
            tally.add(&walk.tally);
        }
    }
    println!("{tally:?}");
    tally
}

#[test]
fn the_core_does_whatever_the_model_says_that_it_can() {
    let tally = walk_with_each(Walk::guided);
    assert!(
        tally.is_varied() && tally.committed_null > 0,
        "walks that miss something prove little: {tally:?}"
    );
}

#[test]
fn the_core_does_nothing_that_the_model_does_not_allow() {
    let tally = walk_with_each(Walk::free);
    assert!(tally.is_varied(), "walks that miss something prove little: {tally:?}");
    assert!(tally.refused > 0, "no forged proof was refused");
}

/// The walks proved: what is planted in the core is something that the model does not allow.
#[cfg(feature = "planted-bugs")]
#[test]
fn what_is_planted_in_the_core_is_more_than_the_model_allows() {
    use ledgermq::planted::{self, Bug};
    let planted = [
        Bug::QuorumOffByOne,
        Bug::PrepareOfPrimaryCounted,
        Bug::ExecutedWhenPrepared,
        Bug::ONotRecomputed,
        Bug::VotesNotMatched,
    ];
    for bug in planted {
        let noticed = (0..REPLICAS).any(|byzantine| {
            (0..walks()).any(|seed| {
                // What the model knows is right.
                let mut walk = Walk::new(Bounds::two_numbers(byzantine, 2).with_any_names(), seed);
                planted::with(Some(bug));
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| walk.run(Walk::free)));
                planted::with(None);
                result.is_err()
            })
        });
        assert!(noticed, "{bug:?} was not noticed");
    }
}
