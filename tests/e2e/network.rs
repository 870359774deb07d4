//! Networks of real node processes on loopback, and what the tests ask their APIs.
//!
//! Everything lies in a temporary directory and every process is killed when its network is dropped.
//! A node's standard error goes to a file, which is printed when a wait fails.

use std::fs::{self, File};
use std::future::Future;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use ledgermq::cli::{InitArgs, Initialized, NodePorts, init};
use ledgermq::config::read_genesis;
use ledgermq::crypto::SecretKey;
use ledgermq::gateway::{Gateway, GatewayOptions};
use ledgermq::keyfile;
use ledgermq::ledger::proof::{ProofBundle, Proven, Verifier};
use ledgermq::ledger::{AdminAction, AdminOperation, ClientSettings, Genesis};
use ledgermq::types::{ClientId, MessageSeq, NetworkId};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Longest that a test waits for anything; only a test that fails waits that long.
pub const PATIENCE: Duration = Duration::from_secs(60);

const POLL: Duration = Duration::from_millis(20);

/// Ports of the next network. Below those that the system gives to outgoing connections, and no two
/// networks of this process share any, so a node that is restarted finds its ports free.
static NEXT_PORT: AtomicU16 = AtomicU16::new(0);

pub struct TestNetwork {
    pub made: Initialized,
    pub genesis: Genesis,
    pub admin: SecretKey,
    dir: TempDir,
    settings: Vec<(String, String)>,
    nodes: Vec<Option<Child>>,
    http: reqwest::Client,
    admin_sequence: std::cell::Cell<u64>,
}

impl TestNetwork {
    /// Starts a network and waits until all of its nodes are ready.
    pub async fn start(replicas: u16) -> Self {
        Self::start_with(replicas, &[]).await
    }

    /// The same with settings, as `("mqtt.max_inflight", "10")`.
    pub async fn start_with(replicas: u16, settings: &[(&str, &str)]) -> Self {
        let mut network = Self::prepare(replicas, settings);
        network.spawn_all();
        network.all_ready().await;
        network
    }

    /// Makes a network's files and starts nothing.
    pub fn prepare(replicas: u16, settings: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let args = InitArgs {
            replicas,
            dir: dir.path().join("net"),
            base_port: Some(free_ports(replicas)),
            host: "127.0.0.1".parse().unwrap(),
            name: "test".to_owned(),
            json: false,
        };
        let made = init(&args).unwrap();
        let variable = |(name, value): &(&str, &str)| {
            (format!("LEDGERMQ_{}", name.to_uppercase().replace('.', "__")), (*value).to_owned())
        };
        Self {
            genesis: read_genesis(&made.genesis).unwrap(),
            admin: keyfile::read(&made.admin_key).unwrap(),
            settings: settings.iter().map(variable).collect(),
            nodes: (0..replicas).map(|_| None).collect(),
            http: reqwest::Client::new(),
            admin_sequence: std::cell::Cell::new(0),
            made,
            dir,
        }
    }

    pub fn id(&self) -> NetworkId {
        self.made.network
    }

    pub fn n(&self) -> usize {
        self.nodes.len()
    }

    pub fn ports(&self, at: usize) -> NodePorts {
        self.made.nodes[at].ports
    }

    /// The directory of a node's settings.
    pub fn node_dir(&self, at: usize) -> PathBuf {
        self.made.nodes[at].config.parent().unwrap().to_owned()
    }

    /// A new path in the network's temporary directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The command that runs a node, logging to its file.
    pub fn command(&self, at: usize) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ledgermq"));
        command.args(["node", "--config"]).arg(&self.made.nodes[at].config);
        command.env("LEDGERMQ_LOG__LEVEL", "info,ledgermq=debug");
        command.envs(self.settings.iter().cloned()).stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    pub fn spawn(&mut self, at: usize) {
        assert!(self.nodes[at].is_none(), "node {at} runs");
        let log = File::options().create(true).append(true).open(self.log_path(at)).unwrap();
        self.nodes[at] = Some(self.command(at).stderr(log).spawn().unwrap());
    }

    pub fn spawn_all(&mut self) {
        for at in 0..self.n() {
            if self.nodes[at].is_none() {
                self.spawn(at);
            }
        }
    }

    /// SIGKILL, and the process is gone when this returns.
    pub fn kill(&mut self, at: usize) {
        let mut child = self.nodes[at].take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGKILL to all at once.
    pub fn kill_all(&mut self) {
        let mut children: Vec<Child> = self.nodes.iter_mut().filter_map(Option::take).collect();
        for child in &mut children {
            child.kill().unwrap();
        }
        for child in &mut children {
            child.wait().unwrap();
        }
    }

    /// SIGTERM, and how the process ended.
    pub async fn terminate(&mut self, at: usize) -> ExitStatus {
        let child = self.nodes[at].take().unwrap();
        let pid = child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        self.ended(at, child).await
    }

    /// Waits until a node ends by itself.
    pub async fn ended(&self, at: usize, mut child: Child) -> ExitStatus {
        self.eventually(&format!("node {at} ends"), async || child.try_wait().unwrap()).await
    }

    pub fn is_running(&mut self, at: usize) -> bool {
        self.nodes[at].as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    /// The most memory that a node has had, in bytes.
    pub fn peak_memory(&self, at: usize) -> u64 {
        let pid = self.nodes[at].as_ref().unwrap().id();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    fn log_path(&self, at: usize) -> PathBuf {
        self.dir.path().join(format!("node-{at}.stderr"))
    }

    /// What a node has logged.
    pub fn log(&self, at: usize) -> String {
        fs::read_to_string(self.log_path(at)).unwrap_or_default()
    }

    pub async fn all_ready(&self) {
        for at in 0..self.n() {
            if self.nodes[at].is_some() {
                self.ready(at).await;
            }
        }
    }

    pub async fn ready(&self, at: usize) {
        self.eventually(&format!("node {at} is ready"), async || {
            let answer = self.http.get(self.url(at, "/readyz")).send().await.ok()?;
            answer.status().is_success().then_some(())
        })
        .await;
    }

    /// Asks `question` again and again until it has an answer.
    pub async fn eventually<T>(&self, what: &str, mut question: impl AsyncFnMut() -> Option<T>) -> T {
        let answered = tokio::time::timeout(PATIENCE, async {
            loop {
                if let Some(answer) = question().await {
                    return answer;
                }
                tokio::time::sleep(POLL).await;
            }
        });
        if let Ok(answer) = answered.await {
            return answer;
        }
        for at in 0..self.n() {
            let log = self.log(at);
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            eprintln!("--- node {at}");
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
        panic!("never happened: {what}");
    }

    /// Waits for something that a node should do soon.
    pub async fn soon<T>(&self, what: &str, future: impl Future<Output = T>) -> T {
        let mut future = std::pin::pin!(future);
        self.eventually(what, async || tokio::time::timeout(POLL, future.as_mut()).await.ok()).await
    }

    pub fn url(&self, at: usize, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.ports(at).api)
    }

    pub async fn get(&self, at: usize, path: &str) -> Value {
        let answer = self.http.get(self.url(at, path)).send().await.unwrap();
        assert!(answer.status().is_success(), "{path}: {answer:?}");
        serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap()
    }

    pub async fn get_bytes(&self, at: usize, path: &str) -> Vec<u8> {
        let answer = self.http.get(self.url(at, path)).send().await.unwrap();
        assert!(answer.status().is_success(), "{path}: {answer:?}");
        answer.bytes().await.unwrap().to_vec()
    }

    /// The value of one of a node's metrics, labels included in its name.
    pub async fn metric(&self, at: usize, name: &str) -> f64 {
        let text = String::from_utf8(self.get_bytes(at, "/metrics").await).unwrap();
        let line = text.lines().find(|line| line.split(' ').next() == Some(name));
        line.and_then(|line| line.rsplit(' ').next()).map_or(0.0, |value| value.parse().unwrap())
    }

    pub async fn certified_height(&self, at: usize) -> u64 {
        self.get(at, "/v1/status").await["certified_height"].as_u64().unwrap()
    }

    /// Waits until a node has certified a height.
    pub async fn reaches(&self, at: usize, height: u64) {
        self.eventually(&format!("node {at} reaches height {height}"), async || {
            (self.certified_height(at).await >= height).then_some(())
        })
        .await;
    }

    /// Hashes of all blocks up to a height, as a node has them.
    pub async fn block_hashes(&self, at: usize, height: u64) -> Vec<String> {
        let mut hashes = Vec::new();
        while (hashes.len() as u64) < height {
            let page = self.get(at, &format!("/v1/blocks?from={}&limit=1000", hashes.len() + 1)).await;
            let blocks = page["blocks"].as_array().unwrap();
            assert!(!blocks.is_empty(), "node {at} has no block {}", hashes.len() + 1);
            hashes.extend(blocks.iter().map(|block| block["hash"].as_str().unwrap().to_owned()));
        }
        hashes.truncate(usize::try_from(height).unwrap());
        hashes
    }

    /// All nodes have the same blocks, up to the highest that node 0 has.
    pub async fn assert_same_blocks(&self) -> u64 {
        let height = self.certified_height(0).await;
        let expected = self.block_hashes(0, height).await;
        for at in 1..self.n() {
            self.reaches(at, height).await;
            assert_eq!(self.block_hashes(at, height).await, expected, "node {at}");
        }
        height
    }

    /// All records that a node finds for a query, page by page.
    pub async fn records(&self, at: usize, query: &str) -> Vec<Value> {
        let mut records = Vec::new();
        let mut cursor = String::new();
        loop {
            let page = self.get(at, &format!("/v1/records?{query}{cursor}")).await;
            records.extend(page["records"].as_array().unwrap().iter().cloned());
            match page["next"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return records,
            }
        }
    }

    /// Waits until a node's index has so many records, and gives them.
    pub async fn wait_for_records(&self, at: usize, query: &str, count: usize) -> Vec<Value> {
        self.eventually(&format!("{count} records of {query} at node {at}"), async || {
            let records = self.records(at, query).await;
            (records.len() >= count).then_some(records)
        })
        .await
    }

    /// Verifies a bundle with nothing but genesis.
    pub fn verify(&self, bundle: &[u8]) -> Result<Proven, String> {
        let verifier = Verifier::new(&self.genesis).unwrap();
        let bundle = ProofBundle::decode(bundle).map_err(|error| error.to_string())?;
        verifier.verify(&bundle).map_err(|error| error.to_string())
    }

    /// An admin operation with a sequence above all before.
    pub fn sign_operation(&self, admin: &SecretKey, network: NetworkId, action: AdminAction) -> AdminOperation {
        self.admin_sequence.set(self.admin_sequence.get() + 1);
        AdminOperation::sign(network, admin, self.admin_sequence.get(), action)
    }

    /// Posts an operation: the status, and the answer.
    pub async fn post_operation(&self, at: usize, operation: &AdminOperation) -> (u16, Value) {
        let answer = self.http.post(self.url(at, "/v1/operations")).json(operation).send().await.unwrap();
        let status = answer.status().as_u16();
        (status, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap())
    }

    /// Registers a client with a key of its own, at every running node.
    pub async fn register(&self, client: &str) -> SecretKey {
        self.register_with(client, ClientSettings::default()).await
    }

    pub async fn register_with(&self, client: &str, settings: ClientSettings) -> SecretKey {
        let key = SecretKey::generate().unwrap();
        let (client, public) = (ClientId::new(client).unwrap(), key.public());
        let path = format!("/v1/clients/{client}");
        let action = AdminAction::RegisterClient { client, key: public, settings };
        self.execute(action).await;
        for at in (0..self.n()).filter(|at| self.nodes[*at].is_some()) {
            self.eventually("the registration is known", async || {
                let answer = self.http.get(self.url(at, &path)).send().await.unwrap();
                answer.status().is_success().then_some(())
            })
            .await;
        }
        key
    }

    pub async fn revoke(&self, client: &str) {
        let client = ClientId::new(client).unwrap();
        let reason = "lost".to_owned();
        self.execute(AdminAction::RevokeClient { client, last_seq: MessageSeq(0), reason }).await;
    }

    async fn execute(&self, action: AdminAction) {
        let at = self.nodes.iter().position(Option::is_some).unwrap();
        let operation = self.sign_operation(&self.admin, self.id(), action);
        let (status, answer) = self.post_operation(at, &operation).await;
        assert_eq!(status, 200, "{answer}");
    }

    /// Options of the SDK for a client that goes to the nodes given, in this order.
    pub fn gateway_options(&self, client: &str, key: &SecretKey, nodes: &[usize]) -> GatewayOptions {
        let state = self.path(&format!("gateway-{}", client.replace('/', "-")));
        let client = ClientId::new(client).unwrap();
        let mut options = GatewayOptions::new(client, key.clone(), self.id(), state);
        for node in &self.made.nodes {
            options = options.trust(node.node);
        }
        for at in nodes {
            options = options.endpoint("127.0.0.1", self.ports(*at).mqtt);
        }
        options
    }

    pub async fn gateway(&self, client: &str, key: &SecretKey, nodes: &[usize]) -> Gateway {
        let gateway = Gateway::connect(self.gateway_options(client, key, nodes)).await.unwrap();
        gateway.ready(PATIENCE).await.unwrap();
        gateway
    }
}

impl Drop for TestNetwork {
    fn drop(&mut self) {
        self.kill_all();
    }
}

/// A reading of temperature and humidity.
pub fn reading(event_time: u64, temperature: f64, humidity: i64) -> Vec<u8> {
    let data = json!([
        { "deviceId": "th-01", "serviceId": "temperature", "num": 1, "value": temperature, "unit": "Cel" },
        { "deviceId": "th-01", "serviceId": "humidity", "num": 2, "value": humidity, "unit": "%RH" },
    ]);
    json!({ "count": 2, "eventTime": event_time, "data": data }).to_string().into_bytes()
}

/// Copies a directory and all below it.
pub fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn free_ports(replicas: u16) -> u16 {
    const FIRST: u16 = 12_000;
    const COUNT: u16 = 20_000;
    let span = 10 * replicas;
    // Test processes that run at once begin in different places.
    let start = u16::try_from(std::process::id() % 199).unwrap() * 100;
    loop {
        let offset = (start + NEXT_PORT.fetch_add(span, Ordering::Relaxed)) % (COUNT - span);
        let base = FIRST + offset;
        if (base..base + span).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return base;
        }
    }
}
