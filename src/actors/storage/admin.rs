//! Admins' operations: who waits for one hears of its fate when that is final.

use actix::{Handler, Message};
use tokio::sync::oneshot;

use super::Storage;
use crate::crypto::HashKind;
use crate::ledger::{AdminOperation, Outcome, Rejection, Request};
use crate::types::{Hash, Height};

/// Admin operations that wait to be final; the next one is told to come back later.
const MAX_WAITING_ADMINS: usize = 256;

/// Announces that an admin's operation is about to be ordered; `answer` gets its fate when it is final.
#[derive(Debug, Message)]
#[rtype(result = "Awaited")]
pub struct AwaitAdmin {
    /// The operation.
    pub operation: AdminOperation,
    /// Takes the outcome.
    pub answer: oneshot::Sender<AdminOutcome>,
}

/// What becomes of an [`AwaitAdmin`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, actix::MessageResponse)]
pub enum Awaited {
    /// The answer comes when the operation is final: submit it.
    Waiting,
    /// The ledger would refuse it now: its signer is no admin, or it has this or a later operation
    /// of that admin already.
    Refused(Rejection),
    /// Too many wait.
    TooMany,
}

/// What became of an admin's operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminOutcome {
    /// Executed, in the block of that height.
    Executed {
        /// The block.
        height: Height,
        /// The operation's index in it.
        operation: u32,
    },
    /// Refused by the ledger.
    Rejected(Rejection),
}

impl Storage {
    pub(super) fn await_admin(&mut self, AwaitAdmin { operation, answer }: AwaitAdmin) -> Awaited {
        // Signed by somebody is not signed by an admin: what anybody could send in any number is not
        // even ordered.
        let Some(last) = self.state.admin_sequence(&operation.admin) else {
            return Awaited::Refused(Rejection::NotAnAdmin);
        };
        if operation.sequence <= last {
            return Awaited::Refused(Rejection::StaleAdminSequence { last });
        }
        self.admins.retain(|_, answers| {
            answers.retain(|answer| !answer.is_closed());
            !answers.is_empty()
        });
        if self.admins.values().map(Vec::len).sum::<usize>() >= MAX_WAITING_ADMINS {
            return Awaited::TooMany;
        }
        let digest = self.digest_of(&operation);
        self.admins.entry(digest).or_default().push(answer);
        Awaited::Waiting
    }
    /// The digest of this node's request to execute an operation.
    pub(super) fn digest_of(&self, operation: &AdminOperation) -> Hash {
        let request = Request::Admin { node: self.parts.node, operation: operation.clone() };
        HashKind::Request.hash(&crate::codec::encode(&request))
    }
}

impl Handler<AwaitAdmin> for Storage {
    type Result = Awaited;

    fn handle(&mut self, message: AwaitAdmin, _: &mut Self::Context) -> Awaited {
        self.await_admin(message)
    }
}

pub(super) fn admin_outcome(outcome: &Outcome) -> Option<AdminOutcome> {
    match outcome {
        Outcome::AdminExecuted { height, operation } => {
            Some(AdminOutcome::Executed { height: *height, operation: *operation })
        }
        Outcome::Rejected(rejection) => Some(AdminOutcome::Rejected(*rejection)),
        Outcome::Written { .. } | Outcome::AlreadyWritten { .. } | Outcome::DigestExecuted { .. } => None,
    }
}
