//! `ledgermq node`: runs a node in the foreground until SIGTERM or SIGINT.

use std::io::IsTerminal as _;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use tracing_subscriber::EnvFilter;

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
}

pub(super) fn run(args: &NodeArgs) -> anyhow::Result<()> {
    let config = Config::load(&args.config)?;
    start_logging(&config.log)?;
    stop_on_panic();
    crate::node::run(config)
}

fn start_logging(settings: &LogConfig) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&settings.level)
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
