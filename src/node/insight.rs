//! What the node knows besides its replica: who is connected, whether the log's disk keeps up,
//! whether the consensus loop answers; and `/v1/consensus` from all of that.
//!
//! [`Watchman`] remembers since when things are as they are; it is told every [`super::view`]'s
//! interval, so those times are right to half a second.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::api::{ConsensusView, ReplicaLine, ReplicaStateView, SilentView, ViewChangeView, Why};
use crate::ledger::ReplicaSet;
use crate::metrics::ConsensusMetrics;
use crate::network::PeerStatus;
use crate::pbft::Insight;
use crate::pbft::diagnosis::{self, Diagnosis, Facts, ReplicaState};
use crate::store::log::Position;
use crate::types::{Hash, Height, NetworkId, NodeId};

/// What was seen last, and since when.
#[derive(Debug, Clone, Default)]
pub(super) struct Watchman {
    missing_since: BTreeMap<NodeId, Duration>,
    synced: Option<(Position, Duration)>,
    /// The last answer of the consensus loop, and when it came.
    pub(super) answer: Option<(Insight, Duration)>,
}

impl Watchman {
    /// Who is connected now.
    pub(super) fn see_peers(
        &mut self,
        replicas: &ReplicaSet,
        me: &NodeId,
        peers: &[PeerStatus],
        now: Duration,
    ) {
        for node in replicas.members().iter().filter(|node| *node != me) {
            if peers.iter().any(|peer| peer.node == *node) {
                self.missing_since.remove(node);
            } else {
                self.missing_since.entry(*node).or_insert(now);
            }
        }
    }

    /// How far the log is, and how far it is on disk.
    pub(super) fn see_log(&mut self, last: Position, synced: Position, now: Duration) {
        let moved = self.synced.is_none_or(|(seen, _)| seen != synced);
        if moved || last <= synced {
            self.synced = Some((synced, now));
        }
    }

    /// The facts as of `now`.
    pub(super) fn facts(&self, replicas: &ReplicaSet, me: &NodeId, now: Duration) -> Facts {
        let ago = |then: Duration| now.saturating_sub(then);
        let others = replicas.members().iter().filter(|node| *node != me);
        let connected: BTreeSet<NodeId> =
            others.filter(|node| !self.missing_since.contains_key(*node)).copied().collect();
        Facts {
            connected,
            missing_for: self.missing_since.iter().map(|(node, since)| (*node, ago(*since))).collect(),
            log_waits: self.synced.map(|(_, moved)| ago(moved)),
            loop_silent: self.answer.as_ref().map(|(_, came)| ago(*came)),
        }
    }
}

/// Shows what is concluded as metrics.
pub(super) fn measure(metrics: &ConsensusMetrics, insight: &Insight, diagnosis: &Diagnosis) {
    metrics.advancing.set(i64::from(diagnosis.advancing()));
    for other in &insight.others {
        let Some(seat) = insight.replicas.index_of(&other.node) else { continue };
        let (seat, heard) = (seat.to_string(), other.heard.unwrap_or(insight.running));
        let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        metrics.replica_heard_ms.with_label_values(&[&seat]).set(number(millis(heard)));
        metrics.replica_behind.with_label_values(&[&seat]).set(number(diagnosis::behind(other, insight)));
    }
}

/// What the ledger says.
pub(super) struct Ledger {
    pub(super) network: NetworkId,
    pub(super) height: Height,
    pub(super) block: Hash,
    pub(super) certified_height: Height,
}

/// The answer of `/v1/consensus`.
pub(super) fn consensus_view(
    insight: &Insight,
    facts: &Facts,
    peers: &[PeerStatus],
    ledger: &Ledger,
) -> ConsensusView {
    let diagnosis = diagnosis::diagnose(insight, facts);
    let (set, status) = (&insight.replicas, &insight.status);
    ConsensusView {
        network: ledger.network,
        node: insight.me,
        replica: set.index_of(&insight.me),
        n: set.n(),
        f: set.f(),
        quorum: set.quorum(),
        view: status.view,
        primary: status.primary,
        view_change: insight.change.as_ref().map(|change| ViewChangeView {
            to: change.to,
            reason: change.reason.code().to_owned(),
            since_ms: millis(change.since),
            received: change.received.clone(),
            missing: change.missing.clone(),
            waits_for: if change.received.len() < set.quorum() { "view_changes" } else { "new_view" }
                .to_owned(),
            next_view_in_ms: change.next_in.map(millis),
        }),
        seen_view: insight.seen_view,
        silent: status.silent.then(|| SilentView {
            until: insight.silent_until,
            votes_in_ms: diagnosis::votes_again_in(insight).map(millis),
        }),
        low_watermark: status.stable,
        high_watermark: insight.high,
        executed: status.executed,
        accepted: status.accepted,
        known: status.known,
        height: ledger.height,
        block: ledger.block,
        certified_height: ledger.certified_height,
        batches: insight.batches,
        pending_requests: status.pending,
        oldest_request_ms: insight.oldest_request.map(millis),
        timeout_ms: millis(insight.timeout),
        last_progress_ms: insight.last_progress.map(millis),
        replicas: set.members().iter().enumerate().map(|at| line(at, insight, facts, peers)).collect(),
        verdict: super::verdict::judge(insight, facts, &diagnosis),
        advancing: diagnosis.advancing(),
        why: diagnosis
            .why
            .into_iter()
            .map(|reason| Why {
                code: reason.code.code().to_owned(),
                blocks: reason.blocks,
                text: reason.text,
            })
            .collect(),
    }
}

fn line(
    (seat, node): (usize, &NodeId),
    insight: &Insight,
    facts: &Facts,
    peers: &[PeerStatus],
) -> ReplicaLine {
    let status = &insight.status;
    let other = insight.others.iter().find(|other| other.node == *node);
    let own = (status.executed, status.height);
    let executed = match other {
        Some(other) => other.executed,
        None => Some(own),
    };
    let rtt = peers.iter().find(|peer| peer.node == *node).and_then(|peer| peer.rtt);
    ReplicaLine {
        node: *node,
        seat,
        is_primary: *node == status.primary,
        state: match diagnosis::state(node, insight, facts) {
            ReplicaState::ThisNode => ReplicaStateView::ThisNode,
            ReplicaState::Disconnected => ReplicaStateView::Disconnected,
            ReplicaState::Silent => ReplicaStateView::Silent,
            ReplicaState::Behind => ReplicaStateView::Behind,
            ReplicaState::LostLog => ReplicaStateView::LostLog,
            ReplicaState::OtherView => ReplicaStateView::OtherView,
            ReplicaState::Ok => ReplicaStateView::Ok,
        },
        connected: other.is_none() || facts.connected.contains(node),
        missing_ms: facts.missing_for.get(node).copied().map(millis),
        rtt_ms: rtt.map(|rtt| rtt.as_secs_f64() * 1000.0),
        executed: executed.map(|(sequence, _)| sequence),
        height: executed.map(|(_, height)| height),
        behind: other.map_or_else(|| insight.lag(), |other| diagnosis::behind(other, insight)),
        view: other.map_or(Some(status.view), |other| other.view),
        last_heard_ms: other.and_then(|other| other.heard).map(millis),
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn peer(node: NodeId) -> PeerStatus {
        PeerStatus {
            node,
            addresses: Vec::new(),
            connected_since: crate::types::Timestamp(0),
            rtt: Some(Duration::from_millis(2)),
        }
    }

    #[test]
    fn a_replica_is_missing_since_it_was_first_not_there() {
        let nodes: Vec<NodeId> = (1..=3).map(|at| NodeId([at; 32])).collect();
        let set = ReplicaSet::new(nodes.clone()).unwrap();
        let me = nodes[0];
        let mut watchman = Watchman::default();
        watchman.see_peers(&set, &me, &[peer(nodes[1])], 10 * SECOND);
        watchman.see_peers(&set, &me, &[peer(nodes[1])], 12 * SECOND);
        let facts = watchman.facts(&set, &me, 15 * SECOND);
        assert_eq!(facts.connected, BTreeSet::from([nodes[1]]));
        assert_eq!(facts.missing_for, BTreeMap::from([(nodes[2], 5 * SECOND)]));
        watchman.see_peers(&set, &me, &[peer(nodes[2])], 16 * SECOND);
        let facts = watchman.facts(&set, &me, 17 * SECOND);
        assert_eq!(facts.missing_for, BTreeMap::from([(nodes[1], SECOND)]));
    }

    #[test]
    fn the_log_waits_while_entries_are_there_and_none_gets_to_the_disk() {
        let set = ReplicaSet::new(vec![NodeId([1; 32])]).unwrap();
        let mut watchman = Watchman::default();
        let waits = |watchman: &Watchman, at: u32| {
            watchman.facts(&set, &NodeId([1; 32]), at * SECOND).log_waits.unwrap()
        };
        watchman.see_log(Position(5), Position(5), 10 * SECOND);
        watchman.see_log(Position(9), Position(5), 11 * SECOND);
        watchman.see_log(Position(9), Position(5), 13 * SECOND);
        assert_eq!(waits(&watchman, 13), 3 * SECOND, "since it was last seen level");
        watchman.see_log(Position(9), Position(6), 14 * SECOND);
        assert_eq!(waits(&watchman, 14), Duration::ZERO, "it moves, so it is not stuck");
        watchman.see_log(Position(9), Position(9), 20 * SECOND);
        watchman.see_log(Position(9), Position(9), 30 * SECOND);
        assert_eq!(waits(&watchman, 30), Duration::ZERO, "nothing waits");
    }
}
