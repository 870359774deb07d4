//! A private PostgreSQL.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// A user without rights: nobody. PostgreSQL refuses to run as root.
const NOBODY: u32 = 65_534;

pub struct Server {
    dir: tempfile::TempDir,
    programs: PathBuf,
    port: u16,
    process: Option<Child>,
}

impl Server {
    /// Makes an empty database and serves it.
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let mut server = Self { dir, programs: programs(), port, process: None };
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(server.dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let data = server.dir.path().join("data");
        let made = server
            .command("initdb")
            .args(["--auth=trust", "--username=ledger", "--encoding=UTF8", "--locale=C", "--no-sync", "-D"])
            .arg(&data)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        server.start_again();
        server
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        if rustix::process::geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }

    /// Serves the same database again.
    pub fn start_again(&mut self) {
        // Processes of a server that was killed need a moment to notice.
        for _ in 0..50 {
            let process = self
                .command("postgres")
                .arg("-D")
                .arg(self.dir.path().join("data"))
                .args(["-p", &self.port.to_string(), "-h", "127.0.0.1", "-k"])
                .arg(self.dir.path())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            if self.is_ready(process) {
                return;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        panic!("PostgreSQL does not start");
    }

    fn is_ready(&mut self, mut process: Child) -> bool {
        loop {
            if process.try_wait().unwrap().is_some() {
                return false;
            }
            let asked = self
                .command("pg_isready")
                .args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string()])
                .status();
            if asked.unwrap().success() && TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok() {
                self.process = Some(process);
                return true;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn url(&self) -> String {
        format!("postgres://ledger@127.0.0.1:{}/postgres", self.port)
    }

    /// Ends it in order, without waiting for its clients.
    pub fn stop(&mut self) {
        self.end(Signal::INT);
    }

    /// Ends it as a power cut would.
    pub fn kill(&mut self) {
        self.end(Signal::QUIT);
    }

    fn end(&mut self, signal: Signal) {
        let Some(mut process) = self.process.take() else { return };
        let pid = Pid::from_raw(i32::try_from(process.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
        process.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Where Debian has the newest version.
fn programs() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").map(|dir| dir.map(|entry| entry.unwrap().path()));
    let newest = versions.into_iter().flatten().filter(|path| is_version(path)).max();
    newest.expect("PostgreSQL is missing: apt-get install postgresql").join("bin")
}

fn is_version(path: &Path) -> bool {
    path.join("bin/postgres").exists()
}
