//! `ledgermq evidence`: proofs that replicas are faulty, listed and fetched from a node, and checked
//! offline.
//!
//! A node is believed nothing: what is fetched must have the hash that was asked for, and `verify`
//! reads nothing but the file and the genesis document.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, anyhow, bail};
use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::json;

use super::http::{ListArgs, NetworkArgs};
use super::output;
use super::verify::{could_not_check, read_file};
use crate::api::{EvidenceJson, EvidenceListJson};
use crate::config::read_genesis;
use crate::ledger::{Genesis, ReplicaSet};
use crate::pbft::evidence::{Evidence, FaultKind, MAX_EVIDENCE_BYTES, Proven};
use crate::types::{Hash, Timestamp};

/// The most pieces that the settings of a node let it keep.
const MAX_LISTED: usize = 65_536;

/// In the width of a terminal.
const FETCH_USAGE: &str = "ledgermq evidence fetch [OPTIONS] --output <FILE>
                               <--network <DIR>|--api <URL>> <ID>";

/// Proofs that a replica is faulty: list, fetch and verify them
#[derive(Debug, Subcommand)]
pub(super) enum EvidenceCommand {
    /// List the evidence that a node keeps
    ///
    /// Each node keeps what it saw itself. With --network, the first node that can be reached is asked;
    /// name another one with --api.
    List(ListArgs),
    Fetch(FetchArgs),
    Verify(VerifyArgs),
}

/// Fetch one piece of evidence into a file
///
/// Example: ledgermq evidence fetch ID -o fault.lmqevidence --network net
#[derive(Debug, Args)]
#[command(override_usage = FETCH_USAGE)]
pub(super) struct FetchArgs {
    /// Its id, 64 hex digits, as `evidence list` prints it
    id: Hash,
    /// File to write it to; must not exist
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    network: NetworkArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Verify a piece of evidence offline, with nothing but the genesis document
///
/// Says which replica signed what, and why no correct replica does that; or what is wrong with the
/// file. The exit code is 0 only if it proves that a replica is faulty, 1 if it proves nothing, and 2 if a file
/// could not be read, so that nothing is said of it.
#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// The file, as `evidence fetch` writes it
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The genesis document, from a source that you trust
    #[arg(long, value_name = "FILE")]
    genesis: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The verdict on a file.
#[derive(Debug, Serialize)]
struct Verdict {
    file: PathBuf,
    /// Whether it could be read.
    checked: bool,
    valid: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    proven: Option<Proven>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

pub(super) fn run(command: EvidenceCommand) -> anyhow::Result<ExitCode> {
    let runtime = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.context("cannot start the runtime")
    };
    match command {
        EvidenceCommand::List(args) => runtime()?.block_on(list(&args)),
        EvidenceCommand::Fetch(args) => runtime()?.block_on(fetch(&args)),
        EvidenceCommand::Verify(args) => return verify(&args),
    }
    .map(|()| ExitCode::SUCCESS)
}

async fn list(args: &ListArgs) -> anyhow::Result<()> {
    let nodes = args.network.connect()?;
    let mut found: Vec<EvidenceJson> = Vec::new();
    let mut query = Vec::new();
    loop {
        let page: EvidenceListJson = nodes.get("/v1/evidence", &query).await?;
        let is_empty = page.evidence.is_empty();
        found.extend(page.evidence);
        match page.next {
            Some(_) if is_empty || found.len() > MAX_LISTED => {
                bail!("the node's list has no end: it is faulty, or no node; ask another one with --api");
            }
            Some(next) => query = vec![("cursor", next)],
            None => break,
        }
    }
    if args.json {
        return output::json(&found);
    }
    if found.is_empty() {
        return output::line("The node that was asked has no evidence against any replica.");
    }
    for EvidenceJson { id, fault, replica, seen, .. } in found {
        let replica = replica.map_or_else(|| fault.node.short(), |number| number.to_string());
        output::line(format_args!("{id}  {}  replica {replica} {fault}", time(seen)))?;
    }
    Ok(())
}

async fn fetch(args: &FetchArgs) -> anyhow::Result<()> {
    let path = args.output.display();
    // Before anything is asked for: the answer may be what nobody wants to lose.
    if args.output.exists() {
        bail!("{path} exists; name a file that does not");
    }
    let bytes = args.network.connect()?.bytes(&format!("/v1/evidence/{}", args.id)).await?;
    if Evidence::id_of(&bytes) != args.id {
        bail!("the node sent something else than evidence {}; ask another node with --api", args.id);
    }
    let file = OpenOptions::new().write(true).create_new(true).open(&args.output);
    file.and_then(|mut file| file.write_all(&bytes).and_then(|()| file.sync_all()))
        .with_context(|| format!("cannot write {path}"))?;
    if args.json {
        return output::json(&json!({ "id": args.id, "file": args.output, "bytes": bytes.len() }));
    }
    output::line(format_args!("Wrote {path}, {}. Check it:", output::counted(bytes.len() as u64, "byte")))?;
    output::line(format_args!("  ledgermq evidence verify {path} --genesis genesis.json"))
}

fn verify(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    let genesis = match read_genesis(&args.genesis) {
        Ok(genesis) => genesis,
        Err(error) => return Ok(could_not_check(&super::told(&error.into()))),
    };
    let bytes = read_file(&args.file, MAX_EVIDENCE_BYTES);
    let checked = bytes.is_ok();
    let (proven, problem) = match bytes.and_then(|bytes| judge(&bytes, &genesis)) {
        Ok(proven) => (Some(proven), None),
        Err(error) => (None, Some(super::told(&error))),
    };
    let verdict = Verdict { file: args.file.clone(), checked, valid: proven.is_some(), proven, problem };
    if args.json {
        output::json(&verdict)?;
    } else {
        describe(&verdict, &genesis.replicas)?;
    }
    match (verdict.checked, verdict.valid) {
        (true, true) => Ok(ExitCode::SUCCESS),
        (true, false) => bail!("the evidence proves nothing"),
        (false, _) => Ok(could_not_check("the file could not be read, so nothing is said of any evidence")),
    }
}

fn judge(bytes: &[u8], genesis: &Genesis) -> anyhow::Result<Proven> {
    let proven = Evidence::decode(bytes).and_then(|evidence| evidence.verify_with(genesis));
    // An error of evidence says all of it; its sources would only say it again.
    proven.map_err(|error| anyhow!(error.to_string()))
}

fn describe(verdict: &Verdict, replicas: &ReplicaSet) -> anyhow::Result<()> {
    // A name that came with the file must not be able to write a verdict of its own.
    let path = verdict.file.to_string_lossy();
    let path = path.escape_debug();
    let Some(Proven { id, fault, replica, said: [first, second], .. }) = &verdict.proven else {
        let problem = verdict.problem.as_deref().unwrap_or("unknown");
        let word = if verdict.checked { "NOT PROVEN" } else { "COULD NOT CHECK" };
        return output::line(format_args!("{word}  {path}\n  {problem}"));
    };
    let (one, other) = match fault.kind {
        FaultKind::ContradictedNewView => ("PRE-PREPARE", "NEW-VIEW"),
        FaultKind::FalseNewView => ("NEW-VIEW", "right"),
        _ => ("one", "other"),
    };
    output::line(format_args!("PROVEN  {path}"))?;
    output::line(format_args!("  who    replica {replica} of {}, node {}", replicas.n(), fault.node))?;
    output::line(format_args!("  what   it {fault}"))?;
    output::line(format_args!("  said   {one}: {first}"))?;
    output::line(format_args!("         {other}: {second}"))?;
    output::line("  so     it is faulty, or somebody else has its key: no correct replica signs this")?;
    output::line(format_args!("  id     {id}"))
}

/// RFC 3339, for a person.
fn time(time: Timestamp) -> String {
    let parsed = i64::try_from(time.0).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    parsed.map_or_else(|| format!("{time} ms"), |time| time.to_string())
}
