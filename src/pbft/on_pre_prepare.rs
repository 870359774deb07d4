//! PRE-PREPARE at a backup (1999, section 4.2): taken into its slot at once, judged in order of
//! sequence numbers, agreed to when its bodies are here.
//!
//! Whatever is refused at once needs no state, so all correct replicas refuse the same. What
//! depends on this replica (its clock, the bodies, room) only delays its vote.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::ledger::VerifiedRequest;
use crate::pbft::evidence::Evidence;
use crate::pbft::io::{Effect, Now, Output, Rejected};
use crate::pbft::log::{Phase, Proposal};
use crate::pbft::message::{Batch, Content, Prepare, Verified};
use crate::pbft::notice::Suspicion;
use crate::pbft::replica::Replica;
use crate::pbft::resend::Resend;
use crate::pbft::settings::{MAX_BATCH_BYTES, MAX_BATCH_REQUESTS, MAX_CLOCK_AHEAD};
use crate::pbft::wal::WalEntry;
use crate::types::{Hash, SeqNum, Timestamp};

enum Judgement {
    Agreed(Vec<Arc<VerifiedRequest>>),
    Refused(&'static str),
    NotYet,
}

impl Replica {
    pub(super) fn on_pre_prepare(
        &mut self,
        now: Now,
        message: Verified,
        out: &mut Output,
    ) -> Result<(), Rejected> {
        let Content::PrePrepare(pre_prepare) = message.content() else { return Ok(()) };
        let (view, sequence) = (pre_prepare.view, pre_prepare.sequence);
        if let Err(why) = self.check_slot(now, message.sender(), view, sequence) {
            self.answer_old_primary(now, message.sender(), view, sequence, out);
            return Err(why);
        }
        if message.sender() != self.primary() {
            return Err(Rejected::NotPrimary);
        }
        let batch = pre_prepare.batch.clone();
        if self.is_changing() {
            // Whether it is fresh or carried over is known only with the NEW-VIEW.
            return Err(Rejected::OtherView { view });
        }
        if sequence <= self.views.carried_upto {
            return self.on_carried(now, sequence, &message, &batch, out);
        }
        let digest = batch.digest();
        // Whatever the second one proposes, signing it is the fault.
        if let Some(why) = self.compare_proposals(now, sequence, digest, &message, out) {
            return Err(why);
        }
        if batch != Batch::null() {
            if batch.origin_view != view || batch.proposer != message.sender() {
                return Err(Rejected::InvalidBatch("a fresh batch names its own view and proposer"));
            }
            check_batch(&batch)?;
        }
        let slot = self.log.entry(sequence, view, Resend::started(now.monotonic, &self.settings));
        slot.missing =
            batch.requests.iter().filter(|digest| self.pool.get(digest).is_none()).copied().collect();
        slot.fetch_at = now.monotonic + self.settings.fetch_delay;
        slot.proposal = Some(Proposal { message, batch, digest });
        Ok(())
    }

    /// A second proposal for a number is the first one again, or exposes the primary.
    fn compare_proposals(
        &mut self,
        now: Now,
        sequence: SeqNum,
        digest: Hash,
        second: &Verified,
        out: &mut Output,
    ) -> Option<Rejected> {
        let slot = self.log.get_mut(sequence, self.view)?;
        let first = slot.proposal.as_ref()?;
        if first.digest == digest {
            return Some(Rejected::Duplicate);
        }
        let first = first.message.clone();
        if !std::mem::replace(&mut slot.contradicted, true) {
            self.expose(now, &first, second, out);
        }
        Some(Rejected::Equivocation)
    }

    /// A PRE-PREPARE for a number that the NEW-VIEW carries over brings its batch, and nothing else.
    fn on_carried(
        &mut self,
        now: Now,
        sequence: SeqNum,
        message: &Verified,
        batch: &Batch,
        out: &mut Output,
    ) -> Result<(), Rejected> {
        let Some(slot) = self.log.get_mut(sequence, self.view) else { return Err(Rejected::Duplicate) };
        let fits = slot.carried.as_ref().is_some_and(|(carried, _)| carried.digest == batch.digest());
        if fits && slot.proposal.is_none() {
            return self.on_batch(batch);
        }
        if fits {
            return Err(Rejected::Duplicate);
        }
        let told = std::mem::replace(&mut slot.contradicted, true);
        let first = self.views.entered.as_ref().map(|entered| entered.new_view.clone());
        if let Some(first) = first.filter(|_| !told) {
            self.expose(now, &first, message, out);
        }
        Err(Rejected::ContradictsNewView)
    }

    /// The primary signed two proposals for one number: all shall see both, and it is given up.
    fn expose(&mut self, now: Now, first: &Verified, second: &Verified, out: &mut Output) {
        let evidence = Evidence::contradiction(first.signed(), second.signed());
        out.effects.push(Effect::Evidence(Box::new(evidence)));
        for message in [first, second] {
            self.repeat(now, message, out);
        }
        self.suspect(now, Suspicion::Equivocation, out);
    }

    /// Judges the proposals that are next in order, as far as they can be judged.
    pub(super) fn try_accept(&mut self, now: Now, out: &mut Output) {
        if self.is_changing() || self.is_silent() {
            return;
        }
        loop {
            self.resume();
            // The primary agrees only to what its view carries over: the rest it proposes.
            if self.is_primary() && self.accepted >= self.views.carried_upto {
                break;
            }
            let sequence = self.accepted.next();
            match self.judge(now, sequence) {
                Judgement::Agreed(requests) => self.accept(now, sequence, requests, out),
                Judgement::Refused(why) => {
                    out.rejected.get_or_insert(Rejected::InvalidBatch(why));
                    break;
                }
                Judgement::NotYet => break,
            }
        }
    }

    fn judge(&mut self, now: Now, sequence: SeqNum) -> Judgement {
        let inflight = self.log.bytes();
        let weak_quorum = self.settings.replicas.weak_quorum();
        let Some(slot) = self.log.get_mut(sequence, self.view) else { return Judgement::NotYet };
        let Some(proposal) = &slot.proposal else { return Judgement::NotYet };
        let past = self.archive.get(sequence, proposal.digest);
        if let Some(past) = past.filter(|past| past.requests.len() == proposal.batch.requests.len()) {
            return Judgement::Agreed(past.requests.clone());
        }
        // One correct replica saw it prepared: so a quorum has judged it already.
        // Likewise what the view carries over (1999, section 4.4).
        let settled = slot.carried.is_some() || slot.matching(&slot.commits) >= weak_quorum;
        let null = proposal.batch == Batch::null();
        slot.refused &= !settled;
        if slot.refused {
            return Judgement::NotYet;
        }
        if !settled && !null && proposal.batch.timestamp <= self.last_timestamp {
            slot.refused = true;
            return Judgement::Refused("the timestamp is not above the previous one");
        }
        let pace = self.recovering.null_pace(now.monotonic).filter(|_| null);
        let wait = wait_for_clock(now, proposal.batch.timestamp).or(pace);
        slot.judge_at = wait.filter(|_| !settled);
        let full = inflight >= self.settings.inflight_max_bytes && slot.carried.is_none();
        if slot.judge_at.is_some() || full {
            return Judgement::NotYet;
        }
        // This is asked at every step: one that brought nothing of what is missing costs no look at the rest.
        slot.missing.retain(|digest| self.pool.get(digest).is_none());
        if !slot.missing.is_empty() {
            return Judgement::NotYet;
        }
        let found = |digest| self.pool.get(digest).cloned().ok_or(*digest);
        let (mut requests, mut missing) = (Vec::new(), BTreeSet::new());
        for digest in &proposal.batch.requests {
            match found(digest) {
                Ok(request) => requests.push(request),
                Err(digest) => drop(missing.insert(digest)),
            }
        }
        slot.missing = missing;
        if !slot.missing.is_empty() {
            return Judgement::NotYet;
        }
        let bytes: usize = requests.iter().map(|request| request.bytes().len()).sum();
        if bytes > MAX_BATCH_BYTES && slot.carried.is_none() {
            slot.refused = true;
            return Judgement::Refused("the requests have too many bytes");
        }
        Judgement::Agreed(requests)
    }

    fn accept(&mut self, now: Now, sequence: SeqNum, requests: Vec<Arc<VerifiedRequest>>, out: &mut Output) {
        let leads = self.is_primary();
        let Some(slot) = self.log.get_mut(sequence, self.view) else { return };
        let Some(proposal) = slot.proposal.clone() else { return };
        // The bodies are promised by the vote, so they are on disk before it; those that an earlier
        // vote for this number promised are there.
        if self.archive.get(sequence, proposal.digest).is_none() {
            let body = |request: &Arc<_>| WalEntry::Body { sequence, request: Arc::clone(request) };
            out.wal.extend(requests.iter().map(body));
        }
        let vote = if leads {
            proposal.message.clone()
        } else {
            out.wal.push(WalEntry::Accepted(proposal.message.signed().clone()));
            let content = Content::Prepare(Prepare { view: self.view, sequence, digest: proposal.digest });
            let prepare = Verified::sign(&self.settings.key, &self.settings.network, content);
            slot.prepares.insert(proposal.digest, prepare.clone());
            prepare
        };
        out.wal.push(WalEntry::Sent(vote.signed().clone()));
        slot.phase = Phase::PrePrepared;
        slot.judge_at = None;
        slot.missing.clear();
        slot.sent.push(vote.clone());
        slot.resend.restart(now.monotonic, &self.settings);
        self.pool.order(sequence, &requests, now.monotonic);
        if requests.is_empty() && slot.carried.is_none() {
            self.recovering.null_at(now.monotonic);
        }
        slot.hold(requests);
        self.accepted = sequence;
        self.last_timestamp = self.last_timestamp.max(proposal.batch.timestamp);
        // The PRE-PREPAREs of a new view went out with its NEW-VIEW; who lacks a batch gets it with
        // the repetition.
        if !leads {
            self.broadcast(&vote, out);
        }
        self.try_commit(now, sequence, out);
    }
}

fn check_batch(batch: &Batch) -> Result<(), Rejected> {
    if batch.requests.is_empty() {
        return Err(Rejected::InvalidBatch("nothing to order"));
    }
    if batch.requests.len() > MAX_BATCH_REQUESTS {
        return Err(Rejected::InvalidBatch("too many requests"));
    }
    if batch.timestamp > Timestamp::MAX {
        return Err(Rejected::InvalidBatch("a timestamp that the protocol does not know"));
    }
    let distinct: BTreeSet<_> = batch.requests.iter().collect();
    if distinct.len() != batch.requests.len() {
        return Err(Rejected::InvalidBatch("a request twice"));
    }
    Ok(())
}

/// When the timestamp will be near enough, if it is not yet.
fn wait_for_clock(now: Now, timestamp: Timestamp) -> Option<Duration> {
    let ahead = Duration::from_millis(timestamp.since(now.wall));
    let wait = ahead.checked_sub(MAX_CLOCK_AHEAD).filter(|wait| !wait.is_zero())?;
    Some(now.monotonic.saturating_add(wait))
}
