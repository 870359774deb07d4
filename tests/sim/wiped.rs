//! Stories of a replica whose data is gone, in clusters that have changed their view: it comes back
//! silent, votes again later, and then it votes where the others do, without anybody's help.
//!
//! ```text
//! 0 dies ─▶ view 1 (─▶ view 2) ─▶ one is wiped ─▶ silent ─▶ its vote is needed in the others' view
//! ```
//!
//! The NEW-VIEW of the others' view may name a VIEW-CHANGE that the wiped one signed and forgot.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::cluster::Cluster;
use crate::network::Weather;
use crate::run::{self, seeds};

const SECOND: Duration = Duration::from_secs(1);

/// Within this time after the end of its silence, a request that needs its vote is final everywhere,
/// though it may lack bodies and a block that only some have, and one of these dies at that moment.
const BOUND: Duration = Duration::from_secs(1);

/// The same where messages were lost until then: a request that reached only one replica is
/// forwarded after half a timeout, and its turn may come after another one's.
const BOUND_AFTER_LOSS: Duration = Duration::from_secs(2);

/// How long it may be silent: it listens for 10 s, and the others need their time for a window of 256
/// numbers. Without it all three others must vote for each, so where messages are lost, somebody waits
/// for a repetition, a quarter of a second, for every other number: 73 to 85 s in eight runs.
const SILENCE: Duration = Duration::from_secs(90);

/// The longest time of all runs, in milliseconds, to be printed.
static LONGEST: AtomicU64 = AtomicU64::new(0);

#[derive(Clone, Copy)]
struct Story {
    n: usize,
    /// Who is wiped, one in each run.
    wiped: &'static [usize],
    /// Views that are changed before it is wiped.
    before: u64,
    /// Views that are changed while it is down.
    meanwhile: u64,
    /// Whether requests come all the while it is silent.
    load: bool,
    weather: Weather,
    bound: Duration,
}

const QUIET: Story = Story {
    n: 4,
    wiped: &[0, 1, 2, 3],
    before: 1,
    meanwhile: 0,
    load: false,
    weather: Weather::FAIR,
    bound: BOUND,
};

fn status(t: &Cluster, at: usize) -> ledgermq::pbft::Status {
    t.node(at).replica.as_ref().unwrap().status()
}

/// The view of the others, which they agree on, and its primary.
fn view(t: &Cluster, wiped: usize) -> (u64, usize) {
    let others = (0..t.n()).filter(|at| *at != wiped && t.node(*at).is_up());
    let views: Vec<_> = others.map(|at| (status(t, at).view.0, status(t, at).changing)).collect();
    assert!(views.iter().all(|view| *view == (views[0].0, false)), "{views:?}");
    (views[0].0, views[0].0 as usize % t.n())
}

/// The primary of the others dies, a request makes them replace it, and it comes back.
fn change_view(t: &mut Cluster, wiped: usize) {
    let (before, primary) = view(t, wiped);
    t.crash(primary);
    // Somebody else asks.
    let asks = (0..t.n()).find(|at| *at != wiped && *at != primary).unwrap();
    t.ask(asks).until_all_written(5 * SECOND).restart(primary).run(SECOND);
    t.ask(asks).until_all_written(5 * SECOND).run(SECOND);
    assert_eq!(view(t, wiped).0, before + 1);
}

/// `wiped` votes with the others soon after its silence.
fn comes_back(seed: u64, wiped: usize, story: Story) -> u64 {
    let mut t = Cluster::new(seed, story.n);
    for node in 0..story.n {
        t.ask_times(node, 2);
    }
    t.until_all_written(5 * SECOND);
    (0..story.before).for_each(|_| change_view(&mut t, story.n));
    t.wipe(wiped).nodes[wiped].lost_log = true;
    t.run(SECOND);
    (0..story.meanwhile).for_each(|_| change_view(&mut t, wiped));
    t.weather = story.weather;
    t.restart(wiped).run(Duration::from_millis(37 * (seed % 29)));
    assert!(status(&t, wiped).silent);
    let others: Vec<usize> = (0..story.n).filter(|at| *at != wiped).collect();
    let end = t.time + SILENCE;
    while status(&t, wiped).silent {
        assert!(t.time < end, "seed {seed}: it is silent for too long: {:?}", status(&t, wiped));
        if story.load {
            let node = t.rng.pick(&others);
            t.ask(node);
        }
        t.run(Duration::from_millis(20));
    }
    t.weather = Weather::FAIR;
    let before = t.time;
    let (view, primary) = view(&t, wiped);
    for dead in others.iter().filter(|at| **at != primary).take((story.n - 1) / 3) {
        t.crash(*dead);
    }
    t.ask(primary).ask(wiped).until_all_written(story.bound);
    LONGEST.fetch_max((t.time - before).as_millis() as u64, Ordering::Relaxed);
    let there = (status(&t, wiped).view.0, status(&t, wiped).changing, self::view(&t, wiped).0);
    assert_eq!(there, (view, false, view), "replica {wiped}, seed {seed}");
    t.heal().until_all_final().run(5 * SECOND).check_ledgers();
    assert_eq!((status(&t, wiped).view.0, status(&t, wiped).changing), (view, false));
    assert!(t.evidence.is_empty());
    t.happened
}

/// The same for each that is to be wiped.
fn each(name: &str, story: Story) {
    run::all(name, seeds(1), |seed| story.wiped.iter().map(|wiped| comes_back(seed, *wiped, story)).sum());
    println!("a request that needs its vote took {} ms at most", LONGEST.load(Ordering::Relaxed));
}

#[test]
fn wiped_while_nothing_is_asked_for() {
    each("wiped::wiped_while_nothing_is_asked_for", QUIET);
}

#[test]
fn wiped_under_load() {
    each("wiped::wiped_under_load", Story { wiped: &[0, 1, 2], load: true, ..QUIET });
}

#[test]
fn wiped_after_two_changes_of_view() {
    each("wiped::wiped_after_two_changes_of_view", Story { before: 2, ..QUIET });
}

#[test]
fn wiped_and_away_for_two_changes_of_view() {
    each(
        "wiped::wiped_and_away_for_two_changes_of_view",
        Story { n: 7, wiped: &[0, 5], meanwhile: 2, ..QUIET },
    );
}

#[test]
fn wiped_where_messages_are_lost() {
    let weather = Weather { loss_percent: 5, duplicate_percent: 10, min_delay_us: 200, max_delay_us: 50_000 };
    each(
        "wiped::wiped_where_messages_are_lost",
        Story { wiped: &[2], load: true, weather, bound: BOUND_AFTER_LOSS, ..QUIET },
    );
}

#[test]
fn wiped_of_seven() {
    each("wiped::wiped_of_seven", Story { n: 7, wiped: &[0, 2], before: 2, ..QUIET });
}
