//! A file of readings is on the ledger once, whatever became of the runs that published it.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Output, Stdio};

use ledgermq::crypto::SecretKey;
use ledgermq::keyfile;
use ledgermq::types::ClientId;
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::network::{PATIENCE, TestNetwork};

/// More than a window of messages without an answer.
const ROWS: usize = 400;

/// Rows of one minute each, in `readings.csv`.
fn write_rows(network: &TestNetwork, rows: impl Iterator<Item = String>) {
    let rows: Vec<String> = rows.collect();
    fs::write(network.path("readings.csv"), format!("time,temperature\n{}\n", rows.join("\n"))).unwrap();
}

fn row(at: usize) -> String {
    format!("2026-01-01T{:02}:{:02}:00Z,{}.5", at / 60, at % 60, at % 30)
}

async fn publish(network: &TestNetwork, extra: &[&str]) -> Output {
    publish_of(network, &[&["--device", "th-01"], extra].concat()).await
}

async fn publish_of(network: &TestNetwork, extra: &[&str]) -> Output {
    let mut command = command(network);
    command.arg("--csv").arg(network.path("readings.csv")).args(extra);
    tokio::time::timeout(PATIENCE, command.output()).await.unwrap().unwrap()
}

fn command(network: &TestNetwork) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ledgermq"));
    command.args(["publish", "devices/iot", "--json", "--network"]).arg(network.local.dir());
    command.arg("--key").arg(network.path("iot.key")).kill_on_drop(true);
    command
}

fn summary(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", told(output)))
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_whose_run_ended_in_the_middle_is_finished_by_the_next_one_and_nothing_is_sent_twice() {
    let mut network = TestNetwork::start(4).await;
    let key = network.register("devices/iot").await;
    keyfile::write(&network.path("iot.key"), &key).unwrap();

    // What is wrong is found before anything is sent.
    write_rows(&network, (0..ROWS).map(row).chain(["noon,5".into()]));
    let refused = publish(&network, &[]).await;
    assert_eq!(refused.status.code(), Some(1), "{}", told(&refused));
    assert!(told(&refused).contains("line 402: \"noon\" is no time"), "{}", told(&refused));
    assert!(told(&refused).contains("nothing was sent"), "{}", told(&refused));
    write_rows(&network, (0..ROWS).map(row).chain(["2026-01-02T00:00:00Z,n/a".into()]));
    let refused = publish(&network, &[]).await;
    assert!(told(&refused).contains("the first \"n/a\" in line 402"), "{}", told(&refused));
    assert!(!network.path("iot.key.state").exists(), "nothing was begun");

    // Without a quorum a window of messages is taken up, and none becomes final.
    write_rows(&network, (0..ROWS).map(row));
    network.kill(2).await;
    network.kill(3).await;
    let stuck = publish(&network, &["--final-timeout", "1"]).await;
    assert_eq!(stuck.status.code(), Some(1), "{}", told(&stuck));
    let left = summary(&stuck)["failed"].as_u64().unwrap();
    assert!(left > 0 && left < ROWS as u64, "{left}");
    assert!(told(&stuck).contains("run the same command again"), "{}", told(&stuck));

    network.spawn_all().await;
    let finished = publish(&network, &[]).await;
    assert!(finished.status.success(), "{}", told(&finished));
    assert!(told(&finished).contains(&format!("took up {left} of 400 messages")), "{}", told(&finished));
    let found = summary(&finished);
    assert_eq!(found["earlier"], left, "{found}");
    assert_eq!(found["messages"], ROWS as u64 - left, "{found}");
    each_once(&network, ROWS).await;

    // The same again is nothing, and of a file that has grown what is new is sent.
    let same = publish(&network, &[]).await;
    assert!(same.status.success(), "{}", told(&same));
    assert_eq!((&summary(&same)["messages"], &summary(&same)["earlier"]), (&0.into(), &ROWS.into()));
    write_rows(&network, (0..ROWS + 2).map(row));
    let grown = publish(&network, &[]).await;
    assert_eq!((&summary(&grown)["messages"], &summary(&grown)["earlier"]), (&2.into(), &ROWS.into()));
    each_once(&network, ROWS + 2).await;
    // What was sent is not sent again unasked when a line is changed, missing, or when the file begins later.
    let changed = |at| row(at).replace("T00:07:00Z,7.5", "T00:07:00Z,8.5");
    let last_changed = (0..=ROWS).map(row).chain([row(ROWS + 1).replace(".5", ".7")]);
    for (rows, line) in [
        ((0..ROWS + 2).map(changed).collect(), ROWS + 3),
        (last_changed.collect(), 2),
        ((0..9).map(row).collect(), 2),
        ((100..ROWS + 9).map(row).collect::<Vec<_>>(), ROWS + 3 - 100),
    ] {
        write_rows(&network, rows.into_iter());
        let refused = publish(&network, &[]).await;
        assert_eq!(refused.status.code(), Some(1), "{}", told(&refused));
        assert!(told(&refused).contains(&format!("line {line}, was taken up before")), "{}", told(&refused));
    }
    each_once(&network, ROWS + 2).await;
    write_rows(&network, (0..ROWS + 2).map(row));
    let again = publish(&network, &["--again"]).await;
    assert_eq!(summary(&again)["messages"], ROWS + 2, "{}", told(&again));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_refused_is_tried_again_by_the_next_run_and_nothing_else() {
    let mut network = TestNetwork::start(1).await;
    let key = SecretKey::generate().unwrap();
    network.local.register(&ClientId::new("devices/iot").unwrap(), key.public()).await.unwrap();
    keyfile::write(&network.path("iot.key"), &key).unwrap();
    let rows = "a,20.5\n2026-01-01T00:01:00Z,b,21.5\n2026-01-01T00:02:00Z,a,22.5";
    fs::write(
        network.path("readings.csv"),
        format!("time,device,temperature\n2026-01-01T00:00:00Z,{rows}\n"),
    )
    .unwrap();
    set_rules(&network, "rules = []\n[[quotas]]\nclient = \"devices/iot\"\nmax_items = 1\n", &[]).await;
    let device = ["--device-column", "device"];
    let refused = publish_of(&network, &device).await;
    assert_eq!(refused.status.code(), Some(1), "{}", told(&refused));
    assert_eq!((&summary(&refused)["messages"], &summary(&refused)["refused"]), (&2.into(), &1.into()));
    let still = publish_of(&network, &device).await;
    assert_eq!(still.status.code(), Some(1), "{}", told(&still));
    assert_eq!((&summary(&still)["messages"], &summary(&still)["refused"]), (&0.into(), &1.into()));
    set_rules(
        &network,
        "rules = []\n[[quotas]]\nclient = \"devices/iot\"\nmax_items = 2\n",
        &["--replaces", "1"],
    )
    .await;
    let mended = publish_of(&network, &device).await;
    assert!(mended.status.success(), "{}", told(&mended));
    assert_eq!((&summary(&mended)["messages"], &summary(&mended)["earlier"]), (&1.into(), &2.into()));
    each_once(&network, 3).await;
    let same = publish_of(&network, &device).await;
    assert_eq!((&summary(&same)["messages"], &summary(&same)["earlier"]), (&0.into(), &3.into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_is_published_as_it_comes() {
    let mut network = TestNetwork::start(1).await;
    let key = network.register("devices/iot").await;
    keyfile::write(&network.path("iot.key"), &key).unwrap();
    let named = network.path("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &named, rustix::fs::Mode::RWXU).unwrap();
    let line = r#"{"count":1,"eventTime":1767225600000,"data":[{"deviceId":"th-02","serviceId":"s","num":1,"value":1}]}"#;
    for (as_, path, text, counts) in [
        ("--csv", "/dev/stdin", format!("time,t\n{}\nnoon,5\n{}\n", row(0), row(1)), [2, 1]),
        ("--json-lines", "/dev/stdin", format!("{line}\n{{}}\n"), [1, 1]),
        ("--csv", named.to_str().unwrap(), format!("time,t\n{}\n", row(2)), [1, 0]),
        // What came once is not known again.
        ("--csv", "/dev/stdin", format!("time,t\n{}\n", row(2)), [1, 0]),
    ] {
        let mut command = command(&network);
        command.args([as_, path]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdin = child.stdin.take().unwrap();
        let write = async {
            if path == "/dev/stdin" {
                let mut stdin = stdin;
                stdin.write_all(text.as_bytes()).await.unwrap();
            } else {
                tokio::fs::write(path, text).await.unwrap();
            }
        };
        let ((), output) =
            tokio::time::timeout(PATIENCE, async { tokio::join!(write, child.wait_with_output()) })
                .await
                .unwrap();
        let output = output.unwrap();
        let found = summary(&output);
        assert_eq!([&found["messages"], &found["invalid"]], counts.map(Value::from).each_ref(), "{found}");
        assert_eq!(output.status.success(), counts[1] == 0, "{}", told(&output));
    }
}

async fn set_rules(network: &TestNetwork, rules: &str, extra: &[&str]) {
    let file = network.path("rules.toml");
    fs::write(&file, rules).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ledgermq"));
    command.args(["policy", "set"]).arg(&file).arg("--network").arg(network.local.dir()).args(extra);
    let output = tokio::time::timeout(PATIENCE, command.kill_on_drop(true).output()).await.unwrap().unwrap();
    assert!(output.status.success(), "{}", told(&output));
}

async fn each_once(network: &TestNetwork, rows: usize) {
    let records = network.wait_for_records(0, "client=devices/iot&limit=1000", rows).await;
    let times: BTreeSet<String> = records.iter().map(|record| record["event_time"].to_string()).collect();
    assert_eq!((records.len(), times.len()), (rows, rows), "each reading once");
}
