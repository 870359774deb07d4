//! What the ledger needs of a store, whatever database is behind it.
//!
//! ```text
//! execute ─▶ commit(head, block, changes)   atomic; a restart finds all of it or nothing
//!            put_certificate                once a quorum has signed
//!            index(blocks)                  derived, in batches behind certificates
//!            make_durable ─▶ cut the log    only then
//! ```
//!
//! A commit need not be durable by itself: after a crash the store holds some prefix of the
//! commits, at least all up to the last [`LedgerStore::make_durable`], and the log replays the
//! rest. Every error is final for the node; each says what to do.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use bincode::{Decode, Encode};

use crate::device::Item;
use crate::ledger::{Block, Certificate, CertifiedBlock, Head, Header, StateChange};
use crate::policy::{ItemKey, LastWritten};
use crate::types::{ClientId, Hash, Height, MessageSeq, NetworkId, ParseError, SeqNum, Stream, Timestamp};

/// Keeps blocks, certificates, state and what is derived from them.
///
/// Calls block on the disk; make them where blocking is allowed.
pub trait LedgerStore: Send + Sync + 'static {
    /// The head and all entries of the state, if anything was ever committed.
    ///
    /// # Errors
    /// [`StoreError`].
    fn load(&self) -> Result<Option<Snapshot>, StoreError>;

    /// Stores what one batch did: all of it or, after a crash, nothing.
    ///
    /// # Errors
    /// [`StoreError`]; `OutOfOrder` if it does not follow the last commit, `BlockTooLarge`.
    fn commit(&self, head: &Head, block: Option<&Block>, changes: &[StateChange]) -> Result<(), StoreError>;

    /// Stores certified blocks that follow each other, what they did and their certificates: all of
    /// it or, after a crash, nothing.
    ///
    /// # Errors
    /// As [`LedgerStore::commit`] and [`LedgerStore::put_certificate`].
    fn commit_certified(&self, commits: &[CertifiedCommit<'_>]) -> Result<(), StoreError>;

    /// Stores the certificate of the block that it names, unless that one has one. A certificate
    /// of height 0 is not kept: there is no block.
    ///
    /// # Errors
    /// [`StoreError`]; `UnknownBlock` if the block is not here yet, `OtherBlock` if a quorum has
    /// certified another one than the one that is here: then this node's ledger is wrong.
    fn put_certificate(&self, certificate: &Certificate) -> Result<(), StoreError>;

    /// The header of the block at a height.
    ///
    /// # Errors
    /// [`StoreError`].
    fn header(&self, height: Height) -> Result<Option<Header>, StoreError>;

    /// The block at a height.
    ///
    /// # Errors
    /// [`StoreError`].
    fn block(&self, height: Height) -> Result<Option<Block>, StoreError>;

    /// The block at a height, if it was committed lately and not taken before, without reading it; those
    /// below it are not told any more. For the one who indexes blocks in order.
    fn take_recent(&self, height: Height) -> Option<Block> {
        let _unknown = height;
        None
    }

    /// The certificate of the block at a height.
    ///
    /// # Errors
    /// [`StoreError`].
    fn certificate(&self, height: Height) -> Result<Option<Certificate>, StoreError>;

    /// The highest height that has a certificate; 0 if none has.
    fn certified_height(&self) -> Height;

    /// Written records, ascending by event time, then by place in the ledger.
    ///
    /// # Errors
    /// [`StoreError`].
    fn records(&self, query: &RecordQuery) -> Result<RecordPage, StoreError>;

    /// The last written value of a data item, as far as blocks are indexed: the newest by event time.
    ///
    /// # Errors
    /// [`StoreError`].
    fn last_written(&self, item: &ItemKey) -> Result<Option<LastWritten>, StoreError>;

    /// How many distinct data items of a client were written, as far as blocks are indexed.
    ///
    /// # Errors
    /// [`StoreError`].
    fn item_count(&self, client: &ClientId) -> Result<u64, StoreError>;

    /// Adds blocks of this store to the record index and the last written values. They must go on where [`LedgerStore::indexed_height`]
    /// ends; those below it are skipped.
    ///
    /// # Errors
    /// [`StoreError`]; `IndexGap` if a block between is missing.
    fn index(&self, blocks: &[Block]) -> Result<(), StoreError>;

    /// The height up to which records are in the index.
    fn indexed_height(&self) -> Height;

    /// Remembers messages that this node accepted, so that after a restart it knows a repeated
    /// seq from a reused one even when nothing of the message was written.
    ///
    /// # Errors
    /// [`StoreError`].
    fn put_admissions(&self, admissions: &[AdmissionRecord]) -> Result<(), StoreError>;

    /// For each client the highest seq that was accepted and those at most
    /// [`ADMISSION_WINDOW`] below it, ascending by client, then by seq.
    ///
    /// # Errors
    /// [`StoreError`].
    fn admissions(&self) -> Result<Vec<AdmissionRecord>, StoreError>;

    /// Returns when everything that was stored before is on disk, in a way that a power cut
    /// cannot undo.
    ///
    /// # Errors
    /// [`StoreError`]; do not go on after it.
    fn make_durable(&self) -> Result<(), StoreError>;
}

/// A block that others certified, and what it did.
#[derive(Debug)]
pub struct CertifiedCommit<'a> {
    /// The head after it.
    pub head: Head,
    /// The block with its certificate.
    pub certified: &'a CertifiedBlock,
    /// What it changed.
    pub changes: Vec<StateChange>,
}

/// How far below a client's highest seq admissions are kept (PROTOCOL.md section 6: the window).
pub const ADMISSION_WINDOW: u64 = 256;

/// The most records that one page of a query has.
pub const MAX_PAGE_RECORDS: usize = 1_000;

/// What a restart begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// How far the ledger was executed.
    pub head: Head,
    /// All entries of the state, ascending by key.
    pub entries: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A message that this node accepted.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct AdmissionRecord {
    /// The client.
    pub client: ClientId,
    /// Its number.
    pub seq: MessageSeq,
    /// The hash of its header.
    pub header: Hash,
    /// How many items it has.
    pub items: u32,
}

/// Which records are asked for; what is `None` does not matter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecordQuery {
    /// Of this client.
    pub client: Option<ClientId>,
    /// Of this device.
    pub device: Option<String>,
    /// Of this service.
    pub service: Option<String>,
    /// With this number.
    pub num: Option<u32>,
    /// With this event time or a later one.
    pub from: Option<Timestamp>,
    /// With an event time before this one.
    pub to: Option<Timestamp>,
    /// At most so many; never more than [`MAX_PAGE_RECORDS`], and at least one.
    pub limit: usize,
    /// After this one: [`RecordPage::next`] of the page before.
    pub cursor: Option<RecordKey>,
}

/// A part of the answer to a query.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RecordPage {
    /// The records.
    pub records: Vec<StoredRecord>,
    /// Where to go on; `None` at the end. A page may have fewer records than asked for, even none,
    /// and yet not be the last: the work for one page is limited.
    pub next: Option<RecordKey>,
}

/// A record's place in the order of queries. As text, 48 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordKey {
    /// When it was measured.
    pub event_time: Timestamp,
    /// The block that it is in.
    pub height: Height,
    /// The operation in that block, from 0.
    pub operation: u32,
    /// The item in the device's message, from 0.
    pub item: u32,
}

impl RecordKey {
    /// Length of the bytes.
    pub const LEN: usize = 24;

    /// Bytes that sort as the keys do.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(&self.event_time.0.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.height.0.to_be_bytes());
        bytes[16..20].copy_from_slice(&self.operation.to_be_bytes());
        bytes[20..].copy_from_slice(&self.item.to_be_bytes());
        bytes
    }

    /// The key of these bytes.
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Self {
        let number =
            |at: usize, len: usize| bytes[at..at + len].iter().fold(0, |n, b| n << 8 | u64::from(*b));
        let small = |at| u32::try_from(number(at, 4)).unwrap_or(u32::MAX);
        Self {
            event_time: Timestamp(number(0, 8)),
            height: Height(number(8, 8)),
            operation: small(16),
            item: small(20),
        }
    }
}

impl fmt::Display for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.to_bytes()))
    }
}

impl FromStr for RecordKey {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut bytes = [0; Self::LEN];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| ParseError::Hex { expected: 2 * Self::LEN })?;
        Ok(Self::from_bytes(&bytes))
    }
}

/// A record that is on the ledger.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredRecord {
    /// Its event time and place in the ledger.
    pub key: RecordKey,
    /// The stream that its message came on.
    pub stream: Stream,
    /// The number of its message.
    pub seq: MessageSeq,
    /// What was measured.
    pub item: Item,
}

/// Why the store could not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}; check the disk (space, permissions, health), then start the node again", path.display())]
    Io {
        /// What was to be done.
        action: &'static str,
        /// With which file or directory.
        path: PathBuf,
        /// The operating system's answer.
        source: Arc<io::Error>,
    },
    /// Another process has the store open.
    #[error("the ledger store in {} is in use by another process; stop that one first, or give this node its own data directory", .0.display())]
    InUse(PathBuf),
    /// The database does not open.
    #[error("the ledger store in {} does not open: {reason}; it is damaged: see \"Damage\" in docs/STORAGE.md", dir.display())]
    Unreadable {
        /// Its directory.
        dir: PathBuf,
        /// What the database says.
        reason: String,
    },
    /// The database opens, but not with what was durable.
    #[error("the ledger store in {} came up as of save {found}, but save {durable} was durable; it is damaged: see \"Damage\" in docs/STORAGE.md", dir.display())]
    RolledBack {
        /// Its directory.
        dir: PathBuf,
        /// The number of the last [`LedgerStore::make_durable`] that was completed.
        durable: u64,
        /// The last that the database knows of.
        found: u64,
    },
    /// The database failed while it was used.
    #[error("the ledger store failed: {0}; check the disk (space, health), then start the node again")]
    Database(String),
    /// Something that was read is not what was written.
    #[error("the ledger store is damaged: {0} cannot be read: see \"Damage\" in docs/STORAGE.md")]
    Corrupt(String),
    /// The store belongs to another ledger.
    #[error("the ledger store in {} belongs to network {found}, this node to {expected}; use the data directory that belongs to this genesis document", dir.display())]
    WrongNetwork {
        /// Its directory.
        dir: PathBuf,
        /// The network of this node.
        expected: NetworkId,
        /// The network of the store.
        found: NetworkId,
    },
    /// Written by a program of another version.
    #[error("the ledger store in {} has format {found}, this program reads format {expected}; start the program that wrote it, or let this one fetch the blocks again: see \"Damage\" in docs/STORAGE.md", dir.display())]
    Version {
        /// Its directory.
        dir: PathBuf,
        /// The format of this program.
        expected: u32,
        /// The format of the store.
        found: u32,
    },
    /// A commit that does not follow the last one.
    #[error("sequence {sequence} at height {height} does not follow the last commit")]
    OutOfOrder {
        /// Its sequence number.
        sequence: SeqNum,
        /// Its height.
        height: Height,
    },
    /// A block that could not be read again; replicas must not agree on such a batch.
    #[error("block {height} has {bytes} bytes, at most {limit} are allowed")]
    BlockTooLarge {
        /// Its height.
        height: Height,
        /// Its canonical bytes.
        bytes: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// A certificate of a block that is not here.
    #[error("no block at height {0} to certify")]
    UnknownBlock(Height),
    /// A certificate of another block than the one that is here.
    #[error(
        "at height {height} a quorum certified block {certified}, but this node has {stored}: its ledger is wrong; see \"Damage\" in docs/STORAGE.md"
    )]
    OtherBlock {
        /// The height.
        height: Height,
        /// The block that the certificate names.
        certified: Hash,
        /// The block that is here.
        stored: Hash,
    },
    /// A block to be indexed does not follow the last one that was.
    #[error("block {found} cannot be indexed before block {expected}")]
    IndexGap {
        /// The height that is next.
        expected: Height,
        /// The height that was given.
        found: Height,
    },
}
