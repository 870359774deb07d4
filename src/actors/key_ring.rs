//! The keys that encrypt telemetry to this node (PROTOCOL.md section 5): its KEM key, which it
//! offers and rotates, and the payload keys that clients handed over. In memory only: after a
//! restart clients are told `forbidden` and hand over new ones.

use std::collections::HashMap;
use std::time::Duration;

use zeroize::Zeroizing;

use crate::crypto::{CryptoError, random_bytes};
use crate::device::codes::{ForbiddenReason, KeyFailCode};
use crate::device::control::KeyTransport;
use crate::device::handshake::{KemKeyPair, OLD_KEY_OVERLAP_MS, PayloadKey};
use crate::device::ids::{KemKid, PayloadKid};
use crate::types::{ClientId, NetworkId, NodeId, Timestamp};

/// Payload keys kept for each client: the current one and two that it replaced within a minute.
const KEYS_PER_CLIENT: usize = 3;

/// How long keys are good.
#[derive(Debug, Clone, Copy)]
pub struct KeyLifetimes {
    /// Of a KEM key; the next one is offered from half of it on.
    pub kem: Duration,
    /// Of a payload key.
    pub payload: Duration,
    /// Messages under one payload key.
    pub payload_messages: u64,
}

/// A payload key that was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AcceptedKey {
    /// Its id.
    pub kid: PayloadKid,
    /// Its end.
    pub not_after: Timestamp,
    /// How many messages it is good for.
    pub max_messages: u64,
}

/// See the module.
#[derive(Debug)]
pub struct KeyRing {
    network: NetworkId,
    node: NodeId,
    lifetimes: KeyLifetimes,
    kem: KemKeyPair,
    previous_kem: Option<KemKeyPair>,
    clients: HashMap<ClientId, ClientKeys>,
}

#[derive(Debug, Default)]
struct ClientKeys {
    last_epoch: u64,
    /// The newest last.
    keys: Vec<HeldKey>,
}

#[derive(Debug)]
struct HeldKey {
    kid: PayloadKid,
    key: PayloadKey,
    not_after: Timestamp,
    messages_left: u64,
}

impl KeyRing {
    /// A ring with a fresh KEM key and nothing else.
    ///
    /// # Errors
    /// [`CryptoError::NoRandomness`].
    pub fn new(
        network: NetworkId,
        node: NodeId,
        lifetimes: KeyLifetimes,
        now: Timestamp,
    ) -> Result<Self, CryptoError> {
        let kem = fresh_kem(&node, lifetimes, now)?;
        Ok(Self { network, node, lifetimes, kem, previous_kem: None, clients: HashMap::new() })
    }

    /// The KEM key to offer now; a fresh one when the last is past half of its life, so that a
    /// client always gets one that it can still use.
    ///
    /// # Errors
    /// [`CryptoError::NoRandomness`].
    pub fn offer(&mut self, now: Timestamp) -> Result<&KemKeyPair, CryptoError> {
        let half_life = millis(self.lifetimes.kem) / 2;
        if self.kem.not_after().since(now) <= half_life {
            let fresh = fresh_kem(&self.node, self.lifetimes, now)?;
            self.previous_kem = Some(std::mem::replace(&mut self.kem, fresh));
        }
        Ok(&self.kem)
    }

    /// The last epoch accepted from a client; 0 if none since the start.
    pub fn last_epoch(&self, client: &ClientId) -> u64 {
        self.clients.get(client).map_or(0, |keys| keys.last_epoch)
    }

    /// Takes a payload key whose message was verified with the client's registered key. The keys
    /// that it replaces stay good for another minute.
    ///
    /// # Errors
    /// [`KeyFailCode`], as the client is told.
    pub fn accept(
        &mut self,
        client: &ClientId,
        message: &KeyTransport,
        now: Timestamp,
    ) -> Result<AcceptedKey, KeyFailCode> {
        let kem = self.kem_of(&message.kem_kid).ok_or(KeyFailCode::KemExpired)?;
        let last_epoch = self.last_epoch(client);
        let (kid, key) = kem.accept(&self.network, client, message, last_epoch, now)?;
        let not_after = now.plus_ms(millis(self.lifetimes.payload));
        let messages_left = self.lifetimes.payload_messages;
        let held = self.clients.entry(client.clone()).or_default();
        held.last_epoch = message.epoch;
        for replaced in &mut held.keys {
            replaced.not_after = replaced.not_after.min(now.plus_ms(OLD_KEY_OVERLAP_MS));
        }
        if held.keys.len() == KEYS_PER_CLIENT {
            held.keys.remove(0);
        }
        held.keys.push(HeldKey { kid, key, not_after, messages_left });
        Ok(AcceptedKey { kid, not_after, max_messages: messages_left })
    }

    fn kem_of(&self, kid: &KemKid) -> Option<&KemKeyPair> {
        [Some(&self.kem), self.previous_kem.as_ref()].into_iter().flatten().find(|kem| kem.kid() == *kid)
    }

    /// The payload key with this id.
    ///
    /// # Errors
    /// Why the client has to hand over another one.
    pub fn find(
        &self,
        client: &ClientId,
        kid: &PayloadKid,
        now: Timestamp,
    ) -> Result<PayloadKey, ForbiddenReason> {
        let keys = self.clients.get(client).map(|held| held.keys.as_slice()).unwrap_or_default();
        let held = keys.iter().find(|held| held.kid == *kid).ok_or(ForbiddenReason::NoKey)?;
        if now > held.not_after || held.messages_left == 0 {
            return Err(ForbiddenReason::KeyExpired);
        }
        Ok(held.key.clone())
    }

    /// Counts a message that was decrypted with a key.
    pub fn note_used(&mut self, client: &ClientId, kid: &PayloadKid) {
        let held = self.clients.get_mut(client).and_then(|held| held.keys.iter_mut().find(|key| key.kid == *kid));
        if let Some(held) = held {
            held.messages_left = held.messages_left.saturating_sub(1);
        }
    }

    /// Forgets a client's keys: it was revoked or registered anew.
    pub fn forget(&mut self, client: &ClientId) {
        self.clients.remove(client);
    }
}

fn fresh_kem(node: &NodeId, lifetimes: KeyLifetimes, now: Timestamp) -> Result<KemKeyPair, CryptoError> {
    let private = Zeroizing::new(random_bytes::<32>()?);
    Ok(KemKeyPair::new(node, &private, random_bytes()?, now.plus_ms(millis(lifetimes.kem))))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
