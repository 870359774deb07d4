//! The actors of a node: one thin file each, around a pure core.
//!
//! ```text
//! broker ─▶ Ingress ─▶ Verifier ─▶ Policy ─▶ Consensus ◀─▶ Network ◀─▶ other replicas
//!              ▲                     └▶ History  │ after the log
//!              └───────── final ◀── Storage ◀────┘
//! ```
//!
//! Data flows one way with `send().await`, so back-pressure reaches the MQTT socket: a PUBLISH is
//! acknowledged when its message is in the log, and a full queue anywhere ahead withholds that.
//! What flows back goes through [`Feeder`]s whose bounds the protocol guarantees.
//!
//! | queue | holds | how many | when full |
//! | --- | --- | --- | --- |
//! | mailbox of Ingress | uplinks of all connections, final messages | 1,024 | the broker's sessions wait |
//! | Verifier's worker pool | signature checks that run | one per core and one | Ingress and Network wait |
//! | `accepted` | messages accepted and not final | 32,768 | no further one is accepted: clients wait, then are disconnected |
//! | `ahead_kib` | KiB of accepted messages without a place in the pool | 65,536 | the same |
//! | `open_items` | data items that are submitted and not indexed | `policy.max_open_items`, and one message a worker | as with `accepted` |
//! | mailbox of Policy | verified messages | 1,024 | Verifier waits |
//! | Policy to Consensus | requests | 1,024 | Policy waits |
//! | mailbox of Consensus | requests, votes, results | 4,096 | Policy waits; gossip is ignored (votes are sent again) |
//! | `outputs` | steps of the core whose entries go to the log | 256 | Consensus waits |
//! | requests on their way to one replica | parcels of up to 512 requests for its next bundle | 64, and 16 MiB | left to the core, which sends them again |
//! | bundles of one replica | those that it hands over | one is worked on; the network has 8 | it waits, then is told `Busy` |
//! | `storage_orders` | batches, certificates | 1,024 | effects wait |
//! | mailbox of Storage | the same, fetched blocks, questions | 1,024 | effects wait |
//! | `executed` | executed batches, to Consensus | 1,024 | cannot be: the core executes one at a time |
//! | `fetched_*` | what other nodes sent, to Consensus | 64 each | fetching waits |
//! | `finals` | this node's final messages, to Ingress | 32,768 | cannot be: as many may be accepted |
//! | `transfer.rs` | fetched blocks that are not applied | `transfer.max_buffered_bytes` | nobody is asked for more |
//! | `history_kib` | KiB of accepted messages that are not in the history | `history.max_backlog_bytes` | no further one is accepted: clients wait, then are disconnected |
//! | queue of the history | rows and fates, two for each message above | 262,144 | cannot be: each message has a place |
//! | changed clients | clients whose sessions are to be closed | one entry a client | a set: it is there already |
//!
//! Those with a name are metrics: `ledgermq_queue_length` and `ledgermq_queue_full_total`.
//!
//! All of them are fail-stop ([`Fatal`], [`fatal::Vital`]): the process ends, the log restores it.

pub mod accepted;
pub mod admission;
pub mod bases;
pub mod bundles;
pub mod changed;
pub mod consensus;
pub mod downlink;
pub mod effects;
pub mod evidence;
pub mod fatal;
pub mod feeder;
pub mod finals;
pub mod history;
pub mod ingress;
pub mod key_mark;
pub mod network;
pub mod node_keys;
pub mod notices;
pub mod policy;
pub mod rate;
pub mod storage;
pub mod tally;
pub mod transfer;
pub mod upkeep;
pub mod verifier;
pub mod view;

use actix::Message;

pub use fatal::{Fatal, FatalReceiver, fatal};
pub use feeder::{Feeder, Mouth, feeder};
pub use key_mark::KeyMark;

use crate::ledger::Rejection;
use crate::types::{ClientId, Hash, Height, MessageSeq, Stream};

/// A message that this node admitted, and what became of it.
#[derive(Debug, Clone)]
pub struct FinalMessage {
    /// Whose it is.
    pub client: ClientId,
    /// Its stream.
    pub stream: Stream,
    /// Its number.
    pub seq: MessageSeq,
    /// BLAKE3 of its header.
    pub header: Hash,
    /// How many items it has.
    pub items: u32,
    /// What became of it.
    pub verdict: FinalVerdict,
}

/// What became of an admitted message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FinalVerdict {
    /// These items are on the ledger.
    Written {
        /// 0-based indexes, ascending.
        items: Vec<u32>,
        /// The block's height.
        height: Height,
        /// The block's hash.
        block: Hash,
    },
    /// No policy picked an item of it.
    NotWritten,
    /// The ledger refused it.
    Rejected(Rejection),
}

/// A client was registered or revoked: its sessions are closed and erased.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct ClientChanged(pub ClientId);
