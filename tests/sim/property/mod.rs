//! What must always hold, one file each. Every property sees everything that happens, after every
//! event, and says what is wrong.

mod agreement;
mod bounded_memory;
mod checkpoint_stability;
mod durable_before_sent;
mod evidence;
mod exactly_once;
mod liveness;
mod registered_clients;
mod total_order;
mod views;

use std::collections::BTreeSet;
use std::sync::Arc;

use ledgermq::ledger::{Block, Certificate, CheckpointContent, ReplicaSet};
use ledgermq::pbft::{Evidence, Footprint, Signed, Status};
use ledgermq::types::{Hash, NetworkId, NodeId, PublicKey, SeqNum};

pub use bounded_memory::POOL_MAX_REQUESTS;
pub use durable_before_sent::{Promise, promise};
pub use liveness::{LIVENESS_LIMIT, Liveness};

/// Something that happened at a replica.
#[derive(Debug, Clone)]
pub enum Seen {
    /// It starts a new life from this state.
    Started(CheckpointContent),
    /// These entries of its log are on its disk now.
    Synced(Vec<Hash>),
    /// It sends this own message, for the first time or again.
    Sent(Arc<Signed>),
    /// It executed this batch.
    Executed { sequence: SeqNum, batch: Hash },
    /// A block came of what it executed or fetched.
    Block(Arc<Block>),
    /// Its state is there now, by execution or by fetched blocks.
    Reached(CheckpointContent),
    /// It passed over batches that changed nothing.
    Skipped(CheckpointContent),
    /// It has this certificate.
    Certified(Certificate),
    /// It says that another one is proven faulty.
    Evidence(Box<Evidence>),
    /// A step ended like this.
    Stepped(Box<(Status, Footprint)>),
}

/// What the properties know beforehand. Quorums are counted here anew, not with the code under test.
#[derive(Debug, Clone)]
pub struct World {
    pub network: NetworkId,
    pub replicas: ReplicaSet,
    pub admin: PublicKey,
    pub n: usize,
    pub f: usize,
    pub quorum: usize,
    /// Which replica each instance is; two may be the same one.
    pub identities: Vec<usize>,
    /// Instances that are Byzantine: what they do obliges nobody.
    pub faulty: BTreeSet<usize>,
}

impl World {
    pub fn new(network: NetworkId, replicas: ReplicaSet, admin: PublicKey) -> Self {
        let n = replicas.n();
        let f = (n - 1) / 3;
        // The smallest q with 2q > n + f: two quorums share a correct replica.
        let quorum = (1..=n).find(|q| 2 * q > n + f).unwrap();
        let identities = (0..n).collect();
        Self { network, replicas, admin, n, f, quorum, identities, faulty: BTreeSet::new() }
    }

    pub fn node_id(&self, at: usize) -> NodeId {
        self.replicas.members()[self.identities[at]]
    }

    /// How many replicas are Byzantine, in however many instances.
    pub fn faulty_replicas(&self) -> usize {
        (0..self.n).filter(|identity| self.is_faulty_replica(*identity)).count()
    }

    /// Whether the replica of that number, in any of its instances, is Byzantine.
    pub fn is_faulty_replica(&self, identity: usize) -> bool {
        self.faulty.iter().any(|at| self.identities[*at] == identity)
    }
}

/// Why a property does not hold.
pub type Broken = String;

/// One property.
pub trait Property {
    fn name(&self) -> &'static str;

    /// Instance `at`, maybe a faulty one, did something.
    ///
    /// # Errors
    /// What is wrong with that.
    fn check(&mut self, world: &World, at: usize, seen: &Seen) -> Result<(), Broken>;

    /// Instance `at` lost its ledger and begins anew.
    fn wiped(&mut self, _at: usize) {}
}

/// All of them.
pub fn all() -> Vec<Box<dyn Property>> {
    vec![
        Box::<agreement::Agreement>::default(),
        Box::<total_order::TotalOrder>::default(),
        Box::<registered_clients::RegisteredClients>::default(),
        Box::<exactly_once::ExactlyOnce>::default(),
        Box::<durable_before_sent::DurableBeforeSent>::default(),
        Box::<checkpoint_stability::CheckpointStability>::default(),
        Box::<bounded_memory::BoundedMemory>::default(),
        Box::<views::Views>::default(),
        Box::<evidence::Evidence>::default(),
    ]
}

/// `Err` with a text unless a condition holds.
macro_rules! ensure {
    ($holds:expr, $($text:tt)*) => {
        if !$holds {
            return Err(format!($($text)*));
        }
    };
}
use ensure;
