//! `ledgermq policy test`: what policies would write of readings in a file, without any node.
//!
//! The same pure functions decide as in a node, in the order of the file, for one node and one client.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::str::FromStr;

use serde::Serialize;

use crate::device::Item;
use crate::history::audit::words::number;
use crate::policy::{
    Base, BaseRef, Interval, ItemDecision, ItemKey, LastWritten, PolicySet, Threshold, WritePolicy,
};
use crate::types::MessageSeq;

/// A policy as it is named on the command line, for all items.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tried {
    pub text: String,
    pub policy: WritePolicy,
}

impl FromStr for Tried {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let policy = match parts.as_slice() {
            ["always"] => WritePolicy::Always,
            ["never"] => WritePolicy::Never,
            ["periodic", every] => WritePolicy::Periodic(interval(every)?),
            ["change", by] => WritePolicy::Change(threshold(by)?),
            ["both", every, by] => WritePolicy::Both(interval(every)?, threshold(by)?),
            _ => {
                let ways = "always, never, periodic:INTERVAL, change:THRESHOLD or both:INTERVAL:THRESHOLD";
                return Err(format!("{text:?} is no policy; give {ways}, such as both:6h:0.5"));
            }
        };
        Ok(Self { text: text.to_owned(), policy })
    }
}

fn interval(text: &str) -> Result<Interval, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit: u64 = match &text[digits.len()..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(format!("{text:?} is no interval; give a number and ms, s, m, h or d, such as 6h")),
    };
    let count: u64 = digits.parse().map_err(|_| format!("{digits:?} is no whole number"))?;
    Interval::from_ms(count.saturating_mul(unit)).map_err(|error| error.to_string())
}

fn threshold(text: &str) -> Result<Threshold, String> {
    let amount = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    Threshold::new(amount).map_err(|error| error.to_string())
}

/// What was written of some items.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct Count {
    /// All of them.
    pub items: u64,
    /// Those that are written.
    pub written: u64,
    /// How many got which verdict.
    pub verdicts: BTreeMap<&'static str, u64>,
}

impl Count {
    fn add(&mut self, decision: ItemDecision) {
        self.items += 1;
        self.written += u64::from(decision.verdict.writes());
        *self.verdicts.entry(decision.verdict.name()).or_default() += 1;
    }

    /// The share that is written, in percent, for people.
    #[allow(clippy::cast_precision_loss)]
    fn share(&self) -> f64 {
        if self.items == 0 { 0.0 } else { 100.0 * self.written as f64 / self.items as f64 }
    }
}

/// What became of a data item of the file.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Row {
    /// The rule that is for it; none if no rule is.
    pub rule: Option<String>,
    /// What it says.
    pub policy: String,
    /// What was written.
    #[serde(flatten)]
    pub count: Count,
}

/// One run over a file.
#[derive(Debug, Default)]
pub(super) struct Trial {
    policies: PolicySet,
    everywhere: Option<WritePolicy>,
    last: HashMap<ItemKey, LastWritten>,
    seq: u64,
    /// By `device/service/num`.
    pub rows: BTreeMap<(String, u32, String), Row>,
}

impl Trial {
    pub(super) fn of_rules(policies: PolicySet) -> Self {
        Self { policies, ..Self::default() }
    }

    pub(super) fn of_policy(policy: WritePolicy) -> Self {
        Self { everywhere: Some(policy), ..Self::default() }
    }

    /// Decides the items of the next message.
    pub(super) fn message(&mut self, stream: &str, items: &[Item]) {
        self.seq += 1;
        for (index, item) in (0..).zip(items) {
            let key = ItemKey::from(item);
            let rule = self.policies.rule(stream, item);
            let policy = self.everywhere.unwrap_or_else(|| self.policies.policy(stream, item));
            let decision = ItemDecision::make(policy, self.last.get(&key), item.event_time, &item.value);
            let place = (item.device.to_string(), item.num, item.service.to_string());
            let row = self.rows.entry(place).or_insert_with(|| Row {
                rule: rule.map(|rule| rule.name.to_string()),
                policy: policy.to_string(),
                count: Count::default(),
            });
            row.count.add(decision);
            if decision.verdict.writes() {
                let base = Base { event_time: item.event_time, value: item.value.clone() };
                let last = LastWritten { at: BaseRef { seq: MessageSeq(self.seq), index }, base };
                match self.last.get(&key) {
                    Some(known) if !last.is_newer_than(known) => {}
                    _ => drop(self.last.insert(key, last)),
                }
            }
        }
    }

    /// Whether there are rules, and none is for any of the items.
    pub(super) fn is_beside_all_rules(&self) -> bool {
        !self.policies.rules().is_empty() && self.rows.values().all(|row| row.rule.is_none())
    }

    pub(super) fn total(&self) -> Count {
        let mut total = Count::default();
        for Row { count, .. } in self.rows.values() {
            total.items += count.items;
            total.written += count.written;
            for (verdict, number) in &count.verdicts {
                *total.verdicts.entry(verdict).or_default() += number;
            }
        }
        total
    }
}

/// What rules write, one line for each data item.
pub(super) fn rules_table(trial: &Trial) -> String {
    let mut lines = vec![["item", "rule", "policy", "readings", "written", "share"].map(str::to_owned)];
    for ((device, num, service), Row { rule, policy, count }) in &trial.rows {
        let rule = rule.clone().unwrap_or_else(|| "(none)".to_owned());
        lines.push(line(format!("{device}/{service}/{num}"), rule, policy.clone(), count));
    }
    lines.push(line("all".to_owned(), String::new(), String::new(), &trial.total()));
    aligned(&lines, 3)
}

fn line(item: String, rule: String, policy: String, count: &Count) -> [String; 6] {
    let share = format!("{:.1} %", count.share());
    [item, rule, policy, number(count.items), number(count.written), share]
}

/// What each policy writes, one line for each, one column for each service.
pub(super) fn policies_table(trials: &[(String, Trial)]) -> String {
    let Some((_, first)) = trials.first() else { return String::new() };
    let mut head = vec!["policy".to_owned()];
    head.extend(first.rows.keys().map(|(_, _, service)| service.clone()));
    head.push("all".to_owned());
    let mut lines = vec![head];
    for (text, trial) in trials {
        let cell = |count: &Count| format!("{} ({:.1} %)", number(count.written), count.share());
        let mut line = vec![text.clone()];
        line.extend(trial.rows.values().map(|row| cell(&row.count)));
        line.push(cell(&trial.total()));
        lines.push(line);
    }
    aligned(&lines, 1)
}

/// Columns of equal width: the first `left` to the left, numbers to the right.
fn aligned<L: AsRef<[String]>>(lines: &[L], left: usize) -> String {
    let columns = lines.first().map_or(0, |line| line.as_ref().len());
    let width = |at: usize| lines.iter().map(|line| line.as_ref()[at].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let mut row = String::new();
        for (at, (cell, width)) in line.as_ref().iter().zip(&widths).enumerate() {
            let gap = if at == 0 { "" } else { "  " };
            let _written = match at < left {
                true => write!(row, "{gap}{cell:<width$}"),
                false => write!(row, "{gap}{cell:>width$}"),
            };
        }
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_named_on_the_command_line() {
        let named = |text: &str| text.parse::<Tried>().map(|tried| tried.policy);
        assert_eq!(named("always"), Ok(WritePolicy::Always));
        let hours = Interval::from_ms(6 * 3_600_000).unwrap();
        let half = Threshold::new(0.5).unwrap();
        assert_eq!(named("periodic:6h"), Ok(WritePolicy::Periodic(hours)));
        assert_eq!(named("both:360m:0.5"), Ok(WritePolicy::Both(hours, half)));
        for (text, says) in [
            ("sometimes", "is no policy"),
            ("change", "is no policy"),
            ("change:much", "no number"),
            ("change:0", "above 0"),
            ("periodic:6", "ms, s, m, h or d"),
            ("periodic:h", "no whole number"),
            ("periodic:99999999d", "ten years"),
        ] {
            assert!(named(text).unwrap_err().contains(says), "{text}");
        }
    }
}
