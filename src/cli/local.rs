//! A network of real node processes on this machine: what `ledgermq demo` shows, and what the
//! end-to-end tests break.
//!
//! ```text
//! LocalNetwork ─ init ─▶ DIR/genesis.json, node-0/node.toml …      (see `ledgermq init`)
//!              ─ spawn ▶ ledgermq node --config DIR/node-0/node.toml   log in DIR/node-0/node.log
//!              ─ HTTP ─▶ /readyz, /v1/status, /v1/records, bundles, POST /v1/operations
//! ```
//!
//! Every replica is a process of its own with its own key, ports and disk: one is stopped with
//! SIGTERM, killed with SIGKILL and started again without the others knowing more than a real
//! network would tell them. All of them end with this value, whichever way it ends: when it is
//! dropped they are killed, and when this process dies without dropping anything, the pipe on their
//! standard input closes and they stop by themselves.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail, ensure};
use futures::future::{join_all, try_join_all};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use url::Url;

use super::http::Nodes;
use super::init::{InitArgs, Initialized, InitializedNode, init, init_on};
use crate::api::{RecordJson, RecordsJson, Status, Submitted};
use crate::clock::{Clock as _, SystemClock};
use crate::config::{Config, read_genesis};
use crate::crypto::SecretKey;
use crate::gateway::GatewayOptions;
use crate::history::Location;
use crate::keyfile;
use crate::ledger::{AdminAction, AdminOperation, ClientSettings, Genesis};
use crate::types::{ClientId, Hash, Height, PublicKey};

/// How long a replica may take to be ready, connected to a quorum, if the options say nothing else.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// How long a replica may take to stop after SIGTERM, before it is killed.
const STOPPED_WITHIN: Duration = Duration::from_secs(20);

/// How often readiness is asked for.
const POLL: Duration = Duration::from_millis(50);

/// How many lines of a replica's log an error shows.
const LAST_LINES: usize = 12;

/// First port of replicas that have places of their own.
const PLACES_FIRST_PORT: u16 = 7_000;

/// Records in a page, the most that a node gives by default.
const PAGE: usize = 1_000;

/// What a local network is made of.
#[derive(Debug, Clone)]
pub struct LocalNetworkOptions {
    /// Directory for everything; must not exist, or be empty.
    pub dir: PathBuf,
    /// How many replicas.
    pub replicas: u16,
    /// The `ledgermq` program.
    pub program: PathBuf,
    /// Settings that all replicas have besides those in their files, as environment variables:
    /// `("LEDGERMQ_LOG__LEVEL", "debug")`.
    pub environment: Vec<(String, String)>,
    /// Where each replica lives; empty if all of them live on loopback.
    pub places: Vec<Place>,
    /// How long a replica may take to be ready, or to reach a block that the others have.
    pub ready_within: Duration,
}

/// Where a replica lives, when not on loopback: a network namespace, for example.
#[derive(Debug, Clone)]
pub struct Place {
    /// The address that it listens on; this process must reach it.
    pub host: IpAddr,
    /// The command that runs the program there and becomes it: `ip netns exec NAME`.
    pub launcher: Vec<String>,
}

impl LocalNetworkOptions {
    /// A network in `dir` that runs the program that asks for it.
    ///
    /// # Errors
    /// The system does not say where that program is.
    pub fn new(dir: impl Into<PathBuf>, replicas: u16) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot tell where this program is")?;
        Ok(Self {
            dir: dir.into(),
            replicas,
            program,
            environment: Vec::new(),
            places: Vec::new(),
            ready_within: READY_WITHIN,
        })
    }

    /// Runs another program, as tests must.
    #[must_use]
    pub fn program(mut self, program: impl Into<PathBuf>) -> Self {
        self.program = program.into();
        self
    }

    /// Sets an environment variable of all replicas, such as `LEDGERMQ_LOG__LEVEL`.
    #[must_use]
    pub fn setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Puts each replica in a place of its own, one for each.
    #[must_use]
    pub fn places(mut self, places: Vec<Place>) -> Self {
        self.places = places;
        self
    }

    /// Another patience than a minute with replicas that get ready.
    #[must_use]
    pub fn ready_within(mut self, limit: Duration) -> Self {
        self.ready_within = limit;
        self
    }
}

/// Replicas as processes. Replica numbers are those of genesis.
#[derive(Debug)]
pub struct LocalNetwork {
    options: LocalNetworkOptions,
    files: Initialized,
    genesis: Genesis,
    apis: Vec<Nodes>,
    processes: Vec<Option<Child>>,
}

impl LocalNetwork {
    /// Makes the files of a network; starts nothing.
    ///
    /// # Errors
    /// As for `ledgermq init`.
    pub fn create(options: LocalNetworkOptions) -> anyhow::Result<Self> {
        let args = InitArgs {
            replicas: options.replicas,
            dir: options.dir.clone(),
            // Of another namespace nobody here can tell which ports are free, and all of them are.
            base_port: (!options.places.is_empty()).then_some(PLACES_FIRST_PORT),
            host: Ipv4Addr::LOCALHOST.into(),
            name: "local".to_owned(),
            json: false,
        };
        let files = if options.places.is_empty() {
            init(&args)?
        } else {
            let hosts: Vec<IpAddr> = options.places.iter().map(|place| place.host).collect();
            init_on(&args, &hosts)?
        };
        let genesis = read_genesis(&files.genesis)?;
        let apis = files.nodes.iter().map(|node| Nodes::new(vec![api_url(node)?]));
        let apis = apis.collect::<anyhow::Result<_>>()?;
        let processes = files.nodes.iter().map(|_| None).collect();
        Ok(Self { options, files, genesis, apis, processes })
    }

    /// Makes a network, starts all replicas and waits until they are ready.
    ///
    /// # Errors
    /// What kept one from being ready, with the end of its log.
    pub async fn start(options: LocalNetworkOptions) -> anyhow::Result<Self> {
        let mut network = Self::create(options)?;
        for replica in 0..network.replicas() {
            network.spawn(replica)?;
        }
        network.all_ready().await?;
        Ok(network)
    }

    /// How many replicas there are, running or not.
    pub fn replicas(&self) -> usize {
        self.files.nodes.len()
    }

    /// The genesis document: all that an auditor needs.
    pub fn genesis(&self) -> &Genesis {
        &self.genesis
    }

    /// Paths of the network's files, and each replica's id and ports.
    pub fn files(&self) -> &Initialized {
        &self.files
    }

    /// The directory of everything.
    pub fn dir(&self) -> &Path {
        &self.options.dir
    }

    /// Where a replica keeps its settings, key, data and log.
    pub fn node_dir(&self, replica: usize) -> PathBuf {
        self.options.dir.join(format!("node-{replica}"))
    }

    /// The file of a replica's history.
    ///
    /// # Errors
    /// Its settings cannot be read, or name a server.
    pub fn history(&self, replica: usize) -> anyhow::Result<PathBuf> {
        let config = Config::load(&self.files.nodes[replica].config)?;
        match Location::of_node(config.history.url.as_ref().map(|url| url.0.as_str()), &config.data_dir)? {
            Location::Sqlite(path) => Ok(path),
            Location::Postgres(_) => bail!("the history of replica {replica} is on a server"),
        }
    }

    /// What a replica has printed, over all of its lives.
    pub fn log_path(&self, replica: usize) -> PathBuf {
        self.node_dir(replica).join("node.log")
    }

    /// Starts a replica's process; does not wait for it.
    ///
    /// # Errors
    /// It runs already, or the program cannot be started.
    pub fn spawn(&mut self, replica: usize) -> anyhow::Result<()> {
        ensure!(!self.is_running(replica)?, "replica {replica} runs already");
        let path = self.log_path(replica);
        let log = File::options().create(true).append(true).open(&path);
        let log = log.with_context(|| format!("cannot write {}", path.display()))?;
        let program = &self.options.program;
        let launcher = self.options.places.get(replica).map_or(&[][..], |place| &place.launcher);
        let mut words = launcher.iter().map(OsStr::new).chain([program.as_os_str()]);
        let mut command = Command::new(words.next().context("there is no program to run")?);
        command.args(words);
        // The user's own settings are for other nodes.
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_setting(name)) {
            command.env_remove(name);
        }
        let child = command
            .args(["node", "--stop-on-eof", "--config"])
            .arg(&self.files.nodes[replica].config)
            .envs(self.options.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(log.try_clone().context("cannot share a file")?)
            .stderr(log)
            // Ctrl-C at the terminal is for the program that started the network: it decides.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot run {}", words_of(launcher, program)))?;
        self.processes[replica] = Some(child);
        Ok(())
    }

    /// Waits until a replica is ready: connected to a quorum and caught up.
    ///
    /// # Errors
    /// It has ended, with the end of its log, or it is not ready within a minute, with its reason.
    pub async fn ready(&mut self, replica: usize) -> anyhow::Result<()> {
        let clock = SystemClock::new();
        loop {
            let answer = self.apis[replica].bytes("/readyz").await;
            let Err(reason) = answer else { return Ok(()) };
            if let Some(status) = self.exited(replica)? {
                bail!("replica {replica} has ended ({status})\n{}", self.last_lines(replica));
            }
            if clock.monotonic() > self.options.ready_within {
                let within = self.options.ready_within.as_secs();
                return Err(reason.context(format!("replica {replica} is not ready within {within} s")));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until all replicas are ready.
    ///
    /// # Errors
    /// As for [`Self::ready`].
    pub async fn all_ready(&mut self) -> anyhow::Result<()> {
        for replica in 0..self.replicas() {
            self.ready(replica).await?;
        }
        Ok(())
    }

    /// Whether a replica's process runs.
    ///
    /// # Errors
    /// The system does not say.
    pub fn is_running(&mut self, replica: usize) -> anyhow::Result<bool> {
        let Some(child) = &mut self.processes[replica] else { return Ok(false) };
        Ok(child.try_wait().context("cannot look at a process")?.is_none())
    }

    /// How a replica's process ended; none while it runs, or if it was never started.
    ///
    /// # Errors
    /// The system does not say.
    pub fn exited(&mut self, replica: usize) -> anyhow::Result<Option<ExitStatus>> {
        let Some(child) = &mut self.processes[replica] else { return Ok(None) };
        child.try_wait().context("cannot look at a process")
    }

    /// Stops a replica with SIGTERM and waits for its end; its exit code is 0 if it stopped in order.
    ///
    /// # Errors
    /// It does not run, or has not ended within 20 s and was killed.
    pub async fn stop(&mut self, replica: usize) -> anyhow::Result<ExitStatus> {
        self.terminate(replica)?;
        self.ended(replica).await
    }

    /// Sends SIGTERM to all replicas that run, and waits for their end.
    ///
    /// # Errors
    /// One of them did not stop in order.
    pub async fn stop_all(&mut self) -> anyhow::Result<()> {
        let mut stopping = Vec::new();
        for replica in 0..self.replicas() {
            if self.is_running(replica)? {
                self.terminate(replica)?;
                stopping.push(replica);
            }
        }
        for replica in stopping {
            let status = self.ended(replica).await?;
            ensure!(status.success(), "replica {replica} ended with {status}\n{}", self.last_lines(replica));
        }
        Ok(())
    }

    /// Kills a replica with SIGKILL, as a power cut would, and waits for its end.
    ///
    /// # Errors
    /// It does not run.
    pub async fn kill(&mut self, replica: usize) -> anyhow::Result<()> {
        self.child(replica)?.kill().await.with_context(|| format!("cannot kill replica {replica}"))
    }

    /// Kills all replicas that run, as a power cut of the whole house would, and waits for their end.
    ///
    /// # Errors
    /// The system does not do it.
    pub async fn kill_all(&mut self) -> anyhow::Result<()> {
        let running = self.running()?;
        for replica in &running {
            self.child(*replica)?.start_kill().with_context(|| format!("cannot kill replica {replica}"))?;
        }
        for replica in running {
            self.kill(replica).await?;
        }
        Ok(())
    }

    /// The process id of a replica; none if it does not run.
    pub fn pid(&self, replica: usize) -> Option<u32> {
        self.processes[replica].as_ref()?.id()
    }

    fn child(&mut self, replica: usize) -> anyhow::Result<&mut Child> {
        self.processes[replica].as_mut().with_context(|| format!("replica {replica} was never started"))
    }

    fn terminate(&mut self, replica: usize) -> anyhow::Result<()> {
        let pid = self.child(replica)?.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        let pid = pid.with_context(|| format!("replica {replica} does not run"))?;
        kill_process(pid, Signal::TERM).with_context(|| format!("cannot signal replica {replica}"))
    }

    async fn ended(&mut self, replica: usize) -> anyhow::Result<ExitStatus> {
        let child = self.child(replica)?;
        // `wait` would close the child's standard input, which is another way to stop it.
        let pipe = child.stdin.take();
        let ended = tokio::time::timeout(STOPPED_WITHIN, child.wait()).await;
        drop(pipe);
        match ended {
            Ok(status) => status.context("cannot wait for a process"),
            Err(_) => {
                self.kill(replica).await?;
                bail!("replica {replica} did not stop within {} s", STOPPED_WITHIN.as_secs())
            }
        }
    }

    /// The last lines that a replica has printed.
    pub fn last_lines(&self, replica: usize) -> String {
        let path = self.log_path(replica);
        let Ok(text) = fs::read(&path) else { return format!("({} cannot be read)", path.display()) };
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
    }

    /// The base URL of a replica's API.
    pub fn api_url(&self, replica: usize) -> String {
        let InitializedNode { host, ports, .. } = &self.files.nodes[replica];
        format!("http://{}", SocketAddr::new(*host, ports.api))
    }

    /// Options of a gateway that trusts all replicas and connects to this one.
    pub fn gateway(
        &self,
        client: ClientId,
        key: SecretKey,
        state: impl Into<PathBuf>,
        replica: usize,
    ) -> GatewayOptions {
        let options = GatewayOptions::new(client, key, self.files.network, state)
            .endpoint(self.files.nodes[replica].host.to_string(), self.files.nodes[replica].ports.mqtt);
        self.files.nodes.iter().fold(options, |options, node| options.trust(node.node))
    }

    /// Registers a client through a replica; returns when all running replicas know it.
    ///
    /// # Errors
    /// The network refused it, or cannot order it.
    pub async fn register(&mut self, client: &ClientId, key: PublicKey) -> anyhow::Result<Submitted> {
        let settings = ClientSettings::default();
        let action = AdminAction::RegisterClient { client: client.clone(), key, settings };
        let through = self.running()?.first().copied().context("no replica runs")?;
        let submitted = self.submit(through, action).await?;
        self.reached(submitted.height).await?;
        Ok(submitted)
    }

    /// Signs an action with the admin's key, and has a replica order it.
    ///
    /// # Errors
    /// The network refused it, or cannot order it.
    pub async fn submit(&self, replica: usize, action: AdminAction) -> anyhow::Result<Submitted> {
        let admin = keyfile::read(&self.files.admin_key)?;
        let sequence = SystemClock::new().now().0;
        let operation = AdminOperation::sign(self.files.network, &admin, sequence, action);
        self.apis[replica].post("/v1/operations", &operation).await
    }

    /// Replicas whose processes run.
    ///
    /// # Errors
    /// The system does not say.
    pub fn running(&mut self) -> anyhow::Result<Vec<usize>> {
        let mut running = Vec::new();
        for replica in 0..self.replicas() {
            if self.is_running(replica)? {
                running.push(replica);
            }
        }
        Ok(running)
    }

    /// Waits until every running replica has this block, certified and with its records in the index.
    ///
    /// # Errors
    /// One does not answer, or has not got it within a minute.
    pub async fn reached(&mut self, height: Height) -> anyhow::Result<()> {
        let running = self.running()?;
        try_join_all(running.into_iter().map(|replica| self.reaches(replica, height))).await?;
        Ok(())
    }

    async fn reaches(&self, replica: usize, height: Height) -> anyhow::Result<()> {
        let clock = SystemClock::new();
        loop {
            let status = self.status(replica).await?;
            let has = status.certified_height.min(status.indexed_height);
            if has >= height {
                return Ok(());
            }
            if clock.monotonic() > self.options.ready_within {
                bail!("replica {replica} is at block {has}, and does not get to {height}");
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// What a replica says about itself.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn status(&self, replica: usize) -> anyhow::Result<Status> {
        self.apis[replica].get("/v1/status", &[]).await
    }

    /// The statuses of all replicas, in their order; none of one that does not answer.
    pub async fn statuses(&self) -> Vec<Option<Status>> {
        join_all((0..self.replicas()).map(|replica| self.status(replica)))
            .await
            .into_iter()
            .map(Result::ok)
            .collect()
    }

    /// The hash of a block, as a replica has it.
    ///
    /// # Errors
    /// It does not answer, or does not have the block.
    pub async fn block(&self, replica: usize, height: Height) -> anyhow::Result<Hash> {
        #[derive(serde::Deserialize)]
        struct Block {
            hash: Hash,
        }
        let block: Block = self.apis[replica].get(&format!("/v1/blocks/{height}"), &[]).await?;
        Ok(block.hash)
    }

    /// All of a client's records that a replica has, ascending by event time.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn records(&self, replica: usize, client: &ClientId) -> anyhow::Result<Vec<RecordJson>> {
        let mut records = Vec::new();
        let mut query = vec![("client", client.to_string()), ("limit", PAGE.to_string())];
        loop {
            let page: RecordsJson = self.apis[replica].get("/v1/records", &query).await?;
            records.extend(page.records);
            let Some(next) = page.next else { return Ok(records) };
            query.truncate(2);
            query.push(("cursor", next));
        }
    }

    /// The bytes at a path of a replica's API, such as a record's `bundle`.
    ///
    /// # Errors
    /// It does not answer, or with an error.
    pub async fn fetch(&self, replica: usize, path: &str) -> anyhow::Result<Vec<u8>> {
        self.apis[replica].bytes(path).await
    }
}

fn words_of(launcher: &[String], program: &Path) -> String {
    launcher.iter().map(|word| format!("{word} ")).collect::<String>() + &program.to_string_lossy()
}

fn is_setting(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b"LEDGERMQ_")
}

fn api_url(node: &InitializedNode) -> anyhow::Result<Url> {
    let address = SocketAddr::new(node.host, node.ports.api);
    Url::parse(&format!("http://{address}")).map_err(|error| anyhow!(error))
}
