//! What the broker's parts have in common: its settings, who decides, who is there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use rmqtt::context::ServerContext;

use super::door::Guests;
use super::registry::Registry;
use super::{BrokerSettings, Gatekeeper};
use crate::clock::SharedClock;

/// See the module.
pub(super) struct Shared {
    pub(super) settings: BrokerSettings,
    pub(super) gatekeeper: Arc<dyn Gatekeeper>,
    pub(super) registry: Registry,
    pub(super) clock: SharedClock,
    pub(super) guests: Arc<Guests>,
    pub(super) downlink_dropped: AtomicU64,
    pub(super) context: ServerContext,
    pub(super) stopped: AtomicBool,
}
