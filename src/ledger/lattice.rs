//! A hash of a set that follows additions and removals, whatever the size of the set.
//!
//! ```text
//! element (key, value)  →  1,024 numbers of 16 bits, little-endian: BLAKE3's extended output
//!                          over  len(key) as 8 bytes, big-endian ‖ key ‖ value
//! set                   →  their sum, number by number, mod 2^16
//! digest                →  BLAKE3 over the sum's 2,048 bytes
//! ```
//!
//! LtHash of Bellare and Micciancio (1997) with the parameters of Lewi, Kim, Maykov and Weis
//! ("Securing Update Propagation with Homomorphic Hashing", 2019): finding two sets of one sum is
//! a lattice problem of more than 200 bits. Order does not matter, and adding undoes removing, so
//! the state's digest costs a few microseconds for each change and never a pass over the state.

use crate::crypto::HashKind;
use crate::types::Hash;

const LANES: usize = 1024;

/// The sum of a set's elements.
#[derive(Clone, PartialEq, Eq)]
pub struct Lattice(Box<[u16; LANES]>);

impl Lattice {
    /// The empty set's.
    pub fn new() -> Self {
        Self(Box::new([0; LANES]))
    }

    /// Adds an element that is not in the set.
    pub fn add(&mut self, key: &[u8], value: &[u8]) {
        self.combine(key, value, u16::wrapping_add);
    }

    /// Removes an element that is in the set.
    pub fn remove(&mut self, key: &[u8], value: &[u8]) {
        self.combine(key, value, u16::wrapping_sub);
    }

    fn combine(&mut self, key: &[u8], value: &[u8], with: fn(u16, u16) -> u16) {
        let mut expanded = [0; 2 * LANES];
        let mut hasher = HashKind::StateEntry.hasher();
        hasher.update(&(key.len() as u64).to_be_bytes()).update(key).update(value);
        hasher.finalize_xof().fill(&mut expanded);
        for (lane, bytes) in self.0.iter_mut().zip(expanded.as_chunks().0) {
            *lane = with(*lane, u16::from_le_bytes(*bytes));
        }
    }

    /// The digest of the set.
    pub fn digest(&self) -> Hash {
        let mut bytes = [0; 2 * LANES];
        for (lane, bytes) in self.0.iter().zip(bytes.as_chunks_mut().0) {
            *bytes = lane.to_le_bytes();
        }
        HashKind::StateDigest.hash(&bytes)
    }
}

impl Default for Lattice {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Lattice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Lattice({})", self.digest().short())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn where_the_key_ends_matters() {
        let (mut one, mut other) = (Lattice::new(), Lattice::new());
        one.add(b"ab", b"c");
        other.add(b"a", b"bc");
        assert_ne!(one.digest(), other.digest());
    }

    #[test]
    fn an_element_twice_is_not_the_empty_set() {
        let mut lattice = Lattice::new();
        lattice.add(b"a", b"1");
        lattice.add(b"a", b"1");
        assert_ne!(lattice, Lattice::new());
    }

    proptest! {
        #[test]
        fn the_digest_depends_on_the_set_and_not_on_its_past(
            changes in proptest::collection::vec((0_u8..8, proptest::option::of(any::<u8>())), 0..60),
        ) {
            let mut set = BTreeMap::new();
            let mut followed = Lattice::new();
            for (key, value) in changes {
                let old = match value {
                    Some(value) => set.insert(key, value),
                    None => set.remove(&key),
                };
                if let Some(old) = old {
                    followed.remove(&[key], &[old]);
                }
                if let Some(value) = value {
                    followed.add(&[key], &[value]);
                }
            }
            let mut computed = Lattice::new();
            for (key, value) in set.into_iter().rev() {
                computed.add(&[key], &[value]);
            }
            prop_assert_eq!(followed.digest(), computed.digest());
        }
    }
}
