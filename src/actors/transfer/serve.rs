//! How much this node gives to those that fetch blocks: a node that fills itself must not slow ordering.
//!
//! Each replica has a share of its own; all other nodes together have one more, since anybody can make
//! keys. Whoever finds its share or that of all used up is told `Busy` and asks again, or somebody else.
//! A place is held until the answer is sent, so a slow reader holds no more than its places in memory.

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
    places: Arc<Semaphore>,
}

impl Share {
    fn new(bytes_per_s: u64, places: u32, now: Duration) -> Self {
        let places = Arc::new(Semaphore::new(usize::try_from(places).unwrap_or(usize::MAX)));
        Self { throttle: Throttle::new(bytes_per_s, now), places }
    }
}

#[derive(Debug)]
struct Shares {
    all: Share,
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
    /// Held until the answer is sent.
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
        let share = || Share::new(settings.serve_bytes_per_s_each, settings.serve_requests_each, now);
        let nodes = replicas.members().iter().copied().map(Some).chain([None]);
        let shares = Shares {
            all: Share::new(settings.serve_bytes_per_s, settings.serve_requests, now),
            each: nodes.map(|node| (node, share())).collect(),
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
        let Shares { all, each } = &mut *shares;
        let share = Some(node).filter(|node| each.contains_key(&Some(*node)));
        let own = each.get_mut(&share)?;
        if !own.throttle.is_open(now) || !all.throttle.is_open(now) {
            return None;
        }
        let place = Arc::clone(&own.places).try_acquire_owned().ok()?;
        let of_all = Arc::clone(&all.places).try_acquire_owned().ok()?;
        Some(Leave { places: [place, of_all], share })
    }

    /// So much was read for it. Gives the places, for the answer.
    pub fn served(&self, leave: Leave, blocks: usize, bytes: u64) -> [OwnedSemaphorePermit; 2] {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        shares.all.throttle.charge(bytes);
        if let Some(share) = shares.each.get_mut(&leave.share) {
            share.throttle.charge(bytes);
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
            serve_bytes_per_s: 3 * MIB,
            serve_bytes_per_s_each: 2 * MIB,
            serve_requests: 3,
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
        assert!(enter(2).is_none(), "the places of all are taken");
        let places = serving.served(first, 1, 10);
        assert!(enter(2).is_none(), "until the answer is sent");
        drop(places);
        assert!(enter(2).is_some());
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
        assert!(fetch(2, MIB, Duration::from_millis(1)).is_none(), "all together had too much");
        assert!(fetch(2, MIB / 2, Duration::from_secs(1)).is_some());
        assert!(fetch(0, MIB, Duration::from_secs(1)).is_some());
    }

    #[test]
    fn strangers_have_one_share_however_many_keys_they_make() {
        let serving = serving();
        let _held: Vec<_> = (10..12).map(|at| serving.enter(node(at), Duration::ZERO).unwrap()).collect();
        assert!(serving.enter(node(12), Duration::ZERO).is_none());
        assert!(serving.enter(node(0), Duration::ZERO).is_some(), "a replica has its own");
    }
}
