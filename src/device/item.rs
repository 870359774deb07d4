//! Data items: the one value that a leaf of a message's Merkle tree holds (PROTOCOL.md section 6).
//!
//! ```text
//! item bytes = CBOR [client_id, deviceId, serviceId, num, eventTime, value, unit or null]
//! ```
//!
//! Deterministic CBOR (RFC 8949 section 4.2.1), floats always 64-bit. The bytes stand on the
//! ledger as the device's message implied them, so [`Item::decode`] takes nothing but the one
//! encoding of an item that keeps every limit: what a verifier reads is what the device signed.

use std::fmt;

use minicbor::data::Type;
use minicbor::{Decoder, Encoder};
use serde::Serialize;
use smol_str::SmolStr;

use crate::types::{ClientId, Timestamp};

/// The longest `deviceId` and `serviceId`, in bytes of UTF-8; the shortest has one byte.
pub const MAX_NAME_BYTES: usize = 128;
/// The longest text value, in bytes of UTF-8.
pub const MAX_TEXT_BYTES: usize = 1024;
/// The longest unit, in bytes of UTF-8.
pub const MAX_UNIT_BYTES: usize = 64;
/// No item's bytes are longer: all names, the value and the unit at their limits make 1,499.
pub const MAX_ITEM_BYTES: usize = 1536;

/// Why bytes are not a data item, or a value is not one that the protocol has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ItemError {
    /// Not the deterministic CBOR array of PROTOCOL.md section 6.
    #[error("not a data item in deterministic CBOR")]
    Malformed,
    /// `deviceId` or `serviceId` is empty, longer than 128 bytes or has U+0000.
    #[error("deviceId and serviceId have 1 to {MAX_NAME_BYTES} bytes and no U+0000")]
    Name,
    /// The value is not finite, longer than 1,024 bytes or has U+0000.
    #[error(
        "a value is a finite number, a boolean, or a text of at most {MAX_TEXT_BYTES} bytes without U+0000"
    )]
    Value,
    /// The unit is longer than 64 bytes or has U+0000.
    #[error("a unit has at most {MAX_UNIT_BYTES} bytes and no U+0000")]
    Unit,
    /// The event time is later than the year 9999.
    #[error("the event time is out of range")]
    Time,
}

/// A measured value.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Value {
    /// A number without fraction and exponent that fits.
    Integer(i64),
    /// Every other number; finite.
    Float(f64),
    /// A text of at most [`MAX_TEXT_BYTES`].
    Text(String),
    /// True or false.
    Boolean(bool),
}

impl Value {
    /// The value of a JSON number: an integer if it has neither fraction nor exponent and fits 64
    /// bits with sign, else the nearest 64-bit float. `-0` is the integer 0, `-0.0` a float.
    ///
    /// # Errors
    /// [`ItemError::Value`] if the text is no JSON number, or infinite as a float.
    pub fn from_json_number(text: &str) -> Result<Self, ItemError> {
        if !is_json_number(text) {
            return Err(ItemError::Value);
        }
        if !text.contains(['.', 'e', 'E'])
            && let Ok(integer) = text.parse()
        {
            return Ok(Self::Integer(integer));
        }
        let float: f64 = text.parse().map_err(|_| ItemError::Value)?;
        if float.is_finite() { Ok(Self::Float(float)) } else { Err(ItemError::Value) }
    }

    fn check(&self) -> Result<(), ItemError> {
        let good = match self {
            Self::Integer(_) | Self::Boolean(_) => true,
            Self::Float(float) => float.is_finite(),
            Self::Text(text) => text.len() <= MAX_TEXT_BYTES && !text.contains('\0'),
        };
        if good { Ok(()) } else { Err(ItemError::Value) }
    }
}

/// Texts in quotes and escaped, so that `"36"` is told from `36` and nothing steers a terminal.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer(integer) => integer.fmt(f),
            Self::Float(float) => write!(f, "{float:?}"),
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Boolean(boolean) => boolean.fmt(f),
        }
    }
}

/// RFC 8259's grammar of numbers; Rust's own parser takes more (`+1`, `.5`, `inf`).
fn is_json_number(text: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (mantissa, None),
    };
    digits(whole)
        && (whole.len() == 1 || !whole.starts_with('0'))
        && fraction.is_none_or(digits)
        && exponent.is_none_or(|exponent| digits(exponent.strip_prefix(['+', '-']).unwrap_or(exponent)))
}

/// One data item of a message; `(device, service, num)` names it within its client.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Item {
    /// The client (gateway) that sent it.
    pub client: ClientId,
    /// `deviceId`
    pub device: SmolStr,
    /// `serviceId`
    pub service: SmolStr,
    /// `num`, the paper's data item sequence number.
    pub num: u32,
    /// `eventTime`, of the whole message.
    pub event_time: Timestamp,
    /// `value`
    pub value: Value,
    /// `unit`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<SmolStr>,
}

impl Item {
    /// Checks every limit that the protocol sets on an item.
    ///
    /// # Errors
    /// [`ItemError`]: which limit it breaks.
    pub fn check(&self) -> Result<(), ItemError> {
        for name in [&self.device, &self.service] {
            if name.is_empty() || name.len() > MAX_NAME_BYTES || name.contains('\0') {
                return Err(ItemError::Name);
            }
        }
        self.value.check()?;
        if self.unit.as_ref().is_some_and(|unit| unit.len() > MAX_UNIT_BYTES || unit.contains('\0')) {
            return Err(ItemError::Unit);
        }
        if self.event_time > Timestamp::MAX { Err(ItemError::Time) } else { Ok(()) }
    }

    /// The item bytes. Of an item that keeps the limits ([`Item::check`]), [`Item::decode`] takes
    /// them back.
    ///
    /// # Panics
    /// Never: encoding into memory does not fail.
    #[allow(clippy::expect_used)]
    pub fn encode(&self) -> Vec<u8> {
        self.try_encode().expect("encoding into memory does not fail")
    }

    fn try_encode(&self) -> Result<Vec<u8>, minicbor::encode::Error<std::convert::Infallible>> {
        let mut e = Encoder::new(Vec::with_capacity(96));
        e.array(7)?.str(self.client.as_str())?.str(&self.device)?.str(&self.service)?;
        e.u32(self.num)?.u64(self.event_time.0)?;
        match &self.value {
            Value::Integer(integer) => e.i64(*integer)?,
            Value::Float(float) => e.f64(*float)?,
            Value::Text(text) => e.str(text)?,
            Value::Boolean(boolean) => e.bool(*boolean)?,
        };
        match &self.unit {
            Some(unit) => e.str(unit)?,
            None => e.null()?,
        };
        Ok(e.into_writer())
    }

    /// Parses item bytes; takes nothing but the one encoding of an item within the limits.
    ///
    /// # Errors
    /// [`ItemError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ItemError> {
        if bytes.len() > MAX_ITEM_BYTES {
            return Err(ItemError::Malformed);
        }
        let item = Self::read(bytes).map_err(|_| ItemError::Malformed)?;
        item.check()?;
        if item.encode() == bytes { Ok(item) } else { Err(ItemError::Malformed) }
    }

    /// Parses item bytes that [`Item::decode`] took before: what is in a block, for example.
    ///
    /// # Errors
    /// [`ItemError::Malformed`]; of other bytes not always.
    pub fn decode_again(bytes: &[u8]) -> Result<Self, ItemError> {
        Self::read(bytes).map_err(|_| ItemError::Malformed)
    }

    /// The device in item bytes that [`Item::decode`] took before.
    pub fn device_of(bytes: &[u8]) -> Option<&str> {
        let mut d = Decoder::new(bytes);
        d.array().ok()?;
        d.str().ok()?;
        d.str().ok()
    }

    fn read(bytes: &[u8]) -> Result<Self, minicbor::decode::Error> {
        let mut d = Decoder::new(bytes);
        if d.array()? != Some(7) {
            return Err(minicbor::decode::Error::message("an item has seven parts"));
        }
        Ok(Self {
            client: ClientId::new(d.str()?).map_err(minicbor::decode::Error::message)?,
            device: d.str()?.into(),
            service: d.str()?.into(),
            num: d.u32()?,
            event_time: Timestamp(d.u64()?),
            value: read_value(&mut d)?,
            unit: if d.datatype()? == Type::Null { d.null().map(|()| None)? } else { Some(d.str()?.into()) },
        })
    }
}

fn read_value(d: &mut Decoder<'_>) -> Result<Value, minicbor::decode::Error> {
    Ok(match d.datatype()? {
        Type::Bool => Value::Boolean(d.bool()?),
        Type::F64 => Value::Float(d.f64()?),
        Type::String => Value::Text(d.str()?.to_owned()),
        _ => Value::Integer(d.i64()?),
    })
}

/// As the paper writes a record: `<Gateway ID/Device ID/Data Item Sequence Number/Timestamp/Data
/// Item Value>`, names escaped so that nothing in them steers a terminal.
impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client, device, num, event_time, value, .. } = self;
        write!(f, "<{client}/{}/{num}/{event_time}/{value}>", device.escape_debug())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn item(value: Value) -> Item {
        Item {
            client: ClientId::new("devices/iot").unwrap(),
            device: "th-01".into(),
            service: "temperature".into(),
            num: 1,
            event_time: Timestamp(1_767_225_600_000),
            value,
            unit: Some("Cel".into()),
        }
    }

    fn any_value() -> impl Strategy<Value = Value> {
        prop_oneof![
            any::<i64>().prop_map(Value::Integer),
            any::<f64>().prop_filter("finite", |f| f.is_finite()).prop_map(Value::Float),
            "[^\0]{0,40}".prop_map(Value::Text),
            any::<bool>().prop_map(Value::Boolean),
        ]
    }

    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Case {
        #[serde(rename = "value_json")]
        value_json: String,
        unit: Option<String>,
        device_id: String,
        service_id: String,
        num: u32,
        event_time: u64,
        item: String,
    }

    #[test]
    fn the_vectors_hold_both_ways() {
        #[derive(serde::Deserialize)]
        struct Vectors {
            client_id: ClientId,
            cases: Vec<Case>,
        }
        let vectors: Vectors = serde_json::from_str(include_str!("../../tests/vectors/items.json")).unwrap();
        assert_eq!(vectors.cases.len(), 40);
        for case in vectors.cases {
            let value = match serde_json::from_str(&case.value_json).unwrap() {
                serde_json::Value::Bool(boolean) => Value::Boolean(boolean),
                serde_json::Value::String(text) => Value::Text(text),
                _ => Value::from_json_number(&case.value_json).unwrap(),
            };
            let item = Item {
                client: vectors.client_id.clone(),
                device: case.device_id.into(),
                service: case.service_id.into(),
                num: case.num,
                event_time: Timestamp(case.event_time),
                value,
                unit: case.unit.map(Into::into),
            };
            assert_eq!(hex::encode(item.encode()), case.item, "{}", case.value_json);
            assert_eq!(Item::decode(&hex::decode(&case.item).unwrap()), Ok(item), "{}", case.value_json);
        }
    }

    #[test]
    fn only_json_numbers_within_a_float_are_numbers() {
        for bad in [
            "", "-", "+1", "01", "-01", ".5", "1.", "1e", "1e+", "inf", "NaN", "1_0", "0x1", " 1", "1e309",
            "-1e309",
        ] {
            assert_eq!(Value::from_json_number(bad), Err(ItemError::Value), "{bad}");
        }
        assert_eq!(Value::from_json_number("-0"), Ok(Value::Integer(0)));
        let Ok(Value::Float(zero)) = Value::from_json_number("-0.0") else { panic!("not a float") };
        assert!(zero.is_sign_negative());
    }

    #[test]
    fn limits_are_exact() {
        let long = |len| "x".repeat(len);
        let good = Item {
            client: ClientId::new(format!("{}/{}", long(64), long(64))).unwrap(),
            device: long(MAX_NAME_BYTES).into(),
            service: long(MAX_NAME_BYTES).into(),
            num: u32::MAX,
            event_time: Timestamp::MAX,
            value: Value::Text(long(MAX_TEXT_BYTES)),
            unit: Some(long(MAX_UNIT_BYTES).into()),
        };
        assert!(good.encode().len() <= MAX_ITEM_BYTES);
        assert_eq!(Item::decode(&good.encode()), Ok(good.clone()));
        let cases = [
            (Item { device: long(MAX_NAME_BYTES + 1).into(), ..good.clone() }, ItemError::Name),
            (Item { device: SmolStr::default(), ..good.clone() }, ItemError::Name),
            (Item { service: "a\0".into(), ..good.clone() }, ItemError::Name),
            (Item { value: Value::Text(long(MAX_TEXT_BYTES + 1)), ..good.clone() }, ItemError::Value),
            (Item { value: Value::Float(f64::NAN), ..good.clone() }, ItemError::Value),
            (Item { unit: Some(long(MAX_UNIT_BYTES + 1).into()), ..good.clone() }, ItemError::Unit),
            (Item { event_time: Timestamp::MAX.plus_ms(1), ..good }, ItemError::Time),
        ];
        for (bad, error) in cases {
            assert_eq!(bad.check(), Err(error));
            assert_eq!(Item::decode(&bad.encode()), Err(error));
        }
    }

    #[test]
    fn other_encodings_of_the_same_item_are_refused() {
        let good = item(Value::Integer(5)).encode();
        let at = good.len() - 5; // the value's byte, before the unit's four
        assert_eq!(good[at], 5);
        for other in [&[0x18, 5][..], &[0xf9, 0x45, 0], &[0xfa, 0x40, 0xa0, 0, 0], &[0xf6], &[0x41, 5]] {
            let bytes = [&good[..at], other, &good[at + 1..]].concat();
            assert_eq!(Item::decode(&bytes), Err(ItemError::Malformed), "{other:x?}");
        }
        let mut indefinite = good.clone();
        indefinite[0] = 0x9f;
        indefinite.push(0xff);
        assert_eq!(Item::decode(&indefinite), Err(ItemError::Malformed));
    }

    #[test]
    fn a_record_reads_as_in_the_paper() {
        assert_eq!(item(Value::Float(36.0)).to_string(), "<devices/iot/th-01/1/1767225600000/36.0>");
        let hostile = Item { device: "\u{1b}[2J".into(), ..item(Value::Text("36\n".into())) };
        assert_eq!(hostile.to_string(), r#"<devices/iot/\u{1b}[2J/1/1767225600000/"36\n">"#);
    }

    proptest! {
        #[test]
        fn what_was_encoded_decodes(value in any_value(), num in any::<u32>(), unit in proptest::option::of("[^\0]{0,16}")) {
            let item = Item { num, unit: unit.map(Into::into), ..item(value) };
            prop_assert_eq!(Item::decode(&item.encode()), Ok(item));
        }

        #[test]
        fn whatever_decodes_encodes_to_the_same_bytes(flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
            let mut bytes = item(Value::Float(36.5)).encode();
            for (at, byte) in flips {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if let Ok(item) = Item::decode(&bytes) {
                prop_assert_eq!(item.encode(), bytes);
            }
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Item::decode(&bytes);
        }
    }
}
