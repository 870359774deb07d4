//! kill -9: any node, any two, all of them, in any order, under load.

use std::time::Duration;

use crate::site::Site;
use crate::{is_long, turn};

/// A bound for slow machines; what is measured is in docs/FAULTS.md.
const SOON: Duration = Duration::from_secs(30);

/// How often the primary is killed to measure how long that is felt: `FAULTS_KILLS`.
fn kills() -> usize {
    std::env::var("FAULTS_KILLS").map_or(3, |kills| kills.parse().expect("FAULTS_KILLS is a number"))
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_primarys_death_messages_are_final_again_soon() {
    let _turn = turn().await;
    let mut site = Site::start().await;
    for kill in 1..=kills() {
        let primary = site.network.primary().await;
        let since = site.kill(primary).await;
        let recovery = site.recovers(&format!("kill -9 of the primary, {kill}"), since).await;
        assert!(recovery.first < SOON, "{recovery:?}");
        site.restart(&[primary]).await;
        site.audit("a killed primary").await;
        site.flows().await;
    }
    site.end().await;
}
