//! Silent: it takes part in its thoughts only.

use super::{Adversary, Power};
use ledgermq::pbft::Envelope;

pub struct Silent;

impl Adversary for Silent {
    fn name(&self) -> &'static str {
        "silent"
    }

    fn on_send(&mut self, _: &mut Power<'_>, _: Envelope) {}

    fn forwards_requests(&mut self, _: usize) -> bool {
        false
    }
}
