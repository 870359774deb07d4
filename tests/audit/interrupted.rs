//! An audit that is interrupted leaves nothing behind, and judges nothing.

use std::fs;
use std::io::Read as _;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use ledgermq::config::write_genesis;

use crate::world::World;

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// Where somebody listens and never answers, and a word each time that he was asked.
fn silent() -> (String, mpsc::Receiver<()>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (asked, was_asked) = mpsc::channel();
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            stream.read_exact(&mut [0; 4]).unwrap();
            held.push(stream);
            asked.send(()).unwrap();
        }
    });
    (url, was_asked)
}

fn count(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().count()
}

/// Ends the process with the test, also if the test fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _has_ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_that_is_interrupted_says_so_and_removes_its_copies() {
    let world = World::ordinary().await;
    let genesis = world.dir.path().join("genesis.json");
    write_genesis(&genesis, &world.genesis).unwrap();
    // A file with a write-ahead log and no shared memory is read from a copy.
    let from = world.nodes[0].dir.join("history/history.sqlite");
    let history = world.dir.path().join("copied.sqlite");
    fs::copy(&from, &history).unwrap();
    fs::copy(from.with_extension("sqlite-wal"), history.with_extension("sqlite-wal")).unwrap();
    for signal in ["INT", "TERM"] {
        let temporary = tempfile::tempdir().unwrap();
        let (url, was_asked) = silent();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ledgermq"));
        command.args(["audit", "--genesis", genesis.to_str().unwrap(), "--node", &url, "--history"]);
        command.arg(&history).env("TMPDIR", temporary.path());
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut audit = Running(child);
        was_asked.recv_timeout(LONG).expect("the audit asks for the ledger");
        assert_eq!(count(temporary.path()), 1, "the copy that is read");
        let pid = audit.0.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
        let (mut out, mut err) = (String::new(), String::new());
        audit.0.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        audit.0.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        assert_eq!(audit.0.wait().unwrap().code(), Some(2), "{signal}: {out}{err}");
        assert!(out.is_empty() && err.contains("interrupted") && err.lines().count() == 1, "{out}{err}");
        assert_eq!(count(temporary.path()), 0, "{signal}: the copy is gone");
    }
}
