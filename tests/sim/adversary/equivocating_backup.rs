//! Equivocating backup: it says yes to every proposal and vote that it hears of, whatever else it
//! said, and tells some that it voted for what nobody proposed.

use ledgermq::pbft::message::{Commit, Content, Prepare};
use ledgermq::pbft::{Envelope, Signed};
use ledgermq::types::{Hash, SeqNum, View};

use super::{Adversary, Power};

pub struct EquivocatingBackup;

impl Adversary for EquivocatingBackup {
    fn name(&self) -> &'static str {
        "equivocating backup"
    }

    fn on_send(&mut self, power: &mut Power<'_>, envelope: Envelope) {
        let nonsense = Hash([7; 32]);
        let false_twin = match envelope.signed.content {
            Content::Prepare(prepare) => Some(Content::Prepare(Prepare { digest: nonsense, ..prepare })),
            Content::Commit(commit) => Some(Content::Commit(Commit { digest: nonsense, ..commit })),
            _ => None,
        };
        for to in power.others() {
            match &false_twin {
                Some(content) if power.rng.percent(40) => {
                    let envelope = power.sign(content.clone());
                    power.lie(to, &envelope);
                }
                _ => power.send(to, &envelope),
            }
        }
    }

    fn on_hear(&mut self, power: &mut Power<'_>, signed: &Signed) -> bool {
        match &signed.content {
            Content::PrePrepare(pre_prepare) => {
                vote(power, signed, pre_prepare.view, pre_prepare.sequence, pre_prepare.batch.digest());
            }
            Content::Prepare(prepare) => vote(power, signed, prepare.view, prepare.sequence, prepare.digest),
            _ => {}
        }
        true
    }
}

fn vote(power: &mut Power<'_>, heard: &Signed, view: View, sequence: SeqNum, digest: Hash) {
    if heard.sender == power.node_id() || power.rng.percent(50) {
        return;
    }
    let to = power.others()[power.rng.index(power.n - 1)];
    let prepare = power.sign(Content::Prepare(Prepare { view, sequence, digest }));
    let commit = power.sign(Content::Commit(Commit { view, sequence, digest }));
    power.lie(to, &prepare);
    power.lie(to, &commit);
}
