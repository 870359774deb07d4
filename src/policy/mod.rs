//! The write policy: which data items of a message go on the ledger.
//!
//! ```text
//! PolicySet (on the ledger) ── rule for (client, stream, device, service) ──▶ WritePolicy
//!                                                                                  │
//! item, the last written value of the same item (Base) ───────────────────────▶ judge ──▶ Verdict
//! ```
//!
//! The node that admitted the message decides, for each item by itself, in the order of the client's
//! numbers. Everything here is a pure function, so whoever knows the rules and the written value that
//! an item was judged against comes to the same verdict: the audit does. Whatever is picked, the
//! device's signature covers all items, since the items root in the header spans them: that an item
//! was left out never looks as if it had not been measured.
//!
//! The two ways of the paper (section 3.4) are `periodic` and `change`; `both` writes when either
//! would.

mod amount;
mod decision;
mod lint;
mod pattern;
mod rules;

use std::fmt;

use bincode::{Decode, Encode};
use smol_str::SmolStr;

use crate::device::{Item, Value};
use crate::types::{ClientId, Timestamp};

pub use amount::{Threshold, ThresholdError};
pub use decision::{BaseRef, Decision, ItemDecision, LastWritten, MAX_DECISION_BYTES};
pub use lint::Dead;
pub use pattern::{MAX_PATTERN_BYTES, Pattern, PatternError};
pub use rules::{
    DEFAULT_QUOTA, MAX_POLICY_BYTES, MAX_RULES, PolicySet, PolicySetError, Quota, Rule, RuleName,
    RuleNameError,
};

/// What decides whether a data item is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode)]
pub enum WritePolicy {
    /// Each value is written.
    #[default]
    Always,
    /// No value is written; the message is acknowledged all the same.
    Never,
    /// At least this time, in milliseconds of event time, lies between two written values.
    Periodic(Interval),
    /// A value that differs from the last written one by the threshold or more is written.
    Change(Threshold),
    /// Either is enough.
    Both(Interval, Threshold),
}

/// A time between two written values, in milliseconds; at least 1, at most ten years.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode)]
pub struct Interval(u64);

/// The interval is 0 or longer than ten years.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an interval is at least 1 ms and at most ten years")]
pub struct IntervalError;

impl Interval {
    /// The longest: ten years of 366 days, in milliseconds.
    pub const MAX_MS: u64 = 10 * 366 * 24 * 3600 * 1000;

    /// An interval of so many milliseconds.
    ///
    /// # Errors
    /// [`IntervalError`].
    pub const fn from_ms(ms: u64) -> Result<Self, IntervalError> {
        if ms == 0 || ms > Self::MAX_MS { Err(IntervalError) } else { Ok(Self(ms)) }
    }

    /// The interval in milliseconds.
    pub const fn ms(self) -> u64 {
        self.0
    }
}

impl<Context> Decode<Context> for Interval {
    fn decode<D: bincode::de::Decoder<Context = Context>>(
        decoder: &mut D,
    ) -> Result<Self, bincode::error::DecodeError> {
        Self::from_ms(Decode::decode(decoder)?)
            .map_err(|_| bincode::error::DecodeError::Other("an interval out of range"))
    }
}

bincode::impl_borrow_decode!(Interval);

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ms if ms % 86_400_000 == 0 => write!(f, "{} d", ms / 86_400_000),
            ms if ms % 3_600_000 == 0 => write!(f, "{} h", ms / 3_600_000),
            ms if ms % 60_000 == 0 => write!(f, "{} min", ms / 60_000),
            ms if ms % 1000 == 0 => write!(f, "{} s", ms / 1000),
            ms => write!(f, "{ms} ms"),
        }
    }
}

/// The written value of a data item that a newer one is judged against.
#[derive(Debug, Clone, PartialEq)]
pub struct Base {
    /// Its event time.
    pub event_time: Timestamp,
    /// The value.
    pub value: Value,
}

/// Whether an item is written, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Written: the policy is `always`.
    Always,
    /// Written: no value of this item was written before.
    First,
    /// Written: it is not newer than the last written one, so that nothing can be said about the
    /// time between them.
    NotNewer,
    /// Written: the interval is over.
    Interval,
    /// Written: the value has changed by the threshold or more.
    Change,
    /// Not written: the policy is `never`.
    Never,
    /// Not written: neither is the interval over nor has the value changed enough.
    Quiet,
}

impl Verdict {
    /// All verdicts; the place of each is its byte in a [`Decision`].
    const ALL: [Self; 7] =
        [Self::Always, Self::First, Self::NotNewer, Self::Interval, Self::Change, Self::Never, Self::Quiet];

    /// The name, as metrics, the history and the API have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::First => "first",
            Self::NotNewer => "not_newer",
            Self::Interval => "interval",
            Self::Change => "change",
            Self::Never => "never",
            Self::Quiet => "quiet",
        }
    }

    /// Whether the item is written.
    pub const fn writes(self) -> bool {
        !matches!(self, Self::Never | Self::Quiet)
    }
}

impl Encode for Verdict {
    fn encode<E: bincode::enc::Encoder>(&self, encoder: &mut E) -> Result<(), bincode::error::EncodeError> {
        (*self as u8).encode(encoder)
    }
}

impl<Context> Decode<Context> for Verdict {
    fn decode<D: bincode::de::Decoder<Context = Context>>(
        decoder: &mut D,
    ) -> Result<Self, bincode::error::DecodeError> {
        let byte = u8::decode(decoder)?;
        let verdict = Self::ALL.get(usize::from(byte)).copied();
        verdict.ok_or(bincode::error::DecodeError::Other("no verdict has this byte"))
    }
}

bincode::impl_borrow_decode!(Verdict);

impl WritePolicy {
    /// Judges a value of a data item against the newest of its values that is written (or on its
    /// way there), if there is one.
    pub fn judge(self, base: Option<&Base>, event_time: Timestamp, value: &Value) -> Verdict {
        let (interval, threshold) = match self {
            Self::Always => return Verdict::Always,
            Self::Never => return Verdict::Never,
            Self::Periodic(interval) => (Some(interval), None),
            Self::Change(threshold) => (None, Some(threshold)),
            Self::Both(interval, threshold) => (Some(interval), Some(threshold)),
        };
        let Some(base) = base else { return Verdict::First };
        let Some(elapsed) = event_time.0.checked_sub(base.event_time.0).filter(|elapsed| *elapsed > 0) else {
            return Verdict::NotNewer;
        };
        if interval.is_some_and(|interval| elapsed >= interval.ms()) {
            return Verdict::Interval;
        }
        if threshold.is_some_and(|threshold| threshold.is_reached(&base.value, value)) {
            return Verdict::Change;
        }
        Verdict::Quiet
    }

    /// Whether a verdict depends on what was written before.
    pub const fn needs_base(self) -> bool {
        !matches!(self, Self::Always | Self::Never)
    }
}

impl fmt::Display for WritePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Always => f.write_str("always"),
            Self::Never => f.write_str("never"),
            Self::Periodic(interval) => write!(f, "periodic, every {interval}"),
            Self::Change(threshold) => write!(f, "change, by {threshold} or more"),
            Self::Both(interval, threshold) => {
                write!(f, "every {interval}, or on a change by {threshold} or more")
            }
        }
    }
}

/// What names a data item across messages: `(client, device, service, num)`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ItemKey {
    /// The client that sends it.
    pub client: ClientId,
    /// `deviceId`
    pub device: SmolStr,
    /// `serviceId`
    pub service: SmolStr,
    /// `num`
    pub num: u32,
}

impl From<&Item> for ItemKey {
    fn from(item: &Item) -> Self {
        Self {
            client: item.client.clone(),
            device: item.device.clone(),
            service: item.service.clone(),
            num: item.num,
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
