//! Messages that should be in a history and are not, and numbers that nobody knows of.

use super::ledger::{AuditedLedger, ClientFacts};
use super::report::{Finding, FindingKind, Findings, Gap, LostRows};
use super::runs::Runs;
use super::{AuditOptions, Seen};
use crate::ledger::SEQ_WINDOW;
use crate::types::{ClientId, Height, MessageSeq, NodeId};

/// How long a row may be on its way into its node's history and a digest: a node whose database is gone
/// stops to accept long before, and makes no digest.
const ON_ITS_WAY_MS: u64 = 60 * 60 * 1000;

/// Finds messages of the ledger that the node which admitted them neither has nor names, though it
/// had time enough. `lost` are rows that are gone from histories, known before or not.
pub(super) fn find(
    ledger: &AuditedLedger,
    seen: &Seen,
    (options, lost): (&AuditOptions, &[LostRows]),
    findings: &mut Findings,
) {
    for (client, facts) in &ledger.clients {
        if options.client.as_ref().is_some_and(|only| only != client) {
            continue;
        }
        let of_rows: Vec<&Runs> = seen.values().filter_map(|of| of.get(client)).collect();
        for (seq, message) in &facts.messages {
            if of_rows.iter().any(|runs| runs.contains(seq.0)) || ledger.is_named(client, seq.0) {
                continue;
            }
            let part = message.parts.iter().find(|part| {
                seen.contains_key(&part.node)
                    && !may_be_lost(ledger, lost, &part.node, part.height)
                    && had_time(ledger, &part.node, client, *seq, part.height)
            });
            let Some(part) = part else { continue };
            let detail = format!(
                "block {} of the ledger has items of it, admitted by this node, and neither a row nor a digest of any \
                 node has it",
                part.height
            );
            let finding = Finding::new(FindingKind::Missing, Some(part.node), detail);
            findings.push(finding.message(Some((client.clone(), seq.0))));
        }
    }
}

/// How many messages of the ledger a node brought there.
pub(super) fn admitted(ledger: &AuditedLedger, node: &NodeId) -> u64 {
    let messages = ledger.clients.values().flat_map(|client| client.messages.values());
    messages.filter(|message| message.parts.iter().any(|part| part.node == *node)).count() as u64
}

/// Whether the row of a message may have been lost with others: behind the last row that a digest covered,
/// and before the history that came after it had a digest.
fn may_be_lost(ledger: &AuditedLedger, lost: &[LostRows], node: &NodeId, height: Height) -> bool {
    lost.iter().filter(|lost| lost.node == *node).any(|lost| {
        let next = ledger.digests(node).iter().find(|digest| digest.first > lost.last);
        next.is_none_or(|next| height <= next.height)
    })
}

/// Whether the node's digests would name a message by now.
fn had_time(
    ledger: &AuditedLedger,
    node: &NodeId,
    client: &ClientId,
    seq: MessageSeq,
    height: Height,
) -> bool {
    // A node takes no message so far below another one: this one came before, and so did its row.
    let overtaken =
        ledger.named_by(node, client).is_some_and(|runs| runs.highest() > seq.0.saturating_add(SEQ_WINDOW));
    let written = ledger.time(height);
    let last = ledger.digests(node).last().map(|digest| ledger.time(digest.height));
    overtaken || last.is_some_and(|last| last.since(written) > ON_ITS_WAY_MS)
}

/// Numbers of clients that no row, digest or block has, though later ones are there.
pub(super) fn gaps(ledger: &AuditedLedger, seen: &Seen, options: &AuditOptions) -> (Vec<Gap>, u64) {
    let (mut gaps, mut omitted) = (Vec::new(), 0);
    for (client, facts) in &ledger.clients {
        if options.client.as_ref().is_some_and(|only| only != client) {
            continue;
        }
        let (known, highest) = known(ledger, seen, client, facts);
        // What lies closer to the highest may be on its way.
        for (first, last) in known.gaps(highest.saturating_sub(SEQ_WINDOW + 1)) {
            if gaps.len() < options.max_findings {
                gaps.push(Gap { client: client.clone(), first, last });
            } else {
                omitted += 1;
            }
        }
    }
    (gaps, omitted)
}

/// The numbers of a client that somebody knows of, or that it said it never used; and the highest used one.
fn known(ledger: &AuditedLedger, seen: &Seen, client: &ClientId, facts: &ClientFacts) -> (Runs, u64) {
    let mut known = ledger.all_named(client);
    for runs in seen.values().filter_map(|of| of.get(client)) {
        runs.iter().for_each(|(first, last)| known.insert(first, last));
    }
    facts.messages.keys().for_each(|seq| known.insert(seq.0, seq.0));
    let highest = known.highest();
    facts.unused.iter().for_each(|(first, last)| known.insert(first, last));
    (known, highest)
}
