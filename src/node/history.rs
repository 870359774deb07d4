//! The history of a node: opened before anything else starts, and written until all else has stopped.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use actix::{Addr, Recipient};
use anyhow::Context as _;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::Shared;
use crate::actors::consensus::{Consensus, SubmitRequest};
use crate::actors::history::{
    Backlog, DigestTerms, Finished, HistoryFeed, HistoryParts, HistoryTask, SubmitDigest, replay,
};
use crate::actors::policy::submit;
use crate::actors::storage::LookUpMessage;
use crate::history::{HistoryStore, Location, SqlHistory};
use crate::ledger::{HistoryDigest, Request, VerifiedRequest};
use crate::store::Log;

/// How long an orderly stop waits for the history. What is not in it then is in the log.
const STOPS_WITHIN: Duration = Duration::from_secs(10);

/// The history before the device side runs.
pub(super) struct History {
    store: Arc<dyn HistoryStore>,
    /// Room for what is not in it.
    pub(super) backlog: Backlog,
    /// The way into it.
    pub(super) feed: HistoryFeed,
    consensus: Arc<OnceLock<Recipient<SubmitRequest>>>,
    task: HistoryTask,
    stop: watch::Sender<bool>,
}

/// The history while the node runs.
pub(super) struct Running {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl History {
    /// Opens the history. A database that cannot be reached may come later; one
    /// that is not this network's history ends the start.
    pub(super) async fn new(shared: &Arc<Shared>, log: Log) -> anyhow::Result<Self> {
        let config = &shared.config.history;
        let url = config.url.as_ref().map(|url| url.0.as_str());
        let location = Location::of_node(url, &shared.config.data_dir)?;
        let node = shared.key.node_id();
        let store: Arc<dyn HistoryStore> = Arc::new(SqlHistory::new(location, shared.network_id, node));
        match store.open().await {
            Ok(()) => shared.metrics.history.available.set(1),
            Err(error) if error.may_pass() => tracing::error!(%error, "starting without the history"),
            Err(error) => return Err(error).context("opening the history"),
        }
        let backlog = Backlog::new(config.max_backlog_bytes, shared.metrics.queues.queue("history_kib"));
        let consensus: Arc<OnceLock<Recipient<SubmitRequest>>> = Arc::default();
        let parts = HistoryParts {
            store: Arc::clone(&store),
            network: shared.network_id,
            key: shared.key.clone(),
            log,
            view: Arc::clone(&shared.view),
            submit: submitter(shared, Arc::clone(&consensus)),
            terms: DigestTerms { interval: config.digest_interval, max_rows: config.digest_max_rows },
            clock: Arc::clone(&shared.clock),
            metrics: shared.metrics.history.clone(),
            fatal: shared.fatal.clone(),
        };
        let (stop, stopping) = watch::channel(false);
        let (task, feed) = HistoryTask::new(parts, stopping);
        Ok(Self { store, backlog, feed, consensus, task, stop })
    }

    /// From here on digests can be ordered.
    pub(super) fn connect(&self, consensus: &Addr<Consensus>) {
        let _connected_once = self.consensus.set(consensus.clone().recipient());
    }

    /// Starts to write it, and offers it what the log has of before a restart. What is written goes on behind
    /// what the ledger has, so Storage comes first.
    pub(super) fn replay(
        self,
        shared: &Shared,
        finished: Vec<Finished>,
        storage: Recipient<LookUpMessage>,
    ) -> Running {
        let (to, with) = ((self.backlog, self.feed), (shared.workers.clone(), shared.network_id));
        tokio::spawn(replay(finished, self.store, to, storage, with));
        Running { stop: self.stop, task: tokio::spawn(self.task.run()) }
    }
}

impl Running {
    /// Writes what is queued and a last digest, unless that takes too long.
    pub(super) async fn stop(self) {
        self.stop.send_replace(true);
        if tokio::time::timeout(STOPS_WITHIN, self.task).await.is_err() {
            tracing::warn!("the history takes long; the log keeps what is not in it");
        }
    }
}

/// Hands a digest to Consensus, waiting for room beside the history.
fn submitter(shared: &Arc<Shared>, consensus: Arc<OnceLock<Recipient<SubmitRequest>>>) -> SubmitDigest {
    let (network, room) = (shared.network_id, Arc::clone(&shared.room));
    Arc::new(move |digest: HistoryDigest| {
        let Some(consensus) = consensus.get().cloned() else { return };
        match VerifiedRequest::verify(&network, Request::Digest(digest)) {
            Ok(request) => {
                let room = Arc::clone(&room);
                tokio::spawn(async move {
                    let _stopping_if_none = submit(&consensus, &room, Arc::new(request)).await;
                });
            }
            Err(error) => tracing::error!(%error, "an own history digest is no request"),
        }
    })
}
