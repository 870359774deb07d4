//! What happens when rmqtt asks: the rules of PROTOCOL.md sections 2 and 3, then the gatekeeper.
//!
//! rmqtt is open unless told otherwise: its ACL hooks allow when there is no answer. So each hook here
//! answers every question that it is asked, and what is unknown is refused.
//!
//! | hook | answers |
//! | --- | --- |
//! | `ClientAuthenticate` | client id, no will, then [`Gatekeeper::connect`] |
//! | `ClientConnected` | closes whoever's verdict was overtaken by [`super::Broker::close_client`] |
//! | `ClientSubscribeCheckAcl` | own topics only |
//! | `SessionSubscribed` | [`Gatekeeper::subscribed`] |
//! | `MessagePublishCheckAcl` | own topics, not retained, then [`Gatekeeper::publish`]; PUBACK waits here |
//! | `ClientDisconnected` | [`Gatekeeper::disconnected`] |
//! | `MessageDropped` | counts downlink that did not reach its client |
//!
//! Uplink is never routed: an accepted PUBLISH is answered with "no matching subscribers", which is a
//! success on MQTT 5 and a plain PUBACK on 3.1.1.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use rmqtt::codec::v5::{PublishAckReason, SubscribeAckReason};
use rmqtt::hook::{Handler, HookManager, HookResult, Parameter, ReturnType, Type};
use rmqtt::types::{
    AuthResult, ConnectInfo, Id, Publish, PublishAclResult, PublishResult, Subscribe, SubscribeReturn,
};

use super::registry::Slot;
use super::shared::Shared;
use super::{ConnectRequest, ConnectVerdict, ProtocolVersion, Session, Standing, Uplink, UplinkVerdict};
use crate::device::topics;
use crate::types::ClientId;

/// A stranger's PUBLISH is answered this long after the one before, so that nobody without a key can
/// keep the node busy: ten messages a second are enough to be told `unauth`.
const STRANGER_PUBLISH_INTERVAL: Duration = Duration::from_millis(100);

/// Every hook that is answered.
const HOOKS: [Type; 7] = [
    Type::ClientAuthenticate,
    Type::ClientConnected,
    Type::ClientSubscribeCheckAcl,
    Type::SessionSubscribed,
    Type::MessagePublishCheckAcl,
    Type::ClientDisconnected,
    Type::MessageDropped,
];

/// Registers and starts all hooks (a hook that is not started does nothing, and so allows).
pub(super) async fn install(manager: &dyn HookManager, shared: &Arc<Shared>) {
    let register = manager.register();
    for hook in HOOKS {
        register.add(hook, Box::new(Hooks { shared: Arc::clone(shared) })).await;
    }
    register.start().await;
}

struct Hooks {
    shared: Arc<Shared>,
}

#[async_trait]
impl Handler for Hooks {
    // Spelled as in the trait: with a named lifetime the two signatures differ.
    #[allow(elided_lifetimes_in_paths)]
    async fn hook(&self, parameter: &Parameter, acc: Option<HookResult>) -> ReturnType {
        let answer = match parameter {
            Parameter::ClientAuthenticate(info) => HookResult::AuthResult(self.on_connect(info).await),
            Parameter::ClientSubscribeCheckAcl(session, subscribe) => {
                HookResult::SubscribeAclResult(self.on_subscribe(&session.id, subscribe))
            }
            Parameter::MessagePublishCheckAcl(session, publish) => {
                HookResult::PublishAclResult(self.on_publish(&session.id, publish).await)
            }
            Parameter::ClientConnected(session) => {
                self.on_connected(&session.id);
                return (true, acc);
            }
            Parameter::SessionSubscribed(session, _) => {
                if let Some(slot) = self.shared.registry.slot(&session.id) {
                    self.shared.gatekeeper.subscribed(&slot.session).await;
                }
                return (true, acc);
            }
            Parameter::ClientDisconnected(session, _) => {
                self.shared.disconnected(&session.id).await;
                return (true, acc);
            }
            Parameter::MessageDropped(Some(to), ..) => {
                self.shared.downlink_dropped.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(client = %to.client_id, "downlink message dropped");
                return (true, acc);
            }
            _ => return (true, acc),
        };
        (false, Some(answer))
    }
}

impl Hooks {
    async fn on_connect(&self, info: &ConnectInfo) -> AuthResult {
        let id = info.id();
        let Ok(client) = ClientId::new(&id.client_id) else {
            tracing::debug!(client = %id.client_id.escape_debug(), "connect refused: not a client id");
            return AuthResult::NotAuthorized;
        };
        if info.last_will().is_some() {
            tracing::debug!(%client, "connect refused: carries a will");
            return AuthResult::NotAuthorized;
        }
        let Some(request) = connect_request(info, client, &self.shared) else {
            return AuthResult::NotAuthorized;
        };
        self.judge(id, request).await
    }

    async fn judge(&self, id: &Id, request: ConnectRequest) -> AuthResult {
        let (client, connection, protocol) = (request.client.clone(), request.connection, request.protocol);
        let standing = match self.shared.gatekeeper.connect(request).await {
            ConnectVerdict::Registered => Standing::Registered,
            ConnectVerdict::Unregistered => Standing::Unregistered,
            ConnectVerdict::Refuse => {
                tracing::debug!(%client, "connect refused: missing or bad token");
                return AuthResult::NotAuthorized;
            }
        };
        let session = Session { client, connection, standing };
        let slot = Slot {
            session: session.clone(),
            protocol,
            admitted: self.shared.clock.monotonic(),
            connected: false,
            revoked: false,
        };
        if !self.shared.registry.admit(id, slot, self.shared.settings.max_strangers) {
            tracing::debug!(client = %session.client, "connect refused: too many unregistered clients");
            self.shared.gatekeeper.disconnected(&session).await;
            return AuthResult::NotAuthorized;
        }
        AuthResult::Allow(false, None)
    }

    fn on_connected(&self, id: &Id) {
        if self.shared.registry.has_other(id) {
            tracing::info!(
                client = %id.client_id,
                "a new connection takes over the one that the client had: if that goes on, two programs use its id"
            );
        }
        if !self.shared.registry.connected(id) {
            tracing::info!(client = %id.client_id, "closed: its registration changed while it connected");
            let (shared, id) = (Arc::clone(&self.shared), id.clone());
            tokio::spawn(async move { shared.erase_if_same(&id).await });
        }
    }

    fn on_subscribe(&self, id: &Id, subscribe: &Subscribe) -> SubscribeReturn {
        let allowed = self
            .shared
            .registry
            .slot(id)
            .is_some_and(|slot| topics::may_subscribe(&slot.session.client, &subscribe.topic_filter));
        if allowed {
            SubscribeReturn::new_success(subscribe.opts.qos(), None)
        } else {
            tracing::debug!(client = %id.client_id, filter = %subscribe.topic_filter.escape_debug(),
                "subscribe refused: not the client's own topic");
            SubscribeReturn::new_failure(SubscribeAckReason::NotAuthorized)
        }
    }

    async fn on_publish(&self, id: &Id, publish: &Publish) -> PublishAclResult {
        let Some(slot) = self.shared.registry.slot(id) else {
            return disconnect();
        };
        if slot.revoked || self.shared.stopped() {
            return disconnect();
        }
        if publish.retain || !topics::may_publish(&slot.session.client, &publish.topic) {
            tracing::debug!(client = %id.client_id, topic = %publish.topic.escape_debug(), retain = publish.retain,
                "publish refused: retained, or not the client's own topic");
            return not_authorized(slot.protocol);
        }
        if slot.session.standing == Standing::Unregistered {
            tokio::time::sleep(STRANGER_PUBLISH_INTERVAL).await;
        }
        let uplink = Uplink {
            session: slot.session,
            topic: publish.topic.to_string(),
            payload: publish.payload.clone(),
        };
        match self.shared.gatekeeper.publish(uplink).await {
            UplinkVerdict::Accepted => consumed(),
            UplinkVerdict::NotAuthorized => not_authorized(slot.protocol),
            UplinkVerdict::Disconnect => disconnect(),
        }
    }
}

fn connect_request(info: &ConnectInfo, client: ClientId, shared: &Shared) -> Option<ConnectRequest> {
    let (protocol, clean_start) = match info {
        ConnectInfo::V5(_, connect) => (ProtocolVersion::V5, connect.clean_start),
        ConnectInfo::V3(_, connect) => match connect.protocol.level() {
            3 => (ProtocolVersion::V31, connect.clean_session),
            4 => (ProtocolVersion::V311, connect.clean_session),
            _ => return None,
        },
    };
    Some(ConnectRequest {
        client,
        connection: shared.registry.next_connection(),
        username: info.username().map(ToString::to_string),
        password: info.password().cloned(),
        clean_start,
        protocol,
        // Who did not come through the door has no business here.
        remote: shared.guests.remote(info.ipaddress()?)?,
    })
}

/// Taken, and to be routed nowhere.
fn consumed() -> PublishAclResult {
    PublishAclResult(PublishResult::reason_code(PublishAckReason::NoMatchingSubscribers, None, false))
}

/// 0x87 on MQTT 5; 3.1.1 has no way to say no but to hang up.
fn not_authorized(protocol: ProtocolVersion) -> PublishAclResult {
    PublishAclResult::rejected(protocol != ProtocolVersion::V5, Some("not your topic, or retained".into()))
}

fn disconnect() -> PublishAclResult {
    PublishAclResult(PublishResult::reason_code(PublishAckReason::QuotaExceeded, None, true))
}
