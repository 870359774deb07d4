//! `ledgermq publish` as somebody whom the network does not take: told at once, and what to do.

use std::time::Duration;

use ledgermq::clock::{Clock as _, SystemClock};
use tokio::process::Command;

use crate::network::TestNetwork;

/// Less than the 30 s for which `ledgermq publish` waits for a node.
const AT_ONCE: Duration = Duration::from_secs(20);

/// Standard error and how long it took; the exit code must be 1.
async fn publish(network: &TestNetwork, client: &str) -> (String, Duration) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ledgermq"));
    command.args(["publish", client, "--key"]).arg(network.path("any.key"));
    command.arg("--network").arg(network.local.dir()).arg("--csv").arg(network.path("readings.csv"));
    command.arg("--state").arg(network.path(&client.replace('/', "-"))).kill_on_drop(true);
    let clock = SystemClock::new();
    let output = command.output().await.unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    (error, clock.monotonic())
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
        let (error, took) = publish(&network, client).await;
        assert!(error.contains(code) && error.contains(advice), "{client}: {error}");
        assert!(took < AT_ONCE, "{client}: {took:?}: {error}");
    }
}
