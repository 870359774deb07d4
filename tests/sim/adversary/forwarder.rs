//! Forwarder: gives its own requests to all but the primary, so that the others must forward them, and
//! forwards whatever it has seen, to everybody and again and again: what waits, what was executed, what
//! another node's client will only send (it sent it here, too), and what nobody ever admitted.

use std::sync::Arc;

use ledgermq::ledger::VerifiedRequest;
use ledgermq::types::NodeId;

use super::{Adversary, Power};
use crate::clients::{client, device_key, write_request};

/// How many requests it remembers.
const REMEMBERED: usize = 200;

/// How many it hands out each time.
const BURST: usize = 20;

/// How often it can be bothered.
const ROUNDS: u64 = 60;

/// The client's numbers of what it makes up, above all that are asked for.
const FIRST_REQUEST: u64 = 100_000;

#[derive(Default)]
pub struct Forwarder {
    rounds: u64,
    primary: usize,
    seen: Vec<Arc<VerifiedRequest>>,
}

impl Forwarder {
    /// In the name of a node that it knows: what its client may send next, or what nobody sent.
    fn made_up(&self, power: &mut Power<'_>) -> Option<Arc<VerifiedRequest>> {
        let known = self.seen.get(power.rng.index(self.seen.len().max(1)))?;
        let (node, header) = (known.node(), known.telemetry()?.header.clone());
        let honest = (0..power.n).find(|at| client(*at) == header.client)?;
        Some(if power.rng.percent(50) {
            let number = header.seq.0 + 1 + power.rng.below(3);
            write_request(power.network, node, header.client, number, &device_key(honest))
        } else {
            self.useless(power, node)
        })
    }

    fn useless(&self, power: &mut Power<'_>, node: NodeId) -> Arc<VerifiedRequest> {
        let number = FIRST_REQUEST + power.rng.below(1_000_000);
        write_request(power.network, node, client(power.me), number, &device_key(power.me + 60))
    }
}

impl Adversary for Forwarder {
    fn name(&self) -> &'static str {
        "forwarder"
    }

    fn takes_request(&mut self, request: &VerifiedRequest) -> bool {
        if self.seen.len() == REMEMBERED {
            self.seen.remove(0);
        }
        self.seen.push(Arc::new(request.clone()));
        true
    }

    fn forwards_requests(&mut self, to: usize) -> bool {
        to != self.primary
    }

    fn on_tick(&mut self, power: &mut Power<'_>) {
        self.primary = power.view.0 as usize % power.n;
        self.rounds += 1;
        if self.rounds > ROUNDS {
            return;
        }
        for _ in 0..BURST {
            let request = match power.rng.below(3) {
                0 => self.made_up(power),
                1 => Some(self.useless(power, power.node_id())),
                _ => self.seen.get(power.rng.index(self.seen.len().max(1))).cloned(),
            };
            let to = if power.rng.percent(70) { self.primary } else { power.rng.index(power.n) };
            if let Some(request) = request.filter(|_| to != power.me) {
                power.forward(to, request);
            }
        }
    }
}
