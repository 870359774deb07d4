//! What a gateway does next: the client's side of PROTOCOL.md sections 5 and 6, without time, network or disk.
//!
//! ```text
//!  Down ──connected──▶ Asking ──forbidden──▶ Handing ──key/success──▶ Ready ──▶ sends, ascending
//!    ▲                  ▲  ▲                   │ key/fail, silence       │ forbidden, silence, key used up
//!    └──disconnected    │  └───────────────────┴─────────────────────────┘
//!                       └── Resting ◀── unauth, or too many rounds without an ack
//! ```
//!
//! Every message that is not acknowledged stays in the outbox. Whenever a payload key is accepted, all
//! of them are sent again in order, sealed under the new key. The numbers in the outbox never span more
//! than the window of the node, so that none can become too old.

use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

use super::journal::{Remembered, Stored};
use super::outbox::Outbox;
use super::random::Random;
use super::{Refusal, Status};
use crate::crypto::{SecretKey, VerifyingKey};
use crate::device::codes::KeyFailCode;
use crate::device::control::{self, Ack, ErrorReply, Forbidden, FromNode, KeyFail, KeySuccess, KeyTransport};
use crate::device::handshake::{self, PayloadKey};
use crate::device::ids::{Nonce, PayloadKid};
use crate::device::telemetry;
use crate::device::topics::{self, Downlink};
use crate::device::window::SEQ_WINDOW;
use crate::types::{ClientId, MessageSeq, NetworkId, NodeId};

/// Messages sent and not yet acknowledged by the broker; more wait for a PUBACK.
pub(super) const MAX_INFLIGHT: usize = 64;
/// Bytes in the outbox above which no further message is taken.
const MAX_OUTBOX_BYTES: usize = 64 * 1024 * 1024;
/// A node that says nothing for this long is asked for a key again (PROTOCOL.md section 5).
const SILENCE: Duration = Duration::from_secs(10);
/// Rest after a first failure; doubles with each further one.
const FIRST_REST: Duration = Duration::from_millis(200);
/// Longest rest and longest patience.
const LONGEST_REST: Duration = Duration::from_secs(30);
/// How long a message that met an overloaded node waits.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// A client that lost its memory leaves this many numbers out (PROTOCOL.md section 6).
const AMNESIA_GAP: u64 = 65_536;
/// A `last_seq` above this is not believed: it would use up the client's numbers.
const MAX_BELIEVED_SEQ: u64 = 1 << 52;

/// What is to be done; in the order given.
#[derive(Debug, PartialEq)]
pub(super) enum Effect {
    /// Publish to `{id}/key`.
    Key(Vec<u8>),
    /// Publish a telemetry message.
    Send { seq: MessageSeq, topic: String, wire: Vec<u8> },
    /// The message is finished; forget it and tell whoever waits.
    Finish { seq: MessageSeq, outcome: Result<Ack, Refusal> },
    /// Tell whoever watches.
    Status(Status),
}

/// Who the gateway is and whom it believes.
pub(super) struct Identity {
    pub(super) network: NetworkId,
    pub(super) client: ClientId,
    pub(super) key: SecretKey,
    pub(super) trusted: Vec<VerifyingKey>,
}

enum Link {
    Down,
    Asking { nonce: Nonce, since: Duration },
    Handing { nonce: Nonce, node: NodeId, kid: PayloadKid, key: PayloadKey, since: Duration },
    Ready(Sealing),
    Resting { until: Duration },
}

/// A payload key that a node accepted.
struct Sealing {
    node: NodeId,
    kid: PayloadKid,
    key: PayloadKey,
    /// Messages that it may still seal.
    left: u64,
    /// When it ends.
    until: Duration,
    /// When the node last spoke.
    heard: Duration,
}

/// Where the next message goes in the client's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Numbered {
    pub(super) seq: MessageSeq,
    /// Header key 8.
    pub(super) unused_above: Option<MessageSeq>,
}

pub(super) struct Session {
    identity: Identity,
    random: Random,
    link: Link,
    outbox: Outbox,
    /// `None` until a node has said whether this client has a past.
    next: Option<MessageSeq>,
    unused_above: Option<MessageSeq>,
    last_epoch: u64,
    /// Rounds of key transport and silences since the last ack.
    fruitless: u32,
}

impl Session {
    pub(super) fn new(identity: Identity, random: Random, remembered: Remembered) -> Self {
        Self {
            identity,
            random,
            link: Link::Down,
            outbox: Outbox::remembered(remembered.messages),
            next: remembered.next,
            unused_above: None,
            last_epoch: 0,
            fruitless: 0,
        }
    }

    /// Messages that are not finished.
    pub(super) fn unfinished(&self) -> usize {
        self.outbox.len()
    }

    /// The number of the next message, if one may be signed now.
    pub(super) fn next(&self) -> Option<Numbered> {
        let seq = self.next?;
        let oldest = self.outbox.oldest().unwrap_or(seq);
        let room = seq.0 - oldest.0 < SEQ_WINDOW && self.outbox.bytes() < MAX_OUTBOX_BYTES;
        (room && seq <= MessageSeq::MAX).then_some(Numbered { seq, unused_above: self.unused_above })
    }

    /// Takes a message that was signed with the number of [`Self::next`]; it is sent once it is durable.
    pub(super) fn add(&mut self, stored: &Arc<Stored>) {
        debug_assert_eq!(self.next, Some(stored.seq), "signed out of turn");
        self.next = Some(stored.seq.next());
        self.unused_above = None;
        self.outbox.add(Arc::clone(stored));
    }

    /// The message is in the journal.
    pub(super) fn on_durable(&mut self, seq: MessageSeq, now: Duration) -> Vec<Effect> {
        self.outbox.durable(seq);
        self.try_send(now)
    }

    /// Connected, and subscribed to the replies.
    pub(super) fn on_connected(&mut self, now: Duration) -> Vec<Effect> {
        self.fruitless = 0;
        self.ask(now)
    }

    pub(super) fn on_disconnected(&mut self, reason: String) -> Vec<Effect> {
        self.link = Link::Down;
        vec![Effect::Status(Status::Connecting { reason: Some(reason) })]
    }

    /// The broker has acknowledged the message.
    pub(super) fn on_puback(&mut self, seq: MessageSeq, now: Duration) -> Vec<Effect> {
        self.outbox.pubacked(seq);
        self.try_send(now)
    }

    /// Something arrived on a topic of this client; what does not verify is ignored.
    pub(super) fn on_downlink(&mut self, topic: &str, payload: &[u8], now: Duration) -> Vec<Effect> {
        let Identity { network, client, trusted, .. } = &self.identity;
        let Some(downlink) = Downlink::parse(client, topic) else { return Vec::new() };
        if matches!(downlink, Downlink::Receipt(_)) {
            return Vec::new();
        }
        match control::open_from_node(network, client, trusted, &downlink, payload) {
            Ok((node, said)) => self.on_control(node, said, now),
            Err(error) => {
                tracing::warn!(topic, %error, "ignored a control message");
                Vec::new()
            }
        }
    }

    fn on_control(&mut self, node: NodeId, said: FromNode, now: Duration) -> Vec<Effect> {
        if let Link::Ready(sealing) = &mut self.link
            && sealing.node == node
        {
            sealing.heard = now;
        }
        match said {
            FromNode::Unauth(unauth) => {
                self.rest(now);
                vec![Effect::Status(Status::Unregistered { reason: unauth.reason })]
            }
            FromNode::Forbidden(forbidden) => self.on_forbidden(node, &forbidden, now),
            FromNode::KeySuccess(success) => self.on_key_success(node, &success, now),
            FromNode::KeyFail(fail) => self.on_key_fail(node, &fail, now),
            FromNode::Ack(ack) => self.on_ack(ack, now),
            FromNode::Error(error) => self.on_error(&error, now),
        }
    }

    fn on_forbidden(&mut self, node: NodeId, forbidden: &Forbidden, now: Duration) -> Vec<Effect> {
        match &self.link {
            Link::Asking { nonce, .. } if forbidden.nonce == Some(*nonce) => {
                self.learn(forbidden);
                self.hand_over(node, forbidden, now)
            }
            // The answer to telemetry: the node has lost the key, or the key has ended.
            Link::Ready(sealing) if sealing.node == node && forbidden.nonce.is_none() => {
                self.ask_or_rest(now)
            }
            _ => Vec::new(),
        }
    }

    /// Takes from the node's word where the client's numbers go on.
    fn learn(&mut self, forbidden: &Forbidden) {
        let last = forbidden.last_seq;
        if self.next.is_some_and(|next| last < next) {
            return;
        }
        if last.0 > MAX_BELIEVED_SEQ {
            tracing::warn!(last_seq = last.0, "a node names a last number that cannot be; ignored");
        } else if last.0 == 0 {
            self.next = Some(MessageSeq(1));
        } else {
            tracing::warn!(
                last_seq = last.0,
                "numbers were used that this state does not know; leaving a gap"
            );
            self.next = Some(MessageSeq(last.0 + AMNESIA_GAP));
            self.unused_above = Some(last);
        }
    }

    fn hand_over(&mut self, node: NodeId, forbidden: &Forbidden, now: Duration) -> Vec<Effect> {
        let Identity { network, client, key: identity_key, .. } = &self.identity;
        let key = PayloadKey::new(*self.random.secret());
        let randomness: Zeroizing<[u8; 32]> = self.random.secret();
        let sealed = match handshake::seal(network, client, &forbidden.kem_key, &key, &randomness) {
            Ok(sealed) => sealed,
            Err(error) => {
                tracing::warn!(%node, %error, "cannot hand over a payload key");
                self.rest(now);
                return Vec::new();
            }
        };
        // The node's clock rather than ours: a client may have none.
        self.last_epoch = forbidden.server_time.0.max(forbidden.last_epoch + 1).max(self.last_epoch + 1);
        let nonce = Nonce(self.random.bytes());
        let message = KeyTransport {
            kem_kid: forbidden.kem_kid,
            enc: sealed.enc,
            ct: sealed.ct,
            epoch: self.last_epoch,
            nonce,
            time: forbidden.server_time,
        };
        let bytes = control::sign(network, client, identity_key, &message);
        self.link = Link::Handing { nonce, node, kid: sealed.kid(&node), key, since: now };
        vec![Effect::Key(bytes)]
    }

    fn on_key_success(&mut self, node: NodeId, success: &KeySuccess, now: Duration) -> Vec<Effect> {
        let Link::Handing { nonce, node: to, kid, key, .. } = &self.link else { return Vec::new() };
        if (node, success.nonce, success.kid) != (*to, *nonce, *kid) {
            return Vec::new();
        }
        let lifetime = Duration::from_millis(success.not_after.since(success.server_time));
        self.link = Link::Ready(Sealing {
            node,
            kid: *kid,
            key: key.clone(),
            left: success.max_messages,
            until: now.saturating_add(lifetime),
            heard: now,
        });
        self.outbox.all_wait();
        let mut effects = vec![Effect::Status(Status::Ready { node })];
        effects.extend(self.try_send(now));
        effects
    }

    fn on_key_fail(&mut self, node: NodeId, fail: &KeyFail, now: Duration) -> Vec<Effect> {
        let Link::Handing { nonce, node: to, .. } = &self.link else { return Vec::new() };
        if node != *to || fail.nonce.is_some_and(|echoed| echoed != *nonce) {
            return Vec::new();
        }
        tracing::warn!(%node, code = %fail.code, detail = fail.detail, "payload key refused");
        if fail.code == KeyFailCode::StaleEpoch {
            self.last_epoch = self.last_epoch.max(fail.last_epoch);
        }
        self.ask_or_rest(now)
    }

    fn on_ack(&mut self, ack: Ack, now: Duration) -> Vec<Effect> {
        let seq = ack.seq;
        if self.outbox.get(seq).is_none_or(|stored| stored.header != ack.header) {
            return Vec::new();
        }
        self.fruitless = 0;
        self.finish(seq, Ok(ack), now)
    }

    fn on_error(&mut self, error: &ErrorReply, now: Duration) -> Vec<Effect> {
        let Some(seq) = error.seq else {
            tracing::warn!(code = %error.code, detail = error.detail, "a message that cannot be told was refused");
            return Vec::new();
        };
        let Some(stored) = self.outbox.get(seq) else { return Vec::new() };
        if error.header.is_some_and(|header| header != stored.header) {
            return Vec::new();
        }
        if error.code.may_retry() {
            self.outbox.later(seq, now + RETRY_AFTER);
            return self.try_send(now);
        }
        let refusal = Refusal { code: error.code, detail: error.detail.clone() };
        self.finish(seq, Err(refusal), now)
    }

    fn finish(&mut self, seq: MessageSeq, outcome: Result<Ack, Refusal>, now: Duration) -> Vec<Effect> {
        self.outbox.remove(seq);
        let mut effects = vec![Effect::Finish { seq, outcome }];
        effects.extend(self.try_send(now));
        effects
    }

    /// Time passes: whatever is due.
    pub(super) fn on_tick(&mut self, now: Duration) -> Vec<Effect> {
        self.outbox.due(now);
        let expecting = self.outbox.any_sent();
        match &self.link {
            Link::Down => Vec::new(),
            Link::Asking { since, .. } | Link::Handing { since, .. } if now >= *since + SILENCE => {
                self.ask(now)
            }
            Link::Asking { .. } | Link::Handing { .. } => Vec::new(),
            Link::Resting { until } if now >= *until => self.ask(now),
            Link::Resting { .. } => Vec::new(),
            Link::Ready(sealing) => {
                let patience = (SILENCE * 2_u32.saturating_pow(self.fruitless.min(8))).min(6 * SILENCE);
                if expecting && now >= sealing.heard + patience {
                    self.fruitless += 1;
                    return self.ask(now);
                }
                self.try_send(now)
            }
        }
    }

    fn ask(&mut self, now: Duration) -> Vec<Effect> {
        let nonce = Nonce(self.random.bytes());
        self.link = Link::Asking { nonce, since: now };
        vec![Effect::Status(Status::Handshaking), Effect::Key(nonce.0.to_vec())]
    }

    /// Begins another round at once, but rests after rounds that led to nothing.
    fn ask_or_rest(&mut self, now: Duration) -> Vec<Effect> {
        self.fruitless += 1;
        if self.fruitless <= 2 {
            return self.ask(now);
        }
        self.rest(now);
        vec![Effect::Status(Status::Handshaking)]
    }

    fn rest(&mut self, now: Duration) {
        let rest = (FIRST_REST * 2_u32.saturating_pow(self.fruitless.min(16))).min(LONGEST_REST);
        self.fruitless += 1;
        self.link = Link::Resting { until: now + rest };
    }

    /// Sends what waits, ascending, as far as key and broker allow.
    fn try_send(&mut self, now: Duration) -> Vec<Effect> {
        let Link::Ready(sealing) = &mut self.link else { return Vec::new() };
        let Identity { network, client, .. } = &self.identity;
        let mut effects = Vec::new();
        while self.outbox.without_puback() < MAX_INFLIGHT
            && let Some(stored) = self.outbox.next()
        {
            if sealing.left == 0 || now >= sealing.until {
                effects.extend(self.ask(now));
                break;
            }
            if !self.outbox.any_sent() {
                // Silence is counted from when there is something to answer.
                sealing.heard = now;
            }
            sealing.left -= 1;
            let seq = stored.seq;
            effects.push(seal(network, client, sealing, stored));
            self.outbox.sent(seq);
        }
        effects
    }
}

/// # Panics
/// Never: what is in the outbox is short enough for the wire, and the cipher takes far more.
#[allow(clippy::expect_used)]
fn seal(network: &NetworkId, client: &ClientId, sealing: &Sealing, stored: &Stored) -> Effect {
    let Stored { content, stream, seq, .. } = stored;
    let wire = telemetry::seal(content, *seq, &sealing.kid, &sealing.key, network, client, stream)
        .expect("the content is short");
    Effect::Send { seq: *seq, topic: topics::telemetry(client, stream), wire }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
