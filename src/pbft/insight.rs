//! What a replica knows of itself and of the others, for people: nothing here decides anything.
//!
//! Of each other replica it remembers when a valid message of it came last, and the highest view
//! that it was seen in. Whoever repeats an old message of a replica can make it look heard of; it
//! cannot make it look further than it is. All times in an [`Insight`] are lengths up to now.
//! What a replica says of itself with a vote, a VIEW-CHANGE or RECOVERY is told apart: in a view, on
//! its way to one, without a vote.
//! [`crate::pbft::diagnosis`] draws the conclusions.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::ledger::ReplicaSet;
use crate::pbft::io::{Now, Output};
use crate::pbft::log::{Phase, Slot};
use crate::pbft::message::{Content, Verified};
use crate::pbft::notice::{Notice, Suspicion};
use crate::pbft::replica::{Replica, Status};
use crate::types::{Height, NodeId, SeqNum, View};

/// A replica that is at most so many numbers behind has caught up: under load none is level with
/// the others all the time.
pub const BEHIND_TOLERANCE: u64 = 8;

/// When others were heard, and what was told.
#[derive(Debug, Clone, Default)]
pub(super) struct Hearing {
    started: Duration,
    heard: BTreeMap<NodeId, Heard>,
    behind_told: Option<Duration>,
}

/// What another replica was heard with.
#[derive(Debug, Clone, Default)]
struct Heard {
    /// When a message of it came last.
    at: Duration,
    /// The highest view of a vote or a proposal of it.
    voted: Option<View>,
    /// The highest view of a VIEW-CHANGE of it.
    wanted: Option<View>,
    /// Since when the higher of these two is known.
    view_since: Duration,
    /// The checkpoint from which on it votes, as it said when it had lost its log.
    silent_until: Option<SeqNum>,
}

impl Heard {
    fn view(&self) -> Option<View> {
        self.voted.max(self.wanted)
    }
}

/// Another replica, as this one knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Other {
    /// Who.
    pub node: NodeId,
    /// The highest sequence number that it said it executed, and its height then.
    pub executed: Option<(SeqNum, Height)>,
    /// The highest view that it was seen to vote in, or on its way to.
    pub view: Option<View>,
    /// For how long that view has been known.
    pub view_for: Duration,
    /// Whether it was only seen on its way to that view: VIEW-CHANGE, and no vote in it.
    pub leaving: bool,
    /// While it keeps silent because it lost its log, as it says: the checkpoint from which on it votes.
    pub silent_until: Option<SeqNum>,
    /// How long ago a valid message of it came.
    pub heard: Option<Duration>,
}

/// The way to another view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The view that is to begin.
    pub to: View,
    /// Why this replica is on its way to it.
    pub reason: Suspicion,
    /// For how long no view has been in force here.
    pub since: Duration,
    /// Whose VIEW-CHANGEs for it, or for later views, are here; this replica's too.
    pub received: Vec<NodeId>,
    /// Whose are not.
    pub missing: Vec<NodeId>,
    /// In how long the next view's turn comes; runs once a quorum is on the way.
    pub next_in: Option<Duration>,
}

/// The lowest batch that is not executed here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NextBatch {
    /// Its number.
    pub sequence: SeqNum,
    /// Requests that this replica lacks to judge it; the batch itself counts as one.
    pub lacks: usize,
    /// Whether this replica judged it and does not agree.
    pub refused: bool,
    /// Who prepared it, its primary included; none before this replica agreed to it.
    pub prepared_by: Option<Vec<NodeId>>,
    /// Who sent COMMIT for it; none before it is prepared here.
    pub committed_by: Option<Vec<NodeId>>,
}

/// Where a replica stands, with all that helps to tell why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Insight {
    /// This replica.
    pub me: NodeId,
    /// All.
    pub replicas: ReplicaSet,
    /// Where it stands.
    pub status: Status,
    /// The high watermark.
    pub high: SeqNum,
    /// Batches that are proposed and not executed.
    pub batches: usize,
    /// Since the replica was started.
    pub running: Duration,
    /// For how long the oldest pending request has waited.
    pub oldest_request: Option<Duration>,
    /// For how long anything has waited and nothing was executed, here or elsewhere.
    pub waiting: Option<Duration>,
    /// For how long others have been known to be ahead.
    pub behind: Option<Duration>,
    /// For how long a batch has been in execution.
    pub executing: Option<Duration>,
    /// For how long something that is executed has waited to be certified.
    pub uncertified: Option<Duration>,
    /// How long the primary may take now.
    pub timeout: Duration,
    /// Since execution moved; none before it did.
    pub last_progress: Option<Duration>,
    /// The way to another view, if the replica is on one.
    pub change: Option<Change>,
    /// While it is silent: the stable checkpoint from which on it votes, once that is settled.
    pub silent_until: Option<SeqNum>,
    /// While it is silent and listens to settle that: for how long at least.
    pub listens: Option<Duration>,
    /// The highest view that f+1 others, so a correct one, were heard to vote in.
    pub seen_view: Option<View>,
    /// The lowest batch that is not executed.
    pub next: Option<NextBatch>,
    /// The other replicas, ascending by id.
    pub others: Vec<Other>,
}

impl Insight {
    /// The highest number that this replica has executed or knows to be executed.
    pub fn head(&self) -> SeqNum {
        self.status.executed.max(self.status.known)
    }

    /// How many numbers this replica is behind what it knows to be executed.
    pub fn lag(&self) -> u64 {
        self.status.known.0.saturating_sub(self.status.executed.0)
    }
}

impl Replica {
    /// A valid message of another replica came.
    pub(super) fn note_heard(&mut self, now: Now, message: &Verified) {
        let heard = self.hearing.heard.entry(message.sender()).or_default();
        heard.at = now.monotonic;
        let view = message.content().view();
        if view > heard.view() {
            heard.view_since = now.monotonic;
        }
        match message.content() {
            Content::ViewChange(_) => heard.wanted = heard.wanted.max(view),
            Content::Recovery(recovery) => heard.silent_until = Some(recovery.until),
            _ => heard.voted = heard.voted.max(view),
        }
    }

    pub(super) fn note_start(&mut self, now: Now) {
        self.hearing.started = now.monotonic;
        if let Some(changing) = &mut self.views.changing {
            changing.since = now.monotonic;
        }
    }

    /// Tells once that this replica is far behind and fetches blocks, and once that it need not any
    /// more. A few numbers, which every replica is behind now and then, are not told: a replica that
    /// is and stays so is seen in [`Insight`].
    pub(super) fn note_behind(&mut self, now: Now, out: &mut Output) {
        let (executed, known) = (self.executed.sequence, self.checkpoints.known(&self.settings.replicas));
        match self.hearing.behind_told {
            None => {
                let fetching = self.progress.behind_since.zip(self.progress.blocks_asked);
                let far = known.0 > executed.0 + BEHIND_TOLERANCE;
                if far && fetching.is_some_and(|(since, asked)| asked >= since) {
                    self.hearing.behind_told = Some(now.monotonic);
                    out.notices.push(Notice::FellBehind { executed, known });
                }
            }
            Some(since) if known.0 <= executed.0 + BEHIND_TOLERANCE => {
                self.hearing.behind_told = None;
                let took = now.monotonic.saturating_sub(since);
                out.notices.push(Notice::CaughtUp { executed, took });
            }
            Some(_) => {}
        }
    }

    /// Where the replica stands at `now`, which is monotonic time, with all that helps to tell why.
    pub fn insight(&self, now: Duration) -> Insight {
        let ago = |then: Duration| now.saturating_sub(then);
        let executing = self.dispatched > self.executed.sequence;
        let moved = self.progress.last.max(self.progress.dispatched);
        Insight {
            me: self.me,
            replicas: self.settings.replicas.clone(),
            status: self.status(),
            high: self.high_watermark(),
            batches: self.on_their_way().count(),
            running: ago(self.hearing.started),
            oldest_request: self.pool.oldest().map(ago),
            waiting: self.waiting.since.map(ago),
            behind: self.progress.behind_since.map(ago),
            executing: executing.then(|| ago(moved)),
            uncertified: self.waiting.uncertified.map(ago),
            timeout: self.view_timeout(),
            last_progress: Some(self.progress.last).filter(|last| !last.is_zero()).map(ago),
            change: self.change(now),
            silent_until: self.silence.as_ref().and_then(|silence| silence.until),
            listens: self.listens(now),
            seen_view: self.seen_view(),
            next: self.next_batch(),
            others: self.others().map(|node| self.other(node, now)).collect(),
        }
    }

    fn on_their_way(&self) -> impl Iterator<Item = (SeqNum, &Slot)> {
        let proposed = |(_, slot): &(SeqNum, &Slot)| slot.proposal.is_some() || slot.carried.is_some();
        self.log.above(self.executed.sequence).filter(proposed)
    }

    fn other(&self, node: NodeId, now: Duration) -> Other {
        let heard = self.hearing.heard.get(&node);
        let executed = self.checkpoints.claim_of(&node).map(|claim| (claim.sequence, claim.height));
        // Executed is certified a moment later, and then it votes: old words of it tell nothing any more.
        let waits = |until: &SeqNum| executed.is_none_or(|(sequence, _)| sequence < *until);
        Other {
            node,
            executed,
            view: heard.and_then(Heard::view),
            view_for: heard.map_or(Duration::ZERO, |heard| now.saturating_sub(heard.view_since)),
            leaving: heard.is_some_and(|heard| heard.wanted > heard.voted),
            silent_until: heard.and_then(|heard| heard.silent_until).filter(waits),
            heard: heard.map(|heard| now.saturating_sub(heard.at)),
        }
    }

    /// For how long it listens yet before it knows how long to keep silent.
    fn listens(&self, now: Duration) -> Option<Duration> {
        let undecided = self.silence.as_ref().is_some_and(|silence| silence.until.is_none());
        let due = self.silence_due().filter(|_| undecided)?;
        Some(if due.is_zero() { self.settings.lost_log_wait } else { due.saturating_sub(now) })
    }

    fn seen_view(&self) -> Option<View> {
        let mut views: Vec<View> = self.hearing.heard.values().filter_map(|heard| heard.voted).collect();
        views.sort_unstable_by(|one, other| other.cmp(one));
        views.get(self.settings.replicas.weak_quorum() - 1).copied()
    }

    fn change(&self, now: Duration) -> Option<Change> {
        let changing = self.views.changing.as_ref()?;
        let members = self.settings.replicas.members().iter().copied();
        let (received, missing) = members.partition(|node| self.views.supports(node, self.view));
        Some(Change {
            to: self.view,
            reason: changing.reason,
            since: now.saturating_sub(changing.since),
            received,
            missing,
            next_in: changing.deadline.map(|deadline| deadline.saturating_sub(now)),
        })
    }

    fn next_batch(&self) -> Option<NextBatch> {
        let (sequence, slot) = self.on_their_way().next()?;
        let digest = slot.proposal.as_ref().map(|proposal| proposal.digest);
        let voters = |votes: &crate::pbft::log::Votes| -> Vec<NodeId> {
            digest.iter().flat_map(|digest| votes.voters(digest)).collect()
        };
        let prepared_by = (slot.phase >= Phase::PrePrepared).then(|| {
            let mut nodes = voters(&slot.prepares);
            nodes.push(self.primary());
            nodes
        });
        Some(NextBatch {
            sequence,
            lacks: match slot.phase {
                Phase::Waiting if digest.is_none() => 1,
                Phase::Waiting => slot.missing.len(),
                _ => 0,
            },
            refused: slot.refused,
            prepared_by,
            committed_by: (slot.phase >= Phase::Prepared).then(|| voters(&slot.commits)),
        })
    }
}
