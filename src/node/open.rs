//! What a node finds on its disk at the start, and how it goes on from there.
//!
//! ```text
//! store ──▶ state, admissions        (as of the last durable checkpoint, or later)
//! log   ──▶ PBFT entries ──▶ Restored: the core re-sends what it promised, executes what committed
//!       └─▶ accepted messages ──▶ those not final go through the pipeline again
//! ```

use std::sync::Arc;

use anyhow::Context as _;

use crate::actors::admission::Admission;
use crate::actors::effects::WalMarks;
use crate::actors::verifier::LoggedMessage;
use crate::clock::SharedClock;
use crate::config::Config;
use crate::ledger::{Genesis, State};
use crate::pbft::{Restored, WalEntry};
use crate::store::{EntryKind, LedgerStore, Log, LogSettings, Position, SledSettings, SledStore};
use crate::types::NetworkId;

/// A node's memory, opened.
pub(super) struct Opened {
    /// The ledger's state.
    pub(super) state: State,
    /// Its store.
    pub(super) store: Arc<dyn LedgerStore>,
    /// The log.
    pub(super) log: Log,
    /// Where its PBFT entries lie.
    pub(super) marks: Arc<WalMarks>,
    /// What was accepted before.
    pub(super) admission: Arc<Admission>,
    /// What the replica goes on from.
    pub(super) restored: Restored,
    /// Accepted messages whose log entries are still there, oldest first.
    pub(super) accepted: Vec<(Position, LoggedMessage)>,
}

/// Opens store and log under the data directory. Blocks on the disk.
pub(super) fn open(config: &Config, genesis: &Genesis, clock: SharedClock) -> anyhow::Result<Opened> {
    let network = genesis.network_id();
    let sled = SledSettings { cache_bytes: config.storage.cache_bytes, ..SledSettings::new(network) };
    let store = SledStore::open(&config.data_dir.join("ledger"), sled)?;
    let state = load_state(&store, genesis).context("loading the ledger's state")?;
    let admission = Admission::restore(store.admissions()?);

    let mut settings = LogSettings::new(network, clock);
    settings.segment_bytes = config.storage.log_segment_bytes;
    settings.max_queued_bytes = usize::try_from(config.storage.log_max_queued_bytes)?;
    let (log, replay) = Log::open(&config.data_dir.join("log"), settings)?;
    let marks = WalMarks::default();
    let (mut entries, mut accepted) = (Vec::new(), Vec::new());
    for entry in replay {
        let (position, entry) = entry?;
        match entry.kind {
            EntryKind::Pbft => {
                let entry = read_wal(&network, position, &entry.bytes)?;
                marks.note(entry.sequence(), position);
                entries.push(entry);
            }
            EntryKind::AcceptedMessage => accepted.push((position, LoggedMessage::decode(&entry.bytes)?)),
        }
    }
    let restored = Restored { executed: state.checkpoint(), timestamp: state.head().timestamp, entries };
    tracing::info!(
        height = %state.head().height, sequence = %state.head().sequence,
        pbft_entries = restored.entries.len(), accepted = accepted.len(), "opened the ledger and the log"
    );
    Ok(Opened {
        state,
        store: Arc::new(store),
        log,
        marks: Arc::new(marks),
        admission: Arc::new(admission),
        restored,
        accepted,
    })
}

fn read_wal(network: &NetworkId, position: Position, bytes: &[u8]) -> anyhow::Result<WalEntry> {
    WalEntry::decode(network, bytes)
        .with_context(|| format!("entry {} of the log; see \"Damage\" in docs/STORAGE.md", position.0))
}

fn load_state(store: &SledStore, genesis: &Genesis) -> anyhow::Result<State> {
    if let Some(snapshot) = store.load()? {
        return Ok(State::restore(genesis.network_id(), snapshot.head, snapshot.entries)?);
    }
    let state = State::genesis(genesis);
    store.commit(state.head(), None, &state.as_changes())?;
    Ok(state)
}
