//! When to do again what may have been lost: at first soon, then at twice the time, up to a cap.

use std::time::Duration;

use crate::pbft::settings::Settings;

/// The timer of something that is repeated until it is no longer needed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Resend {
    /// When it is due.
    pub(super) next: Duration,
    interval: Duration,
    /// How often it was done again.
    pub(super) attempt: u32,
}

impl Resend {
    /// Done for the first time at `now`.
    pub(super) fn started(now: Duration, settings: &Settings) -> Self {
        Self { next: now + settings.resend_initial, interval: settings.resend_initial, attempt: 0 }
    }

    /// Done before a crash; due at once.
    pub(super) const fn overdue(settings: &Settings) -> Self {
        Self { next: Duration::ZERO, interval: settings.resend_initial, attempt: 0 }
    }

    /// Counts one more attempt and sets the next.
    pub(super) fn again(&mut self, now: Duration, settings: &Settings) {
        self.attempt = self.attempt.saturating_add(1);
        self.interval = (self.interval * 2).min(settings.resend_max);
        self.next = now + self.interval;
    }

    /// Something new is part of it: its first sending was just now, so start anew.
    pub(super) fn restart(&mut self, now: Duration, settings: &Settings) {
        self.interval = settings.resend_initial;
        self.next = now + self.interval;
    }
}
