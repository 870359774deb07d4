//! Merkle trees of BLAKE3 with separated leaf and node domains: the shape of RFC 9162.
//!
//! ```text
//! leaf = BLAKE3(0x00 ‖ leaf bytes)     node = BLAKE3(0x01 ‖ left ‖ right)
//! a lone last node of a level moves up unchanged
//! ```
//!
//! One tree spans the data items of a message (PROTOCOL.md section 6), one the operations of a
//! block. rs_merkle builds the trees; what it leaves to its caller is settled here: the count of
//! leaves comes from a signed header, indexes are in range and ascending, and a proof has exactly
//! the hashes that it needs. Proofs of many leaves are put together and folded here as well, since
//! rs_merkle takes time quadratic in their number, which a client could make 65,536.

use rs_merkle::{Hasher, MerkleTree};

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
        let count = self.tree.leaves_len();
        check_indexes(indexes.iter().copied(), count)?;
        let missing = missing_nodes(indexes.iter().map(|index| *index as usize), count);
        missing.into_iter().map(|node| self.node(node).ok_or(MerkleError::Index)).collect()
    }

    /// A node's hash, which is part of the proof of any leaf below its sibling.
    fn node(&self, (level, index): (usize, usize)) -> Option<Hash> {
        let leaf = (index ^ 1) << level;
        let mut width = self.tree.leaves_len();
        let mut place = 0;
        for below in 0..level {
            place += usize::from((leaf >> below) ^ 1 < width);
            width = width.div_ceil(2);
        }
        self.tree.proof(&[leaf]).proof_hashes().get(place).copied().map(Hash)
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
    check_indexes(leaves.iter().map(|(index, _)| *index), count)?;
    let expected = missing_nodes(leaves.iter().map(|(index, _)| *index as usize), count).len();
    if proof.len() != expected {
        return Err(MerkleError::Length { found: proof.len(), expected });
    }
    let hashes = leaves.iter().map(|(index, leaf)| (*index as usize, leaf_hash(leaf.as_ref()).0)).collect();
    if fold(hashes, count, proof) == Some(root.0) { Ok(()) } else { Err(MerkleError::Root) }
}

fn check_indexes(indexes: impl ExactSizeIterator<Item = u32>, count: usize) -> Result<(), MerkleError> {
    if indexes.len() == 0 || indexes.len() > count || count > MAX_LEAVES {
        return Err(MerkleError::Count);
    }
    let mut above = 0;
    for index in indexes {
        if (index as usize) < above || index as usize >= count {
            return Err(MerkleError::Index);
        }
        above = index as usize + 1;
    }
    Ok(())
}

/// The nodes (level above the leaves, index) that a proof of the leaves at `indexes`, which ascend
/// and are below `count`, has to have: level by level, ascending.
fn missing_nodes(indexes: impl Iterator<Item = usize>, count: usize) -> Vec<(usize, usize)> {
    let mut known: Vec<usize> = indexes.collect();
    let mut width = count;
    let mut level = 0;
    let mut missing = Vec::new();
    while width > 1 {
        let mut parents = Vec::with_capacity(known.len());
        for (at, &index) in known.iter().enumerate() {
            let sibling = index ^ 1;
            let has_sibling = known.get(at + 1) == Some(&sibling) || at > 0 && known[at - 1] == sibling;
            if sibling < width && !has_sibling {
                missing.push((level, sibling));
            }
            if parents.last() != Some(&(index / 2)) {
                parents.push(index / 2);
            }
        }
        known = parents;
        level += 1;
        width = width.div_ceil(2);
    }
    missing
}

/// The root above `nodes`, some leaves with their indexes, and `proof`, the nodes that are missing.
fn fold(mut nodes: Vec<(usize, [u8; 32])>, count: usize, proof: &[Hash]) -> Option<[u8; 32]> {
    let mut proof = proof.iter();
    let mut width = count;
    while width > 1 {
        let mut parents = Vec::with_capacity(nodes.len().div_ceil(2));
        let mut level = nodes.into_iter().peekable();
        while let Some((index, node)) = level.next() {
            let sibling = index ^ 1;
            let parent = if sibling < index {
                Blake3::concat_and_hash(&proof.next()?.0, Some(&node))
            } else if let Some((_, right)) = level.next_if(|(index, _)| *index == sibling) {
                Blake3::concat_and_hash(&node, Some(&right))
            } else if sibling < width {
                Blake3::concat_and_hash(&node, Some(&proof.next()?.0))
            } else {
                node
            };
            parents.push((index / 2, parent));
        }
        nodes = parents;
        width = width.div_ceil(2);
    }
    nodes.first().map(|(_, root)| *root)
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

    proptest! {
        #[test]
        fn proofs_are_those_of_rs_merkle(
            count in 1_usize..70, picks in proptest::collection::btree_set(0_usize..70, 1..40),
        ) {
            let leaves = leaves(count);
            let tree = Tree::new(&leaves).unwrap();
            let picks: Vec<usize> = picks.into_iter().filter(|at| *at < count).collect();
            prop_assume!(!picks.is_empty());
            let proof = tree.prove(&picks.iter().map(|at| u32::try_from(*at).unwrap()).collect::<Vec<_>>()).unwrap();
            let reference = tree.tree.proof(&picks);
            prop_assert_eq!(reference.proof_hashes(), proof.iter().map(|hash| hash.0).collect::<Vec<_>>());
            let hashes: Vec<_> = picks.iter().map(|at| leaf_hash(&leaves[*at]).0).collect();
            prop_assert!(reference.verify(tree.root().0, &picks, &hashes, count));
        }
    }

    #[test]
    fn the_largest_proof_takes_no_quadratic_time() {
        let leaves = leaves(MAX_LEAVES);
        let tree = Tree::new(&leaves).unwrap();
        let picks: Vec<u32> = (0..65_536).step_by(2).collect();
        let proof = tree.prove(&picks).unwrap();
        assert_eq!(proof.len(), picks.len());
        let proven: Vec<_> = picks.iter().map(|at| (*at, &leaves[*at as usize])).collect();
        assert_eq!(verify(&tree.root(), MAX_LEAVES, &proven, &proof), Ok(()));
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
