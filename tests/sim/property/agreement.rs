//! Agreement: one batch for each sequence number, one result, one block for each height, and no
//! two digests prepared in one view (Castro and Liskov 1999, section 4.2); nothing is executed
//! that no quorum committed to.

use std::collections::{BTreeMap, BTreeSet};

use ledgermq::ledger::CheckpointContent;
use ledgermq::pbft::message::Content;
use ledgermq::types::{Hash, Height, SeqNum, View};

use super::{Broken, Property, Seen, World, ensure};

#[derive(Default)]
pub struct Agreement {
    // What the first correct replica that got there has; all others must have the same.
    batches: BTreeMap<SeqNum, Hash>,
    contents: BTreeMap<SeqNum, CheckpointContent>,
    blocks: BTreeMap<Height, Hash>,
    /// What a correct replica saw prepared: it sent COMMIT for it.
    prepared: BTreeMap<(View, SeqNum), Hash>,
    /// Who sent COMMIT, faulty ones included.
    commits: BTreeMap<(SeqNum, Hash, View), BTreeSet<usize>>,
}

impl Property for Agreement {
    fn name(&self) -> &'static str {
        "agreement"
    }

    fn check(&mut self, world: &World, at: usize, seen: &Seen) -> Result<(), Broken> {
        let correct = !world.faulty.contains(&at);
        match seen {
            Seen::Sent(signed) => self.sent(world, at, &signed.content, correct),
            Seen::Executed { sequence, batch } if correct => {
                let agreed = *self.batches.entry(*sequence).or_insert(*batch) == *batch;
                ensure!(agreed, "replicas disagree on batch {sequence}");
                let committed = self.is_committed(world, at, *sequence, *batch);
                ensure!(committed, "replica {at} executed {sequence} without a quorum of COMMITs");
                Ok(())
            }
            Seen::Reached(content) | Seen::Skipped(content) if correct => {
                let agreed = *self.contents.entry(content.sequence).or_insert(*content) == *content;
                ensure!(agreed, "replicas disagree on the result of {}", content.sequence);
                Ok(())
            }
            Seen::Block(block) if correct => {
                let (height, hash) = (block.header.height, block.header.hash());
                let agreed = *self.blocks.entry(height).or_insert(hash) == hash;
                ensure!(agreed, "replicas disagree on block {height}");
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

impl Agreement {
    /// Whether a quorum sent COMMIT in one view. The own one counts from the moment when it is in the
    /// log: a crash may come before it is sent, and what it completes is executed after the restart.
    fn is_committed(&self, world: &World, at: usize, sequence: SeqNum, batch: Hash) -> bool {
        let own = world.identities[at];
        let votes = |commits: &BTreeSet<usize>| commits.len() + usize::from(!commits.contains(&own));
        let mut views = self.commits.range((sequence, batch, View(0))..=(sequence, batch, View(u64::MAX)));
        world.n == 1 || views.any(|(_, commits)| votes(commits) >= world.quorum)
    }

    fn sent(&mut self, world: &World, at: usize, content: &Content, correct: bool) -> Result<(), Broken> {
        let Content::Commit(commit) = content else { return Ok(()) };
        let (view, sequence, digest) = (commit.view, commit.sequence, commit.digest);
        let commits = self.commits.entry((sequence, digest, view)).or_default();
        commits.insert(world.identities[at]);
        if correct {
            let same = *self.prepared.entry((view, sequence)).or_insert(digest) == digest;
            ensure!(same, "two batches are prepared for {sequence} in view {view}");
        }
        Ok(())
    }
}
