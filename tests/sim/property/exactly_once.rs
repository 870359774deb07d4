//! Exactly-once execution: no item of a message is written twice, in whichever batches and through
//! whichever nodes its requests came. (That it is written at least once is liveness.)

use std::collections::BTreeSet;

use ledgermq::device;
use ledgermq::ledger::Operation;
use ledgermq::types::{ClientId, Height, MessageSeq};

use super::{Broken, Property, Seen, World, ensure};

#[derive(Default)]
pub struct ExactlyOnce {
    written: BTreeSet<(ClientId, MessageSeq, u32)>,
    /// All blocks up to here were looked at; agreement is another property.
    height: Height,
}

impl Property for ExactlyOnce {
    fn name(&self) -> &'static str {
        "exactly once"
    }

    fn check(&mut self, world: &World, at: usize, seen: &Seen) -> Result<(), Broken> {
        let Seen::Block(block) = seen else { return Ok(()) };
        if world.faulty.contains(&at) || block.header.height != self.height.next() {
            return Ok(());
        }
        self.height = block.header.height;
        for operation in &block.operations {
            let Operation::Write { request, written } = operation else { continue };
            let header = device::Header::decode(&request.header).unwrap();
            for item in written {
                let (client, seq) = (header.client.clone(), header.seq);
                let first = self.written.insert((client, seq, *item));
                ensure!(first, "item {item} of {} {seq} is written twice", header.client);
            }
        }
        Ok(())
    }
}
