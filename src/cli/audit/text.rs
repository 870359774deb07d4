//! An audit's report for a person.

use crate::cli::output::{line, plain};
use crate::history::audit::words::{count, number};
use crate::history::audit::{
    AuditReport, AuditVerdict, EndsEarly, Finding, FindingKind, Gap, NodeReport, Part,
};

/// Gaps that are shown; JSON has more.
const GAPS_SHOWN: usize = 10;

pub(super) fn print(report: &AuditReport) -> anyhow::Result<()> {
    let ledger = &report.ledger;
    line(verdict(report))?;
    line(format_args!(
        "  ledger   {} of network {}, {}, policies version {}, {}",
        count(ledger.height.0, "block", "blocks"),
        ledger.network.short(),
        count(ledger.clients as u64, "client", "clients"),
        ledger.policies,
        count(ledger.digests as u64, "digest", "digests")
    ))?;
    report.nodes.iter().try_for_each(node)?;
    for absent in &report.absent {
        line(format_args!(
            "  note: node {} has {} on the ledger, and nothing in this history",
            absent.node.short(),
            count(absent.digests, "digest", "digests")
        ))?;
    }
    for finding in &report.findings {
        line(describe(finding))?;
    }
    if report.omitted_findings > 0 {
        let more = count(report.omitted_findings, "more finding", "more findings");
        line(format_args!("  and {more}; --max-findings lists more"))?;
    }
    for reason in &report.unchecked {
        line(format_args!("  could not check: {}", plain(reason)))?;
    }
    for note in &report.notes {
        line(format_args!("  note: {}", plain(note)))?;
    }
    for Gap { client, first, last } in report.gaps.iter().take(GAPS_SHOWN) {
        let which =
            if first == last { format!("message {first}") } else { format!("messages {first} to {last}") };
        line(format_args!(
            "  note: nothing is known yet of {which} of {client}: refused, never sent, or at a node without a digest of it yet"
        ))?;
    }
    let more = (report.gaps.len().saturating_sub(GAPS_SHOWN)) as u64 + report.omitted_gaps;
    if more > 0 {
        line(format_args!("  note: and {}", count(more, "more gap", "more gaps")))?;
    }
    Ok(())
}

/// The first lines.
fn verdict(report: &AuditReport) -> String {
    let AuditReport { rows, not_yet_proven, rows_gone, .. } = report;
    let gone = || count(*rows_gone, "row", "rows");
    match report.verdict {
        AuditVerdict::Clean if *not_yet_proven > 0 => format!(
            "CLEAN SO FAR: {} of {} not yet provable; all else is as it was\n  too new: a row can be proven once \
             its node has put a digest of it on the ledger,\n  about a minute after it came \
             (history.digest_interval_s); audit again then",
            number(*not_yet_proven),
            count(*rows, "row is", "rows are")
        ),
        AuditVerdict::Clean if *rows == 0 => {
            "CLEAN      no row is here, and the ledger knows of none that should be".to_owned()
        }
        AuditVerdict::Clean => "CLEAN      all that was checked is as it was".to_owned(),
        AuditVerdict::Tampering => match older(report) {
            Some(ends) => format!(
                "TAMPERING, or an older copy: it ends at row {}, the ledger's digests at row {};\n  taken earlier? \
                 The note below says how to find out",
                number(ends.last_row),
                number(ends.digests_to)
            ),
            None => "TAMPERING  something is not as it was".to_owned(),
        },
        AuditVerdict::Unchecked if *rows_gone > 0 => {
            format!("UNCHECKED  {} that the ledger has digests of are gone: lost, or taken away", gone())
        }
        AuditVerdict::Unchecked if *rows == 0 => {
            "UNCHECKED  the history is empty: nothing could be checked".to_owned()
        }
        AuditVerdict::Unchecked if *rows > 0 && not_yet_proven == rows => {
            format!(
                "UNCHECKED  nothing is known to be altered, and none of {} can be proven yet",
                count(*rows, "row", "rows")
            )
        }
        AuditVerdict::Unchecked => {
            "UNCHECKED  nothing is known to be altered, and not all of it could be checked".to_owned()
        }
    }
}

/// Where the history ends, if all that is not as it was lies behind that: so it is with a copy that was made
/// before the ledger's end.
fn older(report: &AuditReport) -> Option<EndsEarly> {
    let end = |finding: &Finding| {
        let node = report.nodes.iter().find(|node| Some(node.node) == finding.node)?;
        let ends = node.ends_early?;
        let is_missing = match finding.kind {
            FindingKind::Deleted => finding.row > Some(ends.last_row),
            FindingKind::Digest => {
                finding.what == [Part::Digest] && finding.last_row.or(finding.row) > Some(ends.last_row)
            }
            _ => false,
        };
        is_missing.then_some(ends)
    };
    let ends: Option<Vec<EndsEarly>> = report.findings.iter().map(end).collect();
    ends?.pop().filter(|_| report.omitted_findings == 0)
}

fn node(node: &NodeReport) -> anyhow::Result<()> {
    line(format_args!(
        "  history  node {}: {}{}, {} proven by {}, {}{} with no final digest yet; {} repeated",
        node.node.short(),
        count(node.rows, "row", "rows"),
        match node.skipped {
            0 => String::new(),
            skipped => format!(" ({} of the client of --client)", number(node.rows.saturating_sub(skipped))),
        },
        number(node.covered),
        count(node.digests, "digest", "digests"),
        match node.unproven {
            0 => String::new(),
            unproven => format!("{} not as its digest says, ", number(unproven)),
        },
        number(node.not_covered),
        count(node.decisions, "decision", "decisions"),
    ))?;
    let notes = [
        (node.not_final, ["message is not final yet", "messages are not final yet"]),
        (
            node.unjudged,
            [
                "decision could not be repeated: what it was judged against is not at hand",
                "decisions could not be repeated: what they were judged against is not at hand",
            ],
        ),
        (
            node.brought_by_others,
            [
                "of them is on the ledger by another node alone, to which its client sent it, too",
                "of them are on the ledger by other nodes alone, to which their clients sent them, too",
            ],
        ),
        (
            node.after_revocation,
            [
                "message is above the last seq of its client's revocation",
                "messages are above the last seq of their client's revocation",
            ],
        ),
        (
            node.newer_digests,
            [
                "digest was made after this history was copied; its rows are proven all the same",
                "digests were made after this history was copied; their rows are proven all the same",
            ],
        ),
    ];
    for lost in &node.lost {
        line(format_args!("           lost: rows {} to {}", lost.first, lost.last))?;
    }
    for (of, [one, many]) in notes.into_iter().filter(|(of, _)| *of > 0) {
        line(format_args!("           {}", count(of, one, many)))?;
    }
    Ok(())
}

fn describe(finding: &Finding) -> String {
    let mut text = format!("  {:<13}", finding.kind.to_string());
    let bare = text.len();
    if let Some(row) = finding.row {
        text.push_str(&match finding.last_row {
            Some(last) => format!(" rows {row} to {last}"),
            None => format!(" row {row}"),
        });
    }
    if let (Some(client), Some(seq)) = (&finding.client, finding.seq) {
        text.push_str(&format!(" ({client}, message {seq})"));
    }
    if let Some(node) = &finding.node {
        text.push_str(&format!(" of node {}", node.short()));
    }
    let colon = if text.len() > bare { ":" } else { "" };
    format!("{text}{colon} {}", plain(&finding.detail))
}
