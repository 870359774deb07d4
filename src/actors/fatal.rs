//! Fail-stop: whoever cannot go on without breaking a promise says why, once, and the node stops.

use tokio::sync::mpsc;

/// The way to stop the node with a reason. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Fatal(mpsc::Sender<anyhow::Error>);

/// Where the first reason arrives.
#[derive(Debug)]
pub struct FatalReceiver(mpsc::Receiver<anyhow::Error>);

/// A new pair.
pub fn fatal() -> (Fatal, FatalReceiver) {
    // One place: the first reason stops the node, later ones are consequences of it.
    let (sender, receiver) = mpsc::channel(1);
    (Fatal(sender), FatalReceiver(receiver))
}

impl Fatal {
    /// Stops the node because of `reason`.
    pub fn stop(&self, reason: impl Into<anyhow::Error>) {
        let reason = reason.into();
        tracing::error!(reason = format!("{reason:#}"), "stopping the node");
        let _ = self.0.try_send(reason);
    }
}

impl FatalReceiver {
    /// Waits for a reason to stop. Never returns without one.
    pub async fn reason(&mut self) -> anyhow::Error {
        match self.0.recv().await {
            Some(reason) => reason,
            None => std::future::pending().await,
        }
    }
}
