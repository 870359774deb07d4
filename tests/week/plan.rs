//! What happens in a week, besides what clients measure.

use ledgermq::policy::{Interval, Pattern, PolicySet, Quota, Rule, RuleName, Threshold, WritePolicy};

use crate::clock::{DAY, HOUR, MINUTE};
use crate::device::Device;
use crate::rng::Rng;
use crate::sites::Remains;
use crate::world::{Event, Loss, NODES, World};

/// Names of the clients that are there from the beginning.
const CLIENTS: [&str; 7] = ["north", "south", "east", "west", "roof", "cellar", "greedy"];

fn rule(name: &str, service: &str, policy: WritePolicy) -> Rule {
    let any = Pattern::any;
    Rule {
        name: RuleName::new(name).unwrap(),
        client: any(),
        stream: any(),
        device: any(),
        service: Pattern::new(service).unwrap(),
        policy,
    }
}

/// Rules for a while; with them a quota that the greedy client meets.
fn policies(rng: &mut Rng) -> PolicySet {
    let change = |by: f64| WritePolicy::Change(Threshold::new(by).unwrap());
    let every = |hours: u64| Interval::from_ms(hours * HOUR).unwrap();
    let both = |hours, by| WritePolicy::Both(every(hours), Threshold::new(by).unwrap());
    let temperature = [change(0.5), change(2.0), both(6, 1.0), WritePolicy::Always];
    let slow = [WritePolicy::Periodic(every(3)), both(12, 1.5), change(5.0)];
    let rest = [change(0.1), WritePolicy::Always, WritePolicy::Periodic(every(24))];
    let mut rules = vec![
        rule("temperature", "temperature", rng.pick(&temperature)),
        rule("slow", "pressure", rng.pick(&slow)),
        rule("humidity", "humidity", rng.pick(&[change(5.0), change(2.0), WritePolicy::Never])),
        rule("doors", "o*", change(1.0)),
        Rule { stream: Pattern::new("sk*").unwrap(), ..rule("sky", "temp*", rng.pick(&rest)) },
        rule("rest", "*", rng.pick(&rest)),
    ];
    let at = rng.index(rules.len() - 1);
    rules.swap(at, 0);
    let greedy = Pattern::new("devices/greedy").unwrap();
    let max_items = 8 + rng.below(8) as u32;
    PolicySet::with_quotas(rules, vec![Quota { client: greedy, max_items }]).unwrap()
}

/// Runs a week.
pub async fn week(seed: u64) -> Remains {
    let mut world = World::new(seed).await;
    for (at, name) in CLIENTS.iter().enumerate() {
        let device = Device::new(name, at % NODES, &mut world.rng);
        world.join(device, MINUTE);
    }
    for node in 0..NODES {
        world.at(HOUR, Event::Save(node));
        world.at(HOUR, Event::AskAgain(node));
    }
    plan_policies(&mut world);
    plan_nodes(&mut world);
    plan_clients(&mut world);
    world.closes_at = 7 * DAY;
    for day in 0..7 {
        let time = day * DAY + world.rng.between(6 * HOUR, 20 * HOUR);
        world.run_until(time).await;
        world.audit().await;
    }
    world.run_until(7 * DAY).await;
    world.end().await
}

fn plan_policies(world: &mut World) {
    let mut time = 2 * HOUR;
    for version in 0..12 {
        let set = policies(&mut world.rng);
        world.set_policies(time, version, set);
        time += world.rng.between(6 * HOUR, 20 * HOUR);
    }
}

/// At most one node is away at a time; and two of them lose something.
fn plan_nodes(world: &mut World) {
    let (mut time, mut round) = (6 * HOUR, 0);
    // The last node loses everything once, another one its history.
    let mut losses = vec![(NODES - 1, Loss::Everything), (NODES - 2, Loss::History)];
    while time < 6 * DAY + 12 * HOUR {
        let (node, away) = (round % NODES, world.rng.between(2 * MINUTE, 5 * HOUR));
        let lost = losses.iter().position(|(of, _)| *of == node && time > 2 * DAY + 12 * HOUR);
        let loss = lost.map_or(Loss::Nothing, |at| losses.remove(at).1);
        // Something is on its way when it ends.
        for device in (0..CLIENTS.len()).filter(|device| device % NODES == node) {
            world.at(time - 2_000, Event::Burst(device));
        }
        match round % 3 {
            0 if loss == Loss::Nothing => world.at(time, Event::Stop(node)),
            _ => world.at(time, Event::Kill(node, loss)),
        }
        world.at(time + away, Event::Start(node));
        let cut_off = (node + 1) % NODES;
        let begins = time + away + world.rng.between(10 * MINUTE, HOUR);
        let ends = begins + world.rng.between(20 * MINUTE, 3 * HOUR);
        world.at(begins, Event::CutOff(cut_off, ends));
        time = begins + world.rng.between(3 * HOUR, 6 * HOUR);
        round += 1;
    }
    for _ in 0..5 {
        let begins = world.rng.between(HOUR, 6 * DAY);
        let ends = begins + world.rng.between(5 * MINUTE, 40 * MINUTE);
        world.at(begins, Event::Stall(ends));
    }
    let begins = world.rng.between(2 * DAY, 3 * DAY);
    world.at(begins, Event::Unplug(1, true));
    world.at(begins + 5 * HOUR, Event::Unplug(1, false));
}

fn plan_clients(world: &mut World) {
    for (day, device) in [(1, 0), (3, 2), (5, 4)] {
        let time = day * DAY + world.rng.below(12 * HOUR);
        world.at(time, Event::Replace(device, format!("{}-{day}", CLIENTS[device])));
    }
    for (day, device) in [(2, 1), (4, 3)] {
        let time = day * DAY + world.rng.below(12 * HOUR);
        world.at(time, Event::Forget(device));
    }
    for _ in 0..10 {
        let (time, device) = (world.rng.between(DAY, 6 * DAY), world.rng.index(CLIENTS.len() - 1));
        world.at(time, Event::Clone(device));
    }
}
