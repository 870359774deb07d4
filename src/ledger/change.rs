//! What executing a batch leaves for storage: where the ledger stands, and which entries of its
//! state changed.

use bincode::{Decode, Encode};

use crate::types::{Hash, Height, SeqNum, Timestamp};

/// One changed entry of the ledger's state.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct StateChange {
    /// The entry's key.
    pub key: Vec<u8>,
    /// Its new value, or nothing if the entry is gone.
    pub value: Option<Vec<u8>>,
}

/// Where the ledger stands: the last executed batch and the last block.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Head {
    /// The sequence number of the last executed batch; 0 at genesis.
    pub sequence: SeqNum,
    /// The height of the last block; 0 at genesis.
    pub height: Height,
    /// The hash of the last block; at height 0 the network id.
    pub block: Hash,
    /// The timestamp of the last executed batch; at genesis, when the genesis document was made.
    pub timestamp: Timestamp,
}
