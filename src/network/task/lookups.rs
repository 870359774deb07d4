//! Looking up the configured names, and telling the dialer what they mean now.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;

use super::Task;
use crate::crypto::random_bytes;

/// A name on its way to its addresses.
pub(super) type Lookup = BoxFuture<'static, (usize, io::Result<Vec<IpAddr>>)>;

impl Task {
    pub(super) fn look_up_due(&mut self, now: Duration) {
        for question in self.names.due(now) {
            let answer = self.settings.resolver.resolve(&question.host);
            self.lookups.push(answer.map(move |answer| (question.name, answer)).boxed());
        }
    }

    pub(super) fn on_lookup(&mut self, name: usize, answer: io::Result<Vec<IpAddr>>) {
        let now = self.clock.monotonic();
        // Without randomness the nodes ask at the same moments, which is no harm.
        let [jitter] = random_bytes().unwrap_or_default();
        let found = self.names.on_answer(name, answer, &self.listening, now, jitter);
        let outcome = if found.is_some() { "resolved" } else { "failed" };
        self.metrics.lookups.with_label_values(&[outcome]).inc();
        let Some((name, addresses)) = found else { return };
        tracing::debug!(%name, ?addresses, "resolved");
        self.dialer.resolved(name, addresses);
    }
}
