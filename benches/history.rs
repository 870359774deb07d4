//! How fast a SQLite history takes messages of ten items: batches as a node makes them, each one
//! transaction that is synced to the disk. `cargo bench --bench history`.

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs, clippy::disallowed_methods)]

use std::sync::Arc;
use std::time::Instant;

use ledgermq::crypto::{SecretKey, VerifyingKey};
use ledgermq::device::compose::{Draft, compose};
use ledgermq::device::encoding::Encoding;
use ledgermq::device::telemetry::{Content, Limits, Message};
use ledgermq::history::{HistoryRow, HistoryStore as _, Location, RowFate, SqlHistory};
use ledgermq::types::{ClientId, Height, MessageSeq, NetworkId, Stream, Timestamp};

const NETWORK: NetworkId = NetworkId([1; 32]);
const TIME: Timestamp = Timestamp(1_767_225_600_000);
const MESSAGES: u64 = 20_000;

fn message(seq: u64) -> Arc<Message> {
    let client = ClientId::new(format!("devices/c{}", seq % 50)).unwrap();
    let stream = Stream::new("env").unwrap();
    let items: Vec<String> = (0..10)
        .map(|num| {
            format!(
                r#"{{"deviceId":"th-01","serviceId":"temperature","num":{num},"value":{seq}.5,"unit":"Cel"}}"#
            )
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
    let verified =
        content.verify(&VerifyingKey::parse(&key.public()).unwrap(), &NETWORK, &client, &stream).unwrap();
    Arc::new(verified.check_body(&Limits::default(), TIME).unwrap())
}

fn main() {
    let rows: Vec<HistoryRow> =
        (1..=MESSAGES).map(|seq| HistoryRow { message: message(seq), decision: vec![7; 160] }).collect();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for batch in [32, 128, 512] {
        let dir = tempfile::tempdir_in(".").unwrap();
        let location = Location::of_node(None, dir.path()).unwrap();
        let history = SqlHistory::new(location, NETWORK, SecretKey::from_seed(&[1; 32]).node_id());
        let (mut append, mut fates) = (0.0, 0.0);
        runtime.block_on(async {
            for rows in rows.chunks(batch) {
                let started = Instant::now();
                history.append(0, rows).await.unwrap();
                append += started.elapsed().as_secs_f64();
                let written = |row: &HistoryRow| {
                    (row.key(), RowFate::Written { height: Height(7), items: (0..10).collect() })
                };
                let written: Vec<_> = rows.iter().map(written).collect();
                let started = Instant::now();
                history.put_fates(&written).await.unwrap();
                fates += started.elapsed().as_secs_f64();
            }
        });
        let rate = |seconds: f64| MESSAGES as f64 / seconds;
        println!(
            "batches of {batch}: {:.0} messages/s appended, {:.0} fates/s, {:.0} messages/s with both",
            rate(append),
            rate(fates),
            rate(append + fates)
        );
    }
}
