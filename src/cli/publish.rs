//! `ledgermq publish`: measurements of a file, through MQTT, like any gateway.
//!
//! Each message is signed and on disk here before it is sent, and is sent again until a node has
//! acknowledged it: a run that was stopped is finished by the next one with the same `--state`.

use std::io::{IsTerminal as _, stderr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use tokio::task::JoinSet;

use super::latency::{Latencies, Percentiles};
use super::publish_watch::{Answered, Watch};
use super::readings::{CsvOptions, CsvReadings, ItemSpec, JsonLines, Message, ReadingsError, TimeUnit};
use super::{network_dir, output};
use crate::clock::{SharedClock, SystemClock};
use crate::config::read_genesis;
use crate::gateway::{Ack, Delivery, Gateway, GatewayOptions, PublishError, Status};
use crate::keyfile;
use crate::types::{ClientId, Stream};

/// So many problems are told one by one; the rest are counted.
const TOLD_PROBLEMS: u64 = 10;

/// Publish the readings of a file, as a gateway does
///
/// CSV: the first row names the columns. Each row becomes one message, each column one data item. Give
/// the columns with --item, or leave it out to take all. JSON lines: each line is one message body of
/// docs/PROTOCOL.md, sent as it is.
///
/// Example: ledgermq publish devices/iot --key iot.key --network net --csv weather.csv --device th-01
/// --item temperature_c=temperature:1:Cel --item relative_humidity_percent=humidity:2:%RH
#[derive(Debug, Args)]
pub(super) struct PublishArgs {
    /// The client's id, registered with `ledgermq client register`
    client: ClientId,
    /// The client's secret key
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Directory that `ledgermq init` made: gives --genesis and --mqtt where these are not given
    #[arg(long, value_name = "DIR")]
    network: Option<PathBuf>,
    /// The genesis document: its replicas are the nodes that are believed
    #[arg(long, value_name = "FILE")]
    genesis: Option<PathBuf>,
    /// MQTT endpoint of a node; give several, and the next is tried when one fails
    #[arg(long, value_name = "HOST:PORT", value_parser = endpoint)]
    mqtt: Vec<(String, u16)>,
    /// Directory for numbers used and messages not acknowledged; belongs to this client alone [default:
    /// the --key FILE with .state added]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Last part of the topic
    #[arg(long, default_value = "readings")]
    stream: Stream,
    /// Give up when no node is ready for so long
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
    /// Give up when nothing becomes final for so long [default: wait, and tell why]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    final_timeout: Option<u64>,
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    mapping: MappingArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Source {
    /// CSV file with a time column
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// File with one message body a line
    #[arg(long, value_name = "FILE")]
    json_lines: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "CSV")]
struct MappingArgs {
    /// The time column [default: time, timestamp, eventTime, datetime or date]
    #[arg(long, value_name = "COLUMN")]
    time_column: Option<String>,
    /// What a whole number in the time column counts since 1970
    #[arg(long, value_enum, default_value_t)]
    time_unit: TimeUnit,
    /// Take times without a zone as UTC
    #[arg(long)]
    assume_utc: bool,
    /// deviceId of all items [default: the file's name without its ending]
    #[arg(long, value_name = "ID")]
    device: Option<String>,
    /// The column that holds deviceId
    #[arg(long, value_name = "COLUMN", conflicts_with = "device")]
    device_column: Option<String>,
    /// A column that becomes a data item: COLUMN[=SERVICE[:NUM[:UNIT]]]
    #[arg(long, value_name = "ITEM")]
    item: Vec<ItemSpec>,
    /// A cell that means "not measured" [default: blank, NaN, nan, NA, null]
    #[arg(long, value_name = "TEXT")]
    missing: Vec<String>,
}

impl MappingArgs {
    fn options(&self, file: &Path) -> CsvOptions {
        let name = || file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        CsvOptions {
            time_column: self.time_column.clone(),
            time_unit: self.time_unit,
            assume_utc: self.assume_utc,
            device: self.device.clone().unwrap_or_else(name),
            device_column: self.device_column.clone(),
            items: self.item.clone(),
            missing: self.missing.clone(),
            msg: None,
        }
    }
}

/// What became of a file.
#[derive(Debug, Default, Serialize)]
struct Summary {
    /// Messages that a node acknowledged.
    messages: u64,
    /// Data items in them.
    items: u64,
    /// Those of them that are on the ledger.
    items_written: u64,
    /// The highest block that holds one.
    height: u64,
    /// Lines that are no message, and messages that a node refused.
    failed: u64,
    /// From sending to the node's disk.
    puback_ms: Percentiles,
    /// From sending to the ledger.
    final_ms: Percentiles,
}

type Messages = Box<dyn Iterator<Item = Result<Message, ReadingsError>>>;

pub(super) fn run(args: &PublishArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let messages = open(args)?;
        let gateway = connect(args).await?;
        let (tally, answered) = (Tally::new(), Answered::default());
        let watch = Watch {
            gateway: &gateway,
            answered: answered.clone(),
            clock: SystemClock::shared(),
            progress: tally.progress.clone(),
            network: args.network.clone(),
            limit: args.final_timeout.map(Duration::from_secs),
        };
        let result = tokio::select! {
            summary = publish(args, messages, &gateway, tally, &answered) => summary,
            stalled = watch.run() => Err(stalled),
            _ = tokio::signal::ctrl_c() => Err(anyhow!(
                "interrupted: {} messages are not acknowledged; the next run with the same --state sends them",
                gateway.unfinished()
            )),
        };
        gateway.close().await;
        report(args, &result?)
    })
}

fn open(args: &PublishArgs) -> anyhow::Result<Messages> {
    match (&args.source.csv, &args.source.json_lines) {
        (Some(path), _) => Ok(Box::new(CsvReadings::open(path, &args.mapping.options(path))?)),
        (_, Some(path)) => Ok(Box::new(JsonLines::open(path, args.client.clone())?)),
        (None, None) => bail!("give --csv FILE or --json-lines FILE"),
    }
}

/// A gateway to which a node has given its key.
async fn connect(args: &PublishArgs) -> anyhow::Result<Gateway> {
    let network = args.network.as_ref();
    let genesis =
        read_genesis(&network_dir::file(args.genesis.as_ref(), network, "--genesis", "genesis.json")?)?;
    let state = args.state.clone().unwrap_or_else(|| {
        let mut path = args.key.clone().into_os_string();
        path.push(".state");
        path.into()
    });
    let key = keyfile::read(&args.key)?;
    let mut options = GatewayOptions::new(args.client.clone(), key, genesis.network_id(), state);
    for node in genesis.replicas.members() {
        options = options.trust(*node);
    }
    for (host, port) in endpoints(args)? {
        options = options.endpoint(host, port);
    }
    let gateway = Gateway::connect(options).await?;
    match gateway.ready(Duration::from_secs(args.timeout)).await {
        Ok(_) => Ok(gateway),
        Err(not_ready) => {
            gateway.close().await;
            Err(explain(&args.client, &not_ready.status))
        }
    }
}

fn endpoints(args: &PublishArgs) -> anyhow::Result<Vec<(String, u16)>> {
    match &args.network {
        _ if !args.mqtt.is_empty() => Ok(args.mqtt.clone()),
        None => bail!("give --mqtt HOST:PORT, or --network DIR as `ledgermq init` made it"),
        Some(dir) => {
            let nodes = network_dir::node_settings(dir)?;
            Ok(nodes.iter().map(|of| (of.mqtt.listen.ip().to_string(), of.mqtt.listen.port())).collect())
        }
    }
}

/// Reads HOST:PORT.
pub(super) fn endpoint(text: &str) -> Result<(String, u16), String> {
    let parsed = text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    match parsed {
        Some((host, port)) if !host.is_empty() && port != 0 => {
            Ok((host.trim_start_matches('[').trim_end_matches(']').to_owned(), port))
        }
        _ => Err("give HOST:PORT, such as 127.0.0.1:1883".into()),
    }
}

fn explain(client: &ClientId, status: &Status) -> anyhow::Error {
    match status {
        Status::Unregistered { reason } => {
            anyhow!(
                "{client} may not publish ({reason:?}): register it with `ledgermq client register`, and give the \
                 key that it was registered with"
            )
        }
        Status::Connecting { reason: Some(reason) } => {
            anyhow!(
                "cannot connect: {reason}: is a node running there, and is --key the key that {client} was \
                 registered with?"
            )
        }
        Status::Connecting { reason: None } => anyhow!("cannot connect: no node answers; is one running?"),
        Status::Handshaking => anyhow!("the node did not take a payload key in time"),
        Status::Ready { .. } | Status::Stopped => anyhow!("the gateway has stopped"),
    }
}

/// One message's way.
struct Delivered {
    line: u64,
    ack: Result<Ack, PublishError>,
    puback: Option<Duration>,
    done: Duration,
}

async fn publish(
    args: &PublishArgs,
    messages: Messages,
    gateway: &Gateway,
    mut tally: Tally,
    answered: &Answered,
) -> anyhow::Result<Summary> {
    let clock = SystemClock::shared();
    // No more than the gateway's window of unacknowledged messages: `publish` waits while it is full.
    let mut underway = JoinSet::new();
    for message in messages {
        let message = match message {
            Ok(message) => message,
            Err(error @ ReadingsError::Line { .. }) => {
                tally.problem(&error.to_string());
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        match gateway.publish(&args.stream, message.body).await {
            Ok(delivery) => {
                underway.spawn(follow(message.line, delivery, clock.clone(), answered.clone()));
            }
            Err(PublishError::Invalid(error)) => tally.problem(&format!("line {}: {error}", message.line)),
            Err(error) => return Err(error.into()),
        }
        while let Some(delivered) = underway.try_join_next() {
            tally.add(delivered?);
        }
    }
    while let Some(delivered) = underway.join_next().await {
        tally.add(delivered?);
    }
    // What an earlier run left.
    gateway.drained().await;
    Ok(tally.summary())
}

async fn follow(line: u64, mut delivery: Delivery, clock: SharedClock, answered: Answered) -> Delivered {
    let started = clock.monotonic();
    let since = || clock.monotonic().saturating_sub(started);
    let puback = delivery.puback().await.ok().map(|()| since());
    let ack = delivery.done().await;
    answered.add();
    Delivered { line, ack, puback, done: since() }
}

/// Counts, and tells what went wrong.
struct Tally {
    summary: Summary,
    puback: Latencies,
    done: Latencies,
    progress: ProgressBar,
}

impl Tally {
    fn new() -> Self {
        let progress = match stderr().is_terminal() {
            true => ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()),
            false => ProgressBar::hidden(),
        };
        let style =
            ProgressStyle::with_template("{spinner} {pos} messages on the ledger, {per_sec}, {elapsed}");
        let progress = match style {
            Ok(style) => progress.with_style(style),
            Err(_) => progress,
        };
        Self {
            summary: Summary::default(),
            puback: Latencies::default(),
            done: Latencies::default(),
            progress,
        }
    }

    fn add(&mut self, delivered: Delivered) {
        let ack = match delivered.ack {
            Ok(ack) => ack,
            Err(error) => return self.problem(&format!("line {}: {error}", delivered.line)),
        };
        self.summary.messages += 1;
        self.summary.items += u64::from(ack.items);
        self.summary.items_written += ack.written.len() as u64;
        self.summary.height = self.summary.height.max(ack.height.map_or(0, |height| height.0));
        self.done.record(delivered.done);
        if let Some(puback) = delivered.puback {
            self.puback.record(puback);
        }
        self.progress.inc(1);
    }

    fn problem(&mut self, problem: &str) {
        self.summary.failed += 1;
        match self.summary.failed {
            // A node may have had a say in it.
            ..=TOLD_PROBLEMS => self.progress.suspend(|| eprintln!("{}", output::plain(problem))),
            at if at == TOLD_PROBLEMS + 1 => {
                self.progress.suspend(|| eprintln!("further problems are counted"))
            }
            _ => {}
        }
    }

    fn summary(self) -> Summary {
        self.progress.finish_and_clear();
        let (puback_ms, final_ms) = (self.puback.percentiles(), self.done.percentiles());
        Summary { puback_ms, final_ms, ..self.summary }
    }
}

fn report(args: &PublishArgs, summary: &Summary) -> anyhow::Result<()> {
    if args.json {
        output::json(summary)?;
    } else {
        let Summary { messages, items, items_written, height, puback_ms, final_ms, .. } = summary;
        output::line(format_args!(
            "{messages} messages acknowledged, {items_written} of {items} items on the ledger, up to block {height}"
        ))?;
        output::line(format_args!(
            "on the node's disk after {} ms (p50), {} ms (p99); final after {} ms (p50), {} ms (p99)",
            puback_ms.p50, puback_ms.p99, final_ms.p50, final_ms.p99
        ))?;
    }
    match summary.failed {
        0 => Ok(()),
        failed => bail!("{failed} lines of the file were not published"),
    }
}
