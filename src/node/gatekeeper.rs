//! What the broker asks of the node: who may come in, and what becomes of a PUBLISH.

use std::sync::Arc;
use std::time::Duration;

use actix::Addr;
use async_trait::async_trait;

use crate::actors::ingress::{GreetStranger, HandleUplink, Ingress};
use crate::actors::view::LedgerView;
use crate::broker::{ConnectRequest, ConnectVerdict, Gatekeeper, Session, Standing, Uplink, UplinkVerdict};
use crate::clock::SharedClock;
use crate::device::token;
use crate::metrics::IngressMetrics;
use crate::types::NetworkId;

/// The node, as the broker sees it.
pub(super) struct NodeGatekeeper {
    pub(super) network: NetworkId,
    pub(super) view: Arc<LedgerView>,
    pub(super) ingress: Addr<Ingress>,
    pub(super) clock: SharedClock,
    pub(super) token_max_age: Duration,
    pub(super) metrics: IngressMetrics,
}

impl NodeGatekeeper {
    fn count(&self, standing: Standing, by: i64) {
        let registered = if standing == Standing::Registered { "yes" } else { "no" };
        self.metrics.connections.with_label_values(&[registered]).add(by);
    }

    fn refuse(&self, reason: &'static str) -> ConnectVerdict {
        self.metrics.connections_refused.with_label_values(&[reason]).inc();
        ConnectVerdict::Refuse
    }
}

impl NodeGatekeeper {
    fn judge(&self, request: &ConnectRequest) -> ConnectVerdict {
        let ConnectRequest { client, password, remote, .. } = request;
        let registered = match self.view.client(client) {
            Some(registered) if registered.revoked.is_none() => registered,
            // Strangers and revoked clients come in without proof, to be told so and nothing else.
            _ if password.is_none() => return ConnectVerdict::Unregistered,
            _ => {
                tracing::debug!(%client, %remote, "a client that is not registered sent a password");
                return ConnectVerdict::Unregistered;
            }
        };
        let Some(password) = password else {
            tracing::debug!(%client, %remote, "connection refused: no token");
            return self.refuse("no_token");
        };
        let verified = token::verify(
            password,
            &registered.key,
            &self.network,
            client,
            self.clock.now(),
            self.token_max_age.as_secs(),
        );
        match verified {
            Ok(_) => ConnectVerdict::Registered,
            Err(error) => {
                tracing::debug!(%client, %remote, %error, "connection refused: bad token");
                self.refuse("bad_token")
            }
        }
    }
}

#[async_trait]
impl Gatekeeper for NodeGatekeeper {
    async fn connect(&self, request: ConnectRequest) -> ConnectVerdict {
        let verdict = self.judge(&request);
        match verdict {
            ConnectVerdict::Registered => self.count(Standing::Registered, 1),
            ConnectVerdict::Unregistered => self.count(Standing::Unregistered, 1),
            ConnectVerdict::Refuse => {}
        }
        verdict
    }

    async fn publish(&self, uplink: Uplink) -> UplinkVerdict {
        self.ingress.send(HandleUplink(uplink)).await.unwrap_or(UplinkVerdict::Disconnect)
    }

    async fn subscribed(&self, session: &Session) {
        if session.standing == Standing::Unregistered {
            let _stopping = self.ingress.send(GreetStranger(session.client.clone())).await;
        }
    }

    async fn disconnected(&self, session: &Session) {
        self.count(session.standing, -1);
    }
}
