//! Blocks that other nodes certified while this one was behind: repeated on the state, checked against
//! their certificates, kept, and told to whoever waits for what is in them.
//!
//! The blocks of one message are written to the store at once, with their certificates: after a
//! crash some are there, in order and whole, and the others are fetched again.

use actix::{Handler, Message};

use super::{AdminOutcome, Awaiting, Storage, final_message};
use crate::actors::FinalMessage;
use crate::actors::consensus::BlocksSynced;
use crate::ledger::{self, Block, BlockError, CertifiedBlock, Operation, Outcome, WriteRequest};
use crate::store::CertifiedCommit;
use crate::types::Hash;

/// Applies blocks that others certified, in order from the next height.
#[derive(Debug, Message)]
#[rtype(result = "Applied")]
pub struct ApplyBlocks(pub Vec<CertifiedBlock>);

/// What became of fetched blocks. Those before a bad one count: a batch that waits for execution
/// may be among them and is not executed any more, so Consensus must hear of them in any case.
#[derive(Debug, Default, actix::MessageResponse)]
pub struct Applied {
    /// Of the last block that the ledger has now; none if none was applied.
    pub synced: Option<BlocksSynced>,
    /// Why the rest was not applied.
    pub error: Option<BlockError>,
}

impl Storage {
    pub(super) fn apply(&mut self, blocks: &[CertifiedBlock]) -> Applied {
        let (mut commits, mut outcomes, mut applied) = (Vec::new(), Vec::new(), Applied::default());
        let mut requests = Vec::new();
        let started = self.parts.clock.monotonic();
        for certified in blocks {
            if certified.block().header.height <= self.state.head().height {
                continue;
            }
            match self.state.apply(certified) {
                Ok(executed) => {
                    let head = self.state.head().clone();
                    commits.push(CertifiedCommit { head, certified, changes: executed.changes });
                    outcomes.push(executed.outcomes);
                }
                // The state is as it was: somebody sent the wrong block.
                Err(ledger::ApplyError::Block(error)) => {
                    applied.error = Some(error);
                    break;
                }
                // The state is not to be used any more.
                Err(error @ ledger::ApplyError::Diverged { .. }) => {
                    self.fail(error, "applying fetched blocks");
                    return Applied::default();
                }
            }
        }
        if let Err(error) = self.parts.store.commit_certified(&commits) {
            self.fail(error, "writing fetched blocks");
            return Applied::default();
        }
        let each = self.since(started) / u32::try_from(commits.len()).unwrap_or(u32::MAX).max(1);
        for (commit, outcomes) in commits.iter().zip(&outcomes) {
            let (block, certificate) = (commit.certified.block(), commit.certified.certificate());
            self.parts.tally.stored(true, each);
            self.parts.view.update_progress(|progress| progress.executed = certificate.content);
            self.note_applied(block, outcomes);
            self.certified(certificate.content.sequence);
            let timestamp = block.header.timestamp;
            requests.extend(outcomes.iter().map(|(digest, _)| *digest));
            requests.extend(self.admin_digests(block));
            applied.synced =
                Some(BlocksSynced { certificate: certificate.clone(), timestamp, requests: Vec::new() });
        }
        if let Some(synced) = &mut applied.synced {
            synced.requests = requests;
        }
        if self.failed { Applied::default() } else { applied }
    }

    /// What this node's requests to execute the admin operations of a block would be.
    fn admin_digests(&self, block: &Block) -> impl Iterator<Item = Hash> {
        block.operations.iter().filter_map(|operation| match operation {
            Operation::Admin(operation) => Some(self.digest_of(operation)),
            // Those are named by their outcomes.
            Operation::Write { .. } | Operation::Digest(_) => None,
        })
    }

    /// What blocks from other nodes tell this node's clients, admins and readers.
    pub(super) fn note_applied(&mut self, block: &Block, outcomes: &[(Hash, Outcome)]) {
        let mut awaiting = Awaiting::default();
        // One for each operation that is no admin's.
        let mut outcomes = outcomes.iter().map(|(_, outcome)| outcome);
        for (operation, index) in block.operations.iter().zip(0_u32..) {
            match operation {
                Operation::Admin(operation) => {
                    self.note_admin(&operation.action);
                    let digest = self.digest_of(operation);
                    let outcome = AdminOutcome::Executed { height: block.header.height, operation: index };
                    let waiting = self.admins.remove(&digest).unwrap_or_default();
                    awaiting.admins.extend(waiting.into_iter().map(|answer| (answer, outcome.clone())));
                }
                Operation::Write { request, .. } => {
                    awaiting.messages.extend(self.note_written(request, outcomes.next()));
                }
                Operation::Digest(digest) => {
                    let _digest_executed = outcomes.next();
                    self.note_digest(&digest.node);
                }
            }
        }
        self.awaiting.insert(block.header.sequence, awaiting);
    }

    /// What a write of a fetched block means for this node's client, if it is one of its messages
    /// that are not final.
    pub(super) fn note_written(
        &mut self,
        request: &WriteRequest,
        outcome: Option<&Outcome>,
    ) -> Option<FinalMessage> {
        let header = telemetry_of(request)?;
        if let Some(client) = self.parts.view.client(&header.header.client) {
            client.note_written(header.header.seq);
        }
        if request.node != self.parts.node {
            return None;
        }
        let verdict = self.verdict(outcome?)?;
        Some(final_message(&header, verdict)).filter(|message| self.parts.outlets.finals.is_pending(message))
    }
}

impl Handler<ApplyBlocks> for Storage {
    type Result = Applied;

    fn handle(&mut self, ApplyBlocks(blocks): ApplyBlocks, _: &mut Self::Context) -> Applied {
        if self.failed { Applied::default() } else { self.apply(&blocks) }
    }
}

/// The telemetry header of a write that is in a block.
fn telemetry_of(write: &WriteRequest) -> Option<ledger::Telemetry> {
    let header = crate::device::Header::decode(&write.header).ok()?;
    Some(ledger::Telemetry { header, hash: crate::device::Header::hash_of(&write.header) })
}
