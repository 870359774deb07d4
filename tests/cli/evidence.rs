//! `ledgermq evidence`: list, fetch, verify.

use std::fs;

use ledgermq::types::Hash;
use tempfile::TempDir;

use crate::ledger::{self, Ledger, Served};
use crate::{fail, json, ledgermq, succeed};

/// A node with evidence against replica 2, for sequences 5 and 6, and the ids.
fn accused(dir: &TempDir) -> (Served, Vec<Hash>) {
    let served = Ledger::serve(&ledger::init(dir.path(), 4));
    let ids = [5, 6].map(|sequence| served.ledger.accuse(2, sequence).0);
    (served, ids.to_vec())
}

/// A network in `dir/net`, and evidence against its replica 2 in `dir/fault`.
fn fault(dir: &TempDir) -> Vec<u8> {
    let (_, bytes) = Ledger::new(&ledger::init(dir.path(), 4)).accuse(2, 5);
    fs::write(dir.path().join("fault"), &bytes).unwrap();
    bytes
}

#[test]
fn list_tells_who_did_what_over_all_pages() {
    let dir = tempfile::tempdir().unwrap();
    let (served, ids) = accused(&dir);
    let said = succeed(&dir, &["evidence", "list", "--api", &served.url]);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 2, "{said}");
    let expected = format!(
        "{}  2026-01-01T00:00:00.005Z  replica 2 signed two different PREPAREs, for view 0, sequence 5",
        ids[0]
    );
    assert_eq!(lines[0], expected);
    let listed = json(&succeed(&dir, &["evidence", "list", "--api", &served.url, "--json"]));
    assert_eq!((&listed[1]["id"], &listed[1]["sequence"]), (&ids[1].to_string().into(), &6.into()));
}

#[test]
fn a_list_without_end_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let node = crate::status::Node::serve(serde_json::json!({ "evidence": [], "next": "more" }));
    assert!(fail(&dir, 1, &["evidence", "list", "--api", &node.api()]).contains("list has no end"));
}

#[test]
fn a_node_without_evidence_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let served = Ledger::serve(&ledger::init(dir.path(), 1));
    assert!(succeed(&dir, &["evidence", "list", "--api", &served.url]).contains("no evidence"));
    assert_eq!(json(&succeed(&dir, &["evidence", "list", "--api", &served.url, "--json"])), json("[]"));
}

#[test]
fn what_is_fetched_verifies_offline_and_says_what_it_proves() {
    let dir = tempfile::tempdir().unwrap();
    let (served, ids) = accused(&dir);
    let id = ids[0].to_string();
    let said = succeed(&dir, &["evidence", "fetch", &id, "-o", "fault", "--api", &served.url]);
    assert!(said.contains("ledgermq evidence verify fault"), "{said}");
    drop(served);
    let genesis = ledgermq::config::read_genesis(&dir.path().join("net/genesis.json")).unwrap();
    let said = succeed(&dir, &["evidence", "verify", "fault", "--genesis", "net/genesis.json"]);
    let node = genesis.replicas.members()[2];
    let (one, other) = (Hash([1; 32]), Hash([2; 32]));
    let expected = format!(
        "PROVEN  fault
  who    replica 2 of 4, node {node}
  what   it signed two different PREPAREs, for view 0, sequence 5
  said   one: at sequence 5 comes batch {one}
         other: at sequence 5 comes batch {other}
  so     it is faulty, or somebody else has its key: no correct replica signs this
  id     {id}
"
    );
    assert_eq!(said, expected);
    let args = ["evidence", "verify", "fault", "--genesis", "net/genesis.json", "--json"];
    let verdict = json(&succeed(&dir, &args));
    assert_eq!(verdict["valid"], true);
    let proven = &verdict["proven"];
    assert_eq!((&proven["id"], &proven["kind"]), (&id.into(), &"prepare".into()));
    assert_eq!((&proven["node"], &proven["replica"]), (&node.to_string().into(), &2.into()));
    assert_eq!((&proven["view"], &proven["sequence"]), (&0.into(), &5.into()));
    assert_eq!(proven["said"][1]["batch"], other.to_string());
}

#[test]
fn fetch_overwrites_nothing_and_believes_no_node() {
    let dir = tempfile::tempdir().unwrap();
    let (served, ids) = accused(&dir);
    let fetch = |id: Hash, file: &str| {
        let args = ["evidence", "fetch", &id.to_string(), "-o", file, "--api", &served.url];
        fail(&dir, 1, &args)
    };
    fs::write(dir.path().join("mine"), "precious").unwrap();
    assert!(fetch(ids[0], "mine").contains("mine exists"));
    assert_eq!(fs::read(dir.path().join("mine")).unwrap(), b"precious");
    let err = fetch(Hash([7; 32]), "fault");
    assert!(err.contains("has no evidence") && err.contains("another one may have it"), "{err}");
    served.ledger.lie_about(ids[0]);
    let err = fetch(ids[0], "fault");
    assert!(err.contains("something else") && err.contains("--api"), "{err}");
    assert!(!dir.path().join("fault").exists());
    let err = fetch(ids[1], "nowhere/fault");
    assert!(err.contains("cannot write nowhere/fault"), "{err}");
}

#[test]
fn list_and_fetch_say_where_to_find_a_node() {
    let dir = tempfile::tempdir().unwrap();
    ledger::init(dir.path(), 1);
    let id = "07".repeat(32);
    for command in [&["list"][..], &["fetch", &id, "-o", "fault"]] {
        let args = [&["evidence"], command].concat();
        let err = fail(&dir, 2, &args);
        assert!(err.contains("--api <URL>") && err.contains("--network <DIR>"), "{err}");
        let err = fail(&dir, 1, &[&args[..], &["--network", "net"]].concat());
        assert!(err.contains("cannot connect") && err.contains("is the node running?"), "{err}");
        let err = fail(&dir, 1, &[&args[..], &["--network", "nowhere"]].concat());
        assert!(err.contains("there is no directory nowhere"), "{err}");
    }
}

#[test]
fn verify_says_what_is_wrong_with_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let good = fault(&dir);
    fs::write(dir.path().join("garbage"), [0xff; 1000]).unwrap();
    fs::write(dir.path().join("short"), &good[..good.len() - 1]).unwrap();
    let mut changed = good.clone();
    *changed.last_mut().unwrap() ^= 1;
    fs::write(dir.path().join("changed"), changed).unwrap();
    let mut newer = good;
    newer[9] = 2;
    fs::write(dir.path().join("newer"), newer).unwrap();
    succeed(&dir, &["init", "--replicas", "4", "--dir", "other"]);
    for (exit, file, genesis, says) in [
        (2, "nowhere", "net/genesis.json", "COULD NOT CHECK  nowhere\n  cannot open the file: "),
        (2, "net", "net/genesis.json", "COULD NOT CHECK  net\n  cannot read the file: "),
        (1, "garbage", "net/genesis.json", "does not begin with LMQFAULT"),
        (1, "short", "net/genesis.json", "the evidence is damaged: malformed: it ends too early"),
        (1, "changed", "net/genesis.json", "the second message: "),
        (1, "newer", "net/genesis.json", "version 2"),
        (2, "fault", "nowhere.json", "could not check: cannot read the genesis document nowhere.json"),
        (2, "fault", "garbage", "garbage"),
        (1, "fault", "other/genesis.json", "is not a replica"),
    ] {
        let (code, out, err) = ledgermq(&dir, &["evidence", "verify", file, "--genesis", genesis]);
        assert!(code == exit && (out.clone() + &err).contains(says), "{file} {genesis}: {out}{err}");
        assert!(!out.starts_with("PROVEN"));
        assert_eq!(out.contains("NOT PROVEN"), code == 1, "{file} {genesis}: {out}");
        let system = (out + &err).matches("No such file").count();
        assert!(system <= 1, "the system's word is told once");
    }
    let args = ["evidence", "verify", "nowhere", "--genesis", "net/genesis.json", "--json"];
    let (code, out, _) = ledgermq(&dir, &args);
    let verdict = json(&out);
    assert_eq!((code, &verdict["checked"], &verdict["valid"]), (2, &false.into(), &false.into()));
    let args = ["evidence", "verify", "changed", "--genesis", "net/genesis.json", "--json"];
    let (code, out, err) = ledgermq(&dir, &args);
    assert!(code == 1 && err.contains("the evidence proves nothing"), "{err}");
    let verdict = json(&out);
    assert!(verdict["valid"] == false && verdict.get("proven").is_none(), "{verdict}");
    assert!(verdict["problem"].as_str().unwrap().contains("signature"), "{verdict}");
}

#[test]
fn the_name_of_a_file_cannot_write_a_verdict() {
    let dir = tempfile::tempdir().unwrap();
    fault(&dir);
    let name = "x\u{1b}[1A\u{1b}[2K\rPROVEN  fault\u{1b}[8m";
    fs::write(dir.path().join(name), [0xff; 100]).unwrap();
    let (code, out, err) = ledgermq(&dir, &["evidence", "verify", name, "--genesis", "net/genesis.json"]);
    assert_eq!(code, 1);
    assert!(out.contains("NOT PROVEN") && !(out + &err).contains(['\u{1b}', '\r']));
}
