//! What an audit says: the verdict, what was checked, and each thing that is not as it was.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::words;
use crate::types::{ClientId, Hash, Height, NetworkId, NodeId, Timestamp};

/// The verdict of an audit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AuditVerdict {
    /// All that could be checked is as it was, and all was there to be checked.
    Clean,
    /// Something is not as it was; see the findings.
    Tampering,
    /// Nothing is known to be wrong, and not everything could be checked; see `unchecked`.
    Unchecked,
}

/// What kind of finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// A row is not as it was; `what` says which of its parts.
    Altered,
    /// A row that was there is gone.
    Deleted,
    /// A row is there that was not.
    Added,
    /// A row stands in the place of another one.
    Reordered,
    /// The ledger has a message that this history should have and no digest names.
    Missing,
    /// A row's decision is not what the policies in force say.
    PolicyBroken,
    /// A digest in the history is not the one that the node made; `what` says which of its parts.
    Digest,
}

/// A part of a row or of a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// The header that the client signed.
    Header,
    /// The client's signature.
    Signature,
    /// The client's key.
    ClientKey,
    /// The body.
    Body,
    /// The rows of table `items`.
    Items,
    /// What the node decided.
    Decision,
    /// The row of table `fates`.
    Fate,
    /// The column `client`.
    Client,
    /// The column `seq`.
    Seq,
    /// The column `stream`.
    Stream,
    /// The column `event_time`.
    EventTime,
    /// The column `header_hash`.
    HeaderHash,
    /// Something that is not of the kind that belongs there, so that the row cannot be read.
    Unreadable,
    /// The row as a whole: which part cannot be told.
    Row,
    /// The column `node` or `number`.
    Place,
    /// Of a digest: the columns `first` or `count`.
    Count,
    /// Of a digest: the signed content.
    Content,
    /// Of a digest: the hashes of its rows.
    RowHashes,
    /// Of a digest: the column `height`.
    Height,
    /// The digest is gone, or one that the ledger does not have was put there.
    Digest,
}

/// One thing that is not as it was. What does not concern it is left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What kind.
    pub kind: FindingKind,
    /// Whose history.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// The row's number in it; the first, if several are named at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub row: Option<u64>,
    /// The last of several rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_row: Option<u64>,
    /// The number of the digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<u64>,
    /// The client, as far as it can be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<ClientId>,
    /// The message's seq, as far as it can be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// The item's index in the message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub item: Option<u32>,
    /// Which parts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub what: Vec<Part>,
    /// The same for a person.
    pub detail: String,
}

impl Finding {
    pub(super) fn new(kind: FindingKind, node: Option<NodeId>, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        let (row, last_row, digest) = (None, None, None);
        Self {
            kind,
            node,
            row,
            last_row,
            digest,
            client: None,
            seq: None,
            item: None,
            what: Vec::new(),
            detail,
        }
    }

    pub(super) const fn row(mut self, number: u64) -> Self {
        self.row = Some(number);
        self
    }

    pub(super) fn rows(mut self, first: u64, last: u64) -> Self {
        self.row = Some(first);
        self.last_row = Some(last).filter(|last| *last > first);
        self
    }

    pub(super) const fn digest(mut self, number: u64) -> Self {
        self.digest = Some(number);
        self
    }

    pub(super) fn message(mut self, message: Option<(ClientId, u64)>) -> Self {
        if let Some((client, seq)) = message {
            (self.client, self.seq) = (Some(client), Some(seq));
        }
        self
    }

    /// Takes in a finding about the rows that follow.
    fn prolong(&mut self, next: &Self, last: u64, why: &str) {
        self.last_row = Some(last);
        self.digest = self.digest.filter(|digest| next.digest == Some(*digest));
        self.client = self.client.take().filter(|client| next.client.as_ref() == Some(client));
        self.seq = None;
        let rows = last - self.row.unwrap_or(last) + 1;
        self.detail = format!("{}: {why}", words::count(rows, "row", "rows"));
    }

    pub(super) fn what(mut self, parts: impl IntoIterator<Item = Part>) -> Self {
        self.what.extend(parts);
        self
    }
}

/// What was replayed of the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LedgerSummary {
    /// Its network.
    pub network: NetworkId,
    /// The height of its last block.
    pub height: Height,
    /// The hash of that block.
    pub block: Hash,
    /// When it was made.
    pub time: Timestamp,
    /// Registered clients.
    pub clients: usize,
    /// The version of the write policies in force at its end.
    pub policies: u64,
    /// History digests, of all nodes.
    pub digests: usize,
}

/// Rows that the ledger has digests of and that are gone from the beginning of a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LostRows {
    /// Whose history.
    pub node: NodeId,
    /// The first of them.
    pub first: u64,
    /// The last of them.
    pub last: u64,
}

/// What was checked of one node's history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeReport {
    /// The node.
    pub node: NodeId,
    /// Rows read.
    pub rows: u64,
    /// Of those, of other clients than the one that was asked for: held against digests, and not looked into.
    pub skipped: u64,
    /// Of those, proven to be as they were by a digest on the ledger.
    pub covered: u64,
    /// Of those, a digest on the ledger is of their place, and they are not proven to be as they were: rows that were
    /// altered, added or moved.
    pub unproven: u64,
    /// Of those, not covered by a digest on the ledger yet: their signatures, bodies, items, decisions and
    /// fates were checked, and that none was taken away cannot be.
    pub not_covered: u64,
    /// Data items checked.
    pub items: u64,
    /// Decisions about items that were repeated.
    pub decisions: u64,
    /// Of those, the item that they were judged against is not at hand.
    pub unjudged: u64,
    /// Rows of which the ledger has items.
    pub on_ledger: u64,
    /// Of those, messages that other nodes alone brought to the ledger.
    pub brought_by_others: u64,
    /// Rows of which something was to be written, and the ledger has not all of it (yet), nor refused it.
    pub not_final: u64,
    /// Rows of a client that was revoked, with a seq above its last one.
    pub after_revocation: u64,
    /// Digests of this node on the ledger.
    pub digests: u64,
    /// Of those, newer than all in the history, which was copied before they were made; all their rows are
    /// proven.
    pub newer_digests: u64,
    /// Digests in the history that are not on the ledger yet.
    pub pending_digests: u64,
    /// Rows that were lost with the history before it was begun anew.
    pub lost: Vec<LostRows>,
    /// The ledger has digests of rows above all of these, of which this history has nothing: it was copied before they
    /// came, or they were taken away.
    pub ends_early: Option<EndsEarly>,
}

/// Where a history ends that the ledger goes beyond.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct EndsEarly {
    /// The last row in it.
    pub last_row: u64,
    /// The last row that a digest on the ledger has.
    pub digests_to: u64,
    /// The block of the first digest that has later rows.
    pub block: Height,
}

impl NodeReport {
    pub(super) const fn new(node: NodeId) -> Self {
        Self {
            node,
            rows: 0,
            skipped: 0,
            covered: 0,
            unproven: 0,
            not_covered: 0,
            items: 0,
            decisions: 0,
            unjudged: 0,
            on_ledger: 0,
            brought_by_others: 0,
            not_final: 0,
            after_revocation: 0,
            digests: 0,
            newer_digests: 0,
            pending_digests: 0,
            lost: Vec::new(),
            ends_early: None,
        }
    }
}

/// A node that has digests on the ledger and nothing in this history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct AbsentNode {
    /// The node.
    pub node: NodeId,
    /// Its digests on the ledger.
    pub digests: u64,
}

/// Seqs of a client that no digest names, no row has and the ledger does not have, though it has later ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// The client.
    pub client: ClientId,
    /// The first of them.
    pub first: u64,
    /// The last of them.
    pub last: u64,
}

/// What an audit says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuditReport {
    /// The verdict.
    pub verdict: AuditVerdict,
    /// Rows of all nodes that were read.
    pub rows: u64,
    /// Of those, no digest on the ledger has them yet: whether one of them was taken away or put there cannot be told.
    /// If that is so of all of them, the verdict is `unchecked`.
    pub not_yet_proven: u64,
    /// Rows that the ledger has digests of and that are gone from the beginning of a history, and nobody said that
    /// this is known.
    pub rows_gone: u64,
    /// The ledger.
    pub ledger: LedgerSummary,
    /// Each node whose history was read.
    pub nodes: Vec<NodeReport>,
    /// Nodes of which the history has nothing: each node may have a database of its own.
    pub absent: Vec<AbsentNode>,
    /// What is not as it was.
    pub findings: Vec<Finding>,
    /// Further findings, beyond the limit.
    pub omitted_findings: u64,
    /// What could not be checked, and why.
    pub unchecked: Vec<String>,
    /// What to think of before somebody is blamed; empty if the verdict is clean.
    pub notes: Vec<String>,
    /// Messages of which no digest, row or block of any node knows (yet). No tampering: a refused message leaves
    /// one, too.
    pub gaps: Vec<Gap>,
    /// Further ones, beyond the limit.
    pub omitted_gaps: u64,
}

impl fmt::Display for FindingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Altered => "altered",
            Self::Deleted => "deleted",
            Self::Added => "added",
            Self::Reordered => "reordered",
            Self::Missing => "missing",
            Self::PolicyBroken => "policy broken",
            Self::Digest => "digest",
        })
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Header => "header",
            Self::Signature => "signature",
            Self::ClientKey => "client_key",
            Self::Body => "body",
            Self::Items => "items",
            Self::Decision => "decision",
            Self::Fate => "fate",
            Self::Client => "client",
            Self::Seq => "seq",
            Self::Stream => "stream",
            Self::EventTime => "event_time",
            Self::HeaderHash => "header_hash",
            Self::Unreadable => "unreadable",
            Self::Row => "row",
            Self::Place => "place",
            Self::Count => "count",
            Self::Content => "content",
            Self::RowHashes => "row_hashes",
            Self::Height => "height",
            Self::Digest => "digest",
        })
    }
}

/// Findings up to a limit, and how many there are beyond it.
#[derive(Debug)]
pub(super) struct Findings {
    pub(super) kept: Vec<Finding>,
    pub(super) omitted: u64,
    limit: usize,
    /// The last run of each kind, which the next row may prolong.
    runs: BTreeMap<(FindingKind, Option<NodeId>), Run>,
}

/// Rows one after the other that the same became of.
#[derive(Debug)]
struct Run {
    last: u64,
    what: Vec<Part>,
    why: String,
    /// The finding that tells of it; none if it is beyond the limit.
    at: Option<usize>,
}

impl Findings {
    pub(super) const fn new(limit: usize) -> Self {
        Self { kept: Vec::new(), omitted: 0, limit, runs: BTreeMap::new() }
    }

    /// Tells of rows that are deleted, added or moved; those that go on where the last ones ended, for the same
    /// reason, are told with them. `why` is what is said of several.
    pub(super) fn push_run(&mut self, finding: Finding, why: &str) {
        let Some(first) = finding.row else { return self.push(finding) };
        let (key, last) = ((finding.kind, finding.node), finding.last_row.unwrap_or(first));
        let run = self.runs.get_mut(&key);
        if let Some(run) =
            run.filter(|run| run.last + 1 == first && run.why == why && run.what == finding.what)
        {
            run.last = last;
            if let Some(told) = run.at.and_then(|at| self.kept.get_mut(at)) {
                told.prolong(&finding, last, why);
            }
            return;
        }
        let at = Some(self.kept.len()).filter(|at| *at < self.limit);
        self.runs.insert(key, Run { last, what: finding.what.clone(), why: why.to_owned(), at });
        self.push(finding);
    }

    pub(super) fn push(&mut self, finding: Finding) {
        if self.kept.len() < self.limit {
            self.kept.push(finding);
        } else {
            self.omitted += 1;
        }
    }
}
