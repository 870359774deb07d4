//! History digests: what a node says on the ledger about the rows that it stored in its history.
//!
//! ```text
//! rows since the last digest ─▶ a hash of each ─▶ Merkle root ┐
//! which seqs of which clients ────────────────────────────────┴▶ HistoryDigest, signed, chained
//! ```
//!
//! The ledger does not see rows, only the root: a digest proves later that rows were not altered,
//! removed, added or reordered since it was written. The ranges say which messages the node had at
//! all. Digests of one node are numbered and each names the one before, so that none can be left
//! out. A node can lie about its own rows, but not twice: what it said once stands.

use bincode::{Decode, Encode};

use crate::codec;
use crate::crypto::{CryptoError, HashKind, SecretKey, SignatureKind, VerifyingKey};
use crate::merkle::{MerkleError, Tree};
use crate::types::{ClientId, Hash, MessageSeq, NetworkId, NodeId, PublicKey, Signature};

/// The most rows that one digest covers. Part of the protocol; a digest with as many ranges has 3 MiB.
pub const MAX_DIGEST_ROWS: u32 = 16_384;

/// Seqs of one client: pairs of the first and the last of each run.
pub type Ranges = Vec<(MessageSeq, MessageSeq)>;

/// What a node says about the rows that it stored since its last digest.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct HistoryDigest {
    /// Whose history.
    pub node: NodeId,
    /// 1 for the first digest of the node, one more for each.
    pub number: u64,
    /// [`HistoryDigest::hash`] of the one before; zeros in the first.
    pub previous: Hash,
    /// The number of the first row in the node's history.
    pub first: u64,
    /// How many rows.
    pub rows: u32,
    /// The Merkle root over their [`row_hash`]es, in order.
    pub root: Hash,
    /// The seqs of these rows: clients ascending, and for each runs that ascend and do not touch.
    pub ranges: Vec<(ClientId, Ranges)>,
    /// The node's signature over all of the above.
    pub signature: Signature,
}

/// Why a digest is invalid, whatever the state of the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// No rows, too many, or a number that cannot be.
    #[error("a history digest has a number, a first row, and 1 to {MAX_DIGEST_ROWS} rows")]
    Count,
    /// The ranges are not in the one order, or are of more messages than there are rows.
    #[error("the ranges of a history digest ascend, do not touch, and cover at most as many seqs as rows")]
    Ranges,
    /// The node's key or signature is bad.
    #[error("the node's signature over the history digest: {0}")]
    Signature(#[from] CryptoError),
}

impl HistoryDigest {
    /// Makes and signs a digest.
    pub fn sign(
        network: &NetworkId,
        key: &SecretKey,
        (number, previous): (u64, Hash),
        (first, rows, root): (u64, u32, Hash),
        ranges: Vec<(ClientId, Ranges)>,
    ) -> Self {
        let signature = Signature([0; 64]);
        let mut digest = Self { node: key.node_id(), number, previous, first, rows, root, ranges, signature };
        digest.signature = key.sign(SignatureKind::HistoryDigest, network, &digest.content());
        digest
    }

    /// What the next digest names, and what the ledger keeps of this one.
    pub fn hash(&self) -> Hash {
        HashKind::HistoryDigest.hash(&codec::encode(self))
    }

    /// Checks all that needs no state: limits, order, signature.
    ///
    /// # Errors
    /// [`DigestError`].
    pub fn verify(&self, network: &NetworkId) -> Result<(), DigestError> {
        let counts = (1..=MAX_DIGEST_ROWS).contains(&self.rows);
        let last = self.first.checked_add(u64::from(self.rows));
        if !counts || self.number == 0 || self.first == 0 || last.is_none() {
            return Err(DigestError::Count);
        }
        if !self.ranges_are_canonical() {
            return Err(DigestError::Ranges);
        }
        let key = VerifyingKey::parse(&PublicKey::from(self.node))?;
        Ok(key.verify(SignatureKind::HistoryDigest, network, &self.content(), &self.signature)?)
    }

    fn ranges_are_canonical(&self) -> bool {
        let clients = self.ranges.is_sorted_by(|(one, _), (next, _)| one < next);
        let runs = self.ranges.iter().all(|(_, runs)| !runs.is_empty() && runs_are_canonical(runs));
        let seqs = self.ranges.iter().flat_map(|(_, runs)| runs);
        let length = |(from, to): &(MessageSeq, MessageSeq)| to.0.saturating_sub(from.0).saturating_add(1);
        let covered = seqs.map(length).fold(0_u64, u64::saturating_add);
        clients && runs && covered <= u64::from(self.rows)
    }

    fn content(&self) -> Vec<u8> {
        let Self { node, number, previous, first, rows, root, ranges, .. } = self;
        codec::encode(&(node, number, previous, first, rows, root, ranges))
    }
}

fn runs_are_canonical(runs: &Ranges) -> bool {
    let each = runs.iter().all(|(from, to)| from <= to && *to <= MessageSeq::MAX);
    each && runs.is_sorted_by(|(_, to), (from, _)| to.next() < *from)
}

/// The hash of a row, which a digest's tree has as a leaf: of what the client signed and of what the
/// node decided about it.
pub fn row_hash(header: &[u8], signature: &[u8], client_key: &[u8], decision: &[u8]) -> Hash {
    HashKind::HistoryRow.hash(&codec::encode(&(header, signature, client_key, decision)))
}

/// The root over the hashes of 1 to [`MAX_DIGEST_ROWS`] rows, in order.
///
/// # Errors
/// [`MerkleError::Count`].
pub fn rows_root(hashes: &[Hash]) -> Result<Hash, MerkleError> {
    let leaves: Vec<&[u8]> = hashes.iter().map(|hash| hash.as_bytes().as_slice()).collect();
    Ok(Tree::new(&leaves)?.root())
}

/// The ranges of some messages, in the one order that a digest has.
pub fn ranges_of<I: IntoIterator<Item = (ClientId, MessageSeq)>>(messages: I) -> Vec<(ClientId, Ranges)> {
    let mut sorted: Vec<_> = messages.into_iter().collect();
    sorted.sort_unstable();
    sorted.dedup();
    let mut ranges: Vec<(ClientId, Ranges)> = Vec::new();
    for (client, seq) in sorted {
        match ranges.last_mut().filter(|(last, _)| *last == client) {
            None => ranges.push((client, vec![(seq, seq)])),
            Some((_, runs)) => match runs.last_mut() {
                Some((_, to)) if to.next() == seq => *to = seq,
                _ => runs.push((seq, seq)),
            },
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NETWORK: NetworkId = NetworkId([7; 32]);

    fn client(number: u8) -> ClientId {
        ClientId::new(format!("devices/c{number}")).unwrap()
    }

    fn seqs(runs: &[(u64, u64)]) -> Ranges {
        runs.iter().map(|(from, to)| (MessageSeq(*from), MessageSeq(*to))).collect()
    }

    fn digest(rows: u32, ranges: Vec<(ClientId, Ranges)>) -> HistoryDigest {
        let key = SecretKey::from_seed(&[1; 32]);
        HistoryDigest::sign(&NETWORK, &key, (1, Hash([0; 32])), (1, rows, Hash([3; 32])), ranges)
    }

    #[test]
    fn a_signed_digest_verifies_and_no_altered_one_does() {
        let good = digest(4, vec![(client(1), seqs(&[(1, 2), (4, 4)])), (client(2), seqs(&[(9, 9)]))]);
        assert_eq!(good.verify(&NETWORK), Ok(()));
        let bad = Err(DigestError::Signature(CryptoError::BadSignature));
        assert_eq!(good.verify(&NetworkId([8; 32])), bad);
        assert_eq!(HistoryDigest { number: 2, ..good.clone() }.verify(&NETWORK), bad);
        assert_eq!(HistoryDigest { previous: Hash([1; 32]), ..good.clone() }.verify(&NETWORK), bad);
        assert_eq!(HistoryDigest { root: Hash([1; 32]), ..good.clone() }.verify(&NETWORK), bad);
        assert_eq!(HistoryDigest { first: 2, ..good.clone() }.verify(&NETWORK), bad);
        let mut fewer = good.clone();
        fewer.ranges.pop();
        assert_eq!(fewer.verify(&NETWORK), bad);
    }

    #[test]
    fn only_one_order_of_ranges_is_taken() {
        let bad = [
            vec![(client(1), vec![])],
            vec![(client(2), seqs(&[(1, 1)])), (client(1), seqs(&[(1, 1)]))],
            vec![(client(1), seqs(&[(1, 1)])), (client(1), seqs(&[(3, 3)]))],
            vec![(client(1), seqs(&[(1, 1), (2, 2)]))],
            vec![(client(1), seqs(&[(3, 3), (1, 1)]))],
            vec![(client(1), seqs(&[(2, 1)]))],
            vec![(client(1), seqs(&[(1, 5)]))],
            vec![(client(1), seqs(&[(0, u64::MAX)]))],
        ];
        for ranges in bad {
            assert_eq!(digest(4, ranges.clone()).verify(&NETWORK), Err(DigestError::Ranges), "{ranges:?}");
        }
    }

    #[test]
    fn a_digest_of_nothing_or_of_too_much_is_refused() {
        let ranges = || vec![(client(1), seqs(&[(1, 1)]))];
        for rows in [0, MAX_DIGEST_ROWS + 1] {
            assert_eq!(digest(rows, ranges()).verify(&NETWORK), Err(DigestError::Count));
        }
        let whole = |number, first| {
            let key = SecretKey::from_seed(&[1; 32]);
            let rows = (first, 1, Hash([3; 32]));
            HistoryDigest::sign(&NETWORK, &key, (number, Hash([0; 32])), rows, ranges()).verify(&NETWORK)
        };
        assert_eq!(whole(0, 1), Err(DigestError::Count));
        assert_eq!(whole(1, 0), Err(DigestError::Count));
        assert_eq!(whole(1, u64::MAX), Err(DigestError::Count));
        assert_eq!(whole(1, 1), Ok(()));
    }

    #[test]
    fn the_largest_digest_is_a_request_that_fits() {
        // Every row of another client, with the longest of names.
        let name = "x".repeat(58);
        let clients = (0..MAX_DIGEST_ROWS)
            .map(|at| (ClientId::new(format!("{name}x/{name}{at:05}")).unwrap(), MessageSeq(7)));
        let largest = digest(MAX_DIGEST_ROWS, ranges_of(clients));
        assert_eq!(largest.verify(&NETWORK), Ok(()));
        let bytes = codec::encode(&largest).len();
        assert!(bytes + 100 < crate::ledger::MAX_REQUEST_BYTES, "{bytes}");
    }

    proptest! {
        #[test]
        fn ranges_are_canonical_and_cover_exactly_the_messages(
            messages in proptest::collection::vec((1_u8..4, 1_u64..30), 1..60),
        ) {
            let messages: Vec<_> =
                messages.into_iter().map(|(at, seq)| (client(at), MessageSeq(seq))).collect();
            let ranges = ranges_of(messages.clone());
            let rows = u32::try_from(messages.len()).unwrap();
            prop_assert_eq!(digest(rows, ranges.clone()).verify(&NETWORK), Ok(()));
            let covered: std::collections::BTreeSet<_> = ranges
                .iter()
                .flat_map(|(client, runs)| runs.iter().map(move |run| (client, run)))
                .flat_map(|(client, (from, to))| (from.0..=to.0).map(|seq| (client.clone(), MessageSeq(seq))))
                .collect();
            prop_assert_eq!(covered, messages.into_iter().collect());
        }
    }
}
