//! What the clients of a load say: telemetry bodies of a given number of items and of bytes.

use std::fmt::Write as _;

use crate::cli::arguments::wrong;
use crate::types::Timestamp;

/// Room for larger values than those of the first body.
const SPARE: usize = 32;

/// Items of one device in a message, such as the registers of a meter.
const ITEMS_PER_DEVICE: u32 = 10;

/// How bodies are made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bodies {
    items: u32,
    /// Bytes that a body has at least.
    bytes: usize,
}

impl Bodies {
    /// Bodies of so many items, filled up to so many bytes.
    ///
    /// # Errors
    /// The items do not fit.
    pub(super) fn new(items: u32, bytes: Option<usize>) -> anyhow::Result<Self> {
        let plain = Self { items, bytes: 0 }.body(Timestamp(1_767_225_600_000), 0).len() + SPARE;
        if let Some(bytes) = bytes.filter(|bytes| *bytes < plain) {
            return Err(wrong(format_args!("--size {bytes} is too small: {items} items take {plain} bytes")));
        }
        Ok(Self { items, bytes: bytes.unwrap_or(0) })
    }

    /// The `number`th body of a client. Values differ from one to the next.
    pub(super) fn body(self, time: Timestamp, number: u64) -> Vec<u8> {
        let mut body = String::with_capacity(self.bytes.max(96 * self.items as usize));
        // Writing to a string does not fail.
        let _ = write!(body, r#"{{"count":{},"eventTime":{time},"data":["#, self.items);
        for item in 0..self.items {
            let comma = if item == 0 { "" } else { "," };
            let value = mix(number, u64::from(item)) % 60_000;
            let _ = write!(
                body,
                r#"{comma}{{"deviceId":"th-{:02}","serviceId":"temperature","num":{item},"value":{}.{:03},"unit":"Cel"}}"#,
                item / ITEMS_PER_DEVICE,
                value / 1000,
                value % 1000
            );
        }
        body.push(']');
        self.fill(&mut body, number);
        body.push('}');
        body.into_bytes()
    }

    /// A field that no one reads, of digits that hardly compress.
    fn fill(self, body: &mut String, number: u64) {
        const FIELD: &str = r#","fill":"""#;
        let Some(missing) = self.bytes.checked_sub(body.len() + FIELD.len() + 1) else { return };
        body.push_str(r#","fill":""#);
        let end = body.len() + missing;
        for at in 0.. {
            if body.len() >= end {
                break;
            }
            let _ = write!(body, "{:016x}", mix(number, at));
        }
        body.truncate(end);
        body.push('"');
    }
}

/// Numbers without a pattern (the finalizer of SplitMix64).
const fn mix(a: u64, b: u64) -> u64 {
    let mut x = a.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(b.wrapping_mul(0xd1b5_4a32_d192_ed03));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::body::Body;
    use crate::types::ClientId;

    #[test]
    fn bodies_are_what_the_protocol_wants_and_differ() {
        let client = ClientId::new("bench/one").unwrap();
        for (items, bytes) in [(1, None), (10, None), (10, Some(1500)), (3, Some(100_000))] {
            let bodies = Bodies::new(items, bytes).unwrap();
            let [first, second] = [0, 1].map(|number| bodies.body(Timestamp(1_767_225_600_000), number));
            assert_eq!(Body::parse(&client, &first).unwrap().items.len(), items as usize);
            assert_ne!(first, second);
            assert!(bytes.is_none_or(|bytes| first.len() == bytes && second.len() == bytes));
        }
    }

    #[test]
    fn a_size_that_the_items_exceed_is_refused() {
        let error = Bodies::new(10, Some(100)).unwrap_err().to_string();
        assert!(error.contains("10 items take"), "{error}");
    }
}
