//! NEW-VIEW (1999, section 4.4): made by the new primary, checked by everybody, entered.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::crypto::SignatureKind;
use crate::ledger::Certificate;
use crate::pbft::certificates::{Carried, NewView, Plan, plan};
use crate::pbft::evidence::{Evidence, FaultKind};
use crate::pbft::io::{Effect, Now, Output, Rejected};
use crate::pbft::log::Proposal;
use crate::pbft::message::{Batch, Content, PrePrepare, Verified, proposal_bytes};
use crate::pbft::notice::{Notice, Suspicion};
use crate::pbft::replica::Replica;
use crate::pbft::resend::Resend;
use crate::pbft::views::{Entered, Heard, Offer, view_changes};
use crate::pbft::wal::WalEntry;
use crate::planted::{Bug, planted};
use crate::types::{Hash, NodeId, SeqNum, Signature, View};

impl Replica {
    pub(super) fn on_new_view(
        &mut self,
        now: Now,
        view: View,
        message: Verified,
        out: &mut Output,
    ) -> Result<(), Rejected> {
        let sender = message.sender();
        if view < self.view || view == self.view && !self.is_changing() {
            let entered = self.views.entered.as_ref().map(|entered| entered.new_view.clone());
            return Err(self.compare_new_views(entered, view, &message, out));
        }
        let earlier = self.views.offers.get(&sender).map(|offer| offer.message.clone());
        match earlier.as_ref().and_then(|earlier| earlier.content().view()) {
            Some(offered) if offered > view => return Err(Rejected::OtherView { view: offered }),
            Some(offered) if offered == view => {
                return Err(self.compare_new_views(earlier, view, &message, out));
            }
            _ => {}
        }
        let mut offer = Offer { message, view_changes: BTreeMap::new() };
        let replicas = &self.settings.replicas;
        for node in replicas.members() {
            if let Some(heard) = self.views.heard(node) {
                offer.take(heard, replicas);
            }
        }
        self.views.offers.insert(sender, offer);
        self.views.fetch_at.get_or_insert(now.monotonic + self.settings.fetch_delay);
        self.try_enter_offered(now, out);
        Ok(())
    }

    /// Two different NEW-VIEWs of one primary for one view prove that it is faulty.
    fn compare_new_views(
        &mut self,
        first: Option<Verified>,
        view: View,
        second: &Verified,
        out: &mut Output,
    ) -> Rejected {
        let Some(first) = first.filter(|first| first.content().view() == Some(view)) else {
            return Rejected::OtherView { view: self.view };
        };
        if first.content() == second.content() {
            return Rejected::Duplicate;
        }
        if self.views.expose(second.sender(), FaultKind::NewView, view) {
            let evidence = Evidence::contradiction(first.signed(), second.signed());
            out.effects.push(Effect::Evidence(Box::new(evidence)));
        }
        Rejected::Equivocation
    }

    /// Enters the highest view whose NEW-VIEW is here with all that it names, if it is right.
    pub(super) fn try_enter_offered(&mut self, now: Now, out: &mut Output) {
        // Of a view that was given up since it was offered, nothing is signed any more.
        let least = self.view;
        let complete = |(sender, offer): (&NodeId, &Offer)| {
            let view = offer.new_view().filter(|_| offer.is_complete())?.view;
            (view >= least).then_some((view, *sender))
        };
        let Some((view, sender)) = self.views.offers.iter().filter_map(complete).max() else { return };
        let Some(offer) = self.views.offers.remove(&sender) else { return };
        let messages: Vec<Verified> = offer.view_changes.values().cloned().collect();
        let Some(new_view) = offer.new_view().cloned() else { return };
        let right = messages.iter().all(|message| message.content().view() == Some(view));
        let mut plan = plan(view_changes(messages.iter()), &self.settings.replicas);
        if planted(Bug::ONotRecomputed) {
            plan = new_view.believed();
        }
        if right && new_view.follows(&plan) {
            self.enter(now, offer.message, messages, plan, out);
            return;
        }
        out.rejected.get_or_insert(Rejected::BadNewView);
        if self.views.expose(sender, FaultKind::FalseNewView, view) {
            let view_changes = messages.iter().map(|message| message.signed().clone()).collect();
            let evidence = Evidence::false_new_view(offer.message.signed(), view_changes);
            out.effects.push(Effect::Evidence(Box::new(evidence)));
        }
        // Its primary is proven faulty: there is nothing to wait for in that view.
        if view == self.view && self.is_changing() {
            self.views.failed();
            self.start_view_change(now, view.next(), Suspicion::BadNewView, out);
        }
    }

    /// The primary of the view to come makes its NEW-VIEW, once it has a quorum.
    pub(super) fn try_new_view(&mut self, now: Now, out: &mut Output) {
        let quorum = self.settings.replicas.quorum();
        if !self.is_primary() || !self.is_changing() || self.may_have_begun_views() {
            return;
        }
        let view = self.view;
        let chosen: Vec<Heard> = self.views.for_view(view).take(quorum).cloned().collect();
        if chosen.len() < quorum {
            return;
        }
        let messages: Vec<Verified> = chosen.iter().map(|heard| heard.message.clone()).collect();
        let plan = plan(view_changes(messages.iter()), &self.settings.replicas);
        let number = |heard: &Heard| {
            let index = self.settings.replicas.index_of(&heard.message.sender())?;
            Some((u16::try_from(index).ok()?, heard.digest))
        };
        let sequences = (plan.stable.0 + 1..).map(SeqNum);
        let proposals = sequences.zip(&plan.carried).map(|(sequence, carried)| {
            let bytes = proposal_bytes(view, sequence, carried.digest);
            let (key, network) = (&self.settings.key, &self.settings.network);
            (carried.digest, key.sign(SignatureKind::PrePrepare, network, &bytes))
        });
        let content = Content::NewView(NewView {
            view,
            stable: plan.stable,
            view_changes: chosen.iter().filter_map(number).collect(),
            proposals: proposals.collect(),
        });
        let message = Verified::sign(&self.settings.key, &self.settings.network, content);
        self.enter(now, message.clone(), messages, plan, out);
        self.broadcast(&message, out);
    }

    /// The view begins here, from its log entry on.
    fn enter(
        &mut self,
        now: Now,
        new_view: Verified,
        view_changes: Vec<Verified>,
        plan: Plan,
        out: &mut Output,
    ) {
        let Some(view) = new_view.content().view() else { return };
        out.wal.push(WalEntry::NewView {
            new_view: new_view.signed().clone(),
            view_changes: view_changes.iter().map(|message| message.signed().clone()).collect(),
        });
        self.view = view;
        self.leave_views(now.monotonic, view);
        self.views.forget_below(view);
        let left = self.views.changing.take();
        self.witness = None;
        let took = left.map(|changing| now.monotonic.saturating_sub(changing.since));
        let (primary, carried) = (new_view.sender(), plan.carried.len());
        out.notices.push(Notice::ViewBegan { view, primary, took, carried });
        self.views.entered_at = now.monotonic;
        self.views.executed_here = 0;
        let resend = Resend::started(now.monotonic, &self.settings);
        self.install(Entered { new_view, view_changes, resend }, plan);
        self.wait_anew(now);
        let certificates: Vec<Certificate> = self.checkpoints_proven();
        for certificate in certificates {
            self.learn_certificate(certificate, out);
        }
    }

    /// Puts what the NEW-VIEW carries over into its slots.
    pub(super) fn install(&mut self, entered: Entered, plan: Plan) {
        let Content::NewView(new_view) = entered.new_view.content().clone() else { return };
        let resend = entered.resend;
        let (view, primary) = (new_view.view, entered.new_view.sender());
        self.views.entered = Some(entered);
        self.views.base = plan.stable;
        self.views.carried_upto = SeqNum(plan.stable.0 + plan.carried.len() as u64);
        self.accepted = plan.stable.max(self.checkpoints.stable);
        self.last_timestamp = self.executed_timestamp;
        self.restored_upto = SeqNum(0);
        for ((sequence, (_, signature)), carried) in new_view.numbered().zip(plan.carried) {
            if sequence <= self.checkpoints.stable {
                continue;
            }
            let slot = self.log.entry(sequence, view, resend);
            // Of a fresh proposal that came before, nothing is left if it contradicts.
            slot.proposal.take_if(|proposal| proposal.digest != carried.digest);
            slot.fetch_at = Duration::ZERO;
            slot.carried = Some((carried.clone(), *signature));
            self.fill(sequence, view, primary, &carried, *signature);
        }
    }

    /// Gives a slot the batch that is carried over, if it is known here.
    fn fill(
        &mut self,
        sequence: SeqNum,
        view: View,
        primary: NodeId,
        carried: &Carried,
        signature: Signature,
    ) {
        let digest = carried.digest;
        let known = self.archive.get(sequence, digest).map(|past| past.batch.clone());
        let Some(batch) = known.or_else(|| Some(Batch::null()).filter(|null| null.digest() == digest)) else {
            return;
        };
        self.propose_carried(sequence, view, primary, batch, signature);
    }

    fn propose_carried(
        &mut self,
        sequence: SeqNum,
        view: View,
        primary: NodeId,
        batch: Batch,
        signature: Signature,
    ) {
        let Some(slot) = self.log.get_mut(sequence, view) else { return };
        if slot.proposal.is_some() {
            return;
        }
        let digest = batch.digest();
        let content = PrePrepare { view, sequence, batch: batch.clone() };
        let message = Verified::carried(primary, content, signature);
        slot.missing = batch.requests.iter().copied().collect();
        slot.proposal = Some(Proposal { message, batch, digest });
    }

    /// A batch came that was asked for.
    pub(super) fn on_batch(&mut self, batch: &Batch) -> Result<(), Rejected> {
        let digest = batch.digest();
        let (view, primary) = (self.view, self.primary());
        let lacking: Vec<(SeqNum, Signature)> = self.lacking(digest).collect();
        if lacking.is_empty() {
            return Err(Rejected::NotWanted);
        }
        for (sequence, signature) in lacking {
            self.propose_carried(sequence, view, primary, batch.clone(), signature);
        }
        Ok(())
    }

    fn lacking(&self, digest: Hash) -> impl Iterator<Item = (SeqNum, Signature)> {
        self.log.iter().filter_map(move |(sequence, slot)| {
            let (carried, signature) = slot.carried.as_ref().filter(|_| slot.proposal.is_none())?;
            (carried.digest == digest).then_some((sequence, *signature))
        })
    }

    /// The checkpoints that the VIEW-CHANGEs of this view prove.
    pub(super) fn checkpoints_proven(&self) -> Vec<Certificate> {
        let entered = self.views.entered.iter();
        let messages = entered.flat_map(|entered| &entered.view_changes);
        view_changes(messages).filter_map(|view_change| view_change.checkpoint.clone()).collect()
    }
}
