//! View-change spammer: it wants the next view, and the one after it, and a far one, all the time,
//! whoever leads and whatever goes well.

use ledgermq::pbft::certificates::ViewChange;
use ledgermq::pbft::message::Content;
use ledgermq::types::View;

use super::{Adversary, Power};

#[derive(Default)]
pub struct ViewChangeSpammer {
    ticks: u64,
}

impl Adversary for ViewChangeSpammer {
    fn name(&self) -> &'static str {
        "view-change spammer"
    }

    fn on_tick(&mut self, power: &mut Power<'_>) {
        self.ticks += 1;
        if !self.ticks.is_multiple_of(4) {
            return;
        }
        let view = View(power.view.0 + power.rng.pick(&[1, 1, 1, 2, 3, 50]));
        let view_change = ViewChange { view, checkpoint: power.checkpoint.clone(), prepared: Vec::new() };
        let envelope = power.sign(Content::ViewChange(view_change));
        power.lie_to_all(&envelope);
    }
}
