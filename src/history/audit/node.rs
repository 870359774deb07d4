//! One node's history, read once from its first row to its last.
//!
//! ```text
//! rows ──pages──▶ checked by themselves (many at once) ──▶ fate, decision ──▶ window ──▶ findings
//! digests ──▶ those that cover the rows of the window ────── held against ────┘
//! ```
//!
//! The window holds what is known of the rows that a digest may still speak of: no more than one digest has rows.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use super::AuditOptions;
use super::decision::{Judge, Repeated};
use super::digests::{self, Held, Kept, Place, Tracked};
use super::fate::{self, FateCheck};
use super::ledger::AuditedLedger;
use super::report::{Finding, FindingKind, Findings, LostRows, NodeReport, Part};
use super::row::{HASHED, RowFacts, RowJob, names};
use super::runs::Runs;
use crate::history::{HistoryError, HistoryReader, ReadRow};
use crate::types::{ClientId, Height, NodeId};

/// Rows checked in one piece of work: some milliseconds of signatures.
const PIECE: usize = 32;

/// Bytes of rows that are to be read at once, and the fewest and the most rows.
const PAGE_BYTES: usize = 4 << 20;
const PAGE_ROWS: (usize, usize) = (8, 512);

/// How many rows of one digest are named one by one when all of them are gone at once.
const NAMED_SINGLY: usize = 256;

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
        self.first_row = self.first_row.or(Some(number));
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
            self.uncovered(waiting, copy_of);
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
            FateCheck::False(_) => {
                facts.parts.insert(Part::Fate);
            }
            FateCheck::Ahead => {
                let height = facts.fate.as_ref().and_then(|fate| u64::try_from(fate.height?).ok());
                self.ahead = Some(self.ahead.unwrap_or_default().max(height.unwrap_or_default()));
            }
        }
    }

    /// Holds rows against all digests that end below `number`, and tells of rows that no digest can
    /// speak of any more.
    async fn close_below(&mut self, number: u64) -> Result<(), HistoryError> {
        loop {
            let ending = self.active.iter().position(|digest| digest.last < number);
            let digest = match ending {
                Some(at) => self.active.remove(at),
                // No row of it is there.
                None => match self.coming.pop_front_if(|digest| digest.last < number) {
                    Some(digest) => digest,
                    None => break,
                },
            };
            self.close(digest).await?;
        }
        let needed = self.active.iter().map(|digest| digest.first).min().unwrap_or(u64::MAX);
        while let Some(entry) = self.window.first_entry().filter(|entry| *entry.key() < needed) {
            let waiting = entry.remove();
            self.tell(waiting);
        }
        Ok(())
    }

    async fn close(&mut self, digest: Tracked) -> Result<(), HistoryError> {
        let there: Vec<_> = self
            .window
            .range(digest.first..=digest.last)
            .map(|(number, row)| (*number, row.facts.hash))
            .collect();
        if there.is_empty() {
            self.all_gone(digest);
            return Ok(());
        }
        let held = digest.hold(self.reader, &self.node, &there).await?;
        let is_whole =
            held.deleted.is_empty() && held.places.iter().all(|(_, place)| *place == Place::Proven);
        if digest.is_superseded && !is_whole {
            self.lost(digest);
            return Ok(());
        }
        if !digest.is_kept {
            let detail = format!("digest {} is gone; the ledger has it, of these rows", digest.number);
            let finding = Finding::new(FindingKind::Digest, Some(self.node), detail);
            self.findings
                .push(finding.rows(digest.first, digest.last).digest(digest.number).what([Part::Digest]));
        }
        self.tell_deleted(&digest, &held);
        let mut is_explained = !held.deleted.is_empty();
        for (number, place) in &held.places {
            let Some(waiting) = self.window.get_mut(number) else { continue };
            waiting.place = Some((*place, digest));
            if let (Some(content), Some(message)) = (&held.content, &waiting.facts.message) {
                waiting.is_named = names(content, message);
            }
            let hashed = HASHED.iter().any(|part| waiting.facts.parts.contains(part));
            is_explained |= hashed || !waiting.is_named || waiting.facts.hash.is_none();
        }
        if held.is_unclear && !is_explained {
            let detail = format!(
                "these rows do not lead to the root of digest {} on the ledger, and the hashes that the history keeps \
                 of them do not either: at least one of them is not as it was",
                digest.number
            );
            let finding = Finding::new(FindingKind::Altered, Some(self.node), detail);
            self.findings
                .push(finding.rows(digest.first, digest.last).digest(digest.number).what([Part::Row]));
        }
        Ok(())
    }

    /// None of a digest's rows is there.
    fn all_gone(&mut self, digest: Tracked) {
        let begins_later = self.first_row.is_none_or(|first| digest.last < first);
        if digest.is_superseded || (!digest.is_kept && begins_later && digest.height.is_some()) {
            self.lost(digest);
            return;
        }
        if self.is_known_lost(digest.first, digest.last) {
            return;
        }
        self.gone.insert(digest.first, digest.last);
        let detail = format!("all rows of digest {} are gone", digest.number);
        let finding = Finding::new(FindingKind::Deleted, Some(self.node), detail);
        self.findings.push(finding.rows(digest.first, digest.last).digest(digest.number));
    }

    fn lost(&mut self, digest: Tracked) {
        match self.report.lost.last_mut().filter(|lost| lost.last + 1 >= digest.first) {
            Some(lost) => lost.last = lost.last.max(digest.last),
            None => {
                self.report.lost.push(LostRows { node: self.node, first: digest.first, last: digest.last })
            }
        }
    }

    fn is_known_lost(&self, first: u64, last: u64) -> bool {
        self.options.is_known_lost(&self.node, first, last)
    }

    fn tell_deleted(&mut self, digest: &Tracked, held: &Held) {
        let deleted: Vec<u64> =
            held.deleted.iter().copied().filter(|number| !self.is_known_lost(*number, *number)).collect();
        let gone =
            held.content.as_ref().map(|content| self.gone_messages(content, digest)).unwrap_or_default();
        let message = (deleted.len() == 1 && gone.len() == 1).then(|| gone[0].clone());
        let mut at = 0;
        while at < deleted.len() {
            let (first, mut last) = (deleted[at], deleted[at]);
            at += 1;
            while deleted.len() > NAMED_SINGLY && deleted.get(at) == Some(&(last + 1)) {
                last += 1;
                at += 1;
            }
            self.gone.insert(first, last);
            let mut detail = format!("digest {} has it, and it is gone", digest.number);
            if message.is_none() && !gone.is_empty() {
                detail.push_str(&format!("; the messages that are gone: {}", told(&gone)));
            }
            let finding = Finding::new(FindingKind::Deleted, Some(self.node), detail);
            self.findings.push(finding.rows(first, last).digest(digest.number).message(message.clone()));
        }
    }

    /// The messages that a digest names and no row at its places has.
    fn gone_messages(
        &self,
        content: &crate::ledger::HistoryDigest,
        digest: &Tracked,
    ) -> Vec<(ClientId, u64)> {
        let rows = self.window.range(digest.first..=digest.last);
        let there: BTreeSet<_> = rows.filter_map(|(_, row)| row.facts.message.as_ref()).collect();
        let seqs = content.ranges.iter().flat_map(|(client, runs)| {
            runs.iter()
                .flat_map(move |(first, last)| (first.0..=last.0).map(move |seq| (client.clone(), seq)))
        });
        seqs.filter(|message| !there.contains(message)).collect()
    }

    /// A row that no digest covers.
    fn uncovered(&mut self, mut waiting: Waiting, copy_of: Option<u64>) {
        let number = waiting.facts.number;
        let is_claimed = || self.kept.claimed.contains(number);
        let why = match copy_of {
            Some(other) => Some(format!("it has the message of row {other} once more")),
            None if number <= self.covered_to && !is_claimed() => {
                Some("later rows have digests, and no digest has it".to_owned())
            }
            None => None,
        };
        if let Some(why) = why {
            let parts = std::mem::take(&mut waiting.facts.parts);
            let finding = Finding::new(FindingKind::Added, Some(self.node), why).row(number);
            self.findings.push(finding.message(waiting.facts.message).what(parts));
            return;
        }
        self.tell(waiting);
    }

    /// Tells what is wrong with a row, once, when all is known that can be.
    fn tell(&mut self, waiting: Waiting) {
        let Waiting { facts, repeated, place, is_named } = waiting;
        let digest = place.map(|(_, digest)| digest);
        let is_final = digest.is_some_and(|digest| digest.height.is_some());
        let place = place.map(|(place, _)| place);
        if place == Some(Place::Proven) && is_final {
            self.report.covered += 1;
        } else {
            self.report.not_covered += 1;
        }
        let number = facts.number;
        let finding = |kind, detail: String| {
            let finding =
                Finding::new(kind, Some(self.node), detail).row(number).message(facts.message.clone());
            match digest {
                Some(digest) => finding.digest(digest.number),
                None => finding,
            }
        };
        let mut parts = facts.parts.clone();
        let is_other = matches!(place, Some(Place::Other | Place::Unclear)) && facts.hash.is_some();
        let is_whole = !HASHED.iter().any(|part| parts.contains(part));
        let told = match place {
            Some(Place::Moved(other)) => Some(finding(FindingKind::Reordered, format!("it was row {other}"))),
            Some(Place::Copied(other)) => Some(finding(
                FindingKind::Added,
                format!("it is a copy of row {other}, in the place of another row"),
            )),
            _ if is_other && is_whole && !is_named => Some(self.foreign(&facts, &finding)),
            _ => None,
        };
        if let Some(told) = told {
            self.findings.push(told.what(parts));
            return;
        }
        if place == Some(Place::Other) && is_whole && facts.hash.is_some() {
            parts.insert(if facts.skipped { Part::Row } else { Part::Decision });
        }
        let limit = digest.and_then(|digest| digest.height);
        self.tell_unknown_client(&facts, limit, &mut parts);
        if !parts.is_empty() {
            let detail = altered(&parts, &facts);
            self.findings.push(finding(FindingKind::Altered, detail).what(parts.clone()));
        }
        if parts.contains(&Part::Decision) || facts.skipped {
            return;
        }
        let mut broken: Vec<Finding> = Vec::new();
        for (item, detail) in &repeated.broken {
            broken.push(Finding { item: Some(*item), ..finding(FindingKind::PolicyBroken, detail.clone()) });
        }
        broken.extend(
            self.unknown_version(&facts, &repeated, limit)
                .map(|detail| finding(FindingKind::PolicyBroken, detail)),
        );
        let mut unjudged = 0;
        for (item, base) in &repeated.no_base {
            if limit.is_none() || self.may_have_had(&facts, base.seq.0) {
                unjudged += 1;
                continue;
            }
            let detail = format!(
                "it was judged against item {} of message {}, which neither the ledger has nor this history",
                base.index, base.seq
            );
            broken.push(Finding { item: Some(*item), ..finding(FindingKind::PolicyBroken, detail) });
        }
        self.report.unjudged += unjudged;
        broken.into_iter().for_each(|finding| self.findings.push(finding));
    }

    /// A sound row that is none of its digest's.
    fn foreign(&self, facts: &RowFacts, finding: &dyn Fn(FindingKind, String) -> Finding) -> Finding {
        let named = facts.message.as_ref().is_some_and(|(client, seq)| {
            self.ledger.named_by(&self.node, client).is_some_and(|runs| runs.contains(*seq))
        });
        if named {
            finding(
                FindingKind::Reordered,
                "it is in the place of another row; its own is elsewhere".to_owned(),
            )
        } else {
            finding(FindingKind::Added, "it is in the place of another row".to_owned())
        }
    }

    /// A client that was never registered, or after the row was digested.
    fn tell_unknown_client(&self, facts: &RowFacts, limit: Option<Height>, parts: &mut BTreeSet<Part>) {
        let registered = facts.header.as_ref().and_then(|header| self.ledger.clients.get(&header.client));
        let late = registered.zip(limit).is_some_and(|(client, limit)| client.registered >= limit);
        if (facts.unknown_client && limit.is_some()) || (late && !facts.skipped && parts.is_empty()) {
            parts.insert(Part::ClientKey);
        }
    }

    /// A version that is none, or that was put in force after the row was digested.
    fn unknown_version(
        &self,
        facts: &RowFacts,
        repeated: &Repeated,
        limit: Option<Height>,
    ) -> Option<String> {
        let version = facts.decision.as_ref()?.policies;
        let since = usize::try_from(version).ok().and_then(|at| self.ledger.policies.get(at));
        match (since, limit) {
            (None, Some(_)) => Some(format!("the ledger has no version {version} of the policies")),
            (Some(since), Some(limit)) if since.height >= limit && repeated.unknown_version.is_none() => {
                Some(format!(
                    "it names version {version} of the policies, which came into force in block {}, after the row's digest",
                    since.height
                ))
            }
            _ => None,
        }
    }

    /// Whether this node had a message whose row is gone: that is told where it is found.
    fn may_have_had(&self, facts: &RowFacts, seq: u64) -> bool {
        let Some(header) = &facts.header else { return true };
        let named = self.ledger.named_by(&self.node, &header.client).is_some_and(|runs| runs.contains(seq));
        named || !self.report.lost.is_empty() || self.options.has_lost(&self.node)
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
            let finding = Finding::new(kind, Some(self.node), detail).row(number);
            self.findings.push(finding.what([Part::Place]));
        }
        Ok(())
    }
}

fn altered(parts: &BTreeSet<Part>, facts: &RowFacts) -> String {
    let names: Vec<String> = parts.iter().map(ToString::to_string).collect();
    let mut detail = format!("not as it was: {}", names.join(", "));
    if let Some(unreadable) = &facts.unreadable {
        detail.push_str(&format!(" ({unreadable})"));
    }
    detail
}

fn told(messages: &[(ClientId, u64)]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<String> =
        messages.iter().take(SHOWN).map(|(client, seq)| format!("{client} {seq}")).collect();
    let more = messages.len().saturating_sub(SHOWN);
    if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
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
