//! Decisions, made again: with the version of the policies that a decision names, against the item
//! that it names.
//!
//! That item stands on the ledger, or in the same node's history as one that was to be written: it may
//! have been refused since. Whether there was a newer one is not asked: what a node knew at that
//! moment is its own word, so late and concurrent messages are no contradiction.

use std::collections::HashMap;

use super::ledger::AuditedLedger;
use super::row::{RowFacts, RowJob};
use crate::device::Item;
use crate::history::{HistoryError, HistoryReader};
use crate::policy::{Base, BaseRef, ItemDecision, Verdict, WritePolicy};
use crate::types::{ClientId, MessageSeq, NodeId};

/// Rows of one message in one history: one, unless the client used a seq twice.
const ROWS_OF_MESSAGE: u32 = 8;

/// What repeating a decision gave.
#[derive(Debug, Default)]
pub(super) struct Repeated {
    /// Items that were decided otherwise than the policies say.
    pub(super) broken: Vec<(u32, String)>,
    /// Items that were judged against one that is not at hand.
    pub(super) no_base: Vec<(u32, BaseRef)>,
    /// The version of the policies is none of this ledger's.
    pub(super) unknown_version: Option<u64>,
    /// How many items were judged.
    pub(super) judged: u64,
}

/// Repeats the decisions of one node.
pub(super) struct Judge<'a> {
    pub(super) ledger: &'a AuditedLedger,
    pub(super) reader: &'a dyn HistoryReader,
    pub(super) node: NodeId,
    /// Messages of this node that were looked for, of one page of rows.
    pub(super) looked_for: HashMap<(ClientId, MessageSeq), Vec<RowFacts>>,
}

impl Judge<'_> {
    /// Makes the decision about a row again.
    pub(super) async fn repeat(&mut self, facts: &RowFacts) -> Result<Repeated, HistoryError> {
        let mut repeated = Repeated::default();
        let (Some(header), Some(decision)) = (&facts.header, &facts.decision) else { return Ok(repeated) };
        let version = usize::try_from(decision.policies).ok().and_then(|at| self.ledger.policies.get(at));
        let Some(version) = version else {
            repeated.unknown_version = Some(decision.policies);
            return Ok(repeated);
        };
        for ((index, item), decided) in (0..).zip(&facts.items).zip(&decision.items) {
            repeated.judged += 1;
            let policy = version.set.policy(header.stream.as_str(), item);
            match self.judge(policy, item, decided).await? {
                Judged::Agrees => {}
                Judged::NoBase(base) => repeated.no_base.push((index, base)),
                Judged::Broken(verdict) => {
                    let detail = told(policy, item, decided, verdict, decision.policies);
                    repeated.broken.push((index, detail));
                }
            }
        }
        Ok(repeated)
    }

    async fn judge(
        &mut self,
        policy: WritePolicy,
        item: &Item,
        decided: &ItemDecision,
    ) -> Result<Judged, HistoryError> {
        let judge = |base: Option<&Base>| policy.judge(base, item.event_time, &item.value);
        let Some(at) = decided.base else {
            let verdict = judge(None);
            return Ok(if verdict == decided.verdict { Judged::Agrees } else { Judged::Broken(verdict) });
        };
        if !policy.needs_base() {
            return Ok(Judged::Broken(judge(None)));
        }
        let on_ledger = self.ledger.item(&item.client, at.seq, at.index);
        let on_ledger = on_ledger.filter(|written| self.ledger.same_name(written, item));
        let mut verdict = on_ledger.map(|written| judge(Some(&written.base)));
        if verdict == Some(decided.verdict) {
            return Ok(Judged::Agrees);
        }
        // The node's own message of that seq, which the ledger refused or does not have yet.
        for own in self.own(&item.client, at.seq).await? {
            let picked = own.decision.as_ref().and_then(|decision| decision.items.get(at.index as usize));
            let named = own.items.get(at.index as usize);
            let (Some(picked), Some(named)) = (picked, named) else { continue };
            let same = (&named.device, &named.service, named.num) == (&item.device, &item.service, item.num);
            if same && picked.verdict.writes() {
                let base = Base { event_time: named.event_time, value: named.value.clone() };
                let own_verdict = judge(Some(&base));
                if own_verdict == decided.verdict {
                    return Ok(Judged::Agrees);
                }
                verdict = Some(own_verdict);
            }
        }
        Ok(verdict.map_or(Judged::NoBase(at), Judged::Broken))
    }

    /// This node's rows of a message that are sound.
    async fn own(&mut self, client: &ClientId, seq: MessageSeq) -> Result<&[RowFacts], HistoryError> {
        let asked = (client.clone(), seq);
        if !self.looked_for.contains_key(&asked) {
            let rows = self.reader.rows_of(&self.node, client, seq, ROWS_OF_MESSAGE).await?;
            let key = self.ledger.clients.get(client).map(|client| client.verifying);
            let check = |row| RowJob { row, key, skip: false }.check(&self.ledger.network);
            let found = rows.into_iter().map(check).filter(|facts| facts.parts.is_empty()).collect();
            self.looked_for.insert(asked.clone(), found);
        }
        Ok(self.looked_for.get(&asked).map_or(&[], Vec::as_slice))
    }
}

enum Judged {
    Agrees,
    /// The policies say this.
    Broken(Verdict),
    NoBase(BaseRef),
}

fn told(policy: WritePolicy, item: &Item, decided: &ItemDecision, verdict: Verdict, version: u64) -> String {
    let Item { device, service, num, .. } = item;
    let against = decided.base.map(|base| format!(" against item {} of message {}", base.index, base.seq));
    format!(
        "{device}/{service}/{num} was decided `{}`{}, but version {version} of the policies ({policy}) says `{}`{}",
        decided.verdict.name(),
        against.unwrap_or_default(),
        verdict.name(),
        if verdict.writes() && !decided.verdict.writes() { ": it was to be written and was not" } else { "" }
    )
}
