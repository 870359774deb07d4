//! Whatever arrives in whatever order: no panic, no contradiction, no execution without a quorum.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Arrival {
    Request { node: usize, number: u64, fetched: bool },
    PrePrepare { from: usize, sequence: u64, number: u64, time: u64 },
    Prepare { from: usize, sequence: u64, number: u64, time: u64 },
    Commit { from: usize, sequence: u64, number: u64, time: u64 },
    Checkpoint { from: usize, sequence: u64, height: u64 },
    Executed { right: bool },
    Synced { sequence: u64 },
    Wait { ms: u64 },
}

fn arrival() -> impl Strategy<Value = Arrival> {
    let slot = || (0_usize..4, 0_u64..5, 1_u64..4, 1_u64..3);
    prop_oneof![
        4 => (0_usize..4, 1_u64..4, any::<bool>())
            .prop_map(|(node, number, fetched)| Arrival::Request { node, number, fetched }),
        4 => slot().prop_map(|(_, sequence, number, time)| Arrival::PrePrepare { from: 0, sequence, number, time }),
        1 => slot().prop_map(|(from, sequence, number, time)| Arrival::PrePrepare { from, sequence, number, time }),
        8 => slot().prop_map(|(from, sequence, number, time)| Arrival::Prepare { from, sequence, number, time }),
        8 => slot().prop_map(|(from, sequence, number, time)| Arrival::Commit { from, sequence, number, time }),
        4 => (0_usize..4, 0_u64..6, 0_u64..4)
            .prop_map(|(from, sequence, height)| Arrival::Checkpoint { from, sequence, height }),
        3 => any::<bool>().prop_map(|right| Arrival::Executed { right }),
        1 => (0_u64..6).prop_map(|sequence| Arrival::Synced { sequence }),
        3 => (0_u64..3_000).prop_map(|ms| Arrival::Wait { ms }),
    ]
}

struct Watch {
    bench: Bench,
    promises: BTreeMap<(SeqNum, &'static str), Content>,
    commits: BTreeMap<(SeqNum, Hash), BTreeSet<usize>>,
    last_executed: u64,
}

impl Watch {
    fn batch(&self, sequence: u64, number: u64, time: u64) -> Batch {
        self.bench.batch(&[self.bench.request(2, number)], 10 * sequence + time)
    }

    fn arrive(&mut self, arrival: &Arrival) {
        let effects = match *arrival {
            Arrival::Request { node, number, fetched } => {
                let request = self.bench.request(node, number);
                let source = if fetched { Source::Fetched } else { self.bench.source_of(node) };
                self.bench.step(Input::Request { request, source }).effects
            }
            Arrival::PrePrepare { from, sequence, number, time } => {
                let batch = self.batch(sequence, number, time);
                self.bench.hear(from, pre_prepare(sequence, &batch)).effects
            }
            Arrival::Prepare { from, sequence, number, time } => {
                let digest = self.batch(sequence, number, time).digest();
                self.bench.hear(from, prepare(sequence, digest)).effects
            }
            Arrival::Commit { from, sequence, number, time } => {
                let digest = self.batch(sequence, number, time).digest();
                self.commits.entry((SeqNum(sequence), digest)).or_default().insert(from);
                self.bench.hear(from, commit(sequence, digest)).effects
            }
            Arrival::Checkpoint { from, sequence, height } => {
                self.bench.hear(from, Content::Checkpoint(result(sequence, height))).effects
            }
            Arrival::Executed { right } => {
                let next = self.last_executed + u64::from(!right);
                self.bench.step(Input::Executed(result(next, next))).effects
            }
            Arrival::Synced { sequence } => {
                let content = result(sequence, sequence);
                let certificate = crate::ledger::Certificate { content, signatures: Vec::new() };
                self.bench.step(Input::BlocksSynced { certificate, timestamp: START, requests: Vec::new() }).effects
            }
            Arrival::Wait { ms } => self.bench.wait(Duration::from_millis(ms)),
        };
        self.watch(&effects);
    }

    fn watch(&mut self, effects: &[Effect]) {
        for content in sent_by(&self.bench.replica.settings.key, effects) {
            let slot = (content.sequence(), content.signature_kind().as_str());
            let first = self.promises.entry(slot).or_insert_with(|| content.clone());
            assert_eq!(*first, content, "two different messages for {slot:?}");
        }
        for effect in effects {
            let Effect::Execute { sequence, batch, requests } = effect else { continue };
            assert!(sequence.0 > self.last_executed, "in order");
            self.last_executed = sequence.0;
            assert_eq!(batch.requests.len(), requests.len());
            let voters = self.commits.get(&(*sequence, batch.digest())).map_or(0, BTreeSet::len);
            assert!(voters + 1 >= 3, "a quorum with the own vote");
        }
    }
}

proptest! {
    #[test]
    fn whatever_arrives_the_promises_hold(
        me in 0_usize..4, arrivals in proptest::collection::vec(arrival(), 1..120),
    ) {
        let bench = Bench::with(4, me, |settings| settings.batch_max_requests = 2);
        let (promises, commits) = (BTreeMap::new(), BTreeMap::new());
        let mut watch = Watch { bench, promises, commits, last_executed: 0 };
        for arrival in &arrivals {
            watch.arrive(arrival);
        }
    }
}
