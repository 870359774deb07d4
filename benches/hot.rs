//! The pure functions that a node spends its processor time in, one by one.
//!
//! `cargo bench` runs all, `cargo bench -- verify` some. docs/BENCHMARKS.md has figures.
#![allow(clippy::unwrap_used, missing_docs)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ledgermq::codec;
use ledgermq::crypto::{SecretKey, VerifyingKey};
use ledgermq::device::Item;
use ledgermq::device::compose::{Composed, Draft, compose};
use ledgermq::device::control::{self, Ack, SignedControl};
use ledgermq::device::encoding::Encoding;
use ledgermq::device::telemetry::{Content, Limits, Message};
use ledgermq::ledger::genesis::GENESIS_VERSION;
use ledgermq::ledger::{
    AdminAction, AdminOperation, AdmittedMessage, CheckpointContent, ClientSettings, Genesis,
    MAX_REQUEST_BYTES, ReplicaSet, Request, State, VerifiedRequest,
};
use ledgermq::merkle::{self, Tree};
use ledgermq::pbft::message::{Batch, Commit, Content as Phase, PrePrepare, Prepare};
use ledgermq::pbft::{Input, Now, Replica, Restored, Settings, Source, Verified};
use ledgermq::types::{ClientId, Hash, Height, MessageSeq, NetworkId, SeqNum, Stream, Timestamp, View};

const TIME: Timestamp = Timestamp(1_767_225_600_000);

/// Requests in the batches.
const BATCH: u64 = 100;

/// A ledger of four replicas and one client.
struct Net {
    replicas: Vec<SecretKey>,
    admin: SecretKey,
    genesis: Genesis,
    network: NetworkId,
    client: ClientId,
    key: SecretKey,
    stream: Stream,
}

impl Net {
    fn new() -> Self {
        let mut replicas: Vec<_> = (1..=4).map(|at| SecretKey::from_seed(&[at; 32])).collect();
        replicas.sort_by_key(SecretKey::node_id);
        let admin = SecretKey::from_seed(&[99; 32]);
        let genesis = Genesis {
            version: GENESIS_VERSION,
            name: "bench".into(),
            created: TIME,
            replicas: ReplicaSet::new(replicas.iter().map(SecretKey::node_id).collect()).unwrap(),
            admins: vec![admin.public()],
        };
        Self {
            replicas,
            admin,
            network: genesis.network_id(),
            genesis,
            client: "devices/iot".parse().unwrap(),
            key: SecretKey::from_seed(&[50; 32]),
            stream: "env".parse().unwrap(),
        }
    }

    fn body(items: u32, seq: u64) -> Vec<u8> {
        let item = |num| {
            let value = seq * 31 + u64::from(num);
            format!(
                r#"{{"deviceId":"th-01","serviceId":"temperature","num":{num},"value":{value}.5,"unit":"Cel"}}"#
            )
        };
        let items: Vec<String> = (0..items).map(item).collect();
        let (count, data) = (items.len(), items.join(","));
        format!(r#"{{"count":{count},"eventTime":{TIME},"data":[{data}]}}"#).into_bytes()
    }

    fn composed(&self, items: u32, seq: u64) -> Composed {
        let draft = Draft {
            client: &self.client,
            stream: &self.stream,
            seq: MessageSeq(seq),
            unused_above: None,
            body: &Self::body(items, seq),
            encoding: Encoding::default(),
        };
        compose(&self.network, &self.key, &draft).unwrap()
    }

    /// What the admitting node does with the content of a message.
    fn verify_message(&self, content: &[u8], key: &VerifyingKey) -> Message {
        let content = Content::decode(content).unwrap();
        let verified = content.verify(key, &self.network, &self.client, &self.stream).unwrap();
        verified.check_body(&Limits::default(), TIME).unwrap()
    }

    fn request(&self, items: u32, seq: u64) -> VerifiedRequest {
        let key = VerifyingKey::parse(&self.key.public()).unwrap();
        let message = self.verify_message(&self.composed(items, seq).content, &key);
        let signed = message.signed();
        let parts = AdmittedMessage {
            header: signed.header(),
            header_bytes: signed.bytes(),
            signature: signed.signature(),
            client_key: signed.client_key(),
            items: message.item_bytes(),
        };
        let picked: Vec<u32> = (0..items).collect();
        VerifiedRequest::from_admitted(self.replicas[1].node_id(), parts, &picked).unwrap()
    }

    fn requests(&self) -> Vec<Arc<VerifiedRequest>> {
        (1..=BATCH).map(|seq| Arc::new(self.request(10, seq))).collect()
    }

    /// What a client is told of a message of ten items that is final.
    fn ack(&self) -> Ack {
        Ack {
            stream: self.stream.clone(),
            seq: MessageSeq(1),
            header: Hash([1; 32]),
            items: 10,
            written: (0..10).collect(),
            height: Some(Height(1)),
            block: Some(Hash([2; 32])),
            server_time: TIME,
        }
    }

    /// The state in which the client is registered.
    fn state(&self) -> State {
        let mut state = State::genesis(&self.genesis);
        let settings = ClientSettings::default();
        let (client, key) = (self.client.clone(), self.key.public());
        let action = AdminAction::RegisterClient { client, key, settings };
        let operation = AdminOperation::sign(self.network, &self.admin, 1, action);
        let request = Request::Admin { node: self.replicas[0].node_id(), operation };
        let request = Arc::new(VerifiedRequest::verify(&self.network, request).unwrap());
        let executed = state.execute(SeqNum(1), &self.batch(std::slice::from_ref(&request)), &[request]);
        assert!(executed.block.is_some());
        state
    }

    fn batch(&self, requests: &[Arc<VerifiedRequest>]) -> Batch {
        Batch {
            requests: requests.iter().map(|request| request.digest()).collect(),
            timestamp: TIME.plus_ms(5),
            origin_view: View(0),
            proposer: self.replicas[0].node_id(),
        }
    }
}

fn messages(criterion: &mut Criterion) {
    let net = Net::new();
    let key = VerifyingKey::parse(&net.key.public()).unwrap();
    for items in [1, 10] {
        let content = net.composed(items, 1).content;
        criterion.bench_function(&format!("compose a message of {items} items"), |bencher| {
            bencher.iter(|| black_box(net.composed(items, 1)));
        });
        criterion.bench_function(&format!("verify a message of {items} items"), |bencher| {
            bencher.iter(|| black_box(net.verify_message(&content, &key)));
        });
        let request = net.request(items, 1);
        criterion.bench_function(&format!("verify a request of {items} items"), |bencher| {
            bencher.iter_batched(
                || request.request().clone(),
                |request| VerifiedRequest::verify(&net.network, request).unwrap(),
                BatchSize::SmallInput,
            );
        });
    }
    let signature = net.key.sign_raw(b"content");
    criterion.bench_function("verify a signature", |bencher| {
        bencher.iter(|| key.verify_raw(black_box(b"content"), &signature).unwrap());
    });
    criterion.bench_function("make a signature", |bencher| {
        bencher.iter(|| net.key.sign_raw(black_box(b"content")));
    });
    let ack = net.ack();
    criterion.bench_function("sign an ack", |bencher| {
        bencher.iter(|| control::sign(&net.network, &net.client, &net.replicas[0], black_box(&ack)));
    });
    let signed = control::sign(&net.network, &net.client, &net.replicas[0], &ack);
    let node = VerifyingKey::parse(&net.replicas[0].public()).unwrap();
    criterion.bench_function("read and verify an ack", |bencher| {
        bencher.iter(|| {
            let read = SignedControl::decode(black_box(&signed), 4096).unwrap();
            read.verify::<Ack>(&net.network, &net.client, &node).unwrap()
        });
    });
    criterion.bench_function("parse a public key", |bencher| {
        bencher.iter(|| VerifyingKey::parse_any_order(black_box(&net.key.public())).unwrap());
    });
}

fn codecs(criterion: &mut Criterion) {
    let net = Net::new();
    let request = net.request(10, 1);
    let bytes = request.bytes();
    let mut group = criterion.benchmark_group("codec");
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function("encode a request of 10 items", |bencher| {
        bencher.iter(|| codec::encode(black_box(request.request())));
    });
    group.bench_function("decode a request of 10 items", |bencher| {
        bencher.iter(|| codec::decode::<MAX_REQUEST_BYTES, Request>(black_box(bytes)).unwrap());
    });
    group.finish();
    let Request::Write(write) = request.request() else { return };
    let item = &write.items[0].bytes;
    criterion.bench_function("decode an item", |bencher| {
        bencher.iter(|| Item::decode(black_box(item)).unwrap());
    });
}

fn trees(criterion: &mut Criterion) {
    let leaves: Vec<Vec<u8>> = (0..BATCH).map(|at| at.to_be_bytes().repeat(100)).collect();
    let tree = Tree::new(&leaves).unwrap();
    let (proof, root) = (tree.prove(&[42]).unwrap(), tree.root());
    criterion.bench_function("Merkle root of 100 leaves of 800 bytes", |bencher| {
        bencher.iter(|| Tree::new(black_box(&leaves)).unwrap().root());
    });
    criterion.bench_function("Merkle proof of one of 100 leaves", |bencher| {
        bencher.iter(|| tree.prove(black_box(&[42])).unwrap());
    });
    criterion.bench_function("verify that proof", |bencher| {
        bencher.iter(|| merkle::verify(&root, leaves.len(), &[(42, &leaves[42])], &proof).unwrap());
    });
}

fn execution(criterion: &mut Criterion) {
    let net = Net::new();
    let (state, requests) = (net.state(), net.requests());
    let batch = net.batch(&requests);
    let mut group = criterion.benchmark_group("batch of 100 requests of 10 items");
    group.throughput(Throughput::Elements(BATCH));
    group.bench_function("execute", |bencher| {
        bencher.iter_batched(
            || state.clone(),
            |mut state| state.execute(SeqNum(2), &batch, &requests),
            BatchSize::SmallInput,
        );
    });
    group.bench_function("order at a backup", |bencher| {
        bencher.iter_batched(
            || (backup(&net), phases(&net, &batch)),
            |(mut replica, phases)| order(&mut replica, &requests, phases),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

/// A backup that nothing has happened to.
fn backup(net: &Net) -> Replica {
    let settings = Settings::new(net.network, net.genesis.replicas.clone(), net.replicas[1].clone());
    let genesis = CheckpointContent {
        sequence: SeqNum(0),
        height: Height(0),
        block: Hash(net.network.0),
        state: Hash([0; 32]),
    };
    Replica::new(settings, Restored::new(genesis, TIME)).unwrap()
}

/// What the others send for one batch; their signatures were checked before.
fn phases(net: &Net, batch: &Batch) -> Vec<Verified> {
    let (view, sequence, digest) = (View(0), SeqNum(1), batch.digest());
    let sign = |from: usize, content| Verified::sign(&net.replicas[from], &net.network, content);
    vec![
        sign(0, Phase::PrePrepare(PrePrepare { view, sequence, batch: batch.clone() })),
        sign(2, Phase::Prepare(Prepare { view, sequence, digest })),
        sign(3, Phase::Prepare(Prepare { view, sequence, digest })),
        sign(0, Phase::Commit(Commit { view, sequence, digest })),
        sign(2, Phase::Commit(Commit { view, sequence, digest })),
        sign(3, Phase::Commit(Commit { view, sequence, digest })),
    ]
}

/// All steps of one replica from the requests to the execution.
fn order(replica: &mut Replica, requests: &[Arc<VerifiedRequest>], phases: Vec<Verified>) {
    let now = Now { wall: TIME.plus_ms(10), monotonic: Duration::from_secs(1) };
    for request in requests {
        let input = Input::Request { request: Arc::clone(request), source: Source::Admitted };
        let _ = black_box(replica.step(now, input));
    }
    let mut executes = false;
    for message in phases {
        let output = replica.step(now, Input::Message(message));
        executes |=
            output.effects.iter().any(|effect| matches!(effect, ledgermq::pbft::Effect::Execute { .. }));
    }
    assert!(executes, "the batch is committed");
}

criterion_group!(hot, messages, codecs, trees, execution);
criterion_main!(hot);
