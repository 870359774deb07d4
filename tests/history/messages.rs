//! Signed messages of ten items.

use std::sync::Arc;

use ledgermq::crypto::{SecretKey, VerifyingKey};
use ledgermq::device::compose::{Draft, compose};
use ledgermq::device::encoding::Encoding;
use ledgermq::device::telemetry::{Content, Limits};
use ledgermq::history::HistoryRow;
use ledgermq::types::{ClientId, MessageSeq, NetworkId, Stream, Timestamp};

pub const NETWORK: NetworkId = NetworkId([1; 32]);
const TIME: Timestamp = Timestamp(1_767_225_600_000);

pub fn node_key(number: u8) -> SecretKey {
    SecretKey::from_seed(&[number; 32])
}

/// A row with every kind of value.
pub fn row(seq: u64) -> HistoryRow {
    let (client, stream) = (ClientId::new("devices/iot").unwrap(), Stream::new("env").unwrap());
    let values = ["36", "-0.5", "true", "\"on \\u00e4 '\"", "9007199254740993", "1e300"];
    let items: Vec<String> = (0..10)
        .map(|num| {
            let value = values[num % values.len()];
            let unit = if num % 2 == 0 { r#","unit":"Cel""# } else { "" };
            format!(r#"{{"deviceId":"th-01","serviceId":"temperature","num":{num},"value":{value}{unit}}}"#)
        })
        .collect();
    let body = format!(r#"{{"count":10,"eventTime":{},"data":[{}]}}"#, TIME.0, items.join(","));
    let key = SecretKey::from_seed(&[50; 32]);
    let draft = Draft {
        client: &client,
        stream: &stream,
        seq: MessageSeq(seq),
        unused_above: None,
        body: body.as_bytes(),
        encoding: Encoding::Identity,
    };
    let content = Content::decode(&compose(&NETWORK, &key, &draft).unwrap().content).unwrap();
    let key = VerifyingKey::parse(&key.public()).unwrap();
    let verified = content.verify(&key, &NETWORK, &client, &stream).unwrap();
    let message = Arc::new(verified.check_body(&Limits::default(), TIME).unwrap());
    HistoryRow { message, decision: seq.to_be_bytes().to_vec() }
}
