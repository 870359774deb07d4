//! Replicas killed in mid-run, as a power cut would, and what the load saw of it.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::Serialize;

use super::load::Plan;
use super::usage::Usage;
use crate::cli::local::LocalNetwork;
use crate::clock::Clock as _;

/// Whom to kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Victims {
    /// The primary.
    Primary,
    /// So many backups.
    Backups(u16),
}

/// What is to happen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Planned {
    pub(super) victims: Victims,
    pub(super) at: Duration,
}

/// What happened.
#[derive(Debug)]
pub(super) struct Happened {
    pub(super) at: Duration,
    /// The replicas killed, and what they had used by then.
    pub(super) dead: Vec<(usize, Usage)>,
}

/// An outage, as the clients saw it.
#[derive(Debug, Serialize)]
pub(super) struct OutageReport {
    /// The replicas that were killed.
    killed: Vec<usize>,
    /// When, from the start of the load.
    at_s: f64,
    /// Final messages a second until then.
    before_per_s: f64,
    /// From then to the recovery.
    during_per_s: f64,
    /// From the recovery to the end of the load.
    after_per_s: f64,
    /// `after_per_s` as a part of `before_per_s`.
    after_of_before: f64,
    /// From the kill until the first message was final that was due after it; none if none was.
    recovery_ms: Option<f64>,
}

impl Planned {
    /// Waits for its time and kills.
    pub(super) async fn carry_out(
        &self,
        plan: &Plan,
        network: &mut LocalNetwork,
    ) -> anyhow::Result<Happened> {
        tokio::time::sleep(self.at.saturating_sub(plan.clock.monotonic())).await;
        let victims = self.victims(network).await?;
        let pids: Vec<_> = victims.iter().filter_map(|victim| network.pid(*victim)).collect();
        let at = plan.clock.monotonic();
        plan.timeline.breaks(at);
        let dead = victims.iter().copied().zip(pids.into_iter().map(Usage::of)).collect();
        for victim in victims {
            network.kill(victim).await?;
        }
        Ok(Happened { at, dead })
    }

    async fn victims(&self, network: &LocalNetwork) -> anyhow::Result<Vec<usize>> {
        let status = network.status(0).await.context("cannot tell which replica is the primary")?;
        let is_primary = |replica: &usize| network.files().nodes[*replica].node == status.primary;
        let replicas = 0..network.replicas();
        let victims: Vec<usize> = match self.victims {
            Victims::Primary => replicas.filter(is_primary).collect(),
            Victims::Backups(count) => {
                replicas.rev().filter(|replica| !is_primary(replica)).take(count.into()).collect()
            }
        };
        ensure!(!victims.is_empty(), "no replica to kill");
        Ok(victims)
    }
}

impl Happened {
    /// What the clients saw.
    pub(super) fn report(&self, plan: &Plan) -> OutageReport {
        let (timeline, end) = (&plan.timeline, plan.duration);
        let recovered = timeline.recovered();
        let from = recovered.unwrap_or(end).min(end);
        let before = timeline.finals_per_s(Duration::ZERO, self.at);
        let after = timeline.finals_per_s(from, end);
        OutageReport {
            killed: self.dead.iter().map(|(replica, _)| *replica).collect(),
            at_s: tenths(self.at.as_secs_f64()),
            before_per_s: tenths(before),
            during_per_s: tenths(timeline.finals_per_s(self.at, from)),
            after_per_s: tenths(after),
            after_of_before: if before > 0.0 { tenths(after / before * 100.0) / 100.0 } else { 0.0 },
            recovery_ms: recovered.map(|at| tenths(at.saturating_sub(self.at).as_secs_f64() * 1000.0)),
        }
    }
}

impl OutageReport {
    /// For a person.
    pub(super) fn lines(&self) -> Vec<String> {
        let killed: Vec<String> = self.killed.iter().map(ToString::to_string).collect();
        let recovery = match self.recovery_ms {
            Some(ms) => format!("{ms:.0} ms until a message sent after it was final"),
            None => "no message sent after it became final".to_owned(),
        };
        vec![
            format!("replica {} killed after {} s: {recovery}", killed.join(", "), self.at_s),
            format!(
                "final messages/s  {:.0} before, {:.0} until then, {:.0} after: {:.0} % of before",
                self.before_per_s,
                self.during_per_s,
                self.after_per_s,
                self.after_of_before * 100.0
            ),
        ]
    }
}

pub(super) fn tenths(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::body::Bodies;
    use crate::cli::bench::timeline::Timeline;
    use crate::clock::SystemClock;

    #[test]
    fn an_outage_has_a_before_a_during_and_an_after() {
        let duration = Duration::from_secs(4);
        let timeline = Timeline::new(duration);
        let bodies = Bodies::new(1, None).unwrap();
        let plan = Plan { bodies, rate: Some(10), duration, clock: SystemClock::new(), timeline };
        let ms = Duration::from_millis;
        // Ten a second, of which none is final from second 1 to second 2.
        for at in (0..1_000).chain(2_000..4_000).step_by(100) {
            if at == 1_000 {
                continue;
            }
            if at == 2_000 {
                plan.timeline.breaks(ms(1_000));
            }
            plan.timeline.became_final(ms(at), ms(at));
        }
        let report = Happened { at: ms(1_000), dead: vec![(0, Usage::default())] }.report(&plan);
        assert_eq!(report.before_per_s, 10.0);
        assert_eq!(report.during_per_s, 0.0);
        assert_eq!(report.after_per_s, 10.0);
        assert_eq!(report.after_of_before, 1.0);
        assert_eq!(report.recovery_ms, Some(1_000.0));
        assert!(report.lines()[1].contains("100 % of before"), "{:?}", report.lines());
    }

    #[test]
    fn who_never_recovers_has_nothing_after() {
        let duration = Duration::from_secs(2);
        let timeline = Timeline::new(duration);
        timeline.became_final(Duration::ZERO, Duration::ZERO);
        let bodies = Bodies::new(1, None).unwrap();
        let plan = Plan { bodies, rate: Some(10), duration, clock: SystemClock::new(), timeline };
        let report = Happened { at: Duration::from_secs(1), dead: Vec::new() }.report(&plan);
        assert_eq!((report.after_per_s, report.recovery_ms), (0.0, None));
    }
}
