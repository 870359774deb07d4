//! A switch and four houses: each node in a network namespace of its own, joined by a bridge, and cut
//! off from each other by packet filters in those namespaces.
//!
//! ```text
//!   test ── 198.18.x.254 ── bridge ┬── veth ── namespace 0: 198.18.x.1, node 0, iptables
//!                                  ├── veth ── namespace 1: 198.18.x.2, node 1, iptables
//!                                  └── …
//! ```
//!
//! Clients are always let through: they see what each side of a partition says. The names contain the
//! number of this process, so runs beside each other do not meet, and everything is taken down when
//! the value is dropped, also by a test that panics. What a run left that was itself killed, the next
//! one takes down: its number is then that of no process.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use ledgermq::cli::local::Place;

/// How many subnets are tried, one for each third byte; 198.18.0.0/15 is for tests (RFC 2544).
const SUBNETS: u32 = 256;

/// What the names of all namespaces and bridges here begin with; the process follows, then a letter.
const MARK: &str = "lmq";

static LABS: AtomicU32 = AtomicU32::new(0);

pub struct Netns {
    prefix: String,
    subnet: [u8; 3],
    houses: usize,
}

impl Netns {
    pub fn new(houses: usize) -> Self {
        take_down_leftovers();
        let (pid, lab) = (std::process::id(), LABS.fetch_add(1, Ordering::Relaxed));
        let subnet = free_subnet(pid);
        // Dropped if anything fails from here on.
        let netns = Self {
            prefix: format!("{MARK}{pid}{}", char::from(b'a' + u8::try_from(lab % 26).unwrap())),
            subnet,
            houses,
        };
        let bridge = netns.bridge();
        let (gate, prefix) = (netns.host(253), &netns.prefix);
        ip(&["link", "add", &bridge, "type", "bridge"]);
        ip(&["addr", "add", &format!("{gate}/24"), "dev", &bridge]);
        ip(&["link", "set", &bridge, "up"]);
        for at in 0..houses {
            let (name, link) = (netns.name(at), format!("{prefix}{at}"));
            ip(&["netns", "add", &name]);
            ip(&["link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &name]);
            ip(&["link", "set", &link, "master", &bridge, "up"]);
            ip(&["-n", &name, "addr", "add", &format!("{}/24", netns.host(at)), "dev", "eth0"]);
            ip(&["-n", &name, "link", "set", "eth0", "up"]);
            ip(&["-n", &name, "link", "set", "lo", "up"]);
        }
        netns
    }

    /// Where the nodes live.
    pub fn places(&self) -> Vec<Place> {
        let launcher = |at| ["ip", "netns", "exec", &self.name(at)].map(str::to_owned).to_vec();
        (0..self.houses).map(|at| Place { host: IpAddr::V4(self.host(at)), launcher: launcher(at) }).collect()
    }

    /// Lets nodes hear only those of their own group.
    pub fn partition(&self, groups: &[&[usize]]) {
        let group = |node: usize| groups.iter().position(|group| group.contains(&node));
        for to in 0..self.houses {
            let deaf_to = (0..self.houses).filter(|from| group(*from) != group(to));
            self.filter(to, deaf_to);
        }
    }

    /// Lets `to` hear nothing from `from`; all other ways are open.
    pub fn one_way(&self, cuts: &[(usize, usize)]) {
        for to in 0..self.houses {
            self.filter(to, cuts.iter().filter(|(_, deaf)| *deaf == to).map(|(from, _)| *from));
        }
    }

    pub fn heal(&self) {
        self.one_way(&[]);
    }

    /// Replaces all rules of a house at once.
    fn filter(&self, to: usize, deaf_to: impl Iterator<Item = usize>) {
        let rules = deaf_to.map(|from| format!("-A INPUT -s {} -j DROP\n", self.host(from)));
        let rules = format!("*filter\n:INPUT ACCEPT [0:0]\n{}COMMIT\n", rules.collect::<String>());
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name(to), "iptables-restore", "-w"]);
        let mut child = command
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| missing(&error));
        child.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "iptables-restore, of the package iptables: {}", stderr(&output));
    }

    fn host(&self, at: usize) -> Ipv4Addr {
        let [a, b, c] = self.subnet;
        Ipv4Addr::new(a, b, c, u8::try_from(at + 1).unwrap())
    }

    fn bridge(&self) -> String {
        format!("{}b", self.prefix)
    }

    fn name(&self, at: usize) -> String {
        format!("{}-{at}", self.prefix)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // A veth goes with its namespace. What was never made cannot be removed, and need not be.
        for at in 0..self.houses {
            let _ = Command::new("ip").args(["netns", "del", &self.name(at)]).output();
        }
        let _ = Command::new("ip").args(["link", "del", &self.bridge()]).output();
    }
}

/// Namespaces and bridges of runs that were killed.
fn take_down_leftovers() {
    let (namespaces, links) = (ip(&["netns", "list"]), ip(&["-o", "link"]));
    let names = namespaces.lines().filter_map(|line| line.split_whitespace().next());
    for name in names.filter(|name| is_leftover(name)) {
        let _ = Command::new("ip").args(["netns", "del", name]).output();
    }
    let names = links.lines().filter_map(|line| line.split_whitespace().nth(1)?.strip_suffix(':'));
    for name in names.filter(|name| name.ends_with('b') && is_leftover(name)) {
        let _ = Command::new("ip").args(["link", "del", name]).output();
    }
}

/// Whether a name is one of these, of a process that is gone.
fn is_leftover(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(MARK) else { return false };
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let is_ours = digits > 0 && rest[digits..].starts_with(|c: char| c.is_ascii_lowercase());
    is_ours && !std::path::Path::new("/proc").join(&rest[..digits]).exists()
}

/// One that no address of this machine is in.
fn free_subnet(pid: u32) -> [u8; 3] {
    let used = ip(&["-o", "-4", "addr"]);
    let tries = (0..SUBNETS).map(|step| [198, 18, pid.wrapping_add(step).to_be_bytes()[3]]);
    let mut free = tries.filter(|[a, b, c]| !used.contains(&format!(" {a}.{b}.{c}.")));
    free.next()
        .expect("too many subnets of 198.18.0.0/16 are in use: remove bridges of earlier runs (`ip link`)")
}

fn ip(args: &[&str]) -> String {
    let output = Command::new("ip").args(args).output().unwrap_or_else(|error| missing(&error));
    assert!(
        output.status.success(),
        "`ip {}` failed; this test needs to be root, with network namespaces: {}",
        args.join(" "),
        stderr(&output)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn missing<T>(error: &std::io::Error) -> T {
    panic!("cannot run `ip` ({error}): apt-get install iproute2 iptables")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn namespaces_are_taken_down_when_a_test_panics() {
    let names = std::sync::Mutex::new(Vec::new());
    let caught = std::panic::catch_unwind(|| {
        let netns = Netns::new(2);
        netns.partition(&[&[0], &[1]]);
        let all = ip(&["netns", "list"]) + &ip(&["-o", "link"]);
        let made = [netns.name(0), netns.name(1), netns.bridge()];
        assert!(made.iter().all(|name| all.contains(name)), "{all}");
        names.lock().unwrap().extend(made);
        panic!("as a test does that fails");
    });
    assert!(caught.is_err());
    let all = ip(&["netns", "list"]) + &ip(&["-o", "link"]);
    let names = names.into_inner().unwrap();
    assert_eq!(names.len(), 3, "it got as far as that");
    assert!(names.iter().all(|name| !all.contains(name)), "{all}");
}
