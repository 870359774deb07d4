//! What a crash and a failing disk leave of a log: a torn tail is cut, damage stops the node, and a
//! node whose log is gone is silent until it cannot contradict itself.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use ledgermq::crypto::random_bytes;

use crate::site::Site;
use crate::turn;

/// The node whose log suffers. No client of the load prefers it but the plain one.
const NODE: usize = 3;

/// Votes that a node sends only when it is not silent.
const VOTES: [&str; 2] = ["prepare", "commit"];

/// The watermark window of four replicas.
const WINDOW: u64 = 256;

async fn sequence(site: &Site, node: usize) -> u64 {
    site.network.get(node, "/v1/status").await["sequence"].as_u64().unwrap()
}

/// How many votes the node has sent in this life.
async fn votes(site: &Site) -> f64 {
    let mut votes = 0.0;
    for kind in VOTES {
        let name = format!(r#"ledgermq_consensus_messages_total{{direction="out",kind="{kind}"}}"#);
        votes += site.network.metric(NODE, &name).await;
    }
    votes
}

fn log_dir(site: &Site) -> PathBuf {
    site.network.local.node_dir(NODE).join("data").join("log")
}

/// The segment that was written last.
fn newest_segment(dir: &Path) -> PathBuf {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    names.filter(|path| path.extension().is_some_and(|extension| extension == "log")).max().unwrap()
}

fn random_below(limit: u64) -> u64 {
    u64::from_be_bytes(random_bytes().unwrap()) % limit
}

/// Lets the load run out, so that the node promises nothing that only its log has, and kills it.
async fn kill_when_quiet(site: &mut Site, after: &str) {
    site.audit(after).await;
    site.load.pause();
    site.drained(after).await;
    site.kill(NODE).await;
    site.load.resume();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_tail_is_cut_with_a_warning_wherever_it_was_torn() {
    let _turn = turn().await;
    let mut site = Site::start().await;
    for (round, most) in [100, 4_096, u64::MAX].into_iter().enumerate() {
        kill_when_quiet(&mut site, "before the tail is torn").await;
        let segment = newest_segment(&log_dir(&site));
        let file = File::options().write(true).open(&segment).unwrap();
        let length = file.metadata().unwrap().len();
        // Behind the header of the segment; a byte that ends a record tears nothing.
        let cut = 1 + random_below(most.min(length - 60 - 1));
        file.set_len(length - cut).unwrap();
        let before = site.network.log(NODE).len();
        let what = format!("{cut} of {length} bytes of the log were cut off");
        println!("round {round}: {what}");
        let since = site.now();
        site.restart(&[NODE]).await;
        site.recovers(&format!("start with a log that was torn ({cut} bytes)"), since).await;
        let said = site.network.log(NODE)[before..].to_owned();
        let torn = fs::metadata(&segment).map_or(0, |metadata| metadata.len()) != length - cut;
        assert!(!torn || said.contains("torn") || said.contains("cut"), "{what}; it said:\n{said}");
        site.audit(&what).await;
        site.flows().await;
    }
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_log_stops_the_node_and_the_others_go_on() {
    let _turn = turn().await;
    let mut site = Site::start().await;
    site.flows().await;
    kill_when_quiet(&mut site, "before the log is damaged").await;
    let segment = newest_segment(&log_dir(&site));
    let mut bytes = fs::read(&segment).unwrap();
    let at = 60 + usize::try_from(random_below(bytes.len() as u64 / 2 - 60)).unwrap();
    bytes[at] ^= 0x10;
    fs::write(&segment, &bytes).unwrap();
    let since = site.now();
    let refused = site.network.run_node(NODE, &[]).await;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    for words in ["the log is damaged", "at byte", "docs/STORAGE.md"] {
        assert!(said.contains(words), "byte {at} was changed; it said:\n{said}");
    }
    site.goes_on("a node does not start", since).await;
    bytes[at] ^= 0x10;
    fs::write(&segment, &bytes).unwrap();
    let since = site.now();
    site.restart(&[NODE]).await;
    site.recovers("start after the log was repaired", since).await;
    site.audit("the log was damaged and repaired").await;
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_log_is_gone_is_silent_and_votes_again_when_that_is_safe() {
    let _turn = turn().await;
    let mut site = Site::start().await;
    kill_when_quiet(&mut site, "before the log is lost").await;
    fs::remove_dir_all(log_dir(&site)).unwrap();
    let lost_at = sequence(&site, 0).await;
    let since = site.now();
    site.network.local.spawn(NODE).unwrap();
    site.recovers("start without the log", since).await;
    assert!(site.network.log(NODE).contains("it does not vote until it cannot contradict that"));
    // Silent for a window above what the others had when it came back, and not for ever.
    let mut goal = lost_at;
    let spoke_at = loop {
        goal += WINDOW / 8;
        let reached = async || (sequence(&site, 0).await >= goal).then_some(());
        site.eventually(&format!("the others reach sequence {goal}"), reached).await;
        let at = sequence(&site, NODE).await;
        if votes(&site).await > 0.0 {
            break at;
        }
        assert!(goal < lost_at + 3 * WINDOW, "it is silent for ever");
    };
    assert!(spoke_at >= lost_at + WINDOW, "lost at {lost_at}, and voted by {spoke_at}");
    println!("silent from sequence {lost_at} to {spoke_at} or a little before");
    site.network.local.ready(NODE).await.unwrap();
    site.audit("the log was lost").await;
    // It votes in earnest: with another node gone, nothing would be final without it.
    let other = (NODE + 1) % site.network.n();
    let since = site.kill(other).await;
    site.goes_on("a node that was silent votes again", since).await;
    site.restart(&[other]).await;

    // With the ledger gone, too, it begins from nothing and has it from the others.
    kill_when_quiet(&mut site, "before the data directory is wiped").await;
    fs::remove_dir_all(site.network.local.node_dir(NODE).join("data")).unwrap();
    let since = site.now();
    site.restart(&[NODE]).await;
    site.recovers("start with an empty data directory", since).await;
    site.audit("the data directory was wiped").await;
    site.end().await;
}
