//! `ledgermq policy`: the write policies of a network: set, listed, and tried offline.
//!
//! Rules stand on the ledger, in versions. Whoever sets them says which version they replace, so that
//! of two admins who change the same version one is refused and does not undo what the other did.

mod file;
mod trial;

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use serde_json::json;

use super::arguments::wrong;
use super::client::{AdminArgs, submit, told};
use super::http::{NetworkArgs, Nodes};
use super::output;
use super::readings::{ColumnArgs, CsvReadings, JsonLines, Message, ReadingsError};
use crate::api::{PoliciesJson, PolicyVersionJson, Submitted};
use crate::device::body::Body;
use crate::ledger::AdminAction;
use crate::policy::{PolicySet, Rule};
use crate::types::{ClientId, Stream, Timestamp};
pub(super) use file::RulesFile;
use trial::{Trial, Tried};

/// The most versions that are listed.
const MAX_LISTED: usize = 65_536;

/// Shown below the options of `test`.
const TEST_EXAMPLES: &str = "\
Examples:
  ledgermq policy test rules.toml --csv weather.csv
  ledgermq policy test --csv weather.csv \\
      --try change:0.5 --try periodic:6h --try both:6h:0.5";

/// Write policies: which readings go on the ledger
#[derive(Debug, Subcommand)]
pub(super) enum PolicyCommand {
    Set(SetArgs),
    List(ListArgs),
    Test(TestArgs),
}

/// Put the rules of a file in force, all at once
///
/// The file says which version it replaces, or --replaces does: if another one is in force by then,
/// nothing is changed. `ledgermq policy list --toml` makes such a file of the rules in force. A file
/// without rules is refused, unless it says `rules = []`: then every reading is written.
#[derive(Debug, Args)]
pub(super) struct SetArgs {
    /// File of rules, in TOML; see docs/POLICY.md
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The version that the rules replace; 0 if none was ever set
    #[arg(long, value_name = "VERSION")]
    replaces: Option<u64>,
    #[command(flatten)]
    admin: AdminArgs,
}

/// List the rules in force, and who set what at which height
#[derive(Debug, Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    network: NetworkArgs,
    /// All versions that were ever in force, the newest first
    #[arg(long)]
    history: bool,
    /// The rules of this version [default: the one in force]
    #[arg(long, value_name = "VERSION", conflicts_with = "history")]
    version: Option<u64>,
    /// Print a file for `ledgermq policy set`
    #[arg(long, conflicts_with_all = ["json", "history"])]
    toml: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Show what rules would write of the readings in a file, offline
///
/// With --try instead of a file of rules, each policy named is compared for all readings.
#[derive(Debug, Args)]
#[command(after_long_help = TEST_EXAMPLES)]
pub(super) struct TestArgs {
    /// File of rules, in TOML
    #[arg(value_name = "FILE", required_unless_present = "tried")]
    file: Option<PathBuf>,
    /// A policy for all readings: always, never, periodic:INTERVAL, change:THRESHOLD,
    /// both:INTERVAL:THRESHOLD
    #[arg(long = "try", value_name = "POLICY", conflicts_with = "file")]
    tried: Vec<Tried>,
    #[command(flatten)]
    source: Source,
    /// The client that sends them
    #[arg(long, default_value = "devices/test")]
    client: ClientId,
    /// Last part of the topic
    #[arg(long, default_value = "readings")]
    stream: Stream,
    #[command(flatten)]
    columns: ColumnArgs,
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

pub(super) fn run(command: PolicyCommand) -> anyhow::Result<()> {
    let runtime = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.context("cannot start the runtime")
    };
    match command {
        PolicyCommand::Set(args) => runtime()?.block_on(set(args)),
        PolicyCommand::List(args) => runtime()?.block_on(list(&args)),
        PolicyCommand::Test(args) => test(&args),
    }
}

async fn set(args: SetArgs) -> anyhow::Result<()> {
    let RulesFile { replaces, policies } = RulesFile::read(&args.file)?;
    let replaces = match (args.replaces, replaces) {
        (Some(asked), Some(said)) if asked != said => {
            return Err(wrong(format_args!(
                "the file says `replaces = {said}`, and --replaces says {asked}: change it in the file"
            )));
        }
        (Some(version), _) | (None, Some(version)) => version,
        (None, None) => {
            let page: PoliciesJson = args.admin.network().connect()?.get("/v1/policies", &[]).await?;
            let version = page.current.version;
            if version > 0 {
                bail!(
                    "version {version} is in force; look at it with `ledgermq policy list`, then say --replaces \
                     {version} if your rules are to take its place"
                );
            }
            version
        }
    };
    let rules = match policies.rules().len() as u64 {
        0 => "no rules (every reading is written)".to_owned(),
        rules => output::counted(rules, "rule"),
    };
    let quotas = output::counted(policies.quotas().len() as u64, "quota");
    let action = AdminAction::SetPolicies { replaces, policies };
    let version = replaces.saturating_add(1);
    let Submitted { height, operation } = submit(&args.admin, action).await?;
    let done = format!("Version {version} is in force, {rules}, {quotas}");
    told(&args.admin, &done, height, operation, false)
}

async fn list(args: &ListArgs) -> anyhow::Result<()> {
    let nodes = args.network.connect()?;
    if args.history {
        let history = history(&nodes).await?;
        if args.json {
            return output::json(&history);
        }
        if history.is_empty() {
            return output::line(
                "No policies were ever set: every reading is written. `ledgermq policy set` sets some",
            );
        }
        for version in &history {
            output::line(placed(version))?;
        }
        return Ok(());
    }
    let (version, in_force) = match args.version {
        Some(version) => (nodes.get(&format!("/v1/policies/{version}"), &[]).await?, false),
        None => (nodes.get::<PoliciesJson>("/v1/policies", &[]).await?.current, true),
    };
    if args.json {
        return output::json(&version);
    }
    let PolicyVersionJson { policies, .. } = &version;
    if args.toml {
        return output::line(file::text(version.version, policies)?.trim_end());
    }
    if version.version == 0 {
        return output::line("Version 0: no policies are set, every reading is written");
    }
    output::line(format_args!("{}{}", placed(&version), if in_force { ", in force" } else { "" }))?;
    describe(policies)
}

async fn history(nodes: &Nodes) -> anyhow::Result<Vec<PolicyVersionJson>> {
    let (mut found, mut query) = (Vec::new(), Vec::new());
    loop {
        let page: PoliciesJson = nodes.get("/v1/policies", &query).await?;
        let is_empty = page.history.is_empty();
        found.extend(page.history);
        match page.next {
            Some(_) if is_empty || found.len() > MAX_LISTED => {
                bail!("the node's list has no end: it is faulty, or no node; ask another one with --api");
            }
            Some(next) => query = vec![("before", next.to_string())],
            None => return Ok(found),
        }
    }
}

fn placed(version: &PolicyVersionJson) -> String {
    let PolicyVersionJson { version, height, operation, time, admin, policies } = version;
    let admin = admin.map_or_else(|| "genesis".to_owned(), |admin| format!("admin {}…", admin.short()));
    let rules = output::counted(policies.rules().len() as u64, "rule");
    format!("Version {version}: block {height}, operation {operation}, {}, by {admin}, {rules}", utc(*time))
}

fn describe(policies: &PolicySet) -> anyhow::Result<()> {
    let width = policies.rules().iter().map(|rule| rule.name.as_str().len()).max().unwrap_or_default();
    for Rule { name, client, stream, device, service, policy } in policies.rules() {
        let patterns = [("client", client), ("stream", stream), ("device", device), ("service", service)];
        let narrow = patterns.into_iter().filter(|(_, pattern)| pattern.as_str() != "*");
        let narrow: Vec<_> = narrow.map(|(field, pattern)| format!("{field} {pattern}")).collect();
        let of = if narrow.is_empty() { "all".to_owned() } else { narrow.join(", ") };
        output::line(format_args!("  {:width$}  {of}: {policy}", name.as_str()))?;
    }
    output::line("  Everything else is written.")?;
    for quota in policies.quotas() {
        let items = output::counted(quota.max_items, "data item");
        output::line(format_args!("  Clients {}: at most {items} each", quota.client))?;
    }
    Ok(())
}

fn utc(time: Timestamp) -> String {
    let parsed = i64::try_from(time.0).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    parsed.map_or_else(|| format!("{time} ms"), |time| time.to_string())
}

fn test(args: &TestArgs) -> anyhow::Result<()> {
    let mut trials: Vec<(String, Trial)> = match &args.file {
        Some(path) => vec![(path.display().to_string(), Trial::of_rules(RulesFile::read(path)?.policies))],
        None => args.tried.iter().map(|tried| (tried.text.clone(), Trial::of_policy(tried.policy))).collect(),
    };
    let mut count = 0_u64;
    let mut add = |message: Result<Message, ReadingsError>| -> anyhow::Result<()> {
        let message = message?;
        let body = Body::parse(&args.client, &message.body)
            .with_context(|| format!("line {} makes no message", message.line))?;
        count += 1;
        for (_, trial) in &mut trials {
            trial.message(args.stream.as_str(), &body.items);
        }
        Ok(())
    };
    match (&args.source.csv, &args.source.json_lines) {
        (Some(path), _) => {
            let mut rows = CsvReadings::open(path, &args.columns.options(path))?;
            rows.by_ref().try_for_each(&mut add)?;
            if let Some(doubt) = rows.doubt() {
                eprintln!("warning: `ledgermq publish` would refuse this: {}", output::plain(&doubt));
            }
        }
        (_, Some(path)) => JsonLines::open(path, args.client.clone())?.try_for_each(&mut add)?,
        (None, None) => return Err(wrong("give --csv FILE or --json-lines FILE")),
    }
    if count > 0 && trials.iter().any(|(_, trial)| trial.is_beside_all_rules()) {
        eprintln!(
            "warning: no rule is for anything that {} sends to {}; say who sends it (--client, --stream)",
            args.client, args.stream
        );
    }
    if args.json {
        let result = |(policy, trial): &(String, Trial)| {
            let items = trial.rows.iter().map(|((device, num, service), row)| {
                json!({ "device": device, "service": service, "num": num, "result": row })
            });
            json!({ "policy": policy, "items": items.collect::<Vec<_>>(), "all": trial.total() })
        };
        let results: Vec<_> = trials.iter().map(result).collect();
        return output::json(&json!({ "messages": count, "results": results }));
    }
    let table = match trials.as_slice() {
        [(_, trial)] if args.file.is_some() => trial::rules_table(trial),
        trials => trial::policies_table(trials),
    };
    output::line(format_args!("{}\n\n{}", output::counted(count, "message"), table.trim_end()))
}
