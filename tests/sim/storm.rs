//! Mixed faults: everything at once, from one seed. The size of the cluster, its settings, clocks,
//! Byzantine replicas, weather, partitions and crashes are all drawn; after a while the faults of
//! network, disks and processes stop, and everything admitted must become final.

use ledgermq::pbft::Settings;

use crate::adversary::{self, twins};
use crate::cluster::Cluster;
use crate::events::Event;
use crate::network::Weather;
use crate::node::{Clock, CrashPoint};
use crate::rng::Rng;
use crate::run;

/// Sizes of clusters; the usual ones often, the large ones, which take longest, seldom.
const SIZES: [usize; 24] = [4, 4, 4, 4, 4, 4, 4, 4, 4, 1, 2, 3, 3, 5, 5, 6, 6, 7, 7, 7, 8, 9, 10, 10];

/// Seeds of the usual test run.
const SEEDS: u64 = 1_000;

#[test]
fn storm() {
    run::all("storm", run::seeds(SEEDS), |seed| run(seed, &|_| {}));
}

/// One run; gives the number of events.
pub fn run(seed: u64, plant: &impl Fn(&mut Cluster)) -> u64 {
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
    corrupt(&mut t, &mut rng);
    for _ in 0..rng.between(10, 40) {
        disturb(&mut t, &mut rng);
        t.run(rng.ms(0, 40));
    }
    t.heal();
    t.until_all_final();
    t.check_ledgers();
    t.happened
}

fn set_clocks(t: &mut Cluster, rng: &mut Rng) {
    for node in 0..t.n() {
        let offset_ms = rng.between(0, 4_000) as i64 - 2_000;
        let drift_ppm = rng.between(0, 2_000) as i64 - 1_000;
        t.set_clock(node, Clock { offset_ms, drift_ppm });
    }
}

/// Turns at most f replicas Byzantine.
fn corrupt(t: &mut Cluster, rng: &mut Rng) {
    for _ in 0..t.world.f {
        let at = rng.index(t.n());
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

/// One fault, or a few requests.
fn disturb(t: &mut Cluster, rng: &mut Rng) {
    let nodes = t.instances();
    let (node, other) = (rng.index(nodes), rng.index(nodes));
    match rng.below(20) {
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
        _ => {
            let node = rng.index(t.n());
            t.ask_times(node, rng.pick(&[1, 1, 2, 4]));
        }
    }
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
