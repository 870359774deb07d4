//! What a node finds on its disk at the start, and how it goes on from there.
//!
//! ```text
//! store ──▶ state, admissions        (as of the last durable checkpoint, or later)
//! log   ──▶ PBFT entries ──▶ Restored: the core re-sends what it promised, executes what committed
//!       └─▶ accepted messages ──▶ those not final go through the pipeline again
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context as _;

use crate::actors::KeyMark;
use crate::actors::accepted::{LogRecord, LoggedMessage};
use crate::actors::admission::Admission;
use crate::actors::bases::{Bases, BasesLimits};
use crate::actors::effects::WalMarks;
use crate::actors::history::Finished;
use crate::actors::verifier::ResumeMessage;
use crate::clock::SharedClock;
use crate::config::Config;
use crate::device;
use crate::device::telemetry::Content;
use crate::ledger::{Genesis, SEQ_WINDOW, State};
use crate::metrics::{Metrics, QueueGauge, StageTime, StorageMetrics};
use crate::pbft::{Restored, WalEntry};
use crate::policy::Decision;
use crate::store::ledger::AdmissionRecord;
use crate::store::log::{EntryKind, LogSettings, Position, SyncReport};
use crate::store::{EvidenceLimits, EvidenceStore, LedgerStore, Log, SledStore, StoreError, StoreSettings};
use crate::types::{ClientId, Height, MessageSeq, NetworkId, SeqNum};

/// Recent blocks whose certificates are looked for at the start: those that are older had a day of
/// running to be fetched. Bounds the time that a start takes.
const CERTIFICATES_LOOKED_FOR: usize = 100_000;

/// A node's memory, opened.
pub(super) struct Opened {
    /// The ledger's state, until Storage takes it.
    pub(super) state: Option<State>,
    /// Its store.
    pub(super) store: Arc<dyn LedgerStore>,
    /// The log.
    pub(super) log: Log,
    /// Where its PBFT entries lie.
    pub(super) marks: Arc<WalMarks>,
    /// Evidence against replicas.
    pub(super) evidence: Arc<EvidenceStore>,
    /// What was accepted before.
    pub(super) admission: Arc<Admission>,
    /// What the replica goes on from, until it is built.
    pub(super) restored: Option<Restored>,
    /// Accepted messages whose clients were not told their fate, oldest first; pending in
    /// `admission`.
    pub(super) accepted: Vec<ResumeMessage>,
    /// Accepted messages whose clients were told, and that may not be in the history.
    pub(super) finished: Vec<Finished>,
    /// What data items are judged against; holds what `accepted` submits.
    pub(super) bases: Arc<Bases>,
}

/// Opens store and log under the data directory. Blocks on the disk.
pub(super) fn open(
    config: &Config,
    genesis: &Genesis,
    clock: SharedClock,
    metrics: &Metrics,
) -> anyhow::Result<Opened> {
    let network = genesis.network_id();
    let settings = StoreSettings { network, cache_bytes: config.storage.cache_bytes };
    let store = SledStore::open(&config.data_dir.join("ledger"), &settings)?;
    let state = load_state(&store, genesis).context("loading the ledger's state")?;
    let admission = Admission::restore(store.admissions()?);
    let evidence = EvidenceStore::open(&config.data_dir.join("evidence"), evidence_limits(config)?)?;

    catch_up_index(&store)?;

    let settings = log_settings(config, network, clock, &metrics.storage, metrics.stages.log.clone())?;
    let (log, replay) = Log::open(&config.data_dir.join("log"), settings)?;
    let marks = WalMarks::default();
    let (mut entries, mut accepted) = (Vec::new(), Accepted::new(&state, store.indexed_height()));
    for entry in replay {
        let (position, entry) = entry?;
        match entry.kind {
            EntryKind::Pbft => {
                let entry = read_wal(&network, position, &entry.bytes)?;
                marks.note(&entry, position);
                if let Some(pin) = entry.pin() {
                    marks.synced(pin, position);
                }
                entries.push(entry);
            }
            EntryKind::AcceptedMessage => accepted.note(position, &entry.bytes)?,
        }
    }
    let (accepted, finished, unindexed) = accepted.into_admission(&admission);
    let store: Arc<dyn LedgerStore> = Arc::new(store);
    let bases = new_bases(config, &store, metrics.queues.queue("open_items"))?;
    for at in unindexed {
        take_up(&bases, &network, &finished[at].message, &finished[at].decision)?;
    }
    for resume in &accepted {
        take_up(&bases, &network, &resume.message, &resume.decision)?;
    }
    let mark = KeyMark::of(config);
    let lost_log = entries.is_empty() && (state.head().sequence > SeqNum(0) || mark.is_there());
    if lost_log {
        lost(config, genesis, &mark)?;
    }
    let certificate = store.certificate(store.certified_height())?;
    let (executed, timestamp) = (state.checkpoint(), state.head().timestamp);
    let uncertified = uncertified(&*store, executed.height)?;
    let restored = Restored { executed, timestamp, certificate, uncertified, entries, lost_log };
    tracing::info!(
        height = %state.head().height, sequence = %state.head().sequence,
        pbft_entries = restored.entries.len(), accepted = accepted.len(), "opened the ledger and the log"
    );
    Ok(Opened {
        state: Some(state),
        store,
        log,
        marks: Arc::new(marks),
        evidence: Arc::new(evidence),
        admission: Arc::new(admission),
        restored: Some(restored),
        accepted,
        finished,
        bases: Arc::new(bases),
    })
}

/// Indexes what was certified and not indexed when the node stopped: before anything is judged, so that
/// it is judged against that.
fn catch_up_index(store: &SledStore) -> Result<(), StoreError> {
    for height in (store.indexed_height().0 + 1..=store.certified_height().0).map(Height) {
        let Some(block) = store.block(height)? else { break };
        store.index(&[block])?;
    }
    Ok(())
}

fn new_bases(config: &Config, store: &Arc<dyn LedgerStore>, gauge: QueueGauge) -> anyhow::Result<Bases> {
    let limits = BasesLimits {
        cached_items: usize::try_from(config.policy.cached_items)?,
        open_items: usize::try_from(config.policy.max_open_items)?,
    };
    Ok(Bases::new(Arc::clone(store), limits, gauge))
}

/// What was submitted before the restart and is not in the index: nothing new may be judged before that
/// is known.
fn take_up(
    bases: &Bases,
    network: &NetworkId,
    message: &LoggedMessage,
    decision: &Decision,
) -> Result<(), StoreError> {
    // The Verifier complains of a message that does not verify, and submits nothing of it.
    let Ok(message) = message.verify(network) else { return Ok(()) };
    bases.resume(message.header().seq, message.items(), decision)
}

/// The ledger is here and not one consensus entry of the log: what this node promised to the other
/// replicas is gone. It may start, since it does not vote until it cannot contradict that; a ledger
/// with one replica has nobody to learn it from.
fn lost(config: &Config, genesis: &Genesis, mark: &KeyMark) -> anyhow::Result<()> {
    let log = config.data_dir.join("log");
    if mark.is_there() {
        tracing::info!(mark = %mark.path().display(), "this node key has voted before");
    }
    if genesis.replicas.n() == 1 {
        anyhow::bail!(
            "the log in {} is gone, and with it what this node promised; bring it back: see \"A lost log\" in \
             docs/STORAGE.md",
            log.display()
        );
    }
    tracing::error!(
        "the log in {} is gone, and with it what this node promised to the other replicas: it does not vote until it \
         cannot contradict that; see \"A lost log\" in docs/STORAGE.md",
        log.display()
    );
    Ok(())
}

/// Heights whose blocks are here and whose certificates got lost, ascending.
fn uncertified(store: &dyn LedgerStore, head: Height) -> Result<Vec<Height>, StoreError> {
    let mut missing = Vec::new();
    for height in (1..=head.0).rev().take(CERTIFICATES_LOOKED_FOR).map(Height) {
        if store.certificate(height)?.is_none() {
            missing.push(height);
        }
    }
    missing.reverse();
    Ok(missing)
}

fn evidence_limits(config: &Config) -> anyhow::Result<EvidenceLimits> {
    let consensus = &config.consensus;
    Ok(EvidenceLimits {
        per_replica: usize::try_from(consensus.evidence_max_per_replica)?,
        all: usize::try_from(consensus.evidence_max)?,
    })
}

fn log_settings(
    config: &Config,
    network: NetworkId,
    clock: SharedClock,
    metrics: &StorageMetrics,
    time: StageTime,
) -> anyhow::Result<LogSettings> {
    let mut settings = LogSettings::new(network, clock);
    settings.segment_bytes = config.storage.log_segment_bytes;
    settings.gather = config.storage.log_gather;
    settings.max_queued_bytes = usize::try_from(config.storage.log_max_queued_bytes)?;
    let (bytes, sync_ms) = (metrics.log_bytes.clone(), metrics.log_sync_ms.clone());
    settings.observer = Some(Box::new(move |report: &SyncReport| {
        bytes.inc_by(report.bytes);
        sync_ms.observe(report.took.as_secs_f64() * 1000.0);
        time.whole_thread();
    }));
    Ok(settings)
}

/// The accepted messages of the log.
struct Accepted<'a> {
    state: &'a State,
    indexed: Height,
    /// Those whose fate is not known.
    unfinished: BTreeMap<(ClientId, MessageSeq), (AdmissionRecord, ResumeMessage)>,
    /// Those whose clients were told.
    finished: Vec<(AdmissionRecord, Finished)>,
    /// Places of those of them that were written, and that the index of the store does not have: it, or
    /// the block itself, was not on disk yet when the node stopped.
    unindexed: Vec<usize>,
}

impl<'a> Accepted<'a> {
    fn new(state: &'a State, indexed: Height) -> Self {
        let (unfinished, finished, unindexed) = (BTreeMap::new(), Vec::new(), Vec::new());
        Self { state, indexed, unfinished, finished, unindexed }
    }

    fn note(&mut self, position: Position, bytes: &[u8]) -> anyhow::Result<()> {
        let record = LogRecord::decode(bytes).with_context(|| damaged(position))?;
        match record {
            LogRecord::Accepted(message, decision) => {
                let admission = admission_record(&message).with_context(|| damaged(position))?;
                if decision.items.len() != admission.items as usize {
                    anyhow::bail!("{}: a decision of another message", damaged(position));
                }
                let key = (admission.client.clone(), admission.seq);
                let resume = ResumeMessage { position, message, decision };
                self.unfinished.insert(key, (admission, resume));
            }
            LogRecord::Final { client, seq, is_written } => {
                if let Some((admission, resume)) = self.unfinished.remove(&(client, seq)) {
                    if is_written && !self.is_indexed(&admission) {
                        self.unindexed.push(self.finished.len());
                    }
                    let ResumeMessage { position, message, decision } = resume;
                    let key = (admission.client.clone(), admission.seq, admission.header);
                    self.finished
                        .push((admission, Finished { position, key, message, decision, is_written }));
                }
            }
        }
        Ok(())
    }

    /// Whether the index has what was written of a message.
    fn is_indexed(&self, admission: &AdmissionRecord) -> bool {
        match self.state.written(&admission.client, admission.seq) {
            Some(entry) => entry.height <= self.indexed,
            // Below the window it was written long ago; in the window its block is not here yet.
            None => admission.seq.0.saturating_add(SEQ_WINDOW) < self.state.highest(&admission.client).0,
        }
    }

    /// Tells `admission` of all of them: the store may have been saved before they came. Gives
    /// those that are to be finished, in the order in which they were accepted; those that are finished;
    /// and places of those of them that are to be indexed.
    fn into_admission(self, admission: &Admission) -> (Vec<ResumeMessage>, Vec<Finished>, Vec<usize>) {
        for (record, _) in &self.finished {
            admission.note_final(record);
        }
        let mut unfinished: Vec<_> = self.unfinished.into_values().collect();
        unfinished.sort_by_key(|(_, resume)| resume.position);
        let resume = |(record, resume): (AdmissionRecord, ResumeMessage)| {
            admission.resume(&record, resume.position);
            resume
        };
        let finished = self.finished.into_iter().map(|(_, finished)| finished).collect();
        (unfinished.into_iter().map(resume).collect(), finished, self.unindexed)
    }
}

fn admission_record(message: &LoggedMessage) -> anyhow::Result<AdmissionRecord> {
    let content = Content::decode(&message.content)?;
    let header = device::Header::decode(content.header())?;
    let hash = device::Header::hash_of(content.header());
    Ok(AdmissionRecord { client: message.client.clone(), seq: header.seq, header: hash, items: header.count })
}

fn damaged(position: Position) -> String {
    format!("entry {} of the log; see \"Damage\" in docs/STORAGE.md", position.0)
}

fn read_wal(network: &NetworkId, position: Position, bytes: &[u8]) -> anyhow::Result<WalEntry> {
    WalEntry::decode(network, bytes).with_context(|| damaged(position))
}

fn load_state(store: &SledStore, genesis: &Genesis) -> anyhow::Result<State> {
    if let Some(snapshot) = store.load()? {
        return Ok(State::restore(genesis.network_id(), snapshot.head, snapshot.entries)?);
    }
    let state = State::genesis(genesis);
    store.commit(state.head(), None, &state.as_changes())?;
    Ok(state)
}

#[cfg(test)]
#[path = "open_tests.rs"]
mod tests;
