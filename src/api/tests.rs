//! The API over real HTTP, on a node that is a plain table.

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
            device: query.device.clone().unwrap_or_default(),
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

#[actix_web::test]
async fn readiness_follows_the_node_and_liveness_does_not() {
    let running = Running::start();
    let ready = |path: &'static str| running.http.get(running.url(path)).send();
    assert_eq!(ready("/readyz").await.unwrap().status(), 200);
    running.node.ready.store(false, Ordering::SeqCst);
    let (status, body) = running.get("/readyz").await;
    assert_eq!((status, detail(&body)), (503, "0 of 3 replicas connected"));
    assert_eq!(ready("/livez").await.unwrap().status(), 200);
}

#[actix_web::test]
async fn the_genesis_that_is_shown_is_the_genesis_document() {
    let running = Running::start();
    let (_, body) = running.get("/v1/genesis").await;
    let genesis: Genesis = serde_json::from_value(body).unwrap();
    assert_eq!(genesis.network_id(), running.node.genesis.network_id());
    assert_eq!(running.get("/v1/time").await.1["server_time"], 42);
}

#[actix_web::test]
async fn only_certified_blocks_are_shown_page_by_page() {
    let running = Running::start();
    let heights = |body: &Json| -> Vec<u64> {
        body["blocks"]
            .as_array()
            .unwrap()
            .iter()
            .map(|block| block["header"]["height"].as_u64().unwrap())
            .collect()
    };
    let (_, body) = running.get("/v1/blocks").await;
    assert_eq!((heights(&body), &body["next"]), (vec![1, 2, 3, 4], &Json::Null));
    let (_, body) = running.get("/v1/blocks?limit=2").await;
    assert_eq!((heights(&body), &body["next"]), (vec![3, 4], &Json::Null));
    let (_, body) = running.get("/v1/blocks?from=1&limit=2").await;
    assert_eq!((heights(&body), &body["next"]), (vec![1, 2], &Json::from(3)));
    let (_, body) = running.get("/v1/blocks?from=9").await;
    assert_eq!((heights(&body), &body["next"]), (vec![], &Json::Null));
    assert_eq!(running.get("/v1/blocks/5").await.0, 404);
}

#[actix_web::test]
async fn certified_blocks_are_given_byte_for_byte_and_page_by_page() {
    let running = Running::start();
    let get = async |path: &str| {
        let answer = running.http.get(running.url(path)).send().await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.headers()["content-type"] == BUNDLE), (200, true));
        decode_certified(&answer.bytes().await.unwrap()).unwrap()
    };
    const BUNDLE: &str = "application/octet-stream";
    let blocks = get("/v1/certified-blocks?from=1").await;
    assert_eq!(blocks.len(), 4, "no block without a certificate");
    for ((block, certificate), height) in blocks.into_iter().zip(1..) {
        assert_eq!(Some(block), running.node.block(Height(height)).unwrap());
        assert_eq!(certificate, running.node.certificate(Height(height)).unwrap());
    }
    assert_eq!(get("/v1/certified-blocks?from=2&limit=2").await.len(), 2);
    assert_eq!(get("/v1/certified-blocks?from=5").await.len(), 0);
    assert_eq!(get("/v1/certified-blocks?from=18446744073709551615").await.len(), 0);
    for bad in ["", "?from=x", "?from=1&limit=0", "?from=1&limit=99999999", "?from=1&to=2"] {
        assert_eq!(running.get(&format!("/v1/certified-blocks{bad}")).await.0, 400, "{bad}");
    }
}

#[test]
fn what_is_no_list_of_certified_blocks_is_refused() {
    for bad in [&[0_u8, 0, 0][..], &[0, 0, 0, 9, 1], &[0, 0, 0, 1, 7], &[0xff; 8]] {
        assert!(decode_certified(bad).is_err(), "{bad:?}");
    }
}

#[actix_web::test]
async fn a_block_is_shown_with_its_operations_and_who_signed_it() {
    let running = Running::start();
    let (status, body) = running.get("/v1/blocks/3").await;
    assert_eq!(status, 200);
    assert_eq!(body["operations"][0]["kind"], "admin");
    assert_eq!(body["operations"][0]["action"]["action"], "register_client");
    assert_eq!(body["certificate"]["signatures"][0]["node"], NodeId([7; 32]).to_string());
}

#[actix_web::test]
async fn records_are_searched_by_every_parameter() {
    let running = Running::start();
    let path = "/v1/records?client=devices/iot&device=th%2001&from=2026-01-01T00:00:00Z&limit=7&cursor=";
    let cursor = "0a".repeat(RecordKey::LEN);
    let (status, body) = running.get(&format!("{path}{cursor}")).await;
    assert_eq!(status, 200, "{body}");
    let record: RecordJson = serde_json::from_value(body["records"][0].clone()).unwrap();
    assert_eq!((record.client.as_str(), record.item.device.as_str()), ("devices/iot", "th 01"));
    assert_eq!((record.event_time, record.item.num), (Timestamp(1_767_225_600_000), 7));
    assert_eq!((record.item.value, record.bundle.as_str()), (36.5.into(), "/v1/records/3/0/bundle"));
    assert_eq!(body["next"], cursor);
}

#[actix_web::test]
async fn a_bundle_is_served_as_its_bytes() {
    let running = Running::start();
    let response = running.http.get(running.url("/v1/records/3/0/bundle")).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.bytes().await.unwrap().as_ref(), b"LMQPROOF");
    assert_eq!(running.get("/v1/records/3/1/bundle").await.0, 404);
}

#[actix_web::test]
async fn evidence_is_listed_page_by_page_and_served_as_its_bytes() {
    let running = Running::start();
    let (status, body) = running.get("/v1/evidence").await;
    assert_eq!((status, body["evidence"].as_array().unwrap().len(), &body["next"]), (200, 3, &Json::Null));
    let id = Hash([1; 32]).to_string();
    let expected = serde_json::json!({
        "id": id, "node": NodeId([7; 32]), "replica": 0, "kind": "checkpoint", "view": null, "sequence": 1,
        "seen": 1, "bytes": 3, "file": format!("/v1/evidence/{id}"),
    });
    assert_eq!(body["evidence"][0], expected);
    let mut query = "limit=2".to_owned();
    let mut seen = Vec::new();
    loop {
        let (_, body) = running.get(&format!("/v1/evidence?{query}")).await;
        let page: EvidenceListJson = serde_json::from_value(body).unwrap();
        seen.extend(page.evidence.iter().map(|piece| piece.seen.0));
        let Some(next) = page.next else { break };
        query = format!("limit=2&cursor={next}");
    }
    assert_eq!(seen, [1, 2, 3]);
    let response = running.http.get(running.url(&format!("/v1/evidence/{id}"))).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/octet-stream");
    assert!(response.headers()["content-disposition"].to_str().unwrap().contains(".lmqevidence"));
    assert_eq!(response.bytes().await.unwrap().as_ref(), [1; 3]);
    let (status, body) = running.get(&format!("/v1/evidence/{}", Hash([9; 32]))).await;
    assert!(status == 404 && detail(&body).contains("another one may have it"), "{body}");
    assert_eq!(running.get(&format!("/v1/evidence/{}", Hash([66; 32]))).await.0, 500);
}

#[actix_web::test]
async fn clients_are_listed_and_found() {
    let running = Running::start();
    let (_, body) = running.get("/v1/clients").await;
    assert_eq!(body["clients"][0]["client"], "devices/iot");
    assert_eq!(running.get("/v1/clients/devices/iot").await.1["highest_seq"], 3);
    assert_eq!(running.get("/v1/clients/devices/other").await.0, 404);
    assert_eq!(running.get("/v1/clients/verified/x").await.0, 400);
}

#[actix_web::test]
async fn a_signed_operation_is_submitted_and_its_fate_told() {
    let running = Running::start();
    let submit = async |sequence| running.submit(&running.node.operation(sequence)).await;
    let (status, body) = submit(1).await;
    assert_eq!((status, &body["height"], &body["operation"]), (200, &9.into(), &2.into()));
    let (status, body) = submit(2).await;
    assert_eq!((status, detail(&body)), (409, "devices/iot is registered already"));
    assert_eq!(submit(3).await.0, 503);
    assert_eq!(submit(4).await.0, 504);
}

#[actix_web::test]
async fn an_operation_that_no_admin_signed_goes_no_further() {
    let running = Running::start();
    let mut operation = running.node.operation(1);
    operation.sequence = 2;
    assert_eq!(running.submit(&operation).await.0, 400);
    operation.network = NetworkId([9; 32]);
    let (status, body) = running.submit(&operation).await;
    assert!(status == 400 && detail(&body).contains("another network"), "{body}");
}

#[actix_web::test]
async fn wrong_requests_get_problem_details_that_say_what_is_wrong() {
    let running = Running::start();
    for (path, status, says) in [
        ("/nowhere", 404, "/nowhere"),
        ("/v1/blocks/x", 400, "path"),
        ("/v1/blocks?limit=0", 400, "limit is 0, but must be 1 to 1000"),
        ("/v1/blocks?limit=100000", 400, "1 to 1000"),
        ("/v1/blocks?form=1", 400, "form"),
        ("/v1/records?client=nobody", 400, "group/name"),
        ("/v1/records?from=yesterday", 400, "RFC 3339"),
        ("/v1/records?cursor=xyz", 400, "cursor"),
        ("/v1/records?num=666", 500, "log"),
        ("/v1/evidence?limit=0", 400, "limit is 0"),
        ("/v1/evidence?cursor=0000000000000001", 400, "cursor"),
        ("/v1/evidence?after=x", 400, "after"),
        ("/v1/evidence/07", 400, "64 hex digits"),
        ("/v1/status", 503, "stopping"),
        ("/v1/operations", 405, "POST"),
    ] {
        let (found, body) = running.get(path).await;
        assert_eq!(found, status, "{path}: {body}");
        assert!(detail(&body).contains(says), "{path}: {body}");
    }
    let posted = running.http.post(running.url("/v1/time")).send().await.unwrap();
    assert_eq!(posted.headers().get("allow").unwrap(), "GET");
    assert_eq!(answer(posted).await.0, 405);
}

#[actix_web::test]
async fn bodies_are_limited_and_must_be_json() {
    let running = Running::start();
    let post = |body: String, media_type: &'static str| {
        let request = running.http.post(running.url("/v1/operations"));
        async move { answer(request.header("content-type", media_type).body(body).send().await.unwrap()).await }
    };
    assert_eq!(post("x".repeat(65 * 1024), "application/json").await.0, 413);
    assert_eq!(post("{}".into(), "text/plain").await.0, 415);
    assert_eq!(post("{".into(), "application/json").await.0, 400);
    assert_eq!(post("[".repeat(60_000), "application/json").await.0, 400);
}

#[actix_web::test]
async fn requests_are_counted_by_route_and_strangers_make_no_series() {
    let running = Running::start();
    for at in 0..20 {
        running.get(&format!("/stranger/{at}")).await;
        running.get(&format!("/v1/blocks/{at}")).await;
    }
    let text = running.http.get(running.url("/metrics")).send().await.unwrap().text().await.unwrap();
    assert!(text.contains(r#"ledgermq_http_requests_total{route="none",status="404"} 20"#), "{text}");
    assert!(text.contains(r#"ledgermq_http_requests_total{route="/v1/blocks/{height}",status="200"} 4"#));
}

#[actix_web::test]
async fn consensus_is_shown_with_the_names_that_the_page_gives() {
    let running = Running::start();
    let (status, body) = running.get("/v1/consensus").await;
    assert_eq!((status, &body["view"], &body["high_watermark"]), (200, &2.into(), &259.into()));
    assert_eq!((&body["view_change"], &body["silent"]["until"]), (&Json::Null, &Json::Null));
    assert_eq!(body["why"], serde_json::json!([{"code": "x", "blocks": false, "text": "y"}]));
    let page = include_str!("../../docs/API.md");
    for name in body.as_object().unwrap().keys() {
        assert!(page.contains(&format!("`{name}`")), "docs/API.md lacks {name} of /v1/consensus");
    }
    for code in crate::pbft::diagnosis::Code::ALL {
        assert!(page.contains(&format!("| `{}` |", code.code())), "docs/API.md lacks {}", code.code());
    }
}

/// An answer to a probe, or none within `patience`.
async fn probe(http: &reqwest::Client, address: SocketAddr, path: &str, patience: Duration) -> Option<u16> {
    let request = http.get(format!("http://{address}{path}")).timeout(patience).send();
    request.await.ok().map(|answer| answer.status().as_u16())
}

#[actix_web::test]
async fn who_takes_all_connections_of_the_api_keeps_no_probe_waiting() {
    let settings = ApiConfig {
        listen: ([127, 0, 0, 1], 0).into(),
        probes_listen: Some(([127, 0, 0, 1], 0).into()),
        probes_max_connections: 2,
        max_connections: 4,
        ..ApiConfig::default()
    };
    let (node, metrics) = (FakeNode::new(), Metrics::new().unwrap());
    let api = Api::start(&settings, node.clone(), metrics.clone()).unwrap();
    let probes = Api::start_probes(&settings, node, metrics).unwrap().unwrap();
    let taken: Vec<TcpStream> = (0..4).map(|_| TcpStream::connect(api.local_addr()).unwrap()).collect();
    let http = reqwest::Client::new();
    let short = Duration::from_secs(1);
    assert_eq!(probe(&http, api.local_addr(), "/livez", short).await, None, "all places are taken");
    let long = Duration::from_secs(30);
    for _ in 0..10 {
        for path in ["/livez", "/readyz", "/metrics"] {
            assert_eq!(probe(&http, probes.local_addr(), path, long).await, Some(200), "{path}");
        }
    }
    assert_eq!(
        probe(&http, probes.local_addr(), "/v1/records", long).await,
        Some(404),
        "nothing else is there"
    );
    let silent: Vec<TcpStream> = (0..8).map(|_| TcpStream::connect(probes.local_addr()).unwrap()).collect();
    assert_eq!(
        probe(&http, probes.local_addr(), "/livez", long).await,
        Some(200),
        "the silent are closed soon"
    );
    drop((taken, silent));
    probes.stop().await;
    api.stop().await;
}

#[actix_web::test]
async fn without_its_setting_there_is_no_second_server() {
    let settings = ApiConfig::default();
    assert!(Api::start_probes(&settings, FakeNode::new(), Metrics::new().unwrap()).unwrap().is_none());
}

#[actix_web::test]
async fn a_request_that_is_not_sent_whole_is_ended() {
    let running = Running::with(|settings| settings.request_timeout = Duration::from_millis(200));
    let address = running.api.local_addr();
    let answer = web::block(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let head = "GET /v1/time HTTP/1.1\r\nHost: x\r\nX-Never-Ending: ";
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    assert!(answer.await.unwrap().contains("408"));
}

#[actix_web::test]
async fn garbage_on_the_port_harms_nobody() {
    let running = Running::start();
    let address = running.api.local_addr();
    let garbage: Vec<u8> =
        (0..50_000_u32).flat_map(|at| at.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
    let sent = web::block(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        // The server may close before all of it is sent.
        let _ = stream.write_all(&garbage);
        let _ = stream.read_to_end(&mut Vec::new());
    });
    sent.await.unwrap();
    assert_eq!(running.get("/v1/time").await.0, 200);
}

#[actix_web::test]
async fn a_port_in_use_is_an_error_and_a_stopped_server_frees_it() {
    let running = Running::start();
    let settings = ApiConfig { listen: running.api.local_addr(), ..ApiConfig::default() };
    let start = || Api::start(&settings, running.node.clone(), Metrics::new().unwrap());
    assert_eq!(start().unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
    running.api.stop().await;
    assert_eq!(running.api.ended().await, "it was stopped");
    assert!(start().is_ok());
}

#[actix_web::test]
async fn who_lists_evidence_while_a_piece_is_written_keeps_no_probe_waiting() {
    let running = Running::start();
    running.node.disk.store(1, Ordering::SeqCst);
    let list = actix_web::rt::spawn(running.http.get(running.url("/v1/evidence")).send());
    while running.node.disk.load(Ordering::SeqCst) != 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let probe = running.http.get(running.url("/livez")).timeout(Duration::from_secs(5)).send().await;
    running.node.disk.store(0, Ordering::SeqCst);
    assert_eq!(probe.unwrap().status(), 200);
    assert_eq!(list.await.unwrap().unwrap().status(), 200);
}

#[actix_web::test]
async fn policies_are_told_with_who_set_them_and_not_before_a_quorum_certified_it() {
    let running = Running::start();
    let (status, told) = running.get("/v1/policies").await;
    assert_eq!(status, 200, "{told}");
    let current = &told["current"];
    assert_eq!(
        (&current["version"], &current["height"], &current["operation"]),
        (&1.into(), &4.into(), &1.into())
    );
    assert_eq!((&current["time"], &current["quotas"][0]["max_items"]), (&4.into(), &4.into()));
    assert_eq!(current["admin"], running.node.admin.public().to_string());
    assert_eq!((&told["history"], &told["next"]), (&serde_json::json!([current]), &Json::Null));
    assert_eq!(running.get("/v1/policies/1").await.1, *current);
    let (_, genesis) = running.get("/v1/policies/0").await;
    assert_eq!(
        (&genesis["version"], &genesis["rules"], &genesis["admin"]),
        (&0.into(), &Json::Array(vec![]), &Json::Null)
    );
    assert_eq!(running.get("/v1/policies?before=1").await.1["history"], Json::Array(vec![]));
    for (path, status) in [
        ("/v1/policies/2", 404),
        ("/v1/policies/x", 400),
        ("/v1/policies?limit=0", 400),
        ("/v1/policies?after=1", 400),
    ] {
        assert_eq!(running.get(path).await.0, status, "{path}");
    }
}
