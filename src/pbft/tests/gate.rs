//! The gate: bounded work for each sender, and honest messages get through.

use super::view_change::bare;
use super::*;
use crate::ledger::ReplicaSetKeys;
use crate::pbft::certificates::{Prepared, ViewChange};
use crate::pbft::gate::{BURST, Gate, PENANCE, Pass, REFILL};
use crate::pbft::message::{Authentic, MessageError};
use crate::types::Signature;

const SECOND: Duration = Duration::from_secs(1);

struct Door {
    gate: Gate,
    keys: Vec<SecretKey>,
    set: ReplicaSetKeys,
    now: Duration,
    /// How many proofs were checked.
    checked: u32,
}

impl Door {
    fn new() -> Self {
        let keys = keys(4);
        let replicas = settings(&keys, 0).replicas;
        let set = ReplicaSetKeys::new(&replicas).unwrap();
        Self { gate: Gate::default(), keys, set, now: SECOND, checked: 0 }
    }

    fn authentic(&self, from: usize, content: Content) -> Authentic {
        let message = Verified::sign(&self.keys[from], &NETWORK, content);
        message.signed().clone().authenticate(&self.set, &NETWORK).unwrap()
    }

    /// Whether the message gets through; why not, if it was checked.
    fn brings(&mut self, from: usize, content: Content) -> Result<bool, MessageError> {
        match self.gate.admit(self.now, self.authentic(from, content)) {
            Pass::Known(_) => Ok(true),
            Pass::Later => Ok(false),
            Pass::Check(ticket) => {
                self.checked += 1;
                let (settlement, result) = ticket.check(&self.set, &NETWORK);
                self.gate.settle(self.now, settlement);
                result.map(|_| true)
            }
        }
    }
}

/// A VIEW-CHANGE whose proof does not hold.
fn false_proof(view: u64) -> Content {
    let prepared = Prepared {
        view: View(0),
        sequence: SeqNum(1),
        digest: Hash([1; 32]),
        pre_prepare: Signature([1; 64]),
        prepares: vec![(1, Signature([1; 64])), (2, Signature([1; 64]))],
    };
    Content::ViewChange(ViewChange { view: View(view), checkpoint: None, prepared: vec![prepared] })
}

#[test]
fn a_spammer_has_a_few_checked_and_then_one_a_second() {
    let mut t = Door::new();
    for view in 1..=1_000 {
        let _ = t.brings(3, bare(view));
    }
    assert_eq!(t.checked, BURST);
    for view in 1_001..=1_100 {
        t.now += REFILL / 10;
        let _ = t.brings(3, bare(view));
    }
    assert_eq!(t.checked, BURST + 10);
    t.now += 1_000 * REFILL;
    for view in 2_000..3_000 {
        let _ = t.brings(3, bare(view));
    }
    assert_eq!(t.checked, 2 * BURST + 10, "what was not used does not pile up");
}

#[test]
fn nobody_pays_for_another_one() {
    let mut t = Door::new();
    for view in 1..=1_000 {
        let _ = t.brings(3, bare(view));
    }
    assert_eq!(t.brings(2, bare(1)), Ok(true));
}

#[test]
fn what_was_verified_is_known_again_for_nothing() {
    let mut t = Door::new();
    for _ in 0..1_000 {
        assert_eq!(t.brings(2, bare(1)), Ok(true));
    }
    assert_eq!(t.checked, 1);
}

#[test]
fn old_view_changes_that_others_repeat_do_not_keep_an_honest_new_one_out() {
    let mut t = Door::new();
    // Somebody repeats all that replica 2 ever said, as fast as it can, from the first view on.
    let mut old = 1..;
    let mut through = false;
    let mut rounds = 0;
    for _ in 0..100 {
        for view in old.by_ref().take(10) {
            assert!(view < 10_000);
            let _ = t.brings(2, bare(view));
        }
        // Between them it says what it says now; at most two seconds pass until it does so again.
        through = t.brings(2, bare(10_000)).unwrap();
        rounds += 1;
        if through {
            break;
        }
        t.now += 2 * SECOND;
    }
    assert!(through && rounds <= 2, "{rounds} rounds");
}

#[test]
fn who_sends_a_false_proof_waits_and_who_does_not_is_not_held_up() {
    let mut t = Door::new();
    assert!(matches!(t.brings(3, false_proof(1)), Err(MessageError::Proof(_))));
    for _ in 0..10 {
        assert_eq!(t.brings(3, false_proof(2)), Ok(false));
        t.now += PENANCE / 20;
    }
    assert_eq!(t.brings(2, bare(1)), Ok(true));
    t.now += PENANCE;
    assert!(t.brings(3, false_proof(2)).is_err(), "checked once more");
}

#[test]
fn votes_and_checkpoints_pass_as_before() {
    let mut t = Door::new();
    for sequence in 1..=1_000 {
        assert_eq!(t.brings(1, prepare(sequence, Hash([1; 32]))), Ok(true));
        assert_eq!(t.brings(1, Content::Checkpoint(result(sequence, 1))), Ok(true));
    }
}

#[test]
fn without_the_senders_own_signature_nothing_is_even_counted() {
    let t = Door::new();
    let mut signed = Verified::sign(&t.keys[2], &NETWORK, bare(1)).signed().clone();
    signed.sender = t.keys[3].node_id();
    assert!(matches!(signed.authenticate(&t.set, &NETWORK), Err(MessageError::Signature(_))));
}
