//! A node that must not start says what to do, and one that can start does.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::device::{Device, now};
use crate::network::{TestNetwork, copy_dir, reading};

/// Runs a node that must end by itself with exit code 1; gives what it says.
async fn refusal(network: &TestNetwork, settings: &[(&str, &str)]) -> String {
    let output = network.run_node(0, settings).await;
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    said.lines()
        .filter(|line| line.starts_with("error: ") || line.starts_with("  "))
        .collect::<Vec<_>>()
        .join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_named_with_its_setting() {
    let network = TestNetwork::create(1, &[]);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let multiaddr = format!("[\"/ip4/127.0.0.1/tcp/{}\"]", address.port());
    let socket = address.to_string();
    for (setting, value) in [("mqtt.listen", &socket), ("api.listen", &socket), ("p2p.listen", &multiaddr)] {
        let said = refusal(&network, &[(setting, value)]).await;
        assert!(said.contains(setting) && said.contains(&address.port().to_string()), "{setting}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_files_are_named_with_what_to_do() {
    let network = TestNetwork::create(1, &[]);
    let dir = network.local.node_dir(0);
    let settings = dir.join("node.toml");
    let original = fs::read_to_string(&settings).unwrap();
    for (text, says) in [
        ("data_dir = ", "node.toml"),
        (&format!("{original}\nmistake = 1\n"), "mistake"),
        (&original.replace("data_dir = \"data\"", "data_dir = 7"), "data_dir"),
        (&original.replace("[mqtt]", "[mqtt]\nmax_inflight = 0"), "mqtt.max_inflight"),
        (&original.replace("../genesis.json", "nowhere.json"), "nowhere.json"),
    ] {
        fs::write(&settings, text).unwrap();
        let said = refusal(&network, &[]).await;
        assert!(said.contains(says), "{says}: {said}");
    }
    fs::remove_file(&settings).unwrap();
    assert!(refusal(&network, &[]).await.contains("node.toml"));
    fs::write(&settings, original).unwrap();

    for (file, damage, says) in [
        (network.files().genesis.clone(), "{}", "genesis"),
        (dir.join("node.key"), "not a key", "node.key"),
        (network.local.dir().join("swarm.key"), "not a key", "swarm.key"),
    ] {
        let original = fs::read(&file).unwrap();
        fs::write(&file, damage).unwrap();
        let said = refusal(&network, &[]).await;
        assert!(said.contains(says), "{says}: {said}");
        fs::write(&file, original).unwrap();
    }
    for file in [dir.join("node.key"), network.local.dir().join("swarm.key")] {
        let mode = |mode| fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        mode(0o644);
        let said = refusal(&network, &[]).await;
        assert!(
            said.contains("chmod 600") && said.contains(file.file_name().unwrap().to_str().unwrap()),
            "{said}"
        );
        mode(0o600);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_log_is_refused_and_a_torn_one_is_not() {
    let mut network = TestNetwork::start(1).await;
    let key = network.register("devices/iot").await;
    let mut device = Device::ready(&network, 0, "devices/iot", &key, 4).await;
    for seq in 1..=5 {
        assert_eq!(device.send(seq, &reading(now().0, 1.0, 1)).await, Some(0));
        assert_eq!(device.ack().await.written, [0, 1]);
    }
    network.kill(0).await;
    let data = network.local.node_dir(0).join("data");
    let copy = network.path("copy");
    copy_dir(&data, &copy);
    let restore = || {
        fs::remove_dir_all(&data).unwrap();
        copy_dir(&copy, &data);
        last_segment(&data)
    };

    for (what, damage) in damages() {
        let segment = restore();
        let mut bytes = fs::read(&segment).unwrap();
        damage(&mut bytes);
        fs::write(&segment, bytes).unwrap();
        let said = refusal(&network, &[]).await;
        assert!(said.contains("the log is damaged") && said.contains("docs/STORAGE.md"), "{what}: {said}");
        assert!(said.contains(segment.to_str().unwrap()), "{what}: {said}");
    }
    restore();
    fs::remove_dir_all(data.join("log")).unwrap();
    let said = refusal(&network, &[]).await;
    assert!(said.contains("the log in") && said.contains("docs/STORAGE.md"), "{said}");

    // The log of another network.
    let segment = restore();
    let mut bytes = fs::read(&segment).unwrap();
    bytes[20] ^= 1;
    fs::write(&segment, bytes).unwrap();
    refusal(&network, &[]).await;

    // A write that was cut off by a crash was never promised to anybody.
    let segment = restore();
    let mut bytes = fs::read(&segment).unwrap();
    bytes.extend([7; 11]);
    fs::write(&segment, bytes).unwrap();
    network.spawn(0).await;
    let records = network.wait_for_records(0, "client=devices/iot", 10).await;
    assert_eq!(records.len(), 10);
    assert!(network.log(0).contains("torn") || network.log(0).contains("cut"), "it says what it did");
    let mut device = Device::ready(&network, 0, "devices/iot", &key, 4).await;
    let free = [("mqtt.listen", "127.0.0.1:0"), ("api.listen", "127.0.0.1:0")];
    let said = refusal(&network, &free).await;
    assert!(said.contains("in use by another process"), "two nodes on one data directory: {said}");
    assert_eq!(device.send(6, &reading(now().0, 1.0, 1)).await, Some(0));
    assert_eq!(device.ack_of(6).await.written, [0, 1]);
}

type Damage = fn(&mut Vec<u8>);

/// What no crash does: bytes change that were on disk, and good ones follow them.
fn damages() -> [(&'static str, Damage); 3] {
    [
        ("a bit in the middle", |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        }),
        ("a bit in the first record", |bytes| bytes[70] ^= 1),
        ("bytes that are missing in the middle", |bytes| {
            let middle = bytes.len() / 2;
            drop(bytes.drain(middle..middle + 100));
        }),
    ]
}

fn last_segment(data: &Path) -> PathBuf {
    let segments = fs::read_dir(data.join("log")).unwrap().map(|entry| entry.unwrap().path());
    segments.filter(|path| path.extension().is_some_and(|end| end == "log")).max().unwrap()
}
