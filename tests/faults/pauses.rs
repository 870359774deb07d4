//! A process that stands still: connected, and silent. Others must not wait for it, and it must not
//! harm them when it wakes up with a clock that has jumped.

use std::time::Duration;

use ledgermq::types::View;
use rustix::process::Signal;

use crate::site::Site;
use crate::turn;

/// How long the primary stands still.
const STANDSTILL: Duration = Duration::from_secs(10);

/// The highest view that any node is in.
async fn view(site: &Site) -> View {
    let statuses = site.network.local.statuses().await;
    statuses.into_iter().flatten().map(|status| status.view).max().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_stands_still_for_ten_seconds_is_replaced_and_joins_again() {
    let _turn = turn().await;
    let mut site = Site::start().await;
    let (primary, before) = (site.primary().await, view(&site).await);
    let since = site.now();
    site.signal(primary, Signal::STOP);
    let took = site.goes_on("SIGSTOP of the primary", since).await;
    site.note("SIGSTOP of the primary: the other clients", took);
    // The length of the fault itself.
    tokio::time::sleep(STANDSTILL.saturating_sub(site.now() - since)).await;
    site.signal(primary, Signal::CONT);
    let resumed = site.now();
    site.recovers("SIGCONT of the primary, after 10 s", resumed).await;
    // On a slow machine its turn may have come again by now.
    assert!(view(&site).await > before, "it was replaced");
    site.audit("the primary stood still").await;
    // It takes part again: with another node gone, nothing would be final without it.
    let other = (primary + 1) % site.network.n();
    let since = site.kill(other).await;
    site.goes_on("it takes part again", since).await;
    site.restart(&[other]).await;
    site.flows().await;
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_stand_still_and_wake_up_one_after_the_other() {
    let _turn = turn().await;
    let mut site = Site::start().await;
    let n = site.network.n();
    for node in 0..n {
        site.signal(node, Signal::STOP);
    }
    // Longer than `consensus.request_timeout_ms`: all find that time has passed and nothing happened.
    tokio::time::sleep(Duration::from_secs(3)).await;
    for node in (1..n).rev() {
        site.signal(node, Signal::CONT);
    }
    let since = site.now();
    site.goes_on("SIGCONT of three nodes", since).await;
    site.signal(0, Signal::CONT);
    site.recovers("SIGCONT of all nodes, after 3 s", since).await;
    site.audit("all nodes stood still").await;
    site.end().await;
}
