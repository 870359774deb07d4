//! `ledgermq publish`: measurements of a file, through MQTT, like any gateway.
//!
//! Each message is signed and on disk here before it is sent, and is sent again until a node says that
//! it is final: a run that was stopped is finished by the next one with the same `--state`.

use std::io::{IsTerminal as _, stderr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use clap::{ArgGroup, Args};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use tokio::task::JoinSet;

use super::arguments::wrong;
use super::latency::{Latencies, Percentiles};
use super::publish_watch::{Answered, Watch, not_final};
use super::readings::{ColumnArgs, CsvReadings, JsonLines, Message, ReadingsError};
use super::{network_dir, output};
use crate::clock::{SharedClock, SystemClock};
use crate::config::read_genesis;
use crate::device::codes::{ErrorCode, UnauthReason};
use crate::gateway::{Ack, Delivery, Gateway, GatewayOptions, PublishError, Status};
use crate::history::audit::words::number;
use crate::keyfile;
use crate::types::{ClientId, Stream};

/// How long nodes may say that they do not know a client: one that is a moment behind has not executed its
/// registration yet.
const UNKNOWN_FOR: Duration = Duration::from_secs(2);

/// So many problems are told one by one; the rest are counted.
const TOLD_PROBLEMS: u64 = 10;

/// In the width of a terminal.
const USAGE: &str = "ledgermq publish [OPTIONS] --key <FILE>
                        <--network <DIR>|--mqtt <HOST:PORT>>
                        <--csv <FILE>|--json-lines <FILE>> <CLIENT>";

/// Shown below the options.
const EXAMPLE: &str = "\
Example:
  ledgermq publish devices/iot --key iot.key --network net \\
      --csv weather.csv --device th-01 \\
      --item temperature_c=temperature:1:Cel \\
      --item relative_humidity_percent=humidity:2:%RH";

/// Publish the readings of a file, as a gateway does
///
/// CSV: the first row names the columns. Each row becomes one message, each column one data item. Give
/// the columns with --item, or leave it out to take all. JSON lines: each line is one message body of
/// docs/PROTOCOL.md, sent as it is.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLE, override_usage = USAGE)]
#[command(group = ArgGroup::new("nodes").required(true).multiple(true).args(["network", "mqtt"]))]
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
    /// Directory for numbers used and messages not final; belongs to this client alone [default:
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
    // Before the arguments of CSV, whose heading goes on to the end.
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    mapping: ColumnArgs,
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

/// What became of a file.
#[derive(Debug, Default, Serialize)]
struct Summary {
    /// Messages that are final.
    messages: u64,
    /// Data items in them.
    items: u64,
    /// Those of them that are on the ledger.
    items_written: u64,
    /// The highest block that holds one.
    height: u64,
    /// Messages that a node acknowledged, so that they are in its log, and that are not final: they
    /// still wait, or the ledger did not take them.
    acknowledged: u64,
    /// Messages that a node refused and did not keep.
    refused: u64,
    /// Messages of which no node has said anything: the next run sends them again.
    unknown: u64,
    /// Lines that are no message.
    invalid: u64,
    /// All of these that are not final.
    failed: u64,
    /// From sending to the node's disk; none if nothing was measured.
    puback_ms: Option<Percentiles>,
    /// From sending to the ledger.
    final_ms: Option<Percentiles>,
}

/// What is true of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// A node signed that it is final.
    Final,
    /// In a node's log, and not on the ledger as far as is known.
    Acknowledged,
    /// No node kept it.
    Refused,
    /// No node said anything.
    Unknown,
}

/// A PUBACK alone tells nothing once an error has come: what is refused for its content gets one, too.
fn fate(ack: &Result<Ack, PublishError>, has_puback: bool) -> Fate {
    match ack {
        Ok(_) => Fate::Final,
        Err(PublishError::Refused(refusal)) if refusal.was_accepted() => Fate::Acknowledged,
        Err(PublishError::Refused(_) | PublishError::Invalid(_)) => Fate::Refused,
        Err(PublishError::State(_) | PublishError::Closed) if has_puback => Fate::Acknowledged,
        Err(PublishError::State(_) | PublishError::Closed) => Fate::Unknown,
    }
}

/// Why a message is not final, for a person.
fn told(error: &PublishError, fate: Fate) -> String {
    let PublishError::Refused(refusal) = error else { return error.to_string() };
    let ahead = match refusal.code {
        ErrorCode::SeqTooOld | ErrorCode::SeqReused => {
            ": another copy of this client, with another --state, took later numbers; never run two of them"
        }
        _ => "",
    };
    match fate {
        Fate::Acknowledged => format!(
            "acknowledged by the node, in its log, and not taken by the ledger now ({}){ahead}; the node says: {}; \
             `/v1/records` tells whether it got there before",
            refusal.code, refusal.detail
        ),
        _ => format!("{error}{ahead}"),
    }
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
        let (mut tally, answered) = (Tally::new(), Answered::default());
        let endpoints = endpoints(args)?.len();
        let watch = Watch {
            gateway: &gateway,
            answered: answered.clone(),
            clock: SystemClock::shared(),
            progress: tally.progress.clone(),
            network: args.network.clone(),
            limit: args.final_timeout.map(Duration::from_secs),
        };
        // No more than the gateway's window of messages without an answer: `publish` waits while it is full.
        let mut underway = JoinSet::new();
        let result = tokio::select! {
            result = publish(args, messages, &gateway, &mut tally, &mut underway, &answered) => result,
            stalled = watch.run() => Err(stalled),
            refused = refused(&args.client, &gateway, endpoints) => {
                Err(refused.context(not_final(gateway.unfinished(), answered.stored())))
            }
            _ = tokio::signal::ctrl_c() => {
                Err(anyhow!("interrupted: {}", not_final(gateway.unfinished(), answered.stored())))
            }
        };
        while let Some(delivered) = underway.try_join_next() {
            tally.add(delivered?);
        }
        tally.leave(gateway.unfinished(), answered.stored());
        gateway.close().await;
        let summary = tally.summary();
        report(args, &summary)?;
        result?;
        if !args.json && summary.messages == 0 && summary.failed == 0 {
            output::line(nothing_to_publish(&args.source))?;
        }
        conclude(&summary)
    })
}

fn open(args: &PublishArgs) -> anyhow::Result<Messages> {
    match (&args.source.csv, &args.source.json_lines) {
        (Some(path), _) => Ok(Box::new(CsvReadings::open(path, &args.mapping.options(path))?)),
        (_, Some(path)) => Ok(Box::new(JsonLines::open(path, args.client.clone())?)),
        (None, None) => Err(wrong("give --csv FILE or --json-lines FILE")),
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
    let endpoints = endpoints(args)?;
    let ways = endpoints.len();
    for (host, port) in endpoints {
        options = options.endpoint(host, port);
    }
    let gateway = Gateway::connect(options).await?;
    let connected = tokio::select! {
        ready = gateway.ready(Duration::from_secs(args.timeout)) => {
            ready.map_err(|not_ready| explain(&args.client, &not_ready.status))
        }
        refused = refused(&args.client, &gateway, ways) => Err(refused),
    };
    match connected {
        Ok(_) => Ok(gateway),
        Err(error) => {
            gateway.close().await;
            Err(error)
        }
    }
}

/// Ends once the nodes have said what waiting does not change: that the client is revoked, that they do not
/// know it, or, as often as there are endpoints, that they do not let it in.
async fn refused(client: &ClientId, gateway: &Gateway, endpoints: usize) -> anyhow::Error {
    let is_unknown =
        |status: &Status| matches!(status, Status::Unregistered { reason: UnauthReason::NotRegistered });
    let unknown = async {
        let mut status = gateway.status();
        loop {
            if status.wait_for(is_unknown).await.is_err() {
                std::future::pending::<()>().await;
            }
            let is_known = status.wait_for(|status| matches!(status, Status::Ready { .. }));
            if tokio::time::timeout(UNKNOWN_FOR, is_known).await.is_err() {
                return Status::Unregistered { reason: UnauthReason::NotRegistered };
            }
        }
    };
    let denied = async {
        let (mut status, mut denials) = (gateway.status(), 0);
        loop {
            let now = status.borrow_and_update().clone();
            match &now {
                Status::Unregistered { reason: UnauthReason::Revoked } => return now,
                Status::Denied { .. } => denials += 1,
                Status::Ready { .. } => denials = 0,
                _ => {}
            }
            if denials >= endpoints {
                return now;
            }
            if status.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let status = tokio::select! {
        status = unknown => status,
        status = denied => status,
    };
    explain(client, &status)
}

fn endpoints(args: &PublishArgs) -> anyhow::Result<Vec<(String, u16)>> {
    match &args.network {
        _ if !args.mqtt.is_empty() => Ok(args.mqtt.clone()),
        None => Err(wrong("give --mqtt HOST:PORT, or --network DIR as `ledgermq init` made it")),
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
        Status::Unregistered { reason: UnauthReason::NotRegistered } => {
            anyhow!(
                "{client} may not publish (not_registered): register it with `ledgermq client register`, and give \
                 the key that it was registered with"
            )
        }
        Status::Unregistered { reason: UnauthReason::Revoked } => {
            anyhow!(
                "{client} may not publish (revoked): an admin ended its right to; register a client with another id"
            )
        }
        Status::Denied { reason } => {
            anyhow!(
                "{client} is not let in (NotAuthorized): {reason}: give the --key that {client} was registered with \
                 (`ledgermq client list` shows it), and see that this machine's clock is right"
            )
        }
        Status::Connecting { reason: Some(reason) } => {
            anyhow!("cannot connect: {reason}: is a node running there?")
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
    tally: &mut Tally,
    underway: &mut JoinSet<Delivered>,
    answered: &Answered,
) -> anyhow::Result<()> {
    let clock = SystemClock::shared();
    for message in messages {
        let message = match message {
            Ok(message) => message,
            Err(error @ ReadingsError::Line { .. }) => {
                tally.invalid(&error.to_string());
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        match gateway.publish(&args.stream, message.body).await {
            Ok(delivery) => {
                underway.spawn(follow(message.line, delivery, clock.clone(), answered.clone()));
            }
            Err(PublishError::Invalid(error)) => tally.invalid(&format!("line {}: {error}", message.line)),
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
    Ok(())
}

async fn follow(line: u64, mut delivery: Delivery, clock: SharedClock, answered: Answered) -> Delivered {
    let started = clock.monotonic();
    let since = || clock.monotonic().saturating_sub(started);
    let puback = delivery.puback().await.ok().map(|()| since());
    if puback.is_some() {
        answered.add_stored();
    }
    let ack = delivery.done().await;
    answered.add(puback.is_some());
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
        let fate = fate(&delivered.ack, delivered.puback.is_some());
        let ack = match delivered.ack {
            Ok(ack) => ack,
            Err(error) => {
                match fate {
                    Fate::Final => {}
                    Fate::Acknowledged => self.summary.acknowledged += 1,
                    Fate::Refused => self.summary.refused += 1,
                    Fate::Unknown => self.summary.unknown += 1,
                }
                return self.problem(&format!("line {}: {}", delivered.line, told(&error, fate)));
            }
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

    fn invalid(&mut self, problem: &str) {
        self.summary.invalid += 1;
        self.problem(problem);
    }

    /// The run ends before so many messages have their answer, those of earlier runs included.
    fn leave(&mut self, unfinished: usize, stored: u64) {
        let unfinished = u64::try_from(unfinished).unwrap_or(u64::MAX);
        let stored = stored.min(unfinished);
        self.summary.acknowledged += stored;
        self.summary.unknown += unfinished - stored;
        self.summary.failed += unfinished;
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
        let measured = |times: &Latencies| (times.count() > 0).then(|| times.percentiles());
        let (puback_ms, final_ms) = (measured(&self.puback), measured(&self.done));
        Summary { puback_ms, final_ms, ..self.summary }
    }
}

/// What a person is told of a file that has no message.
fn nothing_to_publish(source: &Source) -> String {
    match (&source.csv, &source.json_lines) {
        (Some(path), _) => {
            format!("Nothing to publish: {} has no row with a value below its first", path.display())
        }
        (None, Some(path)) => format!("Nothing to publish: {} has no line", path.display()),
        (None, None) => "Nothing to publish".to_owned(),
    }
}

fn report(args: &PublishArgs, summary: &Summary) -> anyhow::Result<()> {
    if args.json {
        return output::json(summary);
    }
    let Summary { messages, items, items_written, height, puback_ms, final_ms, .. } = summary;
    if *messages > 0 {
        let up_to = if *items_written > 0 { format!(", up to block {height}") } else { String::new() };
        let are = if *messages == 1 { "message is" } else { "messages are" };
        output::line(format_args!(
            "{} {are} final, with {} of {} on the ledger{up_to}",
            number(*messages),
            number(*items_written),
            output::counted(*items, "item")
        ))?;
    }
    if let Some(of) = puback_ms {
        output::line(format_args!(
            "on the node's disk after {:.1} ms (p50), {:.1} ms (p99)",
            of.p50, of.p99
        ))?;
    }
    if let Some(of) = final_ms {
        output::line(format_args!("final after {:.1} ms (p50), {:.1} ms (p99)", of.p50, of.p99))?;
    }
    Ok(())
}

/// An error if not all of the file is final.
fn conclude(summary: &Summary) -> anyhow::Result<()> {
    let Summary { acknowledged, refused, unknown, invalid, failed, .. } = summary;
    let parts = [
        (acknowledged, "acknowledged and in a node's log, not final"),
        (refused, "refused by a node, which kept nothing of it"),
        (unknown, "without an answer, sent again by the next run with the same --state"),
        (invalid, "not a message"),
    ];
    let parts: Vec<String> = parts
        .iter()
        .filter(|(count, _)| **count > 0)
        .map(|(count, what)| format!("{} {what}", number(**count)))
        .collect();
    match failed {
        0 => Ok(()),
        failed => bail!("not final, of all messages: {} ({})", number(*failed), parts.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::codes::ACCEPTED_BEFORE;
    use crate::gateway::Refusal;

    fn refused(code: ErrorCode, detail: &str) -> PublishError {
        PublishError::Refused(Refusal { code, detail: detail.to_owned() })
    }

    #[test]
    fn what_is_said_of_a_message_is_what_is_true_of_it() {
        let late = refused(ErrorCode::SeqTooOld, &format!("{ACCEPTED_BEFORE}the seq is too far below 300"));
        let found = fate(&Err(late.clone()), true);
        assert_eq!(found, Fate::Acknowledged);
        let said = told(&late, found);
        for words in ["acknowledged by the node, in its log", "seq_too_old", "another copy of this client"] {
            assert!(said.contains(words), "{words:?} is not in {said}");
        }
        assert!(!said.contains("not published") && !said.contains("refused the message"), "{said}");
        // Refused at the door: a PUBACK came, and says nothing.
        for code in [ErrorCode::SeqTooOld, ErrorCode::Malformed] {
            let early = refused(code, "no");
            assert_eq!(fate(&Err(early.clone()), true), Fate::Refused);
            assert!(told(&early, Fate::Refused).contains("the node refused the message"));
        }
        assert_eq!(fate(&Err(PublishError::Closed), true), Fate::Acknowledged);
        assert_eq!(fate(&Err(PublishError::Closed), false), Fate::Unknown);
    }

    #[test]
    fn a_file_without_a_message_is_told_as_one() {
        let csv = Source { csv: Some("weather.csv".into()), json_lines: None };
        assert_eq!(
            nothing_to_publish(&csv),
            "Nothing to publish: weather.csv has no row with a value below its first"
        );
    }

    #[test]
    fn messages_without_an_answer_are_counted_by_what_is_known() {
        let mut tally = Tally::new();
        tally.leave(5, 3);
        let summary = tally.summary();
        assert_eq!((summary.acknowledged, summary.unknown, summary.failed), (3, 2, 5));
        assert!(summary.puback_ms.is_none() && summary.final_ms.is_none(), "nothing was measured");
        let told = conclude(&summary).unwrap_err().to_string();
        assert!(
            told.contains("not final, of all messages: 5 (")
                && told.contains("3 acknowledged")
                && told.contains("2 without"),
            "{told}"
        );
    }
}
