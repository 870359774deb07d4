//! Policy: decides which items of a verified message go on the ledger, and hands them on.

use std::sync::Arc;

use actix::{Actor, Context, Handler, Message, Recipient, ResponseFuture};

use super::consensus::SubmitRequest;
use super::verifier::Admitted;
use super::{Feeder, FinalMessage, FinalVerdict};
use crate::ledger::request::{AdmittedMessage, RequestError, VerifiedRequest};
use crate::policy::WritePolicy;
use crate::types::NodeId;

/// Messages in the mailbox: a fraction of a second of ingest; the Verifier waits beyond it.
const MAILBOX: usize = 1_024;

/// Why a verified message could not be handed on.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The items that the policy picks do not fit into one request.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopping,
}

/// A verified message that is in the log.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), PolicyError>")]
pub struct ApplyPolicy(pub Arc<Admitted>);
