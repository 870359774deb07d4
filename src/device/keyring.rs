//! The payload keys that a node holds for its clients (docs/PROTOCOL.md section 5, step 4).
//!
//! In memory only. A client has one current key and, for a minute after it replaced that, the one
//! before. A key ends by time or by number of messages; only verified messages count, so that
//! nobody who merely knows a key's id can use it up. The last epoch of each client outlives its
//! keys: a key transport that was recorded can never be played again while its KEM key lives.
//!
//! Grows with the registered clients that handed over a key here, two keys each.

use std::collections::BTreeMap;

use super::codes::ForbiddenReason;
use super::handshake::{DEFAULT_KEY_LIFETIME_MS, DEFAULT_KEY_MESSAGES, OLD_KEY_OVERLAP_MS, PayloadKey};
use super::ids::PayloadKid;
use crate::types::{ClientId, Timestamp};

/// How long payload keys last at a node; its settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyTerms {
    /// In milliseconds from the moment the node took the key.
    pub lifetime_ms: u64,
    /// In verified messages.
    pub max_messages: u64,
}

impl Default for KeyTerms {
    /// 24 hours, 2^20 messages.
    fn default() -> Self {
        Self { lifetime_ms: DEFAULT_KEY_LIFETIME_MS, max_messages: DEFAULT_KEY_MESSAGES }
    }
}

/// All payload keys of one node.
#[derive(Debug, Default)]
pub struct KeyRing {
    terms: KeyTerms,
    clients: BTreeMap<ClientId, ClientKeys>,
    held: usize,
}

#[derive(Debug, Default)]
struct ClientKeys {
    last_epoch: u64,
    current: Option<HeldKey>,
    previous: Option<HeldKey>,
}

#[derive(Debug)]
struct HeldKey {
    kid: PayloadKid,
    key: PayloadKey,
    not_after: Timestamp,
    messages_left: u64,
}

impl ClientKeys {
    fn count(&self) -> usize {
        usize::from(self.current.is_some()) + usize::from(self.previous.is_some())
    }
}

impl KeyRing {
    /// No keys yet.
    pub const fn new(terms: KeyTerms) -> Self {
        Self { terms, clients: BTreeMap::new(), held: 0 }
    }

    /// The last epoch that was accepted from a client; 0 if none.
    pub fn last_epoch(&self, client: &ClientId) -> u64 {
        self.clients.get(client).map_or(0, |keys| keys.last_epoch)
    }

    /// Takes the key that [`super::handshake::KemKeyPair::accept`] opened; the one before stays good
    /// for a minute. Gives `not_after` for `key/success`.
    pub fn insert(
        &mut self,
        client: &ClientId,
        kid: PayloadKid,
        key: PayloadKey,
        epoch: u64,
        now: Timestamp,
    ) -> Timestamp {
        let not_after = now.plus_ms(self.terms.lifetime_ms).min(Timestamp::MAX);
        let keys = self.clients.entry(client.clone()).or_default();
        self.held -= keys.count();
        keys.previous = keys.current.take().map(|mut previous| {
            previous.not_after = previous.not_after.min(now.plus_ms(OLD_KEY_OVERLAP_MS));
            previous
        });
        keys.current = Some(HeldKey { kid, key, not_after, messages_left: self.terms.max_messages });
        keys.last_epoch = keys.last_epoch.max(epoch);
        self.held += keys.count();
        not_after
    }

    /// How many keys are held, ended ones that were not replaced included.
    pub const fn len(&self) -> usize {
        self.held
    }

    /// Whether no key is held.
    pub const fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// The number for `max_messages` of `key/success`.
    pub const fn max_messages(&self) -> u64 {
        self.terms.max_messages
    }

    /// The key that an envelope names.
    ///
    /// # Errors
    /// The reason for `forbidden`.
    pub fn key(
        &self,
        client: &ClientId,
        kid: &PayloadKid,
        now: Timestamp,
    ) -> Result<&PayloadKey, ForbiddenReason> {
        let keys = self.clients.get(client).ok_or(ForbiddenReason::NoKey)?;
        let held = [&keys.current, &keys.previous].into_iter().flatten().find(|held| held.kid == *kid);
        let held = held.ok_or(ForbiddenReason::NoKey)?;
        if now > held.not_after || held.messages_left == 0 {
            return Err(ForbiddenReason::KeyExpired);
        }
        Ok(&held.key)
    }

    /// Counts a message that was verified after decryption with this key.
    pub fn count(&mut self, client: &ClientId, kid: &PayloadKid) {
        let Some(keys) = self.clients.get_mut(client) else { return };
        let held = [&mut keys.current, &mut keys.previous].into_iter().flatten();
        for held in held.filter(|held| held.kid == *kid) {
            held.messages_left = held.messages_left.saturating_sub(1);
        }
    }

    /// Forgets the keys of a client that was revoked or registered anew; its epoch stays.
    pub fn forget(&mut self, client: &ClientId) {
        if let Some(keys) = self.clients.get_mut(client) {
            self.held -= keys.count();
            keys.current = None;
            keys.previous = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_767_225_600_000);
    const ONE: PayloadKid = PayloadKid([1; 16]);
    const TWO: PayloadKid = PayloadKid([2; 16]);
    const THREE: PayloadKid = PayloadKid([3; 16]);

    fn client() -> ClientId {
        ClientId::new("devices/iot").unwrap()
    }

    fn key(byte: u8) -> PayloadKey {
        PayloadKey::new([byte; 32])
    }

    fn ring() -> KeyRing {
        let mut ring = KeyRing::new(KeyTerms { lifetime_ms: 100_000, max_messages: 3 });
        assert_eq!(ring.insert(&client(), ONE, key(1), 5, NOW), NOW.plus_ms(100_000));
        ring
    }

    #[test]
    fn a_key_is_found_by_client_and_id_together() {
        let other = ClientId::new("devices/other").unwrap();
        assert_eq!(ring().key(&client(), &ONE, NOW), Ok(&key(1)));
        assert_eq!(ring().key(&client(), &TWO, NOW), Err(ForbiddenReason::NoKey));
        assert_eq!(ring().key(&other, &ONE, NOW), Err(ForbiddenReason::NoKey));
    }

    #[test]
    fn a_key_ends_with_its_time() {
        assert!(ring().key(&client(), &ONE, NOW.plus_ms(100_000)).is_ok());
        let expired = Err(ForbiddenReason::KeyExpired);
        assert_eq!(ring().key(&client(), &ONE, NOW.plus_ms(100_001)), expired);
    }

    #[test]
    fn a_key_ends_with_its_messages() {
        let mut ring = ring();
        for _ in 0..3 {
            assert!(ring.key(&client(), &ONE, NOW).is_ok());
            ring.count(&client(), &ONE);
        }
        assert_eq!(ring.key(&client(), &ONE, NOW), Err(ForbiddenReason::KeyExpired));
        ring.count(&client(), &ONE);
        ring.count(&client(), &TWO);
    }

    #[test]
    fn a_replaced_key_stays_good_for_a_minute_and_no_older_one_does() {
        let mut ring = ring();
        ring.insert(&client(), TWO, key(2), 6, NOW);
        assert_eq!(ring.key(&client(), &TWO, NOW), Ok(&key(2)));
        assert!(ring.key(&client(), &ONE, NOW.plus_ms(60_000)).is_ok());
        let expired = Err(ForbiddenReason::KeyExpired);
        assert_eq!(ring.key(&client(), &ONE, NOW.plus_ms(60_001)), expired);
        ring.insert(&client(), THREE, key(3), 7, NOW);
        assert_eq!(ring.key(&client(), &ONE, NOW), Err(ForbiddenReason::NoKey));
        assert!(ring.key(&client(), &TWO, NOW).is_ok());
    }

    #[test]
    fn replacing_never_lengthens_the_old_keys_life() {
        let mut ring = ring();
        let late = NOW.plus_ms(99_000);
        ring.insert(&client(), TWO, key(2), 6, late);
        let expired = Err(ForbiddenReason::KeyExpired);
        assert_eq!(ring.key(&client(), &ONE, NOW.plus_ms(100_001)), expired);
    }

    #[test]
    fn epochs_outlive_keys() {
        let mut ring = ring();
        assert_eq!((ring.last_epoch(&client()), ring.len()), (5, 1));
        ring.insert(&client(), TWO, key(2), 4, NOW);
        assert_eq!(ring.len(), 2);
        ring.insert(&client(), THREE, key(3), 4, NOW);
        assert_eq!(ring.len(), 2);
        ring.forget(&client());
        assert!(ring.is_empty());
        assert_eq!(ring.key(&client(), &ONE, NOW), Err(ForbiddenReason::NoKey));
        assert_eq!(ring.last_epoch(&client()), 5);
        assert_eq!(ring.last_epoch(&ClientId::new("devices/other").unwrap()), 0);
    }
}
