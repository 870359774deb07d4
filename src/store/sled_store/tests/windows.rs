//! Clients' windows in the store against a plain map.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// Changes of one commit: window, number, and how long the new value is.
type Commit = Vec<(u8, u64, Option<usize>)>;

fn commits() -> impl Strategy<Value = Vec<(Commit, bool)>> {
    let len = prop_oneof![3 => Just(None), 5 => (40_usize..80).prop_map(Some), 1 => (250_usize..400).prop_map(Some)];
    let change = (0_u8..3, 0_u64..50, len);
    prop::collection::vec((prop::collection::vec(change, 0..40), prop::bool::weighted(0.1)), 1..20)
}

fn window(window: u8) -> Vec<u8> {
    // The second name begins with the first: neither may have the other's entries.
    [&[4], ["g/a", "g/ab", "h/c"][usize::from(window)].as_bytes(), &[0]].concat()
}

fn stored(store: &SledStore) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let entries = store.load().unwrap().unwrap().entries;
    let map: BTreeMap<_, _> = entries.iter().cloned().collect();
    assert_eq!(map.len(), entries.len(), "an entry twice");
    map
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn windows_hold_what_was_put_into_them(commits in commits()) {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(dir.path());
        let (mut model, mut head) = (BTreeMap::from([(b"admin".to_vec(), b"a".to_vec())]), genesis());
        store.commit(&head, None, &[set("admin", "a")]).unwrap();
        for (commit, restart) in commits {
            head.sequence = head.sequence.next();
            let changes: Vec<StateChange> = commit.iter().map(|(at, number, len)| StateChange {
                key: StateChange::window_key(&window(*at), *number),
                value: len.map(|len| vec![u8::try_from(head.sequence.0).unwrap(); len]),
            }).collect();
            store.commit(&head, None, &changes).unwrap();
            for StateChange { key, value } in changes {
                match value {
                    Some(value) => _ = model.insert(key, value),
                    None => _ = model.remove(&key),
                }
            }
            if restart {
                drop(store);
                store = open(dir.path());
            }
            prop_assert_eq!(&stored(&store), &model);
        }
    }
}

#[test]
fn a_message_more_of_a_client_is_no_key_more() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut head = genesis();
    let mut put = |number: u64| {
        head.sequence = head.sequence.next();
        let change =
            StateChange { key: StateChange::window_key(&window(0), number), value: Some(vec![1; 60]) };
        store.commit(&head, None, &[change]).unwrap();
        store.db.len()
    };
    let first = put(0);
    assert_eq!((1..16).map(&mut put).last(), Some(first));
    assert_eq!(put(16), first + 1);
}
