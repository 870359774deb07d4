//! `ledgermq status`: what each node says of itself, whether the network advances, and why not.
//!
//! All nodes are asked at once, and each is believed only about itself: a table shows them side by
//! side. The network advances if as many nodes say so as must agree (or all that were asked, if
//! those are fewer). Blocks are compared as well: two hashes at one height mean that replicas lie or
//! are damaged, and nothing else on the screen matters then.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal as _, stdout};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use futures::future::join_all;
use serde::{Deserialize, Serialize};
use url::Url;

use super::http::{Nodes, api_url, apis_below};
use super::output::{self, plain};
use crate::api::{ConsensusView, ReplicaStateView, Why};
use crate::ledger::ReplicaSet;
use crate::types::{Hash, Height, NodeId};

/// How long a node may take to answer: longer than it waits for its own consensus loop.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// Between two looks of `--watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);

/// The longest answer that is read: some hundred times what 100 replicas and all reasons take.
pub(super) const MAX_ANSWER_BYTES: usize = 4 << 20;

/// So many reasons of one node are told. A node has fewer to give.
const MAX_REASONS: usize = 64;

/// The exit code if no node answers, as for wrong arguments: nothing is known.
const NOBODY: u8 = 2;

/// Show whether a network advances, and why not
///
/// Asks every node and prints a row for each: what it says of itself. Below stands whether the network
/// advances, and if not, why. The exit code is 0 if it advances or idles in health, 1 if it does
/// not, 2 if no node answers.
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Directory that `ledgermq init` made: all of its nodes are asked
    #[arg(long, value_name = "DIR", required_unless_present = "api")]
    network: Option<PathBuf>,
    /// API of a node, such as http://127.0.0.1:8080; give several to ask several
    #[arg(long, value_name = "URL", value_parser = api_url, conflicts_with = "network")]
    api: Vec<Url>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Look again every two seconds, until Ctrl-C
    #[arg(long)]
    watch: bool,
}

/// How a network is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    /// What is asked for is ordered.
    Advances,
    /// It would be; nothing is asked for.
    Idle,
    /// It is not.
    Stalled,
    /// Nodes have different blocks, or are of different networks.
    Disagrees,
    /// No node answers.
    Unreachable,
}

/// One node, asked.
#[derive(Debug, Serialize)]
struct Asked {
    api: String,
    answer: Option<ConsensusView>,
    problem: Option<String>,
}

/// A reason, and the numbers of the nodes that give it.
#[derive(Debug, Serialize)]
struct Said {
    by: Vec<usize>,
    #[serde(flatten)]
    why: Why,
}

/// All that was found.
#[derive(Debug, Serialize)]
struct Report {
    verdict: Verdict,
    advancing: bool,
    /// What nodes disagree in.
    disagreement: Vec<String>,
    /// Why, of all nodes; each sentence once, whatever its numbers.
    why: Vec<Said>,
    nodes: Vec<Asked>,
}

pub(super) fn run(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    match watch(args) {
        Err(error) if !output::is_closed_pipe(&error) => {
            eprintln!("error: {}", super::told(&error));
            Ok(ExitCode::from(NOBODY))
        }
        result => result,
    }
}

fn watch(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let apis = match &args.network {
        Some(dir) => apis_below(dir)?,
        None => args.api.clone(),
    };
    let nodes = apis
        .into_iter()
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
        Verdict::Advances | Verdict::Idle => ExitCode::SUCCESS,
        Verdict::Stalled | Verdict::Disagrees => ExitCode::FAILURE,
        Verdict::Unreachable => ExitCode::from(NOBODY),
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

/// Hashes of blocks: height, hash, and the number of the node in the list.
type Blocks = Vec<(Height, Hash, usize)>;

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

fn judge(nodes: Vec<Asked>, certified: &Blocks) -> Report {
    let answers: Vec<(usize, &ConsensusView)> =
        nodes.iter().enumerate().filter_map(|(at, asked)| Some((at, asked.answer.as_ref()?))).collect();
    let disagreement = disagreement(&answers, certified);
    // Who is asked twice has one voice.
    let all: BTreeSet<NodeId> = answers.iter().map(|(_, answer)| answer.node).collect();
    let advancing: BTreeSet<NodeId> =
        answers.iter().filter(|(_, answer)| answer.advancing).map(|(_, answer)| answer.node).collect();
    let asked = nodes.len() - (answers.len() - all.len());
    let enough = quorum(&answers).min(asked);
    let idle = |answer: &ConsensusView| answer.why.iter().any(|why| why.code == "nothing_to_order");
    let verdict = if answers.is_empty() {
        Verdict::Unreachable
    } else if !disagreement.is_empty() {
        Verdict::Disagrees
    } else if advancing.len() < enough {
        Verdict::Stalled
    } else if answers.iter().all(|(_, answer)| idle(answer)) {
        Verdict::Idle
    } else {
        Verdict::Advances
    };
    let why = reasons(&answers);
    let advancing = matches!(verdict, Verdict::Advances | Verdict::Idle);
    Report { verdict, advancing, disagreement, why, nodes }
}

/// How many must agree: what the middle one of the nodes says, so that none can say that all must.
fn quorum(answers: &[(usize, &ConsensusView)]) -> usize {
    let mut said: Vec<usize> = answers.iter().map(|(_, answer)| answer.quorum).collect();
    said.sort_unstable();
    said.get(said.len() / 2).copied().unwrap_or(1)
}

/// What the nodes say, each thing once.
fn reasons(answers: &[(usize, &ConsensusView)]) -> Vec<Said> {
    let mut found: Vec<Said> = Vec::new();
    for (at, answer) in answers {
        let number = answer.replica.unwrap_or(*at);
        for why in answer.why.iter().take(MAX_REASONS) {
            let same =
                |said: &&mut Said| said.why.code == why.code && gist(&said.why.text).eq(gist(&why.text));
            match found.iter_mut().find(same) {
                Some(said) => said.by.push(number),
                None => found.push(Said { by: vec![number], why: why.clone() }),
            }
        }
    }
    found
}

/// The words of a sentence without its numbers: nodes measure times a little differently.
fn gist(text: &str) -> impl Iterator<Item = &str> {
    text.split(' ').filter(|word| !word.starts_with(|first: char| first.is_ascii_digit()))
}

/// What cannot be if all are honest, of one network and undamaged.
fn disagreement(answers: &[(usize, &ConsensusView)], certified: &Blocks) -> Vec<String> {
    let mut found = Vec::new();
    let name = |at: &usize| {
        let answer = answers.iter().find(|(number, _)| number == at).map(|(_, answer)| answer);
        format!("node {}", answer.and_then(|answer| answer.replica).unwrap_or(*at))
    };
    if let Some((first, others)) = answers.split_first() {
        for (at, other) in others.iter().filter(|(_, other)| other.network != first.1.network) {
            found.push(format!(
                "{} is of network {}, {} of {}",
                name(&first.0),
                first.1.network.short(),
                name(at),
                other.network.short()
            ));
        }
    }
    let executed = answers.iter().map(|(at, answer)| (answer.height, answer.block, *at));
    let mut heights: BTreeMap<Height, BTreeMap<Hash, Vec<String>>> = BTreeMap::new();
    for (height, hash, at) in certified.iter().copied().chain(executed) {
        let holders = heights.entry(height).or_default().entry(hash).or_default();
        let holder = name(&at);
        if !holders.contains(&holder) {
            holders.push(holder);
        }
    }
    for (height, hashes) in heights.into_iter().filter(|(_, hashes)| hashes.len() > 1) {
        let sides: Vec<String> =
            hashes.iter().map(|(hash, holders)| format!("{hash} at {}", holders.join(", "))).collect();
        found.push(format!("block {height} is {}", sides.join(", but ")));
    }
    found
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
    output::line(table(&report.nodes))?;
    output::line(conclusion(report))?;
    if args.watch && !stdout().is_terminal() {
        output::line("")?;
    }
    Ok(())
}

const COLUMNS: [&str; 10] =
    ["node", "id", "view", "primary", "height", "certified", "executed", "waiting", "connected", "it says"];

fn table(nodes: &[Asked]) -> String {
    let mut rows: Vec<Vec<String>> = vec![COLUMNS.iter().map(ToString::to_string).collect()];
    for (at, asked) in nodes.iter().enumerate() {
        rows.push(match &asked.answer {
            Some(answer) => row(at, answer),
            None => {
                let problem = asked.problem.as_deref().unwrap_or("no answer");
                vec![at.to_string(), format!("NO ANSWER  {}", plain(problem))]
            }
        });
    }
    let full: Vec<&Vec<String>> = rows.iter().filter(|row| row.len() == COLUMNS.len()).collect();
    let width = |column: usize| full.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..COLUMNS.len()).map(width).collect();
    let lines = rows.iter().map(|row| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn row(at: usize, answer: &ConsensusView) -> Vec<String> {
    let seat = |node| answer.replicas.iter().find(|line| line.node == node).map(|line| line.seat);
    let view = match &answer.view_change {
        Some(change) => format!("to {}", change.to),
        None => answer.view.to_string(),
    };
    let others = answer.replicas.iter().filter(|line| line.state != ReplicaStateView::ThisNode);
    let connected = others.filter(|line| line.connected).count();
    vec![
        answer.replica.unwrap_or(at).to_string(),
        answer.node.short(),
        view,
        seat(answer.primary).map_or_else(|| "?".to_owned(), |seat| seat.to_string()),
        answer.height.to_string(),
        answer.certified_height.to_string(),
        answer.executed.to_string(),
        answer.pending_requests.to_string(),
        format!("{connected}/{}", answer.n.saturating_sub(1)),
        plain(says(answer)),
    ]
}

/// In a word, how a node is.
fn says(answer: &ConsensusView) -> &str {
    let blocking = answer.why.iter().find(|why| why.blocks);
    match blocking.or(answer.why.first()) {
        Some(why) if why.code == "nothing_to_order" => "idle",
        Some(why) => &why.code,
        None => "advances",
    }
}

fn conclusion(report: &Report) -> String {
    let mut lines = vec![String::new()];
    lines.extend(report.disagreement.iter().map(|what| format!("!!! DISAGREEMENT: {what}")));
    lines.push(
        match report.verdict {
            Verdict::Advances => "The network advances.",
            Verdict::Idle => "The network is well and idle: nothing waits to be ordered.",
            Verdict::Stalled => "The network does NOT advance:",
            Verdict::Disagrees => {
                "NODES DISAGREE. Stop writing, keep all data directories, and find out who is right: `ledgermq verify` \
                 checks proofs with nothing but the genesis document."
            }
            Verdict::Unreachable => "No node answers: are they running?",
        }
        .to_owned(),
    );
    let told = report.why.iter().filter(|said| said.why.code != "nothing_to_order");
    for Said { by, why } in told {
        let by: Vec<String> = by.iter().map(ToString::to_string).collect();
        let (code, text) = (plain(&why.code), plain(&why.text));
        lines.push(format!("  {code}: {text} (says node {})", by.join(", ")));
    }
    lines.extend(troubled(report));
    lines.join("\n")
}

/// Replicas that those who answer cannot count on.
fn troubled(report: &Report) -> Vec<String> {
    let mut found: BTreeMap<(usize, String), Vec<String>> = BTreeMap::new();
    for answer in report.nodes.iter().filter_map(|asked| asked.answer.as_ref()) {
        for line in answer.replicas.iter().take(ReplicaSet::MAX) {
            let what = match line.state {
                ReplicaStateView::ThisNode | ReplicaStateView::Ok => continue,
                ReplicaStateView::Disconnected => "not connected",
                ReplicaStateView::Silent => "connected and silent",
                ReplicaStateView::Behind => "behind",
            };
            let about = format!("replica {} ({}) is {what}", line.seat, line.node.short());
            let by = answer.replica.map_or_else(|| "?".to_owned(), |seat| seat.to_string());
            found.entry((line.seat, about)).or_default().push(by);
        }
    }
    found.into_iter().map(|((_, about), by)| format!("  {about} (says node {})", by.join(", "))).collect()
}
