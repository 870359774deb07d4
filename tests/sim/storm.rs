//! Mixed faults: everything at once, from one seed. The size of the cluster, its settings, clocks,
//! disks, Byzantine replicas, weather, partitions and crashes are all drawn; after a while the faults
//! of network, disks and processes stop, and everything admitted must become final.
//!
//! Each fault is drawn from a generator of its own, so that one can be left out of a run without
//! changing what the others are: `SIM_NARROW=1` leaves out all that a failure does not need.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use ledgermq::pbft::Settings;

use crate::adversary::deeds::Tally;
use crate::adversary::{self, colluders, twins};
use crate::cluster::Cluster;
use crate::events::Event;
use crate::network::Weather;
use crate::node::{Clock, CrashPoint};
use crate::planted::ShellBug;
use crate::rng::Rng;
use crate::run;

/// Sizes of clusters; the usual ones often, the large ones, which take longest, seldom.
const SIZES: [usize; 24] = [4, 4, 4, 4, 4, 4, 4, 4, 4, 1, 2, 3, 3, 5, 5, 6, 6, 7, 7, 7, 8, 9, 10, 10];

/// Seeds of the usual test run.
const SEEDS: u64 = 1_000;

/// How many faults, or requests, a run has.
const FEWEST_FAULTS: u64 = 10;
const MOST_FAULTS: u64 = 40;

/// From so many seeds on, every kind of adversary must have done its evil in one of so many runs.
const ENOUGH: u64 = 500;
const EVIL_IN_ONE_OF: u64 = 10;

/// What many runs did.
#[derive(Default)]
struct Summary {
    slowest: (Duration, u64),
    tally: Tally,
}

#[test]
fn storm() {
    let summary = Mutex::new(Summary::default());
    let seeds = run::seeds(SEEDS);
    if let (Some(seed), Some(_)) = (run::number("SIM_SEED"), run::number("SIM_NARROW")) {
        narrow(seed);
    }
    run::all("storm::storm", seeds.clone(), |seed| {
        let (mut t, took) = play(seed, &|_| {}, &skipped());
        let mut summary = summary.lock().unwrap();
        summary.slowest = summary.slowest.max((took, seed));
        for (kind, deed) in t.adversary_deeds() {
            summary.tally.add(kind, deed);
        }
        t.happened
    });
    let Summary { slowest, tally } = summary.into_inner().unwrap();
    println!("the slowest needed {:?} after the faults ended: seed {}\n{tally}", slowest.0, slowest.1);
    for (kind, runs, evil) in tally.kinds() {
        let enough = seeds.end - seeds.start < ENOUGH || evil * EVIL_IN_ONE_OF >= runs;
        assert!(enough, "the {kind} did something in {evil} of {runs} runs only");
    }
}

/// One run; gives the number of events.
pub fn run(seed: u64, plant: &impl Fn(&mut Cluster)) -> u64 {
    play(seed, plant, &skipped()).0.happened
}

/// SIM_SKIP: the numbers of faults to leave out, with commas between.
fn skipped() -> BTreeSet<u64> {
    let text = std::env::var("SIM_SKIP").unwrap_or_default();
    let numbers = text.split(',').filter(|part| !part.is_empty());
    numbers.map(|part| part.trim().parse().expect("SIM_SKIP has numbers with commas between")).collect()
}

/// One run without the faults in `skip`. Gives how it ended, and how long after the faults ended
/// everything was final.
pub fn play(seed: u64, plant: &impl Fn(&mut Cluster), skip: &BTreeSet<u64>) -> (Cluster, Duration) {
    let mut rng = Rng::new(seed ^ 0x5EED);
    let n = rng.pick(&SIZES);
    let (requests, pipeline) = (rng.pick(&[1, 2, 4, 16]), rng.pick(&[1, 4]));
    let settings = |settings: &mut Settings| {
        settings.batch_max_requests = requests;
        settings.pipeline_batches = pipeline;
    };
    let mut t = Cluster::with(seed, n, settings);
    t.title = format!("n = {n}");
    plant(&mut t);
    set_clocks(&mut t, &mut rng);
    set_disks(&mut t, &mut rng);
    corrupt(&mut t, &mut rng);
    let loser = choose_loser(&mut t, &mut rng);
    for number in 0..rng.between(FEWEST_FAULTS, MOST_FAULTS) {
        let (mut fault, pause) = (rng.fork(), rng.ms(0, 40));
        if !skip.contains(&number) {
            t.trace(|| format!("fault {number}:"));
            disturb(&mut t, &mut fault, loser);
        }
        t.run(pause);
    }
    t.heal();
    for node in 0..n {
        t.ask(node);
    }
    let healed = t.time;
    t.until_all_final();
    let took = t.time - healed;
    t.until_nothing_waits().check_ledgers();
    (t, took)
}

/// SIM_NARROW: says how to run what a failure needs.
fn narrow(seed: u64) {
    let Some(skip) = narrowed(seed, &|_| {}, skipped()) else {
        println!("seed {seed} does not fail: nothing to narrow");
        return;
    };
    let numbers: Vec<String> = skip.iter().map(u64::to_string).collect();
    println!("narrowed: SIM_TRACE=1 SIM_SKIP={} {}", numbers.join(","), run::command("storm::storm", seed));
}

/// The property that breaks in a run without the faults in `skip`.
fn broken(seed: u64, plant: &impl Fn(&mut Cluster), skip: &BTreeSet<u64>) -> Option<String> {
    let failure = run::failure(seed, || play(seed, plant, skip).0.happened)?;
    Some(failure.text.split(']').next().unwrap_or_default().to_owned())
}

/// Leaves out one fault after the other as long as the same property breaks; gives what was left out.
fn narrowed(seed: u64, plant: &impl Fn(&mut Cluster), mut skip: BTreeSet<u64>) -> Option<BTreeSet<u64>> {
    let first = broken(seed, plant, &skip)?;
    for number in (0..MOST_FAULTS).rev() {
        if skip.insert(number) && broken(seed, plant, &skip).as_ref() != Some(&first) {
            skip.remove(&number);
        }
    }
    Some(skip)
}

fn set_clocks(t: &mut Cluster, rng: &mut Rng) {
    for node in 0..t.n() {
        let offset_ms = rng.between(0, 4_000) as i64 - 2_000;
        // Crystals are off by 100 ppm; something is very wrong with one that is off by 5 %.
        let most = rng.pick(&[100, 1_000, 1_000, 50_000]);
        let drift_ppm = rng.between(0, 2 * most) as i64 - most as i64;
        t.set_clock(node, Clock { offset_ms, drift_ppm });
    }
}

/// Disks that are slow, logs of small segments, ledger stores that are seldom made durable.
fn set_disks(t: &mut Cluster, rng: &mut Rng) {
    for node in &mut t.nodes {
        node.disk.segment_bytes = rng.pick(&[1 << 10, 8 << 10, 64 << 10]);
        node.durable_every = rng.pick(&[1, 10, 10, 40]);
        node.sync_us = rng.pick(&[(100, 400), (1_000, 2_000), (1_000, 2_000), (1_000, 60_000)]);
    }
}

/// Turns at most f replicas Byzantine.
fn corrupt(t: &mut Cluster, rng: &mut Rng) {
    if t.world.f >= 2 && rng.percent(20) {
        let mut gang = BTreeSet::new();
        while gang.len() < t.world.f {
            gang.insert(rng.index(t.n()));
        }
        let gang: Vec<usize> = gang.into_iter().collect();
        colluders::install(t, &gang);
        t.title += &format!(", {gang:?}: colluders");
        return;
    }
    for _ in 0..t.world.f {
        // Many can do evil only where they lead.
        let at = if rng.percent(40) { rng.index(2) } else { rng.index(t.n()) };
        if rng.percent(30) || t.world.faulty.contains(&at) {
            continue;
        }
        let name = if rng.percent(10) {
            twins::install(t, at);
            "twins"
        } else {
            let adversary = adversary::any(rng, t.n());
            let name = adversary.name();
            t.corrupt(at, adversary);
            name
        };
        t.title += &format!(", {at}: {name}");
    }
}

/// A correct replica that may lose its log; until it votes again it is one of the f faulty.
fn choose_loser(t: &mut Cluster, rng: &mut Rng) -> Option<usize> {
    let loser = rng.index(t.n());
    let may = t.world.faulty_replicas() < t.world.f && !t.world.faulty.contains(&loser);
    if !may || !rng.percent(40) {
        return None;
    }
    t.title += &format!(", {loser} may lose its log");
    Some(loser)
}

/// One fault, or a few requests.
fn disturb(t: &mut Cluster, rng: &mut Rng, loser: Option<usize>) {
    let nodes = t.instances();
    let (node, other) = (rng.index(nodes), rng.index(nodes));
    match rng.below(22) {
        0 => drop(t.crash(node)),
        1..=3 => {
            let (steps, point) = (rng.between(1, 20), rng.pick(&CrashPoint::ALL));
            t.trace(|| format!("{node} will crash in {steps} steps: {point:?}"));
            t.crash_in(node, steps, point);
            t.schedule(rng.ms(5, 300), Event::Restart { node });
        }
        4 | 5 => drop(t.restart(node)),
        6 => {
            t.trace(|| format!("{node} is cut off"));
            t.cut_off.insert(node);
        }
        7 => {
            t.trace(|| format!("{node} no longer reaches {other}"));
            t.links.cut_one_way(node, other);
        }
        8 => {
            let mask = rng.next();
            t.trace(|| format!("partition {mask:b}"));
            t.links.split(nodes, |at| mask >> at & 1 == 0);
        }
        9 | 10 => {
            t.trace(|| "partitions heal".to_owned());
            t.links.heal();
            t.cut_off.clear();
        }
        11 => {
            t.weather = Weather::any(rng);
            t.trace(|| "the weather changes".to_owned());
        }
        12 if rng.percent(30) => {
            for node in 0..nodes {
                t.crash(node);
                t.schedule(rng.ms(5, 300), Event::Restart { node });
            }
        }
        13 => ask_oddly(t, rng),
        14 => turn_clock(t, rng, node),
        15 if rng.percent(30) => {
            if let Some(loser) = loser {
                t.trace(|| format!("{loser} loses its log"));
                t.lose_log(loser);
                t.schedule(rng.ms(5, 300), Event::Restart { node: loser });
            }
        }
        _ => {
            let node = rng.index(t.n());
            t.ask_times(node, rng.pick(&[1, 1, 2, 4]));
        }
    }
}

/// Somebody sets a wall clock, and later sets it right.
fn turn_clock(t: &mut Cluster, rng: &mut Rng, node: usize) {
    let before = t.nodes[node].clock.offset_ms;
    let hour = 3_600_000;
    // Far off is one alone: nobody agrees to what it proposes.
    let far = if node == 0 { rng.pick(&[-hour, hour]) } else { rng.pick(&[-9_000, 9_000]) };
    let offset_ms = rng.pick(&[-9_000, -4_000, 4_000, far]);
    t.trace(|| format!("the clock of {node} is set: {offset_ms} ms"));
    t.nodes[node].clock.offset_ms = offset_ms;
    t.schedule(rng.ms(5, 500), Event::SetClock { node, offset_ms: before });
}

/// What clients should not do.
fn ask_oddly(t: &mut Cluster, rng: &mut Rng) {
    let node = rng.index(t.n());
    let number = rng.between(1, 20);
    match rng.below(3) {
        0 => drop(t.ask_for_stranger(node, number)),
        1 => drop(t.ask_with_wrong_key(node, number)),
        _ if t.asked_of(node) > 0 => {
            // A message that another node took comes through this one as well.
            let number = rng.between(1, t.asked_of(node));
            let other = rng.index(t.n());
            t.ask_through(node, other, number);
        }
        _ => {}
    }
}

#[test]
fn a_seed_repeats_a_run_exactly() {
    for seed in run::seeds(12) {
        let once = || play(seed, &|_| {}, &skipped()).0;
        // In another thread, and beside another run.
        let (first, second) = std::thread::scope(|scope| {
            let runs = [(); 2].map(|()| {
                scope.spawn(|| {
                    let t = once();
                    (t.trail, t.happened, t.time)
                })
            });
            let [first, second] = runs.map(|run| run.join().unwrap());
            (first, second)
        });
        assert_eq!(first, second, "seed {seed}");
    }
}

#[test]
fn a_failure_is_narrowed_to_the_faults_that_it_needs() {
    let plant = |t: &mut Cluster| t.planted = Some(ShellBug::VotesForgotten);
    let failing = |seed: &u64| broken(*seed, &plant, &BTreeSet::new()).is_some();
    let seed = (0..100).find(failing).expect("a seed with a crash that shows the mistake");
    let skip = narrowed(seed, &plant, BTreeSet::new()).unwrap();
    let needed = MOST_FAULTS - skip.len() as u64;
    assert!((1..FEWEST_FAULTS).contains(&needed), "seed {seed} needs {needed} faults: without {skip:?}");
    assert_eq!(broken(seed, &plant, &skip), broken(seed, &plant, &BTreeSet::new()));
}
