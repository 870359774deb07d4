//! What happens to a replica that people should hear of: turns of the protocol, not its messages.
//!
//! A step that makes such a turn says so in [`crate::pbft::Output::notices`]. They ask for nothing
//! to be done and promise nothing: whoever drops them loses a line of the log and a count. There
//! are a few for each view, and none for a message, so that nobody can fill a log by sending much.

use std::time::Duration;

use crate::types::{NodeId, SeqNum, View};

/// Why a replica left a view; see the table in [`crate::pbft`]'s `suspicion`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Suspicion {
    /// Requests waited and nothing was executed.
    Timeout,
    /// The oldest request of one node did not get its turn while others were executed.
    Censorship,
    /// What was executed was not certified.
    Uncertified,
    /// A request waited for too long in all.
    RequestAge,
    /// The primary signed two proposals for one number.
    Equivocation,
    /// f+1 others left it, so a correct one among them.
    Joined,
    /// The primary of the view to come did not begin it in time.
    NoNewView,
    /// Its NEW-VIEW did not follow from the VIEW-CHANGEs.
    BadNewView,
    /// The primary lost its log and keeps silent.
    SilentPrimary,
    /// The log says that it was on its way before a restart.
    Restored,
}

impl Suspicion {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Timeout,
        Self::Censorship,
        Self::Uncertified,
        Self::RequestAge,
        Self::Equivocation,
        Self::Joined,
        Self::NoNewView,
        Self::BadNewView,
        Self::SilentPrimary,
        Self::Restored,
    ];

    /// The word for it in metrics, logs and the API.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Censorship => "censorship",
            Self::Uncertified => "uncertified",
            Self::RequestAge => "request_age",
            Self::Equivocation => "equivocation",
            Self::Joined => "joined",
            Self::NoNewView => "no_new_view",
            Self::BadNewView => "bad_new_view",
            Self::SilentPrimary => "silent_primary",
            Self::Restored => "restored",
        }
    }
}

/// One turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// VIEW-CHANGE was sent (1999, section 4.4).
    ViewChangeBegan {
        /// Why.
        reason: Suspicion,
        /// The view that is left, begun or not.
        from: View,
        /// Its primary.
        old_primary: NodeId,
        /// The view that is to begin.
        to: View,
    },
    /// A view has begun here.
    ViewBegan {
        /// The view.
        view: View,
        /// Its primary.
        primary: NodeId,
        /// Time since this replica left the last view that had begun; none if it had not left it.
        took: Option<Duration>,
        /// Numbers that the NEW-VIEW proposes again.
        carried: usize,
    },
    /// The replica keeps silent, since it cannot know what it has signed.
    FellSilent,
    /// It votes again.
    SpeaksAgain {
        /// Its stable checkpoint.
        stable: SeqNum,
    },
    /// Others are ahead and execution here has stood still: blocks are fetched.
    FellBehind {
        /// What is executed here.
        executed: SeqNum,
        /// What at least one correct other replica has executed.
        known: SeqNum,
    },
    /// It has caught up.
    CaughtUp {
        /// What is executed here.
        executed: SeqNum,
        /// Since [`Notice::FellBehind`].
        took: Duration,
    },
}
