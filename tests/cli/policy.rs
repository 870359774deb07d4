//! `ledgermq policy`: set, list, test.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use crate::ledger::{self, Ledger, Served};
use crate::{fail, json, ledgermq, succeed};

const RULES: &str =
    "[[rules]]\nname = \"temperature\"\nservice = \"temp*\"\nwrite = \"change\"\nthreshold = 0.5\n";

fn network(dir: &TempDir) -> Served {
    fs::write(dir.path().join("rules.toml"), RULES).unwrap();
    Ledger::serve(&ledger::init(dir.path(), 4))
}

fn set<'a>(url: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["policy", "set", "rules.toml", "--network", "net", "--api", url], more].concat()
}

#[test]
fn rules_are_set_listed_and_set_again_by_version() {
    let dir = tempfile::tempdir().unwrap();
    let served = network(&dir);
    let list = ["policy", "list", "--api", &served.url];
    assert!(succeed(&dir, &list).contains("Version 0: no policies are set"));
    assert!(succeed(&dir, &[&list[..], &["--history"]].concat()).contains("`ledgermq policy set` sets some"));
    let said = succeed(&dir, &set(&served.url, &[]));
    assert_eq!(said, "Version 1 is in force, 1 rule, 0 quotas: block 1, operation 0\n");
    let said = succeed(&dir, &list);
    assert!(said.starts_with("Version 1: block 1, operation 0, "), "{said}");
    assert!(said.contains("  temperature  service temp*: change, by 0.5 or more\n"), "{said}");

    // Nobody replaces what he has not seen.
    let err = fail(&dir, 1, &set(&served.url, &[]));
    assert!(err.contains("version 1 is in force") && err.contains("--replaces 1"), "{err}");
    let err = fail(&dir, 1, &set(&served.url, &["--replaces", "0"]));
    assert!(err.contains("version 1 of the policies is in force"), "{err}");

    let toml = succeed(&dir, &[&list[..], &["--toml"]].concat());
    assert!(toml.contains("replaces = 1"), "{toml}");
    fs::write(dir.path().join("rules.toml"), toml.replace("0.5", "0.25")).unwrap();
    let err = fail(&dir, 2, &set(&served.url, &["--replaces", "0"]));
    assert!(err.contains("the file says `replaces = 1`, and --replaces says 0"), "{err}");
    succeed(&dir, &set(&served.url, &[]));
    let history = json(&succeed(&dir, &[&list[..], &["--history", "--json"]].concat()));
    let told =
        |at: usize| (&history[at]["version"], &history[at]["height"], &history[at]["rules"][0]["threshold"]);
    assert_eq!(told(0), (&2.into(), &2.into(), &0.25.into()));
    assert_eq!(told(1), (&1.into(), &1.into(), &0.5.into()));
    assert!(history[0]["admin"].is_string());
    let first = json(&succeed(&dir, &[&list[..], &["--version", "1", "--json"]].concat()));
    assert_eq!(first, history[1]);
    assert!(fail(&dir, 1, &[&list[..], &["--version", "3"]].concat()).contains("no version 3"));
    let lines = succeed(&dir, &[&list[..], &["--history"]].concat());
    assert!(lines.starts_with("Version 2: ") && lines.lines().count() == 2, "{lines}");

    fs::write(dir.path().join("rules.toml"), "rules = []").unwrap();
    let said = succeed(&dir, &set(&served.url, &["--replaces", "2"]));
    assert_eq!(
        said,
        "Version 3 is in force, no rules (every reading is written), 0 quotas: block 3, operation 0\n"
    );
}

#[test]
fn a_wrong_file_is_refused_with_its_line_before_anything_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    for (from, to, says) in [
        ("threshold", "treshold", "in rules.toml, line 5: unknown field `treshold`"),
        ("\"change\"", "\"sometimes\"", "in rules.toml, line 4: unknown value `sometimes`"),
        (
            "service = \"temp*\"",
            "client = \"temp\"",
            "in rules.toml, line 1: rule `temperature`: no client's id",
        ),
        ("threshold = 0.5", "", "in rules.toml, line 1: `change` needs `threshold`, such as threshold = 0.5"),
        (RULES, "", "in rules.toml, line 1: there are no rules"),
        (RULES, "replaces = 1", "say `rules = []`"),
    ] {
        fs::write(dir.path().join("rules.toml"), RULES.replace(from, to)).unwrap();
        let err = fail(&dir, 1, &set("http://127.0.0.1:1", &[]));
        assert!(err.contains(says), "{err}");
    }
    assert!(
        fail(&dir, 1, &["policy", "test", "missing.toml", "--csv", "x"]).contains("cannot read missing.toml")
    );
}

#[test]
fn rules_are_tried_offline_on_a_file() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("rules.toml"), RULES).unwrap();
    let csv = "time,temp,hum\n1000,20.0,50\n2000,20.2,50\n3000,20.6,51\n2500,20.5,50\n";
    fs::write(dir.path().join("th-01.csv"), csv).unwrap();
    let test = ["policy", "test", "rules.toml", "--csv", "th-01.csv", "--time-unit", "ms"];
    let expected = "\
4 messages

item          rule         policy                     readings  written    share
th-01/temp/1  temperature  change, by 0.5 or more            4        3   75.0 %
th-01/hum/2   (none)       always                            4        4  100.0 %
all                                                          8        7   87.5 %
";
    let squeeze = |text: &str| {
        let words = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        words.collect::<Vec<_>>()
    };
    assert_eq!(squeeze(&succeed(&dir, &test)), squeeze(expected));
    let told = json(&succeed(&dir, &[&test[..], &["--json"]].concat()));
    let verdicts = &told["results"][0]["items"][0]["result"]["verdicts"];
    assert_eq!(*verdicts, json(r#"{"change": 1, "first": 1, "not_newer": 1, "quiet": 1}"#));
}

#[test]
fn what_a_trial_cannot_judge_is_warned_of() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("rules.toml"), RULES.replace("service = ", "client = \"plant/b\"\nservice = "))
        .unwrap();
    fs::write(dir.path().join("th-01.csv"), "time,temp\n1000,\"20,5\"\n2000,\"20,75\"\n").unwrap();
    let test = ["policy", "test", "rules.toml", "--csv", "th-01.csv", "--time-unit", "ms"];
    let warned = |more: &[&str]| {
        let (code, out, err) = ledgermq(&dir, &[&test[..], more].concat());
        assert_eq!(code, 0, "{err}");
        assert!(out.starts_with("2 messages\n"), "{out}");
        err
    };
    let err = warned(&[]);
    assert!(err.contains("`ledgermq publish` would refuse this") && err.contains("--decimal-comma"), "{err}");
    assert!(err.contains("no rule is for anything that") && err.contains("--client"), "{err}");
    assert_eq!(warned(&["--decimal-comma", "--client", "plant/b"]), "");
}

/// The table in the documentation is what the command prints that stands above it.
#[test]
fn the_table_in_the_documentation_is_what_the_command_prints() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = fs::read_to_string(root.join("docs/POLICY.md")).unwrap();
    let blocks: Vec<&str> = docs.split("```").skip(1).step_by(2).collect();
    let mut compared = 0;
    for pair in blocks.windows(2) {
        let Some(command) = pair[0].strip_prefix("sh\nledgermq policy test") else { continue };
        let args: Vec<&str> = command.split_whitespace().filter(|word| *word != "\\").collect();
        let mut program: assert_cmd::Command = assert_cmd::cargo::cargo_bin_cmd!("ledgermq");
        let output = program.current_dir(root).args(["policy", "test"]).args(args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let printed = String::from_utf8(output.stdout).unwrap();
        assert_eq!(
            pair[1].trim_start_matches("text\n"),
            printed,
            "docs/POLICY.md is not what the command prints"
        );
        compared += 1;
    }
    assert_eq!(compared, 2);
}
