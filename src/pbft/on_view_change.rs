//! VIEW-CHANGE (1999, section 4.4): giving a view up, and what others' giving up means.

use std::time::Duration;

use crate::ledger::Certificate;
use crate::pbft::certificates::ViewChange;
use crate::pbft::io::{Now, Output, Rejected};
use crate::pbft::log::{Phase, Slot};
use crate::pbft::message::{Content, Verified};
use crate::pbft::notice::{Notice, Suspicion};
use crate::pbft::replica::Replica;
use crate::pbft::resend::Resend;
use crate::pbft::views::{Changing, Heard};
use crate::pbft::wal::WalEntry;
use crate::pbft::witness::Witness;
use crate::planted::{Bug, planted};
use crate::types::{NodeId, SeqNum, View};

impl Replica {
    pub(super) fn on_view_change(
        &mut self,
        now: Now,
        view: View,
        message: Verified,
        out: &mut Output,
    ) -> Result<(), Rejected> {
        let Content::ViewChange(view_change) = message.content() else { return Ok(()) };
        let heard = Heard { digest: view_change.digest(), message: message.clone() };
        if let Some(certificate) = view_change.checkpoint.clone() {
            self.learn_certificate(certificate, out);
        }
        let useful = self.views.complete_offers(&heard, &self.settings.replicas);
        if view <= self.view && !self.is_changing() {
            self.answer_straggler(now, view, out);
            return if useful { Ok(()) } else { Err(Rejected::OtherView { view: self.view }) };
        }
        let higher = self.views.hear(message, view, heard.digest);
        self.try_change(now, out);
        if useful || higher { Ok(()) } else { Err(Rejected::Duplicate) }
    }

    /// What follows from the VIEW-CHANGEs that are here.
    pub(super) fn try_change(&mut self, now: Now, out: &mut Output) {
        self.try_enter_offered(now, out);
        let joinable = self.views.joinable(self.joined_by());
        if let Some(view) = joinable.filter(|view| *view > self.view) {
            self.start_view_change(now, view, Suspicion::Joined, out);
            return;
        }
        let supported = self.views.supporters(self.view) >= self.settings.replicas.quorum();
        let timeout = self.view_timeout();
        if let Some(changing) = &mut self.views.changing
            && supported
        {
            changing.deadline.get_or_insert(now.monotonic + timeout);
            self.try_new_view(now, out);
        }
    }

    /// How many others make this replica join them: one of them is correct.
    fn joined_by(&self) -> usize {
        if planted(Bug::JoinOnOneWord) { 1 } else { self.settings.replicas.weak_quorum() }
    }

    /// Gives up all views below `view`: logs and sends VIEW-CHANGE. From here on, this replica
    /// signs nothing for an earlier view.
    pub(super) fn start_view_change(&mut self, now: Now, view: View, reason: Suspicion, out: &mut Output) {
        if view <= self.view || self.is_silent() {
            return;
        }
        let (from, old_primary) = (self.view, self.primary());
        out.notices.push(Notice::ViewChangeBegan { reason, from, old_primary, to: view });
        if !self.is_changing() {
            self.witness = Some(Witness::of(&self.log, self.view, self.dispatched));
        }
        self.view = view;
        self.leave_views(now.monotonic, view);
        let checkpoint = self.proven_checkpoint();
        let low = checkpoint.as_ref().map_or(SeqNum(0), |certificate| certificate.content.sequence);
        let view_change = ViewChange { view, checkpoint, prepared: self.archive.prepared(low) };
        let digest = view_change.digest();
        let content = Content::ViewChange(view_change);
        let message = Verified::sign(&self.settings.key, &self.settings.network, content);
        out.wal.push(WalEntry::ViewChange(message.signed().clone()));
        self.broadcast(&message, out);
        let resend = Resend::started(now.monotonic, &self.settings);
        let since = self.views.changing.as_ref().map_or(now.monotonic, |changing| changing.since);
        let message_kept = message.clone();
        self.views.changing = Some(Changing { message: message_kept, resend, deadline: None, since, reason });
        self.views.hear(message, view, digest);
        self.try_change(now, out);
    }

    /// C: the highest checkpoint that is proven here. That is the own stable one, or min-s of the
    /// view, if this replica has not executed up to there: what was prepared below is part of it.
    fn proven_checkpoint(&self) -> Option<Certificate> {
        let stable = self.checkpoints.get(self.checkpoints.stable);
        let own = stable.and_then(|slot| slot.certificate.clone());
        own.into_iter()
            .chain(self.checkpoints_proven())
            .max_by_key(|certificate| certificate.content.sequence)
    }

    /// Ends the views below `view`: what they promise goes to the archive, and requests that were
    /// ordered but not committed wait again, in their old place. What others forwarded to the primary of
    /// an earlier view is for that of this one now.
    pub(super) fn leave_views(&mut self, time: Duration, view: View) {
        for (sequence, slot) in self.log.leave(view) {
            if slot.phase != Phase::Committed && sequence > self.dispatched {
                self.pool.reopen(sequence, &slot.requests);
                self.bundle_again(time, &slot);
            }
            self.archive.absorb(sequence, slot);
        }
        if !self.is_primary() {
            self.pool.drop_forwarded();
        }
    }

    /// Own requests that this replica proposed itself, maybe before they were in any bundle: nobody
    /// else need have them.
    fn bundle_again(&mut self, time: Duration, slot: &Slot) {
        let proposer = slot.proposal.as_ref().map(|proposal| proposal.message.sender());
        if proposer != Some(self.me) {
            return;
        }
        for request in slot.requests.iter().filter(|request| request.node() == self.me) {
            if self.pool.is_pending(&request.digest()) {
                self.outbox.push(request.digest(), time, &self.settings);
            }
        }
    }

    /// Somebody proposes in a view that is over: it does not know that it is no longer the primary, and
    /// nobody would tell it, since nothing happens if nobody else is asked for anything. What it has
    /// executed since it can have proposed only earlier: somebody repeats that.
    pub(super) fn answer_old_primary(
        &mut self,
        now: Now,
        sender: NodeId,
        view: View,
        sequence: SeqNum,
        out: &mut Output,
    ) {
        let ended = view < self.view && !self.is_changing();
        let proposes = sender == self.settings.replicas.primary(view);
        let later = self.checkpoints.claim_of(&sender).is_some_and(|claim| claim.sequence >= sequence);
        if ended && proposes && !later {
            self.answer_straggler(now, view, out);
        }
    }

    /// Somebody still wants a view that has begun here: it may lack the NEW-VIEW.
    fn answer_straggler(&mut self, now: Now, view: View, out: &mut Output) {
        let Some(entered) = self.views.entered.as_ref().filter(|_| view <= self.view) else { return };
        let pause = self.settings.resend_initial;
        if self.views.answered.is_some_and(|answered| now.monotonic < answered + pause) {
            return;
        }
        let messages: Vec<Verified> =
            entered.view_changes.iter().chain([&entered.new_view]).cloned().collect();
        self.views.answered = Some(now.monotonic);
        // The primary answers with all of it; of the others the NEW-VIEW is enough, from which the
        // straggler learns whom to ask for the rest.
        let from = if self.is_primary() { 0 } else { messages.len() - 1 };
        for message in &messages[from..] {
            self.repeat(now, message, out);
        }
    }
}
