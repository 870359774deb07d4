//! A peer of the right network that knows the protocols and breaks them.

use std::io;
use std::time::Duration;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, StreamExt};
use libp2p::request_response::{self, ProtocolSupport};
use libp2p::swarm::{NetworkBehaviour, SwarmEvent, dial_opts::DialOpts};
use libp2p::{PeerId, StreamProtocol, Swarm, identify, ping};

use super::{NETWORK, TestNode, loopback, soon};
use crate::codec;
use crate::crypto::SecretKey;
use crate::network::behaviour::{Behaviour, Topics, protocol_version};
use crate::network::identity::{keypair_of, peer_of};
use crate::network::{PeerRequest, SignedBundle, transport};
use crate::types::{NetworkId, NodeId, Signature};

/// Sends whatever bytes it is given.
#[derive(Debug, Clone)]
struct RawCodec;

impl request_response::Codec for RawCodec {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T>(&mut self, _: &StreamProtocol, _: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        Ok(Vec::new())
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        let mut bytes = Vec::new();
        io.read_to_end(&mut bytes).await?;
        Ok(bytes)
    }

    async fn write_request<T>(&mut self, _: &StreamProtocol, io: &mut T, bytes: Vec<u8>) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        io.write_all(&bytes).await
    }

    async fn write_response<T>(&mut self, _: &StreamProtocol, io: &mut T, bytes: Vec<u8>) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        io.write_all(&bytes).await
    }
}

#[derive(NetworkBehaviour)]
struct Adversary {
    raw: request_response::Behaviour<RawCodec>,
    gossip: libp2p::gossipsub::Behaviour<
        libp2p::gossipsub::IdentityTransform,
        libp2p::gossipsub::MaxCountSubscriptionFilter<libp2p::gossipsub::WhitelistSubscriptionFilter>,
    >,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
}

const KEY: [u8; 32] = [66; 32];

fn id() -> NodeId {
    SecretKey::from_seed(&KEY).node_id()
}

/// An adversary that is connected with `target`; it offers the direct streams of `lane`, says
/// `version` in identify, and gossips in `gossip_network`.
async fn connected(
    target: &TestNode,
    lane: &str,
    version: String,
    gossip_network: NetworkId,
) -> (Swarm<Adversary>, PeerId) {
    let keypair = keypair_of(&SecretKey::from_seed(&KEY)).unwrap();
    let protocol = StreamProtocol::try_from_owned(format!("/ledgermq/{NETWORK}/{lane}/1")).unwrap();
    let config = request_response::Config::default().with_max_concurrent_streams(1000);
    let behaviour = Adversary {
        raw: request_response::Behaviour::with_codec(RawCodec, [(protocol, ProtocolSupport::Full)], config),
        gossip: Behaviour::new(&keypair, &gossip_network, &loopback()).unwrap().gossip,
        identify: identify::Behaviour::new(identify::Config::new(version, keypair.public())),
        ping: ping::Behaviour::default(),
    };
    let transport = transport::build(&keypair, &NETWORK, None).unwrap();
    let swarm_config =
        libp2p::swarm::Config::with_tokio_executor().with_idle_connection_timeout(Duration::from_secs(60));
    let mut swarm = Swarm::new(transport, behaviour, keypair.public().to_peer_id(), swarm_config);
    let peer = peer_of(&target.id()).unwrap();
    swarm.dial(DialOpts::peer_id(peer).addresses(vec![target.address()]).build()).unwrap();
    soon("the adversary to connect", async {
        while !matches!(swarm.select_next_some().await, SwarmEvent::ConnectionEstablished { .. }) {}
    })
    .await;
    (swarm, peer)
}

/// Runs the adversary until `target` has cut it off; then shows that others can still connect.
async fn is_cut_off(mut target: TestNode, mut adversary: Swarm<Adversary>, offence: &str) {
    let driving = tokio::spawn(async move {
        loop {
            adversary.select_next_some().await;
        }
    });
    target.disconnected_from(id()).await;
    target.counted("ledgermq_network_offences_total", offence, 1).await;
    driving.abort();
    let mut honest = TestNode::join(3, &[&target]).await;
    honest.connected_to(target.id()).await;
    target.is_connected_with(&[honest.id()]).await;
}

async fn is_cut_off_for_sending(lane: &str, bytes: Vec<u8>) {
    let target = TestNode::start(1, loopback()).await;
    let (mut adversary, peer) = connected(&target, lane, protocol_version(&NETWORK), NETWORK).await;
    adversary.behaviour_mut().raw.send_request(&peer, bytes);
    is_cut_off(target, adversary, "garbage").await;
}

fn framed(body: &[u8]) -> Vec<u8> {
    [&u32::try_from(body.len()).unwrap().to_be_bytes(), body].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_a_direct_stream_is_the_end_of_the_connection() {
    is_cut_off_for_sending("fetch", framed(&[0xff; 100])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_length_of_four_gigabytes_is_the_end_of_the_connection() {
    is_cut_off_for_sending("bundle", vec![0xff; 8]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bundle_in_another_nodes_name_is_the_end_of_the_connection() {
    let bundle = SignedBundle {
        node: SecretKey::from_seed(&[5; 32]).node_id(),
        requests: vec![super::bundled(1)],
        signature: Signature([0; 64]),
    };
    let bundle = std::sync::Arc::new(bundle);
    for request in [PeerRequest::Bundle(bundle.clone()), PeerRequest::Forward(bundle)] {
        is_cut_off_for_sending("bundle", framed(&codec::encode(&request))).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_speaks_another_version_is_cut_off() {
    let target = TestNode::start(1, loopback()).await;
    let (adversary, _) = connected(&target, "fetch", "somebody/else".to_owned(), NETWORK).await;
    is_cut_off(target, adversary, "stranger").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_speak_our_gossip_is_cut_off() {
    let target = TestNode::start(1, loopback()).await;
    let version = protocol_version(&NETWORK);
    let (adversary, _) = connected(&target, "fetch", version, NetworkId([2; 32])).await;
    is_cut_off(target, adversary, "stranger").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_announcements_are_not_passed_on_and_cut_their_sender_off() {
    let target = TestNode::start(1, loopback()).await;
    let (mut adversary, _) = connected(&target, "fetch", protocol_version(&NETWORK), NETWORK).await;
    let announce = Topics::of(&NETWORK).announce;
    soon("a subscription", async {
        while adversary.behaviour_mut().gossip.publish(announce.clone(), [0]).is_err() {
            adversary.select_next_some().await;
        }
    })
    .await;
    for at in 1..20_u8 {
        adversary.behaviour_mut().gossip.publish(announce.clone(), [at; 200]).unwrap();
    }
    is_cut_off(target, adversary, "rejected_gossip").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_peer_has_only_a_few_requests_open_however_many_it_sends() {
    let mut target = TestNode::start(1, loopback()).await;
    let (mut adversary, peer) = connected(&target, "fetch", protocol_version(&NETWORK), NETWORK).await;
    let fetch = framed(&codec::encode(&PeerRequest::FetchRequests(vec![crate::types::Hash([1; 32])])));
    for _ in 0..12 {
        adversary.behaviour_mut().raw.send_request(&peer, fetch.clone());
    }
    let driving = tokio::spawn(async move {
        loop {
            adversary.select_next_some().await;
        }
    });
    target.counted("ledgermq_network_requests_in_total", "busy", 4).await;
    let delivered = target.count("ledgermq_network_requests_in_total", "delivered");
    assert_eq!(delivered, u64::try_from(super::settings::INBOUND_REQUESTS_PER_PEER).unwrap());
    for _ in 0..delivered {
        drop(target.asked().await);
    }
    assert_eq!(target.peers().await, [id()], "impatience is no offence");
    driving.abort();
}
