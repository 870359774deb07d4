//! Bugs that are planted on purpose, to prove that the simulator finds them.
//!
//! Without the cargo feature `planted-bugs`, which only `tests/sim` uses, [`planted`] is a constant
//! `false` and the compiler removes all of it. With it, `with` plants one bug in whatever runs on
//! the calling thread.

/// A mistake in the protocol that someone could make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// A quorum is one smaller.
    QuorumOffByOne,
    /// A PREPARE of the primary counts beside its PRE-PREPARE.
    PrepareOfPrimaryCounted,
    /// One CHECKPOINT makes a certificate.
    CheckpointOfOneReplica,
    /// Messages above the high watermark are kept.
    WatermarkNotChecked,
    /// What is on the ledger is written again.
    DuplicateExecution,
    /// One replica's word is enough to pass batches over.
    SkipOnOneWord,
    /// Batches are executed when they are prepared.
    ExecutedWhenPrepared,
    /// The limit of the pool for each node is not looked at.
    PoolNotBounded,
    /// A request's client need not be registered.
    RegistrationNotChecked,
    /// A new view carries over nothing that was prepared.
    PSetIgnored,
    /// What a NEW-VIEW proposes is believed.
    ONotRecomputed,
    /// One VIEW-CHANGE makes others join.
    JoinOnOneWord,
    /// No timer gives a primary up.
    NobodySuspected,
    /// A vote is taken for whatever was proposed.
    VotesNotMatched,
}

#[cfg(feature = "planted-bugs")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Plants a bug, or none, in what this thread does from now on.
#[cfg(feature = "planted-bugs")]
pub fn with(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether this bug is planted.
#[cfg(feature = "planted-bugs")]
pub fn planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Whether this bug is planted: never, in a program.
#[cfg(not(feature = "planted-bugs"))]
#[inline]
pub const fn planted(_: Bug) -> bool {
    false
}
