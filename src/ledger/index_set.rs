//! Which items of a message are on the ledger: a bitmap, since a message has up to 65,536 items
//! and the state keeps 257 messages of each client.
//!
//! Bit `index % 8` of byte `index / 8`, the least significant bit first; no zero byte at the end,
//! so that a set has one encoding.

use bincode::{Decode, Encode};

/// A set of item indexes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct IndexSet(Vec<u8>);

impl IndexSet {
    /// Whether `index` is in the set.
    pub fn contains(&self, index: u32) -> bool {
        let (byte, bit) = place(index);
        self.0.get(byte).is_some_and(|byte| byte & bit != 0)
    }

    /// Puts `index` into the set.
    pub fn insert(&mut self, index: u32) {
        let (byte, bit) = place(index);
        if byte >= self.0.len() {
            self.0.resize(byte + 1, 0);
        }
        self.0[byte] |= bit;
    }

    /// The indexes, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        (0_u32..).zip(&self.0).flat_map(|(at, byte)| {
            (0..8).filter(move |bit| byte & (1 << bit) != 0).map(move |bit| 8 * at + bit)
        })
    }

    /// Whether there is no zero byte at the end.
    pub(super) fn is_canonical(&self) -> bool {
        self.0.last() != Some(&0)
    }
}

impl FromIterator<u32> for IndexSet {
    fn from_iter<I: IntoIterator<Item = u32>>(indexes: I) -> Self {
        let mut set = Self::default();
        indexes.into_iter().for_each(|index| set.insert(index));
        set
    }
}

const fn place(index: u32) -> (usize, u8) {
    (index as usize / 8, 1 << (index % 8))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_a_set_in_canonical_form(indexes in proptest::collection::btree_set(0_u32..65_536, 0..50), other in 0_u32..70_000) {
            let set: IndexSet = indexes.iter().rev().copied().collect();
            prop_assert!(set.is_canonical());
            prop_assert_eq!(set.contains(other), indexes.contains(&other));
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), indexes.into_iter().collect::<Vec<_>>());
        }
    }
}
