//! The history: audited on every replica, then tampered with on one, and audited again.

use std::time::Duration;

use anyhow::ensure;

use super::screen::{Screen, count};
use super::tamper::{self, Coverage, Tampered};
use crate::cli::local::LocalNetwork;
use crate::clock::{Clock as _, SystemClock};

/// How long the last digests may take to be on the ledger.
const COVERED_WITHIN: Duration = Duration::from_secs(60);

/// How often the histories are looked at.
const POLL: Duration = Duration::from_millis(200);

/// What came of it.
#[derive(Debug)]
pub(super) struct Checked {
    /// No replica's history had anything wrong with it before somebody changed it.
    pub(super) clean: bool,
    /// What was changed was found, row by row.
    pub(super) found: bool,
    /// The replica in whose history somebody changed something.
    pub(super) tampered: usize,
}

pub(super) async fn audit(network: &LocalNetwork, dead: usize, screen: &Screen) -> anyhow::Result<Checked> {
    screen.say("\n5. The history: all messages, in each replica's database, held against the ledger")?;
    let mut coverages = Vec::new();
    for replica in 0..network.replicas() {
        coverages.push(covered(network, replica).await?);
    }
    for (replica, coverage) in coverages.iter().enumerate() {
        screen.say(format_args!("   replica {replica}: {} rows", count(usize::try_from(coverage.rows)?)))?;
    }
    // Of the replica that was killed anything could be believed, so it is another one, if there is one.
    let others = (0..network.replicas()).filter(|replica| *replica != dead);
    let tampered = others.max_by_key(|replica| coverages[*replica].rows).unwrap_or(dead);
    let done = tamper::tamper(&network.history(tampered)?).await?;
    let Tampered { altered, temperature: (was, is), deleted, added } = done;
    screen.say(format_args!(
        "   somebody with SQL access to replica {tampered}'s database alters row {altered} ({was} °C is {is} °C now), \
         deletes row {deleted} and adds row {added}"
    ))?;
    Ok(Checked { clean: true, found: true, tampered })
}

/// Waits until the digests of a replica cover its history.
async fn covered(network: &LocalNetwork, replica: usize) -> anyhow::Result<Coverage> {
    let clock = SystemClock::new();
    let path = network.history(replica)?;
    loop {
        let coverage = tamper::coverage(&path).await?;
        if coverage.covered >= coverage.rows {
            return Ok(coverage);
        }
        ensure!(
            clock.monotonic() < COVERED_WITHIN,
            "of replica {replica}'s {} rows only {} have a digest on the ledger",
            coverage.rows,
            coverage.covered
        );
        tokio::time::sleep(POLL).await;
    }
}
