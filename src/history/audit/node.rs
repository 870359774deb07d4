//! One node's history, read once from its first row to its last.
//!
//! ```text
//! rows ──pages──▶ checked by themselves (many at once) ──▶ fate, decision ──▶ window ──▶ findings
//! digests ──▶ those that cover the rows of the window ────── held against ────┘
//! ```
//!
//! The window holds what is known of the rows that a digest may still speak of: no more than one digest has rows.

mod close;
mod tell;

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::AuditOptions;
use super::change::Change;
use super::decision::{Judge, Repeated};
use super::digests::{self, Kept, Place, Tracked};
use super::fate::{self, FateCheck};
use super::ledger::AuditedLedger;
use super::report::{Finding, FindingKind, Findings, NodeReport, Part};
use super::row::{RowFacts, RowJob};
use super::runs::Runs;
use crate::history::{HistoryError, HistoryReader, ReadRow};
use crate::types::{ClientId, NodeId};

/// Rows checked in one piece of work: some milliseconds of signatures.
const PIECE: usize = 32;

/// Bytes of rows that are to be read at once, and the fewest and the most rows.
const PAGE_BYTES: usize = 4 << 20;
const PAGE_ROWS: (usize, usize) = (8, 512);

/// A node numbers its rows one after the other: so many numbers it has not left out, whatever it lost.
const LEAP: u64 = 1 << 40;

/// A row that digests may still speak of.
struct Waiting {
    facts: RowFacts,
    repeated: Repeated,
    place: Option<(Place, Tracked)>,
    /// The names that its digest has, when it is none of the digest's rows.
    is_named: bool,
}

/// What the audit of a node leaves for the audit of the whole.
pub(super) struct Audited {
    pub(super) report: NodeReport,
    /// Messages that have rows.
    pub(super) seen: BTreeMap<ClientId, Runs>,
    /// The history has something of a block above the ledger at hand.
    pub(super) ahead: Option<u64>,
}

/// See the module.
pub(super) struct NodeAudit<'a> {
    ledger: &'a AuditedLedger,
    reader: &'a dyn HistoryReader,
    options: &'a AuditOptions,
    findings: &'a mut Findings,
    node: NodeId,
    report: NodeReport,
    judge: Judge<'a>,
    kept: Kept,
    /// Digests whose first row was not reached.
    coming: VecDeque<Tracked>,
    active: Vec<Tracked>,
    window: BTreeMap<u64, Waiting>,
    seen: BTreeMap<ClientId, Runs>,
    ahead: Option<u64>,
    /// The last row that a digest on the ledger covers.
    covered_to: u64,
    first_row: Option<u64>,
    last_row: u64,
    /// Rows that were told to be gone.
    gone: Runs,
}

impl<'a> NodeAudit<'a> {
    pub(super) async fn run(
        ledger: &'a AuditedLedger,
        reader: &'a dyn HistoryReader,
        options: &'a AuditOptions,
        node: NodeId,
        findings: &'a mut Findings,
    ) -> Result<Audited, HistoryError> {
        let kept = digests::read(ledger, reader, &node, findings).await?;
        let mut report = NodeReport::new(node);
        (report.digests, report.pending_digests) = (kept.on_ledger, kept.pending);
        let covered_to =
            kept.tracked.iter().filter(|digest| digest.height.is_some()).map(|digest| digest.last).max();
        let mut audit = Self {
            ledger,
            reader,
            options,
            findings,
            node,
            report,
            judge: Judge { ledger, reader, node, looked_for: HashMap::new() },
            coming: kept.tracked.iter().copied().collect(),
            ahead: kept.ahead,
            kept,
            active: Vec::new(),
            window: BTreeMap::new(),
            seen: BTreeMap::new(),
            covered_to: covered_to.unwrap_or_default(),
            first_row: None,
            last_row: 0,
            gone: Runs::default(),
        };
        audit.rows().await?;
        audit.strays().await?;
        Ok(Audited { report: audit.report, seen: audit.seen, ahead: audit.ahead })
    }

    async fn rows(&mut self) -> Result<(), HistoryError> {
        let (mut after, mut page_rows) = (0, PAGE_ROWS.0);
        loop {
            let limit = u32::try_from(page_rows).unwrap_or(u32::MAX);
            let page = self.reader.rows(&self.node, after, limit).await?;
            let Some(last) = page.last() else { break };
            after = number_of(last);
            let bytes: usize = page.iter().map(bytes_of).sum();
            page_rows = (PAGE_BYTES * page.len() / bytes.max(1)).clamp(PAGE_ROWS.0, PAGE_ROWS.1);
            self.judge.looked_for.clear();
            for facts in self.check(page).await? {
                self.row(facts).await?;
            }
        }
        self.close_below(u64::MAX).await
    }

    /// Checks a page of rows by themselves, on as many processors as there are.
    async fn check(&self, page: Vec<ReadRow>) -> Result<Vec<RowFacts>, HistoryError> {
        let network = self.ledger.network;
        let mut jobs: VecDeque<RowJob> = page.into_iter().map(|row| self.job(row)).collect();
        let mut pieces = Vec::new();
        while !jobs.is_empty() {
            let piece: Vec<RowJob> = jobs.drain(..PIECE.min(jobs.len())).collect();
            let check = move || piece.into_iter().map(|job| job.check(&network)).collect::<Vec<_>>();
            pieces.push(tokio::task::spawn_blocking(check));
        }
        let mut checked = Vec::new();
        for piece in pieces {
            checked.extend(
                piece.await.map_err(|error| HistoryError::Interrupted { detail: error.to_string() })?,
            );
        }
        Ok(checked)
    }

    fn job(&self, row: ReadRow) -> RowJob {
        let client = row.as_ref().ok().and_then(|row| {
            let header = crate::device::Header::decode(&row.header).ok();
            header.map(|header| header.client).or_else(|| ClientId::new(row.client.clone()).ok())
        });
        let key = client.as_ref().and_then(|client| self.ledger.clients.get(client));
        let of_column =
            |row: &ReadRow, only: &ClientId| row.as_ref().is_ok_and(|row| row.client == only.as_str());
        let skip = self
            .options
            .client
            .as_ref()
            .is_some_and(|only| row.is_ok() && client.as_ref() != Some(only) && !of_column(&row, only));
        RowJob { key: key.map(|client| client.verifying), skip, row }
    }

    async fn row(&mut self, mut facts: RowFacts) -> Result<(), HistoryError> {
        let number = facts.number;
        self.report.rows += 1;
        self.report.skipped += u64::from(facts.skipped);
        self.first_row = self.first_row.or(Some(number));
        let before = self.last_row.max(self.covered_to);
        let leap = number.checked_sub(before).filter(|leap| *leap > LEAP);
        self.last_row = number;
        self.report.items += facts.items.len() as u64;
        self.close_below(number).await?;
        while let Some(digest) = self.coming.pop_front_if(|digest| digest.first <= number) {
            self.active.push(digest);
        }
        let copy_of = self.note_seen(&facts).await?;
        self.check_fate(&mut facts);
        let repeated = if facts.is_sound() { self.judge.repeat(&facts).await? } else { Repeated::default() };
        self.report.decisions += repeated.judged;
        // A node takes messages of clients, and judges by policies, that its ledger has.
        let unknown = repeated.unknown_version.is_some() || (facts.unknown_client && !facts.skipped);
        if unknown && number > self.covered_to {
            let next = self.ledger.height().next().0;
            self.ahead = Some(self.ahead.unwrap_or_default().max(next));
        }
        facts.items = Vec::new();
        let waiting = Waiting { facts, repeated, place: None, is_named: true };
        if self.active.is_empty() {
            self.uncovered(waiting, copy_of, leap);
        } else {
            self.window.insert(number, waiting);
        }
        Ok(())
    }

    /// Notes that a message has a row. If another row has the same message, tells that one's number.
    async fn note_seen(&mut self, facts: &RowFacts) -> Result<Option<u64>, HistoryError> {
        let Some(header) = facts.header.as_ref().filter(|_| !facts.parts.contains(&Part::Header)) else {
            return Ok(None);
        };
        let seen = self.seen.entry(header.client.clone()).or_default();
        if !seen.contains(header.seq.0) {
            seen.insert(header.seq.0, header.seq.0);
            return Ok(None);
        }
        let rows = self.reader.rows_of(&self.node, &header.client, header.seq, 8).await?;
        let same = |row: &&crate::history::StoredRow| {
            row.number < facts.number && crate::device::Header::hash_of(&row.header) == facts.header_hash
        };
        let rows: Vec<_> = rows.into_iter().flatten().collect();
        Ok(rows.iter().find(same).map(|row| row.number))
    }

    fn check_fate(&mut self, facts: &mut RowFacts) {
        if facts.skipped || facts.parts.contains(&Part::Header) {
            return;
        }
        let Some(header) = &facts.header else { return };
        let message = self.ledger.message(&header.client, header.seq);
        let message = message.filter(|message| message.header == facts.header_hash);
        self.report.on_ledger += u64::from(message.is_some());
        let by_others =
            message.is_some_and(|message| message.parts.iter().all(|part| part.node != self.node));
        self.report.brought_by_others += u64::from(by_others);
        let written = message.map(|message| message.written()).unwrap_or_default();
        let picked = facts.decision.as_ref().map(crate::policy::Decision::picked).unwrap_or_default();
        let refused = facts.fate.as_ref().is_some_and(|fate| fate.fate != "written");
        if !refused && picked.iter().any(|index| !written.contains(*index)) {
            self.report.not_final += 1;
        }
        let revoked = self.ledger.clients.get(&header.client).and_then(|client| client.revoked);
        self.report.after_revocation += u64::from(revoked.is_some_and(|(_, last_seq)| header.seq > last_seq));
        match fate::check(self.ledger, facts, self.ahead.is_some()) {
            FateCheck::Holds => {}
            FateCheck::False(why) => facts.differs([Change::of(Part::Fate, format!("fate: {why}"))]),
            FateCheck::Ahead => {
                let height = facts.fate.as_ref().and_then(|fate| u64::try_from(fate.height?).ok());
                self.ahead = Some(self.ahead.unwrap_or_default().max(height.unwrap_or_default()));
            }
        }
    }

    /// What is in the database and belongs to no row.
    async fn strays(&mut self) -> Result<(), HistoryError> {
        for number in self.reader.strays(&self.node, self.options.stray_limit()).await? {
            if self.gone.contains(number) {
                continue;
            }
            let kind = if number <= self.last_row.max(self.covered_to) {
                FindingKind::Deleted
            } else {
                FindingKind::Added
            };
            let detail =
                "there are items, or a fate, and no message: it was taken away, or they were put there";
            let finding = Finding::new(kind, Some(self.node), detail).row(number).what([Part::Place]);
            self.findings.push_run(finding, "there are items, or fates, and no messages");
        }
        Ok(())
    }
}

fn number_of(row: &ReadRow) -> u64 {
    match row {
        Ok(row) => row.number,
        Err(unreadable) => unreadable.number,
    }
}

fn bytes_of(row: &ReadRow) -> usize {
    row.as_ref().map_or(64, |row| 512 + row.body.len() + row.items.len() * 256)
}
