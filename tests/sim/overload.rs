//! More work than the machines can do at once: an honest primary keeps its place, and all is written.

use std::time::Duration;

use crate::cluster::Cluster;

const SECOND: Duration = Duration::from_secs(1);

/// Four slow nodes, each of which is asked for so much at once. Gives how long it took until all of it
/// was written, and the highest view.
fn asked_at_once(check_us: u64, pipeline: u64, times: u64, limit: Duration) -> (Duration, u64) {
    let mut t = Cluster::with(0, 4, |settings| {
        settings.batch_max_requests = 1;
        settings.pipeline_batches = pipeline;
    });
    t.until_all_written(10 * SECOND);
    for node in &mut t.nodes {
        node.check_us = check_us;
        node.sync_us = (2_000, 10_000);
    }
    let before = t.time;
    while (0..4).any(|node| t.asked_of(node) < times) && t.time < before + limit {
        for node in 0..4 {
            let left = times.saturating_sub(t.asked_of(node));
            t.ask_times(node, left.min(8) as usize);
        }
        t.run(Duration::from_millis(20));
    }
    t.until_all_written(limit);
    let view = t.nodes.iter().filter_map(|node| Some(node.replica.as_ref()?.status().view.0)).max();
    (t.time - before, view.unwrap_or_default())
}

#[test]
fn a_primary_with_small_batches_keeps_its_place_under_overload() {
    for (check_us, pipeline) in [(1_000, 1), (2_000, 1), (1_000, 64), (2_000, 64), (2_000, 256)] {
        let (took, view) = asked_at_once(check_us, pipeline, 100, 60 * SECOND);
        println!("{check_us} us for each signature, {pipeline} batches: {took:?}, view {view}");
        assert_eq!(view, 0, "an honest primary was given up");
        // Nine messages for each of 400 batches are checked one after the other.
        let work = Duration::from_micros(check_us) * 9 * 400;
        assert!(took < work * 2, "{took:?} for {work:?} of work");
    }
}
