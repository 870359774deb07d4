//! Files of rules, in TOML.
//!
//! ```toml
//! replaces = 0              # the version that these replace; 0 if none was ever set
//!
//! [[rules]]
//! name = "temperature"
//! service = "temperature"   # client, stream, device, service: `*` stands for any text
//! write = "change"          # always, never, periodic, change, both
//! threshold = 0.5
//!
//! [[quotas]]
//! client = "devices/*"
//! max_items = 1000
//! ```
//!
//! Whatever is wrong is told with its line, also what the ledger would take and nobody can mean: rules
//! that never apply.

use std::fs;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, anyhow};
use serde::{Deserialize, Serialize};
use toml::Spanned;

use crate::policy::{PolicySet, Quota, Rule};
use crate::wording;

/// No file is longer: rules have at most 32 KiB in canonical form.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// What is said of a file without rules: nobody takes all of them away by an empty file, or by one of quotas.
const NO_RULES: &str = "line 1: there are no rules: begin each with [[rules]]; if there are to be none, so that every \
                        reading is written, say `rules = []` above all else";

/// A file of rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) struct RulesFile {
    /// The version that they replace, if the file says it.
    pub replaces: Option<u64>,
    /// The rules and quotas.
    pub policies: PolicySet,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    replaces: Option<u64>,
    rules: Option<Vec<Spanned<Rule>>>,
    quotas: Option<Vec<Spanned<Quota>>>,
}

impl RulesFile {
    /// Reads a file.
    ///
    /// # Errors
    /// What is wrong, and in which line.
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let told = || format!("cannot read {}", path.display());
        // The length that a device or a pipe claims says nothing.
        let mut file = fs::File::open(path).with_context(told)?.take(MAX_FILE_BYTES + 1);
        let mut text = String::new();
        file.read_to_string(&mut text).with_context(told)?;
        if text.len() as u64 > MAX_FILE_BYTES {
            return Err(anyhow!("rules have at most {MAX_FILE_BYTES} bytes")).with_context(told);
        }
        Self::parse(&text).map_err(|problem| anyhow!("in {}, {problem}", path.display()))
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    /// What is wrong, and in which line.
    pub(in crate::cli) fn parse(text: &str) -> Result<Self, String> {
        let line = |at: usize| text.get(..at).unwrap_or(text).matches('\n').count() + 1;
        let Text { replaces, rules, quotas } =
            toml::from_str(text).map_err(|error| wording::of_toml(text, &error))?;
        let (rules, quotas) = (rules.ok_or(NO_RULES)?, quotas.unwrap_or_default());
        let lines: Vec<_> = rules.iter().map(|rule| line(rule.span().start)).collect();
        let quota_lines: Vec<_> = quotas.iter().map(|quota| line(quota.span().start)).collect();
        let rules: Vec<Rule> = rules.into_iter().map(Spanned::into_inner).collect();
        let quotas: Vec<Quota> = quotas.into_iter().map(Spanned::into_inner).collect();
        let twice = (0..rules.len()).find(|at| rules[..*at].iter().any(|rule| rule.name == rules[*at].name));
        let policies = PolicySet::with_quotas(rules, quotas).map_err(|error| match twice {
            Some(at) => format!("line {}: {error}", lines[at]),
            None => format!("line 1: {error}"),
        })?;
        if let Some((at, why)) = policies.dead_rules().into_iter().next() {
            return Err(format!("line {}: rule `{}`: {why}", lines[at], policies.rules()[at].name));
        }
        if let Some((at, why)) = policies.dead_quotas().into_iter().next() {
            return Err(format!("line {}: quota {}: {why}", quota_lines[at], at + 1));
        }
        Ok(Self { replaces, policies })
    }
}

/// The text of a file with these rules, to be changed and set.
pub(super) fn text(replaces: u64, policies: &PolicySet) -> anyhow::Result<String> {
    #[derive(Serialize)]
    struct Text<'a> {
        replaces: u64,
        rules: &'a [Rule],
        quotas: &'a [Quota],
    }
    let text = Text { replaces, rules: policies.rules(), quotas: policies.quotas() };
    toml::to_string(&text).context("cannot write the rules as TOML")
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
replaces = 3

[[rules]]
name = "temperature"
service = "temp*"
write = "change"
threshold = 0.5

[[rules]]
name = "rest"
write = "both"
interval_ms = 3600000
threshold = 2

[[quotas]]
client = "devices/*"
max_items = 100
"#;

    #[test]
    fn a_file_survives_being_written_again() {
        let file = RulesFile::parse(GOOD).unwrap();
        assert_eq!(
            (file.replaces, file.policies.rules().len(), file.policies.quotas().len()),
            (Some(3), 2, 1)
        );
        assert_eq!(RulesFile::parse(&text(3, &file.policies).unwrap()), Ok(file));
        assert_eq!(RulesFile::parse("rules = []").unwrap().policies, PolicySet::default());
        assert_eq!(RulesFile::parse("").unwrap_err(), NO_RULES);
        let quotas = "[[quotas]]\nclient = \"devices/*\"\nmax_items = 5";
        assert_eq!(RulesFile::parse(quotas).unwrap_err(), NO_RULES, "quotas do not take the rules away");
        let without_rules = RulesFile::parse(&format!("rules = []\n{quotas}")).unwrap();
        assert_eq!((without_rules.policies.rules().len(), without_rules.policies.quotas().len()), (0, 1));
        assert_eq!(RulesFile::parse(&text(3, &without_rules.policies).unwrap()).unwrap().replaces, Some(3));
        let endless = format!("{:#}", RulesFile::read(Path::new("/dev/zero")).unwrap_err());
        assert!(endless.contains("at most 1048576 bytes"), "{endless}");
        assert_eq!(RulesFile::parse("replaces = 3").unwrap_err(), NO_RULES);
    }

    #[test]
    fn whatever_is_wrong_is_told_with_its_line() {
        let wrong = |from: &str, to: &str, line: usize, says: &str| {
            let problem = RulesFile::parse(&GOOD.replacen(from, to, 1)).unwrap_err();
            assert!(problem.starts_with(&format!("line {line}: ")), "{to}: {problem}");
            assert!(problem.contains(says), "{to}: {problem}");
        };
        wrong("replaces = 3", "replaces = three", 2, "");
        wrong("replaces = 3", "replace = 3", 2, "unknown field `replace`");
        wrong("threshold = 0.5", "treshold = 0.5", 8, "unknown field `treshold`");
        wrong("\"change\"", "\"sometimes\"", 7, "unknown value `sometimes`");
        wrong("threshold = 0.5", "", 4, "`change` needs `threshold`, such as threshold = 0.5");
        wrong("threshold = 0.5", "threshold = -1", 4, "above 0");
        wrong(
            "threshold = 0.5",
            "threshold = \"much\"",
            8,
            "the text \"much\" stands where a number belongs",
        );
        wrong("\"rest\"", "\"temperature\"", 10, "two rules are named `temperature`");
        wrong("\"rest\"", "\"the rest\"", 11, "the name of a rule");
        wrong("service = \"temp*\"", "service = \"\"", 6, "a pattern has 1 to");
        wrong("service = \"temp*\"", "client = \"temp\"", 4, "rule `temperature`: no client's id");
        wrong("service = \"temp*\"\n", "\n", 10, "rule `rest`: it never applies");
        wrong("devices/*", "devices", 16, "quota 1: no client's id");
        wrong("max_items = 100", "max_items = -1", 18, "");
    }
}
