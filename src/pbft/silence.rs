//! A replica that lost its log keeps silent until it cannot contradict what it may have signed.
//!
//! It may have voted for any number up to a window above its last stable checkpoint, in any view up
//! to the one after that of the others. While it is silent it counts as one of the f faulty. Of the
//! q-1 others whose CHECKPOINTs made that checkpoint stable, at least q-f are correct (f-1 others may
//! be faulty beside it), and of these at least q-2f+1 are among any n-f others. So once it has
//! heard from n-f others, the (q-2f+1)-th highest of their claims, or the f-th if that is
//! lower, is at or above that checkpoint unless correct ones were heard only with old claims, which
//! `lost_log_wait` is for; and with f ≤ 2 it is at most what a correct one claims. A window above
//! it lies everything that this replica can have voted for. Once its own stable checkpoint
//! is there it votes again, for numbers that it never voted for.
//!
//! "Its last stable checkpoint" is the highest one of which it knew a certificate, that of a NEW-VIEW
//! included, whose proposals it may have signed up to a window above.
//!
//! A VIEW-CHANGE that it sent and forgot lists nothing above that window either. It may also have
//! begun a view with a NEW-VIEW that it forgot, so it makes none before a batch has committed with its
//! vote: a quorum was in that view after the loss, and a quorum had left all views below the one
//! that it may have begun; they share a correct replica, so views above are ones that it never began.
//!
//! The NEW-VIEW of the view that the others are in may name a VIEW-CHANGE of this very replica, which
//! it forgot. So it takes that from others like every other one that a NEW-VIEW names: without it, it
//! could not enter the view.
//!
//! While it waits it says so ([`crate::pbft::recovery`]), and the others see to it that the
//! checkpoint comes even if nothing else is to be ordered.

use std::time::Duration;

use crate::pbft::io::{Now, Output, Rejected};
use crate::pbft::message::{Content, Recovery, Verified};
use crate::pbft::notice::Notice;
use crate::pbft::replica::Replica;
use crate::pbft::settings::window;
use crate::pbft::views::Heard;
use crate::pbft::wal::WalEntry;
use crate::types::{SeqNum, View};

/// What the log says of a replica that lost an earlier one; see the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Voice {
    /// It signs neither votes nor views.
    Silent,
    /// It votes, and makes no NEW-VIEW.
    Unproven,
    /// It takes part like any other.
    Proven,
}

impl Voice {
    const fn entry(self) -> WalEntry {
        match self {
            Self::Silent => WalEntry::Silent(true),
            Self::Unproven => WalEntry::Silent(false),
            Self::Proven => WalEntry::Proven,
        }
    }
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub(super) struct Silence {
    /// Since when it listens.
    since: Option<Duration>,
    /// The stable checkpoint from which on it votes.
    pub(super) until: Option<SeqNum>,
    /// What it tells the others, and when it does so again.
    told: Option<Verified>,
    tell_at: Duration,
}

impl Replica {
    pub(super) const fn is_silent(&self) -> bool {
        self.silence.is_some()
    }

    /// A replica without any log that finds the others more than a window ahead was here before.
    pub(super) fn notice_lost_log(&mut self, out: &mut Output) {
        let known = self.checkpoints.known(&self.settings.replicas);
        if self.newcomer && known > self.high_watermark() {
            self.fall_silent(out);
        }
        self.newcomer &= self.accepted == SeqNum(0) && self.view == View(0);
    }

    pub(super) fn fall_silent(&mut self, out: &mut Output) {
        if self.silence.is_none() {
            self.set_voice(Voice::Silent, out);
            out.notices.push(Notice::FellSilent);
            self.silence = Some(Silence::default());
        }
    }

    /// Notes in the log how far it is on its way back.
    pub(super) fn set_voice(&mut self, voice: Voice, out: &mut Output) {
        self.voice = Some(voice);
        out.wal.push(voice.entry());
    }

    /// An own message, come back from others. It tells something new only if it was lost with the log:
    /// a VIEW-CHANGE that a NEW-VIEW names, which nobody else can stand in for.
    pub(super) fn on_own(&mut self, now: Now, message: Verified, out: &mut Output) -> Result<(), Rejected> {
        let Content::ViewChange(view_change) = message.content() else { return Err(Rejected::Own) };
        let forgotten = Heard { digest: view_change.digest(), message };
        if !self.views.complete_offers(&forgotten, &self.settings.replicas) {
            return Err(Rejected::Own);
        }
        self.try_enter_offered(now, out);
        Ok(())
    }

    /// Whether it may have begun views that it does not know of.
    pub(super) const fn may_have_begun_views(&self) -> bool {
        matches!(self.voice, Some(Voice::Silent | Voice::Unproven)) || self.silence.is_some()
    }

    /// A batch committed with its vote.
    pub(super) fn prove_voice(&mut self, out: &mut Output) {
        if self.voice == Some(Voice::Unproven) {
            self.set_voice(Voice::Proven, out);
        }
    }

    pub(super) fn silence_due(&self) -> Option<Duration> {
        let silence = self.silence.as_ref()?;
        if silence.until.is_some() {
            return Some(silence.tell_at);
        }
        Some(silence.since.map_or(Duration::ZERO, |since| since + self.settings.lost_log_wait))
    }

    /// Settles how long to keep silent, and ends it.
    pub(super) fn try_speak(&mut self, now: Now, out: &mut Output) {
        let replicas = &self.settings.replicas;
        let Some(silence) = &mut self.silence else { return };
        let since = *silence.since.get_or_insert(now.monotonic);
        let waited = now.monotonic >= since + self.settings.lost_log_wait;
        if silence.until.is_none() && waited {
            let (f, q) = (replicas.f(), replicas.quorum());
            let rank = (q + 1).saturating_sub(2 * f).min(f).max(1);
            let heard_of = replicas.n() - f.max(1);
            let claim = self.checkpoints.ranked_claim(heard_of, rank);
            silence.until = claim.map(|claim| SeqNum(claim.0.saturating_add(window(replicas))));
            silence.since = Some(now.monotonic);
        }
        if silence.until.is_some_and(|until| self.checkpoints.stable >= until) {
            out.notices.push(Notice::SpeaksAgain { stable: self.checkpoints.stable });
            self.silence = None;
            self.set_voice(Voice::Unproven, out);
            self.wait_anew(now);
        }
        self.tell_recovery(now, out);
    }

    /// Tells the others from which checkpoint on it votes, again and again.
    fn tell_recovery(&mut self, now: Now, out: &mut Output) {
        let Some(silence) = &mut self.silence else { return };
        let Some(until) = silence.until.filter(|_| silence.tell_at <= now.monotonic) else { return };
        silence.tell_at = now.monotonic + self.settings.status_interval;
        let Some(message) = silence.told.clone() else {
            let content = Content::Recovery(Recovery { until });
            let message = Verified::sign(&self.settings.key, &self.settings.network, content);
            out.wal.push(WalEntry::Sent(message.signed().clone()));
            silence.told = Some(message.clone());
            return self.broadcast(&message, out);
        };
        self.repeat(now, &message, out);
    }

    /// Writes the views, and silence, to the log once more when much has been executed since, so
    /// that the log can be cut before them.
    pub(super) fn log_views_again(&mut self, out: &mut Output) {
        let stable = self.checkpoints.stable;
        if stable.0 < self.views.logged_at.0 + window(&self.settings.replicas) {
            return;
        }
        self.views.logged_at = stable;
        if let Some(entered) = &self.views.entered {
            out.wal.push(WalEntry::NewView {
                new_view: entered.new_view.signed().clone(),
                view_changes: entered.view_changes.iter().map(|message| message.signed().clone()).collect(),
            });
        }
        if let Some(changing) = &self.views.changing {
            out.wal.push(WalEntry::ViewChange(changing.message.signed().clone()));
        }
        out.wal.extend(self.voice.map(Voice::entry));
    }
}
