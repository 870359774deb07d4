//! `ledgermq client`: keys of clients, and their registration on the ledger.
//!
//! Operations are made and signed here, with the admin's key, and go to a node as they are: the key
//! leaves no machine.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use clap::{ArgGroup, Args, Subcommand};
use serde_json::json;

use super::arguments::wrong;
use super::http::{ListArgs, NetworkArgs, Nodes, Refused, apis_below};
use super::network_dir;
use super::output;
use super::waiting;
use crate::api::{ClientPage, ClientView, Submitted};
use crate::clock::{Clock as _, SystemClock};
use crate::config::read_genesis;
use crate::device::token::issue;
use crate::keyfile;
use crate::ledger::operation::MAX_REASON_BYTES;
use crate::ledger::{AdminAction, AdminOperation, ClientSettings, Rejection};
use crate::types::{ClientId, Height, MessageSeq, PublicKey};

/// How long a token waits to hear whether its client may connect.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);

/// The most clients that are listed: far more than a network has.
const MAX_LISTED: usize = 1_000_000;

/// In the width of a terminal.
const REVOKE_USAGE: &str = "ledgermq client revoke [OPTIONS] --last-seq <SEQ> --reason <TEXT>
                              <--network <DIR>|--api <URL>> <CLIENT>";

/// In the width of a terminal.
const TOKEN_USAGE: &str = "ledgermq client token [OPTIONS] --key <FILE>
                             <--genesis <FILE>|--network <DIR>> <CLIENT>";

/// Shown below the options of `token`.
const TOKEN_EXAMPLE: &str = "\
Example:
  mosquitto_sub -h 127.0.0.1 -p 1883 -i devices/iot -u me \\
      -P \"$(ledgermq client token devices/iot --key iot.key --network net)\" \\
      -t 'devices/iot/#' -F '%t %x'";

/// Clients (gateways): make their keys, register and revoke them
#[derive(Debug, Subcommand)]
pub(super) enum ClientCommand {
    New(NewArgs),
    Register(RegisterArgs),
    /// List the clients that the ledger has
    List(ListArgs),
    Revoke(RevokeArgs),
    Token(TokenArgs),
}

/// Make an identity key for a client
///
/// The key stays in the file, which belongs on the gateway. Its public half is what is registered.
#[derive(Debug, Args)]
pub(super) struct NewArgs {
    /// The client's id: group/name, also its MQTT client id and topic prefix
    client: ClientId,
    /// File to write the secret key to; must not exist
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Register a client on the ledger
///
/// From the block that it prints on, what the client signs can be written. A client that is registered
/// with this key and these settings already stays as it is, and the exit code is 0.
///
/// Example: ledgermq client register devices/iot --key iot.key --network net
#[derive(Debug, Args)]
pub(super) struct RegisterArgs {
    /// The client's id
    client: ClientId,
    /// The client's secret key, of which only the public half is sent
    #[arg(long, value_name = "FILE", required_unless_present = "public_key", conflicts_with = "public_key")]
    key: Option<PathBuf>,
    /// The client's public key, 64 hex digits, as `client new` prints it
    #[arg(long, value_name = "HEX")]
    public_key: Option<PublicKey>,
    /// Let the client send telemetry that is signed but not encrypted
    #[arg(long)]
    plaintext: bool,
    /// Note that the client wants a proof bundle for each write; nodes of this version send none yet
    #[arg(long)]
    receipts: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Revoke a client: nothing above --last-seq is written any more, and its connections are closed
#[derive(Debug, Args)]
#[command(override_usage = REVOKE_USAGE)]
pub(super) struct RevokeArgs {
    /// The client's id
    client: ClientId,
    /// The last seq that is still accepted; 0 for none that is not on the ledger yet
    #[arg(long, value_name = "SEQ", value_parser = clap::value_parser!(u64).range(0..=MessageSeq::MAX.0))]
    last_seq: u64,
    /// Why, for the auditor; at most 256 bytes
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    reason: String,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Print a token: the password with which a client connects by MQTT
///
/// Made of the client's key and the network's id, with no node's help. For clients of your own, and to
/// look around with others, such as mosquitto_sub, while the client itself is not connected: it has one
/// connection, and a new one takes it over. `ledgermq publish` makes its own. With --network, standard
/// error has a warning if a node says that this key is not the client's.
#[derive(Debug, Args)]
#[command(after_long_help = TOKEN_EXAMPLE, override_usage = TOKEN_USAGE)]
#[command(group = ArgGroup::new("of").required(true).multiple(true).args(["genesis", "network"]))]
pub(super) struct TokenArgs {
    /// The client's id
    client: ClientId,
    /// The client's secret key
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The genesis document of the network
    #[arg(long, value_name = "FILE")]
    genesis: Option<PathBuf>,
    /// Directory that `ledgermq init` made, whose genesis document is taken
    #[arg(long, value_name = "DIR")]
    network: Option<PathBuf>,
    /// How long it is good for; nodes take no more than their `mqtt.token_max_age_s`, an hour by default
    #[arg(long, value_name = "SECONDS", default_value_t = 3_600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    lifetime: u64,
}

/// Who signs an operation, and which node orders it
#[derive(Debug, Args)]
pub(super) struct AdminArgs {
    #[command(flatten)]
    network: NetworkArgs,
    /// The genesis document of the network
    #[arg(long, value_name = "FILE")]
    genesis: Option<PathBuf>,
    /// The admin's secret key
    #[arg(long, value_name = "FILE")]
    admin_key: Option<PathBuf>,
    /// Give up waiting when it has not become final for so long [default: wait, and tell why]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    timeout: Option<u64>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl AdminArgs {
    /// Which network it is for.
    pub(super) const fn network(&self) -> &NetworkArgs {
        &self.network
    }
}

pub(super) fn run(command: ClientCommand) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    match command {
        ClientCommand::New(args) => new(&args),
        ClientCommand::Register(args) => runtime.block_on(register(args)),
        ClientCommand::List(args) => runtime.block_on(list(&args)),
        ClientCommand::Revoke(args) => runtime.block_on(revoke(args)),
        ClientCommand::Token(args) => runtime.block_on(token(&args)),
    }
}

/// Why a client is revoked, as long as the ledger takes it.
fn reason(text: &str) -> Result<String, String> {
    match text.len() {
        ..=MAX_REASON_BYTES => Ok(text.to_owned()),
        bytes => Err(format!("{bytes} bytes, at most {MAX_REASON_BYTES} are taken")),
    }
}

fn new(args: &NewArgs) -> anyhow::Result<()> {
    let public = keyfile::create(&args.key)?.public();
    if args.json {
        return output::json(&json!({ "client": args.client, "public_key": public, "key": args.key }));
    }
    output::line(format_args!("Made the key of {}: {}", args.client, args.key.display()))?;
    output::line(format_args!("  public key {public}"))?;
    output::line("Register it:")?;
    output::line(format_args!(
        "  ledgermq client register {} --public-key {public} --network DIR",
        args.client
    ))
}

async fn token(args: &TokenArgs) -> anyhow::Result<()> {
    let path = network_dir::file(args.genesis.as_ref(), args.network.as_ref(), "--genesis", "genesis.json")?;
    let network = read_genesis(&path)?.network_id();
    let key = keyfile::read(&args.key)?;
    let token = issue(&key, &network, &args.client, SystemClock::new().now(), args.lifetime)?;
    if let Some(dir) = &args.network
        && let Ok(Some(doubt)) =
            tokio::time::timeout(ANSWERS_WITHIN, doubt(dir, &args.client, key.public())).await
    {
        eprintln!("warning: no node will let {} in with this token: {doubt}", args.client);
    }
    output::line(token)
}

/// Why the nodes do not let a client in with this key; none if they do, or if no node says anything.
async fn doubt(dir: &Path, client: &ClientId, key: PublicKey) -> Option<String> {
    let nodes = Nodes::new(apis_below(dir).ok()?).ok()?;
    match nodes.get::<ClientView>(&format!("/v1/clients/{client}"), &[]).await {
        Ok(found) if found.client != *client => None,
        Ok(found) if found.revoked_after.is_some() => Some("the client is revoked".to_owned()),
        Ok(found) if found.key != key => Some(format!("it is registered with another key, {}", found.key)),
        Ok(_) => None,
        Err(error) => {
            let Refused(problem) = error.downcast_ref()?;
            let is_unknown = problem.status == 404;
            is_unknown.then(|| "it is not registered; `ledgermq client register` does it".to_owned())
        }
    }
}

async fn register(args: RegisterArgs) -> anyhow::Result<()> {
    let key = match (args.public_key, &args.key) {
        (Some(key), _) => key,
        (None, Some(path)) => keyfile::read(path)?.public(),
        (None, None) => return Err(wrong("give --key FILE or --public-key HEX")),
    };
    let settings = ClientSettings { plaintext: args.plaintext, receipts: args.receipts };
    let client = args.client;
    let action = AdminAction::RegisterClient { client: client.clone(), key, settings };
    let refused = match submit(&args.admin, action).await {
        Ok(Submitted { height, operation }) => {
            let done = format!("Registered {client} with key {key}");
            return told(&args.admin, &done, height, operation, false);
        }
        Err(refused) => refused,
    };
    // An admin's operation, and the client is there: then it is fine if it is there as it was to be.
    let already = Rejection::AlreadyRegistered.to_string();
    if refused.downcast_ref().is_none_or(|Refused(problem)| problem.detail != already) {
        return Err(refused);
    }
    let found = args.admin.network.connect()?.get::<ClientView>(&format!("/v1/clients/{client}"), &[]).await;
    let Ok(found) = found else { return Err(refused) };
    if found.client != client || found.revoked_after.is_some() {
        return Err(refused);
    }
    if found.key != key {
        bail!(
            "{client} is registered with another key, {}: give the key file that belongs to it, or register under \
             another id; `ledgermq client revoke` ends the old key's id for good",
            found.key
        );
    }
    if found.settings != settings {
        bail!(
            "{client} is registered with this key and other settings (plaintext: {}, receipts: {}), which stay as they \
             are; for others register another id",
            found.settings.plaintext,
            found.settings.receipts
        );
    }
    let done = format!("{client} is registered with this key already");
    told(&args.admin, &done, found.registered_height, found.registered_operation, true)
}

/// Says where an operation is on the ledger; `already` if it was there before.
pub(super) fn told(
    args: &AdminArgs,
    done: &str,
    height: Height,
    operation: u32,
    already: bool,
) -> anyhow::Result<()> {
    if args.json {
        return output::json(&json!({ "height": height, "operation": operation, "already": already }));
    }
    output::line(format_args!("{done}: block {height}, operation {operation}"))
}

async fn revoke(args: RevokeArgs) -> anyhow::Result<()> {
    let action = AdminAction::RevokeClient {
        client: args.client.clone(),
        last_seq: MessageSeq(args.last_seq),
        reason: args.reason,
    };
    let Submitted { height, operation } = submit(&args.admin, action).await?;
    told(
        &args.admin,
        &format!("Revoked {} after seq {}", args.client, args.last_seq),
        height,
        operation,
        false,
    )
}

/// Signs an action and has a node order it; says why it waits while it does.
pub(super) async fn submit(args: &AdminArgs, action: AdminAction) -> anyhow::Result<Submitted> {
    let network = &args.network;
    let genesis = read_genesis(&network.file(args.genesis.as_ref(), "--genesis", "genesis.json")?)?;
    let admin = keyfile::read(&network.file(args.admin_key.as_ref(), "--admin-key", "admin.key")?)?;
    if let AdminAction::RegisterClient { key, .. } = &action
        && (genesis.admins.contains(key)
            || genesis.replicas.members().iter().any(|node| PublicKey::from(*node) == *key))
    {
        bail!(
            "{key} is the key of an admin or a node of this network: make the client one of its own (`client new`)"
        );
    }
    // The clock gives numbers that increase from one run to the next, on whichever machine.
    let sequence = SystemClock::new().now().0;
    let operation = AdminOperation::sign(genesis.network_id(), &admin, sequence, action);
    // What no node would take is better said before it is sent.
    operation.verify(&genesis.network_id())?;
    let nodes = network.connect()?;
    let patience = async {
        match args.timeout {
            Some(seconds) => {
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                seconds
            }
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        submitted = nodes.post("/v1/operations", &operation) => submitted,
        never = waiting::tell(network.apis()?) => match never {},
        seconds = patience => Err(anyhow!(
            "it has not become final for {seconds} s: {}; it may still become so: the same command again tells",
            waiting::why(network.apis()?).await
        )),
    }
}

async fn list(args: &ListArgs) -> anyhow::Result<()> {
    let nodes = args.network.connect()?;
    let mut clients: Vec<ClientView> = Vec::new();
    let mut query = Vec::new();
    loop {
        let page: ClientPage = nodes.get("/v1/clients", &query).await?;
        let is_empty = page.clients.is_empty();
        clients.extend(page.clients);
        match page.next {
            Some(_) if is_empty || clients.len() > MAX_LISTED => {
                bail!("the node's list has no end: it is faulty, or no node; ask another one with --api");
            }
            Some(after) => query = vec![("after", after.to_string())],
            None => break,
        }
    }
    if args.json {
        return output::json(&clients);
    }
    if clients.is_empty() {
        return output::line("No clients yet: `ledgermq client register` adds one");
    }
    let width = clients.iter().map(|client| client.client.as_str().len()).max().unwrap_or_default();
    for client in &clients {
        let state = match client.revoked_after {
            Some(last) => format!("revoked after seq {last}"),
            None => "registered".into(),
        };
        output::line(format_args!(
            "{:width$}  key {}…  block {:>6}  highest seq {:>10}  {state}",
            client.client.as_str(),
            client.key.short(),
            client.registered_height,
            client.highest_seq,
        ))?;
    }
    Ok(())
}
