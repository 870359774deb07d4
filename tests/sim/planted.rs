//! The harness proved: mistakes are planted in the shell around the cores (here) and in the core
//! itself (cargo feature `planted-bugs`), and each must be found, by the property that it breaks.

use ledgermq::pbft::WalEntry;

use crate::cluster::Cluster;
use crate::laggard;
use crate::run::first_failure;
use crate::storm;

/// A mistake in the shell around a core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShellBug {
    /// Effects are carried out without waiting for the disk.
    SentBeforeSync,
    /// The disk says that it has what it has not.
    SyncThatLies,
    /// Own votes are not read back after a crash, so they are signed anew.
    VotesForgotten,
    /// What is sent is sent once.
    NothingRepeated,
    /// Bodies are not read back after a crash.
    BodiesForgotten,
    /// A vote for a view is sent again after the view was given up.
    OldVotesRepeated,
    /// Certificates never reach the ledger store.
    CertificatesLost,
    /// Own requests that a replica forwards are taken for an ordinary bundle.
    ForwardedAsBundle,
}

impl ShellBug {
    /// Whether an entry of the log gets lost when it is read.
    pub fn forgets(self, entry: &WalEntry) -> bool {
        match entry {
            WalEntry::Sent(_) | WalEntry::ViewChange(_) => self == Self::VotesForgotten,
            WalEntry::Body { .. } => self == Self::BodiesForgotten,
            _ => false,
        }
    }
}

/// Asserts that among some seeds one fails, and that a property of that name saw it.
fn is_caught(bug: ShellBug, by: &[&str]) {
    let failure = first_failure(SEEDS, |seed| storm::run(seed, &|cluster| cluster.planted = Some(bug)));
    let failure = failure.unwrap_or_else(|| panic!("{bug:?} was not found in {SEEDS} seeds"));
    let expected = by.iter().any(|name| failure.text.contains(&format!("[{name}]")));
    assert!(expected, "{bug:?} was found, but not as {by:?}: {}", failure.text);
    println!("{bug:?}: found by seed {}", failure.seed);
}

const SEEDS: u64 = 100;

#[test]
fn messages_sent_before_they_are_on_disk_are_found() {
    is_caught(ShellBug::SentBeforeSync, &["durable before sent"]);
}

#[test]
fn a_disk_that_lies_about_syncing_is_found() {
    is_caught(ShellBug::SyncThatLies, &["durable before sent"]);
}

#[test]
fn votes_that_are_forgotten_in_a_crash_are_found() {
    is_caught(ShellBug::VotesForgotten, &["durable before sent", "agreement", "evidence", "restart"]);
}

#[test]
fn messages_that_are_never_repeated_are_found() {
    is_caught(ShellBug::NothingRepeated, &["liveness"]);
}

#[test]
fn certificates_that_are_lost_are_found() {
    is_caught(ShellBug::CertificatesLost, &["liveness"]);
}

#[test]
fn bodies_that_are_forgotten_in_a_crash_are_found() {
    is_caught(ShellBug::BodiesForgotten, &["restart"]);
}

#[test]
fn votes_for_a_view_that_was_given_up_are_found() {
    is_caught(ShellBug::OldVotesRepeated, &["views"]);
}

#[test]
fn own_requests_that_are_forwarded_and_taken_for_a_bundle_are_found() {
    let bug = |cluster: &mut Cluster| cluster.planted = Some(ShellBug::ForwardedAsBundle);
    let failure = first_failure(SEEDS, |seed| laggard::missed_a_batch_that_made_a_block(seed, &bug));
    assert!(failure.is_some_and(|failure| failure.text.contains("[liveness]")));
}

#[cfg(feature = "planted-bugs")]
mod core {
    use ledgermq::planted::{self, Bug};

    use super::{SEEDS, first_failure, storm};
    use crate::directed;

    fn is_caught(bug: Bug, by: &[&str]) {
        is_caught_in(bug, by, |seed| storm::run(seed, &|_| {}));
    }

    fn is_caught_in(bug: Bug, by: &[&str], run: impl Fn(u64) -> u64) {
        planted::with(Some(bug));
        let failure = first_failure(SEEDS, run);
        planted::with(None);
        let failure = failure.unwrap_or_else(|| panic!("{bug:?} was not found in {SEEDS} seeds"));
        let expected = by.iter().any(|name| failure.text.contains(name));
        assert!(expected, "{bug:?} was found, but not as {by:?}: {}", failure.text);
        println!("{bug:?}: found by seed {}", failure.seed);
    }

    /// Asserts that the bug makes honest replicas disagree, not only stand still.
    fn splits(bug: Bug, story: impl Fn(u64) -> u64) {
        is_caught_in(bug, &["[agreement]"], story);
    }

    #[test]
    fn a_new_view_that_ignores_what_was_prepared_splits_honest_replicas() {
        splits(Bug::PSetIgnored, directed::what_one_executed_comes_again_in_the_next_view);
    }

    #[test]
    fn a_new_view_that_nobody_recomputes_splits_honest_replicas() {
        splits(Bug::ONotRecomputed, directed::a_new_view_that_hides_what_one_executed);
    }

    #[test]
    fn a_prepare_of_the_primary_that_counts_splits_honest_replicas() {
        splits(Bug::PrepareOfPrimaryCounted, directed::a_primary_that_votes_for_its_own_proposal);
    }

    #[test]
    fn batches_passed_over_on_one_replicas_word_split_honest_replicas() {
        splits(Bug::SkipOnOneWord, directed::one_says_that_nothing_happened);
    }

    #[test]
    fn a_quorum_that_is_one_too_small_is_found() {
        is_caught(Bug::QuorumOffByOne, &["[agreement]", "[checkpoint stability]"]);
    }

    #[test]
    fn moving_to_a_view_on_one_replicas_word_is_found() {
        is_caught(Bug::JoinOnOneWord, &["[views]"]);
    }

    #[test]
    fn a_primary_that_nobody_ever_suspects_is_found() {
        is_caught(Bug::NobodySuspected, &["[liveness]"]);
    }

    #[test]
    fn a_certificate_of_one_checkpoint_is_found() {
        is_caught(Bug::CheckpointOfOneReplica, &["[checkpoint stability]"]);
    }

    #[test]
    fn messages_kept_above_the_watermark_are_found() {
        is_caught(Bug::WatermarkNotChecked, &["[bounded memory]"]);
    }

    #[test]
    fn a_request_that_is_executed_twice_is_found() {
        is_caught(Bug::DuplicateExecution, &["[exactly once]"]);
    }

    #[test]
    fn batches_executed_when_they_are_only_prepared_are_found() {
        is_caught(Bug::ExecutedWhenPrepared, &["[agreement]"]);
    }

    #[test]
    fn a_pool_without_a_bound_is_found() {
        is_caught(Bug::PoolNotBounded, &["[bounded memory]"]);
    }

    #[test]
    fn writes_under_another_clients_key_are_found() {
        is_caught(Bug::RegistrationNotChecked, &["[only registered clients]"]);
    }

    #[test]
    fn votes_that_are_not_for_the_proposal_and_count_are_found() {
        is_caught(Bug::VotesNotMatched, &["[agreement]"]);
    }
}
