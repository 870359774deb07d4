//! Who is connected, by the broker's own book-keeping.
//!
//! rmqtt tells of a connection when it is authenticated, when its session stands and when it ends,
//! but not when a client goes away in between. So every connection let in has a slot here from the
//! verdict on; the slot carries what the verdict was, and [`Registry::overdue`] finds those whose
//! handshake never ended. Whatever leaves the registry was told to the gatekeeper exactly once.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rmqtt::types::Id;

use super::{ConnectionId, ProtocolVersion, Session, Standing};
use crate::types::ClientId;

/// What is known of one connection.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub(super) session: Session,
    pub(super) protocol: ProtocolVersion,
    /// Monotonic time of the verdict.
    pub(super) admitted: Duration,
    /// Whether the handshake has ended.
    pub(super) connected: bool,
    /// The verdict no longer holds: the client was closed since.
    pub(super) revoked: bool,
}

#[derive(Debug, Default)]
pub(super) struct Registry {
    next: AtomicU64,
    slots: Mutex<HashMap<Id, Slot>>,
}

impl Registry {
    /// An id that no other connection of this process has.
    pub(super) fn next_connection(&self) -> ConnectionId {
        ConnectionId(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Takes in a connection that got a verdict; false if it is a stranger too many.
    pub(super) fn admit(&self, id: &Id, slot: Slot, max_strangers: u32) -> bool {
        self.with(|slots| {
            if slot.session.standing == Standing::Unregistered {
                let strangers = slots.values().filter(|s| s.session.standing == Standing::Unregistered);
                if strangers.count() >= max_strangers as usize {
                    return false;
                }
            }
            slots.insert(id.clone(), slot);
            true
        })
    }

    /// The slot of a connection.
    pub(super) fn slot(&self, id: &Id) -> Option<Slot> {
        self.with(|slots| slots.get(id).cloned())
    }

    /// Whether the client has another connection, which a new one takes over.
    pub(super) fn has_other(&self, id: &Id) -> bool {
        self.with(|slots| {
            let client = slots.get(id).map(|slot| &slot.session.client);
            slots.iter().any(|(other, slot)| {
                other != id && slot.connected && !slot.revoked && Some(&slot.session.client) == client
            })
        })
    }

    /// Notes the end of the handshake; false if the verdict does not hold any more.
    pub(super) fn connected(&self, id: &Id) -> bool {
        self.with(|slots| {
            slots.get_mut(id).is_some_and(|slot| {
                slot.connected = true;
                !slot.revoked
            })
        })
    }

    /// From now on no verdict given to `client` so far holds.
    pub(super) fn revoke(&self, client: &ClientId) {
        self.with(|slots| {
            for slot in slots.values_mut().filter(|slot| slot.session.client == *client) {
                slot.revoked = true;
            }
        });
    }

    /// Forgets a connection; `None` if that happened already.
    pub(super) fn remove(&self, id: &Id) -> Option<Session> {
        self.with(|slots| slots.remove(id)).map(|slot| slot.session)
    }

    /// Connections whose handshake has not ended within `limit`, and all that have ended it.
    pub(super) fn overdue(&self, now: Duration, limit: Duration) -> (Vec<Id>, Vec<Id>) {
        self.with(|slots| {
            let late = |slot: &Slot| !slot.connected && now.saturating_sub(slot.admitted) > limit;
            let pick = |f: &dyn Fn(&Slot) -> bool| {
                slots.iter().filter(|(_, slot)| f(slot)).map(|(id, _)| id.clone()).collect()
            };
            (pick(&late), pick(&|slot| slot.connected))
        })
    }

    /// Number of connections.
    pub(super) fn len(&self) -> usize {
        self.with(|slots| slots.len())
    }

    fn with<T>(&self, f: impl FnOnce(&mut HashMap<Id, Slot>) -> T) -> T {
        // A panic while the lock is held cannot leave a slot half written.
        f(&mut self.slots.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn id(client: &str) -> Id {
        Id::from(1, client.to_owned().into())
    }

    fn slot(registry: &Registry, client: &str, standing: Standing) -> Slot {
        Slot {
            session: Session {
                client: ClientId::new(client).unwrap(),
                connection: registry.next_connection(),
                standing,
            },
            protocol: ProtocolVersion::V311,
            admitted: Duration::from_secs(5),
            connected: false,
            revoked: false,
        }
    }

    #[test]
    fn strangers_are_limited_and_registered_clients_are_not() {
        let registry = Registry::default();
        assert!(registry.admit(&id("a/1"), slot(&registry, "a/1", Standing::Unregistered), 1));
        assert!(!registry.admit(&id("a/2"), slot(&registry, "a/2", Standing::Unregistered), 1));
        assert!(registry.admit(&id("a/3"), slot(&registry, "a/3", Standing::Registered), 1));
        assert_eq!(registry.len(), 2);
    }

    #[test]
    fn a_verdict_does_not_hold_after_the_client_was_closed() {
        let registry = Registry::default();
        let (one, two) = (id("a/1"), id("a/2"));
        registry.admit(&one, slot(&registry, "a/1", Standing::Registered), 0);
        registry.admit(&two, slot(&registry, "a/2", Standing::Registered), 0);
        registry.revoke(&ClientId::new("a/1").unwrap());
        assert!(!registry.connected(&one));
        assert!(registry.connected(&two));
    }

    #[test]
    fn unfinished_handshakes_become_overdue_and_are_told_once() {
        let registry = Registry::default();
        let one = id("a/1");
        registry.admit(&one, slot(&registry, "a/1", Standing::Registered), 0);
        let limit = Duration::from_secs(10);
        assert_eq!(registry.overdue(Duration::from_secs(15), limit), (vec![], vec![]));
        assert_eq!(registry.overdue(Duration::from_secs(16), limit), (vec![one.clone()], vec![]));
        assert!(registry.remove(&one).is_some());
        assert!(registry.remove(&one).is_none());
    }
}
