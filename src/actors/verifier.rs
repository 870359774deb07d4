//! Verifier: signature, seq, body, items, log: what makes a message admitted.
//!
//! ```text
//! VerifyMessage ─▶ [worker: signature ─▶ seq ─▶ decompress, JSON, items root, clock]
//!               ─▶ quota ─▶ admission (new?) ─▶ Policy, which logs it ─▶ synced ─▶ Accepted (PUBACK)
//! ```
//!
//! Signature checks are what a node's processor time goes into (about 40 µs each), so as many run at
//! once as there are cores and one. What takes a fraction of a millisecond runs where the runtime has
//! room, since to wake another thread for it costs as much again; what may take longer runs on the
//! blocking pool. Requests of other nodes are checked by the same workers ([`RequestVerifier`]).

mod requests;

use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, Context, Handler, Message, Recipient, ResponseFuture};

use requests::LIGHT_BYTES;
pub use requests::{RequestVerifier, Workers};

use super::accepted::{Admitted, Ahead, LoggedMessage, Share};
use super::admission::{Admission, Place, Standing};
use super::bases::Bases;
use super::fatal::Vital;
use super::history::{Backlog, HistoryFeed, Place as HistoryPlace};
use super::policy::{AcceptMessage, RepeatDecision};
use super::storage::{LookUpMessage, TakeUp};
use super::view::LedgerView;
use super::{Fatal, FinalMessage, FinalVerdict};
use crate::clock::SharedClock;
use crate::crypto::VerifyingKey;
use crate::device::codes::ErrorCode;
use crate::device::telemetry::{Content, Limits, Message as Telemetry, Reference, TelemetryError};
use crate::ledger::MAX_REQUEST_BYTES;
use crate::metrics::StageTime;
use crate::policy::Decision;
use crate::store::ledger::AdmissionRecord;
use crate::store::log::Position;
use crate::store::{Log, LogError};
use crate::types::{ClientId, NetworkId, Stream, Timestamp};

/// Messages in the mailbox: those of as many connections; Ingress's senders wait beyond it.
const MAILBOX: usize = 1_024;

/// A write request besides its items: keys, header, signature, lengths, and a Merkle proof.
const REQUEST_OVERHEAD: usize = 4_096;

/// An item in a write request besides its bytes: index and length.
const ITEM_OVERHEAD: usize = 12;

/// Verifies a message that came on a client's topic.
#[derive(Debug, Message)]
#[rtype(result = "Verification")]
pub struct VerifyMessage {
    /// The client, by the topic.
    pub client: ClientId,
    /// Its registered key.
    pub key: VerifyingKey,
    /// The stream, by the topic.
    pub stream: Stream,
    /// The content, decrypted.
    pub content: Content,
    /// When it arrived, on the monotonic clock.
    pub received: Duration,
}

/// Takes up an accepted message that the log has and whose fate is not known.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ResumeMessage {
    /// Where it stands in the log.
    pub position: Position,
    /// The message.
    pub message: LoggedMessage,
    /// What was decided of it.
    pub decision: Decision,
}

/// What became of a message that was to be verified.
#[derive(Debug, actix::MessageResponse)]
pub enum Verification {
    /// In the log, and on its way.
    Accepted,
    /// Accepted before, and still on its way.
    Pending,
    /// Accepted before, and this was its fate.
    Known(FinalMessage),
    /// Not accepted.
    Refused {
        /// Why.
        code: ErrorCode,
        /// The same for a person.
        detail: String,
        /// What could be read of it.
        reference: Reference,
        /// Whether the client is proven to have sent it.
        is_signed: bool,
    },
    /// The node cannot take it now.
    Unavailable,
}

/// What the Verifier works with.
#[derive(Clone)]
pub struct VerifierParts {
    /// The ledger.
    pub network: NetworkId,
    /// Limits of messages.
    pub limits: Limits,
    /// What was accepted.
    pub admission: Arc<Admission>,
    /// Where accepted messages go first.
    pub log: Log,
    /// The policies in force, for the quota of each client.
    pub view: Arc<LedgerView>,
    /// What data items there are.
    pub bases: Arc<Bases>,
    /// The next in line.
    pub policy: (Recipient<AcceptMessage>, Recipient<RepeatDecision>),
    /// Knows what became of messages that were final before a restart.
    pub storage: Recipient<LookUpMessage>,
    /// Knows what became of those that were not.
    pub take_up: Recipient<TakeUp>,
    /// The workers.
    pub workers: Workers,
    /// Room ahead.
    pub ahead: Ahead,
    /// Room for what is not in the history, and the way there.
    pub history: (Backlog, HistoryFeed),
    /// How long a message may wait before it is accepted; what is accepted is finished.
    pub patience: Duration,
    /// The clock.
    pub clock: SharedClock,
    /// Counts the time of checks.
    pub time: StageTime,
    /// Stops the node.
    pub fatal: Fatal,
}

/// The actor; see the module.
pub struct Verifier {
    parts: VerifierParts,
    _vital: Vital,
}

impl Verifier {
    /// The actor with its parts.
    pub fn new(parts: VerifierParts) -> Self {
        let _vital = parts.fatal.vital("Verifier");
        Self { parts, _vital }
    }
}

/// What a worker found.
enum Judged {
    Admit(Box<Telemetry>, LoggedMessage),
    Standing(Standing, Box<FinalMessage>),
    Refused(TelemetryError, Reference, bool),
}

impl VerifierParts {
    async fn verify(self, verify: VerifyMessage) -> Verification {
        let received = verify.received;
        let (parts, now) = (self.clone(), self.clock.now());
        // A client that was disconnected comes back with the same message: who waits too long for
        // a worker must leave the queue, or it would grow with every try.
        let is_light = verify.content.unpacked_len().is_some_and(|bytes| bytes <= LIGHT_BYTES);
        let judged = self
            .workers
            .run_here_or_there(is_light, move || parts.time.clone().sampled(|| parts.judge(verify, now)));
        let Ok(Some(judged)) = tokio::time::timeout(self.patience, judged).await else {
            return Verification::Unavailable;
        };
        match judged {
            Judged::Admit(message, logged) => self.admit(*message, logged, received).await,
            Judged::Standing(standing, message) => self.repeat(standing, *message).await,
            Judged::Refused(error, reference, is_signed) => {
                Verification::Refused { code: error.code(), detail: error.to_string(), reference, is_signed }
            }
        }
    }

    /// Everything that needs no waiting, in the order of PROTOCOL.md section 6.
    fn judge(&self, verify: VerifyMessage, now: Timestamp) -> Judged {
        let VerifyMessage { client, key, stream, content, .. } = verify;
        let reference = content.reference();
        let content_bytes = content.encode();
        let verified = match content.verify(&key, &self.network, &client, &stream) {
            Ok(verified) => verified,
            Err(error) => {
                let is_signed = error != TelemetryError::BadSignature;
                return Judged::Refused(error, reference, is_signed);
            }
        };
        let (header, hash) = (verified.header(), verified.signed().hash());
        let standing = self.admission.judge(&client, header.seq, &hash);
        if standing != Standing::New {
            let message = FinalMessage {
                client,
                stream,
                seq: header.seq,
                header: hash,
                items: header.count,
                verdict: FinalVerdict::NotWritten,
            };
            return Judged::Standing(standing, Box::new(message));
        }
        let reference = verified.reference();
        match verified.check_body(&self.limits, now) {
            Ok(message) => {
                let key = key.public();
                let logged = LoggedMessage { client, stream, key, content: content_bytes };
                Judged::Admit(Box::new(message), logged)
            }
            Err(error) => Judged::Refused(error, reference, true),
        }
    }

    async fn admit(self, message: Telemetry, logged: LoggedMessage, received: Duration) -> Verification {
        let request_bytes: usize = message.item_bytes().iter().map(|item| item.len() + ITEM_OVERHEAD).sum();
        if request_bytes + REQUEST_OVERHEAD > MAX_REQUEST_BYTES {
            return Verification::Refused {
                code: ErrorCode::TooLarge,
                detail: format!(
                    "the items take {request_bytes} bytes on the ledger, {MAX_REQUEST_BYTES} are allowed; send fewer at once"
                ),
                reference: message.reference(),
                is_signed: true,
            };
        }
        match self.bases.check_quota(&self.view.policies(), logged.stream.as_str(), message.items()) {
            Ok(Ok(())) => {}
            Ok(Err(too_many)) => {
                return Verification::Refused {
                    code: ErrorCode::TooManyItems,
                    detail: too_many.to_string(),
                    reference: message.reference(),
                    is_signed: true,
                };
            }
            Err(error) => {
                self.fatal.stop(anyhow::Error::new(error).context("counting a client's data items"));
                return Verification::Unavailable;
            }
        }
        let room = tokio::time::timeout(self.patience, self.room(&message, request_bytes));
        let Ok(Some((place, share, history))) = room.await else {
            return Verification::Unavailable;
        };
        let header = message.header();
        let hash = message.signed().hash();
        let admission = AdmissionRecord {
            client: header.client.clone(),
            seq: header.seq,
            header: hash,
            items: header.count,
        };
        let first_needed = self.log.last().next();
        let standing = self.admission.admit(&admission, first_needed, received, place);
        if standing != Standing::New {
            // Another copy of it was faster.
            let AdmissionRecord { client, seq, header: hash, items } = admission;
            let (stream, verdict) = (header.stream.clone(), FinalVerdict::NotWritten);
            return self
                .repeat(standing, FinalMessage { client, stream, seq, header: hash, items, verdict })
                .await;
        }
        // From here on the message is this node's to finish, even if its client goes away.
        history.pin(first_needed);
        let (message, history) = (Arc::new(message), Arc::new(history));
        let admitted = Arc::new(Admitted::new(message, history, Some(share)));
        self.log_and_hand_on(admitted, logged).await
    }

    /// Waits for a place among the messages that are not final, and among those that are not in the
    /// history, for room ahead, and for room among the items that are not indexed.
    async fn room(&self, message: &Telemetry, bytes: usize) -> Option<(Place, Share, HistoryPlace)> {
        self.bases.room().await;
        let history = self.history.0.place(message).await?;
        let place = self.admission.place().await?;
        Some((place, self.ahead.share(bytes).await?, history))
    }

    async fn log_and_hand_on(self, admitted: Arc<Admitted>, logged: LoggedMessage) -> Verification {
        let Ok(Some(position)) = self.policy.0.send(AcceptMessage { admitted, logged }).await else {
            return Verification::Unavailable;
        };
        match self.log.synced(position).await {
            Ok(()) => Verification::Accepted,
            Err(error) => self.log_failed(error),
        }
    }

    fn log_failed(&self, error: LogError) -> Verification {
        self.fatal.stop(anyhow::Error::new(error).context("writing the log"));
        Verification::Unavailable
    }

    /// A message that was sent again while it is on its way: what PUBACK says must be true, too.
    async fn pending(&self, logged: Option<Position>) -> Verification {
        let Some(position) = logged else { return Verification::Unavailable };
        match self.log.synced(position).await {
            Ok(()) => Verification::Pending,
            Err(error) => self.log_failed(error),
        }
    }

    /// The answer to a message that is not new.
    pub(super) async fn repeat(&self, standing: Standing, mut message: FinalMessage) -> Verification {
        let (code, detail) = match standing {
            Standing::Pending { logged } => return self.pending(logged).await,
            Standing::New => return Verification::Unavailable,
            Standing::Final(verdict) => {
                // Final may be before on disk, and the PUBACK of this copy says on disk.
                if let Err(error) = self.log.synced(self.log.last()).await {
                    return self.log_failed(error);
                }
                message.verdict = verdict;
                return Verification::Known(message);
            }
            Standing::Settled => {
                let (client, seq, header) = (message.client.clone(), message.seq, message.header);
                return match self.storage.send(LookUpMessage { client, seq, header }).await {
                    Ok(Some(verdict)) => {
                        message.verdict = verdict;
                        Verification::Known(message)
                    }
                    Ok(None) => Verification::Pending,
                    Err(_) => Verification::Unavailable,
                };
            }
            Standing::Reused => {
                (ErrorCode::SeqReused, "this seq was used for another message; take the next one")
            }
            Standing::TooOld => (ErrorCode::SeqTooOld, "this seq is more than 256 below the highest"),
        };
        let reference = Reference { seq: Some(message.seq), header: Some(message.header) };
        Verification::Refused { code, detail: detail.to_owned(), reference, is_signed: true }
    }

    /// Takes up a message of the own log, which is pending again; its client has its PUBACK.
    async fn resume(self, resume: ResumeMessage) {
        let ResumeMessage { position, message: logged, decision } = resume;
        let (client, network) = (logged.client.clone(), self.network);
        let verified = self.workers.run(move || logged.verify(&network)).await;
        let message = match verified {
            Some(Ok(message)) => message,
            Some(Err(error)) => {
                // Its client is never told `success` and keeps its copy; the log keeps this one.
                tracing::error!(%client, position = position.0, %error, "an accepted message of the log does not verify");
                return;
            }
            None => return,
        };
        let Some(history) = self.history.0.place(&message).await else { return };
        history.pin(position);
        let (message, history) = (Arc::new(message), Arc::new(history));
        self.history.1.decided(Arc::clone(&message), decision.bytes(), position, Arc::clone(&history));
        let header = message.header();
        let known = TakeUp(FinalMessage {
            client,
            stream: header.stream.clone(),
            seq: header.seq,
            header: message.signed().hash(),
            items: header.count,
            verdict: FinalVerdict::NotWritten,
        });
        if let Ok(false) = self.take_up.send(known).await {
            let bytes = message.item_bytes().iter().map(Vec::len).sum();
            let admitted = Arc::new(Admitted::new(message, history, self.ahead.share(bytes).await));
            let _stopping = self.policy.1.send(RepeatDecision { admitted, decision }).await;
        }
    }
}

impl Actor for Verifier {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
    }
}

impl Handler<VerifyMessage> for Verifier {
    type Result = ResponseFuture<Verification>;

    fn handle(&mut self, message: VerifyMessage, _: &mut Self::Context) -> Self::Result {
        // A task of its own: on any thread, and not dropped with the future that waits for it. Bounded by
        // the patience until the message is accepted, and by the places from then on.
        let verified = tokio::spawn(self.parts.clone().verify(message));
        Box::pin(async move { verified.await.unwrap_or(Verification::Unavailable) })
    }
}

impl Handler<ResumeMessage> for Verifier {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, message: ResumeMessage, _: &mut Self::Context) -> Self::Result {
        Box::pin(self.parts.clone().resume(message))
    }
}
