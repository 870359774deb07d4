//! What a replica that gave its view up still learns of it.
//!
//! From its VIEW-CHANGE on, it signs nothing for earlier views (1999, section 4.4). In the paper it
//! also stops to take messages of them. Here it goes on to listen for PRE-PREPAREs and COMMITs of
//! the view that it was in, until another one begins: a quorum of COMMITs proves that the batch is
//! committed, whoever counts them, so executing it is safe (`docs/CONSENSUS.md`, "View change").
//!
//! So a replica that gave the primary up alone, and that the others do not follow, executes what
//! they order, and learns of requests that are consumed and rejected, which no block tells. Nor does
//! a batch wait for the new view because its last COMMIT came a moment after the VIEW-CHANGE.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::ledger::VerifiedRequest;
use crate::pbft::io::{Now, Output, Rejected};
use crate::pbft::log::{Inserted, Log, Phase, Proposal, Votes};
use crate::pbft::message::{Commit, Content, Verified};
use crate::pbft::replica::Replica;
use crate::pbft::wal::WalEntry;
use crate::types::{SeqNum, View};

/// One number of the view that was given up.
#[derive(Debug, Clone, Default)]
struct Open {
    proposal: Option<Proposal>,
    commits: Votes,
}

/// The view that was given up, above the last executed number.
#[derive(Debug, Clone)]
pub(super) struct Witness {
    pub(super) view: View,
    open: BTreeMap<SeqNum, Open>,
}

impl Witness {
    /// Nothing is known of the view.
    pub(super) const fn new(view: View) -> Self {
        Self { view, open: BTreeMap::new() }
    }

    /// Goes on from what the log has of the view.
    pub(super) fn of(log: &Log, view: View, executed: SeqNum) -> Self {
        let open = |(sequence, slot): (SeqNum, &crate::pbft::log::Slot)| {
            (sequence, Open { proposal: slot.proposal.clone(), commits: slot.commits.clone() })
        };
        let slots = log.above(executed).filter(|(_, slot)| slot.phase != Phase::Committed);
        Self { view, open: slots.map(open).collect() }
    }

    /// Drops what is stable.
    pub(super) fn cut(&mut self, stable: SeqNum) {
        self.open = self.open.split_off(&stable.next());
    }

    /// How many numbers are open.
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }
}

impl Replica {
    /// Whether messages of `view` are listened to, and no more than that.
    pub(super) fn witnesses(&self, view: View) -> bool {
        self.is_changing() && self.witness.as_ref().is_some_and(|witness| witness.view == view)
    }

    pub(super) fn witness_proposal(&mut self, message: Verified) -> Result<(), Rejected> {
        let Content::PrePrepare(proposed) = message.content() else { return Ok(()) };
        let (view, sequence, batch) = (proposed.view, proposed.sequence, proposed.batch.clone());
        if message.sender() != self.settings.replicas.primary(view) {
            return Err(Rejected::NotPrimary);
        }
        let open = self.open(sequence)?;
        let digest = batch.digest();
        match &open.proposal {
            Some(earlier) if earlier.digest == digest => Err(Rejected::Duplicate),
            Some(_) => Err(Rejected::Equivocation),
            None => {
                open.proposal = Some(Proposal { message, batch, digest });
                Ok(())
            }
        }
    }

    pub(super) fn witness_commit(&mut self, commit: Commit, message: Verified) -> Result<(), Rejected> {
        match self.open(commit.sequence)?.commits.insert(commit.digest, message) {
            Inserted::New => Ok(()),
            Inserted::Known(why) => Err(why),
            Inserted::Contradicts(_) => Err(Rejected::Equivocation),
        }
    }

    fn open(&mut self, sequence: SeqNum) -> Result<&mut Open, Rejected> {
        let low = self.executed.sequence;
        if sequence <= low {
            return Err(Rejected::BelowWatermark { low });
        }
        let (high, view) = (self.high_watermark(), self.view);
        if sequence > high {
            return Err(Rejected::AboveWatermark { high });
        }
        let witness = self.witness.as_mut().ok_or(Rejected::OtherView { view })?;
        Ok(witness.open.entry(sequence).or_default())
    }

    /// Takes the next batch as committed, if a quorum says so and all of it is here.
    pub(super) fn try_witness(&mut self, now: Now, out: &mut Output) {
        if self.dispatched > self.executed.sequence || !self.is_changing() {
            return;
        }
        let sequence = self.dispatched.next();
        let Some((proposal, requests)) = self.witnessed(sequence) else { return };
        let Proposal { message, batch, digest } = proposal;
        let Some(view) = message.content().view() else { return };
        if self.archive.get(sequence, digest).is_none() {
            let body = |request: &Arc<_>| WalEntry::Body { sequence, request: Arc::clone(request) };
            out.wal.extend(requests.iter().map(body));
        }
        out.wal.push(WalEntry::Accepted(message.signed().clone()));
        out.wal.push(WalEntry::Committed { view, sequence, digest });
        self.pool.order(sequence, &requests, now.monotonic);
        self.archive.witness(sequence, digest, batch, &requests);
        if let Some(witness) = &mut self.witness {
            witness.open.remove(&sequence);
        }
    }

    fn witnessed(&self, sequence: SeqNum) -> Option<(Proposal, Vec<Arc<VerifiedRequest>>)> {
        let open = self.witness.as_ref()?.open.get(&sequence)?;
        let proposal = open.proposal.as_ref()?;
        if open.commits.count(&proposal.digest) < self.settings.replicas.quorum() {
            return None;
        }
        let past = self.archive.get(sequence, proposal.digest).map(|past| past.requests.clone());
        if let Some(past) = past.filter(|past| past.len() == proposal.batch.requests.len()) {
            return Some((proposal.clone(), past));
        }
        let bodies = proposal.batch.requests.iter().map(|digest| self.pool.get(digest).cloned());
        Some((proposal.clone(), bodies.collect::<Option<_>>()?))
    }
}
