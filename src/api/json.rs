//! How blocks, operations and records look in JSON.
//!
//! Hashes, keys and signatures are hex, times are milliseconds since 1970. Nothing here is what is
//! hashed or signed: that is canonical bytes (`docs/LEDGER.md`), which proof bundles carry.

use serde::{Deserialize, Serialize};

use crate::device::{self, Item, Value};
use crate::ledger::{
    AdminOperation, Block, Certificate, CheckpointContent, Header, HistoryDigest, Operation, ReplicaSet,
    WriteRequest,
};
use crate::store::ledger::{RecordPage, StoredRecord};
use crate::types::{ClientId, Hash, Height, MessageSeq, NodeId, Signature, Stream, Timestamp};

/// One of `GET /v1/blocks`.
#[derive(Debug, Clone, Serialize)]
pub struct BlockSummaryJson {
    /// The block's hash.
    pub hash: Hash,
    /// Its header.
    pub header: Header,
}

/// `GET /v1/blocks`
#[derive(Debug, Clone, Serialize)]
pub struct BlocksJson {
    /// Ascending by height.
    pub blocks: Vec<BlockSummaryJson>,
    /// The `from` of the next page, if there is one.
    pub next: Option<Height>,
}

/// `GET /v1/blocks/{height}`
#[derive(Debug, Clone, Serialize)]
pub struct BlockJson {
    /// The block's hash.
    pub hash: Hash,
    /// Its header.
    pub header: Header,
    /// Its operations, in order of execution.
    pub operations: Vec<OperationJson>,
    /// A quorum's signatures.
    pub certificate: Option<CertificateJson>,
}

impl BlockJson {
    /// A block and its certificate, as replicas of `set` signed it; none if an operation of it is not
    /// one, which execution rules out.
    pub fn new(block: Block, certificate: Option<Certificate>, set: &ReplicaSet) -> Option<Self> {
        Some(Self {
            hash: block.header.hash(),
            header: block.header,
            operations: block.operations.into_iter().map(OperationJson::new).collect::<Option<_>>()?,
            certificate: certificate.map(|certificate| CertificateJson::new(certificate, set)),
        })
    }
}

/// A block's certificate.
#[derive(Debug, Clone, Serialize)]
pub struct CertificateJson {
    /// What was signed.
    pub content: CheckpointContent,
    /// By whom.
    pub signatures: Vec<ReplicaSignatureJson>,
}

/// One replica's signature.
#[derive(Debug, Clone, Serialize)]
pub struct ReplicaSignatureJson {
    /// The replica's number.
    pub replica: u16,
    /// Its id.
    pub node: Option<NodeId>,
    /// Its signature.
    pub signature: Signature,
}

impl CertificateJson {
    fn new(certificate: Certificate, set: &ReplicaSet) -> Self {
        let signatures = certificate.signatures.into_iter().map(|(replica, signature)| {
            let node = set.members().get(usize::from(replica)).copied();
            ReplicaSignatureJson { replica, node, signature }
        });
        Self { content: certificate.content, signatures: signatures.collect() }
    }
}

/// An operation of a block.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum OperationJson {
    /// Items were written.
    Write(Box<WriteJson>),
    /// An admin's operation was executed.
    Admin(Box<AdminOperation>),
    /// What a node says about its history.
    HistoryDigest(Box<DigestJson>),
}

/// A history digest.
#[derive(Debug, Clone, Serialize)]
pub struct DigestJson {
    /// Whose history.
    pub node: NodeId,
    /// The digest's number.
    pub number: u64,
    /// The hash of the one before.
    pub previous: Hash,
    /// The number of the first row.
    pub first: u64,
    /// How many rows.
    pub rows: u32,
    /// The Merkle root over their hashes.
    pub root: Hash,
    /// The first and the last seq of each run, by client.
    pub ranges: std::collections::BTreeMap<ClientId, Vec<(MessageSeq, MessageSeq)>>,
}

/// A write operation.
#[derive(Debug, Clone, Serialize)]
pub struct WriteJson {
    /// The node that admitted the message.
    pub node: NodeId,
    /// The client.
    pub client: ClientId,
    /// The message's stream.
    pub stream: Stream,
    /// The message's number.
    pub seq: MessageSeq,
    /// When it was measured.
    pub event_time: Timestamp,
    /// Items in the message.
    pub count: u32,
    /// BLAKE3 of the header, as acks name it.
    pub header: Hash,
    /// The items of the request.
    pub items: Vec<WrittenItemJson>,
}

/// An item of a write operation.
#[derive(Debug, Clone, Serialize)]
pub struct WrittenItemJson {
    /// Its place in the message.
    pub index: u32,
    /// Whether this operation wrote it; an earlier one did if not.
    pub written: bool,
    /// What was measured.
    #[serde(flatten)]
    pub item: ItemJson,
}

/// A data item, without what the message says for all of its items.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ItemJson {
    /// `deviceId`
    pub device: String,
    /// `serviceId`
    pub service: String,
    /// `num`
    pub num: u32,
    /// `value`
    pub value: serde_json::Value,
    /// `unit`
    pub unit: Option<String>,
}

impl From<Item> for ItemJson {
    fn from(item: Item) -> Self {
        let value = match item.value {
            Value::Integer(integer) => integer.into(),
            Value::Float(float) => float.into(),
            Value::Text(text) => text.into(),
            Value::Boolean(boolean) => boolean.into(),
        };
        let (device, service, unit) = (item.device.into(), item.service.into(), item.unit.map(String::from));
        Self { device, service, num: item.num, value, unit }
    }
}

impl WriteJson {
    /// None if header or items do not decode, which no operation of a block can have.
    fn new(request: &WriteRequest, written: &[u32]) -> Option<Self> {
        let header = device::Header::decode(&request.header).ok()?;
        let items = request.items.iter().map(|item| {
            let written = written.binary_search(&item.index).is_ok();
            Some(WrittenItemJson { index: item.index, written, item: Item::decode(&item.bytes).ok()?.into() })
        });
        Some(Self {
            node: request.node,
            client: header.client,
            stream: header.stream,
            seq: header.seq,
            event_time: header.event_time,
            count: header.count,
            header: device::Header::hash_of(&request.header),
            items: items.collect::<Option<_>>()?,
        })
    }
}

impl OperationJson {
    fn new(operation: Operation) -> Option<Self> {
        match operation {
            Operation::Write { request, written } => {
                WriteJson::new(&request, &written).map(|write| Self::Write(Box::new(write)))
            }
            Operation::Admin(operation) => Some(Self::Admin(Box::new(operation))),
            Operation::Digest(digest) => {
                let HistoryDigest { node, number, previous, first, rows, root, ranges, .. } = digest;
                let ranges = ranges.into_iter().collect();
                Some(Self::HistoryDigest(Box::new(DigestJson {
                    node,
                    number,
                    previous,
                    first,
                    rows,
                    root,
                    ranges,
                })))
            }
        }
    }
}

/// A record of `GET /v1/records`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordJson {
    /// The client.
    pub client: ClientId,
    /// What was measured.
    #[serde(flatten)]
    pub item: ItemJson,
    /// When.
    pub event_time: Timestamp,
    /// The message's stream.
    pub stream: Stream,
    /// The message's number.
    pub seq: MessageSeq,
    /// Height of its block.
    pub height: Height,
    /// Place of the operation in the block.
    pub operation: u32,
    /// Place of the item in the message.
    pub index: u32,
    /// Path of the proof bundle.
    pub bundle: String,
}

/// `GET /v1/records`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordsJson {
    /// Ascending by event time.
    pub records: Vec<RecordJson>,
    /// The `cursor` of the next page, if there is one. A page with fewer records than asked for may
    /// still not be the last.
    pub next: Option<String>,
}

impl From<StoredRecord> for RecordJson {
    fn from(stored: StoredRecord) -> Self {
        let StoredRecord { key, stream, seq, item } = stored;
        Self {
            client: item.client.clone(),
            event_time: key.event_time,
            item: item.into(),
            stream,
            seq,
            height: key.height,
            operation: key.operation,
            index: key.item,
            bundle: format!("/v1/records/{}/{}/bundle", key.height, key.operation),
        }
    }
}

impl From<RecordPage> for RecordsJson {
    fn from(page: RecordPage) -> Self {
        Self {
            records: page.records.into_iter().map(RecordJson::from).collect(),
            next: page.next.map(|key| key.to_string()),
        }
    }
}
