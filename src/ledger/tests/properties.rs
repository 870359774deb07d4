//! What holds after any sequence of batches, whatever clients, nodes and admins send.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::fixture::{Net, SignedMessage, client, execute, node};
use crate::ledger::block::CertifiedBlock;
use crate::ledger::request::VerifiedRequest;
use crate::ledger::state::{SEQ_WINDOW, State};
use crate::ledger::{Executed, Operation, Outcome, Record, StateChange};
use crate::types::{Hash, MessageSeq};

/// Something that a client, node or admin sends, honest or not.
#[derive(Debug, Clone)]
enum Sent {
    Register { client: u8 },
    Revoke { client: u8, last_seq: u64 },
    SetPolicies { replaces: u64 },
    ReplayedAdmin { at: prop::sample::Index },
    Write { client: u8, seq: u64, variant: i64, by: u8, picked: Vec<u32> },
    ReplayedWrite { at: prop::sample::Index },
}

const ITEMS: u32 = 10;

fn any_sent() -> impl Strategy<Value = Sent> {
    // Two groups of seqs, more than a window apart, and a few far above.
    let seq = prop_oneof![1_u64..6, SEQ_WINDOW - 2..SEQ_WINDOW + 6, 3 * SEQ_WINDOW..3 * SEQ_WINDOW + 2];
    let picked = proptest::sample::subsequence((0..ITEMS).collect::<Vec<_>>(), 1..=ITEMS as usize);
    prop_oneof![
        2 => (1_u8..4).prop_map(|client| Sent::Register { client }),
        1 => (1_u8..4, 1_u64..600).prop_map(|(client, last_seq)| Sent::Revoke { client, last_seq }),
        1 => (0_u64..4).prop_map(|replaces| Sent::SetPolicies { replaces }),
        1 => any::<prop::sample::Index>().prop_map(|at| Sent::ReplayedAdmin { at }),
        12 => (1_u8..5, seq, 0_i64..2, 1_u8..5, picked).prop_map(|(client, seq, variant, by, picked)| {
            // The second variant of a message is rare.
            let variant = if variant == 1 && by == 1 { 1 } else { 0 };
            Sent::Write { client, seq, variant, by, picked }
        }),
        2 => any::<prop::sample::Index>().prop_map(|at| Sent::ReplayedWrite { at }),
    ]
}

/// Makes the requests of a script, signing each message once.
struct Script {
    net: Net,
    admin_sequence: u64,
    messages: BTreeMap<(u8, u64, i64), SignedMessage>,
    admins: Vec<Arc<VerifiedRequest>>,
    writes: Vec<Arc<VerifiedRequest>>,
}

impl Script {
    fn request(&mut self, sent: &Sent) -> Option<Arc<VerifiedRequest>> {
        self.admin_sequence += 1;
        match sent {
            Sent::Register { client } => self.admins.push(self.net.register(self.admin_sequence, *client)),
            Sent::Revoke { client, last_seq } => {
                self.admins.push(self.net.revoke(self.admin_sequence, *client, *last_seq));
            }
            Sent::SetPolicies { replaces } => {
                let name = format!("rule-{}", self.admin_sequence);
                self.admins.push(self.net.set_policies(self.admin_sequence, *replaces, &name));
            }
            Sent::Write { client, seq, variant, by, picked } => {
                let make = || self.net.message(*client, *seq, *variant, ITEMS);
                let message = self.messages.entry((*client, *seq, *variant)).or_insert_with(make);
                self.writes.push(message.request(node(*by), picked));
            }
            Sent::ReplayedAdmin { at } => {
                return (!self.admins.is_empty()).then(|| at.get(&self.admins).clone());
            }
            Sent::ReplayedWrite { at } => {
                return (!self.writes.is_empty()).then(|| at.get(&self.writes).clone());
            }
        }
        let admin = !matches!(sent, Sent::Write { .. });
        if admin { self.admins.last().cloned() } else { self.writes.last().cloned() }
    }
}

fn store(stored: &mut BTreeMap<Vec<u8>, Vec<u8>>, changes: &[StateChange]) {
    for StateChange { key, value } in changes {
        match value {
            Some(value) => drop(stored.insert(key.clone(), value.clone())),
            None => assert!(stored.remove(key).is_some(), "an entry that was not there is removed"),
        }
    }
}

/// What is on the ledger, gathered from blocks and outcomes: for each message its header and items.
#[derive(Default)]
struct Written(BTreeMap<(String, u64), (Hash, Vec<u32>)>);

impl Written {
    fn take(&mut self, executed: &Executed) {
        let Some(block) = &executed.block else { return };
        for operation in &block.operations {
            let Operation::Write { request, written } = operation else { continue };
            let header = crate::device::Header::decode(&request.header).unwrap();
            let hash = crate::device::Header::hash_of(&request.header);
            let slot = self.0.entry((header.client.to_string(), header.seq.0)).or_insert((hash, vec![]));
            assert_eq!(slot.0, hash, "two messages with one seq were written");
            for index in written {
                assert!(!slot.1.contains(index), "an item was written twice");
                slot.1.push(*index);
            }
            assert!(!written.is_empty(), "an operation without effect is in a block");
        }
        let of_block = Record::of_block(block).unwrap().len();
        let counts = block.operations.iter().map(|operation| match operation {
            Operation::Write { written, .. } => written.len(),
            Operation::Admin(_) | Operation::Digest(_) => 0,
        });
        assert_eq!(of_block, counts.sum::<usize>());
    }

    fn check(&self, request: &VerifiedRequest, outcome: &Outcome) {
        let Some(telemetry) = request.telemetry() else { return };
        let (Outcome::Written { items, .. } | Outcome::AlreadyWritten { items, .. }) = outcome else {
            return;
        };
        let (hash, indexes) = &self.0[&(telemetry.header.client.to_string(), telemetry.header.seq.0)];
        assert_eq!(*hash, telemetry.hash);
        let crate::ledger::Request::Write(write) = request.request() else { panic!("not a write") };
        assert!(write.items.iter().all(|item| items.contains(&item.index)), "an item is missing");
        assert!(items.iter().all(|index| indexes.contains(index)), "an item is listed but not written");
    }
}

fn check_windows(state: &State) {
    for number in 1..5 {
        let highest = state.highest(&client(number)).0;
        let in_window = |seq: &u64| state.written(&client(number), MessageSeq(*seq)).is_some();
        assert!((1..highest.saturating_sub(SEQ_WINDOW)).filter(in_window).count() == 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn execution_is_deterministic_chained_restorable_and_writes_each_item_once(
        batches in proptest::collection::vec(proptest::collection::vec(any_sent(), 0..6), 1..14),
    ) {
        let net = Net::new(4);
        let mut state = State::genesis(&net.genesis);
        let (mut twin, mut follower) = (state.clone(), state.clone());
        let mut stored = BTreeMap::new();
        store(&mut stored, &state.as_changes());
        let mut script = Script {
            net, admin_sequence: 0, messages: BTreeMap::new(), admins: vec![], writes: vec![],
        };
        let mut written = Written::default();

        for batch in &batches {
            let requests: Vec<_> = batch.iter().filter_map(|sent| script.request(sent)).collect();
            let executed = execute(&mut state, &requests);
            prop_assert_eq!(&execute(&mut twin, &requests), &executed);
            prop_assert_eq!(&twin, &state);
            prop_assert_eq!(state.computed_lattice().digest(), state.digest());
            prop_assert_eq!(executed.block.is_none(), executed.changes.is_empty());

            store(&mut stored, &executed.changes);
            prop_assert_eq!(stored.iter().map(|(k, v)| (k.clone(), v.clone())).collect::<Vec<_>>(),
                state.entries().collect::<BTreeMap<_, _>>().into_iter().collect::<Vec<_>>());
            let restored = State::restore(script.net.network, state.head().clone(), stored.clone());
            prop_assert_eq!(restored.as_ref(), Ok(&state));

            let certificate = script.net.certify(executed.checkpoint, &[0, 1, 2]);
            if let Some(block) = executed.block.clone() {
                let certified =
                    CertifiedBlock::verify(block, certificate, &script.net.network, &script.net.keys).unwrap();
                follower.apply(&certified).unwrap();
            } else {
                follower.skip_to(&executed.checkpoint).unwrap();
            }
            prop_assert_eq!(follower.checkpoint(), state.checkpoint());
            prop_assert_eq!(follower.computed_lattice(), state.computed_lattice());

            written.take(&executed);
            for (request, (_, outcome)) in requests.iter().zip(&executed.outcomes) {
                written.check(request, outcome);
            }
            check_windows(&state);
        }
    }

    #[test]
    fn a_damaged_store_is_no_state_or_another_one(at in any::<prop::sample::Index>(), byte in any::<prop::sample::Index>(), flip in 1_u8..) {
        let net = Net::new(4);
        let mut state = State::genesis(&net.genesis);
        execute(&mut state, &[net.register(1, 1), net.message(1, 1, 20, 3).request(node(1), &[0, 2])]);
        let mut entries: Vec<_> = state.entries().collect();
        let (key, value) = at.get(&entries);
        let damaged = byte.index(key.len() + value.len());
        let at = at.index(entries.len());
        let key_len = entries[at].0.len();
        if damaged < key_len {
            entries[at].0[damaged] ^= flip;
        } else {
            entries[at].1[damaged - key_len] ^= flip;
        }
        if let Ok(restored) = State::restore(net.network, state.head().clone(), entries) {
            prop_assert_ne!(restored.digest(), state.digest());
        }
    }
}
