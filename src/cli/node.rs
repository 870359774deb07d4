//! `ledgermq node`: runs a node in the foreground until SIGTERM or SIGINT.

use std::io::IsTerminal as _;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use rustix::process::{Signal, getpid, kill_process};
use tracing_subscriber::EnvFilter;

use super::{allocator, output};
use crate::config::{Config, LogConfig, LogFormat};

/// Run a node: MQTT for gateways, HTTP for people and tools, PBFT with the other nodes
///
/// Runs in the foreground and logs to standard error, until SIGTERM or SIGINT (exit code 0) or
/// until it cannot keep a promise any more (exit code 1, and the reason). Start it again and it goes
/// on where its log ends.
///
/// Every setting can also be an environment variable: LEDGERMQ_MQTT__LISTEN=0.0.0.0:1883.
#[derive(Debug, Args)]
pub(super) struct NodeArgs {
    /// The settings, as `ledgermq init` writes them; docs/SETTINGS.md has all of them.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Only read the settings, the genesis document, the keys and of which network the log in the data
    /// directory is, and say whether a node could start with them (exit code 0, or 1 and what is wrong)
    #[arg(long)]
    check: bool,
    /// Stop when standard input ends, too: for a program that runs nodes and must not leave them
    /// behind, however it ends
    #[arg(long)]
    stop_on_eof: bool,
}

pub(super) fn run(args: &NodeArgs) -> anyhow::Result<()> {
    let config = Config::load(&args.config)?;
    if args.check {
        let checked = crate::node::check(&config)?;
        return output::line(checked);
    }
    let settled = allocator::settle();
    start_logging(&config.log)?;
    if let Err(error) = settled {
        tracing::debug!(%error, "the allocator keeps its usual settings");
    }
    stop_on_panic();
    if args.stop_on_eof {
        std::thread::Builder::new().name("stdin".into()).spawn(stop_on_eof)?;
    }
    crate::node::run(config)
}

/// Libraries that tell what is no operator's concern: a server that starts, a message that gossip had already,
/// a port scan that is no HTTP. `log.level` can name them, and is then stronger.
const QUIET: &str = "actix_server=warn,actix_http=off,libp2p_gossipsub=error,libp2p_swarm=error";

fn start_logging(settings: &LogConfig) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(format!("{QUIET},{}", settings.level))
        .with_context(|| format!("log.level: {:?} is no level and no list of directives", settings.level))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match settings.format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

/// A panic anywhere ends the process: an actor that died alone would leave a node that looks alive.
/// What was promised is in the log.
fn stop_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        std::process::abort();
    }));
}

/// Reads standard input to its end, then asks this process to stop as anyone would.
fn stop_on_eof() {
    // An error is an end, too: nothing can come any more.
    let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
    if let Err(error) = kill_process(getpid(), Signal::TERM) {
        tracing::error!(%error, "standard input has ended, but the signal to stop cannot be sent");
    }
}
