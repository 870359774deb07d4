//! Where the load goes: a network that lives as long as the run, or one that runs already.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use futures::future::try_join_all;
use url::Url;

use crate::api::Submitted;
use crate::cli::http::Nodes;
use crate::cli::local::{LocalNetwork, LocalNetworkOptions};
use crate::cli::network_dir;
use crate::clock::{Clock as _, SystemClock};
use crate::config::read_genesis;
use crate::crypto::{SecretKey, random_bytes};
use crate::gateway::{Gateway, GatewayOptions};
use crate::keyfile;
use crate::ledger::{AdminAction, AdminOperation, ClientSettings};
use crate::policy::{Pattern, PolicySet, Rule, RuleName, WritePolicy};
use crate::types::{ClientId, MessageSeq, NetworkId, NodeId};

/// How long a client may take to connect and to hand over its payload key.
const CLIENT_READY: Duration = Duration::from_secs(60);

/// Revokes a client for all that is not on the ledger yet.
const NOTHING_MORE: MessageSeq = MessageSeq(0);

/// A client of the load.
pub(super) struct Client(pub(super) Gateway);

/// What clients must know of a network, and who can register them.
pub(super) struct Target {
    network: NetworkId,
    nodes: Vec<NodeId>,
    endpoints: Vec<(String, u16)>,
    admin: SecretKey,
    api: Nodes,
    apis: Vec<Url>,
    /// The replicas, if they live as long as the run.
    pub(super) own: Option<LocalNetwork>,
}

impl Target {
    /// Starts a network in `dir`.
    pub(super) fn create(dir: &Path, replicas: u16) -> anyhow::Result<Self> {
        let options = LocalNetworkOptions::new(dir.join("network"), replicas)?;
        let own = LocalNetwork::create(options)?;
        let files = own.files();
        let endpoint = |port| ("127.0.0.1".to_owned(), port);
        let apis = (0..own.replicas()).map(|replica| Ok(Url::parse(&own.api_url(replica))?));
        let apis = apis.collect::<anyhow::Result<Vec<_>>>()?;
        Ok(Self {
            network: files.network,
            nodes: files.nodes.iter().map(|node| node.node).collect(),
            endpoints: files.nodes.iter().map(|node| endpoint(node.ports.mqtt)).collect(),
            admin: keyfile::read(&files.admin_key)?,
            api: Nodes::new(apis.clone())?,
            apis,
            own: Some(own),
        })
    }

    /// The network whose files are in `dir`, as `ledgermq init` made them; the load goes to
    /// `endpoints`, or to all of its nodes.
    pub(super) fn running(dir: &Path, endpoints: &[(String, u16)]) -> anyhow::Result<Self> {
        let genesis = read_genesis(&dir.join("genesis.json"))?;
        let admin = keyfile::read(&dir.join("admin.key"))
            .context("the admin's key is needed to register the clients of the load")?;
        let nodes = network_dir::node_settings(dir)?;
        let apis = nodes.iter().map(|node| Ok(Url::parse(&format!("http://{}", node.api.listen))?));
        let apis = apis.collect::<anyhow::Result<Vec<_>>>()?;
        let listening = nodes.iter().map(|of| (of.mqtt.listen.ip().to_string(), of.mqtt.listen.port()));
        Ok(Self {
            network: genesis.network_id(),
            nodes: genesis.replicas.members().to_vec(),
            endpoints: if endpoints.is_empty() { listening.collect() } else { endpoints.to_vec() },
            admin,
            api: Nodes::new(apis.clone())?,
            apis,
            own: None,
        })
    }

    /// Starts the replicas, if they are this target's own, and waits until they are ready.
    pub(super) async fn start(&mut self) -> anyhow::Result<()> {
        let Some(own) = &mut self.own else { return Ok(()) };
        for replica in 0..own.replicas() {
            own.spawn(replica)?;
        }
        own.all_ready().await
    }

    /// Sets the write policy of a new network: every item is written.
    pub(super) async fn write_always(&self) -> anyhow::Result<()> {
        let rule = Rule {
            name: RuleName::new("always")?,
            client: Pattern::default(),
            stream: Pattern::default(),
            device: Pattern::default(),
            service: Pattern::default(),
            policy: WritePolicy::Always,
        };
        let action = AdminAction::SetPolicies { replaces: 0, policies: PolicySet::new(vec![rule])? };
        self.submit(action).await.context("cannot set the write policy")?;
        Ok(())
    }

    /// The replicas' APIs.
    pub(super) fn apis(&self) -> &[Url] {
        &self.apis
    }

    /// How many replicas the network has.
    pub(super) fn replicas(&self) -> usize {
        self.nodes.len()
    }

    /// Registers clients on the ledger and connects them, each to the next node. What was registered
    /// is in `clients`, also after an error.
    pub(super) async fn connect(
        &mut self,
        count: u16,
        clients: &mut Vec<ClientId>,
    ) -> anyhow::Result<Vec<Client>> {
        // No two runs have the same clients, since none of them remembers its numbers.
        let run = hex::encode(random_bytes::<4>()?);
        let mut keys = Vec::new();
        let mut height = None;
        for number in 0..count {
            let client: ClientId = format!("bench-{run}/{number}").parse()?;
            let key = SecretKey::generate()?;
            let settings = ClientSettings::default();
            let action = AdminAction::RegisterClient { client: client.clone(), key: key.public(), settings };
            height = Some(self.submit(action).await.context("cannot register a client")?.height);
            clients.push(client.clone());
            keys.push((client, key));
        }
        if let (Some(own), Some(height)) = (&mut self.own, height) {
            own.reached(height).await?;
        }
        let connecting = keys.into_iter().enumerate().map(|(at, (id, key))| self.client(at, id, key));
        try_join_all(connecting).await
    }

    /// A client that a node has taken a payload key of.
    async fn client(&self, at: usize, id: ClientId, key: SecretKey) -> anyhow::Result<Client> {
        let options = GatewayOptions::in_memory(id, key, self.network);
        let options = self.nodes.iter().fold(options, |options, node| options.trust(*node));
        let (before, from) = self.endpoints.split_at(at % self.endpoints.len());
        let endpoints = from.iter().chain(before);
        let options = endpoints.fold(options, |options, (host, port)| options.endpoint(host.clone(), *port));
        let gateway = Gateway::connect(options).await?;
        gateway.ready(CLIENT_READY).await.with_context(|| {
            let (host, port) = &self.endpoints[at % self.endpoints.len()];
            format!("a client of the load cannot send to {host}:{port}: is it a node of this network?")
        })?;
        Ok(Client(gateway))
    }

    /// Revokes the clients of the load in a network that goes on without them.
    pub(super) async fn leave(&self, clients: &[ClientId]) -> anyhow::Result<()> {
        if self.own.is_some() {
            return Ok(());
        }
        for client in clients {
            let reason = "a load test that has ended".to_owned();
            let action = AdminAction::RevokeClient { client: client.clone(), last_seq: NOTHING_MORE, reason };
            let revoked = self.submit(action).await;
            revoked.with_context(|| format!("cannot revoke {client}, which the load test registered"))?;
        }
        Ok(())
    }

    async fn submit(&self, action: AdminAction) -> anyhow::Result<Submitted> {
        let sequence = SystemClock::new().now().0;
        let operation = AdminOperation::sign(self.network, &self.admin, sequence, action);
        self.api.post("/v1/operations", &operation).await
    }
}
