//! A disk that is full: its node stops with a message that says what to do, the others go on, and
//! it comes back when there is room, having lost nothing that it promised.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::network::TestNetwork;
use crate::site::Site;
use crate::turn;

/// The node whose disk is small: that of the plain client, whose PUBACKs are promises of this node.
const NODE: usize = 3;

/// What the names of all small disks begin with; the process follows.
const MARK: &str = "ledgermq-faults-";

/// A small file system of its own; unmounted when dropped, also by a test that panics.
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    pub fn mount(path: &Path, size: &str) -> Self {
        unmount_leftovers();
        fs::create_dir_all(path).unwrap();
        let options = format!("size={size},mode=0700");
        let name = format!("{MARK}{}", std::process::id());
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &options, &name]).arg(path);
        let output = command.output().expect("cannot run `mount`: apt-get install mount");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "this test needs to be root and to mount a tmpfs: {said}");
        Self { path: path.to_owned() }
    }

    /// Takes all the room that is left.
    pub fn fill(&self) {
        let mut ballast = fs::File::create(self.ballast()).unwrap();
        let error = std::io::copy(&mut std::io::repeat(0), &mut ballast).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{error}");
    }

    pub fn make_room(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process that is being killed may still have a file open.
        let _ = Command::new("umount").arg("--lazy").arg(&self.path).output();
    }
}

/// Unmounts the disks of runs that were killed.
fn unmount_leftovers() {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    for path in mounts.lines().filter_map(leftover) {
        let _ = Command::new("umount").args(["--lazy", path]).output();
    }
}

/// Where a disk of a process that is gone is mounted, if a line of `/proc/mounts` is about one.
fn leftover(line: &str) -> Option<&str> {
    let (process, rest) = line.strip_prefix(MARK)?.split_once(' ')?;
    process.parse::<u32>().ok().filter(|_| !Path::new("/proc").join(process).exists())?;
    rest.split(' ').next()
}

#[test]
fn disks_of_runs_that_were_killed_are_known_by_their_names() {
    let line = |name: &str| format!("{name} /tmp/x/data tmpfs rw,size=65536k 0 0");
    // No process has so high a number.
    assert_eq!(leftover(&line("ledgermq-faults-4294967295")), Some("/tmp/x/data"));
    assert_eq!(leftover(&line(&format!("{MARK}{}", std::process::id()))), None, "this one runs");
    assert_eq!(leftover(&line("ledgermq-faults-x")), None);
    assert_eq!(leftover(&line("tmpfs")), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_disk_is_full_stops_and_says_so_and_comes_back_when_there_is_room() {
    let _turn = turn().await;
    let mut network = TestNetwork::create(4, &[]);
    let disk = SmallDisk::mount(&network.local.node_dir(NODE).join("data"), "64m");
    network.spawn_all().await;
    let mut site = Site::on(network).await;
    for round in 1..=2 {
        let before = site.network.log(NODE).len();
        let since = site.now();
        disk.fill();
        let ended = async || site.network.local.exited(NODE).unwrap();
        let status = crate::site::within(ended).await.expect("a node with a full disk stops");
        assert_eq!(status.code(), Some(1), "{}", site.network.local.last_lines(NODE));
        let said = site.network.log(NODE)[before..].to_owned();
        for words in ["No space left on device", "check the disk", "start the node again"] {
            assert!(said.contains(words), "round {round}: {words:?} is missing in:\n{said}");
        }
        site.recovers("one disk is full", since).await;

        // Without room it does not start, and says why.
        let refused = site.network.run_node(NODE, &[]).await;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1), "{said}");
        assert!(said.contains("No space left on device"), "{said}");

        disk.make_room();
        let since = site.now();
        site.restart(&[NODE]).await;
        site.recovers("start with room on the disk", since).await;
        site.audit("one disk was full").await;
        site.flows().await;
    }
    site.end().await;
}
