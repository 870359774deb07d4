//! Records: written data items with their place on the ledger, as people and queries see them.

use serde::Serialize;

use crate::device::{self, HeaderError, Item, ItemError};
use crate::ledger::block::Block;
use crate::ledger::operation::{Operation, WriteRequest};
use crate::types::{Height, MessageSeq, Stream, Timestamp};

/// Why an operation's items cannot be read: the stored block is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The telemetry header cannot be read.
    #[error("operation {operation} of block {height}: {error}")]
    Header {
        /// The block's height.
        height: Height,
        /// The place of the operation in the block.
        operation: u32,
        /// What is wrong.
        error: HeaderError,
    },
    /// An item cannot be read.
    #[error("item {index} of operation {operation} of block {height}: {error}")]
    Item {
        /// The block's height.
        height: Height,
        /// The place of the operation in the block.
        operation: u32,
        /// The item's index in its message.
        index: u32,
        /// What is wrong.
        error: ItemError,
    },
}

/// One written data item. Displayed as the paper's `<Gateway ID/Device ID/Data Item Sequence
/// Number/Timestamp/Data Item Value>`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Record {
    /// The block that wrote it.
    pub height: Height,
    /// The place of the operation in the block.
    pub operation: u32,
    /// Its 0-based index in its message.
    pub index: u32,
    /// The block's timestamp.
    pub block_time: Timestamp,
    /// The stream of its message.
    pub stream: Stream,
    /// The seq of its message.
    pub seq: MessageSeq,
    /// The data item itself.
    #[serde(flatten)]
    pub item: Item,
}

impl std::fmt::Display for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.item.fmt(f)
    }
}

impl Record {
    /// The records that a block wrote, in order.
    ///
    /// # Errors
    /// [`RecordError`]; never of a block that was executed or verified with its certificate.
    pub fn of_block(block: &Block) -> Result<Vec<Self>, RecordError> {
        let mut records = Vec::new();
        for (at, operation) in (0_u32..).zip(&block.operations) {
            if let Operation::Write { request, written } = operation {
                Self::read(&block.header, at, request, written, &mut records)?;
            }
        }
        Ok(records)
    }

    pub(super) fn read(
        block: &super::block::Header,
        operation: u32,
        request: &WriteRequest,
        written: &[u32],
        into: &mut Vec<Self>,
    ) -> Result<(), RecordError> {
        let height = block.height;
        let header = device::Header::decode(&request.header).map_err(|error| RecordError::Header {
            height,
            operation,
            error,
        })?;
        for item in request.items.iter().filter(|item| written.binary_search(&item.index).is_ok()) {
            let index = item.index;
            let item = Item::decode(&item.bytes).map_err(|error| RecordError::Item {
                height,
                operation,
                index,
                error,
            })?;
            let (block_time, stream, seq) = (block.timestamp, header.stream.clone(), header.seq);
            into.push(Self { height, operation, index, block_time, stream, seq, item });
        }
        Ok(())
    }
}
