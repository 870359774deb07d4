//! Bounded memory: whatever the others send, a replica holds no more than its limits allow.

use ledgermq::pbft::settings::WINDOW;

use super::{Broken, Property, Seen, World, ensure};

#[derive(Default)]
pub struct BoundedMemory;

/// The pool's limit for each node in the simulator's settings.
pub const POOL_MAX_REQUESTS: usize = 40;

/// What may come back from batches that a change of view dissolved, in runs as short as ours.
const REOPENED: usize = 100;

/// The same from each batch that earlier views left: so many requests it has at most in a storm.
const LARGEST_BATCH: usize = 16;

/// What one node forwarded and is not ordered, and what is ordered once more for it.
const FORWARDED: usize = 1_024 + 64;

impl Property for BoundedMemory {
    fn name(&self) -> &'static str {
        "bounded memory"
    }

    fn check(&mut self, world: &World, at: usize, seen: &Seen) -> Result<(), Broken> {
        let Seen::Stepped(step) = seen else { return Ok(()) };
        if world.faulty.contains(&at) {
            return Ok(());
        }
        let held = &step.1;
        let (n, window) = (world.n, WINDOW as usize);
        let at_most = |what: &str, count: usize, limit: usize| -> Result<(), Broken> {
            ensure!(count <= limit, "replica {at} holds {count} {what}, more than {limit}");
            Ok(())
        };
        at_most("slots", held.slots, window)?;
        // A faulty primary can leave one batch behind for each number and view that it led.
        at_most("archived batches", held.archived, window * (1 + step.0.view.0 as usize))?;
        at_most("messages about views", held.views, n * (2 + 1 + n))?;
        at_most("votes", held.votes, 2 * window * n)?;
        at_most("checkpoints", held.checkpoints, (2 * window + 1) * n)?;
        at_most("claims", held.claims, n)?;
        let reopened = REOPENED + LARGEST_BATCH * held.archived;
        at_most("pending requests of one node", held.pending, POOL_MAX_REQUESTS + reopened)?;
        at_most("requests that one node forwarded", held.forwarded, FORWARDED + reopened)?;
        at_most("requests to send", held.outbox, POOL_MAX_REQUESTS + REOPENED)?;
        let far = held.highest_slot.0 > step.0.stable.0 + WINDOW;
        ensure!(!far, "replica {at} keeps votes for {}, above its high watermark", held.highest_slot);
        Ok(())
    }
}
