//! What a node says about itself on gossip: its key, where it listens, and its services.
//!
//! An announcement is signed and carries its time, so that the newest wins and nobody can speak
//! for another node. It lets nodes find each other and grants nothing: no vote, no place in the
//! replica set.

use std::collections::BTreeMap;

use bincode::{Decode, Encode};
use serde::Serialize;

use crate::codec;
use crate::crypto::{SecretKey, SignatureKind, VerifyingKey};
use crate::network::settings::{MAX_ADDRESSES_PER_NODE, MAX_ANNOUNCEMENTS};
use crate::types::{NetworkId, NodeId, PublicKey, Signature, Timestamp};

/// The largest announcement: eight addresses and two URLs.
pub const MAX_ANNOUNCEMENT_BYTES: usize = 4096;

/// The longest address or URL in an announcement.
pub const MAX_TEXT_BYTES: usize = 256;

/// Announcements from further in the future are ignored: they would shut out all later ones.
pub const MAX_CLOCK_AHEAD_MS: u64 = 5 * 60 * 1000;

/// An announcement older than this is ignored, and a kept one of a node that is not connected is
/// forgotten.
pub const MAX_AGE_MS: u64 = 60 * 60 * 1000;

/// Two announcements of one node less apart than this are one too many.
pub const MIN_INTERVAL_MS: u64 = 500;

/// Where a node is and what it serves, as it says itself.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Announcement {
    /// The node.
    pub node: NodeId,
    /// Its libp2p addresses, as multiaddresses without `/p2p`.
    pub addresses: Vec<String>,
    /// Its MQTT endpoint.
    pub mqtt: Option<String>,
    /// Its HTTP endpoint.
    pub api: Option<String>,
    /// When it said so.
    pub time: Timestamp,
}

/// An announcement as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct SignedAnnouncement {
    /// The content.
    pub announcement: Announcement,
    /// The node's signature ([`SignatureKind::Announcement`]) over the content's canonical bytes.
    pub signature: Signature,
}

impl SignedAnnouncement {
    /// Signs as the node that has `key`, which must be the one that the announcement names.
    pub fn sign(key: &SecretKey, network: &NetworkId, announcement: Announcement) -> Self {
        let content = codec::encode(&announcement);
        let signature = key.sign(SignatureKind::Announcement, network, &content);
        Self { announcement, signature }
    }

    /// The bytes that travel.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// Decodes, and checks sizes and the signature.
    ///
    /// # Errors
    /// [`InvalidAnnouncement`] for whatever no honest node passes on.
    pub fn decode(bytes: &[u8], network: &NetworkId) -> Result<Self, InvalidAnnouncement> {
        let signed: Self =
            codec::decode::<MAX_ANNOUNCEMENT_BYTES, _>(bytes).map_err(|_| InvalidAnnouncement)?;
        let Announcement { node, addresses, mqtt, api, .. } = &signed.announcement;
        let mut texts = addresses.iter().chain(mqtt).chain(api);
        if addresses.len() > MAX_ADDRESSES_PER_NODE || texts.any(|text| text.len() > MAX_TEXT_BYTES) {
            return Err(InvalidAnnouncement);
        }
        let content = codec::encode(&signed.announcement);
        VerifyingKey::parse(&PublicKey::from(*node))
            .and_then(|key| key.verify(SignatureKind::Announcement, network, &content, &signed.signature))
            .map_err(|_| InvalidAnnouncement)?;
        Ok(signed)
    }
}

/// Malformed, too large, or not signed by the node that it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a valid announcement")]
pub struct InvalidAnnouncement;

/// The newest announcement of each node, at most [`MAX_ANNOUNCEMENTS`].
#[derive(Debug, Default)]
pub(super) struct Directory {
    entries: BTreeMap<NodeId, Announcement>,
}

impl Directory {
    /// Keeps a valid announcement if it is news; says whether it is.
    ///
    /// When the directory is full, the oldest entry of a node for which `connected` says no makes
    /// room; if all are connected, the announcement of a stranger is no news.
    pub(super) fn offer(
        &mut self,
        announcement: &Announcement,
        now: Timestamp,
        connected: impl Fn(&NodeId) -> bool,
    ) -> bool {
        let Announcement { node, time, .. } = announcement;
        if time.since(now) > MAX_CLOCK_AHEAD_MS || now.since(*time) > MAX_AGE_MS {
            return false;
        }
        match self.entries.get(node) {
            Some(known) if *time < known.time.plus_ms(MIN_INTERVAL_MS) => return false,
            Some(_) => {}
            None if self.entries.len() < MAX_ANNOUNCEMENTS => {}
            None => {
                let oldest = self.entries.values().filter(|entry| !connected(&entry.node));
                let Some(oldest) = oldest.min_by_key(|entry| entry.time).map(|entry| entry.node) else {
                    return false;
                };
                self.entries.remove(&oldest);
            }
        }
        self.entries.insert(*node, announcement.clone());
        true
    }

    /// Forgets nodes that have not spoken for [`MAX_AGE_MS`] and are not connected.
    pub(super) fn forget_old(&mut self, now: Timestamp, connected: impl Fn(&NodeId) -> bool) {
        self.entries.retain(|node, entry| now.since(entry.time) <= MAX_AGE_MS || connected(node));
    }

    /// All of them, ascending by node id.
    pub(super) fn all(&self) -> Vec<Announcement> {
        self.entries.values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NETWORK: NetworkId = NetworkId([1; 32]);
    const NOW: Timestamp = Timestamp(1_767_225_600_000);

    fn announcement(seed: u8, time: Timestamp) -> Announcement {
        Announcement {
            node: SecretKey::from_seed(&[seed; 32]).node_id(),
            addresses: vec!["/ip4/10.0.0.1/tcp/7000".to_owned()],
            mqtt: Some("mqtt://10.0.0.1:1883".to_owned()),
            api: None,
            time,
        }
    }

    fn signed(announcement: Announcement) -> SignedAnnouncement {
        SignedAnnouncement::sign(&SecretKey::from_seed(&[7; 32]), &NETWORK, announcement)
    }

    fn numbered(at: u32, time: Timestamp) -> Announcement {
        let mut node = NodeId([0; 32]);
        node.0[..4].copy_from_slice(&at.to_be_bytes());
        Announcement { node, ..announcement(7, time) }
    }

    #[test]
    fn what_a_node_says_of_itself_is_taken_and_nothing_else() {
        let good = signed(announcement(7, NOW));
        assert_eq!(SignedAnnouncement::decode(&good.encode(), &NETWORK), Ok(good.clone()));
        assert_eq!(
            SignedAnnouncement::decode(&good.encode(), &NetworkId([2; 32])),
            Err(InvalidAnnouncement),
            "of another network"
        );
        let foreign = signed(announcement(8, NOW));
        assert_eq!(SignedAnnouncement::decode(&foreign.encode(), &NETWORK), Err(InvalidAnnouncement));
    }

    #[test]
    fn any_changed_or_missing_byte_spoils_an_announcement() {
        let good = signed(announcement(7, NOW)).encode();
        for at in 0..good.len() {
            let mut changed = good.clone();
            changed[at] ^= 1;
            assert!(SignedAnnouncement::decode(&changed, &NETWORK).is_err(), "byte {at} changed");
            assert!(SignedAnnouncement::decode(&good[..at], &NETWORK).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn too_many_addresses_and_too_long_texts_are_refused_although_signed() {
        let mut many = announcement(7, NOW);
        many.addresses = vec!["/ip4/10.0.0.1/tcp/1".to_owned(); MAX_ADDRESSES_PER_NODE + 1];
        let mut long = announcement(7, NOW);
        long.api = Some("x".repeat(MAX_TEXT_BYTES + 1));
        for bad in [many, long] {
            assert!(SignedAnnouncement::decode(&signed(bad).encode(), &NETWORK).is_err());
        }
    }

    #[test]
    fn only_what_is_newer_and_not_from_the_future_is_news() {
        let mut directory = Directory::default();
        let mut offer = |time| directory.offer(&announcement(7, time), NOW, |_| false);
        assert!(offer(NOW));
        assert!(!offer(NOW), "a repetition");
        assert!(!offer(Timestamp(NOW.0 - 1000)), "an older one");
        assert!(!offer(NOW.plus_ms(MIN_INTERVAL_MS - 1)), "too soon");
        assert!(offer(NOW.plus_ms(MIN_INTERVAL_MS)));
        assert!(!offer(NOW.plus_ms(MAX_CLOCK_AHEAD_MS + 1)), "from the future");
        assert!(!Directory::default().offer(
            &announcement(7, Timestamp(NOW.0 - MAX_AGE_MS - 1)),
            NOW,
            |_| false
        ));
    }

    #[test]
    fn a_full_directory_gives_up_the_oldest_stranger_and_never_a_connected_node() {
        let mut directory = Directory::default();
        for at in 0..u32::try_from(MAX_ANNOUNCEMENTS).unwrap() {
            assert!(directory.offer(&numbered(at, NOW.plus_ms(u64::from(at))), NOW, |_| false));
        }
        let first = numbered(0, NOW).node;
        assert!(!directory.offer(&numbered(900, NOW.plus_ms(1)), NOW, |_| true), "all are connected");
        assert!(directory.offer(&numbered(901, NOW.plus_ms(1)), NOW, |node| *node == first));
        let kept = directory.all();
        assert_eq!(kept.len(), MAX_ANNOUNCEMENTS);
        assert!(kept.iter().any(|entry| entry.node == first));
        assert!(!kept.iter().any(|entry| entry.node == numbered(1, NOW).node));
        directory.forget_old(NOW.plus_ms(2 * MAX_AGE_MS), |node| *node == first);
        assert_eq!(directory.all().len(), 1);
    }
}
