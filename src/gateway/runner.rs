//! The task that holds a gateway together: it feeds the session and does what the session says.
//!
//! It never waits for the network, so it can always take what the network brings. It waits for the
//! journal, whose thread never waits for it: the channel back holds every message there can be.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::OptionFuture;
use tokio::sync::{mpsc, oneshot, watch};

use super::journal::{Entry, Journal, Origin, Remembered, Stored, Written};
use super::link::{Dial, Epoch, Link, LinkEvent};
use super::random::Random;
use super::session::{Effect, Identity, Numbered, Session};
use super::{
    Ack, Delivery, Fact, GatewayError, GatewayOptions, JournalError, PublishError, Refusal, Sources, Status,
};
use crate::crypto::VerifyingKey;
use crate::device::compose::{Composed, Draft, compose};
use crate::device::telemetry::{Limits, TelemetryError};
use crate::device::token;
use crate::device::window::SEQ_WINDOW;
use crate::types::{MessageSeq, Stream};

/// Events between connection and runner; the socket waits when it is full.
const LINK_EVENTS: usize = 256;
/// Room for every message there can be between signing and ack, so that the journal never waits.
const WRITTEN: usize = 257;
const _: () = assert!(WRITTEN as u64 > SEQ_WINDOW);
/// How exactly deadlines are kept.
const TICK: Duration = Duration::from_millis(50);
/// First wait before connecting again; doubles, up to the longest.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);
/// Longest wait for the goodbye to be sent.
const GOODBYE: Duration = Duration::from_secs(1);
/// Bodies above this are composed on a thread that may block.
const LARGE_BODY: usize = 64 * 1024;
/// What an envelope adds to content, at most.
const ENVELOPE_BYTES: usize = 256;

/// A message to be signed and sent.
#[derive(Debug)]
pub(super) struct Publish {
    pub(super) stream: Stream,
    pub(super) body: Vec<u8>,
    /// Where it stands in its source.
    pub(super) origin: Option<Origin>,
    pub(super) reply: oneshot::Sender<Result<Delivery, PublishError>>,
}

/// Told when the gateway has closed.
type Closed = oneshot::Sender<()>;

/// What the handles can watch.
pub(super) struct Told {
    pub(super) status: watch::Sender<Status>,
    pub(super) unfinished: watch::Sender<usize>,
    /// Refusals of messages that earlier runs left.
    pub(super) refused: watch::Sender<Vec<(MessageSeq, Refusal)>>,
}

/// Who waits for a message.
struct Waiter {
    stored: Option<oneshot::Sender<()>>,
    puback: Option<oneshot::Sender<()>>,
    done: oneshot::Sender<Result<Ack, PublishError>>,
}

pub(super) struct Runner {
    options: GatewayOptions,
    session: Session,
    journal: Journal,
    written: mpsc::Receiver<Written>,
    waiters: HashMap<MessageSeq, Waiter>,
    told: Told,
    link: Option<Link>,
    told_by_link: mpsc::Sender<(Epoch, LinkEvent)>,
    events: mpsc::Receiver<(Epoch, LinkEvent)>,
    epoch: Epoch,
    failures: u32,
    dial_at: Duration,
}

impl Runner {
    pub(super) fn open(
        options: GatewayOptions,
        trusted: Vec<VerifyingKey>,
        random: Random,
        told: Told,
    ) -> Result<(Self, Sources), GatewayError> {
        let (tell, written) = mpsc::channel(WRITTEN);
        let (network, client) = (options.network, options.client.clone());
        let (journal, remembered) = match &options.state {
            Some(directory) => Journal::open(directory, network, &client, tell)?,
            None => (Journal::in_memory(tell), Remembered::default()),
        };
        let identity = Identity { network, client, key: options.key.clone(), trusted };
        let sources = Sources { places: remembered.places.clone(), refusals: remembered.refusals.clone() };
        let session = Session::new(identity, random, remembered);
        told.unfinished.send_replace(session.unfinished());
        let (told_by_link, events) = mpsc::channel(LINK_EVENTS);
        let runner = Self {
            options,
            session,
            journal,
            written,
            waiters: HashMap::new(),
            told,
            link: None,
            told_by_link,
            events,
            epoch: 0,
            failures: 0,
            dial_at: Duration::ZERO,
        };
        Ok((runner, sources))
    }

    /// Runs until closed, or until the journal fails.
    pub(super) async fn run(
        mut self,
        mut publishes: mpsc::Receiver<Publish>,
        mut close: mpsc::Receiver<Closed>,
    ) {
        let outcome: Result<Option<Closed>, JournalError> = self.serve(&mut publishes, &mut close).await;
        if let Err(error) = &outcome {
            tracing::error!(%error, "the gateway stops: it cannot remember what it sends");
        }
        self.say_goodbye().await;
        let Self { journal, mut written, mut waiters, told, .. } = self;
        drop(journal);
        // Ends with the writer, which has let go of the state by then.
        while written.recv().await.is_some() {}
        told.status.send_replace(Status::Stopped);
        let (error, closed) = match outcome {
            Ok(closed) => (PublishError::Closed, closed),
            Err(error) => (PublishError::State(error), None),
        };
        // Whoever has given up waiting is not told.
        for (_, waiter) in waiters.drain() {
            let _ = waiter.done.send(Err(error.clone()));
        }
        if let Some(closed) = closed {
            let _ = closed.send(());
        }
    }

    async fn serve(
        &mut self,
        publishes: &mut mpsc::Receiver<Publish>,
        close: &mut mpsc::Receiver<Closed>,
    ) -> Result<Option<Closed>, JournalError> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            // No number free, nothing taken: callers wait.
            let next = self.session.next();
            let publish = OptionFuture::from(next.map(|numbered| {
                let received = publishes.recv();
                async move { received.await.map(|publish| (numbered, publish)) }
            }));
            let effects = tokio::select! {
                written = self.written.recv() => match written {
                    Some(Written::Message(seq)) => self.on_durable(seq),
                    Some(Written::Failed(error)) => return Err(error),
                    None => return Err(JournalError::Ended { path: self.options.state.clone().unwrap_or_default() }),
                },
                Some((epoch, event)) = self.events.recv() => self.on_link(epoch, event),
                Some(Some((numbered, publish))) = publish => {
                    self.on_publish(numbered, publish).await;
                    Vec::new()
                }
                // None: all handles are gone.
                closed = close.recv() => return Ok(closed),
                _ = tick.tick() => self.on_tick(),
            };
            self.perform(effects).await;
        }
    }

    async fn on_publish(&mut self, numbered: Numbered, publish: Publish) {
        let Publish { stream, body, origin, reply } = publish;
        let composed = match self.compose(numbered, &stream, body).await {
            Ok(composed) => composed,
            Err(error) => {
                if let Some(origin) = origin {
                    let _ = self.journal.write(Entry::Refusal(origin.hash())).await;
                }
                let _ = reply.send(Err(error.into()));
                return;
            }
        };
        let Composed { header, header_hash, content } = composed;
        let seq = header.seq;
        let ((stored_tell, stored), (puback_tell, puback)) = (oneshot::channel(), oneshot::channel());
        let (done_tell, done) = oneshot::channel();
        let waiter = Waiter { stored: Some(stored_tell), puback: Some(puback_tell), done: done_tell };
        self.waiters.insert(seq, waiter);
        let message = Arc::new(Stored { seq, stream, header: header_hash, content });
        self.session.add(&message);
        self.told.unfinished.send_replace(self.session.unfinished());
        // If the writer has ended, its last word is on its way here.
        let _ = self.journal.write(Entry::of(message, origin)).await;
        // Whoever does not wait any more has its message published all the same.
        let (stored, puback) = (Fact::Awaited(stored), Fact::Awaited(puback));
        let _ = reply.send(Ok(Delivery { seq, header: header_hash, stored, puback, done }));
    }

    async fn compose(
        &self,
        numbered: Numbered,
        stream: &Stream,
        body: Vec<u8>,
    ) -> Result<Composed, TelemetryError> {
        let Numbered { seq, unused_above } = numbered;
        let GatewayOptions { client, network, key, encoding, .. } = &self.options;
        let (client, network, key, encoding) = (client.clone(), *network, key.clone(), *encoding);
        let (large, stream) = (body.len() > LARGE_BODY, stream.clone());
        let work = move || {
            let draft = Draft { client: &client, stream: &stream, seq, unused_above, body: &body, encoding };
            compose(&network, &key, &draft)
        };
        let composed = if large {
            let joined = tokio::task::spawn_blocking(work).await;
            joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?
        } else {
            work()?
        };
        let limit = Limits::default().wire_bytes;
        let len = composed.content.len() + ENVELOPE_BYTES;
        if len > limit {
            return Err(TelemetryError::TooLong { len, limit });
        }
        Ok(composed)
    }

    fn on_durable(&mut self, seq: MessageSeq) -> Vec<Effect> {
        if let Some(stored) = self.waiters.get_mut(&seq).and_then(|waiter| waiter.stored.take()) {
            let _ = stored.send(());
        }
        self.session.on_durable(seq, self.now())
    }

    fn on_link(&mut self, epoch: Epoch, event: LinkEvent) -> Vec<Effect> {
        if self.link.as_ref().is_none_or(|link| link.epoch != epoch) {
            return Vec::new();
        }
        let now = self.now();
        match event {
            LinkEvent::Up => self.session.on_connected(now),
            LinkEvent::Downlink { topic, payload } => self.session.on_downlink(&topic, &payload, now),
            LinkEvent::PubAck(seq) => {
                if let Some(puback) = self.waiters.get_mut(&seq).and_then(|waiter| waiter.puback.take()) {
                    let _ = puback.send(());
                }
                self.session.on_puback(seq, now)
            }
            LinkEvent::Down { reason } => self.hang_up(reason),
            LinkEvent::Denied { reason } => {
                let mut effects = self.hang_up(reason.clone());
                effects.push(Effect::Status(Status::Denied { reason }));
                effects
            }
        }
    }

    fn hang_up(&mut self, reason: String) -> Vec<Effect> {
        tracing::info!(client = %self.options.client, reason, "mqtt connection ended");
        self.link = None;
        let backoff = (FIRST_BACKOFF * 2_u32.saturating_pow(self.failures.min(16))).min(LONGEST_BACKOFF);
        self.failures += 1;
        self.dial_at = self.now() + backoff;
        self.session.on_disconnected(reason)
    }

    fn on_tick(&mut self) -> Vec<Effect> {
        if self.link.is_none() && self.now() >= self.dial_at {
            self.dial();
        }
        self.session.on_tick(self.now())
    }

    fn dial(&mut self) {
        let GatewayOptions { client, network, key, account, keep_alive, endpoints, .. } = &self.options;
        let lifetime_s = self.options.token_lifetime.as_secs().max(1);
        let token = match token::issue(key, network, client, self.options.clock.now(), lifetime_s) {
            Ok(token) => token,
            Err(error) => {
                tracing::error!(%error, "cannot make a token");
                self.dial_at = self.now() + LONGEST_BACKOFF;
                return;
            }
        };
        let endpoint = &endpoints[self.failures as usize % endpoints.len()];
        self.epoch += 1;
        let dial = Dial { client, account, token, endpoint, keep_alive: *keep_alive };
        self.link = Some(Link::dial(self.epoch, dial, self.told_by_link.clone()));
    }

    async fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Key(payload) => {
                    self.send(format!("{}/key", self.options.client), None, payload).await
                }
                Effect::Send { seq, topic, wire } => self.send(topic, Some(seq), wire).await,
                Effect::Finish { seq, outcome } => self.finish(seq, outcome).await,
                Effect::Status(status) => {
                    if matches!(status, Status::Ready { .. }) {
                        self.failures = 0;
                    }
                    self.told.status.send_replace(status);
                }
            }
        }
    }

    async fn send(&mut self, topic: String, seq: Option<MessageSeq>, payload: Vec<u8>) {
        let sent = self.link.as_ref().is_some_and(|link| link.publish(topic, seq, payload));
        if !sent && self.link.is_some() {
            let effects = self.hang_up("the client library takes no more requests".to_owned());
            // Nothing but a status follows from hanging up.
            for effect in effects {
                if let Effect::Status(status) = effect {
                    self.told.status.send_replace(status);
                }
            }
        }
    }

    async fn finish(&mut self, seq: MessageSeq, outcome: Result<Ack, Refusal>) {
        let end = match &outcome {
            Err(refusal) if refusal.may_be_tried_again() => Entry::Refused(seq),
            _ => Entry::Done(seq),
        };
        // If the writer has ended, its last word is on its way here.
        let _ = self.journal.write(end).await;
        match (self.waiters.remove(&seq), outcome) {
            (Some(waiter), outcome) => {
                if let Some(puback) = waiter.puback {
                    let _ = puback.send(());
                }
                let _ = waiter.done.send(outcome.map_err(PublishError::Refused));
            }
            (None, Err(refusal)) => self.told.refused.send_modify(|refused| refused.push((seq, refusal))),
            (None, Ok(_)) => {}
        }
        // Behind what is told of it.
        self.told.unfinished.send_replace(self.session.unfinished());
    }

    async fn say_goodbye(&mut self) {
        let Some(link) = &self.link else { return };
        if !link.disconnect() {
            return;
        }
        let gone = async {
            while let Some((epoch, event)) = self.events.recv().await {
                if epoch == link.epoch && matches!(event, LinkEvent::Down { .. } | LinkEvent::Denied { .. }) {
                    break;
                }
            }
        };
        // A socket that takes nothing is closed without a goodbye.
        let _ = tokio::time::timeout(GOODBYE, gone).await;
    }

    fn now(&self) -> Duration {
        self.options.clock.monotonic()
    }
}
