//! What a node counts and measures, in one registry that `/metrics` shows.
//!
//! Each part of the node gets its own struct of named counters, so that the name of a metric stands
//! in one place. Names are `ledgermq_{part}_{what}_{unit}`: `_total` for counters, `_ms` and
//! `_bytes` for amounts. Labels have few values that the program chooses, never a client's name: a
//! stranger must not be able to make series without end. Where all values of a label are known, and an
//! alert may wait for one, its counters are there from the start, at 0: the first increase of one that
//! appears only then would be no increase to Prometheus. `docs/METRICS.md` says what each is good
//! for; a test holds that page and this module together. The network module registers what belongs
//! to libp2p in the same registry.

mod stages;

use std::sync::Arc;

pub use stages::{STAGES, StageTime, Stages};

use prometheus::{
    Encoder as _, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

/// The media type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// From half a millisecond, about one fsync of a good disk, to the half minute after which somebody
/// is called.
const LATENCY_BUCKETS_MS: &[f64] =
    &[0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0, 30_000.0];

/// Powers of two up to the largest batch.
const COUNT_BUCKETS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0];

/// What may become of a telemetry message: the first two, or an error's code.
pub const MESSAGE_OUTCOMES: &[&str] = &[
    "accepted",
    "repeated",
    "overloaded",
    "rate_limited",
    "too_large",
    "malformed",
    "bad_envelope",
    "bad_signature",
    "wrong_topic",
    "encryption_required",
    "seq_reused",
    "seq_too_old",
    "bad_encoding",
    "bad_body",
    "count_mismatch",
    "bad_root",
    "clock_ahead",
    "too_many_items",
    "key_rotated",
];

/// Defines a struct of metrics together with the function that registers them.
macro_rules! metrics {
    (
        $(#[$doc:meta])*
        $name:ident {
            $( $field:ident: $kind:ident($metric:literal $(, $extra:expr)*) $help:literal $(starting with $values:expr)?; )*
        }
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone)]
        pub struct $name {
            $( #[doc = $help] pub $field: $kind, )*
        }

        impl $name {
            fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
                Ok(Self { $( $field: {
                    let metric = make!($kind, $metric, $help $(, $extra)*)?;
                    registry.register(Box::new(metric.clone()))?;
                    $( for value in $values {
                        metric.with_label_values(&[value]);
                    } )?
                    metric
                }, )* })
            }
        }
    };
}

/// Makes one metric of a kind.
macro_rules! make {
    (IntCounter, $name:literal, $help:literal) => {
        IntCounter::new($name, $help)
    };
    (IntGauge, $name:literal, $help:literal) => {
        IntGauge::new($name, $help)
    };
    (IntCounterVec, $name:literal, $help:literal, $labels:expr) => {
        IntCounterVec::new(Opts::new($name, $help), &$labels)
    };
    (IntGaugeVec, $name:literal, $help:literal, $labels:expr) => {
        IntGaugeVec::new(Opts::new($name, $help), &$labels)
    };
    (Histogram, $name:literal, $help:literal, $buckets:expr) => {
        Histogram::with_opts(HistogramOpts::new($name, $help).buckets($buckets.to_vec()))
    };
    (HistogramVec, $name:literal, $help:literal, $buckets:expr, $labels:expr) => {
        HistogramVec::new(HistogramOpts::new($name, $help).buckets($buckets.to_vec()), &$labels)
    };
}

metrics! {
    /// From the MQTT socket to the answer.
    IngressMetrics {
        connections: IntGaugeVec("ledgermq_mqtt_connections", ["registered"])
            "MQTT connections now, by whether the client is registered (yes, no)."
                starting with ["yes", "no"];
        connections_refused: IntCounterVec("ledgermq_mqtt_connections_refused_total", ["reason"])
            "MQTT connections refused, by reason."
                starting with ["no_token", "bad_token"];
        messages: IntCounterVec("ledgermq_ingress_messages_total", ["outcome"])
            "Telemetry messages read, by outcome: accepted, repeated, or the code of the error sent."
                starting with MESSAGE_OUTCOMES;
        message_bytes: IntCounter("ledgermq_ingress_message_bytes_total")
            "Bytes of telemetry messages read, as they came over the wire.";
        items: IntCounter("ledgermq_ingress_items_total")
            "Data items of accepted messages.";
        items_picked: IntCounter("ledgermq_ingress_items_picked_total")
            "Data items that the write policy picked for the ledger.";
        decisions: IntCounterVec("ledgermq_policy_decisions_total", ["verdict"])
            "Data items decided, by verdict: always, first, not_newer, interval, change (all written), never, quiet (not written)."
                starting with ["always", "first", "not_newer", "interval", "change", "never", "quiet"];
        replies: IntCounterVec("ledgermq_ingress_replies_total", ["kind"])
            "Control messages sent to clients, by kind.";
        replies_suppressed: IntCounter("ledgermq_ingress_replies_suppressed_total")
            "Replies to unverified messages not sent because of the rate limit.";
        security_events: IntCounterVec("ledgermq_ingress_security_events_total", ["kind"])
            "Things that no correct client does, by kind, such as another header under a used seq."
                starting with ["seq_reused", "wrong_topic"];
        key_transports: IntCounterVec("ledgermq_ingress_key_transports_total", ["outcome"])
            "Payload keys offered by clients, by outcome: accepted, or the code of key/fail.";
        payload_keys: IntGauge("ledgermq_ingress_payload_keys")
            "Payload keys held in memory.";
        withheld_pubacks: IntCounter("ledgermq_ingress_withheld_pubacks_total")
            "Clients disconnected without PUBACK because a message could not be stored in time.";
        puback_ms: Histogram("ledgermq_ingress_puback_ms", LATENCY_BUCKETS_MS)
            "Milliseconds from reading a telemetry message to its being on this node's disk.";
        final_ms: Histogram("ledgermq_ingress_final_ms", LATENCY_BUCKETS_MS)
            "Milliseconds from reading a telemetry message to its success: the block with its items is certified.";
    }
}

metrics! {
    /// The bounded queues between the parts of a node.
    QueueMetrics {
        length: IntGaugeVec("ledgermq_queue_length", ["queue"])
            "Entries waiting in a queue now, by queue: see the table below.";
        full: IntCounterVec("ledgermq_queue_full_total", ["queue"])
            "Times that a queue was full when something was to enter it.";
    }
}

/// The metrics of one queue, looked up once.
#[derive(Debug, Clone)]
pub struct QueueGauge {
    /// Entries waiting.
    pub length: IntGauge,
    /// Times that it was full.
    pub full: IntCounter,
}

impl QueueMetrics {
    /// The metrics of the queue of this name.
    pub fn queue(&self, name: &'static str) -> QueueGauge {
        QueueGauge {
            length: self.length.with_label_values(&[name]),
            full: self.full.with_label_values(&[name]),
        }
    }
}

metrics! {
    /// Ordering.
    ConsensusMetrics {
        view: IntGauge("ledgermq_consensus_view")
            "PBFT view that the replica is in.";
        sequence: IntGauge("ledgermq_consensus_sequence")
            "Highest sequence number that the replica executed.";
        stable_sequence: IntGauge("ledgermq_consensus_stable_sequence")
            "Sequence number of the last stable checkpoint.";
        height: IntGauge("ledgermq_consensus_height")
            "Height of the last block that the replica executed.";
        pool_requests: IntGauge("ledgermq_consensus_pool_requests")
            "Requests that wait to be ordered.";
        inflight_bytes: IntGauge("ledgermq_consensus_inflight_bytes")
            "Bytes of the requests that are ordered and not yet stable.";
        batches: IntCounter("ledgermq_consensus_batches_total")
            "Batches executed.";
        batch_requests: Histogram("ledgermq_consensus_batch_requests", COUNT_BUCKETS)
            "Requests in an executed batch.";
        requests: IntCounterVec("ledgermq_consensus_requests_total", ["outcome"])
            "Requests executed, by outcome: written, already_written, admin, digest, rejected.";
        order_ms: Histogram("ledgermq_consensus_order_ms", LATENCY_BUCKETS_MS)
            "Milliseconds from a request's entering the pool of its admitting node to its execution there.";
        messages: IntCounterVec("ledgermq_consensus_messages_total", ["kind", "direction"])
            "PBFT messages, by kind and direction (in, out).";
        messages_rejected: IntCounterVec("ledgermq_consensus_messages_rejected_total", ["reason"])
            "PBFT messages that were not taken, by reason.";
        resent: IntCounter("ledgermq_consensus_resent_total")
            "PBFT messages sent again because they may have been lost.";
        fetches: IntCounterVec("ledgermq_consensus_fetches_total", ["what"])
            "Fetches from other nodes, by what was missing: requests, blocks, certificates, batches, view. While nobody votes, another node is asked every 2 s for a later view."
                starting with ["requests", "blocks", "certificates", "batches", "view"];
        view_changes: IntCounterVec("ledgermq_consensus_view_changes_total", ["reason"])
            "Times that this replica left a view, by reason: timeout, censorship, uncertified, request_age, equivocation, joined, no_new_view, bad_new_view, silent_primary.";
        view_change_running: IntGauge("ledgermq_consensus_view_change_running")
            "1 while no view is in force here: VIEW-CHANGE is sent and the view has not begun.";
        view_change_ms: Histogram("ledgermq_consensus_view_change_ms", LATENCY_BUCKETS_MS)
            "Milliseconds from leaving a view to the beginning of the next one that began here.";
        silent: IntGauge("ledgermq_consensus_silent")
            "1 while this replica does not vote because it lost its log.";
        advancing: IntGauge("ledgermq_consensus_advancing")
            "1 while nothing keeps this node from advancing, 0 otherwise; GET /v1/consensus says why.";
        replica_heard_ms: IntGaugeVec("ledgermq_consensus_replica_heard_ms", ["replica"])
            "Milliseconds since a valid message of another replica came, or since the node started, by its number in the set.";
        replica_behind: IntGaugeVec("ledgermq_consensus_replica_behind", ["replica"])
            "Sequence numbers that another replica is known to be behind, by its number in the set; all of them until its first CHECKPOINT is heard.";
        evidence: IntCounterVec("ledgermq_consensus_evidence_total", ["kind"])
            "Proofs that a replica is faulty, by what it signed: pre_prepare, prepare, commit, checkpoint, new_view (two different ones), contradicted_new_view, false_new_view. Anything above 0 needs a person."
                starting with ["pre_prepare", "prepare", "commit", "checkpoint", "new_view", "contradicted_new_view", "false_new_view"];
        evidence_stored: IntGauge("ledgermq_consensus_evidence_stored")
            "Pieces of evidence that the node keeps, from earlier runs too: GET /v1/evidence.";
    }
}

metrics! {
    /// The log and the ledger on disk.
    StorageMetrics {
        log_bytes: IntCounter("ledgermq_storage_log_bytes_total")
            "Bytes appended to the log.";
        log_sync_ms: Histogram("ledgermq_storage_log_sync_ms", LATENCY_BUCKETS_MS)
            "Milliseconds that one write and sync of the log took.";
        log_size_bytes: IntGauge("ledgermq_storage_log_size_bytes")
            "Bytes of all files of the log.";
        log_queued_bytes: IntGauge("ledgermq_storage_log_queued_bytes")
            "Bytes appended to the log and not yet durable.";
        commit_ms: Histogram("ledgermq_storage_commit_ms", LATENCY_BUCKETS_MS)
            "Milliseconds that committing one executed batch to the ledger took.";
        checkpoint_ms: Histogram("ledgermq_storage_checkpoint_ms", LATENCY_BUCKETS_MS)
            "Milliseconds that making the ledger durable took.";
        blocks: IntCounter("ledgermq_storage_blocks_total")
            "Blocks stored since the node started.";
        certified_height: IntGauge("ledgermq_storage_certified_height")
            "Height of the last block with a certificate.";
        indexed_height: IntGauge("ledgermq_storage_indexed_height")
            "Height up to which records can be searched.";
    }
}

metrics! {
    /// The fetching of blocks from other nodes, and the giving of them.
    TransferMetrics {
        active: IntGauge("ledgermq_transfer_active")
            "1 while this node fetches blocks because it is behind, else 0.";
        height: IntGauge("ledgermq_transfer_height")
            "Height that the last transfer reached.";
        target_height: IntGauge("ledgermq_transfer_target_height")
            "Height that the last transfer was to reach; it moves while the others go on.";
        blocks: IntCounter("ledgermq_transfer_blocks_total")
            "Blocks fetched and applied.";
        bytes: IntCounter("ledgermq_transfer_bytes_total")
            "Bytes of fetched blocks that were right.";
        requests: IntCounterVec("ledgermq_transfer_requests_total", ["result"])
            "Requests for blocks, by result: blocks, empty, busy, failed, bad; late counts those besides that took too long."
                starting with ["blocks", "empty", "busy", "failed", "bad", "late"];
        buffered_bytes: IntGauge("ledgermq_transfer_buffered_bytes")
            "Bytes that fetched blocks take until they are applied, and may take once requests are answered.";
        served: IntCounterVec("ledgermq_transfer_served_total", ["result"])
            "Requests of other nodes for blocks, by result: answered, busy."
                starting with ["answered", "busy"];
        served_blocks: IntCounter("ledgermq_transfer_served_blocks_total")
            "Blocks given to other nodes.";
        served_bytes: IntCounter("ledgermq_transfer_served_bytes_total")
            "Bytes of blocks given to other nodes.";
    }
}

metrics! {
    /// Where processor time goes.
    StageMetrics {
        cpu_ns: IntCounterVec("ledgermq_stage_cpu_ns_total", ["stage"])
            "Nanoseconds of processor time spent on a stage of the work on messages, by stage: see the table below.";
    }
}

metrics! {
    /// The history.
    HistoryMetrics {
        available: IntGauge("ledgermq_history_available")
            "1 while the history database takes what it is given, 0 while it does not.";
        rows: IntCounter("ledgermq_history_rows_total")
            "Messages written to the history.";
        append_ms: Histogram("ledgermq_history_append_ms", LATENCY_BUCKETS_MS)
            "Milliseconds that writing one batch of messages to the history took, waiting for the database included.";
        failures: IntCounter("ledgermq_history_failures_total")
            "Errors of the history database; what failed is tried again.";
        digests: IntCounter("ledgermq_history_digests_total")
            "History digests of this node that became final on the ledger.";
        digests_open: IntGauge("ledgermq_history_digests_open")
            "History digests of this node that are made and not final.";
    }
}

metrics! {
    /// The HTTP API.
    HttpMetrics {
        requests: IntCounterVec("ledgermq_http_requests_total", ["route", "status"])
            "HTTP requests, by route and status.";
        request_ms: HistogramVec("ledgermq_http_request_ms", LATENCY_BUCKETS_MS, ["route"])
            "Milliseconds that an HTTP request took, by route.";
    }
}

/// All metrics of a node.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    /// From the MQTT socket to the answer.
    pub ingress: IngressMetrics,
    /// The bounded queues.
    pub queues: QueueMetrics,
    /// Ordering.
    pub consensus: ConsensusMetrics,
    /// The log and the ledger on disk.
    pub storage: StorageMetrics,
    /// The fetching of blocks, and the giving of them.
    pub transfer: TransferMetrics,
    /// The history.
    pub history: HistoryMetrics,
    /// The HTTP API.
    pub http: HttpMetrics,
    /// Where processor time goes.
    pub stages: Stages,
}

impl Metrics {
    /// The metrics of one node, in a registry of their own: several nodes can live in one process.
    ///
    /// # Errors
    /// If two metrics have the same name, which a test rules out.
    pub fn new() -> Result<Arc<Self>, prometheus::Error> {
        let registry = Registry::new();
        let build = IntGaugeVec::new(
            Opts::new("ledgermq_build_info", "Always 1; the program's version is a label."),
            &["version"],
        )?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        registry.register(Box::new(build))?;
        // Memory, open files, processor time: under the names that every dashboard knows. Read when asked.
        #[cfg(target_os = "linux")]
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(Arc::new(Self {
            ingress: IngressMetrics::register(&registry)?,
            queues: QueueMetrics::register(&registry)?,
            consensus: ConsensusMetrics::register(&registry)?,
            storage: StorageMetrics::register(&registry)?,
            transfer: TransferMetrics::register(&registry)?,
            history: HistoryMetrics::register(&registry)?,
            http: HttpMetrics::register(&registry)?,
            stages: Stages::of(&StageMetrics::register(&registry)?.cpu_ns),
            registry,
        }))
    }

    /// The registry, for parts that register metrics of their own.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// All metrics in Prometheus' text format.
    ///
    /// # Errors
    /// If a part registered a metric that cannot be shown.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names of all metrics that this module defines.
    fn names() -> Vec<String> {
        let source = include_str!("metrics.rs");
        let before_tests = source.split("#[cfg(test)]").next().unwrap();
        let mut names: Vec<String> = before_tests
            .split('"')
            .filter(|part| part.starts_with("ledgermq_") && !part.contains(' '))
            .map(str::to_owned)
            .collect();
        names.sort();
        names
    }

    #[test]
    fn all_metrics_have_distinct_names_and_two_nodes_do_not_share_them() {
        let (one, other) = (Metrics::new().unwrap(), Metrics::new().unwrap());
        one.ingress.items.inc_by(3);
        assert_eq!(other.ingress.items.get(), 0);
        assert!(names().len() > 40);
    }

    #[test]
    fn metrics_are_shown_in_the_text_format() {
        let metrics = Metrics::new().unwrap();
        metrics.ingress.messages.with_label_values(&["accepted"]).inc();
        metrics.ingress.puback_ms.observe(3.0);
        let text = metrics.render().unwrap();
        assert!(text.contains("ledgermq_ingress_messages_total{outcome=\"accepted\"} 1"), "{text}");
        assert!(text.contains("ledgermq_ingress_puback_ms_bucket{le=\"5\"} 1"), "{text}");
        assert!(text.contains("ledgermq_build_info{version="), "{text}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_process_tells_its_memory_and_files_under_the_usual_names() {
        let text = Metrics::new().unwrap().render().unwrap();
        let page = include_str!("../docs/METRICS.md");
        let value = |name: &str| {
            assert!(page.contains(&format!("| `{name}` ")), "docs/METRICS.md lacks {name}");
            let line = text.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
            line.split(' ').nth(1).unwrap().parse::<f64>().unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_virtual_memory_bytes") > 1e6);
        assert!(value("process_open_fds") >= 3.0 && value("process_max_fds") > value("process_open_fds"));
        assert!(value("process_threads") >= 1.0);
        assert!(value("process_start_time_seconds") > 1.7e9);
        assert!(value("process_cpu_seconds_total") >= 0.0);
    }

    #[test]
    fn counters_that_an_alert_may_wait_for_are_there_from_the_start() {
        let text = Metrics::new().unwrap().render().unwrap();
        for series in [
            "ledgermq_ingress_messages_total{outcome=\"bad_signature\"} 0",
            "ledgermq_ingress_security_events_total{kind=\"seq_reused\"} 0",
            "ledgermq_consensus_evidence_total{kind=\"false_new_view\"} 0",
            "ledgermq_transfer_requests_total{result=\"bad\"} 0",
        ] {
            assert!(text.contains(series), "{series} is not in\n{text}");
        }
    }

    #[test]
    fn the_metrics_page_names_every_metric() {
        let page = include_str!("../docs/METRICS.md");
        for name in names() {
            assert!(page.contains(&format!("| `{name}")), "docs/METRICS.md lacks {name}");
        }
    }
}
