//! The measurements that the demo replays: a year of hourly weather in Greensboro, North Carolina.
//!
//! Real data (NSRDB TMY3, station 723170, public domain; `tests/data/README.md`), a part of the
//! program so that it needs no file. Two gateways take turns, hour by hour, as if the station could
//! be heard by both; each message has two data items, temperature and humidity, as in the paper.

use std::collections::BTreeMap;

use anyhow::Context as _;
use serde::Deserialize;

use crate::device::{Item, Value};
use crate::types::{ClientId, Timestamp};

const CSV: &str = include_str!("../../../tests/data/greensboro-tmy3.csv");

/// Data items in each message.
pub(super) const ITEMS: usize = 2;

/// The `serviceId`s of a message's items.
pub(super) const TEMPERATURE: &str = "temperature";
const HUMIDITY: &str = "humidity";

/// The `deviceId` of the sensor.
const DEVICE: &str = "th-01";

/// A row of the file, the numbers with the digits that they have there.
#[derive(Clone, Copy, Deserialize)]
struct Row<'a> {
    time: &'a str,
    temperature_c: &'a str,
    relative_humidity_percent: &'a str,
}

/// What the station measured at one hour.
#[derive(Debug, Clone)]
pub(super) struct Reading {
    pub(super) time: Timestamp,
    temperature: String,
    humidity: String,
}

impl Reading {
    /// The first `limit` readings of the year.
    pub(super) fn load(limit: usize) -> anyhow::Result<Vec<Self>> {
        let mut file = csv::Reader::from_reader(CSV.as_bytes());
        let headers = file.headers()?.clone();
        file.records().take(limit).map(|row| Self::parse(&row?.deserialize(Some(&headers))?)).collect()
    }

    fn parse(row: &Row<'_>) -> anyhow::Result<Self> {
        let time: jiff::Timestamp = row.time.parse().with_context(|| format!("{:?} is no time", row.time))?;
        Ok(Self {
            time: Timestamp(u64::try_from(time.as_millisecond())?),
            temperature: row.temperature_c.to_owned(),
            humidity: row.relative_humidity_percent.to_owned(),
        })
    }

    /// The JSON body that a gateway sends.
    pub(super) fn body(&self) -> Vec<u8> {
        let Self { time, temperature, humidity } = self;
        let item = |service, value, unit| {
            format!(
                r#"{{"deviceId":"{DEVICE}","serviceId":"{service}","num":1,"value":{value},"unit":"{unit}"}}"#
            )
        };
        let items = [item(TEMPERATURE, temperature, "Cel"), item(HUMIDITY, humidity, "%RH")];
        format!(r#"{{"count":{ITEMS},"eventTime":{time},"data":[{}]}}"#, items.join(",")).into_bytes()
    }
}

/// What must be on the ledger in the end, and nothing else.
#[derive(Debug, Default)]
pub(super) struct Expected(BTreeMap<(ClientId, Timestamp, &'static str), Value>);

impl Expected {
    pub(super) fn add(&mut self, client: &ClientId, reading: &Reading) -> anyhow::Result<()> {
        for (service, digits) in [(TEMPERATURE, &reading.temperature), (HUMIDITY, &reading.humidity)] {
            self.0.insert((client.clone(), reading.time, service), Value::from_json_number(digits)?);
        }
        Ok(())
    }

    /// Ticks an item off. Says what is wrong if it was not sent, not with this value, or is on the
    /// ledger twice.
    pub(super) fn tick_off(&mut self, item: &Item) -> Result<(), String> {
        let found = Self::key(item).and_then(|key| self.0.remove(&key));
        match found {
            Some(sent) if sent == item.value && item.device == DEVICE && item.num == 1 => Ok(()),
            Some(sent) => Err(format!("{item} is proven, but {sent} was sent")),
            None => Err(format!("{item} is proven, but was not sent, or is proven twice")),
        }
    }

    fn key(item: &Item) -> Option<(ClientId, Timestamp, &'static str)> {
        let service = [TEMPERATURE, HUMIDITY].into_iter().find(|service| *service == item.service)?;
        Some((item.client.clone(), item.event_time, service))
    }

    /// How many items were sent and not ticked off.
    pub(super) fn missing(&self) -> usize {
        self.0.len()
    }
}
