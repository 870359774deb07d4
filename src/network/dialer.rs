//! Whom to dial and when: a pure plan, executed by the swarm task.
//!
//! Configured addresses are dialed for ever, with a short back-off; those of a configured name as long
//! as the name has them; found ones (mDNS, announcements) until they have failed too often, since a
//! living node is found again. What leads to this node itself is left alone for some time, because an
//! address can move to another node.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::time::Duration;

use libp2p::multiaddr::Protocol;
use libp2p::swarm::{ConnectionId, DialError};
use libp2p::{Multiaddr, PeerId};

use crate::network::identity::node_of;
use crate::network::settings::{MAX_ADDRESSES_PER_NODE, MAX_DIAL_TARGETS};

/// The wait after the first failure; doubles with each.
const FIRST_WAIT: Duration = Duration::from_millis(500);

/// The longest wait between attempts.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// The same for configured addresses and names, which are few and those of replicas: when a partition ends, a
/// quorum shall not have to wait for more than that.
const LONGEST_CONFIGURED_WAIT: Duration = Duration::from_secs(5);

/// The wait before an address that led to this node is tried again.
const SELF_WAIT: Duration = Duration::from_secs(600);

/// A found target is forgotten after so many failures in a row (about ten minutes).
const GIVE_UP_AFTER: u32 = 24;

/// The longest reason that is told.
const MAX_REASON_CHARS: usize = 120;

/// The usual reasons, as the system words them.
const KNOWN_REASONS: [&str; 7] = [
    "connection refused",
    "connection reset",
    "no route to host",
    "network is unreachable",
    "host is unreachable",
    "timed out",
    "handshake failed",
];

/// A peer, or an address whose peer is not known.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Target {
    /// A peer by its id.
    Peer(PeerId),
    /// Whoever answers at a configured address.
    Address(Multiaddr),
}

/// One attempt to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Attempt {
    /// The target, to report the result.
    pub(super) target: Target,
    /// Where.
    pub(super) addresses: Vec<Multiaddr>,
}

/// What failed, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    /// How often in a row.
    pub(super) failures: u32,
    /// Who is meant, if that is known.
    pub(super) peer: Option<PeerId>,
    /// The first of the addresses.
    pub(super) address: Option<Multiaddr>,
    /// Whether another plan leads to the same node and tells of it: one line for each node is enough.
    pub(super) told_elsewhere: bool,
}

/// Where a target is known from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    /// A configured address.
    Configured,
    /// A configured name, this one, which had the address when it was last resolved.
    Name(Multiaddr),
    /// mDNS or an announcement.
    Found,
}

#[derive(Debug, Clone)]
struct Plan {
    addresses: Vec<Multiaddr>,
    source: Source,
    /// Who answers there, once that is known.
    peer: Option<PeerId>,
    failures: u32,
    not_before: Duration,
    dialing: bool,
}

impl Plan {
    /// 0.5 s, 1 s, 2 s, ... up to the longest.
    fn wait(&self) -> Duration {
        let longest = if self.source == Source::Found { LONGEST_WAIT } else { LONGEST_CONFIGURED_WAIT };
        FIRST_WAIT.saturating_mul(1 << self.failures.saturating_sub(1).min(16)).min(longest)
    }
}

/// The plan of all targets, at most [`MAX_DIAL_TARGETS`].
#[derive(Debug)]
pub(super) struct Dialer {
    local: PeerId,
    plans: BTreeMap<Target, Plan>,
    pending: HashMap<ConnectionId, Target>,
}

impl Dialer {
    /// A plan for the node with this peer id that knows the configured addresses.
    pub(super) fn new(local: PeerId, configured: &[Multiaddr]) -> Self {
        let mut dialer = Self { local, plans: BTreeMap::new(), pending: HashMap::new() };
        for address in configured {
            match split_peer(address) {
                (address, Some(peer)) => dialer.add(Target::Peer(peer), vec![address], Source::Configured),
                (address, None) => {
                    dialer.add(Target::Address(address.clone()), vec![address], Source::Configured);
                }
            }
        }
        dialer
    }

    /// Learns addresses at which a peer may be reached; replaces those found before.
    pub(super) fn learn(&mut self, peer: PeerId, addresses: Vec<Multiaddr>) {
        let mut addresses: Vec<_> =
            addresses.into_iter().map(|address| split_peer(&address).0).filter(is_dialable).collect();
        addresses.truncate(MAX_ADDRESSES_PER_NODE);
        if !addresses.is_empty() {
            self.add(Target::Peer(peer), addresses, Source::Found);
        }
    }

    /// A configured name has these addresses now, and no others: what it no longer has is forgotten.
    pub(super) fn resolved(&mut self, name: &Multiaddr, addresses: Vec<Multiaddr>) {
        self.plans.retain(|target, plan| {
            let Source::Name(of) = &plan.source else { return true };
            of != name || matches!(target, Target::Address(address) if addresses.contains(address))
        });
        for address in addresses.into_iter().filter(is_dialable) {
            let target = Target::Address(address.clone());
            if !self.plans.contains_key(&target) {
                self.add(target, vec![address], Source::Name(name.clone()));
            }
        }
    }

    /// The attempts to make now.
    pub(super) fn due(&mut self, now: Duration, is_connected: impl Fn(&PeerId) -> bool) -> Vec<Attempt> {
        let mut due = Vec::new();
        for (target, plan) in &mut self.plans {
            let connected = plan.peer.as_ref().is_some_and(&is_connected);
            if connected || plan.dialing || plan.not_before > now {
                continue;
            }
            plan.dialing = true;
            due.push(Attempt { target: target.clone(), addresses: plan.addresses.clone() });
        }
        due
    }

    /// An attempt is under way as this connection.
    pub(super) fn on_dialing(&mut self, target: Target, connection: ConnectionId) {
        self.pending.insert(connection, target);
    }

    /// A connection that this node dialed is established.
    pub(super) fn on_connected(&mut self, connection: ConnectionId, peer: PeerId) {
        let Some(plan) = self.take(connection).and_then(|target| self.plans.get_mut(&target)) else { return };
        // The failures stay until the connection has lasted: see `on_disconnected`.
        plan.peer = Some(peer);
    }

    /// An attempt failed; tells of it, if it was one of the plan's.
    pub(super) fn on_failed(&mut self, connection: ConnectionId, now: Duration) -> Option<Failure> {
        let target = self.take(connection)?;
        let told_elsewhere = self.is_told_elsewhere(&target);
        let plan = self.plans.get(&target)?;
        let (peer, address) = (plan.peer, plan.addresses.first().cloned());
        let failures = self.fail(&target, now)?;
        Some(Failure { failures, peer, address, told_elsewhere })
    }

    /// Of several plans that lead to one node the configured one tells of failures, and of several of
    /// these the first.
    fn is_told_elsewhere(&self, target: &Target) -> bool {
        let Some(plan) = self.plans.get(target) else { return false };
        let same = |other: &Plan| {
            plan.peer.is_some() && other.peer == plan.peer
                || other.addresses.iter().any(|address| plan.addresses.contains(address))
        };
        let found = |plan: &Plan| plan.source == Source::Found;
        let first = |at: &Target, other: &Plan| (found(other), at) < (found(plan), target);
        self.plans.iter().any(|(at, other)| at != target && same(other) && first(at, other))
    }

    /// An attempt could not even begin.
    pub(super) fn on_not_dialed(&mut self, target: &Target, now: Duration) {
        if let Some(plan) = self.plans.get_mut(target) {
            plan.dialing = false;
        }
        self.fail(target, now);
    }

    /// An attempt led to this node itself.
    pub(super) fn on_self(&mut self, connection: ConnectionId, now: Duration) {
        let Some(target) = self.take(connection) else { return };
        if let Some(plan) = self.plans.get_mut(&target) {
            plan.not_before = now + SELF_WAIT;
        }
    }

    /// The last connection with a peer is closed: it may be dialed at once, but a peer that closes
    /// each connection is dialed more and more rarely.
    pub(super) fn on_disconnected(&mut self, peer: &PeerId, lasted: Duration, now: Duration) {
        for plan in self.plans.values_mut().filter(|plan| plan.peer.as_ref() == Some(peer)) {
            let brief = lasted < LONGEST_WAIT;
            plan.failures = if brief { plan.failures + 1 } else { 0 };
            plan.not_before = now + plan.wait();
            if matches!(plan.source, Source::Name(_)) {
                // The next one at this address may be another node, while that one is back elsewhere.
                plan.peer = None;
            }
        }
    }

    fn add(&mut self, target: Target, addresses: Vec<Multiaddr>, source: Source) {
        if target == Target::Peer(self.local) {
            return;
        }
        if let Some(plan) = self.plans.get_mut(&target) {
            // What is configured stays, and what was found comes behind it.
            if plan.source == Source::Configured {
                plan.addresses.extend(addresses);
                dedup(&mut plan.addresses);
                plan.addresses.truncate(MAX_ADDRESSES_PER_NODE);
            } else {
                plan.addresses = addresses;
            }
            return;
        }
        if self.plans.len() >= MAX_DIAL_TARGETS {
            return;
        }
        let peer = if let Target::Peer(peer) = &target { Some(*peer) } else { None };
        let plan = Plan { addresses, source, peer, failures: 0, not_before: Duration::ZERO, dialing: false };
        self.plans.insert(target, plan);
    }

    fn take(&mut self, connection: ConnectionId) -> Option<Target> {
        let target = self.pending.remove(&connection)?;
        if let Some(plan) = self.plans.get_mut(&target) {
            plan.dialing = false;
        }
        Some(target)
    }

    fn fail(&mut self, target: &Target, now: Duration) -> Option<u32> {
        let plan = self.plans.get_mut(target)?;
        plan.failures = plan.failures.saturating_add(1);
        plan.not_before = now + plan.wait();
        let failures = plan.failures;
        if plan.source == Source::Found && failures >= GIVE_UP_AFTER {
            self.plans.remove(target);
        }
        Some(failures)
    }
}

/// Why a dial failed, in a few words of one line: of the many layers of such an error the innermost knows.
pub(super) fn reason(error: &DialError) -> String {
    let reason = match error {
        DialError::Transport(failed) => {
            let mut reasons: Vec<String> = failed.iter().map(|(_, error)| innermost(error)).collect();
            reasons.sort_unstable();
            reasons.dedup();
            reasons.join(", ")
        }
        DialError::WrongPeerId { obtained, .. } => match node_of(obtained) {
            Some(node) => format!("another node answers there: {}", node.short()),
            None => "something else answers there".to_owned(),
        },
        DialError::Denied { cause } => innermost(cause),
        DialError::NoAddresses => "no address of it is known".to_owned(),
        DialError::LocalPeerId { .. } => "the address is this node's own".to_owned(),
        DialError::Aborted | DialError::DialPeerConditionFalse(_) => "given up".to_owned(),
    };
    let line: Vec<&str> = reason.split_whitespace().collect();
    line.join(" ").chars().filter(|char| !char.is_control()).take(MAX_REASON_CHARS).collect()
}

fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error;
    // An error of the system wraps others without calling them its source.
    while let Some(next) = inner_of(last).or_else(|| last.source()) {
        last = next;
    }
    let told = last.to_string();
    // Some only repeat, as text, what those within them said before they were lost.
    if let Some(known) = KNOWN_REASONS.iter().find(|known| told.to_lowercase().contains(**known)) {
        return (*known).to_owned();
    }
    match last.downcast_ref::<io::Error>().map(io::Error::kind) {
        Some(kind) if !matches!(kind, io::ErrorKind::Other) && told.contains('\n') => kind.to_string(),
        _ => told,
    }
}

fn inner_of<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> Option<&'a (dyn std::error::Error + 'static)> {
    let inner = error.downcast_ref::<io::Error>()?.get_ref()?;
    Some(inner)
}

/// The address without a trailing `/p2p/<peer id>`, and that peer.
fn split_peer(address: &Multiaddr) -> (Multiaddr, Option<PeerId>) {
    let mut rest = address.clone();
    match rest.pop() {
        Some(Protocol::P2p(peer)) => (rest, Some(peer)),
        _ => (address.clone(), None),
    }
}

/// Whether this is `/ip4|ip6|dns|dns4|dns6/…/tcp/<port>` of a definite host: what others tell us
/// must not make us dial anything else.
fn is_dialable(address: &Multiaddr) -> bool {
    let mut parts = address.iter();
    let host = match parts.next() {
        Some(Protocol::Ip4(ip)) => !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast(),
        Some(Protocol::Ip6(ip)) => !ip.is_unspecified() && !ip.is_multicast(),
        Some(Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_)) => true,
        _ => false,
    };
    host && matches!(parts.next(), Some(Protocol::Tcp(port)) if port != 0) && parts.next().is_none()
}

/// Whether the address names this machine only.
pub(super) fn is_loopback(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => ip.is_loopback(),
        Some(Protocol::Ip6(ip)) => ip.is_loopback(),
        _ => false,
    }
}

fn dedup(addresses: &mut Vec<Multiaddr>) {
    let mut seen = Vec::with_capacity(addresses.len());
    addresses.retain(|address| {
        let new = !seen.contains(address);
        if new {
            seen.push(address.clone());
        }
        new
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: &str = "/ip4/10.0.0.1/tcp/7000";

    fn address(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    fn dial(dialer: &mut Dialer, now: Duration) -> Option<ConnectionId> {
        let attempt = dialer.due(now, |_| false).pop()?;
        let connection = libp2p::swarm::dial_opts::DialOpts::from(address(AT)).connection_id();
        dialer.on_dialing(attempt.target, connection);
        Some(connection)
    }

    #[test]
    fn a_configured_address_is_dialed_for_ever_with_growing_waits() {
        let mut dialer = Dialer::new(PeerId::random(), &[address(AT)]);
        let (mut now, mut last) = (Duration::ZERO, Duration::ZERO);
        for _ in 0..100 {
            let connection = dial(&mut dialer, now).expect("it is due");
            assert!(dialer.due(now, |_| false).is_empty(), "it is under way");
            dialer.on_failed(connection, now);
            let wait = dialer.plans.values().next().unwrap().not_before - now;
            assert!(wait >= last && wait <= LONGEST_CONFIGURED_WAIT);
            assert!(dialer.due(now + wait - Duration::from_millis(1), |_| false).is_empty());
            (now, last) = (now + wait, wait);
        }
    }

    #[test]
    fn after_an_hour_of_partition_a_replica_is_dialed_within_seconds() {
        let mut dialer = Dialer::new(PeerId::random(), &[address(AT)]);
        let mut now = Duration::ZERO;
        while now < Duration::from_secs(3600) {
            if let Some(connection) = dial(&mut dialer, now) {
                dialer.on_failed(connection, now);
            }
            now += FIRST_WAIT;
        }
        assert!(!dialer.due(now + LONGEST_CONFIGURED_WAIT, |_| false).is_empty());
    }

    #[test]
    fn an_address_is_left_alone_while_the_peer_that_answered_there_is_connected() {
        let mut dialer = Dialer::new(PeerId::random(), &[address(AT)]);
        let peer = PeerId::random();
        let connection = dial(&mut dialer, Duration::ZERO).unwrap();
        dialer.on_connected(connection, peer);
        assert!(dialer.due(SELF_WAIT, |at| *at == peer).is_empty());
        dialer.on_disconnected(&peer, SELF_WAIT, SELF_WAIT);
        assert_eq!(dialer.due(SELF_WAIT + FIRST_WAIT, |_| false).len(), 1);
    }

    #[test]
    fn the_nodes_own_address_is_left_alone() {
        let local = PeerId::random();
        let own = address(AT).with(Protocol::P2p(local));
        assert!(Dialer::new(local, &[own]).due(Duration::ZERO, |_| false).is_empty());
        let mut dialer = Dialer::new(local, &[address(AT)]);
        let connection = dial(&mut dialer, Duration::ZERO).unwrap();
        dialer.on_self(connection, Duration::ZERO);
        assert!(dialer.due(SELF_WAIT - FIRST_WAIT, |_| false).is_empty());
        assert_eq!(dialer.due(SELF_WAIT, |_| false).len(), 1, "it may belong to another node by now");
    }

    #[test]
    fn a_found_peer_is_given_up_and_can_be_found_again() {
        let mut dialer = Dialer::new(PeerId::random(), &[]);
        let peer = PeerId::random();
        dialer.learn(peer, vec![address(AT)]);
        let mut now = Duration::ZERO;
        for _ in 0..GIVE_UP_AFTER {
            let connection = dial(&mut dialer, now).unwrap();
            dialer.on_failed(connection, now);
            now += LONGEST_WAIT;
        }
        assert!(dialer.plans.is_empty());
        dialer.learn(peer, vec![address(AT)]);
        assert_eq!(dialer.due(now, |_| false).len(), 1);
    }

    #[test]
    fn a_peer_that_hangs_up_at_once_is_dialed_more_and_more_rarely() {
        let mut dialer = Dialer::new(PeerId::random(), &[address(AT)]);
        let peer = PeerId::random();
        let mut waits = Vec::new();
        let mut now = Duration::ZERO;
        for _ in 0..4 {
            let connection = dial(&mut dialer, now).unwrap();
            dialer.on_connected(connection, peer);
            dialer.on_disconnected(&peer, Duration::ZERO, now);
            let until = dialer.plans.values().next().unwrap().not_before;
            waits.push(until - now);
            now = until;
        }
        assert!(waits.windows(2).all(|pair| pair[1] == 2 * pair[0]), "{waits:?}");
    }

    #[test]
    fn only_plain_tcp_addresses_are_learned_and_not_too_many() {
        let mut dialer = Dialer::new(PeerId::random(), &[]);
        for bad in [
            "/ip4/0.0.0.0/tcp/7000",
            "/ip4/224.0.0.1/tcp/7000",
            "/ip4/10.0.0.1/tcp/0",
            "/ip4/10.0.0.1/udp/7000",
            "/ip4/10.0.0.1/tcp/7000/ws",
            "/unix/socket",
            "/dnsaddr/example.org",
            "",
        ] {
            dialer.learn(PeerId::random(), vec![address(bad)]);
        }
        assert!(dialer.plans.is_empty());
        let many = (1..100).map(|port| address(&format!("/ip6/::1/tcp/{port}"))).collect();
        dialer.learn(PeerId::random(), many);
        assert_eq!(dialer.plans.values().next().unwrap().addresses.len(), MAX_ADDRESSES_PER_NODE);
        for _ in 0..2 * MAX_DIAL_TARGETS {
            dialer.learn(PeerId::random(), vec![address("/dns4/node.example/tcp/7000")]);
        }
        assert_eq!(dialer.plans.len(), MAX_DIAL_TARGETS);
    }

    #[test]
    fn of_several_plans_for_one_node_one_tells_of_failures() {
        let mut dialer = Dialer::new(PeerId::random(), &[address(AT)]);
        let (peer, stranger) = (PeerId::random(), PeerId::random());
        // The same address, found with its peer; another address of it; and somebody else.
        dialer.learn(peer, vec![address(AT), address("/ip4/10.0.0.2/tcp/7000")]);
        dialer.learn(stranger, vec![address("/ip4/10.0.0.3/tcp/7000")]);
        let mut told = Vec::new();
        for attempt in dialer.due(Duration::ZERO, |_| false) {
            let connection = libp2p::swarm::dial_opts::DialOpts::from(address(AT)).connection_id();
            dialer.on_dialing(attempt.target, connection);
            let failure = dialer.on_failed(connection, Duration::ZERO).unwrap();
            assert_eq!(failure.failures, 1);
            told.push((failure.address.unwrap().to_string(), failure.told_elsewhere));
        }
        told.sort();
        assert_eq!(
            told,
            [(AT.to_owned(), false), (AT.to_owned(), true), ("/ip4/10.0.0.3/tcp/7000".to_owned(), false)]
        );
        // An address whose peer has answered once is that peer's.
        let mut dialer = Dialer::new(PeerId::random(), &[address(AT)]);
        let connection = dial(&mut dialer, Duration::ZERO).unwrap();
        dialer.on_connected(connection, peer);
        dialer.on_disconnected(&peer, LONGEST_WAIT, Duration::ZERO);
        let connection = dial(&mut dialer, FIRST_WAIT).unwrap();
        assert_eq!(dialer.on_failed(connection, FIRST_WAIT).unwrap().peer, Some(peer));
    }

    #[test]
    fn a_failed_dial_is_told_in_a_few_words_of_one_line() {
        use libp2p::core::transport::TransportError;
        let refused = || io::Error::from_raw_os_error(111);
        let nested =
            io::Error::other(format!("Multiple dial errors occurred:\n - {0}: Multiple:\n - {0}", refused()));
        let at = address(AT);
        let of = |error| reason(&DialError::Transport(vec![(at.clone(), TransportError::Other(error))]));
        assert_eq!(of(nested), "connection refused");
        assert_eq!(of(refused()), "connection refused");
        assert_eq!(of(io::Error::other(io::Error::from(io::ErrorKind::TimedOut))), "timed out");
        let twice = [refused(), refused()].map(|error| (at.clone(), TransportError::Other(error)));
        assert_eq!(reason(&DialError::Transport(twice.into())), "connection refused");
        let long = of(io::Error::other("a\nb\u{1b}[2J".repeat(1_000)));
        assert!(long.len() <= MAX_REASON_CHARS && !long.contains(['\n', '\u{1b}']), "{long}");
        let wrong = DialError::WrongPeerId { obtained: PeerId::random(), address: at.clone() };
        assert_eq!(reason(&wrong), "something else answers there");
    }

    #[test]
    fn each_address_of_a_name_is_dialed_as_long_as_the_name_has_it() {
        let name = address("/dns4/nodes/tcp/7000");
        let at = |last: u8| address(&format!("/ip4/10.0.0.{last}/tcp/7000"));
        let mut dialer = Dialer::new(PeerId::random(), &[]);
        let due = |dialer: &mut Dialer, now| {
            let attempts = dialer.due(now, |_| false);
            attempts.into_iter().flat_map(|attempt| attempt.addresses).collect::<Vec<_>>()
        };
        dialer.resolved(&name, vec![at(1), at(2), address("/ip4/0.0.0.0/tcp/7000")]);
        assert_eq!(due(&mut dialer, Duration::ZERO), [at(1), at(2)]);
        dialer.resolved(&name, vec![at(2), at(3)]);
        assert_eq!(due(&mut dialer, Duration::ZERO), [at(3)], "the second is under way, the first gone");
        dialer.resolved(&address("/dns4/others/tcp/7000"), vec![at(4)]);
        assert_eq!(dialer.plans.len(), 3, "another name changes nothing about the first one's");
    }

    #[test]
    fn an_address_of_a_name_whose_node_moved_is_dialed_for_whoever_has_it_now() {
        let mut dialer = Dialer::new(PeerId::random(), &[]);
        dialer.resolved(&address("/dns4/nodes/tcp/7000"), vec![address(AT)]);
        let moved = PeerId::random();
        let connection = dial(&mut dialer, Duration::ZERO).unwrap();
        dialer.on_connected(connection, moved);
        assert!(dialer.due(LONGEST_WAIT, |at| *at == moved).is_empty());
        dialer.on_disconnected(&moved, LONGEST_WAIT, LONGEST_WAIT);
        // It is connected again, from another address.
        assert_eq!(dialer.due(LONGEST_WAIT + FIRST_WAIT, |at| *at == moved).len(), 1);
    }

    #[test]
    fn an_address_of_a_name_is_never_given_up() {
        let mut dialer = Dialer::new(PeerId::random(), &[]);
        dialer.resolved(&address("/dns4/nodes/tcp/7000"), vec![address(AT)]);
        let mut now = Duration::ZERO;
        for _ in 0..4 * GIVE_UP_AFTER {
            let connection = dial(&mut dialer, now).expect("it is due");
            dialer.on_failed(connection, now);
            now += LONGEST_CONFIGURED_WAIT;
        }
    }

    #[test]
    fn what_is_configured_for_a_peer_stays_first() {
        let peer = PeerId::random();
        let configured = address(AT).with(Protocol::P2p(peer));
        let mut dialer = Dialer::new(PeerId::random(), &[configured]);
        dialer.learn(peer, vec![address(AT), address("/ip4/10.0.0.2/tcp/7000")]);
        let attempt = dialer.due(Duration::ZERO, |_| false).pop().unwrap();
        assert_eq!(attempt.addresses, [address(AT), address("/ip4/10.0.0.2/tcp/7000")]);
    }
}
