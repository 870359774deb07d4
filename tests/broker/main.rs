//! The embedded broker from outside: what PROTOCOL.md sections 2 and 3 promise, for MQTT 3.1.1 and 5.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod connecting;
mod hostile;
mod messages;
mod support;
