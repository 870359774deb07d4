//! Networks of real node processes on loopback, and what the tests ask their APIs.
//!
//! [`LocalNetwork`] makes and runs the nodes, and kills them when it is dropped. Here is what only tests
//! want: queries as scripts would make them, waits with a limit, and the nodes' logs when a wait fails.

use std::cell::Cell;
use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use ledgermq::cli::local::{LocalNetwork, LocalNetworkOptions, Place};
use ledgermq::cli::{Initialized, NodePorts};
use ledgermq::clock::{Clock as _, SystemClock};
use ledgermq::crypto::SecretKey;
use ledgermq::gateway::{Gateway, GatewayOptions};
use ledgermq::keyfile;
use ledgermq::ledger::proof::{ProofBundle, Proven, Verifier};
use ledgermq::ledger::{AdminAction, AdminOperation, ClientSettings};
use ledgermq::types::{ClientId, Height, MessageSeq, NetworkId};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;
use tokio::sync::Mutex;

/// Longest that a test waits for anything; only a test that fails waits that long.
pub const PATIENCE: Duration = Duration::from_secs(180);

const POLL: Duration = Duration::from_millis(20);

/// Held from the choice of free ports until they are taken, so that no two networks choose the same.
static CHOOSING_PORTS: Mutex<()> = Mutex::const_new(());

pub struct TestNetwork {
    pub local: LocalNetwork,
    pub admin: SecretKey,
    dir: Option<TempDir>,
    http: reqwest::Client,
    admin_sequence: Cell<u64>,
}

impl TestNetwork {
    /// Starts a network and waits until all of its nodes are ready.
    pub async fn start(replicas: u16) -> Self {
        Self::start_with(replicas, &[]).await
    }

    /// The same with settings, as `("mqtt.max_inflight", "10")`.
    pub async fn start_with(replicas: u16, settings: &[(&str, &str)]) -> Self {
        let _chosen = CHOOSING_PORTS.lock().await;
        let mut network = Self::create(replicas, settings);
        network.spawn_all().await;
        network
    }

    /// Makes a network's files and starts nothing.
    pub fn create(replicas: u16, settings: &[(&str, &str)]) -> Self {
        Self::create_in(replicas, settings, Vec::new())
    }

    /// The same with a place for each replica.
    pub fn create_in(replicas: u16, settings: &[(&str, &str)], places: Vec<Place>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = LocalNetworkOptions::new(dir.path().join("net"), replicas).unwrap();
        let options = options
            .program(env!("CARGO_BIN_EXE_ledgermq"))
            .setting("LEDGERMQ_LOG__LEVEL", "info,ledgermq=debug")
            .places(places)
            .ready_within(PATIENCE);
        let options =
            settings.iter().fold(options, |options, (name, value)| options.setting(variable(name), *value));
        let local = LocalNetwork::create(options).unwrap();
        Self {
            admin: keyfile::read(&local.files().admin_key).unwrap(),
            http: reqwest::Client::new(),
            // Above those that `LocalNetwork` and the command line take from the clock.
            admin_sequence: Cell::new(SystemClock::new().now().0 + 86_400_000),
            local,
            dir: Some(dir),
        }
    }

    pub fn id(&self) -> NetworkId {
        self.local.files().network
    }

    pub fn files(&self) -> &Initialized {
        self.local.files()
    }

    pub fn n(&self) -> usize {
        self.local.replicas()
    }

    pub fn ports(&self, at: usize) -> NodePorts {
        self.files().nodes[at].ports
    }

    /// A new path in the network's temporary directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.local.dir().with_file_name(name)
    }

    /// Starts a node and waits until it is ready.
    pub async fn spawn(&mut self, at: usize) {
        self.local.spawn(at).unwrap();
        self.local.ready(at).await.unwrap();
    }

    /// Starts all nodes that do not run, and waits until they are ready.
    pub async fn spawn_all(&mut self) {
        for at in 0..self.n() {
            if !self.local.is_running(at).unwrap() {
                self.local.spawn(at).unwrap();
            }
        }
        self.local.all_ready().await.unwrap();
    }

    /// SIGKILL, and the process is gone when this returns.
    pub async fn kill(&mut self, at: usize) {
        self.local.kill(at).await.unwrap();
    }

    /// Runs a node in the foreground with other settings until it ends, which it must do by itself.
    pub async fn run_node(&self, at: usize, settings: &[(&str, &str)]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ledgermq"));
        command.args(["node", "--config"]).arg(&self.files().nodes[at].config).kill_on_drop(true);
        command.envs(settings.iter().map(|(name, value)| (variable(name), *value)));
        tokio::time::timeout(PATIENCE, command.output()).await.expect("the node ends by itself").unwrap()
    }

    /// The most memory that a node has had, in bytes.
    pub fn peak_memory(&self, at: usize) -> u64 {
        let pid = self.local.pid(at).unwrap();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// What a node has logged.
    pub fn log(&self, at: usize) -> String {
        fs::read_to_string(self.local.log_path(at)).unwrap_or_default()
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
            eprintln!("--- node {at}\n{}", self.local.last_lines(at));
        }
        panic!("never happened: {what}");
    }

    /// Waits for something that a node should do soon.
    pub async fn soon<T>(&self, what: &str, future: impl Future<Output = T>) -> T {
        let mut future = std::pin::pin!(future);
        self.eventually(what, async || tokio::time::timeout(POLL, future.as_mut()).await.ok()).await
    }

    pub fn url(&self, at: usize, path: &str) -> String {
        format!("{}{path}", self.local.api_url(at))
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

    /// The number of the primary, as the first node sees it that answers.
    pub async fn primary(&self) -> usize {
        let status = self.local.statuses().await.into_iter().flatten().next().unwrap();
        status.replicas.iter().position(|replica| replica.node == status.primary).unwrap()
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
        let verifier = Verifier::new(self.local.genesis()).unwrap();
        let bundle = ProofBundle::decode(bundle).map_err(|error| error.to_string())?;
        verifier.verify(&bundle).map_err(|error| error.to_string())
    }

    /// An admin operation with a sequence above all before.
    pub fn sign_operation(
        &self,
        admin: &SecretKey,
        network: NetworkId,
        action: AdminAction,
    ) -> AdminOperation {
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
    pub async fn register(&mut self, client: &str) -> SecretKey {
        self.register_with(client, ClientSettings::default()).await
    }

    pub async fn register_with(&mut self, client: &str, settings: ClientSettings) -> SecretKey {
        let key = SecretKey::generate().unwrap();
        let (client, public) = (ClientId::new(client).unwrap(), key.public());
        self.execute(AdminAction::RegisterClient { client, key: public, settings }).await;
        key
    }

    pub async fn revoke(&mut self, client: &str) {
        let (client, reason) = (ClientId::new(client).unwrap(), "lost".to_owned());
        self.execute(AdminAction::RevokeClient { client, last_seq: MessageSeq(0), reason }).await;
    }

    /// Puts these rules in force, in place of version `replaces`.
    pub async fn set_policies(&mut self, replaces: u64, rules: Value) {
        let policies = serde_json::from_value(rules).unwrap();
        self.execute(AdminAction::SetPolicies { replaces, policies }).await;
    }

    /// Executes an operation; returns when all running nodes know it.
    async fn execute(&mut self, action: AdminAction) {
        let at = self.local.running().unwrap()[0];
        let operation = self.sign_operation(&self.admin, self.id(), action);
        let (status, answer) = self.post_operation(at, &operation).await;
        assert_eq!(status, 200, "{answer}");
        self.local.reached(Height(answer["height"].as_u64().unwrap())).await.unwrap();
    }

    /// Options of the SDK for a client that goes to the nodes given, in this order.
    pub fn gateway_options(&self, client: &str, key: &SecretKey, nodes: &[usize]) -> GatewayOptions {
        let state = self.path(&format!("gateway-{}", client.replace('/', "-")));
        let (first, others) = nodes.split_first().unwrap();
        let options = self.local.gateway(ClientId::new(client).unwrap(), key.clone(), state, *first);
        others.iter().fold(options, |options, at| {
            let node = &self.files().nodes[*at];
            options.endpoint(node.host.to_string(), node.ports.mqtt)
        })
    }

    pub async fn gateway(&self, client: &str, key: &SecretKey, nodes: &[usize]) -> Gateway {
        let gateway = Gateway::connect(self.gateway_options(client, key, nodes)).await.unwrap();
        gateway.ready(PATIENCE).await.unwrap();
        gateway
    }
}

impl Drop for TestNetwork {
    /// Of a test that fails everything is kept, to be looked at.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let dir = self.dir.take().map(TempDir::keep);
            eprintln!("the network's files, its nodes' logs among them, are in {dir:?}");
        }
    }
}

/// The environment variable of a setting.
fn variable(setting: &str) -> String {
    format!("LEDGERMQ_{}", setting.to_uppercase().replace('.', "__"))
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
