//! A node: builds the actors bottom-up, wires them, runs until it is told to stop or cannot go on.
//!
//! ```text
//! start:  store, log ─▶ network ─▶ Storage, Consensus, effects ─▶ Policy, Verifier, Ingress
//!         ─▶ accepted messages of the log resume ─▶ MQTT, HTTP
//! stop:   MQTT ─▶ HTTP ─▶ history ─▶ network ─▶ last save of the ledger ─▶ log
//! ```
//!
//! One multi-thread tokio runtime carries everything; actors with state that must not wait for
//! others (Consensus, Storage) have a thread of their own on it.

mod device;
mod gatekeeper;
mod history;
mod insight;
mod open;
mod recent;
mod verdict;
mod view;

use std::sync::Arc;

use actix::{Actor, Addr, Arbiter};
use anyhow::Context as _;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;

use crate::actors::admission::MAX_PENDING;
use crate::actors::changed::ChangedClients;
use crate::actors::consensus::Consensus;
use crate::actors::downlink::Downlink;
use crate::actors::effects::{self, Effects};
use crate::actors::evidence::{EvidenceKeeper, KeeperParts};
use crate::actors::finals::{Finals, TellFinal};
use crate::actors::network::{Intake, Judge, Network as NetworkActor};
use crate::actors::notices::Notices;
use crate::actors::storage::{Storage, StorageOutlets, StorageParts};
use crate::actors::tally::{ConsensusTally, StorageTally};
use crate::actors::transfer::progress::TransferBoard;
use crate::actors::transfer::serve::Serving;
use crate::actors::transfer::{self, TransferParts};
use crate::actors::verifier::{RequestVerifier, Workers};
use crate::actors::view::LedgerView;
use crate::actors::{Fatal, FatalReceiver, Feeder, KeyMark, Mouth, fatal, feeder};
use crate::api::Api;
use crate::broker::{Broker, BrokerSettings, EmbeddedBroker};
use crate::clock::{SharedClock, SystemClock};
use crate::config::{self, Config};
use crate::crypto::SecretKey;
use crate::device::telemetry::Limits;
use crate::keyfile;
use crate::ledger::{Genesis, ReplicaSetKeys};
use crate::metrics::Metrics;
use crate::network::{Network, NetworkEvent, NetworkHandle, NetworkSettings, SwarmKey};
use crate::pbft::{Output, Replica, Settings, SetupError};
use crate::store::Log;
use crate::types::NetworkId;
use device::{resume, start_device_side, start_upkeep};
use open::Opened;

/// Results on their way to Consensus. The core has at most 256 batches in execution.
const RESULTS: usize = 1_024;

/// Final messages on their way to Ingress: each keeps its place among the accepted ones.
const FINALS: usize = MAX_PENDING;

/// Orders from the core on their way to Storage: a window of batches and certificates.
const STORAGE_ORDERS: usize = 1_024;

/// Fetched requests, blocks and certificates on their way to Consensus; fetches wait beyond it.
const FETCHED: usize = 64;

/// MQTT's part of a packet besides the payload: header, topic and properties.
const MQTT_OVERHEAD_BYTES: u32 = 4_096;

/// What all parts share.
struct Shared {
    config: Config,
    genesis: Genesis,
    network_id: NetworkId,
    key: SecretKey,
    keys: Arc<ReplicaSetKeys>,
    clock: SharedClock,
    metrics: Arc<Metrics>,
    workers: Workers,
    view: Arc<LedgerView>,
    room: Arc<Notify>,
    /// How far the fetching of blocks is.
    transfer: Arc<TransferBoard>,
    fatal: Fatal,
    /// The runtime, for the threads of actors.
    runtime: Arc<tokio::runtime::Runtime>,
}

/// Runs a node until SIGTERM or SIGINT, or until it cannot go on.
///
/// Blocks; makes its own runtime.
///
/// # Errors
/// What kept it from starting, or made it stop. Each says what to do.
pub fn run(config: Config) -> anyhow::Result<()> {
    let workers = config.worker_threads.map_or_else(default_workers, |workers| workers as usize);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build()?;
    let runtime = Arc::new(runtime);
    let shared = Arc::clone(&runtime);
    actix::System::with_tokio_rt(move || shared).block_on(Box::pin(run_on(config, runtime)))
}

/// Half the processors: those who serve connections hand most of the work to threads of its own, and
/// more of them would only wake each other.
fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(1, |processors| processors.get().div_ceil(2))
}

/// Reads all files that the settings name, as a node does at its start, and says what they are.
///
/// # Errors
/// What would keep a node from starting.
pub fn check(config: &Config) -> anyhow::Result<String> {
    let genesis = config::read_genesis(&config.genesis)?;
    let node = keyfile::read(&config.node_key)?.node_id();
    if let Some(path) = &config.p2p.swarm_key {
        keyfile::read_swarm_key(path)?;
    }
    Log::check(&config.data_dir.join("log"), &genesis.network_id())?;
    // As the node would say it at its start.
    let at = genesis.replicas.index_of(&node).ok_or(SetupError::NotAReplica(node))?;
    let n = genesis.replicas.n();
    Ok(format!("The settings are right: network {}, node {node}, replica {at} of {n}", genesis.network_id()))
}

async fn run_on(config: Config, runtime: Arc<tokio::runtime::Runtime>) -> anyhow::Result<()> {
    let (fatal, mut stop_reason) = fatal();
    let shared = Shared::load(config, fatal.clone(), runtime)?;
    // Parts that end because another could not be started are no failure of theirs.
    let node = Node::start(shared).await.inspect_err(|_| fatal.stop_in_order())?;
    let result = node.wait(&mut stop_reason).await;
    node.stop(&fatal).await;
    result
}

impl Shared {
    fn load(config: Config, fatal: Fatal, runtime: Arc<tokio::runtime::Runtime>) -> anyhow::Result<Self> {
        let genesis = config::read_genesis(&config.genesis)?;
        let key = keyfile::read(&config.node_key)?;
        let keys = Arc::new(ReplicaSetKeys::new(&genesis.replicas)?);
        Ok(Self {
            network_id: genesis.network_id(),
            key,
            keys,
            genesis,
            clock: SystemClock::shared(),
            metrics: Metrics::new()?,
            workers: Workers::new(),
            view: Arc::new(LedgerView::default()),
            room: Arc::new(Notify::new()),
            transfer: Arc::default(),
            fatal,
            config,
            runtime,
        })
    }

    fn arbiter(&self) -> Arbiter {
        let runtime = Arc::clone(&self.runtime);
        Arbiter::with_tokio_rt(move || runtime)
    }

    fn feeder<M>(&self, name: &'static str, capacity: usize) -> (Feeder<M>, Mouth<M>) {
        feeder(name, capacity, self.metrics.queues.queue(name), self.fatal.clone())
    }

    async fn start_network(&self) -> anyhow::Result<(NetworkHandle, mpsc::Receiver<NetworkEvent>)> {
        let p2p = &self.config.p2p;
        let swarm_key = match &p2p.swarm_key {
            Some(path) => Some(SwarmKey::new(*keyfile::read_swarm_key(path)?)),
            None => None,
        };
        let settings = NetworkSettings {
            listen: p2p.listen.clone(),
            bootstrap: p2p.bootstrap.clone(),
            resolve_interval: p2p.resolve_interval,
            external: p2p.announce.clone(),
            swarm_key,
            mdns: p2p.mdns,
            reserved: self.genesis.replicas.members().to_vec(),
            mqtt: self.config.mqtt.announce.clone(),
            api: self.config.api.announce.clone(),
            max_connections: p2p.max_connections,
            time: self.metrics.stages.network.clone(),
            ..NetworkSettings::default()
        };
        let clock = Arc::clone(&self.clock);
        Network::start(settings, &self.key, self.network_id, clock, self.metrics.registry())
            .await
            .context("setting p2p.listen, or another one of [p2p]")
    }

    fn replica_settings(&self) -> anyhow::Result<Settings> {
        let consensus = &self.config.consensus;
        let mut settings = Settings::new(self.network_id, self.genesis.replicas.clone(), self.key.clone());
        settings.batch_delay = consensus.batch_delay;
        settings.batch_max_requests = usize::try_from(consensus.batch_max_requests)?;
        settings.batch_max_bytes = usize::try_from(consensus.batch_max_bytes)?;
        settings.resend_initial = consensus.resend_interval;
        settings.resend_max = consensus.resend_max_interval;
        settings.request_resend = consensus.request_resend_interval;
        settings.request_resend_max = consensus.request_resend_max_interval;
        settings.pipeline_batches = u64::from(consensus.pipeline_batches);
        settings.bundle_delay = consensus.bundle_delay;
        settings.fetch_interval = consensus.fetch_interval;
        settings.request_timeout = consensus.request_timeout;
        settings.request_timeout_max = consensus.request_timeout_max;
        settings.inflight_max_bytes = usize::try_from(consensus.inflight_max_bytes)?;
        settings.pool_max_requests = usize::try_from(consensus.pool_max_requests)?;
        settings.pool_max_bytes = usize::try_from(consensus.pool_max_bytes)?;
        Ok(settings)
    }

    fn message_limits(&self) -> Limits {
        let mqtt = &self.config.mqtt;
        Limits {
            wire_bytes: mqtt.max_packet_bytes as usize,
            body_bytes: mqtt.max_body_bytes as usize,
            ahead_ms: u64::try_from(mqtt.clock_ahead.as_millis()).unwrap_or(u64::MAX),
        }
    }

    fn broker_settings(&self) -> BrokerSettings {
        let mqtt = &self.config.mqtt;
        BrokerSettings {
            max_packet_bytes: mqtt.max_packet_bytes.saturating_add(MQTT_OVERHEAD_BYTES),
            max_sessions: mqtt.max_connections,
            max_strangers: mqtt.max_unregistered_connections,
            max_inflight: mqtt.max_inflight,
            max_queued_downlink: mqtt.max_queued_replies as usize,
            session_expiry: mqtt.session_expiry,
            ..BrokerSettings::new(mqtt.listen)
        }
    }
}

/// A running node.
struct Node {
    broker: Arc<EmbeddedBroker>,
    api: Api,
    probes: Option<Api>,
    network: NetworkHandle,
    log: crate::store::Log,
    history: history::Running,
    stopping: watch::Sender<bool>,
    upkeep: Vec<JoinHandle<()>>,
}

/// The middle of a node: what the device side and the API stand on.
struct Core {
    opened: Opened,
    network: NetworkHandle,
    storage: Addr<Storage>,
    consensus: Addr<Consensus>,
    finals: Finals,
    history: history::History,
    to_ingress: (Mouth<TellFinal>, ChangedClients),
}

impl Node {
    async fn start(shared: Shared) -> anyhow::Result<Self> {
        let shared = Arc::new(shared);
        let opener = Arc::clone(&shared);
        let opened = tokio::task::spawn_blocking(move || {
            open::open(&opener.config, &opener.genesis, Arc::clone(&opener.clock), &opener.metrics)
        });
        let opened = opened.await??;
        let mut core = start_core(&shared, opened).await?;
        let accepted = std::mem::take(&mut core.opened.accepted);
        let downlink = Downlink::new(shared.network_id, shared.key.clone(), shared.metrics.ingress.clone());
        let downlink = downlink.timed(shared.metrics.stages.acks.clone());
        let (log, network) = (core.opened.log.clone(), core.network.clone());
        let (stopping, upkeep) = start_upkeep(&shared, &core);
        let (storage, consensus, store) =
            (core.storage.clone(), core.consensus.clone(), Arc::clone(&core.opened.store));
        let evidence = Arc::clone(&core.opened.evidence);
        let (ingress, verifier, history) = start_device_side(&shared, core, &downlink)?;
        tokio::spawn(resume(verifier, accepted));
        let gatekeeper = gatekeeper::NodeGatekeeper {
            network: shared.network_id,
            view: Arc::clone(&shared.view),
            ingress,
            clock: Arc::clone(&shared.clock),
            token_max_age: shared.config.mqtt.token_max_age,
            metrics: shared.metrics.ingress.clone(),
        };
        let broker =
            EmbeddedBroker::start(shared.broker_settings(), Arc::new(gatekeeper), Arc::clone(&shared.clock));
        let broker = Arc::new(broker.await.context("setting mqtt.listen")?);
        downlink.connect(Arc::clone(&broker) as Arc<dyn Broker>);
        let view = Arc::new(view::ApiView {
            genesis: shared.genesis.clone(),
            network_id: shared.network_id,
            node: shared.key.node_id(),
            started: shared.clock.now(),
            started_monotonic: shared.clock.monotonic(),
            clock: Arc::clone(&shared.clock),
            ledger: Arc::clone(&shared.view),
            store,
            evidence,
            log: log.clone(),
            network: network.clone(),
            consensus,
            storage: storage.recipient(),
            room: Arc::clone(&shared.room),
            mqtt: broker.local_addr(),
            operation_timeout: shared.config.api.operation_timeout,
            health: view::HealthBoard::starting(),
            recent: recent::Recent::new(Arc::clone(&shared.clock)),
            watchman: std::sync::Mutex::default(),
            metrics: shared.metrics.consensus.clone(),
        });
        tokio::spawn(Arc::clone(&view).watch_health());
        let (api, probes) = start_api(&shared, view)?;
        tracing::info!(
            node = %shared.key.node_id(), network = %shared.network_id,
            mqtt = %broker.local_addr(), api = %api.local_addr(), "node started"
        );
        Ok(Self { broker, api, probes, network, log, history, stopping, upkeep })
    }

    /// Waits for a signal, or for a reason to give up.
    async fn wait(&self, reason: &mut FatalReceiver) -> anyhow::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::select! {
            _ = term.recv() => tracing::info!("SIGTERM: stopping"),
            _ = int.recv() => tracing::info!("SIGINT: stopping"),
            reason = reason.reason() => return Err(reason),
            error = self.log.failed() => return Err(anyhow::Error::new(error).context("the log failed")),
            ended = async {
                match &self.probes {
                    Some(probes) => probes.ended().await,
                    None => std::future::pending().await,
                }
            } => anyhow::bail!("the http server for probes ended: {ended}"),
            ended = self.api.ended() => anyhow::bail!("the http server ended: {ended}"),
        }
        Ok(())
    }

    /// No new messages, no new requests, then a last save. What is on its way then is in the log,
    /// as far as anybody was told of it, and goes on at the next start.
    async fn stop(self, fatal: &Fatal) {
        fatal.stop_in_order();
        self.broker.stop().await;
        self.api.stop().await;
        if let Some(probes) = &self.probes {
            probes.stop().await;
        }
        self.history.stop().await;
        self.network.shutdown().await;
        self.stopping.send_replace(true);
        for task in self.upkeep {
            if let Err(error) = task.await {
                tracing::warn!(%error, "the upkeep did not end in order");
            }
        }
        match self.log.close().await {
            Ok(()) => tracing::info!("node stopped"),
            Err(error) => tracing::error!(%error, "the log did not close in order"),
        }
    }
}

/// Starts the HTTP servers: the API, and the one for probes if there is to be one.
fn start_api(shared: &Shared, view: Arc<view::ApiView>) -> anyhow::Result<(Api, Option<Api>)> {
    let settings = &shared.config.api;
    let api = Api::start(settings, Arc::clone(&view) as Arc<_>, Arc::clone(&shared.metrics)).with_context(
        || format!("cannot listen for http on {}; set api.listen to a free address", settings.listen),
    )?;
    let probes = Api::start_probes(settings, view, Arc::clone(&shared.metrics))
        .context("cannot listen for probes; set api.probes_listen to a free address")?;
    if let Some(probes) = &probes {
        tracing::info!(probes = %probes.local_addr(), "probes are answered");
    }
    Ok((api, probes))
}

/// Starts network, Storage, Consensus and the pipeline between them.
async fn start_core(shared: &Arc<Shared>, mut opened: Opened) -> anyhow::Result<Core> {
    let (network, events) = shared.start_network().await?;
    let replica = Replica::new(
        shared.replica_settings()?,
        opened.restored.take().context("a replica is restored once")?,
    )?;

    let (executed, executed_mouth) = shared.feeder("executed", RESULTS);
    let (to_ingress, finals_mouth) = shared.feeder("finals", FINALS);
    let history = history::History::new(shared, opened.log.clone()).await?;
    let finals = Finals::new(
        Arc::clone(&opened.admission),
        Arc::clone(&opened.bases),
        to_ingress,
        Arc::clone(&shared.clock),
        shared.metrics.ingress.final_ms.clone(),
    )
    .with_history(history.feed.clone());
    let clients = ChangedClients::default();
    let outlets = StorageOutlets { executed, finals: finals.clone(), clients: clients.clone() };
    let storage = start_storage(shared, &mut opened, outlets)?;

    let (outputs, outputs_queue) = mpsc::channel(effects::OUTPUTS);
    let consensus = Consensus::new(
        replica,
        Arc::clone(&shared.clock),
        outputs,
        Arc::clone(&shared.room),
        ConsensusTally::new(
            shared.key.node_id(),
            shared.metrics.consensus.clone(),
            shared.metrics.queues.queue("outputs"),
        )
        .timed(shared.metrics.stages.consensus.clone()),
        Notices::new(shared.metrics.consensus.clone(), shared.fatal.clone()),
        shared.fatal.vital("Consensus"),
    );
    let consensus = Consensus::start_in_arbiter(&shared.arbiter().handle(), move |_| consensus);
    executed_mouth.connect(consensus.clone());
    history.connect(&consensus);

    let verifier = start_effects(shared, &opened, &network, &storage, &consensus, outputs_queue);
    let judge = judge(shared, &opened, &network, &consensus, verifier);
    NetworkActor::start_with(judge, events, &shared.fatal);
    let to_ingress = (finals_mouth, clients);
    Ok(Core { opened, network, storage, consensus, finals, history, to_ingress })
}

/// Starts what carries out the core's effects, the transfer among it.
fn start_effects(
    shared: &Shared,
    opened: &Opened,
    network: &NetworkHandle,
    storage: &Addr<Storage>,
    consensus: &Addr<Consensus>,
    outputs: mpsc::Receiver<Output>,
) -> RequestVerifier {
    let (to_storage, to_storage_mouth) = shared.feeder("storage_orders", STORAGE_ORDERS);
    let (requests, requests_mouth) = shared.feeder("fetched_requests", FETCHED);
    let (synced, synced_mouth) = shared.feeder("synced_blocks", FETCHED);
    let (certificates, certificates_mouth) = shared.feeder("fetched_certificates", FETCHED);
    to_storage_mouth.connect(storage.clone());
    requests_mouth.connect(consensus.clone());
    synced_mouth.connect(consensus.clone());
    certificates_mouth.connect(consensus.clone());
    let (batches, batches_mouth) = shared.feeder("fetched_batches", FETCHED);
    let (messages, messages_mouth) = shared.feeder("fetched_views", FETCHED);
    batches_mouth.connect(consensus.clone());
    messages_mouth.connect(consensus.clone());
    let verifier = RequestVerifier::new(shared.network_id, shared.workers.clone())
        .timed(shared.metrics.stages.requests.clone());
    let transfer = transfer::start(TransferParts {
        network_id: shared.network_id,
        node: shared.key.node_id(),
        keys: Arc::clone(&shared.keys),
        network: network.clone(),
        storage: storage.clone(),
        synced,
        view: Arc::clone(&shared.view),
        workers: shared.workers.clone(),
        settings: shared.config.transfer.clone(),
        clock: Arc::clone(&shared.clock),
        metrics: shared.metrics.transfer.clone(),
        board: Arc::clone(&shared.transfer),
        fatal: shared.fatal.clone(),
    });
    let parts = Effects {
        key: shared.key.clone(),
        network_id: shared.network_id,
        keys: Arc::clone(&shared.keys),
        log: opened.log.clone(),
        marks: Arc::clone(&opened.marks),
        network: network.clone(),
        to_storage,
        transfer,
        store: Arc::clone(&opened.store),
        requests,
        certificates,
        batches,
        messages,
        verifier: verifier.clone(),
        workers: shared.workers.clone(),
        evidence: evidence_keeper(shared, opened),
        key_mark: KeyMark::of(&shared.config),
        fatal: shared.fatal.clone(),
    };
    effects::start(parts, outputs);
    verifier
}

fn judge(
    shared: &Shared,
    opened: &Opened,
    network: &NetworkHandle,
    consensus: &Addr<Consensus>,
    verifier: RequestVerifier,
) -> Judge {
    Judge {
        network_id: shared.network_id,
        keys: Arc::clone(&shared.keys),
        network: network.clone(),
        consensus: consensus.clone(),
        gate: Arc::default(),
        intake: Arc::new(Intake::new(shared.keys.replicas().members())),
        clock: Arc::clone(&shared.clock),
        verifier,
        workers: shared.workers.clone(),
        store: Arc::clone(&opened.store),
        votes: shared.metrics.stages.votes.clone(),
        requests: shared.metrics.stages.requests.clone(),
        serving: Serving::new(
            &shared.config.transfer,
            &shared.genesis.replicas,
            shared.metrics.transfer.clone(),
            shared.clock.monotonic(),
        ),
    }
}

fn evidence_keeper(shared: &Shared, opened: &Opened) -> EvidenceKeeper {
    EvidenceKeeper::new(KeeperParts {
        network_id: shared.network_id,
        keys: Arc::clone(&shared.keys),
        store: Arc::clone(&opened.evidence),
        clock: Arc::clone(&shared.clock),
        workers: shared.workers.clone(),
        metrics: shared.metrics.consensus.clone(),
    })
}

fn start_storage(
    shared: &Shared,
    opened: &mut Opened,
    outlets: StorageOutlets,
) -> anyhow::Result<Addr<Storage>> {
    let parts = StorageParts {
        node: shared.key.node_id(),
        store: Arc::clone(&opened.store),
        view: Arc::clone(&shared.view),
        outlets,
        clock: Arc::clone(&shared.clock),
        tally: StorageTally::new(&shared.metrics.consensus, &shared.metrics.storage)
            .timed(&shared.metrics.stages),
        fatal: shared.fatal.clone(),
    };
    let storage = Storage::new(parts, opened.state.take().context("the ledger's state is used once")?);
    Ok(Storage::start_in_arbiter(&shared.arbiter().handle(), move |_| storage))
}
