//! The write policy: which data items of a message go on the ledger.
//!
//! The node that admitted the message decides, for each item by itself. Whatever it picks, the
//! device's signature covers all items, since the items root in the header spans them: that an item
//! was left out never looks as if it had not been measured.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::device::Item;

/// What decides whether a data item is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WritePolicy {
    /// Each value is written.
    #[default]
    Always,
    /// No value is written; the message is acknowledged all the same.
    Never,
}

impl WritePolicy {
    /// Whether `item` is to be written.
    pub const fn picks(self, _item: &Item) -> bool {
        matches!(self, Self::Always)
    }
}

impl fmt::Display for WritePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Always => "always",
            Self::Never => "never",
        })
    }
}

/// The indexes, ascending, of the items that are to be written, each by the policy in force for it.
pub fn pick(items: &[Item], policy_of: impl Fn(&Item) -> WritePolicy) -> Vec<u32> {
    let picked = (0_u32..).zip(items).filter(|(_, item)| policy_of(item).picks(item));
    picked.map(|(index, _)| index).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Value;
    use crate::types::{ClientId, Timestamp};

    fn items() -> Vec<Item> {
        let item = |num, service: &str| Item {
            client: ClientId::new("devices/iot").unwrap(),
            device: "th-01".into(),
            service: service.into(),
            num,
            event_time: Timestamp(0),
            value: Value::Integer(1),
            unit: None,
        };
        vec![item(1, "temperature"), item(2, "humidity"), item(3, "temperature")]
    }

    #[test]
    fn always_picks_all_and_never_none() {
        assert_eq!(pick(&items(), |_| WritePolicy::Always), [0, 1, 2]);
        assert!(pick(&items(), |_| WritePolicy::Never).is_empty());
    }

    #[test]
    fn each_item_has_its_own_policy() {
        let of = |item: &Item| {
            if item.service == "temperature" { WritePolicy::Always } else { WritePolicy::Never }
        };
        assert_eq!(pick(&items(), of), [0, 2]);
    }

    #[test]
    fn policies_have_names_in_settings() {
        for policy in [WritePolicy::Always, WritePolicy::Never] {
            assert_eq!(serde_json::to_string(&policy).unwrap(), format!("\"{policy}\""));
        }
    }
}
