//! The command line: one file for each subcommand.
//!
//! What a person reads goes to standard output as text, what a script reads as one JSON value
//! (`--json`). Errors go to standard error and say what to do; the exit code is 0 only on success,
//! 2 for wrong arguments, 1 for all else; `status`, `audit`, `verify` and `evidence verify` have codes of their own.
//! Progress bars are drawn on a terminal only.

mod allocator;
mod arguments;
mod audit;
mod bench;
mod client;
mod demo;
mod evidence;
mod http;
mod init;
mod interrupt;
pub mod latency;
pub mod local;
mod network_dir;
mod node;
mod output;
mod policy;
mod publish;
pub mod readings;
mod status;
mod status_text;
mod verdict;
mod verify;
mod waiting;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use arguments::WRONG_ARGUMENTS;
pub use init::{InitArgs, Initialized, InitializedNode, NodePorts, init};

/// Shown below the list of commands.
const FIRST_STEPS: &str = "\
First steps:
  ledgermq demo                                 all of it, in a minute, here
  ledgermq init --replicas 4 --dir net          a network of your own
  ledgermq node --config net/node-0/node.toml   one of its nodes; start all four
  ledgermq client new devices/iot --key iot.key
  ledgermq client register devices/iot --key iot.key --network net
  ledgermq status --network net                 whether it advances, and why not

Each command explains itself: ledgermq COMMAND --help";

/// Tamper-evident MQTT telemetry: signed readings, ordered by PBFT into a ledger that anyone can
/// check offline.
#[derive(Debug, Parser)]
#[command(name = "ledgermq", version, max_term_width = 80, arg_required_else_help = true)]
#[command(after_help = FIRST_STEPS)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::DemoArgs),
    Bench(bench::BenchArgs),
    Init(InitArgs),
    Node(node::NodeArgs),
    #[command(subcommand)]
    Client(client::ClientCommand),
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    Publish(publish::PublishArgs),
    Status(status::StatusArgs),
    Verify(verify::VerifyArgs),
    Audit(audit::AuditArgs),
    #[command(subcommand)]
    Evidence(evidence::EvidenceCommand),
}

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = Cli::try_parse().unwrap_or_else(|error| arguments::plainly(error).exit());
    match run(cli.command) {
        Ok(code) => code,
        Err(error) => {
            // Whoever reads our output has seen enough (`ledgermq … | head`): nothing to complain of.
            if !output::is_closed_pipe(&error) {
                eprintln!("error: {}", told(&error));
            }
            if arguments::are_wrong(&error) { WRONG_ARGUMENTS.into() } else { ExitCode::FAILURE }
        }
    }
}

/// An error and its causes, each told once: some messages have their cause in them already.
/// Lines stay lines, of a replica's log for example; nothing else in it steers the terminal.
fn told(error: &anyhow::Error) -> String {
    let told = error.chain().map(ToString::to_string).fold(String::new(), |told, cause| {
        if told.is_empty() {
            cause
        } else if cause.is_empty() || has(&told, &cause) {
            told
        } else {
            format!("{told}: {cause}")
        }
    });
    told.split('\n').map(output::plain).collect::<Vec<_>>().join("\n")
}

/// Whether a message ends with a cause, or has it as a part of its own.
fn has(told: &str, cause: &str) -> bool {
    told.match_indices(cause).any(|(at, _)| {
        let (before, after) = (&told[..at], &told[at + cause.len()..]);
        (before.is_empty() || before.ends_with([' ', '(']))
            && (after.is_empty() || after.starts_with([';', ':', ',', ')']))
    })
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Status(args) => return status::run(&args),
        Command::Audit(args) => return audit::run(&args),
        Command::Verify(args) => return verify::run(&args),
        Command::Evidence(command) => return evidence::run(command),
        Command::Demo(args) => demo::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Init(args) => init::run(&args),
        Command::Node(args) => node::run(&args),
        Command::Client(command) => client::run(command),
        Command::Policy(command) => policy::run(command),
        Command::Publish(args) => publish::run(&args),
    }
    .map(|()| ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::told;

    #[test]
    fn a_cause_is_told_once() {
        let known = anyhow!("no such file").context("cannot read a.key: no such file").context("no key");
        assert_eq!(told(&known), "no key: cannot read a.key: no such file");
        let within = anyhow!("no such file").context("cannot read a.key: no such file; check the path");
        assert_eq!(told(&within), "cannot read a.key: no such file; check the path");
        // A cause whose words stand there by chance is told.
        let chance = anyhow!("full").context("the disk has a full name: write failed");
        assert_eq!(told(&chance), "the disk has a full name: write failed: full");
        let chance = anyhow!("").context("it failed");
        assert_eq!(told(&chance), "it failed");
        assert_eq!(told(&anyhow!("a\u{1b}[2J\nb\u{7}")), "a?[2J\nb?");
        assert_eq!(told(&anyhow!("denied").context("cannot write")), "cannot write: denied");
    }
}
