//! `ledgermq publish`: measurements of a file, through MQTT, like any gateway.
//!
//! Each message is signed and on disk here before it is sent, and is sent again until a node says that
//! it is final: a run that was stopped is finished by the next one with the same `--state`, which goes on with the
//! file behind the last message that was taken up. Of a file that has grown, only what is new is sent.

mod connection;
mod source;
mod tally;
mod watch;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use clap::{ArgGroup, Args};
use tokio::task::JoinSet;

use super::arguments::wrong;
use super::output;
use super::readings::{ColumnArgs, ReadingsError};
use crate::clock::{SharedClock, SystemClock};
use crate::gateway::{Delivery, Gateway, MAX_REFUSALS, Place, PublishError, Sources};
use crate::history::audit::words::number;
use crate::types::{ClientId, Stream};

pub(super) use connection::endpoint;
use tally::{Delivered, Tally};
use watch::{Answered, Watch, not_final};

/// In the width of a terminal.
const USAGE: &str = "ledgermq publish [OPTIONS] --key <FILE>
                        <--network <DIR>|--mqtt <HOST:PORT>>
                        <--csv <FILE>|--json-lines <FILE>> <CLIENT>";

/// A run ends after so many refusals, since the state remembers no more than twice as many.
const MOST_REFUSALS: u64 = MAX_REFUSALS as u64 / 2;

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
///
/// The whole file is looked through before anything is sent. The same command again finishes what a run left,
/// and sends only what is new of a file that has grown.
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
    /// Give up when no node is ready for so long at the start
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
    /// Give up when nothing becomes final for so long [default: wait, and tell why]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    final_timeout: Option<u64>,
    // Before the arguments of CSV, whose heading goes on to the end.
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Leave out lines that are no message, instead of sending nothing if there is one; publish them,
    /// mended, in a file of their own
    #[arg(long)]
    skip_invalid: bool,
    /// Take columns with numbers and texts, and texts with a decimal comma
    #[arg(long)]
    mixed_columns: bool,
    /// Send all of the file, also what earlier runs took up
    #[arg(long)]
    again: bool,
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

impl Source {
    fn path(&self) -> anyhow::Result<&Path> {
        self.csv
            .as_deref()
            .or(self.json_lines.as_deref())
            .ok_or_else(|| wrong("give --csv FILE or --json-lines FILE"))
    }

    /// What a person is told of a file that has no message.
    fn nothing_to_publish(&self) -> String {
        match (&self.csv, &self.json_lines) {
            (Some(path), _) => {
                format!("Nothing to publish: {} has no row with a value below its first", path.display())
            }
            (None, Some(path)) => format!("Nothing to publish: {} has no line", path.display()),
            (None, None) => "Nothing to publish".to_owned(),
        }
    }
}

pub(super) fn run(args: &PublishArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    // Before anybody is asked for anything.
    let messages = source::check(args)?;
    runtime.block_on(async {
        let gateway = connection::connect(args).await?;
        let plan = Plan::of(args, messages, &gateway)?;
        plan.tell(args)?;
        let (mut tally, answered) = (Tally::new(args.skip_invalid), Answered::default());
        tally.earlier(plan.taken.messages);
        let endpoints = connection::endpoints(args)?.len();
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
            result = publish(args, plan, &gateway, &mut tally, &mut underway, &answered) => result,
            stalled = watch.run() => Err(stalled),
            refused = connection::refused(&args.client, &gateway, endpoints) => {
                Err(refused.context(not_final(gateway.unfinished(), answered.stored())))
            }
            _ = tokio::signal::ctrl_c() => {
                Err(anyhow!("interrupted: {}", not_final(gateway.unfinished(), answered.stored())))
            }
        };
        while let Some(delivered) = underway.try_join_next() {
            tally.add(delivered?);
        }
        tally.refused_of_earlier_runs(&gateway.refused_of_earlier_runs());
        tally.leave(gateway.unfinished(), answered.stored());
        let summary = tally.summary();
        gateway.close().await;
        if args.json {
            output::json(&summary)?;
        } else {
            summary.print()?;
        }
        result?;
        if !args.json && plan.left > 0 {
            let has = if plan.left == 1 { "has its" } else { "have their" };
            let left = output::counted(plan.left, "message");
            output::line(format_args!("{left} of an earlier run {has} answer"))?;
        }
        if !args.json && summary.messages == 0 && summary.failed == 0 && summary.earlier == 0 {
            output::line(args.source.nothing_to_publish())?;
        }
        summary.conclude()
    })
}

/// What of the file is sent.
#[derive(Debug, Clone, Copy)]
struct Plan {
    /// How many messages the file has; none if it cannot be read twice.
    messages: Option<u64>,
    /// Up to here earlier runs took it up.
    taken: Place,
    /// So many messages in the state have no answer yet.
    left: u64,
    /// Some were refused, and those of this file are tried again.
    refused: bool,
}

impl Plan {
    fn of(args: &PublishArgs, messages: Option<u64>, gateway: &Gateway) -> anyhow::Result<Self> {
        let Sources { places, refusals } = gateway.sources();
        let places = if args.again || messages.is_none() { &[] } else { &places[..] };
        let (taken, left) = (source::taken(args, places)?, gateway.unfinished() as u64);
        Ok(Self { messages, taken, left, refused: !refusals.is_empty() })
    }

    /// What of earlier runs plays a part in this one.
    fn tell(&self, args: &PublishArgs) -> anyhow::Result<()> {
        if self.left > 0 {
            let (has, is) = if self.left == 1 { ("has", "it is") } else { ("have", "they are") };
            eprintln!(
                "{} of an earlier run {has} no answer yet: {is} sent first",
                output::counted(self.left, "message")
            );
        }
        if let Some(messages) = self.messages.filter(|_| self.taken.messages > 0) {
            let refused = if self.refused { ", but for those that were refused" } else { "" };
            eprintln!(
                "earlier runs took up {} of {} in {}, which are not sent again{refused}; --again sends all of them",
                number(self.taken.messages),
                output::counted(messages, "message"),
                args.source.path()?.display()
            );
        }
        Ok(())
    }
}

async fn publish(
    args: &PublishArgs,
    plan: Plan,
    gateway: &Gateway,
    tally: &mut Tally,
    underway: &mut JoinSet<Delivered>,
    answered: &Answered,
) -> anyhow::Result<()> {
    let clock = SystemClock::shared();
    let mut place = source::beginning(&args.stream);
    for message in source::open(args)? {
        let message = match message {
            Ok(message) => message,
            Err(error @ ReadingsError::Line { .. }) => {
                tally.invalid(&error.to_string());
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let before = place;
        place = source::behind(&args.stream, before, &message.body);
        if place.messages == plan.taken.messages && place != plan.taken {
            bail!("{} changed while it was read: run the same command again", args.source.path()?.display());
        }
        let taken = if plan.messages.is_none() {
            gateway.publish(&args.stream, message.body).await
        } else if place.messages > plan.taken.messages {
            gateway.publish_from(&args.stream, message.body, (before, place)).await
        } else if gateway.sources().refusals.contains(&place.hash) {
            tally.try_again();
            gateway.publish_again(&args.stream, message.body, place.hash).await
        } else {
            continue;
        };
        match taken {
            Ok(delivery) => {
                underway.spawn(follow(message.line, delivery, clock.clone(), answered.clone()));
            }
            Err(PublishError::Invalid(error)) => {
                tally.invalid(&format!("line {}: {error}", message.line));
            }
            Err(error) => return Err(error.into()),
        }
        while let Some(delivered) = underway.try_join_next() {
            tally.add(delivered?);
        }
        if tally.refusals() >= MOST_REFUSALS {
            bail!("stopped, since {} messages were refused", number(tally.refusals()));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_message_is_told_as_one() {
        let csv = Source { csv: Some("weather.csv".into()), json_lines: None };
        assert_eq!(
            csv.nothing_to_publish(),
            "Nothing to publish: weather.csv has no row with a value below its first"
        );
    }
}
