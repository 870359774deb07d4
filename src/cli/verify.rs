//! `ledgermq verify`: what a proof bundle proves, or what is wrong with it.
//!
//! Offline: nothing is read but the bundles and the genesis document.

use std::fs::File;
use std::io::{IsTerminal as _, Read as _, stderr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::output;
use crate::config::read_genesis;
use crate::history::audit::words::number;
use crate::ledger::ReplicaSet;
use crate::ledger::proof::{MAX_BUNDLE_BYTES, ProofBundle, ProofError, Proven, ProvenBlock, Verifier};
use crate::types::Timestamp;

/// From so many bundles on, progress is shown.
const PROGRESS_FROM: usize = 20;

/// Verify proof bundles offline, with nothing but the genesis document
///
/// Says what is proven (who measured what and when, in which block it stands, which replicas signed
/// it) or what is wrong. The exit code is 0 only if every bundle holds, 1 if one proves nothing, and 2 if a
/// file could not be read, so that nothing is said of it. Get a bundle from a node:
/// curl -o reading.lmqproof http://127.0.0.1:8080/v1/records/7/0/bundle
#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// Proof bundles
    #[arg(value_name = "BUNDLE", required = true)]
    bundles: Vec<PathBuf>,
    /// The genesis document, from a source that you trust
    #[arg(long, value_name = "FILE")]
    genesis: PathBuf,
    /// Print one JSON array, with an object for each bundle
    #[arg(long)]
    json: bool,
}

/// The verdict on one bundle.
#[derive(Debug, Serialize)]
struct Verdict {
    bundle: PathBuf,
    /// Whether it could be read.
    checked: bool,
    valid: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    proven: Option<Proven>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

/// The exit code if nothing is wrong with what was read, and not all could be.
const UNCHECKED: u8 = 2;

pub(super) fn run(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    let opened = read_genesis(&args.genesis)
        .map_err(anyhow::Error::from)
        .and_then(|genesis| Ok((Verifier::new(&genesis)?, genesis)));
    let (verifier, genesis) = match opened {
        Ok(opened) => opened,
        Err(error) => return Ok(could_not_check(&super::told(&error))),
    };
    let progress = progress(args.bundles.len());
    let mut verdicts = Vec::new();
    let (mut bad, mut unread) = (0, 0);
    for path in &args.bundles {
        let verdict = judge(path, &verifier);
        bad += usize::from(verdict.checked && !verdict.valid);
        unread += usize::from(!verdict.checked);
        if args.json {
            verdicts.push(verdict);
        } else {
            progress.suspend(|| describe(&verdict, &genesis.replicas))?;
        }
        progress.inc(1);
    }
    progress.finish_and_clear();
    if args.json {
        output::json(&verdicts)?;
    }
    match (bad, unread, args.bundles.len()) {
        (0, 0, _) => Ok(ExitCode::SUCCESS),
        (0, _, 1) => Ok(could_not_check("the file could not be read, so nothing is said of a bundle")),
        (0, unread, all) => Ok(could_not_check(&format!(
            "{unread} of {all} files could not be read, and nothing is said of what is in them"
        ))),
        (_, _, 1) => bail!("the bundle proves nothing"),
        (bad, 0, all) => bail!("{bad} of {all} bundles prove nothing"),
        (bad, unread, all) => bail!("{bad} of {all} bundles prove nothing, and {unread} could not be read"),
    }
}

/// Says why nothing is said of what was to be checked; the exit code of that.
pub(super) fn could_not_check(why: &str) -> ExitCode {
    eprintln!("error: could not check: {}", output::plain(why));
    ExitCode::from(UNCHECKED)
}

fn progress(bundles: usize) -> ProgressBar {
    if bundles < PROGRESS_FROM || !stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(bundles as u64), ProgressDrawTarget::stderr());
    match ProgressStyle::with_template("verifying {bar:40} {pos}/{len} bundles, {eta} left") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn judge(path: &Path, verifier: &Verifier) -> Verdict {
    let bytes = read_file(path, MAX_BUNDLE_BYTES);
    let checked = bytes.is_ok();
    // A proof's error says all of it; its sources would only say it again.
    let said = |error: ProofError| anyhow!(error.to_string());
    let result = bytes.and_then(|bytes| {
        let bundle = ProofBundle::decode(&bytes).map_err(said)?;
        verifier.verify(&bundle).map_err(said)
    });
    let (proven, problem) = match result {
        Ok(proven) => (Some(proven), None),
        Err(error) => (None, Some(super::told(&error))),
    };
    Verdict { bundle: path.to_owned(), checked, valid: proven.is_some(), proven, problem }
}

/// Reads a file of which at most `max_bytes` are what it says it is.
pub(super) fn read_file(path: &Path, max_bytes: usize) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path).context("cannot open the file")?;
    // A little more than it can have, so that a longer file is told from it.
    file.take(max_bytes as u64 + 64).read_to_end(&mut bytes).context("cannot read the file")?;
    Ok(bytes)
}

fn describe(verdict: &Verdict, replicas: &ReplicaSet) -> anyhow::Result<()> {
    // A name that came with the file must not be able to write a verdict of its own.
    let path = verdict.bundle.to_string_lossy();
    let path = path.escape_debug();
    let Some(proven) = &verdict.proven else {
        let problem = verdict.problem.as_deref().unwrap_or("unknown");
        let word = if verdict.checked { "NOT PROVEN" } else { "COULD NOT CHECK" };
        return output::line(format_args!("{word}  {path}\n  {problem}"));
    };
    let Proven { client, client_key, stream, seq, event_time, block, .. } = proven;
    output::line(format_args!("PROVEN  {path}"))?;
    output::line(format_args!("  who    {client}, with key {client_key}"))?;
    output::line(format_args!(
        "         registered in block {} by admin {}",
        proven.registration.height, proven.registered_by
    ))?;
    for (at, record) in proven.records.iter().enumerate() {
        let word = if at == 0 { "what" } else { "" };
        let item = &record.item;
        let unit = item.unit.as_deref().map(|unit| format!(" {}", unit.escape_debug())).unwrap_or_default();
        output::line(format_args!(
            "  {word:6} {} {} = {}{unit}   {record}",
            item.device.escape_debug(),
            item.service.escape_debug(),
            item.value
        ))?;
    }
    output::line(format_args!(
        "  when   {}, message {seq} on stream {stream}, {} of its {}",
        time(*event_time),
        number(proven.records.len() as u64),
        output::counted(proven.message_items, "item")
    ))?;
    output::line(format_args!(
        "  block  {}, operation {}, made {}\n         {}",
        block.height,
        block.operation,
        time(block.timestamp),
        block.hash
    ))?;
    output::line(format_args!("  signed by {}", signers(block, proven, replicas)))
}

fn signers(block: &ProvenBlock, proven: &Proven, replicas: &ReplicaSet) -> String {
    let numbers: Vec<String> = block
        .signed_by
        .iter()
        .map(|node| replicas.index_of(node).map_or_else(|| node.short(), |number| number.to_string()))
        .collect();
    format!(
        "{} of {} replicas ({}); {} were needed",
        block.signed_by.len(),
        proven.replicas,
        numbers.join(", "),
        proven.quorum
    )
}

/// RFC 3339, for a person.
fn time(time: Timestamp) -> String {
    let parsed = i64::try_from(time.0).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    parsed.map_or_else(|| format!("{time} ms"), |time| time.to_string())
}
