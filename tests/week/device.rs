//! Clients: what they measure, how they number and sign it, and what they do until they are told.

use ledgermq::crypto::SecretKey;
use ledgermq::device::compose::{Draft, compose};
use ledgermq::device::encoding::Encoding;
use ledgermq::types::{ClientId, Hash, MessageSeq, NetworkId, Stream};

use crate::clock::{HOUR, START};
use crate::rng::Rng;

/// How far a client's unfinished messages may span, as the protocol says.
const SPAN: u64 = 250;

/// A message that is to be delivered until its fate is known.
pub struct Sent {
    pub seq: MessageSeq,
    pub header: Hash,
    pub content: Vec<u8>,
    pub done: bool,
}

pub struct Device {
    pub id: ClientId,
    pub key: SecretKey,
    pub stream: Stream,
    /// The node it prefers.
    pub home: usize,
    pub sent: Vec<Sent>,
    /// Invents names of items now and then.
    pub is_greedy: bool,
    /// It was replaced by another, and says nothing new.
    pub is_retired: bool,
    next: u64,
    unused_above: Option<MessageSeq>,
    temperature: f64,
    pressure: f64,
    humidity: i64,
    names: u64,
}

impl Device {
    pub fn new(name: &str, home: usize, rng: &mut Rng) -> Self {
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&rng.next().to_be_bytes());
        Self {
            id: ClientId::new(format!("devices/{name}")).unwrap(),
            key: SecretKey::from_seed(&seed),
            stream: Stream::new(if name.starts_with("roof") { "sky" } else { "env" }).unwrap(),
            home,
            sent: Vec::new(),
            is_greedy: name == "greedy",
            is_retired: false,
            next: 1,
            unused_above: None,
            temperature: 20.0,
            pressure: 1013.0,
            humidity: 50,
            names: 0,
        }
    }

    pub fn last_seq(&self) -> MessageSeq {
        MessageSeq(self.next - 1)
    }

    /// Loses its memory: goes on above what a node knows of, and declares what it leaves out.
    pub fn forget(&mut self, known: MessageSeq) {
        self.next = known.0 + 65_536;
        self.unused_above = Some(known);
        self.sent.iter_mut().for_each(|sent| sent.done = true);
    }

    /// Measures, and signs the next message; none if too much is on its way. Gives its place.
    pub fn measure(&mut self, network: &NetworkId, now: u64, rng: &mut Rng) -> Option<usize> {
        let oldest = self.sent.iter().filter(|sent| !sent.done).map(|sent| sent.seq.0).min();
        if self.is_retired || oldest.is_some_and(|oldest| oldest + SPAN < self.next) {
            return None;
        }
        let body = self.body(now, rng);
        let seq = MessageSeq(self.next);
        self.next += 1;
        let unused_above = self.unused_above.take();
        Some(self.sign(network, (seq, unused_above), &body, rng))
    }

    /// Another message with a seq that was used before, as of a copy of this client.
    pub fn measure_twice(&mut self, network: &NetworkId, now: u64, rng: &mut Rng) -> Option<usize> {
        let seq = self.sent.last()?.seq;
        let body = self.body(now, rng);
        Some(self.sign(network, (seq, None), &body, rng))
    }

    fn sign(
        &mut self,
        network: &NetworkId,
        (seq, unused_above): (MessageSeq, Option<MessageSeq>),
        body: &str,
        rng: &mut Rng,
    ) -> usize {
        let encoding = rng.pick(&[Encoding::Identity, Encoding::Zstd, Encoding::Deflate]);
        let (client, stream) = (&self.id, &self.stream);
        let draft = Draft { client, stream, seq, unused_above, body: body.as_bytes(), encoding };
        let composed = compose(network, &self.key, &draft).unwrap();
        let (header, content) = (composed.header_hash, composed.content);
        self.sent.push(Sent { seq, header, content, done: false });
        self.sent.len() - 1
    }

    /// One to seven readings. Some are late; some have the time of the one before.
    fn body(&mut self, now: u64, rng: &mut Rng) -> String {
        let late = match rng.below(20) {
            0 | 1 => rng.below(10 * HOUR),
            2 => rng.below(100),
            _ => 0,
        };
        let coarse = if rng.percent(10) { HOUR } else { 1 };
        let event_time = START.0 + now.saturating_sub(late) / coarse * coarse;
        let mut items = vec![self.temperature(rng)];
        if rng.percent(60) {
            self.humidity += rng.between(0, 6) as i64 - 3;
            items.push(item("th-01", "humidity", 2, &self.humidity.to_string(), Some("%RH")));
        }
        if rng.percent(50) {
            self.pressure += (rng.below(200) as f64 - 100.0) / 50.0;
            items.push(item("th-02", "pressure", 3, &format!("{:.2}", self.pressure), Some("mbar")));
        }
        if rng.percent(30) {
            let value = rng.pick(&["true", "false", "false"]);
            items.push(item("door", "open", 4, value, None));
        }
        if rng.percent(20) {
            let value = rng.pick(&["\"idle\"", "\"on \\u00e4 '\"", "\"\"", "17", "-0.0", "1e300"]);
            items.push(item("door", "mode", 5, value, None));
        }
        if rng.percent(5) {
            items.push(item("th-02", "temperature", 1, &format!("{:.1}", self.temperature), Some("Cel")));
        }
        if self.is_greedy && rng.percent(25) {
            self.names += 1;
            items.push(item(&format!("new-{}", self.names), "count", 6, "1", None));
        }
        format!(r#"{{"count":{},"eventTime":{event_time},"data":[{}]}}"#, items.len(), items.join(","))
    }

    fn temperature(&mut self, rng: &mut Rng) -> String {
        self.temperature += (rng.below(100) as f64 - 50.0) / 40.0;
        let value = match rng.below(12) {
            0 => format!("{:.0}", self.temperature),
            _ => format!("{:.1}", self.temperature),
        };
        item("th-01", "temperature", 1, &value, Some("Cel"))
    }
}

fn item(device: &str, service: &str, num: u32, value: &str, unit: Option<&str>) -> String {
    let unit = unit.map(|unit| format!(r#","unit":"{unit}""#)).unwrap_or_default();
    format!(r#"{{"deviceId":"{device}","serviceId":"{service}","num":{num},"value":{value}{unit}}}"#)
}
