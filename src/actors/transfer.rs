//! State transfer: a replica that is behind, new or wiped fetches blocks with their certificates from the
//! others, and takes part again.
//!
//! ```text
//! Effect::FetchBlocks ─▶ Transfer ─ Plan (pure): what to ask whom ─▶ network, several peers at once
//!                           ▲                                          │ blocks, certificates
//!                           ├── Plan: in order ◀── checked by workers ◀┘
//!                           ▼
//!                        Storage (ApplyBlocks) ─▶ BlocksSynced ─▶ Consensus
//! ```
//!
//! It goes on until a peer that was asked for more has nothing, and the height that a correct
//! replica has is reached; then ordinary voting takes over. What was ordered in between, the core
//! sees in the CHECKPOINTs that everybody repeats, and wants fetched again. Nothing is kept besides
//! the ledger: after a crash it goes on from the last block that is there.
//!
//! | queue | holds | how many | when full |
//! | --- | --- | --- | --- |
//! | orders | what the core wants fetched | 4 | dropped: the core asks again |
//! | the plan | blocks that came and are not applied | `transfer.max_buffered_bytes` | nobody is asked |

mod peer;
pub mod plan;
pub mod progress;
pub mod serve;
pub mod throttle;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::consensus::BlocksSynced;
use super::storage::{Applied, ApplyBlocks, Storage};
use super::verifier::Workers;
use super::view::LedgerView;
use super::{Fatal, Feeder};
use crate::clock::SharedClock;
use crate::codec;
use crate::config::TransferConfig;
use crate::ledger::{Block, BlockError, Certificate, CertifiedBlock, ReplicaSetKeys};
use crate::metrics::TransferMetrics;
use crate::network::protocol::{MAX_FETCH_BLOCKS, MAX_LARGE_BYTES};
use crate::network::{NetworkHandle, PeerRequest, PeerResponse};
use crate::types::{Height, NetworkId, NodeId, SeqNum};
use plan::{Answer, Ask, Limits, Plan};
use progress::{Reporter, TransferBoard};

/// Orders of the core that wait.
const ORDERS: usize = 4;

/// How often it is looked who is late and who may be asked again.
const TICK: Duration = Duration::from_millis(50);

/// Blocks of one request at most: a round trip is short beside their checking.
const RANGE_BLOCKS: u64 = 128;
const _: () = assert!(RANGE_BLOCKS <= MAX_FETCH_BLOCKS as u64);

/// How far above the ledger blocks are fetched. Small blocks do not fill the buffer: this bounds the count.
const AHEAD_BLOCKS: u64 = 4_096;

/// Blocks that Storage applies at a time, and their bytes: it does nothing else meanwhile.
const APPLY_BLOCKS: usize = 128;
const APPLY_BYTES: u64 = 4 << 20;

/// The core finds this replica behind.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    /// At least one correct replica has executed up to here.
    upto: SeqNum,
}

/// Where the core's orders go.
#[derive(Debug, Clone)]
pub struct TransferOrders(mpsc::Sender<Wanted>);

impl TransferOrders {
    /// Blocks are to be fetched: a correct replica has executed up to `upto`.
    pub fn fetch(&self, upto: SeqNum) {
        // A full queue has newer orders than are looked at, and the core repeats its own.
        let _full = self.0.try_send(Wanted { upto });
    }
}

/// What a transfer works with.
pub struct TransferParts {
    /// The ledger.
    pub network_id: NetworkId,
    /// This node.
    pub node: NodeId,
    /// The replicas' keys.
    pub keys: Arc<ReplicaSetKeys>,
    /// The other nodes.
    pub network: NetworkHandle,
    /// Applies blocks.
    pub storage: actix::Addr<Storage>,
    /// What was applied, to Consensus.
    pub synced: Feeder<BlocksSynced>,
    /// How far the ledger is.
    pub view: Arc<LedgerView>,
    /// Checks blocks.
    pub workers: Workers,
    /// Limits.
    pub settings: TransferConfig,
    /// Time.
    pub clock: SharedClock,
    /// Counters.
    pub metrics: TransferMetrics,
    /// Shows how far it is.
    pub board: Arc<TransferBoard>,
    /// Stops the node.
    pub fatal: Fatal,
}

/// Starts the task that transfers when it is wanted, until the node stops.
pub fn start(parts: TransferParts) -> TransferOrders {
    let (sender, orders) = mpsc::channel(ORDERS);
    let vital = parts.fatal.vital("the fetching of blocks");
    tokio::spawn(async move {
        let _vital = vital;
        Transfer { parts, orders }.run().await;
    });
    TransferOrders(sender)
}

/// See the module.
struct Transfer {
    parts: TransferParts,
    orders: mpsc::Receiver<Wanted>,
}

/// What a peer answered, looked at.
struct Fetched {
    id: u64,
    answer: Answer<CertifiedBlock>,
}

impl Transfer {
    async fn run(mut self) {
        while let Some(wanted) = self.orders.recv().await {
            // What the ledger came to by itself since the core asked.
            if wanted.upto > self.parts.view.progress().executed.sequence
                && self.transfer(wanted).await.is_none()
            {
                return;
            }
        }
    }

    fn now(&self) -> Duration {
        self.parts.clock.monotonic()
    }

    /// As far as anybody is who executed `upto`: a block takes a sequence number at least.
    fn bound(&self, wanted: Wanted) -> Height {
        let executed = self.parts.view.progress().executed;
        Height(executed.height.0 + wanted.upto.0.saturating_sub(executed.sequence.0))
    }

    fn plan(&self, wanted: Wanted) -> Plan<CertifiedBlock> {
        let settings = &self.parts.settings;
        let replicas = self.parts.keys.replicas();
        let limits = Limits {
            range_blocks: RANGE_BLOCKS,
            ahead_blocks: AHEAD_BLOCKS,
            requests_per_peer: usize::try_from(settings.fetch_requests_each).unwrap_or(usize::MAX),
            answer_bytes: MAX_LARGE_BYTES as u64,
            buffered_bytes: settings.max_buffered_bytes,
            bytes_per_s: settings.fetch_bytes_per_s,
            faulty: replicas.f(),
        };
        let others = replicas.members().iter().filter(|node| **node != self.parts.node).copied();
        let height = self.parts.view.progress().executed.height;
        Plan::new(limits, others, height, self.bound(wanted), self.now())
    }

    /// One transfer; nothing if the node is stopping.
    async fn transfer(&mut self, wanted: Wanted) -> Option<()> {
        let mut plan = self.plan(wanted);
        let (board, metrics) = (Arc::clone(&self.parts.board), self.parts.metrics.clone());
        let mut reporter = Reporter::new(&board, &metrics, plan.height(), self.now());
        let mut fetching: JoinSet<Fetched> = JoinSet::new();
        let mut applying: JoinSet<Option<(u64, Applied)>> = JoinSet::new();
        loop {
            let now = self.now();
            plan.reached(self.parts.view.progress().executed.height);
            let late = plan.on_time(now);
            metrics.requests.with_label_values(&["late"]).inc_by(late as u64);
            while let Some(ask) = plan.next_ask(now) {
                fetching.spawn(self.fetch(ask));
            }
            if applying.is_empty() {
                let blocks = plan.take(APPLY_BLOCKS, APPLY_BYTES);
                if !blocks.is_empty() {
                    applying.spawn(self.apply(blocks));
                }
            }
            metrics.buffered_bytes.set(i64::try_from(plan.reserved_bytes()).unwrap_or(i64::MAX));
            reporter.at(plan.height(), plan.target(), plan.knows_target(), plan.usable_peers(now), now);
            if plan.is_done() && applying.is_empty() {
                break;
            }
            tokio::select! {
                Some(applied) = applying.join_next() => {
                    let (blocks, applied) = applied.ok()??;
                    self.on_applied(&mut plan, &mut reporter, blocks, applied).await;
                }
                Some(fetched) = fetching.join_next() => {
                    let Fetched { id, answer } = fetched.ok()?;
                    metrics.requests.with_label_values(&[result_of(&answer)]).inc();
                    reporter.received(bytes_of(&answer));
                    plan.answered(id, answer, self.now());
                }
                wanted = self.orders.recv() => plan.raise_bound(self.bound(wanted?)),
                () = tokio::time::sleep(TICK) => {}
            }
        }
        metrics.buffered_bytes.set(0);
        reporter.done(self.now());
        Some(())
    }

    /// Asks a peer and checks what it answers.
    fn fetch(&self, ask: Ask) -> impl Future<Output = Fetched> + Send + 'static {
        let (network, workers) = (self.parts.network.clone(), self.parts.workers.clone());
        let (network_id, keys) = (self.parts.network_id, Arc::clone(&self.parts.keys));
        async move {
            let max = u32::try_from(ask.count).unwrap_or(MAX_FETCH_BLOCKS);
            let request = PeerRequest::FetchBlocks { from: ask.from, max };
            let answer = match network.request(ask.peer, request).await {
                Ok(PeerResponse::Blocks { head, blocks }) => {
                    let check = move || check(ask, head, blocks, &network_id, &keys);
                    workers.run(check).await.unwrap_or(Answer::Failed)
                }
                Ok(PeerResponse::Busy) => Answer::Busy,
                Ok(_) => Answer::Bad,
                Err(error) => {
                    tracing::debug!(node = %ask.peer, %error, "blocks not fetched");
                    Answer::Failed
                }
            };
            Fetched { id: ask.id, answer }
        }
    }

    /// Has Storage apply blocks; nothing if the node is stopping.
    fn apply(
        &self,
        blocks: Vec<CertifiedBlock>,
    ) -> impl Future<Output = Option<(u64, Applied)>> + Send + 'static {
        let (storage, count) = (self.parts.storage.clone(), blocks.len() as u64);
        async move { Some((count, storage.send(ApplyBlocks(blocks)).await.ok()?)) }
    }

    async fn on_applied(
        &self,
        plan: &mut Plan<CertifiedBlock>,
        reporter: &mut Reporter<'_>,
        blocks: u64,
        Applied { synced, error }: Applied,
    ) {
        if let Some(synced) = synced {
            self.parts.synced.put(synced).await;
        }
        plan.reached(self.parts.view.progress().executed.height);
        match error {
            None => reporter.applied(blocks),
            Some(error) => {
                tracing::warn!(%error, "fetched blocks do not fit; they are fetched again");
                plan.refused();
            }
        }
    }
}

/// Checks the blocks of an answer, each by itself: it is the one asked for, and a quorum certified it.
fn check(
    ask: Ask,
    head: Height,
    blocks: Vec<(Block, Certificate)>,
    network_id: &NetworkId,
    keys: &ReplicaSetKeys,
) -> Answer<CertifiedBlock> {
    let expected = (ask.from.0..).map(Height).take(blocks.len());
    let in_order = blocks.iter().map(|(block, _)| block.header.height).eq(expected);
    if !in_order || blocks.len() as u64 > ask.count {
        tracing::warn!(node = %ask.peer, from = %ask.from, "a node sent other blocks than it was asked for");
        return Answer::Bad;
    }
    let check = |(block, certificate): (Block, Certificate)| {
        let bytes = (codec::encoded_len(&block) + codec::encoded_len(&certificate)) as u64;
        Ok((CertifiedBlock::verify(block, certificate, network_id, keys)?, bytes))
    };
    match blocks.into_iter().map(check).collect::<Result<Vec<_>, BlockError>>() {
        Ok(blocks) => Answer::Blocks { head, blocks },
        Err(error) => {
            tracing::warn!(node = %ask.peer, from = %ask.from, %error, "a node sent a bad block");
            Answer::Bad
        }
    }
}

/// The value of the metric's label.
const fn result_of<B>(answer: &Answer<B>) -> &'static str {
    match answer {
        Answer::Blocks { blocks, .. } if blocks.is_empty() => "empty",
        Answer::Blocks { .. } => "blocks",
        Answer::Busy => "busy",
        Answer::Failed => "failed",
        Answer::Bad => "bad",
    }
}

fn bytes_of<B>(answer: &Answer<B>) -> u64 {
    match answer {
        Answer::Blocks { blocks, .. } => blocks.iter().map(|(_, bytes)| bytes).sum(),
        Answer::Busy | Answer::Failed | Answer::Bad => 0,
    }
}
