//! PREPARE and COMMIT (1999, section 4.2), and what follows once there are enough of them.

use crate::pbft::certificates::Prepared;
use crate::pbft::evidence::Evidence;
use crate::pbft::io::{Effect, Now, Output, Rejected};
use crate::pbft::log::{Inserted, Phase};
use crate::pbft::message::{Commit, Content, Prepare, Verified};
use crate::pbft::replica::Replica;
use crate::pbft::resend::Resend;
use crate::pbft::wal::WalEntry;
use crate::planted::{Bug, planted};
use crate::types::SeqNum;

impl Replica {
    pub(super) fn on_prepare(
        &mut self,
        now: Now,
        prepare: Prepare,
        message: Verified,
        out: &mut Output,
    ) -> Result<(), Rejected> {
        self.check_slot(now, message.sender(), prepare.view, prepare.sequence)?;
        if message.sender() == self.primary() && !planted(Bug::PrepareOfPrimaryCounted) {
            return Err(Rejected::NotBackup);
        }
        let resend = Resend::started(now.monotonic, &self.settings);
        let slot = self.log.entry(prepare.sequence, prepare.view, resend);
        let second = message.signed().clone();
        match slot.prepares.insert(prepare.digest, message) {
            Inserted::New => self.try_commit(now, prepare.sequence, out),
            Inserted::Known(why) => return Err(why),
            Inserted::Contradicts(first) => {
                out.effects.push(Effect::Evidence(Box::new(Evidence::contradiction(&first, &second))));
                return Err(Rejected::Equivocation);
            }
        }
        Ok(())
    }

    pub(super) fn on_commit(
        &mut self,
        now: Now,
        commit: Commit,
        message: Verified,
        out: &mut Output,
    ) -> Result<(), Rejected> {
        self.check_slot(now, message.sender(), commit.view, commit.sequence)?;
        let resend = Resend::started(now.monotonic, &self.settings);
        let slot = self.log.entry(commit.sequence, commit.view, resend);
        let second = message.signed().clone();
        match slot.commits.insert(commit.digest, message) {
            Inserted::New => self.try_commit(now, commit.sequence, out),
            Inserted::Known(why) => return Err(why),
            Inserted::Contradicts(first) => {
                out.effects.push(Effect::Evidence(Box::new(Evidence::contradiction(&first, &second))));
                return Err(Rejected::Equivocation);
            }
        }
        Ok(())
    }

    /// Sends COMMIT once the batch is prepared, and marks it once it is committed-local.
    pub(super) fn try_commit(&mut self, now: Now, sequence: SeqNum, out: &mut Output) {
        let quorum = self.settings.replicas.quorum();
        let view = self.view;
        if self.is_changing() || self.is_silent() {
            return;
        }
        let Some(slot) = self.log.get_mut(sequence, view) else { return };
        let Some(proposal) = &slot.proposal else { return };
        let digest = proposal.digest;
        let before = slot.phase;
        let mut sent = None;
        if slot.phase == Phase::PrePrepared && slot.prepared(quorum) {
            let content = Content::Commit(Commit { view, sequence, digest });
            let commit = Verified::sign(&self.settings.key, &self.settings.network, content);
            // What a later VIEW-CHANGE must prove is on disk before anybody can count on it.
            let prepared = Prepared {
                view,
                sequence,
                digest,
                pre_prepare: proposal.message.signed().signature,
                prepares: slot.prepares.signatures(&digest, quorum - 1, &self.settings.replicas),
            };
            out.wal.push(WalEntry::Prepared(prepared.clone()));
            out.wal.push(WalEntry::Sent(commit.signed().clone()));
            slot.prepared = Some(prepared);
            slot.phase = Phase::Prepared;
            slot.commits.insert(digest, commit.clone());
            slot.sent.push(commit.clone());
            slot.resend.restart(now.monotonic, &self.settings);
            sent = Some(commit);
        }
        if slot.phase == Phase::Prepared && slot.committed_local(quorum) {
            slot.phase = Phase::Committed;
            out.wal.push(WalEntry::Committed { view, sequence, digest });
            self.prove_voice(out);
        }
        if self.log.get(sequence, view).is_some_and(|slot| slot.phase > before) {
            self.quorum_voted(now);
        }
        if let Some(commit) = sent {
            self.broadcast(&commit, out);
        }
    }

    /// Hands the next committed batch to execution (1999, section 4.2), in order and one at a time:
    /// so the CHECKPOINT of each is on disk before the next one changes the store, and no block can
    /// outlive a crash of all replicas without the words that certify it.
    pub(super) fn try_execute(&mut self, now: Now, out: &mut Output) {
        if self.dispatched > self.executed.sequence {
            return;
        }
        let sequence = self.dispatched.next();
        let slot = self.log.get(sequence, self.view).filter(|slot| slot.phase == Phase::Committed);
        let current =
            slot.and_then(|slot| Some((slot.proposal.as_ref()?.batch.clone(), slot.requests.clone())));
        let past =
            || self.archive.committed(sequence).map(|past| (past.batch.clone(), past.requests.clone()));
        let Some((batch, requests)) = current.or_else(past) else { return };
        self.pool.executed(sequence, &requests, now.monotonic);
        self.dispatched = sequence;
        self.progress.dispatched = now.monotonic;
        self.executed_timestamp = self.executed_timestamp.max(batch.timestamp);
        out.effects.push(Effect::Execute { sequence, batch, requests });
    }
}
