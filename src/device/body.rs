//! The JSON body of a telemetry message (docs/PROTOCOL.md section 6), parsed strictly.
//!
//! ```json
//! {"count": 1, "eventTime": 1767225600000,
//!  "data": [{"deviceId": "th-01", "serviceId": "temperature", "num": 1, "value": 36.5, "unit": "Cel"}]}
//! ```
//!
//! Both sides parse the same way: the client to build the items root that it signs, the node to
//! check it. The text itself is kept as it is; the parse is a reading of it, never a replacement.

use serde::{Serialize, Serializer};

use super::header::MAX_ITEMS;
use super::item::{Item, Value};
use super::json::{JsonError, Kind, Scanner};
use super::rfc3339;
use crate::types::{ClientId, Timestamp};

/// Why a body was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// Not JSON, or not with the fields of the protocol.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// A field that has to be there is not.
    #[error("the body has no `{0}`")]
    Missing(&'static str),
    /// `count` is not the length of `data`.
    #[error("`count` is {claimed}, but `data` has {found} items")]
    Count {
        /// What `count` says.
        claimed: i64,
        /// The length of `data`.
        found: usize,
    },
    /// No data items at all.
    #[error("`data` is empty; a message has 1 to 65,536 items")]
    Empty,
    /// Two items with the same `(deviceId, serviceId, num)`.
    #[error("items {first} and {second} have the same deviceId, serviceId and num")]
    SameItem {
        /// 0-based index.
        first: usize,
        /// 0-based index.
        second: usize,
    },
}

/// What a body says.
#[derive(Debug, Clone, PartialEq)]
pub struct Body {
    /// `eventTime`, in milliseconds.
    pub event_time: Timestamp,
    /// `data`, 1 to 65,536 items, in order.
    pub items: Vec<Item>,
}

impl Body {
    /// Parses the body of a message of `client`.
    ///
    /// # Errors
    /// [`BodyError`].
    pub fn parse(client: &ClientId, json: &[u8]) -> Result<Self, BodyError> {
        let mut scanner = Scanner::new(json)?;
        let mut count = None;
        let mut event_time = None;
        let mut items = None;
        scanner.object(|scanner, name| {
            match name {
                "count" => count = Some(integer(scanner, "count must be an integer")?),
                "eventTime" => event_time = Some(time(scanner)?),
                "data" => items = Some(data(scanner, client)?),
                _ => scanner.skip()?,
            }
            Ok(())
        })?;
        scanner.end()?;
        let claimed = count.ok_or(BodyError::Missing("count"))?;
        let event_time = event_time.ok_or(BodyError::Missing("eventTime"))?;
        let mut items: Vec<Item> = items.ok_or(BodyError::Missing("data"))?;
        if usize::try_from(claimed) != Ok(items.len()) {
            return Err(BodyError::Count { claimed, found: items.len() });
        }
        if items.is_empty() {
            return Err(BodyError::Empty);
        }
        for item in &mut items {
            item.event_time = event_time;
        }
        distinct(&items)?;
        Ok(Self { event_time, items })
    }
}

fn data(scanner: &mut Scanner<'_>, client: &ClientId) -> Result<Vec<Item>, JsonError> {
    let mut items = Vec::new();
    scanner.array(|scanner| {
        if items.len() == MAX_ITEMS as usize {
            return Err(scanner.error("more than 65,536 items"));
        }
        items.push(item(scanner, client)?);
        Ok(())
    })?;
    Ok(items)
}

/// One element of `data`; its event time stands elsewhere in the body and is filled in later.
fn item(scanner: &mut Scanner<'_>, client: &ClientId) -> Result<Item, JsonError> {
    let start = scanner.error("a data item without deviceId, serviceId, num or value begins");
    let (mut device, mut service, mut num, mut value, mut unit) = (None, None, None, None, None);
    scanner.object(|scanner, name| {
        match name {
            "deviceId" => device = Some(scanner.string()?.into()),
            "serviceId" => service = Some(scanner.string()?.into()),
            "num" => num = Some(item_number(scanner)?),
            "value" => value = Some(item_value(scanner)?),
            "unit" => unit = Some(scanner.string()?.into()),
            _ => scanner.skip()?,
        }
        Ok(())
    })?;
    let (Some(device), Some(service), Some(num), Some(value)) = (device, service, num, value) else {
        return Err(start);
    };
    let item = Item { client: client.clone(), device, service, num, event_time: Timestamp(0), value, unit };
    item.check().map_err(|_| JsonError { what: "a text of a data item is empty or too long", ..start })?;
    Ok(item)
}

fn item_number(scanner: &mut Scanner<'_>) -> Result<u32, JsonError> {
    let what = "num must be an integer from 0 to 4294967295";
    let number = integer(scanner, what)?;
    u32::try_from(number).map_err(|_| scanner.error(what))
}

fn item_value(scanner: &mut Scanner<'_>) -> Result<Value, JsonError> {
    match scanner.peek()? {
        Kind::String => Ok(Value::Text(scanner.string()?.into_owned())),
        Kind::Boolean => Ok(Value::Boolean(scanner.boolean()?)),
        Kind::Number => Value::from_json_number(scanner.number()?)
            .map_err(|_| scanner.error("a number beyond the range of 64-bit floats")),
        Kind::Object | Kind::Array | Kind::Null => {
            Err(scanner.error("a value must be a number, a string or a boolean"))
        }
    }
}

fn integer(scanner: &mut Scanner<'_>, what: &'static str) -> Result<i64, JsonError> {
    match Value::from_json_number(scanner.number()?) {
        Ok(Value::Integer(integer)) => Ok(integer),
        _ => Err(scanner.error(what)),
    }
}

fn time(scanner: &mut Scanner<'_>) -> Result<Timestamp, JsonError> {
    let what = "eventTime must be milliseconds since 1970 or an RFC 3339 time, of the years 1970 to 9999";
    let time = match scanner.peek()? {
        Kind::String => rfc3339::parse(&scanner.string()?),
        _ => u64::try_from(integer(scanner, what)?).ok().map(Timestamp),
    };
    time.filter(|time| *time <= Timestamp::MAX).ok_or(scanner.error(what))
}

fn distinct(items: &[Item]) -> Result<(), BodyError> {
    let name = |index: usize| (&items[index].device, &items[index].service, items[index].num);
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_unstable_by(|a, b| name(*a).cmp(&name(*b)).then(a.cmp(b)));
    match order.windows(2).find(|pair| name(pair[0]) == name(pair[1])) {
        Some(pair) => Err(BodyError::SameItem { first: pair[0], second: pair[1] }),
        None => Ok(()),
    }
}

/// One value to be reported; the client's side of a data item.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reading {
    /// The device.
    pub device_id: String,
    /// What it measures.
    pub service_id: String,
    /// The paper's data item sequence number.
    pub num: u32,
    /// The measured value.
    #[serde(serialize_with = "finite")]
    pub value: Value,
    /// Its unit, best a UCUM code such as `Cel`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
}

/// JSON knows no infinity and no NaN; serde_json would write null.
fn finite<S: Serializer>(value: &Value, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Value::Float(float) if !float.is_finite() => {
            Err(serde::ser::Error::custom("a value must be a finite number"))
        }
        value => value.serialize(serializer),
    }
}

/// Writes the body that reports `readings`, all of one time. [`Body::parse`] says whether they keep
/// the protocol's limits.
///
/// # Errors
/// If a value is infinite or no number.
pub fn write(
    event_time: Timestamp,
    msg: Option<&str>,
    readings: &[Reading],
) -> Result<Vec<u8>, serde_json::Error> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Written<'a> {
        count: usize,
        #[serde(skip_serializing_if = "Option::is_none")]
        msg: Option<&'a str>,
        event_time: Timestamp,
        data: &'a [Reading],
    }
    serde_json::to_vec(&Written { count: readings.len(), msg, event_time, data: readings })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(json: &str) -> Result<Body, BodyError> {
        Body::parse(&ClientId::new("devices/iot").unwrap(), json.as_bytes())
    }

    fn with_item(item: &str) -> Result<Body, BodyError> {
        parse(&format!(r#"{{"count":1,"eventTime":5,"data":[{item}]}}"#))
    }

    fn with_value(value: &str) -> Result<Value, BodyError> {
        let body = with_item(&format!(r#"{{"deviceId":"d","serviceId":"s","num":1,"value":{value}}}"#))?;
        Ok(body.items[0].value.clone())
    }

    fn with_time(time: &str) -> Result<u64, BodyError> {
        let item = r#"{"deviceId":"d","serviceId":"s","num":1,"value":1}"#;
        let body = parse(&format!(r#"{{"count":1,"eventTime":{time},"data":[{item}]}}"#))?;
        assert_eq!(body.items[0].event_time, body.event_time);
        Ok(body.event_time.0)
    }

    #[test]
    fn the_body_of_the_protocol_is_read() {
        let body = parse(
            r#"{"count": 2, "msg": "temperature and humidity sensor work information report",
             "data": [{"deviceId": "th-01", "serviceId": "temperature", "num": 1, "value": 36.5, "unit": "Cel"},
                      {"deviceId": "th-01", "serviceId": "humidity", "num": 2, "value": 6, "more": [1]}],
             "eventTime": 1767225600000, "site": {"x": [1, 2]}}"#,
        )
        .unwrap();
        assert_eq!(body.event_time, Timestamp(1_767_225_600_000));
        assert_eq!((&body.items[0].value, &body.items[1].value), (&Value::Float(36.5), &Value::Integer(6)));
        assert_eq!(body.items[0].unit.as_deref(), Some("Cel"));
        assert_eq!(body.items[1].unit, None);
    }

    #[test]
    fn integers_and_floats_are_told_apart_by_their_text() {
        assert_eq!(with_value("6"), Ok(Value::Integer(6)));
        assert_eq!(with_value("6.0"), Ok(Value::Float(6.0)));
        assert_eq!(with_value("-0"), Ok(Value::Integer(0)));
        assert_eq!(with_value("9223372036854775808"), Ok(Value::Float(9_223_372_036_854_775_808.0)));
        assert_eq!(with_value("1e-400"), Ok(Value::Float(0.0)));
        for bad in ["1e400", "null", "[]", "{}", "01", "NaN", "\"\\u0000\""] {
            assert!(with_value(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_are_integers_or_rfc_3339() {
        assert_eq!(with_time("0"), Ok(0));
        assert_eq!(with_time("-0"), Ok(0));
        assert_eq!(with_time("253402300799999"), Ok(Timestamp::MAX.0));
        assert_eq!(with_time("\"1970-01-01T00:00:01.0019Z\""), Ok(1001));
        for bad in ["253402300800000", "-1", "1.0", "1e3", "\"5\"", "null", "true", "99999999999999999999"] {
            assert!(with_time(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn count_must_be_the_length_of_data() {
        let item = r#"{"deviceId":"d","serviceId":"s","num":1,"value":1}"#;
        let with = |count: &str, data: &str| {
            parse(&format!(r#"{{"count":{count},"eventTime":5,"data":[{data}]}}"#)).map(|_| ())
        };
        assert_eq!(with("1", item), Ok(()));
        assert_eq!(with("2", item), Err(BodyError::Count { claimed: 2, found: 1 }));
        assert_eq!(with("-1", item), Err(BodyError::Count { claimed: -1, found: 1 }));
        assert_eq!(with("0", ""), Err(BodyError::Empty));
        assert!(matches!(with("1.0", item), Err(BodyError::Json(_))));
        assert!(matches!(with("\"1\"", item), Err(BodyError::Json(_))));
    }

    #[test]
    fn missing_and_doubled_fields_are_refused() {
        assert_eq!(parse(r#"{"eventTime":5,"data":[]}"#), Err(BodyError::Missing("count")));
        assert_eq!(parse(r#"{"count":0,"data":[]}"#), Err(BodyError::Missing("eventTime")));
        assert_eq!(parse(r#"{"count":0,"eventTime":5}"#), Err(BodyError::Missing("data")));
        for bad in [
            "[]",
            "null",
            r#"{"count":0,"count":0,"eventTime":5,"data":[]}"#,
            r#"{"count":0,"eventTime":5,"data":{}}"#,
        ] {
            assert!(matches!(parse(bad), Err(BodyError::Json(_))), "{bad}");
        }
        for bad in [
            "{}",
            "1",
            r#"{"deviceId":"d","serviceId":"s","num":1}"#,
            r#"{"deviceId":"","serviceId":"s","num":1,"value":1}"#,
            r#"{"deviceId":"d","serviceId":"s","num":-1,"value":1}"#,
            r#"{"deviceId":"d","serviceId":"s","num":4294967296,"value":1}"#,
            r#"{"deviceId":"d","serviceId":"s","num":1.0,"value":1}"#,
            r#"{"deviceId":"d","serviceId":"s","num":1,"value":1,"unit":null}"#,
            r#"{"deviceId":"d","deviceId":"d","serviceId":"s","num":1,"value":1}"#,
            r#"{"deviceId":1,"serviceId":"s","num":1,"value":1}"#,
        ] {
            assert!(matches!(with_item(bad), Err(BodyError::Json(_))), "{bad}");
        }
    }

    #[test]
    fn two_items_of_one_name_are_refused() {
        let item = |device: &str, num: u32| {
            format!(r#"{{"deviceId":"{device}","serviceId":"s","num":{num},"value":1}}"#)
        };
        let body = |items: &[String]| {
            parse(&format!(r#"{{"count":{},"eventTime":5,"data":[{}]}}"#, items.len(), items.join(",")))
                .map(|_| ())
        };
        assert_eq!(body(&[item("a", 1), item("a", 2), item("b", 1)]), Ok(()));
        let same = body(&[item("a", 1), item("b", 1), item("\\u0061", 1)]);
        assert_eq!(same, Err(BodyError::SameItem { first: 0, second: 2 }));
    }

    #[test]
    fn no_more_than_65536_items_are_read() {
        let items = |count: u32| {
            let items: Vec<_> = (0..count)
                .map(|num| format!(r#"{{"deviceId":"d","serviceId":"s","num":{num},"value":1}}"#))
                .collect();
            parse(&format!(r#"{{"count":{count},"eventTime":5,"data":[{}]}}"#, items.join(",")))
        };
        assert_eq!(items(65_536).unwrap().items.len(), 65_536);
        assert!(matches!(items(65_537), Err(BodyError::Json(_))));
    }

    #[test]
    fn values_that_json_cannot_hold_are_not_written() {
        let reading = |value| Reading {
            device_id: "d".into(),
            service_id: "s".into(),
            num: 1,
            value: Value::Float(value),
            unit: None,
        };
        assert!(write(Timestamp(5), None, &[reading(f64::NAN)]).is_err());
        assert!(write(Timestamp(5), None, &[reading(1.0)]).is_ok());
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(
            text in "[^\0]{0,20}", float in any::<f64>().prop_filter("finite", |f| f.is_finite()), integer in any::<i64>(),
            time in 0..=Timestamp::MAX.0, unit in proptest::option::of("[^\0]{0,10}"),
        ) {
            let values = [Value::Text(text), Value::Float(float), Value::Integer(integer), Value::Boolean(true)];
            let readings: Vec<_> = values.into_iter().zip(0..).map(|(value, num)| Reading {
                device_id: "th-01".into(), service_id: "s".into(), num, value, unit: unit.clone(),
            }).collect();
            let json = write(Timestamp(time), Some("msg"), &readings).unwrap();
            let body = Body::parse(&ClientId::new("devices/iot").unwrap(), &json).unwrap();
            prop_assert_eq!(body.event_time, Timestamp(time));
            for (item, reading) in body.items.iter().zip(&readings) {
                prop_assert_eq!(&item.value, &reading.value);
                prop_assert_eq!(item.unit.as_deref(), reading.unit.as_deref());
            }
        }

        #[test]
        fn arbitrary_text_never_panics(text in "\\PC{0,60}") {
            let _ = parse(&text);
            let _ = with_item(&text);
        }
    }
}
