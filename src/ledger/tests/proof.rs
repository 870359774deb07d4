//! Proof bundles verify, and nothing that was altered does.

use std::sync::Arc;

use proptest::prelude::*;

use super::fixture::{Net, client, client_key, execute, node};
use crate::crypto::SecretKey;
use crate::device;
use crate::ledger::block::{Block, BlockError};
use crate::ledger::genesis::{Genesis, GenesisError, ReplicaSet};
use crate::ledger::proof::{Inclusion, InclusionError, MAX_BUNDLE_BYTES, ProofBundle, ProofError, Verifier};
use crate::ledger::request::RequestError;
use crate::ledger::state::State;
use crate::ledger::{Certificate, CertificateError, Operation};
use crate::types::{Hash, Height, MessageSeq, NodeId, Timestamp};

/// A certified block and the state's place after it.
struct Certified(Block, Certificate);

impl Certified {
    fn prove(&self, index: u32) -> Inclusion {
        Inclusion::new(&self.0, &self.0.tree().unwrap(), &self.1, index).unwrap()
    }
}

fn next_block(
    net: &Net,
    state: &mut State,
    requests: &[std::sync::Arc<crate::ledger::VerifiedRequest>],
) -> Certified {
    let executed = execute(state, requests);
    Certified(executed.block.unwrap(), net.certify(executed.checkpoint, &[0, 2, 3]))
}

/// The bundle of items 0 and 2 of a message of client 1, written in block 2 beside others.
fn bundle() -> (Net, ProofBundle) {
    let net = Net::new(4);
    let mut state = State::genesis(&net.genesis);
    let first = next_block(&net, &mut state, &[net.register(1, 2), net.register(2, 1)]);
    let other = net.message(2, 1, 20, 1).request(node(1), &[0]);
    let message = net.message(1, 5, 20, 3).request(node(1), &[0, 2]);
    let second = next_block(&net, &mut state, &[other, message, net.register(3, 3)]);
    let bundle = ProofBundle { registration: first.prove(1), write: second.prove(1) };
    (net, bundle)
}

#[test]
fn a_bundle_proves_who_what_when_and_where_with_genesis_alone() {
    let (net, bundle) = bundle();
    let genesis = Genesis::from_json(&net.genesis.to_json()).unwrap();
    let read = ProofBundle::decode(&bundle.encode()).unwrap();
    assert_eq!(read, bundle);
    let proven = read.verify(&genesis).unwrap();
    assert_eq!((proven.client, proven.client_key), (client(1), client_key(1).public()));
    assert_eq!((proven.stream.as_str(), proven.seq, proven.message_items), ("env", MessageSeq(5), 3));
    assert_eq!(proven.event_time, Timestamp(1_767_225_600_005));
    let records: Vec<_> = proven.records.iter().map(ToString::to_string).collect();
    assert_eq!(records, ["<devices/c1/th-01/0/1767225600005/20>", "<devices/c1/th-01/2/1767225600005/20>"]);
    assert_eq!((proven.block.height, proven.block.operation), (Height(2), 1));
    assert_eq!(proven.block.hash, bundle.write.header.hash());
    assert_eq!((proven.registration.height, proven.registration.operation), (Height(1), 1));
    assert_eq!(proven.registered_by, net.admin.public());
    assert_eq!((proven.replicas, proven.quorum), (4, 3));
    let signed_by: Vec<NodeId> = [0, 2, 3].map(|at| genesis.replicas.members()[at]).to_vec();
    assert_eq!(proven.block.signed_by, signed_by);
    assert_eq!(proven.admitted_by, node(1));
    assert!(serde_json::to_string(&ProofBundle::verify(&bundle, &genesis).unwrap()).is_ok());
}

#[test]
fn any_flipped_byte_makes_verification_fail() {
    let (net, bundle) = bundle();
    let verifier = Verifier::new(&net.genesis).unwrap();
    let bytes = bundle.encode();
    for at in 0..bytes.len() {
        let mut altered = bytes.clone();
        altered[at] ^= 1 << (at % 8);
        let verified = ProofBundle::decode(&altered).and_then(|bundle| verifier.verify(&bundle));
        assert!(verified.is_err(), "byte {at} of {} is not covered", bytes.len());
    }
}

#[test]
fn every_truncation_and_surplus_is_refused() {
    let (_, bundle) = bundle();
    let mut bytes = bundle.encode();
    for len in 0..bytes.len() {
        assert!(ProofBundle::decode(&bytes[..len]).is_err(), "{len}");
    }
    bytes.push(0);
    assert!(matches!(ProofBundle::decode(&bytes), Err(ProofError::Codec(_))));
}

#[test]
fn what_is_no_bundle_is_told_apart() {
    let (_, bundle) = bundle();
    let bytes = bundle.encode();
    assert_eq!(ProofBundle::decode(b"{\"json\": true}"), Err(ProofError::NotABundle));
    let mut newer = bytes;
    newer[9] = 2;
    assert_eq!(ProofBundle::decode(&newer), Err(ProofError::Version(2)));
    newer[9] = 1;
    newer.resize(MAX_BUNDLE_BYTES + 11, 0);
    assert!(matches!(ProofBundle::decode(&newer), Err(ProofError::Codec(_))));
}

#[test]
fn another_genesis_document_does_not_do() {
    let (net, bundle) = bundle();
    let renamed = Genesis { name: "other".into(), ..net.genesis.clone() };
    assert!(bundle.verify(&renamed).is_err());
    let no_admin = Genesis { admins: vec![], ..net.genesis.clone() };
    assert_eq!(bundle.verify(&no_admin), Err(ProofError::Genesis(GenesisError::Admins)));
    let replicas = ReplicaSet::new(vec![NodeId([0; 32])]).unwrap();
    let weak = Genesis { replicas, ..net.genesis };
    assert_eq!(bundle.verify(&weak), Err(ProofError::Genesis(GenesisError::ReplicaKey)));
}

#[test]
fn a_minority_cannot_certify() {
    let (net, mut bundle) = bundle();
    bundle.write.certificate = net.certify(bundle.write.certificate.content, &[0, 1]);
    let no_quorum = CertificateError::NoQuorum { found: 2, quorum: 3 };
    let error = ProofError::Write(InclusionError::Block(BlockError::Certificate(no_quorum)));
    assert_eq!(bundle.verify(&net.genesis), Err(error));
}

#[test]
fn parts_of_different_proofs_do_not_fit_together() {
    let (net, good) = bundle();
    let verify = |bundle: &ProofBundle| bundle.verify(&net.genesis).map(|_| ()).unwrap_err();
    let ProofBundle { registration, write } = good.clone();

    let swapped = ProofBundle { registration: write.clone(), write: registration.clone() };
    assert_eq!(verify(&swapped), ProofError::NoRegistration);
    let twice = ProofBundle { registration: registration.clone(), write: registration.clone() };
    assert_eq!(verify(&twice), ProofError::NoWrite);

    let mut foreign = good.clone();
    foreign.registration.certificate = write.certificate.clone();
    let error = InclusionError::Block(BlockError::ForeignCertificate);
    assert_eq!(verify(&foreign), ProofError::Registration(error));

    let mut misplaced = good.clone();
    misplaced.write.index = 0;
    let error = InclusionError::Merkle { height: Height(2), error: crate::merkle::MerkleError::Root };
    assert_eq!(verify(&misplaced), ProofError::Write(error));

    let mut more = good.clone();
    let Operation::Write { written, .. } = &mut more.write.operation else { panic!("not a write") };
    written.push(9);
    assert_eq!(verify(&more), ProofError::Written);

    let mut replaced = good;
    let Operation::Write { request, .. } = &mut replaced.write.operation else { panic!("not a write") };
    let request = Arc::make_mut(request);
    request.items[0].bytes = request.items[1].bytes.clone();
    assert!(matches!(verify(&replaced), ProofError::Request(RequestError::Merkle(_))));
}

#[test]
fn another_clients_registration_and_a_later_one_do_not_do() {
    let net = Net::new(4);
    let mut state = State::genesis(&net.genesis);
    let first = next_block(&net, &mut state, &[net.register(1, 2), net.register(2, 1)]);
    let write = net.message(1, 1, 20, 1).request(node(1), &[0]);
    let second = next_block(&net, &mut state, &[write]);
    let foreign = ProofBundle { registration: first.prove(0), write: second.prove(0) };
    assert_eq!(foreign.verify(&net.genesis), Err(ProofError::ForeignRegistration));
    let good = ProofBundle { registration: first.prove(1), write: second.prove(0) };
    assert!(good.verify(&net.genesis).is_ok());

    // Not even a quorum may write before it registers.
    let mut state = State::genesis(&net.genesis);
    let same =
        next_block(&net, &mut state, &[net.register(1, 1), net.message(1, 1, 20, 1).request(node(1), &[0])]);
    let mut reversed = same.0.clone();
    reversed.operations.reverse();
    reversed.header.merkle_root = reversed.tree().unwrap().root();
    let content = crate::ledger::CheckpointContent { block: reversed.header.hash(), ..same.1.content };
    let reversed = Certified(reversed, net.certify(content, &[0, 1, 2]));
    let later = ProofBundle { registration: reversed.prove(1), write: reversed.prove(0) };
    assert_eq!(later.verify(&net.genesis), Err(ProofError::RegisteredLater));
}

#[test]
fn a_quorum_cannot_forge_what_device_or_admin_did_not_sign() {
    let (net, good) = bundle();
    let certify_anew = |mut inclusion: Inclusion| {
        let block = Block { header: inclusion.header.clone(), operations: vec![inclusion.operation.clone()] };
        inclusion.header.merkle_root = block.tree().unwrap().root();
        inclusion.header.operation_count = 1;
        (inclusion.index, inclusion.path) = (0, vec![]);
        let content = crate::ledger::CheckpointContent {
            block: inclusion.header.hash(),
            ..inclusion.certificate.content
        };
        inclusion.certificate = net.certify(content, &[0, 1, 2, 3]);
        inclusion
    };
    let verify = |bundle: &ProofBundle| bundle.verify(&net.genesis).map(|_| ());
    let sound = ProofBundle { write: certify_anew(good.write.clone()), ..good.clone() };
    assert_eq!(verify(&sound), Ok(()));

    let mut forged = good.clone();
    let Operation::Write { request, .. } = &mut forged.write.operation else { panic!("not a write") };
    let other = SecretKey::from_seed(&[44; 32]);
    let request = Arc::make_mut(request);
    request.signature = device::header::sign(&net.network, &request.header, &other);
    forged.write = certify_anew(forged.write);
    assert!(matches!(verify(&forged), Err(ProofError::DeviceSignature(_))));

    let mut forged = good;
    let Operation::Admin(operation) = &mut forged.registration.operation else { panic!("not an admin's") };
    operation.sequence += 1;
    forged.registration = certify_anew(forged.registration);
    assert!(matches!(verify(&forged), Err(ProofError::AdminOperation(_))));
    let Operation::Admin(operation) = &mut forged.registration.operation else { panic!("not an admin's") };
    operation.admin = other.public();
    assert_eq!(verify(&forged), Err(ProofError::NotAnAdmin));
}

#[test]
fn a_header_that_names_another_replica_set_is_refused() {
    let (net, mut bundle) = bundle();
    bundle.write.header.next_replica_set = Hash([1; 32]);
    let content = crate::ledger::CheckpointContent {
        block: bundle.write.header.hash(),
        ..bundle.write.certificate.content
    };
    bundle.write.certificate = net.certify(content, &[0, 1, 2]);
    let error = ProofError::Write(InclusionError::ReplicaSet(Height(2)));
    assert_eq!(bundle.verify(&net.genesis), Err(error));
}

#[test]
fn genesis_documents_are_checked() {
    let good = Net::new(4).genesis;
    assert_eq!(good.check(), Ok(()));
    let other = SecretKey::from_seed(&[3; 32]).public();
    let admin = good.admins[0];
    let descending = if other < admin { vec![admin, other] } else { vec![other, admin] };
    let weak = vec![crate::types::PublicKey([0; 32])];
    let cases = [
        (Genesis { version: 2, ..good.clone() }, GenesisError::Version(2)),
        (Genesis { name: String::new(), ..good.clone() }, GenesisError::Name),
        (Genesis { name: "x".repeat(65), ..good.clone() }, GenesisError::Name),
        (Genesis { created: Timestamp::MAX.plus_ms(1), ..good.clone() }, GenesisError::Created),
        (Genesis { admins: descending, ..good.clone() }, GenesisError::Admins),
        (Genesis { admins: vec![admin, admin], ..good.clone() }, GenesisError::Admins),
        (Genesis { admins: weak, ..good }, GenesisError::AdminKey),
    ];
    for (bad, error) in cases {
        assert_eq!(Genesis::from_json(&bad.to_json()), Err(error));
    }
    assert!(matches!(Genesis::from_json("{}"), Err(GenesisError::Json(_))));
}

proptest! {
    #[test]
    fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let framed = [b"LMQPROOF\x00\x01".as_slice(), &bytes].concat();
        let genesis = Net::new(1).genesis;
        let _ = ProofBundle::decode(&framed).and_then(|bundle| bundle.verify(&genesis));
    }

    #[test]
    fn bundles_with_several_altered_bytes_never_verify(
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
    ) {
        let (net, bundle) = bundle();
        let bytes = bundle.encode();
        let mut altered = bytes.clone();
        for (at, byte) in flips {
            let at = at.index(bytes.len());
            altered[at] = byte;
        }
        let verified = ProofBundle::decode(&altered).and_then(|bundle| bundle.verify(&net.genesis));
        prop_assert_eq!(verified.is_ok(), altered == bytes);
    }
}
