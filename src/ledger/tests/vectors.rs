//! `tests/vectors/ledger.json`: the bytes that docs/LEDGER.md describes, for other implementations.

use serde_json::{Value, json};

use super::fixture::{Net, execute, node};
use crate::codec;
use crate::ledger::proof::{Inclusion, ProofBundle, Verifier};
use crate::ledger::state::State;
use crate::ledger::{Certificate, Executed, Genesis, Operation, Request, VerifiedRequest};

fn hexed<T: bincode::Encode>(value: &T) -> Value {
    hex::encode(codec::encode(value)).into()
}

fn block_vector(executed: &Executed, certificate: &Certificate, state: &State) -> Value {
    let block = executed.block.as_ref().unwrap();
    let entries: Vec<_> =
        state.entries().map(|(key, value)| json!([hex::encode(key), hex::encode(value)])).collect();
    json!({
        "header": hexed(&block.header),
        "hash": block.header.hash(),
        "operations": block.operations.iter().map(hexed).collect::<Vec<_>>(),
        "merkle_root": block.header.merkle_root,
        "checkpoint": hexed(&executed.checkpoint),
        "certificate": hexed(certificate),
        "state_entries": entries,
        "state_digest": state.digest(),
    })
}

fn computed() -> Value {
    let net = Net::new(4);
    let mut state = State::genesis(&net.genesis);
    let mut next = |requests: &[_], signers: &[u16]| {
        let executed = execute(&mut state, requests);
        let certificate = net.certify(executed.checkpoint, signers);
        let vector = block_vector(&executed, &certificate, &state);
        (executed.block.unwrap(), certificate, vector)
    };
    let registration = net.register(1, 1);
    let message = net.message(1, 5, 20, 5);
    let write = message.request(node(1), &[0, 3]);
    let other = net.message(1, 6, 21, 1).request(node(2), &[0]);
    let first = next(std::slice::from_ref(&registration), &[0, 1, 2]);
    let second = next(&[other, write.clone(), message.request(node(3), &[0, 1, 3])], &[0, 2, 3]);

    let prove = |(block, certificate, _): &(_, _, _), at| {
        let block: &crate::ledger::Block = block;
        Inclusion::new(block, &block.tree().unwrap(), certificate, at).unwrap()
    };
    let bundle = ProofBundle { registration: prove(&first, 0), write: prove(&second, 1) };
    let request = |request: &VerifiedRequest| json!({"bytes": hex::encode(request.bytes()), "digest": request.digest()});
    json!({
        "note": "what docs/LEDGER.md describes: canonical bytes in hex, and what a bundle proves",
        "genesis": serde_json::to_value(&net.genesis).unwrap(),
        "genesis_bytes": hexed(&net.genesis),
        "network_id": net.network,
        "replica_set_hash": net.genesis.replicas.hash(),
        "requests": [request(&registration), request(&write)],
        "blocks": [first.2, second.2],
        "bundle": hex::encode(bundle.encode()),
        "proven": serde_json::to_value(bundle.verify(&net.genesis).unwrap()).unwrap(),
    })
}

fn stored() -> Value {
    serde_json::from_str(include_str!("../../../tests/vectors/ledger.json")).unwrap()
}

#[test]
fn the_vectors_are_what_this_program_makes() {
    let computed = computed();
    let hint = "if the change of bytes is meant, this is the new tests/vectors/ledger.json";
    assert!(computed == stored(), "{hint}:\n{}", serde_json::to_string_pretty(&computed).unwrap());
}

#[test]
fn the_vectors_are_taken_back() {
    let stored = stored();
    let bytes = |value: &Value| hex::decode(value.as_str().unwrap()).unwrap();
    let genesis = Genesis::from_json(&stored["genesis"].to_string()).unwrap();
    assert_eq!(codec::decode::<4096, Genesis>(&bytes(&stored["genesis_bytes"])), Ok(genesis.clone()));
    let network = genesis.network_id();
    for request in stored["requests"].as_array().unwrap() {
        let verified = VerifiedRequest::verify_bytes(&network, &bytes(&request["bytes"])).unwrap();
        assert_eq!(Value::from(verified.digest().to_string()), request["digest"]);
        assert!(matches!(verified.request(), Request::Write(_) | Request::Admin { .. }));
    }
    for block in stored["blocks"].as_array().unwrap() {
        for operation in block["operations"].as_array().unwrap() {
            assert!(codec::decode::<65_536, Operation>(&bytes(operation)).is_ok());
        }
    }
    let bundle = ProofBundle::decode(&bytes(&stored["bundle"])).unwrap();
    let proven = Verifier::new(&genesis).unwrap().verify(&bundle).unwrap();
    assert_eq!(serde_json::to_value(proven).unwrap(), stored["proven"]);
}
