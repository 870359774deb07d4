//! Helping a replica that lost its log back to its vote (2002, section 4.3.2, the recovery point).
//!
//! It says in RECOVERY from which stable checkpoint on it votes again ([`crate::pbft::silence`]). In
//! an idle cluster nothing would ever lead there. So the primary proposes null batches, as the paper
//! says, one behind the other and while nothing else waits; and if the primary itself is the one
//! that waits, the others replace it ([`crate::pbft::suspicion`]). A null batch changes nothing and
//! makes no block.
//!
//! A faulty replica could say so without need, and a faulty primary propose null batches for nobody.
//! Neither can make more than so many of them: a primary proposes at most [`spending`] for each
//! replica every [`REFRESH`], and a backup takes one every [`NULL_PACE`] at most.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::pbft::io::{Now, Output, Rejected};
use crate::pbft::message::{Batch, Recovery, Verified};
use crate::pbft::replica::Replica;
use crate::types::{NodeId, SeqNum};

/// Time between two null batches of a primary: a window of them takes five seconds.
const NULL_INTERVAL: Duration = Duration::from_millis(20);

/// A backup agrees to a fresh null batch this long after the one before, so that a faulty primary
/// cannot keep an idle cluster busier than this.
const NULL_PACE: Duration = Duration::from_millis(10);

/// After this time a replica may be helped once more.
const REFRESH: Duration = Duration::from_secs(600);

/// How many null batches a primary proposes for one replica in this time: a window is what it
/// needs, and others may be a window ahead of what it knows.
const fn spending(window: u64) -> u64 {
    2 * window
}

/// A replica that waits, or did.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    until: SeqNum,
    /// Since when it says so.
    said: Duration,
    /// Null batches that may still be proposed for it, and since when they are counted.
    left: u64,
    since: Duration,
}

/// What is known of replicas that lost their logs: one entry for each that ever said so.
#[derive(Debug, Clone, Default)]
pub(super) struct Recovering {
    waiting: BTreeMap<NodeId, Waiting>,
    /// When the last null batch was proposed, or agreed to.
    last_null: Option<Duration>,
}

impl Recovering {
    /// A fresh null batch was proposed, or agreed to.
    pub(super) fn null_at(&mut self, time: Duration) {
        self.last_null = Some(time);
    }

    /// When a backup may agree to the next null batch, if not now.
    pub(super) fn null_pace(&self, time: Duration) -> Option<Duration> {
        self.last_null.map(|last| last + NULL_PACE).filter(|due| *due > time)
    }

    /// How many replicas are remembered.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }
}

impl Replica {
    /// `RECOVERY`: its sender votes again once a checkpoint is stable that lies ahead.
    pub(super) fn on_recovery(
        &mut self,
        now: Now,
        recovery: Recovery,
        message: &Verified,
    ) -> Result<(), Rejected> {
        let (sender, until) = (message.sender(), recovery.until);
        let (low, window) = (self.checkpoints.stable, self.window());
        if until <= low {
            return Err(Rejected::BelowWatermark { low });
        }
        // It adds a window to what a correct replica executed, which is at most a window ahead.
        let high = SeqNum(low.0.saturating_add(2 * window));
        if until > high {
            return Err(Rejected::AboveWatermark { high });
        }
        let (since, left) = (now.monotonic, spending(window));
        let new = Waiting { until, said: since, left, since };
        let waiting = self.recovering.waiting.entry(sender).or_insert(new);
        if waiting.until <= low {
            waiting.said = since;
        }
        // Anybody may repeat what it said of an earlier loss.
        waiting.until = waiting.until.max(until);
        if now.monotonic >= waiting.since + REFRESH {
            *waiting = new;
        }
        Ok(())
    }

    /// Since when the primary says that it keeps silent, and nothing is executed: who keeps silent
    /// proposes nothing, and there is nothing to wait for under it. Who is behind cannot know whether
    /// that is over.
    pub(super) fn primary_silent_since(&self) -> Option<Duration> {
        let others_suffice = self.settings.replicas.n() > self.settings.replicas.quorum();
        let waiting = self.recovering.waiting.get(&self.primary())?;
        let open = waiting.until > self.checkpoints.stable && others_suffice && !self.is_behind();
        open.then(|| waiting.said.max(self.views.entered_at).max(self.progress.last))
    }

    /// When the next null batch is due, if a replica waits for it and nothing else is on its way.
    pub(super) fn null_due(&self) -> Option<Duration> {
        let idle = self.pool.pending().0 == 0 && self.accepted == self.executed.sequence;
        let awaited = self.recovering.waiting.values().any(|waiting| self.awaits(waiting));
        if !idle || !awaited || !self.may_propose() {
            return None;
        }
        Some(self.recovering.last_null.map_or(Duration::ZERO, |last| last + NULL_INTERVAL))
    }

    fn awaits(&self, waiting: &Waiting) -> bool {
        waiting.until > self.accepted && waiting.left > 0
    }

    /// Proposes a null batch if it is time.
    pub(super) fn try_propose_null(&mut self, now: Now, out: &mut Output) {
        if self.null_due().is_none_or(|due| due > now.monotonic) {
            return;
        }
        let accepted = self.accepted;
        for waiting in self.recovering.waiting.values_mut().filter(|waiting| waiting.until > accepted) {
            waiting.left = waiting.left.saturating_sub(1);
        }
        self.recovering.null_at(now.monotonic);
        self.propose_batch(now, Batch::null(), Vec::new(), out);
    }
}
