//! Foreign clients against the embedded broker: `mosquitto_pub` and `mosquitto_sub`, MQTT 3.1, 3.1.1 and 5.
//!
//! Runs with `--features interop` where Debian's `mosquitto-clients` is installed, and fails where it is not.
#![cfg(feature = "interop")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, dead_code)]

#[path = "broker/support.rs"]
mod support;

use std::process::{Output, Stdio};

use bytes::Bytes;
use ledgermq::broker::{Broker, DownlinkQos};
use support::{Event, PATIENCE, World, eventually, id};
use tokio::process::{Child, Command};

const VERSIONS: [&str; 3] = ["mqttv31", "mqttv311", "mqttv5"];

fn mosquitto(program: &str, world: &World, version: &str, token: &str) -> Command {
    let mut command = Command::new(program);
    command.args(["-h", "127.0.0.1", "-p", &world.address().port().to_string(), "-V", version]);
    command.args(["-i", "devices/iot", "-u", "account", "-P", token]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

fn spawn(command: &mut Command) -> Child {
    command.spawn().expect("mosquitto_pub and mosquitto_sub are installed (Debian: mosquitto-clients)")
}

async fn finish(child: Child) -> Output {
    tokio::time::timeout(PATIENCE, child.wait_with_output()).await.expect("it ends").unwrap()
}

#[tokio::test]
async fn mosquitto_pub_publishes_with_every_version_and_quality_of_service() {
    let world = World::new().await;
    let mut expected = Vec::new();
    for version in VERSIONS {
        for qos in ["0", "1", "2"] {
            let message = format!("{version} {qos}");
            let mut command = mosquitto("mosquitto_pub", &world, version, "secret");
            command.args(["-t", "devices/iot/env", "-q", qos, "-m", &message]);
            let output = finish(spawn(&mut command)).await;
            assert!(output.status.success(), "{message}: {output:?}");
            expected.push(message);
            eventually("arrived", || world.gate.published().len() == expected.len()).await;
        }
    }
    let arrived = world.gate.published().into_iter().map(|(_, _, payload)| payload);
    assert!(arrived.eq(expected.iter().map(|text| Bytes::from(text.clone()))));
}

#[tokio::test]
async fn mosquitto_sub_receives_its_downlink() {
    for version in VERSIONS {
        let world = World::new().await;
        let mut command = mosquitto("mosquitto_sub", &world, version, "secret");
        let child = spawn(command.args(["-t", "devices/iot/#", "-q", "1", "-C", "1", "-F", "%t %x"]));
        let subscribed = |event: &Event| matches!(event, Event::Subscribed(_));
        eventually("subscribed", || world.gate.count(subscribed) == 1).await;
        let payload = Bytes::from_static(&[0xd2, 0x84]);
        world
            .broker
            .publish(&id("devices/iot"), "devices/iot/env/success", payload, DownlinkQos::AtLeastOnce)
            .await
            .unwrap();
        let output = finish(child).await;
        assert_eq!(String::from_utf8_lossy(&output.stdout), "devices/iot/env/success d284\n", "{version}");
    }
}

#[tokio::test]
async fn mosquitto_pub_is_told_when_it_is_not_authorized() {
    let world = World::new().await;
    for version in VERSIONS {
        let mut command = mosquitto("mosquitto_pub", &world, version, "wrong");
        let output = finish(spawn(command.args(["-t", "devices/iot/env", "-q", "1", "-m", "x"]))).await;
        assert!(!output.status.success(), "{version}");
        let message = String::from_utf8_lossy(&output.stderr).to_lowercase();
        assert!(message.contains("not authori"), "{version}: {message}");
    }
    assert_eq!(world.gate.published(), []);
}

#[tokio::test]
async fn mosquitto_pub_is_told_when_the_topic_is_not_its_own() {
    let world = World::new().await;
    for version in VERSIONS {
        let mut command = mosquitto("mosquitto_pub", &world, version, "secret");
        command.args(["-t", "devices/two/env", "-q", "1", "-m", "x"]);
        let output = finish(spawn(&mut command)).await;
        let message = String::from_utf8_lossy(&output.stderr).to_lowercase();
        let told =
            if version == "mqttv5" { message.contains("not authori") } else { !output.status.success() };
        assert!(told, "{version}: {output:?}");
    }
    assert_eq!(world.gate.published(), []);
}

#[tokio::test]
async fn mosquitto_pub_with_a_will_or_a_retained_message_is_refused() {
    let world = World::new().await;
    for version in VERSIONS {
        let mut command = mosquitto("mosquitto_pub", &world, version, "secret");
        command.args(["-t", "devices/iot/env", "-q", "1", "-m", "x"]);
        command.args(["--will-topic", "devices/iot/env", "--will-payload", "gone"]);
        assert!(!finish(spawn(&mut command)).await.status.success(), "{version} will");
        if version == "mqttv5" {
            // Told by the CONNACK that nothing is retained, mosquitto_pub drops the flag by itself.
            continue;
        }
        let mut command = mosquitto("mosquitto_pub", &world, version, "secret");
        command.args(["-t", "devices/iot/env", "-q", "1", "-m", "x", "-r"]);
        let output = finish(spawn(&mut command)).await;
        assert!(!output.status.success(), "{version} retained: {output:?}");
    }
    assert_eq!(world.gate.published(), []);
}
