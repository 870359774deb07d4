//! Why nothing advances, or that it does: conclusions from an [`Insight`] and from what the core
//! cannot see (connections, the log's disk), as a pure function.
//!
//! Each reason has a stable code and a plain sentence. A reason *blocks* if it keeps what this node
//! knows of from being executed and certified; the others are remarks, such as that there is
//! nothing to order. A node advances if nothing blocks. All of it is this node's view: another one,
//! on the other side of a partition, may say otherwise and be right as well.
//!
//! What is sent may always be under way for a moment, so nothing is held against anybody before
//! [`PATIENCE`] is over. The limits are for people; the protocol has its own
//! (`suspicion` in [`crate::pbft`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use crate::pbft::insight::{BEHIND_TOLERANCE, Change, Insight, NextBatch, Other};
use crate::pbft::settings::window;
use crate::types::NodeId;

/// How long a step may take before it counts as standing still.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// After what time without a valid message a connected replica is silent: each that has executed
/// anything repeats its last CHECKPOINT every second.
pub const SILENT_AFTER: Duration = Duration::from_secs(10);

/// What a null batch takes with which an idle network helps a replica that lost its log, about.
const NULL_BATCH_TAKES: Duration = Duration::from_millis(20);

/// What the core cannot see.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The other replicas that this node is connected to.
    pub connected: BTreeSet<NodeId>,
    /// For how long those have been missing that it is not connected to.
    pub missing_for: BTreeMap<NodeId, Duration>,
    /// For how long the log's disk has brought nothing in, though something waits for it.
    pub log_waits: Option<Duration>,
    /// For how long the consensus loop has not answered; what is said of it is as old.
    pub loop_silent: Option<Duration>,
}

/// What a replica is to this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaState {
    /// This one.
    ThisNode,
    /// There is no connection with it.
    Disconnected,
    /// Connected, and no valid message of it came for [`SILENT_AFTER`], though something was
    /// executed, so that it has something to repeat.
    Silent,
    /// The last that it said it executed is more than [`BEHIND_TOLERANCE`] numbers below what this
    /// node knows to be executed; or any number below, and nothing has been executed here for
    /// [`PATIENCE`].
    Behind,
    /// It lost its log and does not vote yet, as it says itself.
    LostLog,
    /// For [`PATIENCE`] it has been in a later view than this node and f+1 others, or on its way to one.
    OtherView,
    /// None of these.
    Ok,
}

/// The kinds of reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Code {
    /// Fewer replicas than a quorum are connected, this one included.
    NoQuorumConnected,
    /// The consensus loop of this node does not answer.
    LoopBusy,
    /// Votes wait for this node's disk.
    LogDiskSlow,
    /// A batch is in execution for longer than [`PATIENCE`].
    ExecutorBusy,
    /// This node does not vote, because it lost its log.
    ThisNodeIsSilent,
    /// No view is in force here.
    ViewChangeRunning,
    /// Others have executed what this node has not.
    ThisNodeIsBehind,
    /// This node lacks requests of the next batch.
    ThisNodeLacksRequests,
    /// This node does not agree to the next batch.
    ProposalRefused,
    /// Connected backups have not prepared the next batch.
    BackupsLackRequests,
    /// The next batch lacks votes of replicas that are not there, or not any more.
    WaitingForVotes,
    /// Requests wait and the primary proposes nothing.
    WaitingForPrimary,
    /// The high watermark is reached.
    WindowFull,
    /// What is executed is not certified.
    WaitingForCheckpoints,
    /// Something waits, and nothing here tells why.
    NoProgress,
    /// Nothing waits.
    NothingToOrder,
}

impl Code {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::NoQuorumConnected,
        Self::LoopBusy,
        Self::LogDiskSlow,
        Self::ExecutorBusy,
        Self::ThisNodeIsSilent,
        Self::ViewChangeRunning,
        Self::ThisNodeIsBehind,
        Self::ThisNodeLacksRequests,
        Self::ProposalRefused,
        Self::BackupsLackRequests,
        Self::WaitingForVotes,
        Self::WaitingForPrimary,
        Self::WindowFull,
        Self::WaitingForCheckpoints,
        Self::NoProgress,
        Self::NothingToOrder,
    ];

    /// The word for it in the API; it never changes.
    pub const fn code(self) -> &'static str {
        match self {
            Self::NoQuorumConnected => "no_quorum_connected",
            Self::LoopBusy => "loop_busy",
            Self::LogDiskSlow => "log_disk_slow",
            Self::ExecutorBusy => "executor_busy",
            Self::ThisNodeIsSilent => "this_node_is_silent",
            Self::ViewChangeRunning => "view_change_running",
            Self::ThisNodeIsBehind => "this_node_is_behind",
            Self::ThisNodeLacksRequests => "this_node_lacks_requests",
            Self::ProposalRefused => "proposal_refused",
            Self::BackupsLackRequests => "backups_lack_requests",
            Self::WaitingForVotes => "waiting_for_votes",
            Self::WaitingForPrimary => "waiting_for_primary",
            Self::WindowFull => "window_full",
            Self::WaitingForCheckpoints => "waiting_for_checkpoints",
            Self::NoProgress => "no_progress",
            Self::NothingToOrder => "nothing_to_order",
        }
    }
}

/// One reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// Its kind.
    pub code: Code,
    /// Whether it keeps the node from advancing.
    pub blocks: bool,
    /// A plain sentence.
    pub text: String,
}

/// The conclusion.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Diagnosis {
    /// All reasons, the most telling first.
    pub why: Vec<Reason>,
}

impl Diagnosis {
    /// Whether nothing keeps the node from advancing.
    pub fn advancing(&self) -> bool {
        self.blocking().is_none()
    }

    /// The first reason that blocks.
    pub fn blocking(&self) -> Option<&Reason> {
        self.why.iter().find(|reason| reason.blocks)
    }

    fn add(&mut self, code: Code, blocks: bool, text: String) {
        self.why.push(Reason { code, blocks, text });
    }
}

/// What `node` is to this replica.
pub fn state(node: &NodeId, insight: &Insight, facts: &Facts) -> ReplicaState {
    let Some(other) = insight.others.iter().find(|other| other.node == *node) else {
        return ReplicaState::ThisNode;
    };
    if !facts.connected.contains(node) {
        return ReplicaState::Disconnected;
    }
    let head = insight.head().0;
    if head > 0 && other.heard.unwrap_or(insight.running) >= SILENT_AFTER {
        return ReplicaState::Silent;
    }
    if other.silent_until.is_some() {
        return ReplicaState::LostLog;
    }
    let here = insight.seen_view.max(Some(insight.status.view));
    if other.view > here && other.view_for >= PATIENCE {
        return ReplicaState::OtherView;
    }
    let lag = behind(other, insight);
    let still = insight.last_progress.is_none_or(|ago| ago >= PATIENCE);
    if other.executed.is_some() && (lag > BEHIND_TOLERANCE || lag > 0 && still) {
        return ReplicaState::Behind;
    }
    ReplicaState::Ok
}

/// How many numbers `other` is behind what this replica knows to be executed.
pub fn behind(other: &Other, insight: &Insight) -> u64 {
    let executed = other.executed.map_or(0, |(sequence, _)| sequence.0);
    insight.head().0.saturating_sub(executed)
}

/// Why the node does not advance, or that it does.
pub fn diagnose(insight: &Insight, facts: &Facts) -> Diagnosis {
    let mut found = Diagnosis::default();
    let quorum = insight.replicas.quorum();
    let present = 1 + insight.others.iter().filter(|other| facts.connected.contains(&other.node)).count();
    if present < quorum {
        found.add(Code::NoQuorumConnected, true, no_quorum(insight, facts, present));
    }
    machine(insight, facts, &mut found);
    if insight.status.silent {
        // Present without its own vote.
        found.add(Code::ThisNodeIsSilent, present <= quorum, silent(insight, present - 1));
    }
    if let Some(change) = &insight.change {
        found.add(Code::ViewChangeRunning, true, changing(insight, facts, change));
    }
    let late = |since: Option<Duration>| since.is_some_and(|since| since >= PATIENCE);
    let still = insight.last_progress.unwrap_or(insight.running) >= PATIENCE;
    if insight.lag() > BEHIND_TOLERANCE || insight.lag() > 0 && late(insight.behind) {
        found.add(Code::ThisNodeIsBehind, still, this_node_behind(insight));
    }
    if found.advancing() && late(insight.waiting) {
        ordering(insight, facts, &mut found);
    }
    if late(insight.uncertified) {
        found.add(Code::WaitingForCheckpoints, true, uncertified(insight));
    }
    let status = &insight.status;
    if found.advancing() && late(insight.waiting) {
        let text = format!("something has waited for {}, and nothing here tells why", told(insight.waiting));
        found.add(Code::NoProgress, true, text);
    } else if insight.waiting.or(insight.uncertified).is_none() && status.pending == 0 && insight.batches == 0
    {
        let text = "nothing waits to be ordered: idle is fine".to_owned();
        found.add(Code::NothingToOrder, false, text);
    }
    found
}

/// What this machine itself holds up.
fn machine(insight: &Insight, facts: &Facts, found: &mut Diagnosis) {
    if let Some(silent) = facts.loop_silent.filter(|silent| *silent >= PATIENCE) {
        let text = format!(
            "the consensus loop of this node has not answered for {}: its disk or its processor is overloaded, and \
             what stands here is as old",
            told(Some(silent))
        );
        found.add(Code::LoopBusy, true, text);
    }
    if let Some(waits) = facts.log_waits.filter(|waits| *waits >= PATIENCE) {
        let text = format!(
            "votes of this node have waited for {} for the sync of its log: its disk is slow or hangs",
            told(Some(waits))
        );
        found.add(Code::LogDiskSlow, true, text);
    }
    if let Some(executing) = insight.executing.filter(|executing| *executing >= PATIENCE) {
        let text = format!(
            "batch {} has been in execution here for {}: the ledger's store is slow",
            insight.status.executed.next(),
            told(Some(executing))
        );
        found.add(Code::ExecutorBusy, true, text);
    }
}

/// Why the next batch is not executed, though a quorum is there and a view in force.
fn ordering(insight: &Insight, facts: &Facts, found: &mut Diagnosis) {
    let Some(next) = &insight.next else {
        if insight.status.accepted >= insight.high {
            let text = format!(
                "all numbers up to the high watermark {} are used, and {} is the last that is certified",
                insight.high, insight.status.stable
            );
            return found.add(Code::WindowFull, true, text);
        }
        if insight.status.pending > 0 && !insight.status.silent {
            found.add(Code::WaitingForPrimary, true, primary(insight));
        }
        return;
    };
    let sequence = next.sequence;
    if next.refused {
        let text = format!("batch {sequence} breaks a rule: this node does not vote for it");
        return found.add(Code::ProposalRefused, true, text);
    }
    if next.prepared_by.is_none() && next.lacks > 0 {
        let text = format!(
            "this node lacks {} of what batch {sequence} orders, and asks the others for it",
            if next.lacks == 1 { "one request".to_owned() } else { format!("{} requests", next.lacks) }
        );
        return found.add(Code::ThisNodeLacksRequests, true, text);
    }
    votes(insight, facts, next, found);
}

fn votes(insight: &Insight, facts: &Facts, next: &NextBatch, found: &mut Diagnosis) {
    let (quorum, sequence) = (insight.replicas.quorum(), next.sequence);
    let (what, voters) = match (&next.prepared_by, &next.committed_by) {
        (_, Some(committed_by)) => ("COMMITs", committed_by),
        (Some(prepared_by), None) => ("PREPAREs (the proposal is one)", prepared_by),
        (None, None) => return,
    };
    if voters.len() >= quorum {
        return;
    }
    let missing: Vec<NodeId> =
        insight.replicas.members().iter().copied().filter(|node| !voters.contains(node)).collect();
    let there: Vec<NodeId> = missing.iter().copied().filter(|node| facts.connected.contains(node)).collect();
    let have = voters.len();
    let waited = told(insight.waiting);
    if next.committed_by.is_none() && !there.is_empty() {
        let text = format!(
            "batch {sequence} has {have} of {quorum} {what} after {waited}: {} connected and sent none; \
             lacking requests of the batch is the usual cause",
            are(&names(insight, &there), there.len())
        );
        return found.add(Code::BackupsLackRequests, true, text);
    }
    let text = format!(
        "batch {sequence} has {have} of {quorum} {what} after {waited}; missing: {}",
        names(insight, &missing)
    );
    found.add(Code::WaitingForVotes, true, text);
}

fn no_quorum(insight: &Insight, facts: &Facts, present: usize) -> String {
    let missing: Vec<String> = insight
        .others
        .iter()
        .filter(|other| !facts.connected.contains(&other.node))
        .map(|other| {
            let since = facts.missing_for.get(&other.node).copied();
            format!("{} (for {})", name(insight, &other.node), told(since.or(Some(insight.running))))
        })
        .collect();
    format!(
        "{} of {} replicas are needed, {present} {} connected, this node included; missing: {}",
        insight.replicas.quorum(),
        insight.replicas.n(),
        if present == 1 { "is" } else { "are" },
        missing.join(", ")
    )
}

/// In how long this node votes again that lost its log, if the network is idle and helps it; none if
/// it does not keep silent, or the others are no quorum without it.
pub fn votes_again_in(insight: &Insight) -> Option<Duration> {
    if !insight.status.silent || insight.replicas.n() - 1 < insight.replicas.quorum() {
        return None;
    }
    let window = window(&insight.replicas);
    let numbers =
        insight.silent_until.map_or(window, |until| until.0.saturating_sub(insight.status.stable.0));
    let helped = NULL_BATCH_TAKES.saturating_mul(u32::try_from(numbers).unwrap_or(u32::MAX));
    let whole = (insight.listens.unwrap_or_default() + helped).as_secs();
    Some(Duration::from_secs(whole + 1))
}

fn silent(insight: &Insight, others: usize) -> String {
    let quorum = insight.replicas.quorum();
    let why = "this node lost its log, so it cannot know what it signed, and does not vote";
    let best = "if the log can be brought back as it was last, stop this node and do that";
    if insight.replicas.n() - 1 < quorum {
        return format!("{why}; the others are no quorum without it, so it never will by itself: {best}");
    }
    let when = match insight.silent_until {
        Some(until) => format!("once {until} is certified here, and {} is now", insight.status.stable),
        None => "when it has listened to the others for long enough and a window has been ordered".to_owned(),
    };
    let mut text = format!(
        "{why}; nothing need be done: it votes again {when}, in about {} if nothing else is ordered",
        told(votes_again_in(insight))
    );
    if others < quorum {
        let _ = write!(
            text,
            "; but that takes {quorum} connected others, and there are {others}: bring them back"
        );
    }
    let _ = write!(text, "; until then one replica less may fail, and {best}");
    text
}

fn changing(insight: &Insight, facts: &Facts, change: &Change) -> String {
    let quorum = insight.replicas.quorum();
    let mut text = format!(
        "view {} is to begin, and no view has been in force here for {} ({})",
        change.to,
        told(Some(change.since)),
        change.reason.code()
    );
    let have = change.received.len();
    if have < quorum {
        let (there, away): (Vec<NodeId>, Vec<NodeId>) =
            change.missing.iter().partition(|node| facts.connected.contains(*node));
        let _ = write!(text, ": {have} of {quorum} VIEW-CHANGEs are in");
        if !there.is_empty() {
            let _ = write!(
                text,
                "; {} connected and sent none, so may be well in the view that this node left",
                are(&names(insight, &there), there.len())
            );
        }
        if !away.is_empty() {
            let _ = write!(text, "; {} not connected", are(&names(insight, &away), away.len()));
        }
    } else {
        let primary = insight.replicas.primary(change.to);
        let there = primary == insight.me || facts.connected.contains(&primary);
        let _ = write!(
            text,
            ": a quorum's VIEW-CHANGEs are in, and the NEW-VIEW of {}{} is waited for",
            name(insight, &primary),
            if there { "" } else { ", which is not connected," }
        );
    }
    if let Some(next_in) = change.next_in {
        let _ = write!(text, "; the next primary's turn comes in {}", told(Some(next_in)));
    }
    text
}

fn this_node_behind(insight: &Insight) -> String {
    let status = &insight.status;
    let moved = match insight.last_progress {
        Some(ago) => format!("execution moved {} ago", told(Some(ago))),
        None => "nothing was executed since the start".to_owned(),
    };
    format!(
        "this node has executed {} of {}: it catches up from the others' blocks; {moved}",
        status.executed, status.known
    )
}

fn primary(insight: &Insight) -> String {
    let pending = insight.status.pending;
    let requests = if pending == 1 { "1 request has".to_owned() } else { format!("{pending} requests have") };
    let waited = told(insight.oldest_request.or(insight.waiting));
    let primary = insight.status.primary;
    if primary == insight.me {
        return format!(
            "{requests} waited up to {waited}, and this node, which is the primary, has not proposed it yet: {} bytes \
             are in flight",
            insight.status.inflight_bytes
        );
    }
    format!(
        "{requests} waited up to {waited}, and the primary, {}, has proposed nothing; it is replaced after {}",
        name(insight, &primary),
        told(Some(insight.timeout))
    )
}

fn uncertified(insight: &Insight) -> String {
    let executed = insight.status.executed;
    let reached = |other: &&Other| other.executed.is_some_and(|(sequence, _)| sequence >= executed);
    let lacking: Vec<NodeId> =
        insight.others.iter().filter(|other| !reached(other)).map(|other| other.node).collect();
    format!(
        "{} is executed here and {} certified, for {}: {} of {} say that they executed it; missing: {}",
        executed,
        insight.status.stable,
        told(insight.uncertified),
        insight.replicas.n() - lacking.len(),
        insight.replicas.quorum(),
        names(insight, &lacking)
    )
}

fn names(insight: &Insight, nodes: &[NodeId]) -> String {
    if nodes.is_empty() {
        return "nobody".to_owned();
    }
    nodes.iter().map(|node| name(insight, node)).collect::<Vec<_>>().join(", ")
}

fn are(names: &str, count: usize) -> String {
    format!("{names} {}", if count == 1 { "is" } else { "are" })
}

/// A replica by its number, as `ledgermq init` names its directory, and its id.
pub fn name(insight: &Insight, node: &NodeId) -> String {
    let seat = insight.replicas.index_of(node).map_or_else(|| "?".to_owned(), |seat| seat.to_string());
    let me = if *node == insight.me { ", this node" } else { "" };
    format!("replica {seat} ({}{me})", node.short())
}

/// A length of time for people: whole milliseconds, tenths of seconds, then whole units.
pub fn told(time: Option<Duration>) -> String {
    let Some(time) = time else { return "an unknown time".to_owned() };
    match time.as_secs() {
        0 => format!("{} ms", time.as_millis()),
        seconds @ 1..=59 => format!("{seconds}.{} s", time.subsec_millis() / 100),
        seconds @ 60..=3599 => format!("{} min {} s", seconds / 60, seconds % 60),
        seconds => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}
