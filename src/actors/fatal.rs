//! Fail-stop: whoever cannot go on without breaking a promise says why, once, and the node stops.
//!
//! actix drops an actor whose handler panics, and tokio a task, without telling anybody: the node
//! would look alive and do nothing. So whatever the node cannot live without holds a [`Vital`],
//! whose end is such a reason, too. Once the node stops, further reasons are consequences of that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::mpsc;

/// The way to stop the node with a reason. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Fatal {
    reasons: mpsc::Sender<anyhow::Error>,
    stopping: Arc<AtomicBool>,
}

/// Where the first reason arrives.
#[derive(Debug)]
pub struct FatalReceiver(mpsc::Receiver<anyhow::Error>);

/// A new pair.
pub fn fatal() -> (Fatal, FatalReceiver) {
    // One place: the first reason stops the node, later ones are consequences of it.
    let (reasons, receiver) = mpsc::channel(1);
    (Fatal { reasons, stopping: Arc::default() }, FatalReceiver(receiver))
}

impl Fatal {
    /// Stops the node because of `reason`.
    pub fn stop(&self, reason: impl Into<anyhow::Error>) {
        let reason = reason.into();
        if self.stopping.swap(true, Ordering::Relaxed) {
            tracing::debug!(reason = format!("{reason:#}"), "while stopping");
            return;
        }
        tracing::error!(reason = format!("{reason:#}"), "stopping the node");
        let _the_node_ended = self.reasons.try_send(reason);
    }

    /// The node stops because it was told to: what ends from here on is no failure.
    pub fn stop_in_order(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Whether the node is stopping, for whatever reason: nothing is promised any more.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Something that the node cannot live without, for as long as what is returned lives.
    pub fn vital(&self, name: &'static str) -> Vital {
        Vital { name, fatal: self.clone() }
    }
}

/// Held by a part whose end, if the node is not stopping, stops it.
#[derive(Debug)]
#[must_use = "it stops the node when it is dropped"]
pub struct Vital {
    name: &'static str,
    fatal: Fatal,
}

impl Drop for Vital {
    fn drop(&mut self) {
        if !self.fatal.is_stopping() {
            self.fatal.stop(anyhow::anyhow!(
                "{} ended by itself, which is a bug: please report the panic message above; start the node again",
                self.name
            ));
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_reason_counts() {
        let (fatal, mut reasons) = fatal();
        assert!(!fatal.is_stopping());
        fatal.stop(anyhow::anyhow!("the disk is full"));
        fatal.stop(anyhow::anyhow!("a consequence"));
        assert!(fatal.is_stopping());
        assert_eq!(reasons.reason().await.to_string(), "the disk is full");
        assert!(reasons.0.try_recv().is_err());
    }

    #[tokio::test]
    async fn a_vital_part_that_panics_stops_the_node() {
        let (fatal, mut reasons) = fatal();
        let vital = fatal.vital("the part");
        let task = tokio::spawn(async move {
            let _vital = vital;
            panic!("a bug");
        });
        assert!(task.await.is_err());
        assert!(reasons.reason().await.to_string().starts_with("the part ended"));
    }

    #[tokio::test]
    async fn a_vital_part_may_end_when_the_node_stops() {
        let (fatal, mut reasons) = fatal();
        let vital = fatal.vital("the part");
        fatal.stop_in_order();
        drop(vital);
        assert!(reasons.0.try_recv().is_err());
    }
}
