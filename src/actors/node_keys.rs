//! The keys that encrypt telemetry to this node (PROTOCOL.md section 5): its KEM key, which it
//! offers and rotates, and the payload keys that clients handed over. In memory only: after a
//! restart clients are told `forbidden` and hand over new ones.

use std::time::Duration;

use zeroize::Zeroizing;

use crate::crypto::{CryptoError, random_bytes};
use crate::device::codes::KeyFailCode;
use crate::device::control::KeyTransport;
use crate::device::handshake::KemKeyPair;
use crate::device::ids::PayloadKid;
use crate::device::keyring::{KeyRing, KeyTerms};
use crate::types::{ClientId, NetworkId, NodeId, Timestamp};

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
pub struct NodeKeys {
    network: NetworkId,
    node: NodeId,
    kem_lifetime: Duration,
    kem: KemKeyPair,
    previous_kem: Option<KemKeyPair>,
    /// The clients' payload keys.
    pub payload: KeyRing,
}

impl NodeKeys {
    /// A fresh KEM key and nothing else.
    ///
    /// # Errors
    /// [`CryptoError::NoRandomness`].
    pub fn new(
        network: NetworkId,
        node: NodeId,
        kem_lifetime: Duration,
        terms: KeyTerms,
        now: Timestamp,
    ) -> Result<Self, CryptoError> {
        let kem = fresh_kem(&node, kem_lifetime, now)?;
        Ok(Self { network, node, kem_lifetime, kem, previous_kem: None, payload: KeyRing::new(terms) })
    }

    /// The KEM key to offer now; a fresh one when the last is past half of its life, so that a
    /// client always gets one that it can still use.
    ///
    /// # Errors
    /// [`CryptoError::NoRandomness`].
    pub fn offer(&mut self, now: Timestamp) -> Result<&KemKeyPair, CryptoError> {
        let half_life = millis(self.kem_lifetime) / 2;
        if self.kem.not_after().since(now) <= half_life {
            let fresh = fresh_kem(&self.node, self.kem_lifetime, now)?;
            self.previous_kem = Some(std::mem::replace(&mut self.kem, fresh));
        }
        Ok(&self.kem)
    }

    /// Takes a payload key whose message was verified with the client's registered key.
    ///
    /// # Errors
    /// [`KeyFailCode`], as the client is told.
    pub fn accept(
        &mut self,
        client: &ClientId,
        message: &KeyTransport,
        now: Timestamp,
    ) -> Result<AcceptedKey, KeyFailCode> {
        let offered = [Some(&self.kem), self.previous_kem.as_ref()];
        let kem = offered.into_iter().flatten().find(|kem| kem.kid() == message.kem_kid);
        let kem = kem.ok_or(KeyFailCode::KemExpired)?;
        let last_epoch = self.payload.last_epoch(client);
        let (kid, key) = kem.accept(&self.network, client, message, last_epoch, now)?;
        let not_after = self.payload.insert(client, kid, key, message.epoch, now);
        Ok(AcceptedKey { kid, not_after, max_messages: self.payload.max_messages() })
    }
}

fn fresh_kem(node: &NodeId, lifetime: Duration, now: Timestamp) -> Result<KemKeyPair, CryptoError> {
    let private = Zeroizing::new(random_bytes::<32>()?);
    Ok(KemKeyPair::new(node, &private, random_bytes()?, now.plus_ms(millis(lifetime))))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn keys(now: u64) -> NodeKeys {
        let terms = KeyTerms::default();
        NodeKeys::new(NetworkId([1; 32]), NodeId([2; 32]), DAY, terms, Timestamp(now)).unwrap()
    }

    #[test]
    fn a_kem_key_is_offered_for_half_of_its_life_and_taken_for_all_of_it() {
        let mut keys = keys(0);
        let half = millis(DAY) / 2;
        let first = keys.offer(Timestamp(half - 1)).unwrap().kid();
        assert_eq!(keys.offer(Timestamp(0)).unwrap().kid(), first);
        let second = keys.offer(Timestamp(half)).unwrap().kid();
        assert_ne!(second, first);
        assert_eq!(keys.previous_kem.as_ref().map(KemKeyPair::kid), Some(first));
        assert!(keys.kem.not_after() > Timestamp(millis(DAY)));
    }
}
