//! The rules against their words: patterns, thresholds, and what is left out.

use proptest::prelude::*;

use super::*;

fn item(service: &str, num: u32) -> Item {
    Item {
        client: ClientId::new("devices/iot").unwrap(),
        device: "th-01".into(),
        service: service.into(),
        num,
        event_time: Timestamp(0),
        value: Value::Integer(1),
        unit: None,
    }
}

fn interval(ms: u64) -> Interval {
    Interval::from_ms(ms).unwrap()
}

fn threshold(amount: f64) -> Threshold {
    Threshold::new(amount).unwrap()
}

fn base(event_time: u64, value: Value) -> Base {
    Base { event_time: Timestamp(event_time), value }
}

fn set(json: &str) -> Result<PolicySet, String> {
    serde_json::from_str(json).map_err(|error| error.to_string())
}

#[test]
fn always_and_never_ask_for_nothing_else() {
    let old = base(10, Value::Integer(5));
    for known in [None, Some(&old)] {
        assert_eq!(WritePolicy::Always.judge(known, Timestamp(20), &Value::Integer(5)), Verdict::Always);
        assert_eq!(WritePolicy::Never.judge(known, Timestamp(20), &Value::Integer(9)), Verdict::Never);
    }
    assert!(!WritePolicy::Always.needs_base() && !WritePolicy::Never.needs_base());
}

#[test]
fn a_first_value_is_written_and_so_is_one_that_is_not_newer() {
    let old = base(1000, Value::Float(20.0));
    for policy in [
        WritePolicy::Periodic(interval(60_000)),
        WritePolicy::Change(threshold(5.0)),
        WritePolicy::Both(interval(60_000), threshold(5.0)),
    ] {
        let value = Value::Float(20.0);
        assert_eq!(policy.judge(None, Timestamp(1000), &value), Verdict::First);
        assert_eq!(policy.judge(Some(&old), Timestamp(999), &value), Verdict::NotNewer);
        assert_eq!(policy.judge(Some(&old), Timestamp(1000), &value), Verdict::NotNewer);
        assert_eq!(policy.judge(Some(&old), Timestamp(1001), &value), Verdict::Quiet);
        assert!(policy.needs_base());
    }
}

#[test]
fn periodic_writes_from_the_interval_on_by_event_time_alone() {
    let (policy, old) = (WritePolicy::Periodic(interval(60_000)), base(5_000, Value::Integer(1)));
    let judged = |time| policy.judge(Some(&old), Timestamp(time), &Value::Integer(1_000));
    assert_eq!(judged(64_999), Verdict::Quiet);
    assert_eq!(judged(65_000), Verdict::Interval);
}

#[test]
fn both_writes_when_either_would() {
    let (policy, old) = (WritePolicy::Both(interval(100), threshold(2.0)), base(0, Value::Integer(10)));
    let judged = |time, value| policy.judge(Some(&old), Timestamp(time), &Value::Integer(value));
    assert_eq!(judged(99, 11), Verdict::Quiet);
    assert_eq!(judged(99, 12), Verdict::Change);
    assert_eq!(judged(100, 10), Verdict::Interval);
}

#[test]
fn a_change_is_by_the_threshold_or_more() {
    let reached = |amount, old, new| threshold(amount).is_reached(&old, &new);
    let (int, float) = (Value::Integer, Value::Float);
    let text = |text: &str| Value::Text(text.to_owned());
    assert!(reached(0.5, float(20.0), float(20.5)) && reached(0.5, float(20.5), float(20.0)));
    assert!(!reached(0.5, float(20.0), float(20.49)));
    assert!(reached(0.2, float(20.1), float(20.3)), "as the decimals say");
    assert!(reached(0.1, float(0.2), float(0.3)));
    assert!(!reached(0.2, float(20.1), float(20.299_999)));
    assert!(reached(1.5, int(7), int(9)) && !reached(1.5, int(7), int(8)));
    assert!(reached(1.0, int(i64::MIN), int(i64::MAX)));
    assert!(!reached(1e30, int(i64::MIN), int(i64::MAX)));
    assert!(reached(1.0, int(1), float(2.0)) && !reached(1.0, int(1), float(1.5)));
    assert!(reached(1e300, text("on"), text("off")) && !reached(1e-300, text("on"), text("on")));
    assert!(reached(5.0, Value::Boolean(true), Value::Boolean(false)));
    assert!(!reached(5.0, Value::Boolean(true), Value::Boolean(true)));
    assert!(reached(5.0, int(1), text("1")), "another kind is a change");
    assert!(reached(1.0, float(f64::MIN), float(f64::MAX)));
}

#[test]
fn what_is_out_of_range_is_no_threshold_and_no_interval() {
    for amount in [0.0, -0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert_eq!(Threshold::new(amount), Err(ThresholdError));
    }
    assert!(Interval::from_ms(0).is_err() && Interval::from_ms(Interval::MAX_MS + 1).is_err());
    assert!(Interval::from_ms(Interval::MAX_MS).is_ok());
}

#[test]
fn the_first_rule_that_matches_counts_and_without_one_all_is_written() {
    let set = set(
        r#"{"rules": [
            {"name": "boiler", "device": "th-*", "service": "temperature", "write": "change", "threshold": 0.5},
            {"name": "rest", "client": "devices/*", "stream": "telemetry", "service": "*e*", "write": "never"}
        ]}"#,
    )
    .unwrap();
    let name = |stream, item: &Item| set.rule(stream, item).map(|rule| rule.name.as_str());
    assert_eq!(name("telemetry", &item("temperature", 1)), Some("boiler"));
    assert_eq!(name("telemetry", &item("pressure", 1)), Some("rest"));
    assert_eq!(name("other", &item("pressure", 1)), None);
    assert_eq!(set.policy("other", &item("pressure", 1)), WritePolicy::Always);
    assert_eq!(set.policy("telemetry", &item("temperature", 1)), WritePolicy::Change(threshold(0.5)));
}

#[test]
fn wrong_rules_are_refused_with_what_is_wrong() {
    let wrong = |rule: &str, message: &str| {
        let error = set(&format!(r#"{{"rules": [{rule}]}}"#)).unwrap_err();
        assert!(error.contains(message), "{rule}: {error}");
    };
    wrong(r#"{"name": "a b", "write": "always"}"#, "the name of a rule");
    wrong(r#"{"name": "a", "write": "sometimes"}"#, "unknown variant `sometimes`");
    wrong(r#"{"name": "a", "write": "change"}"#, "`change` needs `threshold`, such as threshold = 0.5");
    wrong(r#"{"name": "a", "write": "always", "threshold": 1}"#, "`always` takes no `threshold`");
    wrong(r#"{"name": "a", "write": "both", "threshold": 1}"#, "`both` needs `interval_ms`");
    wrong(r#"{"name": "a", "write": "change", "threshold": 0}"#, "above 0");
    wrong(r#"{"name": "a", "write": "periodic", "interval_ms": 0}"#, "at least 1 ms");
    wrong(r#"{"name": "a", "write": "always", "device": ""}"#, "a pattern has 1 to");
    wrong(r#"{"name": "a", "write": "always", "divice": "x"}"#, "unknown field `divice`");
    wrong(r#"{"name": "a", "write": "always"}, {"name": "a", "write": "never"}"#, "two rules are named `a`");
    assert!(PolicySet::new(many(MAX_RULES)).is_ok());
    assert_eq!(PolicySet::new(many(MAX_RULES + 1)), Err(PolicySetError::TooMany(MAX_RULES + 1)));
    let mut long = many(40);
    long.iter_mut().for_each(|rule| {
        let pattern = || Pattern::new(&"x".repeat(MAX_PATTERN_BYTES)).unwrap();
        (rule.client, rule.stream, rule.device, rule.service) = (pattern(), pattern(), pattern(), pattern());
    });
    assert!(matches!(PolicySet::new(long), Err(PolicySetError::TooLong(_))));
}

fn many(count: usize) -> Vec<Rule> {
    let rule = |at| Rule {
        name: RuleName::new(&format!("rule-{at}")).unwrap(),
        client: Pattern::any(),
        stream: Pattern::any(),
        device: Pattern::any(),
        service: Pattern::any(),
        policy: WritePolicy::Always,
    };
    (0..count).map(rule).collect()
}

/// What a pattern means, by trying everything.
fn matches_plainly(pattern: &[char], name: &[char]) -> bool {
    match pattern {
        [] => name.is_empty(),
        ['*', rest @ ..] => (0..=name.len()).any(|at| matches_plainly(rest, &name[at..])),
        [first, rest @ ..] => name.first() == Some(first) && matches_plainly(rest, &name[1..]),
    }
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<i64>().prop_map(Value::Integer),
        (-1e6..1e6).prop_map(Value::Float),
        "[ab]{0,2}".prop_map(Value::Text),
        any::<bool>().prop_map(Value::Boolean),
    ]
}

fn any_policy() -> impl Strategy<Value = WritePolicy> {
    let interval = || (1..=Interval::MAX_MS).prop_map(interval);
    let threshold = || (1e-6..1e6).prop_map(threshold);
    prop_oneof![
        Just(WritePolicy::Always),
        Just(WritePolicy::Never),
        interval().prop_map(WritePolicy::Periodic),
        threshold().prop_map(WritePolicy::Change),
        (interval(), threshold()).prop_map(|(interval, threshold)| WritePolicy::Both(interval, threshold)),
    ]
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let pattern = || "[a-c/*é]{1,8}".prop_filter_map("too many stars", |text| Pattern::new(&text).ok());
    (pattern(), pattern(), pattern(), pattern(), any_policy()).prop_map(
        |(client, stream, device, service, policy)| {
            let name = RuleName::new("r").unwrap();
            Rule { name, client, stream, device, service, policy }
        },
    )
}

proptest! {
    #[test]
    fn a_pattern_matches_what_trying_everything_says(pattern in "[ab*é]{1,8}", name in "[abé]{0,8}") {
        let (pattern_chars, name_chars): (Vec<_>, Vec<_>) = (pattern.chars().collect(), name.chars().collect());
        let Ok(pattern) = Pattern::new(&pattern) else { return Ok(()) };
        prop_assert_eq!(pattern.matches(&name), matches_plainly(&pattern_chars, &name_chars));
    }

    #[test]
    fn rules_survive_their_bytes_and_their_text(rule in any_rule()) {
        let set = PolicySet::new(vec![rule]).unwrap();
        prop_assert_eq!(&crate::codec::decode::<4096, PolicySet>(&crate::codec::encode(&set)).unwrap(), &set);
        let text = serde_json::to_string(&set).unwrap();
        prop_assert_eq!(&serde_json::from_str::<PolicySet>(&text).unwrap(), &set);
    }

    /// The promise that the audit holds a history to: a value that was left out under `change`
    /// differs from the written one before it by less than the threshold, and under `periodic` no
    /// interval passes between values that come without a written one.
    #[test]
    fn what_is_left_out_is_within_the_promise(
        policy in any_policy(),
        values in prop::collection::vec((any::<u32>(), any_value()), 1..60),
    ) {
        let mut written: Option<Base> = None;
        for (time, value) in values {
            let time = Timestamp(u64::from(time));
            let verdict = policy.judge(written.as_ref(), time, &value);
            if !verdict.writes() && policy != WritePolicy::Never {
                let base = written.as_ref().unwrap();
                prop_assert!(time > base.event_time);
                if let WritePolicy::Periodic(interval) | WritePolicy::Both(interval, _) = policy {
                    prop_assert!(time.0 - base.event_time.0 < interval.ms());
                }
                if let WritePolicy::Change(threshold) | WritePolicy::Both(_, threshold) = policy {
                    prop_assert!(!threshold.is_reached(&base.value, &value));
                    if let (Value::Float(old), Value::Float(new)) = (&base.value, &value) {
                        prop_assert!((old - new).abs() < threshold.get());
                    }
                }
            }
            if verdict.writes() && written.as_ref().is_none_or(|base| base.event_time < time) {
                written = Some(Base { event_time: time, value });
            }
        }
    }

    #[test]
    fn whether_a_change_is_reached_is_the_same_in_both_directions(
        amount in 1e-6..1e6, old in any_value(), new in any_value(),
    ) {
        let threshold = threshold(amount);
        prop_assert_eq!(threshold.is_reached(&old, &new), threshold.is_reached(&new, &old));
    }
}
