//! CHECKPOINT (1999, section 4.3): certificates, the low watermark, and the cutting of the log.

use crate::ledger::{Certificate, CheckpointContent};
use crate::pbft::checkpoints::{Inserted, OwnCheckpoint};
use crate::pbft::evidence::Evidence;
use crate::pbft::io::{Effect, Now, Output, Rejected};
use crate::pbft::message::{Content, Verified};
use crate::pbft::replica::Replica;
use crate::pbft::resend::Resend;
use crate::pbft::wal::WalEntry;
use crate::types::{Hash, SeqNum, Timestamp};

impl Replica {
    pub(super) fn on_checkpoint(
        &mut self,
        now: Now,
        content: CheckpointContent,
        message: Verified,
        out: &mut Output,
    ) -> Result<(), Rejected> {
        self.checkpoints.claim(message.sender(), content, &self.executed);
        self.answer(now, content.sequence, out);
        if content.sequence <= self.checkpoints.low() {
            return Err(Rejected::BelowWatermark { low: self.checkpoints.low() });
        }
        // What was passed over without blocks may lie above a watermark that has not followed yet:
        // it follows by these very CHECKPOINTs.
        let high = self.high_watermark().max(self.executed.sequence);
        if content.sequence > high {
            return Err(Rejected::AboveWatermark { high });
        }
        let second = message.signed().clone();
        let replicas = &self.settings.replicas;
        let certified = self.checkpoints.contradicts_certificate(&content, message.sender(), replicas);
        if let Some(first) = certified {
            out.effects.push(Effect::Evidence(Box::new(Evidence::contradiction(&first, &second))));
            return Err(Rejected::Equivocation);
        }
        match self.checkpoints.insert(content, message) {
            Inserted::New => self.try_certify(content.sequence, out),
            Inserted::Known(why) => return Err(why),
            Inserted::Contradicts(first) => {
                out.effects.push(Effect::Evidence(Box::new(Evidence::contradiction(&first, &second))));
                return Err(Rejected::Equivocation);
            }
        }
        Ok(())
    }

    /// Another replica still repeats its CHECKPOINT for a number that is certified here: it may
    /// lack this replica's. The last one is repeated anyway. Who is below the watermark may lack that
    /// of the watermark, too: if no block lies in between, there is nothing else that tells it to pass on.
    fn answer(&mut self, now: Now, sequence: SeqNum, out: &mut Output) {
        if sequence >= self.executed.sequence {
            return;
        }
        let stable = self.checkpoints.stable;
        if sequence < stable && stable < self.executed.sequence {
            self.answer_with(now, stable, out);
        }
        if sequence > self.checkpoints.low() {
            self.answer_with(now, sequence, out);
        }
    }

    fn answer_with(&mut self, now: Now, sequence: SeqNum, out: &mut Output) {
        let slot = self.checkpoints.slot(sequence);
        let Some(own) = slot.own.as_mut().filter(|_| slot.certificate.is_some()) else { return };
        // A CHECKPOINT that just comes a little later than those of a quorum needs no answer.
        let pause = self.settings.resend_initial;
        if now.monotonic < own.answered.map_or(own.resend.next, |answered| answered + pause) {
            return;
        }
        own.answered = Some(now.monotonic);
        let message = own.message.clone();
        self.repeat(now, &message, out);
    }

    /// The state moved to `content` by execution: says so.
    pub(super) fn on_executed(
        &mut self,
        now: Now,
        content: CheckpointContent,
        out: &mut Output,
    ) -> Result<(), Rejected> {
        let expected = self.executed.sequence.next();
        if content.sequence != expected || expected > self.dispatched {
            return Err(Rejected::OutOfOrder { expected });
        }
        let made_block = content.height != self.executed.height;
        self.executed = content;
        self.moved_on(now, false);
        self.views.executed();
        self.send_checkpoint(now, made_block, out);
        self.recheck(content.sequence, out);
        Ok(())
    }

    /// The state jumped to that of a certificate (1999, section 5.3).
    pub(super) fn on_blocks_synced(
        &mut self,
        now: Now,
        certificate: Certificate,
        timestamp: Timestamp,
        requests: &[Hash],
        out: &mut Output,
    ) -> Result<(), Rejected> {
        let content = certificate.content;
        if content.sequence <= self.executed.sequence {
            return Err(Rejected::OutOfOrder { expected: self.executed.sequence.next() });
        }
        self.pass_over(now, content);
        self.last_timestamp = self.last_timestamp.max(timestamp);
        self.executed_timestamp = self.executed_timestamp.max(timestamp);
        self.pool.written(content.sequence, requests, now.monotonic);
        self.pool.drop_pending_of_others(&self.me);
        self.send_checkpoint(now, true, out);
        self.certify(certificate, out);
        Ok(())
    }

    pub(super) fn on_certificate_fetched(
        &mut self,
        certificate: Certificate,
        out: &mut Output,
    ) -> Result<(), Rejected> {
        let sequence = certificate.content.sequence;
        self.checkpoints.close(certificate.content.height);
        let known = self.checkpoints.get(sequence).is_some_and(|slot| slot.certificate.is_some());
        if known || sequence > self.executed.sequence || sequence <= self.checkpoints.low() {
            return Err(Rejected::Duplicate);
        }
        self.certify(certificate, out);
        Ok(())
    }

    fn moved_on(&mut self, now: Now, by_blocks: bool) {
        let progress = &mut self.progress;
        (progress.last, progress.by_blocks) = (now.monotonic, by_blocks);
        (progress.blocks_asked, progress.block_fetches) = (None, 0);
        self.progressed(now);
    }

    /// The batches up to `content` need no execution here.
    pub(super) fn pass_over(&mut self, now: Now, content: CheckpointContent) {
        let dispatched = self.executed.sequence;
        self.executed = content;
        self.dispatched = self.dispatched.max(content.sequence);
        self.accepted = self.accepted.max(content.sequence);
        self.moved_on(now, true);
        let passed = self.log.above(dispatched).take_while(|(sequence, _)| *sequence <= content.sequence);
        let earlier = self.archive.iter().map(|(sequence, past)| (sequence, &past.requests));
        let earlier = earlier.filter(|(sequence, _)| *sequence > dispatched && *sequence <= content.sequence);
        for (sequence, requests) in passed.map(|(sequence, slot)| (sequence, &slot.requests)).chain(earlier) {
            let again = self.pool.release(sequence, requests, &self.me, now.monotonic);
            for digest in again {
                self.outbox.push(digest, now.monotonic, &self.settings);
            }
        }
    }

    /// Signs the CHECKPOINT of the state that is reached, or takes the one that was signed before
    /// a crash, and counts it.
    pub(super) fn send_checkpoint(&mut self, now: Now, made_block: bool, out: &mut Output) {
        let content = self.executed;
        let resend = Resend::started(now.monotonic, &self.settings);
        let slot = self.checkpoints.slot(content.sequence);
        let message = match &mut slot.own {
            Some(own) if own.content == content => {
                own.made_block = made_block;
                own.message.clone()
            }
            Some(own) => {
                out.effects.push(Effect::Diverged { own: content, other: own.content });
                return;
            }
            None => {
                let (key, network) = (&self.settings.key, &self.settings.network);
                let message = Verified::sign(key, network, Content::Checkpoint(content));
                out.wal.push(WalEntry::Sent(message.signed().clone()));
                slot.own = OwnCheckpoint::new(message.clone(), made_block, resend);
                self.progress.status_told = now.monotonic;
                self.broadcast(&message, out);
                message
            }
        };
        let _ = self.checkpoints.insert(content, message);
    }

    /// Votes or a certificate may have been here before the own result.
    pub(super) fn recheck(&mut self, sequence: SeqNum, out: &mut Output) {
        match self.checkpoints.get(sequence).and_then(|slot| slot.certificate.clone()) {
            Some(certificate) => self.certify(certificate, out),
            None => self.try_certify(sequence, out),
        }
    }

    fn try_certify(&mut self, sequence: SeqNum, out: &mut Output) {
        // Before the own result there is nothing to compare with; it will be looked at again then.
        if sequence > self.executed.sequence {
            return;
        }
        if let Some(certificate) = self.checkpoints.certificate(sequence, &self.settings.replicas) {
            self.certify(certificate, out);
        }
    }

    /// A certificate that came with another message, verified: what its signers have executed.
    pub(super) fn learn_certificate(&mut self, certificate: Certificate, out: &mut Output) {
        let content = certificate.content;
        for node in certificate.signers(&self.settings.replicas) {
            if node != self.me {
                self.checkpoints.claim(node, content, &self.executed);
            }
        }
        let known = self.checkpoints.get(content.sequence).is_some_and(|slot| slot.certificate.is_some());
        if known || content.sequence <= self.checkpoints.low() {
            return;
        }
        if content.sequence <= self.executed.sequence {
            self.certify(certificate, out);
        } else if content.sequence <= self.high_watermark() {
            self.checkpoints.certified(certificate);
        }
    }

    fn certify(&mut self, certificate: Certificate, out: &mut Output) {
        let content = certificate.content;
        let own = self.checkpoints.get(content.sequence).and_then(|slot| slot.own.as_ref());
        if let Some(own) = own.map(|own| own.content).filter(|own| *own != content) {
            out.effects.push(Effect::Diverged { own, other: content });
            return;
        }
        out.wal.push(WalEntry::Certified(certificate.clone()));
        out.effects.push(Effect::Certified(certificate.clone()));
        self.checkpoints.certified(certificate);
        if content.sequence > self.checkpoints.stable {
            self.cut(content.sequence);
        }
    }

    /// Moves the low watermark and drops what lies below it.
    pub(super) fn cut(&mut self, stable: SeqNum) {
        self.checkpoints.advance(stable);
        if let Some(witness) = &mut self.witness {
            witness.cut(stable);
        }
        self.accepted = self.accepted.max(stable);
        for (sequence, past) in self.archive.cut(stable) {
            self.pool.forget(sequence, &past.requests);
        }
        for (sequence, slot) in self.log.cut(stable) {
            self.pool.forget(sequence, &slot.requests);
        }
        self.pool.forget_executed(self.checkpoints.low());
    }
}
