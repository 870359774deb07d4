//! The node as its HTTP API sees it.

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use actix::{Addr, Recipient};
use async_trait::async_trait;
use tokio::sync::{Notify, oneshot};

use super::insight::{Ledger, Watchman, consensus_view, measure};
use super::recent::Recent;
use crate::actors::consensus::{Consensus, ReadInsight, ReadStatus, SubmitRequest};
use crate::actors::policy::submit;
use crate::actors::storage::{AdminOutcome, AwaitAdmin, Awaited};
use crate::actors::view::{LedgerView, RegisteredClient};
use crate::api::{
    ClientPage, ClientView, ConsensusView, NodeView, PeerView, ReplicaView, Status, SubmitError, Submitted,
    ViewError,
};
use crate::clock::SharedClock;
use crate::ledger::{
    AdminOperation, Block, Certificate, Genesis, Header, Inclusion, Operation, Policies, ProofBundle,
    Request, VerifiedRequest,
};
use crate::metrics::ConsensusMetrics;
use crate::network::{NetworkHandle, PeerStatus};
use crate::pbft::Insight;
use crate::pbft::diagnosis::{self, Code, Diagnosis, Facts};
use crate::store::evidence::{EvidenceKey, EvidencePage};
use crate::store::ledger::{RecordPage, RecordQuery};
use crate::store::{EvidenceStore, LedgerStore, Log, StoreError};
use crate::types::{ClientId, Hash, Height, NetworkId, NodeId, Timestamp};

/// How long the consensus loop may take to answer before the node calls itself stuck.
const LOOP_ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// How often health is looked at.
const HEALTH_INTERVAL: Duration = Duration::from_millis(500);

/// What probes are told; written by [`ApiView::watch_health`].
#[derive(Debug, Clone)]
struct Health {
    live: Result<(), String>,
    ready: Result<(), String>,
}

/// See the module.
pub(super) struct ApiView {
    pub(super) genesis: Genesis,
    pub(super) network_id: NetworkId,
    pub(super) node: NodeId,
    pub(super) started: Timestamp,
    /// When that was, in monotonic time.
    pub(super) started_monotonic: Duration,
    pub(super) clock: SharedClock,
    pub(super) ledger: Arc<LedgerView>,
    pub(super) store: Arc<dyn LedgerStore>,
    pub(super) evidence: Arc<EvidenceStore>,
    pub(super) log: Log,
    pub(super) network: NetworkHandle,
    pub(super) consensus: Addr<Consensus>,
    pub(super) storage: Recipient<AwaitAdmin>,
    pub(super) room: Arc<Notify>,
    pub(super) mqtt: std::net::SocketAddr,
    pub(super) operation_timeout: Duration,
    pub(super) health: HealthBoard,
    pub(super) watchman: Mutex<Watchman>,
    pub(super) recent: Recent<Arc<Seen>>,
    pub(super) metrics: ConsensusMetrics,
}

/// The node, as it was seen at one moment.
pub(super) struct Seen {
    insight: Insight,
    facts: Facts,
    peers: Vec<PeerStatus>,
}

/// The last health seen.
pub(super) struct HealthBoard(RwLock<Health>);

impl HealthBoard {
    /// Alive and not ready, as every node starts.
    pub(super) fn starting() -> Self {
        Self(RwLock::new(Health { live: Ok(()), ready: Err("the node is starting".to_owned()) }))
    }

    fn read(&self) -> Health {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ApiView {
    /// Looks at the node's health again and again, for the probes. Liveness is about this node's own
    /// loop alone: a partition must not have all nodes restarted.
    pub(super) async fn watch_health(self: Arc<Self>) {
        let mut last_final = (self.ledger.progress().certified, self.clock.monotonic());
        loop {
            let health = self.look(&mut last_final).await;
            *self.health.0.write().unwrap_or_else(PoisonError::into_inner) = health;
            tokio::time::sleep(HEALTH_INTERVAL).await;
        }
    }

    async fn look(&self, last_final: &mut (crate::types::SeqNum, Duration)) -> Health {
        let seen = self.observe().await;
        let now = self.clock.monotonic();
        let answered = seen.as_ref().and_then(|seen| seen.facts.loop_silent);
        let silent = answered.unwrap_or_else(|| now.saturating_sub(self.started_monotonic));
        if silent >= LOOP_ANSWERS_WITHIN {
            let stuck = format!("the consensus loop has not answered for {} s", silent.as_secs());
            return Health { live: Err(stuck.clone()), ready: Err(stuck) };
        }
        let Some(Seen { insight, facts, .. }) = seen else {
            return Health { live: Ok(()), ready: Err("the node is starting".to_owned()) };
        };
        let diagnosis = diagnosis::diagnose(&insight, &facts);
        measure(&self.metrics, &insight, &diagnosis);
        let certified = self.ledger.progress().certified;
        let idle = insight.status.pending == 0 && insight.waiting.is_none() && insight.uncertified.is_none();
        if certified > last_final.0 || idle {
            *last_final = (certified, now);
        }
        let stalled = now.saturating_sub(last_final.1);
        Health { live: Ok(()), ready: self.judge(&diagnosis, stalled) }
    }

    /// Ready unless a quorum is missing, this node lost its log or is behind, or nothing has become final for
    /// long. It finds the others before it is ready: their addresses are published all the same.
    /// A view change alone is none of these: it is over in a moment, and clients need not leave.
    fn judge(&self, diagnosis: &Diagnosis, stalled: Duration) -> Result<(), String> {
        let severe =
            |code| matches!(code, Code::NoQuorumConnected | Code::ThisNodeIsSilent | Code::ThisNodeIsBehind);
        if let Some(reason) = diagnosis.why.iter().find(|reason| severe(reason.code)) {
            return Err(reason.text.clone());
        }
        if stalled <= self.operation_timeout {
            return Ok(());
        }
        let why = diagnosis.blocking().map_or("something waits", |reason| reason.text.as_str());
        Err(format!("nothing became final for {} s: {why}", stalled.as_secs()))
    }

    /// Asks the consensus loop and the network how things are; none before the loop has answered
    /// for the first time.
    async fn observe(&self) -> Option<Seen> {
        let peers = self.network.peers().await.unwrap_or_default();
        let answer = tokio::time::timeout(diagnosis::PATIENCE, self.consensus.send(ReadInsight)).await;
        let now = self.clock.monotonic();
        let mut watchman = self.watchman.lock().unwrap_or_else(PoisonError::into_inner);
        watchman.see_peers(&self.genesis.replicas, &self.node, &peers, now);
        watchman.see_log(self.log.last(), self.log.synced_position(), now);
        if let Ok(Ok(insight)) = answer {
            watchman.answer = Some((insight, now));
        }
        let insight = watchman.answer.as_ref().map(|(insight, _)| insight.clone())?;
        let facts = watchman.facts(&self.genesis.replicas, &self.node, now);
        Some(Seen { insight, facts, peers })
    }

    /// The same, a moment old at most: for whoever may ask without end.
    async fn recent(&self) -> Option<Arc<Seen>> {
        self.recent.get(async { self.observe().await.map(Arc::new) }).await
    }

    fn inclusion(&self, height: Height, index: u32) -> Result<Option<Inclusion>, StoreError> {
        let (Some(block), Some(certificate)) = (self.store.block(height)?, self.store.certificate(height)?)
        else {
            return Ok(None);
        };
        let Ok(tree) = block.tree() else { return Ok(None) };
        Ok(Inclusion::new(&block, &tree, &certificate, index).ok())
    }

    fn prove(&self, height: Height, operation: u32) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(write) = self.inclusion(height, operation)? else { return Ok(None) };
        let Operation::Write { request, .. } = &write.operation else { return Ok(None) };
        let header = crate::device::Header::decode(&request.header).ok();
        let Some(client) = header.and_then(|header| self.ledger.client(&header.client)) else {
            return Ok(None);
        };
        let (height, operation) = client.registered;
        let registration = self.inclusion(height, operation)?;
        Ok(registration.map(|registration| ProofBundle { registration, write }.encode()))
    }
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn failed(error: StoreError) -> ViewError {
    ViewError::Failed(error.to_string())
}

fn client_view(client: ClientId, registered: &RegisteredClient) -> ClientView {
    ClientView {
        client,
        key: registered.key.public(),
        settings: registered.settings,
        registered_height: registered.registered.0,
        registered_operation: registered.registered.1,
        revoked_after: registered.revoked,
        highest_seq: registered.highest(),
    }
}

#[async_trait]
impl NodeView for ApiView {
    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn genesis(&self) -> &Genesis {
        &self.genesis
    }

    fn liveness(&self) -> Result<(), String> {
        self.health.read().live
    }

    fn readiness(&self) -> Result<(), String> {
        self.health.read().ready
    }

    async fn status(&self) -> Result<Status, ViewError> {
        let (replica, peers) = match self.recent().await {
            Some(seen) => (seen.insight.status, seen.peers.clone()),
            None => {
                let replica = self.consensus.send(ReadStatus).await.map_err(|_| ViewError::Stopping)?;
                (replica, self.network.peers().await.map_err(|_| ViewError::Stopping)?)
            }
        };
        let set = &self.genesis.replicas;
        let replicas = set.members().iter().map(|node| ReplicaView {
            node: *node,
            connected: *node == self.node || peers.iter().any(|peer| peer.node == *node),
        });
        let progress = self.ledger.progress();
        let header = self.store.header(progress.executed.height).map_err(failed)?;
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            network: self.network_id,
            name: self.genesis.name.clone(),
            node: self.node,
            replica: set.index_of(&self.node).and_then(|index| u16::try_from(index).ok()),
            replicas: replicas.collect(),
            f: set.f(),
            quorum: set.quorum(),
            view: replica.view,
            primary: replica.primary,
            changing: replica.changing,
            silent: replica.silent,
            sequence: progress.executed.sequence,
            height: progress.executed.height,
            block: progress.executed.block,
            block_time: header.map_or(Timestamp(0), |header| header.timestamp),
            certified_height: self.store.certified_height(),
            indexed_height: self.store.indexed_height(),
            pool_requests: replica.pending,
            mqtt: Some(self.mqtt.to_string()),
            started: self.started,
            time: self.now(),
            ready: self.readiness().is_ok(),
            peers: peers
                .into_iter()
                .map(|peer| PeerView {
                    node: peer.node,
                    addresses: peer.addresses.iter().map(ToString::to_string).collect(),
                    connected_since: peer.connected_since,
                    rtt_ms: peer.rtt.map(|rtt| rtt.as_secs_f64() * 1000.0),
                })
                .collect(),
        })
    }

    async fn consensus(&self) -> Result<ConsensusView, ViewError> {
        let starting = || ViewError::Failed("the consensus loop has not answered yet".to_owned());
        let seen = self.recent().await.ok_or_else(starting)?;
        let executed = self.ledger.progress().executed;
        let ledger = Ledger {
            network: self.network_id,
            height: executed.height,
            block: executed.block,
            certified_height: self.store.certified_height(),
        };
        Ok(consensus_view(&seen.insight, &seen.facts, &seen.peers, &ledger))
    }

    async fn clients(&self, after: Option<ClientId>, limit: usize) -> Result<ClientPage, ViewError> {
        let mut found = self.ledger.clients(after.as_ref(), limit + 1);
        let more = found.len() > limit;
        found.truncate(limit);
        let clients: Vec<_> =
            found.into_iter().map(|(client, registered)| client_view(client, &registered)).collect();
        let next = clients.last().filter(|_| more).map(|last| last.client.clone());
        Ok(ClientPage { clients, next })
    }

    async fn client(&self, client: &ClientId) -> Result<Option<ClientView>, ViewError> {
        Ok(self.ledger.client(client).map(|registered| client_view(client.clone(), &registered)))
    }

    fn policies(&self) -> Arc<Policies> {
        self.ledger.policies()
    }

    async fn submit(&self, operation: AdminOperation) -> Result<Submitted, SubmitError> {
        let request = Request::Admin { node: self.node, operation: operation.clone() };
        let request = VerifiedRequest::verify(&self.network_id, request)
            .map_err(|error| SubmitError::Invalid(error.to_string()))?;
        let (answer, outcome) = oneshot::channel();
        match self.storage.send(AwaitAdmin { operation, answer }).await {
            Ok(Awaited::Waiting) => {}
            Ok(Awaited::Refused(rejection)) => return Err(SubmitError::Rejected(rejection.to_string())),
            Ok(Awaited::TooMany) => return Err(SubmitError::Overloaded),
            Err(_) => return Err(SubmitError::Stopping),
        }
        let consensus: Recipient<SubmitRequest> = self.consensus.clone().recipient();
        let ordered = async {
            let _stopping_if_none = submit(&consensus, &self.room, Arc::new(request)).await;
            outcome.await
        };
        match tokio::time::timeout(self.operation_timeout, ordered).await {
            Err(_) => Err(SubmitError::Timeout),
            Ok(Err(_)) => Err(SubmitError::Stopping),
            Ok(Ok(AdminOutcome::Executed { height, operation })) => Ok(Submitted { height, operation }),
            Ok(Ok(AdminOutcome::Rejected(rejection))) => Err(SubmitError::Rejected(rejection.to_string())),
        }
    }

    fn certified_height(&self) -> Height {
        self.store.certified_height()
    }

    fn header(&self, height: Height) -> Result<Option<Header>, ViewError> {
        self.store.header(height).map_err(failed)
    }

    fn block(&self, height: Height) -> Result<Option<Block>, ViewError> {
        self.store.block(height).map_err(failed)
    }

    fn certificate(&self, height: Height) -> Result<Option<Certificate>, ViewError> {
        self.store.certificate(height).map_err(failed)
    }

    fn records(&self, query: &RecordQuery) -> Result<RecordPage, ViewError> {
        self.store.records(query).map_err(failed)
    }

    fn bundle(&self, height: Height, operation: u32) -> Result<Option<Vec<u8>>, ViewError> {
        self.prove(height, operation).map_err(failed)
    }

    fn evidence(&self, after: Option<EvidenceKey>, limit: usize) -> EvidencePage {
        self.evidence.page(after, limit)
    }

    fn evidence_bytes(&self, id: &Hash) -> Result<Option<Vec<u8>>, ViewError> {
        self.evidence.bytes(id).map_err(failed)
    }
}
