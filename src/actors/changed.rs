//! Clients whose registration changed, on their way to Ingress, which closes their sessions.
//!
//! A set rather than a queue: a node that fetches blocks with a hundred thousand registrations
//! finds them faster than sessions are closed, and Storage may not wait. So it is bounded by the
//! clients on the ledger, and a client that changes twice is closed once.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use actix::Recipient;
use tokio::sync::Notify;

use super::ClientChanged;
use crate::types::ClientId;

/// See the module. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct ChangedClients {
    waiting: Arc<Mutex<BTreeSet<ClientId>>>,
    changed: Arc<Notify>,
}

impl ChangedClients {
    /// Notes that a client changed.
    pub fn note(&self, client: ClientId) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(client);
        self.changed.notify_one();
    }

    pub(super) fn take(&self) -> Option<ClientId> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_first()
    }

    /// Hands the clients on, one after the other, until `to` is gone.
    pub async fn deliver(self, to: Recipient<ClientChanged>) {
        loop {
            while let Some(client) = self.take() {
                if to.send(ClientChanged(client)).await.is_err() {
                    return;
                }
            }
            self.changed.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_changes_twice_is_told_once() {
        let changed = ChangedClients::default();
        let client = |name: &str| ClientId::new(name).unwrap();
        for name in ["a/one", "a/two", "a/one"] {
            changed.note(client(name));
        }
        assert_eq!(changed.take(), Some(client("a/one")));
        assert_eq!(changed.take(), Some(client("a/two")));
        assert_eq!(changed.take(), None);
    }
}
