//! Garbage on any port harms nobody: the node lives, its memory stays bounded, and who behaves is served.

use std::time::Duration;

use ledgermq::crypto::random_bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::device::{Device, now};
use crate::network::{TestNetwork, reading};

/// What a node may take for all that is thrown at it here: many times less than was sent.
const MEMORY: u64 = 96 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_every_port_harms_nobody() {
    let mut network = TestNetwork::start(1).await;
    let key = network.register("devices/iot").await;
    let mut witness = Device::ready(&network, 0, "devices/iot", &key, 4).await;
    let before = network.peak_memory(0);
    let ports = network.ports(0);
    for port in [ports.mqtt, ports.api, ports.p2p] {
        for garbage in garbage() {
            throw(port, &garbage).await;
        }
        half_open_connections_are_no_hindrance(port).await;
    }
    oversized_requests_are_refused_by_http(&network).await;
    oversized_packets_end_their_mqtt_connection(&network).await;

    assert!(network.local.is_running(0).unwrap());
    let more = network.peak_memory(0) - before;
    assert!(more < MEMORY, "{more} bytes more");
    assert_eq!(witness.send(1, &reading(now().0, 1.0, 1)).await, Some(0));
    assert_eq!(witness.ack().await.written, [0, 1]);
    network.local.ready(0).await.unwrap();
}

/// Nothing, noise, one protocol's words on another's port, and lengths that promise the world.
fn garbage() -> Vec<Vec<u8>> {
    let noise: Vec<u8> = (0..64).flat_map(|_| random_bytes::<1024>().unwrap()).collect();
    vec![
        Vec::new(),
        vec![0],
        vec![0xff; 64 << 10],
        noise,
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        b"POST /v1/operations HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n".to_vec(),
        b"POST /v1/operations HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n"
            .to_vec(),
        [b"GET /".to_vec(), vec![b'a'; 1 << 20]].concat(),
        // MQTT: a CONNECT that says that 256 MiB follow, a PUBLISH before any CONNECT.
        vec![0x10, 0xff, 0xff, 0xff, 0x7f, 0, 4, b'M', b'Q', b'T', b'T'],
        vec![0x30, 0x03, 0x00, 0x01, b'a'],
        // multistream-select with a length of 2^63.
        vec![0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
        b"\x13/multistream/1.0.0\n\x07/noise\n".to_vec(),
    ]
}

/// Sends garbage, and waits until the node hangs up or has answered all that it wants to.
async fn throw(port: u16, garbage: &[u8]) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    // The node may hang up in the middle, which is as good an answer as any.
    let _ = stream.write_all(garbage).await;
    let _ = stream.shutdown().await;
    let read_to_end = async {
        let mut answer = [0; 4096];
        while stream.read(&mut answer).await.is_ok_and(|count| count > 0) {}
    };
    tokio::time::timeout(Duration::from_secs(30), read_to_end).await.expect("the node hangs up");
}

/// Connections that say nothing; a hundred of them take nobody's place.
async fn half_open_connections_are_no_hindrance(port: u16) {
    let mut open = Vec::new();
    for _ in 0..100 {
        open.push(TcpStream::connect(("127.0.0.1", port)).await.unwrap());
    }
    throw(port, b"garbage").await;
}

async fn oversized_requests_are_refused_by_http(network: &TestNetwork) {
    let http = reqwest::Client::new();
    let body = vec![b' '; 1 << 20];
    let url = network.url(0, "/v1/operations");
    let request = http.post(url).header("content-type", "application/json").body(body);
    // Refused with an answer, or by hanging up while the body was still being sent.
    if let Ok(answer) = request.send().await {
        assert_eq!(answer.status().as_u16(), 413);
    }
    for (path, status) in [
        ("/v1/records?limit=1000000000", 400),
        ("/v1/records?cursor=zzz", 400),
        ("/v1/records/18446744073709551615/4294967295/bundle", 404),
        ("/v1/records/99999999999999999999/0/bundle", 400),
        ("/v1/blocks?from=18446744073709551615", 200),
        ("/v1/blocks/-1", 400),
        ("/v1/clients/%00/x", 400),
        ("/../../etc/passwd", 404),
    ] {
        let answer = http.get(network.url(0, path)).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{path}");
    }
}

async fn oversized_packets_end_their_mqtt_connection(network: &TestNetwork) {
    for level in [4, 5] {
        let mut stranger = Device::stranger(network, "devices/stranger", level).await;
        let packet_id = stranger.raw.publish("devices/stranger/env", 1, false, &vec![0; 5 << 20]).await;
        assert!(packet_id > 0);
        while let Some(packet) = stranger.raw.receive().await {
            assert_eq!(packet.head, 0xe0, "nothing but a DISCONNECT: {packet:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_another_network_is_no_peer() {
    let mut network = TestNetwork::start(2).await;
    let key = network.register("devices/iot").await;
    let p2p = network.ports(0).p2p;
    let bootstrap = format!("[\"/ip4/127.0.0.1/tcp/{p2p}\"]");
    let swarm_key = network.local.dir().join("swarm.key");
    for shared in [None, swarm_key.to_str()] {
        // With the right swarm key it gets as far as naming its network; without it, not even there.
        let mut settings = vec![("p2p.bootstrap", bootstrap.as_str())];
        settings.extend(shared.map(|path| ("p2p.swarm_key", path)));
        let other = TestNetwork::start_with(1, &settings).await;
        let refusals = async || {
            let refused = other.log(0);
            (refused.contains("cannot reach a node") || refused.contains("another network")).then_some(())
        };
        other.eventually("the node cannot join", refusals).await;
        assert_eq!(other.get(0, "/v1/status").await["peers"].as_array().unwrap().len(), 0);
        for at in 0..2 {
            assert_eq!(network.get(at, "/v1/status").await["peers"].as_array().unwrap().len(), 1);
        }
    }
    let mut device = Device::ready(&network, 0, "devices/iot", &key, 4).await;
    assert_eq!(device.send(1, &reading(now().0, 1.0, 1)).await, Some(0));
    assert_eq!(device.ack().await.written, [0, 1]);
}
