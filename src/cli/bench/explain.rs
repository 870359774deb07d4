//! Where the processor time of each replica went, stage by stage, beside what cannot be saved.
//!
//! The replicas count the time of their threads in each stage ([`crate::metrics::Stages`]); what they
//! used besides is the MQTT broker's, the runtime's and the system's for them. The floor is measured
//! here, before the load: each replica checks the signature of each message, the client makes it, and
//! the node signs the ack, which the client checks.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;
use url::Url;

use super::outage::tenths;
use super::usage::Usage;
use crate::cli::output;
use crate::clock::thread_cpu_ns;
use crate::crypto::{SecretKey, SignatureKind, VerifyingKey};
use crate::metrics::STAGES;
use crate::types::NetworkId;

/// How long a replica may take to tell its metrics, under full load.
const TOLD_WITHIN: Duration = Duration::from_secs(20);

const STAGE_METRIC: &str = "ledgermq_stage_cpu_ns_total{stage=\"";

/// Signatures in a round, and rounds; the fastest round counts.
const SIGNATURES: u32 = 100;
const ROUNDS: usize = 8;

/// Bytes of a header.
const SIGNED_BYTES: usize = 160;

/// What one message costs at the least, in microseconds of this machine.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Floor {
    /// One signature.
    pub(super) sign_us: f64,
    /// The check of one.
    pub(super) check_us: f64,
    /// Each replica's check of the message's signature, and the admitting node's signature on the ack.
    pub(super) replicas_us: f64,
    /// The client's signature, and its check of the ack.
    pub(super) clients_us: f64,
}

impl Floor {
    /// Measures it: a few dozen milliseconds.
    pub(super) fn measure(replicas: usize) -> anyhow::Result<Self> {
        let (key, network) = (SecretKey::generate()?, NetworkId([7; 32]));
        let content = [7; SIGNED_BYTES];
        let sign = || key.sign(SignatureKind::Bundle, &network, std::hint::black_box(&content));
        let (signature, public) = (sign(), VerifyingKey::parse(&key.public())?);
        let check =
            || public.verify(SignatureKind::Bundle, &network, std::hint::black_box(&content), &signature);
        let sign_us = fastest_us(|| {
            std::hint::black_box(sign());
        });
        let check_us = fastest_us(|| {
            let _valid = std::hint::black_box(check());
        });
        let replicas = f64::from(u16::try_from(replicas)?);
        Ok(Self {
            sign_us,
            check_us,
            replicas_us: tenths(replicas * check_us + sign_us),
            clients_us: tenths(sign_us + check_us),
        })
    }
}

fn fastest_us(work: impl Fn()) -> f64 {
    let round = |_| {
        let before = thread_cpu_ns();
        (0..SIGNATURES).for_each(|_| work());
        thread_cpu_ns().saturating_sub(before)
    };
    let fastest = (0..ROUNDS).map(round).min().unwrap_or_default();
    tenths(number(fastest) / 1000.0 / f64::from(SIGNATURES))
}

/// Nanoseconds of a replica in each stage since it started; none if it does not tell.
pub(super) type StageNs = Option<BTreeMap<String, u64>>;

/// What all replicas tell now.
pub(super) async fn stages(apis: &[Url]) -> anyhow::Result<Vec<StageNs>> {
    let http = reqwest::Client::builder().timeout(TOLD_WITHIN).build().context("cannot ask for metrics")?;
    let told = apis.iter().map(|api| async {
        let text = http.get(api.join("metrics").ok()?).send().await.ok()?.text().await.ok()?;
        Some(parse(&text))
    });
    Ok(futures::future::join_all(told).await)
}

fn parse(text: &str) -> BTreeMap<String, u64> {
    let stage = |line: &str| {
        let (stage, value) = line.strip_prefix(STAGE_METRIC)?.split_once("\"} ")?;
        Some((stage.to_owned(), value.parse().ok()?))
    };
    text.lines().filter_map(stage).collect()
}

/// Microseconds of processor time for each final message.
#[derive(Debug, Serialize)]
pub(super) struct Explain {
    floor: Floor,
    /// Each replica.
    nodes: Vec<Cost>,
    /// All of them; none if one does not tell.
    all: Option<Cost>,
}

/// What a replica spends on a message.
#[derive(Debug, Clone, Serialize)]
struct Cost {
    /// By stage; empty if the replica does not tell.
    stages_us: BTreeMap<String, f64>,
    /// Broker, runtime, system: the total without the stages.
    rest_us: Option<f64>,
    total_us: Option<f64>,
}

impl Cost {
    fn of(before: &StageNs, after: &StageNs, usage: Usage, messages: f64) -> Self {
        let (before, after) = (before.clone().unwrap_or_default(), after.clone().unwrap_or_default());
        let since = |(stage, ns): (String, u64)| {
            let ns = ns.saturating_sub(before.get(&stage).copied().unwrap_or_default());
            (stage, number(ns) / 1000.0 / messages)
        };
        let stages_us: BTreeMap<_, _> = after.into_iter().map(since).collect();
        let total_us = usage.cpu_s.map(|cpu| cpu * 1e6 / messages);
        let rest_us =
            total_us.filter(|_| !stages_us.is_empty()).map(|total| total - stages_us.values().sum::<f64>());
        Self { stages_us, rest_us, total_us }.rounded()
    }

    fn sum(costs: &[Self]) -> Option<Self> {
        let add = |one: Option<f64>, other: Option<f64>| Some(one? + other?);
        let mut sum = Self { stages_us: BTreeMap::new(), rest_us: Some(0.0), total_us: Some(0.0) };
        for cost in costs {
            if cost.stages_us.is_empty() {
                return None;
            }
            for (stage, us) in &cost.stages_us {
                *sum.stages_us.entry(stage.clone()).or_default() += us;
            }
            sum.rest_us = add(sum.rest_us, cost.rest_us);
            sum.total_us = add(sum.total_us, cost.total_us);
        }
        (!costs.is_empty()).then(|| sum.rounded())
    }

    fn rounded(mut self) -> Self {
        self.stages_us.values_mut().for_each(|us| *us = tenths(*us));
        Self { rest_us: self.rest_us.map(tenths), total_us: self.total_us.map(tenths), ..self }
    }
}

impl Explain {
    /// Out of what the replicas told before and after `messages` became final, and what they used; of a
    /// network that ran before, `usages` is empty. None if no message became final.
    pub(super) fn new(
        floor: Floor,
        before: &[StageNs],
        after: &[StageNs],
        usages: &[Usage],
        messages: u64,
    ) -> Option<Self> {
        let usage = |node| usages.get(node).copied().unwrap_or_default();
        let cost = |(node, (before, after))| Cost::of(before, after, usage(node), number(messages));
        let nodes: Vec<_> = before.iter().zip(after).enumerate().map(cost).collect();
        (messages > 0).then(|| Self { floor, all: Cost::sum(&nodes), nodes })
    }

    /// Prints a table.
    pub(super) fn print(&self) -> anyhow::Result<()> {
        let columns: Vec<_> = self.nodes.iter().chain(&self.all).collect();
        let head = (0..self.nodes.len()).map(|node| format!("{:>11}", format!("replica {node}")));
        let head: String = head.chain(self.all.iter().map(|_| format!("{:>11}", "all"))).collect();
        output::line(format_args!("µs for each final message{head}"))?;
        let line = |what: &str, of: &dyn Fn(&Cost) -> Option<f64>| {
            let cells = columns.iter().map(|cost| of(cost).map_or("?".to_owned(), |us| format!("{us:.1}")));
            let cells: String = cells.map(|cell| format!("{cell:>11}")).collect();
            output::line(format_args!("  {what:23}{cells}"))
        };
        for stage in STAGES {
            line(stage, &|cost| cost.stages_us.get(stage).copied())?;
        }
        line("rest: broker, runtime", &|cost| cost.rest_us)?;
        line("total", &|cost| cost.total_us)?;
        let Floor { sign_us, check_us, replicas_us, clients_us } = self.floor;
        output::line(format_args!(
            "the floor: {replicas_us:.1} µs for all replicas and {clients_us:.1} µs for the client; a signature takes \
             {sign_us:.1} µs here, its check {check_us:.1} µs"
        ))
    }
}

#[allow(clippy::cast_precision_loss)]
const fn number(count: u64) -> f64 {
    // Far below what a float holds exactly.
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(verify: u64, log: u64) -> StageNs {
        let text =
            format!("# HELP x\n{STAGE_METRIC}verify\"}} {verify}\n{STAGE_METRIC}log\"}} {log}\nother 5\n");
        Some(parse(&text))
    }

    const FLOOR: Floor = Floor { sign_us: 20.0, check_us: 40.0, replicas_us: 100.0, clients_us: 60.0 };

    #[test]
    fn each_stage_is_told_for_each_message_and_the_rest_is_what_no_stage_has() {
        let usage = Usage { cpu_s: Some(0.01), rss_peak_bytes: None };
        let (before, after) = ([told(1_000, 0), told(0, 0)], [told(501_000, 100_000), told(300_000, 0)]);
        let explain = Explain::new(FLOOR, &before, &after, &[usage, usage], 100).unwrap();
        let json = serde_json::to_value(&explain).unwrap();
        assert_eq!(json["nodes"][0]["stages_us"], serde_json::json!({"log": 1.0, "verify": 5.0}));
        assert_eq!(
            (&json["nodes"][0]["rest_us"], &json["nodes"][0]["total_us"]),
            (&94.0.into(), &100.0.into())
        );
        assert_eq!(json["all"]["stages_us"]["verify"], 8.0);
        assert_eq!(json["all"]["total_us"], 200.0);
        assert_eq!(json["floor"]["replicas_us"], 100.0);
        assert!(Explain::new(FLOOR, &before, &after, &[], 0).is_none());
    }

    #[test]
    fn a_replica_that_does_not_tell_has_a_total_and_no_stages() {
        let usage = Usage { cpu_s: Some(0.01), rss_peak_bytes: None };
        let explain =
            Explain::new(FLOOR, &[told(0, 0), told(0, 0)], &[told(1, 1), None], &[usage, usage], 10);
        let json = serde_json::to_value(explain.unwrap()).unwrap();
        assert_eq!(json["nodes"][1]["stages_us"], serde_json::json!({}));
        assert_eq!(json["nodes"][1]["total_us"], 1000.0);
        assert!(json["nodes"][1]["rest_us"].is_null() && json["all"].is_null());
    }

    #[test]
    fn the_floor_is_measured_and_a_check_costs_more_than_a_signature() {
        let floor = Floor::measure(4).unwrap();
        assert!(floor.sign_us > 0.0 && floor.check_us > 0.0, "{floor:?}");
        assert!((floor.replicas_us - 4.0 * floor.check_us - floor.sign_us).abs() < 0.2, "{floor:?}");
    }

    #[test]
    fn all_stages_that_a_node_exports_are_found_in_its_metrics() {
        let text = crate::metrics::Metrics::new().unwrap().render().unwrap();
        let mut stages = STAGES.map(str::to_owned);
        stages.sort();
        assert_eq!(parse(&text).into_keys().collect::<Vec<_>>(), stages);
    }
}
