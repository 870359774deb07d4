//! Messages of before a restart that the log still has: their rows are offered again, and what the
//! ledger says of those that were written.
//!
//! Those whose fate was not known go through the node again, and their rows with them. These here
//! are the others: their clients were told, and nothing comes back to them by itself.

use std::sync::Arc;
use std::time::Duration;

use actix::Recipient;

use super::HistoryFeed;
use super::backlog::Backlog;
use crate::actors::accepted::LoggedMessage;
use crate::actors::storage::LookUpMessage;
use crate::actors::verifier::Workers;
use crate::actors::{FinalMessage, FinalVerdict};
use crate::history::{HistoryStore, MessageKey};
use crate::policy::Decision;
use crate::store::log::Position;
use crate::types::NetworkId;

/// Messages that are looked for at once.
const TOGETHER: usize = 256;

/// How long until the database, or the ledger, is asked again.
const AGAIN: Duration = Duration::from_secs(1);

/// How often the ledger is asked for what it has of a message: a node that fetches blocks after its
/// restart needs a while. Then the fate stays unknown here; the ledger itself has it.
const ASKED: usize = 60;

/// A message of the log whose client was told its fate.
#[derive(Debug)]
pub struct Finished {
    /// Where the log has it.
    pub position: Position,
    /// Which it is.
    pub key: MessageKey,
    /// The message.
    pub message: LoggedMessage,
    /// What was decided.
    pub decision: Decision,
    /// Whether something of it is on the ledger.
    pub is_written: bool,
}

/// What [`replay`] works with.
struct Replay {
    store: Arc<dyn HistoryStore>,
    backlog: Backlog,
    feed: HistoryFeed,
    storage: Recipient<LookUpMessage>,
    workers: Workers,
    network: NetworkId,
}

/// Pins what is to be replayed, at once, and gives the work to be spawned.
pub fn replay(
    finished: Vec<Finished>,
    store: Arc<dyn HistoryStore>,
    (backlog, feed): (Backlog, HistoryFeed),
    storage: Recipient<LookUpMessage>,
    (workers, network): (Workers, NetworkId),
) -> impl Future<Output = ()> + Send + 'static {
    let pinned: Vec<_> =
        finished.into_iter().map(|finished| (backlog.pin(finished.position), finished)).collect();
    let replay = Replay { store, backlog, feed, storage, workers, network };
    async move { replay.run(pinned).await }
}

type Pinned = ((Position, u64), Finished);

impl Replay {
    async fn run(self, pinned: Vec<Pinned>) {
        let mut pinned = pinned.into_iter();
        loop {
            let group: Vec<Pinned> = pinned.by_ref().take(TOGETHER).collect();
            if group.is_empty() {
                return;
            }
            let keys: Vec<_> = group.iter().map(|(_, finished)| finished.key.clone()).collect();
            let standing = loop {
                match self.store.standing(&keys).await {
                    Ok(standing) => break standing,
                    // Who writes the history says what is wrong with it.
                    Err(_) => tokio::time::sleep(AGAIN).await,
                }
            };
            for ((pin, finished), standing) in group.into_iter().zip(standing) {
                if !standing.stored || (finished.is_written && !standing.has_fate) {
                    self.offer(finished).await;
                }
                self.backlog.is_done(pin);
            }
        }
    }

    /// Offers a message again; a row that is there stays as it is.
    async fn offer(&self, finished: Finished) {
        let Finished { position, key, message: logged, decision, is_written } = finished;
        let network = self.network;
        let verified = self.workers.run(move || logged.verify(&network)).await;
        let Some(Ok(message)) = verified else {
            tracing::error!(client = %key.0, position = position.0, "an accepted message of the log does not verify");
            return;
        };
        let Some(place) = self.backlog.place(&message).await else { return };
        place.pin(position);
        let header = message.header();
        let (client, seq, hash) = key;
        let unknown = FinalMessage {
            client,
            stream: header.stream.clone(),
            seq,
            header: hash,
            items: header.count,
            verdict: FinalVerdict::NotWritten,
        };
        self.feed.decided(Arc::new(message), decision.bytes(), position, Arc::new(place));
        let (feed, storage) = (self.feed.clone(), self.storage.clone());
        // As many as there are places.
        tokio::spawn(async move {
            let verdict = if is_written { written(&storage, &unknown).await } else { None };
            let verdict = verdict.unwrap_or(FinalVerdict::NotWritten);
            feed.is_final(&FinalMessage { verdict, ..unknown });
        });
    }
}

/// What the ledger has of a message that was written; nothing if it does not tell.
async fn written(storage: &Recipient<LookUpMessage>, message: &FinalMessage) -> Option<FinalVerdict> {
    for _ in 0..ASKED {
        let FinalMessage { client, seq, header, .. } = message.clone();
        match storage.send(LookUpMessage { client, seq, header }).await {
            Ok(Some(verdict @ FinalVerdict::Written { .. })) => return Some(verdict),
            // The node has fetched later ones already, and does not tell any more.
            Ok(Some(FinalVerdict::Rejected(_))) | Err(_) => return None,
            Ok(_) => tokio::time::sleep(AGAIN).await,
        }
    }
    None
}
