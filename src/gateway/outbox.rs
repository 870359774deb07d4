//! What a gateway has not seen acknowledged: every message with its numbers, bytes and where it is on its way.
//!
//! A message waits, is sent, has its PUBACK, and is gone with its acknowledgement; a new payload key makes all of
//! them wait again, and a node that is overloaded makes one wait for a while. What each event asks (the next
//! message that waits, how many are without PUBACK) is kept, since a full outbox holds a window of 256 messages
//! and each of them brings three events.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::journal::Stored;
use crate::types::MessageSeq;

#[derive(Clone, Copy, PartialEq)]
enum Transfer {
    /// To be sent; in [`Outbox::waiting`].
    Waiting,
    Sent {
        pubacked: bool,
    },
    /// Waits from then on.
    Later(Duration),
}

struct Outgoing {
    stored: Arc<Stored>,
    durable: bool,
    transfer: Transfer,
}

/// The messages that are not finished.
#[derive(Default)]
pub(super) struct Outbox {
    messages: BTreeMap<MessageSeq, Outgoing>,
    waiting: BTreeSet<MessageSeq>,
    later: usize,
    without_puback: usize,
    bytes: usize,
}

impl Outbox {
    /// What an earlier run left in the journal.
    pub(super) fn remembered(messages: BTreeMap<MessageSeq, Arc<Stored>>) -> Self {
        let mut outbox = Self::default();
        for stored in messages.into_values() {
            outbox.insert(stored, true);
        }
        outbox
    }

    /// Messages that are not finished.
    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    /// Bytes of their contents.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The lowest number in it.
    pub(super) fn oldest(&self) -> Option<MessageSeq> {
        self.messages.first_key_value().map(|(seq, _)| *seq)
    }

    pub(super) fn get(&self, seq: MessageSeq) -> Option<&Arc<Stored>> {
        self.messages.get(&seq).map(|outgoing| &outgoing.stored)
    }

    /// Takes a message that is not in the journal yet.
    pub(super) fn add(&mut self, stored: Arc<Stored>) {
        self.insert(stored, false);
    }

    fn insert(&mut self, stored: Arc<Stored>, durable: bool) {
        let seq = stored.seq;
        self.remove(seq);
        self.bytes += stored.content.len();
        self.waiting.insert(seq);
        self.messages.insert(seq, Outgoing { stored, durable, transfer: Transfer::Waiting });
    }

    /// The message is in the journal.
    pub(super) fn durable(&mut self, seq: MessageSeq) {
        if let Some(outgoing) = self.messages.get_mut(&seq) {
            outgoing.durable = true;
        }
    }

    /// The broker has the message.
    pub(super) fn pubacked(&mut self, seq: MessageSeq) {
        if let Some(Outgoing { transfer: Transfer::Sent { .. }, .. }) = self.messages.get(&seq) {
            self.set(seq, Transfer::Sent { pubacked: true });
        }
    }

    /// The message is finished.
    pub(super) fn remove(&mut self, seq: MessageSeq) {
        if let Some(outgoing) = self.messages.remove(&seq) {
            self.bytes -= outgoing.stored.content.len();
            self.leave(seq, outgoing.transfer);
        }
    }

    /// The message waits, from `due` on.
    pub(super) fn later(&mut self, seq: MessageSeq, due: Duration) {
        self.set(seq, Transfer::Later(due));
    }

    /// All of them wait.
    pub(super) fn all_wait(&mut self) {
        for outgoing in self.messages.values_mut() {
            outgoing.transfer = Transfer::Waiting;
        }
        self.waiting = self.messages.keys().copied().collect();
        (self.later, self.without_puback) = (0, 0);
    }

    /// Those that were to wait until now do.
    pub(super) fn due(&mut self, now: Duration) {
        if self.later == 0 {
            return;
        }
        let due = |outgoing: &Outgoing| matches!(outgoing.transfer, Transfer::Later(due) if now >= due);
        let due = self.messages.iter().filter(|(_, outgoing)| due(outgoing)).map(|(seq, _)| *seq);
        for seq in due.collect::<Vec<_>>() {
            self.set(seq, Transfer::Waiting);
        }
    }

    /// Whether an answer to any of them may come.
    pub(super) fn any_sent(&self) -> bool {
        self.messages.len() > self.waiting.len() + self.later
    }

    /// Messages that the broker has not acknowledged.
    pub(super) fn without_puback(&self) -> usize {
        self.without_puback
    }

    /// The next message to be sent: the lowest number that waits, once it is in the journal.
    pub(super) fn next(&self) -> Option<&Arc<Stored>> {
        let outgoing = self.messages.get(self.waiting.first()?)?;
        outgoing.durable.then_some(&outgoing.stored)
    }

    /// The message is on its way.
    pub(super) fn sent(&mut self, seq: MessageSeq) {
        self.set(seq, Transfer::Sent { pubacked: false });
    }

    fn set(&mut self, seq: MessageSeq, to: Transfer) {
        let Some(outgoing) = self.messages.get_mut(&seq) else { return };
        let from = std::mem::replace(&mut outgoing.transfer, to);
        self.leave(seq, from);
        match to {
            Transfer::Waiting => drop(self.waiting.insert(seq)),
            Transfer::Sent { pubacked } => self.without_puback += usize::from(!pubacked),
            Transfer::Later(_) => self.later += 1,
        }
    }

    fn leave(&mut self, seq: MessageSeq, from: Transfer) {
        match from {
            Transfer::Waiting => drop(self.waiting.remove(&seq)),
            Transfer::Sent { pubacked } => self.without_puback -= usize::from(!pubacked),
            Transfer::Later(_) => self.later -= 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::{Hash, Stream};

    #[derive(Debug, Clone)]
    enum Step {
        Add(u64),
        Durable(u64),
        Sent,
        PubAcked(u64),
        Remove(u64),
        Later(u64, u64),
        AllWait,
        Due(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let seq = || 1..12_u64;
        let step = prop_oneof![
            3 => seq().prop_map(Step::Add),
            3 => seq().prop_map(Step::Durable),
            4 => Just(Step::Sent),
            3 => seq().prop_map(Step::PubAcked),
            2 => seq().prop_map(Step::Remove),
            2 => (seq(), 0..9_u64).prop_map(|(seq, due)| Step::Later(seq, due)),
            1 => Just(Step::AllWait),
            1 => (0..9_u64).prop_map(Step::Due),
        ];
        proptest::collection::vec(step, 0..80)
    }

    fn message(seq: u64) -> Arc<Stored> {
        let content = vec![0; usize::try_from(seq).unwrap()];
        Arc::new(Stored {
            seq: MessageSeq(seq),
            stream: Stream::new("env").unwrap(),
            header: Hash([0; 32]),
            content,
        })
    }

    proptest! {
        #[test]
        fn what_is_kept_is_what_counting_says(steps in steps()) {
            let mut outbox = Outbox::default();
            for step in steps {
                match step {
                    Step::Add(seq) => outbox.add(message(seq)),
                    Step::Durable(seq) => outbox.durable(MessageSeq(seq)),
                    Step::Sent => {
                        if let Some(seq) = outbox.next().map(|stored| stored.seq) {
                            outbox.sent(seq);
                        }
                    }
                    Step::PubAcked(seq) => outbox.pubacked(MessageSeq(seq)),
                    Step::Remove(seq) => outbox.remove(MessageSeq(seq)),
                    Step::Later(seq, due) => outbox.later(MessageSeq(seq), Duration::from_secs(due)),
                    Step::AllWait => outbox.all_wait(),
                    Step::Due(now) => outbox.due(Duration::from_secs(now)),
                }
                let count = |of: fn(&Transfer) -> bool| {
                    outbox.messages.values().filter(|outgoing| of(&outgoing.transfer)).count()
                };
                let first = outbox.messages.iter().find(|(_, outgoing)| outgoing.transfer == Transfer::Waiting);
                let first = first.filter(|(_, outgoing)| outgoing.durable).map(|(seq, _)| *seq);
                prop_assert_eq!(outbox.next().map(|stored| stored.seq), first);
                prop_assert_eq!(outbox.any_sent(), count(|to| matches!(to, Transfer::Sent { .. })) > 0);
                let without = count(|to| matches!(to, Transfer::Sent { pubacked: false }));
                prop_assert_eq!(outbox.without_puback(), without);
                let bytes = outbox.messages.values().map(|outgoing| outgoing.stored.content.len()).sum::<usize>();
                prop_assert_eq!(outbox.bytes(), bytes);
                prop_assert_eq!(outbox.waiting.len(), count(|to| *to == Transfer::Waiting));
            }
        }
    }
}
