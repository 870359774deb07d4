//! Stories of replicas that come back late and of requests that change nothing: a block does not tell
//! of these, so who missed their execution must learn of it otherwise, and soon.
//!
//! ```text
//! 0 dies ─▶ view 1 ─▶ 1 dies: no quorum ─▶ 1 is back ─▶ view 2 ─▶ 0 is back, in view 0
//!                      messages come again, through several nodes ─▶ numbers without a block
//! ```

use std::time::Duration;

use crate::cluster::Cluster;
use crate::run::{self, seeds};

const SECOND: Duration = Duration::from_secs(1);

/// Within this time the requests of one that came back are final, whatever it missed.
const BOUND: Duration = Duration::from_millis(1_500);

fn status(t: &Cluster, at: usize) -> ledgermq::pbft::Status {
    t.node(at).replica.as_ref().unwrap().status()
}

/// 0 and 1 were down one after the other, and 0 is back in a cluster that is in view 2. It knows only
/// view 0. Messages were handed in again meanwhile, so some numbers have no block.
fn back_in_view_two(t: &mut Cluster) {
    for node in 0..4 {
        t.ask_times(node, 2);
    }
    t.until_all_written(5 * SECOND).crash(0);
    t.ask_times(2, 3).ask_times(3, 3).until_all_written(5 * SECOND).crash(1);
    t.ask_times(2, 5).ask_times(3, 5).run(5 * SECOND);
    t.restart(1).until_all_written(5 * SECOND);
    assert_eq!(status(t, 2).view.0, 2);
    for number in 1..8 {
        t.ask_through(2, 3, number).run(Duration::from_millis(15));
        t.ask_through(3, 2, number).run(Duration::from_millis(15));
    }
    t.run(SECOND).restart(0);
    assert_eq!(status(t, 0).view.0, 0);
}

/// Seven messages that are on the ledger come to 0 again, and `fresh` others: all of these are final
/// soon, and 0 stays with the others.
fn comes_back(seed: u64, fresh: usize, change: impl Fn(&mut Cluster)) -> u64 {
    let mut t = Cluster::new(seed, 4);
    change(&mut t);
    back_in_view_two(&mut t);
    t.run(Duration::from_millis(137 * (seed % 29)));
    let before = t.time;
    for number in 1..8 {
        t.ask_through(2, 0, number);
    }
    t.ask_times(0, fresh);
    t.run_until(BOUND, "nothing waits any more at the one that came back", |t| {
        let status = status(t, 0);
        status.view.0 == 2 && status.pending == 0 && status.accepted == status.executed
    });
    println!("{seed}: {:?}", t.time - before);
    t.until_all_written(BOUND).run(5 * SECOND);
    for at in 0..4 {
        let status = status(&t, at);
        assert_eq!((status.view.0, status.changing), (2, false), "replica {at} left the view");
        assert_eq!(status.executed, self::status(&t, 2).executed);
    }
    t.check_ledgers();
    t.happened
}

/// Requests that change nothing are in one batch with others: its block does not name them.
pub fn missed_a_batch_that_made_a_block(seed: u64, change: &impl Fn(&mut Cluster)) -> u64 {
    comes_back(seed, 1, change)
}

/// None of the requests changes anything: their number is passed over.
pub fn missed_a_batch_without_a_block(seed: u64, change: &impl Fn(&mut Cluster)) -> u64 {
    comes_back(seed, 0, change)
}

#[test]
fn who_missed_a_batch_with_own_requests_that_its_block_does_not_name_stays_in_the_view() {
    let name = "laggard::who_missed_a_batch_with_own_requests_that_its_block_does_not_name_stays_in_the_view";
    run::all(name, seeds(30), |seed| missed_a_batch_that_made_a_block(seed, &|_| {}));
}

#[test]
fn who_missed_a_batch_without_a_block_stays_in_the_view() {
    let name = "laggard::who_missed_a_batch_without_a_block_stays_in_the_view";
    run::all(name, seeds(30), |seed| missed_a_batch_without_a_block(seed, &|_| {}));
}
