//! How many replies, or messages, a client gets in a minute: counters of the current minute, so
//! memory is bounded by a cap and freed every minute.

use std::collections::HashMap;

use crate::types::{ClientId, Timestamp};

/// Names counted in one minute. Beyond it unknown names get nothing: somebody is inventing them.
const MAX_NAMES: usize = 16_384;

const MINUTE_MS: u64 = 60_000;

/// Counters for one kind of event.
#[derive(Debug)]
pub struct PerMinute {
    limit: u32,
    minute: u64,
    counts: HashMap<ClientId, u32>,
}

impl PerMinute {
    /// Allows `limit` events a minute to each client.
    pub fn new(limit: u32) -> Self {
        Self { limit, minute: 0, counts: HashMap::new() }
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
        if self.counts.len() >= MAX_NAMES {
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
        let mut rate = PerMinute::new(2);
        let client = ClientId::new("a/b").unwrap();
        let allowed = |rate: &mut PerMinute, at| rate.allow(&client, Timestamp(at));
        assert!(allowed(&mut rate, 60_000) && allowed(&mut rate, 60_001));
        assert!(!allowed(&mut rate, 119_999));
        assert!(allowed(&mut rate, 120_000));
    }

    #[test]
    fn invented_names_cost_bounded_memory() {
        let mut rate = PerMinute::new(1);
        for name in 0..2 * MAX_NAMES {
            rate.allow(&ClientId::new(format!("a/{name}")).unwrap(), Timestamp(0));
        }
        assert_eq!(rate.counts.len(), MAX_NAMES);
    }
}
