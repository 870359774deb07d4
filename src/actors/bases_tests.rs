//! Several nodes over one ledger, against a plain model: late, concurrent and out-of-order data,
//! refusals, failover of a client to another node, changes of the policies, and restarts.

use std::collections::BTreeSet;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::device::Value;
use crate::ledger::block::{HEADER_VERSION, Header};
use crate::ledger::{Rejection, WriteRequest, WrittenItem};
use crate::metrics::Metrics;
use crate::policy::{Interval, Pattern, PolicySet, Quota, Rule, RuleName, Threshold, Verdict};
use crate::store::{SledStore, StoreSettings};
use crate::types::{Hash, NetworkId, NodeId, PublicKey, SeqNum, Signature, Stream, Timestamp, View};

const NETWORK: NetworkId = NetworkId([7; 32]);
const STREAM: &str = "env";
/// Numbers of the items of each message.
const ITEMS: u32 = 3;

/// So many clients send, each by way of any node.
const CLIENTS: usize = 3;

fn client_of(number: usize) -> ClientId {
    ClientId::new(format!("devices/iot{number}")).unwrap()
}

fn client() -> ClientId {
    client_of(0)
}

fn item(num: u32, time: u64, value: i64) -> Item {
    item_of(0, num, time, value)
}

fn item_of(client: usize, num: u32, time: u64, value: i64) -> Item {
    Item {
        client: client_of(client),
        device: "th-01".into(),
        service: "temperature".into(),
        num,
        event_time: Timestamp(time),
        value: Value::Integer(value),
        unit: None,
    }
}

/// One rule for all.
fn policies(version: u64, policy: WritePolicy, quota: Option<u32>) -> Policies {
    let any = Pattern::any;
    let (client, stream, device, service) = (any(), any(), any(), any());
    let rule = Rule { name: RuleName::new("all").unwrap(), client, stream, device, service, policy };
    let quotas = quota.map(|max_items| Quota { client: any(), max_items }).into_iter().collect();
    Policies { version, set: PolicySet::with_quotas(vec![rule], quotas).unwrap(), places: Default::default() }
}

fn change(by: f64) -> WritePolicy {
    WritePolicy::Change(Threshold::new(by).unwrap())
}

fn block(height: u64, writes: &[(MessageSeq, Vec<(u32, Item)>)]) -> Block {
    let operations = writes.iter().map(|(seq, items)| {
        let header = device::Header {
            client: items[0].1.client.clone(),
            stream: Stream::new(STREAM).unwrap(),
            seq: *seq,
            event_time: items[0].1.event_time,
            count: ITEMS,
            items_root: Hash([3; 32]),
            body_hash: Hash([4; 32]),
            unused_above: None,
        };
        let written = items.iter().map(|(index, _)| *index).collect();
        let items = items.iter().map(|(index, item)| WrittenItem { index: *index, bytes: item.encode() });
        let request = WriteRequest {
            node: NodeId([1; 32]),
            client_key: PublicKey([2; 32]),
            header: header.encode(),
            signature: Signature([5; 64]),
            items: items.collect(),
            proof: vec![],
        };
        Operation::Write { request: Arc::new(request), written }
    });
    let operations: Vec<_> = operations.collect();
    let header = Header {
        version: HEADER_VERSION,
        network: NETWORK,
        height: Height(height),
        sequence: SeqNum(height),
        timestamp: Timestamp(height),
        previous: Hash([0; 32]),
        merkle_root: Hash([0; 32]),
        operation_count: u32::try_from(operations.len()).unwrap(),
        next_replica_set: Hash([0; 32]),
        origin_view: View(0),
        proposer: NodeId([1; 32]),
        difficulty_target: 0,
        nonce: 0,
    };
    Block { header, operations }
}

fn settled(seq: MessageSeq, verdict: FinalVerdict) -> FinalMessage {
    settled_of(&client(), seq, verdict)
}

fn settled_of(client: &ClientId, seq: MessageSeq, verdict: FinalVerdict) -> FinalMessage {
    let stream = Stream::new(STREAM).unwrap();
    FinalMessage { client: client.clone(), stream, seq, header: Hash([1; 32]), items: ITEMS, verdict }
}

fn written(height: u64) -> FinalVerdict {
    FinalVerdict::Written { items: vec![], height: Height(height), block: Hash([0; 32]) }
}

fn bases_of(store: &Arc<SledStore>, cached_items: usize, open_items: usize) -> Bases {
    let limits = BasesLimits { cached_items, open_items };
    let gauge = Metrics::new().unwrap().queues.queue("open_items");
    Bases::new(Arc::clone(store) as Arc<_>, limits, gauge)
}

fn open_store(dir: &TempDir) -> Arc<SledStore> {
    Arc::new(SledStore::open(dir.path(), &StoreSettings::new(NETWORK)).unwrap())
}

/// A message that a node has decided.
#[derive(Debug, Clone)]
struct Submitted {
    seq: MessageSeq,
    items: Vec<Item>,
    decision: Decision,
    fate: Fate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Pending,
    Written(u64),
    Refused,
}

/// A node: the thing itself, and what the model knows of it.
struct Node {
    _dir: TempDir,
    store: Arc<SledStore>,
    cached: usize,
    bases: Bases,
    submitted: Vec<Submitted>,
    /// Messages whose clients were told, as the log has it.
    told: BTreeSet<MessageSeq>,
}

impl Node {
    fn new(cached: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = open_store(&dir);
        let bases = bases_of(&store, cached, usize::MAX);
        Self { _dir: dir, store, cached, bases, submitted: Vec::new(), told: BTreeSet::new() }
    }
}

/// What is on the ledger: `(seq, index, item)` of each block.
type Written = Vec<Vec<(MessageSeq, u32, Item)>>;

struct Network {
    nodes: Vec<Node>,
    policies: Policies,
    ledger: Written,
    messages: Vec<(MessageSeq, Vec<Item>)>,
    refused: BTreeSet<MessageSeq>,
}

#[derive(Debug, Clone)]
enum Step {
    /// A new message, by way of one node, with an event time that may be of before.
    Send {
        client: usize,
        node: usize,
        time: u64,
        values: [i64; ITEMS as usize],
    },
    /// An old message, by way of another node.
    SendAgain {
        node: usize,
        message: prop::sample::Index,
    },
    /// Some node's pending message is executed, or refused.
    Execute {
        node: usize,
        message: prop::sample::Index,
        refuse: bool,
    },
    /// A node indexes the next block.
    Index {
        node: usize,
    },
    /// A node's client is told of a message that is executed.
    Tell {
        node: usize,
        message: prop::sample::Index,
    },
    Restart {
        node: usize,
    },
    SetPolicy {
        policy: WritePolicy,
    },
}

const NODES: usize = 3;

fn any_policy() -> impl Strategy<Value = WritePolicy> {
    let interval = || (1_u64..40).prop_map(|ms| Interval::from_ms(ms).unwrap());
    let threshold = || (1_u32..6).prop_map(|by| Threshold::new(f64::from(by)).unwrap());
    prop_oneof![
        1 => Just(WritePolicy::Always),
        1 => Just(WritePolicy::Never),
        2 => interval().prop_map(WritePolicy::Periodic),
        3 => threshold().prop_map(WritePolicy::Change),
        2 => (interval(), threshold()).prop_map(|(i, t)| WritePolicy::Both(i, t)),
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    let node = || 0..NODES;
    let index = any::<prop::sample::Index>;
    prop_oneof![
        8 => (0..CLIENTS, node(), 0_u64..100, prop::array::uniform3(0_i64..8))
            .prop_map(|(client, node, time, values)| Step::Send { client, node, time, values }),
        2 => (node(), index()).prop_map(|(node, message)| Step::SendAgain { node, message }),
        6 => (node(), index(), prop::bool::weighted(0.2))
            .prop_map(|(node, message, refuse)| Step::Execute { node, message, refuse }),
        6 => node().prop_map(|node| Step::Index { node }),
        3 => (node(), index()).prop_map(|(node, message)| Step::Tell { node, message }),
        1 => node().prop_map(|node| Step::Restart { node }),
        1 => any_policy().prop_map(|policy| Step::SetPolicy { policy }),
    ]
}

/// What the rule says, in the words of the documentation.
fn plainly(policy: WritePolicy, last: Option<&Item>, item: &Item) -> bool {
    let changed = |by: Threshold, last: &Item| match (&last.value, &item.value) {
        (Value::Integer(old), Value::Integer(new)) => (new - old).abs() as f64 >= by.get(),
        _ => unreachable!("the values are integers"),
    };
    let over = |every: Interval, last: &Item| item.event_time.0 - last.event_time.0 >= every.ms();
    match (policy, last) {
        (WritePolicy::Always, _) => true,
        (WritePolicy::Never, _) => false,
        (_, None) => true,
        (_, Some(last)) if item.event_time <= last.event_time => true,
        (WritePolicy::Periodic(every), Some(last)) => over(every, last),
        (WritePolicy::Change(by), Some(last)) => changed(by, last),
        (WritePolicy::Both(every, by), Some(last)) => over(every, last) || changed(by, last),
    }
}

impl Network {
    fn new() -> Self {
        Self {
            // The first throws nearly everything away again, the last nothing.
            nodes: [1, 4, 64].map(Node::new).into(),
            policies: policies(1, change(2.0), None),
            ledger: Vec::new(),
            messages: Vec::new(),
            refused: BTreeSet::new(),
        }
    }

    /// The newest value that the node submitted or has on its ledger, looked for everywhere.
    fn last(&self, node: usize, client: &ClientId, num: u32) -> Option<(BaseRef, Item)> {
        let node = &self.nodes[node];
        let indexed = usize::try_from(node.store.indexed_height().0).unwrap();
        let own = node.submitted.iter().filter(|message| message.fate != Fate::Refused).flat_map(|message| {
            let picked = message.decision.picked().into_iter();
            picked.map(|index| (message.seq, index, message.items[index as usize].clone()))
        });
        let all = self.ledger[..indexed].iter().flatten().cloned().chain(own);
        all.filter(|(_, _, item)| (&item.client, item.num) == (client, num))
            .max_by_key(|(seq, index, item)| (item.event_time, *seq, *index))
            .map(|(seq, index, item)| (BaseRef { seq, index }, item))
    }

    fn send(&mut self, node: usize, seq: MessageSeq, items: &[Item]) {
        if self.nodes[node].submitted.iter().any(|message| message.seq == seq) {
            return;
        }
        let expected: Vec<_> = items.iter().map(|item| self.last(node, &item.client, item.num)).collect();
        let decision = self.nodes[node].bases.judge(&self.policies, STREAM, seq, items).unwrap();
        assert_eq!(decision.policies, self.policies.version);
        for ((item, made), last) in items.iter().zip(&decision.items).zip(expected) {
            let policy = self.policies.set.policy(STREAM, item);
            let base = last.as_ref().filter(|_| policy.needs_base());
            assert_eq!(made.base, base.map(|(at, _)| *at), "{item:?} under {policy}");
            let writes = plainly(policy, base.map(|(_, last)| last), item);
            assert_eq!(made.verdict.writes(), writes, "{item:?} after {base:?} under {policy}");
        }
        let fate = Fate::Pending;
        let message = Submitted { seq, items: items.to_vec(), decision, fate };
        self.nodes[node].submitted.push(message);
    }

    /// A node's pending message is executed: what other nodes have written of it is not written again.
    fn execute(&mut self, node: usize, at: prop::sample::Index, refuse: bool) {
        let pending: Vec<_> = (0..self.nodes[node].submitted.len())
            .filter(|at| self.nodes[node].submitted[*at].fate == Fate::Pending)
            .collect();
        if pending.is_empty() {
            return;
        }
        let at = *at.get(&pending);
        let Submitted { seq, items, decision, .. } = self.nodes[node].submitted[at].clone();
        let there: Vec<u32> =
            self.ledger.iter().flatten().filter(|(other, ..)| *other == seq).map(|(_, at, _)| *at).collect();
        if decision.picked().is_empty() {
            self.nodes[node].submitted[at].fate = Fate::Written(0);
            self.nodes[node].bases.settled(&settled_of(&items[0].client, seq, FinalVerdict::NotWritten));
        } else if (refuse && there.is_empty()) || self.refused.contains(&seq) {
            // All replicas refuse a message alike, whoever admitted it.
            self.refused.insert(seq);
            self.nodes[node].submitted[at].fate = Fate::Refused;
            let last_seq = MessageSeq(0);
            let verdict = FinalVerdict::Rejected(Rejection::Revoked { last_seq });
            self.nodes[node].bases.settled(&settled_of(&items[0].client, seq, verdict));
        } else {
            let new = decision.picked().into_iter().filter(|index| !there.contains(index));
            let new: Vec<_> = new.map(|index| (seq, index, items[index as usize].clone())).collect();
            if !new.is_empty() {
                self.ledger.push(new);
            }
            let holds = |block: &Vec<(MessageSeq, u32, Item)>| block.iter().any(|(other, ..)| *other == seq);
            let height = self.ledger.iter().rposition(holds).unwrap() + 1;
            self.nodes[node].submitted[at].fate = Fate::Written(height as u64);
        }
    }

    fn index(&mut self, node: usize) {
        let node = &self.nodes[node];
        let next = node.store.indexed_height().0 + 1;
        let Some(written) = self.ledger.get(usize::try_from(next).unwrap() - 1) else { return };
        let items = written.iter().map(|(_, index, item)| (*index, item.clone())).collect();
        let block = block(next, &[(written[0].0, items)]);
        node.store.index(std::slice::from_ref(&block)).unwrap();
        node.bases.indexed(&block);
    }

    fn tell(&mut self, node: usize, at: prop::sample::Index) {
        let node = &mut self.nodes[node];
        if node.submitted.is_empty() {
            return;
        }
        let message = at.get(&node.submitted);
        if let Fate::Written(height) = message.fate
            && height > 0
        {
            let client = &message.items[0].client;
            node.bases.settled(&settled_of(client, message.seq, written(height)));
            node.told.insert(message.seq);
        }
    }

    /// A node starts again with what its log has: decisions are repeated, and what is written and not
    /// indexed is known.
    fn restart(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        let indexed = node.store.indexed_height().0;
        node.bases = bases_of(&node.store, node.cached, usize::MAX);
        for Submitted { seq, items, decision, fate } in &node.submitted {
            let is_open = match fate {
                Fate::Pending => true,
                Fate::Written(height) => *height > indexed || (*height > 0 && !node.told.contains(seq)),
                Fate::Refused => false,
            };
            if is_open {
                node.bases.resume(*seq, items, decision).unwrap();
            }
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Send { client, node, time, values } => {
                let seq = MessageSeq(self.messages.len() as u64 + 1);
                let items: Vec<_> =
                    (1..).zip(values).map(|(num, value)| item_of(client, num, time, value)).collect();
                self.messages.push((seq, items.clone()));
                self.send(node, seq, &items);
            }
            Step::SendAgain { node, message } if !self.messages.is_empty() => {
                let (seq, items) = message.get(&self.messages).clone();
                self.send(node, seq, &items);
            }
            Step::SendAgain { .. } => {}
            Step::Execute { node, message, refuse } => self.execute(node, message, refuse),
            Step::Index { node } => self.index(node),
            Step::Tell { node, message } => self.tell(node, message),
            Step::Restart { node } => self.restart(node),
            Step::SetPolicy { policy } => self.policies = policies(self.policies.version + 1, policy, None),
        }
    }

    /// Everything is executed, indexed and told: nothing is open any more.
    fn finish(&mut self) {
        let any = any_index();
        for node in 0..NODES {
            while self.nodes[node].submitted.iter().any(|message| message.fate == Fate::Pending) {
                self.execute(node, any, false);
            }
        }
        for node in 0..NODES {
            // A client is told once, mostly before the block is indexed.
            for Submitted { seq, fate, items, .. } in &self.nodes[node].submitted {
                if let Fate::Written(height) = fate
                    && !self.nodes[node].told.contains(seq)
                {
                    let message = settled_of(&items[0].client, *seq, written(*height));
                    self.nodes[node].bases.settled(&message);
                }
            }
            for _ in 0..self.ledger.len() {
                self.index(node);
            }
            assert_eq!(self.nodes[node].bases.open_count(), 0);
            let known = self.nodes[node].bases.known();
            assert!(known.open.is_empty() && known.messages.is_empty() && known.firsts.is_empty());
            drop(known);
            for client in 0..CLIENTS {
                let id = client_of(client);
                for num in 1..=ITEMS {
                    let key = (&item_of(client, num, 0, 0)).into();
                    let stored = self.nodes[node].store.last_written(&key).unwrap();
                    assert_eq!(stored.map(|last| last.at), self.last(node, &id, num).map(|(at, _)| at));
                }
                let items = self.ledger.iter().flatten().filter(|(_, _, item)| item.client == id);
                let items = items.map(|(_, _, item)| item.num).collect::<BTreeSet<_>>();
                assert_eq!(self.nodes[node].store.item_count(&id).unwrap(), items.len() as u64);
            }
        }
    }
}

fn any_index() -> prop::sample::Index {
    use proptest::strategy::ValueTree as _;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    any::<prop::sample::Index>().new_tree(&mut runner).unwrap().current()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn each_node_follows_the_rule_against_the_newest_value_that_it_submitted_or_has(
        steps in prop::collection::vec(any_step(), 1..120),
    ) {
        let mut network = Network::new();
        for step in steps {
            network.step(&step);
        }
        network.finish();
    }
}

#[test]
fn what_is_submitted_counts_before_it_is_on_the_ledger_and_not_after_it_was_refused() {
    let node = Node::new(2);
    let rule = policies(1, change(5.0), None);
    let verdict = |seq: u64, time, value| {
        let decision = node.bases.judge(&rule, STREAM, MessageSeq(seq), &[item(1, time, value)]).unwrap();
        (decision.items[0].verdict, decision.items[0].base.map(|base| base.seq.0))
    };
    assert_eq!(verdict(1, 10, 20), (Verdict::First, None));
    assert_eq!(verdict(2, 20, 22), (Verdict::Quiet, Some(1)));
    assert_eq!(verdict(3, 30, 26), (Verdict::Change, Some(1)));
    assert_eq!(verdict(4, 40, 22), (Verdict::Quiet, Some(3)));
    assert_eq!(verdict(5, 25, 26), (Verdict::NotNewer, Some(3)));
    let refused = FinalVerdict::Rejected(Rejection::Revoked { last_seq: MessageSeq(2) });
    node.bases.settled(&settled(MessageSeq(3), refused));
    assert_eq!(verdict(6, 50, 22), (Verdict::Quiet, Some(5)));
}

#[test]
fn what_the_ledger_has_of_a_message_that_is_taken_up_again_is_not_open() {
    let mut node = Node::new(2);
    let rule = policies(1, WritePolicy::Always, None);
    let items = [item(1, 10, 20), item(2, 10, 20)];
    let decision = node.bases.judge(&rule, STREAM, MessageSeq(1), &items).unwrap();
    // Another node wrote a part of it, and this one is started again before its own request is executed.
    let blocks = [block(1, &[(MessageSeq(1), vec![(0, items[0].clone())])])];
    node.store.index(&blocks).unwrap();
    node.bases = bases_of(&node.store, 2, 2);
    node.bases.resume(MessageSeq(1), &items, &decision).unwrap();
    assert_eq!(node.bases.open_count(), 1);
    node.bases.settled(&settled(MessageSeq(1), written(2)));
    let blocks = [block(2, &[(MessageSeq(1), vec![(1, items[1].clone())])])];
    node.store.index(&blocks).unwrap();
    node.bases.indexed(&blocks[0]);
    assert_eq!(node.bases.open_count(), 0, "else less and less room would be left");
    assert!(node.bases.known().messages.is_empty());
}

#[test]
fn items_beyond_the_quota_are_refused_and_those_that_are_known_are_not() {
    let node = Node::new(2);
    let rule = policies(1, change(5.0), Some(2));
    let send = |seq: u64, nums: &[u32]| {
        let items: Vec<_> = nums.iter().map(|num| item(*num, seq, 1)).collect();
        let fits = node.bases.check_quota(&rule, STREAM, &items).unwrap();
        if fits.is_ok() {
            node.bases.judge(&rule, STREAM, MessageSeq(seq), &items).unwrap();
        }
        fits
    };
    assert_eq!(send(1, &[1]), Ok(()));
    assert_eq!(send(2, &[1, 2, 3]), Err(TooManyItems { quota: 2, items: 3 }));
    let blocks = block(1, &[(MessageSeq(1), vec![(0, item(1, 1, 1))])]);
    node.store.index(std::slice::from_ref(&blocks)).unwrap();
    node.bases.indexed(&blocks);
    assert_eq!(send(3, &[1, 2]), Ok(()));
    assert_eq!(send(4, &[3]), Err(TooManyItems { quota: 2, items: 3 }));
    assert_eq!(send(5, &[2, 1]), Ok(()));
    // A quota that is lowered takes nothing away.
    let lower = policies(2, change(5.0), Some(0));
    assert_eq!(node.bases.check_quota(&lower, STREAM, &[item(1, 9, 1)]).unwrap(), Ok(()));
    assert!(node.bases.check_quota(&lower, STREAM, &[item(4, 9, 1)]).unwrap().is_err());
    // What is never written makes no index grow.
    let never = policies(3, WritePolicy::Never, Some(0));
    assert_eq!(node.bases.check_quota(&never, STREAM, &[item(4, 9, 1)]).unwrap(), Ok(()));
}

#[tokio::test]
async fn while_too_much_is_open_no_further_message_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_store(&dir);
    let bases = bases_of(&store, 2, 2);
    let rule = policies(1, WritePolicy::Always, None);
    bases.room().await;
    bases.judge(&rule, STREAM, MessageSeq(1), &[item(1, 1, 1), item(2, 1, 1)]).unwrap();
    let mut room = Box::pin(bases.room());
    assert!(futures::poll!(&mut room).is_pending());
    let blocks = block(1, &[(MessageSeq(1), vec![(0, item(1, 1, 1)), (1, item(2, 1, 1))])]);
    store.index(std::slice::from_ref(&blocks)).unwrap();
    bases.indexed(&blocks);
    room.await;
    assert_eq!(bases.open_count(), 0);
}
