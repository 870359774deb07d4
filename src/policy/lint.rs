//! Rules that can never apply: a mistake of whoever wrote them, and told before they are set.
//!
//! The ledger takes such rules, since they do no harm; the command line refuses them.

use std::fmt;

use super::pattern::Pattern;
use super::rules::{PolicySet, Rule, RuleName};
use crate::device::item::MAX_NAME_BYTES;
use crate::types::{ClientId, Stream};

/// Why a rule or a quota never applies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dead {
    /// No name that the protocol has matches a pattern.
    NoName {
        /// Which pattern: `client`, `stream`, `device` or `service`.
        field: &'static str,
        /// Its text.
        pattern: Pattern,
    },
    /// Whatever it is for, an earlier rule is for that, too.
    Covered {
        /// The earlier rule.
        by: RuleName,
    },
    /// Whichever client it is for, an earlier quota is for that one, too.
    CoveredQuota {
        /// The place of the earlier one, from 1.
        by: usize,
    },
}

impl fmt::Display for Dead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoName { field: "client", pattern } => {
                write!(f, "no client's id matches `{pattern}`: an id is group/name, such as devices/iot")
            }
            Self::NoName { field, pattern } => write!(f, "no {field} has a name that matches `{pattern}`"),
            Self::Covered { by } => {
                write!(
                    f,
                    "it never applies, since rule `{by}` before it is for all that it is for: move it up"
                )
            }
            Self::CoveredQuota { by } => {
                write!(
                    f,
                    "it never applies, since quota {by} before it is for all of its clients: move it up"
                )
            }
        }
    }
}

impl PolicySet {
    /// The rules that can never apply, by place, from 0, with the reason.
    pub fn dead_rules(&self) -> Vec<(usize, Dead)> {
        let rules = self.rules();
        let dead = |(at, rule): (usize, &Rule)| {
            let covered = || {
                let by = rules[..at].iter().find(|earlier| covers_rule(earlier, rule))?;
                Some(Dead::Covered { by: by.name.clone() })
            };
            no_name(rule).or_else(covered).map(|why| (at, why))
        };
        rules.iter().enumerate().filter_map(dead).collect()
    }

    /// The quotas that can never apply, by place, from 0, with the reason.
    pub fn dead_quotas(&self) -> Vec<(usize, Dead)> {
        let quotas = self.quotas();
        let dead = |(at, quota): (usize, &super::Quota)| {
            let covered = || {
                let by = quotas[..at].iter().position(|earlier| covers(&earlier.client, &quota.client))?;
                Some(Dead::CoveredQuota { by: by + 1 })
            };
            no_client(&quota.client).or_else(covered).map(|why| (at, why))
        };
        quotas.iter().enumerate().filter_map(dead).collect()
    }
}

fn no_name(rule: &Rule) -> Option<Dead> {
    let Rule { client, stream, device, service, .. } = rule;
    let named = |field, pattern: &Pattern, good: &dyn Fn(&str) -> bool| {
        let some = fillings(pattern).any(|name| good(&name));
        (!some).then(|| Dead::NoName { field, pattern: pattern.clone() })
    };
    let is_item_name = |name: &str| (1..=MAX_NAME_BYTES).contains(&name.len());
    no_client(client)
        .or_else(|| named("stream", stream, &|name| Stream::new(name).is_ok()))
        .or_else(|| named("device", device, &is_item_name))
        .or_else(|| named("service", service, &is_item_name))
}

fn no_client(pattern: &Pattern) -> Option<Dead> {
    let some = fillings(pattern).any(|name| ClientId::new(name).is_ok());
    (!some).then(|| Dead::NoName { field: "client", pattern: pattern.clone() })
}

/// Names that match a pattern: each `*` as nothing, as a letter, and as what makes an id of a client.
/// If none of these is a good name, none is.
fn fillings(pattern: &Pattern) -> impl Iterator<Item = String> {
    let parts: Vec<String> = pattern.as_str().split('*').map(str::to_owned).collect();
    let stars = u32::try_from(parts.len() - 1).unwrap_or_default();
    const TEXTS: [&str; 5] = ["", "a", "/a", "a/", "a/a"];
    (0..TEXTS.len().pow(stars)).map(move |mut choice| {
        let mut name = String::new();
        for (at, part) in parts.iter().enumerate() {
            name.push_str(part);
            if at + 1 < parts.len() {
                name.push_str(TEXTS[choice % TEXTS.len()]);
                choice /= TEXTS.len();
            }
        }
        name
    })
}

fn covers_rule(earlier: &Rule, later: &Rule) -> bool {
    covers(&earlier.client, &later.client)
        && covers(&earlier.stream, &later.stream)
        && covers(&earlier.device, &later.device)
        && covers(&earlier.service, &later.service)
}

/// Whether every name that matches `narrow` matches `wide`: if the text of `narrow` itself does, then
/// each of its `*` lies within one of `wide`, and so does whatever it stands for.
fn covers(wide: &Pattern, narrow: &Pattern) -> bool {
    wide.matches(narrow.as_str())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn dead(json: &str) -> Vec<(usize, String)> {
        let set: PolicySet = serde_json::from_str(json).unwrap();
        let all = set.dead_rules().into_iter().chain(set.dead_quotas());
        all.map(|(at, why)| (at, why.to_string())).collect()
    }

    #[test]
    fn a_rule_behind_one_for_all_of_it_never_applies() {
        let found = dead(
            r#"{"rules": [
                {"name": "boilers", "device": "boiler-*", "write": "always"},
                {"name": "one", "device": "boiler-*-north", "service": "t*", "write": "never"},
                {"name": "other", "device": "boiler*", "write": "never"}
            ]}"#,
        );
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].0 == 1 && found[0].1.contains("rule `boilers` before it"), "{found:?}");
    }

    #[test]
    fn a_pattern_that_no_name_can_match_is_found() {
        for (rule, says) in [
            (r#""client": "devices""#, "group/name"),
            (r#""client": "a/b/c*""#, "group/name"),
            (r#""client": "*#*""#, "group/name"),
            (r#""stream": "a/*""#, "no stream"),
        ] {
            let found = dead(&format!(r#"{{"rules": [{{"name": "x", "write": "never", {rule}}}]}}"#));
            assert!(found.len() == 1 && found[0].1.contains(says), "{rule}: {found:?}");
        }
        let long = "x".repeat(129);
        let found =
            dead(&format!(r#"{{"rules": [{{"name": "x", "write": "never", "device": "*{long}"}}]}}"#));
        assert!(found[0].1.contains("no device"), "{found:?}");
        for client in ["*", "devices/*", "*/iot", "d*", "*s/i*t", "devices/iot", "*e*v*i*c*e*s*"] {
            let rule = format!(r#"{{"rules": [{{"name": "x", "write": "never", "client": "{client}"}}]}}"#);
            assert_eq!(dead(&rule), [], "{client}");
        }
    }

    #[test]
    fn a_quota_behind_a_wider_one_never_applies() {
        let quotas = r#"{"quotas": [{"client": "*", "max_items": 5}, {"client": "a/*", "max_items": 9}]}"#;
        assert!(dead(quotas)[0].1.contains("quota 1 before it"));
    }

    proptest! {
        #[test]
        fn a_pattern_that_covers_another_matches_all_of_its_names(
            wide in "[ab*]{1,5}", narrow in "[ab*]{1,5}", name in "[ab]{0,6}",
        ) {
            let (wide, narrow) = (Pattern::new(&wide).unwrap(), Pattern::new(&narrow).unwrap());
            if covers(&wide, &narrow) && narrow.matches(&name) {
                prop_assert!(wide.matches(&name));
            }
        }
    }
}
