//! TCP, then the swarm key if there is one, then Noise, then yamux.
//!
//! The network id is in Noise's prologue: the handshake with a node of another network fails
//! before either side has said anything else.

use std::net::{IpAddr, TcpListener};

use futures::future::Either;
use futures::{FutureExt, TryFutureExt};
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::Boxed;
use libp2p::core::upgrade::Version;
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use libp2p::pnet::{PnetConfig, PreSharedKey};
use libp2p::{Multiaddr, PeerId, Transport, dns, noise, tcp, yamux};

use crate::network::handle::NetworkError;
use crate::network::settings::{HANDSHAKE_TIMEOUT, SwarmKey};
use crate::types::NetworkId;

/// Streams of one connection: gossip, identify and ping take a handful, requests a few dozen.
const MAX_STREAMS: usize = 128;

/// The transport of a node.
pub(super) fn build(
    keypair: &Keypair,
    network: &NetworkId,
    swarm_key: Option<&SwarmKey>,
) -> Result<Boxed<(PeerId, StreamMuxerBox)>, NetworkError> {
    let swarm_key = swarm_key.map(|key| PnetConfig::new(PreSharedKey::new(*key.as_bytes())));
    let noise = noise::Config::new(keypair)
        .map_err(|error| NetworkError::SetUp(format!("noise: {error}")))?
        .with_prologue(prologue(network));
    let mut yamux = yamux::Config::default();
    yamux.set_max_num_streams(MAX_STREAMS);

    let named = with_names();
    let private = named.and_then(move |socket, _| match swarm_key {
        Some(key) => key.handshake(socket).map_ok(Either::Left).map_err(std::io::Error::other).left_future(),
        None => futures::future::ok(Either::Right(socket)).right_future(),
    });
    Ok(private
        .upgrade(Version::V1Lazy)
        .authenticate(noise)
        .multiplex(yamux)
        .timeout(HANDSHAKE_TIMEOUT)
        .boxed())
}

/// TCP that resolves names. A machine without DNS settings still reaches nodes by their IP
/// addresses.
fn with_names() -> dns::tokio::Transport<tcp::tokio::Transport> {
    let tcp = || tcp::tokio::Transport::new(tcp::Config::default().nodelay(true));
    dns::tokio::Transport::system(tcp()).unwrap_or_else(|error| {
        tracing::warn!(%error, "no DNS settings; node addresses with names will not work");
        dns::tokio::Transport::custom(tcp(), dns::ResolverConfig::default(), dns::ResolverOpts::default())
    })
}

/// libp2p listens with SO_REUSEPORT, so two nodes of one user would silently share a port and each
/// lose half of its connections. A plain bind tells.
pub(super) fn ensure_port_is_free(address: &Multiaddr) -> std::io::Result<()> {
    let mut parts = address.iter();
    let ip = match parts.next() {
        Some(Protocol::Ip4(ip)) => IpAddr::V4(ip),
        Some(Protocol::Ip6(ip)) => IpAddr::V6(ip),
        _ => return Ok(()),
    };
    match parts.next() {
        Some(Protocol::Tcp(port)) if port != 0 => TcpListener::bind((ip, port)).map(drop),
        _ => Ok(()),
    }
}

fn prologue(network: &NetworkId) -> Vec<u8> {
    [b"ledgermq/1/".as_slice(), network.as_bytes()].concat()
}
