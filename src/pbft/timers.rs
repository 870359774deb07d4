//! What happens because time passed: repeating, fetching, catching up, forgetting.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::pbft::io::{Effect, Now, Output};
use crate::pbft::log::{Phase, Slot};
use crate::pbft::on_request::FETCH_AHEAD;
use crate::pbft::replica::Replica;
use crate::pbft::settings::Settings;
use crate::pbft::views::Entered;
use crate::types::{Hash, NodeId};

/// Of how many slots, the lowest ones, the own messages are repeated: the others wait for these.
const REPEATED_SLOTS: usize = 32;

/// The same while votes come: what is late is not lost, and repeating it makes the rest later still.
const REPEATED_WHILE_MOVING: usize = 2;

/// So many fetches of the same are followed by half the usual pause.
const QUICK_FETCHES: usize = 2;

/// How often a NEW-VIEW is repeated by itself; later, who lacks it asks.
const NEW_VIEW_REPEATS: u32 = 8;

/// How often the pause between two fetches of a view doubles: from half a second to eight.
const MAX_FETCH_DOUBLINGS: u32 = 4;

/// After so many status intervals without a quorum's votes a replica asks whether a later view has begun.
const VIEW_ASKED_AFTER: u32 = 2;

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
            let lacks = !slot.missing.is_empty() || slot.carried.is_some() && slot.proposal.is_none();
            let fetch = lacks.then_some(slot.fetch_at);
            [fetch, slot.judge_at].into_iter().flatten()
        });
        let alone = self.settings.replicas.n() == 1;
        let repeats = self.repeated_slots().chain(self.repeated_checkpoints()).filter(|_| !alone);
        [
            self.proposal_due(),
            self.null_due(),
            self.next_bundle(),
            self.status_due(),
            self.blocks_due(),
            self.certificates_due(),
            self.suspicion_due(),
            self.forward_due(),
            self.silence_due(),
            self.view_due(),
            self.view_question_due(),
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
            self.forward(time, out);
            self.repeat_view(now, out);
            self.fetch_view(time, out);
            self.ask_for_view(time, out);
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
        let mut batches: BTreeMap<Vec<NodeId>, Vec<Hash>> = BTreeMap::new();
        for (sequence, slot) in self.log.above_mut(self.accepted) {
            let open = slot.phase == Phase::Waiting && !slot.refused && slot.fetch_at <= time;
            if !open || sequence.0 > last {
                continue;
            }
            let proposed = slot.proposal.as_ref().map(|proposal| proposal.digest);
            let carried = slot.carried.as_ref().map(|(carried, _)| carried);
            let Some(digest) = proposed.or(carried.map(|carried| carried.digest)) else { continue };
            if proposed.is_some() && slot.missing.is_empty() {
                continue;
            }
            let holders = carried.map(|carried| carried.holders.clone()).unwrap_or_default();
            let mut from: Vec<NodeId> = holders
                .into_iter()
                .chain([primary])
                .chain(slot.prepares.voters(&digest))
                .filter(|node| *node != me)
                .collect();
            let mut seen = BTreeSet::new();
            from.retain(|node| seen.insert(*node));
            if from.is_empty() {
                continue;
            }
            let first = slot.fetches % from.len();
            from.rotate_left(first);
            slot.fetch_at = time + fetch_pause(&self.settings, slot.fetches);
            slot.fetches += 1;
            match proposed {
                Some(_) => {
                    let digests = slot.missing.iter().copied().collect();
                    out.effects.push(Effect::FetchRequests { digests, from });
                }
                None => batches.entry(from).or_default().push(digest),
            }
        }
        for (from, digests) in batches {
            out.effects.push(Effect::FetchBatches { digests, from });
        }
    }

    fn view_due(&self) -> Option<Duration> {
        let changing = self.views.changing.as_ref();
        let late = changing.and_then(|changing| changing.deadline);
        let repeat = changing.map(|changing| changing.resend.next);
        let begun = self.begun().map(|entered| entered.resend.next);
        [late, repeat, begun, self.views.fetch_at].into_iter().flatten().min()
    }

    /// The own NEW-VIEW, while it is repeated: until something was executed, and not for ever.
    fn begun(&self) -> Option<&Entered> {
        let entered = self.views.entered.as_ref().filter(|_| self.is_primary() && !self.is_changing());
        entered.filter(|entered| {
            entered.resend.attempt < NEW_VIEW_REPEATS && self.views.executed_here == 0 && !self.is_silent()
        })
    }

    /// Repeats the own VIEW-CHANGE until a view begins, and the own NEW-VIEW until it is under way.
    fn repeat_view(&mut self, now: Now, out: &mut Output) {
        if let Some(changing) = &mut self.views.changing
            && changing.resend.next <= now.monotonic
        {
            changing.resend.again(now.monotonic, &self.settings);
            let message = changing.message.clone();
            self.repeat(now, &message, out);
        }
        if self.begun().is_none_or(|entered| entered.resend.next > now.monotonic) {
            return;
        }
        if let Some(entered) = &mut self.views.entered {
            entered.resend.again(now.monotonic, &self.settings);
            let message = entered.new_view.clone();
            self.repeat(now, &message, out);
        }
    }

    /// Asks for the NEW-VIEW that others act on, or for the VIEW-CHANGEs that one here lacks.
    fn fetch_view(&mut self, time: Duration, out: &mut Output) {
        if self.views.fetch_at.is_none_or(|due| due > time) {
            return;
        }
        let wanted = if self.is_changing() { self.view } else { self.view.next() };
        let (highest, mut from) = self.views.seen_from(wanted);
        from.extend(
            self.views.offers.keys().filter(|node| !from.contains(node)).copied().collect::<Vec<_>>(),
        );
        from.retain(|node| *node != self.me);
        if from.is_empty() {
            self.views.fetch_at = None;
            return;
        }
        let first = self.views.fetches % from.len();
        from.rotate_left(first);
        // Who only pretends to be in a later view has nothing to give: everybody is asked once at
        // the usual pace, then ever more slowly, since each answer costs hundreds of signatures.
        let rounds = u32::try_from(self.views.fetches / from.len()).unwrap_or(u32::MAX);
        let pause = self.settings.fetch_interval * (1 << rounds.min(MAX_FETCH_DOUBLINGS));
        self.views.fetch_at = Some(time + pause);
        self.views.fetches += 1;
        let view = wanted.min(highest);
        out.effects.push(Effect::FetchView { view, from });
    }

    fn view_question_due(&self) -> Option<Duration> {
        let knows = self.settings.replicas.n() == 1 || self.is_changing() || self.views.fetch_at.is_some();
        let last = self.progress.view_asked.max(self.last_vote().unwrap_or_default());
        (!knows).then(|| last + self.settings.status_interval * VIEW_ASKED_AFTER)
    }

    /// Asks one other after the other whether a later view has begun. Who was away while it began could
    /// not know it otherwise for as long as nothing is ordered: nobody votes, and no other message that
    /// is repeated names a view.
    fn ask_for_view(&mut self, time: Duration, out: &mut Output) {
        if self.view_question_due().is_none_or(|due| due > time) {
            return;
        }
        self.progress.view_asked = time;
        self.progress.view_questions = self.progress.view_questions.wrapping_add(1);
        let turn = self.progress.view_questions % (self.settings.replicas.n() - 1);
        let from = self.others().skip(turn).take(1).collect();
        out.effects.push(Effect::FetchView { view: self.view.next(), from });
    }

    /// Before this time, of all but the lowest numbers nothing is repeated: quorums vote.
    fn moving_until(&self) -> Duration {
        self.last_vote().map_or(Duration::ZERO, |voted| voted + self.settings.resend_initial)
    }

    fn repeated_slots(&self) -> impl Iterator<Item = Duration> {
        let moving = self.moving_until();
        let slots = self.log.iter().take(REPEATED_SLOTS).map(|(_, slot)| slot).enumerate();
        let sent = slots.filter(|(_, slot)| !slot.sent.is_empty());
        sent.map(move |(at, slot)| not_before(at, moving, slot.resend.next))
    }

    /// Repeats the own messages of the lowest slots until their checkpoint is stable: a vote that
    /// is sent once is lost once.
    fn repeat_votes(&mut self, now: Now, out: &mut Output) {
        let mut due = Vec::new();
        let moving = self.moving_until();
        for (at, (_, slot)) in self.log.iter_mut().take(REPEATED_SLOTS).enumerate() {
            if !slot.sent.is_empty() && not_before(at, moving, slot.resend.next) <= now.monotonic {
                slot.resend.again(now.monotonic, &self.settings);
                due.extend(slot.sent.iter().cloned());
            }
        }
        for message in due {
            self.repeat(now, &message, out);
        }
    }

    fn repeated_checkpoints(&self) -> impl Iterator<Item = Duration> {
        let moving = self.moving_until();
        let open = self.checkpoints.open().take(REPEATED_SLOTS).enumerate();
        open.map(move |(at, (_, own))| not_before(at, moving, own.resend.next))
    }

    fn repeat_checkpoints(&mut self, now: Now, out: &mut Output) {
        let mut due = Vec::new();
        let moving = self.moving_until();
        for (at, own) in self.checkpoints.open_mut().take(REPEATED_SLOTS).enumerate() {
            if not_before(at, moving, own.resend.next) <= now.monotonic {
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

    /// Others have executed what this replica has not, and it is not at work on it.
    pub(super) fn is_behind(&self) -> bool {
        self.checkpoints.known(&self.settings.replicas) > self.executed.sequence
            && self.dispatched == self.executed.sequence
    }

    fn blocks_due(&self) -> Option<Duration> {
        let since = self.progress.behind_since.filter(|_| self.is_behind())?;
        let known = self.checkpoints.known(&self.settings.replicas);
        // Beyond the high watermark there is no hope that the missing messages still come. Nor is there
        // just above what came as blocks: the others may have forgotten the bodies of the next number.
        let hopeless = known > self.high_watermark() || self.progress.by_blocks;
        let patience = if hopeless { Duration::ZERO } else { self.settings.behind_delay };
        let due = since.max(self.progress.last) + patience;
        let pause = fetch_pause(&self.settings, self.progress.block_fetches);
        let again = self.progress.blocks_asked.map(|asked| asked + pause);
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
        if self.progress.blocks_asked.replace(time).is_some() {
            self.progress.block_fetches += 1;
        }
        let upto = self.checkpoints.known(&self.settings.replicas);
        let from = self.checkpoints.claimants(upto);
        out.effects.push(Effect::FetchBlocks { above: self.executed.height, upto, from });
    }

    fn certificates_due(&self) -> Option<Duration> {
        // A replica alone has nobody to ask.
        let alone = self.settings.replicas.n() == 1;
        if alone || self.checkpoints.gaps(REPEATS_BEFORE_FETCH, 1).is_empty() {
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

/// The pause after a fetch, before which there were so many: what is missing holds up a whole batch, and
/// whoever was asked may be dead, so that more than one or two others are asked before anybody loses patience.
fn fetch_pause(settings: &Settings, before: usize) -> Duration {
    if before < QUICK_FETCHES { settings.fetch_interval / 2 } else { settings.fetch_interval }
}

/// When the `at`-th lowest of what is repeated is due.
fn not_before(at: usize, moving: Duration, next: Duration) -> Duration {
    if at < REPEATED_WHILE_MOVING { next } else { next.max(moving) }
}
