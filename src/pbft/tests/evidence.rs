//! Evidence: what proves a fault, what does not, and that the core tells of each fault once.

use proptest::prelude::*;

use super::new_view::{bare_ones, new_view, proof, with_prepared};
use super::view_change::{bare, bench};
use super::*;
use crate::codec::CodecError;
use crate::ledger::{Certificate, ReplicaSetKeys};
use crate::pbft::certificates::NewView;
use crate::pbft::evidence::{EvidenceError, Fault, FaultKind, MAGIC, Part, Proven, Said};
use crate::pbft::message::MessageError;
use crate::pbft::{Envelope, Signed};
use crate::types::Signature;

fn set_keys(keys: &[SecretKey]) -> ReplicaSetKeys {
    ReplicaSetKeys::new(&settings(keys, 0).replicas).unwrap()
}

fn signed(at: usize, content: Content) -> Signed {
    Verified::sign(&keys(4)[at], &NETWORK, content).signed().clone()
}

fn verify(evidence: &Evidence) -> Result<Proven, EvidenceError> {
    evidence.verify(&NETWORK, &set_keys(&keys(4)))
}

fn digest(number: u64) -> Hash {
    Hash([u8::try_from(number).unwrap(); 32])
}

fn batch_of(number: u64) -> Batch {
    Batch {
        requests: vec![digest(number)],
        timestamp: START.plus_ms(number),
        origin_view: View(1),
        proposer: keys(4)[1].node_id(),
    }
}

fn proposal(view: u64, sequence: u64, number: u64) -> Content {
    Content::PrePrepare(PrePrepare { view: View(view), sequence: SeqNum(sequence), batch: batch_of(number) })
}

fn vote(view: u64, sequence: u64, number: u64) -> Content {
    Content::Prepare(Prepare { view: View(view), sequence: SeqNum(sequence), digest: digest(number) })
}

fn commitment(view: u64, sequence: u64, number: u64) -> Content {
    Content::Commit(Commit { view: View(view), sequence: SeqNum(sequence), digest: digest(number) })
}

/// The NEW-VIEW of replica 1 for view 1 that carries batch 1 over at sequence 1.
fn carrying(digests: &[Hash]) -> (Content, Vec<Signed>) {
    let keys = keys(4);
    let mut from = bare_ones(1);
    from[0].1 = with_prepared(1, vec![proof(&keys, 0, 1, batch_of(1).digest())]);
    let content = new_view(&keys, 1, &from, digests);
    (content, from.into_iter().map(|(at, content)| signed(at, content)).collect())
}

/// One piece of evidence of each kind, against replica 1.
fn all_kinds() -> Vec<(FaultKind, Evidence)> {
    let pair = |one, other| Evidence::contradiction(&signed(1, one), &signed(1, other));
    let (right, view_changes) = carrying(&[batch_of(1).digest()]);
    let (wrong, _) = carrying(&[batch_of(2).digest()]);
    let false_one = Evidence::false_new_view(&signed(1, wrong.clone()), view_changes);
    vec![
        (FaultKind::PrePrepare, pair(proposal(1, 2, 1), proposal(1, 2, 2))),
        (FaultKind::Prepare, pair(vote(3, 2, 1), vote(3, 2, 2))),
        (FaultKind::Commit, pair(commitment(3, 2, 1), commitment(3, 2, 2))),
        (FaultKind::Checkpoint, pair(Content::Checkpoint(result(2, 1)), Content::Checkpoint(result(2, 2)))),
        (FaultKind::NewView, pair(right.clone(), wrong)),
        (FaultKind::ContradictedNewView, pair(right, proposal(1, 1, 2))),
        (FaultKind::FalseNewView, false_one),
    ]
}

#[test]
fn each_kind_of_fault_is_proven_to_who_has_the_keys() {
    let kinds = all_kinds();
    assert_eq!(kinds.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), FaultKind::ALL);
    for (kind, evidence) in kinds {
        let bytes = evidence.encode();
        let read = Evidence::decode(&bytes).unwrap();
        assert_eq!(read, evidence);
        let proven = verify(&read).unwrap();
        assert_eq!((proven.fault.node, proven.replica), (keys(4)[1].node_id(), 1));
        assert_eq!((proven.fault.kind, proven.fault), (kind, evidence.claimed().unwrap()));
        assert_eq!((proven.id, proven.bytes()), (Evidence::id_of(&bytes), &bytes[..]));
        assert_ne!(proven.said[0], proven.said[1], "{kind:?}");
        let json = serde_json::to_value(&proven).unwrap();
        assert_eq!(json["kind"], kind.as_str());
        assert_eq!(json["node"], keys(4)[1].node_id().to_string());
    }
}

#[test]
fn a_proof_says_in_words_what_was_signed() {
    let said: Vec<String> =
        all_kinds().iter().map(|(_, evidence)| verify(evidence).unwrap().fault.to_string()).collect();
    assert_eq!(
        said,
        [
            "signed two different PRE-PREPAREs, for view 1, sequence 2",
            "signed two different PREPAREs, for view 3, sequence 2",
            "signed two different COMMITs, for view 3, sequence 2",
            "signed two different CHECKPOINTs, for sequence 2",
            "signed two different NEW-VIEWs, for view 1",
            "signed a PRE-PREPARE that contradicts its own NEW-VIEW, for view 1, sequence 1",
            "signed a NEW-VIEW that does not follow from the VIEW-CHANGEs that it names, for view 1",
        ]
    );
    let last = verify(&all_kinds()[6].1).unwrap();
    let batch = |number| Said::Batch { sequence: SeqNum(1), batch: Some(batch_of(number).digest()) };
    assert_eq!(last.said, [batch(2), batch(1)], "what it says, and what would be right");
}

#[test]
fn the_same_two_messages_are_one_piece_of_evidence_in_whatever_order_they_came() {
    let (one, other) = (signed(1, vote(0, 2, 1)), signed(1, vote(0, 2, 2)));
    let evidence = Evidence::contradiction(&one, &other);
    assert_eq!(evidence, Evidence::contradiction(&other, &one));
    let Evidence::Contradiction { first, second } = evidence else { panic!() };
    let turned = Evidence::Contradiction { first: second, second: first };
    assert_eq!(verify(&turned), Err(EvidenceError::Order));
}

#[test]
fn what_correct_replicas_sign_is_no_evidence() {
    let pair = |one, other| verify(&Evidence::contradiction(&signed(1, one), &signed(1, other)));
    let (new_view_1, _) = carrying(&[batch_of(1).digest()]);
    let unrelated = [
        (vote(0, 2, 1), vote(1, 2, 2)),
        (vote(0, 2, 1), vote(0, 3, 2)),
        (vote(0, 2, 1), commitment(0, 2, 2)),
        (proposal(0, 2, 1), vote(0, 2, 2)),
        (proposal(0, 2, 1), proposal(4, 2, 2)),
        (Content::Checkpoint(result(2, 1)), Content::Checkpoint(result(3, 2))),
        (new_view_1.clone(), proposal(1, 2, 2)),
        (new_view_1.clone(), proposal(5, 1, 2)),
        (new_view_1.clone(), new_view(&keys(4), 5, &bare_ones(5), &[])),
        (new_view_1.clone(), vote(1, 1, 2)),
        (bare(2), vote(2, 1, 1)),
    ];
    for (one, other) in unrelated {
        let refused = pair(one.clone(), other.clone());
        assert!(matches!(refused, Err(EvidenceError::Unrelated { .. })), "{one:?} {other:?}: {refused:?}");
    }
    // A batch that the view carries over, proposed again to who lacks it.
    assert_eq!(pair(new_view_1.clone(), proposal(1, 1, 1)), Err(EvidenceError::Same));
    // The same said twice, also in another envelope.
    for content in [vote(0, 2, 1), proposal(0, 2, 1), Content::Checkpoint(result(2, 1)), new_view_1] {
        assert_eq!(pair(content.clone(), content.clone()), Err(EvidenceError::Same));
        let sent = |attempt| Envelope { attempt, signed: signed(1, content.clone()) };
        let heard = [1, 2].map(|attempt| Envelope::decode(&sent(attempt).encode()).unwrap().signed);
        assert_eq!(verify(&Evidence::contradiction(&heard[0], &heard[1])), Err(EvidenceError::Same));
    }
    // A replica that lost its log may say that nothing was prepared.
    let prepared = with_prepared(1, vec![proof(&keys(4), 0, 1, digest(1))]);
    assert_eq!(pair(bare(1), prepared), Err(EvidenceError::ViewChanges));
    let (right, view_changes) = carrying(&[batch_of(1).digest()]);
    let right = Evidence::false_new_view(&signed(1, right), view_changes);
    assert_eq!(verify(&right), Err(EvidenceError::Follows));
}

#[test]
fn nobody_is_accused_of_what_another_signed() {
    let (mine, other) = (signed(1, vote(0, 2, 1)), signed(2, vote(0, 2, 2)));
    let two = Evidence::contradiction(&mine, &other);
    assert!(matches!(verify(&two), Err(EvidenceError::TwoSenders { .. })));
    // Under the name of another, a signature is worth nothing.
    let swapped = Signed { sender: mine.sender, ..other };
    let refused = verify(&Evidence::contradiction(&mine, &swapped));
    assert!(matches!(refused, Err(EvidenceError::Message { error: MessageError::Signature(_), .. })));
    let stranger = SecretKey::from_seed(&[99; 32]);
    let foreign = |number| Verified::sign(&stranger, &NETWORK, vote(0, 2, number)).signed().clone();
    let refused = verify(&Evidence::contradiction(&foreign(1), &foreign(2)));
    assert!(matches!(refused, Err(EvidenceError::Message { error: MessageError::NotAReplica(_), .. })));
    // The same bytes, signed as a COMMIT, are no PREPARE.
    let as_prepare = Signed { content: vote(0, 2, 3), ..signed(1, commitment(0, 2, 3)) };
    let refused = verify(&Evidence::contradiction(&mine, &as_prepare));
    assert!(matches!(refused, Err(EvidenceError::Message { error: MessageError::Signature(_), .. })));
    // A signature of another slot under the content of this one.
    let moved = Signed { content: vote(0, 2, 2), ..signed(1, vote(1, 2, 2)) };
    assert!(verify(&Evidence::contradiction(&mine, &moved)).is_err());
}

#[test]
fn evidence_of_one_network_proves_nothing_in_another_or_to_other_replicas() {
    for (kind, evidence) in all_kinds() {
        assert!(evidence.verify(&NetworkId([8; 32]), &set_keys(&keys(4))).is_err(), "{kind:?}");
        let others: Vec<_> = (11..15).map(|at| SecretKey::from_seed(&[at; 32])).collect();
        let others = ReplicaSet::new(others.iter().map(SecretKey::node_id).collect()).unwrap();
        let others = ReplicaSetKeys::new(&others).unwrap();
        assert!(evidence.verify(&NETWORK, &others).is_err(), "{kind:?}");
    }
}

#[test]
fn a_false_new_view_is_judged_by_exactly_the_view_changes_that_it_names() {
    let (wrong, view_changes) = carrying(&[]);
    let wrong = signed(1, wrong);
    let good = Evidence::false_new_view(&wrong, view_changes.clone());
    assert!(verify(&good).is_ok());
    let changes: [fn(&mut Vec<Signed>); 5] = [
        |named| drop(named.pop()),
        |named| named.swap(0, 1),
        |named| named.push(named[0].clone()),
        |named| named[1] = named[2].clone(),
        |named| named[0] = signed(1, bare(1)),
    ];
    for change in changes {
        let mut others = view_changes.clone();
        change(&mut others);
        let refused = verify(&Evidence::false_new_view(&wrong, others));
        assert_eq!(refused, Err(EvidenceError::NotNamed));
    }
    let mut unsigned = view_changes.clone();
    unsigned[2].signature = Signature([1; 64]);
    let refused = verify(&Evidence::false_new_view(&wrong, unsigned));
    assert!(matches!(refused, Err(EvidenceError::Message { which: Part::ViewChange(2), .. })), "{refused:?}");
    let no_new_view = Evidence::false_new_view(&signed(1, vote(0, 2, 1)), view_changes);
    assert_eq!(verify(&no_new_view), Err(EvidenceError::NoNewView));
}

#[test]
fn a_new_view_is_false_in_its_checkpoint_its_batches_and_its_view() {
    let keys = keys(4);
    let checkpoint = |sequence| {
        let content = result(sequence, sequence);
        let sign = |at: usize| {
            let Signed { signature, .. } = signed(at, Content::Checkpoint(content));
            (u16::try_from(at).unwrap(), signature)
        };
        Certificate { content, signatures: (0..3).map(sign).collect() }
    };
    let mut from = bare_ones(1);
    let Content::ViewChange(first) = &mut from[0].1 else { panic!() };
    first.checkpoint = Some(checkpoint(7));
    let judge = |content: Content, from: &[(usize, Content)]| {
        let view_changes = from.iter().map(|(at, content)| signed(*at, content.clone())).collect();
        verify(&Evidence::false_new_view(&signed(1, content), view_changes))
    };
    let proven = judge(new_view(&keys, 1, &from, &[]), &from).unwrap();
    let stable = |said: &Said| match said {
        Said::Begins { stable, .. } => stable.0,
        other => panic!("{other:?}"),
    };
    assert_eq!(proven.said.each_ref().map(stable), [0, 7]);
    let Content::NewView(right) = new_view(&keys, 1, &from, &[]) else { panic!() };
    let right = Content::NewView(NewView { stable: SeqNum(7), ..right });
    assert_eq!(judge(right, &from), Err(EvidenceError::Follows));
    // VIEW-CHANGEs for another view cannot begin this one.
    let later: Vec<_> = bare_ones(5);
    let proven = judge(new_view(&keys, 1, &later, &[]), &later).unwrap();
    assert_eq!(proven.said, [Said::Leads { view: View(1) }, Said::Leads { view: View(5) }]);
    // A batch too many.
    let from = bare_ones(1);
    let proven = judge(new_view(&keys, 1, &from, &[digest(1)]), &from).unwrap();
    let at_one = |batch| Said::Batch { sequence: SeqNum(1), batch };
    assert_eq!(proven.said, [at_one(Some(digest(1))), at_one(None)]);
}

#[test]
fn a_proposal_below_what_the_new_view_carries_over_contradicts_it() {
    let keys = keys(4);
    let Content::NewView(begun) = new_view(&keys, 1, &bare_ones(1), &[]) else { panic!() };
    let begun = signed(1, Content::NewView(NewView { stable: SeqNum(7), ..begun }));
    let judge = |sequence| verify(&Evidence::contradiction(&begun, &signed(1, proposal(1, sequence, 1))));
    assert_eq!(judge(7).unwrap().fault.kind, FaultKind::ContradictedNewView);
    assert!(matches!(judge(8), Err(EvidenceError::Unrelated { .. })));
}

#[test]
fn the_bytes_are_those_that_the_documentation_says() {
    let (one, other) = (signed(1, vote(3, 17, 1)), signed(1, vote(3, 17, 2)));
    let message = |message: &Signed, fill: u8| {
        let number = |number: u64| number.to_be_bytes();
        let parts: [&[u8]; 6] = [
            &message.sender.0,
            &1_u32.to_be_bytes(),
            &number(3),
            &number(17),
            &[fill; 32],
            &message.signature.0,
        ];
        parts.concat()
    };
    let parts: [&[u8]; 5] = [b"LMQFAULT", &[0, 1], &[0; 4], &message(&one, 1), &message(&other, 2)];
    let bytes = Evidence::contradiction(&other, &one).encode();
    assert_eq!((bytes.len(), &bytes), (310, &parts.concat()));
    let id = blake3::derive_key("ledgermq v1 evidence", &bytes);
    assert_eq!(Evidence::id_of(&bytes), Hash(id));
}

#[test]
fn only_whole_canonical_evidence_of_this_version_is_read() {
    let bytes = all_kinds()[1].1.encode();
    assert!(bytes.starts_with(MAGIC));
    for length in 0..bytes.len() {
        assert!(Evidence::decode(&bytes[..length]).is_err(), "{length}");
    }
    let longer = [&bytes[..], &[0]].concat();
    assert_eq!(Evidence::decode(&longer), Err(EvidenceError::Codec(CodecError::NotCanonical)));
    let mut newer = bytes.clone();
    newer[9] = 2;
    assert_eq!(Evidence::decode(&newer), Err(EvidenceError::Version(2)));
    assert_eq!(Evidence::decode(b"LMQPROOF\0\x01"), Err(EvidenceError::NotEvidence));
    let huge = [&bytes[..10], &vec![0; crate::pbft::evidence::MAX_EVIDENCE_BYTES + 1]].concat();
    assert!(matches!(Evidence::decode(&huge), Err(EvidenceError::Codec(CodecError::TooLong { .. }))));
}

#[test]
fn no_bit_of_evidence_can_be_changed() {
    for (kind, evidence) in all_kinds().into_iter().take(4) {
        let bytes = evidence.encode();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << (at % 8);
            let proven = Evidence::decode(&changed).and_then(|changed| verify(&changed));
            assert!(proven.is_err(), "{kind:?}, byte {at}: {proven:?}");
        }
    }
}

#[test]
fn the_core_tells_of_each_contradiction_with_proof_and_once() {
    let mut t = Bench::new(4, 0);
    let told = |output: &Output| {
        let found = evidence(&output.effects);
        found.iter().map(|evidence| verify(evidence).unwrap().fault).collect::<Vec<Fault>>()
    };
    let sender = t.keys[1].node_id();
    for (kind, one, other) in [
        (FaultKind::Prepare, vote(0, 2, 1), vote(0, 2, 2)),
        (FaultKind::Commit, commitment(0, 2, 1), commitment(0, 2, 2)),
        (FaultKind::Checkpoint, Content::Checkpoint(result(2, 1)), Content::Checkpoint(result(2, 2))),
    ] {
        assert!(told(&t.hear(1, one.clone())).is_empty());
        assert!(told(&t.hear(1, one)).is_empty(), "said again");
        let view = (kind != FaultKind::Checkpoint).then_some(View(0));
        let fault = Fault { node: sender, kind, view, sequence: Some(SeqNum(2)) };
        assert_eq!(told(&t.hear(1, other.clone())), [fault]);
        assert!(told(&t.hear(1, other)).is_empty(), "told once");
    }
}

#[test]
fn a_checkpoint_that_contradicts_the_certificate_that_its_sender_signed_is_evidence() {
    let mut t = Bench::new(4, 1);
    let _ = t.commit_batch(1);
    let _ = t.step(Input::Executed(result(1, 1)));
    for from in [0, 2] {
        let _ = t.hear(from, Content::Checkpoint(result(1, 1)));
    }
    assert_eq!(t.replica.status().stable, SeqNum(1));
    let found = evidence(&t.hear(2, Content::Checkpoint(result(1, 2))).effects);
    assert_eq!(verify(&found[0]).unwrap().fault.kind, FaultKind::Checkpoint);
    assert!(evidence(&t.hear(2, Content::Checkpoint(result(1, 2))).effects).is_empty(), "told once");
    // Of who did not sign the certificate, nothing else is known.
    assert!(evidence(&t.hear(3, Content::Checkpoint(result(1, 2))).effects).is_empty());
}

#[test]
fn a_second_proposal_is_evidence_even_if_no_correct_replica_would_accept_it() {
    let mut t = Bench::new(4, 1);
    let good = t.batch(&[t.request(2, 1)], 5);
    let _ = t.propose(1, &good);
    let found = evidence(&t.propose(1, &Batch { requests: Vec::new(), ..good }).effects);
    let proven = verify(&found[0]).unwrap();
    assert_eq!((proven.fault.kind, proven.replica), (FaultKind::PrePrepare, 0));
}

#[test]
fn a_false_new_view_is_told_once_with_the_view_changes_that_prove_it() {
    let mut t = bench(2);
    let mut from = bare_ones(1);
    from[0].1 = with_prepared(1, vec![proof(&t.keys, 0, 1, batch_of(1).digest())]);
    for (at, content) in [from[0].clone(), from[2].clone()] {
        let _ = t.hear(at, content);
    }
    let wrong = new_view(&t.keys, 1, &from, &[batch_of(2).digest()]);
    let found = evidence(&t.hear(1, wrong.clone()).effects);
    let proven = verify(&found[0]).unwrap();
    assert_eq!((found.len(), proven.fault.kind, proven.replica), (1, FaultKind::FalseNewView, 1));
    for (at, content) in from {
        let _ = t.hear(at, content);
    }
    assert!(evidence(&t.hear(1, wrong).effects).is_empty(), "told once");
}

#[test]
fn two_new_views_are_told_once_however_often_they_come() {
    let mut t = bench(2);
    let first = new_view(&t.keys, 1, &bare_ones(1), &[]);
    let from: Vec<_> = [0, 1, 3].into_iter().map(|at| (at, bare(1))).collect();
    let second = new_view(&t.keys, 1, &from, &[]);
    let _ = t.hear(1, first);
    let found: Vec<_> = (0..3).flat_map(|_| evidence(&t.hear(1, second.clone()).effects)).collect();
    assert_eq!(found.len(), 1);
    assert_eq!(verify(&found[0]).unwrap().fault.kind, FaultKind::NewView);
}

#[test]
fn a_proposal_that_contradicts_the_entered_view_is_told_with_its_new_view() {
    let mut t = bench(2);
    let (begun, view_changes) = carrying(&[batch_of(1).digest()]);
    let own = t.keys[2].node_id();
    for view_change in view_changes.into_iter().filter(|message| message.sender != own) {
        let message = view_change.verify(&set_keys(&t.keys), &NETWORK).unwrap();
        let _ = t.step(Input::Message(message));
    }
    let _ = t.hear(1, begun);
    assert!(!t.replica.status().changing, "entered");
    let found = evidence(&t.hear(1, proposal(1, 1, 2)).effects);
    let proven = verify(&found[0]).unwrap();
    assert_eq!((proven.fault.kind, proven.replica), (FaultKind::ContradictedNewView, 1));
}

/// Everything that a replica with a log may sign: for each slot one content, said any number of times.
fn honest() -> impl Strategy<Value = Content> {
    let slot = (0..2_u64, 1..3_u64);
    prop_oneof![
        slot.clone().prop_map(|(view, sequence)| proposal(view, sequence, view + 10 * sequence)),
        slot.clone().prop_map(|(view, sequence)| vote(view, sequence, view + 10 * sequence)),
        slot.prop_map(|(view, sequence)| commitment(view, sequence, view + 10 * sequence)),
        (1..3_u64).prop_map(|sequence| Content::Checkpoint(result(sequence, sequence))),
        (1..3_u64, any::<bool>()).prop_map(|(view, lost)| match lost {
            true => bare(view),
            false => with_prepared(view, vec![proof(&keys(4), 0, 1, digest(1))]),
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_two_messages_of_honest_replicas_are_evidence(
        one in honest(), other in honest(), senders in (0..4_usize, 0..4_usize), swap in any::<bool>(),
    ) {
        let (first, mut second) = (signed(senders.0, one), signed(senders.1, other));
        if swap {
            second.sender = first.sender;
        }
        prop_assert!(verify(&Evidence::contradiction(&first, &second)).is_err());
        let forged = Evidence::FalseNewView { new_view: first, view_changes: vec![second] };
        prop_assert!(verify(&forged).is_err());
    }

    #[test]
    fn whatever_is_proven_names_the_signer_of_two_different_contents(
        at in 0..4_usize, view in 0..3_u64, sequence in 1..4_u64, numbers in (0..4_u64, 0..4_u64),
    ) {
        for make in [proposal, vote, commitment] {
            let pair = [numbers.0, numbers.1].map(|number| signed(at, make(view, sequence, number)));
            let proven = verify(&Evidence::contradiction(&pair[0], &pair[1]));
            prop_assert_eq!(proven.is_ok(), numbers.0 != numbers.1);
            if let Ok(proven) = proven {
                prop_assert_eq!(usize::from(proven.replica), at);
                prop_assert_eq!(proven.fault.sequence, Some(SeqNum(sequence)));
            }
        }
    }

    #[test]
    fn strangers_bytes_never_prove_anything(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1..=255_u8), 1..4),
    ) {
        let stranger = [&MAGIC[..], &[0, 1], &bytes].concat();
        prop_assert!(Evidence::decode(&stranger).and_then(|evidence| verify(&evidence)).is_err());
        for (kind, evidence) in all_kinds() {
            let good = evidence.encode();
            let mut bad = good.clone();
            for (at, flip) in &flips {
                bad[at.index(good.len())] ^= flip;
            }
            if bad != good {
                let proven = Evidence::decode(&bad).and_then(|evidence| verify(&evidence));
                prop_assert!(proven.is_err(), "{:?}", kind);
            }
        }
    }
}
