//! `ledgermq bench`: how much a network takes, measured from outside, with real parts only.
//!
//! ```text
//! clients ── sign, encrypt, MQTT ──▶ replicas, each a process ──▶ acks, signed and verified
//!    │ due, PUBACK, final                  │ processor time, memory (/proc)
//!    └──────────────▶ report ◀─────────────┘
//! ```
//!
//! Clients are the gateways of the SDK, all in this process, each with a key and a connection of its
//! own. They keep nothing on disk, since their disks are not what is measured; everything else is
//! what any gateway does, so their processor time is reported beside the replicas'.
//!
//! The network lives as long as the run, in a temporary directory that goes with it, also after
//! Ctrl-C; with `--network`, the load goes to one that runs already.

mod body;
mod explain;
mod load;
mod outage;
mod report;
mod target;
mod timeline;
mod usage;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use clap::{Args, ValueEnum};
use tempfile::TempDir;

use super::arguments::wrong;
use super::interrupt::interrupted;
use super::{output, publish};
use crate::clock::SystemClock;
use crate::types::{ClientId, Timestamp};
use body::Bodies;
use explain::{Explain, Floor};
use load::{DRAIN, Plan, Tally};
use outage::{Happened, Planned, Victims};
use report::{Asked, Report};
use target::{Client, Target};
use timeline::Timeline;
use usage::Usage;

/// Measure how many messages a network takes and how long they take
///
/// Starts a network of replicas as separate processes, registers clients, and lets them sign and send
/// messages over MQTT for a while. Latency counts from when a message was due at the given rate, to the
/// PUBACK (on a node's disk) and to the node's signed ack (final on the ledger). Clients run on the same
/// processors; what they take is told. Exit code 0 means that it was measured, not that it was fast.
///
/// Example: ledgermq bench --clients 32 --rate 1000 --items 10 --duration 30
#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    /// How many replicas, 1 to 16; with n of them, (n-1)/3 may be faulty
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=16))]
    replicas: u16,
    /// How many clients, spread over the nodes
    #[arg(long, allow_negative_numbers = true, value_name = "C", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1000))]
    clients: u16,
    /// Messages a second, of all clients together; 0: as fast as acks allow
    #[arg(long, allow_negative_numbers = true, value_name = "R", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    rate: u32,
    /// Data items in each message
    #[arg(long, allow_negative_numbers = true, value_name = "I", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    items: u32,
    /// How long the load lasts
    #[arg(long, allow_negative_numbers = true, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    duration: u32,
    /// Bytes of each JSON body, filled up with what no one reads [default: what the items take]
    #[arg(long, allow_negative_numbers = true, value_name = "B")]
    size: Option<usize>,
    /// Which items the nodes write to the ledger. Without --network only: what runs keeps its policies
    #[arg(long, value_enum, default_value_t = Policy::Always)]
    policy: Policy,
    /// Load a network that runs already: the directory that `ledgermq init` made, for its genesis
    /// document, its admin key (which registers the clients, and revokes them in the end) and its API
    #[arg(long, value_name = "DIR", conflicts_with_all = ["replicas", "policy"])]
    network: Option<PathBuf>,
    /// MQTT endpoint of a node of that network; may be given several times [default: all of its nodes]
    #[arg(long, value_name = "HOST:PORT", value_parser = publish::endpoint, requires = "network")]
    target: Vec<(String, u16)>,
    /// Kill the primary with SIGKILL this many seconds after the load began
    #[arg(long, allow_negative_numbers = true, value_name = "SECONDS", conflicts_with_all = ["network", "kill", "kill_at"])]
    kill_primary_at: Option<u32>,
    /// Kill so many backups with SIGKILL, at most as many as may be faulty
    #[arg(long, allow_negative_numbers = true, value_name = "N", conflicts_with = "network", value_parser = clap::value_parser!(u16).range(1..))]
    kill: Option<u16>,
    /// When --kill does it, in seconds after the load began [default: after a third of it]
    #[arg(long, allow_negative_numbers = true, value_name = "SECONDS", requires = "kill")]
    kill_at: Option<u32>,
    /// Tell what each stage costs each replica for each message, beside the signatures that nobody can save
    #[arg(long)]
    explain: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Policy {
    /// Every item: a rule that says so is set on the ledger before the load
    Always,
    /// No rule is set: a new network has none, and then writes every item, too
    Default,
}

impl BenchArgs {
    fn duration(&self) -> Duration {
        Duration::from_secs(self.duration.into())
    }

    /// What is to be killed, if that can be survived and seen.
    fn outage(&self) -> anyhow::Result<Option<Planned>> {
        let third = self.duration() / 3;
        let seconds = |at: u32| Duration::from_secs(at.into());
        let planned = match (self.kill_primary_at, self.kill) {
            (Some(at), _) => Planned { victims: Victims::Primary, at: seconds(at) },
            (None, Some(count)) => {
                Planned { victims: Victims::Backups(count), at: self.kill_at.map_or(third, seconds) }
            }
            (None, None) => return Ok(None),
        };
        let dead = self.kill.unwrap_or(1);
        let f = (self.replicas - 1) / 3;
        if dead > f {
            return Err(wrong(format_args!(
                "{} with {f} dead, not with {dead}: --replicas {} would do",
                if self.replicas == 1 {
                    "1 replica goes on".to_owned()
                } else {
                    format!("{} replicas go on", self.replicas)
                },
                3 * u32::from(dead) + 1
            )));
        }
        if planned.at >= self.duration() {
            return Err(wrong(format_args!(
                "nothing can be killed after {} s of a load of {} s: choose an earlier time, or a longer --duration",
                planned.at.as_secs(),
                self.duration
            )));
        }
        Ok(Some(planned))
    }
}

pub(super) fn run(args: &BenchArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(Box::pin(measure_and_tidy_up(args)))
}

/// Everything, and tidying up after it.
async fn measure_and_tidy_up(args: &BenchArgs) -> anyhow::Result<()> {
    let (bodies, outage) = (Bodies::new(args.items, args.size)?, args.outage()?);
    let mut dir = None;
    let mut target = match &args.network {
        Some(network) => Target::running(network, &args.target)?,
        None => {
            let made = tempfile::Builder::new().prefix("ledgermq-bench-").tempdir();
            let made = dir.insert(made.context("cannot make a temporary directory")?);
            Target::create(made.path(), args.replicas)?
        }
    };
    let mut clients = Vec::new();
    let measured = tokio::select! {
        report = measure(args, bodies, outage, &mut target, &mut clients) => report,
        interrupted = interrupted() => interrupted.and_then(|()| Err(anyhow!("interrupted"))),
    };
    // A second Ctrl-C is for what does not stop; dropping replicas kills them.
    let left = tokio::select! {
        left = leave(&mut target, &clients) => left,
        interrupted = interrupted() => interrupted,
    };
    drop(target);
    match (measured, left) {
        (Ok(report), Ok(())) => {
            remove(dir)?;
            if args.json { output::json(&report) } else { report.print() }
        }
        (Err(error), left) if error.to_string() == "interrupted" => {
            remove(dir)?;
            left.and(Err(error.context("nothing is left behind")))
        }
        (measured, left) => failed(dir, measured.map(drop).and(left)),
    }
}

/// Leaves a network as it was found, or stops it.
async fn leave(target: &mut Target, clients: &[ClientId]) -> anyhow::Result<()> {
    let left = target.leave(clients).await;
    match &mut target.own {
        Some(own) => left.and(own.stop_all().await),
        None => left,
    }
}

fn remove(dir: Option<TempDir>) -> anyhow::Result<()> {
    dir.map_or(Ok(()), |dir| dir.close().context("cannot remove the directory of the run"))
}

/// The replicas' logs may say why.
fn failed(dir: Option<TempDir>, result: anyhow::Result<()>) -> anyhow::Result<()> {
    let Some(dir) = dir else { return result };
    let kept = dir.keep();
    result.with_context(|| format!("the files, with the replicas' logs, are left in {}", kept.display()))
}

async fn measure(
    args: &BenchArgs,
    bodies: Bodies,
    outage: Option<Planned>,
    target: &mut Target,
    registered: &mut Vec<ClientId>,
) -> anyhow::Result<Report> {
    if target.own.is_some() {
        eprintln!("starting {} replicas ...", args.replicas);
    }
    target.start().await?;
    if target.own.is_some() && args.policy == Policy::Always {
        target.write_always().await?;
    }
    eprintln!("registering and connecting {} clients ...", args.clients);
    let clients = target.connect(args.clients, registered).await?;
    let explaining = match args.explain {
        true => Some((Floor::measure(target.replicas())?, explain::stages(target.apis()).await?)),
        false => None,
    };
    eprintln!("load for {} s ...", args.duration);
    let pids = pids(target);
    let before: Vec<Usage> = pids.iter().map(|pid| pid.map(Usage::of).unwrap_or_default()).collect();
    let own_before = Usage::own();
    let plan = Arc::new(Plan {
        bodies,
        rate: (args.rate > 0).then_some(args.rate),
        duration: args.duration(),
        clock: SystemClock::new(),
        timeline: Timeline::new(args.duration() + DRAIN),
    });
    let (tally, happened) = load(&plan, clients, outage, target).await?;
    let mut after: Vec<Usage> = pids.iter().map(|pid| pid.map(Usage::of).unwrap_or_default()).collect();
    for (replica, usage) in happened.iter().flat_map(|happened| &happened.dead) {
        after[*replica] = *usage;
    }
    let clients = Usage::own().since(own_before);
    all_alive(target, happened.as_ref())?;
    let asked = Asked {
        replicas: target.replicas(),
        clients: args.clients,
        items: args.items,
        body_bytes: bodies.body(Timestamp(1_767_225_600_000), 0).len(),
        rate: args.rate,
        duration: args.duration(),
    };
    let used: Vec<_> = after.into_iter().zip(before).map(|(after, before)| after.since(before)).collect();
    let explained = match explaining {
        Some((floor, told)) => {
            let now = explain::stages(target.apis()).await?;
            Explain::new(floor, &told, &now, &used, tally.finals_in_the_end)
        }
        None => None,
    };
    let mut report = Report::new(&asked, tally, used, clients);
    report.explain = explained;
    report.outage = happened.map(|happened| happened.report(&plan));
    Ok(report)
}

fn pids(target: &Target) -> Vec<Option<u32>> {
    let own = target.own.iter();
    own.flat_map(|own| (0..own.replicas()).map(|replica| own.pid(replica))).collect()
}

/// The load, and the outage in it.
async fn load(
    plan: &Arc<Plan>,
    clients: Vec<Client>,
    outage: Option<Planned>,
    target: &mut Target,
) -> anyhow::Result<(Tally, Option<Happened>)> {
    let happens = async {
        match (outage, &mut target.own) {
            (Some(outage), Some(own)) => outage.carry_out(plan, own).await.map(Some),
            _ => Ok(None),
        }
    };
    tokio::try_join!(load::run(plan, clients), happens)
}

/// A replica that ended by itself is news, and its figures are worth nothing.
fn all_alive(target: &mut Target, happened: Option<&Happened>) -> anyhow::Result<()> {
    let Some(own) = &mut target.own else { return Ok(()) };
    let killed = |replica| happened.is_some_and(|it| it.dead.iter().any(|(dead, _)| *dead == replica));
    for replica in (0..own.replicas()).filter(|replica| !killed(*replica)) {
        if let Some(status) = own.exited(replica)? {
            bail!("replica {replica} has ended ({status})\n{}", own.last_lines(replica));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        bench: BenchArgs,
    }

    fn outage(args: &[&str]) -> Result<Option<(Victims, u64)>, String> {
        let args = Program::parse_from([&["bench", "--duration", "9"], args].concat()).bench;
        let outage = args.outage().map_err(|error| error.to_string())?;
        Ok(outage.map(|of| (of.victims, of.at.as_secs())))
    }

    #[test]
    fn only_what_a_network_survives_is_killed() {
        assert_eq!(outage(&[]), Ok(None));
        assert_eq!(outage(&["--kill-primary-at", "2"]), Ok(Some((Victims::Primary, 2))));
        assert_eq!(outage(&["--kill", "1"]), Ok(Some((Victims::Backups(1), 3))));
        let two_of_seven = outage(&["--replicas", "7", "--kill", "2", "--kill-at", "1"]);
        assert_eq!(two_of_seven, Ok(Some((Victims::Backups(2), 1))));
        assert!(outage(&["--kill", "2"]).unwrap_err().contains("--replicas 7"));
        assert!(outage(&["--replicas", "3", "--kill-primary-at", "1"]).unwrap_err().contains("--replicas 4"));
        assert!(outage(&["--kill-primary-at", "9"]).unwrap_err().contains("9 s"));
    }
}
