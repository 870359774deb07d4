//! How many replies, or messages, a client gets in a minute: counters of the current minute, freed
//! when it ends. Of strangers, who can invent names, the number of names is bounded; registered
//! clients are bounded by the ledger, and each gets its share, also when all come back at once.

use std::collections::HashMap;

use crate::types::{ClientId, Timestamp};

/// Names of strangers counted in one minute. Beyond it further names get nothing: somebody is
/// inventing them.
const MAX_STRANGERS: usize = 16_384;

const MINUTE_MS: u64 = 60_000;

/// Counters for one kind of event.
#[derive(Debug)]
pub struct PerMinute {
    limit: u32,
    max_names: usize,
    minute: u64,
    counts: HashMap<ClientId, u32>,
}

impl PerMinute {
    /// Allows `limit` events a minute to each of so many strangers.
    pub fn of_strangers(limit: u32) -> Self {
        Self { limit, max_names: MAX_STRANGERS, minute: 0, counts: HashMap::new() }
    }

    /// Allows `limit` events a minute to each registered client.
    pub fn of_registered(limit: u32) -> Self {
        Self { max_names: usize::MAX, ..Self::of_strangers(limit) }
    }

    /// Counts an event; false if it is one too many.
    pub fn allow(&mut self, client: &ClientId, now: Timestamp) -> bool {
        let minute = now.0 / MINUTE_MS;
        if minute != self.minute {
            self.minute = minute;
            self.counts.clear();
        }
        if let Some(count) = self.counts.get_mut(client) {
            *count = count.saturating_add(1);
            return *count <= self.limit;
        }
        if self.counts.len() >= self.max_names {
            return false;
        }
        self.counts.insert(client.clone(), 1);
        self.limit >= 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_gets_its_share_of_each_minute_and_no_more() {
        let mut rate = PerMinute::of_registered(2);
        let client = ClientId::new("a/b").unwrap();
        let allowed = |rate: &mut PerMinute, at| rate.allow(&client, Timestamp(at));
        assert!(allowed(&mut rate, 60_000) && allowed(&mut rate, 60_001));
        assert!(!allowed(&mut rate, 119_999));
        assert!(allowed(&mut rate, 120_000));
    }

    #[test]
    fn invented_names_cost_bounded_memory() {
        let mut rate = PerMinute::of_strangers(1);
        for name in 0..2 * MAX_STRANGERS {
            rate.allow(&ClientId::new(format!("a/{name}")).unwrap(), Timestamp(0));
        }
        assert_eq!(rate.counts.len(), MAX_STRANGERS);
    }

    #[test]
    fn every_registered_client_gets_its_share_when_all_come_back_at_once() {
        let mut rate = PerMinute::of_registered(1);
        let client = |name| ClientId::new(format!("a/{name}")).unwrap();
        assert!((0..2 * MAX_STRANGERS).all(|name| rate.allow(&client(name), Timestamp(0))));
        assert!(!rate.allow(&client(0), Timestamp(1)));
    }

    #[test]
    fn a_limit_of_nothing_allows_nothing() {
        let mut rate = PerMinute::of_registered(0);
        assert!(!rate.allow(&ClientId::new("a/b").unwrap(), Timestamp(0)));
    }
}
