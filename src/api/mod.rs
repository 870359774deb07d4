//! The HTTP API: what a node knows, as JSON, and the one door for admins' operations.
//!
//! ```text
//! HTTP ─▶ limits, timeouts, metrics ─▶ routes/* ─▶ NodeView (the node) ─▶ ledger, state, consensus
//! ```
//!
//! Everything but `POST /v1/operations` only reads, and that takes nothing that an admin has not
//! signed: who reaches this port can read all records, and change nothing. Errors are RFC 9457
//! problem details. What the API needs of a node is the trait [`NodeView`], so it is tested without
//! one. `docs/API.md` describes every route. Probes can have a server of their own
//! ([`Api::start_probes`]), so that nobody who takes all connections here makes the node look dead.
//!
//! Limits, all settings of `[api]`: connections at once (the next wait in the kernel's queue), bytes
//! of a request body, time for a request, entries in one answer. Reads of the ledger block, so they
//! run on the blocking pool, at most [`MAX_BLOCKING_READS`] at once; others wait their turn within
//! their request's time.

mod answer;
mod certified;
mod consensus;
mod evidence;
mod json;
mod middleware;
mod policies;
mod problem;
mod query;
mod routes;
mod view;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::{Server, ServerHandle};
use actix_web::{App, HttpServer, web};
use tokio::sync::watch;

use crate::clock::{SharedClock, SystemClock};
use crate::config::ApiConfig;
use crate::metrics::Metrics;

pub use certified::{MAX_CERTIFIED_ANSWER, WithCertificate, decode_certified};
pub use consensus::{
    ConsensusView, ReplicaLine, ReplicaStateView, SilentView, VerdictCode, VerdictView, ViewChangeView, Why,
};
pub use evidence::{EvidenceJson, EvidenceListJson};
pub use json::{
    BlockJson, BlockSummaryJson, BlocksJson, CertificateJson, ItemJson, OperationJson, RecordJson,
    RecordsJson, ReplicaSignatureJson, WriteJson, WrittenItemJson,
};
pub use policies::{PoliciesJson, PolicyVersionJson};
pub use problem::{MEDIA_TYPE as PROBLEM_MEDIA_TYPE, Problem};
pub use view::{
    ClientPage, ClientView, NodeView, PeerView, ReplicaView, Status, SubmitError, Submitted, ViewError,
};

/// Reads of the ledger at once: enough to keep a disk busy, and few enough that searches of
/// strangers leave the blocking pool to the log and the signature checks.
pub const MAX_BLOCKING_READS: usize = 8;

/// Connections that wait in the kernel's queue.
const BACKLOG: u32 = 128;

/// How long a probe may take to send its request, or to take leave.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long requests in flight may take when the server stops.
const SHUTDOWN_S: u64 = 5;

/// What every request handler has at hand.
pub(crate) struct Context {
    pub(crate) node: Arc<dyn NodeView>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) limits: ApiConfig,
    pub(crate) clock: SharedClock,
    /// Permits for reads that block.
    pub(crate) reads: Arc<tokio::sync::Semaphore>,
}

impl Context {
    fn new(settings: &ApiConfig, node: Arc<dyn NodeView>, metrics: Arc<Metrics>) -> web::Data<Self> {
        web::Data::new(Self {
            node,
            metrics,
            limits: settings.clone(),
            clock: SystemClock::shared(),
            reads: Arc::new(tokio::sync::Semaphore::new(MAX_BLOCKING_READS)),
        })
    }
}

/// A running HTTP server.
#[derive(Debug)]
pub struct Api {
    address: SocketAddr,
    handle: ServerHandle,
    /// What the server ended with, once it has.
    ended: watch::Receiver<Option<String>>,
}

impl Api {
    /// Listens on `settings.listen` and serves `node`.
    ///
    /// # Errors
    /// The port is in use, or may not be used.
    pub fn start(
        settings: &ApiConfig,
        node: Arc<dyn NodeView>,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<Self> {
        let context = Context::new(settings, node, metrics);
        let server = HttpServer::new(move || {
            App::new()
                .app_data(context.clone())
                .wrap(actix_web::middleware::from_fn(middleware::observe))
                .configure(|app| routes::configure(app, &context.limits))
        })
        // One worker: requests are few, and handlers wait for the node, not for the processor.
        .workers(1)
        .max_connections(usize::try_from(settings.max_connections).unwrap_or(usize::MAX))
        .backlog(BACKLOG)
        .client_request_timeout(settings.request_timeout)
        .client_disconnect_timeout(Duration::from_secs(SHUTDOWN_S))
        .shutdown_timeout(SHUTDOWN_S)
        .disable_signals()
        .bind(settings.listen)?;
        let address = server.addrs().first().copied().unwrap_or(settings.listen);
        Ok(Self::over(server.run(), address))
    }

    /// The second server of `settings.probes_listen`, if that is set: nothing but probes and metrics,
    /// each answer ends its connection, and silent ones are closed soon, so that probes always find
    /// room.
    ///
    /// # Errors
    /// The port is in use, or may not be used.
    pub fn start_probes(
        settings: &ApiConfig,
        node: Arc<dyn NodeView>,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<Option<Self>> {
        let Some(listen) = settings.probes_listen else { return Ok(None) };
        let context = Context::new(settings, node, metrics);
        let server = HttpServer::new(move || {
            App::new()
                .app_data(context.clone())
                .wrap(actix_web::middleware::from_fn(middleware::observe))
                .configure(routes::configure_probes)
        })
        .workers(1)
        .max_connections(usize::try_from(settings.probes_max_connections).unwrap_or(usize::MAX))
        .backlog(BACKLOG)
        .keep_alive(actix_web::http::KeepAlive::Disabled)
        .client_request_timeout(settings.request_timeout.min(PROBE_TIMEOUT))
        .client_disconnect_timeout(PROBE_TIMEOUT)
        .shutdown_timeout(SHUTDOWN_S)
        .disable_signals()
        .bind(listen)?;
        let address = server.addrs().first().copied().unwrap_or(listen);
        Ok(Some(Self::over(server.run(), address)))
    }

    fn over(server: Server, address: SocketAddr) -> Self {
        let handle = server.handle();
        let (sender, ended) = watch::channel(None);
        tokio::spawn(async move {
            let reason =
                server.await.err().map_or_else(|| "it was stopped".to_owned(), |error| error.to_string());
            sender.send_replace(Some(reason));
        });
        Self { address, handle, ended }
    }

    /// The address that it listens on; the port was chosen by the system if the setting was 0.
    pub const fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Waits until the server has ended, and says why; before [`Api::stop`] that is a failure.
    pub async fn ended(&self) -> String {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => "its task ended".to_owned(),
        }
    }

    /// Stops: no new connections, requests in flight are answered.
    pub async fn stop(&self) {
        self.handle.stop(true).await;
        self.ended().await;
    }
}

#[cfg(test)]
mod tests;
