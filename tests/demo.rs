//! `ledgermq demo`, as a script sees it.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Far more than it takes, on a busy machine and without optimization.
const PATIENCE: Duration = Duration::from_secs(300);

/// What it says, and its summary.
fn demo(args: &[&str]) -> (String, Value) {
    let mut command = assert_cmd::Command::cargo_bin("ledgermq").unwrap();
    let output = command.timeout(PATIENCE).arg("demo").arg("--json").args(args).output().unwrap();
    let story = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{story}");
    let summary = serde_json::from_slice(&output.stdout).unwrap();
    (story, summary)
}

#[test]
fn four_replicas_prove_every_reading_and_lose_none_with_the_primary() {
    let (story, summary) = demo(&["--readings", "300"]);
    for said in ["the primary, is killed: SIGKILL", "is started again", "NOT PROVEN: "] {
        assert!(story.contains(said), "{said}: {story}");
    }
    let names: Vec<&str> = summary.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = [
        "blocks",
        "bundles_failed",
        "bundles_verified",
        "final_after_replica_killed",
        "final_ms",
        "items",
        "items_written",
        "messages",
        "puback_ms",
        "recovery_ms",
        "reduction",
        "replicas",
        "seconds",
        "tampering_found",
    ];
    assert!(expected.iter().all(|name| names.contains(name)) && names.len() == expected.len(), "{names:?}");
    for (name, number) in [("messages", 300), ("items", 1_200), ("replicas", 4), ("bundles_failed", 0)] {
        assert_eq!(summary[name], number, "{name} in {summary}");
    }
    assert_eq!(summary["tampering_found"], serde_json::json!({ "history": true, "bundle": true }));
    assert_eq!(summary["final_after_replica_killed"], true);
    assert!(summary["recovery_ms"].as_f64().unwrap() > 0.0, "{summary}");
    // What the policies pick depends a little on who had seen what when the primary died.
    let number = |name: &str| summary[name].as_f64().unwrap();
    assert!((200.0..=300.0).contains(&number("bundles_verified")), "{summary}");
    assert!((400.0..=700.0).contains(&number("items_written")), "{summary}");
    let reduction = 1.0 - number("items_written") / number("items");
    assert!((number("reduction") - reduction).abs() < 0.001, "{summary}");
    assert!(number("blocks") >= 3.0 && number("seconds") > 0.0, "{summary}");
    for times in ["puback_ms", "final_ms"] {
        let of = |quantile: &str| summary[times][quantile].as_f64().unwrap();
        assert!(0.0 < of("p50") && of("p50") <= of("p99") && of("p99") <= of("max"), "{summary}");
    }
}

#[test]
fn one_replica_is_a_network_too() {
    let (story, summary) = demo(&["--readings", "10", "--replicas", "1"]);
    assert!(story.contains("is killed and started again"), "{story}");
    assert_eq!((&summary["replicas"], &summary["messages"]), (&1.into(), &10.into()));
    assert_eq!(summary["tampering_found"]["history"], true);
}

/// A demo, its story up to a line that begins so, and where its files are.
fn demo_until(
    line: &str,
    args: &[&str],
    temporary: &tempfile::TempDir,
) -> (Child, BufReader<ChildStdout>, String) {
    let mut demo = Command::new(env!("CARGO_BIN_EXE_ledgermq"))
        .arg("demo")
        .args(args)
        .env("TMPDIR", temporary.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(demo.stdout.take().unwrap());
    let mut story = String::new();
    while !story.lines().next_back().is_some_and(|last| last.starts_with(line)) {
        assert!(lines.read_line(&mut story).unwrap() > 0, "{story}");
    }
    (demo, lines, story)
}

fn interrupt(demo: Child, mut rest: BufReader<ChildStdout>) -> std::process::Output {
    let pid = Pid::from_raw(demo.id().try_into().unwrap()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    std::io::copy(&mut rest, &mut std::io::sink()).unwrap();
    demo.wait_with_output().unwrap()
}

#[test]
fn ctrl_c_leaves_nothing_behind() {
    let temporary = tempfile::tempdir().unwrap();
    let (demo, rest, _) = demo_until("3.", &["--replicas", "2"], &temporary);
    let ended = interrupt(demo, rest);
    assert_eq!(ended.status.code(), Some(1));
    let error = String::from_utf8_lossy(&ended.stderr);
    assert!(error.contains("interrupted"), "{error}");
    assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0);
}

/// The lines of `--keep` that need nothing but this program, run as they are printed.
#[test]
fn kept_it_says_what_to_try_and_that_works() {
    let temporary = tempfile::tempdir().unwrap();
    let args = ["--keep", "--replicas", "1", "--readings", "10"];
    let (demo, mut rest, _) = demo_until("Try, from another terminal:", &args, &temporary);
    let program = env!("CARGO_BIN_EXE_ledgermq");
    let (mut tried, mut names) = (Vec::new(), String::new());
    loop {
        let mut line = String::new();
        rest.read_line(&mut line).unwrap();
        assert!(line.len() <= 81 || names.is_empty(), "it fits a terminal: {line}");
        while line.ends_with("\\\n") && line.contains("$L audit") {
            line.truncate(line.len() - 2);
            rest.read_line(&mut line).unwrap();
        }
        if ["L=", "D=", "A="].iter().any(|name| line.trim().starts_with(name)) {
            names.push_str(&line);
        } else if let Some(words) = line.trim().strip_prefix("$L ") {
            assert!(names.contains(program), "{names}");
            let shell = format!("{names}$L {words}");
            let output = Command::new("sh").args(["-c", &shell]).output().unwrap();
            tried.push((words.split_whitespace().next().unwrap().to_owned(), output.status.code().unwrap()));
        }
        if line.trim().starts_with("mosquitto_rr") {
            break;
        }
    }
    let expected = [("status", 0), ("policy", 0), ("client", 0), ("verify", 0), ("verify", 1), ("audit", 1)];
    assert_eq!(tried, expected.map(|(command, code)| (command.to_owned(), code)));
    interrupt(demo, rest);
    assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0);
}
