//! Where a replica is in the succession of views (1999, section 4.4).
//!
//! ```text
//!  active in v ──suspicion, or f+1 others above──▶ changing to v+1 ──NEW-VIEW──▶ active in v+1
//!       ▲                                               │ timer, once q VIEW-CHANGEs are in
//!       └── NEW-VIEW of any view above ──────────────── └──────▶ changing to v+2, twice the time
//! ```
//!
//! The timer moves nobody on from a view in which f+1 others are seen to vote: that one has begun.
//! Memory for what others say is one slot a sender: the VIEW-CHANGE for the highest view, the
//! NEW-VIEW for the highest view that is not yet entered, the highest view it was seen to vote in.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::ledger::ReplicaSet;
use crate::pbft::certificates::{NewView, ViewChange};
use crate::pbft::evidence::FaultKind;
use crate::pbft::message::{Content, Verified};
use crate::pbft::notice::Suspicion;
use crate::pbft::resend::Resend;
use crate::types::{Hash, NodeId, SeqNum, View};

/// Executions in one view after which one earlier failure is forgiven.
const EXECUTIONS_TO_FORGIVE: u64 = 8;

/// The way to another view: VIEW-CHANGE is sent, and nothing for earlier views is signed any more.
#[derive(Debug, Clone)]
pub(super) struct Changing {
    pub(super) message: Verified,
    pub(super) resend: Resend,
    /// When the next view's turn comes; runs once a quorum is on the way.
    pub(super) deadline: Option<Duration>,
    /// Since when no view has been in force here, and why this one is wanted: to be told.
    pub(super) since: Duration,
    pub(super) reason: Suspicion,
}

/// The proof that a view began.
#[derive(Debug, Clone)]
pub(super) struct Entered {
    pub(super) new_view: Verified,
    pub(super) view_changes: Vec<Verified>,
    pub(super) resend: Resend,
}

/// A VIEW-CHANGE and its hash.
#[derive(Debug, Clone)]
pub(super) struct Heard {
    pub(super) message: Verified,
    pub(super) digest: Hash,
}

/// A NEW-VIEW that waits for VIEW-CHANGEs that it names.
#[derive(Debug, Clone)]
pub(super) struct Offer {
    pub(super) message: Verified,
    pub(super) view_changes: BTreeMap<u16, Verified>,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub(super) struct Views {
    pub(super) changing: Option<Changing>,
    /// Of the last view that was entered; none is view 0.
    pub(super) entered: Option<Entered>,
    /// min-s of that view.
    pub(super) base: SeqNum,
    /// max-s of that view: up to here its NEW-VIEW proposes.
    pub(super) carried_upto: SeqNum,
    pub(super) entered_at: Duration,
    /// Executions since then.
    pub(super) executed_here: u64,
    heard: BTreeMap<NodeId, Heard>,
    pub(super) offers: BTreeMap<NodeId, Offer>,
    seen: BTreeMap<NodeId, View>,
    /// The highest view in which a replica's NEW-VIEW was told to be evidence, for each kind of it.
    exposed: BTreeMap<(NodeId, FaultKind), View>,
    /// When a NEW-VIEW is asked for next, if one is missing, and how often that was done.
    pub(super) fetch_at: Option<Duration>,
    pub(super) fetches: usize,
    /// When the NEW-VIEW was last repeated for who seems to lack it.
    pub(super) answered: Option<Duration>,
    /// How many views in a row brought nothing.
    failures: u32,
    /// The stable checkpoint when the views were last written to the log.
    pub(super) logged_at: SeqNum,
}

impl Views {
    /// How many messages of others are kept.
    pub(super) fn held(&self) -> usize {
        let offered = self.offers.values().map(|offer| 1 + offer.view_changes.len());
        self.heard.len() + self.seen.len() + offered.sum::<usize>()
    }

    /// The highest VIEW-CHANGE of `node`.
    pub(super) fn heard(&self, node: &NodeId) -> Option<&Heard> {
        self.heard.get(node)
    }

    /// Takes a VIEW-CHANGE, if it is for a higher view than the last of its sender.
    pub(super) fn hear(&mut self, message: Verified, view: View, digest: Hash) -> bool {
        let sender = message.sender();
        let higher = self.view_of(&sender).is_none_or(|earlier| earlier < view);
        if higher {
            self.heard.insert(sender, Heard { message, digest });
        }
        higher
    }

    fn view_of(&self, node: &NodeId) -> Option<View> {
        self.heard.get(node)?.message.content().view()
    }

    /// How many replicas want `view` or one above.
    pub(super) fn supporters(&self, view: View) -> usize {
        self.wanted().filter(|wanted| *wanted >= view).count()
    }

    /// Whether `node` wants `view` or one above.
    pub(super) fn supports(&self, node: &NodeId, view: View) -> bool {
        self.view_of(node).is_some_and(|wanted| wanted >= view)
    }

    /// The VIEW-CHANGEs for exactly `view`.
    pub(super) fn for_view(&self, view: View) -> impl Iterator<Item = &Heard> {
        self.heard.values().filter(move |heard| heard.message.content().view() == Some(view))
    }

    /// The highest view that `weak_quorum` replicas are at or above, so at least one correct one.
    pub(super) fn joinable(&self, weak_quorum: usize) -> Option<View> {
        let mut wanted: Vec<View> = self.wanted().collect();
        wanted.sort_unstable_by(|a, b| b.cmp(a));
        wanted.get(weak_quorum - 1).copied()
    }

    fn wanted(&self) -> impl Iterator<Item = View> {
        self.heard.values().filter_map(|heard| heard.message.content().view())
    }

    /// Gives a VIEW-CHANGE to the NEW-VIEWs that name it. Whether any lacked it.
    pub(super) fn complete_offers(&mut self, heard: &Heard, replicas: &ReplicaSet) -> bool {
        let taken = self.offers.values_mut().map(|offer| offer.take(heard, replicas));
        taken.fold(false, |useful, taken| useful | taken)
    }

    /// `node` votes in `view`.
    pub(super) fn see(&mut self, node: NodeId, view: View) {
        let seen = self.seen.entry(node).or_default();
        *seen = view.max(*seen);
    }

    /// Whether a fault of `node` in `view` is to be told: each is once, and none below an earlier one.
    pub(super) fn expose(&mut self, node: NodeId, kind: FaultKind, view: View) -> bool {
        let last = self.exposed.entry((node, kind)).or_default();
        let later = view > *last;
        *last = view.max(*last);
        later
    }

    /// Who was seen in a view at or above `view`, and the highest view that was seen.
    pub(super) fn seen_from(&self, view: View) -> (View, Vec<NodeId>) {
        let ahead = self.seen.iter().filter(|(_, seen)| **seen >= view);
        let highest = ahead.clone().map(|(_, seen)| *seen).max().unwrap_or(view);
        (highest, ahead.map(|(node, _)| *node).collect())
    }

    /// Drops what a view that is entered makes useless.
    pub(super) fn forget_below(&mut self, view: View) {
        self.heard.retain(|_, heard| heard.message.content().view() > Some(view));
        self.offers.retain(|_, offer| offer.message.content().view() > Some(view));
        self.fetch_at = None;
        self.fetches = 0;
    }

    /// A view brought nothing.
    pub(super) fn failed(&mut self) {
        self.failures = self.failures.saturating_add(1);
    }

    /// A batch was executed in this view.
    pub(super) fn executed(&mut self) {
        self.executed_here += 1;
        if self.executed_here.is_multiple_of(EXECUTIONS_TO_FORGIVE) {
            self.failures = self.failures.saturating_sub(1);
        }
    }

    /// `initial`, doubled for each failure, up to `most`.
    pub(super) fn timeout(&self, initial: Duration, most: Duration) -> Duration {
        let factor = 1_u32.checked_shl(self.failures.min(16)).unwrap_or(u32::MAX);
        initial.saturating_mul(factor).min(most)
    }
}

impl Offer {
    pub(super) fn new_view(&self) -> Option<&NewView> {
        match self.message.content() {
            Content::NewView(new_view) => Some(new_view),
            _ => None,
        }
    }

    /// Takes a VIEW-CHANGE that the NEW-VIEW names.
    pub(super) fn take(&mut self, heard: &Heard, replicas: &ReplicaSet) -> bool {
        let number = replicas.index_of(&heard.message.sender()).and_then(|index| u16::try_from(index).ok());
        let (Some(number), Some(new_view)) = (number, self.new_view()) else { return false };
        let named = new_view.view_changes.contains(&(number, heard.digest));
        named && self.view_changes.insert(number, heard.message.clone()).is_none()
    }

    /// Whether all are here.
    pub(super) fn is_complete(&self) -> bool {
        self.new_view().is_some_and(|new_view| new_view.view_changes.len() == self.view_changes.len())
    }
}

/// The VIEW-CHANGEs among messages.
pub(super) fn view_changes<'a>(
    messages: impl Iterator<Item = &'a Verified> + Clone,
) -> impl Iterator<Item = &'a ViewChange> + Clone {
    messages.filter_map(|message| match message.content() {
        Content::ViewChange(view_change) => Some(view_change),
        _ => None,
    })
}
