//! What happens because time passed: repeating, fetching, catching up, forgetting.

use std::time::Duration;

use crate::pbft::io::{Effect, Now, Output};
use crate::pbft::log::{Phase, Slot};
use crate::pbft::on_request::FETCH_AHEAD;
use crate::pbft::replica::Replica;
use crate::types::NodeId;

/// Of how many slots, the lowest ones, the own messages are repeated: the others wait for these.
const REPEATED_SLOTS: usize = 32;

/// How often an own CHECKPOINT is repeated before the certificate is fetched instead.
const REPEATS_BEFORE_FETCH: u32 = 3;

/// The most certificates asked for at a time.
const CERTIFICATES_AT_A_TIME: usize = 64;

impl Replica {
    /// When to say [`crate::pbft::Input::Tick`] at the latest, in monotonic time. May be past.
    pub fn next_deadline(&self) -> Option<Duration> {
        if !self.started {
            return Some(Duration::ZERO);
        }
        let next_fetches = self.unjudged().flat_map(|slot| {
            let fetch = (!slot.missing.is_empty()).then_some(slot.fetch_at);
            [fetch, slot.judge_at].into_iter().flatten()
        });
        let alone = self.settings.replicas.n() == 1;
        let repeats = self.repeated_slots().chain(self.repeated_checkpoints()).filter(|_| !alone);
        [
            self.proposal_due(),
            self.next_bundle(),
            self.status_due(),
            self.blocks_due(),
            self.certificates_due(),
        ]
        .into_iter()
        .flatten()
        .chain([self.progress.expired + self.sweep_interval()])
        .chain(next_fetches)
        .chain(repeats)
        .min()
    }

    pub(super) fn on_time(&mut self, now: Now, out: &mut Output) {
        let time = now.monotonic;
        self.send_bundles(time, out);
        self.fetch_bodies(time, out);
        if self.settings.replicas.n() > 1 {
            self.repeat_votes(now, out);
            self.repeat_checkpoints(now, out);
            self.tell_status(now, out);
            self.catch_up(now, out);
            self.fetch_certificates(time, out);
        }
        if time >= self.progress.expired + self.sweep_interval() {
            self.progress.expired = time;
            self.pool.expire(time.saturating_sub(self.settings.request_expiry), &self.me);
            self.pool.forget_executed_before(time.saturating_sub(self.settings.request_memory));
        }
    }

    fn sweep_interval(&self) -> Duration {
        self.settings.request_expiry.min(self.settings.request_memory) / 4
    }

    fn next_bundle(&self) -> Option<Duration> {
        self.outbox.next_deadline().filter(|_| self.settings.replicas.n() > 1)
    }

    fn send_bundles(&mut self, time: Duration, out: &mut Output) {
        if self.next_bundle().is_some() {
            let bundles = self.outbox.bundles(time, &self.pool, &self.settings);
            out.effects.extend(bundles.into_iter().map(|requests| Effect::SendRequests { requests }));
        }
    }

    fn unjudged(&self) -> impl Iterator<Item = &Slot> {
        let last = self.accepted.0 + FETCH_AHEAD;
        let slots = self.log.above(self.accepted).take_while(move |(sequence, _)| sequence.0 <= last);
        slots.map(|(_, slot)| slot).filter(|slot| slot.phase == Phase::Waiting && !slot.refused)
    }

    /// Asks for the bodies that the next proposals lack: those who prepared have them.
    fn fetch_bodies(&mut self, time: Duration, out: &mut Output) {
        let last = self.accepted.0 + FETCH_AHEAD;
        let (me, primary) = (self.me, self.primary());
        for (sequence, slot) in self.log.above_mut(self.accepted) {
            let open = slot.phase == Phase::Waiting && !slot.refused && !slot.missing.is_empty();
            let Some(proposal) = slot.proposal.as_ref().filter(|_| open && sequence.0 <= last) else {
                continue;
            };
            if slot.fetch_at > time {
                continue;
            }
            let mut from: Vec<NodeId> = std::iter::once(primary)
                .chain(slot.prepares.voters(&proposal.digest).filter(|node| *node != me))
                .collect();
            let first = slot.fetches % from.len();
            from.rotate_left(first);
            slot.fetches += 1;
            slot.fetch_at = time + self.settings.fetch_interval;
            out.effects.push(Effect::FetchRequests { digests: slot.missing.iter().copied().collect(), from });
        }
    }

    fn repeated_slots(&self) -> impl Iterator<Item = Duration> {
        let slots = self.log.iter().take(REPEATED_SLOTS).map(|(_, slot)| slot);
        slots.filter(|slot| !slot.sent.is_empty()).map(|slot| slot.resend.next)
    }

    /// Repeats the own messages of the lowest slots until their checkpoint is stable: a vote that
    /// is sent once is lost once.
    fn repeat_votes(&mut self, now: Now, out: &mut Output) {
        let mut due = Vec::new();
        for (_, slot) in self.log.iter_mut().take(REPEATED_SLOTS) {
            if !slot.sent.is_empty() && slot.resend.next <= now.monotonic {
                slot.resend.again(now.monotonic, &self.settings);
                due.extend(slot.sent.iter().cloned());
            }
        }
        for message in due {
            self.repeat(now, &message, out);
        }
    }

    fn repeated_checkpoints(&self) -> impl Iterator<Item = Duration> {
        self.checkpoints.open().take(REPEATED_SLOTS).map(|(_, own)| own.resend.next)
    }

    fn repeat_checkpoints(&mut self, now: Now, out: &mut Output) {
        let mut due = Vec::new();
        for own in self.checkpoints.open_mut().take(REPEATED_SLOTS) {
            if own.resend.next <= now.monotonic {
                own.resend.again(now.monotonic, &self.settings);
                due.push(own.message.clone());
            }
        }
        for message in due {
            self.repeat(now, &message, out);
        }
    }

    fn status_due(&self) -> Option<Duration> {
        let own = self.checkpoints.get(self.executed.sequence).and_then(|slot| slot.own.as_ref());
        own.filter(|_| self.settings.replicas.n() > 1)?;
        Some(self.progress.status_told + self.settings.status_interval)
    }

    /// Repeats the last own CHECKPOINT now and then, so that who missed everything learns of it.
    fn tell_status(&mut self, now: Now, out: &mut Output) {
        if self.status_due().is_none_or(|due| due > now.monotonic) {
            return;
        }
        self.progress.status_told = now.monotonic;
        let slot = self.checkpoints.get(self.executed.sequence);
        if let Some(message) = slot.and_then(|slot| slot.own.as_ref()).map(|own| own.message.clone()) {
            self.repeat(now, &message, out);
        }
    }

    fn is_behind(&self) -> bool {
        self.checkpoints.known(&self.settings.replicas) > self.executed.sequence
            && self.dispatched == self.executed.sequence
    }

    fn blocks_due(&self) -> Option<Duration> {
        let since = self.progress.behind_since.filter(|_| self.is_behind())?;
        let known = self.checkpoints.known(&self.settings.replicas);
        // Beyond the high watermark there is no hope that the missing messages still come.
        let patience =
            if known > self.high_watermark() { Duration::ZERO } else { self.settings.behind_delay };
        let due = since.max(self.progress.last) + patience;
        let again = self.progress.blocks_asked.map(|asked| asked + self.settings.fetch_interval);
        Some(again.map_or(due, |again| again.max(due)))
    }

    /// Fetches blocks, if others are ahead and execution here has stood still for a while.
    fn catch_up(&mut self, now: Now, out: &mut Output) {
        let time = now.monotonic;
        if !self.is_behind() {
            self.progress.behind_since = None;
            return;
        }
        if let Some(content) = self.checkpoints.unchanged_since(&self.executed, &self.settings.replicas) {
            out.effects.push(Effect::Skip(content));
            self.pass_over(now, content);
            self.send_checkpoint(now, false, out);
            self.recheck(content.sequence, out);
            return;
        }
        self.progress.behind_since.get_or_insert(time);
        if self.blocks_due().is_none_or(|due| due > time) {
            return;
        }
        self.progress.blocks_asked = Some(time);
        let upto = self.checkpoints.known(&self.settings.replicas);
        let from = self.checkpoints.claimants(upto);
        out.effects.push(Effect::FetchBlocks { above: self.executed.height, upto, from });
    }

    fn certificates_due(&self) -> Option<Duration> {
        if self.checkpoints.gaps(REPEATS_BEFORE_FETCH, 1).is_empty() {
            return None;
        }
        let again = self.progress.certificates_asked.map(|asked| asked + self.settings.fetch_interval);
        Some(again.unwrap_or_default())
    }

    fn fetch_certificates(&mut self, time: Duration, out: &mut Output) {
        if self.certificates_due().is_none_or(|due| due > time) {
            return;
        }
        self.progress.certificates_asked = Some(time);
        let heights = self.checkpoints.gaps(REPEATS_BEFORE_FETCH, CERTIFICATES_AT_A_TIME);
        out.effects.push(Effect::FetchCertificates { heights, from: self.others().collect() });
    }
}
