//! The program as its users meet it: arguments, files, exit codes, and what it says.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod allocator;
mod evidence;
mod ledger;
mod policy;
mod status;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use assert_cmd::Command;
use assert_cmd::cargo::cargo_bin_cmd;
use ledger::Ledger;
use ledgermq::clock::{Clock as _, SystemClock};
use ledgermq::config::{Config, read_genesis};
use ledgermq::crypto::VerifyingKey;
use ledgermq::device::token;
use ledgermq::keyfile;
use ledgermq::store::Log;
use ledgermq::store::log::LogSettings;
use serde_json::Value;
use tempfile::TempDir;

/// Exit code, standard output and standard error of one run in `dir`.
fn ledgermq(dir: &TempDir, args: &[&str]) -> (i32, String, String) {
    let mut command: Command = cargo_bin_cmd!("ledgermq");
    let output = command.current_dir(dir).args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// Runs what must succeed; gives standard output.
fn succeed(dir: &TempDir, args: &[&str]) -> String {
    let (code, out, err) = ledgermq(dir, args);
    assert_eq!((code, err.as_str()), (0, ""), "{args:?}: {out}");
    out
}

/// Runs what must fail with `code` and nothing on standard output; gives standard error.
fn fail(dir: &TempDir, code: i32, args: &[&str]) -> String {
    let (found, out, err) = ledgermq(dir, args);
    assert_eq!((found, out.as_str()), (code, ""), "{args:?}: {err}");
    err
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn wrong_arguments_exit_with_2_and_say_what_is_right() {
    let dir = tempfile::tempdir().unwrap();
    for (args, says) in [
        (&[][..], "First steps"),
        (&["frobnicate"], "unrecognized subcommand"),
        (&["init"], "--dir <DIR>"),
        (&["init", "--dir", "net", "--replicas", "0"], "1..=100"),
        (&["init", "--dir", "net", "--host", "nowhere"], "--host"),
        (&["client", "new", "nobody", "--key", "k"], "group/name"),
        (&["client", "new", "verified/x", "--key", "k"], "reserved"),
        (&["init", "--dir", "net", "--name", ""], "--name has 0 bytes, and must have 1 to 64"),
        (&["init", "--dir", "net", "--base-port", "65530"], "the highest that does is 65495"),
        (&["client", "register", "a/b", "--network", "net"], "--key <FILE>"),
        (
            &["client", "revoke", "a/b", "--last-seq", "1", "--network", "net", "--reason", &"x".repeat(257)],
            "at most 256",
        ),
        (&["client", "register", "a/b", "--public-key", "07"], "64 hex digits"),
        (&["client", "revoke", "a/b", "--reason", "lost"], "--last-seq <SEQ>"),
        (&["client", "token", "a/b", "--key", "k"], "<--genesis <FILE>|--network <DIR>>"),
        (&["client", "token", "a/b", "--key", "k", "--network", "net", "--lifetime", "0"], "1..=86400"),
        (&["publish", "a/b", "--key", "k", "--network", "net"], "<--csv <FILE>|--json-lines <FILE>>"),
        (&["publish", "a/b", "--key", "k", "--csv", "x", "--json-lines", "y"], "cannot be used with"),
        (&["publish", "a/b", "--key", "k", "--csv", "x", "--mqtt", "node"], "HOST:PORT"),
        (
            &["publish", "a/b", "--key", "k", "--csv", "x", "--genesis", "g"],
            "<--network <DIR>|--mqtt <HOST:PORT>>",
        ),
        (&["publish", "a/b", "--key", "k", "--csv", "x", "--timeout", "soon"], "tip: give a whole number"),
        (&["publish", "a/b", "--key", "k", "--csv", "x", "--item", "a=b:c"], "\"c\" is no number"),
        (&["publish", "a/b", "--key", "k", "--csv", "x", "--stream", "key"], "a stream is"),
        (&["publish", "a/b", "--key", "k", "--csv", "x", "--final-timeout", "0"], "--final-timeout"),
        (&["status"], "<--network <DIR>|--api <URL>>"),
        (&["status", "--api", "ftp://node"], "http://127.0.0.1:8080"),
        (&["status", "--api", "/v1/status"], "http://127.0.0.1:8080"),
        (&["client", "list", "--api", "node one"], "http://127.0.0.1:8080"),
        (&["verify", "bundle"], "--genesis <FILE>"),
        (&["bench", "--replicas", "0"], "1..=16"),
        (&["bench", "--clients", "0"], "1..=1000"),
        (&["bench", "--items", "65537"], "1..=65536"),
        (&["bench", "--duration", "0"], "1..=86400"),
        (&["bench", "--rate", "-1"], "-1 is not in 0..=1000000"),
        (
            &["bench", "--replicas", "1", "--kill-primary-at", "1"],
            "1 replica goes on with 0 dead, not with 1",
        ),
        (&["bench", "--size", "100"], "10 items take"),
        (&["bench", "--size", "ten"], "tip: give a whole number"),
        (&["bench", "--kill", "2"], "--replicas 7 would do"),
        (&["bench", "--replicas", "3", "--kill-primary-at", "1"], "3 replicas go on with 0 dead"),
        (&["bench", "--duration", "5", "--kill-primary-at", "5"], "after 5 s of a load of 5 s"),
        (&["bench", "--policy", "sometimes"], "always, default"),
        (&["bench", "--target", "127.0.0.1:1883"], "--network <DIR>"),
        (&["bench", "--target", "node", "--network", "net"], "HOST:PORT"),
        (&["bench", "--network", "net", "--replicas", "4"], "cannot be used with"),
        (&["bench", "--network", "net", "--kill", "1"], "cannot be used with"),
        (&["bench", "--kill-at", "3"], "--kill <N>"),
        (&["bench", "--kill", "1", "--kill-primary-at", "3"], "cannot be used with"),
        (&["verify", "--genesis", "genesis.json"], "BUNDLE"),
        (&["policy"], "Usage: ledgermq policy"),
        (&["policy", "set", "--network", "net"], "<FILE>"),
        (&["policy", "test", "--csv", "x"], "<FILE>"),
        (&["policy", "test", "rules.toml"], "--csv <FILE>"),
        (&["policy", "test", "rules.toml", "--csv", "x", "--try", "always"], "cannot be used with"),
        (&["policy", "test", "--csv", "x", "--try", "sometimes"], "is no policy"),
        (&["policy", "list", "--toml", "--json"], "cannot be used with"),
        (
            &["audit", "--genesis", "g", "--ledger", "l", "--history", "h", "--max-findings", "x"],
            "a whole number",
        ),
        (&["evidence"], "Usage: ledgermq evidence"),
        (&["evidence", "fetch", "-o", "file"], "<ID>"),
        (&["evidence", "fetch", "07", "-o", "file"], "64 hex digits"),
        (&["evidence", "fetch", &"07".repeat(32)], "--output <FILE>"),
        (&["evidence", "verify", "file"], "--genesis <FILE>"),
        (&["evidence", "verify", "--genesis", "genesis.json"], "<FILE>"),
    ] {
        let err = fail(&dir, 2, args);
        assert!(err.contains(says), "{args:?}: {err}");
    }
}

#[test]
fn whoever_says_not_which_network_is_told_both_ways_to_say_it() {
    let dir = tempfile::tempdir().unwrap();
    let id = "07".repeat(32);
    for args in [
        &["client", "register", "a/b", "--key", "k"][..],
        &["client", "list"],
        &["client", "revoke", "a/b", "--last-seq", "1", "--reason", "lost"],
        &["policy", "list"],
        &["policy", "set", "rules.toml"],
        &["evidence", "list"],
        &["evidence", "fetch", &id, "-o", "file"],
        &["status"],
    ] {
        let err = fail(&dir, 2, args);
        assert!(err.contains("  <--network <DIR>|--api <URL>>\n"), "{args:?}: {err}");
    }
}

#[test]
fn help_teaches_every_command() {
    let dir = tempfile::tempdir().unwrap();
    let commands: [&[&str]; 19] = [
        &["demo"],
        &["node"],
        &["bench"],
        &["init"],
        &["client", "new"],
        &["client", "register"],
        &["client", "list"],
        &["client", "revoke"],
        &["client", "token"],
        &["audit"],
        &["policy", "set"],
        &["policy", "list"],
        &["policy", "test"],
        &["publish"],
        &["status"],
        &["verify"],
        &["evidence", "list"],
        &["evidence", "fetch"],
        &["evidence", "verify"],
    ];
    for command in commands {
        let help = succeed(&dir, &[command, &["--help"]].concat());
        // What prints one word is for scripts as it is.
        let serves_scripts = help.contains("--json") || command == ["client", "token"] || command == ["node"];
        assert!(help.contains("Usage: ledgermq") && serves_scripts, "{help}");
        let wide: Vec<&str> = help.lines().filter(|line| line.chars().count() > 80).collect();
        assert!(wide.is_empty(), "{command:?}: wider than a terminal: {wide:#?}");
    }
}

#[test]
fn a_load_that_cannot_be_measured_is_refused_before_anything_starts() {
    let dir = tempfile::tempdir().unwrap();
    succeed(&dir, &["init", "--replicas", "1", "--dir", "net"]);
    fs::create_dir(dir.path().join("other")).unwrap();
    fs::copy(dir.path().join("net/genesis.json"), dir.path().join("other/genesis.json")).unwrap();
    for (args, says) in [
        (&["--network", "nowhere"][..], "nowhere/genesis.json"),
        (&["--network", "other"], "admin's key is needed"),
        (&["--network", "net"], "is the node running"),
    ] {
        let err = fail(&dir, 1, &[&["bench"], args].concat());
        assert!(err.contains(says), "{args:?}: {err}");
    }
}

#[test]
fn init_makes_a_network_whose_settings_load_and_whose_keys_are_private() {
    let dir = tempfile::tempdir().unwrap();
    let made = json(&succeed(&dir, &["init", "--replicas", "3", "--dir", "sub/net", "--json"]));
    let net = dir.path().join("sub/net");
    let genesis = ledgermq::config::read_genesis(&net.join("genesis.json")).unwrap();
    assert_eq!(made["network"], genesis.network_id().to_string());
    for secret in ["admin.key", "swarm.key", "node-0/node.key"] {
        let mode = fs::metadata(net.join(secret)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{secret}");
    }
    for at in 0..3_usize {
        let config = Config::load(&net.join(format!("node-{at}/node.toml"))).unwrap();
        let key = keyfile::read(&config.node_key).unwrap();
        assert_eq!(key.node_id(), genesis.replicas.members()[at], "node-{at} is replica {at}");
        assert_eq!(config.p2p.bootstrap.len(), 2);
        assert!(config.mqtt.listen.ip().is_loopback());
        assert_eq!(made["nodes"][at]["mqtt"], config.mqtt.listen.port());
        keyfile::read_swarm_key(&config.p2p.swarm_key.unwrap()).unwrap();
        ledgermq::config::read_genesis(&config.genesis).unwrap();
    }
}

#[test]
fn a_check_says_which_replica_a_node_would_be_or_what_keeps_it_from_starting() {
    let dir = tempfile::tempdir().unwrap();
    succeed(&dir, &["init", "--replicas", "4", "--dir", "net"]);
    let check = ["node", "--check", "--config", "net/node-2/node.toml"];
    let said = succeed(&dir, &check);
    assert!(said.contains("replica 2 of 4"), "{said}");
    assert!(!dir.path().join("net/node-2/data").exists(), "nothing is opened");

    succeed(&dir, &["init", "--replicas", "4", "--dir", "other"]);
    let network = |of: &str| read_genesis(&dir.path().join(of).join("genesis.json")).unwrap().network_id();
    let log = dir.path().join("net/node-2/data/log");
    let open = |network| Log::open(&log, LogSettings::new(network, SystemClock::shared())).unwrap();
    drop(open(network("other")));
    let said = fail(&dir, 1, &check);
    assert!(said.contains("belongs to network") && said.contains("data directory"), "{said}");
    fs::remove_dir_all(&log).unwrap();
    drop(open(network("net")));
    succeed(&dir, &check);

    let key = dir.path().join("net/node-2/node.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(fail(&dir, 1, &check).contains("chmod 600"));
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    fs::copy(dir.path().join("net/admin.key"), &key).unwrap();
    assert!(fail(&dir, 1, &check).contains("not one of the ledger's replicas"), "a node could not start");
    fs::remove_file(dir.path().join("net/swarm.key")).unwrap();
    assert!(fail(&dir, 1, &check).contains("swarm.key"));
    fs::write(dir.path().join("net/node-2/node.toml"), "[mqqt]").unwrap();
    assert!(fail(&dir, 1, &check).contains("no setting mqqt"));
    fs::write(dir.path().join("net/node-2/node.toml"), "[mqtt]\nmax_inflight = \"many\"").unwrap();
    let said = fail(&dir, 1, &check);
    assert!(said.contains("mqtt.max_inflight: the text \"many\" stands where a whole number"), "{said}");
}

#[test]
fn init_gives_every_listener_its_own_port() {
    let dir = tempfile::tempdir().unwrap();
    let ports = |made: &Value| -> Vec<u64> {
        let nodes = made["nodes"].as_array().unwrap();
        nodes.iter().flat_map(|node| ["mqtt", "api", "p2p"].map(|of| node[of].as_u64().unwrap())).collect()
    };
    let made =
        json(&succeed(&dir, &["init", "--replicas", "2", "--dir", "a", "--base-port", "20000", "--json"]));
    assert_eq!(ports(&made), [20000, 20001, 20002, 20010, 20011, 20012]);
    let mut free = ports(&json(&succeed(&dir, &["init", "--replicas", "20", "--dir", "b", "--json"])));
    free.sort_unstable();
    free.dedup();
    assert_eq!(free.len(), 60);
    let err = fail(&dir, 2, &["init", "--dir", "c", "--base-port", "65530"]);
    assert!(err.contains("no room for 4 replicas"), "{err}");
    succeed(&dir, &["init", "--dir", "c", "--base-port", "65495"]);
}

#[test]
fn init_touches_no_directory_that_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("empty")).unwrap();
    succeed(&dir, &["init", "--replicas", "1", "--dir", "empty"]);
    let before = fs::read(dir.path().join("empty/admin.key")).unwrap();
    let err = fail(&dir, 1, &["init", "--replicas", "1", "--dir", "empty"]);
    assert!(err.contains("not empty"), "{err}");
    assert_eq!(fs::read(dir.path().join("empty/admin.key")).unwrap(), before);
    let left: Vec<_> = fs::read_dir(&dir).unwrap().collect();
    assert_eq!(left.len(), 1, "a failed init leaves nothing behind");
}

#[test]
fn a_clients_key_is_made_once() {
    let dir = tempfile::tempdir().unwrap();
    let made = json(&succeed(&dir, &["client", "new", "devices/iot", "--key", "iot.key", "--json"]));
    let key = keyfile::read(&dir.path().join("iot.key")).unwrap();
    assert_eq!(made["public_key"], key.public().to_string());
    let err = fail(&dir, 1, &["client", "new", "devices/iot", "--key", "iot.key"]);
    assert!(err.contains("never overwritten"), "{err}");
}

#[test]
fn a_token_is_what_nodes_take_as_the_password() {
    let dir = tempfile::tempdir().unwrap();
    succeed(&dir, &["init", "--dir", "net"]);
    succeed(&dir, &["client", "new", "devices/iot", "--key", "iot.key"]);
    let token = ["client", "token", "devices/iot", "--key", "iot.key", "--lifetime", "60"];
    let key = keyfile::read(&dir.path().join("iot.key")).unwrap().public();
    let key = VerifyingKey::parse(&key).unwrap();
    let network = read_genesis(&dir.path().join("net/genesis.json")).unwrap().network_id();
    let (client, now) = ("devices/iot".parse().unwrap(), SystemClock::new().now());
    for of_network in [["--network", "net"], ["--genesis", "net/genesis.json"]] {
        let said = succeed(&dir, &[&token[..], &of_network].concat());
        let claims = token::verify(said.trim().as_bytes(), &key, &network, &client, now, 3_600).unwrap();
        assert_eq!(claims.exp - claims.iat, 60);
    }
    let err = fail(&dir, 1, &["client", "token", "devices/iot", "--key", "none.key", "--network", "net"]);
    assert!(err.contains("none.key"), "{err}");
}

#[test]
fn clients_are_registered_listed_and_revoked() {
    let dir = tempfile::tempdir().unwrap();
    let served = Ledger::serve(&ledger::init(dir.path(), 1));
    let network = ["--network", "net", "--api", &served.url];
    let with = |args: &[&'static str]| succeed(&dir, &[args, &network[..]].concat());
    assert_eq!(with(&["client", "list", "--json"]).trim(), "[]");
    succeed(&dir, &["client", "new", "devices/iot", "--key", "iot.key"]);
    let said = with(&["client", "register", "devices/iot", "--key", "iot.key", "--receipts"]);
    assert!(said.contains("Registered devices/iot") && said.contains("block 1"), "{said}");
    let public = keyfile::read(&dir.path().join("iot.key")).unwrap().public().to_string();
    for client in ["devices/a", "devices/z"] {
        let args = ["client", "register", client, "--public-key", &public];
        succeed(&dir, &[&args, &network[..]].concat());
    }
    let place =
        json(&with(&["client", "revoke", "devices/iot", "--last-seq", "7", "--reason", "lost", "--json"]));
    assert_eq!((&place["height"], &place["operation"]), (&4.into(), &0.into()));
    let clients = json(&with(&["client", "list", "--json"]));
    let names: Vec<&str> =
        clients.as_array().unwrap().iter().map(|client| client["client"].as_str().unwrap()).collect();
    assert_eq!(names, ["devices/a", "devices/iot", "devices/z"], "all pages are read");
    assert_eq!(
        (&clients[1]["revoked_after"], &clients[1]["settings"]["receipts"]),
        (&7.into(), &true.into())
    );
    assert!(with(&["client", "list"]).contains("revoked after seq 7"));
    let endless = crate::status::Node::serve(serde_json::json!({ "clients": [], "next": "devices/z" }));
    assert!(fail(&dir, 1, &["client", "list", "--api", &endless.api()]).contains("list has no end"));
}

#[test]
fn what_the_ledger_refuses_is_an_error_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let served = Ledger::serve(&ledger::init(dir.path(), 1));
    succeed(&dir, &["client", "new", "devices/iot", "--key", "iot.key"]);
    let register = |extra: &[&str]| {
        let args = ["client", "register", "devices/iot", "--key", "iot.key", "--api", &served.url];
        ledgermq(&dir, &[&args, extra].concat())
    };
    assert_eq!(register(&["--network", "net"]).0, 0);
    let (code, _, err) = register(&["--network", "net", "--receipts"]);
    assert!(code == 1 && err.contains("with this key and other settings"), "{err}");
    let (code, _, err) = register(&["--genesis", "net/genesis.json", "--admin-key", "iot.key"]);
    assert!(code == 1 && err.contains("not an admin"), "{err}");
    assert!(err.starts_with("error: the "), "a title begins no sentence there: {err}");
    succeed(&dir, &["init", "--replicas", "1", "--dir", "other"]);
    let (code, _, err) = register(&["--network", "other"]);
    assert!(code == 1 && err.contains("another network"), "{err}");
}

#[test]
fn registering_again_is_fine_with_the_same_key_and_an_error_with_another() {
    let dir = tempfile::tempdir().unwrap();
    let served = Ledger::serve(&ledger::init(dir.path(), 1));
    for key in ["iot.key", "other.key"] {
        succeed(&dir, &["client", "new", "devices/iot", "--key", key]);
    }
    let at = ["--network", "net", "--api", &served.url];
    let register = |key: &str, extra: &[&str]| {
        ledgermq(&dir, &[&["client", "register", "devices/iot", "--key", key], &at[..], extra].concat())
    };
    let (_, first, _) = register("iot.key", &["--json"]);
    assert_eq!(json(&first)["already"], false);
    let (code, said, err) = register("iot.key", &[]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(said.contains("devices/iot is registered with this key already: block 1, operation 0"), "{said}");
    let (code, again, _) = register("iot.key", &["--json"]);
    let again = json(&again);
    assert_eq!((code, &again["already"], &again["height"]), (0, &true.into(), &json(&first)["height"]));
    let (code, _, err) = register("other.key", &[]);
    assert!(code == 1 && err.contains("devices/iot is registered with another key, "), "{err}");
    assert!(err.contains("give the key file that belongs to it"), "{err}");
    let revoke = ["client", "revoke", "devices/iot", "--last-seq", "0", "--reason", "lost"];
    succeed(&dir, &[&revoke, &at[..]].concat());
    let (code, _, err) = register("iot.key", &[]);
    assert!(code == 1 && err.contains("revoked client id is never used again"), "{err}");
}

#[test]
fn options_stand_under_the_heading_that_they_belong_to() {
    let dir = tempfile::tempdir().unwrap();
    let help = succeed(&dir, &["publish", "--help"]);
    let csv = help.find("CSV:\n").unwrap();
    assert!(help.find("--json\n").unwrap() < csv && help.find("--time-column").unwrap() > csv, "{help}");
    for list in [["evidence", "list"], ["client", "list"]] {
        let help = succeed(&dir, &[&list[..], &["--help"]].concat());
        assert!(!help.contains("admin") && help.contains("List the "), "nothing is signed: {help}");
    }
    assert!(succeed(&dir, &["evidence", "list", "--help"]).contains("Each node keeps what it saw itself"));
}

#[test]
fn a_missing_piece_is_named_before_anything_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    ledger::init(dir.path(), 1);
    succeed(&dir, &["client", "new", "a/b", "--key", "b.key"]);
    let args = ["client", "register", "a/b", "--key", "b.key"];
    let register = |extra: &[&str]| fail(&dir, 1, &[&args, extra].concat());
    let wrong = |extra: &[&str]| fail(&dir, 2, &[&args, extra].concat());
    assert!(wrong(&[]).contains("<--network <DIR>|--api <URL>>"));
    let api = ["--api", "127.0.0.1:1"];
    let err = wrong(&api);
    assert!(err.contains("give --genesis FILE, or --network DIR"), "{err}");
    assert!(
        wrong(&[&api[..], &["--genesis", "net/genesis.json"]].concat()).contains("give --admin-key FILE")
    );
    let err = register(&["--network", "nowhere"]);
    assert!(err.contains("there is no directory nowhere: give --network"), "{err}");
    let err = register(&["--network", "net"]);
    assert!(err.contains("cannot connect") && err.contains("is the node running?"), "{err}");
    let err = register(&["--network", "net", "--api", "127.0.0.1:1"]);
    assert!(err.contains("cannot connect to http://127.0.0.1:1/"), "{err}");
    let admins = ["client", "register", "a/b", "--key", "net/admin.key", "--network", "net"];
    assert!(fail(&dir, 1, &admins).contains("is the key of an admin"));
    fs::set_permissions(dir.path().join("net/admin.key"), fs::Permissions::from_mode(0o644)).unwrap();
    let err = register(&["--network", "net"]);
    assert!(err.contains("chmod 600"), "{err}");
}

#[test]
fn publish_says_what_is_missing_before_it_connects() {
    let dir = tempfile::tempdir().unwrap();
    ledger::init(dir.path(), 1);
    succeed(&dir, &["client", "new", "a/b", "--key", "b.key"]);
    fs::write(dir.path().join("x.csv"), "when,temperature\n2026-01-01T00:00:00Z,5\n").unwrap();
    let publish = |extra: &[&str]| {
        fail(&dir, 1, &[&["publish", "a/b", "--key", "b.key", "--timeout", "1"], extra].concat())
    };
    let err = publish(&["--network", "net", "--csv", "nowhere.csv"]);
    assert!(err.contains("cannot read nowhere.csv"), "{err}");
    let err = publish(&["--network", "net", "--csv", "x.csv"]);
    assert!(err.contains("name the time column (--time-column); there are when, temperature"), "{err}");
    let csv = ["--csv", "x.csv", "--time-column", "when"];
    let args = ["publish", "a/b", "--key", "b.key", "--mqtt", "127.0.0.1:1"];
    let err = fail(&dir, 2, &[&args[..], &csv].concat());
    assert!(err.contains("give --genesis FILE, or --network DIR"), "{err}");
    let err = publish(&[&csv[..], &["--network", "net"]].concat());
    assert!(err.contains("cannot connect"), "{err}");
    fs::set_permissions(dir.path().join("b.key"), fs::Permissions::from_mode(0o644)).unwrap();
    let err = publish(&[&csv[..], &["--network", "net"]].concat());
    assert!(err.contains("chmod 600"), "{err}");
}

/// A network in `dir/net` and the bundle of one reading in `dir/reading.lmqproof`.
fn reading(dir: &TempDir) -> Vec<u8> {
    let served = Ledger::serve(&ledger::init(dir.path(), 4));
    succeed(dir, &["client", "new", "devices/iot", "--key", "iot.key"]);
    let args =
        ["client", "register", "devices/iot", "--key", "iot.key", "--network", "net", "--api", &served.url];
    succeed(dir, &args);
    let key = keyfile::read(&dir.path().join("iot.key")).unwrap();
    let bundle = served.ledger.prove_reading("devices/iot", &key);
    fs::write(dir.path().join("reading.lmqproof"), &bundle).unwrap();
    bundle
}

#[test]
fn verify_says_who_measured_what_and_when_and_who_signed() {
    let dir = tempfile::tempdir().unwrap();
    reading(&dir);
    let said = succeed(&dir, &["verify", "reading.lmqproof", "--genesis", "net/genesis.json"]);
    for part in [
        "PROVEN  reading.lmqproof",
        "devices/iot",
        "th-01 temperature = 36.5 Cel",
        "<devices/iot/th-01/1/1767225600000/36.5>",
        "2026-01-01T00:00:00Z",
        "3 of 4 replicas (0, 1, 2); 3 were needed",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let args = ["verify", "reading.lmqproof", "--genesis", "net/genesis.json", "--json"];
    let verdicts = json(&succeed(&dir, &args));
    assert_eq!(
        (&verdicts[0]["valid"], &verdicts[0]["proven"]["client"]),
        (&true.into(), &"devices/iot".into())
    );
}

#[test]
fn verify_fails_for_every_changed_byte_it_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = reading(&dir);
    // The library's tests change every byte; here some, through the program.
    let places: Vec<usize> = (0..12).map(|at| at * (bundle.len() - 1) / 11).collect();
    let names: Vec<String> = places.iter().map(|at| format!("changed-{at}")).collect();
    for (name, at) in names.iter().zip(&places) {
        let mut changed = bundle.clone();
        changed[*at] ^= 1;
        fs::write(dir.path().join(name), changed).unwrap();
    }
    let mut args = vec!["verify", "--genesis", "net/genesis.json", "--json", "reading.lmqproof"];
    args.extend(names.iter().map(String::as_str));
    let (code, out, err) = ledgermq(&dir, &args);
    assert!(code == 1 && err.contains("12 of 13 bundles"), "{err}");
    let verdicts = json(&out);
    assert_eq!(verdicts[0]["valid"], true);
    for verdict in &verdicts.as_array().unwrap()[1..] {
        assert_eq!(verdict["valid"], false, "{verdict}");
        assert!(!verdict["problem"].as_str().unwrap().is_empty());
    }
}

#[test]
fn verify_says_what_is_wrong_with_its_files() {
    let dir = tempfile::tempdir().unwrap();
    reading(&dir);
    fs::write(dir.path().join("garbage"), [0xff; 1000]).unwrap();
    succeed(&dir, &["init", "--replicas", "1", "--dir", "other"]);
    let verify = |bundle: &str, genesis: &str| {
        let (code, out, err) = ledgermq(&dir, &["verify", bundle, "--genesis", genesis]);
        (code, out + &err)
    };
    for (bundle, genesis, code, says) in [
        ("nowhere", "net/genesis.json", 2, "cannot open"),
        (".", "net/genesis.json", 2, "cannot read"),
        ("garbage", "net/genesis.json", 1, "not a proof bundle"),
        ("reading.lmqproof", "nowhere.json", 2, "nowhere.json"),
        ("reading.lmqproof", "garbage", 2, "garbage"),
        ("reading.lmqproof", "other/genesis.json", 1, "admin"),
    ] {
        let said = verify(bundle, genesis);
        assert!(said.0 == code && said.1.contains(says), "{bundle} {genesis}: {said:?}");
        assert_eq!(
            said.1.contains("NOT PROVEN"),
            code == 1,
            "of what was not read nothing is said: {said:?}"
        );
    }
    let all =
        |bundles: &[&str]| ledgermq(&dir, &[&["verify", "--genesis", "net/genesis.json"], bundles].concat());
    let (code, _, err) = all(&["reading.lmqproof", "nowhere"]);
    assert!(code == 2 && err.contains("1 of 2 files could not be read"), "{err}");
    let (code, _, err) = all(&["reading.lmqproof", "nowhere", "garbage"]);
    assert!(code == 1 && err.contains("1 of 3 bundles prove nothing, and 1 could not be read"), "{err}");
}

#[test]
fn the_name_of_a_bundle_cannot_write_a_verdict() {
    let dir = tempfile::tempdir().unwrap();
    reading(&dir);
    let name = "x\u{1b}[1A\u{1b}[2K\rPROVEN  reading.lmqproof\u{1b}[8m";
    fs::write(dir.path().join(name), [0xff; 1000]).unwrap();
    let (code, out, err) = ledgermq(&dir, &["verify", name, "--genesis", "net/genesis.json"]);
    assert_eq!(code, 1);
    assert!(out.contains("NOT PROVEN") && !(out + &err).contains(['\u{1b}', '\r']));
}

#[test]
fn a_reader_that_goes_away_is_no_crash() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin!("ledgermq"))
        .args(["init", "--replicas", "1", "--dir", "net"])
        .current_dir(&dir)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}
