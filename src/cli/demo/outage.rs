//! A replica that dies in mid-stream: the primary, by SIGKILL, as in a power cut.

use std::time::Duration;

use anyhow::Context as _;

use super::screen::Screen;
use crate::cli::local::LocalNetwork;
use crate::clock::{Clock, SystemClock};

/// What was done.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outage {
    /// The replica that was the primary.
    pub(super) replica: usize,
    /// When it was killed.
    pub(super) at: Duration,
    /// Whether it was started again at once, since the others are no quorum without it.
    pub(super) restarted: bool,
}

impl Outage {
    /// Kills the primary. Where no replica may be faulty, it is started again at once.
    pub(super) async fn begin(
        network: &mut LocalNetwork,
        clock: &dyn Clock,
        screen: &Screen,
    ) -> anyhow::Result<Self> {
        let statuses = network.statuses().await;
        let status = statuses.into_iter().flatten().max_by_key(|status| status.view);
        let primary = status.context("no replica says which one is the primary")?.primary;
        let replica = network.files().nodes.iter().position(|node| node.node == primary);
        let replica = replica.context("the primary is no replica of this network")?;
        let at = clock.monotonic();
        network.kill(replica).await?;
        let restarted = network.genesis().replicas.f() == 0;
        if restarted {
            network.spawn(replica)?;
            screen.say(format_args!(
                "   replica {replica}, the primary, is killed and started again (none of {} may be missing)",
                network.replicas()
            ))?;
        } else {
            screen
                .say(format_args!("   replica {replica}, the primary, is killed: SIGKILL, in mid-stream"))?;
        }
        Ok(Self { replica, at, restarted })
    }

    /// Starts the replica again, if that was not done, and waits until it is ready.
    pub(super) async fn end(&self, network: &mut LocalNetwork, screen: &Screen) -> anyhow::Result<()> {
        let Self { replica, restarted, .. } = *self;
        let clock = SystemClock::new();
        if !restarted {
            network.spawn(replica)?;
        }
        network.ready(replica).await?;
        if !restarted {
            let time = clock.monotonic().as_secs_f64();
            screen.say(format_args!("   replica {replica} is started again, and ready after {time:.1} s"))?;
        }
        Ok(())
    }
}
