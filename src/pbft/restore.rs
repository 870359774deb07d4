//! What was promised before a crash, read back from the log: exactly that, and nothing signed anew.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::ledger::VerifiedRequest;
use crate::pbft::certificates::plan;
use crate::pbft::checkpoints::OwnCheckpoint;
use crate::pbft::io::{Effect, Now, Output};
use crate::pbft::log::{Phase, Proposal, Slot};
use crate::pbft::message::{Content, PrePrepare, Signed, Verified};
use crate::pbft::notice::{Notice, Suspicion};
use crate::pbft::replica::{Replica, SetupError};
use crate::pbft::resend::Resend;
use crate::pbft::silence::{Silence, Voice};
use crate::pbft::views::{Changing, Entered, view_changes};
use crate::pbft::wal::{Restored, WalEntry};
use crate::pbft::witness::Witness;
use crate::types::{Hash, SeqNum, View};

type Bodies = BTreeMap<Hash, Arc<VerifiedRequest>>;

impl Replica {
    pub(super) fn restore(&mut self, restored: Restored) -> Result<(), SetupError> {
        let mut bodies = Bodies::new();
        let (mut entered, mut changing) = (None, None);
        self.checkpoints.uncertified.extend(restored.uncertified);
        if let Some(certificate) = restored.certificate {
            self.checkpoints.certified(certificate);
        }
        for entry in restored.entries {
            match entry {
                WalEntry::Body { request, .. } => drop(bodies.insert(request.digest(), request)),
                WalEntry::Accepted(signed) | WalEntry::Sent(signed) => self.restore_message(signed),
                WalEntry::Committed { view, sequence, .. } => {
                    self.restored_slot(sequence, view).phase = Phase::Committed;
                }
                WalEntry::Certified(certificate) => self.checkpoints.certified(certificate),
                WalEntry::Prepared(prepared) => {
                    let (sequence, view) = (prepared.sequence, prepared.view);
                    self.restored_slot(sequence, view).prepared = Some(prepared);
                }
                WalEntry::ViewChange(signed) => changing = Some(Verified::from_wal(signed)),
                WalEntry::NewView { new_view, view_changes } => {
                    let view_changes = view_changes.into_iter().map(Verified::from_wal).collect();
                    let resend = Resend::overdue(&self.settings);
                    let new_view = Verified::from_wal(new_view);
                    entered = Some(Entered { new_view, view_changes, resend });
                }
                WalEntry::Silent(silent) => self.restore_silence(silent),
                WalEntry::Proven => self.voice = Some(Voice::Proven),
            }
        }
        self.restore_bodies(&bodies)?;
        self.restore_watermarks();
        self.restore_views(entered, changing);
        self.resume();
        Ok(())
    }

    fn restore_silence(&mut self, silent: bool) {
        self.silence = silent.then(Silence::default);
        self.voice = Some(if silent { Voice::Silent } else { Voice::Unproven });
    }

    /// The view that the replica was in, or on its way to: whatever the log says about earlier ones
    /// goes to the archive.
    fn restore_views(&mut self, entered: Option<Entered>, changing: Option<Verified>) {
        let view_of = |message: &Verified| message.content().view().unwrap_or_default();
        let active = entered.as_ref().map(|entered| view_of(&entered.new_view)).unwrap_or_default();
        let changing = changing.filter(|message| view_of(message) > active);
        self.view = changing.as_ref().map_or(active, view_of);
        self.leave_views(Duration::ZERO, self.view);
        for (sequence, slot) in self.log.iter() {
            self.pool.order(sequence, &slot.requests, Duration::ZERO);
        }
        self.views.logged_at = self.checkpoints.stable;
        if let Some(entered) = entered {
            let plan = plan(view_changes(entered.view_changes.iter()), &self.settings.replicas);
            self.install(entered, plan);
        }
        if let Some(message) = changing {
            let digest = match message.content() {
                Content::ViewChange(view_change) => view_change.digest(),
                _ => Hash([0; 32]),
            };
            self.views.hear(message.clone(), self.view, digest);
            let resend = Resend::overdue(&self.settings);
            let (since, reason) = (Duration::ZERO, Suspicion::Restored);
            self.views.changing = Some(Changing { message, resend, deadline: None, since, reason });
            self.witness = Some(Witness::new(active));
        }
        let own = |(sequence, slot): (SeqNum, &Slot)| (!slot.sent.is_empty()).then_some(sequence);
        self.restored_upto = self.log.iter().filter_map(own).max().unwrap_or_default();
    }

    fn restored_slot(&mut self, sequence: SeqNum, view: View) -> &mut Slot {
        self.log.entry(sequence, view, Resend::overdue(&self.settings))
    }

    fn restore_message(&mut self, signed: Signed) {
        let own = signed.sender == self.me;
        let message = Verified::from_wal(signed);
        match message.content().clone() {
            Content::PrePrepare(PrePrepare { view, sequence, batch }) => {
                let slot = self.restored_slot(sequence, view);
                // At a backup it is agreed to by the PREPARE; without that it is judged anew.
                if own {
                    slot.phase = slot.phase.max(Phase::PrePrepared);
                    slot.sent.push(message.clone());
                }
                let digest = batch.digest();
                slot.proposal = Some(Proposal { message, batch, digest });
            }
            Content::Prepare(prepare) => {
                let slot = self.restored_slot(prepare.sequence, prepare.view);
                slot.phase = slot.phase.max(Phase::PrePrepared);
                slot.sent.push(message.clone());
                slot.prepares.insert(prepare.digest, message);
            }
            Content::Commit(commit) => {
                let slot = self.restored_slot(commit.sequence, commit.view);
                slot.phase = slot.phase.max(Phase::Prepared);
                slot.sent.push(message.clone());
                slot.commits.insert(commit.digest, message);
            }
            // They have entries of their own.
            Content::ViewChange(_) | Content::NewView(_) => {}
            // Whoever is still silent finds out anew what to wait for.
            Content::Recovery(_) => {}
            Content::Checkpoint(content) => {
                let made_block = self.checkpoints.uncertified.contains(&content.height);
                let resend = Resend::overdue(&self.settings);
                self.checkpoints.slot(content.sequence).own =
                    OwnCheckpoint::new(message.clone(), made_block, resend);
                self.checkpoints.insert(content, message);
            }
        }
    }

    /// Gives each agreed proposal its bodies, which were logged before it.
    fn restore_bodies(&mut self, bodies: &Bodies) -> Result<(), SetupError> {
        for (sequence, slot) in self.log.iter_mut() {
            let Some(proposal) = &slot.proposal else { continue };
            let requests: Option<Vec<_>> =
                proposal.batch.requests.iter().map(|digest| bodies.get(digest).cloned()).collect();
            match requests {
                Some(requests) => {
                    self.pool.order(sequence, &requests, Duration::ZERO);
                    slot.hold(requests);
                }
                // What is executed needs its bodies only for others.
                None if sequence <= self.executed.sequence || slot.phase == Phase::Waiting => {}
                None => return Err(SetupError::IncompleteLog(sequence)),
            }
        }
        Ok(())
    }

    /// Goes on with the slots that were agreed to before a crash, as soon as those below them are
    /// known again: they are neither judged nor proposed a second time.
    pub(super) fn resume(&mut self) {
        self.accepted = self.accepted.max(self.checkpoints.stable);
        let agreed = |slot: &&Slot| slot.phase >= Phase::PrePrepared;
        while let Some(slot) = self.log.get(self.accepted.next(), self.view).filter(agreed) {
            let timestamp = slot.proposal.as_ref().map(|proposal| proposal.batch.timestamp);
            self.last_timestamp = self.last_timestamp.max(timestamp.unwrap_or_default());
            self.accepted = self.accepted.next();
        }
        // What others executed without this replica needs no vote of it.
        if self.accepted >= self.views.carried_upto && self.accepted < self.executed.sequence {
            self.accepted = self.executed.sequence;
            self.resume();
        }
    }

    /// What the first step does: a crash may have cut off a vote, a CHECKPOINT of the state that
    /// the store had made durable by itself, or a certificate on its way to the store.
    pub(super) fn start(&mut self, now: Now, out: &mut Output) {
        if self.is_silent() {
            self.set_voice(Voice::Silent, out);
            out.notices.push(Notice::FellSilent);
        }
        self.note_start(now);
        self.views.entered_at = now.monotonic;
        let executed = self.executed;
        if executed.sequence > SeqNum(0) {
            let made_block = self.checkpoints.uncertified.contains(&executed.height);
            self.send_checkpoint(now, made_block, out);
            self.recheck(executed.sequence, out);
        }
        let certificates = self.checkpoints.certificates(self.executed.sequence).cloned();
        out.effects.extend(certificates.map(Effect::Certified));
        let slots: Vec<SeqNum> = self.log.iter().map(|(sequence, _)| sequence).collect();
        for sequence in slots {
            self.try_commit(now, sequence, out);
        }
    }

    fn restore_watermarks(&mut self) {
        let executed = self.executed.sequence;
        for (sequence, slot) in self.log.iter().filter(|(sequence, _)| *sequence <= executed) {
            self.pool.executed(sequence, &slot.requests, Duration::ZERO);
        }
        let certified = self.checkpoints.certificates(executed).last();
        self.cut(certified.map_or(SeqNum(0), |certificate| certificate.content.sequence));
    }
}
