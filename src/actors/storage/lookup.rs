//! Messages of before a restart: what the ledger has of them.

use actix::{Handler, Message};

use super::Storage;
use crate::actors::{FinalMessage, FinalVerdict};
use crate::ledger::{self, Rejection, WindowEntry};
use crate::types::{ClientId, Hash, Height, MessageSeq};

/// Asks what the ledger has of a message that was final before the last restart; nothing while
/// that is not final.
#[derive(Debug, Message)]
#[rtype(result = "Option<FinalVerdict>")]
pub struct LookUpMessage {
    /// Its client.
    pub client: ClientId,
    /// Its seq.
    pub seq: MessageSeq,
    /// BLAKE3 of its header.
    pub header: Hash,
}

/// A message of before a restart, with whatever verdict: if the ledger knows its fate, its client
/// is told as soon as that is final, and the answer is true. Its request must not be the only way
/// to learn it: what was executed before the restart is not executed again.
#[derive(Debug, Message)]
#[rtype(result = "bool")]
pub struct TakeUp(pub FinalMessage);

impl Storage {
    /// What the ledger has of a message of this node, and the height that it rests on.
    pub(super) fn fate(&mut self, message: &FinalMessage) -> Option<(FinalVerdict, Height)> {
        let entry = self.state.written(&message.client, message.seq)?;
        let WindowEntry { header, written, height } = entry.clone();
        if header != message.header {
            return Some((FinalVerdict::Rejected(Rejection::SeqReused), height));
        }
        self.written(written.iter().collect(), height).map(|verdict| (verdict, height))
    }

    /// See [`TakeUp`].
    pub(super) fn take_up(&mut self, mut message: FinalMessage) -> bool {
        let Some((verdict, height)) = self.fate(&message) else { return false };
        if let FinalVerdict::Written { items, .. } = &verdict
            && items.len() < message.items as usize
        {
            // Another node wrote a part of it; whether that is all that the policy picks here is
            // for execution to find out.
            return false;
        }
        message.verdict = verdict;
        if height <= self.parts.store.certified_height() {
            self.parts.outlets.finals.tell(message);
            return true;
        }
        // Final with the next certificate at or above its block.
        let header = self.parts.store.header(height).ok().flatten();
        let sequence = header.map_or(self.state.head().sequence, |header| header.sequence);
        self.awaiting.entry(sequence).or_default().messages.push(message);
        true
    }

    /// See [`LookUpMessage`].
    pub(super) fn look_up(&mut self, asked: LookUpMessage) -> Option<FinalVerdict> {
        let LookUpMessage { client, seq, header } = asked;
        let record = self.state.client(&client).copied();
        if let Some(last_seq) = record.and_then(|record| record.revoked).filter(|last| seq > *last) {
            return Some(FinalVerdict::Rejected(Rejection::Revoked { last_seq }));
        }
        let entry = self.state.written(&client, seq).cloned();
        let Some(WindowEntry { header: written_header, written, height }) = entry else {
            // Below the window the ledger does not tell any more whether it wrote or refused it.
            let highest = self.state.highest(&client);
            if seq.0.saturating_add(ledger::SEQ_WINDOW) < highest.0 {
                return Some(FinalVerdict::Rejected(Rejection::SeqTooOld { highest }));
            }
            return Some(FinalVerdict::NotWritten);
        };
        if written_header != header {
            return Some(FinalVerdict::Rejected(Rejection::SeqReused));
        }
        if height > self.parts.store.certified_height() {
            return None;
        }
        self.written(written.iter().collect(), height)
    }
}

impl Handler<LookUpMessage> for Storage {
    type Result = actix::MessageResult<LookUpMessage>;

    fn handle(&mut self, message: LookUpMessage, _: &mut Self::Context) -> Self::Result {
        actix::MessageResult(self.look_up(message))
    }
}

impl Handler<TakeUp> for Storage {
    type Result = bool;

    fn handle(&mut self, TakeUp(message): TakeUp, _: &mut Self::Context) -> bool {
        self.take_up(message)
    }
}
