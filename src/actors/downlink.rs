//! The node's signed word to its clients: control messages out to the broker.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::broker::{Broker, DownlinkQos};
use crate::crypto::SecretKey;
use crate::device::control::{self, Fields};
use crate::device::topics;
use crate::metrics::{IngressMetrics, StageTime};
use crate::types::{ClientId, NetworkId};

/// Signs and publishes. Cheap to clone.
#[derive(Clone)]
pub struct Downlink {
    network: NetworkId,
    key: SecretKey,
    /// Set once the broker runs; before that nobody is connected.
    broker: Arc<OnceLock<Arc<dyn Broker>>>,
    metrics: IngressMetrics,
    time: StageTime,
}

impl Downlink {
    /// A downlink without a broker yet.
    pub fn new(network: NetworkId, key: SecretKey, metrics: IngressMetrics) -> Self {
        Self { network, key, broker: Arc::new(OnceLock::new()), metrics, time: StageTime::default() }
    }

    /// Counts the time of signatures.
    #[must_use]
    pub fn timed(self, time: StageTime) -> Self {
        Self { time, ..self }
    }

    /// Connects it.
    pub fn connect(&self, broker: Arc<dyn Broker>) {
        let _connected_once = self.broker.set(broker);
    }

    /// The broker, once connected.
    pub fn broker(&self) -> Option<&Arc<dyn Broker>> {
        self.broker.get()
    }

    /// Signs `fields` and publishes them on `topic` to their client.
    pub async fn send<F: Fields>(&self, client: &ClientId, topic: &topics::Downlink, fields: &F) {
        let payload = self.time.sampled(|| control::sign(&self.network, client, &self.key, fields));
        self.metrics.replies.with_label_values(&[F::KIND.as_str()]).inc();
        self.publish(client, topic, payload.into()).await;
    }

    /// Publishes bytes that prove themselves.
    pub async fn publish(&self, client: &ClientId, topic: &topics::Downlink, payload: Bytes) {
        let Some(broker) = self.broker.get() else { return };
        if let Err(error) =
            broker.publish(client, &topic.topic(client), payload, DownlinkQos::AtLeastOnce).await
        {
            tracing::debug!(%client, %error, "reply not sent; the client asks again");
        }
    }
}
