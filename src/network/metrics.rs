//! The network's metrics: every limit that bites and every failure that is survived shows here.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// The counters of one node's network.
#[derive(Debug, Clone)]
pub(super) struct NetworkMetrics {
    /// Nodes that are connected now.
    pub(super) peers: IntGauge,
    /// Connections by what became of them: `established`, `dial_failed`, `incoming_failed`, `closed`.
    pub(super) connections: IntCounterVec,
    /// Lookups of configured names: `resolved`, `failed`.
    pub(super) lookups: IntCounterVec,
    /// Gossip by what happened to it; see [`Gossip`].
    pub(super) gossip: IntCounterVec,
    /// Bytes of gossip received for the first time.
    pub(super) gossip_received_bytes: IntCounter,
    /// Announcements by outcome: `news`, `known`, `invalid`, `too_many`.
    pub(super) announcements: IntCounterVec,
    /// Requests that arrived, by outcome: `delivered`, `busy`, `answered`, `failed`.
    pub(super) requests_in: IntCounterVec,
    /// Requests that were sent, by outcome: `answered`, `busy`, `failed`, `timed_out`.
    pub(super) requests_out: IntCounterVec,
    /// What peers did wrong.
    pub(super) offences: IntCounterVec,
    /// Round trip times of pings.
    pub(super) rtt_ms: Histogram,
}

/// What happened to a gossip message.
#[derive(Debug, Clone, Copy)]
pub(super) enum Gossip {
    /// Published by this node.
    Published,
    /// Not published yet: no peer listens to the topic; tried again.
    Retried,
    /// Not published: no peer after all retries.
    GivenUp,
    /// Published, but no peer's queue had room.
    QueuesFull,
    /// Not published: these bytes were published before.
    Duplicate,
    /// Not published for another reason.
    NotPublished,
    /// Arrived and was handed to the node.
    Delivered,
    /// Arrived and was dropped: the event queue is full.
    DroppedQueueFull,
    /// Arrived and was dropped: its peer has too many messages without a verdict.
    DroppedPeerShare,
    /// Judged valid and passed on.
    Accepted,
    /// Judged useless.
    Ignored,
    /// Judged invalid.
    Rejected,
    /// Judged too late to be passed on.
    TooLate,
}

impl Gossip {
    const ALL: [Self; 13] = [
        Self::Published,
        Self::Retried,
        Self::GivenUp,
        Self::QueuesFull,
        Self::Duplicate,
        Self::NotPublished,
        Self::Delivered,
        Self::DroppedQueueFull,
        Self::DroppedPeerShare,
        Self::Accepted,
        Self::Ignored,
        Self::Rejected,
        Self::TooLate,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Published => "published",
            Self::Retried => "retried",
            Self::GivenUp => "given_up",
            Self::QueuesFull => "queues_full",
            Self::Duplicate => "duplicate",
            Self::NotPublished => "not_published",
            Self::Delivered => "delivered",
            Self::DroppedQueueFull => "dropped_queue_full",
            Self::DroppedPeerShare => "dropped_peer_share",
            Self::Accepted => "accepted",
            Self::Ignored => "ignored",
            Self::Rejected => "rejected",
            Self::TooLate => "too_late",
        }
    }
}

impl NetworkMetrics {
    /// Makes the metrics and registers them.
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        // Each value is there from the start, at 0, so that its first increase is seen as one.
        let vec = |name: &str,
                   help: &str,
                   label: &str,
                   values: &[&str]|
         -> Result<IntCounterVec, prometheus::Error> {
            let metric = IntCounterVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(metric.clone()))?;
            for value in values {
                metric.with_label_values(&[value]);
            }
            Ok(metric)
        };
        let gossip = Gossip::ALL.map(Gossip::as_str);
        let metrics = Self {
            peers: IntGauge::new("ledgermq_network_peers", "Nodes that are connected")?,
            connections: vec(
                "ledgermq_network_connections_total",
                "Connections by outcome",
                "outcome",
                &["established", "closed", "dial_failed", "incoming_failed"],
            )?,
            lookups: vec(
                "ledgermq_network_lookups_total",
                "Lookups of configured names by outcome",
                "outcome",
                &["resolved", "failed"],
            )?,
            gossip: vec("ledgermq_network_gossip_total", "Gossip messages by outcome", "outcome", &gossip)?,
            gossip_received_bytes: IntCounter::new(
                "ledgermq_network_gossip_received_bytes",
                "Bytes of gossip received, duplicates not counted",
            )?,
            announcements: vec(
                "ledgermq_network_announcements_total",
                "Announcements by outcome",
                "outcome",
                &["news", "known", "invalid", "too_many"],
            )?,
            requests_in: vec(
                "ledgermq_network_requests_in_total",
                "Requests received by outcome",
                "outcome",
                &["delivered", "answered", "busy", "failed"],
            )?,
            requests_out: vec(
                "ledgermq_network_requests_out_total",
                "Requests sent by outcome",
                "outcome",
                &["answered", "busy", "failed", "timed_out"],
            )?,
            offences: vec(
                "ledgermq_network_offences_total",
                "Misconduct of peers by kind",
                "kind",
                &["garbage", "stranger", "rejected_gossip"],
            )?,
            rtt_ms: Histogram::with_opts(
                HistogramOpts::new("ledgermq_network_rtt_ms", "Round trip times of pings in milliseconds")
                    .buckets(vec![0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0]),
            )?,
        };
        registry.register(Box::new(metrics.peers.clone()))?;
        registry.register(Box::new(metrics.gossip_received_bytes.clone()))?;
        registry.register(Box::new(metrics.rtt_ms.clone()))?;
        Ok(metrics)
    }

    /// Counts what happened to a gossip message.
    pub(super) fn on_gossip(&self, what: Gossip) {
        self.gossip.with_label_values(&[what.as_str()]).inc();
    }
}
