//! Evidence names only the guilty: whatever a correct replica calls evidence proves a fault to anybody
//! who has the keys, also after a way over the wire, and no correct replica is ever accused. Each
//! fault is told once in the life of a replica.

use std::collections::{BTreeMap, BTreeSet};

use ledgermq::ledger::ReplicaSetKeys;
use ledgermq::pbft::evidence::{Evidence as Piece, Fault};

use super::{Broken, Property, Seen, World, ensure};

#[derive(Default)]
pub struct Evidence {
    keys: Option<ReplicaSetKeys>,
    /// What each instance has told since it started.
    told: BTreeMap<usize, BTreeSet<Fault>>,
}

impl Property for Evidence {
    fn name(&self) -> &'static str {
        "evidence"
    }

    fn check(&mut self, world: &World, at: usize, seen: &Seen) -> Result<(), Broken> {
        if let Seen::Started(_) = seen {
            self.told.remove(&at);
        }
        let Seen::Evidence(evidence) = seen else { return Ok(()) };
        if world.faulty.contains(&at) {
            return Ok(());
        }
        let keys = self.keys.get_or_insert_with(|| ReplicaSetKeys::new(&world.replicas).unwrap());
        let bytes = evidence.encode();
        let again =
            Piece::decode(&bytes).map_err(|error| format!("evidence that cannot be read: {error}"))?;
        let proven = again.verify(&world.network, keys);
        let proven =
            proven.map_err(|error| format!("evidence that proves nothing: {error}; {evidence:?}"))?;
        ensure!(proven.bytes() == bytes, "evidence that changes on its way");
        let accused = usize::from(proven.replica);
        ensure!(world.is_faulty_replica(accused), "replica {accused} is correct and accused: {evidence:?}");
        ensure!(self.told.entry(at).or_default().insert(proven.fault), "told twice: {}", proven.fault);
        Ok(())
    }
}
