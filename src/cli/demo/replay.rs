//! Publishing: every reading goes through a real gateway and a real MQTT connection, many at once; and
//! half-way the primary is killed.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::outage::Outage;
use super::readings::{Expected, Reading};
use super::screen::Screen;
use crate::cli::local::LocalNetwork;
use crate::clock::{SharedClock, SystemClock};
use crate::device::control::Ack;
use crate::gateway::Gateway;
use crate::types::{ClientId, Height, Stream, Timestamp};

/// Messages of one gateway on their way at once. Within the gateway's window of 256, and as many as
/// it sends ahead of the broker's PUBACKs: more would only wait inside of the gateway.
const PIPELINE: usize = 64;

/// How long nothing may become final before the demo gives up.
const STALLED: Duration = Duration::from_secs(60);

/// How often progress is shown and the replicas are looked at.
const LOOK: Duration = Duration::from_millis(200);

/// A gateway, and what it is to send.
pub(super) struct Station {
    pub(super) client: ClientId,
    pub(super) gateway: Gateway,
    pub(super) readings: Vec<Reading>,
}

/// What publishing came to.
#[derive(Debug)]
pub(super) struct Replayed {
    /// Messages that were acknowledged.
    pub(super) messages: usize,
    /// From a signed message to the broker's PUBACK: a node has it in its log.
    pub(super) puback: Vec<Duration>,
    /// From a signed message to a node's signed word that what was picked of it is on the ledger.
    pub(super) finals: Vec<Duration>,
    /// The blocks that hold the messages.
    pub(super) blocks: BTreeSet<Height>,
    /// The primary's death.
    pub(super) outage: Outage,
    /// From then until the first message that was signed later was final.
    pub(super) recovery: Option<Duration>,
}

/// One message's way.
struct Way {
    time: Timestamp,
    puback: Duration,
    done: Duration,
    ack: Ack,
}

/// What has happened so far.
struct Seen {
    clock: SharedClock,
    acked: AtomicUsize,
    time: AtomicU64,
    height: AtomicU64,
    /// With so many messages acknowledged the primary is to die.
    enough: usize,
    is_enough: Notify,
    killed: watch::Sender<Option<Duration>>,
    recovered: OnceLock<Duration>,
}

impl Seen {
    fn new(stations: &[Station]) -> Self {
        let all: usize = stations.iter().map(|station| station.readings.len()).sum();
        let seen = Self {
            clock: SystemClock::shared(),
            acked: AtomicUsize::new(0),
            time: AtomicU64::new(0),
            height: AtomicU64::new(0),
            // The last message of each station waits for the primary's death.
            enough: all.saturating_sub(stations.len()) / 2,
            is_enough: Notify::new(),
            killed: watch::Sender::new(None),
            recovered: OnceLock::new(),
        };
        if seen.enough == 0 {
            seen.is_enough.notify_one();
        }
        seen
    }

    fn acknowledged(&self, reading: &Reading, ack: &Ack, signed: Duration, now: Duration) {
        let acked = self.acked.fetch_add(1, Ordering::Relaxed) + 1;
        if acked == self.enough {
            self.is_enough.notify_one();
        }
        self.time.fetch_max(reading.time.0, Ordering::Relaxed);
        let Some(height) = ack.height else { return };
        self.height.fetch_max(height.0, Ordering::Relaxed);
        if self.killed.borrow().is_some_and(|killed| signed > killed) {
            self.recovered.get_or_init(|| now);
        }
    }

    /// Waits until the primary was killed.
    async fn after_the_kill(&self) {
        // The sender is in `self`, so there is always an answer.
        let _ = self.killed.subscribe().wait_for(Option::is_some).await;
    }
}

/// Publishes all readings of all stations, kills the primary half-way, and waits until each message is
/// acknowledged. Marks in `expected` what is on the ledger by the nodes' word.
pub(super) async fn replay(
    network: &mut LocalNetwork,
    stations: Vec<Station>,
    expected: &mut Expected,
    screen: &Screen,
) -> anyhow::Result<Replayed> {
    let all = stations.iter().map(|station| station.readings.len()).sum();
    let seen = Arc::new(Seen::new(&stations));
    let mut running = JoinSet::new();
    for station in stations {
        running.spawn(publish_all(station, Arc::clone(&seen)));
    }
    let mut ways = Vec::with_capacity(all);
    let mut outage = None;
    let mut watch =
        Watch { progress: screen.progress(all, "messages acknowledged"), last: (0, Duration::ZERO) };
    let mut look = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            done = running.join_next() => match done {
                Some(done) => {
                    let (client, done) = done.context("a gateway has failed")??;
                    for way in &done {
                        expected.written(&client, way.time, &way.ack.written);
                    }
                    ways.extend(done);
                }
                None => break,
            },
            () = seen.is_enough.notified() => {
                let begun = Outage::begin(network, &*seen.clock, screen).await?;
                seen.killed.send_replace(Some(begun.at));
                outage = Some(begun);
            }
            _ = look.tick() => watch.look(network, &seen, outage.as_ref())?,
        }
    }
    let outage = outage.context("nothing was published")?;
    let recovery = seen.recovered.get().map(|at| at.saturating_sub(outage.at));
    Ok(Replayed::new(&ways, outage, recovery))
}

async fn publish_all(station: Station, seen: Arc<Seen>) -> anyhow::Result<(ClientId, Vec<Way>)> {
    let Station { client, gateway, readings } = station;
    let stream_name: Stream = "weather".parse()?;
    let last = readings.len().saturating_sub(1);
    let ways = stream::iter(readings.into_iter().enumerate())
        .map(async |(at, reading)| {
            if at == last {
                seen.after_the_kill().await;
            }
            publish(&gateway, &stream_name, reading, &seen).await
        })
        .buffer_unordered(PIPELINE)
        .try_collect()
        .await
        .with_context(|| format!("gateway {client}"))?;
    gateway.close().await;
    Ok((client, ways))
}

async fn publish(gateway: &Gateway, stream: &Stream, reading: Reading, seen: &Seen) -> anyhow::Result<Way> {
    let mut delivery = gateway.publish(stream, reading.body()).await?;
    let signed = seen.clock.monotonic();
    delivery.puback().await?;
    let puback = seen.clock.monotonic() - signed;
    let ack = delivery.done().await?;
    let now = seen.clock.monotonic();
    ensure!(
        ack.written.is_empty() || ack.height.is_some(),
        "an ack of written items names no block: {ack:?}"
    );
    seen.acknowledged(&reading, &ack, signed, now);
    Ok(Way { time: reading.time, puback, done: now - signed, ack })
}

impl Replayed {
    fn new(ways: &[Way], outage: Outage, recovery: Option<Duration>) -> Self {
        let finals = ways.iter().filter(|way| way.ack.height.is_some());
        Self {
            messages: ways.len(),
            puback: ways.iter().map(|way| way.puback).collect(),
            finals: finals.map(|way| way.done).collect(),
            blocks: ways.iter().filter_map(|way| way.ack.height).collect(),
            outage,
            recovery,
        }
    }
}

/// Shows what happens, and notices when nothing does.
struct Watch<'a> {
    progress: super::screen::Progress<'a>,
    last: (usize, Duration),
}

impl Watch<'_> {
    fn look(
        &mut self,
        network: &mut LocalNetwork,
        seen: &Seen,
        outage: Option<&Outage>,
    ) -> anyhow::Result<()> {
        let (acked, now) = (seen.acked.load(Ordering::Relaxed), seen.clock.monotonic());
        let day = super::date(Timestamp(seen.time.load(Ordering::Relaxed)));
        let height = seen.height.load(Ordering::Relaxed);
        if acked > 0 {
            self.progress.show(acked, format_args!(", {day}, block {height}"))?;
        }
        let dead = outage.filter(|outage| !outage.restarted).map(|outage| outage.replica);
        for replica in (0..network.replicas()).filter(|replica| Some(*replica) != dead) {
            if let Some(status) = network.exited(replica)? {
                bail!("replica {replica} has ended ({status})\n{}", network.last_lines(replica));
            }
        }
        if acked > self.last.0 || now < LOOK {
            self.last = (acked, now);
        }
        ensure!(now - self.last.1 < STALLED, "nothing was acknowledged for {} s", STALLED.as_secs());
        Ok(())
    }
}
