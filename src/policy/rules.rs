//! The rules in force: an ordered list, of which the first that matches counts.

use std::collections::BTreeSet;
use std::fmt;

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

use super::amount::{Threshold, ThresholdError};
use super::pattern::Pattern;
use super::{Interval, IntervalError, WritePolicy};
use crate::device::Item;
use crate::types::ClientId;

/// The most rules that a network has: each item is held against them one by one.
pub const MAX_RULES: usize = 256;

/// The most bytes that the rules of a network have together, in canonical form.
pub const MAX_POLICY_BYTES: usize = 32 * 1024;

/// The longest name of a rule, in bytes.
const MAX_NAME_BYTES: usize = 64;

/// The name of a rule: 1 to 64 letters, digits, `-`, `_` and `.` of ASCII.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RuleName(String);

/// The text is no name of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the name of a rule has 1 to {MAX_NAME_BYTES} letters, digits, `-`, `_` or `.`")]
pub struct RuleNameError;

impl RuleName {
    /// A name.
    ///
    /// # Errors
    /// [`RuleNameError`].
    pub fn new(text: &str) -> Result<Self, RuleNameError> {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let fits = (1..=MAX_NAME_BYTES).contains(&text.len()) && text.bytes().all(good);
        if fits { Ok(Self(text.to_owned())) } else { Err(RuleNameError) }
    }

    /// The name's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for RuleName {
    type Error = RuleNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::new(&text)
    }
}

impl From<RuleName> for String {
    fn from(name: RuleName) -> Self {
        name.0
    }
}

impl<Context> Decode<Context> for RuleName {
    fn decode<D: bincode::de::Decoder<Context = Context>>(
        decoder: &mut D,
    ) -> Result<Self, bincode::error::DecodeError> {
        let text = String::decode(decoder)?;
        Self::new(&text).map_err(|_| bincode::error::DecodeError::Other("not the name of a rule"))
    }
}

bincode::impl_borrow_decode!(RuleName);

impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One rule. In files and JSON: `{"name": "temperature", "service": "temp*", "write": "change",
/// "threshold": 0.5}`; patterns that are left out match every name, `write` is one of `always`,
/// `never`, `periodic` (with `interval_ms`), `change` (with `threshold`) and `both` (with both).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(try_from = "RuleText", into = "RuleText")]
pub struct Rule {
    /// Its name, for people and for the history.
    pub name: RuleName,
    /// Which clients it is for.
    pub client: Pattern,
    /// Which streams.
    pub stream: Pattern,
    /// Which devices (`deviceId`).
    pub device: Pattern,
    /// Which services (`serviceId`).
    pub service: Pattern,
    /// What it says.
    pub policy: WritePolicy,
}

impl Rule {
    fn matches(&self, stream: &str, item: &Item) -> bool {
        self.service.matches(&item.service)
            && self.device.matches(&item.device)
            && self.stream.matches(stream)
            && self.client.matches(item.client.as_str())
    }
}

/// The most distinct data items of a client for which no quota is set: two messages of the most items.
pub const DEFAULT_QUOTA: u32 = 131_072;

/// How many distinct data items a client may have. In files and JSON:
/// `{"client": "devices/*", "max_items": 1000}`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quota {
    /// Which clients it is for.
    pub client: Pattern,
    /// How many distinct data items each of them may have; 0 for none.
    pub max_items: u32,
}

/// The rules and quotas in force, each in order. An item that no rule matches is written always; a
/// client that no quota matches may have [`DEFAULT_QUOTA`] data items.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Serialize, Deserialize)]
#[serde(try_from = "PolicySetText", into = "PolicySetText")]
pub struct PolicySet {
    rules: Vec<Rule>,
    quotas: Vec<Quota>,
}

/// Why rules are not a policy set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicySetError {
    /// Too many.
    #[error("{0} rules, at most {MAX_RULES} are allowed: use patterns with `*`")]
    TooMany(usize),
    /// Too many quotas.
    #[error("{0} quotas, at most {MAX_RULES} are allowed: use patterns with `*`")]
    TooManyQuotas(usize),
    /// Too many bytes.
    #[error(
        "the rules and quotas have {0} bytes, at most {MAX_POLICY_BYTES} are allowed: use fewer or shorter patterns"
    )]
    TooLong(usize),
    /// Two rules with one name.
    #[error("two rules are named `{0}`: give each its own name")]
    Twice(RuleName),
}

impl PolicySet {
    /// The rules, in order, without quotas.
    ///
    /// # Errors
    /// [`PolicySetError`].
    pub fn new(rules: Vec<Rule>) -> Result<Self, PolicySetError> {
        Self::with_quotas(rules, Vec::new())
    }

    /// The rules and the quotas, each in order.
    ///
    /// # Errors
    /// [`PolicySetError`].
    pub fn with_quotas(rules: Vec<Rule>, quotas: Vec<Quota>) -> Result<Self, PolicySetError> {
        if rules.len() > MAX_RULES {
            return Err(PolicySetError::TooMany(rules.len()));
        }
        if quotas.len() > MAX_RULES {
            return Err(PolicySetError::TooManyQuotas(quotas.len()));
        }
        let bytes = crate::codec::encoded_len(&(&rules, &quotas));
        if bytes > MAX_POLICY_BYTES {
            return Err(PolicySetError::TooLong(bytes));
        }
        let mut names = BTreeSet::new();
        match rules.iter().find(|rule| !names.insert(&rule.name)) {
            Some(rule) => Err(PolicySetError::Twice(rule.name.clone())),
            None => Ok(Self { rules, quotas }),
        }
    }

    /// The rules, in order.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The quotas, in order.
    pub fn quotas(&self) -> &[Quota] {
        &self.quotas
    }

    /// How many distinct data items a client may have: what the first quota says that matches.
    pub fn quota(&self, client: &ClientId) -> u32 {
        let quota = self.quotas.iter().find(|quota| quota.client.matches(client.as_str()));
        quota.map_or(DEFAULT_QUOTA, |quota| quota.max_items)
    }

    /// The rule for an item that came on `stream`: the first that matches.
    pub fn rule(&self, stream: &str, item: &Item) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.matches(stream, item))
    }

    /// What is in force for an item that came on `stream`.
    pub fn policy(&self, stream: &str, item: &Item) -> WritePolicy {
        self.rule(stream, item).map_or(WritePolicy::Always, |rule| rule.policy)
    }
}

impl<Context> Decode<Context> for PolicySet {
    fn decode<D: bincode::de::Decoder<Context = Context>>(
        decoder: &mut D,
    ) -> Result<Self, bincode::error::DecodeError> {
        Self::with_quotas(Decode::decode(decoder)?, Decode::decode(decoder)?)
            .map_err(|_| bincode::error::DecodeError::Other("rules that are no policy set"))
    }
}

bincode::impl_borrow_decode!(PolicySet);

/// How a set is written in files and JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicySetText {
    #[serde(default)]
    rules: Vec<Rule>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    quotas: Vec<Quota>,
}

impl TryFrom<PolicySetText> for PolicySet {
    type Error = PolicySetError;

    fn try_from(text: PolicySetText) -> Result<Self, Self::Error> {
        Self::with_quotas(text.rules, text.quotas)
    }
}

impl From<PolicySet> for PolicySetText {
    fn from(set: PolicySet) -> Self {
        Self { rules: set.rules, quotas: set.quotas }
    }
}

/// How a rule is written in files and JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleText {
    name: RuleName,
    #[serde(default)]
    client: Pattern,
    #[serde(default)]
    stream: Pattern,
    #[serde(default)]
    device: Pattern,
    #[serde(default)]
    service: Pattern,
    write: Way,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    interval_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    threshold: Option<f64>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Way {
    Always,
    Never,
    Periodic,
    Change,
    Both,
}

impl Way {
    /// Its name, and whether an interval and a threshold belong to it.
    const fn takes(self) -> (&'static str, bool, bool) {
        match self {
            Self::Always => ("always", false, false),
            Self::Never => ("never", false, false),
            Self::Periodic => ("periodic", true, false),
            Self::Change => ("change", false, true),
            Self::Both => ("both", true, true),
        }
    }

    /// What is missing, or too much, of a rule that does not fit its way.
    const fn misfit(self, has_interval: bool, has_threshold: bool) -> RuleError {
        let (name, takes_interval, takes_threshold) = self.takes();
        if takes_interval && !has_interval {
            RuleError::Missing(name, "interval_ms", "interval_ms = 3600000 for an hour")
        } else if takes_threshold && !has_threshold {
            RuleError::Missing(name, "threshold", "threshold = 0.5")
        } else if has_interval && !takes_interval {
            RuleError::Idle(name, "interval_ms")
        } else {
            RuleError::Idle(name, "threshold")
        }
    }
}

/// Why a rule's text makes no rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum RuleError {
    #[error("`{0}` needs `{1}`, such as {2}")]
    Missing(&'static str, &'static str, &'static str),
    #[error("`{0}` takes no `{1}`: leave it out")]
    Idle(&'static str, &'static str),
    #[error(transparent)]
    Interval(#[from] IntervalError),
    #[error(transparent)]
    Threshold(#[from] ThresholdError),
}

impl TryFrom<RuleText> for Rule {
    type Error = RuleError;

    fn try_from(text: RuleText) -> Result<Self, Self::Error> {
        let interval = text.interval_ms.map(Interval::from_ms).transpose()?;
        let threshold = text.threshold.map(Threshold::new).transpose()?;
        let policy = match (text.write, interval, threshold) {
            (Way::Always, None, None) => WritePolicy::Always,
            (Way::Never, None, None) => WritePolicy::Never,
            (Way::Periodic, Some(interval), None) => WritePolicy::Periodic(interval),
            (Way::Change, None, Some(threshold)) => WritePolicy::Change(threshold),
            (Way::Both, Some(interval), Some(threshold)) => WritePolicy::Both(interval, threshold),
            (way, interval, threshold) => return Err(way.misfit(interval.is_some(), threshold.is_some())),
        };
        let RuleText { name, client, stream, device, service, .. } = text;
        Ok(Self { name, client, stream, device, service, policy })
    }
}

impl From<Rule> for RuleText {
    fn from(rule: Rule) -> Self {
        let (write, interval, threshold) = match rule.policy {
            WritePolicy::Always => (Way::Always, None, None),
            WritePolicy::Never => (Way::Never, None, None),
            WritePolicy::Periodic(interval) => (Way::Periodic, Some(interval), None),
            WritePolicy::Change(threshold) => (Way::Change, None, Some(threshold)),
            WritePolicy::Both(interval, threshold) => (Way::Both, Some(interval), Some(threshold)),
        };
        let Rule { name, client, stream, device, service, .. } = rule;
        let (interval_ms, threshold) = (interval.map(Interval::ms), threshold.map(Threshold::get));
        Self { name, client, stream, device, service, write, interval_ms, threshold }
    }
}
