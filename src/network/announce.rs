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
