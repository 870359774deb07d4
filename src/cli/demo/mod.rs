//! `ledgermq demo`: all of it in one command, with real parts only.
//!
//! ```text
//! 1. a network    replicas, each a process of its own with its own key, ports and disk
//! 2. gateways     two clients and the write policies, put on the ledger by the admin
//! 3. readings     a year of hourly weather: MQTT ─▶ two replicas ─▶ agreement of all ─▶ acks;
//!                 half-way the primary is killed
//! 4. proofs       every bundle, verified with the genesis document alone
//! 5. the history  audited on each replica; then rows are altered, deleted and added with SQL
//! 6. a lie        one byte of a bundle changed: it proves nothing any more
//! ```
//!
//! What it prints is what happened: the exit code is 0 only if every check held. Everything is in one
//! temporary directory, which goes with the demo, also after Ctrl-C; it stays when something went
//! wrong, for the replicas' logs.

mod history;
mod keep;
mod outage;
mod proofs;
mod readings;
mod replay;
mod screen;
mod summary;
mod tamper;

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, anyhow, ensure};
use clap::Args;

use super::interrupt::interrupted;
use super::local::{LocalNetwork, LocalNetworkOptions};
use super::output;
use super::policy::RulesFile;
use crate::clock::{Clock as _, SystemClock};
use crate::keyfile;
use crate::ledger::AdminAction;
use crate::types::{ClientId, Height, Timestamp};
use readings::{Expected, ITEMS, Reading};
use replay::{Replayed, Station};
use screen::{Screen, count, plural};
use summary::{Spread, Summary, Tampering};

/// The two gateways.
const GATEWAYS: [&str; 2] = ["greensboro/gateway-1", "greensboro/gateway-2"];

/// How long a gateway may take to connect and to hand over its payload key.
const GATEWAY_READY: Duration = Duration::from_secs(60);

/// The write policies.
const POLICIES: &str = include_str!("policy.toml");

/// How often a node makes a digest of its history, in seconds: the demo waits for the last one.
const DIGEST_EVERY_S: &str = "2";

/// Show it all on this machine: a network of replicas, a year of real readings, and their proofs
///
/// Starts replicas as separate processes on free loopback ports, registers two gateways and sets write
/// policies, replays 8,760 hourly readings of a weather station through MQTT, and half-way kills the
/// primary with SIGKILL. Then it verifies the proof bundle of every reading on the ledger with the
/// genesis document alone, audits every replica's history, and shows that rows which are altered,
/// deleted or added with SQL are named, and that a bundle with one changed byte fails. The exit code
/// is 0 only if every check held. Nothing is left behind.
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
    let options = LocalNetworkOptions::new(dir.path().join("network"), args.replicas)?
        .setting("LEDGERMQ_HISTORY__DIGEST_INTERVAL_S", DIGEST_EVERY_S);
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
    looks: keep::Looks,
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
    let (stations, mut expected) = start_gateways(network, readings, screen).await?;
    let clients: Vec<ClientId> = stations.iter().map(|station| station.client.clone()).collect();
    let replayed = publish(network, stations, &mut expected, screen).await?;
    let blocks = agree(network, &replayed, screen).await?;
    let proven = proofs::verify(network, &clients, (expected, replayed.finals.len()), screen).await?;
    let history = history::check(network, (replayed.outage.replica, replayed.messages), screen).await?;
    let bundle = proofs::lie(network, &proven, screen)?;

    let (messages, items) = (replayed.messages, replayed.messages * ITEMS);
    let summary = Summary {
        messages,
        items,
        items_written: proven.items,
        reduction: summary::left_out(proven.items, items),
        blocks: blocks.0,
        replicas: network.replicas(),
        final_after_replica_killed: replayed.recovery.is_some(),
        recovery_ms: replayed.recovery.map(|time| summary::tenths(time.as_secs_f64() * 1_000.0)),
        bundles_verified: proven.verified,
        bundles_failed: proven.failed,
        tampering_found: Tampering { history: history.found, bundle },
        puback_ms: Spread::of(replayed.puback),
        final_ms: Spread::of(replayed.finals),
        seconds: summary::tenths(clock.monotonic().as_secs_f64()),
    };
    let held = proven.fault_count == 0
        && history.clean
        && summary.tampering_found.history
        && summary.tampering_found.bundle
        && summary.final_after_replica_killed;
    Ok(Told { summary, held, looks: keep::Looks { clients, tampered: history.tampered } })
}

/// Sums up; leaves the network running for a while, if that is asked for.
async fn conclude(
    args: &DemoArgs,
    told: Told,
    network: &LocalNetwork,
    screen: &Screen,
) -> anyhow::Result<()> {
    let Told { summary, held, looks } = told;
    summary.tell(held, screen)?;
    if args.json {
        output::json(&summary)?;
    }
    if args.keep {
        looks.tell(network, screen)?;
        interrupted().await?;
    }
    ensure!(held, anyhow!("not every check held").context(Failed));
    Ok(())
}

async fn start_replicas(network: &mut LocalNetwork, screen: &Screen) -> anyhow::Result<()> {
    let n = network.replicas();
    let set = &network.genesis().replicas;
    screen.say(format_args!(
        "\n1. A network of {}, {} ({} must sign each block)",
        plural(n, "replica"),
        output::may_be_faulty(set.f()),
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
    screen.say("\n2. Two gateways and the write policies, put on the ledger by the admin")?;
    let mut stations = Vec::new();
    let mut expected = Expected::default();
    for (at, name) in GATEWAYS.into_iter().enumerate() {
        let client: ClientId = name.parse()?;
        let state = network.dir().join(format!("gateway-{}", at + 1));
        let key = keyfile::create(&network.dir().join(format!("gateway-{}.key", at + 1)))?;
        let registered = network.register(&client, key.public()).await?;
        let replica = at % network.replicas();
        // The other replicas are there for when this one is gone.
        let options = (1..network.replicas())
            .map(|next| &network.files().nodes[(replica + next) % network.replicas()])
            .fold(network.gateway(client.clone(), key.clone(), state, replica), |options, other| {
                options.endpoint(other.host.to_string(), other.ports.mqtt)
            });
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
    set_policies(network, screen).await?;
    Ok((stations, expected))
}

async fn set_policies(network: &mut LocalNetwork, screen: &Screen) -> anyhow::Result<()> {
    let RulesFile { replaces, policies } = RulesFile::parse(POLICIES).map_err(|problem| anyhow!(problem))?;
    for rule in policies.rules() {
        screen.say(format_args!("   policy {:11}   {}", rule.name.as_str(), rule.policy))?;
    }
    let action = AdminAction::SetPolicies { replaces: replaces.unwrap_or_default(), policies };
    let submitted = network.submit(0, action).await?;
    network.reached(submitted.height).await
}

async fn publish(
    network: &mut LocalNetwork,
    stations: Vec<Station>,
    expected: &mut Expected,
    screen: &Screen,
) -> anyhow::Result<Replayed> {
    screen.say("\n3. The readings: four items a message, signed, encrypted, published with QoS 1")?;
    let clock = SystemClock::new();
    let replayed = replay::replay(network, stations, expected, screen).await?;
    match replayed.recovery {
        Some(time) => screen.say(format_args!(
            "   {} ms after its death a message that was signed later was final",
            millis(time)
        ))?,
        None => screen.say("   WRONG: no message that was signed after its death became final")?,
    }
    screen.say(format_args!(
        "   {} messages are acknowledged, {} each second; of {} the policies picked something, in {}",
        count(replayed.messages),
        count(per_second(replayed.messages, clock.monotonic())),
        count(replayed.finals.len()),
        plural(replayed.blocks.len(), "block")
    ))?;
    replayed.outage.end(network, screen).await?;
    Ok(replayed)
}

/// Checks that all replicas have one ledger; gives its height.
async fn agree(network: &mut LocalNetwork, replayed: &Replayed, screen: &Screen) -> anyhow::Result<Height> {
    let height = replayed.blocks.last().copied().context("nothing was published")?;
    network.reached(height).await?;
    let mut hashes = BTreeSet::new();
    for replica in 0..network.replicas() {
        hashes.insert(network.block(replica, height).await?);
    }
    ensure!(hashes.len() == 1, "the replicas have different blocks {height}: {hashes:?}");
    let block = hashes.pop_first().context("there is no replica")?;
    let who = match network.replicas() {
        1 => "the replica has".to_owned(),
        n => format!("all {n} replicas have the same"),
    };
    screen.say(format_args!("   {who} block {height}: {}…", block.short()))?;
    Ok(network.status(0).await?.height)
}

/// Whole milliseconds, for a person.
fn millis(time: Duration) -> impl std::fmt::Display {
    // Of the tenths that the summary has, so that both say the same.
    let tenths = Duration::from_secs_f64(summary::tenths(time.as_secs_f64() * 1_000.0) / 1_000.0);
    count(usize::try_from(tenths.as_millis()).unwrap_or(usize::MAX))
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
fn per_second(messages: usize, time: Duration) -> usize {
    // A number to look at; floats hold it exactly enough.
    (messages as f64 / time.as_secs_f64().max(0.001)).round() as usize
}

/// A day, for a person.
fn date(time: Timestamp) -> String {
    let parsed = i64::try_from(time.0).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    parsed.map_or_else(|| format!("{time} ms"), |time| time.strftime("%-d %B %Y").to_string())
}
