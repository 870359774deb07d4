//! `ledgermq init`: the files of a new network.
//!
//! ```text
//! DIR/genesis.json        public: what everyone needs to verify, and to join
//! DIR/admin.key           signs registrations; keep it off the nodes
//! DIR/swarm.key           all nodes have it; keeps strangers from connecting
//! DIR/node-0/node.toml    settings of replica 0
//! DIR/node-0/node.key     its key; only its owner may read it
//! DIR/node-1/…
//! ```
//!
//! All is written to a new directory beside DIR, which is renamed when it is whole: a network that
//! was written by half never looks like one.

use std::fs;
use std::net::{IpAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use clap::Args;
use serde::Serialize;

use super::arguments::wrong;
use super::output;
use crate::clock::{Clock as _, SystemClock};
use crate::config::write_genesis;
use crate::crypto::{SecretKey, random_bytes};
use crate::keyfile;
use crate::ledger::genesis::GENESIS_VERSION;
use crate::ledger::{Genesis, ReplicaSet};
use crate::types::{NetworkId, NodeId};

/// Ports from one node's first to the next node's first, with `--base-port`.
const PORTS_PER_NODE: u16 = 10;

/// Where free ports are looked for: below those that systems give to outgoing connections, so that
/// no connection takes the port of a node that has yet to start.
const TRY_PORTS: TryPorts = TryPorts { first: 12_000, count: 20_000 };

struct TryPorts {
    first: u16,
    count: u16,
}

/// Make a new network: genesis document, admin key, and a directory for each replica
///
/// Everything listens on loopback unless --host says otherwise. Start each replica with
/// `ledgermq node --config DIR/node-0/node.toml`. With n replicas, (n-1)/3 may be faulty: 4 is the
/// smallest number that survives one.
#[derive(Debug, Clone, Args)]
pub struct InitArgs {
    /// How many replicas, 1 to 100
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub replicas: u16,
    /// Directory to make; must not exist, or be empty
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// First port: node i takes P+10i for MQTT, P+10i+1 for HTTP, P+10i+2 for other nodes [default:
    /// ports that are free now]
    #[arg(long, value_name = "P", value_parser = clap::value_parser!(u16).range(1..))]
    pub base_port: Option<u16>,
    /// Address that all nodes listen on and reach each other under
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    pub host: IpAddr,
    /// A name for people, 1 to 64 bytes
    #[arg(long, value_name = "NAME", default_value = "local")]
    pub name: String,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Ports of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct NodePorts {
    /// MQTT.
    pub mqtt: u16,
    /// HTTP.
    pub api: u16,
    /// Other nodes.
    pub p2p: u16,
}

/// One replica of a new network.
#[derive(Debug, Clone, Serialize)]
pub struct InitializedNode {
    /// Its id.
    pub node: NodeId,
    /// Its settings.
    pub config: PathBuf,
    /// The address that it listens on, and is reached under.
    pub host: IpAddr,
    /// Its ports.
    #[serde(flatten)]
    pub ports: NodePorts,
}

/// A new network.
#[derive(Debug, Clone, Serialize)]
pub struct Initialized {
    /// Its id.
    pub network: NetworkId,
    /// The genesis document.
    pub genesis: PathBuf,
    /// The admin's key.
    pub admin_key: PathBuf,
    /// Its replicas: node i is replica i.
    pub nodes: Vec<InitializedNode>,
}

pub(super) fn run(args: &InitArgs) -> anyhow::Result<()> {
    let made = init(args)?;
    if args.json {
        return output::json(&made);
    }
    let dir = args.dir.display();
    let n = made.nodes.len();
    output::line(format_args!("Made network {}", made.network))?;
    output::line(format_args!(
        "  {}, {}",
        output::counted(n as u64, "replica"),
        output::may_be_faulty((n - 1) / 3)
    ))?;
    output::line(format_args!("  {dir}/genesis.json   give it to everyone: auditors verify with it alone"))?;
    output::line(format_args!("  {dir}/admin.key      registers clients; keep it away from the nodes"))?;
    output::line(format_args!("  {dir}/swarm.key      goes to every node, and to nobody else"))?;
    for (at, node) in made.nodes.iter().enumerate() {
        let NodePorts { mqtt, api, p2p } = node.ports;
        output::line(format_args!(
            "  {dir}/node-{at}/        replica {at}: MQTT {mqtt}, HTTP {api}, other nodes {p2p}"
        ))?;
    }
    output::line("Start each replica, then register a client:")?;
    output::line(format_args!("  ledgermq node --config {dir}/node-0/node.toml"))?;
    output::line("  ledgermq client new devices/iot --key iot.key")?;
    output::line(format_args!("  ledgermq client register devices/iot --key iot.key --network {dir}"))
}

/// Makes a network's files.
///
/// # Errors
/// The directory is in use or cannot be written, ports do not fit, or there is no randomness.
pub fn init(args: &InitArgs) -> anyhow::Result<Initialized> {
    init_on(args, &vec![args.host; usize::from(args.replicas)])
}

/// The same with an address for each replica, instead of one for all. They may be addresses of other
/// machines if the ports are given.
pub(super) fn init_on(args: &InitArgs, hosts: &[IpAddr]) -> anyhow::Result<Initialized> {
    ensure!(hosts.len() == usize::from(args.replicas), "each replica needs an address, and no other");
    if !(1..=64).contains(&args.name.len()) {
        return Err(wrong(format_args!("--name has {} bytes, and must have 1 to 64", args.name.len())));
    }
    let ports = match args.base_port {
        Some(base) => counted_ports(base, args.replicas)?,
        None => free_ports(args.host, args.replicas)?,
    };
    ensure_free(&args.dir)?;
    let parent = match args.dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    let draft = tempfile::Builder::new()
        .prefix(".ledgermq-init-")
        .tempdir_in(parent)
        .with_context(|| format!("cannot write in {}", parent.display()))?;
    let (network, keys) = write_network(args, draft.path(), hosts, &ports)?;
    let whole = draft.keep();
    fs::rename(&whole, &args.dir).with_context(|| format!("cannot make {}", args.dir.display()))?;
    let nodes = keys.iter().zip(ports).enumerate().map(|(at, (key, ports))| InitializedNode {
        node: key.node_id(),
        config: args.dir.join(format!("node-{at}")).join("node.toml"),
        host: hosts[at],
        ports,
    });
    Ok(Initialized {
        network,
        genesis: args.dir.join("genesis.json"),
        admin_key: args.dir.join("admin.key"),
        nodes: nodes.collect(),
    })
}

fn ensure_free(dir: &Path) -> anyhow::Result<()> {
    match fs::read_dir(dir) {
        Ok(mut entries) => {
            ensure!(entries.next().is_none(), "{} is not empty: choose another --dir", dir.display());
            Ok(())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot use {}", dir.display())),
    }
}

fn counted_ports(base: u16, replicas: u16) -> anyhow::Result<Vec<NodePorts>> {
    let Some(_) = (replicas * PORTS_PER_NODE).checked_add(base) else {
        let last = u16::MAX - replicas * PORTS_PER_NODE;
        return Err(wrong(format_args!(
            "--base-port {base} leaves no room for {replicas} replicas below port 65536; the highest that does is {last}"
        )));
    };
    let first = |at| base + at * PORTS_PER_NODE;
    Ok((0..replicas)
        .map(|at| NodePorts { mqtt: first(at), api: first(at) + 1, p2p: first(at) + 2 })
        .collect())
}

/// Ports that are free now: a row of tries from a random place on. All are held until the last is
/// found, so none is given twice.
fn free_ports(host: IpAddr, replicas: u16) -> anyhow::Result<Vec<NodePorts>> {
    let TryPorts { first, count } = TRY_PORTS;
    let start = u16::from_be_bytes(random_bytes()?);
    let tries = (0..count).map(|step| first + (start % count + step) % count);
    let free = tries.filter_map(|port| TcpListener::bind((host, port)).ok().map(|held| (port, held)));
    let held: Vec<(u16, TcpListener)> = free.take(3 * usize::from(replicas)).collect();
    ensure!(
        held.len() == 3 * usize::from(replicas),
        "too few ports are free on {host}: is it an address of this machine?"
    );
    let nodes = held.chunks_exact(3);
    Ok(nodes.map(|of| NodePorts { mqtt: of[0].0, api: of[1].0, p2p: of[2].0 }).collect())
}

/// Writes all files below `dir`; gives the network's id and the nodes' keys, ascending by id.
fn write_network(
    args: &InitArgs,
    dir: &Path,
    hosts: &[IpAddr],
    ports: &[NodePorts],
) -> anyhow::Result<(NetworkId, Vec<SecretKey>)> {
    let mut keys: Vec<SecretKey> = ports.iter().map(|_| SecretKey::generate()).collect::<Result<_, _>>()?;
    // Replica numbers follow the ids, so that node-i is replica i.
    keys.sort_by_key(SecretKey::node_id);
    let admin = keyfile::create(&dir.join("admin.key"))?;
    keyfile::create_swarm_key(&dir.join("swarm.key"))?;
    let genesis = Genesis {
        version: GENESIS_VERSION,
        name: args.name.clone(),
        created: SystemClock::new().now(),
        replicas: ReplicaSet::new(keys.iter().map(SecretKey::node_id).collect())?,
        admins: vec![admin.public()],
    };
    write_genesis(&dir.join("genesis.json"), &genesis)?;
    for (at, key) in keys.iter().enumerate() {
        let node_dir = dir.join(format!("node-{at}"));
        fs::create_dir(&node_dir).with_context(|| format!("cannot make {}", node_dir.display()))?;
        keyfile::write(&node_dir.join("node.key"), key)?;
        let path = node_dir.join("node.toml");
        fs::write(&path, node_toml(at, hosts, ports))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok((genesis.network_id(), keys))
}

fn node_toml(at: usize, hosts: &[IpAddr], ports: &[NodePorts]) -> String {
    let NodePorts { mqtt, api, .. } = ports[at];
    let socket = |port| std::net::SocketAddr::new(hosts[at], port);
    let p2p = |of: usize| {
        let family = if hosts[of].is_ipv4() { "ip4" } else { "ip6" };
        format!("/{family}/{}/tcp/{}", hosts[of], ports[of].p2p)
    };
    let others = (0..ports.len()).filter(|other| *other != at);
    let others: Vec<String> = others.map(|other| format!("    \"{}\",\n", p2p(other))).collect();
    let bootstrap = if others.is_empty() { String::new() } else { format!("\n{}", others.concat()) };
    format!(
        "# Settings of replica {at}. What is not named here has the default of docs/SETTINGS.md;\n\
         # LEDGERMQ_SECTION__SETTING in the environment is stronger. Paths are relative to this file.\n\
         data_dir = \"data\"\n\
         genesis = \"../genesis.json\"\n\
         node_key = \"node.key\"\n\
         \n\
         [mqtt]\n\
         # Gateways connect here.\n\
         listen = \"{}\"\n\
         \n\
         [api]\n\
         # Health, metrics, records, proof bundles; registrations that an admin has signed.\n\
         listen = \"{}\"\n\
         \n\
         [p2p]\n\
         # Other nodes connect here, and this node to them.\n\
         listen = [\"{}\"]\n\
         bootstrap = [{bootstrap}]\n\
         swarm_key = \"../swarm.key\"\n",
        socket(mqtt),
        socket(api),
        p2p(at),
    )
}
