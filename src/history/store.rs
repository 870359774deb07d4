//! The history in a SQL database: one connection, made again when it was lost.

use async_trait::async_trait;
use sqlx::{AnyConnection, Row as _};
use tokio::sync::{Mutex, MutexGuard};

use super::error::HistoryError;
use super::insert::{self, signed};
use super::location::Location;
use super::open::{Reading, bounded, bounded_scan, open, open_to_read};
use super::read::{self, ReadRow};
use super::row::{HistoryRow, MessageKey, RowFate, RowStanding, StoredDigest};
use super::schema::Dialect;
use super::untouched::Untouched;
use super::{HistoryReader, HistoryStore};
use crate::codec;
use crate::ledger::HistoryDigest;
use crate::types::{ClientId, Hash, Height, MessageSeq, NetworkId, NodeId};

/// A node's history, to be written and read.
#[derive(Debug)]
pub struct SqlHistory {
    location: Location,
    network: NetworkId,
    node: NodeId,
    connection: Mutex<Option<Connected>>,
}

#[derive(Debug)]
struct Connected {
    connection: AnyConnection,
    /// The node's number in this database.
    node: i64,
}

impl SqlHistory {
    /// The history of `node` at `location`. Nothing is opened yet.
    pub fn new(location: Location, network: NetworkId, node: NodeId) -> Self {
        Self { location, network, node, connection: Mutex::new(None) }
    }

    async fn connect(&self) -> Result<Connected, HistoryError> {
        let mut connection = open(&self.location, &self.network).await?;
        let node = bounded(node_number(&mut connection, &self.node)).await;
        Ok(Connected { connection, node: node.map_err(|error| self.failed(&error))? })
    }

    async fn connected(&self) -> Result<MutexGuard<'_, Option<Connected>>, HistoryError> {
        let mut held = self.connection.lock().await;
        if held.is_none() {
            *held = Some(self.connect().await?);
        }
        Ok(held)
    }

    /// After an error, whatever it was, the next one begins with a new connection.
    fn settle<T>(
        &self,
        mut held: MutexGuard<'_, Option<Connected>>,
        result: Result<T, sqlx::Error>,
    ) -> Result<T, HistoryError> {
        result.map_err(|error| {
            *held = None;
            self.failed(&error)
        })
    }

    fn failed(&self, error: &sqlx::Error) -> HistoryError {
        HistoryError::of(&self.location.to_string(), error)
    }

    fn lost(&self) -> HistoryError {
        let (location, detail) = (self.location.to_string(), "the connection is closed".to_owned());
        HistoryError::Unavailable { location, detail }
    }
}

/// Runs one piece of work on the connection.
macro_rules! on_connection {
    ($self:ident, |$connected:ident| $work:expr) => {{
        let mut held = $self.connected().await?;
        let result = match held.as_mut() {
            Some($connected) => bounded(Box::pin($work)).await,
            None => return Err($self.lost()),
        };
        $self.settle(held, result)
    }};
}

/// The number by which the database knows a node; a new one if it does not.
async fn node_number(connection: &mut AnyConnection, node: &NodeId) -> Result<i64, sqlx::Error> {
    let known = "SELECT id FROM nodes WHERE node = $1";
    if let Some(row) = sqlx::query(known).bind(node.to_string()).fetch_optional(&mut *connection).await? {
        return row.try_get(0);
    }
    // Of two nodes that come at the same time one finds its number taken, and tries again later.
    let insert = "INSERT INTO nodes (id, node) SELECT COALESCE(MAX(id), 0) + 1, $1 FROM nodes";
    sqlx::query(insert).bind(node.to_string()).execute(&mut *connection).await?;
    sqlx::query(known).bind(node.to_string()).fetch_one(connection).await?.try_get(0)
}

#[async_trait]
impl HistoryStore for SqlHistory {
    fn location(&self) -> &Location {
        &self.location
    }

    async fn open(&self) -> Result<(), HistoryError> {
        self.connected().await.map(drop)
    }

    async fn append(&self, above: u64, rows: &[HistoryRow]) -> Result<Vec<Option<u64>>, HistoryError> {
        let dialect = self.location.dialect();
        on_connection!(self, |connected| insert::append(
            &mut connected.connection,
            dialect,
            connected.node,
            above,
            rows
        ))
    }

    async fn put_fates(&self, fates: &[(MessageKey, RowFate)]) -> Result<(), HistoryError> {
        let dialect = self.location.dialect();
        on_connection!(self, |connected| insert::put_fates(
            &mut connected.connection,
            dialect,
            connected.node,
            fates
        ))
    }

    async fn standing(&self, keys: &[MessageKey]) -> Result<Vec<RowStanding>, HistoryError> {
        let dialect = self.location.dialect();
        on_connection!(self, |connected| standing(connected, dialect, keys))
    }

    async fn put_digest(&self, digest: &HistoryDigest, row_hashes: &[Hash]) -> Result<(), HistoryError> {
        let (number, first) = (digest.number, digest.first);
        let row = insert::DigestRow { number, first, content: codec::encode(digest), row_hashes };
        on_connection!(self, |connected| insert::put_digest(&mut connected.connection, connected.node, row))
    }

    async fn start_over(&self, first: u64, above: u64) -> Result<(), HistoryError> {
        let dialect = self.location.dialect();
        on_connection!(self, |connected| insert::start_over(
            &mut connected.connection,
            dialect,
            connected.node,
            first,
            above
        ))
    }

    async fn digest_is_final(&self, number: u64, height: Height) -> Result<(), HistoryError> {
        on_connection!(self, |connected| {
            let update = sqlx::query("UPDATE digests SET height = $1 WHERE node = $2 AND number = $3");
            let bound = update.bind(signed(height.0)).bind(connected.node).bind(signed(number));
            async { bound.execute(&mut connected.connection).await.map(drop) }
        })
    }

    async fn last_digest(&self) -> Result<Option<StoredDigest>, HistoryError> {
        let node = self.node;
        on_connection!(self, |connected| async move {
            let last = sqlx::query("SELECT MAX(number) FROM digests WHERE node = $1").bind(connected.node);
            let last: Option<i64> = last.fetch_one(&mut connected.connection).await?.try_get(0)?;
            let Some(last) = last.and_then(|last| u64::try_from(last).ok()) else { return Ok(None) };
            let id = (connected.node, node);
            Ok(read::digests(&mut connected.connection, id, last.saturating_sub(1), 1).await?.pop())
        })
    }

    async fn digests(&self, after: u64, limit: u32) -> Result<Vec<StoredDigest>, HistoryError> {
        let node = self.node;
        on_connection!(self, |connected| read::digests(
            &mut connected.connection,
            (connected.node, node),
            after,
            limit
        ))
    }

    async fn rows(&self, after: u64, limit: u32) -> Result<Vec<ReadRow>, HistoryError> {
        let node = self.node;
        on_connection!(self, |connected| read::rows(
            &mut connected.connection,
            (connected.node, node),
            after,
            limit
        ))
    }
}

async fn standing(
    connected: &mut Connected,
    dialect: Dialect,
    keys: &[MessageKey],
) -> Result<Vec<RowStanding>, sqlx::Error> {
    let numbers = insert::numbers_of(&mut connected.connection, dialect, connected.node, keys.iter()).await?;
    let lowest = numbers.values().min().copied().unwrap_or(i64::MAX);
    let fates = sqlx::query("SELECT number FROM fates WHERE node = $1 AND number >= $2");
    let fates = fates.bind(connected.node).bind(lowest).fetch_all(&mut connected.connection).await?;
    let fates: std::collections::HashSet<i64> =
        fates.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    let standing = |key| {
        let number = numbers.get(key);
        RowStanding { stored: number.is_some(), has_fate: number.is_some_and(|at| fates.contains(at)) }
    };
    Ok(keys.iter().map(standing).collect())
}

/// A history of any number of nodes, opened to be read and never changed. All that it gives is of the
/// moment when it was opened.
#[derive(Debug)]
pub struct SqlReader {
    location: Location,
    reading: Mutex<Reading>,
    nodes: Vec<(i64, NodeId)>,
    /// What an auditor should know of how it was found.
    notes: Vec<String>,
    /// Names of nodes that are none.
    no_nodes: Vec<String>,
}

impl SqlReader {
    /// Opens the history at `location`, which must be of `network`.
    ///
    /// # Errors
    /// [`HistoryError`].
    pub async fn open(location: Location, network: &NetworkId) -> Result<Self, HistoryError> {
        let mut reading = open_to_read(&location, network).await?;
        let failed = |error: sqlx::Error| HistoryError::of(&location.to_string(), &error);
        let found =
            bounded(read::nodes(&mut reading.connection, location.dialect())).await.map_err(failed)?;
        if found.len() > read::MAX_NODES {
            let detail = "table nodes has more nodes than a network can have".to_owned();
            return Err(HistoryError::Refused { location: location.to_string(), detail });
        }
        let notes = reading.untouched.as_ref().and_then(Untouched::note).into_iter().collect();
        let (mut nodes, mut no_nodes) = (Vec::new(), Vec::new());
        for (id, name) in found {
            match name.parse() {
                Ok(node) => nodes.push((id, node)),
                Err(_) => no_nodes.push(format!("table nodes has {name:?}, which is no node's name")),
            }
        }
        Ok(Self { nodes, no_nodes, notes, reading: Mutex::new(reading), location })
    }

    /// The connection, unless somebody began to write what is read without locks.
    async fn reading(&self) -> Result<MutexGuard<'_, Reading>, HistoryError> {
        let reading = self.reading.lock().await;
        let wal = reading.untouched.as_ref().and_then(|untouched| untouched.alone_without.as_ref());
        if wal.is_some_and(|wal| wal.exists()) {
            let detail = "a node opened it while it was read; read it again".to_owned();
            return Err(HistoryError::Unavailable { location: self.location.to_string(), detail });
        }
        Ok(reading)
    }

    fn id(&self, node: &NodeId) -> (i64, NodeId) {
        let known = self.nodes.iter().find(|(_, known)| known == node);
        known.copied().unwrap_or((0, *node))
    }

    fn failed(&self, error: &sqlx::Error) -> HistoryError {
        HistoryError::of(&self.location.to_string(), error)
    }
}

#[async_trait]
impl HistoryReader for SqlReader {
    fn nodes(&self) -> Vec<NodeId> {
        self.nodes.iter().map(|(_, node)| *node).collect()
    }

    async fn rows(&self, node: &NodeId, after: u64, limit: u32) -> Result<Vec<ReadRow>, HistoryError> {
        let mut reading = self.reading().await?;
        let rows = Box::pin(read::rows(&mut reading.connection, self.id(node), after, limit));
        bounded(rows).await.map_err(|error| self.failed(&error))
    }

    async fn digests(
        &self,
        node: &NodeId,
        after: u64,
        limit: u32,
    ) -> Result<Vec<StoredDigest>, HistoryError> {
        let mut reading = self.reading().await?;
        let digests = Box::pin(read::digests(&mut reading.connection, self.id(node), after, limit));
        bounded(digests).await.map_err(|error| self.failed(&error))
    }

    async fn strays(&self, node: &NodeId, limit: u32) -> Result<Vec<u64>, HistoryError> {
        let mut reading = self.reading().await?;
        let strays = Box::pin(read::strays(&mut reading.connection, self.id(node).0, limit));
        bounded_scan(strays).await.map_err(|error| self.failed(&error))
    }

    async fn rows_of(
        &self,
        node: &NodeId,
        client: &ClientId,
        seq: MessageSeq,
        limit: u32,
    ) -> Result<Vec<ReadRow>, HistoryError> {
        let mut reading = self.reading().await?;
        let message = (client.as_str(), seq.0);
        let rows = Box::pin(read::rows_of(&mut reading.connection, self.id(node), message, limit));
        bounded(rows).await.map_err(|error| self.failed(&error))
    }

    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }

    async fn oddities(&self, limit: u32) -> Result<Vec<String>, HistoryError> {
        let mut reading = self.reading().await?;
        let oddities = Box::pin(read::oddities(&mut reading.connection, self.location.dialect(), limit));
        let mut found = bounded_scan(oddities).await.map_err(|error| self.failed(&error))?;
        found.extend(self.no_nodes.iter().cloned());
        Ok(found)
    }
}
