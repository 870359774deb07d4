//! Gossip: what is published, what arrives and waits for its verdict, and announcements, which are
//! made and judged here.

use std::sync::Arc;
use std::time::Duration;

use libp2p::gossipsub::{self, MessageAcceptance, MessageId, PublishError};
use libp2p::{Multiaddr, PeerId};

use super::Task;
use crate::network::announce::{Announcement, SignedAnnouncement};
use crate::network::conduct::Offence;
use crate::network::dialer;
use crate::network::handle::{GossipId, NetworkEvent, Topic, Verdict};
use crate::network::identity::peer_of;
use crate::network::metrics::Gossip;
use crate::network::settings::{
    BROADCAST_RETRIES, MAX_ADDRESSES_PER_NODE, MAX_GOSSIP_BYTES, RETRY_QUEUE, UNJUDGED_GOSSIP_PER_PEER,
};
use crate::types::Timestamp;

/// A broadcast that found no peer is tried again after this time.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// After a new subscriber this node announces itself so soon; all that come meanwhile hear it too.
const ANNOUNCE_SOON: Duration = Duration::from_secs(1);

/// A message without a verdict takes one of its peer's places, and one more for each so many bytes:
/// the places of one peer are worth 8 MiB.
const BYTES_PER_PLACE: usize = 8 * 1024 * 1024 / UNJUDGED_GOSSIP_PER_PEER;

/// A broadcast that waits for a peer.
#[derive(Debug)]
pub(super) struct Retry {
    topic: Topic,
    data: Vec<u8>,
    tries: u32,
    at: Duration,
}

impl Task {
    /// Publishes; a message for which nobody is subscribed yet is tried again a few times.
    ///
    /// Full queues are no reason to try again: the message is among those that gossipsub offers to
    /// its peers by id, and the same bytes would be a duplicate.
    pub(super) fn publish(&mut self, on: Topic, data: Vec<u8>, tries: u32) {
        let hash = self.topics.get(on).clone();
        match self.swarm.behaviour_mut().gossip.publish(hash, data.clone()) {
            Ok(_) => self.metrics.on_gossip(Gossip::Published),
            Err(PublishError::NoPeersSubscribedToTopic) => self.retry_later(on, data, tries + 1),
            Err(PublishError::AllQueuesFull(peers)) => {
                self.metrics.on_gossip(Gossip::QueuesFull);
                tracing::debug!(peers, "the gossip queues of all peers are full");
            }
            Err(PublishError::Duplicate) => self.metrics.on_gossip(Gossip::Duplicate),
            Err(error) => {
                self.metrics.on_gossip(Gossip::NotPublished);
                tracing::warn!(%error, bytes = data.len(), "a message was not published");
            }
        }
    }

    fn retry_later(&mut self, topic: Topic, data: Vec<u8>, tries: u32) {
        // An announcement is made anew for each subscriber.
        if tries > BROADCAST_RETRIES || topic == Topic::Announce {
            self.metrics.on_gossip(Gossip::GivenUp);
            return;
        }
        if self.retries.len() >= RETRY_QUEUE {
            self.retries.pop_front();
            self.metrics.on_gossip(Gossip::GivenUp);
        }
        self.metrics.on_gossip(Gossip::Retried);
        let at = self.clock.monotonic() + RETRY_AFTER * tries;
        self.retries.push_back(Retry { topic, data, tries, at });
    }

    pub(super) fn retry_broadcasts(&mut self, now: Duration) {
        for _ in 0..self.retries.len() {
            match self.retries.pop_front() {
                Some(retry) if retry.at <= now => self.publish(retry.topic, retry.data, retry.tries),
                Some(retry) => self.retries.push_back(retry),
                None => {}
            }
        }
    }

    pub(super) fn on_gossip_event(&mut self, event: gossipsub::Event) {
        match event {
            gossipsub::Event::Message { propagation_source, message_id, message } => {
                self.metrics.gossip_received_bytes.inc_by(message.data.len() as u64);
                if message.topic == self.topics.announce {
                    self.on_announcement(propagation_source, &message_id, &message.data);
                } else {
                    self.deliver(propagation_source, &message_id, message.data);
                }
            }
            gossipsub::Event::Subscribed { topic: subscribed, .. } => {
                if subscribed == self.topics.announce {
                    let soon = self.clock.monotonic() + ANNOUNCE_SOON;
                    self.announce_at = self.announce_at.min(soon);
                }
            }
            gossipsub::Event::GossipsubNotSupported { peer_id } => {
                self.on_offence(peer_id, Offence::Stranger, &"it does not speak our gossip");
            }
            gossipsub::Event::SlowPeer { peer_id, .. } => {
                tracing::debug!(peer = %peer_id, "a peer is too slow for its gossip");
            }
            gossipsub::Event::Unsubscribed { .. } => {}
        }
    }

    /// Hands a message to the node, if its peer has a place left and the event queue has room.
    fn deliver(&mut self, source: PeerId, message: &MessageId, data: Vec<u8>) {
        let Some(peer) = self.peers.get(&source) else {
            self.judge(message, &source, MessageAcceptance::Ignore);
            return;
        };
        let (from, places) = (peer.node, Arc::clone(&peer.gossip_places));
        let Ok(place) = places.try_acquire_many_owned(places_for(data.len())) else {
            self.metrics.on_gossip(Gossip::DroppedPeerShare);
            self.judge(message, &source, MessageAcceptance::Ignore);
            return;
        };
        let id = GossipId { message: message.clone(), source, place };
        let event = NetworkEvent::Gossip { id, topic: Topic::Pbft, data, from };
        if self.queues.events.try_send(event).is_err() {
            self.metrics.on_gossip(Gossip::DroppedQueueFull);
            self.judge(message, &source, MessageAcceptance::Ignore);
            return;
        }
        self.metrics.on_gossip(Gossip::Delivered);
    }

    pub(super) fn on_verdict(&mut self, id: GossipId, verdict: Verdict) {
        let GossipId { message, source, place } = id;
        drop(place);
        let acceptance = match verdict {
            Verdict::Accept => MessageAcceptance::Accept,
            Verdict::Ignore => MessageAcceptance::Ignore,
            Verdict::Reject => MessageAcceptance::Reject,
        };
        self.judge(&message, &source, acceptance);
        if verdict == Verdict::Reject {
            self.on_offence(source, Offence::RejectedGossip, &"too many invalid gossip messages");
        }
    }

    fn judge(&mut self, message: &MessageId, source: &PeerId, acceptance: MessageAcceptance) {
        let what = match acceptance {
            MessageAcceptance::Accept => Gossip::Accepted,
            MessageAcceptance::Ignore => Gossip::Ignored,
            MessageAcceptance::Reject => Gossip::Rejected,
        };
        self.metrics.on_gossip(what);
        let gossip = &mut self.swarm.behaviour_mut().gossip;
        if !gossip.report_message_validation_result(message, source, acceptance) {
            self.metrics.on_gossip(Gossip::TooLate);
        }
    }

    fn on_announcement(&mut self, source: PeerId, message: &MessageId, data: &[u8]) {
        let now = self.clock.monotonic();
        let within_rate = self.peers.get_mut(&source).is_some_and(|peer| peer.announcements.try_take(now));
        let (outcome, acceptance) = if within_rate {
            match SignedAnnouncement::decode(data, &self.network) {
                Ok(signed) if self.take_announcement(&signed.announcement) => {
                    ("news", MessageAcceptance::Accept)
                }
                Ok(_) => ("known", MessageAcceptance::Ignore),
                Err(_) => ("invalid", MessageAcceptance::Reject),
            }
        } else {
            ("too_many", MessageAcceptance::Ignore)
        };
        self.metrics.announcements.with_label_values(&[outcome]).inc();
        self.judge(message, &source, acceptance);
        if outcome == "invalid" {
            self.on_offence(source, Offence::RejectedGossip, &"too many invalid announcements");
        }
    }

    /// Keeps an announcement if it is news, and learns where its node may be dialed.
    fn take_announcement(&mut self, announcement: &Announcement) -> bool {
        let Some(peer) = peer_of(&announcement.node) else { return false };
        if peer == *self.swarm.local_peer_id() {
            return false;
        }
        let peers = &self.peers;
        let is_connected = |node: &_| peer_of(node).is_some_and(|peer| peers.contains_key(&peer));
        if !self.directory.offer(announcement, self.clock.now(), is_connected) {
            return false;
        }
        let uses_loopback = self.uses_loopback();
        let addresses = announcement.addresses.iter().filter_map(|text| text.parse::<Multiaddr>().ok());
        self.dialer.learn(
            peer,
            addresses.filter(|address| uses_loopback || !dialer::is_loopback(address)).collect(),
        );
        true
    }

    /// Announces this node, and forgets those that have not done so for long.
    pub(super) fn announce(&mut self, now: Duration) {
        self.announce_at = now + self.settings.announce_interval;
        let peers = &self.peers;
        let is_connected = |node: &_| peer_of(node).is_some_and(|peer| peers.contains_key(&peer));
        self.directory.forget_old(self.clock.now(), is_connected);

        // Never the same time twice, even if the clock was set back.
        let time = Timestamp(self.clock.now().0.max(self.announced.0 + 1));
        self.announced = time;
        let announcement = Announcement {
            node: self.key.node_id(),
            addresses: self.announced_addresses(),
            mqtt: self.settings.mqtt.clone(),
            api: self.settings.api.clone(),
            time,
        };
        let bytes = SignedAnnouncement::sign(&self.key, &self.network, announcement).encode();
        self.publish(Topic::Announce, bytes, 0);
    }

    /// The configured external addresses; if there are none, the listen addresses, those of this
    /// machine alone only if there are no others.
    fn announced_addresses(&self) -> Vec<String> {
        let listening: Vec<&Multiaddr> = if self.settings.external.is_empty() {
            let elsewhere = self.listening.iter().any(|address| !dialer::is_loopback(address));
            self.listening.iter().filter(|address| !elsewhere || !dialer::is_loopback(address)).collect()
        } else {
            self.settings.external.iter().collect()
        };
        listening.into_iter().take(MAX_ADDRESSES_PER_NODE).map(ToString::to_string).collect()
    }
}

fn places_for(bytes: usize) -> u32 {
    u32::try_from(1 + bytes.min(MAX_GOSSIP_BYTES) / BYTES_PER_PLACE).unwrap_or(u32::MAX)
}
