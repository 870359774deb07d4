//! The history: every verified message, written to the ledger or not, in a SQL database.
//!
//! ```text
//! HistoryRow ─▶ append ─▶ messages, items       RowFate ─▶ put_fates ─▶ fates
//! hashes of the rows ─▶ HistoryDigest (on the ledger) ─▶ put_digest ─▶ digests
//! ```
//!
//! SQLite in the node's data directory, or PostgreSQL by URL: the same tables and, but for a few
//! words of SQL, the same statements. It is the database that may be tampered with: what is read
//! back proves nothing by itself, and an audit holds it against signatures and the ledger.
//!
//! Rows of a node are numbered from 1 without gaps. Everything that is written may be written
//! again: a message that is there stays as it is. docs/HISTORY.md describes the tables.

pub mod audit;
mod copying;
mod error;
mod insert;
mod location;
mod open;
mod read;
mod row;
mod schema;
mod shape;
mod store;
#[cfg(test)]
pub(crate) mod tests;
mod untouched;

use async_trait::async_trait;

pub use copying::Stopping;
pub use error::HistoryError;
pub use location::Location;
pub use read::{ReadRow, UnreadableRow};
pub use row::{
    HistoryRow, MessageKey, RowFate, RowStanding, StoredDigest, StoredFate, StoredItem, StoredRow,
};
pub use store::{SqlHistory, SqlReader};

use crate::ledger::HistoryDigest;
use crate::types::{ClientId, Hash, Height, MessageSeq, NodeId};

/// Where a node keeps its history. Each call is one transaction; after an error nothing of it was
/// done, or all of it and the answer was lost: the same call may follow either way.
#[async_trait]
pub trait HistoryStore: Send + Sync {
    /// Where it is.
    fn location(&self) -> &Location;

    /// Opens it, if it is not open: who does so first hears at once what is wrong with it.
    ///
    /// # Errors
    /// [`HistoryError`].
    async fn open(&self) -> Result<(), HistoryError>;

    /// Writes the rows that are not there, in order, after all that are and with numbers above
    /// `above`. The answer says for each the number that it got; none if it was there before.
    ///
    /// # Errors
    /// [`HistoryError`].
    async fn append(&self, above: u64, rows: &[HistoryRow]) -> Result<Vec<Option<u64>>, HistoryError>;

    /// Notes what became of messages whose rows are there; what was noted before stays.
    ///
    /// # Errors
    /// [`HistoryError`].
    async fn put_fates(&self, fates: &[(MessageKey, RowFate)]) -> Result<(), HistoryError>;

    /// How messages stand, in the order of `keys`.
    ///
    /// # Errors
    /// [`HistoryError`].
    async fn standing(&self, keys: &[MessageKey]) -> Result<Vec<RowStanding>, HistoryError>;

    /// Keeps a digest of this node and the hashes of its rows.
    ///
    /// # Errors
    /// [`HistoryError`].
    async fn put_digest(&self, digest: &HistoryDigest, row_hashes: &[Hash]) -> Result<(), HistoryError>;

    /// Forgets the digests of the rows from `first` on, which the ledger refused, and moves these rows up so
    /// that they come after `above`, if they do not.
    ///
    /// # Errors
    /// [`HistoryError`].
    async fn start_over(&self, first: u64, above: u64) -> Result<(), HistoryError>;

    /// Notes that a digest is final, in the block of that height.
    ///
    /// # Errors
    /// [`HistoryError`].
    async fn digest_is_final(&self, number: u64, height: Height) -> Result<(), HistoryError>;

    /// The last digest that was kept.
    ///
    /// # Errors
    /// [`HistoryError`].
    async fn last_digest(&self) -> Result<Option<StoredDigest>, HistoryError>;

    /// This node's digests above `after`, ascending, `limit` at most.
    ///
    /// # Errors
    /// [`HistoryError`].
    async fn digests(&self, after: u64, limit: u32) -> Result<Vec<StoredDigest>, HistoryError>;

    /// This node's rows above `after`, ascending, `limit` at most.
    ///
    /// # Errors
    /// [`HistoryError`].
    async fn rows(&self, after: u64, limit: u32) -> Result<Vec<ReadRow>, HistoryError>;
}

/// A history that is read, of every node that has rows in it; what an audit needs.
#[async_trait]
pub trait HistoryReader: Send + Sync {
    /// The nodes that have rows.
    fn nodes(&self) -> Vec<NodeId>;

    /// The rows of a node above `after`, ascending by number, `limit` at most.
    ///
    /// # Errors
    /// [`HistoryError`].
    async fn rows(&self, node: &NodeId, after: u64, limit: u32) -> Result<Vec<ReadRow>, HistoryError>;

    /// The digests of a node above `after`, ascending by number, `limit` at most.
    ///
    /// # Errors
    /// [`HistoryError`].
    async fn digests(&self, node: &NodeId, after: u64, limit: u32)
    -> Result<Vec<StoredDigest>, HistoryError>;

    /// Numbers for which there are items or a fate and no message, `limit` at most.
    ///
    /// # Errors
    /// [`HistoryError`].
    async fn strays(&self, node: &NodeId, limit: u32) -> Result<Vec<u64>, HistoryError>;

    /// The rows of a node that say they are of this message, `limit` at most.
    ///
    /// # Errors
    /// [`HistoryError`].
    async fn rows_of(
        &self,
        node: &NodeId,
        client: &ClientId,
        seq: MessageSeq,
        limit: u32,
    ) -> Result<Vec<ReadRow>, HistoryError>;

    /// What an auditor should know of how the history was found, when something is not as it was.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }

    /// What is in the tables and is of no node, or at no place that a row can have; each as a
    /// sentence, `limit` at most.
    ///
    /// # Errors
    /// [`HistoryError`].
    async fn oddities(&self, limit: u32) -> Result<Vec<String>, HistoryError>;
}
