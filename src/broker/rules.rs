//! Which topics are a client's own (PROTOCOL.md section 2), as far as a broker can judge.
//!
//! A client may publish to `{id}/key` and `{id}/{stream}`, and subscribe below `{id}/`, wildcards
//! included. The client id is compared as text, level by level: nothing in it is ever a pattern, and
//! its form (see [`ClientId`]) leaves no room for `+`, `#` or a third level.

use crate::types::{ClientId, Stream};

/// The last part of a topic that asks for, or hands over, a key.
const KEY: &str = "key";

/// Whether `client` may publish to `topic`.
pub(super) fn may_publish(client: &ClientId, topic: &str) -> bool {
    below(client, topic).is_some_and(|last| last == KEY || Stream::new(last).is_ok())
}

/// Whether `client` may subscribe to `filter`.
pub(super) fn may_subscribe(client: &ClientId, filter: &str) -> bool {
    below(client, filter).is_some_and(|rest| !rest.is_empty())
}

fn below<'a>(client: &ClientId, topic: &'a str) -> Option<&'a str> {
    topic.strip_prefix(client.as_str())?.strip_prefix('/')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn iot() -> ClientId {
        ClientId::new("devices/iot").unwrap()
    }

    #[test]
    fn a_client_publishes_only_to_its_own_streams_and_key() {
        for good in ["devices/iot/key", "devices/iot/env", "devices/iot/A-1_x"] {
            assert!(may_publish(&iot(), good), "{good}");
        }
        for bad in [
            "",
            "devices/iot",
            "devices/iot/",
            "devices/iot2/env",
            "devices/io/env",
            "devices/other/env",
            "/devices/iot/env",
            "devices/iot/env/success",
            "devices/iot/unauth",
            "devices/iot/forbidden",
            "devices/iot/update",
            "devices/iot/+",
            "devices/iot/#",
            "devices/+/env",
            "+/iot/env",
            "#",
            "$SYS/devices/iot",
            "devices/iot/a b",
            "Devices/iot/env",
        ] {
            assert!(!may_publish(&iot(), bad), "{bad}");
        }
    }

    #[test]
    fn a_client_subscribes_only_below_its_own_id() {
        for good in ["devices/iot/#", "devices/iot/+/success", "devices/iot/unauth", "devices/iot/key/+"] {
            assert!(may_subscribe(&iot(), good), "{good}");
        }
        for bad in [
            "",
            "#",
            "+/+/#",
            "devices/#",
            "devices/+/env",
            "devices/iot",
            "devices/iot/",
            "devices/iot2/#",
            "devices/iot#",
            "$share/g/devices/iot/#",
            "$limit/1/devices/iot/#",
            "$SYS/#",
        ] {
            assert!(!may_subscribe(&iot(), bad), "{bad}");
        }
    }
}
