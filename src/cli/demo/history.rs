//! The history: audited on every replica, then tampered with on one, and audited again.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::bail;

use super::screen::{Screen, count};
use super::tamper::{self, Coverage, Tampered};
use crate::cli::audit::source::{Wanted, from_api};
use crate::cli::local::LocalNetwork;
use crate::clock::{Clock as _, SystemClock};
use crate::history::audit::{AuditOptions, AuditReport, AuditVerdict, AuditedLedger, FindingKind, audit};
use crate::history::{Location, SqlReader};

/// How long the last digests may take to be on the ledger.
const COVERED_WITHIN: Duration = Duration::from_secs(120);

/// Findings that are shown; there should not be more.
const FINDINGS_SHOWN: usize = 10;

/// How often the histories are looked at.
const POLL: Duration = Duration::from_millis(200);

/// What came of it.
#[derive(Debug)]
pub(super) struct Checked {
    /// No replica's history had anything wrong with it before somebody changed it.
    pub(super) clean: bool,
    /// What was changed was found, row by row.
    pub(super) found: bool,
    /// The replica in whose history somebody changed something.
    pub(super) tampered: usize,
}

/// Audits all histories; then alters, deletes and adds rows in one, and audits it again. `dead` was killed in the
/// midst of so many messages.
pub(super) async fn check(
    network: &LocalNetwork,
    (dead, messages): (usize, usize),
    screen: &Screen,
) -> anyhow::Result<Checked> {
    screen.say("\n5. The history: all messages, in each replica's database, held against the ledger")?;
    let coverages = covered(network, messages).await?;
    let ledger = from_api(network.genesis(), network.api_url(0).parse()?, &Wanted::default()).await?;
    let mut clean = true;
    for (replica, coverage) in coverages.iter().enumerate() {
        if coverage.rows == 0 {
            screen.say(format_args!("   replica {replica}: no gateway sent it anything"))?;
            continue;
        }
        let report = audit_of(network, &ledger, replica).await?;
        clean &= tell(replica, &report, screen)?;
    }
    let rows: u64 = coverages.iter().map(|coverage| coverage.rows).sum();
    if let Some(more) = usize::try_from(rows)?.checked_sub(messages).filter(|more| *more > 0) {
        screen.say(format_args!(
            "   {} rows of {} messages: {} were sent again, to another replica, and stand in two histories",
            count(messages + more),
            count(messages),
            count(more)
        ))?;
    }
    // Of the replica that was killed anything could be believed, so it is another one, if there is one.
    let others = (0..network.replicas()).filter(|replica| *replica != dead && coverages[*replica].rows > 1);
    let tampered = others.max_by_key(|replica| coverages[*replica].rows).unwrap_or(dead);
    let done = tamper::tamper(&network.history(tampered)?).await?;
    let Tampered { altered, temperature: (was, is), deleted, added } = done;
    screen.say(format_args!(
        "   Somebody with SQL access to the database of replica {tampered} makes {was} °C in row {altered} {is} °C, \
         deletes row {deleted} and adds row {added}:"
    ))?;
    let report = audit_of(network, &ledger, tampered).await?;
    for finding in report.findings.iter().take(FINDINGS_SHOWN) {
        let row = finding.row.map(|row| format!(" row {row}")).unwrap_or_default();
        screen.say(format_args!("   FOUND: {}{row}: {}", finding.kind, finding.detail))?;
    }
    let found = is_named(&report, &done);
    if !found {
        screen.say("   WRONG: not all of it is found")?;
    }
    Ok(Checked { clean, found, tampered })
}

async fn audit_of(
    network: &LocalNetwork,
    ledger: &AuditedLedger,
    replica: usize,
) -> anyhow::Result<AuditReport> {
    let location = Location::Sqlite(network.history(replica)?);
    let history = SqlReader::open(location, &network.genesis().network_id()).await?;
    Ok(audit(ledger, &history, &AuditOptions::default()).await?)
}

/// Says what an audit says of a history that nobody touched; whether it is clean.
fn tell(replica: usize, report: &AuditReport, screen: &Screen) -> anyhow::Result<bool> {
    let clean = report.verdict == AuditVerdict::Clean;
    let (mut rows, mut decisions) = (0, 0);
    for node in &report.nodes {
        rows += node.rows;
        decisions += node.decisions;
    }
    let (rows, decisions) = (count(usize::try_from(rows)?), count(usize::try_from(decisions)?));
    let verdict = if clean { "all are as they were" } else { "WRONG: not clean" };
    screen
        .say(format_args!("   replica {replica}: {rows} rows, {decisions} decisions repeated: {verdict}"))?;
    for finding in report.findings.iter().take(FINDINGS_SHOWN) {
        screen.say(format_args!("   WRONG: {}: {}", finding.kind, finding.detail))?;
    }
    for unchecked in &report.unchecked {
        screen.say(format_args!("   WRONG: not checked: {unchecked}"))?;
    }
    Ok(clean)
}

/// Whether each row that was tampered with is named for what was done to it, and no other row.
fn is_named(report: &AuditReport, done: &Tampered) -> bool {
    let expected = BTreeSet::from([
        (FindingKind::Altered, Some(done.altered)),
        (FindingKind::Deleted, Some(done.deleted)),
        (FindingKind::Added, Some(done.added)),
    ]);
    let found: BTreeSet<_> = report.findings.iter().map(|finding| (finding.kind, finding.row)).collect();
    found == expected && report.verdict == AuditVerdict::Tampering
}

/// Waits until all messages are in histories, each in one at least, and digests on the ledger cover them: a
/// replica that was killed writes from its log what it had not written yet.
async fn covered(network: &LocalNetwork, messages: usize) -> anyhow::Result<Vec<Coverage>> {
    let clock = SystemClock::new();
    loop {
        let mut coverages = Vec::new();
        for replica in 0..network.replicas() {
            coverages.push(tamper::coverage(&network.history(replica)?).await?);
        }
        let rows: u64 = coverages.iter().map(|coverage| coverage.rows).sum();
        let uncovered = coverages.iter().position(|coverage| coverage.covered < coverage.rows);
        if rows >= messages as u64 && uncovered.is_none() {
            return Ok(coverages);
        }
        if clock.monotonic() >= COVERED_WITHIN {
            let Some(replica) = uncovered else {
                bail!("of {messages} messages only {rows} are in a replica's history");
            };
            let Coverage { covered, rows } = coverages[replica];
            bail!("of replica {replica}'s {rows} rows only {covered} have a digest on the ledger");
        }
        tokio::time::sleep(POLL).await;
    }
}
