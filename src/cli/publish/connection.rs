//! The way to the nodes: which, and what it means that they do not let a client in.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::anyhow;

use super::PublishArgs;
use crate::cli::arguments::wrong;
use crate::cli::network_dir;
use crate::config::read_genesis;
use crate::device::codes::UnauthReason;
use crate::gateway::{Gateway, GatewayOptions, Status};
use crate::keyfile;
use crate::types::ClientId;

/// How long nodes may say that they do not know a client: one that is a moment behind has not executed its
/// registration yet.
const UNKNOWN_FOR: Duration = Duration::from_secs(2);

/// The directory of the client's numbers and messages.
pub(super) fn state(args: &PublishArgs) -> PathBuf {
    args.state.clone().unwrap_or_else(|| {
        let mut path = args.key.clone().into_os_string();
        path.push(".state");
        path.into()
    })
}

/// A gateway to which a node has given its key.
pub(super) async fn connect(args: &PublishArgs) -> anyhow::Result<Gateway> {
    let network = args.network.as_ref();
    let genesis =
        read_genesis(&network_dir::file(args.genesis.as_ref(), network, "--genesis", "genesis.json")?)?;
    let state = state(args);
    let key = keyfile::read(&args.key)?;
    let mut options = GatewayOptions::new(args.client.clone(), key, genesis.network_id(), state);
    for node in genesis.replicas.members() {
        options = options.trust(*node);
    }
    let endpoints = endpoints(args)?;
    let ways = endpoints.len();
    for (host, port) in endpoints {
        options = options.endpoint(host, port);
    }
    let gateway = Gateway::connect(options).await?;
    let connected = tokio::select! {
        ready = gateway.ready(Duration::from_secs(args.timeout)) => {
            ready.map_err(|not_ready| explain(&args.client, &not_ready.status))
        }
        refused = refused(&args.client, &gateway, ways) => Err(refused),
    };
    match connected {
        Ok(_) => Ok(gateway),
        Err(error) => {
            gateway.close().await;
            Err(error)
        }
    }
}

/// Ends once the nodes have said what waiting does not change: that the client is revoked, that they do not
/// know it, or, as often as there are endpoints, that they do not let it in.
pub(super) async fn refused(client: &ClientId, gateway: &Gateway, endpoints: usize) -> anyhow::Error {
    let is_unknown =
        |status: &Status| matches!(status, Status::Unregistered { reason: UnauthReason::NotRegistered });
    let unknown = async {
        let mut status = gateway.status();
        loop {
            if status.wait_for(is_unknown).await.is_err() {
                std::future::pending::<()>().await;
            }
            let is_known = status.wait_for(|status| matches!(status, Status::Ready { .. }));
            if tokio::time::timeout(UNKNOWN_FOR, is_known).await.is_err() {
                return Status::Unregistered { reason: UnauthReason::NotRegistered };
            }
        }
    };
    let denied = async {
        let (mut status, mut denials) = (gateway.status(), 0);
        loop {
            let now = status.borrow_and_update().clone();
            match &now {
                Status::Unregistered { reason: UnauthReason::Revoked } => return now,
                Status::Denied { .. } => denials += 1,
                Status::Ready { .. } => denials = 0,
                _ => {}
            }
            if denials >= endpoints {
                return now;
            }
            if status.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let status = tokio::select! {
        status = unknown => status,
        status = denied => status,
    };
    explain(client, &status)
}

pub(super) fn endpoints(args: &PublishArgs) -> anyhow::Result<Vec<(String, u16)>> {
    match &args.network {
        _ if !args.mqtt.is_empty() => Ok(args.mqtt.clone()),
        None => Err(wrong("give --mqtt HOST:PORT, or --network DIR as `ledgermq init` made it")),
        Some(dir) => {
            let nodes = network_dir::node_settings(dir)?;
            Ok(nodes.iter().map(|of| (of.mqtt.listen.ip().to_string(), of.mqtt.listen.port())).collect())
        }
    }
}

/// Reads HOST:PORT.
pub(in crate::cli) fn endpoint(text: &str) -> Result<(String, u16), String> {
    let parsed = text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    match parsed {
        Some((host, port)) if !host.is_empty() && port != 0 => {
            Ok((host.trim_start_matches('[').trim_end_matches(']').to_owned(), port))
        }
        _ => Err("give HOST:PORT, such as 127.0.0.1:1883".into()),
    }
}

fn explain(client: &ClientId, status: &Status) -> anyhow::Error {
    match status {
        Status::Unregistered { reason: UnauthReason::NotRegistered } => {
            anyhow!(
                "{client} may not publish (not_registered): register it with `ledgermq client register`, and give \
                 the key that it was registered with"
            )
        }
        Status::Unregistered { reason: UnauthReason::Revoked } => {
            anyhow!(
                "{client} may not publish (revoked): an admin ended its right to; register a client with another id"
            )
        }
        Status::Denied { reason } => {
            anyhow!(
                "{client} is not let in (NotAuthorized): {reason}: give the --key that {client} was registered with \
                 (`ledgermq client list` shows it) and the genesis document of this network, and see that this \
                 machine's clock is right"
            )
        }
        Status::Connecting { reason: Some(reason) } => {
            anyhow!("cannot connect: {reason}: is a node running there?")
        }
        Status::Connecting { reason: None } => anyhow!("cannot connect: no node answers; is one running?"),
        Status::Handshaking => anyhow!("the node did not take a payload key in time"),
        Status::Ready { .. } | Status::Stopped => anyhow!("the gateway has stopped"),
    }
}
