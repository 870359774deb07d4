//! `ledgermq audit`: whether a history is what its nodes wrote, and what is not.
//!
//! Reads a database and a ledger, trusts the genesis document alone, and changes nothing. The work
//! is in [`crate::history::audit`]; here it gets its sources, and its words.

pub(super) mod source;
mod text;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, anyhow, bail};
use clap::{ArgGroup, Args};
use serde_json::json;
use url::Url;

use self::source::Wanted;
use super::http::api_url;
use super::interrupt::interrupted;
use super::output;
use crate::config::read_genesis;
use crate::history::audit::{AuditOptions, AuditReport, AuditVerdict, LostRows, audit};
use crate::history::{HistoryError, SqlReader, Stopping};
use crate::types::{ClientId, Height, NodeId};

/// The exit code if something was altered.
const TAMPERING: u8 = 1;

/// The exit code if not everything could be checked, as for wrong arguments.
const UNCHECKED: u8 = 2;

/// In the width of a terminal.
const USAGE: &str = "ledgermq audit [OPTIONS] --genesis <FILE> --history <PATH|DIR|URL>
                      <--ledger <DIR>|--node <URL>>";

/// Shown below the options.
const LEGEND: &str = "\
Examples:
  ledgermq audit --genesis genesis.json \\
      --ledger net/node-0/data --history net/node-0/data
  ledgermq audit --genesis genesis.json \\
      --node http://127.0.0.1:8080 --history history.sqlite
  ledgermq audit --genesis genesis.json \\
      --node http://db-1:8080 --history postgres://audit@db/history

Exit codes:
  0  clean: all is as it was. CLEAN SO FAR: some rows are too new
     to be proven; the first line says how many
  1  tampering: something is not; each row is named
  2  could not check, or not all of it, and says why: rows are gone
     and it is not known how, or not one can be proven yet; or wrong
     arguments

docs/AUDIT.md says what an audit proves and what it does not.";

/// Find what was altered, deleted or added in a history
///
/// Holds each row of a history database against the signature of its client, the ledger, the policies
/// in force, and the digests that its node wrote on the ledger. Neither the database nor a node is trusted,
/// only the genesis document. Nothing is changed: a SQLite file is read as it is, also one that a running
/// node writes.
#[derive(Debug, Args)]
#[command(after_long_help = LEGEND, override_usage = USAGE)]
#[command(group = ArgGroup::new("chain").required(true).args(["ledger", "node"]))]
pub(super) struct AuditArgs {
    /// The genesis document, from a source that you trust
    #[arg(long, value_name = "FILE")]
    genesis: PathBuf,
    /// Take the ledger from the data directory of a stopped node, or from a copy of one
    #[arg(long, value_name = "DIR")]
    ledger: Option<PathBuf>,
    /// Take the ledger from the API of a node, such as http://127.0.0.1:8080; it is not trusted
    #[arg(long, value_name = "URL", value_parser = api_url)]
    node: Option<Url>,
    /// The history: a SQLite file, a node's data directory, or postgres://user:password@host/database
    #[arg(long, value_name = "PATH|DIR|URL")]
    history: String,
    /// Only rows of this client
    #[arg(long, value_name = "GROUP/NAME")]
    client: Option<ClientId>,
    /// Rows that are known to be lost, with a history that was begun anew or restored: NODE:FIRST-LAST
    #[arg(long, value_name = "ROWS", value_parser = lost_rows)]
    lost: Vec<LostRows>,
    /// Take the ledger up to this block alone: for a copy that was made at that time
    #[arg(long, value_name = "HEIGHT", value_parser = clap::value_parser!(u64).range(1..))]
    until: Option<u64>,
    /// List at most so many findings; the others are counted
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_findings: u32,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Reads `NODE:FIRST-LAST`.
fn lost_rows(text: &str) -> Result<LostRows, String> {
    let parse = || {
        let (node, rows) = text.split_once(':')?;
        let (first, last) = rows.split_once('-')?;
        let (node, first, last) = (node.parse::<NodeId>().ok()?, first.parse().ok()?, last.parse().ok()?);
        (first <= last).then_some(LostRows { node, first, last })
    };
    parse().ok_or_else(|| "give a node's id and its rows, such as 5f…e1:1-4096".to_owned())
}

pub(super) fn run(args: &AuditArgs) -> anyhow::Result<ExitCode> {
    let report = match report(args) {
        Ok(report) => report,
        Err(error) => {
            if args.json {
                output::json(
                    &json!({ "verdict": AuditVerdict::Unchecked, "unchecked": [super::told(&error)] }),
                )?;
            }
            eprintln!("error: {}", super::told(&error));
            return Ok(ExitCode::from(UNCHECKED));
        }
    };
    if args.json {
        output::json(&report)?;
    } else {
        text::print(&report)?;
    }
    Ok(match report.verdict {
        AuditVerdict::Clean => ExitCode::SUCCESS,
        AuditVerdict::Tampering => ExitCode::from(TAMPERING),
        AuditVerdict::Unchecked => ExitCode::from(UNCHECKED),
    })
}

fn report(args: &AuditArgs) -> anyhow::Result<AuditReport> {
    let genesis = read_genesis(&args.genesis)?;
    let location = source::history(&args.history)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.context("cannot start the runtime")?;
    let options = AuditOptions {
        client: args.client.clone(),
        max_findings: usize::try_from(args.max_findings).unwrap_or(usize::MAX),
        known_lost: args.lost.clone(),
    };
    let stopping = Stopping::default();
    let wanted = Wanted { only: args.client.clone(), until: args.until.map(Height) };
    let judged = async {
        // What the history has at this moment is on the ledger that is read after it.
        let history = SqlReader::open(location, &genesis.network_id()).await.map_err(for_auditor)?;
        let ledger = match (&args.ledger, &args.node) {
            (Some(dir), _) => {
                let (genesis, dir) = (genesis.clone(), dir.clone());
                let stopping = stopping.clone();
                let read = move || source::from_directory(&genesis, &dir, &wanted, &stopping);
                tokio::task::spawn_blocking(read).await??
            }
            (None, Some(api)) => source::from_api(&genesis, api.clone(), &wanted).await?,
            (None, None) => bail!("give --ledger DIR or --node URL"),
        };
        if let Some(client) = args.client.as_ref().filter(|client| !ledger.knows(client)) {
            bail!("{client} was never registered on this ledger; check --client");
        }
        audit(&ledger, &history, &options).await.map_err(for_auditor)
    };
    // Copies that were made to be read go with what reads them, and the runtime's end waits for that.
    runtime.block_on(async {
        tokio::select! {
            // The signals are caught before anything is copied, which a first look at the other branch may do.
            biased;
            stop = interrupted() => {
                stopping.stop();
                stop.and_then(|()| bail!("interrupted, and nothing is judged: run it again"))
            }
            report = Box::pin(judged) => report,
        }
    })
}

/// What an auditor does about it, who has a copy that is to stay as it is and no node to start.
fn for_auditor(error: HistoryError) -> anyhow::Error {
    match error {
        HistoryError::Damaged { location, detail } => anyhow!(
            "{location} is damaged or no database: {detail}; keep it as it is, it is evidence, and audit another \
             copy: was its -wal file copied with it?"
        ),
        HistoryError::Foreign { location } => {
            anyhow!("{location} is not a history of LedgerMQ; check the path or URL given with --history")
        }
        HistoryError::WrongNetwork { location, found, expected } => anyhow!(
            "the history {location} belongs to network {found}, the genesis document to {expected}: give those that \
             belong together"
        ),
        HistoryError::Refused { location, detail } => anyhow!(
            "the history {location} cannot be read: {detail}; its tables are not as a node makes them, or the rights \
             to read them are missing: keep it as it is, and audit another copy"
        ),
        HistoryError::Altered { location, what } => anyhow!(
            "the history {location} has {what} that no node wrote so: it was altered, so that it cannot be read; keep \
             it as it is, it is evidence, and audit another copy"
        ),
        HistoryError::Url { what } => anyhow!("--history: {what}; {}", source::WHAT_HISTORY),
        HistoryError::File { location, source } => {
            anyhow!("cannot use the history {location}: {source}; check the path given with --history")
        }
        HistoryError::Unavailable { location, detail } => anyhow!(
            "the history {location} is not available: {detail}; check --history, start the database or free it, and \
             run the audit again"
        ),
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_rows_are_a_node_and_a_range() {
        let node = NodeId([7; 32]);
        assert_eq!(lost_rows(&format!("{node}:1-40")), Ok(LostRows { node, first: 1, last: 40 }));
        for bad in ["", "7:1-4", &format!("{node}"), &format!("{node}:4-1"), &format!("{node}:a-b")] {
            assert!(lost_rows(bad).is_err(), "{bad}");
        }
    }
}
