//! A ledger in this process, behind the real HTTP API: what the command line talks to.
//!
//! All replicas of the network are here, so blocks get true certificates without consensus.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use ledgermq::api::{
    Api, ClientPage, ClientView, ConsensusView, NodeView, Status, SubmitError, Submitted, ViewError,
};
use ledgermq::cli::{InitArgs, Initialized};
use ledgermq::config::{ApiConfig, read_genesis};
use ledgermq::crypto::{SecretKey, SignatureKind};
use ledgermq::device::{self, Item, Value};
use ledgermq::ledger::Outcome;
use ledgermq::ledger::request::AdmittedMessage;
use ledgermq::ledger::{
    AdminOperation, Block, Certificate, CheckpointContent, Genesis, Header, Inclusion, Policies, ProofBundle,
    Request, State, VerifiedRequest,
};
use ledgermq::metrics::Metrics;
use ledgermq::pbft::message::{Batch, Content, Prepare};
use ledgermq::pbft::{Evidence, Verified};
use ledgermq::store::evidence::{EvidenceKey, EvidencePage, StoredEvidence};
use ledgermq::store::ledger::{RecordPage, RecordQuery};
use ledgermq::types::{ClientId, Hash, Height, MessageSeq, SeqNum, Stream, Timestamp, View};
use ledgermq::{codec, keyfile, merkle};

/// Keeps the API running.
pub struct Served {
    pub ledger: Arc<Ledger>,
    pub url: String,
    _runtime: tokio::runtime::Runtime,
}

pub struct Ledger {
    genesis: Genesis,
    replicas: Vec<SecretKey>,
    chain: Mutex<Chain>,
    evidence: Mutex<BTreeMap<EvidenceKey, (StoredEvidence, Vec<u8>)>>,
}

struct Chain {
    state: State,
    blocks: Vec<(Block, Certificate)>,
}

/// `ledgermq init` in `dir/net`.
pub fn init(dir: &Path, replicas: u16) -> Initialized {
    let args = InitArgs {
        replicas,
        dir: dir.join("net"),
        base_port: None,
        host: [127, 0, 0, 1].into(),
        name: "test".into(),
        json: false,
    };
    ledgermq::cli::init(&args).unwrap()
}

impl Ledger {
    pub fn new(network: &Initialized) -> Arc<Self> {
        let genesis = read_genesis(&network.genesis).unwrap();
        let key = |config: &PathBuf| keyfile::read(&config.with_file_name("node.key")).unwrap();
        Arc::new(Self {
            replicas: network.nodes.iter().map(|node| key(&node.config)).collect(),
            chain: Mutex::new(Chain { state: State::genesis(&genesis), blocks: Vec::new() }),
            evidence: Mutex::default(),
            genesis,
        })
    }

    /// Serves the ledger on a free port.
    pub fn serve(network: &Initialized) -> Served {
        let ledger = Self::new(network);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let settings = ApiConfig { listen: ([127, 0, 0, 1], 0).into(), ..ApiConfig::default() };
        let api = runtime
            .block_on(async { Api::start(&settings, ledger.clone(), Metrics::new().unwrap()) })
            .unwrap();
        Served { ledger, url: format!("http://{}", api.local_addr()), _runtime: runtime }
    }

    /// A proof bundle of a temperature that `client` sent; its registration is in block 1.
    pub fn prove_reading(&self, client: &str, key: &SecretKey) -> Vec<u8> {
        let item = Item {
            client: ClientId::new(client).unwrap(),
            device: "th-01".into(),
            service: "temperature".into(),
            num: 1,
            event_time: Timestamp(1_767_225_600_000),
            value: Value::Float(36.5),
            unit: Some("Cel".into()),
        };
        let items = [item.encode()];
        let header = device::Header {
            client: item.client.clone(),
            stream: Stream::new("env").unwrap(),
            seq: MessageSeq(1),
            event_time: item.event_time,
            count: 1,
            items_root: merkle::Tree::new(&items).unwrap().root(),
            body_hash: Hash([0; 32]),
            unused_above: None,
        };
        let header_bytes = header.encode();
        let message = AdmittedMessage {
            header: &header,
            header_bytes: &header_bytes,
            signature: device::header::sign(&self.genesis.network_id(), &header_bytes, key),
            client_key: key.public(),
            items: &items,
        };
        let node = self.replicas[0].node_id();
        let outcome = self.order(VerifiedRequest::from_admitted(node, message, &[0]).unwrap());
        assert!(matches!(outcome, Outcome::Written { .. }), "{outcome:?}");
        let chain = self.chain();
        let inclusion = |(block, certificate): &(Block, Certificate)| {
            Inclusion::new(block, &block.tree().unwrap(), certificate, 0).unwrap()
        };
        let bundle = ProofBundle {
            registration: inclusion(&chain.blocks[0]),
            write: inclusion(chain.blocks.last().unwrap()),
        };
        bundle.encode()
    }

    /// Two PREPAREs of a replica for one slot of view 0: evidence, which is listed from now on.
    pub fn accuse(&self, replica: usize, sequence: u64) -> (Hash, Vec<u8>) {
        let sign = |fill: u8| {
            let vote = Prepare { view: View(0), sequence: SeqNum(sequence), digest: Hash([fill; 32]) };
            let network = self.genesis.network_id();
            Verified::sign(&self.replicas[replica], &network, Content::Prepare(vote)).signed().clone()
        };
        let proven = Evidence::contradiction(&sign(1), &sign(2)).verify_with(&self.genesis).unwrap();
        let key = EvidenceKey { seen: Timestamp(1_767_225_600_000 + sequence), id: proven.id };
        let bytes = proven.bytes().to_vec();
        let stored = StoredEvidence { key, fault: proven.fault, bytes: bytes.len() as u64 };
        self.evidence.lock().unwrap().insert(key, (stored, bytes.clone()));
        (proven.id, bytes)
    }

    /// Gives other bytes for a piece of evidence from now on.
    pub fn lie_about(&self, id: Hash) {
        let mut evidence = self.evidence.lock().unwrap();
        let (_, bytes) = evidence.values_mut().find(|(stored, _)| stored.key.id == id).unwrap();
        bytes[20] ^= 1;
    }

    fn order(&self, request: VerifiedRequest) -> Outcome {
        let mut chain = self.chain();
        let head = chain.state.head().clone();
        let batch = Batch {
            requests: vec![request.digest()],
            timestamp: Timestamp(head.timestamp.0 + 1),
            origin_view: View(0),
            proposer: self.replicas[0].node_id(),
        };
        let executed = chain.state.execute(head.sequence.next(), &batch, &[Arc::new(request)]);
        if let Some(block) = executed.block {
            let certificate = self.certify(executed.checkpoint);
            chain.blocks.push((block, certificate));
        }
        executed.outcomes.into_iter().next().unwrap().1
    }

    fn certify(&self, content: CheckpointContent) -> Certificate {
        let sign = |key: &SecretKey| {
            key.sign(SignatureKind::Checkpoint, &self.genesis.network_id(), &codec::encode(&content))
        };
        let quorum = self.genesis.replicas.quorum();
        Certificate { content, signatures: (0..).zip(self.replicas.iter().take(quorum).map(sign)).collect() }
    }

    fn chain(&self) -> MutexGuard<'_, Chain> {
        self.chain.lock().unwrap()
    }

    fn view(state: &State, client: &ClientId) -> Option<ClientView> {
        let record = state.client(client)?;
        Some(ClientView {
            client: client.clone(),
            key: record.key,
            settings: record.settings,
            registered_height: record.registered.0,
            registered_operation: record.registered.1,
            revoked_after: record.revoked,
            highest_seq: state.highest(client),
        })
    }
}

#[async_trait]
impl NodeView for Ledger {
    fn now(&self) -> Timestamp {
        Timestamp(1_767_225_600_000)
    }

    fn genesis(&self) -> &Genesis {
        &self.genesis
    }

    fn liveness(&self) -> Result<(), String> {
        Ok(())
    }

    fn readiness(&self) -> Result<(), String> {
        Ok(())
    }

    async fn status(&self) -> Result<Status, ViewError> {
        Err(ViewError::Stopping)
    }

    async fn consensus(&self) -> Result<ConsensusView, ViewError> {
        Err(ViewError::Stopping)
    }

    async fn clients(&self, after: Option<ClientId>, _limit: usize) -> Result<ClientPage, ViewError> {
        // Pages of two, so that a short test turns pages.
        let chain = self.chain();
        let ids = chain.state.clients().map(|(id, _)| id.clone());
        let mut ids: Vec<ClientId> = ids.filter(|id| after.as_ref().is_none_or(|after| id > after)).collect();
        let next = if ids.len() > 2 { Some(ids[1].clone()) } else { None };
        ids.truncate(2);
        Ok(ClientPage { clients: ids.iter().filter_map(|id| Self::view(&chain.state, id)).collect(), next })
    }

    async fn client(&self, client: &ClientId) -> Result<Option<ClientView>, ViewError> {
        Ok(Self::view(&self.chain().state, client))
    }

    fn policies(&self) -> Arc<Policies> {
        Arc::new(self.chain().state.policies().clone())
    }

    async fn submit(&self, operation: AdminOperation) -> Result<Submitted, SubmitError> {
        let request = Request::Admin { node: self.replicas[0].node_id(), operation };
        let request = VerifiedRequest::verify(&self.genesis.network_id(), request)
            .map_err(|error| SubmitError::Invalid(error.to_string()))?;
        match self.order(request) {
            Outcome::AdminExecuted { height, operation } => Ok(Submitted { height, operation }),
            Outcome::Rejected(rejection) => Err(SubmitError::Rejected(rejection.to_string())),
            outcome => panic!("{outcome:?}"),
        }
    }

    fn certified_height(&self) -> Height {
        self.chain().state.head().height
    }

    fn header(&self, _height: Height) -> Result<Option<Header>, ViewError> {
        Ok(None)
    }

    fn block(&self, height: Height) -> Result<Option<Block>, ViewError> {
        let chain = self.chain();
        Ok(chain.blocks.iter().map(|(block, _)| block).find(|block| block.header.height == height).cloned())
    }

    fn certificate(&self, _height: Height) -> Result<Option<Certificate>, ViewError> {
        Ok(None)
    }

    fn records(&self, _query: &RecordQuery) -> Result<RecordPage, ViewError> {
        Ok(RecordPage::default())
    }

    fn bundle(&self, _height: Height, _operation: u32) -> Result<Option<Vec<u8>>, ViewError> {
        Ok(None)
    }

    fn evidence(&self, after: Option<EvidenceKey>, _limit: usize) -> EvidencePage {
        // Pages of one.
        let evidence = self.evidence.lock().unwrap();
        let mut rest = evidence.keys().filter(|key| Some(**key) > after);
        let Some(key) = rest.next() else { return EvidencePage::default() };
        EvidencePage { evidence: vec![evidence[key].0], next: rest.next().map(|_| *key) }
    }

    fn evidence_bytes(&self, id: &Hash) -> Result<Option<Vec<u8>>, ViewError> {
        let evidence = self.evidence.lock().unwrap();
        let found = evidence.values().find(|(stored, _)| stored.key.id == *id);
        Ok(found.map(|(_, bytes)| bytes.clone()))
    }
}
