//! What this node will say, and has said, on the ledger about its rows: decided without a database.
//!
//! ```text
//! add ─▶ open ──due──▶ seal ─▶ unwritten ──▶ Submit, again and again ──▶ IsFinal
//!                                  └── the ledger has another chain ──▶ Rebase
//! ```
//!
//! Digests go to the ledger one at a time, since each names the one before.

use std::collections::VecDeque;
use std::time::Duration;

use crate::crypto::SecretKey;
use crate::ledger::digest::{MAX_DIGEST_ROWS, ranges_of, rows_root};
use crate::ledger::{DigestRecord, HistoryDigest};
use crate::types::{ClientId, Hash, Height, MessageSeq, NetworkId};

/// A digest that was submitted and is not executed is submitted again after this time.
const SUBMIT_AGAIN: Duration = Duration::from_secs(5);

/// A digest, and the hashes of its rows.
pub(super) type Sealed = (HistoryDigest, Vec<Hash>);

/// Rows that no digest covers yet.
#[derive(Debug)]
struct Open {
    first: u64,
    since: Duration,
    hashes: Vec<Hash>,
    messages: Vec<(ClientId, MessageSeq)>,
}

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing now.
    Wait,
    /// This digest is to be submitted.
    Submit(HistoryDigest),
    /// This digest is final.
    IsFinal {
        /// Its number.
        number: u64,
        /// The height of its block.
        height: Height,
    },
    /// The ledger has another digest than the one that ours follow: this one, and ours begin with this row. The
    /// rows from there on are to be given numbers above the ledger's, and digests again.
    Rebase(DigestRecord, u64),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Digester {
    network: NetworkId,
    key: SecretKey,
    max_rows: usize,
    /// Number and hash of the last digest that was made, or that the ledger has.
    chain: (u64, Hash),
    open: Option<Open>,
    unwritten: VecDeque<HistoryDigest>,
    submitted: Option<Duration>,
}

impl Digester {
    pub(super) fn new(network: NetworkId, key: SecretKey, max_rows: u32) -> Self {
        Self {
            network,
            key,
            max_rows: max_rows.clamp(1, MAX_DIGEST_ROWS) as usize,
            chain: (0, Hash([0; 32])),
            open: None,
            unwritten: VecDeque::new(),
            submitted: None,
        }
    }

    /// Goes on from what the ledger has and from the last digest that is kept, number and hash, and from
    /// digests of an earlier run that may not be on the ledger. A node that is behind has kept later ones.
    pub(super) fn restore(
        &mut self,
        on_ledger: Option<DigestRecord>,
        kept: Option<(u64, Hash)>,
        unwritten: Vec<HistoryDigest>,
    ) {
        let on_ledger = on_ledger.map_or((0, Hash([0; 32])), |record| (record.number, record.hash));
        self.chain = kept.filter(|(number, _)| *number > on_ledger.0).unwrap_or(on_ledger);
        for digest in unwritten {
            if digest.number > self.chain.0 {
                self.chain = (digest.number, digest.hash());
            }
            self.unwritten.push_back(digest);
        }
    }

    /// Forgets the rows that no digest covers, to be given them again.
    pub(super) fn clear_open(&mut self) {
        self.open = None;
    }

    /// A row was written; which message it is, none if that cannot be read. Gives a digest if one is full, or if the row does not follow the last one.
    pub(super) fn add(
        &mut self,
        number: u64,
        hash: Hash,
        message: Option<(ClientId, MessageSeq)>,
        now: Duration,
    ) -> Option<Sealed> {
        let follows = self.open.as_ref().is_none_or(|open| open.first + open.hashes.len() as u64 == number);
        let before = if follows { None } else { self.seal() };
        let open = self.open.get_or_insert_with(|| Open {
            first: number,
            since: now,
            hashes: Vec::new(),
            messages: Vec::new(),
        });
        open.hashes.push(hash);
        open.messages.extend(message);
        if before.is_none() && open.hashes.len() >= self.max_rows { self.seal() } else { before }
    }

    /// Whether rows have waited for so long.
    pub(super) fn is_due(&self, interval: Duration, now: Duration) -> bool {
        self.open.as_ref().is_some_and(|open| now.saturating_sub(open.since) >= interval)
    }

    /// Makes a digest of the rows that have none; nothing if there are none.
    pub(super) fn seal(&mut self) -> Option<Sealed> {
        let Open { first, hashes, messages, .. } = self.open.take()?;
        let root = rows_root(&hashes).ok()?;
        let rows = u32::try_from(hashes.len()).ok()?;
        Some((self.sign((first, rows, root), ranges_of(messages)), hashes))
    }

    fn sign(
        &mut self,
        rows: (u64, u32, Hash),
        ranges: Vec<(ClientId, crate::ledger::digest::Ranges)>,
    ) -> HistoryDigest {
        let (last, previous) = self.chain;
        let digest = HistoryDigest::sign(&self.network, &self.key, (last + 1, previous), rows, ranges);
        self.chain = (digest.number, digest.hash());
        self.unwritten.push_back(digest.clone());
        digest
    }

    /// What comes next follows what the ledger has; the rows that it says nothing of are to be given again.
    pub(super) fn begin_anew(&mut self, record: DigestRecord) {
        self.chain = (record.number, record.hash);
        self.open = None;
        self.unwritten.clear();
        self.submitted = None;
    }

    /// The ledger has digests beyond those that this history knows of: that one, and the first row that
    /// follows none of them.
    pub(super) fn behind(&self, on_ledger: Option<DigestRecord>) -> Option<(DigestRecord, u64)> {
        let record = on_ledger.filter(|record| record.number > self.chain.0)?;
        let sealed = self.unwritten.front().map(|digest| digest.first);
        let open = self.open.as_ref().map(|open| open.first);
        Some((record, sealed.or(open).unwrap_or(record.last_row + 1)))
    }

    /// How many digests are not final.
    pub(super) fn unwritten(&self) -> usize {
        self.unwritten.len()
    }

    /// What to do, given what the ledger has of this node and up to where it is final.
    pub(super) fn step(&mut self, on_ledger: Option<DigestRecord>, certified: Height, now: Duration) -> Step {
        if let Some((record, first)) = self.behind(on_ledger) {
            return Step::Rebase(record, first);
        }
        let Some(next) = self.unwritten.front() else { return Step::Wait };
        let (last, hash) = on_ledger.map_or((0, Hash([0; 32])), |record| (record.number, record.hash));
        if last + 1 == next.number && next.previous == hash {
            let again = self.submitted.is_none_or(|at| now.saturating_sub(at) >= SUBMIT_AGAIN);
            if !again {
                return Step::Wait;
            }
            self.submitted = Some(now);
            return Step::Submit(next.clone());
        }
        let Some(record) = on_ledger else { return Step::Wait };
        // This node may be behind what it wrote before: then it waits until it has caught up.
        if record.number < next.number && self.unwritten.front().is_some_and(|next| last + 1 < next.number) {
            return Step::Wait;
        }
        // Each digest names the one before, so one that is ours says that those before it are.
        let is_ours = |own: &HistoryDigest| own.number == record.number && own.hash() == record.hash;
        if !self.unwritten.iter().any(is_ours) {
            return Step::Rebase(record, next.first);
        }
        if record.height > certified {
            return Step::Wait;
        }
        let (number, height) = (next.number, record.height);
        self.unwritten.pop_front();
        self.submitted = None;
        Step::IsFinal { number, height }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NETWORK: NetworkId = NetworkId([1; 32]);
    const SECOND: Duration = Duration::from_secs(1);

    fn digester(max_rows: u32) -> Digester {
        Digester::new(NETWORK, SecretKey::from_seed(&[1; 32]), max_rows)
    }

    fn message(seq: u64) -> Option<(ClientId, MessageSeq)> {
        Some((ClientId::new("devices/c1").unwrap(), MessageSeq(seq)))
    }

    fn add(digester: &mut Digester, number: u64, at: Duration) -> Option<Sealed> {
        let hash = Hash([u8::try_from(number % 256).unwrap(); 32]);
        digester.add(number, hash, message(number), at)
    }

    fn record(digest: &HistoryDigest, height: u64) -> DigestRecord {
        let last_row = digest.first + u64::from(digest.rows) - 1;
        DigestRecord { number: digest.number, hash: digest.hash(), last_row, height: Height(height) }
    }

    #[test]
    fn a_digest_is_made_when_it_is_full_or_rows_have_waited() {
        let mut digester = digester(3);
        assert!(!digester.is_due(SECOND, 9 * SECOND), "no rows, no digest");
        assert_eq!(add(&mut digester, 1, SECOND), None);
        assert!(!digester.is_due(2 * SECOND, 2 * SECOND) && digester.is_due(2 * SECOND, 3 * SECOND));
        assert_eq!(add(&mut digester, 2, SECOND), None);
        let (full, hashes) = add(&mut digester, 3, SECOND).unwrap();
        assert_eq!((full.number, full.first, full.rows, hashes.len()), (1, 1, 3, 3));
        assert_eq!(full.verify(&NETWORK), Ok(()));
        add(&mut digester, 4, SECOND);
        let (next, _) = digester.seal().unwrap();
        assert_eq!((next.number, next.previous, next.first), (2, full.hash(), 4));
        assert_eq!(digester.seal(), None);
    }

    #[test]
    fn rows_that_do_not_follow_begin_a_digest_of_their_own() {
        let mut digester = digester(10);
        add(&mut digester, 1, SECOND);
        let (before, _) = add(&mut digester, 71, SECOND).unwrap();
        assert_eq!((before.first, before.rows), (1, 1));
        assert_eq!(digester.seal().unwrap().0.first, 71);
    }

    #[test]
    fn digests_are_submitted_in_order_until_each_is_final() {
        let mut digester = digester(1);
        let (one, _) = add(&mut digester, 1, SECOND).unwrap();
        let (two, _) = add(&mut digester, 2, SECOND).unwrap();
        let none = Height(0);
        assert_eq!(digester.step(None, none, SECOND), Step::Submit(one.clone()));
        assert_eq!(digester.step(None, none, 2 * SECOND), Step::Wait);
        assert_eq!(digester.step(None, none, 6 * SECOND), Step::Submit(one.clone()), "again");
        let first = Some(record(&one, 4));
        assert_eq!(digester.step(first, Height(3), 7 * SECOND), Step::Wait, "executed and not final");
        let is_final = Step::IsFinal { number: 1, height: Height(4) };
        assert_eq!(digester.step(first, Height(4), 7 * SECOND), is_final);
        assert_eq!(digester.step(first, Height(4), 7 * SECOND), Step::Submit(two.clone()));
        let is_final = Step::IsFinal { number: 2, height: Height(5) };
        assert_eq!(digester.step(Some(record(&two, 5)), Height(9), 8 * SECOND), is_final);
        assert_eq!((digester.step(None, Height(9), 8 * SECOND), digester.unwritten()), (Step::Wait, 0));
    }

    #[test]
    fn after_a_restart_what_may_be_on_the_ledger_is_found_or_submitted() {
        let mut before = digester(1);
        let (one, _) = add(&mut before, 1, SECOND).unwrap();
        let (two, _) = add(&mut before, 2, SECOND).unwrap();
        let mut after = digester(1);
        after.restore(Some(record(&one, 4)), None, vec![one.clone(), two.clone()]);
        let final_one = Step::IsFinal { number: 1, height: Height(4) };
        assert_eq!(after.step(Some(record(&one, 4)), Height(4), SECOND), final_one);
        assert_eq!(after.step(Some(record(&one, 4)), Height(4), SECOND), Step::Submit(two.clone()));
        let (three, _) = add(&mut after, 3, SECOND).unwrap();
        assert_eq!((three.number, three.previous), (3, two.hash()));
    }

    #[test]
    fn a_node_that_is_behind_its_own_digests_waits() {
        let mut before = digester(1);
        let (one, _) = add(&mut before, 1, SECOND).unwrap();
        let (two, _) = add(&mut before, 2, SECOND).unwrap();
        let mut after = digester(1);
        after.restore(None, Some((2, two.hash())), vec![two.clone()]);
        assert_eq!(after.step(None, Height(0), SECOND), Step::Wait);
        assert_eq!(after.step(Some(record(&one, 1)), Height(1), SECOND), Step::Submit(two));
    }

    #[test]
    fn the_first_digest_of_a_new_history_is_not_taken_for_one_that_the_ledger_has() {
        let mut lost = digester(1);
        let sealed: Vec<_> = (1..=3).map(|number| add(&mut lost, number, SECOND).unwrap().0).collect();
        let mut anew = digester(1);
        let (one, _) = anew.add(1, Hash([77; 32]), message(9), SECOND).unwrap();
        assert_eq!(anew.step(None, Height(0), SECOND), Step::Submit(one));
        let third = record(&sealed[2], 9);
        assert_eq!(
            anew.step(Some(third), Height(9), SECOND),
            Step::Rebase(third, 1),
            "the ledger has the third"
        );
        let first = record(&sealed[0], 3);
        assert_eq!(
            anew.step(Some(first), Height(3), SECOND),
            Step::Rebase(first, 1),
            "and another first one"
        );
    }

    #[test]
    fn a_node_that_is_behind_what_it_kept_goes_on_above_that() {
        let mut before = digester(1);
        let (one, _) = add(&mut before, 1, SECOND).unwrap();
        let mut after = digester(1);
        after.restore(None, Some((1, one.hash())), Vec::new());
        let (two, _) = add(&mut after, 2, SECOND).unwrap();
        assert_eq!((two.number, two.previous), (2, one.hash()), "and not a second first one");
        assert_eq!(after.step(None, Height(0), SECOND), Step::Wait);
    }

    #[test]
    fn rows_without_a_digest_follow_what_the_ledger_turns_out_to_have() {
        let mut lost = digester(1);
        let (one, _) = add(&mut lost, 1, SECOND).unwrap();
        let mut anew = digester(9);
        let on_ledger = Some(record(&one, 2));
        assert_eq!(anew.behind(on_ledger), Some((record(&one, 2), 2)), "no rows yet: the next is the second");
        add(&mut anew, 1, SECOND);
        assert_eq!(anew.step(on_ledger, Height(2), SECOND), Step::Rebase(record(&one, 2), 1));
        anew.begin_anew(record(&one, 2));
        assert_eq!((anew.behind(on_ledger), anew.step(on_ledger, Height(2), SECOND)), (None, Step::Wait));
    }

    #[test]
    fn a_history_that_was_lost_goes_on_where_the_ledger_is() {
        let mut lost = digester(1);
        let (other, _) = add(&mut lost, 9, SECOND).unwrap();
        let mut anew = digester(1);
        add(&mut anew, 1, SECOND).unwrap();
        add(&mut anew, 2, SECOND).unwrap();
        let on_ledger = record(&other, 4);
        assert_eq!(anew.step(Some(on_ledger), Height(4), SECOND), Step::Rebase(on_ledger, 1));
        anew.begin_anew(on_ledger);
        assert_eq!(anew.step(Some(on_ledger), Height(4), SECOND), Step::Wait);
        let (again, _) = add(&mut anew, 10, SECOND).unwrap();
        assert_eq!((again.number, again.previous, again.first), (2, other.hash(), 10));
        assert_eq!(anew.step(Some(on_ledger), Height(4), SECOND), Step::Submit(again));
    }
}
