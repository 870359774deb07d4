//! What `ledgermq status` prints: a row for each node, and the conclusion.

use std::collections::BTreeMap;

use super::output::plain;
use super::verdict::{InView, Report, Said, Verdict, trouble};
use crate::api::{ConsensusView, ReplicaStateView};
use crate::ledger::ReplicaSet;
use crate::types::View;

const COLUMNS: [&str; 10] =
    ["node", "id", "view", "primary", "height", "certified", "executed", "waiting", "connected", "it says"];

/// A row for each node: what it says of itself.
pub(super) fn table(report: &Report) -> String {
    let mut rows: Vec<Vec<String>> = vec![COLUMNS.iter().map(ToString::to_string).collect()];
    for (at, asked) in report.nodes.iter().enumerate() {
        rows.push(match &asked.answer {
            Some(answer) => row(at, answer, report.main_view()),
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

fn row(at: usize, answer: &ConsensusView, main: Option<View>) -> Vec<String> {
    // A node without a vote may have entered no view since it lost its log: then that of the others counts.
    let seen = answer.silent.and_then(|_| main.max(answer.seen_view)).filter(|seen| *seen > answer.view);
    let seat = |node| answer.replicas.iter().find(|line| line.node == node).map(|line| line.seat);
    let (view, primary) = match (&answer.view_change, seen) {
        (_, Some(seen)) => {
            let seats = u64::try_from(answer.n.max(1)).unwrap_or(1);
            (format!("{seen}*"), Some(seen.0 % seats).map(|seat| seat.to_string()))
        }
        (Some(change), None) => {
            (format!("to {}", change.to), seat(answer.primary).map(|seat| seat.to_string()))
        }
        (None, None) => (answer.view.to_string(), seat(answer.primary).map(|seat| seat.to_string())),
    };
    let others = answer.replicas.iter().filter(|line| line.state != ReplicaStateView::ThisNode);
    let connected = others.filter(|line| line.connected).count();
    vec![
        answer.replica.unwrap_or(at).to_string(),
        answer.node.short(),
        view,
        primary.unwrap_or_else(|| "?".to_owned()),
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

/// How the network is, and why.
pub(super) fn conclusion(report: &Report) -> String {
    let mut lines = vec![String::new()];
    lines.extend(report.disagreement.iter().map(|what| format!("!!! DISAGREEMENT: {what}")));
    lines.push(verdict(report));
    for out in &report.out {
        let says =
            if out.by.is_empty() { String::new() } else { format!(" (says node {})", numbers(&out.by)) };
        lines.push(format!("  replica {} ({}) {}{says}", out.replica, out.node.short(), out.what));
    }
    if report.unnamed > 0 {
        let who = report.nodes.iter().filter(|asked| asked.answer.is_none()).map(|asked| plain(&asked.api));
        let who = who.collect::<Vec<_>>().join(", ");
        lines.push(format!(
            "  {who}: no answer, so that its replica is counted as one that does not take part"
        ));
    }
    lines.extend(views(&report.views));
    let told = report.why.iter().filter(|said| said.why.code != "nothing_to_order");
    for Said { by, why } in told {
        let (code, text) = (plain(&why.code), plain(&why.text));
        lines.push(format!("  {code}: {text} (says node {})", numbers(by)));
    }
    lines.extend(troubled(report));
    lines.join("\n")
}

fn verdict(report: &Report) -> String {
    let Report { n, taking_part, .. } = report;
    let margin = || match report.tolerates {
        Some(1) => "tolerates 1 more failure".to_owned(),
        more => format!("tolerates {} more failures", more.unwrap_or_default()),
    };
    let does = if report.idle { "is idle: nothing waits to be ordered" } else { "advances" };
    let unasked = report.nodes.iter().filter(|asked| asked.answer.is_none()).count();
    match report.verdict {
        Verdict::Healthy if unasked > 0 => format!(
            "The network is healthy and {}. All {n} replicas answer, though {unasked} of the {} APIs do not. It {does}.",
            margin(),
            report.nodes.len()
        ),
        Verdict::Healthy => format!("The network is healthy and {}. It {does}.", margin()),
        Verdict::Degraded => {
            format!(
                "The network is DEGRADED: {taking_part} of {n} replicas take part, which {}. It {does}.",
                margin()
            )
        }
        Verdict::Halted => "The network is HALTED: nothing becomes final.".to_owned(),
        Verdict::Disagrees => {
            "NODES DISAGREE. Stop writing, keep all data directories, and find out who is right: \
             `ledgermq verify` checks proofs with nothing but the genesis document."
                .to_owned()
        }
        Verdict::CannotTell => {
            let answered = report.nodes.iter().filter(|asked| asked.answer.is_some()).count();
            match answered {
                0 => "CANNOT TELL how the network is: no node answers. Are they running? If their APIs are \
                      elsewhere, name them: ledgermq status --api URL"
                    .to_owned(),
                _ => format!(
                    "CANNOT TELL how the network is: {answered} of {} nodes answer. Name more of them: ledgermq \
                     status --api URL --api URL ...",
                    report.nodes.len()
                ),
            }
        }
    }
}

fn numbers(by: &[usize]) -> String {
    by.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Who is where, if not all are in one view.
fn views(views: &[InView]) -> Option<String> {
    let told = |InView { view, changing, nodes }: &InView| {
        let way = if *changing { "on the way to" } else { "in" };
        format!("node {} {way} view {view}", numbers(nodes))
    };
    let told: Vec<String> = views.iter().map(told).collect();
    (told.len() > 1).then(|| format!("  nodes are in different views: {}", told.join("; ")))
}

/// What single nodes say of replicas that are not told of yet.
fn troubled(report: &Report) -> Vec<String> {
    let mut found: BTreeMap<(usize, String), Vec<usize>> = BTreeMap::new();
    for answer in report.nodes.iter().filter_map(|asked| asked.answer.as_ref()) {
        for line in answer.replicas.iter().take(ReplicaSet::MAX) {
            let Some(what) = trouble(line.state) else { continue };
            if report.out.iter().any(|out| out.node == line.node) {
                continue;
            }
            let about = format!("replica {} ({}) {what}", line.seat, line.node.short());
            found.entry((line.seat, about)).or_default().extend(answer.replica);
        }
    }
    found.into_iter().map(|((_, about), by)| format!("  {about} (says node {})", numbers(&by))).collect()
}
