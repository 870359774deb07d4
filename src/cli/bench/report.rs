//! What a run came to, for a script and for a person.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::explain::Explain;
use super::load::Tally;
use super::outage::{OutageReport, tenths};
use super::usage::Usage;
use crate::cli::latency::Percentiles;
use crate::cli::output;

/// What a run was and what it measured; `--json` prints it as it is.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) replicas: usize,
    pub(super) clients: u16,
    pub(super) items: u32,
    pub(super) body_bytes: usize,
    /// Messages a second that were asked for; 0: as many as acks allow.
    pub(super) rate: u32,
    pub(super) duration_s: f64,
    /// Messages a second that were due.
    offered_per_s: f64,
    /// Messages a second that got their PUBACK while the load lasted.
    accepted_per_s: f64,
    /// Messages a second that became final while the load lasted.
    final_messages_per_s: f64,
    /// Data items of these on the ledger.
    final_items_per_s: f64,
    puback_ms: Percentiles,
    final_ms: Percentiles,
    /// Messages that did not become final, by code.
    errors: BTreeMap<String, u64>,
    /// All messages that were due, and those that were final in the end.
    messages: Messages,
    /// Each replica; none of a network that ran before.
    pub(super) nodes: Vec<NodeUsage>,
    /// Processor time of all clients together.
    client_cpu_s: Option<f64>,
    /// Processor time of all replicas for each final message.
    nodes_cpu_us_per_message: Option<f64>,
    /// With `--explain`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) explain: Option<Explain>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) outage: Option<OutageReport>,
}

#[derive(Debug, Serialize)]
struct Messages {
    offered: u64,
    r#final: u64,
}

/// What a replica used during the run.
#[derive(Debug, Serialize)]
pub(super) struct NodeUsage {
    pub(super) cpu_s: Option<f64>,
    pub(super) rss_peak_bytes: Option<u64>,
}

impl From<Usage> for NodeUsage {
    fn from(Usage { cpu_s, rss_peak_bytes }: Usage) -> Self {
        Self { cpu_s: cpu_s.map(hundredths), rss_peak_bytes }
    }
}

/// What was asked for.
pub(super) struct Asked {
    pub(super) replicas: usize,
    pub(super) clients: u16,
    pub(super) items: u32,
    pub(super) body_bytes: usize,
    pub(super) rate: u32,
    pub(super) duration: Duration,
}

impl Report {
    pub(super) fn new(asked: &Asked, tally: Tally, nodes: Vec<Usage>, clients: Usage) -> Self {
        let Asked { replicas, clients: count, items, body_bytes, rate, duration } = *asked;
        let per_s = |number: u64| tenths(number_of(number) / duration.as_secs_f64());
        let of_nodes: Option<f64> = nodes.iter().map(|node| node.cpu_s).sum();
        let cpu_us = of_nodes.filter(|_| !nodes.is_empty() && tally.finals_in_the_end > 0);
        Self {
            replicas,
            clients: count,
            items,
            body_bytes,
            rate,
            duration_s: duration.as_secs_f64(),
            offered_per_s: per_s(tally.offered),
            accepted_per_s: per_s(tally.accepted),
            final_messages_per_s: per_s(tally.finals),
            final_items_per_s: per_s(tally.items),
            puback_ms: tally.puback.percentiles(),
            final_ms: tally.done.percentiles(),
            errors: tally.errors,
            messages: Messages { offered: tally.offered, r#final: tally.finals_in_the_end },
            nodes: nodes.into_iter().map(NodeUsage::from).collect(),
            client_cpu_s: clients.cpu_s.map(hundredths),
            nodes_cpu_us_per_message: cpu_us
                .map(|cpu| tenths(cpu * 1e6 / number_of(tally.finals_in_the_end))),
            explain: None,
            outage: None,
        }
    }

    /// Prints a table.
    pub(super) fn print(&self) -> anyhow::Result<()> {
        let Self { replicas, clients, items, body_bytes, duration_s, .. } = self;
        output::line(format_args!(
            "{}, {} in {} a message, {}, {duration_s} s",
            output::counted(*clients, "client"),
            output::counted(*items, "item"),
            output::counted(*body_bytes as u64, "byte"),
            output::counted(*replicas as u64, "replica")
        ))?;
        output::line("messages/s     offered   accepted      final   items final")?;
        output::line(format_args!(
            "            {:10.1} {:10.1} {:10.1} {:13.1}",
            self.offered_per_s, self.accepted_per_s, self.final_messages_per_s, self.final_items_per_s
        ))?;
        output::line("milliseconds from when it was due       p50        p95        p99        max")?;
        for (what, of) in
            [("PUBACK: on a node's disk", self.puback_ms), ("final on the ledger", self.final_ms)]
        {
            let Percentiles { p50, p95, p99, max } = of;
            output::line(format_args!("  {what:30} {p50:10.1} {p95:10.1} {p99:10.1} {max:10.1}"))?;
        }
        self.print_usage()?;
        self.explain.iter().try_for_each(Explain::print)?;
        for line in self.outage.iter().flat_map(OutageReport::lines) {
            output::line(line)?;
        }
        if self.errors.is_empty() {
            return output::line("no errors");
        }
        self.errors.iter().try_for_each(|(code, count)| output::line(format_args!("error {code:20} {count}")))
    }

    fn print_usage(&self) -> anyhow::Result<()> {
        let seconds = |cpu: Option<f64>| cpu.map_or("?".to_owned(), |cpu| format!("{cpu:.2} s"));
        for (replica, node) in self.nodes.iter().enumerate() {
            let peak = node.rss_peak_bytes.map_or("?".to_owned(), |bytes| format!("{} MiB", bytes >> 20));
            output::line(format_args!(
                "replica {replica}: {} of processor time, {peak} of memory at most",
                seconds(node.cpu_s)
            ))?;
        }
        output::line(format_args!("clients:   {} of processor time", seconds(self.client_cpu_s)))?;
        match self.nodes_cpu_us_per_message {
            Some(us) => output::line(format_args!(
                "{us:.0} µs of processor time for each final message, over all replicas"
            )),
            None => Ok(()),
        }
    }
}

fn hundredths(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

#[allow(clippy::cast_precision_loss)]
fn number_of(count: u64) -> f64 {
    // Far below what a float holds exactly.
    count as f64
}
