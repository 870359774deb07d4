//! The measurements that the demo replays: a year of hourly weather in Greensboro, North Carolina.
//!
//! Real data (NSRDB TMY3, station 723170, public domain; `tests/data/README.md`), a part of the
//! program so that it needs no file. Two gateways take turns, hour by hour, as if the station could
//! be heard by both; each message has four data items.

use std::collections::BTreeMap;

use anyhow::Context as _;
use serde::Deserialize;

use crate::device::{Item, Value};
use crate::types::{ClientId, Timestamp};

const CSV: &str = include_str!("../../../tests/data/greensboro-tmy3.csv");

/// The `serviceId` of the item that the story is told about.
pub(super) const TEMPERATURE: &str = "temperature";

/// The items of each message: `serviceId` and unit.
const SERVICES: [(&str, &str); 4] =
    [(TEMPERATURE, "Cel"), ("humidity", "%RH"), ("pressure", "mbar"), ("wind_speed", "m/s")];

/// Data items in each message.
pub(super) const ITEMS: usize = SERVICES.len();

/// The `deviceId` of the station.
const DEVICE: &str = "station-1";

/// A row of the file, the numbers with the digits that they have there.
#[derive(Clone, Copy, Deserialize)]
struct Row<'a> {
    time: &'a str,
    temperature_c: &'a str,
    relative_humidity_percent: &'a str,
    pressure_mbar: &'a str,
    wind_speed_mps: &'a str,
}

/// What the station measured at one hour.
#[derive(Debug, Clone)]
pub(super) struct Reading {
    pub(super) time: Timestamp,
    /// In the order of [`SERVICES`].
    values: [String; ITEMS],
}

impl Reading {
    /// The first `limit` readings of the year.
    pub(super) fn load(limit: usize) -> anyhow::Result<Vec<Self>> {
        let mut file = csv::Reader::from_reader(CSV.as_bytes());
        let headers = file.headers()?.clone();
        file.records().take(limit).map(|row| Self::parse(&row?.deserialize(Some(&headers))?)).collect()
    }

    fn parse(row: &Row<'_>) -> anyhow::Result<Self> {
        let Row { time, temperature_c, relative_humidity_percent, pressure_mbar, wind_speed_mps } = *row;
        let time: jiff::Timestamp = time.parse().with_context(|| format!("{time:?} is no time"))?;
        let values = [temperature_c, relative_humidity_percent, pressure_mbar, wind_speed_mps];
        Ok(Self {
            time: Timestamp(u64::try_from(time.as_millisecond())?),
            values: values.map(ToOwned::to_owned),
        })
    }

    /// The JSON body that a gateway sends.
    pub(super) fn body(&self) -> Vec<u8> {
        let item = |((service, unit), value): ((&str, &str), &String)| {
            format!(
                r#"{{"deviceId":"{DEVICE}","serviceId":"{service}","num":1,"value":{value},"unit":"{unit}"}}"#
            )
        };
        let items: Vec<_> = SERVICES.into_iter().zip(&self.values).map(item).collect();
        format!(r#"{{"count":{ITEMS},"eventTime":{},"data":[{}]}}"#, self.time, items.join(",")).into_bytes()
    }
}

/// What was sent, to be held against what is proven.
#[derive(Debug, Default)]
pub(super) struct Expected(BTreeMap<(ClientId, Timestamp, usize), Sent>);

#[derive(Debug)]
struct Sent {
    value: Value,
    /// A node has signed that it is on the ledger.
    is_written: bool,
}

impl Expected {
    pub(super) fn add(&mut self, client: &ClientId, reading: &Reading) -> anyhow::Result<()> {
        for (item, digits) in reading.values.iter().enumerate() {
            let sent = Sent { value: Value::from_json_number(digits)?, is_written: false };
            self.0.insert((client.clone(), reading.time, item), sent);
        }
        Ok(())
    }

    /// A node has signed that these items of a reading are on the ledger.
    pub(super) fn written(&mut self, client: &ClientId, time: Timestamp, items: &[u32]) {
        for item in items {
            let key = (client.clone(), time, usize::try_from(*item).unwrap_or(usize::MAX));
            if let Some(sent) = self.0.get_mut(&key) {
                sent.is_written = true;
            }
        }
    }

    /// Ticks an item off. Says what is wrong if it was not sent, not with this value, or is on the
    /// ledger twice.
    pub(super) fn tick_off(&mut self, item: &Item) -> Result<(), String> {
        let index = SERVICES.iter().position(|(service, _)| *service == item.service);
        let key = index.map(|index| (item.client.clone(), item.event_time, index));
        match key.and_then(|key| self.0.remove(&key)) {
            Some(Sent { value, .. }) if value == item.value && item.device == DEVICE && item.num == 1 => {
                Ok(())
            }
            Some(Sent { value, .. }) => Err(format!("{item} is proven, but {value} was sent")),
            None => Err(format!("{item} is proven, but was not sent, or is proven twice")),
        }
    }

    /// How many items are on the ledger by a node's word and were not ticked off.
    pub(super) fn missing(&self) -> usize {
        self.0.values().filter(|sent| sent.is_written).count()
    }
}
