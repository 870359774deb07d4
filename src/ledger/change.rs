//! What executing a batch leaves for storage: where the ledger stands, and which entries of its
//! state changed.

use bincode::{Decode, Encode};

use crate::ledger::entry::WRITTEN;
use crate::types::{Hash, Height, SeqNum, Timestamp};

/// One changed entry of the ledger's state.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct StateChange {
    /// The entry's key.
    pub key: Vec<u8>,
    /// Its new value, or nothing if the entry is gone.
    pub value: Option<Vec<u8>>,
}

impl StateChange {
    /// The window that the entry is in and its number there, if it is of one: each client has a window of
    /// recent messages, which changes with every message. All else about the key is the ledger's own.
    pub fn window(&self) -> Option<(&[u8], u64)> {
        let (window, number) = self.key.split_last_chunk()?;
        (window.len() > 1 && window[0] == WRITTEN).then(|| (window, u64::from_be_bytes(*number)))
    }

    /// The key of the entry with a number of a window.
    pub fn window_key(window: &[u8], number: u64) -> Vec<u8> {
        [window, &number.to_be_bytes()].concat()
    }
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
