//! Names with many addresses, such as that of a headless Service: a bootstrap address like
//! `/dns4/ledgermq-headless/tcp/7000`, without a peer id, is resolved again and again, and every
//! address that comes of it is dialed.
//!
//! ```text
//! Names::due ──▶ Resolve (a thread) ──▶ Names::on_answer ──▶ Dialer::resolved
//!     ▲                                       │
//!     └── interval ± a fifth, 1 s, 2 s, … while it does not resolve
//! ```
//!
//! A name that does not resolve is no error: the others may start later, and what it meant before is
//! still dialed. The log says so once, and once more when it resolves again. [`Names`] is a plan without
//! clock, randomness and network; the swarm task carries it out.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;

use crate::network::settings::MAX_ADDRESSES_PER_NAME;

/// The wait after the first failure; doubles with each, up to the interval.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// A name to look up now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question {
    /// Which name, for the answer.
    pub(super) name: usize,
    /// Its host.
    pub(super) host: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Any,
    V4,
    V6,
}

#[derive(Debug)]
struct Name {
    address: Multiaddr,
    host: String,
    family: Family,
    port: u16,
    failures: u32,
    not_before: Duration,
    asked: bool,
}

/// The names among the bootstrap addresses, and when each is resolved next.
#[derive(Debug)]
pub(super) struct Names {
    names: Vec<Name>,
    interval: Duration,
}

impl Names {
    /// Takes the names out of `bootstrap`; gives them and the other addresses.
    pub(super) fn split(bootstrap: &[Multiaddr], interval: Duration) -> (Self, Vec<Multiaddr>) {
        let (mut names, mut others) = (Vec::new(), Vec::new());
        for address in bootstrap {
            match Name::of(address) {
                Some(name) => names.push(name),
                None => others.push(address.clone()),
            }
        }
        (Self { names, interval }, others)
    }

    /// The names to look up now, each once until its answer is there.
    pub(super) fn due(&mut self, now: Duration) -> Vec<Question> {
        let mut due = Vec::new();
        for (at, name) in self.names.iter_mut().enumerate() {
            if !name.asked && name.not_before <= now {
                name.asked = true;
                due.push(Question { name: at, host: name.host.clone() });
            }
        }
        due
    }

    /// Takes an answer; gives the name as configured and its addresses but those of this node itself,
    /// if it has any. `jitter` is any byte: nodes that started together do not go on asking together.
    pub(super) fn on_answer(
        &mut self,
        name: usize,
        answer: io::Result<Vec<IpAddr>>,
        own: &BTreeSet<Multiaddr>,
        now: Duration,
        jitter: u8,
    ) -> Option<(&Multiaddr, Vec<Multiaddr>)> {
        let interval = self.interval;
        let name = self.names.get_mut(name)?;
        name.asked = false;
        let found = answer.and_then(|all| name.addresses(all));
        let wait = match &found {
            Ok(addresses) => {
                if name.failures > 0 {
                    tracing::info!(name = %name.host, addresses = addresses.len(), "a name of nodes resolves now");
                }
                name.failures = 0;
                interval
            }
            Err(error) => {
                if name.failures == 0 {
                    tracing::info!(name = %name.host, %error, "a name of nodes does not resolve; will try again");
                }
                name.failures = name.failures.saturating_add(1);
                FIRST_WAIT.saturating_mul(1 << (name.failures - 1).min(16)).min(interval)
            }
        };
        // From four fifths of it to six fifths.
        name.not_before = now + wait * 4 / 5 + wait * 2 / 5 * u32::from(jitter) / u32::from(u8::MAX);
        let mut addresses = found.ok()?;
        addresses.retain(|address| !own.contains(address));
        Some((&name.address, addresses))
    }
}

impl Name {
    /// A name and a port and nothing else: with a peer id it means one node, which the dialer reaches.
    fn of(address: &Multiaddr) -> Option<Self> {
        let mut parts = address.iter();
        let (host, family) = match parts.next()? {
            Protocol::Dns(host) => (host.into_owned(), Family::Any),
            Protocol::Dns4(host) => (host.into_owned(), Family::V4),
            Protocol::Dns6(host) => (host.into_owned(), Family::V6),
            _ => return None,
        };
        let Some(Protocol::Tcp(port)) = parts.next() else { return None };
        let address = address.clone();
        let name =
            Self { address, host, family, port, failures: 0, not_before: Duration::ZERO, asked: false };
        parts.next().is_none().then_some(name)
    }

    fn addresses(&self, mut all: Vec<IpAddr>) -> io::Result<Vec<Multiaddr>> {
        all.retain(|ip| match self.family {
            Family::Any => true,
            Family::V4 => ip.is_ipv4(),
            Family::V6 => ip.is_ipv6(),
        });
        all.sort_unstable();
        all.dedup();
        all.truncate(MAX_ADDRESSES_PER_NAME);
        if all.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "it has no address of this kind"));
        }
        Ok(all.into_iter().map(|ip| Multiaddr::from(ip).with(Protocol::Tcp(self.port))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(10);

    /// No address of this node itself.
    const NONE: &BTreeSet<Multiaddr> = &BTreeSet::new();

    fn names(bootstrap: &[&str]) -> (Names, Vec<Multiaddr>) {
        let bootstrap: Vec<Multiaddr> = bootstrap.iter().map(|text| text.parse().unwrap()).collect();
        Names::split(&bootstrap, INTERVAL)
    }

    fn ips(all: &[&str]) -> Vec<IpAddr> {
        all.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn texts(all: &[Multiaddr]) -> Vec<String> {
        all.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn only_a_name_and_a_port_without_a_peer_is_resolved_here() {
        let peer = libp2p::PeerId::random();
        let one_node = format!("/dns4/node-0.example/tcp/7000/p2p/{peer}");
        let (names, others) =
            names(&["/dns4/nodes/tcp/7000", &one_node, "/ip4/10.0.0.1/tcp/7000", "/dnsaddr/example.org"]);
        assert_eq!(names.names.len(), 1);
        assert_eq!(texts(&others), [&one_node, "/ip4/10.0.0.1/tcp/7000", "/dnsaddr/example.org"]);
    }

    #[test]
    fn all_addresses_of_the_wanted_family_are_given_once() {
        let all = ["10.0.0.2", "10.0.0.1", "fd00::1", "10.0.0.2"];
        for (name, expected) in [
            ("/dns4/nodes/tcp/7", vec!["/ip4/10.0.0.1/tcp/7", "/ip4/10.0.0.2/tcp/7"]),
            ("/dns6/nodes/tcp/7", vec!["/ip6/fd00::1/tcp/7"]),
            ("/dns/nodes/tcp/7", vec!["/ip4/10.0.0.1/tcp/7", "/ip4/10.0.0.2/tcp/7", "/ip6/fd00::1/tcp/7"]),
        ] {
            let (mut names, _) = names(&[name]);
            assert_eq!(names.due(Duration::ZERO)[0].host, "nodes");
            let (configured, found) = names.on_answer(0, Ok(ips(&all)), NONE, Duration::ZERO, 0).unwrap();
            assert_eq!(configured.to_string(), name);
            assert_eq!(texts(&found), expected);
        }
        let (mut names, _) = names(&["/dns6/nodes/tcp/7"]);
        assert_eq!(names.on_answer(0, Ok(ips(&["10.0.0.1"])), NONE, Duration::ZERO, 0), None);
    }

    #[test]
    fn the_addresses_of_the_node_itself_are_left_out() {
        let (mut names, _) = names(&["/dns4/nodes/tcp/7"]);
        let own = BTreeSet::from(["/ip4/10.0.0.1/tcp/7".parse().unwrap()]);
        let (_, found) =
            names.on_answer(0, Ok(ips(&["10.0.0.1", "10.0.0.2"])), &own, Duration::ZERO, 0).unwrap();
        assert_eq!(texts(&found), ["/ip4/10.0.0.2/tcp/7"]);
        let (_, found) = names.on_answer(0, Ok(ips(&["10.0.0.1"])), &own, Duration::ZERO, 0).unwrap();
        assert!(found.is_empty(), "that is an answer, too");
    }

    #[test]
    fn a_name_is_asked_again_after_the_interval_give_or_take_a_fifth() {
        for (jitter, wait) in [(0, 8), (u8::MAX, 12)] {
            let (mut names, _) = names(&["/dns4/nodes/tcp/7"]);
            assert_eq!(names.due(Duration::ZERO).len(), 1);
            assert!(names.due(INTERVAL * 100).is_empty(), "it is under way");
            names.on_answer(0, Ok(ips(&["10.0.0.1"])), NONE, Duration::ZERO, jitter).unwrap();
            let wait = Duration::from_secs(wait);
            assert!(names.due(wait - Duration::from_millis(1)).is_empty());
            assert_eq!(names.due(wait).len(), 1);
        }
    }

    #[test]
    fn a_name_that_does_not_resolve_is_asked_soon_and_then_ever_more_rarely() {
        let (mut names, _) = names(&["/dns4/nodes/tcp/7"]);
        let (mut now, mut waits) = (Duration::ZERO, Vec::new());
        for _ in 0..6 {
            assert_eq!(names.due(now).len(), 1);
            assert_eq!(names.on_answer(0, Err(io::Error::other("no such name")), NONE, now, 0), None);
            waits.push(names.names[0].not_before - now);
            now = names.names[0].not_before;
        }
        assert_eq!(waits, [800, 1600, 3200, 6400, 8000, 8000].map(Duration::from_millis));
        names.on_answer(0, Ok(ips(&["10.0.0.1"])), NONE, now, 0).unwrap();
        names.on_answer(0, Err(io::Error::other("no such name")), NONE, now, 0);
        assert_eq!(names.names[0].not_before - now, Duration::from_millis(800), "it begins anew");
    }

    #[test]
    fn not_more_addresses_are_taken_than_fit() {
        let (mut names, _) = names(&["/dns4/nodes/tcp/7"]);
        let many = (0..=u16::MAX).map(|at| IpAddr::from([10, 0, at.to_be_bytes()[0], at.to_be_bytes()[1]]));
        let (_, found) = names.on_answer(0, Ok(many.collect()), NONE, Duration::ZERO, 0).unwrap();
        assert_eq!(found.len(), MAX_ADDRESSES_PER_NAME);
    }
}
