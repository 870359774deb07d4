//! `ledgermq demo`: all of it in one command, with real parts only.
//!
//! ```text
//! 1. a network    four replicas, each a process of its own with its own key, ports and disk
//! 2. gateways     two clients, registered on the ledger by the admin
//! 3. readings     a year of hourly weather: MQTT ─▶ two replicas ─▶ agreement of all ─▶ acks
//! 4. proofs       every bundle, verified with the genesis document alone
//! 5. a lie        one byte of a bundle changed: it proves nothing any more
//! ```
//!
//! What it prints is what happened: the exit code is 0 only if every check held. Everything is in one
//! temporary directory, which goes with the demo, also after Ctrl-C; it stays when something went
//! wrong, for the replicas' logs.

mod audit;
mod readings;
mod replay;
mod screen;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, anyhow, ensure};
use clap::Args;
use serde::Serialize;

use super::interrupt::interrupted;
use super::local::{LocalNetwork, LocalNetworkOptions};
use super::output;
use crate::clock::{Clock as _, SystemClock};
use crate::keyfile;
use crate::types::{ClientId, Height, Timestamp};
use audit::Audited;
use readings::{Expected, ITEMS, Reading};
use replay::{Replayed, Station};
use screen::{Screen, count};

/// The two gateways.
const GATEWAYS: [&str; 2] = ["greensboro/gateway-1", "greensboro/gateway-2"];

/// How long a gateway may take to connect and to hand over its payload key.
const GATEWAY_READY: Duration = Duration::from_secs(30);

/// The bundle of the hottest hour, and the forged copy, in the demo's directory.
const HOTTEST: &str = "hottest.lmqproof";
const FORGED: &str = "forged.lmqproof";

/// Show it all on this machine: a network of replicas, a year of real readings, and their proofs
///
/// Starts replicas as separate processes on free loopback ports, registers two gateways, replays
/// 8,760 hourly readings of a weather station through MQTT, then verifies the proof bundle of every
/// reading with the genesis document alone, and shows that a bundle with one changed byte fails. The
/// exit code is 0 only if every check held. Nothing is left behind.
#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// How many replicas, 1 to 16; with n of them, (n-1)/3 may be faulty
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=16))]
    replicas: u16,
    /// Leave the network running after the demo, for a look around, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Print one JSON object on standard output when all is done; the story goes to standard error
    #[arg(long)]
    json: bool,
    /// Replay only the first N readings
    #[arg(long, value_name = "N", hide = true, default_value_t = 8_760, value_parser = clap::value_parser!(u16).range(2..=8_760))]
    readings: u16,
}

/// What the demo measured, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Summary {
    messages: usize,
    items: usize,
    items_written: usize,
    blocks: u64,
    replicas: usize,
    bundles_verified: usize,
    bundles_failed: usize,
    puback_ms: Spread,
    final_ms: Spread,
    seconds: f64,
}

/// How long something took, in milliseconds.
#[derive(Debug, Serialize)]
struct Spread {
    p50: f64,
    p99: f64,
    max: f64,
}

impl Spread {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |percent: usize| {
            let rank = (times.len() * percent).div_ceil(100).max(1);
            times.get(rank - 1).map_or(0.0, |time| tenths(time.as_secs_f64() * 1_000.0))
        };
        Self { p50: at(50), p99: at(99), max: at(100) }
    }
}

fn tenths(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

pub(super) fn run(args: &DemoArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(Box::pin(show(args)))
}

/// Everything, and tidying up after it.
async fn show(args: &DemoArgs) -> anyhow::Result<()> {
    let dir = tempfile::Builder::new().prefix("ledgermq-demo-").tempdir();
    let dir = dir.context("cannot make a temporary directory")?;
    let options = LocalNetworkOptions::new(dir.path().join("network"), args.replicas)?;
    let mut network = LocalNetwork::create(options)?;
    let screen = Screen::new(args.json);
    let told = tokio::select! {
        told = tell(args, &mut network, &screen) => told.map(Some),
        interrupted = interrupted() => interrupted.map(|()| None),
    };
    let ended = match told {
        Ok(Some(told)) => conclude(args, told, &network, &screen).await,
        Ok(None) => Err(anyhow!("interrupted; nothing is left behind")),
        Err(error) => Err(error.context(Failed)),
    };
    // A second Ctrl-C is for replicas that do not stop; dropping them kills them.
    let stopped = tokio::select! {
        stopped = network.stop_all() => stopped.context(Failed),
        interrupted = interrupted() => interrupted,
    };
    drop(network);
    let result = ended.and(stopped);
    if result.as_ref().is_err_and(|error| error.is::<Failed>() && !output::is_closed_pipe(error)) {
        let kept = dir.keep();
        return result
            .with_context(|| format!("the files, with the replicas' logs, are left in {}", kept.display()));
    }
    dir.close().context("cannot remove the demo's directory")?;
    result
}

/// The demo found that something does not work: its files may say why.
#[derive(Debug, thiserror::Error)]
#[error("the demo failed")]
struct Failed;

/// What the story came to.
struct Told {
    summary: Summary,
    /// Whether every check held.
    held: bool,
    clients: Vec<ClientId>,
}

/// The story.
async fn tell(args: &DemoArgs, network: &mut LocalNetwork, screen: &Screen) -> anyhow::Result<Told> {
    let clock = SystemClock::new();
    let readings = Reading::load(args.readings.into())?;
    screen.say(format_args!(
        "LedgerMQ: {} hourly readings of a weather station, from MQTT to proof",
        count(readings.len())
    ))?;
    start_replicas(network, screen).await?;
    let (stations, expected) = start_gateways(network, readings, screen).await?;
    let clients: Vec<ClientId> = stations.iter().map(|station| station.client.clone()).collect();
    let replayed = publish(network, stations, screen).await?;
    let blocks = agree(network, &replayed, screen).await?;
    let audited = verify(network, &clients, expected, screen).await?;
    let lie_refused = lie(network, &audited, screen)?;

    let messages = replayed.finals.len();
    let summary = Summary {
        messages,
        items: messages * ITEMS,
        items_written: audited.items,
        blocks: blocks.0,
        replicas: network.replicas(),
        bundles_verified: audited.verified,
        bundles_failed: audited.failed,
        puback_ms: Spread::of(replayed.puback),
        final_ms: Spread::of(replayed.finals),
        seconds: tenths(clock.monotonic().as_secs_f64()),
    };
    Ok(Told { summary, held: audited.fault_count == 0 && lie_refused, clients })
}

/// Sums up; leaves the network running for a while, if that is asked for.
async fn conclude(
    args: &DemoArgs,
    told: Told,
    network: &LocalNetwork,
    screen: &Screen,
) -> anyhow::Result<()> {
    let Told { summary, held, clients } = told;
    summarize(&summary, held, screen)?;
    if args.json {
        output::json(&summary)?;
    }
    if args.keep {
        keep(network, &clients, screen)?;
        interrupted().await?;
    }
    ensure!(held, anyhow!("not every check held").context(Failed));
    Ok(())
}

async fn start_replicas(network: &mut LocalNetwork, screen: &Screen) -> anyhow::Result<()> {
    let n = network.replicas();
    let set = &network.genesis().replicas;
    screen.say(format_args!(
        "\n1. A network of {}, of which {} may be faulty ({} must sign each block)",
        plural(n, "replica"),
        set.f(),
        set.quorum()
    ))?;
    for replica in 0..n {
        network.spawn(replica)?;
    }
    for replica in 0..n {
        network.ready(replica).await?;
        let node = &network.files().nodes[replica];
        screen.say(format_args!(
            "   replica {replica}   key {}…   MQTT {}   HTTP {}   other nodes {}",
            node.node.short(),
            node.ports.mqtt,
            node.ports.api,
            node.ports.p2p
        ))?;
    }
    Ok(())
}

/// Registers the gateways and connects each to another replica.
async fn start_gateways(
    network: &mut LocalNetwork,
    readings: Vec<Reading>,
    screen: &Screen,
) -> anyhow::Result<(Vec<Station>, Expected)> {
    screen.say("\n2. Two gateways, registered on the ledger by the admin")?;
    let mut stations = Vec::new();
    let mut expected = Expected::default();
    for (at, name) in GATEWAYS.into_iter().enumerate() {
        let client: ClientId = name.parse()?;
        let state = network.dir().join(format!("gateway-{}", at + 1));
        let key = keyfile::create(&network.dir().join(format!("gateway-{}.key", at + 1)))?;
        let registered = network.register(&client, key.public()).await?;
        let replica = at % network.replicas();
        let options = network.gateway(client.clone(), key.clone(), state, replica);
        let gateway = crate::gateway::Gateway::connect(options).await?;
        gateway.ready(GATEWAY_READY).await.with_context(|| format!("gateway {client}"))?;
        screen.say(format_args!(
            "   {client}   key {}…   block {}   MQTT to replica {replica}, payload key agreed",
            key.public().short(),
            registered.height
        ))?;
        let own: Vec<Reading> = readings.iter().skip(at).step_by(GATEWAYS.len()).cloned().collect();
        for reading in &own {
            expected.add(&client, reading)?;
        }
        stations.push(Station { client, gateway, readings: own });
    }
    Ok((stations, expected))
}

async fn publish(
    network: &mut LocalNetwork,
    stations: Vec<Station>,
    screen: &Screen,
) -> anyhow::Result<Replayed> {
    screen.say("\n3. The readings: temperature and humidity, signed, encrypted, published with QoS 1")?;
    let clock = SystemClock::new();
    let replayed = replay::replay(network, stations, screen).await?;
    let messages = replayed.finals.len();
    screen.say(format_args!(
        "   {} messages are final, {} each second, in {}",
        count(messages),
        count(per_second(messages, clock.monotonic())),
        plural(replayed.blocks.len(), "block")
    ))?;
    Ok(replayed)
}

/// Checks that all replicas have one ledger; gives its height.
async fn agree(network: &mut LocalNetwork, replayed: &Replayed, screen: &Screen) -> anyhow::Result<Height> {
    let height = replayed.blocks.last().copied().context("nothing was published")?;
    network.reached(height).await?;
    let mut heads = BTreeSet::new();
    for replica in 0..network.replicas() {
        let status = network.status(replica).await?;
        heads.insert((status.height, status.block));
    }
    ensure!(heads.len() == 1, "the replicas do not have the same ledger: {heads:?}");
    let (height, block) = heads.pop_first().context("there is no replica")?;
    let who = match network.replicas() {
        1 => "the replica has".to_owned(),
        n => format!("all {n} replicas have the same"),
    };
    screen.say(format_args!("   {who} block {height}: {}…", block.short()))?;
    Ok(height)
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
fn per_second(messages: usize, time: Duration) -> usize {
    // A number to look at; floats hold it exactly enough.
    (messages as f64 / time.as_secs_f64().max(0.001)).round() as usize
}

async fn verify(
    network: &LocalNetwork,
    clients: &[ClientId],
    expected: Expected,
    screen: &Screen,
) -> anyhow::Result<Audited> {
    screen.say("\n4. The proofs: every bundle, verified with the genesis document alone")?;
    let audited = audit::audit(network, clients, expected, screen).await?;
    screen.say(format_args!(
        "   {} bundles hold, {} fail; they prove {} items",
        count(audited.verified),
        count(audited.failed),
        count(audited.items)
    ))?;
    if audited.fault_count == 0 {
        screen.say("   every reading that was sent is among them, with the value that was sent, once")?;
    }
    for fault in &audited.faults {
        screen.say(format_args!("   WRONG: {fault}"))?;
    }
    if let Some((_, proven, item)) = &audited.hottest {
        screen.say(format_args!(
            "   the hottest hour: {} °C on {}, says {}; block {}, signed by {} of {} replicas",
            item.value,
            date(item.event_time),
            item.client,
            proven.block.height,
            proven.block.signed_by.len(),
            proven.replicas
        ))?;
    }
    Ok(audited)
}

/// Changes one byte of a bundle and shows that it proves nothing any more; whether that is so.
fn lie(network: &LocalNetwork, audited: &Audited, screen: &Screen) -> anyhow::Result<bool> {
    screen.say("\n5. A lie: somebody changes that temperature")?;
    let (bytes, _, item) = audited.hottest.as_ref().context("no bundle proves a temperature")?;
    let forged = audit::forge(bytes, item).context("a bundle does not contain the item that it proves")?;
    std::fs::write(network.dir().join(HOTTEST), bytes)?;
    std::fs::write(network.dir().join(FORGED), &forged.bytes)?;
    screen.say(format_args!(
        "   byte {} of {} in a copy of its bundle is changed: {} °C now reads {} °C",
        count(forged.at),
        count(bytes.len()),
        item.value,
        forged.claims
    ))?;
    let refused = match audit::refusal(network.genesis(), &forged.bytes)? {
        Some(problem) => {
            screen.say(format_args!("   NOT PROVEN: {problem}"))?;
            true
        }
        None => {
            screen.say("   WRONG: the copy is believed")?;
            false
        }
    };
    let believed = audit::believed_copies(network.genesis(), bytes)?;
    screen.say(format_args!(
        "   the same for each of its bytes: {} copies, {} believed",
        count(bytes.len()),
        count(believed)
    ))?;
    Ok(refused && believed == 0)
}

fn summarize(summary: &Summary, held: bool, screen: &Screen) -> anyhow::Result<()> {
    let Summary { puback_ms, final_ms, .. } = summary;
    let verdict = if held { "Every check held" } else { "NOT every check held" };
    screen.say(format_args!("\n{verdict}, in {:.1} s", summary.seconds))?;
    screen.say(format_args!(
        "   {} of {} items on the ledger, in {} on {}",
        count(summary.items_written),
        count(summary.items),
        plural(usize::try_from(summary.blocks)?, "block"),
        plural(summary.replicas, "replica")
    ))?;
    screen.say("   milliseconds from signing to …            p50      p99      max")?;
    for (what, spread) in
        [("PUBACK: safe in a replica's log", puback_ms), ("ack: final on the ledger", final_ms)]
    {
        screen.say(format_args!("   {what:36} {:8.1} {:8.1} {:8.1}", spread.p50, spread.p99, spread.max))?;
    }
    Ok(())
}

/// Says where everything is.
fn keep(network: &LocalNetwork, clients: &[ClientId], screen: &Screen) -> anyhow::Result<()> {
    screen.say("\nThe network runs until you press Ctrl-C; then its files are removed, too.")?;
    for (replica, node) in network.files().nodes.iter().enumerate() {
        let api = network.api_url(replica);
        screen.say(format_args!(
            "   replica {replica}   API {api}/v1/status   metrics {api}/metrics   MQTT 127.0.0.1:{}",
            node.ports.mqtt
        ))?;
    }
    let program = std::env::args_os().next().map_or_else(|| "ledgermq".into(), PathBuf::from);
    let (program, dir) = (program.display(), network.dir());
    let genesis = network.files().genesis.display();
    screen.say("Try, from another terminal:")?;
    for client in clients {
        screen.say(format_args!("   curl '{}/v1/records?client={client}&limit=3'", network.api_url(0)))?;
    }
    screen.say(format_args!("   {program} client list --network {}", dir.display()))?;
    for bundle in [HOTTEST, FORGED] {
        let bundle = dir.join(bundle);
        screen.say(format_args!("   {program} verify {} --genesis {genesis}", bundle.display()))?;
    }
    Ok(())
}

/// A day, for a person.
fn date(time: Timestamp) -> String {
    let parsed = i64::try_from(time.0).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    parsed.map_or_else(|| format!("{time} ms"), |time| time.strftime("%-d %B %Y").to_string())
}

fn plural(number: usize, thing: &str) -> String {
    let s = if number == 1 { "" } else { "s" };
    format!("{} {thing}{s}", count(number))
}
