//! Which seqs of a client are new, seen, reused or too old (docs/PROTOCOL.md section 6).
//!
//! ```text
//!   too old │ 256 numbers below the highest │ highest │ new
//! ──────────┼───────────────────────────────┼─────────┼──────▶ seq
//! ```
//!
//! Within the window the header hash decides: the same message again is acked again, another one
//! under the same seq is refused for good. The sequence decides, never a time. A caller asks with
//! [`SeqWindow::judge`], and calls [`SeqWindow::record`] only after the message was verified.

use std::collections::BTreeMap;

use super::codes::ErrorCode;
use crate::types::{Hash, MessageSeq};

/// How many numbers below the highest are still told apart.
pub const SEQ_WINDOW: u64 = 256;

/// What a seq is to a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Not seen: accept the message.
    New,
    /// The same message was accepted before: ack it again.
    Seen,
    /// Another message was accepted under this seq: refuse, and report a security event.
    Reused,
    /// Below the window: refuse, since nobody can tell any more.
    TooOld,
}

impl Verdict {
    /// The code to refuse with, if the verdict is to refuse.
    pub const fn refusal(self) -> Option<ErrorCode> {
        match self {
            Self::New | Self::Seen => None,
            Self::Reused => Some(ErrorCode::SeqReused),
            Self::TooOld => Some(ErrorCode::SeqTooOld),
        }
    }
}

/// The highest seq accepted from one client and the header hashes of the 256 numbers below it, as
/// far as they were accepted. Never holds more than 257 entries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SeqWindow {
    accepted: BTreeMap<MessageSeq, Hash>,
}

impl SeqWindow {
    /// Nothing accepted yet.
    pub const fn new() -> Self {
        Self { accepted: BTreeMap::new() }
    }

    /// The highest seq accepted; 0 if none.
    pub fn highest(&self) -> MessageSeq {
        self.accepted.last_key_value().map_or(MessageSeq(0), |(seq, _)| *seq)
    }

    /// What the message with this seq and header hash is. Changes nothing.
    pub fn judge(&self, seq: MessageSeq, header: &Hash) -> Verdict {
        if seq < self.lowest() {
            return Verdict::TooOld;
        }
        match self.accepted.get(&seq) {
            None => Verdict::New,
            Some(accepted) if accepted == header => Verdict::Seen,
            Some(_) => Verdict::Reused,
        }
    }

    /// Remembers an accepted message and forgets what falls below the window. A seq that was
    /// accepted before keeps its first header. In any order, so that a log can be replayed.
    pub fn record(&mut self, seq: MessageSeq, header: Hash) {
        if seq < self.lowest() {
            return;
        }
        self.accepted.entry(seq).or_insert(header);
        let lowest = self.lowest();
        while self.accepted.first_key_value().is_some_and(|(first, _)| *first < lowest) {
            self.accepted.pop_first();
        }
    }

    /// The lowest number that is not too old.
    fn lowest(&self) -> MessageSeq {
        MessageSeq(self.highest().0.saturating_sub(SEQ_WINDOW))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ONE: Hash = Hash([1; 32]);
    const TWO: Hash = Hash([2; 32]);

    fn judge(window: &SeqWindow, seq: u64, header: Hash) -> Verdict {
        window.judge(MessageSeq(seq), &header)
    }

    #[test]
    fn the_first_message_may_have_any_seq() {
        assert_eq!(judge(&SeqWindow::new(), 1, ONE), Verdict::New);
        assert_eq!(judge(&SeqWindow::new(), MessageSeq::MAX.0, ONE), Verdict::New);
    }

    #[test]
    fn the_table_of_the_protocol_holds() {
        let mut window = SeqWindow::new();
        window.record(MessageSeq(1000), ONE);
        assert_eq!(window.highest(), MessageSeq(1000));
        assert_eq!(judge(&window, 1001, ONE), Verdict::New);
        assert_eq!(judge(&window, 999, ONE), Verdict::New);
        assert_eq!(judge(&window, 744, ONE), Verdict::New);
        assert_eq!(judge(&window, 743, ONE), Verdict::TooOld);
        assert_eq!(judge(&window, 1000, ONE), Verdict::Seen);
        assert_eq!(judge(&window, 1000, TWO), Verdict::Reused);
    }

    #[test]
    fn judging_moves_nothing() {
        let window = SeqWindow::new();
        judge(&window, 5000, ONE);
        assert_eq!(judge(&window, 1, ONE), Verdict::New);
    }

    #[test]
    fn only_reuse_and_age_are_refused() {
        assert_eq!(Verdict::New.refusal(), None);
        assert_eq!(Verdict::Seen.refusal(), None);
        assert_eq!(Verdict::Reused.refusal(), Some(ErrorCode::SeqReused));
        assert_eq!(Verdict::TooOld.refusal(), Some(ErrorCode::SeqTooOld));
    }

    proptest! {
        #[test]
        fn a_window_agrees_with_a_memory_of_everything(messages in prop::collection::vec((1_u64..1200, 0_u8..3), 0..600)) {
            let mut window = SeqWindow::new();
            let mut all: BTreeMap<u64, Hash> = BTreeMap::new();
            for (seq, header) in messages {
                let header = Hash([header; 32]);
                let highest = all.last_key_value().map_or(0, |(seq, _)| *seq);
                let expected = match all.get(&seq) {
                    _ if seq + SEQ_WINDOW < highest => Verdict::TooOld,
                    None => Verdict::New,
                    Some(first) if *first == header => Verdict::Seen,
                    Some(_) => Verdict::Reused,
                };
                prop_assert_eq!(window.judge(MessageSeq(seq), &header), expected);
                if expected == Verdict::New {
                    window.record(MessageSeq(seq), header);
                    all.insert(seq, header);
                }
                prop_assert!(window.accepted.len() as u64 <= SEQ_WINDOW + 1);
            }
        }

        #[test]
        fn the_order_of_replay_does_not_matter(seqs in prop::collection::btree_set(1_u64..600, 1..200), seed in any::<u64>()) {
            let mut forward = SeqWindow::new();
            for seq in &seqs {
                forward.record(MessageSeq(*seq), ONE);
            }
            let mut shuffled: Vec<_> = seqs.into_iter().collect();
            shuffled.sort_unstable_by_key(|seq| blake3::hash(&(seq ^ seed).to_le_bytes()).as_bytes().to_vec());
            let mut replayed = SeqWindow::new();
            for seq in shuffled {
                replayed.record(MessageSeq(seq), ONE);
            }
            prop_assert_eq!(forward, replayed);
        }
    }
}
