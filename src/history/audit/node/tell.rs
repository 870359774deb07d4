//! What is told of a row, once all is known of it that can be.

use std::collections::BTreeSet;

use super::{NodeAudit, Waiting};
use crate::history::audit::change::{self, Change};
use crate::history::audit::decision::Repeated;
use crate::history::audit::digests::Place;
use crate::history::audit::report::{Finding, FindingKind, Part};
use crate::history::audit::row::{HASHED, RowFacts};
use crate::history::audit::words;
use crate::types::Height;

impl NodeAudit<'_> {
    /// A row that no digest covers.
    pub(super) fn uncovered(&mut self, mut waiting: Waiting, copy_of: Option<u64>, leap: Option<u64>) {
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
            self.count(number <= self.covered_to, false);
            let parts = std::mem::take(&mut waiting.facts.parts);
            let finding = Finding::new(FindingKind::Added, Some(self.node), why).row(number);
            let finding = finding.message(waiting.facts.message).what(parts);
            let each = match copy_of {
                Some(_) => "they have messages of other rows once more",
                None => "later rows have digests, and no digest has them",
            };
            self.findings.push_run(finding, each);
            return;
        }
        if let Some(leap) = leap {
            self.count(false, false);
            let detail = format!(
                "{} numbers are left out before it: no node does that, and one that goes on from there has soon none left; \
                 take it away, with what follows it",
                words::number(leap - 1)
            );
            let finding = Finding::new(FindingKind::Added, Some(self.node), detail).row(number);
            let parts = std::mem::take(&mut waiting.facts.parts).into_iter().chain([Part::Place]);
            self.findings.push(finding.message(waiting.facts.message).what(parts));
            return;
        }
        self.tell(waiting);
    }

    /// Tells what is wrong with a row, once, when all is known that can be.
    pub(super) fn tell(&mut self, waiting: Waiting) {
        let Waiting { facts, repeated, place, is_named } = waiting;
        let digest = place.map(|(_, digest)| digest);
        let is_final = digest.is_some_and(|digest| digest.height.is_some());
        let place = place.map(|(place, _)| place);
        let number = facts.number;
        let node = self.node;
        let finding = |kind, detail: String| {
            let finding = Finding::new(kind, Some(node), detail).row(number).message(facts.message.clone());
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
            self.count(is_final, false);
            let each = each_of_several(number, place, told.kind);
            self.findings.push_run(told.what(parts), &each);
            return;
        }
        if place == Some(Place::Other) && is_whole && facts.hash.is_some() {
            parts.insert(if facts.skipped { Part::Row } else { Part::Decision });
        }
        let limit = digest.and_then(|digest| digest.height);
        self.tell_unknown_client(&facts, limit, &mut parts);
        self.count(is_final, place == Some(Place::Proven) && parts.is_empty());
        if !parts.is_empty() {
            let item = facts.changes.iter().find_map(|change| change.item);
            let told = finding(FindingKind::Altered, altered(&parts, &facts));
            self.findings.push(Finding { item, ..told }.what(parts.clone()));
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

    /// Counts a row: whether a digest on the ledger is of its place, and proves it.
    const fn count(&mut self, is_final: bool, is_proven: bool) {
        let counter = match (is_final, is_proven) {
            (true, true) => &mut self.report.covered,
            (true, false) => &mut self.report.unproven,
            (false, _) => &mut self.report.not_covered,
        };
        *counter += 1;
    }

    /// A sound row that is none of its digest's.
    pub(super) fn foreign(
        &self,
        facts: &RowFacts,
        finding: &dyn Fn(FindingKind, String) -> Finding,
    ) -> Finding {
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
    pub(super) fn tell_unknown_client(
        &self,
        facts: &RowFacts,
        limit: Option<Height>,
        parts: &mut BTreeSet<Part>,
    ) {
        let registered = facts.header.as_ref().and_then(|header| self.ledger.clients.get(&header.client));
        let late = registered.zip(limit).is_some_and(|(client, limit)| client.registered >= limit);
        if (facts.unknown_client && limit.is_some()) || (late && !facts.skipped && parts.is_empty()) {
            parts.insert(Part::ClientKey);
        }
    }

    /// A version that is none, or that was put in force after the row was digested.
    pub(super) fn unknown_version(
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
    pub(super) fn may_have_had(&self, facts: &RowFacts, seq: u64) -> bool {
        let Some(header) = &facts.header else { return true };
        let named = self.ledger.named_by(&self.node, &header.client).is_some_and(|runs| runs.contains(seq));
        named || !self.report.lost.is_empty() || self.options.has_lost(&self.node)
    }
}

/// What is said of several rows in a row that are not in their places.
fn each_of_several(number: u64, place: Option<Place>, kind: FindingKind) -> String {
    match place {
        Some(Place::Moved(other)) if other > number => {
            format!("each was {} further down", words::count(other - number, "row", "rows"))
        }
        Some(Place::Moved(other)) => {
            format!("each was {} further up", words::count(number - other, "row", "rows"))
        }
        Some(Place::Copied(_)) => "they are copies of other rows, in the place of others".to_owned(),
        _ if kind == FindingKind::Reordered => {
            "they are in the place of other rows; their own is elsewhere".to_owned()
        }
        _ => "they are in the place of other rows".to_owned(),
    }
}

/// What is not as it was, with both values where they are known.
fn altered(parts: &BTreeSet<Part>, facts: &RowFacts) -> String {
    let unknown = |part: &&Part| !facts.changes.iter().any(|change| change.part == **part);
    let by_part = |part: &Part| {
        let text = match part {
            Part::Row => "row: its digest has another one".to_owned(),
            Part::Decision => "decision: the row's digest has another one".to_owned(),
            Part::ClientKey => {
                "client_key: the ledger had no such client when the row's digest was made".to_owned()
            }
            Part::Header => "header: not as it was signed".to_owned(),
            part => format!("{part}: not as it was"),
        };
        Change::of(*part, text)
    };
    let others: Vec<Change> = parts.iter().filter(unknown).map(by_part).collect();
    change::told(&facts.changes.iter().chain(&others).collect::<Vec<_>>())
}
