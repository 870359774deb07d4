//! The store after power cuts and damage.

use proptest::prelude::*;

use super::*;

/// What the disk would hold if the node were killed now.
pub(super) fn crash_image(dir: &Path) -> TempDir {
    let image = tempfile::tempdir().unwrap();
    copy(dir, image.path());
    image
}

fn copy(from: &Path, to: &Path) {
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        let target = to.join(file.file_name());
        if file.path().is_dir() {
            fs::create_dir(&target).unwrap();
            copy(&file.path(), &target);
        } else {
            fs::copy(file.path(), target).unwrap();
        }
    }
}

#[test]
fn after_a_crash_everything_up_to_make_durable_is_there_and_commits_are_whole() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let heads = fill(&store, &genesis(), 40);
    store.make_durable().unwrap();
    fill(&store, &heads[40], 40);
    let image = crash_image(dir.path());
    let found = open(image.path());
    let snapshot = found.load().unwrap().unwrap();
    let height = snapshot.head.height;
    assert!(height >= Height(40));
    assert_eq!(snapshot.entries, [(b"height".to_vec(), height.to_string().into_bytes())]);
    for at in 1..=height.0 {
        assert_eq!(found.block(Height(at)).unwrap(), store.block(Height(at)).unwrap());
    }
    assert_eq!(found.block(height.next()).unwrap(), None);
    fill(&found, &snapshot.head, 3);
}

#[test]
fn a_store_that_lost_what_was_durable_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let heads = fill(&store, &genesis(), 5);
    store.make_durable().unwrap();
    let old = crash_image(dir.path());
    fill(&store, &heads[5], 5);
    store.make_durable().unwrap();
    fs::copy(dir.path().join("durable"), old.path().join("durable")).unwrap();
    let refused = SledStore::open(old.path(), &settings());
    assert!(matches!(refused, Err(StoreError::RolledBack { durable: 2, found: 1, .. })));

    let empty = tempfile::tempdir().unwrap();
    fs::copy(dir.path().join("durable"), empty.path().join("durable")).unwrap();
    assert!(matches!(SledStore::open(empty.path(), &settings()), Err(StoreError::RolledBack { .. })));
    fs::write(empty.path().join("durable"), [0; 12]).unwrap();
    assert!(matches!(SledStore::open(empty.path(), &settings()), Err(StoreError::Corrupt(_))));
}

#[test]
fn damage_anywhere_in_the_database_never_passes_for_a_whole_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    fill(&store, &genesis(), 300);
    store.make_durable().unwrap();
    drop(store);
    let store = open(dir.path());
    let blocks: Vec<_> = (1..=300).map(|at| store.block(Height(at)).unwrap()).collect();
    fill(&store, &store.load().unwrap().unwrap().head, 20);
    store.make_durable().unwrap();
    drop(store);
    let whole = fs::read(dir.path().join("sled/db")).unwrap();
    let mut refused = 0;
    // Not in step with sled's own sizes, and not where the file was never written.
    let places = (3..whole.len()).step_by(9_973).filter(|at| whole[*at] != 0);
    for at in places {
        let image = crash_image(dir.path());
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        fs::write(image.path().join("sled/db"), bytes).unwrap();
        let found = SledStore::open(image.path(), &settings()).and_then(|store| {
            let head = store.load()?.map(|snapshot| snapshot.head.height);
            let blocks: Result<Vec<_>, _> = (1..=300).map(|at| store.block(Height(at))).collect();
            Ok((head, blocks?))
        });
        match found {
            Ok(found) => assert!(found == (Some(Height(320)), blocks.clone()), "byte {at}"),
            Err(error) => {
                assert!(error.to_string().contains("docs/STORAGE.md"), "{error}");
                refused += 1;
            }
        }
    }
    assert!(refused > 5, "only {refused} found");
}

/// One thing that may happen to a store.
#[derive(Debug, Clone)]
enum Step {
    /// A batch, with a block or without, that sets an entry of the state or removes it.
    Commit { with_block: bool, key: u8, set: bool },
    /// `make_durable`.
    Save,
    /// Orderly stop and start.
    Restart,
    /// Killed.
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (any::<bool>(), 0..8_u8, any::<bool>())
            .prop_map(|(with_block, key, set)| Step::Commit { with_block, key, set }),
        1 => Just(Step::Save),
        1 => Just(Step::Restart),
        1 => Just(Step::Crash),
    ]
}

/// The head and the state after one commit.
type Version = (Head, BTreeMap<Vec<u8>, Vec<u8>>);

fn commit(store: &SledStore, last: &Version, with_block: bool, key: u8, set: bool) -> Version {
    let (head, block) = if with_block {
        let reading = item(&client("iot"), &"d".repeat(100), 1, last.0.sequence.0);
        let (head, block) = next(&last.0, vec![write(last.0.sequence.0 + 1, &[reading], &[])]);
        (head, Some(block))
    } else {
        (Head { sequence: last.0.sequence.next(), ..last.0.clone() }, None)
    };
    let value = set.then(|| head.sequence.0.to_be_bytes().to_vec());
    let change = StateChange { key: vec![key], value: value.clone() };
    store.commit(&head, block.as_ref(), &[change]).unwrap();
    let mut state = last.1.clone();
    state.remove(&vec![key]);
    state.extend(value.map(|value| (vec![key], value)));
    (head, state)
}

fn version(store: &SledStore) -> Version {
    store.load().unwrap().map_or_else(
        || (genesis(), BTreeMap::new()),
        |snapshot| (snapshot.head, snapshot.entries.into_iter().collect()),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn whatever_happens_the_store_holds_one_of_the_versions_since_the_last_save(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut dir = tempfile::tempdir().unwrap();
        let mut store = open(dir.path());
        let mut versions = vec![version(&store)];
        let mut saved = 0;
        for step in steps {
            match step {
                Step::Commit { with_block, key, set } => {
                    let new = commit(&store, versions.last().unwrap(), with_block, key, set);
                    versions.push(new);
                }
                Step::Save => {
                    store.make_durable().unwrap();
                    saved = versions.len() - 1;
                }
                Step::Restart => {
                    drop(store);
                    store = open(dir.path());
                    prop_assert_eq!(Some(&version(&store)), versions.last());
                }
                Step::Crash => {
                    let image = crash_image(dir.path());
                    drop(store);
                    dir = image;
                    store = open(dir.path());
                    let found = version(&store);
                    let at = versions.iter().position(|version| *version == found);
                    prop_assert!(at.is_some_and(|at| at >= saved), "{:?} of {}, saved {}", at, versions.len(), saved);
                    versions.truncate(at.unwrap() + 1);
                }
            }
        }
    }
}
