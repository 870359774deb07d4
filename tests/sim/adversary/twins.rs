//! Twins: two correct programs that share one key, each unaware of the other, as if someone had
//! copied a node's key. Either talks to its own half of the others, so each half sees a replica
//! that is consistent in itself.

use crate::cluster::Cluster;

/// Doubles replica `of`. Gives the number of its twin.
pub fn install(cluster: &mut Cluster, of: usize) -> usize {
    let twin = cluster.add_twin(of);
    for other in (0..cluster.n()).filter(|other| *other != of) {
        let stranger = if cluster.rng.percent(50) { of } else { twin };
        cluster.links.tear(stranger, other);
    }
    cluster.links.tear(of, twin);
    cluster.links.tear(twin, of);
    twin
}
