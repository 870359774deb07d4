//! The audit: whether a history is what its nodes wrote, with a ledger and SQL access alone.
//!
//! ```text
//! blocks ─▶ AuditedLedger (genesis is trusted, nobody else) ─┐
//!                                                             ├─▶ audit ─▶ AuditReport
//! the database ─▶ HistoryReader (nothing of it is trusted) ──┘
//! ```
//!
//! Each row is checked by itself (signature, body, items, columns), against the ledger (the client's
//! key, the fate), against the policies (the decision is made again), and against the node's digests
//! on the ledger, which name each row that was altered, deleted, added or moved. docs/AUDIT.md says what that
//! proves and what it does not.
//!
//! Rows are streamed: what is kept in memory is the ledger's facts and the rows of one digest.

mod change;
mod decision;
mod digests;
mod fate;
mod ledger;
mod missing;
mod node;
mod report;
mod row;
mod runs;
pub(crate) mod words;

use std::collections::BTreeMap;

pub use ledger::{AuditedLedger, AuditedLedgerError};
pub use report::{
    AbsentNode, AuditReport, AuditVerdict, EndsEarly, Finding, FindingKind, Gap, LedgerSummary, LostRows,
    NodeReport, Part,
};

use self::node::NodeAudit;
use self::report::Findings;
use self::runs::Runs;
use super::{HistoryError, HistoryReader};
use crate::types::{ClientId, NodeId};

/// So many messages may be a client's that were sent to one node and, when that was gone, to another: the
/// window of a gateway (PROTOCOL.md section 6).
const SENT_AGAIN: u64 = 256;

/// Findings that are listed if nobody says otherwise.
pub const MAX_FINDINGS: usize = 1_000;

/// What to audit, and what is known already.
#[derive(Debug, Clone)]
pub struct AuditOptions {
    /// Only rows of this client; digests are of all rows, whoever sent them. Best with
    /// [`AuditedLedger::only`].
    pub client: Option<ClientId>,
    /// The most findings that are listed; the others are counted.
    pub max_findings: usize,
    /// Rows that are known to be lost: a history that was begun anew, or restored from a backup.
    pub known_lost: Vec<LostRows>,
}

impl Default for AuditOptions {
    fn default() -> Self {
        Self { client: None, max_findings: MAX_FINDINGS, known_lost: Vec::new() }
    }
}

impl AuditOptions {
    fn is_known_lost(&self, node: &NodeId, first: u64, last: u64) -> bool {
        self.known_lost.iter().any(|lost| lost.node == *node && lost.first <= first && last <= lost.last)
    }

    fn has_lost(&self, node: &NodeId) -> bool {
        self.known_lost.iter().any(|lost| lost.node == *node)
    }

    fn stray_limit(&self) -> u32 {
        u32::try_from(self.max_findings).unwrap_or(u32::MAX).max(1)
    }
}

/// Audits all histories that `history` has.
///
/// Open the history first and replay the ledger then: it must not end before the history does.
///
/// # Errors
/// [`HistoryError`]: the history cannot be read. Whatever is wrong with what it says is a finding.
pub async fn audit(
    ledger: &AuditedLedger,
    history: &dyn HistoryReader,
    options: &AuditOptions,
) -> Result<AuditReport, HistoryError> {
    let mut findings = Findings::new(options.max_findings);
    let (mut nodes, mut unchecked, mut seen) = (Vec::<NodeReport>::new(), Vec::new(), BTreeMap::new());
    let mut rows_gone = 0;
    let mut ahead = None;
    if ledger.certified_height() < ledger.height() {
        unchecked.push("the last blocks of the ledger have no certificate: fetch them again".to_owned());
    }
    for node in history.nodes() {
        let audited = Box::pin(NodeAudit::run(ledger, history, options, node, &mut findings)).await?;
        ahead = ahead.max(audited.ahead);
        rows_gone += absences(ledger, &audited.report, options, &mut unchecked);
        identity(ledger, &audited.report, &mut findings, &mut unchecked);
        nodes.push(audited.report);
        seen.insert(node, audited.seen);
    }
    if let Some(height) = ahead {
        unchecked.push(format!(
            "the history rests on block {height} or later, and the ledger at hand ends with block {}: give a newer \
             ledger, one of after the history was copied; if it is newer already, that part of the history is no \
             node's work",
            ledger.height()
        ));
    }
    for place in history.oddities(options.stray_limit()).await? {
        findings.push(Finding::new(FindingKind::Added, None, place).what([Part::Place]));
    }
    if nodes.is_empty() {
        unchecked.push(nothing(ledger));
    }
    let (rows, not_yet_proven) =
        nodes.iter().fold((0, 0), |sum, node| (sum.0 + node.rows, sum.1 + node.not_covered));
    unchecked.extend(nothing_proven(rows, not_yet_proven));
    let lost: Vec<LostRows> =
        nodes.iter().flat_map(|node| &node.lost).chain(&options.known_lost).copied().collect();
    missing::find(ledger, &seen, (options, &lost), &mut findings);
    let (gaps, omitted_gaps) = missing::gaps(ledger, &seen, options);
    let absent = ledger.digests_by_node().filter(|(node, _)| !seen.contains_key(node));
    let absent = absent.map(|(node, digests)| AbsentNode { node, digests }).collect();
    let Findings { kept, omitted, .. } = findings;
    let verdict = match (kept.is_empty() && omitted == 0, unchecked.is_empty()) {
        (false, _) => AuditVerdict::Tampering,
        (true, false) => AuditVerdict::Unchecked,
        (true, true) => AuditVerdict::Clean,
    };
    // What was altered where it stands has nothing to do with how the file was copied.
    let lacks = verdict == AuditVerdict::Unchecked || kept.iter().any(|one| one.kind == FindingKind::Deleted);
    let mut notes = if lacks { history.notes() } else { Vec::new() };
    notes.extend(nodes.iter().filter_map(taken_earlier));
    Ok(AuditReport {
        verdict,
        rows,
        not_yet_proven,
        rows_gone,
        notes,
        ledger: ledger.summary(),
        nodes,
        absent,
        findings: kept,
        omitted_findings: omitted,
        unchecked,
        gaps,
        omitted_gaps,
    })
}

/// Tells of rows that are not there, and nobody knows whether they were lost or taken away; counts those that
/// the ledger has digests of.
fn absences(
    ledger: &AuditedLedger,
    report: &NodeReport,
    options: &AuditOptions,
    unchecked: &mut Vec<String>,
) -> u64 {
    let node = &report.node;
    let is_known = |lost: &&LostRows| options.is_known_lost(node, lost.first, lost.last);
    let unknown: Vec<&LostRows> = report.lost.iter().filter(|lost| !is_known(lost)).collect();
    unchecked.extend(unknown.iter().map(|lost| gone(report, lost)));
    if report.rows == 0 && report.lost.is_empty() && !options.has_lost(node) {
        unchecked.extend(emptied(ledger, node));
    }
    unknown.iter().map(|lost| lost.last - lost.first + 1).sum()
}

/// Rows of which none has a digest.
fn nothing_proven(rows: u64, not_yet_proven: u64) -> Option<String> {
    (rows > 0 && not_yet_proven == rows).then(|| {
        format!(
            "no digest on the ledger has any of the {} yet, so that one that was taken away or added is not missed: audit \
             again when the node has made one, a minute after it wrote a row (history.digest_interval_s)",
            words::count(rows, "row", "rows")
        )
    })
}

/// Rows that are gone from the beginning of a history, with nobody's word that this is known.
fn gone(report: &NodeReport, lost: &LostRows) -> String {
    let (node, LostRows { first, last, .. }) = (report.node, lost);
    let what = match report.rows {
        0 => "are gone, with all others: the history is empty. It was lost",
        _ => "are gone from the beginning of its history: it was lost and begun anew",
    };
    format!(
        "rows {first} to {last} of node {node}, which the ledger has digests of, {what}, or somebody took them away; the \
         two look the same. If that loss is known, say so with --lost {node}:{first}-{last}"
    )
}

/// A history without rows whose node brought messages to the ledger.
fn emptied(ledger: &AuditedLedger, node: &NodeId) -> Option<String> {
    let messages = missing::admitted(ledger, node);
    (messages > 0).then(|| {
        format!(
            "the history of node {node} is empty, and the ledger has {} that this node brought there: it was lost, or \
             somebody took its rows away before they had a digest",
            words::count(messages, "message", "messages")
        )
    })
}

/// A history in which no node has a name.
fn nothing(ledger: &AuditedLedger) -> String {
    let nodes = ledger.digests_by_node().filter(|(_, digests)| *digests > 0).count() as u64;
    if nodes == 0 {
        return "the history is empty: no node has written anything to it".to_owned();
    }
    format!(
        "the history is empty: no node has written anything to it, or all was taken away. The ledger has digests of the \
         rows of {}; was one of them the owner of this history?",
        words::count(nodes, "node", "nodes")
    )
}

/// What to think of if a history has none of the last rows that the ledger knows of.
fn taken_earlier(report: &NodeReport) -> Option<String> {
    let EndsEarly { last_row, digests_to, block } = report.ends_early?;
    Some(format!(
        "the history of node {} ends at row {}, and the ledger's digests go on to row {}: was it copied earlier, before \
         block {block}? Then give a newer copy, or the ledger of that time, with --until {}. If not, those rows were taken \
         away",
        report.node.short(),
        words::number(last_row),
        words::number(digests_to),
        block.0.saturating_sub(1)
    ))
}

/// Whether these rows can be the node's whose name they bear.
fn identity(
    ledger: &AuditedLedger,
    report: &NodeReport,
    findings: &mut Findings,
    unchecked: &mut Vec<String>,
) {
    let NodeReport { node, on_ledger, brought_by_others, .. } = report;
    if !ledger.has_replica(node) {
        let detail = format!(
            "what stands under {node}, which is no replica of this network: {}",
            words::count(report.rows, "row", "rows")
        );
        findings.push(Finding::new(FindingKind::Added, Some(*node), detail).what([Part::Place]));
    } else if *brought_by_others > SENT_AGAIN && brought_by_others.saturating_mul(2) > *on_ledger {
        unchecked.push(format!(
            "of {on_ledger} messages that node {node} has and the ledger, too, other nodes alone brought \
             {brought_by_others}: are these this node's rows? Audit the histories of all nodes"
        ));
    }
}

/// Messages that have rows, by node and client.
type Seen = BTreeMap<NodeId, BTreeMap<ClientId, Runs>>;
