//! kill -9: any node, any two, all of them, in any order, under load.
//!
//! By default a part of the tables runs, in which each node is killed and restarted in each place of
//! the order; `FAULTS_ALL=1` runs them whole.

use std::time::Duration;

use crate::site::Site;
use crate::{is_long, turn};

/// A bound for slow machines; what is measured is in docs/FAULTS.md.
const SOON: Duration = Duration::from_secs(30);

/// How often the primary is killed to measure how long that is felt: `FAULTS_KILLS`.
fn kills() -> usize {
    std::env::var("FAULTS_KILLS").map_or(3, |kills| kills.parse().expect("FAULTS_KILLS is a number"))
}

/// Which nodes are killed and in which order, and in which order they are started again.
#[derive(Debug)]
struct Row {
    kill: Vec<usize>,
    restart: Vec<usize>,
    /// Whether the others, where they are enough, go on between two kills, or all happen at once.
    pause: bool,
}

/// All orders of killing two of four nodes, each with both orders of restarting them. Its first six
/// rows have each pair once, each order of restarting, and each node in each place.
fn pairs() -> Vec<Row> {
    let both = |(one, two): (usize, usize), at: usize| {
        let (pair, back) = ([one, two], [two, one]);
        let (kill, restart) = match at % 4 {
            0 => (pair, pair),
            1 => (back, pair),
            2 => (back, back),
            _ => (pair, back),
        };
        Row { kill: kill.to_vec(), restart: restart.to_vec(), pause: at.is_multiple_of(2) }
    };
    let pairs = [(0, 1), (2, 3), (0, 2), (1, 3), (0, 3), (1, 2)];
    (0..4).flat_map(|turn| (0..).zip(pairs).map(move |(at, pair)| both(pair, at + turn))).collect()
}

/// Every order of killing all four nodes, each with another order of restarting them.
fn everybody() -> Vec<Row> {
    let orders = permutations(&[0, 1, 2, 3]);
    let n = orders.len();
    let row = |at: usize| {
        // 7 and n have no common factor: so each order of restarting has its turn.
        let restart = orders[(7 * at + 5) % n].clone();
        Row { kill: orders[(11 * at) % n].clone(), restart, pause: at.is_multiple_of(2) }
    };
    (0..n).map(row).collect()
}

fn permutations(of: &[usize]) -> Vec<Vec<usize>> {
    if of.is_empty() {
        return vec![Vec::new()];
    }
    let with_first = |first: &usize| {
        let rest: Vec<usize> = of.iter().copied().filter(|other| other != first).collect();
        permutations(&rest).into_iter().map(|rest| [vec![*first], rest].concat()).collect::<Vec<_>>()
    };
    of.iter().flat_map(with_first).collect()
}

#[test]
fn the_tables_have_every_order_once() {
    let mut pairs: Vec<_> = pairs().into_iter().map(|row| (row.kill, row.restart)).collect();
    pairs.sort();
    pairs.dedup();
    assert_eq!(pairs.len(), 6 * 2 * 2);
    let order: [fn(Row) -> Vec<usize>; 2] = [|row| row.kill, |row| row.restart];
    for order in order {
        let mut orders: Vec<_> = everybody().into_iter().map(order).collect();
        orders.sort();
        orders.dedup();
        assert_eq!(orders.len(), 24);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_primarys_death_messages_are_final_again_soon() {
    let _turn = turn().await;
    let mut site = Site::start().await;
    for kill in 1..=kills() {
        let primary = site.primary().await;
        let since = site.kill(primary).await;
        let recovery = site.recovers(&format!("kill -9 of the primary, {kill}"), since).await;
        assert!(recovery.first < SOON, "{recovery:?}");
        site.restart(&[primary]).await;
        site.audit("a killed primary").await;
        site.flows().await;
    }
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_node_in_turn_is_killed_and_comes_back_and_nothing_is_lost() {
    let _turn = turn().await;
    let mut site = Site::start().await;
    for node in 0..site.network.n() {
        let role = if site.primary().await == node { "the primary" } else { "a backup" };
        let since = site.kill(node).await;
        site.recovers(&format!("kill -9 of node {node}, {role}"), since).await;
        let since = site.now();
        site.restart(&[node]).await;
        site.recovers(&format!("start of node {node}"), since).await;
        site.audit(&format!("node {node} was killed")).await;
        site.flows().await;
    }
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_are_killed_and_restarted_in_any_order_and_nothing_is_lost() {
    let _turn = turn().await;
    let mut site = Site::start().await;
    let rows = if is_long() { pairs() } else { pairs().into_iter().take(6).collect() };
    for row in rows {
        killed_and_restarted(&mut site, &row).await;
    }
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_are_killed_and_restarted_in_any_order_and_nothing_is_lost() {
    let _turn = turn().await;
    let mut site = Site::start().await;
    let rows = if is_long() { everybody() } else { everybody().into_iter().take(2).collect() };
    for row in rows {
        killed_and_restarted(&mut site, &row).await;
    }
    site.network.local.kill_all().await.unwrap();
    let since = site.now();
    site.restart(&[0, 1, 2, 3]).await;
    site.recovers("start of all nodes, killed at once", since).await;
    site.audit("all nodes were killed at once").await;
    site.end().await;
}

/// One row: kills, restarts, waits until all clients are served, and audits.
async fn killed_and_restarted(site: &mut Site, row: &Row) {
    let Row { kill, restart, pause } = row;
    let primary = site.primary().await;
    let what = format!("kill -9 of {kill:?} (primary {primary}), start of {restart:?}");
    for (killed, node) in kill.iter().enumerate() {
        let since = site.kill(*node).await;
        if *pause && killed == 0 {
            site.goes_on(&what, since).await;
        }
    }
    // From the start of the node that makes a quorum again.
    let n = site.network.n();
    let enough = 2 * n / 3 + 1 - (n - kill.len());
    for node in &restart[..enough - 1] {
        site.network.local.spawn(*node).unwrap();
    }
    let since = site.now();
    site.network.local.spawn(restart[enough - 1]).unwrap();
    site.goes_on(&what, since).await;
    for node in &restart[enough..] {
        site.network.local.spawn(*node).unwrap();
    }
    site.recovers(&what, since).await;
    site.network.local.all_ready().await.unwrap();
    site.audit(&what).await;
    site.flows().await;
}
