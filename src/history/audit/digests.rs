//! A node's digests: those of the ledger, what the history keeps of each, and rows held against them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::ledger::{AuditedLedger, LedgerDigest};
use super::report::{Finding, FindingKind, Findings, Part};
use super::runs::Runs;
use crate::codec;
use crate::crypto::HashKind;
use crate::history::row::StoredDigest;
use crate::history::{HistoryError, HistoryReader};
use crate::ledger::digest::rows_root;
use crate::ledger::{HistoryDigest, MAX_REQUEST_BYTES};
use crate::types::{Hash, Height, NodeId};

/// Digests read at once: one may have 3 MiB of ranges and half a MiB of hashes.
const PAGE: u32 = 4;

/// A digest that rows are held against.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tracked {
    pub(super) number: u64,
    pub(super) first: u64,
    pub(super) last: u64,
    root: Hash,
    /// Of the digest itself: whatever else the history keeps of it proves nothing.
    hash: Hash,
    /// The block that it is in; none while it is only signed and kept.
    pub(super) height: Option<Height>,
    /// The history has its row.
    pub(super) is_kept: bool,
    /// It is later than all that the history has.
    pub(super) is_newer: bool,
    /// A later digest of the node is of the same rows: the history was lost and begun anew in between.
    pub(super) is_superseded: bool,
}

/// What the digests of a history are, before any row is looked at.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// To be held against rows, ascending by first row.
    pub(super) tracked: Vec<Tracked>,
    /// On the ledger.
    pub(super) on_ledger: u64,
    /// Signed, kept, and not on the ledger.
    pub(super) pending: u64,
    /// The history has digests of blocks above the ledger at hand.
    pub(super) ahead: Option<u64>,
    /// Rows that some digest in the history says it is of, whatever the ledger says.
    pub(super) claimed: Runs,
}

/// Reads a node's digests and holds them against the ledger.
pub(super) async fn read(
    ledger: &AuditedLedger,
    reader: &dyn HistoryReader,
    node: &NodeId,
    findings: &mut Findings,
) -> Result<Kept, HistoryError> {
    let on_ledger: BTreeMap<u64, LedgerDigest> =
        ledger.digests(node).iter().map(|digest| (digest.number, *digest)).collect();
    let mut kept = Kept { on_ledger: on_ledger.len() as u64, ..Kept::default() };
    let (mut seen, mut pending, mut after) = (BTreeSet::new(), Vec::new(), 0);
    loop {
        let page = reader.digests(node, after, PAGE).await?;
        let Some(last) = page.last() else { break };
        after = last.number;
        for stored in page {
            if stored.count > 0 {
                kept.claimed.insert(stored.first, stored.first.saturating_add(stored.count - 1));
            }
            match on_ledger.get(&stored.number) {
                Some(digest) if is_of_ledger(&stored, digest) || !is_pending(ledger, &stored) => {
                    seen.insert(stored.number);
                    if let Some(finding) = altered(&stored, digest) {
                        findings.push(finding);
                    }
                }
                // A node that lost everything made it before it knew what the ledger has.
                Some(_) => pending.extend(signed(&stored)),
                None => beyond(ledger, &stored, &mut kept, &mut pending, findings),
            }
        }
    }
    kept.pending = pending.len() as u64;
    let mut first_of_later = u64::MAX;
    for digest in on_ledger.values().rev() {
        let last = digest.first + u64::from(digest.rows) - 1;
        kept.tracked.push(Tracked {
            number: digest.number,
            first: digest.first,
            last,
            root: digest.root,
            hash: digest.hash,
            height: Some(digest.height),
            is_kept: seen.contains(&digest.number),
            is_newer: seen.last().is_none_or(|last| digest.number > *last),
            is_superseded: first_of_later <= last,
        });
        first_of_later = first_of_later.min(digest.first);
    }
    let covered = kept.tracked.iter().map(|digest| digest.last).max().unwrap_or_default();
    kept.tracked.extend(pending.into_iter().filter(|digest: &Tracked| digest.first > covered));
    kept.tracked.sort_by_key(|digest| (digest.first, digest.number));
    Ok(kept)
}

fn is_of_ledger(stored: &StoredDigest, digest: &LedgerDigest) -> bool {
    hash_of(stored) == digest.hash
}

fn hash_of(stored: &StoredDigest) -> Hash {
    HashKind::HistoryDigest.hash(&stored.content)
}

fn parse(stored: &StoredDigest) -> Option<HistoryDigest> {
    codec::decode::<MAX_REQUEST_BYTES, HistoryDigest>(&stored.content).ok()
}

/// Whether it is one that the node signed and that waits for the ledger.
fn is_pending(ledger: &AuditedLedger, stored: &StoredDigest) -> bool {
    let fits = |digest: &HistoryDigest| {
        digest.node == stored.node
            && digest.number == stored.number
            && digest.first == stored.first
            && u64::from(digest.rows) == stored.count
            && rows_root(&stored.row_hashes).is_ok_and(|root| root == digest.root)
            && digest.verify(&ledger.network).is_ok()
    };
    stored.height.is_none() && stored.is_whole && parse(stored).is_some_and(|digest| fits(&digest))
}

fn signed(stored: &StoredDigest) -> Option<Tracked> {
    let digest = parse(stored)?;
    Some(Tracked {
        number: digest.number,
        first: digest.first,
        last: digest.first + u64::from(digest.rows) - 1,
        root: digest.root,
        hash: digest.hash(),
        height: None,
        is_kept: true,
        is_newer: false,
        is_superseded: false,
    })
}

/// What of a kept digest is not as the ledger has it.
fn altered(stored: &StoredDigest, digest: &LedgerDigest) -> Option<Finding> {
    let checks = [
        (Part::Content, is_of_ledger(stored, digest)),
        (Part::Count, stored.first == digest.first && stored.count == u64::from(digest.rows)),
        (Part::RowHashes, rows_root(&stored.row_hashes).is_ok_and(|root| root == digest.root)),
        (Part::Height, stored.height.is_none_or(|height| height == digest.height.0)),
        (Part::Unreadable, stored.is_whole),
    ];
    let parts: Vec<Part> = checks.into_iter().filter(|(_, fits)| !fits).map(|(part, _)| part).collect();
    if parts.is_empty() {
        return None;
    }
    let names: Vec<String> = parts.iter().map(ToString::to_string).collect();
    let detail = format!(
        "{} of digest {}, of rows {} to {}, is not as on the ledger",
        names.join(", "),
        digest.number,
        digest.first,
        digest.first + u64::from(digest.rows) - 1
    );
    Some(Finding::new(FindingKind::Digest, Some(stored.node), detail).digest(stored.number).what(parts))
}

/// A kept digest that the ledger at hand does not have.
fn beyond(
    ledger: &AuditedLedger,
    stored: &StoredDigest,
    kept: &mut Kept,
    pending: &mut Vec<Tracked>,
    findings: &mut Findings,
) {
    let unset = StoredDigest { height: None, ..stored.clone() };
    let is_signed = is_pending(ledger, &unset);
    match stored.height {
        None if is_signed => pending.extend(signed(stored)),
        Some(height) if is_signed && height > ledger.height().0 => {
            kept.ahead = Some(kept.ahead.unwrap_or_default().max(height));
            pending.extend(signed(stored));
        }
        _ => {
            let detail =
                format!("digest {} is not on the ledger, and not as the node signs them", stored.number);
            let finding = Finding::new(FindingKind::Digest, Some(stored.node), detail);
            findings.push(finding.digest(stored.number).what([Part::Digest]));
        }
    }
}

/// How a row stands to a digest that is of its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// It is as it was.
    Proven,
    /// It is another row of the same digest, that was at this place.
    Moved(u64),
    /// It is a copy of the row that is still at this place.
    Copied(u64),
    /// It is none of the digest's rows.
    Other,
    /// The rows do not lead to the root, and which of them is not as it was cannot be told.
    Unclear,
}

/// What came of holding rows against a digest.
#[derive(Debug, Default)]
pub(super) struct Held {
    pub(super) places: Vec<(u64, Place)>,
    /// Numbers of rows that are gone.
    pub(super) deleted: Vec<u64>,
    /// The hashes that were kept do not lead to the root, so rows cannot be told one by one.
    pub(super) is_unclear: bool,
    /// The digest itself, if the history has it unaltered: it names the seqs of its rows.
    pub(super) content: Option<HistoryDigest>,
}

impl Tracked {
    /// Holds the rows that are there (number and hash, ascending) against the digest.
    pub(super) async fn hold(
        &self,
        reader: &dyn HistoryReader,
        node: &NodeId,
        rows: &[(u64, Option<Hash>)],
    ) -> Result<Held, HistoryError> {
        let count = usize::try_from(self.last - self.first + 1).unwrap_or(usize::MAX);
        let hashes: Option<Vec<Hash>> = rows.iter().map(|(_, hash)| *hash).collect();
        let is_whole = rows.len() == count
            && hashes.is_some_and(|hashes| rows_root(&hashes).is_ok_and(|root| root == self.root));
        if is_whole {
            let places = rows.iter().map(|(number, _)| (*number, Place::Proven)).collect();
            return Ok(Held { places, ..Held::default() });
        }
        let stored = reader.digests(node, self.number - 1, 1).await?.into_iter().next();
        let stored = stored.filter(|stored| stored.number == self.number);
        let as_signed = |stored: &&StoredDigest| hash_of(stored) == self.hash;
        let content = stored.as_ref().filter(as_signed).and_then(parse);
        let kept = stored.map(|stored| stored.row_hashes).unwrap_or_default();
        let mut held = if rows_root(&kept).is_ok_and(|root| root == self.root) {
            self.compare(&kept, rows)
        } else {
            self.unclear(rows)
        };
        held.content = content;
        Ok(held)
    }

    /// Names each row by the hashes that lead to the root.
    fn compare(&self, kept: &[Hash], rows: &[(u64, Option<Hash>)]) -> Held {
        let was: HashMap<Hash, u64> = kept.iter().copied().zip(self.first..).collect();
        let now: HashMap<u64, Hash> =
            rows.iter().filter_map(|(number, hash)| Some((*number, (*hash)?))).collect();
        let there: BTreeSet<Hash> = now.values().copied().collect();
        let is_there: BTreeSet<u64> = rows.iter().map(|(number, _)| *number).collect();
        let expected = |number: u64| kept.get(usize::try_from(number - self.first).unwrap_or(usize::MAX));
        let place = |number: u64, hash: Option<Hash>| match hash {
            Some(hash) if expected(number) == Some(&hash) => Place::Proven,
            Some(hash) => match was.get(&hash) {
                Some(other) if now.get(other) == Some(&hash) => Place::Copied(*other),
                Some(other) => Place::Moved(*other),
                None => Place::Other,
            },
            None => Place::Other,
        };
        let places: Vec<(u64, Place)> =
            rows.iter().map(|(number, hash)| (*number, place(*number, *hash))).collect();
        let displaced: BTreeSet<u64> = places
            .iter()
            .filter(|(_, place)| matches!(place, Place::Moved(_) | Place::Copied(_)))
            .map(|(number, _)| *number)
            .collect();
        let is_gone = |(hash, number): &(&Hash, u64)| {
            !there.contains(*hash) && (!is_there.contains(number) || displaced.contains(number))
        };
        let deleted = kept.iter().zip(self.first..).filter(is_gone).map(|(_, number)| number).collect();
        Held { places, deleted, ..Held::default() }
    }

    fn unclear(&self, rows: &[(u64, Option<Hash>)]) -> Held {
        let there: BTreeSet<u64> = rows.iter().map(|(number, _)| *number).collect();
        Held {
            places: there.iter().map(|number| (*number, Place::Unclear)).collect(),
            deleted: (self.first..=self.last).filter(|number| !there.contains(number)).collect(),
            is_unclear: true,
            content: None,
        }
    }
}
