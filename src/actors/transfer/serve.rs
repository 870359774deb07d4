//! How much this node gives to those that fetch blocks: a node that fills itself must not slow ordering.
//!
//! Each replica has a share of its own; all other nodes together have one more, since anybody can make
//! keys. Whoever finds its share or that of all used up is told `Busy` and asks again, or somebody else.
//! A place is held until the answer is sent, so a slow reader holds no more than its places in memory.
//!
//! Nobody can use up what is left for the others: one place, and an even part of the bytes of all, each
//! share has whatever the others do. Faulty replicas and strangers together could keep an honest replica
//! that is behind waiting for ever otherwise.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::throttle::Throttle;
use crate::config::TransferConfig;
use crate::ledger::ReplicaSet;
use crate::metrics::TransferMetrics;
use crate::types::NodeId;

/// What one node may use.
#[derive(Debug)]
struct Share {
    throttle: Throttle,
    /// Its even part of the bytes of all: while this is open, it does not matter what others took.
    assured: Throttle,
    places: Arc<Semaphore>,
    /// One place, whatever others hold.
    first: Arc<Semaphore>,
}

#[derive(Debug)]
struct Shares {
    /// Bytes of all together.
    all: Throttle,
    /// Places beside the first of each.
    further: Arc<Semaphore>,
    /// Of each replica, and of `None`: everybody else.
    each: BTreeMap<Option<NodeId>, Share>,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Serving {
    shares: Arc<Mutex<Shares>>,
    metrics: TransferMetrics,
}

/// Leave to read blocks for a peer. Its places go to the answer.
#[derive(Debug)]
pub struct Leave {
    /// Held until the answer is sent: one of the share, and its own first one or one of all.
    pub places: [OwnedSemaphorePermit; 2],
    share: Option<NodeId>,
}

impl Serving {
    /// Shares for the replicas and everybody else.
    pub fn new(
        settings: &TransferConfig,
        replicas: &ReplicaSet,
        metrics: TransferMetrics,
        now: Duration,
    ) -> Self {
        let nodes: Vec<_> = replicas.members().iter().copied().map(Some).chain([None]).collect();
        let most = usize::try_from(settings.serve_requests_each).unwrap_or(usize::MAX);
        let all = usize::try_from(settings.serve_requests).unwrap_or(usize::MAX);
        let share = || Share {
            throttle: Throttle::new(settings.serve_bytes_per_s_each, now),
            assured: Throttle::new(settings.serve_bytes_per_s / (nodes.len() as u64).max(1), now),
            places: Arc::new(Semaphore::new(most)),
            first: Arc::new(Semaphore::new(1)),
        };
        let shares = Shares {
            all: Throttle::new(settings.serve_bytes_per_s, now),
            further: Arc::new(Semaphore::new(all.saturating_sub(nodes.len()))),
            each: nodes.iter().map(|node| (*node, share())).collect(),
        };
        Self { shares: Arc::new(Mutex::new(shares)), metrics }
    }

    /// Leave for one request of `node`; none if it has to come back later.
    pub fn enter(&self, node: NodeId, now: Duration) -> Option<Leave> {
        let leave = self.try_enter(node, now);
        if leave.is_none() {
            self.metrics.served.with_label_values(&["busy"]).inc();
        }
        leave
    }

    fn try_enter(&self, node: NodeId, now: Duration) -> Option<Leave> {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        let Shares { all, further, each } = &mut *shares;
        let share = Some(node).filter(|node| each.contains_key(&Some(*node)));
        let own = each.get_mut(&share)?;
        let assured = own.assured.is_open(now);
        if !own.throttle.is_open(now) || !(all.is_open(now) || assured) {
            return None;
        }
        let place = Arc::clone(&own.places).try_acquire_owned().ok()?;
        let of_all = Arc::clone(&own.first).try_acquire_owned();
        let of_all = of_all.or_else(|_| Arc::clone(further).try_acquire_owned()).ok()?;
        Some(Leave { places: [place, of_all], share })
    }

    /// So much was read for it. Gives the places, for the answer.
    pub fn served(&self, leave: Leave, blocks: usize, bytes: u64) -> [OwnedSemaphorePermit; 2] {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        // What is assured counts for all as well: together they get no more than the rate.
        shares.all.charge(bytes);
        if let Some(share) = shares.each.get_mut(&leave.share) {
            share.throttle.charge(bytes);
            share.assured.charge(bytes);
        }
        self.metrics.served.with_label_values(&["answered"]).inc();
        self.metrics.served_blocks.inc_by(blocks as u64);
        self.metrics.served_bytes.inc_by(bytes);
        leave.places
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    const MIB: u64 = 1 << 20;

    fn serving() -> Serving {
        let settings = TransferConfig {
            serve_bytes_per_s: 5 * MIB,
            serve_bytes_per_s_each: 2 * MIB,
            serve_requests: 6,
            serve_requests_each: 2,
            ..TransferConfig::default()
        };
        let replicas = ReplicaSet::new((0..4).map(node).collect()).unwrap();
        Serving::new(&settings, &replicas, Metrics::new().unwrap().transfer.clone(), Duration::ZERO)
    }

    fn node(at: u8) -> NodeId {
        NodeId([at; 32])
    }

    #[test]
    fn a_peer_has_its_places_and_all_together_have_theirs() {
        let serving = serving();
        let enter = |at| serving.enter(node(at), Duration::ZERO);
        let (first, _second) = (enter(0).unwrap(), enter(0).unwrap());
        assert!(enter(0).is_none(), "its places are taken");
        let _third = enter(1).unwrap();
        assert!(enter(1).is_none(), "beside the first of each, the places of all are taken");
        let places = serving.served(first, 1, 10);
        assert!(enter(0).is_none(), "until the answer is sent");
        drop(places);
        assert!(enter(0).is_some());
    }

    #[test]
    fn whoever_holds_all_places_leaves_one_to_each_of_the_others() {
        let serving = serving();
        let greedy = [0, 1, 10].map(node);
        let _held: Vec<_> =
            greedy.iter().cycle().take(20).filter_map(|node| serving.enter(*node, Duration::ZERO)).collect();
        assert!(serving.enter(node(2), Duration::ZERO).is_some());
        assert!(serving.enter(node(3), Duration::ZERO).is_some());
    }

    #[test]
    fn who_got_its_bytes_waits_and_the_others_do_not() {
        let serving = serving();
        let fetch = |at, bytes, now| {
            let leave = serving.enter(node(at), now)?;
            drop(serving.served(leave, 1, bytes));
            Some(())
        };
        assert!(fetch(0, 3 * MIB, Duration::ZERO).is_some());
        assert!(fetch(0, MIB, Duration::from_millis(1)).is_none());
        assert!(fetch(1, 2 * MIB, Duration::from_millis(1)).is_some());
        assert!(fetch(0, MIB, Duration::from_secs(1)).is_some());
    }

    #[test]
    fn faulty_replicas_and_strangers_who_take_all_bytes_do_not_starve_the_others() {
        let serving = serving();
        let (mut greedy, mut honest) = (0, 0);
        for ms in 0..20_000 {
            let now = Duration::from_millis(ms);
            let fetch = |at| serving.enter(node(at), now).map(|leave| serving.served(leave, 1, MIB));
            greedy += [0, 1, 10].into_iter().filter_map(fetch).count();
            // It comes back after the longest pause that `Busy` makes.
            honest += u32::from(ms % 5_000 == 4_999 && fetch(2).is_some());
        }
        assert_eq!(honest, 4, "beside {greedy} of the others");
        assert!(greedy <= 20 * 5 + 10, "{greedy} MiB in 20 s");
    }

    #[test]
    fn strangers_have_one_share_however_many_keys_they_make() {
        let serving = serving();
        let _first = serving.enter(node(10), Duration::ZERO).unwrap();
        let _second = serving.enter(node(11), Duration::ZERO).unwrap();
        assert!(serving.enter(node(12), Duration::ZERO).is_none());
        assert!(serving.enter(node(0), Duration::ZERO).is_some(), "a replica has its own");
    }
}
