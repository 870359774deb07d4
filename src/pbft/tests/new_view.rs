//! NEW-VIEW: what it carries over, who believes it, and how the view goes on.

use super::view_change::{bare, bench, prepared};
use super::*;
use crate::crypto::SignatureKind;
use crate::ledger::ReplicaSetKeys;
use crate::pbft::certificates::{NewView, Prepared, ViewChange, plan};
use crate::pbft::message::{MessageError, proposal_bytes};

const SECOND: Duration = Duration::from_secs(1);

/// The proof that `digest` was prepared at `sequence` in `view`.
pub(super) fn proof(keys: &[SecretKey], view: u64, sequence: u64, digest: Hash) -> Prepared {
    let (view, sequence, primary) = (View(view), SeqNum(sequence), (view % 4) as usize);
    let vote = crate::codec::encode(&Prepare { view, sequence, digest });
    let backups = (0..4).filter(|at| *at != primary).take(2);
    Prepared {
        view,
        sequence,
        digest,
        pre_prepare: keys[primary].sign(
            SignatureKind::PrePrepare,
            &NETWORK,
            &proposal_bytes(view, sequence, digest),
        ),
        prepares: backups
            .map(|at| (u16::try_from(at).unwrap(), keys[at].sign(SignatureKind::Prepare, &NETWORK, &vote)))
            .collect(),
    }
}

pub(super) fn with_prepared(view: u64, prepared: Vec<Prepared>) -> Content {
    Content::ViewChange(ViewChange { view: View(view), checkpoint: None, prepared })
}

/// The NEW-VIEW of a primary that proposes these digests on these VIEW-CHANGEs.
pub(super) fn new_view(
    keys: &[SecretKey],
    view: u64,
    from: &[(usize, Content)],
    digests: &[Hash],
) -> Content {
    let primary = &keys[(view % 4) as usize];
    let sign = |(at, digest): (usize, &Hash)| {
        let bytes = proposal_bytes(View(view), SeqNum(at as u64 + 1), *digest);
        (*digest, primary.sign(SignatureKind::PrePrepare, &NETWORK, &bytes))
    };
    let named = |(at, content): &(usize, Content)| match content {
        Content::ViewChange(view_change) => (u16::try_from(*at).unwrap(), view_change.digest()),
        other => panic!("{other:?}"),
    };
    Content::NewView(NewView {
        view: View(view),
        stable: SeqNum(0),
        view_changes: from.iter().map(named).collect(),
        proposals: digests.iter().enumerate().map(sign).collect(),
    })
}

/// Three empty VIEW-CHANGEs, of replicas 1 to 3.
pub(super) fn bare_ones(view: u64) -> Vec<(usize, Content)> {
    (1..4).map(|at| (at, bare(view))).collect()
}

fn status(t: &Bench) -> (u64, bool) {
    (t.replica.status().view.0, t.replica.status().changing)
}

#[test]
fn the_plan_takes_the_highest_view_for_each_number_and_fills_gaps_with_null() {
    let keys = keys(4);
    let replicas = bench(1).replica.settings.replicas.clone();
    let (a, b, c) = (Hash([1; 32]), Hash([2; 32]), Hash([3; 32]));
    let changes = [vec![proof(&keys, 0, 1, a), proof(&keys, 2, 4, c)], vec![proof(&keys, 1, 1, b)], vec![]];
    let changes = changes.map(|prepared| ViewChange { view: View(3), checkpoint: None, prepared });
    let plan = plan(changes.iter(), &replicas);
    let digests: Vec<Hash> = plan.carried.iter().map(|carried| carried.digest).collect();
    let null = Batch::null().digest();
    assert_eq!((plan.stable, digests), (SeqNum(0), vec![b, null, null, c]));
}

#[test]
fn the_new_primary_carries_over_what_was_prepared_and_goes_on_above_it() {
    let (mut t, digest) = prepared();
    let _ = t.hear(2, bare(1));
    let output = t.hear(3, bare(1));
    let said = sent(&output.effects);
    let begun = said.iter().find_map(|content| match content {
        Content::NewView(new_view) => Some(new_view.clone()),
        _ => None,
    });
    let begun = begun.unwrap();
    assert_eq!((begun.view, begun.view_changes.len()), (View(1), 3));
    assert_eq!(begun.proposals.iter().map(|(digest, _)| *digest).collect::<Vec<_>>(), [digest]);
    assert!(output.wal.iter().any(|entry| matches!(entry, WalEntry::NewView { .. })), "logged first");
    assert_eq!((status(&t), t.replica.status().accepted), ((1, false), SeqNum(1)));
    // The batch commits with its old digest, and a fresh one comes after it.
    for from in [2, 3] {
        let vote = Prepare { view: View(1), sequence: SeqNum(1), digest };
        let _ = t.hear(from, Content::Prepare(vote));
    }
    let vote = Commit { view: View(1), sequence: SeqNum(1), digest };
    let _ = t.hear(2, Content::Commit(vote));
    assert_eq!(executions(&t.hear(3, Content::Commit(vote)).effects), [1]);
    let _ = t.ask(3, 2);
    let fresh = sent(&t.wait(Duration::from_millis(10)));
    let [Content::PrePrepare(fresh)] = &fresh[..] else { panic!("{fresh:?}") };
    assert_eq!((fresh.sequence, fresh.batch.origin_view), (SeqNum(2), View(1)));
}

#[test]
fn a_backup_enters_the_view_and_votes_for_what_it_carries_over() {
    let mut t = bench(2);
    let _ = t.ask(3, 1);
    let batch = t.batch(&[t.request(3, 1)], 5);
    let carried = batch.digest();
    let mut from = bare_ones(1);
    from[0].1 = with_prepared(1, vec![proof(&t.keys, 0, 1, carried)]);
    for (at, content) in [from[0].clone(), from[2].clone()] {
        let _ = t.hear(at, content);
    }
    assert_eq!(status(&t), (1, true), "joined");
    let effects = t.hear(1, new_view(&t.keys, 1, &from, &[carried])).effects;
    assert_eq!(status(&t), (1, false));
    // It never had the batch: it asks those who signed for it.
    let asked =
        |effect: &Effect| matches!(effect, Effect::FetchBatches { digests, .. } if digests[..] == [carried]);
    assert!(effects.iter().any(asked), "{effects:?}");
    let output = t.step(Input::Batch(batch));
    let vote = Prepare { view: View(1), sequence: SeqNum(1), digest: carried };
    assert_eq!(sent(&output.effects), [Content::Prepare(vote)]);
}

#[test]
fn a_null_batch_is_agreed_to_by_itself() {
    let mut t = bench(2);
    let _ = t.ask(3, 1);
    let batch = t.batch(&[t.request(3, 1)], 5);
    let null = Batch::null().digest();
    let mut from = bare_ones(1);
    from[0].1 = with_prepared(1, vec![proof(&t.keys, 0, 2, batch.digest())]);
    for (at, content) in [from[0].clone(), from[2].clone()] {
        let _ = t.hear(at, content);
    }
    let output = t.hear(1, new_view(&t.keys, 1, &from, &[null, batch.digest()]));
    let vote = Prepare { view: View(1), sequence: SeqNum(1), digest: null };
    assert_eq!(sent(&output.effects), [Content::Prepare(vote)]);
}

#[test]
fn a_new_view_that_does_not_follow_from_its_view_changes_is_refused_and_its_primary_skipped() {
    let keys = keys(4);
    let (right, other) = (Hash([1; 32]), Hash([2; 32]));
    let mut from = bare_ones(1);
    from[0].1 = with_prepared(1, vec![proof(&keys, 0, 1, right)]);
    for wrong in [vec![], vec![other], vec![right, other], vec![Batch::null().digest()]] {
        let mut t = bench(2);
        for (at, content) in [from[0].clone(), from[2].clone()] {
            let _ = t.hear(at, content);
        }
        let mut named = from.clone();
        named[1].1 = bare(1);
        let output = t.hear(1, new_view(&keys, 1, &named, &wrong));
        assert_eq!(rejected(&output), Rejected::BadNewView, "{wrong:?}");
        assert_eq!(status(&t), (2, true));
    }
}

#[test]
fn a_new_view_needs_its_primary_a_quorum_and_right_signatures() {
    let t = bench(2);
    let keys = ReplicaSetKeys::new(&t.replica.settings.replicas).unwrap();
    let verify = |signer: usize, content: Content| {
        let signed = Verified::sign(&t.keys[signer], &NETWORK, content).signed().clone();
        matches!(signed.verify(&keys, &NETWORK), Err(MessageError::Proof(_)))
    };
    let good = new_view(&t.keys, 1, &bare_ones(1), &[Hash([1; 32])]);
    assert!(!verify(1, good.clone()));
    assert!(verify(2, good.clone()), "not the primary");
    let Content::NewView(good) = good else { panic!() };
    let changes: [fn(&mut NewView); 4] = [
        |new_view| assert!(new_view.view_changes.pop().is_some()),
        |new_view| new_view.view_changes[0].0 = 2,
        |new_view| new_view.proposals[0].0 = Hash([7; 32]),
        |new_view| new_view.stable = SeqNum(1),
    ];
    for change in changes {
        let mut bad = good.clone();
        change(&mut bad);
        assert!(verify(1, Content::NewView(bad)));
    }
}

#[test]
fn a_replica_that_was_away_asks_for_the_view_that_others_vote_in_and_enters_it() {
    let mut t = bench(3);
    let vote = Commit { view: View(5), sequence: SeqNum(1), digest: Hash([1; 32]) };
    assert!(matches!(rejected(&t.hear(0, Content::Commit(vote))), Rejected::OtherView { .. }));
    let effects = t.wait(Duration::from_millis(60));
    let asked = effects.iter().find_map(|effect| match effect {
        Effect::FetchView { view, from } => Some((*view, from.clone())),
        _ => None,
    });
    assert_eq!(asked, Some((View(1), vec![t.keys[0].node_id()])));
    let from: Vec<_> = (0..3).map(|at| (at, bare(5))).collect();
    let _ = t.hear(1, new_view(&t.keys, 5, &from, &[]));
    for (at, content) in from {
        let _ = t.hear(at, content);
    }
    assert_eq!(status(&t), (5, false));
    let proof = t.replica.view_proof(View(5));
    assert_eq!(proof.len(), 4, "and can tell others");
    assert!(t.replica.view_proof(View(6)).is_empty());
}

#[test]
fn who_lacks_the_new_view_of_a_view_that_a_correct_one_votes_in_asks_for_it_and_does_not_go_on() {
    for (voters, view) in [(1..2, 2), (1..3, 1)] {
        let mut t = bench(3);
        for from in [1, 2] {
            let _ = t.hear(from, bare(1));
        }
        assert_eq!(status(&t), (1, true));
        for from in voters {
            let vote = Commit { view: View(1), sequence: SeqNum(1), digest: Hash([1; 32]) };
            let _ = t.hear(from, Content::Commit(vote));
        }
        let effects = t.wait(3 * SECOND / 2);
        assert_eq!(status(&t), (view, true));
        let asked = effects.iter().filter(|effect| matches!(effect, Effect::FetchView { .. })).count();
        assert!(asked > 1, "{asked}");
    }
}

#[test]
fn a_new_view_that_is_complete_only_after_the_next_view_change_is_not_entered() {
    let mut t = bench(3);
    let from: Vec<_> = (0..3).map(|at| (at, bare(1))).collect();
    for (at, content) in &from[1..] {
        let _ = t.hear(*at, content.clone());
    }
    let _ = t.hear(1, new_view(&t.keys, 1, &from, &[]));
    assert_eq!(status(&t), (1, true), "one VIEW-CHANGE is missing");
    let _ = t.wait(3 * SECOND / 2);
    assert_eq!(status(&t), (2, true));
    let _ = t.hear(0, bare(1));
    assert_eq!(status(&t), (2, true), "it has promised to sign nothing for view 1");
}

#[test]
fn while_nobody_votes_each_other_is_asked_in_turn_whether_a_later_view_has_begun() {
    let mut t = bench(2);
    let asked: Vec<_> = t
        .wait(7 * SECOND)
        .into_iter()
        .filter_map(|effect| match effect {
            Effect::FetchView { view, from } => Some((view, from)),
            _ => None,
        })
        .collect();
    let mut all: Vec<_> = asked.iter().flat_map(|(_, from)| from.clone()).collect();
    all.sort_unstable();
    all.dedup();
    let others: Vec<_> = [0, 1, 3].map(|at| t.keys[at].node_id()).to_vec();
    assert_eq!(all, others);
    assert!(asked.iter().all(|(view, _)| *view == View(1)), "{asked:?}");
}

#[test]
fn who_proposes_in_a_view_that_is_over_is_shown_the_new_one() {
    let mut t = bench(2);
    let from = bare_ones(1);
    for (at, content) in from.iter().filter(|(at, _)| *at != 2) {
        let _ = t.hear(*at, content.clone());
    }
    let _ = t.hear(1, new_view(&t.keys, 1, &from, &[]));
    assert_eq!(status(&t), (1, false));
    let batch = t.batch(&[t.request(2, 1)], 5);
    let shown =
        |output: &Output| sent(&output.effects).iter().any(|sent| matches!(sent, Content::NewView(_)));
    let output = t.hear(3, pre_prepare(1, &batch));
    assert!(!shown(&output), "a backup of that view has nothing to propose");
    let output = t.propose(1, &batch);
    assert_eq!(rejected(&output), Rejected::OtherView { view: View(1) });
    assert!(shown(&output));
    assert!(!shown(&t.propose(2, &batch)), "not again at once");
    let _ = t.hear(PRIMARY, Content::Checkpoint(result(9, 9)));
    let _ = t.wait(SECOND);
    assert!(!shown(&t.propose(3, &batch)), "that is from before it executed this number");
}

#[test]
fn two_new_views_of_one_primary_for_one_view_are_evidence() {
    let mut t = bench(2);
    let first = new_view(&t.keys, 1, &bare_ones(1), &[]);
    let from: Vec<_> = [0, 1, 3].into_iter().map(|at| (at, bare(1))).collect();
    let second = new_view(&t.keys, 1, &from, &[]);
    let _ = t.hear(1, first.clone());
    let output = t.hear(1, second);
    assert_eq!(rejected(&output), Rejected::Equivocation);
    assert!(matches!(&output.effects[..], [Effect::Evidence(_)]));
    assert_eq!(rejected(&t.hear(1, first)), Rejected::Duplicate);
}

#[test]
fn after_a_restart_the_replica_is_in_its_view_with_what_it_carries_over() {
    let (mut t, digest) = prepared();
    let _ = t.hear(2, bare(1));
    let _ = t.hear(3, bare(1));
    for entries in 0..=t.wal.len() {
        let entries = t.wal[..entries].iter();
        let entries: Vec<_> =
            entries.map(|entry| WalEntry::decode(&NETWORK, &entry.encode()).unwrap()).collect();
        let entered = entries.iter().any(|entry| matches!(entry, WalEntry::NewView { .. }));
        let left = entries.iter().any(|entry| matches!(entry, WalEntry::ViewChange(_)));
        let restored = Restored { entries, ..Restored::new(genesis(), START) };
        let replica = Replica::new(t.replica.settings.clone(), restored).unwrap();
        let mut again = Bench { keys: t.keys.clone(), replica, now: t.now, wal: Vec::new() };
        let said = sent(&again.wait(SECOND / 2));
        assert_eq!(status(&again), (u64::from(left), left && !entered));
        let old = |content: &Content| {
            matches!(content, Content::Prepare(_) | Content::Commit(_)) && content.view() == Some(View(0))
        };
        assert!(!left || !said.iter().any(old), "{said:?}");
        if entered {
            assert_eq!(again.replica.status().accepted, SeqNum(1));
            let slot = again.replica.log.get(SeqNum(1), View(1)).unwrap();
            assert_eq!(slot.proposal.as_ref().unwrap().digest, digest);
        }
    }
}

/// A checkpoint that replicas 0, 2 and 3 signed.
fn certificate(keys: &[SecretKey], content: CheckpointContent) -> crate::ledger::Certificate {
    let bytes = crate::codec::encode(&content);
    let sign = |at: u16| (at, keys[usize::from(at)].sign(SignatureKind::Checkpoint, &NETWORK, &bytes));
    crate::ledger::Certificate { content, signatures: [0, 2, 3].map(sign).to_vec() }
}

#[test]
fn view_change_names_the_highest_checkpoint_that_is_proven_here() {
    let mut t = bench(1);
    let null = Batch::null().digest();
    let checkpoint = Some(certificate(&t.keys, result(200, 200)));
    // Batch 250 was prepared: the view carries over 201 to 250, and replica 1 has executed
    // nothing yet.
    let prepared = vec![proof(&t.keys, 0, 250, null)];
    let change = |prepared| ViewChange { view: View(2), checkpoint: checkpoint.clone(), prepared };
    let changes = [(0, vec![]), (2, prepared), (3, vec![])];
    let changes: Vec<(usize, Content)> =
        changes.into_iter().map(|(at, prepared)| (at, Content::ViewChange(change(prepared)))).collect();
    for (from, content) in &changes {
        let _ = t.hear(*from, content.clone());
    }
    let Content::NewView(mut begins) = new_view(&t.keys, 2, &changes, &[]) else { panic!() };
    begins.stable = SeqNum(200);
    let sign = |sequence| {
        let bytes = proposal_bytes(View(2), SeqNum(sequence), null);
        (null, t.keys[2].sign(SignatureKind::PrePrepare, &NETWORK, &bytes))
    };
    begins.proposals = (201..=250).map(sign).collect();
    let _ = t.hear(2, Content::NewView(begins));
    assert_eq!((status(&t), t.replica.status().accepted), ((2, false), SeqNum(250)), "it votes");
    for from in [0, 3] {
        let vote = Prepare { view: View(2), sequence: SeqNum(250), digest: null };
        let _ = t.hear(from, Content::Prepare(vote));
    }
    // The next view: its VIEW-CHANGE holds for everybody.
    let mut effects = t.hear(0, bare(3)).effects;
    effects.extend(t.hear(3, bare(3)).effects);
    let said = sent(&effects).into_iter().find(|content| matches!(content, Content::ViewChange(_)));
    let signed = Verified::sign(&t.keys[1], &NETWORK, said.unwrap()).signed().clone();
    let keys = ReplicaSetKeys::new(&t.replica.settings.replicas).unwrap();
    let verified = signed.verify(&keys, &NETWORK);
    let Ok(Content::ViewChange(said)) = verified.as_ref().map(|message| message.content()) else {
        panic!("{verified:?}")
    };
    assert_eq!((said.stable(), said.prepared.len()), (SeqNum(200), 1));
}
