//! Publishing: every reading goes through a real gateway and a real MQTT connection, many at once.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::task::JoinSet;

use super::readings::{ITEMS, Reading};
use super::screen::Screen;
use crate::cli::local::LocalNetwork;
use crate::clock::{SharedClock, SystemClock};
use crate::gateway::Gateway;
use crate::types::{ClientId, Height, Stream, Timestamp};

/// Messages of one gateway on their way at once. Within the gateway's window of 256, and as many as
/// it sends ahead of the broker's PUBACKs: more would only wait inside of the gateway.
const PIPELINE: usize = 64;

/// How long nothing may become final before the demo gives up.
const STALLED: Duration = Duration::from_secs(30);

/// How often progress is shown and the replicas are looked at.
const LOOK: Duration = Duration::from_millis(200);

/// A gateway, and what it is to send.
pub(super) struct Station {
    pub(super) client: ClientId,
    pub(super) gateway: Gateway,
    pub(super) readings: Vec<Reading>,
}

/// What publishing came to.
#[derive(Debug, Default)]
pub(super) struct Replayed {
    /// From a signed message to the broker's PUBACK: a node has it in its log.
    pub(super) puback: Vec<Duration>,
    /// From a signed message to a node's signed word that all of it is on the ledger.
    pub(super) finals: Vec<Duration>,
    /// The blocks that hold the messages.
    pub(super) blocks: BTreeSet<Height>,
}

/// One message's way.
struct Way {
    puback: Duration,
    done: Duration,
    height: Height,
}

/// What has happened so far.
struct Seen {
    clock: SharedClock,
    finals: AtomicUsize,
    time: AtomicU64,
    height: AtomicU64,
}

/// Publishes all readings of all stations, and waits until each is on the ledger.
pub(super) async fn replay(
    network: &mut LocalNetwork,
    stations: Vec<Station>,
    screen: &Screen,
) -> anyhow::Result<Replayed> {
    let all = stations.iter().map(|station| station.readings.len()).sum();
    let seen = Arc::new(Seen {
        clock: SystemClock::shared(),
        finals: AtomicUsize::new(0),
        time: AtomicU64::new(0),
        height: AtomicU64::new(0),
    });
    let mut running = JoinSet::new();
    for station in stations {
        running.spawn(publish_all(station, Arc::clone(&seen)));
    }
    let mut replayed = Replayed::default();
    let mut watch = Watch { progress: screen.progress(all, "messages final"), last: (0, Duration::ZERO) };
    let mut look = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            done = running.join_next() => match done {
                Some(ways) => replayed.add(ways.context("a gateway has failed")??),
                None => return Ok(replayed),
            },
            _ = look.tick() => watch.look(network, &seen)?,
        }
    }
}

async fn publish_all(station: Station, seen: Arc<Seen>) -> anyhow::Result<Vec<Way>> {
    let Station { client, gateway, readings } = station;
    let stream_name: Stream = "weather".parse()?;
    let ways = stream::iter(readings)
        .map(|reading| publish(&gateway, &stream_name, reading, &seen))
        .buffer_unordered(PIPELINE)
        .try_collect()
        .await
        .with_context(|| format!("gateway {client}"))?;
    gateway.close().await;
    Ok(ways)
}

async fn publish(gateway: &Gateway, stream: &Stream, reading: Reading, seen: &Seen) -> anyhow::Result<Way> {
    let mut delivery = gateway.publish(stream, reading.body()).await?;
    let signed = seen.clock.monotonic();
    delivery.puback().await?;
    let puback = seen.clock.monotonic() - signed;
    let ack = delivery.done().await?;
    let done = seen.clock.monotonic() - signed;
    ensure!(ack.written.len() == ITEMS, "of message {} only items {:?} were written", ack.seq, ack.written);
    let height = ack.height.context("an ack of written items names no block")?;
    seen.finals.fetch_add(1, Ordering::Relaxed);
    seen.time.fetch_max(reading.time.0, Ordering::Relaxed);
    seen.height.fetch_max(height.0, Ordering::Relaxed);
    Ok(Way { puback, done, height })
}

impl Replayed {
    fn add(&mut self, ways: Vec<Way>) {
        for Way { puback, done, height } in ways {
            self.puback.push(puback);
            self.finals.push(done);
            self.blocks.insert(height);
        }
    }
}

/// Shows what happens, and notices when nothing does.
struct Watch<'a> {
    progress: super::screen::Progress<'a>,
    last: (usize, Duration),
}

impl Watch<'_> {
    fn look(&mut self, network: &mut LocalNetwork, seen: &Seen) -> anyhow::Result<()> {
        let (finals, now) = (seen.finals.load(Ordering::Relaxed), seen.clock.monotonic());
        let day = super::date(Timestamp(seen.time.load(Ordering::Relaxed)));
        let height = seen.height.load(Ordering::Relaxed);
        if finals > 0 {
            self.progress.show(finals, format_args!(", {day}, block {height}"))?;
        }
        for replica in 0..network.replicas() {
            if let Some(status) = network.exited(replica)? {
                bail!("replica {replica} has ended ({status})\n{}", network.last_lines(replica));
            }
        }
        if finals > self.last.0 || now < LOOK {
            self.last = (finals, now);
        }
        ensure!(now - self.last.1 < STALLED, "nothing became final for {} s", STALLED.as_secs());
        Ok(())
    }
}
