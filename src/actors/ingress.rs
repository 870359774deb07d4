//! Ingress: the node's side of the device protocol, up to a decrypted message, and its answers.
//!
//! ```text
//! {id}/key      ask ──▶ forbidden (KEM key)        transport ──▶ key/success, key/fail
//! {id}/{stream} registered? ─▶ key? ─▶ decrypt ─▶ Verifier ─▶ PUBACK once it is in the log
//! TellFinal     marker in the log ─▶ datas, success or error
//! ```
//!
//! The order of checks is PROTOCOL.md section 6's. What a broker promised is checked again here,
//! since an external one may not keep it. Replies to what proves nothing are rate limited, so that
//! nobody can use the node to flood a client.

mod tell;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, Context, Handler, Message, Recipient, ResponseFuture};

use super::downlink::Downlink;
use super::fatal::Vital;
use super::node_keys::NodeKeys;
use super::rate::PerMinute;
use super::verifier::{Verification, VerifyMessage};
use super::view::{LedgerView, RegisteredClient};
use super::{ClientChanged, Fatal, FinalMessage};
use crate::broker::{Closing, Standing, Uplink, UplinkVerdict};
use crate::clock::SharedClock;
use crate::device::codes::{ErrorCode, ForbiddenReason, KeyFailCode, UnauthReason};
use crate::device::control::{
    Ack, ErrorReply, Forbidden, KeyFail, KeySuccess, KeyTransport, SignedControl, Unauth,
};
use crate::device::handshake::KeyUplink;
use crate::device::ids::Nonce;
use crate::device::telemetry::{Content, Envelope, Limits, Reference, TelemetryError, Wire};
use crate::device::topics::{self, Downlink as Topic};
use crate::metrics::{IngressMetrics, StageTime};
use crate::store::Log;
use crate::types::{ClientId, MessageSeq, NetworkId, NodeId, Stream, Timestamp};

/// Messages in the mailbox: the PUBLISHes of as many connections, and final messages. Sessions
/// and the feeder of finals wait when it is full.
const MAILBOX: usize = 1_024;

/// Streams whose first message was acknowledged, so that `datas` is told once. Beyond it every ack
/// is a `success`, which clients treat alike.
const MAX_STREAMS: usize = 65_536;

/// A PUBLISH of a client.
#[derive(Debug, Message)]
#[rtype(result = "UplinkVerdict")]
pub struct HandleUplink(pub Uplink);

/// A stranger's subscription stands: tell it that it is not registered.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct GreetStranger(pub ClientId);

/// Limits of the device side; see the settings of `[mqtt]`.
#[derive(Debug, Clone, Copy)]
pub struct IngressLimits {
    /// Limits of one message.
    pub telemetry: Limits,
    /// Messages a minute from one unregistered client.
    pub unregistered_messages_per_minute: u32,
    /// Replies a minute to what is not verified, for each client.
    pub unverified_replies_per_minute: u32,
    /// How long a message may wait for the queues ahead.
    pub submit_timeout: Duration,
}

/// What Ingress works with.
pub struct IngressParts {
    /// The ledger.
    pub network: NetworkId,
    /// This node.
    pub node: NodeId,
    /// The clients.
    pub view: Arc<LedgerView>,
    /// What was accepted.
    pub admission: Arc<super::admission::Admission>,
    /// Payload keys.
    pub keys: NodeKeys,
    /// The way to clients.
    pub downlink: Downlink,
    /// The next in line.
    pub verifier: Recipient<VerifyMessage>,
    /// For the marks of final messages.
    pub log: Log,
    /// The clock.
    pub clock: SharedClock,
    /// The limits.
    pub limits: IngressLimits,
    /// Counters.
    pub metrics: IngressMetrics,
    /// Counts the time of taking messages apart.
    pub time: StageTime,
    /// Stops the node.
    pub fatal: Fatal,
}

/// The actor; see the module.
pub struct Ingress {
    parts: IngressParts,
    /// PUBLISHes of strangers.
    strangers: PerMinute,
    /// Replies to strangers.
    stranger_replies: PerMinute,
    /// Replies to registered clients that proved nothing. Counted apart, so that nobody can keep
    /// them from getting theirs by inventing names.
    unverified: PerMinute,
    streams: HashSet<(ClientId, Stream)>,
    _vital: Vital,
}

/// Something to tell a client.
enum Reply {
    Unauth(Unauth),
    Forbidden(Forbidden),
    KeySuccess(KeySuccess),
    KeyFail(KeyFail),
    Ack(Topic, Ack),
    Error(ErrorReply),
}

/// What a client is told at once, if anything.
type Answer = Option<Box<Reply>>;

impl Ingress {
    /// Ingress with nothing acknowledged yet.
    pub fn new(parts: IngressParts) -> Self {
        let IngressLimits { unregistered_messages_per_minute, unverified_replies_per_minute, .. } =
            parts.limits;
        Self {
            strangers: PerMinute::of_strangers(unregistered_messages_per_minute),
            stranger_replies: PerMinute::of_strangers(unverified_replies_per_minute),
            unverified: PerMinute::of_registered(unverified_replies_per_minute),
            streams: HashSet::new(),
            _vital: parts.fatal.vital("Ingress"),
            parts,
        }
    }

    fn now(&self) -> Timestamp {
        self.parts.clock.now()
    }

    /// The client as registered, or why it is not let in.
    fn registered(&self, uplink: &Uplink) -> Result<Arc<RegisteredClient>, UnauthReason> {
        let client = self.parts.view.client(&uplink.session.client).ok_or(UnauthReason::NotRegistered)?;
        if client.revoked.is_some() {
            return Err(UnauthReason::Revoked);
        }
        match uplink.session.standing {
            Standing::Registered => Ok(client),
            // It connected before it was registered; its session is about to be closed.
            Standing::Unregistered => Err(UnauthReason::NotRegistered),
        }
    }

    fn unauth(&self, reason: UnauthReason) -> Reply {
        Reply::Unauth(Unauth { reason, server_time: self.now() })
    }

    /// A reply to something of a registered client that proved nothing, unless there were too many.
    fn limited(&mut self, client: &ClientId, reply: Reply) -> Answer {
        let allowed = self.unverified.allow(client, self.now());
        self.if_allowed(allowed, reply)
    }

    /// The same for a stranger.
    fn limited_unauth(&mut self, client: &ClientId, reason: UnauthReason) -> Answer {
        let allowed = self.stranger_replies.allow(client, self.now());
        self.if_allowed(allowed, self.unauth(reason))
    }

    fn if_allowed(&self, allowed: bool, reply: Reply) -> Answer {
        if !allowed {
            self.parts.metrics.replies_suppressed.inc();
        }
        allowed.then(|| Box::new(reply))
    }

    fn last_seq(&self, client: &ClientId, registered: &RegisteredClient) -> MessageSeq {
        self.parts.admission.highest(client).max(registered.highest())
    }

    fn forbidden(
        &mut self,
        client: &ClientId,
        registered: &RegisteredClient,
        reason: ForbiddenReason,
        nonce: Option<Nonce>,
    ) -> Option<Reply> {
        let (now, last_seq) = (self.now(), self.last_seq(client, registered));
        let last_epoch = self.parts.keys.payload.last_epoch(client);
        let kem = match self.parts.keys.offer(now) {
            Ok(kem) => kem,
            Err(error) => {
                self.parts.fatal.stop(anyhow::Error::new(error).context("making a KEM key"));
                return None;
            }
        };
        Some(Reply::Forbidden(Forbidden {
            reason,
            nonce,
            kem_kid: kem.kid(),
            kem_key: *kem.public(),
            kem_not_after: kem.not_after(),
            last_seq,
            last_epoch,
            server_time: now,
        }))
    }

    /// A message on `{id}/key`.
    fn on_key(&mut self, client: &ClientId, registered: &RegisteredClient, payload: &[u8]) -> Answer {
        match KeyUplink::parse(payload) {
            Ok(KeyUplink::Ask { nonce }) => {
                let reply = self.forbidden(client, registered, ForbiddenReason::NoKey, nonce)?;
                self.limited(client, reply)
            }
            Ok(KeyUplink::Transport(message)) => self.on_transport(client, registered, &message),
            Err(error) => {
                let reply = self.key_fail(client, None, KeyFailCode::Malformed, error.to_string());
                self.limited(client, reply)
            }
        }
    }

    fn on_transport(
        &mut self,
        client: &ClientId,
        registered: &RegisteredClient,
        message: &SignedControl<'_>,
    ) -> Answer {
        let claimed = message.unverified::<KeyTransport>();
        if claimed.as_ref().is_some_and(|claimed| !claimed.kem_kid.is_of(&self.parts.node)) {
            // Another node's; on a broker that several share, that one answers.
            return None;
        }
        let nonce = claimed.map(|claimed| claimed.nonce);
        let transport = match message.verify::<KeyTransport>(&self.parts.network, client, &registered.key) {
            Ok(transport) => transport,
            Err(error) => {
                self.parts.metrics.key_transports.with_label_values(&["bad_signature"]).inc();
                let reply = self.key_fail(client, nonce, KeyFailCode::BadSignature, error.to_string());
                return self.limited(client, reply);
            }
        };
        let now = self.now();
        Some(Box::new(match self.parts.keys.accept(client, &transport, now) {
            Ok(accepted) => {
                self.note_payload_keys();
                self.parts.metrics.key_transports.with_label_values(&["accepted"]).inc();
                Reply::KeySuccess(KeySuccess {
                    kid: accepted.kid,
                    nonce: transport.nonce,
                    not_after: accepted.not_after,
                    max_messages: accepted.max_messages,
                    last_seq: self.last_seq(client, registered),
                    server_time: now,
                })
            }
            Err(code) => {
                self.parts.metrics.key_transports.with_label_values(&[code.as_str()]).inc();
                self.key_fail(client, nonce, code, format!("the payload key was not taken: {code}"))
            }
        }))
    }

    fn note_payload_keys(&self) {
        self.parts.metrics.payload_keys.set(i64::try_from(self.parts.keys.payload.len()).unwrap_or(i64::MAX));
    }

    fn key_fail(&self, client: &ClientId, nonce: Option<Nonce>, code: KeyFailCode, detail: String) -> Reply {
        let last_epoch = self.parts.keys.payload.last_epoch(client);
        Reply::KeyFail(KeyFail { nonce, code, detail, last_epoch, server_time: self.now() })
    }

    /// A message on `{id}/{stream}`: what to verify, or what to answer at once.
    fn on_telemetry(
        &mut self,
        client: &ClientId,
        registered: &Arc<RegisteredClient>,
        stream: &Stream,
        payload: &[u8],
    ) -> Result<VerifyMessage, Answer> {
        let content = match Wire::decode(payload, &self.parts.limits.telemetry) {
            Ok(Wire::Encrypted(envelope)) => self.decrypt(client, registered, stream, &envelope)?,
            Ok(Wire::Plaintext(content)) if registered.settings.plaintext => content,
            Ok(Wire::Plaintext(content)) => {
                return Err(self.refuse(
                    client,
                    stream,
                    content.reference(),
                    &TelemetryError::EncryptionRequired,
                ));
            }
            Err(error) => return Err(self.refuse(client, stream, Reference::default(), &error)),
        };
        Ok(VerifyMessage {
            client: client.clone(),
            key: registered.key,
            stream: stream.clone(),
            content,
            received: self.parts.clock.monotonic(),
        })
    }

    fn decrypt(
        &mut self,
        client: &ClientId,
        registered: &RegisteredClient,
        stream: &Stream,
        envelope: &Envelope,
    ) -> Result<Content, Answer> {
        let kid = envelope.kid();
        let key = self.parts.keys.payload.key(client, &kid, self.parts.clock.now()).cloned();
        let key = key.map_err(|reason| {
            let reply = self.forbidden(client, registered, reason, None);
            reply.and_then(|reply| self.limited(client, reply))
        })?;
        let content = envelope
            .decrypt(&key, &self.parts.network, client, stream)
            .map_err(|error| self.refuse(client, stream, envelope.reference(), &error))?;
        self.parts.keys.payload.count(client, &kid);
        Ok(content)
    }

    /// An `error` for something that nobody is proven to have signed.
    fn refuse(
        &mut self,
        client: &ClientId,
        stream: &Stream,
        reference: Reference,
        error: &TelemetryError,
    ) -> Answer {
        let code = error.code();
        self.parts.metrics.messages.with_label_values(&[code.as_str()]).inc();
        let reply = self.error(stream.clone(), reference, code, error.to_string());
        self.limited(client, reply)
    }

    fn error(&self, stream: Stream, reference: Reference, code: ErrorCode, detail: String) -> Reply {
        let Reference { seq, header } = reference;
        Reply::Error(ErrorReply { stream, seq, header, code, detail, server_time: self.now() })
    }
}

impl Actor for Ingress {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
    }
}

async fn send(downlink: &Downlink, client: &ClientId, reply: Reply) {
    match reply {
        Reply::Unauth(fields) => downlink.send(client, &Topic::Unauth, &fields).await,
        Reply::Forbidden(fields) => downlink.send(client, &Topic::Forbidden, &fields).await,
        Reply::KeySuccess(fields) => downlink.send(client, &Topic::KeySuccess, &fields).await,
        Reply::KeyFail(fields) => downlink.send(client, &Topic::KeyFail, &fields).await,
        Reply::Ack(topic, fields) => downlink.send(client, &topic, &fields).await,
        Reply::Error(fields) => downlink.send(client, &Topic::Error(fields.stream.clone()), &fields).await,
    }
}

impl Handler<HandleUplink> for Ingress {
    type Result = ResponseFuture<UplinkVerdict>;

    fn handle(&mut self, HandleUplink(uplink): HandleUplink, ctx: &mut Self::Context) -> Self::Result {
        let client = uplink.session.client.clone();
        let Some(topic) = topics::Uplink::parse(&client, &uplink.topic) else {
            return ready(UplinkVerdict::NotAuthorized);
        };
        let registered = match self.registered(&uplink) {
            Ok(registered) => registered,
            Err(reason) => return self.answer_stranger(client, reason),
        };
        let stream = match topic {
            topics::Uplink::Key => {
                let reply = self.on_key(&client, &registered, &uplink.payload);
                return self.answer(client, reply);
            }
            topics::Uplink::Telemetry(stream) => stream,
        };
        self.parts.metrics.message_bytes.inc_by(uplink.payload.len() as u64);
        let time = self.parts.time.clone();
        match time.sampled(|| self.on_telemetry(&client, &registered, &stream, &uplink.payload)) {
            Ok(verify) => self.hand_on(verify, ctx),
            Err(reply) => self.answer(client, reply),
        }
    }
}

fn ready(verdict: UplinkVerdict) -> ResponseFuture<UplinkVerdict> {
    Box::pin(std::future::ready(verdict))
}

impl Ingress {
    fn answer_stranger(&mut self, client: ClientId, reason: UnauthReason) -> ResponseFuture<UplinkVerdict> {
        if !self.strangers.allow(&client, self.parts.clock.now()) {
            return ready(UplinkVerdict::Disconnect);
        }
        let reply = self.limited_unauth(&client, reason);
        self.answer(client, reply)
    }

    /// Acknowledges the PUBLISH and sends a reply.
    fn answer(&self, client: ClientId, reply: Answer) -> ResponseFuture<UplinkVerdict> {
        let downlink = self.parts.downlink.clone();
        Box::pin(async move {
            if let Some(reply) = reply {
                send(&downlink, &client, *reply).await;
            }
            UplinkVerdict::Accepted
        })
    }

    /// Waits for the Verifier and answers what is to be answered at once.
    fn hand_on(&self, verify: VerifyMessage, ctx: &Context<Self>) -> ResponseFuture<UplinkVerdict> {
        use actix::AsyncContext as _;
        let (verifier, timeout) = (self.parts.verifier.clone(), self.parts.limits.submit_timeout);
        let (metrics, clock) = (self.parts.metrics.clone(), Arc::clone(&self.parts.clock));
        let (client, stream, received) = (verify.client.clone(), verify.stream.clone(), verify.received);
        let ingress = ctx.address();
        Box::pin(async move {
            let verified = tokio::time::timeout(timeout, verifier.send(verify)).await;
            let Ok(Ok(verification)) = verified else {
                // Too slow, or the node is stopping: the client keeps the message.
                metrics.withheld_pubacks.inc();
                return UplinkVerdict::Disconnect;
            };
            match verification {
                Verification::Accepted => {
                    metrics.messages.with_label_values(&["accepted"]).inc();
                    let took = clock.monotonic().saturating_sub(received);
                    metrics.puback_ms.observe(took.as_secs_f64() * 1000.0);
                    UplinkVerdict::Accepted
                }
                Verification::Pending => {
                    metrics.messages.with_label_values(&["repeated"]).inc();
                    UplinkVerdict::Accepted
                }
                Verification::Known(message) => {
                    metrics.messages.with_label_values(&["repeated"]).inc();
                    let _stopping = ingress.send(RepeatAnswer(message)).await;
                    UplinkVerdict::Accepted
                }
                Verification::Refused { code, detail, reference, is_signed } => {
                    metrics.messages.with_label_values(&[code.as_str()]).inc();
                    let refusal = Refusal { client, stream, code, detail, reference, is_signed };
                    let _stopping = ingress.send(refusal).await;
                    UplinkVerdict::Accepted
                }
                Verification::Unavailable => {
                    metrics.withheld_pubacks.inc();
                    UplinkVerdict::Disconnect
                }
            }
        })
    }
}

/// A known message was sent again: the same answer again.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct RepeatAnswer(FinalMessage);

/// The Verifier refused a message.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Refusal {
    client: ClientId,
    stream: Stream,
    code: ErrorCode,
    detail: String,
    reference: Reference,
    is_signed: bool,
}

impl Handler<RepeatAnswer> for Ingress {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, RepeatAnswer(message): RepeatAnswer, _: &mut Self::Context) -> Self::Result {
        let reply = self.final_reply(&message);
        let downlink = self.parts.downlink.clone();
        Box::pin(async move { send(&downlink, &message.client, reply).await })
    }
}

impl Handler<Refusal> for Ingress {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, refusal: Refusal, _: &mut Self::Context) -> Self::Result {
        let Refusal { client, stream, code, detail, reference, is_signed } = refusal;
        if matches!(code, ErrorCode::SeqReused | ErrorCode::WrongTopic) {
            tracing::warn!(%client, %stream, seq = ?reference.seq, %code, "security event");
            self.parts.metrics.security_events.with_label_values(&[code.as_str()]).inc();
        }
        let reply = self.error(stream, reference, code, detail);
        let reply = if is_signed { Some(Box::new(reply)) } else { self.limited(&client, reply) };
        let downlink = self.parts.downlink.clone();
        Box::pin(async move {
            if let Some(reply) = reply {
                send(&downlink, &client, *reply).await;
            }
        })
    }
}

impl Handler<GreetStranger> for Ingress {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, GreetStranger(client): GreetStranger, _: &mut Self::Context) -> Self::Result {
        let reason = match self.parts.view.client(&client) {
            Some(registered) if registered.revoked.is_some() => UnauthReason::Revoked,
            _ => UnauthReason::NotRegistered,
        };
        let reply = self.limited_unauth(&client, reason);
        let downlink = self.parts.downlink.clone();
        Box::pin(async move {
            if let Some(reply) = reply {
                send(&downlink, &client, *reply).await;
            }
        })
    }
}

impl Handler<ClientChanged> for Ingress {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, ClientChanged(client): ClientChanged, _: &mut Self::Context) -> Self::Result {
        self.parts.keys.payload.forget(&client);
        self.note_payload_keys();
        let broker = self.parts.downlink.broker().cloned();
        Box::pin(async move {
            let Some(broker) = broker else { return };
            if let Err(error) = broker.close_client(&client, Closing::Erase).await {
                tracing::debug!(%client, %error, "session not closed");
            }
        })
    }
}

#[cfg(test)]
#[path = "ingress_tests.rs"]
mod tests;
