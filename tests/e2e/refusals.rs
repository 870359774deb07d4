//! `ledgermq publish` as somebody whom the network does not take: told at once, and what to do.

use tokio::process::Command;

use crate::network::{PATIENCE, TestNetwork};

/// Far longer than the tests wait: who ends before was refused, and did not give up.
const WAITS_FOR_NODES: &str = "3600";

/// Standard error; the exit code must be 1.
async fn publish(network: &TestNetwork, client: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ledgermq"));
    command.args(["publish", client, "--key"]).arg(network.path("any.key"));
    command.arg("--network").arg(network.local.dir()).arg("--csv").arg(network.path("readings.csv"));
    command.arg("--state").arg(network.path(&client.replace('/', "-"))).kill_on_drop(true);
    command.args(["--timeout", WAITS_FOR_NODES]);
    let output = tokio::time::timeout(PATIENCE, command.output()).await.expect("it is refused").unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    error
}

/// Standard error of a command that prints a token.
async fn token(network: &TestNetwork, client: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ledgermq"));
    command.args(["client", "token", client, "--key"]).arg(network.path("any.key"));
    let output = command.arg("--network").arg(network.local.dir()).output().await.unwrap();
    assert!(output.status.success() && !output.stdout.is_empty(), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_publish_is_told_at_once_and_what_to_do() {
    let mut network = TestNetwork::start(4).await;
    std::fs::write(network.path("readings.csv"), "time,temperature\n2026-01-01T00:00:00Z,5\n").unwrap();
    let mut new = Command::new(env!("CARGO_BIN_EXE_ledgermq"));
    let made = new.args(["client", "new", "devices/any", "--key"]).arg(network.path("any.key")).output();
    assert!(made.await.unwrap().status.success());
    let _another_key = network.register("devices/other").await;
    let _any_key = network.register("devices/lost").await;
    network.revoke("devices/lost").await;
    for (client, code, advice) in [
        ("devices/unknown", "not_registered", "`ledgermq client register`"),
        ("devices/other", "NotAuthorized", "give the --key"),
        ("devices/lost", "revoked", "another id"),
    ] {
        let error = publish(&network, client).await;
        assert!(error.contains(code) && error.contains(advice), "{client}: {error}");
    }
    for (client, doubt) in [
        ("devices/unknown", "it is not registered"),
        ("devices/other", "it is registered with another key"),
        ("devices/lost", "the client is revoked"),
    ] {
        let warned = async || token(&network, client).await.contains(doubt).then_some(());
        network.eventually(&format!("{client} is doubted"), warned).await;
    }
    network.local.kill_all().await.unwrap();
    assert_eq!(token(&network, "devices/other").await, "", "a token is made without nodes, too");
}
