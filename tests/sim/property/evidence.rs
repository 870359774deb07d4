//! Evidence names only the guilty: both messages are signed by the one that is accused, they differ
//! and are about the same thing, and no correct replica is ever accused.

use ledgermq::ledger::ReplicaSetKeys;

use super::{Broken, Property, Seen, World, ensure};

#[derive(Default)]
pub struct Evidence {
    keys: Option<ReplicaSetKeys>,
}

impl Property for Evidence {
    fn name(&self) -> &'static str {
        "evidence"
    }

    fn check(&mut self, world: &World, at: usize, seen: &Seen) -> Result<(), Broken> {
        let Seen::Evidence(pair) = seen else { return Ok(()) };
        if world.faulty.contains(&at) {
            return Ok(());
        }
        let (first, second) = &**pair;
        let keys = self.keys.get_or_insert_with(|| ReplicaSetKeys::new(&world.replicas).unwrap());
        for message in [first, second] {
            ensure!(message.clone().verify(keys, &world.network).is_ok(), "evidence that proves nothing");
        }
        let same_sender = first.sender == second.sender;
        ensure!(same_sender && first.content != second.content, "evidence of no contradiction");
        let accused = world.replicas.index_of(&first.sender).unwrap();
        ensure!(
            world.is_faulty_replica(accused),
            "replica {accused} is correct and accused: {first:?} {second:?}"
        );
        Ok(())
    }
}
