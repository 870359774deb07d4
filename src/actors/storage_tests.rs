//! Storage's decisions, without actix: what is told when, what a restart takes up, and what stops
//! the node.

use super::super::admission::Admission;
use super::super::bases::{Bases, BasesLimits};
use super::super::finals::TellFinal;
use super::super::{FatalReceiver, Mouth, fatal, feeder};
use super::*;
use crate::clock::SystemClock;
use crate::crypto::{SecretKey, SignatureKind, blake3_plain};
use crate::device::{self, Item, Value};
use crate::ledger::genesis::{GENESIS_VERSION, Genesis, ReplicaSet};
use crate::ledger::{
    AdminAction, AdminOperation, AdmittedMessage, CertifiedBlock, ClientSettings, Rejection, ReplicaSetKeys,
    Request,
};
use crate::merkle::Tree;
use crate::metrics::Metrics;
use crate::store::ledger::AdmissionRecord;
use crate::store::log::Position;
use crate::store::{SledStore, StoreSettings};
use crate::types::{MessageSeq, NetworkId, Stream, Timestamp, View};

const NOW: Timestamp = Timestamp(1_767_225_600_000);

/// A ledger of one replica, and a Storage of it whose outlets end here.
struct Bench {
    genesis: Genesis,
    network: NetworkId,
    node: SecretKey,
    admin: SecretKey,
    device: SecretKey,
    admission: Arc<Admission>,
    storage: Storage,
    executed: Mouth<BatchExecuted>,
    finals: Mouth<TellFinal>,
    reasons: FatalReceiver,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let [node, admin, device] = [1, 2, 3].map(|seed| SecretKey::from_seed(&[seed; 32]));
        let genesis = Genesis {
            version: GENESIS_VERSION,
            name: "test".into(),
            created: NOW,
            replicas: ReplicaSet::new(vec![node.node_id()]).unwrap(),
            admins: vec![admin.public()],
        };
        let network = genesis.network_id();
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(SledStore::open(dir.path(), &StoreSettings::new(network)).unwrap());
        let state = State::genesis(&genesis);
        store.commit(state.head(), None, &state.as_changes()).unwrap();
        let (fatal, reasons) = fatal();
        let (metrics, clock) = (Metrics::new().unwrap(), SystemClock::shared());
        let queue = |name| metrics.queues.queue(name);
        let (to_consensus, executed) = feeder("executed", 16, queue("executed"), fatal.clone());
        let (to_ingress, finals) = feeder("finals", 16, queue("finals"), fatal.clone());
        let admission = Arc::new(Admission::default());
        let final_ms = metrics.ingress.final_ms.clone();
        let limits = BasesLimits { cached_items: 16, open_items: 16 };
        let bases = Arc::new(Bases::new(Arc::clone(&store) as Arc<_>, limits, queue("open_items")));
        let outlets = StorageOutlets {
            executed: to_consensus,
            finals: Finals::new(Arc::clone(&admission), bases, to_ingress, Arc::clone(&clock), final_ms),
            clients: ChangedClients::default(),
        };
        let parts = StorageParts {
            node: node.node_id(),
            store,
            view: Arc::new(LedgerView::default()),
            outlets,
            clock,
            tally: StorageTally::new(&metrics.consensus, &metrics.storage),
            fatal,
        };
        let storage = Storage::new(parts, state);
        Self {
            genesis,
            network,
            node,
            admin,
            device,
            admission,
            storage,
            executed,
            finals,
            reasons,
            _dir: dir,
        }
    }

    fn client() -> ClientId {
        ClientId::new("devices/iot").unwrap()
    }

    fn registration(&self) -> AdminOperation {
        let (client, key) = (Self::client(), self.device.public());
        let action = AdminAction::RegisterClient { client, key, settings: ClientSettings::default() };
        AdminOperation::sign(self.network, &self.admin, 1, action)
    }

    fn register(&self) -> Arc<VerifiedRequest> {
        let request = Request::Admin { node: self.node.node_id(), operation: self.registration() };
        Arc::new(VerifiedRequest::verify(&self.network, request).unwrap())
    }

    /// The request of this node to write message `seq`.
    fn write(&self, seq: u64) -> Arc<VerifiedRequest> {
        let item = Item {
            client: Self::client(),
            device: "th-01".into(),
            service: "temperature".into(),
            num: 1,
            event_time: NOW,
            value: Value::Integer(21),
            unit: None,
        };
        let items = vec![item.encode()];
        let header = device::Header {
            client: Self::client(),
            stream: Stream::new("env").unwrap(),
            seq: MessageSeq(seq),
            event_time: NOW,
            count: 1,
            items_root: Tree::new(&items).unwrap().root(),
            body_hash: blake3_plain(b"body"),
            unused_above: None,
        };
        let header_bytes = header.encode();
        let message = AdmittedMessage {
            header: &header,
            header_bytes: &header_bytes,
            signature: device::header::sign(&self.network, &header_bytes, &self.device),
            client_key: self.device.public(),
            items: &items,
        };
        Arc::new(VerifiedRequest::from_admitted(self.node.node_id(), message, &[0]).unwrap())
    }

    fn message(request: &VerifiedRequest) -> FinalMessage {
        let Asked::Write(_, telemetry) = request.asked() else { panic!("not a write") };
        final_message(telemetry, FinalVerdict::NotWritten)
    }

    /// This node accepted the message before a restart.
    fn accept(&self, request: &VerifiedRequest) -> FinalMessage {
        let message = Self::message(request);
        let FinalMessage { client, seq, header, items, .. } = message.clone();
        self.admission.resume(&AdmissionRecord { client, seq, header, items }, Position(1));
        message
    }

    fn batch(&self, requests: &[Arc<VerifiedRequest>], at: u64) -> Batch {
        Batch {
            requests: requests.iter().map(|request| request.digest()).collect(),
            timestamp: NOW.plus_ms(at),
            origin_view: View(0),
            proposer: self.node.node_id(),
        }
    }

    /// Executes a batch; gives its result, as Consensus hears of it.
    fn execute(&mut self, requests: &[Arc<VerifiedRequest>]) -> CheckpointContent {
        let sequence = self.storage.state.head().sequence.next();
        let batch = self.batch(requests, sequence.0);
        self.storage.execute(sequence, &batch, requests);
        self.executed.try_take().unwrap().0
    }

    fn certificate(&self, content: CheckpointContent) -> Certificate {
        let bytes = crate::codec::encode(&content);
        let signature = self.node.sign(SignatureKind::Checkpoint, &self.network, &bytes);
        Certificate { content, signatures: vec![(0, signature)] }
    }

    fn certify(&mut self, content: CheckpointContent) {
        let certificate = self.certificate(content);
        self.storage.certify(&certificate);
    }

    /// The blocks that these batches make on another node; `spoil` changes what is certified.
    fn blocks(
        &self,
        batches: &[Vec<Arc<VerifiedRequest>>],
        spoil: impl Fn(&mut CheckpointContent),
    ) -> Vec<CertifiedBlock> {
        let keys = ReplicaSetKeys::new(&self.genesis.replicas).unwrap();
        let mut state = State::genesis(&self.genesis);
        let certify = |(requests, sequence): (&Vec<_>, u64)| {
            let batch = self.batch(requests, sequence);
            let mut executed = state.execute(SeqNum(sequence), &batch, requests);
            spoil(&mut executed.checkpoint);
            let certificate = self.certificate(executed.checkpoint);
            CertifiedBlock::verify(executed.block.unwrap(), certificate, &self.network, &keys).unwrap()
        };
        batches.iter().zip(1..).map(certify).collect()
    }

    fn told(&mut self) -> Vec<(MessageSeq, FinalVerdict)> {
        let told = std::iter::from_fn(|| self.finals.try_take());
        told.map(|told| (told.message.seq, told.message.verdict)).collect()
    }
}

fn is_written(verdict: &FinalVerdict) -> bool {
    matches!(verdict, FinalVerdict::Written { items, .. } if *items == [0])
}

#[test]
fn a_client_is_told_once_and_only_when_a_quorum_certified_its_block() {
    let mut bench = Bench::new();
    let write = bench.write(1);
    bench.accept(&write);
    bench.execute(&[bench.register()]);
    let content = bench.execute(&[write]);
    assert!(bench.told().is_empty());
    bench.certify(content);
    let told = bench.told();
    assert!(told.len() == 1 && is_written(&told[0].1), "{told:?}");
    bench.certify(content);
    assert!(bench.told().is_empty());
}

#[test]
fn a_message_that_was_executed_before_a_restart_is_told_when_its_block_is_certified() {
    let mut bench = Bench::new();
    let write = bench.write(1);
    bench.execute(&[bench.register()]);
    // Nobody waits for it while it is executed: that was before the restart.
    let content = bench.execute(&[Arc::clone(&write)]);
    bench.storage.awaiting.clear();
    let message = bench.accept(&write);
    assert!(bench.storage.take_up(message));
    assert!(bench.told().is_empty());
    bench.certify(content);
    assert!(is_written(&bench.told()[0].1));
}

#[test]
fn a_message_that_was_final_before_a_restart_is_told_at_once() {
    let mut bench = Bench::new();
    let write = bench.write(1);
    bench.execute(&[bench.register()]);
    let content = bench.execute(&[Arc::clone(&write)]);
    bench.certify(content);
    let message = bench.accept(&write);
    assert!(bench.storage.take_up(message));
    assert!(is_written(&bench.told()[0].1));
}

#[test]
fn a_message_that_the_ledger_does_not_have_is_not_taken_up() {
    let mut bench = Bench::new();
    bench.execute(&[bench.register()]);
    let message = bench.accept(&bench.write(1));
    assert!(!bench.storage.take_up(message));
    assert!(bench.told().is_empty());
}

#[test]
fn a_message_is_not_taken_for_another_one_with_its_seq() {
    let mut bench = Bench::new();
    let write = bench.write(1);
    bench.execute(&[bench.register()]);
    let content = bench.execute(&[Arc::clone(&write)]);
    bench.certify(content);
    let FinalMessage { client, seq, header, .. } = Bench::message(&write);
    let look_up = |bench: &mut Bench, header| {
        bench.storage.look_up(LookUpMessage { client: client.clone(), seq, header }).unwrap()
    };
    assert!(is_written(&look_up(&mut bench, header)));
    let reused = FinalVerdict::Rejected(Rejection::SeqReused);
    assert_eq!(look_up(&mut bench, Hash([9; 32])), reused);
}

#[test]
fn nobody_is_told_success_after_a_restart_for_what_may_have_been_too_old_for_the_ledger() {
    let mut bench = Bench::new();
    let (old, recent) = (bench.write(2), bench.write(300));
    // Another node took the recent one in before this node's request for the old one was ordered.
    let content = bench.execute(&[bench.register(), recent, Arc::clone(&old)]);
    bench.certify(content);
    let FinalMessage { client, seq, header, .. } = Bench::message(&old);
    let verdict = bench.storage.look_up(LookUpMessage { client, seq, header }).unwrap();
    assert_eq!(verdict, FinalVerdict::Rejected(Rejection::SeqTooOld { highest: MessageSeq(300) }));
}

#[test]
fn fetched_blocks_tell_this_nodes_clients_and_admins() {
    let mut bench = Bench::new();
    let write = bench.write(1);
    bench.accept(&write);
    let (answer, mut outcome) = oneshot::channel();
    let operation = bench.registration();
    assert_eq!(bench.storage.await_admin(AwaitAdmin { operation, answer }), Awaited::Waiting);
    let blocks = bench.blocks(&[vec![bench.register()], vec![write]], |_| ());
    let applied = bench.storage.apply(&blocks);
    assert!(applied.error.is_none());
    assert_eq!(applied.synced.unwrap().certificate, *blocks[1].certificate());
    assert!(is_written(&bench.told()[0].1));
    assert_eq!(outcome.try_recv(), Ok(AdminOutcome::Executed { height: Height(1), operation: 0 }));
    assert!(bench.storage.parts.view.client(&Bench::client()).is_some());
}

#[test]
fn fetched_blocks_are_written_at_once_with_their_certificates_and_each_once() {
    let mut bench = Bench::new();
    let mut blocks = bench.blocks(&[vec![bench.register()], vec![bench.write(1)]], |_| ());
    let last = blocks.pop().unwrap();
    assert!(bench.storage.apply(&blocks).synced.is_some());
    let (all, before) = ([blocks, vec![last]].concat(), bench.storage.parts.store.load().unwrap().unwrap());
    assert_eq!(before.head.height, Height(1));
    let applied = bench.storage.apply(&all);
    assert!(applied.error.is_none() && applied.synced.is_some());
    let store = Arc::clone(&bench.storage.parts.store);
    assert_eq!(
        (store.load().unwrap().unwrap().head.height, store.certified_height()),
        (Height(2), Height(2))
    );
    for certified in &all {
        let height = certified.block().header.height;
        assert_eq!(store.block(height).unwrap().as_ref(), Some(certified.block()));
        assert_eq!(store.certificate(height).unwrap().as_ref(), Some(certified.certificate()));
    }
    let again = bench.storage.apply(&all);
    assert!(again.error.is_none() && again.synced.is_none(), "nothing is applied twice");
}

#[test]
fn an_admins_operation_that_the_ledger_has_is_not_waited_for() {
    let mut bench = Bench::new();
    bench.execute(&[bench.register()]);
    let (answer, _outcome) = oneshot::channel();
    let operation = bench.registration();
    let stale = Awaited::Refused(Rejection::StaleAdminSequence { last: 1 });
    assert_eq!(bench.storage.await_admin(AwaitAdmin { operation, answer }), stale);
}

#[test]
fn an_operation_that_no_admin_signed_is_not_ordered() {
    let mut bench = Bench::new();
    let (answer, _outcome) = oneshot::channel();
    let AdminOperation { action, .. } = bench.registration();
    let operation = AdminOperation::sign(bench.network, &bench.device, 1, action);
    let refused = Awaited::Refused(Rejection::NotAnAdmin);
    assert_eq!(bench.storage.await_admin(AwaitAdmin { operation, answer }), refused);
    assert!(bench.storage.admins.is_empty());
}

#[test]
fn an_operation_that_is_refused_disturbs_no_client() {
    let mut bench = Bench::new();
    bench.execute(&[bench.register()]);
    let clients = bench.storage.parts.outlets.clients.clone();
    assert_eq!(clients.take(), Some(Bench::client()));
    let AdminOperation { action, .. } = bench.registration();
    let operation = AdminOperation::sign(bench.network, &bench.device, 2, action);
    let request = Request::Admin { node: bench.node.node_id(), operation };
    bench.execute(&[Arc::new(VerifiedRequest::verify(&bench.network, request).unwrap())]);
    assert_eq!(clients.take(), None);
}

#[test]
fn two_who_wait_for_the_same_operation_both_hear_of_it() {
    let mut bench = Bench::new();
    let outcomes: Vec<_> = (0..2)
        .map(|_| {
            let (answer, outcome) = oneshot::channel();
            let operation = bench.registration();
            bench.storage.await_admin(AwaitAdmin { operation, answer });
            outcome
        })
        .collect();
    let content = bench.execute(&[bench.register()]);
    bench.certify(content);
    for mut outcome in outcomes {
        assert_eq!(outcome.try_recv(), Ok(AdminOutcome::Executed { height: Height(1), operation: 0 }));
    }
}

#[test]
fn what_was_applied_before_a_block_that_does_not_fit_is_told() {
    let mut bench = Bench::new();
    let mut blocks =
        bench.blocks(&[vec![bench.register()], vec![bench.write(1)], vec![bench.write(2)]], |_| ());
    blocks.remove(1);
    let applied = bench.storage.apply(&blocks);
    assert_eq!(applied.synced.unwrap().certificate, *blocks[0].certificate());
    assert!(applied.error.is_some());
    assert!(!bench.storage.failed);
}

#[tokio::test]
async fn a_state_that_differs_from_what_a_quorum_certified_is_never_used_again() {
    let mut bench = Bench::new();
    let blocks = bench.blocks(&[vec![bench.register()]], |content| content.state = Hash([9; 32]));
    let applied = bench.storage.apply(&blocks);
    assert!(applied.synced.is_none() && bench.storage.failed);
    assert!(bench.reasons.reason().await.to_string().contains("applying fetched blocks"));
    assert_eq!(bench.storage.parts.store.load().unwrap().unwrap().head.height, Height(0));
}

#[tokio::test]
async fn a_certified_block_on_top_of_another_one_than_the_nodes_own_stops_it() {
    let mut bench = Bench::new();
    let theirs = bench.blocks(&[vec![bench.register()], vec![bench.write(1)]], |_| ());
    bench.execute(&[bench.register(), bench.write(1)]);
    let applied = bench.storage.apply(&theirs[1..]);
    assert!(applied.synced.is_none() && applied.error.is_none() && bench.storage.failed);
    assert!(format!("{:#}", bench.reasons.reason().await).contains("another result than a quorum certified"));
}

#[tokio::test]
async fn a_certificate_of_another_block_stops_the_node() {
    let mut bench = Bench::new();
    let content = bench.execute(&[bench.register()]);
    bench.certify(CheckpointContent { block: Hash([9; 32]), ..content });
    assert!(bench.storage.failed);
    assert!(format!("{:#}", bench.reasons.reason().await).contains("its ledger is wrong"));
}
