//! Key transport (docs/PROTOCOL.md section 5): how a payload key comes from a client to one node.
//!
//! ```text
//! client                                        node
//!   {id}/key        empty or nonce       ─▶
//!                                        ◀─     forbidden {kem_kid, kem_key, …}   signed by the node
//!   {id}/key        {kem_kid, enc, ct}   ─▶                                       signed by the client
//!                                        ◀─     key/success {kid, …} or key/fail
//! ```
//!
//! HPKE (RFC 9180) base mode: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20Poly1305, with info
//! `["ledgermq", 1, "key", network id, client id]` and an empty AAD. All randomness is an argument,
//! so both sides are functions. Secrets are wiped when dropped and never printed.

use std::convert::Infallible;
use std::fmt;

use hpke::aead::ChaCha20Poly1305;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::rand_core::{TryCryptoRng, TryRng};
use hpke::{Deserializable as _, Kem as _, OpModeR, OpModeS, Serializable as _};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::codes::KeyFailCode;
use super::control::{ControlError, KeyTransport, MAX_UPLINK_CONTROL_BYTES, SignedControl};
use super::cose;
use super::ids::{KemKid, Nonce, PayloadKid};
use crate::types::{ClientId, NetworkId, NodeId, Timestamp};

/// How far an epoch may be ahead of the node's clock.
pub const MAX_EPOCH_AHEAD_MS: u64 = 5 * 60 * 1000;

/// How long a client's old payload key stays valid at a node after it was replaced there.
pub const OLD_KEY_OVERLAP_MS: u64 = 60 * 1000;

/// How long a payload key lives, unless the node is set otherwise.
pub const DEFAULT_KEY_LIFETIME_MS: u64 = 24 * 60 * 60 * 1000;

/// For how many messages a payload key is good, unless the node is set otherwise.
pub const DEFAULT_KEY_MESSAGES: u64 = 1 << 20;

/// The highest epoch there is: 2^53 - 1, which every JSON reader can hold.
pub const MAX_EPOCH: u64 = (1 << 53) - 1;

/// 32 bytes that encrypt a client's telemetry to one node. In memory only.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct PayloadKey([u8; 32]);

impl PayloadKey {
    /// The key with these bytes; a client passes fresh random ones for each node and key transport.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for PayloadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PayloadKey(secret)")
    }
}

/// What a client publishes to `{id}/key`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyUplink<'a> {
    /// It asks for the node's KEM key.
    Ask {
        /// To be echoed in `forbidden`; none if the payload was empty.
        nonce: Option<Nonce>,
    },
    /// It hands over a payload key; not verified yet.
    Transport(SignedControl<'a>),
}

impl<'a> KeyUplink<'a> {
    /// Tells the three payloads of `{id}/key` apart.
    ///
    /// # Errors
    /// [`ControlError`] if it is none of them.
    pub fn parse(payload: &'a [u8]) -> Result<Self, ControlError> {
        if payload.is_empty() {
            return Ok(Self::Ask { nonce: None });
        }
        if let Ok(nonce) = <[u8; 16]>::try_from(payload) {
            return Ok(Self::Ask { nonce: Some(Nonce(nonce)) });
        }
        SignedControl::decode(payload, MAX_UPLINK_CONTROL_BYTES).map(Self::Transport)
    }
}

/// A node's X25519 key pair for receiving payload keys. In memory only.
pub struct KemKeyPair {
    kid: KemKid,
    node: NodeId,
    private: <X25519HkdfSha256 as hpke::Kem>::PrivateKey,
    public: [u8; 32],
    not_after: Timestamp,
}

impl KemKeyPair {
    /// The pair of a private key of 32 random bytes, named by 8 more.
    ///
    /// # Panics
    /// Never: 32 bytes are an X25519 private key.
    #[allow(clippy::expect_used)]
    pub fn new(node: &NodeId, private: &Zeroizing<[u8; 32]>, name: [u8; 8], not_after: Timestamp) -> Self {
        let private = <X25519HkdfSha256 as hpke::Kem>::PrivateKey::from_bytes(private.as_slice())
            .expect("32 bytes are an X25519 private key");
        let mut public = [0; 32];
        public.copy_from_slice(&X25519HkdfSha256::sk_to_pk(&private).to_bytes());
        Self { kid: KemKid::new(node, name), node: *node, private, public, not_after }
    }

    /// Its name.
    pub const fn kid(&self) -> KemKid {
        self.kid
    }

    /// Its public half.
    pub const fn public(&self) -> &[u8; 32] {
        &self.public
    }

    /// Until when it opens anything.
    pub const fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// Judges a key transport whose signature was verified, and opens it: step 3 of PROTOCOL.md
    /// section 5. The caller found this pair by the message's `kem_kid` and remembers the epoch.
    ///
    /// # Errors
    /// The code for `key/fail`, of the first check that fails.
    pub fn accept(
        &self,
        network: &NetworkId,
        client: &ClientId,
        message: &KeyTransport,
        last_epoch: u64,
        now: Timestamp,
    ) -> Result<(PayloadKid, PayloadKey), KeyFailCode> {
        if message.kem_kid != self.kid || now > self.not_after {
            return Err(KeyFailCode::KemExpired);
        }
        if message.epoch <= last_epoch {
            return Err(KeyFailCode::StaleEpoch);
        }
        if message.epoch > now.plus_ms(MAX_EPOCH_AHEAD_MS).0.min(MAX_EPOCH) {
            return Err(KeyFailCode::EpochAhead);
        }
        let key = self.open(network, client, message).ok_or(KeyFailCode::BadCiphertext)?;
        Ok((PayloadKid::new(&self.node, &message.enc), key))
    }

    fn open(&self, network: &NetworkId, client: &ClientId, message: &KeyTransport) -> Option<PayloadKey> {
        let enc = <X25519HkdfSha256 as hpke::Kem>::EncappedKey::from_bytes(&message.enc).ok()?;
        let opened = hpke::single_shot_open::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
            &OpModeR::Base,
            &self.private,
            &enc,
            &info(network, client),
            &message.ct,
            &[],
        );
        let opened = Zeroizing::new(opened.ok()?);
        Some(PayloadKey(opened.as_slice().try_into().ok()?))
    }
}

impl fmt::Debug for KemKeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KemKeyPair")
            .field("kid", &self.kid)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// The node's KEM key is none: a low-order point, with which no secret can be shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the node's KEM key is not usable; ask for another")]
pub struct BadKemKey;

/// A payload key, sealed to a node: `enc` and `ct` of a [`KeyTransport`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedKey {
    /// HPKE's encapsulated key.
    pub enc: [u8; 32],
    /// Ciphertext and tag.
    pub ct: [u8; 48],
}

impl SealedKey {
    /// The payload key's name at `node`.
    pub fn kid(&self, node: &NodeId) -> PayloadKid {
        PayloadKid::new(node, &self.enc)
    }
}

/// Seals a payload key to a node's KEM key; the client's side. `randomness` must be fresh for each
/// call: HPKE's ephemeral key is derived from it.
///
/// # Errors
/// [`BadKemKey`].
pub fn seal(
    network: &NetworkId,
    client: &ClientId,
    kem_key: &[u8; 32],
    payload_key: &PayloadKey,
    randomness: &Zeroizing<[u8; 32]>,
) -> Result<SealedKey, BadKemKey> {
    let kem_key = <X25519HkdfSha256 as hpke::Kem>::PublicKey::from_bytes(kem_key).map_err(|_| BadKemKey)?;
    let (enc, ct) = hpke::single_shot_seal_with_rng::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
        &OpModeS::Base,
        &kem_key,
        &info(network, client),
        payload_key.as_bytes(),
        &[],
        &mut Expanded::new(randomness),
    )
    .map_err(|_| BadKemKey)?;
    let ct = ct.as_slice().try_into().map_err(|_| BadKemKey)?;
    let mut sealed = SealedKey { enc: [0; 32], ct };
    sealed.enc.copy_from_slice(&enc.to_bytes());
    Ok(sealed)
}

fn info(network: &NetworkId, client: &ClientId) -> Vec<u8> {
    cose::domain("key", network, Some(client.as_str()))
}

/// The generator that HPKE asks for, made of random bytes that the caller brought: BLAKE3's
/// extendable output, so that it never runs dry.
struct Expanded(blake3::OutputReader);

impl Expanded {
    fn new(randomness: &[u8; 32]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("ledgermq v1 hpke randomness");
        Self(hasher.update(randomness).finalize_xof())
    }
}

impl TryRng for Expanded {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut bytes = [0; 4];
        self.0.fill(&mut bytes);
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, dst: &mut [u8]) -> Result<(), Infallible> {
        self.0.fill(dst);
        Ok(())
    }
}

impl TryCryptoRng for Expanded {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{SecretKey, VerifyingKey};
    use crate::device::control;
    use proptest::prelude::*;

    const NETWORK: NetworkId = NetworkId([1; 32]);
    const NODE: NodeId = NodeId([5; 32]);
    const NOW: Timestamp = Timestamp(1_767_225_600_000);

    fn client() -> ClientId {
        ClientId::new("devices/iot").unwrap()
    }

    fn pair() -> KemKeyPair {
        KemKeyPair::new(&NODE, &Zeroizing::new([6; 32]), [2; 8], NOW.plus_ms(1000))
    }

    fn transport() -> KeyTransport {
        let key = PayloadKey::new([9; 32]);
        let sealed = seal(&NETWORK, &client(), pair().public(), &key, &Zeroizing::new([3; 32])).unwrap();
        let SealedKey { enc, ct } = sealed;
        KeyTransport { kem_kid: pair().kid(), enc, ct, epoch: NOW.0, nonce: Nonce([4; 16]), time: NOW }
    }

    #[test]
    fn a_sealed_key_opens_at_its_node() {
        let message = transport();
        let (kid, key) = pair().accept(&NETWORK, &client(), &message, 0, NOW).unwrap();
        assert_eq!(key, PayloadKey::new([9; 32]));
        assert_eq!(kid, SealedKey { enc: message.enc, ct: message.ct }.kid(&NODE));
        assert!(kid.is_of(&NODE));
    }

    #[test]
    fn a_sealed_key_is_bound_to_network_and_client() {
        let message = transport();
        let other = ClientId::new("devices/other").unwrap();
        let bad = Err(KeyFailCode::BadCiphertext);
        assert_eq!(pair().accept(&NetworkId([2; 32]), &client(), &message, 0, NOW), bad);
        assert_eq!(pair().accept(&NETWORK, &other, &message, 0, NOW), bad);
    }

    #[test]
    fn every_bit_flip_of_a_sealed_key_is_refused() {
        let message = transport();
        for bit in 0..(32 + 48) * 8 {
            let mut altered = message.clone();
            let byte = bit / 8;
            let target = if byte < 32 { &mut altered.enc[byte] } else { &mut altered.ct[byte - 32] };
            *target ^= 1 << (bit % 8);
            let refused = pair().accept(&NETWORK, &client(), &altered, 0, NOW);
            assert_eq!(refused, Err(KeyFailCode::BadCiphertext), "bit {bit}");
        }
    }

    #[test]
    fn epochs_must_rise_and_stay_near_the_clock() {
        let accept = |epoch, last| {
            let message = KeyTransport { epoch, ..transport() };
            pair().accept(&NETWORK, &client(), &message, last, NOW).map(|_| ())
        };
        assert_eq!(accept(NOW.0, NOW.0 - 1), Ok(()));
        assert_eq!(accept(NOW.0, NOW.0), Err(KeyFailCode::StaleEpoch));
        assert_eq!(accept(0, 0), Err(KeyFailCode::StaleEpoch));
        assert_eq!(accept(NOW.0 + MAX_EPOCH_AHEAD_MS, 0), Ok(()));
        assert_eq!(accept(NOW.0 + MAX_EPOCH_AHEAD_MS + 1, 0), Err(KeyFailCode::EpochAhead));
        assert_eq!(accept(u64::MAX, 0), Err(KeyFailCode::EpochAhead));
    }

    #[test]
    fn an_expired_or_unknown_kem_key_opens_nothing() {
        let message = transport();
        let late = NOW.plus_ms(1001);
        let expired = Err(KeyFailCode::KemExpired);
        assert_eq!(pair().accept(&NETWORK, &client(), &message, 0, late), expired);
        let other = KeyTransport { kem_kid: KemKid::new(&NODE, [3; 8]), ..message };
        assert_eq!(pair().accept(&NETWORK, &client(), &other, 0, NOW), expired);
    }

    #[test]
    fn a_low_order_kem_key_is_refused() {
        let sealed = seal(&NETWORK, &client(), &[0; 32], &PayloadKey::new([9; 32]), &Zeroizing::new([3; 32]));
        assert_eq!(sealed, Err(BadKemKey));
    }

    #[test]
    fn payloads_of_the_key_topic_are_told_apart() {
        assert_eq!(KeyUplink::parse(b""), Ok(KeyUplink::Ask { nonce: None }));
        let nonce = [8; 16];
        assert_eq!(KeyUplink::parse(&nonce), Ok(KeyUplink::Ask { nonce: Some(Nonce(nonce)) }));
        assert!(KeyUplink::parse(&[8; 15]).is_err());
        let key = SecretKey::from_seed(&[7; 32]);
        let bytes = control::sign(&NETWORK, &client(), &key, &transport());
        let Ok(KeyUplink::Transport(message)) = KeyUplink::parse(&bytes) else { panic!("not a transport") };
        let verifying = VerifyingKey::parse(&key.public()).unwrap();
        assert_eq!(message.verify(&NETWORK, &client(), &verifying), Ok(transport()));
        assert_eq!(message.unverified(), Some(transport()));
    }

    #[test]
    fn secrets_are_not_printed() {
        let printed = format!("{:?} {:?}", PayloadKey::new([0xab; 32]), pair());
        assert!(!printed.contains("171") && !printed.contains("abab"), "{printed}");
    }

    proptest! {
        #[test]
        fn arbitrary_payloads_of_the_key_topic_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = KeyUplink::parse(&bytes);
        }

        #[test]
        fn arbitrary_encapsulated_keys_never_panic(
            enc in any::<[u8; 32]>(), ct in prop::collection::vec(any::<u8>(), 48), epoch in any::<u64>(),
        ) {
            let message = KeyTransport { enc, ct: ct.try_into().unwrap(), epoch, ..transport() };
            prop_assert!(pair().accept(&NETWORK, &client(), &message, 0, NOW).is_err());
        }
    }
}
