//! Last written values against a plain model, across restarts.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::policy::{BaseRef, ItemKey};

/// What a plain reader of all blocks would say.
#[derive(Default)]
struct Model {
    last: BTreeMap<u32, (Timestamp, BaseRef)>,
    clients: BTreeMap<String, BTreeSet<u32>>,
}

/// The item of block `at`: one of nine of three clients, each with an event time of its own.
fn reading(at: u64) -> Item {
    let num = u32::try_from(at * 7 % 9).unwrap();
    let time = at * 31 % 100;
    item(&client(["a", "b", "c"][num as usize % 3]), "th-01", num, time)
}

impl Model {
    fn add(&mut self, seq: u64, item: &Item) {
        let found = (item.event_time, BaseRef { seq: MessageSeq(seq), index: 0 });
        let last = self.last.entry(item.num).or_insert(found);
        *last = (*last).max(found);
        self.clients.entry(item.client.to_string()).or_default().insert(item.num);
    }

    fn check(&self, store: &SledStore) {
        for (num, (time, at)) in &self.last {
            let any = item(&client(["a", "b", "c"][*num as usize % 3]), "th-01", *num, 0);
            let last = store.last_written(&ItemKey::from(&any)).unwrap().unwrap();
            assert_eq!((last.base.event_time, last.at), (*time, *at), "item {num}");
        }
        for (name, items) in &self.clients {
            let id = ClientId::new(name.as_str()).unwrap();
            assert_eq!(store.item_count(&id).unwrap(), items.len() as u64, "{name}");
        }
    }
}

/// Commits and indexes one block for each of `blocks`.
fn write_blocks(store: &SledStore, model: &mut Model, mut head: Head, blocks: std::ops::Range<u64>) -> Head {
    for at in blocks {
        let item = reading(at);
        let (next_head, block) = next(&head, vec![write(at + 1, std::slice::from_ref(&item), &[])]);
        store.commit(&next_head, Some(&block), &[]).unwrap();
        store.index(std::slice::from_ref(&block)).unwrap();
        model.add(at + 1, &item);
        head = next_head;
    }
    head
}

#[test]
fn the_newest_value_of_each_item_is_known_while_it_is_in_memory_and_after_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let (mut model, mut head) = (Model::default(), genesis());
    // Restarts before, at and after blocks at which the values go to the database.
    for (from, to) in [(0, 5), (5, 255), (255, 257), (257, 300), (300, 700)] {
        let store = open(dir.path());
        model.check(&store);
        head = write_blocks(&store, &mut model, head, from..to);
        model.check(&store);
    }
    let store = open(dir.path());
    model.check(&store);
    let saved = store.last_written.saved();
    assert!(saved >= Height(512) && saved < Height(700), "{saved}");
    let unknown = item(&client("a"), "th-02", 0, 0);
    assert_eq!(store.last_written(&ItemKey::from(&unknown)).unwrap(), None);
    assert_eq!(store.item_count(&client("nobody")).unwrap(), 0);
}

#[test]
fn a_store_of_a_program_without_last_written_values_gets_them_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut model = Model::default();
    write_blocks(&store, &mut model, genesis(), 0..300);
    for kind in [b"y", b"l", b"q"] {
        for entry in store.db.scan_prefix(kind) {
            store.db.remove(entry.unwrap().0).unwrap();
        }
    }
    drop(store);
    model.check(&open(dir.path()));
}
