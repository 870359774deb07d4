//! How much a replica holds: what the limits of `docs/CONSENSUS.md` bound.

use crate::pbft::pool::Lane;
use crate::pbft::replica::Replica;
use crate::pbft::witness::Witness;
use crate::types::{NodeId, SeqNum};

/// Counts of what a replica keeps in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Slots of the log.
    pub slots: usize,
    /// The number of the highest of them.
    pub highest_slot: SeqNum,
    /// Batches that earlier views left, and those that are listened for in the one given up.
    pub archived: usize,
    /// VIEW-CHANGEs and NEW-VIEWs of others, and replicas that wait to vote again.
    pub views: usize,
    /// PREPAREs and COMMITs in them.
    pub votes: usize,
    /// CHECKPOINTs that are collected.
    pub checkpoints: usize,
    /// Replicas whose last claim is remembered.
    pub claims: usize,
    /// Requests that are not ordered, of the node that has most of them.
    pub pending: usize,
    /// The same of those that came from another one than they name, by who forwarded them.
    pub forwarded: usize,
    /// Own requests that are to be sent again.
    pub outbox: usize,
}

impl Replica {
    /// How much the replica holds.
    pub fn footprint(&self) -> Footprint {
        let votes = self.log.iter().map(|(_, slot)| slot.prepares.len() + slot.commits.len());
        let (checkpoints, claims) = self.checkpoints.held();
        let longest = |lane: fn(NodeId) -> Lane| {
            let members = self.settings.replicas.members().iter();
            members.map(|node| self.pool.pending_in(&lane(*node)).0).max().unwrap_or_default()
        };
        Footprint {
            slots: self.log.iter().count(),
            highest_slot: self.log.iter().last().map(|(sequence, _)| sequence).unwrap_or_default(),
            archived: self.archive.iter().count() + self.witness.as_ref().map_or(0, Witness::len),
            views: self.views.held() + self.recovering.len(),
            votes: votes.sum(),
            checkpoints,
            claims,
            pending: longest(Lane::Of),
            forwarded: longest(Lane::ForwardedBy),
            outbox: self.outbox.len(),
        }
    }
}
