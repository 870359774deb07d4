//! MQTT topics of the device protocol (docs/PROTOCOL.md section 2), built and parsed in one place.
//!
//! A client owns everything below `{client id}/` and nothing else: it may publish to its key topic
//! and to its streams, and subscribe below its own prefix, wildcards included. Client ids and
//! stream names cannot hold `/`, `+`, `#` or `$` where it matters, so a topic names one client.

use std::fmt;

use crate::types::{ClientId, Stream};

/// The longest topic or filter that MQTT can carry, in bytes.
const MAX_TOPIC_BYTES: usize = 65_535;

/// What a client publishes to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Uplink {
    /// `{id}/key`: asks for the node's KEM key, or hands over a payload key.
    Key,
    /// `{id}/{stream}`: a telemetry message.
    Telemetry(Stream),
}

impl Uplink {
    /// What `topic` is to `client`; `None` if the client may not publish to it.
    pub fn parse(client: &ClientId, topic: &str) -> Option<Self> {
        match below(client, topic)? {
            "key" => Some(Self::Key),
            stream => Stream::new(stream).ok().map(Self::Telemetry),
        }
    }

    /// The client and the meaning of a topic that somebody published to, as a node behind an
    /// external broker sees it.
    pub fn parse_any(topic: &str) -> Option<(ClientId, Self)> {
        let (client, _) = topic.rsplit_once('/')?;
        let client = ClientId::new(client).ok()?;
        let uplink = Self::parse(&client, topic)?;
        Some((client, uplink))
    }

    /// The topic.
    pub fn topic(&self, client: &ClientId) -> String {
        match self {
            Self::Key => format!("{client}/key"),
            Self::Telemetry(stream) => telemetry(client, stream),
        }
    }
}

/// The topic of a client's stream; part of the telemetry envelope's AAD.
pub fn telemetry(client: &ClientId, stream: &Stream) -> String {
    format!("{client}/{stream}")
}

/// What a node publishes to a client.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Downlink {
    /// `{id}/unauth`.
    Unauth,
    /// `{id}/forbidden`.
    Forbidden,
    /// `{id}/key/success`.
    KeySuccess,
    /// `{id}/key/fail`.
    KeyFail,
    /// `{id}/{stream}/datas`: the ack of the first message that this node accepted on the stream.
    Datas(Stream),
    /// `{id}/{stream}/success`: the ack of every later one.
    Success(Stream),
    /// `{id}/{stream}/error`.
    Error(Stream),
    /// `{id}/{stream}/receipt`: a proof bundle.
    Receipt(Stream),
}

impl Downlink {
    /// What `topic` is to `client`; `None` if nothing is published there.
    pub fn parse(client: &ClientId, topic: &str) -> Option<Self> {
        let rest = below(client, topic)?;
        match rest {
            "unauth" => return Some(Self::Unauth),
            "forbidden" => return Some(Self::Forbidden),
            "key/success" => return Some(Self::KeySuccess),
            "key/fail" => return Some(Self::KeyFail),
            _ => {}
        }
        let (stream, what) = rest.split_once('/')?;
        let stream = Stream::new(stream).ok()?;
        match what {
            "datas" => Some(Self::Datas(stream)),
            "success" => Some(Self::Success(stream)),
            "error" => Some(Self::Error(stream)),
            "receipt" => Some(Self::Receipt(stream)),
            _ => None,
        }
    }

    /// The topic.
    pub fn topic(&self, client: &ClientId) -> String {
        format!("{client}/{self}")
    }
}

impl fmt::Display for Downlink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unauth => f.write_str("unauth"),
            Self::Forbidden => f.write_str("forbidden"),
            Self::KeySuccess => f.write_str("key/success"),
            Self::KeyFail => f.write_str("key/fail"),
            Self::Datas(stream) => write!(f, "{stream}/datas"),
            Self::Success(stream) => write!(f, "{stream}/success"),
            Self::Error(stream) => write!(f, "{stream}/error"),
            Self::Receipt(stream) => write!(f, "{stream}/receipt"),
        }
    }
}

/// The filters that a client subscribes to before it publishes: all that a node can answer, and
/// nothing that the client itself publishes. No two of them overlap (`+/success` covers
/// `key/success`), since a broker may deliver once for each filter that matches.
pub fn reply_filters(client: &ClientId) -> Vec<String> {
    ["unauth", "forbidden", "key/fail", "+/datas", "+/success", "+/error", "+/receipt", "update/+"]
        .into_iter()
        .map(|filter| format!("{client}/{filter}"))
        .collect()
}

/// Whether `client` may publish to `topic`.
pub fn may_publish(client: &ClientId, topic: &str) -> bool {
    Uplink::parse(client, topic).is_some()
}

/// Whether `client` may subscribe to `filter`: any valid filter below `{id}/`. A shared
/// subscription (`$share/…`) does not begin with the id, so it is refused.
pub fn may_subscribe(client: &ClientId, filter: &str) -> bool {
    let Some(rest) = below(client, filter) else { return false };
    if filter.len() > MAX_TOPIC_BYTES || filter.contains('\0') {
        return false;
    }
    let mut levels = rest.split('/').peekable();
    while let Some(level) = levels.next() {
        let valid = match level {
            "#" => levels.peek().is_none(),
            "+" => true,
            name => !name.contains(['#', '+']),
        };
        if !valid {
            return false;
        }
    }
    true
}

/// The part of `topic` after `{id}/`, not empty.
fn below<'a>(client: &ClientId, topic: &'a str) -> Option<&'a str> {
    topic.strip_prefix(client.as_str())?.strip_prefix('/').filter(|rest| !rest.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn client() -> ClientId {
        ClientId::new("devices/iot").unwrap()
    }

    #[test]
    fn a_client_publishes_to_its_key_topic_and_its_streams_only() {
        let env = Uplink::Telemetry(Stream::new("env").unwrap());
        assert_eq!(Uplink::parse(&client(), "devices/iot/key"), Some(Uplink::Key));
        assert_eq!(Uplink::parse(&client(), "devices/iot/env"), Some(env.clone()));
        assert_eq!(Uplink::parse_any("devices/iot/env"), Some((client(), env)));
        for bad in [
            "devices/iot",
            "devices/iot/",
            "devices/iot2/env",
            "devices/iot/env/",
            "devices/iot/env/success",
            "devices/iot/key/success",
            "devices/iot/unauth",
            "devices/iot/forbidden",
            "devices/iot/update",
            "devices/iot/+",
            "devices/iot/#",
            "/devices/iot/env",
            "devices/other/env",
            "Devices/iot/env",
            "$SYS/x",
            "",
        ] {
            assert!(!may_publish(&client(), bad), "{bad}");
        }
    }

    #[test]
    fn a_client_subscribes_below_its_own_prefix_only() {
        for good in ["devices/iot/#", "devices/iot/+", "devices/iot/+/success", "devices/iot/env/error"] {
            assert!(may_subscribe(&client(), good), "{good}");
        }
        for bad in [
            "#",
            "+/+/#",
            "devices/#",
            "devices/iot",
            "devices/iot/",
            "devices/iot#",
            "devices/iot/#/x",
            "devices/iot/a+",
            "devices/iot/a#",
            "devices/iot/\0",
            "devices/iot2/#",
            "devices/+/env",
            "$share/group/devices/iot/#",
            "$share/devices/iot/#",
        ] {
            assert!(!may_subscribe(&client(), bad), "{bad}");
        }
    }

    #[test]
    fn every_downlink_topic_parses_back_and_is_subscribed_to() {
        let env = || Stream::new("env").unwrap();
        for downlink in [
            Downlink::Unauth,
            Downlink::Forbidden,
            Downlink::KeySuccess,
            Downlink::KeyFail,
            Downlink::Datas(env()),
            Downlink::Success(env()),
            Downlink::Error(env()),
            Downlink::Receipt(env()),
        ] {
            let topic = downlink.topic(&client());
            assert!(!may_publish(&client(), &topic), "{topic}");
            assert_eq!(Downlink::parse(&client(), &topic), Some(downlink));
        }
        for bad in
            ["devices/iot/env", "devices/iot/key/error", "devices/iot/env/success/x", "other/iot/unauth"]
        {
            assert_eq!(Downlink::parse(&client(), bad), None, "{bad}");
        }
    }

    #[test]
    fn reply_filters_are_allowed_and_match_no_uplink() {
        for filter in reply_filters(&client()) {
            assert!(may_subscribe(&client(), &filter), "{filter}");
            assert_ne!(filter, "devices/iot/#");
        }
    }

    proptest! {
        #[test]
        fn whatever_may_be_published_is_built_back_to_the_same_topic(topic in "(devices/iot/)?[a-z/+#$\u{0}]{0,12}") {
            if let Some(uplink) = Uplink::parse(&client(), &topic) {
                prop_assert_eq!(uplink.topic(&client()), topic);
            }
        }

        #[test]
        fn no_filter_outside_the_prefix_is_allowed(filter in "\\PC{0,40}") {
            prop_assert!(!may_subscribe(&client(), &filter) || filter.starts_with("devices/iot/"));
        }
    }
}
