//! Rows of the history: as they are written, and as they are read.
//!
//! A [`HistoryRow`] can be made of nothing but a verified message. A [`StoredRow`] is what the
//! database has, which anybody may have altered: its parts are bytes and texts, and prove nothing
//! until they were checked.

use std::sync::Arc;

use crate::device::telemetry::Message;
use crate::device::{Item, Value};
use crate::ledger::digest::row_hash;
use crate::types::{ClientId, Hash, Height, MessageSeq, NodeId};

/// Names a message: whose, its number, BLAKE3 of its header.
pub type MessageKey = (ClientId, MessageSeq, Hash);

/// A message to be written.
#[derive(Debug, Clone)]
pub struct HistoryRow {
    /// The message.
    pub message: Arc<Message>,
    /// What the node decided about its items, in canonical bytes.
    pub decision: Vec<u8>,
}

impl HistoryRow {
    /// Which message it is.
    pub fn key(&self) -> MessageKey {
        let signed = self.message.signed();
        (signed.header().client.clone(), signed.header().seq, signed.hash())
    }

    /// Its hash, which the node's digest covers.
    pub fn hash(&self) -> Hash {
        let signed = self.message.signed();
        let (signature, key) = (signed.signature(), signed.client_key());
        row_hash(signed.bytes(), signature.as_bytes(), key.as_bytes(), &self.decision)
    }

    /// About what it takes in memory and in the database, in bytes.
    pub fn bytes(message: &Message) -> usize {
        let items: usize = message.item_bytes().iter().map(|bytes| 2 * bytes.len() + ITEM_BYTES).sum();
        message.body().len() + message.signed().bytes().len() + items + ROW_BYTES
    }
}

/// A row besides its body and items: keys, hashes, names.
const ROW_BYTES: usize = 512;

/// An item besides its names and value.
const ITEM_BYTES: usize = 128;

/// What became of a message, as the history keeps it. A row without one is not final, or nothing of
/// it was to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowFate {
    /// These items are on the ledger.
    Written {
        /// The height of the block that wrote the last of them.
        height: Height,
        /// 0-based indexes, ascending.
        items: Vec<u32>,
    },
    /// The ledger refused it, for this reason.
    Rejected(String),
}

/// How a message stands in the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowStanding {
    /// Its row is there.
    pub stored: bool,
    /// So is its fate.
    pub has_fate: bool,
}

/// An item as the database has it.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredItem {
    /// Its index in the message.
    pub item: i64,
    /// `deviceId`
    pub device: String,
    /// `serviceId`
    pub service: String,
    /// `num`
    pub num: i64,
    /// `eventTime`
    pub event_time: i64,
    /// `value`; none if the database has none, or more than one.
    pub value: Option<Value>,
    /// `unit`
    pub unit: Option<String>,
}

impl StoredItem {
    /// Whether it says what the message said. Databases do not tell -0.0 from 0.0.
    pub fn is(&self, index: usize, item: &Item) -> bool {
        i64::try_from(index) == Ok(self.item)
            && self.device == item.device
            && self.service == item.service
            && self.unit.as_deref() == item.unit.as_deref()
            && self.num == i64::from(item.num)
            && u64::try_from(self.event_time) == Ok(item.event_time.0)
            && self.value.as_ref() == Some(&item.value)
    }
}

/// A row as the database has it.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredRow {
    /// Whose history it is in.
    pub node: NodeId,
    /// Its place in that history, from 1.
    pub number: u64,
    /// The client, as a column says; the header has it, too.
    pub client: String,
    /// Its number; the same.
    pub seq: i64,
    /// The stream; the same.
    pub stream: String,
    /// The time; the same.
    pub event_time: i64,
    /// BLAKE3 of the header, as a column says.
    pub header_hash: Vec<u8>,
    /// The header bytes.
    pub header: Vec<u8>,
    /// The client's signature over them.
    pub signature: Vec<u8>,
    /// The client's key.
    pub client_key: Vec<u8>,
    /// The JSON body.
    pub body: Vec<u8>,
    /// The node's decision.
    pub decision: Vec<u8>,
    /// The items, by index.
    pub items: Vec<StoredItem>,
    /// What became of the message; none if that is not known here.
    pub fate: Option<StoredFate>,
}

/// What became of a message, as the database has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredFate {
    /// `written`, or why the ledger refused it.
    pub fate: String,
    /// The block's height.
    pub height: Option<i64>,
    /// The items that were written, as an index set of the ledger's state.
    pub items: Option<Vec<u8>>,
}

impl StoredRow {
    /// Its hash, which the node's digest covers.
    pub fn hash(&self) -> Hash {
        row_hash(&self.header, &self.signature, &self.client_key, &self.decision)
    }
}

/// A digest as the database has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredDigest {
    /// Whose.
    pub node: NodeId,
    /// Its number.
    pub number: u64,
    /// The number of its first row.
    pub first: u64,
    /// How many rows it is of.
    pub count: u64,
    /// The canonical bytes of the [`crate::ledger::HistoryDigest`].
    pub content: Vec<u8>,
    /// The hashes of its rows, in order: good if their root is the one on the ledger, and then they
    /// tell which row is not as it was.
    pub row_hashes: Vec<Hash>,
    /// The height of the block that it is in; none while it is not final.
    pub height: Option<u64>,
    /// Whether all of it could be read as what it is; what could not be is empty here.
    pub is_whole: bool,
}
