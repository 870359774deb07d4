//! What a row says became of its message, against the ledger.
//!
//! A fate is no part of a row's hash: it is known later. The ledger itself has what was written, and a
//! refusal names a reason that the ledger bears out.

use super::ledger::AuditedLedger;
use super::row::RowFacts;
use super::words;
use crate::codec;
use crate::history::row::StoredFate;
use crate::ledger::index_set::IndexSet;
use crate::ledger::{Rejection, SEQ_WINDOW};
use crate::types::{ClientId, Height, MessageSeq};

/// Longer than any message's index set.
const MAX_INDEX_SET_BYTES: usize = 16 * 1024;

/// What the ledger says to a fate.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FateCheck {
    /// It is so, or there is no fate.
    Holds,
    /// It is not so.
    False(String),
    /// It is about a block, or a change, that the ledger at hand does not have yet.
    Ahead,
}

/// Checks a fate. `ahead`: the history is known to be newer than the ledger.
pub(super) fn check(ledger: &AuditedLedger, facts: &RowFacts, ahead: bool) -> FateCheck {
    let (Some(fate), Some(header)) = (&facts.fate, &facts.header) else { return FateCheck::Holds };
    let (client, seq) = (&header.client, header.seq);
    if fate.fate == "written" {
        return written(ledger, facts, fate, (client, seq));
    }
    if fate.height.is_some() || fate.items.is_some() {
        let text = words::text(&fate.fate);
        return FateCheck::False(format!(
            "table {text}, and a refused message has no block and no written items"
        ));
    }
    if refused(ledger, facts, &fate.fate, (client, seq)) {
        FateCheck::Holds
    } else if ahead {
        FateCheck::Ahead
    } else {
        let text = words::text(&fate.fate);
        FateCheck::False(format!(
            "table {text}, and the ledger does not bear out that it was refused for this reason"
        ))
    }
}

fn written(
    ledger: &AuditedLedger,
    facts: &RowFacts,
    fate: &StoredFate,
    (client, seq): (&ClientId, MessageSeq),
) -> FateCheck {
    let height = fate.height.and_then(|height| u64::try_from(height).ok()).map(Height);
    let items =
        fate.items.as_deref().and_then(|bytes| codec::decode::<MAX_INDEX_SET_BYTES, IndexSet>(bytes).ok());
    let (Some(height), Some(items)) = (height, items) else {
        return FateCheck::False("table \"written\", and not in which block, or not which items".to_owned());
    };
    let message = ledger.message(client, seq).filter(|message| message.header == facts.header_hash);
    let written = message.map(|message| message.written()).unwrap_or_default();
    if height > ledger.height() && items.iter().any(|index| !written.contains(index)) {
        return FateCheck::Ahead;
    }
    let Some(message) = message else {
        return FateCheck::False(format!("table written in block {height}, ledger nothing of this message"));
    };
    // More than one operation, in one block or in several, may have written items of it: what was
    // known after any of them is true.
    let mut known = IndexSet::default();
    for part in &message.parts {
        part.items.iter().for_each(|index| known.insert(index));
        if part.height == height && known == items {
            return FateCheck::Holds;
        }
    }
    let last = message.parts.last().map_or(Height(0), |part| part.height);
    let (table, ledger) = (told(&items), told(&written));
    FateCheck::False(format!(
        "table items {table} written up to block {height}, ledger items {ledger} up to block {last}"
    ))
}

/// The first items of a set.
fn told(items: &IndexSet) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<String> = items.iter().take(SHOWN).map(|index| index.to_string()).collect();
    let more = if items.iter().nth(SHOWN).is_some() { ", …" } else { "" };
    if shown.is_empty() { "none".to_owned() } else { format!("{}{more}", shown.join(", ")) }
}

/// Whether the ledger bears out a reason for a refusal.
fn refused(
    ledger: &AuditedLedger,
    facts: &RowFacts,
    reason: &str,
    (client, seq): (&ClientId, MessageSeq),
) -> bool {
    let Some(of) = ledger.clients.get(client) else {
        return reason == Rejection::UnknownClient.to_string();
    };
    let revoked = of
        .revoked
        .is_some_and(|(_, last_seq)| seq > last_seq && reason == Rejection::Revoked { last_seq }.to_string());
    let reused = reason == Rejection::SeqReused.to_string()
        && of.messages.get(&seq).is_some_and(|message| message.header != facts.header_hash);
    let too_old = of.messages.range(MessageSeq(seq.0.saturating_add(SEQ_WINDOW + 1))..);
    let too_old = || {
        too_old
            .into_iter()
            .any(|(highest, _)| reason == Rejection::SeqTooOld { highest: *highest }.to_string())
    };
    // Whether a block was full cannot be told later.
    revoked
        || reused
        || reason == Rejection::BlockFull.to_string()
        || (reason.contains("too far") && too_old())
}
