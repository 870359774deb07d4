//! `ledgermq demo`, as a script sees it.
#![allow(clippy::unwrap_used)]

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

/// Far more than it takes, on a busy machine and without optimization.
const PATIENCE: Duration = Duration::from_secs(300);

fn demo(args: &[&str]) -> Value {
    let mut command = assert_cmd::Command::cargo_bin("ledgermq").unwrap();
    let output = command.timeout(PATIENCE).arg("demo").arg("--json").args(args).output().unwrap();
    let story = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{story}");
    assert!(story.contains("NOT PROVEN: "), "{story}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn four_replicas_prove_every_reading() {
    let summary = demo(&["--readings", "300"]);
    let names: Vec<&str> = summary.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = [
        "blocks",
        "bundles_failed",
        "bundles_verified",
        "final_ms",
        "items",
        "items_written",
        "messages",
        "puback_ms",
        "replicas",
        "seconds",
    ];
    assert!(expected.iter().all(|name| names.contains(name)) && names.len() == expected.len(), "{names:?}");
    for (name, number) in [
        ("messages", 300),
        ("items", 600),
        ("items_written", 600),
        ("replicas", 4),
        ("bundles_verified", 300),
        ("bundles_failed", 0),
    ] {
        assert_eq!(summary[name], number, "{name} in {summary}");
    }
    assert!(summary["blocks"].as_u64().unwrap() >= 3, "{summary}");
    assert!(summary["seconds"].as_f64().unwrap() > 0.0, "{summary}");
    for times in ["puback_ms", "final_ms"] {
        let of = |quantile: &str| summary[times][quantile].as_f64().unwrap();
        assert!(0.0 < of("p50") && of("p50") <= of("p99") && of("p99") <= of("max"), "{summary}");
    }
}

#[test]
fn one_replica_is_a_network_too() {
    let summary = demo(&["--readings", "10", "--replicas", "1"]);
    assert_eq!((&summary["replicas"], &summary["bundles_verified"]), (&1.into(), &10.into()));
}

#[test]
fn ctrl_c_leaves_nothing_behind() {
    let temporary = tempfile::tempdir().unwrap();
    let mut demo = Command::new(env!("CARGO_BIN_EXE_ledgermq"))
        .args(["demo", "--replicas", "2"])
        .env("TMPDIR", temporary.path())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut story = std::io::BufReader::new(demo.stdout.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("3.") {
        line.clear();
        assert!(std::io::BufRead::read_line(&mut story, &mut line).unwrap() > 0);
    }
    let pid = rustix::process::Pid::from_raw(demo.id().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    std::io::copy(&mut story, &mut std::io::sink()).unwrap();
    let ended = demo.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    let error = String::from_utf8_lossy(&ended.stderr);
    assert!(error.contains("interrupted"), "{error}");
    assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0);
}
