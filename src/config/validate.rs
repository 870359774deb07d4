//! Ranges of the settings: wide enough for any sensible node, narrow enough to catch a wrong unit.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use tracing_subscriber::filter::{LevelFilter, Targets};

use super::Config;
use crate::pbft::settings::IN_FLIGHT_BATCHES;

/// A setting's name and what is wrong with it.
pub(super) type Problem = (&'static str, String);

const MIB: u64 = 1 << 20;
const GIB: u64 = 1024 * MIB;
const DAY: u64 = 86_400;
const MINUTE_MS: u64 = 60_000;

impl Config {
    /// The first setting that is out of its range.
    pub(super) fn problem(&self) -> Option<Problem> {
        self.check().err()
    }

    fn check(&self) -> Result<(), Problem> {
        within("worker_threads", self.worker_threads.unwrap_or(1), 1..=1_024)?;
        self.check_log()?;
        self.check_mqtt()?;
        self.check_api()?;
        self.check_p2p()?;
        self.check_consensus()?;
        self.check_storage()?;
        self.check_history()?;
        self.check_transfer()?;
        self.check_policy()
    }

    fn check_policy(&self) -> Result<(), Problem> {
        within("policy.cached_items", self.policy.cached_items, 1..=16_777_216)?;
        within("policy.max_open_items", self.policy.max_open_items, 1_024..=16_777_216)
    }

    fn check_log(&self) -> Result<(), Problem> {
        let level = &self.log.level;
        // `Targets` takes a lone word that is no level as the name of a target, and then logs nothing else.
        let words_are_levels = level
            .split(',')
            .all(|directive| directive.contains('=') || directive.trim().parse::<LevelFilter>().is_ok());
        if words_are_levels && level.parse::<Targets>().is_ok() {
            return Ok(());
        }
        let problem = format!(
            "is {level:?}, but must be error, warn, info, debug or trace, or directives such as \
             info,ledgermq::pbft=debug"
        );
        Err(("log.level", problem))
    }

    fn check_mqtt(&self) -> Result<(), Problem> {
        let mqtt = &self.mqtt;
        within("mqtt.max_packet_bytes", mqtt.max_packet_bytes, 4096..=64 << 20)?;
        within("mqtt.max_body_bytes", mqtt.max_body_bytes, 4096..=256 << 20)?;
        within("mqtt.max_connections", mqtt.max_connections, 1..=1_000_000)?;
        within("mqtt.max_unregistered_connections", mqtt.max_unregistered_connections, 0..=1_000_000)?;
        if mqtt.max_unregistered_connections > mqtt.max_connections {
            return Err((
                "mqtt.max_unregistered_connections",
                format!("must not be above mqtt.max_connections, {}", mqtt.max_connections),
            ));
        }
        within("mqtt.unregistered_messages_per_minute", mqtt.unregistered_messages_per_minute, 1..=60_000)?;
        within("mqtt.max_inflight", mqtt.max_inflight, 1..=u16::MAX)?;
        within("mqtt.max_queued_replies", mqtt.max_queued_replies, 16..=1_000_000)?;
        seconds("mqtt.session_expiry_s", mqtt.session_expiry, 0..=30 * DAY)?;
        seconds("mqtt.token_max_age_s", mqtt.token_max_age, 60..=DAY)?;
        seconds("mqtt.kem_lifetime_s", mqtt.kem_lifetime, 1..=30 * DAY)?;
        seconds("mqtt.payload_key_lifetime_s", mqtt.payload_key_lifetime, 1..=30 * DAY)?;
        within("mqtt.payload_key_max_messages", mqtt.payload_key_max_messages, 1..=1 << 32)?;
        millis("mqtt.clock_ahead_ms", mqtt.clock_ahead, 0..=DAY * 1000)?;
        within("mqtt.unverified_replies_per_minute", mqtt.unverified_replies_per_minute, 1..=60_000)?;
        millis("mqtt.submit_timeout_ms", mqtt.submit_timeout, 100..=MINUTE_MS)
    }

    fn check_api(&self) -> Result<(), Problem> {
        let api = &self.api;
        if let Some(announced) = &api.announce
            && url::Url::parse(announced).is_ok_and(|url| matches!(url.scheme(), "http" | "https")).eq(&false)
        {
            return Err(("api.announce", format!("is {announced:?}, but must be an http or https URL")));
        }
        within("api.max_connections", api.max_connections, 1..=100_000)?;
        within("api.probes_max_connections", api.probes_max_connections, 1..=10_000)?;
        if api.probes_listen.is_some_and(|probes| probes == api.listen && probes.port() != 0) {
            return Err(("api.probes_listen", "must be another address than api.listen".to_owned()));
        }
        within("api.max_request_bytes", api.max_request_bytes, 1024..=16 << 20)?;
        millis("api.request_timeout_ms", api.request_timeout, 100..=10 * MINUTE_MS)?;
        millis("api.operation_timeout_ms", api.operation_timeout, 100..=10 * MINUTE_MS)?;
        within("api.max_page", api.max_page, 1..=100_000)
    }

    fn check_p2p(&self) -> Result<(), Problem> {
        if self.p2p.listen.is_empty() {
            return Err((
                "p2p.listen",
                "must name at least one address, such as /ip4/0.0.0.0/tcp/7000".into(),
            ));
        }
        seconds("p2p.resolve_interval_s", self.p2p.resolve_interval, 1..=3600)?;
        within("p2p.max_connections", self.p2p.max_connections, 1..=10_000)
    }

    fn check_consensus(&self) -> Result<(), Problem> {
        let consensus = &self.consensus;
        millis("consensus.batch_delay_ms", consensus.batch_delay, 0..=1000)?;
        within("consensus.batch_max_requests", consensus.batch_max_requests, 1..=1024)?;
        within("consensus.batch_max_bytes", consensus.batch_max_bytes, 64 << 10..=8 << 20)?;
        within("consensus.pipeline_batches", consensus.pipeline_batches, 1..=IN_FLIGHT_BATCHES)?;
        millis("consensus.bundle_delay_ms", consensus.bundle_delay, 0..=1000)?;
        millis("consensus.resend_interval_ms", consensus.resend_interval, 10..=MINUTE_MS)?;
        let at_least = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(MINUTE_MS)..=MINUTE_MS;
        let resend = at_least(consensus.resend_interval);
        millis("consensus.resend_max_interval_ms", consensus.resend_max_interval, resend)?;
        millis("consensus.request_resend_interval_ms", consensus.request_resend_interval, 10..=MINUTE_MS)?;
        let resend = at_least(consensus.request_resend_interval);
        millis("consensus.request_resend_max_interval_ms", consensus.request_resend_max_interval, resend)?;
        millis("consensus.fetch_interval_ms", consensus.fetch_interval, 10..=MINUTE_MS)?;
        millis("consensus.request_timeout_ms", consensus.request_timeout, 100..=MINUTE_MS)?;
        let timeout = at_least(consensus.request_timeout);
        millis("consensus.request_timeout_max_ms", consensus.request_timeout_max, timeout)?;
        within("consensus.pool_max_requests", consensus.pool_max_requests, 256..=1 << 20)?;
        within("consensus.pool_max_bytes", consensus.pool_max_bytes, 16 * MIB..=16 * GIB)?;
        within("consensus.inflight_max_bytes", consensus.inflight_max_bytes, 16 * MIB..=16 * GIB)?;
        within("consensus.evidence_max_per_replica", consensus.evidence_max_per_replica, 1..=1024)?;
        within("consensus.evidence_max", consensus.evidence_max, 1..=65_536)
    }

    fn check_storage(&self) -> Result<(), Problem> {
        let storage = &self.storage;
        within("storage.cache_bytes", storage.cache_bytes, MIB..=64 * GIB)?;
        millis("storage.checkpoint_interval_ms", storage.checkpoint_interval, 100..=10 * MINUTE_MS)?;
        within("storage.checkpoint_bytes", storage.checkpoint_bytes, MIB..=16 * GIB)?;
        within("storage.log_segment_bytes", storage.log_segment_bytes, MIB..=GIB)?;
        within("storage.log_max_queued_bytes", storage.log_max_queued_bytes, 16 * MIB..=4 * GIB)?;
        millis("storage.log_gather_ms", storage.log_gather, 0..=1_000)
    }
}

impl Config {
    fn check_history(&self) -> Result<(), Problem> {
        let history = &self.history;
        if let Some(crate::config::DatabaseUrl(url)) = &history.url {
            let parsed = url::Url::parse(url);
            let is_postgres = parsed.is_ok_and(|url| {
                matches!(url.scheme(), "postgres" | "postgresql") && url.host_str().is_some()
            });
            if !is_postgres {
                return Err((
                    "history.url",
                    "must be postgres://user:password@host/database, or none".into(),
                ));
            }
        }
        within("history.max_backlog_bytes", history.max_backlog_bytes, 16 * MIB..=16 * GIB)?;
        seconds("history.digest_interval_s", history.digest_interval, 1..=3600)?;
        within("history.digest_max_rows", history.digest_max_rows, 1..=crate::ledger::MAX_DIGEST_ROWS)
    }

    fn check_transfer(&self) -> Result<(), Problem> {
        let transfer = &self.transfer;
        within("transfer.fetch_bytes_per_s", transfer.fetch_bytes_per_s, MIB..=16 * GIB)?;
        within("transfer.fetch_requests_each", transfer.fetch_requests_each, 1..=4)?;
        within("transfer.max_buffered_bytes", transfer.max_buffered_bytes, 24 * MIB..=4 * GIB)?;
        within("transfer.serve_bytes_per_s", transfer.serve_bytes_per_s, MIB..=16 * GIB)?;
        let each = MIB..=transfer.serve_bytes_per_s;
        within("transfer.serve_bytes_per_s_each", transfer.serve_bytes_per_s_each, each)?;
        within("transfer.serve_requests", transfer.serve_requests, 1..=256)?;
        within(
            "transfer.serve_requests_each",
            transfer.serve_requests_each,
            1..=transfer.serve_requests.min(8),
        )
    }
}

fn within<N: Copy + PartialOrd + Display>(
    setting: &'static str,
    value: N,
    range: RangeInclusive<N>,
) -> Result<(), Problem> {
    let (least, most) = range.into_inner();
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err((setting, format!("is {value}, but must be {least} to {most}")))
}

fn millis(setting: &'static str, value: Duration, range: RangeInclusive<u64>) -> Result<(), Problem> {
    within(setting, u64::try_from(value.as_millis()).unwrap_or(u64::MAX), range)
}

fn seconds(setting: &'static str, value: Duration, range: RangeInclusive<u64>) -> Result<(), Problem> {
    within(setting, value.as_secs(), range)
}
