//! `ledgermq audit` as a person and a script use it: exit codes, JSON, and what it says of bad input.

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use ledgermq::config::write_genesis;
use ledgermq::crypto::blake3_plain;
use ledgermq::ledger::{Block, Certificate};
use ledgermq::types::Hash;
use serde_json::Value as Json;
use sqlx::{Connection as _, Executor as _};

use crate::served::serve;
use crate::world::World;

/// An ordinary world with its ledger and genesis document on the disk.
struct Site {
    world: World,
    genesis: PathBuf,
    data: PathBuf,
    history: PathBuf,
}

impl Site {
    async fn new() -> Self {
        let world = World::ordinary().await;
        let genesis = world.dir.path().join("genesis.json");
        write_genesis(&genesis, &world.genesis).unwrap();
        let data = world.nodes[0].dir.clone();
        world.write_ledger(&data);
        let history = data.join("history/history.sqlite");
        Self { world, genesis, data, history }
    }

    /// Runs the audit with the ledger of the data directory.
    fn audit(&self, history: &Path, more: &[&str]) -> Said {
        let source = ["--ledger", self.data.to_str().unwrap()];
        run(&self.genesis, &source, history.to_str().unwrap(), more)
    }
}

#[derive(Debug)]
struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Said {
    fn json(&self) -> Json {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// It could not check, and says so in these words.
    fn unchecked(&self, words: &[&str]) {
        assert_eq!(self.code, 2, "{self:?}");
        assert!(words.iter().all(|word| self.err.contains(word)), "{words:?}: {}", self.err);
        assert_eq!(self.err.lines().count(), 1, "one line says it: {}", self.err);
    }
}

fn run(genesis: &Path, ledger: &[&str], history: &str, more: &[&str]) -> Said {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ledgermq"));
    command.args(["audit", "--genesis", genesis.to_str().unwrap()]).args(ledger).args(["--history", history]);
    let output = command.args(more).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

/// The address of something that hangs up on whoever speaks HTTP, as an MQTT broker does.
fn no_api() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = std::io::Read::read(&mut stream, &mut [0; 1024]);
        }
    });
    address
}

/// Every file below a directory with a hash of its bytes. `-shm` is shared memory of those that have a database
/// open, and holds nothing that lasts.
fn files(dir: &Path) -> Vec<(PathBuf, Hash)> {
    let (mut found, mut dirs) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = dirs.pop() {
        for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                dirs.push(path);
            } else if !path.to_string_lossy().ends_with("-shm") {
                found.push((path.clone(), blake3_plain(&fs::read(&path).unwrap())));
            }
        }
    }
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_history_is_clean_by_exit_code_text_and_json_and_nothing_is_written() {
    let site = Site::new().await;
    let before = files(&site.data);
    for history in [&site.history, &site.data] {
        let said = site.audit(history, &[]);
        assert_eq!((said.code, said.err.as_str()), (0, ""), "{said:?}");
        assert!(
            said.out.starts_with("CLEAN SO FAR: 2 of 14 rows are not yet provable; all else is as it was\n")
                && said.out.contains("14 rows, 12 proven by 2 digests"),
            "{said:?}"
        );
    }
    let json = site.audit(&site.history, &["--json"]).json();
    assert_eq!((&json["verdict"], &json["omitted_findings"]), (&"clean".into(), &0.into()));
    assert_eq!(
        (&json["rows"], &json["not_yet_proven"], &json["rows_gone"]),
        (&14.into(), &2.into(), &0.into())
    );
    assert_eq!((&json["nodes"][0]["rows"], &json["nodes"][0]["covered"]), (&14.into(), &12.into()));
    assert_eq!(json["ledger"]["height"], site.world.blocks.len());
    assert_eq!(json["findings"], Json::Array(vec![]));
    assert_eq!(files(&site.data), before, "nothing is written");
}

#[tokio::test(flavor = "multi_thread")]
async fn tampering_is_exit_code_1_and_each_row_is_named() {
    let site = Site::new().await;
    site.world.tamper(0, "UPDATE messages SET body = zeroblob(9) WHERE number IN (3, 6)").await;
    let said = site.audit(&site.history, &[]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(
        said.out.starts_with("TAMPERING") && said.out.contains("row 6 (devices/c2, message 3)"),
        "{said:?}"
    );
    let json = site.audit(&site.history, &["--json", "--max-findings", "1"]).json();
    assert_eq!((&json["verdict"], &json["omitted_findings"]), (&"tampering".into(), &1.into()));
    let finding = &json["findings"][0];
    assert_eq!((&finding["kind"], &finding["row"]), (&"altered".into(), &3.into()));
    assert_eq!((&finding["client"], &finding["seq"]), (&"devices/c1".into(), &2.into()));
    assert_eq!(finding["what"], serde_json::json!(["body"]));
    let one = site.audit(&site.history, &["--json", "--client", "devices/c2"]).json();
    assert_eq!(one["findings"].as_array().unwrap().len(), 1);
    let node = &one["nodes"][0];
    let (rows, skipped) = (node["rows"].as_u64().unwrap(), node["skipped"].as_u64().unwrap());
    assert!(rows == 14 && (1..14).contains(&skipped), "{node}");
    let said = site.audit(&site.history, &["--client", "devices/c2"]);
    let told = format!("14 rows ({} of the client of --client)", rows - skipped);
    assert!(said.out.contains(&told), "{told}: {said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_asked_for_the_ledger_need_not_be_trusted() {
    let site = Site::new().await;
    let audit = |blocks: Vec<(Block, Certificate)>| {
        let url = serve(blocks.into_iter().map(|(block, certificate)| (block, Some(certificate))).collect());
        run(&site.genesis, &["--node", &url], site.history.to_str().unwrap(), &[])
    };
    let said = audit(site.world.blocks.clone());
    assert_eq!(said.code, 0, "{said:?}");
    let mut altered = site.world.blocks.clone();
    altered[3].0.header.timestamp = altered[3].0.header.timestamp.plus_ms(1);
    audit(altered).unchecked(&["a ledger that does not hold", "block 4"]);
    let mut fewer = site.world.blocks.clone();
    fewer[2].1.signatures.pop();
    audit(fewer).unchecked(&["2 replicas signed, a quorum of 3 is needed"]);
    let mut gap = site.world.blocks.clone();
    gap.remove(2);
    audit(gap).unchecked(&["does not hold"]);
    audit(Vec::new()).unchecked(&["no certified block yet"]);
    let short = audit(site.world.blocks[..3].to_vec());
    assert_eq!(short.code, 2, "{short:?}");
    assert!(short.out.starts_with("UNCHECKED") && short.out.contains("give a newer ledger"), "{short:?}");
    // Without certificates anybody could have made the last ones, and no end of them.
    let mut unproven: Vec<_> =
        site.world.blocks.iter().cloned().map(|(block, certificate)| (block, Some(certificate))).collect();
    unproven.last_mut().unwrap().1 = None;
    let said = run(&site.genesis, &["--node", &serve(unproven)], site.history.to_str().unwrap(), &[]);
    said.unchecked(&["no certificate proves"]);
    let nobody = run(&site.genesis, &["--node", "127.0.0.1:9"], site.history.to_str().unwrap(), &[]);
    nobody.unchecked(&["cannot connect"]);
    let said = run(&site.genesis, &["--node", &no_api()], site.history.to_str().unwrap(), &[]);
    said.unchecked(&["no answer from", "[api] listen", "MQTT"]);
    assert!(!said.err.contains("error sending request"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_nodes_file_and_copies_of_it_are_read_without_a_trace() {
    let site = Site::new().await;
    // The store of the world is open: there is a write-ahead log.
    let wal = site.history.with_file_name("history.sqlite-wal");
    assert!(wal.exists());
    assert_eq!(site.audit(&site.history, &[]).code, 0);
    let copies = site.world.dir.path().join("copies");
    fs::create_dir(&copies).unwrap();
    let copy = copies.join("history.sqlite");
    fs::copy(&site.history, &copy).unwrap();
    fs::copy(&wal, copies.join("history.sqlite-wal")).unwrap();
    let before = files(&copies);
    assert_eq!(site.audit(&copy, &[]).code, 0);
    assert_eq!(files(&copies), before, "not even beside it");
    // A file that was closed in order, on a disk that cannot be written.
    site.world.tamper(0, "PRAGMA wal_checkpoint(TRUNCATE)").await;
    let closed = site.world.dir.path().join("closed");
    fs::create_dir(&closed).unwrap();
    let copy = closed.join("history.sqlite");
    fs::copy(&site.history, &copy).unwrap();
    let read_only = |path: &Path, mode| {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    read_only(&copy, 0o400);
    read_only(&closed, 0o500);
    let before = files(&closed);
    assert_eq!(site.audit(&closed, &[]).code, 0);
    assert_eq!(files(&closed), before);
    read_only(&closed, 0o700);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_that_cannot_be_read_is_exit_code_2_and_says_what_to_do() {
    let site = Site::new().await;
    let dir = site.world.dir.path();
    let file = |name: &str| dir.join(name);
    site.audit(&file("none.sqlite"), &[]).unchecked(&["there is no history", "never started"]);
    assert!(!file("none.sqlite").exists());
    // Whether it is there cannot be told: that is said, and why.
    let long = file(&"x".repeat(300));
    site.audit(&long, &[]).unchecked(&["cannot look for", "File name too long", "check the rights"]);
    let said = run(&site.genesis, &["--ledger", long.to_str().unwrap()], site.history.to_str().unwrap(), &[]);
    said.unchecked(&["cannot look for", "File name too long"]);
    let said = run(
        &site.genesis,
        &["--ledger", site.history.to_str().unwrap()],
        site.history.to_str().unwrap(),
        &[],
    );
    said.unchecked(&["has no ledger in it"]);
    site.audit(dir, &[]).unchecked(&["has no history/history.sqlite", "never started"]);
    fs::write(file("empty.sqlite"), "").unwrap();
    site.audit(&file("empty.sqlite"), &[]).unchecked(&["is empty", "check the path"]);
    fs::write(file("text.sqlite"), "no database, but longer than its header would be ".repeat(30)).unwrap();
    site.audit(&file("text.sqlite"), &[])
        .unchecked(&["damaged or no database: it does not begin as a SQLite database does"]);
    let said = run(&site.genesis, &["--ledger", site.data.to_str().unwrap()], "mysql://h/db", &[]);
    said.unchecked(&["--history: mysql is no database that is supported; give a SQLite file"]);
    assert!(!said.err.contains("history.url"), "{said:?}");
    let postgres = "postgres://me:secret@127.0.0.1:9/db";
    let said = run(&site.genesis, &["--ledger", site.data.to_str().unwrap()], postgres, &["--json"]);
    said.unchecked(&["not available"]);
    assert!(!said.err.contains("secret") && said.json()["verdict"] == "unchecked", "{said:?}");

    let copy_with = async |name: &str, sql: &str| {
        site.world.tamper(0, "PRAGMA wal_checkpoint(TRUNCATE)").await;
        let copy = file(name);
        fs::copy(&site.history, &copy).unwrap();
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&copy);
        let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
        connection.execute(sqlx::AssertSqlSafe(sql.to_owned())).await.unwrap();
        connection.close().await.unwrap();
        copy
    };
    let other = "UPDATE ledgermq SET value = printf('%064d', 1) WHERE name = 'network'";
    site.audit(&copy_with("other.sqlite", other).await, &[])
        .unchecked(&["belongs to network", "belong together"]);
    let newer = "UPDATE ledgermq SET value = '9' WHERE name = 'schema'";
    site.audit(&copy_with("newer.sqlite", newer).await, &[]).unchecked(&["schema 9", "newer program"]);
    let foreign = "DROP TABLE ledgermq";
    site.audit(&copy_with("foreign.sqlite", foreign).await, &[]).unchecked(&["is not a history of LedgerMQ"]);
    for (value, told) in [("x'00ff'", "a value of another kind"), ("'one'", "the schema version \"one\"")] {
        let altered = format!("UPDATE ledgermq SET value = {value} WHERE name = 'schema'");
        let said = site.audit(&copy_with("altered.sqlite", &altered).await, &[]);
        said.unchecked(&[told, "it was altered", "audit another copy"]);
        assert!(
            !["Rust", "mismatched", "run ledgermq audit"].iter().any(|word| said.err.contains(word)),
            "{said:?}"
        );
    }
    let damaged = copy_with("damaged.sqlite", "SELECT 1").await;
    let mut bytes = fs::read(&damaged).unwrap();
    let len = bytes.len();
    bytes[8192..len - 4096].fill(0xa5);
    fs::write(&damaged, bytes).unwrap();
    site.audit(&damaged, &[]).unchecked(&["damaged"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_without_its_write_ahead_log_is_tampering_and_the_report_says_how_to_copy() {
    let site = Site::new().await;
    site.world.tamper(0, "PRAGMA wal_checkpoint(TRUNCATE)").await;
    let copy = site.world.dir.path().join("copy.sqlite");
    fs::copy(&site.history, &copy).unwrap();
    let clean = site.audit(&copy, &[]);
    assert!(clean.code == 0 && !clean.out.contains("-wal"), "{clean:?}");
    site.world.tamper(0, "DELETE FROM messages WHERE number = 3; PRAGMA wal_checkpoint(TRUNCATE)").await;
    fs::copy(&site.history, &copy).unwrap();
    let said = site.audit(&copy, &[]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.out.contains("note: the file was in WAL mode and there is no copy.sqlite-wal"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_was_made_before_the_ledgers_end_is_told_as_one_and_clean_with_the_ledger_of_its_time() {
    let mut site = Site::new().await;
    site.world.tamper(0, "PRAGMA wal_checkpoint(TRUNCATE)").await;
    let copy = site.world.dir.path().join("copy.sqlite");
    fs::copy(&site.history, &copy).unwrap();
    let then = site.world.blocks.len();
    for seq in 30..=31 {
        site.world.publish(0, 1, seq, &[("temperature", &format!("{seq}"))]).await;
        site.world.commit().await;
    }
    site.world.digest(0).await;
    site.world.commit().await;
    let url = || {
        let blocks = site.world.blocks.clone();
        serve(blocks.into_iter().map(|(block, certificate)| (block, Some(certificate))).collect())
    };
    let audit = |more: &[&str]| run(&site.genesis, &["--node", &url()], copy.to_str().unwrap(), more);
    let said = audit(&[]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(
        said.out
            .starts_with("TAMPERING, or an older copy: it ends at row 14, the ledger's digests at row 16"),
        "{said:?}"
    );
    let until = site.world.blocks.len() - 1;
    let told = format!(
        "was it copied earlier, before block {}? Then give a newer copy, or the ledger of that time, with --until {until}",
        until + 1
    );
    assert!(said.out.contains(&told), "{told}: {said:?}");
    let json = audit(&["--json"]).json();
    assert_eq!(
        json["nodes"][0]["ends_early"],
        serde_json::json!({"last_row": 14, "digests_to": 16, "block": until + 1})
    );
    for until in [then, until] {
        let said = audit(&["--until", &until.to_string()]);
        assert!(said.code == 0 && said.out.starts_with("CLEAN SO FAR"), "{said:?}");
    }
    // What is not as it was in the rows that are there is no matter of time.
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&copy);
    let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
    connection.execute("UPDATE messages SET body = zeroblob(9) WHERE number = 3").await.unwrap();
    connection.close().await.unwrap();
    let said = audit(&[]);
    assert!(said.code == 1 && said.out.starts_with("TAMPERING  something is not as it was"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_history_is_exit_code_2() {
    let site = Site::new().await;
    site.world.tamper(0, "PRAGMA wal_checkpoint(TRUNCATE)").await;
    let copy = site.world.dir.path().join("locked.sqlite");
    fs::copy(&site.history, &copy).unwrap();
    // With a write-ahead log, nobody waits for anybody.
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&copy);
    let mut holder = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
    holder.execute("PRAGMA journal_mode = DELETE").await.unwrap();
    holder.execute("BEGIN EXCLUSIVE").await.unwrap();
    site.audit(&copy, &[]).unchecked(&["not available", "locked", "free it"]);
    holder.execute("COMMIT").await.unwrap();
    assert_eq!(site.audit(&copy, &[]).code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_cannot_be_used_is_exit_code_2_and_says_what_to_do() {
    let site = Site::new().await;
    let dir = site.world.dir.path();
    let audit = |genesis: &Path, ledger: &Path| {
        run(genesis, &["--ledger", ledger.to_str().unwrap()], site.history.to_str().unwrap(), &[])
    };
    audit(&site.genesis, dir).unchecked(&["has no ledger in it", "data directory", "never started"]);
    audit(&site.genesis, &dir.join("nowhere")).unchecked(&["nowhere is not there"]);
    audit(&dir.join("none.json"), &site.data).unchecked(&["none.json"]);
    fs::write(dir.join("bad.json"), "{}").unwrap();
    audit(&dir.join("bad.json"), &site.data).unchecked(&[
        "bad.json",
        "`version` is missing",
        "ledgermq init",
    ]);

    // Another network's genesis, ledger, or both.
    let mut other = World::new(1);
    other.genesis.name = "other".into();
    other.network = other.genesis.network_id();
    other.state = ledgermq::ledger::State::genesis(&other.genesis);
    other.register(1);
    other.commit().await;
    let other_genesis = dir.join("other.json");
    write_genesis(&other_genesis, &other.genesis).unwrap();
    let other_data = dir.join("other");
    other.write_ledger(&other_data);
    audit(&other_genesis, &site.data).unchecked(&["belongs to network", "genesis document"]);
    audit(&site.genesis, &other_data).unchecked(&["belongs to network", "give those that belong together"]);

    // In use.
    let store = ledgermq::store::SledStore::open(
        &site.data.join("ledger"),
        &ledgermq::store::StoreSettings::new(site.world.network),
    )
    .unwrap();
    audit(&site.genesis, &site.data).unchecked(&["in use", "stop the node first", "--node URL"]);
    drop(store);

    // Nothing in it.
    let empty = dir.join("empty");
    World::new(1).write_ledger_of(&empty, &site.world);
    audit(&site.genesis, &empty).unchecked(&["no certified block"]);
    let unknown = site.audit(&site.history, &["--client", "devices/nobody"]);
    unknown.unchecked(&["devices/nobody was never registered"]);
    let both = run(&site.genesis, &[], site.history.to_str().unwrap(), &[]);
    assert_eq!(both.code, 2, "{both:?}");
}
