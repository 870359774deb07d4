//! The checker finds what it is there to find: each kind of wrong is made, one at a time.

use ledgermq::codec;
use ledgermq::crypto::{SecretKey, SignatureKind};
use ledgermq::device::control::Ack;
use ledgermq::ledger::genesis::GENESIS_VERSION;
use ledgermq::ledger::{Certificate, CheckpointContent, Genesis, Header, ReplicaSet, ReplicaSetKeys};
use ledgermq::types::{ClientId, Hash, Height, MessageSeq, SeqNum, Timestamp, View};

use crate::checker::{
    Body, Chain, ChainBlock, Sent, Told, Violation, Write, Written, check_chains, check_records,
};

/// Three blocks of one message each, at two nodes, and what the clients were told.
struct World {
    genesis: Genesis,
    keys: Vec<SecretKey>,
    chains: Vec<Chain>,
    sent: Vec<Sent>,
}

impl World {
    fn new() -> Self {
        let mut keys: Vec<_> = (1..=4).map(|at| SecretKey::from_seed(&[at; 32])).collect();
        keys.sort_by_key(SecretKey::node_id);
        let genesis = Genesis {
            version: GENESIS_VERSION,
            name: "test".into(),
            created: Timestamp(1_767_225_600_000),
            replicas: ReplicaSet::new(keys.iter().map(SecretKey::node_id).collect()).unwrap(),
            admins: vec![SecretKey::from_seed(&[99; 32]).public()],
        };
        let mut world = Self { genesis, keys, chains: Vec::new(), sent: Vec::new() };
        let mut blocks = Vec::new();
        for seq in 1..=3 {
            let write = write(seq, &[0, 1]);
            blocks.push(world.block(&blocks, 0, vec![write]));
        }
        world.sent = blocks.iter().map(acked).collect();
        world.chains = (0..2).map(|node| Chain { node, blocks: blocks.clone() }).collect();
        world
    }

    /// The next block after `before`; another `nonce` of time makes another block.
    fn block(&self, before: &[ChainBlock], later: u64, writes: Vec<Write>) -> ChainBlock {
        let network = self.genesis.network_id();
        let height = Height(before.len() as u64 + 1);
        let header = Header {
            version: 1,
            network,
            height,
            sequence: SeqNum(height.0),
            timestamp: Timestamp(1_767_225_600_000 + height.0 + later),
            previous: before.last().map_or(Hash(network.0), |block| block.hash),
            merkle_root: Hash([7; 32]),
            operation_count: u32::try_from(writes.len()).unwrap(),
            next_replica_set: Hash([8; 32]),
            origin_view: View(0),
            proposer: self.keys[0].node_id(),
            difficulty_target: 0,
            nonce: 0,
        };
        let certificate = Some(self.certificate(&header, 3));
        ChainBlock { hash: header.hash(), header, body: Some(Body { certificate, writes }) }
    }

    fn certificate(&self, header: &Header, signers: usize) -> Certificate {
        let content = CheckpointContent {
            sequence: header.sequence,
            height: header.height,
            block: header.hash(),
            state: Hash([9; 32]),
        };
        let bytes = codec::encode(&content);
        let sign = |key: &SecretKey| key.sign(SignatureKind::Checkpoint, &self.genesis.network_id(), &bytes);
        let signatures = (0..).zip(&self.keys).take(signers).map(|(at, key)| (at, sign(key))).collect();
        Certificate { content, signatures }
    }

    fn body(&mut self, node: usize, at: usize) -> &mut Body {
        self.chains[node].blocks[at].body.as_mut().unwrap()
    }

    fn check(&self) -> Vec<Violation> {
        let keys = ReplicaSetKeys::new(&self.genesis.replicas).unwrap();
        let mut violations = check_chains(&self.genesis, &keys, &self.chains);
        let mut written = Written::default();
        for block in &self.chains[0].blocks {
            for write in &block.body.as_ref().unwrap().writes {
                written.add(block.header.height, write);
            }
        }
        let hashes: Vec<Hash> = self.chains[0].blocks.iter().map(|block| block.hash).collect();
        violations.extend(check_records(&hashes, &written, &self.sent));
        violations
    }
}

fn client() -> ClientId {
    ClientId::new("devices/iot").unwrap()
}

fn write(seq: u64, written: &[u32]) -> Write {
    let message = Hash([u8::try_from(seq).unwrap(); 32]);
    Write { operation: 0, client: client(), seq: MessageSeq(seq), message, written: written.to_vec() }
}

/// The message of a block, as a client knows it that has its ack.
fn acked(block: &ChainBlock) -> Sent {
    let write = &block.body.as_ref().unwrap().writes[0];
    let ack = Ack {
        stream: "env".parse().unwrap(),
        seq: write.seq,
        header: write.message,
        items: 2,
        written: vec![0, 1],
        height: Some(block.header.height),
        block: Some(block.hash),
        server_time: Timestamp(0),
    };
    let (client, seq, message) = (write.client.clone(), write.seq, write.message);
    Sent { client, seq, message, items: 2, told: Told::Success(Box::new(ack)) }
}

#[test]
fn what_is_right_passes() {
    assert_eq!(World::new().check(), []);
}

#[test]
fn a_fork_is_found() {
    let mut world = World::new();
    let other = world.block(&world.chains[1].blocks[..2], 1, vec![write(3, &[0, 1])]);
    world.chains[1].blocks[2] = other;
    assert_eq!(world.check(), [Violation::Fork { height: Height(3), nodes: (0, 1) }]);
}

#[test]
fn a_gap_is_found() {
    let mut world = World::new();
    world.chains[1].blocks.remove(1);
    let violations = world.check();
    assert!(violations.contains(&Violation::Gap { node: 1, height: Height(2) }), "{violations:?}");
    assert!(violations.contains(&Violation::Behind { node: 1, has: 2, others: 3 }), "{violations:?}");
}

#[test]
fn a_lost_record_is_found_when_it_was_acked_and_when_it_had_a_puback_alone() {
    let mut world = World::new();
    for node in 0..2 {
        world.body(node, 1).writes[0].written = vec![0];
        world.body(node, 2).writes.clear();
    }
    world.sent[2].told = Told::Puback;
    let (client, lost) = (client(), world.check());
    let expected = [
        Violation::AckedLost { client: client.clone(), seq: MessageSeq(2) },
        Violation::PubackedLost { client, seq: MessageSeq(3) },
    ];
    assert_eq!(lost, expected);
    assert!(lost[1].may_pass() && !lost[0].may_pass());
}

#[test]
fn a_message_of_which_its_client_heard_nothing_may_be_there_or_not() {
    let mut world = World::new();
    world.sent[0].told = Told::Nothing;
    assert_eq!(world.check(), []);
    for node in 0..2 {
        world.body(node, 0).writes.clear();
    }
    assert_eq!(world.check(), []);
}

#[test]
fn a_doubled_record_is_found_whatever_its_client_was_told() {
    for told in [Told::Nothing, Told::Puback] {
        let mut world = World::new();
        world.sent[0].told = told;
        for node in 0..2 {
            world.body(node, 2).writes.push(write(1, &[1]));
        }
        let doubled = Violation::Doubled { client: client(), seq: MessageSeq(1), item: 1 };
        assert_eq!(world.check(), [doubled]);
    }
}

#[test]
fn a_second_write_that_writes_what_the_first_did_not_is_no_doubled_record() {
    let mut world = World::new();
    for node in 0..2 {
        world.body(node, 0).writes[0].written = vec![0];
        world.body(node, 2).writes.push(write(1, &[1]));
    }
    assert_eq!(world.check(), []);
}

#[test]
fn a_foreign_record_is_found_be_it_another_message_or_another_item() {
    let foreign = [write(9, &[0]), Write { message: Hash([66; 32]), ..write(1, &[0]) }];
    for write in foreign {
        let mut world = World::new();
        world.body(0, 1).writes.push(Write { operation: 1, ..write });
        assert_eq!(world.check(), [Violation::Foreign { height: Height(2), operation: 1 }]);
    }
    let mut world = World::new();
    world.body(0, 1).writes[0].written = vec![0, 1, 2];
    assert_eq!(world.check(), [Violation::Foreign { height: Height(2), operation: 0 }]);
}

#[test]
fn an_ack_that_names_another_block_is_found() {
    let change: [fn(&mut Ack); 4] = [
        |ack| ack.height = Some(Height(2)),
        |ack| ack.block = Some(Hash([1; 32])),
        |ack| ack.height = Some(Height(99)),
        |ack| ack.written = vec![0],
    ];
    for change in change {
        let mut world = World::new();
        let Told::Success(ack) = &mut world.sent[0].told else { panic!("it is acked") };
        change(ack);
        assert_eq!(world.check(), [Violation::WrongPlace { client: client(), seq: MessageSeq(1) }]);
    }
}

#[test]
fn a_refused_message_is_found() {
    let mut world = World::new();
    world.sent[0].told = Told::Refused("no".into());
    let (client, seq) = (client(), MessageSeq(1));
    assert_eq!(world.check(), [Violation::Refused { client, seq, why: "no".into() }]);
}

#[test]
fn a_certificate_that_does_not_verify_is_found() {
    let bad: [fn(&World, &mut Option<Certificate>); 4] = [
        |world, certificate| *certificate = Some(world.certificate(&world.chains[0].blocks[1].header, 2)),
        |world, certificate| *certificate = Some(world.certificate(&world.chains[0].blocks[0].header, 3)),
        |_, certificate| certificate.as_mut().unwrap().signatures[1].1.0[3] ^= 1,
        |_, certificate| certificate.as_mut().unwrap().content.state = Hash([1; 32]),
    ];
    for bad in bad {
        let mut world = World::new();
        let mut certificate = world.body(1, 1).certificate.clone();
        bad(&world, &mut certificate);
        world.body(1, 1).certificate = certificate;
        let violations = world.check();
        let found =
            matches!(violations.as_slice(), [Violation::BadCertificate { node: 1, height: Height(2), .. }]);
        assert!(found, "{violations:?}");
    }
}

#[test]
fn a_block_without_a_certificate_may_get_one_and_is_found() {
    let mut world = World::new();
    world.body(1, 1).certificate = None;
    let missing = Violation::Uncertified { node: 1, height: Height(2) };
    assert!(missing.may_pass());
    assert_eq!(world.check(), [missing]);
}

#[test]
fn a_header_that_is_not_what_its_hash_says_is_found() {
    let mut world = World::new();
    world.chains[1].blocks[2].header.timestamp = Timestamp(5);
    let violations = world.check();
    assert!(violations.contains(&Violation::BadHeader { node: 1, height: Height(3) }), "{violations:?}");
}
