//! A node executes itself once more for its allocator: nothing else about it changes.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tempfile::TempDir;

use super::succeed;

/// One at a time: `init` takes ports that are free then, and another node could have them by now.
static ALONE: Mutex<()> = Mutex::new(());

const VARIABLE: &str = "MIMALLOC_PURGE_DELAY";
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

fn program() -> &'static Path {
    Path::new(assert_cmd::cargo::cargo_bin!("ledgermq"))
}

/// A network of one node, and the node's settings in a file whose name is hard to hand on.
fn network() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    succeed(&dir, &["init", "--replicas", "1", "--dir", "net"]);
    let moved = dir.path().join("a \"net\" $x");
    fs::rename(dir.path().join("net"), &moved).unwrap();
    let node = fs::read_dir(&moved).unwrap().map(|file| file.unwrap().path());
    let config = node.map(|path| path.join("node.toml")).find(|path| path.exists()).unwrap();
    let hard = config.with_file_name(OsStr::from_bytes(b"no 'de' \xff.toml"));
    fs::rename(config, &hard).unwrap();
    (dir, hard)
}

/// What the system says of a process, as words.
fn words(child: &Child, file: &str) -> Vec<OsString> {
    let bytes = fs::read(format!("/proc/{}/{file}", child.id())).unwrap_or_default();
    let words = bytes.split_inclusive(|byte| *byte == 0);
    words.map(|word| OsString::from_vec(word[..word.len() - 1].to_vec())).collect()
}

fn wait(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..1_000 {
        if is_so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("waited in vain: {what}");
}

/// Starts a node with `command`, waits until its log of promises is there, sees that it is the process that
/// was started, with its arguments and `purge_delay`, and ends it by the end of its input.
fn runs(mut command: Command, config: &Path, purge_delay: &str) {
    command.args(["node", "--stop-on-eof", "--config"]).arg(config).stdin(Stdio::piped());
    let mut asked = vec![command.get_program().to_owned()];
    asked.extend(command.get_args().map(OsStr::to_owned));
    let said = config.with_file_name("said");
    let mut child = command.stderr(fs::File::create(&said).unwrap()).spawn().unwrap();
    let log = config.with_file_name("data").join("log");
    wait("the node runs", || {
        assert_eq!(child.try_wait().unwrap(), None, "the node ended: {}", fs::read_to_string(&said).unwrap());
        log.exists()
    });
    assert_eq!(words(&child, "cmdline"), asked);
    let variables = words(&child, "environ");
    let found = variables.iter().find_map(|word| word.to_str()?.strip_prefix(&format!("{VARIABLE}=")));
    assert_eq!(found, Some(purge_delay));
    drop(child.stdin.take());
    let status = child.wait().unwrap();
    // It asks itself to stop; while it still starts that ends it at once.
    assert!(status.success() || status.signal() == Some(15), "{status}");
}

fn without_settings(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env_remove(VARIABLE).env_remove("MIMALLOC_ALLOW_THP");
    command
}

#[test]
fn a_node_keeps_its_process_and_its_arguments_and_has_the_settings() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (_dir, config) = network();
    runs(without_settings(program()), &config, "10000");
}

#[test]
fn a_setting_of_the_user_stays() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (_dir, config) = network();
    let mut command = without_settings(program());
    command.env(VARIABLE, "7");
    runs(command, &config, "7");
}

#[test]
fn a_node_that_the_dynamic_loader_was_told_to_run_runs() {
    if !Path::new(LOADER).exists() {
        return;
    }
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (_dir, config) = network();
    let mut command = without_settings(LOADER);
    command.arg(program());
    runs(command, &config, "10000");
}
