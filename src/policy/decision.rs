//! Decisions: what a node's write policy said about the items of one message, and against what.
//!
//! A decision is made once, by the node that admits the message, and kept with the message: a
//! restart repeats it instead of judging anew, the history stores it beside the row, and the audit
//! makes it again. For that it names the version of the policies that were in force and, for each
//! item that was judged against an earlier one, which item that was. The client, device, service and
//! number of the earlier item are those of the item itself, so a seq and an index name it.
//!
//! ```text
//! policies (8 bytes BE) ‖ number of items (8 bytes BE) ‖ for each item:
//!     verdict (1 byte) ‖ 0x00                                      judged without an earlier item
//!     verdict (1 byte) ‖ 0x01 ‖ seq (8 bytes BE) ‖ index (4 BE)    judged against that item
//! ```

use bincode::{Decode, Encode};

use super::{Base, Verdict, WritePolicy};
use crate::codec::{self, CodecError};
use crate::device::Value;
use crate::device::header::MAX_ITEMS;
use crate::types::{MessageSeq, Timestamp};

/// The most canonical bytes of a decision: one of a message with the most items, all of them judged
/// against an earlier one.
pub const MAX_DECISION_BYTES: usize = 8 + 8 + MAX_ITEMS as usize * (1 + 1 + 8 + 4);

/// Which written item another was judged against: an item of the same name, of the same client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct BaseRef {
    /// The seq of its message.
    pub seq: MessageSeq,
    /// Its index in that message.
    pub index: u32,
}

/// The newest written (or submitted) value of a data item, and which item that is.
#[derive(Debug, Clone, PartialEq)]
pub struct LastWritten {
    /// Which item of which message.
    pub at: BaseRef,
    /// Its event time and value.
    pub base: Base,
}

impl LastWritten {
    /// Whether it is the later of two values of one item: by event time, then by seq. The order in
    /// which values became known makes no difference.
    pub fn is_newer_than(&self, other: &Self) -> bool {
        (self.base.event_time, self.at) > (other.base.event_time, other.at)
    }
}

/// What became of one item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
pub struct ItemDecision {
    /// Whether it is written, and why.
    pub verdict: Verdict,
    /// The written (or submitted) item that it was judged against; none if there was none, or if
    /// the policy asks for none.
    pub base: Option<BaseRef>,
}

/// What became of all items of a message.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Decision {
    /// The version of the policies that were in force.
    pub policies: u64,
    /// One for each item of the message, in its order.
    pub items: Vec<ItemDecision>,
}

impl ItemDecision {
    /// Judges a value by `policy` against the newest written (or submitted) item of its name.
    pub fn make(
        policy: WritePolicy,
        last: Option<&LastWritten>,
        event_time: Timestamp,
        value: &Value,
    ) -> Self {
        let last = last.filter(|_| policy.needs_base());
        let verdict = policy.judge(last.map(|last| &last.base), event_time, value);
        Self { verdict, base: last.map(|last| last.at) }
    }
}

impl Decision {
    /// The canonical bytes.
    pub fn bytes(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// Reads canonical bytes.
    ///
    /// # Errors
    /// [`CodecError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode::<MAX_DECISION_BYTES, Self>(bytes)
    }

    /// The indexes, ascending, of the items that are written.
    pub fn picked(&self) -> Vec<u32> {
        (0..).zip(&self.items).filter(|(_, item)| item.verdict.writes()).map(|(index, _)| index).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Interval;

    const AT: BaseRef = BaseRef { seq: MessageSeq(7), index: 1 };

    fn last() -> LastWritten {
        LastWritten { at: AT, base: Base { event_time: Timestamp(1_000), value: Value::Integer(20) } }
    }

    #[test]
    fn a_decision_has_the_bytes_that_the_module_says() {
        let first = ItemDecision { verdict: Verdict::First, base: None };
        let quiet = ItemDecision { verdict: Verdict::Quiet, base: Some(AT) };
        let decision = Decision { policies: 3, items: vec![first, quiet] };
        let hex = "0000000000000003 0000000000000002 01 00 06 01 0000000000000007 00000001";
        assert_eq!(hex::encode(decision.bytes()), hex.replace(' ', ""));
        assert_eq!(Decision::parse(&decision.bytes()), Ok(decision.clone()));
        assert_eq!(decision.picked(), [0]);
    }

    #[test]
    fn what_is_no_decision_is_refused() {
        let good =
            Decision { policies: 1, items: vec![ItemDecision { verdict: Verdict::First, base: None }] };
        let bytes = good.bytes();
        for len in 0..bytes.len() {
            assert!(Decision::parse(&bytes[..len]).is_err());
        }
        let mut unknown = bytes.clone();
        unknown[16] = 7;
        assert!(Decision::parse(&unknown).is_err(), "no verdict has this byte");
        assert!(Decision::parse(&[bytes, vec![0]].concat()).is_err());
    }

    #[test]
    fn the_largest_decision_can_be_read() {
        let quiet = ItemDecision { verdict: Verdict::Quiet, base: Some(AT) };
        let decision = Decision { policies: u64::MAX, items: vec![quiet; MAX_ITEMS as usize] };
        let bytes = decision.bytes();
        assert_eq!(bytes.len(), MAX_DECISION_BYTES);
        assert_eq!(Decision::parse(&bytes), Ok(decision));
    }

    #[test]
    fn a_policy_that_needs_no_base_names_none() {
        let judged =
            |policy| ItemDecision::make(policy, Some(&last()), Timestamp(1_001), &Value::Integer(20));
        let named = |verdict, base| ItemDecision { verdict, base };
        assert_eq!(judged(WritePolicy::Always), named(Verdict::Always, None));
        assert_eq!(judged(WritePolicy::Never), named(Verdict::Never, None));
        let hourly = WritePolicy::Periodic(Interval::from_ms(3_600_000).unwrap());
        assert_eq!(judged(hourly), named(Verdict::Quiet, Some(AT)));
        let first = ItemDecision::make(hourly, None, Timestamp(5), &Value::Integer(1));
        assert_eq!(first, named(Verdict::First, None));
    }
}
