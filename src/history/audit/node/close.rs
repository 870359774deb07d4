//! Rows held against the digests that end below them: which are gone, and what a digest says of each that is there.

use std::collections::BTreeSet;

use super::NodeAudit;
use crate::history::HistoryError;
use crate::history::audit::digests::{Held, Place, Tracked};
use crate::history::audit::report::{EndsEarly, Finding, FindingKind, LostRows, Part};
use crate::history::audit::row::{HASHED, names};
use crate::history::audit::runs::Runs;
use crate::history::audit::words;
use crate::types::ClientId;

/// What is said of rows of several digests.
const GONE: &str = "digests have them, and they are gone";

impl NodeAudit<'_> {
    /// Holds rows against all digests that end below `number`, and tells of rows that no digest can
    /// speak of any more.
    pub(super) async fn close_below(&mut self, number: u64) -> Result<(), HistoryError> {
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

    pub(super) async fn close(&mut self, digest: Tracked) -> Result<(), HistoryError> {
        self.note_later_rows(&digest);
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
        if digest.is_newer && is_whole {
            self.report.newer_digests += 1;
        } else if !digest.is_kept {
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

    /// Notes that a digest has rows above all of a history that does not have the digest: as in one that was
    /// copied before it was made.
    fn note_later_rows(&mut self, digest: &Tracked) {
        let Some(height) = digest.height.filter(|_| digest.is_newer && !digest.is_superseded) else { return };
        if self.first_row.is_none() || digest.last <= self.last_row {
            return;
        }
        let first = EndsEarly { last_row: self.last_row, digests_to: digest.last, block: height };
        let ends = self.report.ends_early.get_or_insert(first);
        (ends.digests_to, ends.block) = (ends.digests_to.max(digest.last), ends.block.min(height));
    }

    /// None of a digest's rows is there.
    pub(super) fn all_gone(&mut self, digest: Tracked) {
        let begins_later = self.first_row.is_none_or(|first| digest.last < first);
        if digest.is_superseded || (!digest.is_kept && begins_later && digest.height.is_some()) {
            self.lost(digest);
            return;
        }
        if self.is_known_lost(digest.first, digest.last) {
            return;
        }
        self.gone.insert(digest.first, digest.last);
        let rows = words::count(digest.last - digest.first + 1, "row", "rows");
        let detail = format!("{rows}, all that digest {} has, are gone", digest.number);
        let finding = Finding::new(FindingKind::Deleted, Some(self.node), detail);
        self.findings.push_run(finding.rows(digest.first, digest.last).digest(digest.number), GONE);
    }

    pub(super) fn lost(&mut self, digest: Tracked) {
        match self.report.lost.last_mut().filter(|lost| lost.last + 1 >= digest.first) {
            Some(lost) => lost.last = lost.last.max(digest.last),
            None => {
                self.report.lost.push(LostRows { node: self.node, first: digest.first, last: digest.last })
            }
        }
    }

    pub(super) fn is_known_lost(&self, first: u64, last: u64) -> bool {
        self.options.is_known_lost(&self.node, first, last)
    }

    pub(super) fn tell_deleted(&mut self, digest: &Tracked, held: &Held) {
        let deleted: Vec<u64> =
            held.deleted.iter().copied().filter(|number| !self.is_known_lost(*number, *number)).collect();
        let gone =
            held.content.as_ref().map(|content| self.gone_messages(content, digest)).unwrap_or_default();
        let message = (deleted.len() == 1 && gone.len() == 1).then(|| gone[0].clone());
        let mut runs = Runs::default();
        deleted.iter().for_each(|number| runs.insert(*number, *number));
        for (at, (first, last)) in runs.iter().enumerate() {
            self.gone.insert(first, last);
            let rows = words::count(last - first + 1, "row", "rows");
            let mut detail = match first == last {
                true => format!("digest {} has it, and it is gone", digest.number),
                false => format!("{rows}: digest {} has them, and they are gone", digest.number),
            };
            if message.is_none() && !gone.is_empty() && at == 0 {
                detail.push_str(&format!("; the messages that are gone: {}", told(&gone)));
            }
            let finding = Finding::new(FindingKind::Deleted, Some(self.node), detail).rows(first, last);
            self.findings.push_run(finding.digest(digest.number).message(message.clone()), GONE);
        }
    }

    /// The messages that a digest names and no row at its places has.
    pub(super) fn gone_messages(
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
}

fn told(messages: &[(ClientId, u64)]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<String> =
        messages.iter().take(SHOWN).map(|(client, seq)| format!("{client} {seq}")).collect();
    let more = messages.len().saturating_sub(SHOWN);
    if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
}
