//! Bytes from strangers and from the own disk.

use proptest::prelude::*;

use super::*;
use crate::codec::CodecError;
use crate::crypto::CryptoError;
use crate::ledger::{Certificate, ReplicaSetKeys};
use crate::pbft::message::MAX_SEQUENCE;
use crate::pbft::{Envelope, MessageError, WalError};
use crate::types::Signature;

fn set_keys() -> ReplicaSetKeys {
    ReplicaSetKeys::new(&settings(&keys(4), 0).replicas).unwrap()
}

fn envelope() -> Envelope {
    let t = Bench::new(4, 1);
    let content = pre_prepare(3, &t.batch(&[t.request(2, 1)], 5));
    Envelope { attempt: 2, signed: Verified::sign(&t.keys[0], &NETWORK, content).signed().clone() }
}

#[test]
fn an_envelope_survives_the_wire_and_verifies() {
    let sent = envelope();
    let heard = Envelope::decode(&sent.encode()).unwrap();
    assert_eq!(heard, sent);
    assert_eq!(*heard.signed.clone().verify(&set_keys(), &NETWORK).unwrap().signed(), heard.signed);
}

#[test]
fn messages_of_strangers_other_networks_and_other_contents_do_not_verify() {
    let signed = envelope().signed;
    let other = signed.clone().verify(&set_keys(), &NetworkId([8; 32]));
    assert_eq!(other, Err(MessageError::Signature(CryptoError::BadSignature)));

    let stranger = SecretKey::from_seed(&[99; 32]);
    let foreign = Verified::sign(&stranger, &NETWORK, signed.content.clone()).signed().clone();
    let refused = foreign.verify(&set_keys(), &NETWORK);
    assert_eq!(refused, Err(MessageError::NotAReplica(stranger.node_id())));

    let mut altered = signed.clone();
    let Content::PrePrepare(proposal) = &mut altered.content else { panic!() };
    proposal.sequence = SeqNum(4);
    assert!(altered.verify(&set_keys(), &NETWORK).is_err());

    // A PREPARE's signature is none for the COMMIT of the same bytes.
    let prepared = Verified::sign(&keys(4)[1], &NETWORK, prepare(1, Hash([1; 32]))).signed().clone();
    let as_commit = crate::pbft::Signed { content: commit(1, Hash([1; 32])), ..prepared };
    assert!(as_commit.verify(&set_keys(), &NETWORK).is_err());

    let beyond = Verified::sign(&keys(4)[1], &NETWORK, prepare(MAX_SEQUENCE.0 + 1, Hash([1; 32])));
    assert_eq!(beyond.signed().clone().verify(&set_keys(), &NETWORK), Err(MessageError::Sequence));
}

#[test]
fn the_largest_proposal_fits_an_envelope_and_a_longer_one_is_refused_unread() {
    let t = Bench::new(4, 1);
    let requests = vec![Hash([5; 32]); crate::pbft::settings::MAX_BATCH_REQUESTS];
    let batch = Batch { requests, ..t.batch(&[], 1) };
    let message = Verified::sign(&t.keys[0], &NETWORK, pre_prepare(1, &batch));
    let bytes = Envelope { attempt: 0, signed: message.signed().clone() }.encode();
    assert!(Envelope::decode(&bytes).is_ok());
    let refused = Envelope::decode(&vec![0; 262_145]);
    assert!(matches!(refused, Err(MessageError::Codec(CodecError::TooLong { .. }))));
    let requests = vec![Hash([5; 32]); 2_048];
    let message =
        Verified::sign(&t.keys[0], &NETWORK, pre_prepare(1, &Batch { requests, ..t.batch(&[], 1) }));
    let bytes = Envelope { attempt: 0, signed: message.signed().clone() }.encode();
    let refused = Envelope::decode(&bytes);
    assert!(matches!(refused, Err(MessageError::Codec(CodecError::TooLong { limit: 65_536, .. }))));
}

#[test]
fn every_kind_of_log_entry_reads_back() {
    let keys = keys(4);
    let signed = envelope().signed;
    let certificate = Certificate { content: result(4, 3), signatures: vec![(1, Signature([3; 64]))] };
    let entries = [
        WalEntry::Body { sequence: SeqNum(9), request: request_of(&keys, 1, 1) },
        WalEntry::Accepted(signed.clone()),
        WalEntry::Sent(signed),
        WalEntry::Committed { view: View(0), sequence: SeqNum(8), digest: Hash([4; 32]) },
        WalEntry::Certified(certificate),
        WalEntry::Silent(false),
        WalEntry::Proven,
    ];
    let sequences: Vec<u64> = entries.iter().map(|entry| entry.sequence().0).collect();
    assert_eq!(sequences, [9, 3, 3, 8, 4, 0, 0]);
    for entry in entries {
        let bytes = entry.encode();
        assert_eq!(WalEntry::decode(&NETWORK, &bytes).unwrap(), entry);
        assert!(WalEntry::decode(&NETWORK, &bytes[..bytes.len() - 1]).is_err());
    }
    assert!(matches!(WalEntry::decode(&NETWORK, &[]), Err(WalError::Kind(None))));
    assert!(matches!(WalEntry::decode(&NETWORK, &[10, 1]), Err(WalError::Kind(Some(10)))));
}

#[test]
fn a_body_of_another_network_is_not_read() {
    let entry = WalEntry::Body { sequence: SeqNum(9), request: request_of(&keys(4), 1, 1) };
    let other = WalEntry::decode(&NetworkId([8; 32]), &entry.encode());
    assert!(matches!(other, Err(WalError::Request(_))));
}

proptest! {
    #[test]
    fn foreign_bytes_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Envelope::decode(&bytes);
        let _ = WalEntry::decode(&NETWORK, &bytes);
    }

    #[test]
    fn a_flipped_bit_never_verifies(at in any::<proptest::sample::Index>(), bit in 0_u8..8) {
        let mut bytes = envelope().encode();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        // The first four bytes are the attempt, which is not signed.
        if let Ok(heard) = Envelope::decode(&bytes) {
            prop_assert_eq!(heard.signed.verify(&set_keys(), &NETWORK).is_ok(), at < 4);
        }
    }
}

#[test]
fn messages_have_the_documented_bytes() {
    let keys = keys(4);
    let digest = Hash([0xdd; 32]);
    let message = Verified::sign(
        &keys[1],
        &NETWORK,
        Content::Commit(Commit { view: View(2), sequence: SeqNum(3), digest }),
    );
    let bytes = Envelope { attempt: 1, signed: message.signed().clone() }.encode();
    let content: Vec<u8> = [&2_u64.to_be_bytes()[..], &3_u64.to_be_bytes(), digest.as_bytes()].concat();
    let (attempt, kind, sender) = (1_u32.to_be_bytes(), 2_u32.to_be_bytes(), keys[1].node_id());
    let parts: [&[u8]; 5] = [&attempt, sender.as_bytes(), &kind, &content, &message.signed().signature.0];
    assert_eq!(bytes, parts.concat());
    let signed = [b"ledgermq\x06commit".as_slice(), NETWORK.as_bytes(), &content].concat();
    assert_eq!(keys[1].sign_raw(&signed), message.signed().signature);

    let batch = Batch {
        requests: vec![digest],
        timestamp: Timestamp(7),
        origin_view: View(1),
        proposer: keys[1].node_id(),
    };
    let numbers =
        |numbers: &[u64]| numbers.iter().flat_map(|number| number.to_be_bytes()).collect::<Vec<_>>();
    let parts = [numbers(&[1]), digest.0.to_vec(), numbers(&[7, 1]), keys[1].node_id().0.to_vec()];
    assert_eq!(crate::codec::encode(&batch), parts.concat());
    assert_eq!(crate::codec::encode(&result(5, 4)), [numbers(&[5, 4]), vec![4; 64]].concat());
}
