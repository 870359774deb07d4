//! Partitions, in real network namespaces: no side without a quorum makes anything final, no two sides
//! disagree, and everything goes on when they meet again.

use std::time::Duration;

use crate::netns::Netns;
use crate::network::TestNetwork;
use crate::site::Site;
use crate::turn;

/// How long a partition lasts, where that matters: longer than several changes of view.
const LASTING: Duration = Duration::from_secs(5);

/// Nodes in houses of their own, under load.
struct Divided {
    // Before the houses that its processes live in.
    site: Site,
    netns: Netns,
}

impl Divided {
    async fn start() -> Self {
        let netns = Netns::new(4);
        let mut network = TestNetwork::create_in(4, &[], netns.places());
        network.spawn_all().await;
        Self { site: Site::on(network).await, netns }
    }

    /// The primary, and the others in order.
    async fn roles(&self) -> (usize, [usize; 3]) {
        let primary = self.site.primary().await;
        let n = self.site.network.n();
        (primary, [1, 2, 3].map(|step| (primary + step) % n))
    }

    /// Heals the partition, and waits until all are served and all ledgers are the same.
    async fn heals(&mut self, what: &str) {
        let since = self.site.now();
        self.netns.heal();
        self.site.recovers(&format!("end of {what}"), since).await;
        self.site.audit(what).await;
        self.site.flows().await;
    }

    /// Nothing that was published while nobody had a quorum is final before it ends.
    async fn stands_still(&self, since: Duration) {
        // The length of the fault itself.
        tokio::time::sleep(LASTING).await;
        let finals = self.site.load.notebook.finals_since(since);
        assert!(finals.is_empty(), "no side has a quorum, and yet {finals:?}");
        let sent = self.site.load.notebook.messages();
        assert!(sent.iter().any(|message| message.published >= since), "clients went on publishing");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_against_two_stand_still_and_go_on_together() {
    let _turn = turn().await;
    let mut divided = Divided::start().await;
    let (primary, [a, b, c]) = divided.roles().await;
    divided.netns.partition(&[&[primary, a], &[b, c]]);
    divided.stands_still(divided.site.now()).await;
    divided.heals("a partition 2|2").await;

    // It changes its shape, and nobody ever has a quorum.
    divided.netns.partition(&[&[primary, b], &[a, c]]);
    let since = divided.site.now();
    divided.stands_still(since).await;
    divided.netns.partition(&[&[primary, c], &[a, b]]);
    divided.stands_still(since).await;
    divided.netns.partition(&[&[primary], &[a], &[b], &[c]]);
    divided.stands_still(since).await;
    divided.heals("partitions 2|2, 2|2, 1|1|1|1").await;
    divided.site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_go_on_without_one_be_it_cut_off_deaf_or_mute() {
    let _turn = turn().await;
    let mut divided = Divided::start().await;
    let (primary, others) = divided.roles().await;
    divided.netns.partition(&[&[primary], &others]);
    let since = divided.site.now();
    let took = divided.site.goes_on("the primary is cut off", since).await;
    divided.site.note("partition 1|3, the primary alone: the others", took);
    tokio::time::sleep(LASTING).await;
    divided.heals("a partition 1|3, the primary alone").await;

    let (primary, others) = divided.roles().await;
    divided.netns.one_way(&others.map(|other| (primary, other)));
    let since = divided.site.now();
    let took = divided.site.goes_on("nobody hears the primary", since).await;
    divided.site.note("nobody hears the primary: the others", took);
    divided.heals("nobody hearing the primary").await;

    let (primary, others) = divided.roles().await;
    divided.netns.one_way(&others.map(|other| (other, primary)));
    let since = divided.site.now();
    let took = divided.site.goes_on("the primary hears nobody", since).await;
    divided.site.note("the primary hears nobody: the others", took);
    divided.heals("the primary hearing nobody").await;

    // The majority moves: who was cut off is needed next.
    let (primary, [a, b, c]) = divided.roles().await;
    for alone in [primary, a, b] {
        let others: Vec<usize> = [primary, a, b, c].into_iter().filter(|other| *other != alone).collect();
        divided.netns.partition(&[&[alone], &others]);
        let since = divided.site.now();
        let took = divided.site.goes_on("another node is cut off", since).await;
        divided.site.note("another node is cut off, without a break: the others", took);
    }
    divided.heals("partitions 1|3 of one node after the other").await;
    divided.site.end().await;
}
