//! `ledgermq bench`, as a script sees it: that its figures agree with each other, never how good
//! they are.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use ledgermq::cli::local::{LocalNetwork, LocalNetworkOptions};
use serde_json::Value;

/// Far more than it takes, on a busy machine and without optimization.
const PATIENCE: Duration = Duration::from_secs(300);

fn bench(args: &[&str]) -> Value {
    let mut command = assert_cmd::Command::cargo_bin("ledgermq").unwrap();
    let output = command.timeout(PATIENCE).args(["bench", "--json"]).args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn number(of: &Value, name: &str) -> f64 {
    of[name].as_f64().unwrap_or_else(|| panic!("{name} is no number in {of}"))
}

/// What holds in any report, of however slow a machine.
fn agrees_with_itself(report: &Value) {
    let of = |name| number(report, name);
    assert!(of("offered_per_s") >= of("accepted_per_s"), "{report}");
    assert!(of("accepted_per_s") >= of("final_messages_per_s"), "{report}");
    let items = of("final_messages_per_s") * of("items");
    assert!((of("final_items_per_s") - items).abs() <= items / 100.0 + 1.0, "{report}");
    for times in ["puback_ms", "final_ms"] {
        let [p50, p95, p99, max] = ["p50", "p95", "p99", "max"].map(|name| number(&report[times], name));
        assert!(0.0 < p50 && p50 <= p95 && p95 <= p99 && p99 <= max, "{report}");
    }
    for name in ["p50", "p99", "max"] {
        assert!(number(&report["puback_ms"], name) <= number(&report["final_ms"], name), "{report}");
    }
    let messages = &report["messages"];
    let errors: f64 =
        report["errors"].as_object().unwrap().values().map(|count| count.as_f64().unwrap()).sum();
    assert_eq!(number(messages, "offered"), number(messages, "final") + errors, "{report}");
    assert!(number(messages, "final") > 0.0, "{report}");
}

#[test]
fn a_paced_load_on_four_replicas_is_accounted_for() {
    let report =
        bench(&["--clients", "2", "--rate", "10", "--duration", "3", "--items", "3", "--size", "500"]);
    agrees_with_itself(&report);
    assert_eq!(number(&report["messages"], "offered"), 30.0, "{report}");
    assert_eq!(report["offered_per_s"], 10.0);
    assert_eq!(report["body_bytes"], 500);
    let nodes = report["nodes"].as_array().unwrap();
    assert_eq!(nodes.len(), 4);
    for node in nodes {
        assert!(number(node, "cpu_s") > 0.0 && number(node, "rss_peak_bytes") > 1e6, "{report}");
    }
    assert!(number(&report, "client_cpu_s") > 0.0, "{report}");
    assert!(report.get("outage").is_none(), "{report}");
}

#[test]
fn a_killed_primary_shows_in_the_report() {
    let report = bench(&["--clients", "4", "--rate", "20", "--duration", "8", "--kill-primary-at", "2"]);
    agrees_with_itself(&report);
    let outage = &report["outage"];
    assert_eq!(outage["killed"].as_array().unwrap().len(), 1, "{report}");
    assert!(number(outage, "at_s") >= 2.0 && number(outage, "before_per_s") > 0.0, "{report}");
    // The others have replaced it, in the end or after it: nobody's message was lost.
    assert_eq!(report["errors"].as_object().unwrap().get("not_final"), None, "{report}");
    assert!(number(outage, "recovery_ms") > 0.0, "{report}");
}

#[test]
fn a_running_network_is_loaded_and_left_without_clients_that_may_send() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let options = LocalNetworkOptions::new(dir.path().join("net"), 1).unwrap();
    let options = options.program(env!("CARGO_BIN_EXE_ledgermq"));
    let mut network = runtime.block_on(LocalNetwork::start(options)).unwrap();
    let net = network.dir().to_str().unwrap().to_owned();
    let target = format!("127.0.0.1:{}", network.files().nodes[0].ports.mqtt);
    let load = ["--clients", "2", "--rate", "0", "--duration", "1", "--items", "1"];
    let report = bench(&[&["--network", &net, "--target", &target], &load[..]].concat());
    agrees_with_itself(&report);
    assert_eq!(report["nodes"].as_array().unwrap().len(), 0, "not this program's processes");
    let listed = Command::new(env!("CARGO_BIN_EXE_ledgermq"))
        .args(["client", "list", "--json", "--network", &net])
        .output()
        .unwrap();
    let clients: Value = serde_json::from_slice(&listed.stdout).unwrap();
    let clients = clients.as_array().unwrap();
    assert_eq!(clients.len(), 2, "{clients:?}");
    assert!(clients.iter().all(|client| client["revoked_after"] == 0), "{clients:?}");
    runtime.block_on(network.stop_all()).unwrap();
}

#[test]
fn ctrl_c_leaves_nothing_behind() {
    let temporary = tempfile::tempdir().unwrap();
    let mut bench = Command::new(env!("CARGO_BIN_EXE_ledgermq"))
        .args(["bench", "--replicas", "2", "--clients", "1", "--duration", "600"])
        .env("TMPDIR", temporary.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = BufReader::new(bench.stderr.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("load for") {
        line.clear();
        assert!(told.read_line(&mut line).unwrap() > 0);
    }
    let pid = rustix::process::Pid::from_raw(bench.id().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let mut error = String::new();
    std::io::Read::read_to_string(&mut told, &mut error).unwrap();
    assert_eq!(bench.wait().unwrap().code(), Some(1));
    assert!(error.contains("interrupted"), "{error}");
    assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0);
}
