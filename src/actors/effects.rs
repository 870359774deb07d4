//! Effects: what the core wants done, done after what it promised is on disk.
//!
//! ```text
//! Output ─▶ [append wal to the log] ─▶ queue ─▶ [wait for synced] ─▶ network, Storage, fetches
//! ```
//!
//! Two tasks, so that later entries reach the log (and share its next sync) while earlier ones are
//! still being synced. Outputs and effects keep the core's order throughout. Fetches run beside,
//! a few of each kind at a time: the core asks again while it needs them. Blocks are fetched by
//! `actors/transfer.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Semaphore, mpsc};

use super::bundles::Bundles;
use super::consensus::{CertificateFetched, PeerBatches, PeerMessage, PeerRequests};
use super::evidence::EvidenceKeeper;
use super::storage::{ExecuteBatch, StorageOrder};
use super::transfer::TransferOrders;
use super::verifier::{RequestVerifier, Workers};
use super::{Fatal, Feeder, KeyMark};
use crate::crypto::SecretKey;
use crate::ledger::{Certificate, ReplicaSetKeys, Request, UncheckedRequest};
use crate::network::{NetworkHandle, PeerRequest, PeerResponse, RequestError, Topic};
use crate::pbft::{Batch, Effect, Output, Pin, Source, Verified, WalEntry};
use crate::store::log::{Entry, EntryKind, Position};
use crate::store::{LedgerStore, Log};
use crate::types::{Hash, Height, NetworkId, NodeId, SeqNum, View};

/// Outputs on their way to the log: about the window. When it is full, Consensus waits.
pub const OUTPUTS: usize = 256;

/// Outputs whose entries are being synced.
const SYNCING: usize = 256;

/// Fetches of missing requests at once; the core asks again for what is still missing.
const REQUEST_FETCHES: usize = 4;

/// Fetches of batches at once, likewise.
const BATCH_FETCHES: usize = 4;

/// Where the log has the first entry of each sequence number that is still needed.
#[derive(Debug, Default)]
pub struct WalMarks(Mutex<Marks>);

#[derive(Debug, Default)]
struct Marks {
    sequences: BTreeMap<SeqNum, Position>,
    /// The newest entry of each kind that is needed whatever the sequence number.
    pinned: BTreeMap<Pin, Position>,
}

impl WalMarks {
    /// Notes that `entry` lies at `position`, after all that were noted before. Of what is pinned,
    /// the one before is needed until [`WalMarks::synced`].
    pub fn note(&self, entry: &WalEntry, position: Position) {
        let mut marks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pin) = entry.pin() {
            marks.pinned.entry(pin).or_insert(position);
            return;
        }
        let mark = marks.sequences.entry(entry.sequence()).or_insert(position);
        *mark = position.min(*mark);
    }

    /// Notes that the newest entry of a kind is on disk, at `position`.
    pub fn synced(&self, pin: Pin, position: Position) {
        let mut marks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = marks.pinned.entry(pin).or_insert(position);
        *newest = position.max(*newest);
    }

    /// Forgets what lies below `sequence`, and tells from which position on entries are needed;
    /// none if no entry is.
    pub fn needed_from(&self, sequence: SeqNum) -> Option<Position> {
        let mut marks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        marks.sequences = marks.sequences.split_off(&sequence);
        marks.sequences.values().chain(marks.pinned.values()).min().copied()
    }
}

/// What effects are carried out with.
pub struct Effects {
    /// The node's key, for bundles.
    pub key: SecretKey,
    /// The ledger.
    pub network_id: NetworkId,
    /// The replicas' keys.
    pub keys: Arc<ReplicaSetKeys>,
    /// The log.
    pub log: Log,
    /// Where entries lie.
    pub marks: Arc<WalMarks>,
    /// The other nodes.
    pub network: NetworkHandle,
    /// Orders to Storage, in their order.
    pub to_storage: Feeder<StorageOrder>,
    /// Fetches blocks.
    pub transfer: TransferOrders,
    /// The store, to see what is there.
    pub store: Arc<dyn LedgerStore>,
    /// Fetched requests, to Consensus.
    pub requests: Feeder<PeerRequests>,
    /// Fetched certificates, to Consensus.
    pub certificates: Feeder<CertificateFetched>,
    /// Fetched batches, to Consensus.
    pub batches: Feeder<PeerBatches>,
    /// Fetched proofs of views, to Consensus.
    pub messages: Feeder<PeerMessage>,
    /// Checks fetched requests.
    pub verifier: RequestVerifier,
    /// Checks fetched proofs of views.
    pub workers: Workers,
    /// Keeps evidence.
    pub evidence: EvidenceKeeper,
    /// Tells a later start that this key has voted.
    pub key_mark: KeyMark,
    /// Stops the node.
    pub fatal: Fatal,
}

/// Starts the pipeline; it ends when the sender of `outputs` is gone and all was carried out, or
/// when the node stops: then nothing more is promised to anybody.
pub fn start(effects: Effects, mut outputs: mpsc::Receiver<Output>) {
    let (syncing, mut synced) = mpsc::channel::<(Appended, Vec<Effect>)>(SYNCING);
    let log = effects.log.clone();
    let (marks, fatal) = (Arc::clone(&effects.marks), effects.fatal.clone());
    let vital = fatal.vital("the way from Consensus to the log");
    tokio::spawn(async move {
        let _vital = vital;
        while let Some(output) = outputs.recv().await {
            let appended = match append(&log, &marks, &output).await {
                Ok(appended) => appended,
                Err(error) => return fatal.stop(anyhow::Error::new(error).context("writing the log")),
            };
            if syncing.send((appended, output.effects)).await.is_err() {
                return;
            }
        }
    });
    let runner = Arc::new(Runner::new(effects));
    let vital = runner.parts.fatal.vital("the carrying out of Consensus' effects");
    tokio::spawn(async move {
        let _vital = vital;
        while let Some((appended, effects)) = synced.recv().await {
            if let Some(position) = appended.last
                && let Err(error) = runner.parts.log.synced(position).await
            {
                return runner.parts.fatal.stop(anyhow::Error::new(error).context("syncing the log"));
            }
            // After the log has the entries, and before anybody hears of them: so who finds the mark
            // and no entries knows that there were some.
            if appended.last.is_some()
                && let Err(error) = runner.parts.key_mark.make().await
            {
                return runner.parts.fatal.stop(error.context("marking the node key as used"));
            }
            for (pin, position) in appended.pins {
                runner.parts.marks.synced(pin, position);
            }
            for effect in effects {
                if runner.parts.fatal.is_stopping() {
                    return;
                }
                runner.carry_out(effect).await;
            }
        }
    });
}

/// Where the entries of an output went.
#[derive(Debug, Default)]
struct Appended {
    last: Option<Position>,
    pins: Vec<(Pin, Position)>,
}

async fn append(log: &Log, marks: &WalMarks, output: &Output) -> Result<Appended, crate::store::LogError> {
    let mut appended = Appended::default();
    if output.wal.is_empty() {
        return Ok(appended);
    }
    // Noted before they are there, at the lowest position that they can get: a cut of the log in
    // between must know of them.
    let lowest = log.last().next();
    for entry in &output.wal {
        marks.note(entry, lowest);
    }
    let entries: Vec<_> =
        output.wal.iter().map(|entry| Entry { kind: EntryKind::Pbft, bytes: entry.encode() }).collect();
    let count = entries.len() as u64;
    let last = log.append(entries).await?;
    let positions = output.wal.iter().zip(last.0 + 1 - count..);
    appended.pins.extend(positions.filter_map(|(entry, at)| Some((entry.pin()?, Position(at)))));
    appended.last = Some(last);
    Ok(appended)
}

/// Carries out effects, one after the other; what takes long goes on beside.
struct Runner {
    parts: Effects,
    bundles: Bundles,
    request_fetches: Arc<Semaphore>,
    certificate_fetch: Arc<Semaphore>,
    batch_fetch: Arc<Semaphore>,
    view_fetch: Arc<Semaphore>,
}

impl Runner {
    fn new(parts: Effects) -> Self {
        Self {
            bundles: Bundles::start(&parts.key, parts.network_id, &parts.keys, &parts.network),
            parts,
            request_fetches: Arc::new(Semaphore::new(REQUEST_FETCHES)),
            certificate_fetch: Arc::new(Semaphore::new(1)),
            batch_fetch: Arc::new(Semaphore::new(BATCH_FETCHES)),
            view_fetch: Arc::new(Semaphore::new(1)),
        }
    }

    async fn carry_out(self: &Arc<Self>, effect: Effect) {
        match effect {
            Effect::Broadcast(envelope) => {
                if let Err(error) = self.parts.network.broadcast(Topic::Pbft, envelope.encode()).await {
                    tracing::debug!(%error, "message not broadcast; it is sent again while it matters");
                }
            }
            Effect::SendRequests { requests } => self.bundles.send(&requests),
            Effect::ForwardRequests { requests, to } => self.bundles.forward(to, &requests),
            Effect::FetchBatches { digests, from } => self.fetch_batches(digests, from),
            Effect::FetchView { view, from } => self.fetch_view(view, from),
            Effect::Execute { sequence, batch, requests } => {
                self.parts.to_storage.put(StorageOrder::Execute(ExecuteBatch { sequence, batch, requests })).await;
            }
            Effect::Certified(certificate) => {
                self.parts.to_storage.put(StorageOrder::Certify(certificate)).await;
            }
            Effect::Skip(content) => self.parts.to_storage.put(StorageOrder::Skip(content)).await,
            Effect::FetchRequests { digests, from } => self.fetch_requests(digests, from),
            Effect::FetchBlocks { upto, .. } => self.parts.transfer.fetch(upto),
            Effect::FetchCertificates { heights, from } => self.fetch_certificates(heights, from),
            Effect::Diverged { own, other } => self.parts.fatal.stop(anyhow::anyhow!(
                "this node's ledger differs from the one that a quorum certified: at sequence {} it has state {}, \
                 the others {}; its program or its data is damaged: keep the data directory for inspection and \
                 start it with an empty one, which it fills from the other nodes",
                own.sequence, own.state.short(), other.state.short(),
            )),
            Effect::Evidence(evidence) => {
                if let Err(error) = self.parts.evidence.keep(*evidence).await {
                    self.parts.fatal.stop(error);
                }
            }
        }
    }

    fn fetch_requests(self: &Arc<Self>, digests: Vec<Hash>, from: Vec<NodeId>) {
        let Ok(place) = Arc::clone(&self.request_fetches).try_acquire_owned() else { return };
        let runner = Arc::clone(self);
        tokio::spawn(async move {
            for node in from {
                let request = PeerRequest::FetchRequests(digests.clone());
                match runner.parts.network.request(node, request).await {
                    Ok(PeerResponse::Requests(requests)) if !requests.is_empty() => {
                        let requests = only_asked_for(&digests, requests);
                        if requests.is_empty() {
                            tracing::debug!(%node, "none of the requests was asked for");
                            continue;
                        }
                        let requests = runner.parts.verifier.verify(requests).await;
                        runner.parts.requests.put(PeerRequests { requests, source: Source::Fetched }).await;
                        break;
                    }
                    answer => log_fruitless(node, &answer),
                }
            }
            drop(place);
        });
    }

    fn fetch_batches(self: &Arc<Self>, digests: Vec<Hash>, from: Vec<NodeId>) {
        let Ok(place) = Arc::clone(&self.batch_fetch).try_acquire_owned() else { return };
        let runner = Arc::clone(self);
        tokio::spawn(async move {
            for node in from {
                let request = PeerRequest::FetchBatches(digests.clone());
                match runner.parts.network.request(node, request).await {
                    Ok(PeerResponse::Batches(batches)) if !batches.is_empty() => {
                        let wanted = |batch: &Batch| digests.contains(&batch.digest());
                        let batches = batches.into_iter().filter(wanted).collect();
                        runner.parts.batches.put(PeerBatches(batches)).await;
                        break;
                    }
                    answer => log_fruitless(node, &answer),
                }
            }
            drop(place);
        });
    }

    fn fetch_view(self: &Arc<Self>, view: View, from: Vec<NodeId>) {
        let Ok(place) = Arc::clone(&self.view_fetch).try_acquire_owned() else { return };
        let runner = Arc::clone(self);
        tokio::spawn(async move {
            tracing::debug!(%view, "asking for the NEW-VIEW of this view or a later one");
            for node in from {
                match runner.parts.network.request(node, PeerRequest::FetchView(view)).await {
                    Ok(PeerResponse::View(messages)) if !messages.is_empty() => {
                        let (network, keys) = (runner.parts.network_id, Arc::clone(&runner.parts.keys));
                        let check = move || -> Result<Vec<Verified>, _> {
                            messages.into_iter().map(|message| message.verify(&keys, &network)).collect()
                        };
                        match runner.parts.workers.run(check).await {
                            Some(Ok(messages)) => {
                                tracing::info!(%view, %node, "this view or a later one has begun: got its NEW-VIEW");
                                for message in messages {
                                    runner.parts.messages.put(PeerMessage(message)).await;
                                }
                                break;
                            }
                            Some(Err(error)) => tracing::warn!(%node, %error, "a bad proof of a view"),
                            None => break,
                        }
                    }
                    answer => log_fruitless(node, &answer),
                }
            }
            drop(place);
        });
    }

    fn fetch_certificates(self: &Arc<Self>, heights: Vec<Height>, from: Vec<NodeId>) {
        let Ok(place) = Arc::clone(&self.certificate_fetch).try_acquire_owned() else { return };
        let runner = Arc::clone(self);
        tokio::spawn(async move {
            for height in heights {
                for node in &from {
                    if let Some(certificate) = runner.fetch_certificate(*node, height).await {
                        runner.parts.to_storage.put(StorageOrder::Certify(certificate.clone())).await;
                        runner.parts.certificates.put(CertificateFetched(certificate)).await;
                        break;
                    }
                }
            }
            drop(place);
        });
    }

    async fn fetch_certificate(&self, node: NodeId, height: Height) -> Option<Certificate> {
        let request = PeerRequest::FetchBlocks { from: height, max: 1 };
        let answer = self.parts.network.request(node, request).await;
        let Ok(PeerResponse::Blocks { blocks, .. }) = answer else {
            log_fruitless(node, &answer);
            return None;
        };
        let (_, certificate) = blocks.into_iter().next()?;
        let own = self.parts.store.header(height).ok()??;
        let fits = certificate.content.block == own.hash()
            && certificate.verify(&self.parts.network_id, &self.parts.keys).is_ok();
        fits.then_some(certificate)
    }
}

/// What an answer has of what was asked for, each once: nothing else is worth a check.
fn only_asked_for(digests: &[Hash], requests: Vec<Request>) -> Vec<UncheckedRequest> {
    let mut missing: BTreeSet<_> = digests.iter().copied().collect();
    let requests = requests.into_iter().map(UncheckedRequest::new);
    requests.filter(|request| missing.remove(&request.digest())).collect()
}

fn log_fruitless(node: NodeId, answer: &Result<PeerResponse, RequestError>) {
    match answer {
        Ok(_) => tracing::debug!(%node, "the node has nothing of what was asked for"),
        Err(error) => tracing::debug!(%node, %error, "fetch failed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{AdminAction, AdminOperation};
    use crate::types::{ClientId, MessageSeq};

    #[test]
    fn of_a_fetched_answer_only_what_was_asked_for_is_checked_and_once() {
        let (key, network) = (SecretKey::from_seed(&[7; 32]), NetworkId([1; 32]));
        let requests = [1, 2, 3].map(|number| {
            let client = ClientId::new("a/b").unwrap();
            let action = AdminAction::RevokeClient { client, last_seq: MessageSeq(1), reason: "lost".into() };
            let operation = AdminOperation::sign(network, &key, number, action);
            Request::Admin { node: key.node_id(), operation }
        });
        let digest = |request: &Request| UncheckedRequest::new(request.clone()).digest();
        let [asked, missing, other] = requests;
        let answer = vec![other.clone(), asked.clone(), asked.clone(), other];
        let found = only_asked_for(&[digest(&asked), digest(&missing)], answer);
        assert_eq!(found.iter().map(UncheckedRequest::digest).collect::<Vec<_>>(), [digest(&asked)]);
    }

    #[test]
    fn the_log_is_needed_from_the_first_entry_of_the_first_sequence_that_is_not_settled() {
        let marks = WalMarks::default();
        for (sequence, position) in [(1, 10), (2, 20), (3, 15), (3, 40)] {
            let (view, digest) = (View(0), Hash([0; 32]));
            let entry = WalEntry::Committed { view, sequence: SeqNum(sequence), digest };
            marks.note(&entry, Position(position));
        }
        assert_eq!(marks.needed_from(SeqNum(1)), Some(Position(10)));
        assert_eq!(marks.needed_from(SeqNum(2)), Some(Position(15)));
        assert_eq!(marks.needed_from(SeqNum(3)), Some(Position(15)));
        assert_eq!(marks.needed_from(SeqNum(4)), None);
    }
}
