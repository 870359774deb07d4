//! How the network is, as this node can know: who takes part, and how many more may fail.
//!
//! A replica *takes part* if it is connected, heard, level with the others, in the view of the others,
//! and votes. If all do, the network is healthy; if a quorum does, it goes on and is degraded, which
//! nobody notices until the next failure; if fewer can vote, or something else keeps everything from
//! becoming final, it is halted. Another node may see it otherwise: `ledgermq status` asks all.

use crate::api::{VerdictCode, VerdictView};
use crate::pbft::Insight;
use crate::pbft::diagnosis::{self, Code, Diagnosis, Facts, ReplicaState};
use crate::types::NodeId;

/// What keeps this node alone from taking part.
const OWN: [Code; 6] = [
    Code::LogDiskSlow,
    Code::ExecutorBusy,
    Code::ThisNodeIsSilent,
    Code::ThisNodeIsBehind,
    Code::ThisNodeLacksRequests,
    Code::ProposalRefused,
];

/// The replicas, as they take part.
#[derive(Debug, Default)]
struct Roll {
    /// How many can vote together.
    able: usize,
    /// How many of these are level with the others, too.
    good: usize,
    /// The others, each with what keeps it.
    out: Vec<String>,
}

/// See the module.
pub(super) fn judge(insight: &Insight, facts: &Facts, diagnosis: &Diagnosis) -> VerdictView {
    if let Some(busy) = diagnosis.why.iter().find(|reason| reason.code == Code::LoopBusy) {
        return VerdictView { code: VerdictCode::CannotTell, tolerates: None, text: busy.text.clone() };
    }
    let (n, quorum) = (insight.replicas.n(), insight.replicas.quorum());
    let Roll { able, good, out } = roll(insight, facts, diagnosis);
    let stuck = diagnosis.why.iter().find(|reason| reason.blocks && !is_own(reason.code));
    if able < quorum || stuck.is_some() && !left_alone(insight) {
        let why = stuck.or_else(|| diagnosis.blocking()).map_or_else(
            || {
                format!(
                    "{able} of {n} replicas can vote together, and {quorum} are needed: {}",
                    out.join("; ")
                )
            },
            |reason| reason.text.clone(),
        );
        let text = format!("nothing becomes final: {why}");
        return VerdictView { code: VerdictCode::Halted, tolerates: Some(0), text };
    }
    let tolerates = good.saturating_sub(quorum);
    let mut text = told(good, n, tolerates);
    if !out.is_empty() {
        text = format!("{text}: {}", out.join("; "));
    }
    let code = if good == n { VerdictCode::Healthy } else { VerdictCode::Degraded };
    VerdictView { code, tolerates: Some(tolerates), text }
}

/// How many take part, in a sentence.
fn told(good: usize, n: usize, tolerates: usize) -> String {
    let failures = if tolerates == 1 { "failure" } else { "failures" };
    format!("{good} of {n} replicas take part, which tolerates {tolerates} more {failures}")
}

fn is_own(code: Code) -> bool {
    OWN.contains(&code)
}

/// Whether this node is on its way to another view and the others are a quorum without it.
fn left_alone(insight: &Insight) -> bool {
    let moved = insight.change.as_ref().map_or(0, |change| change.received.len());
    moved > 0 && insight.replicas.n() - moved >= insight.replicas.quorum()
}

fn roll(insight: &Insight, facts: &Facts, diagnosis: &Diagnosis) -> Roll {
    let mut roll = Roll::default();
    let moved: &[NodeId] = insight.change.as_ref().map_or(&[], |change| &change.received);
    for node in insight.replicas.members() {
        let state = diagnosis::state(node, insight, facts);
        let what = match state {
            ReplicaState::ThisNode => own(insight, diagnosis),
            // On its way to the view that this node is on its way to as well.
            _ if moved.contains(node) => Some("has left its view".to_owned()),
            ReplicaState::Disconnected => Some("is not connected".to_owned()),
            ReplicaState::Silent => Some("is connected and silent".to_owned()),
            ReplicaState::LostLog => Some("lost its log and does not vote yet".to_owned()),
            ReplicaState::OtherView => Some(other_view(node, insight)),
            ReplicaState::Behind => Some("is behind".to_owned()),
            ReplicaState::Ok => None,
        };
        let votes = match state {
            ReplicaState::ThisNode => insight.change.is_none() && !insight.status.silent && !is_late(insight),
            ReplicaState::Ok | ReplicaState::Behind => !moved.contains(node),
            _ => false,
        };
        roll.able += usize::from(votes);
        roll.good += usize::from(what.is_none());
        if let Some(what) = what {
            roll.out.push(format!("{} {what}", diagnosis::name(insight, node)));
        }
    }
    roll
}

/// Whether f+1 others vote in a later view.
fn is_late(insight: &Insight) -> bool {
    insight.seen_view > Some(insight.status.view)
}

fn own(insight: &Insight, diagnosis: &Diagnosis) -> Option<String> {
    if let Some(change) = &insight.change {
        return Some(format!("has left its view for {}, which has not begun", change.to));
    }
    let own = diagnosis.why.iter().find(|reason| is_own(reason.code));
    match own {
        Some(reason) if reason.code == Code::ThisNodeIsSilent => {
            Some("lost its log and does not vote yet".to_owned())
        }
        Some(reason) => Some(format!("is held up ({})", reason.code.code())),
        None if is_late(insight) => {
            let seen = insight.seen_view.unwrap_or_default();
            Some(format!("is in view {}, and others vote in {seen}", insight.status.view))
        }
        None => None,
    }
}

fn other_view(node: &NodeId, insight: &Insight) -> String {
    let other = insight.others.iter().find(|other| other.node == *node);
    let view = other.and_then(|other| other.view).unwrap_or_default();
    match other.is_some_and(|other| other.leaving) {
        true => format!("has left view {} for {view}, which has not begun", insight.status.view),
        false => format!("is in view {view}, and this node in {}", insight.status.view),
    }
}

#[cfg(test)]
#[path = "verdict_tests.rs"]
mod tests;
