//! `ledgermq status`: what each node says of itself, how the network is, and why.
//!
//! All nodes are asked at once; [`super::verdict`] draws the conclusion. Blocks are compared as well: two
//! hashes at one height mean that replicas lie or are damaged, and nothing else on the screen
//! matters then.

use std::collections::BTreeSet;
use std::io::{IsTerminal as _, stdout};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{ArgGroup, Args};
use futures::future::join_all;
use serde::Deserialize;
use url::Url;

use super::http::{Nodes, api_url, apis_below};
use super::output;
use super::status_text::{conclusion, table};
use super::verdict::{Asked, Blocks, Report, Verdict, judge};
use crate::api::ConsensusView;
use crate::types::{Hash, Height};

/// How long a node may take to answer: longer than it waits for its own consensus loop.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// Between two looks of `--watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);

/// The longest answer that is read: some hundred times what 100 replicas and all reasons take.
pub(super) const MAX_ANSWER_BYTES: usize = 4 << 20;

/// The exit code if nothing is known, as for wrong arguments.
const UNKNOWN: u8 = 2;

/// The exit code of a network that goes on without some of its replicas.
const DEGRADED: u8 = 3;

/// Shown below the options.
const LEGEND: &str = "\
Columns: each row is what that node says of itself.
  node       its number among the replicas, as in the name of its directory
  id         the beginning of its node id
  view       the view that it is in
             \"to 2\": on its way to view 2, which has not begun here
             \"2*\": it lost its log, keeps silent, and the others are in view 2
  primary    the number of that view's primary
  height     the last block that it executed
  certified  the last block with a quorum's certificate: final, in the API
  executed   the last sequence number executed; not all numbers make a block
  waiting    requests that wait to be ordered
  connected  how many of the other replicas it is connected with
  it says    in a word, how it is; docs/API.md has all the words

Exit codes:
  0  healthy: all replicas take part
  1  halted: nothing becomes final now; or nodes have different blocks
  2  cannot tell: nobody answers, or too few; also for wrong arguments
  3  degraded: it advances, and one or more replicas do not take part";

/// Show whether a network is healthy, degraded or halted, and why
///
/// Asks every node and prints a row for each: what it says of itself. Below stands how the network is,
/// how many more failures it tolerates, and what is wrong.
#[derive(Debug, Args)]
#[command(after_long_help = LEGEND)]
#[command(group = ArgGroup::new("whom").required(true).multiple(true).args(["network", "api"]))]
pub(super) struct StatusArgs {
    /// Directory that `ledgermq init` made: all of its nodes are asked, unless --api says whom
    #[arg(long, value_name = "DIR")]
    network: Option<PathBuf>,
    /// API of a node, such as http://127.0.0.1:8080; give several to ask several
    #[arg(long, value_name = "URL", value_parser = api_url)]
    api: Vec<Url>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Look again every two seconds, until Ctrl-C
    #[arg(long)]
    watch: bool,
}

pub(super) fn run(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    match watch(args) {
        Err(error) if !output::is_closed_pipe(&error) => {
            eprintln!("error: {}", super::told(&error));
            Ok(ExitCode::from(UNKNOWN))
        }
        result => result,
    }
}

fn watch(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    // As in other commands: who names an API means that one.
    let apis = match &args.network {
        Some(dir) if args.api.is_empty() => apis_below(dir)?,
        _ => args.api.clone(),
    };
    let mut seen = BTreeSet::new();
    let nodes = apis
        .into_iter()
        .filter(|api| seen.insert(api.to_string()))
        .map(|api| Ok((api.clone(), Nodes::new(vec![api])?.reading(MAX_ANSWER_BYTES))))
        .collect::<anyhow::Result<Vec<_>>>()?;
    runtime.block_on(async {
        loop {
            let report = look(&nodes).await;
            show(args, &report)?;
            if !args.watch {
                return Ok(exit_code(report.verdict));
            }
            tokio::select! {
                () = tokio::time::sleep(WATCH_INTERVAL) => {}
                _ = tokio::signal::ctrl_c() => return Ok(exit_code(report.verdict)),
            }
        }
    })
}

fn exit_code(verdict: Verdict) -> ExitCode {
    match verdict {
        Verdict::Healthy => ExitCode::SUCCESS,
        Verdict::Halted | Verdict::Disagrees => ExitCode::FAILURE,
        Verdict::CannotTell => ExitCode::from(UNKNOWN),
        Verdict::Degraded => ExitCode::from(DEGRADED),
    }
}

/// Asks all nodes, and compares their blocks.
async fn look(nodes: &[(Url, Nodes)]) -> Report {
    let asked = join_all(nodes.iter().map(|(api, node)| async {
        let (answer, problem) = match ask::<ConsensusView>(node, "/v1/consensus", &[]).await {
            Ok(answer) => (Some(answer), None),
            Err(problem) => (None, Some(problem)),
        };
        Asked { api: api.to_string(), answer, problem }
    }))
    .await;
    let blocks = blocks(nodes, &asked).await;
    judge(asked, &blocks)
}

async fn ask<T: serde::de::DeserializeOwned>(
    node: &Nodes,
    path: &str,
    query: &[(&str, String)],
) -> Result<T, String> {
    match tokio::time::timeout(ANSWERS_WITHIN, node.get(path, query)).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(super::told(&error)),
        Err(_) => Err(format!("no answer within {} s", ANSWERS_WITHIN.as_secs())),
    }
}

/// What is read of `/v1/blocks`.
#[derive(Debug, Deserialize)]
struct Page {
    blocks: Vec<PageBlock>,
}

#[derive(Debug, Deserialize)]
struct PageBlock {
    hash: Hash,
}

/// The blocks at the highest heights that all nodes, and that at least two, have certified.
async fn blocks(nodes: &[(Url, Nodes)], asked: &[Asked]) -> Blocks {
    let certified = |asked: &Asked| asked.answer.as_ref().map(|answer| answer.certified_height);
    let mut heights: Vec<Height> = asked.iter().filter_map(certified).filter(|height| height.0 > 0).collect();
    heights.sort_unstable();
    let common = heights.first().copied();
    let of_two = heights.len().checked_sub(2).map(|second| heights[second]);
    let mut compared: Vec<Height> = common.into_iter().chain(of_two).collect();
    compared.dedup();
    let wanted = compared.iter().flat_map(|height| {
        let holders = asked.iter().enumerate().filter(|(_, asked)| certified(asked) >= Some(*height));
        holders.map(|(at, _)| (*height, at)).collect::<Vec<_>>()
    });
    let fetched = join_all(wanted.map(|(height, at)| async move {
        let query = [("from", height.to_string()), ("limit", "1".to_owned())];
        let page = ask::<Page>(&nodes[at].1, "/v1/blocks", &query).await.ok()?;
        page.blocks.first().map(|block| (height, block.hash, at))
    }))
    .await;
    fetched.into_iter().flatten().collect()
}

fn show(args: &StatusArgs, report: &Report) -> anyhow::Result<()> {
    if args.json {
        return match args.watch {
            true => output::line(serde_json::to_string(report)?),
            false => output::json(report),
        };
    }
    if args.watch && stdout().is_terminal() {
        // Clears the screen.
        output::line("\u{1b}[2J\u{1b}[H")?;
    }
    output::line(table(report))?;
    output::line(conclusion(report))?;
    if args.watch && !stdout().is_terminal() {
        output::line("")?;
    }
    Ok(())
}
