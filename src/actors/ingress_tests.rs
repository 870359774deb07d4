//! Acks and the disk: what no ledger keeps is acknowledged only once this node keeps it.

use crate::actors::history::{Backlog, HistoryFeed};
use std::net::SocketAddr;
use std::sync::{Mutex, mpsc};

use async_trait::async_trait;
use bytes::Bytes;

use super::super::FinalVerdict;
use super::super::accepted::{Ahead, LogRecord};
use super::super::admission::{Admission, Standing};
use super::super::bases::{Bases, BasesLimits};
use super::super::finals::TellFinal;
use super::super::policy::{AcceptMessage, RepeatDecision};
use super::super::storage::{LookUpMessage, TakeUp};
use super::super::verifier::{VerifierParts, Workers};
use super::*;
use crate::broker::{Broker, BrokerError, DownlinkQos};
use crate::clock::SystemClock;
use crate::crypto::SecretKey;
use crate::device::keyring::KeyTerms;
use crate::ledger::Rejection;
use crate::metrics::Metrics;
use crate::store::log::{LogSettings, Position};
use crate::store::{SledStore, StoreSettings};
use crate::types::{Hash, Height};

const NETWORK: NetworkId = NetworkId([1; 32]);

/// How long nothing must happen for it to count as waiting.
const A_WHILE: Duration = Duration::from_millis(200);

/// In the place of the actors that these tests do not reach.
struct Nobody;

impl Actor for Nobody {
    type Context = Context<Self>;
}

impl Handler<VerifyMessage> for Nobody {
    type Result = Verification;

    fn handle(&mut self, _: VerifyMessage, _: &mut Self::Context) -> Verification {
        Verification::Unavailable
    }
}

impl Handler<AcceptMessage> for Nobody {
    type Result = Option<Position>;

    fn handle(&mut self, _: AcceptMessage, _: &mut Self::Context) -> Self::Result {
        None
    }
}

impl Handler<RepeatDecision> for Nobody {
    type Result = ();

    fn handle(&mut self, _: RepeatDecision, _: &mut Self::Context) {}
}

impl Handler<LookUpMessage> for Nobody {
    type Result = actix::MessageResult<LookUpMessage>;

    fn handle(&mut self, _: LookUpMessage, _: &mut Self::Context) -> Self::Result {
        actix::MessageResult(None)
    }
}

impl Handler<TakeUp> for Nobody {
    type Result = bool;

    fn handle(&mut self, _: TakeUp, _: &mut Self::Context) -> bool {
        false
    }
}

/// A broker that remembers the topics it was to publish to.
#[derive(Debug, Default)]
struct Told(Mutex<Vec<String>>);

#[async_trait]
impl Broker for Told {
    async fn publish(&self, _: &ClientId, topic: &str, _: Bytes, _: DownlinkQos) -> Result<(), BrokerError> {
        self.0.lock().unwrap().push(topic.to_owned());
        Ok(())
    }

    async fn close_client(&self, _: &ClientId, _: Closing) -> Result<(), BrokerError> {
        Ok(())
    }

    fn local_addr(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    async fn stop(&self) {}
}

/// A log whose writes become durable one group at a time, when they are let.
struct SlowDisk {
    /// Dropped first: the log ends only when nothing holds up its disk any more.
    syncs: mpsc::Sender<()>,
    log: Log,
    _dir: tempfile::TempDir,
}

impl SlowDisk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (syncs, allowed) = mpsc::channel();
        let mut settings = LogSettings::new(NETWORK, SystemClock::shared());
        settings.observer = Some(Box::new(move |_| {
            let _until_allowed = allowed.recv();
        }));
        let (log, _) = Log::open(dir.path(), settings).unwrap();
        Self { syncs, log, _dir: dir }
    }

    fn let_sync(&self) {
        self.syncs.send(()).unwrap();
    }
}

fn message(verdict: FinalVerdict) -> FinalMessage {
    FinalMessage {
        client: ClientId::new("devices/iot").unwrap(),
        stream: Stream::new("env").unwrap(),
        seq: MessageSeq(1),
        header: Hash([1; 32]),
        items: 1,
        verdict,
    }
}

fn ingress(log: &Log, broker: Arc<Told>) -> Ingress {
    let (metrics, clock, key) =
        (Metrics::new().unwrap(), SystemClock::shared(), SecretKey::from_seed(&[1; 32]));
    let downlink = Downlink::new(NETWORK, key.clone(), metrics.ingress.clone());
    downlink.connect(broker);
    let day = Duration::from_secs(24 * 60 * 60);
    Ingress::new(IngressParts {
        network: NETWORK,
        node: key.node_id(),
        view: Arc::default(),
        admission: Arc::default(),
        keys: NodeKeys::new(NETWORK, key.node_id(), day, KeyTerms::default(), clock.now()).unwrap(),
        downlink,
        verifier: Nobody.start().recipient(),
        log: log.clone(),
        clock,
        limits: IngressLimits {
            telemetry: Limits::default(),
            unregistered_messages_per_minute: 1,
            unverified_replies_per_minute: 1,
            submit_timeout: day,
        },
        metrics: metrics.ingress.clone(),
        time: metrics.stages.decode.clone(),
        fatal: super::super::fatal().0,
    })
}

#[actix::test]
async fn success_for_what_is_not_on_the_ledger_waits_for_the_disk() {
    let (disk, told) = (SlowDisk::new(), Arc::new(Told::default()));
    let ingress = ingress(&disk.log, Arc::clone(&told)).start();
    ingress.send(TellFinal { message: message(FinalVerdict::NotWritten), place: None }).await.unwrap();
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(*told.0.lock().unwrap(), Vec::<String>::new());
    disk.let_sync();
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(*told.0.lock().unwrap(), ["devices/iot/env/datas"]);
}

#[actix::test]
async fn success_for_what_a_quorum_certified_does_not_wait() {
    let (disk, told) = (SlowDisk::new(), Arc::new(Told::default()));
    let ingress = ingress(&disk.log, Arc::clone(&told)).start();
    let written = FinalVerdict::Written { items: vec![0], height: Height(1), block: Hash([2; 32]) };
    ingress.send(TellFinal { message: message(written), place: None }).await.unwrap();
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(told.0.lock().unwrap().len(), 1);
    disk.let_sync();
}

#[actix::test]
async fn a_copy_of_a_final_message_is_acknowledged_only_when_that_is_on_disk() {
    let disk = SlowDisk::new();
    let accepted = LogRecord::Final {
        client: message(FinalVerdict::NotWritten).client,
        seq: MessageSeq(1),
        is_written: false,
    };
    disk.log.append(vec![accepted.entry()]).await.unwrap();
    let (metrics, nobody) = (Metrics::new().unwrap(), Nobody.start());
    let dir = tempfile::tempdir().unwrap();
    let store = SledStore::open(dir.path(), &StoreSettings::new(NETWORK)).unwrap();
    let limits = BasesLimits { cached_items: 16, open_items: 16 };
    let parts = VerifierParts {
        view: Arc::default(),
        bases: Arc::new(Bases::new(Arc::new(store), limits, metrics.queues.queue("open_items"))),
        network: NETWORK,
        limits: Limits::default(),
        admission: Arc::new(Admission::default()),
        log: disk.log.clone(),
        policy: (nobody.clone().recipient(), nobody.clone().recipient()),
        storage: nobody.clone().recipient(),
        take_up: nobody.recipient(),
        workers: Workers::new(),
        ahead: Ahead::new(metrics.queues.queue("ahead_kib")),
        history: (
            Backlog::new(1 << 20, metrics.queues.queue("history_kib")),
            HistoryFeed::to_nowhere(super::super::fatal().0),
        ),
        patience: A_WHILE,
        clock: SystemClock::shared(),
        time: metrics.stages.verify.clone(),
        fatal: super::super::fatal().0,
    };
    let verdict = FinalVerdict::NotWritten;
    let repeat = parts.repeat(Standing::Final(verdict.clone()), message(verdict));
    tokio::pin!(repeat);
    assert!(tokio::time::timeout(A_WHILE, &mut repeat).await.is_err(), "acknowledged too early");
    disk.let_sync();
    assert!(matches!(repeat.await, Verification::Known(_)));
}

#[actix::test]
async fn an_error_of_the_ledger_says_that_the_node_had_accepted_the_message() {
    let disk = SlowDisk::new();
    let mut ingress = ingress(&disk.log, Arc::default());
    let too_old = FinalVerdict::Rejected(Rejection::SeqTooOld { highest: MessageSeq(300) });
    let Reply::Error(error) = ingress.final_reply(&message(too_old)) else { panic!("no error") };
    assert_eq!(error.code, ErrorCode::SeqTooOld);
    assert_eq!(error.detail, "accepted before; the seq is too far below 300, the highest on the ledger");
}

#[test]
fn every_error_code_is_counted_from_the_start() {
    for code in ErrorCode::ALL {
        assert!(crate::metrics::MESSAGE_OUTCOMES.contains(&code.as_str()), "{code}");
    }
}
