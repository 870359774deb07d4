//! Randomness for the session: BLAKE3's extendable output over one seed from the operating system.
//!
//! So the session stays a function of its inputs, and tests own their randomness.

use zeroize::Zeroizing;

pub(super) struct Random(blake3::OutputReader);

impl Random {
    /// `seed` must be secret and fresh for each process.
    pub(super) fn new(seed: &Zeroizing<[u8; 32]>) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("ledgermq v1 gateway randomness");
        Self(hasher.update(seed.as_slice()).finalize_xof())
    }

    pub(super) fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.fill(&mut bytes);
        bytes
    }

    pub(super) fn secret(&mut self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.bytes())
    }
}
