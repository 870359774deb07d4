//! Stories of replicas that come back late and of requests that change nothing: a block does not tell
//! of these, so who missed their execution must learn of it otherwise, and soon.
//!
//! ```text
//! 0 dies ─▶ view 1 ─▶ 1 dies: no quorum ─▶ 1 is back ─▶ view 2 ─▶ 0 is back, in view 0
//!                      messages come again, through several nodes ─▶ numbers without a block
//! ```

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::cluster::Cluster;
use crate::run::{self, seeds};

const SECOND: Duration = Duration::from_secs(1);

/// Within this time the requests of one that came back are final, whatever it missed.
const BOUND: Duration = Duration::from_millis(1_500);

/// The longest time of all runs, in milliseconds, to be printed.
static LONGEST: AtomicU64 = AtomicU64::new(0);

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
    LONGEST.fetch_max((t.time - before).as_millis() as u64, Ordering::Relaxed);
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
    println!("answered after {} ms at most", LONGEST.load(Ordering::Relaxed));
}

#[test]
fn who_missed_a_batch_without_a_block_stays_in_the_view() {
    let name = "laggard::who_missed_a_batch_without_a_block_stays_in_the_view";
    run::all(name, seeds(30), |seed| missed_a_batch_without_a_block(seed, &|_| {}));
}

/// Replica 3 hears nobody for a while and leaves the view; nobody follows it.
fn leaves_alone(seed: u64) -> u64 {
    let mut t = Cluster::new(seed, 4);
    for node in 0..4 {
        t.ask_times(node, 8);
    }
    t.until_all_written(5 * SECOND).cut_off.insert(3);
    t.ask(3).run(SECOND * 3 / 2).cut_off.clear();
    assert!(status(&t, 3).changing);
    for round in 0..3 {
        // It misses numbers with and without a block, too.
        t.cut_off.insert(3);
        t.ask(1).ask_through(2, 1, round + 1).run(Duration::from_millis(100)).cut_off.clear();
        t.ask_through(1, 3, round + 1).ask_through(2, 3, round + 1).ask(3);
        t.run_until(BOUND, "its clients have their answers", |t| status(t, 3).pending == 0);
    }
    t.until_all_written(BOUND).run(5 * SECOND);
    let views: Vec<_> = (0..4).map(|at| (status(&t, at).view.0, status(&t, at).changing)).collect();
    assert_eq!(views, [(0, false), (0, false), (0, false), (1, true)]);
    // Without it there is no quorum: the others go where it is.
    t.crash(0).ask(1).ask(3).until_all_written(2 * SECOND).check_ledgers();
    assert!((1..4).all(|at| (status(&t, at).view.0, status(&t, at).changing) == (1, false)));
    t.happened
}

#[test]
fn who_left_a_view_alone_answers_its_clients_and_is_there_when_it_is_needed() {
    let name = "laggard::who_left_a_view_alone_answers_its_clients_and_is_there_when_it_is_needed";
    run::all(name, seeds(30), leaves_alone);
}
