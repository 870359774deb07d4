//! Whatever arrives in whatever order: no panic, no contradiction, no execution without a quorum.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::crypto::SignatureKind;
use crate::ledger::Certificate;
use crate::pbft::Footprint;
use crate::pbft::certificates::{NewView, Prepared, ViewChange, plan};
use crate::pbft::message::{Recovery, proposal_bytes};
use crate::pbft::settings::WINDOW;
use crate::types::Signature;

#[derive(Debug, Clone)]
enum Arrival {
    Request { node: usize, number: u64, fetched: bool },
    PrePrepare { from: usize, sequence: u64, number: u64, time: u64 },
    Prepare { from: usize, sequence: u64, number: u64, time: u64 },
    Commit { from: usize, sequence: u64, number: u64, time: u64 },
    Checkpoint { from: usize, sequence: u64, height: u64 },
    Executed { right: bool },
    Synced { sequence: u64, written: u64 },
    CertificateFetched { sequence: u64, height: u64 },
    Batch { sequence: u64, number: u64, time: u64 },
    ViewChange { from: usize, view: u64, proofs: Vec<Proof> },
    NewView { view: u64, right: bool, from: [usize; 3] },
    Carried { from: usize, view: u64, sequence: u64, number: u64, time: u64, kind: u8 },
    Recovery { from: usize, until: u64 },
    Wait { ms: u64 },
    Restart,
}

/// What a VIEW-CHANGE says was prepared. The core gets what was verified, so of the false ones only
/// those that a faulty quorum could make: here, all that can be written down.
#[derive(Debug, Clone)]
struct Proof {
    view: u64,
    sequence: u64,
    number: u64,
    time: u64,
}

fn proof() -> impl Strategy<Value = Proof> {
    (0_u64..3, 1_u64..5, 1_u64..4, 1_u64..3).prop_map(|(view, sequence, number, time)| Proof {
        view,
        sequence,
        number,
        time,
    })
}

/// What belongs to views.
fn view_arrival() -> impl Strategy<Value = Arrival> {
    let carried = (0_usize..4, 1_u64..4, 0_u64..5, 1_u64..4, 1_u64..3, 0_u8..3);
    prop_oneof![
        6 => (0_usize..4, 0_u64..5, proptest::collection::vec(proof(), 0..3))
            .prop_map(|(from, view, proofs)| Arrival::ViewChange { from, view, proofs }),
        4 => (1_u64..5, any::<bool>(), prop_oneof![Just([0, 1, 2]), Just([1, 2, 3]), Just([0, 2, 3])])
            .prop_map(|(view, right, from)| Arrival::NewView { view, right, from }),
        8 => carried.prop_map(|(from, view, sequence, number, time, kind)| {
            Arrival::Carried { from, view, sequence, number, time, kind }
        }),
        1 => (0_u64..5, 1_u64..4, 1_u64..3)
            .prop_map(|(sequence, number, time)| Arrival::Batch { sequence, number, time }),
        1 => (0_u64..6, 0_u64..4)
            .prop_map(|(sequence, height)| Arrival::CertificateFetched { sequence, height }),
        1 => (0_usize..4, 0_u64..600).prop_map(|(from, until)| Arrival::Recovery { from, until }),
        1 => Just(Arrival::Restart),
    ]
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
        1 => (0_u64..6, 1_u64..4).prop_map(|(sequence, written)| Arrival::Synced { sequence, written }),
        12 => view_arrival(),
        3 => (0_u64..3_000).prop_map(|ms| Arrival::Wait { ms }),
    ]
}

struct Watch {
    bench: Bench,
    /// What was signed for each kind, view and number, over all lives.
    promises: BTreeMap<(&'static str, Option<View>, Option<SeqNum>), Content>,
    /// Who committed to what, in any view: only a quorum in one view lets it be executed.
    commits: BTreeMap<(View, SeqNum, Hash), BTreeSet<usize>>,
    /// The last VIEW-CHANGE of each replica for each view, for NEW-VIEWs to name.
    changes: BTreeMap<(u64, usize), ViewChange>,
    given_up: View,
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
                self.carried(from, 0, sequence, number, time, 1)
            }
            Arrival::Commit { from, sequence, number, time } => {
                self.carried(from, 0, sequence, number, time, 2)
            }
            Arrival::Carried { from, view, sequence, number, time, kind } => {
                self.carried(from, view, sequence, number, time, kind)
            }
            Arrival::Checkpoint { from, sequence, height } => {
                self.bench.hear(from, Content::Checkpoint(result(sequence, height))).effects
            }
            Arrival::Executed { right } => {
                let next = self.last_executed + u64::from(!right);
                self.bench.step(Input::Executed(result(next, next))).effects
            }
            Arrival::Synced { sequence, written } => {
                let certificate = Certificate { content: result(sequence, sequence), signatures: Vec::new() };
                let requests = vec![self.bench.request(2, written).digest()];
                self.bench.step(Input::BlocksSynced { certificate, timestamp: START, requests }).effects
            }
            Arrival::CertificateFetched { sequence, height } => {
                let certificate = Certificate { content: result(sequence, height), signatures: Vec::new() };
                self.bench.step(Input::CertificateFetched(certificate)).effects
            }
            Arrival::Batch { sequence, number, time } => {
                let batch = self.batch(sequence, number, time);
                self.bench.step(Input::Batch(batch)).effects
            }
            Arrival::ViewChange { from, view, ref proofs } => {
                let change = self.view_change(view, proofs);
                self.changes.insert((view, from), change.clone());
                self.bench.hear(from, Content::ViewChange(change)).effects
            }
            Arrival::NewView { view, right, from } => self.new_view(view, right, from),
            Arrival::Recovery { from, until } => {
                self.bench.hear(from, Content::Recovery(Recovery { until: SeqNum(until) })).effects
            }
            Arrival::Wait { ms } => self.bench.wait(Duration::from_millis(ms)),
            Arrival::Restart => self.restart(),
        };
        self.watch(&effects);
    }

    /// A message of any kind for any view; the batch is the null batch for number 3.
    fn carried(
        &mut self,
        from: usize,
        view: u64,
        sequence: u64,
        number: u64,
        time: u64,
        kind: u8,
    ) -> Vec<Effect> {
        let batch = if number == 3 { Batch::null() } else { self.batch(sequence, number, time) };
        let (view, sequence, digest) = (View(view), SeqNum(sequence), batch.digest());
        let content = match kind {
            0 => Content::PrePrepare(PrePrepare { view, sequence, batch }),
            1 => Content::Prepare(Prepare { view, sequence, digest }),
            _ => {
                self.commits.entry((view, sequence, digest)).or_default().insert(from);
                Content::Commit(Commit { view, sequence, digest })
            }
        };
        self.bench.hear(from, content).effects
    }

    fn view_change(&self, view: u64, proofs: &[Proof]) -> ViewChange {
        let proof = |proof: &Proof| Prepared {
            view: View(proof.view),
            sequence: SeqNum(proof.sequence),
            digest: self.batch(proof.sequence, proof.number, proof.time).digest(),
            pre_prepare: Signature([1; 64]),
            prepares: vec![(1, Signature([1; 64])), (2, Signature([1; 64]))],
        };
        ViewChange { view: View(view), checkpoint: None, prepared: proofs.iter().map(proof).collect() }
    }

    /// The NEW-VIEW of its primary that names these VIEW-CHANGEs, with the right proposals or others.
    fn new_view(&mut self, view: u64, right: bool, from: [usize; 3]) -> Vec<Effect> {
        let bare = self.view_change(view, &[]);
        let named = from.map(|at| (at, self.changes.get(&(view, at)).unwrap_or(&bare).clone()));
        let plan = plan(named.iter().map(|(_, change)| change), &self.bench.replica.settings.replicas);
        let primary = (view % 4) as usize;
        let sign = |(at, digest): (usize, Hash)| {
            let bytes = proposal_bytes(View(view), SeqNum(plan.stable.0 + 1 + at as u64), digest);
            (digest, self.bench.keys[primary].sign(SignatureKind::PrePrepare, &NETWORK, &bytes))
        };
        let digests = plan.carried.iter().map(|carried| if right { carried.digest } else { Hash([9; 32]) });
        let content = NewView {
            view: View(view),
            stable: plan.stable,
            view_changes: named
                .iter()
                .map(|(at, change)| (u16::try_from(*at).unwrap(), change.digest()))
                .collect(),
            proposals: digests.enumerate().map(sign).collect(),
        };
        let before = self.bench.replica.status();
        let effects = self.bench.hear(primary, Content::NewView(content)).effects;
        let after = self.bench.replica.status();
        let wrong = !right && !plan.carried.is_empty();
        let entered = after.view == View(view)
            && !after.changing
            && (before.view, before.changing) != (after.view, false);
        assert!(!wrong || !entered, "a wrong NEW-VIEW is not entered");
        effects
    }

    /// Power is lost after all was synced; what was executed is in the store.
    fn restart(&mut self) -> Vec<Effect> {
        let executed = self.bench.replica.executed;
        let restored = Restored { entries: self.bench.wal.clone(), ..Restored::new(executed, START) };
        // A body that a fetched block has may be missing: then the shell says so and stops.
        if let Ok(replica) = Replica::new(self.bench.replica.settings.clone(), restored) {
            self.bench.replica = replica;
            self.last_executed = executed.sequence.0;
        }
        self.bench.step(Input::Tick).effects
    }

    fn watch(&mut self, effects: &[Effect]) {
        for content in sent_by(&self.bench.replica.settings.key, effects) {
            let whole_view = matches!(content, Content::ViewChange(_) | Content::NewView(_));
            let sequence = (!whole_view).then(|| content.sequence());
            let slot = (content.signature_kind().as_str(), content.view(), sequence);
            let first = self.promises.entry(slot).or_insert_with(|| content.clone());
            assert_eq!(*first, content, "two different messages for {slot:?}");
            if let Some(view) = content.view() {
                assert!(view >= self.given_up, "{view} was given up: {content:?}");
            }
            if let Content::ViewChange(ref change) = content {
                self.given_up = change.view.max(self.given_up);
            }
            if let Content::Commit(commit) = content {
                let voters = self.commits.entry((commit.view, commit.sequence, commit.digest)).or_default();
                voters.insert(usize::MAX);
            }
        }
        for effect in effects {
            let Effect::Execute { sequence, batch, requests } = effect else { continue };
            assert!(sequence.0 > self.last_executed, "in order");
            self.last_executed = sequence.0;
            assert_eq!(batch.requests.len(), requests.len());
            let digest = batch.digest();
            let of_it = |((_, at, of), _): &(&(View, SeqNum, Hash), &BTreeSet<usize>)| {
                at == sequence && *of == digest
            };
            let most = self.commits.iter().filter(of_it).map(|(_, voters)| voters.len()).max().unwrap_or(0);
            assert!(most >= 3, "a quorum of COMMITs in one view, the own one included");
        }
        self.check_memory();
    }

    /// The limits of `docs/CONSENSUS.md`, for four replicas and four requests of each.
    fn check_memory(&self) {
        let window = usize::try_from(WINDOW).unwrap();
        let Footprint { slots, archived, views, votes, checkpoints, claims, pending, outbox, .. } =
            self.bench.replica.footprint();
        assert!(slots <= window && votes <= 8 * slots, "{slots} slots, {votes} votes");
        // Here: numbers up to 5, and at most 7 batches for each.
        assert!(archived <= 5 * 8, "{archived} batches of earlier views");
        assert!(views <= 4 + 4 + 4 * 4 + 4, "{views} messages about views");
        assert!(checkpoints <= 4 * 2 * window && claims <= 3 && pending <= 4 && outbox <= 4);
    }
}

proptest! {
    #[test]
    fn whatever_arrives_the_promises_hold(
        me in 0_usize..4, arrivals in proptest::collection::vec(arrival(), 1..150),
    ) {
        let bench = Bench::with(4, me, |settings| {
            settings.batch_max_requests = 2;
            settings.request_timeout = Duration::from_secs(1);
            settings.request_timeout_max = Duration::from_secs(32);
        });
        let mut watch = Watch {
            bench,
            promises: BTreeMap::new(),
            commits: BTreeMap::new(),
            changes: BTreeMap::new(),
            given_up: View(0),
            last_executed: 0,
        };
        for arrival in &arrivals {
            watch.arrive(arrival);
        }
    }
}
