//! The primary's proposals: batched, pipelined between the watermarks (1999, sections 4.2, 5.1.4).

use std::sync::Arc;
use std::time::Duration;

use crate::ledger::VerifiedRequest;
use crate::pbft::io::{Effect, Now, Output};
use crate::pbft::log::{Phase, Proposal};
use crate::pbft::message::{Batch, Content, PrePrepare, Verified};
use crate::pbft::replica::Replica;
use crate::pbft::resend::Resend;
use crate::pbft::wal::WalEntry;
use crate::types::Timestamp;

impl Replica {
    /// Proposes batches while there are any that are full or have waited long enough.
    pub(super) fn try_propose(&mut self, now: Now, out: &mut Output) {
        while self.proposal_due().is_some_and(|due| due <= now.monotonic) {
            if !self.propose(now, out) {
                break;
            }
        }
        self.try_propose_null(now, out);
    }

    /// When the next proposal is due, if there can be one.
    pub(super) fn proposal_due(&self) -> Option<Duration> {
        let oldest = self.pool.oldest()?;
        if !self.may_propose() {
            return None;
        }
        // What is on its way is voted for again if the view changes, and each number costs 3n messages
        // however small its batch is: more of them at once only make each other late.
        let on_their_way = self.accepted.0.saturating_sub(self.executed.sequence.0);
        if on_their_way >= self.settings.in_flight_batches {
            return None;
        }
        let (count, bytes) = self.pool.pending();
        let full = count >= self.settings.batch_max_requests || bytes >= self.settings.batch_max_bytes;
        if full {
            return Some(Duration::ZERO);
        }
        // While enough batches are on their way, requests gather: each batch costs the same votes,
        // signatures and syncs, however few requests it has, so under load they grow by themselves.
        let wait = on_their_way >= self.settings.pipeline_batches;
        (!wait).then(|| oldest + self.settings.batch_delay)
    }

    pub(super) fn may_propose(&self) -> bool {
        self.is_primary()
            && !self.is_changing()
            && !self.is_silent()
            // What the view carries over is agreed to first, and what came before it is known.
            && self.accepted >= self.views.carried_upto
            && self.executed.sequence >= self.views.base
            && self.accepted < self.high_watermark()
            && self.accepted >= self.restored_upto
            // Others have executed what this primary does not know: it first catches up.
            && self.accepted >= self.checkpoints.known(&self.settings.replicas)
            && self.log.bytes() < self.settings.inflight_max_bytes
    }

    fn propose(&mut self, now: Now, out: &mut Output) -> bool {
        let settings = &self.settings;
        let requests = self.pool.next_batch(settings.batch_max_requests, settings.batch_max_bytes);
        if requests.is_empty() {
            return false;
        }
        let unsent = self.outbox.take(&requests);
        if !unsent.is_empty() {
            out.effects.push(Effect::SendRequests { requests: unsent });
        }
        let batch = Batch {
            requests: requests.iter().map(|request| request.digest()).collect(),
            timestamp: Timestamp(now.wall.0.max(self.last_timestamp.0 + 1)),
            origin_view: self.view,
            proposer: self.me,
        };
        self.propose_batch(now, batch, requests, out);
        true
    }

    pub(super) fn propose_batch(
        &mut self,
        now: Now,
        batch: Batch,
        requests: Vec<Arc<VerifiedRequest>>,
        out: &mut Output,
    ) {
        let (settings, view, sequence) = (&self.settings, self.view, self.accepted.next());
        let digest = batch.digest();
        let content = Content::PrePrepare(PrePrepare { view, sequence, batch: batch.clone() });
        let message = Verified::sign(&settings.key, &settings.network, content);
        let body = |request: &Arc<_>| WalEntry::Body { sequence, request: Arc::clone(request) };
        out.wal.extend(requests.iter().map(body));
        out.wal.push(WalEntry::Sent(message.signed().clone()));

        self.accepted = sequence;
        self.last_timestamp = self.last_timestamp.max(batch.timestamp);
        self.pool.order(sequence, &requests, now.monotonic);
        let resend = Resend::started(now.monotonic, settings);
        let slot = self.log.entry(sequence, view, resend);
        slot.resend = resend;
        slot.phase = Phase::PrePrepared;
        slot.proposal = Some(Proposal { message: message.clone(), batch, digest });
        slot.hold(requests);
        slot.sent.push(message.clone());
        self.broadcast(&message, out);
        self.try_commit(now, sequence, out);
    }
}
