//! The API over real HTTP, on a node that is a plain table.

mod ledger;
mod node;
mod operations;
mod serving;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use async_trait::async_trait;
use serde_json::Value as Json;

use super::*;
use crate::crypto::SecretKey;
use crate::device::{Item, Value};
use crate::ledger::{
    AdminAction, AdminOperation, Block, Certificate, CheckpointContent, ClientSettings, Genesis, Header,
    Operation, Policies, ReplicaSet,
};
use crate::pbft::evidence::{Fault, FaultKind};
use crate::policy::{Pattern, PolicySet, Quota};
use crate::store::evidence::{EvidenceKey, EvidencePage, StoredEvidence};
use crate::store::ledger::{RecordKey, RecordPage, RecordQuery, StoredRecord};
use crate::types::{
    ClientId, Hash, Height, MessageSeq, NetworkId, NodeId, SeqNum, Signature, Stream, Timestamp, View,
};

const HEIGHT: u64 = 5;

/// A node with five blocks, each with one registration, of which the last has no certificate.
struct FakeNode {
    genesis: Genesis,
    admin: SecretKey,
    ready: AtomicBool,
    /// 1: the next who lists evidence is to hang; 2: it does.
    disk: AtomicU8,
}

impl FakeNode {
    fn new() -> Arc<Self> {
        let admin = SecretKey::from_seed(&[1; 32]);
        let genesis = Genesis {
            version: 1,
            name: "test".into(),
            created: Timestamp(1),
            replicas: ReplicaSet::new(vec![NodeId([7; 32])]).unwrap(),
            admins: vec![admin.public()],
        };
        Arc::new(Self { genesis, admin, ready: AtomicBool::new(true), disk: AtomicU8::new(0) })
    }

    fn operation(&self, sequence: u64) -> AdminOperation {
        let action = AdminAction::RegisterClient {
            client: ClientId::new("devices/iot").unwrap(),
            key: SecretKey::from_seed(&[2; 32]).public(),
            settings: ClientSettings::default(),
        };
        AdminOperation::sign(self.genesis.network_id(), &self.admin, sequence, action)
    }

    fn client_view(&self) -> ClientView {
        ClientView {
            client: ClientId::new("devices/iot").unwrap(),
            key: self.admin.public(),
            settings: ClientSettings::default(),
            registered_height: Height(1),
            registered_operation: 0,
            revoked_after: None,
            highest_seq: MessageSeq(3),
        }
    }
}

#[async_trait]
impl NodeView for FakeNode {
    fn now(&self) -> Timestamp {
        Timestamp(42)
    }

    fn genesis(&self) -> &Genesis {
        &self.genesis
    }

    fn liveness(&self) -> Result<(), String> {
        Ok(())
    }

    fn readiness(&self) -> Result<(), String> {
        if self.ready.load(Ordering::SeqCst) { Ok(()) } else { Err("0 of 3 replicas connected".into()) }
    }

    async fn status(&self) -> Result<Status, ViewError> {
        Err(ViewError::Stopping)
    }

    async fn consensus(&self) -> Result<ConsensusView, ViewError> {
        let node = self.genesis.replicas.members()[0];
        Ok(ConsensusView {
            network: self.genesis.network_id(),
            node,
            replica: Some(0),
            n: 1,
            f: 0,
            quorum: 1,
            view: View(2),
            primary: node,
            view_change: None,
            seen_view: Some(View(2)),
            silent: Some(SilentView { until: None, votes_in_ms: Some(9) }),
            low_watermark: SeqNum(3),
            high_watermark: SeqNum(259),
            executed: SeqNum(4),
            accepted: SeqNum(5),
            known: SeqNum(0),
            height: Height(4),
            block: Hash([9; 32]),
            certified_height: Height(3),
            batches: 1,
            pending_requests: 0,
            oldest_request_ms: None,
            timeout_ms: 1000,
            last_progress_ms: Some(7),
            replicas: Vec::new(),
            verdict: VerdictView { code: VerdictCode::Degraded, tolerates: Some(0), text: "z".into() },
            advancing: true,
            why: vec![Why { code: "x".into(), blocks: false, text: "y".into() }],
        })
    }

    async fn clients(&self, after: Option<ClientId>, _limit: usize) -> Result<ClientPage, ViewError> {
        let clients = if after.is_none() { vec![self.client_view()] } else { Vec::new() };
        Ok(ClientPage { clients, next: None })
    }

    async fn client(&self, client: &ClientId) -> Result<Option<ClientView>, ViewError> {
        Ok((client.as_str() == "devices/iot").then(|| self.client_view()))
    }

    /// Version 1 in the last certified block, version 2 in one that no quorum has certified yet.
    fn policies(&self) -> Arc<Policies> {
        let places = [(1, (Height(HEIGHT - 1), 1)), (2, (Height(HEIGHT), 1))].into();
        Arc::new(Policies { version: 2, set: PolicySet::default(), places })
    }

    async fn submit(&self, operation: AdminOperation) -> Result<Submitted, SubmitError> {
        match operation.sequence {
            1 => Ok(Submitted { height: Height(9), operation: 2 }),
            2 => Err(SubmitError::Rejected("devices/iot is registered already".into())),
            3 => Err(SubmitError::Overloaded),
            _ => Err(SubmitError::Timeout),
        }
    }

    fn certified_height(&self) -> Height {
        Height(HEIGHT - 1)
    }

    fn header(&self, height: Height) -> Result<Option<Header>, ViewError> {
        Ok(self.block(height)?.map(|block| block.header))
    }

    fn block(&self, height: Height) -> Result<Option<Block>, ViewError> {
        if height.0 == 0 || height.0 > HEIGHT {
            return Ok(None);
        }
        let header = Header {
            version: 1,
            network: NetworkId([0; 32]),
            height,
            sequence: SeqNum(height.0),
            timestamp: Timestamp(height.0),
            previous: Hash([0; 32]),
            merkle_root: Hash([0; 32]),
            operation_count: 2,
            next_replica_set: Hash([0; 32]),
            origin_view: View(0),
            proposer: NodeId([7; 32]),
            difficulty_target: 0,
            nonce: 0,
        };
        let policies = PolicySet::with_quotas(
            Vec::new(),
            vec![Quota { client: Pattern::any(), max_items: u32::try_from(height.0).unwrap() }],
        );
        let action = AdminAction::SetPolicies { replaces: 0, policies: policies.unwrap() };
        let set = AdminOperation::sign(self.genesis.network_id(), &self.admin, 99, action);
        let operations = vec![Operation::Admin(self.operation(height.0)), Operation::Admin(set)];
        Ok(Some(Block { header, operations }))
    }

    fn certificate(&self, height: Height) -> Result<Option<Certificate>, ViewError> {
        let content = CheckpointContent {
            sequence: SeqNum(height.0),
            height,
            block: Hash([0; 32]),
            state: Hash([0; 32]),
        };
        Ok(Some(Certificate { content, signatures: vec![(0, Signature([3; 64]))] }))
    }

    fn records(&self, query: &RecordQuery) -> Result<RecordPage, ViewError> {
        if query.num == Some(666) {
            return Err(ViewError::Failed("the disk is on fire".into()));
        }
        let item = Item {
            client: query.client.clone().unwrap_or(ClientId::new("a/b").unwrap()),
            device: query.device.clone().unwrap_or_default().into(),
            service: "temperature".into(),
            num: query.limit.try_into().unwrap(),
            event_time: query.from.unwrap_or_default(),
            value: Value::Float(36.5),
            unit: Some("Cel".into()),
        };
        let key = RecordKey { event_time: item.event_time, height: Height(3), operation: 0, item: 1 };
        let record = StoredRecord { key, stream: Stream::new("env").unwrap(), seq: MessageSeq(1), item };
        Ok(RecordPage { records: vec![record], next: query.cursor })
    }

    fn bundle(&self, height: Height, operation: u32) -> Result<Option<Vec<u8>>, ViewError> {
        Ok((height.0 == 3 && operation == 0).then(|| b"LMQPROOF".to_vec()))
    }

    fn evidence(&self, after: Option<EvidenceKey>, limit: usize) -> EvidencePage {
        if self.disk.compare_exchange(1, 2, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
            while self.disk.load(Ordering::SeqCst) == 2 {
                std::thread::yield_now();
            }
        }
        let mut rest: Vec<_> = (1..=3).map(stored).filter(|stored| Some(stored.key) > after).collect();
        let more = rest.len() > limit;
        rest.truncate(limit);
        EvidencePage { next: rest.last().filter(|_| more).map(|last| last.key), evidence: rest }
    }

    fn evidence_bytes(&self, id: &Hash) -> Result<Option<Vec<u8>>, ViewError> {
        match id.0[0] {
            1..=3 => Ok(Some(vec![id.0[0]; 3])),
            66 => Err(ViewError::Failed("the disk is on fire".into())),
            _ => Ok(None),
        }
    }
}

/// Evidence against the only replica.
fn stored(number: u8) -> StoredEvidence {
    let kind = FaultKind::Checkpoint;
    let fault = Fault { node: NodeId([7; 32]), kind, view: None, sequence: Some(SeqNum(number.into())) };
    let key = EvidenceKey { seen: Timestamp(number.into()), id: Hash([number; 32]) };
    StoredEvidence { key, fault, bytes: 3 }
}

struct Running {
    api: Api,
    node: Arc<FakeNode>,
    http: reqwest::Client,
}

impl Running {
    fn start() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut ApiConfig)) -> Self {
        let mut settings = ApiConfig { listen: ([127, 0, 0, 1], 0).into(), ..ApiConfig::default() };
        change(&mut settings);
        let node = FakeNode::new();
        let api = Api::start(&settings, node.clone(), Metrics::new().unwrap()).unwrap();
        Self { api, node, http: reqwest::Client::new() }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.api.local_addr())
    }

    async fn get(&self, path: &str) -> (u16, Json) {
        answer(self.http.get(self.url(path)).send().await.unwrap()).await
    }

    async fn submit(&self, operation: &AdminOperation) -> (u16, Json) {
        answer(self.http.post(self.url("/v1/operations")).json(operation).send().await.unwrap()).await
    }
}

/// Status and JSON of an answer; an error must be problem details.
async fn answer(response: reqwest::Response) -> (u16, Json) {
    let status = response.status().as_u16();
    let media_type = response.headers().get("content-type").cloned();
    let body = response.json::<Json>().await.unwrap();
    if status >= 400 {
        assert_eq!(media_type.unwrap(), PROBLEM_MEDIA_TYPE);
        assert_eq!(body["status"], status);
        assert!(body["type"].as_str().unwrap().starts_with("urn:ledgermq:problem:"), "{body}");
    }
    (status, body)
}

fn detail(body: &Json) -> &str {
    body["detail"].as_str().unwrap()
}
