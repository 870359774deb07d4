//! When the core is told that time has passed.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::fatal;
use super::*;
use crate::clock::{Clock, SystemClock};
use crate::crypto::SecretKey;
use crate::ledger::{AdminAction, AdminOperation, CheckpointContent, ClientSettings, ReplicaSet, Request};
use crate::metrics::Metrics;
use crate::pbft::message::Content;
use crate::pbft::{Restored, Settings};
use crate::types::{ClientId, Height, NetworkId, SeqNum};

const NETWORK: NetworkId = NetworkId([7; 32]);

/// A clock that can be set forward, as if the process had been stopped.
struct Jumping {
    real: SystemClock,
    ahead_ms: AtomicU64,
}

impl Jumping {
    fn new() -> Arc<Self> {
        Arc::new(Self { real: SystemClock::new(), ahead_ms: AtomicU64::new(0) })
    }

    fn jump(&self, ms: u64) {
        self.ahead_ms.fetch_add(ms, Ordering::Relaxed);
    }
}

impl Clock for Jumping {
    fn now(&self) -> Timestamp {
        self.real.now()
    }

    fn monotonic(&self) -> Duration {
        self.real.monotonic() + Duration::from_millis(self.ahead_ms.load(Ordering::Relaxed))
    }
}

fn keys() -> Vec<SecretKey> {
    let mut keys: Vec<_> = (1..=4).map(|seed| SecretKey::from_seed(&[seed; 32])).collect();
    keys.sort_by_key(SecretKey::node_id);
    keys
}

/// A backup with a request that the primary should have ordered.
async fn backup_that_waits(clock: Arc<Jumping>) -> (actix::Addr<Consensus>, mpsc::Receiver<Output>) {
    let keys = keys();
    let replicas = ReplicaSet::new(keys.iter().map(SecretKey::node_id).collect()).unwrap();
    let genesis = CheckpointContent {
        sequence: SeqNum(0),
        height: Height(0),
        block: Hash([0; 32]),
        state: Hash([0; 32]),
    };
    let settings = Settings::new(NETWORK, replicas, keys[1].clone());
    let replica = Replica::new(settings, Restored::new(genesis, clock.now())).unwrap();
    let (outputs, read) = mpsc::channel(1_000);
    let metrics = Metrics::new().unwrap();
    let gauge = metrics.queues.queue("outputs");
    let tally = ConsensusTally::new(keys[1].node_id(), metrics.consensus.clone(), gauge);
    let notices = Notices::new(metrics.consensus.clone(), fatal().0);
    let vital = fatal().0.vital("Consensus");
    let consensus = Consensus::new(replica, clock, outputs, Arc::default(), tally, notices, vital).start();
    let action = AdminAction::RegisterClient {
        client: ClientId::new("a/b").unwrap(),
        key: keys[1].public(),
        settings: ClientSettings::default(),
    };
    let operation = AdminOperation::sign(NETWORK, &keys[0], 1, action);
    let request = Request::Admin { node: keys[1].node_id(), operation };
    let request = Arc::new(VerifiedRequest::verify(&NETWORK, request).unwrap());
    assert_eq!(consensus.send(SubmitRequest(request)).await.unwrap(), Submission::Taken);
    (consensus, read)
}

/// What replica `from` says to have executed.
fn claim(from: usize, sequence: u64) -> PeerMessage {
    let (sequence, block) = (SeqNum(sequence), Hash([9; 32]));
    let content = CheckpointContent { sequence, height: Height(sequence.0), block, state: block };
    PeerMessage(Verified::sign(&keys()[from], &NETWORK, Content::Checkpoint(content)))
}

#[actix::test]
async fn what_waits_in_the_mailbox_is_heard_before_the_primary_is_judged() {
    let clock = Jumping::new();
    let (consensus, _outputs) = backup_that_waits(Arc::clone(&clock)).await;
    // The node is busy with something else for longer than the timeout. Meanwhile others go on.
    clock.jump(1_500);
    consensus.try_send(claim(2, 5)).unwrap();
    consensus.try_send(claim(3, 5)).unwrap();
    consensus.send(Tick).await.unwrap();
    let status = consensus.send(ReadStatus).await.unwrap();
    assert_eq!((status.known, status.changing), (SeqNum(5), false), "others execute: the primary is well");
}

#[actix::test]
async fn what_comes_after_the_time_is_up_does_not_put_the_judgement_off() {
    let clock = Jumping::new();
    let (consensus, _outputs) = backup_that_waits(Arc::clone(&clock)).await;
    clock.jump(1_500);
    consensus.try_send(claim(2, 5)).unwrap();
    consensus.try_send(Tick).unwrap();
    consensus.try_send(claim(3, 5)).unwrap();
    assert!(consensus.send(ReadStatus).await.unwrap().changing);
}

/// Notes when it is told that time has passed.
struct Listener {
    clock: Arc<Jumping>,
    ticks: Arc<Mutex<Vec<Duration>>>,
}

impl Actor for Listener {
    type Context = Context<Self>;
}

impl Handler<Tick> for Listener {
    type Result = ();

    fn handle(&mut self, _: Tick, _: &mut Self::Context) {
        self.ticks.lock().unwrap().push(self.clock.real.monotonic());
    }
}

/// The first tick after a deadline in 100 ms, by the real clock, if one comes; the other clock jumps by so
/// much at first, and by so much every 5 ms.
async fn first_tick(pause_ms: u64, again_ms: u64) -> Option<Duration> {
    let (clock, ticks) = (Jumping::new(), Arc::default());
    let listener = Listener { clock: Arc::clone(&clock), ticks: Arc::clone(&ticks) }.start();
    let due = clock.monotonic() + Duration::from_millis(100);
    let deadline = watch::Sender::new(Some(due));
    let shared: SharedClock = Arc::clone(&clock) as SharedClock;
    let alarm = tokio::spawn(alarm(deadline.subscribe(), shared, listener.recipient()));
    tokio::task::yield_now().await;
    clock.jump(pause_ms);
    let mut first = None;
    for _ in 0..2_000 {
        first = ticks.lock().unwrap().first().copied();
        if first.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        clock.jump(again_ms);
    }
    alarm.abort();
    first
}

/// The first tick after a pause of so long, measured without the pause.
async fn first_tick_after(pause_ms: u64) -> Duration {
    first_tick(pause_ms, 0).await.unwrap()
}

#[actix::test]
async fn a_node_that_is_late_every_time_is_told_all_the_same_that_time_has_passed() {
    assert!(first_tick(0, 1_000).await.is_some());
}

#[actix::test]
async fn after_a_pause_the_network_speaks_first_and_otherwise_the_alarm_is_on_time() {
    // A machine that stands still for a moment by itself is a pause, too.
    let mut punctual = false;
    for _ in 0..5 {
        punctual |= first_tick_after(0).await < GRACE;
    }
    assert!(punctual);
    let paused = first_tick_after(10_000).await;
    assert!(paused >= GRACE, "{paused:?}");
}
