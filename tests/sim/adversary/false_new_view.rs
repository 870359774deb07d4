//! False NEW-VIEW: as the primary of a new view it leaves out what was prepared and puts null
//! requests in its place; as a backup it says that nothing was prepared at it, or shows proofs that
//! prove nothing.

use ledgermq::pbft::Envelope;
use ledgermq::pbft::certificates::{NewView, ViewChange};
use ledgermq::pbft::message::{Batch, Content, PrePrepare};
use ledgermq::types::{SeqNum, Signature, View};

use super::{Adversary, Power};

pub struct FalseNewView;

impl Adversary for FalseNewView {
    fn name(&self) -> &'static str {
        "false NEW-VIEW"
    }

    fn on_send(&mut self, power: &mut Power<'_>, envelope: Envelope) {
        let mine = envelope.signed.sender == power.node_id();
        match envelope.signed.content.clone() {
            Content::NewView(new_view) if mine => {
                let lie = without_what_was_prepared(power, new_view);
                let lie = power.sign(Content::NewView(lie));
                power.lie_to_all(&lie);
            }
            Content::ViewChange(view_change) if mine => {
                for to in power.others() {
                    let lie = false_view_change(power, view_change.clone());
                    let envelope = power.sign(Content::ViewChange(lie));
                    power.lie(to, &envelope);
                }
            }
            _ => power.broadcast(&envelope),
        }
    }
}

fn without_what_was_prepared(power: &mut Power<'_>, mut new_view: NewView) -> NewView {
    let (view, stable) = (new_view.view, new_view.stable);
    if power.rng.percent(30) {
        new_view.proposals.clear();
    }
    for (at, proposal) in new_view.proposals.iter_mut().enumerate() {
        let sequence = SeqNum(stable.0 + 1 + at as u64);
        let null = PrePrepare { view, sequence, batch: Batch::null() };
        let digest = null.batch.digest();
        *proposal = (digest, power.sign(Content::PrePrepare(null)).signed.signature);
    }
    new_view
}

fn false_view_change(power: &mut Power<'_>, mut view_change: ViewChange) -> ViewChange {
    match power.rng.below(4) {
        0 => view_change.prepared.clear(),
        1 => view_change.checkpoint = None,
        2 => {
            for prepared in &mut view_change.prepared {
                prepared.digest = Batch::null().digest();
                prepared.view = View(view_change.view.0 - 1);
                prepared.pre_prepare = Signature([5; 64]);
            }
        }
        _ => {}
    }
    view_change
}
