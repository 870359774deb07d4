//! What the demo measured, for a person and for a program.

use std::time::Duration;

use serde::Serialize;

use super::screen::{Screen, count, plural};

/// What `--json` prints.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    /// Messages that were sent and acknowledged.
    pub(super) messages: usize,
    /// Data items in them.
    pub(super) items: usize,
    /// Data items that are proven to be on the ledger.
    pub(super) items_written: usize,
    /// The share of the items that the policies left out, from 0 to 1.
    pub(super) reduction: f64,
    /// Blocks of the ledger.
    pub(super) blocks: u64,
    pub(super) replicas: usize,
    /// Whether messages that were signed after the primary was killed became final.
    pub(super) final_after_replica_killed: bool,
    /// From the kill until the first of them was final.
    pub(super) recovery_ms: Option<f64>,
    pub(super) bundles_verified: usize,
    pub(super) bundles_failed: usize,
    pub(super) tampering_found: Tampering,
    /// From the signed message to the broker's PUBACK.
    pub(super) puback_ms: Spread,
    /// From the signed message to the ack that says which block it is in.
    pub(super) final_ms: Spread,
    pub(super) seconds: f64,
}

/// Whether all that was tampered with was found and named.
#[derive(Debug, Serialize)]
pub(super) struct Tampering {
    /// Rows that were altered, deleted and added in one node's history.
    pub(super) history: bool,
    /// Bytes of a bundle.
    pub(super) bundle: bool,
}

/// How long something took, in milliseconds.
#[derive(Debug, Serialize)]
pub(super) struct Spread {
    p50: f64,
    p99: f64,
    max: f64,
}

impl Spread {
    pub(super) fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |percent: usize| {
            let rank = (times.len() * percent).div_ceil(100).max(1);
            times.get(rank - 1).map_or(0.0, |time| tenths(time.as_secs_f64() * 1_000.0))
        };
        Self { p50: at(50), p99: at(99), max: at(100) }
    }
}

pub(super) fn tenths(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

/// The share of `all` that is not in `part`, to a thousandth.
#[allow(clippy::cast_precision_loss)]
pub(super) fn left_out(part: usize, all: usize) -> f64 {
    // Numbers of items are far below 2^52.
    let share = 1.0 - part as f64 / all.max(1) as f64;
    (share * 1_000.0).round() / 1_000.0
}

impl Summary {
    /// Tells it to a person.
    pub(super) fn tell(&self, held: bool, screen: &Screen) -> anyhow::Result<()> {
        let verdict = if held { "Every check held" } else { "NOT every check held" };
        screen.say(format_args!("\n{verdict}, in {:.1} s", self.seconds))?;
        screen.say(format_args!(
            "   {} of {} items on the ledger ({:.1} % left out by the policies)\n   {} on {}, with registrations, policies and digests of the histories",
            count(self.items_written),
            count(self.items),
            self.reduction * 100.0,
            plural(usize::try_from(self.blocks)?, "block"),
            plural(self.replicas, "replica")
        ))?;
        if let Some(recovery) = self.recovery_ms {
            screen.say(format_args!(
                "   {} ms from the primary's death to the next final message",
                super::millis(Duration::from_secs_f64(recovery.max(0.0) / 1_000.0))
            ))?;
        }
        screen.say("   milliseconds from signing to …            p50      p99      max")?;
        for (what, spread) in [
            ("PUBACK: safe in a replica's log", &self.puback_ms),
            ("ack: final on the ledger", &self.final_ms),
        ] {
            screen
                .say(format_args!("   {what:36} {:8.1} {:8.1} {:8.1}", spread.p50, spread.p99, spread.max))?;
        }
        Ok(())
    }
}
