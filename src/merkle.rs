//! Merkle trees of BLAKE3 with separated leaf and node domains: the shape of RFC 9162.
//!
//! ```text
//! leaf = BLAKE3(0x00 ‖ leaf bytes)     node = BLAKE3(0x01 ‖ left ‖ right)
//! a lone last node of a level moves up unchanged
//! ```
//!
//! One tree spans the data items of a message (PROTOCOL.md section 6), one the operations of a
//! block. The arithmetic is rs_merkle's; what it leaves to its caller is settled here: the count of
//! leaves comes from a signed header, indexes are in range and ascending, and a proof has exactly
//! the hashes that it needs.

use rs_merkle::{Hasher, MerkleProof, MerkleTree};

use crate::types::Hash;

/// The most leaves that a tree of ours has; bounds what a proof can make a verifier do.
pub const MAX_LEAVES: usize = 65_536;

/// Why a proof was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MerkleError {
    /// No leaf, more leaves than the tree has, or a tree too large.
    #[error("the number of leaves does not fit the tree")]
    Count,
    /// An index out of range, twice, or out of order.
    #[error("leaf indexes must ascend and be below the count of leaves")]
    Index,
    /// More or fewer hashes than the proof needs.
    #[error("the proof has {found} hashes, it needs {expected}")]
    Length {
        /// Hashes in the proof.
        found: usize,
        /// Hashes that a proof of these leaves has.
        expected: usize,
    },
    /// Leads to another root.
    #[error("the proof does not lead to the root")]
    Root,
}

#[derive(Clone)]
struct Blake3;

impl Hasher for Blake3 {
    type Hash = [u8; 32];

    fn hash(data: &[u8]) -> [u8; 32] {
        leaf_hash(data).0
    }

    fn concat_and_hash(left: &[u8; 32], right: Option<&[u8; 32]>) -> [u8; 32] {
        let Some(right) = right else { return *left };
        let mut bytes = [1; 65];
        bytes[1..33].copy_from_slice(left);
        bytes[33..].copy_from_slice(right);
        *blake3::hash(&bytes).as_bytes()
    }
}

/// The hash of one leaf.
pub fn leaf_hash(bytes: &[u8]) -> Hash {
    Hash(*blake3::Hasher::new().update(&[0]).update(bytes).finalize().as_bytes())
}

/// A tree over the leaves of one message or block.
pub struct Tree {
    tree: MerkleTree<Blake3>,
    root: Hash,
}

impl Tree {
    /// The tree over `leaves`, of which there are 1 to [`MAX_LEAVES`].
    ///
    /// # Errors
    /// [`MerkleError::Count`].
    pub fn new<L: AsRef<[u8]>>(leaves: &[L]) -> Result<Self, MerkleError> {
        if leaves.len() > MAX_LEAVES {
            return Err(MerkleError::Count);
        }
        let hashes: Vec<_> = leaves.iter().map(|leaf| leaf_hash(leaf.as_ref()).0).collect();
        let tree = MerkleTree::from_leaves(&hashes);
        let root = Hash(tree.root().ok_or(MerkleError::Count)?);
        Ok(Self { tree, root })
    }

    /// The root.
    pub const fn root(&self) -> Hash {
        self.root
    }

    /// The proof for the leaves at `indexes`, which ascend and are in range.
    ///
    /// # Errors
    /// [`MerkleError::Count`] or [`MerkleError::Index`].
    pub fn prove(&self, indexes: &[u32]) -> Result<Vec<Hash>, MerkleError> {
        let indexes = checked_indexes(indexes, self.tree.leaves_len())?;
        Ok(self.tree.proof(&indexes).proof_hashes().iter().map(|hash| Hash(*hash)).collect())
    }
}

/// Checks that `leaves`, pairs of index and leaf bytes, are in the tree of `count` leaves under `root`.
///
/// # Errors
/// [`MerkleError`]: which rule the proof breaks.
pub fn verify<L: AsRef<[u8]>>(
    root: &Hash,
    count: usize,
    leaves: &[(u32, L)],
    proof: &[Hash],
) -> Result<(), MerkleError> {
    let indexes: Vec<u32> = leaves.iter().map(|(index, _)| *index).collect();
    let indexes = checked_indexes(&indexes, count)?;
    let expected = proof_length(&indexes, count);
    if proof.len() != expected {
        return Err(MerkleError::Length { found: proof.len(), expected });
    }
    let hashes: Vec<_> = leaves.iter().map(|(_, leaf)| leaf_hash(leaf.as_ref()).0).collect();
    let proof = MerkleProof::<Blake3>::new(proof.iter().map(|hash| hash.0).collect());
    if proof.verify(root.0, &indexes, &hashes, count) { Ok(()) } else { Err(MerkleError::Root) }
}

fn checked_indexes(indexes: &[u32], count: usize) -> Result<Vec<usize>, MerkleError> {
    if indexes.is_empty() || indexes.len() > count || count > MAX_LEAVES {
        return Err(MerkleError::Count);
    }
    let ascending = indexes.windows(2).all(|pair| pair[0] < pair[1]);
    let indexes: Vec<usize> = indexes.iter().map(|index| *index as usize).collect();
    if !ascending || indexes.last().is_none_or(|last| *last >= count) {
        return Err(MerkleError::Index);
    }
    Ok(indexes)
}

/// How many hashes a proof of `indexes` (ascending) in a tree of `count` leaves has.
fn proof_length(indexes: &[usize], count: usize) -> usize {
    let mut known = indexes.to_vec();
    let mut width = count;
    let mut needed = 0;
    while width > 1 {
        let mut parents = Vec::with_capacity(known.len());
        for (at, &index) in known.iter().enumerate() {
            let sibling = index ^ 1;
            let has_sibling = known.get(at + 1) == Some(&sibling) || at > 0 && known[at - 1] == sibling;
            needed += usize::from(sibling < width && !has_sibling);
            if parents.last() != Some(&(index / 2)) {
                parents.push(index / 2);
            }
        }
        known = parents;
        width = width.div_ceil(2);
    }
    needed
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn leaves(count: usize) -> Vec<Vec<u8>> {
        (0..count).map(|at| format!("leaf {at}").into_bytes()).collect()
    }

    /// The tree of RFC 9162 section 2.1.1, written from its definition.
    fn reference_root(leaves: &[Vec<u8>]) -> Hash {
        match leaves {
            [leaf] => leaf_hash(leaf),
            _ => {
                let split = leaves.len().next_power_of_two() / 2;
                let left = reference_root(&leaves[..split]);
                let right = reference_root(&leaves[split..]);
                Hash(Blake3::concat_and_hash(&left.0, Some(&right.0)))
            }
        }
    }

    #[test]
    fn no_leaves_make_no_tree() {
        assert_eq!(Tree::new::<Vec<u8>>(&[]).err(), Some(MerkleError::Count));
    }

    proptest! {
        #[test]
        fn the_root_is_that_of_rfc_9162(count in 1_usize..70) {
            let leaves = leaves(count);
            prop_assert_eq!(Tree::new(&leaves).unwrap().root(), reference_root(&leaves));
        }

        #[test]
        fn every_proof_verifies_and_no_altered_one_does(
            count in 1_usize..70, picks in proptest::collection::btree_set(0_u32..70, 1..8), flip in any::<u8>(),
        ) {
            let leaves = leaves(count);
            let tree = Tree::new(&leaves).unwrap();
            let picks: Vec<u32> = picks.into_iter().filter(|at| (*at as usize) < count).collect();
            prop_assume!(!picks.is_empty());
            let proof = tree.prove(&picks).unwrap();
            let proven: Vec<_> = picks.iter().map(|at| (*at, leaves[*at as usize].clone())).collect();
            prop_assert_eq!(verify(&tree.root(), count, &proven, &proof), Ok(()));

            let mut altered = proven.clone();
            altered[flip as usize % proven.len()].1[0] ^= 1;
            prop_assert_eq!(verify(&tree.root(), count, &altered, &proof), Err(MerkleError::Root));

            let mut surplus = proof.clone();
            surplus.push(Hash([flip; 32]));
            let refused = matches!(verify(&tree.root(), count, &proven, &surplus), Err(MerkleError::Length { .. }));
            prop_assert!(refused, "a surplus hash was taken");

            if !proof.is_empty() {
                prop_assert!(verify(&tree.root(), count, &proven, &proof[1..]).is_err());
            }
        }
    }

    #[test]
    fn indexes_out_of_range_order_or_twice_are_refused() {
        let leaves = leaves(5);
        let tree = Tree::new(&leaves).unwrap();
        for bad in [&[5_u32][..], &[1, 0], &[2, 2]] {
            assert_eq!(tree.prove(bad).err(), Some(MerkleError::Index), "{bad:?}");
            let proven: Vec<_> = bad.iter().map(|at| (*at, b"x")).collect();
            assert_eq!(verify(&tree.root(), 5, &proven, &[]), Err(MerkleError::Index));
        }
        assert_eq!(tree.prove(&[]).err(), Some(MerkleError::Count));
    }
}
