//! A small network without processes: a real ledger, and nodes that write real histories as a node's
//! actors do: decide, append, submit, note fates, sign digests.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ledgermq::codec;
use ledgermq::crypto::{SecretKey, SignatureKind, VerifyingKey};
use ledgermq::device::Item;
use ledgermq::device::compose::{Draft, compose};
use ledgermq::device::encoding::Encoding;
use ledgermq::device::telemetry::{Content, Limits, Message};
use ledgermq::history::audit::{AuditOptions, AuditReport, AuditedLedger, Finding, FindingKind, Part, audit};
use ledgermq::history::{
    HistoryRow, HistoryStore as _, Location, MessageKey, RowFate, SqlHistory, SqlReader,
};
use ledgermq::ledger::digest::{ranges_of, rows_root};
use ledgermq::ledger::genesis::GENESIS_VERSION;
use ledgermq::ledger::{
    AdminAction, AdminOperation, AdmittedMessage, Block, Certificate, ClientSettings, Genesis, Head,
    HistoryDigest, Outcome, ReplicaSet, Request, State, StateChange, VerifiedRequest,
};
use ledgermq::pbft::message::Batch;
use ledgermq::policy::{Base, BaseRef, Decision, ItemDecision, ItemKey, LastWritten, PolicySet};
use ledgermq::store::{LedgerStore as _, SledStore, StoreSettings};
use ledgermq::types::{ClientId, Hash, MessageSeq, NetworkId, NodeId, Stream, Timestamp, View};

pub const TIME: Timestamp = Timestamp(1_767_225_600_000);

/// A rule for tests: temperatures by change, the rest as it comes.
pub const RULES: &str = r#"{"rules": [
    {"name": "temperature", "service": "temperature", "write": "change", "threshold": 1.0},
    {"name": "noise", "service": "noise", "write": "never"}]}"#;

pub struct Node {
    pub key: SecretKey,
    pub dir: PathBuf,
    pub location: Location,
    pub store: SqlHistory,
    /// The last values that it submitted.
    open: HashMap<ItemKey, Vec<LastWritten>>,
    /// Rows without a digest: first number, hashes, messages.
    unsealed: Vec<(u64, Hash, ClientId, MessageSeq)>,
    chain: (u64, Hash),
    pub above: u64,
}

/// A request, and whose message it writes.
type Pending = (Arc<VerifiedRequest>, Option<(usize, MessageKey)>);

pub struct World {
    pub dir: tempfile::TempDir,
    pub genesis: Genesis,
    pub network: NetworkId,
    pub admin: SecretKey,
    admin_sequence: u64,
    replicas: Vec<SecretKey>,
    pub state: State,
    pub blocks: Vec<(Block, Certificate)>,
    changes: Vec<(Head, Vec<StateChange>)>,
    pub nodes: Vec<Node>,
    pending: Vec<Pending>,
    /// What the ledger has of each item.
    written: HashMap<ItemKey, LastWritten>,
}

pub fn client(number: u8) -> ClientId {
    ClientId::new(format!("devices/c{number}")).unwrap()
}

pub fn client_key(number: u8) -> SecretKey {
    SecretKey::from_seed(&[100 + number; 32])
}

/// An item of a body: service and JSON value; the device is one, the number its place.
pub type Reading<'a> = (&'a str, &'a str);

impl World {
    pub fn new(nodes: usize) -> Self {
        Self::with_histories(nodes, location)
    }

    /// The same with histories at these places.
    pub fn with_histories(nodes: usize, place: impl Fn(&Path) -> Location) -> Self {
        let mut replicas: Vec<_> = (1..=4).map(|at| SecretKey::from_seed(&[at; 32])).collect();
        replicas.sort_by_key(SecretKey::node_id);
        let admin = SecretKey::from_seed(&[99; 32]);
        let genesis = Genesis {
            version: GENESIS_VERSION,
            name: "test".into(),
            created: TIME,
            replicas: ReplicaSet::new(replicas.iter().map(SecretKey::node_id).collect()).unwrap(),
            admins: vec![admin.public()],
        };
        let dir = tempfile::tempdir().unwrap();
        let network = genesis.network_id();
        let node = |at: usize| {
            let dir = dir.path().join(format!("node-{at}"));
            let place = place(&dir);
            Node::new(replicas[at].clone(), dir, place, network)
        };
        Self {
            nodes: (0..nodes).map(node).collect(),
            dir,
            network,
            admin,
            admin_sequence: 0,
            state: State::genesis(&genesis),
            genesis,
            replicas,
            blocks: Vec::new(),
            changes: Vec::new(),
            pending: Vec::new(),
            written: HashMap::new(),
        }
    }

    /// One node, two clients, a policy, 12 messages in two digests, and two without one.
    pub async fn ordinary() -> Self {
        Self::ordinary_in(Self::new(1)).await
    }

    pub async fn ordinary_in(mut world: Self) -> Self {
        world.register(1);
        world.register(2);
        world.set_policies(RULES);
        world.commit().await;
        for seq in 1..=6 {
            world.publish(0, 1, seq, &[("temperature", &format!("{}", 20 + seq / 3)), ("noise", "1")]).await;
            world
                .publish(
                    0,
                    2,
                    seq,
                    &[("temperature", &format!("{}.5", 20 + seq / 2)), ("door", "true"), ("state", "\"on\"")],
                )
                .await;
            world.commit().await;
            if seq % 3 == 0 {
                world.digest(0).await;
                world.commit().await;
            }
        }
        world.publish(0, 1, 7, &[("temperature", "30"), ("noise", "2")]).await;
        world.publish(0, 2, 7, &[("temperature", "30.5")]).await;
        world.commit().await;
        world
    }

    pub fn admin(&mut self, action: AdminAction) {
        self.admin_sequence += 1;
        let operation = AdminOperation::sign(self.network, &self.admin, self.admin_sequence, action);
        let request = Request::Admin { node: self.replicas[0].node_id(), operation };
        self.pending.push((Arc::new(VerifiedRequest::verify(&self.network, request).unwrap()), None));
    }

    pub fn register(&mut self, number: u8) {
        let settings = ClientSettings::default();
        self.admin(AdminAction::RegisterClient {
            client: client(number),
            key: client_key(number).public(),
            settings,
        });
    }

    pub fn revoke(&mut self, number: u8, last_seq: u64) {
        let (last_seq, reason) = (MessageSeq(last_seq), "stolen".to_owned());
        self.admin(AdminAction::RevokeClient { client: client(number), last_seq, reason });
    }

    pub fn set_policies(&mut self, rules: &str) {
        let policies: PolicySet = serde_json::from_str(rules).unwrap();
        self.admin(AdminAction::SetPolicies { replaces: self.state.policies().version, policies });
    }

    pub fn message(&self, number: u8, seq: u64, time: u64, readings: &[Reading<'_>]) -> Arc<Message> {
        message(&self.network, number, seq, time, readings)
    }

    /// A node takes a message, at its time.
    pub async fn publish(&mut self, node: usize, number: u8, seq: u64, readings: &[Reading<'_>]) {
        self.publish_at(node, number, seq, seq * 1000, readings).await;
    }

    pub async fn publish_at(
        &mut self,
        node: usize,
        number: u8,
        seq: u64,
        time: u64,
        readings: &[Reading<'_>],
    ) {
        let message = self.message(number, seq, time, readings);
        self.accept(node, message).await;
    }

    pub async fn accept(&mut self, node: usize, message: Arc<Message>) {
        let decision = self.decide(node, &message);
        self.append(node, &message, &decision).await;
        self.submit(node, &message, &decision);
    }

    pub fn decide(&mut self, node: usize, message: &Message) -> Decision {
        let policies = self.state.policies();
        let node = &mut self.nodes[node];
        let stream = message.header().stream.as_str();
        let decide = |item: &Item| {
            let policy = policies.set.policy(stream, item);
            let mut last = self.written.get(&item.into()).cloned();
            for open in node.open.get(&item.into()).into_iter().flatten() {
                if last.as_ref().is_none_or(|last| open.is_newer_than(last)) {
                    last = Some(open.clone());
                }
            }
            ItemDecision::make(policy, last.as_ref(), item.event_time, &item.value)
        };
        Decision { policies: policies.version, items: message.items().iter().map(decide).collect() }
    }

    pub async fn append(&mut self, node: usize, message: &Arc<Message>, decision: &Decision) {
        let node = &mut self.nodes[node];
        let row = HistoryRow { message: Arc::clone(message), decision: decision.bytes() };
        let number = node.store.append(node.above, std::slice::from_ref(&row)).await.unwrap()[0].unwrap();
        let header = message.header();
        node.unsealed.push((number, row.hash(), header.client.clone(), header.seq));
    }

    pub fn submit(&mut self, at: usize, message: &Arc<Message>, decision: &Decision) {
        let (header, picked) = (message.header(), decision.picked());
        let node = &mut self.nodes[at];
        for index in &picked {
            let item = &message.items()[*index as usize];
            let base = Base { event_time: item.event_time, value: item.value.clone() };
            let last = LastWritten { at: BaseRef { seq: header.seq, index: *index }, base };
            node.open.entry(item.into()).or_default().push(last);
        }
        if picked.is_empty() {
            return;
        }
        let signed = message.signed();
        let parts = AdmittedMessage {
            header: signed.header(),
            header_bytes: signed.bytes(),
            signature: signed.signature(),
            client_key: signed.client_key(),
            items: message.item_bytes(),
        };
        let request = VerifiedRequest::from_admitted(node.key.node_id(), parts, &picked).unwrap();
        let key = (header.client.clone(), header.seq, signed.hash());
        self.pending.push((Arc::new(request), Some((at, key))));
    }

    /// Everything submitted becomes a block, and its fates are noted.
    pub async fn commit(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        let requests: Vec<_> = pending.iter().map(|(request, _)| Arc::clone(request)).collect();
        let sequence = self.state.head().sequence.next();
        let batch = Batch {
            requests: requests.iter().map(|request| request.digest()).collect(),
            timestamp: self.state.head().timestamp.plus_ms(1000),
            origin_view: View(0),
            proposer: self.state.replicas().primary(View(0)),
        };
        let executed = self.state.execute(sequence, &batch, &requests);
        if let Some(block) = &executed.block {
            let content = codec::encode(&executed.checkpoint);
            let sign = |at: u16| {
                let key = &self.replicas[usize::from(at)];
                (at, key.sign(SignatureKind::Checkpoint, &self.network, &content))
            };
            let certificate =
                Certificate { content: executed.checkpoint, signatures: (0..3).map(sign).collect() };
            self.note_written(block);
            self.blocks.push((block.clone(), certificate));
        }
        self.changes.push((self.state.head().clone(), executed.changes));
        for ((_, outcome), (_, message)) in executed.outcomes.iter().zip(pending) {
            let Some((node, key)) = message else { continue };
            let fate = match outcome {
                Outcome::Written { height, items, .. } | Outcome::AlreadyWritten { height, items } => {
                    RowFate::Written { height: *height, items: items.clone() }
                }
                Outcome::Rejected(rejection) => RowFate::Rejected(rejection.to_string()),
                _ => continue,
            };
            let node = &mut self.nodes[node];
            for open in node.open.values_mut() {
                open.retain(|last| last.at.seq != key.1);
            }
            node.store.put_fates(&[(key, fate)]).await.unwrap();
        }
        for node in &mut self.nodes {
            let Some(record) = self.state.history_digest(&node.key.node_id()) else { continue };
            if record.height == self.state.head().height {
                node.store.digest_is_final(record.number, record.height).await.unwrap();
            }
        }
    }

    fn note_written(&mut self, block: &Block) {
        for record in ledgermq::ledger::Record::of_block(block).unwrap() {
            let base = Base { event_time: record.item.event_time, value: record.item.value.clone() };
            let last = LastWritten { at: BaseRef { seq: record.seq, index: record.index }, base };
            let known = self.written.entry((&record.item).into()).or_insert_with(|| last.clone());
            if last.is_newer_than(known) {
                *known = last;
            }
        }
    }

    /// A node signs a digest of the rows that have none; it goes into the next block.
    pub async fn digest(&mut self, at: usize) -> HistoryDigest {
        let digest = self.seal(at).await;
        let request = Request::Digest(digest.clone());
        self.pending.push((Arc::new(VerifiedRequest::verify(&self.network, request).unwrap()), None));
        digest
    }

    /// The same, and it is kept alone.
    pub async fn seal(&mut self, at: usize) -> HistoryDigest {
        let node = &mut self.nodes[at];
        let rows = std::mem::take(&mut node.unsealed);
        let hashes: Vec<Hash> = rows.iter().map(|row| row.1).collect();
        let ranges = ranges_of(rows.iter().map(|row| (row.2.clone(), row.3)));
        let of = (rows[0].0, u32::try_from(rows.len()).unwrap(), rows_root(&hashes).unwrap());
        let (number, previous) = (node.chain.0 + 1, node.chain.1);
        let digest = HistoryDigest::sign(&self.network, &node.key, (number, previous), of, ranges);
        node.chain = (number, digest.hash());
        node.store.put_digest(&digest, &hashes).await.unwrap();
        digest
    }

    /// A row is taken away before it has a digest, and the node makes its next one of those that it finds.
    pub async fn take_away(&mut self, at: usize, number: u64) {
        for table in ["messages", "items", "fates"] {
            self.tamper(at, &format!("DELETE FROM {table} WHERE number = {number}")).await;
        }
        self.nodes[at].unsealed.retain(|row| row.0 != number);
    }

    /// A node's history is lost; it goes on above the rows that the ledger has digests of.
    pub fn lose_history(&mut self, at: usize) {
        let record = self.state.history_digest(&self.nodes[at].key.node_id()).copied();
        let network = self.network;
        let node = &mut self.nodes[at];
        std::fs::remove_dir_all(node.dir.join("history")).unwrap();
        node.unsealed.clear();
        node.above = record.map_or(0, |record| record.last_row);
        node.store = SqlHistory::new(location(&node.dir), network, node.key.node_id());
    }

    pub fn ledger(&self) -> AuditedLedger {
        self.ledger_up_to(self.blocks.len())
    }

    pub fn ledger_up_to(&self, blocks: usize) -> AuditedLedger {
        let mut ledger = AuditedLedger::new(&self.genesis).unwrap();
        for (block, certificate) in &self.blocks[..blocks] {
            ledger.add(block, Some(certificate)).unwrap();
        }
        ledger
    }

    pub async fn audit(&self, node: usize) -> AuditReport {
        self.audit_with(node, &AuditOptions::default()).await
    }

    pub async fn audit_with(&self, node: usize, options: &AuditOptions) -> AuditReport {
        let reader = SqlReader::open(self.nodes[node].location.clone(), &self.network).await.unwrap();
        audit(&self.ledger(), &reader, options).await.unwrap()
    }

    /// The ledger in a data directory, as a node leaves it.
    pub fn write_ledger(&self, dir: &Path) {
        let store = SledStore::open(&dir.join("ledger"), &StoreSettings::new(self.network)).unwrap();
        let mut blocks = self.blocks.iter().peekable();
        for (head, changes) in &self.changes {
            let block = blocks.next_if(|(block, _)| block.header.height <= head.height);
            store.commit(head, block.map(|(block, _)| block), changes).unwrap();
            if let Some((_, certificate)) = block {
                store.put_certificate(certificate).unwrap();
            }
        }
        store.make_durable().unwrap();
    }

    /// A ledger of that world's network without anything in it.
    pub fn write_ledger_of(&self, dir: &Path, other: &Self) {
        SledStore::open(&dir.join("ledger"), &StoreSettings::new(other.network)).unwrap();
    }

    /// Does something to a node's history, as somebody with access to it could.
    pub async fn tamper(&self, node: usize, sql: &str) -> u64 {
        tamper(&self.nodes[node].dir, sql).await
    }
}

impl Node {
    fn new(key: SecretKey, dir: PathBuf, location: Location, network: NetworkId) -> Self {
        let store = SqlHistory::new(location.clone(), network, key.node_id());
        let (open, unsealed) = (HashMap::new(), Vec::new());
        Self { key, dir, location, store, open, unsealed, chain: (0, Hash([0; 32])), above: 0 }
    }

    pub fn id(&self) -> NodeId {
        self.key.node_id()
    }
}

pub fn location(dir: &Path) -> Location {
    Location::of_node(None, dir).unwrap()
}

pub async fn tamper(dir: &Path, sql: &str) -> u64 {
    use sqlx::{Connection as _, Executor as _};
    let path = dir.join("history/history.sqlite");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
    let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
    let done = connection.execute(sqlx::AssertSqlSafe(sql.to_owned())).await.unwrap();
    connection.close().await.unwrap();
    done.rows_affected()
}

pub fn message(
    network: &NetworkId,
    number: u8,
    seq: u64,
    time: u64,
    readings: &[Reading<'_>],
) -> Arc<Message> {
    let item = |(num, (service, value)): (usize, &Reading<'_>)| {
        format!(r#"{{"deviceId":"th-01","serviceId":"{service}","num":{num},"value":{value},"unit":"Cel"}}"#)
    };
    let items: Vec<String> = readings.iter().enumerate().map(item).collect();
    let (count, data) = (items.len(), items.join(","));
    let body = format!(r#"{{"count":{count},"eventTime":{},"data":[{data}]}}"#, TIME.0 + time);
    let (client, key, stream) = (client(number), client_key(number), Stream::new("env").unwrap());
    let draft = Draft {
        client: &client,
        stream: &stream,
        seq: MessageSeq(seq),
        unused_above: None,
        body: body.as_bytes(),
        encoding: Encoding::Identity,
    };
    let content = Content::decode(&compose(network, &key, &draft).unwrap().content).unwrap();
    let key = VerifyingKey::parse(&key.public()).unwrap();
    let verified = content.verify(&key, network, &client, &stream).unwrap();
    Arc::new(verified.check_body(&Limits::default(), TIME.plus_ms(time)).unwrap())
}

/// What a finding says, to be compared: kind, row, parts.
pub fn told(finding: &Finding) -> (FindingKind, Option<u64>, Vec<Part>) {
    (finding.kind, finding.row, finding.what.clone())
}

pub fn all_told(report: &AuditReport) -> Vec<(FindingKind, Option<u64>, Vec<Part>)> {
    report.findings.iter().map(told).collect()
}
