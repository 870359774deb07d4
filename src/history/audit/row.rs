//! A row by itself: what can be said of it with its client's key and nothing else.
//!
//! The client signed the header; the header names body and items; the other columns repeat the
//! header. So each part that does not fit is named, without knowing what it was before.

use std::collections::BTreeSet;

use super::change::{self, Change};
use super::report::Part;
use super::words;
use crate::crypto::{VerifyingKey, blake3_plain};
use crate::device::body::Body;
use crate::device::{Header, Item};
use crate::history::row::{StoredFate, StoredItem, StoredRow};
use crate::history::{ReadRow, UnreadableRow};
use crate::ledger::HistoryDigest;
use crate::merkle::Tree;
use crate::policy::Decision;
use crate::types::{ClientId, Hash, NetworkId, PublicKey, Signature};

/// A row, checked by itself.
#[derive(Debug)]
pub(super) struct RowFacts {
    pub(super) number: u64,
    /// What a digest's tree has of it; none if it cannot be read.
    pub(super) hash: Option<Hash>,
    /// BLAKE3 of the header.
    pub(super) header_hash: Hash,
    pub(super) header: Option<Header>,
    /// The message that it is of, as far as it can be told.
    pub(super) message: Option<(ClientId, u64)>,
    /// What is not as it was.
    pub(super) parts: BTreeSet<Part>,
    /// The client is not registered on the ledger, so nothing is known of its signature.
    pub(super) unknown_client: bool,
    /// It is of no client that is asked for: only its hash counts.
    pub(super) skipped: bool,
    pub(super) decision: Option<Decision>,
    /// The items of the body.
    pub(super) items: Vec<Item>,
    pub(super) fate: Option<StoredFate>,
    /// Both values of what is not as it was, as far as they are known.
    pub(super) changes: Vec<Change>,
}

/// Parts that a row's hash covers.
pub(super) const HASHED: [Part; 4] = [Part::Header, Part::Signature, Part::ClientKey, Part::Decision];

impl RowFacts {
    fn new(number: u64) -> Self {
        Self {
            number,
            hash: None,
            header_hash: Hash([0; 32]),
            header: None,
            message: None,
            parts: BTreeSet::new(),
            unknown_client: false,
            skipped: false,
            decision: None,
            items: Vec::new(),
            fate: None,
            changes: Vec::new(),
        }
    }

    fn unreadable(row: UnreadableRow) -> Self {
        let part = |column: &&str| match *column {
            "client" => Part::Client,
            "seq" => Part::Seq,
            "stream" => Part::Stream,
            "event_time" => Part::EventTime,
            "header_hash" => Part::HeaderHash,
            "header" => Part::Header,
            "signature" => Part::Signature,
            "client_key" => Part::ClientKey,
            "body" => Part::Body,
            "decision" => Part::Decision,
            "items" => Part::Items,
            "fates" => Part::Fate,
            _ => Part::Unreadable,
        };
        let mut parts: BTreeSet<Part> = row.columns.iter().map(part).collect();
        if parts.is_empty() {
            parts.insert(Part::Unreadable);
        }
        let message = row
            .message
            .and_then(|(client, seq)| Some((ClientId::new(client).ok()?, u64::try_from(seq).ok()?)));
        let changes = parts.iter().map(|part| Change::of(*part, format!("{part}: {}", row.what))).collect();
        Self { parts, message, changes, ..Self::new(row.number) }
    }

    /// Notes what is not as it was, with both values.
    pub(super) fn differs(&mut self, changes: impl IntoIterator<Item = Change>) {
        for change in changes {
            self.parts.insert(change.part);
            self.changes.push(change);
        }
    }

    /// Whether body, items and decision can be relied on.
    pub(super) fn is_sound(&self) -> bool {
        let parts = [Part::Header, Part::Body, Part::Decision, Part::Unreadable];
        self.header.is_some() && !self.skipped && !parts.iter().any(|part| self.parts.contains(part))
    }
}

/// What a check needs besides the row.
#[derive(Debug, Clone)]
pub(super) struct RowJob {
    pub(super) row: ReadRow,
    /// The key that is the client's on the ledger.
    pub(super) key: Option<VerifyingKey>,
    /// Nothing but the hash is wanted.
    pub(super) skip: bool,
}

impl RowJob {
    /// Checks the row by itself. Takes the time of a signature check.
    pub(super) fn check(self, network: &NetworkId) -> RowFacts {
        let row = match self.row {
            Ok(row) => row,
            Err(unreadable) => return RowFacts::unreadable(unreadable),
        };
        let mut facts = RowFacts::new(row.number);
        facts.hash = Some(row.hash());
        facts.header_hash = Header::hash_of(&row.header);
        facts.header = Header::decode(&row.header).ok();
        let column = ClientId::new(row.client.clone()).ok().zip(u64::try_from(row.seq).ok());
        facts.message = facts.header.as_ref().map(|header| (header.client.clone(), header.seq.0)).or(column);
        facts.skipped = self.skip;
        if self.skip {
            return facts;
        }
        let body = check_body(&row, &mut facts);
        check_signature(network, &row, self.key.as_ref(), &mut facts);
        // A header that is not the client's says nothing of the rest.
        if !facts.parts.contains(&Part::Header) {
            facts.differs(
                facts.header.as_ref().map(|header| change::of_columns(&row, header)).unwrap_or_default(),
            );
            match body {
                Some(items) => {
                    if !same_items(&row.items, &items) {
                        facts.parts.insert(Part::Items);
                        facts.differs(change::of_items(&row.items, &items));
                    }
                    facts.items = items;
                }
                None => {
                    facts.parts.insert(Part::Body);
                    facts.differs(facts.header.as_ref().map(|header| change::of_body(&row, header)));
                }
            }
        }
        facts.decision = Decision::parse(&row.decision).ok();
        let count = facts.header.as_ref().map(|header| header.count as usize);
        let decided = facts.decision.as_ref().map(|decision| decision.items.len());
        if decided.is_none() || (count.is_some() && !facts.parts.contains(&Part::Header) && decided != count)
        {
            facts.parts.insert(Part::Decision);
            let items = count.map_or_else(String::new, |count| format!(" about {count} items"));
            let stored = words::bytes(&row.decision);
            facts.differs([Change::of(
                Part::Decision,
                format!("decision: table {stored}, which is no decision{items}"),
            )]);
        }
        facts.fate = row.fate;
        facts
    }
}

/// The items of the body, if it is the one that the header names.
fn check_body(row: &StoredRow, facts: &mut RowFacts) -> Option<Vec<Item>> {
    let header = facts.header.as_ref()?;
    if blake3_plain(&row.body) != header.body_hash {
        return None;
    }
    let body = Body::parse(&header.client, &row.body).ok()?;
    let bytes: Vec<Vec<u8>> = body.items.iter().map(Item::encode).collect();
    let fits = usize::try_from(header.count) == Ok(body.items.len())
        && body.event_time == header.event_time
        && Tree::new(&bytes).is_ok_and(|tree| tree.root() == header.items_root);
    fits.then_some(body.items)
}

/// Finds which of header, signature and key is not as it was; of one change, the one that it is.
fn check_signature(network: &NetworkId, row: &StoredRow, key: Option<&VerifyingKey>, facts: &mut RowFacts) {
    if facts.header.is_none() {
        let text = format!("header: table {}, which is no header", words::bytes(&row.header));
        facts.differs([Change::of(Part::Header, text)]);
        return;
    }
    let signed_by = |key: &VerifyingKey| {
        <[u8; 64]>::try_from(row.signature.as_slice()).is_ok_and(|signature| {
            crate::device::header::verify(network, &row.header, &Signature(signature), key).is_ok()
        })
    };
    let hash_fits = row.header_hash == facts.header_hash.as_bytes();
    let Some(key) = key else {
        // An altered name of the client is no other client's row.
        if hash_fits {
            facts.unknown_client = true;
        } else {
            facts.parts.insert(Part::Header);
        }
        return;
    };
    let own_key = row.client_key == key.public().as_bytes();
    let key_differs = || {
        let (table, ledger) = (words::bytes(&row.client_key), words::bytes(key.public().as_bytes()));
        Change::of(Part::ClientKey, format!("client_key: table {table}, ledger {ledger}"))
    };
    if signed_by(key) {
        if !own_key {
            facts.differs([key_differs()]);
        }
        return;
    }
    let column_key = <[u8; 32]>::try_from(row.client_key.as_slice()).ok().map(PublicKey);
    let column_key = column_key.and_then(|key| VerifyingKey::parse(&key).ok());
    if !own_key && column_key.is_some_and(|key| signed_by(&key)) {
        facts.differs([key_differs()]);
    } else if !hash_fits {
        let (table, column) = (words::bytes(facts.header_hash.as_bytes()), words::bytes(&row.header_hash));
        let text = format!(
            "header: its hash is {table}, column header_hash has {column}, and its client did not sign it"
        );
        facts.differs([Change::of(Part::Header, text)]);
    } else {
        let text = format!(
            "signature: table {}, which is not the client's of this header",
            words::bytes(&row.signature)
        );
        facts.differs([Change::of(Part::Signature, text)]);
        if !own_key {
            facts.differs([key_differs()]);
        }
    }
}

fn same_items(stored: &[StoredItem], items: &[Item]) -> bool {
    stored.len() == items.len()
        && stored.iter().zip(items).enumerate().all(|(index, (stored, item))| stored.is(index, item))
}

/// Whether a digest's ranges name a message.
pub(super) fn names(digest: &HistoryDigest, (client, seq): &(ClientId, u64)) -> bool {
    let runs = digest.ranges.binary_search_by(|(of, _)| of.cmp(client));
    runs.is_ok_and(|at| digest.ranges[at].1.iter().any(|(first, last)| (first.0..=last.0).contains(seq)))
}
