//! The log against crashes, damage and a model.

use std::path::PathBuf;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::clock::SystemClock;

const NETWORK: NetworkId = NetworkId([7; 32]);

fn settings() -> LogSettings {
    LogSettings { gather: Duration::ZERO, ..LogSettings::new(NETWORK, SystemClock::shared()) }
}

fn small_segments() -> LogSettings {
    LogSettings { segment_bytes: 200, ..settings() }
}

fn entry(text: &str) -> Entry {
    Entry { kind: EntryKind::AcceptedMessage, bytes: text.as_bytes().to_vec() }
}

fn entries(replay: Replay) -> Vec<Entry> {
    replay.map(|found| found.unwrap().1).collect()
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Appends each text as a group of its own.
fn append_each(log: &Log, texts: &[&str]) {
    block_on(async {
        for text in texts {
            log.append_synced(vec![entry(text)]).await.unwrap();
        }
    });
}

fn segment_files(dir: &Path) -> Vec<PathBuf> {
    segment::list(dir).unwrap().into_iter().map(|(_, path)| path).collect()
}

/// What the disk would hold if the node were killed now.
fn crash_image(dir: &Path) -> TempDir {
    let image = tempfile::tempdir().unwrap();
    for path in segment_files(dir) {
        fs::copy(&path, image.path().join(path.file_name().unwrap())).unwrap();
    }
    image
}

fn reopen(dir: &Path) -> Result<Vec<Entry>, LogError> {
    Log::open(dir, settings()).map(|(_log, replay)| entries(replay))
}

#[test]
fn what_was_appended_is_there_after_a_restart_in_order_and_with_its_positions() {
    let dir = tempfile::tempdir().unwrap();
    let (log, replay) = Log::open(dir.path(), settings()).unwrap();
    assert!(log.is_new() && entries(replay).is_empty());
    let votes = vec![entry("one"), Entry { kind: EntryKind::Pbft, bytes: vec![] }];
    assert_eq!(block_on(log.append_synced(votes)).unwrap(), Position(2));
    assert_eq!(block_on(log.append_synced(vec![entry("three")])).unwrap(), Position(3));
    drop(log);

    let (log, replay) = Log::open(dir.path(), settings()).unwrap();
    let found: Vec<_> = replay.map(Result::unwrap).collect();
    assert_eq!(found[0], (Position(1), entry("one")));
    assert_eq!(found[1], (Position(2), Entry { kind: EntryKind::Pbft, bytes: vec![] }));
    assert_eq!(found[2], (Position(3), entry("three")));
    assert!(!log.is_new());
    assert_eq!((log.last(), log.synced_position()), (Position(3), Position(3)));
    assert_eq!(block_on(log.append_synced(vec![entry("four")])).unwrap(), Position(4));
}

#[test]
fn concurrent_appends_stay_whole_and_share_syncs() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(dir.path(), small_segments()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let tasks: Vec<_> = (0..64_u8)
        .map(|task| {
            let log = log.clone();
            runtime.spawn(async move {
                for at in 0..8_u8 {
                    let pair =
                        [0, 1].map(|half| Entry { kind: EntryKind::Pbft, bytes: vec![task, at, half] });
                    log.append_synced(pair.to_vec()).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        runtime.block_on(task).unwrap();
    }
    let stats = log.stats();
    assert_eq!((stats.entries, stats.queued_bytes), (1024, 0));
    assert!(stats.groups < 512, "{} groups for 512 appends", stats.groups);
    drop(log);
    let found = reopen(dir.path()).unwrap();
    assert_eq!(found.len(), 1024);
    for pair in found.chunks(2) {
        assert_eq!(
            (pair[0].bytes[..2] == pair[1].bytes[..2], pair[0].bytes[2], pair[1].bytes[2]),
            (true, 0, 1)
        );
    }
}

/// Stands until a test moves it.
#[derive(Default)]
struct Hands(AtomicU64);

impl crate::clock::Clock for Hands {
    fn now(&self) -> crate::types::Timestamp {
        crate::types::Timestamp(self.0.load(Relaxed))
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.0.load(Relaxed))
    }
}

const HOUR: Duration = Duration::from_secs(3_600);

/// A log whose messages wait for an hour of the clock, unless something else is due.
fn patient_log(dir: &Path) -> (Log, Arc<Hands>) {
    let clock = Arc::new(Hands::default());
    let settings = LogSettings { gather: HOUR, clock: clock.clone(), ..settings() };
    (Log::open(dir, settings).unwrap().0, clock)
}

#[test]
fn messages_wait_for_each_other_and_go_with_the_first_vote() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _clock) = patient_log(dir.path());
    block_on(async {
        log.append_synced(vec![entry("the first waits for nobody")]).await.unwrap();
        for text in ["one", "another"] {
            log.append(vec![entry(text)]).await.unwrap();
        }
        assert_eq!(log.synced_position(), Position(1));
        let vote = Entry { kind: EntryKind::Pbft, bytes: vec![1] };
        assert_eq!(log.append_synced(vec![vote]).await.unwrap(), Position(4));
    });
    assert_eq!(log.stats().groups, 2);
}

#[test]
fn a_message_in_an_idle_log_waits_for_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let (log, clock) = patient_log(dir.path());
    block_on(async {
        log.append_synced(vec![entry("one")]).await.unwrap();
        clock.0.fetch_add(3_600_000, Relaxed);
        log.append_synced(vec![entry("an hour later")]).await.unwrap();
    });
    assert_eq!(log.stats().groups, 2);
}

#[test]
fn enough_messages_wait_for_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _clock) = patient_log(dir.path());
    block_on(async {
        log.append_synced(vec![entry("one")]).await.unwrap();
        let many = Entry { kind: EntryKind::AcceptedMessage, bytes: vec![0; 256 * 1024] };
        for _ in 0..3 {
            log.append(vec![many.clone()]).await.unwrap();
        }
        log.append_synced(vec![many]).await.unwrap();
    });
}

#[test]
fn what_waits_is_written_when_the_log_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _clock) = patient_log(dir.path());
    block_on(async {
        log.append_synced(vec![entry("one")]).await.unwrap();
        log.append(vec![entry("another")]).await.unwrap();
        log.close().await.unwrap();
    });
    assert_eq!(log.synced_position(), Position(2));
    assert_eq!(reopen(dir.path()).unwrap().len(), 2);
}

#[test]
fn who_hears_that_entries_are_synced_finds_their_room_in_the_queue_again() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(dir.path(), settings()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for _ in 0..3 {
        // So many that it takes the thread a while to let go of them.
        let many = vec![entry("x"); 200_000];
        let room_again = async {
            log.append_synced(many).await.unwrap();
            log.stats().queued_bytes
        };
        assert_eq!(runtime.block_on(room_again), 0);
    }
}

#[test]
fn a_tail_torn_at_any_byte_is_cut_and_the_log_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(dir.path(), settings()).unwrap();
    append_each(&log, &["first", "second"]);
    let image = crash_image(dir.path());
    let file = segment_files(image.path()).remove(0);
    let whole = fs::read(&file).unwrap();
    let ends = [segment::HEADER_BYTES, whole.len() - record::HEADER_BYTES - 6, whole.len()];
    for len in segment::HEADER_BYTES..=whole.len() {
        fs::write(&file, &whole[..len]).unwrap();
        let (log, replay) = Log::open(image.path(), settings()).unwrap();
        let good = ends.iter().filter(|end| **end <= len).count() - 1;
        assert_eq!(entries(replay), [entry("first"), entry("second")][..good], "cut at {len}");
        append_each(&log, &["next"]);
        drop(log);
        assert_eq!(reopen(image.path()).unwrap().len(), good + 1, "cut at {len}");
    }
}

#[test]
fn a_tail_of_zeros_or_garbage_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(dir.path(), settings()).unwrap();
    append_each(&log, &["first"]);
    let image = crash_image(dir.path());
    let file = segment_files(image.path()).remove(0);
    let whole = fs::read(&file).unwrap();
    for tail in [vec![0; 5000], vec![0xff; 70], whole.clone()] {
        fs::write(&file, [whole.clone(), tail].concat()).unwrap();
        match reopen(image.path()) {
            Ok(found) => assert_eq!(found, [entry("first")]),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_group_that_reached_the_disk_only_in_parts_is_cut_not_called_damage() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(dir.path(), settings()).unwrap();
    append_each(&log, &["safe"]);
    block_on(log.append_synced(vec![entry("torn"), entry("whole")])).unwrap();
    let image = crash_image(dir.path());
    let file = segment_files(image.path()).remove(0);
    let mut bytes = fs::read(&file).unwrap();
    let torn = bytes.windows(4).position(|at| at == b"torn").unwrap();
    bytes[torn] = 0;
    fs::write(&file, bytes).unwrap();
    assert_eq!(reopen(image.path()).unwrap(), [entry("safe")]);
}

#[test]
fn any_flipped_bit_in_a_log_that_was_closed_in_order_is_called_damage() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(dir.path(), settings()).unwrap();
    append_each(&log, &["first", "second"]);
    drop(log);
    let file = segment_files(dir.path()).remove(0);
    let whole = fs::read(&file).unwrap();
    let mark = whole.len() - record::HEADER_BYTES;
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        fs::write(&file, bytes).unwrap();
        match reopen(dir.path()) {
            Ok(found) if bit / 8 >= mark => assert_eq!(found.len(), 2),
            Err(LogError::Damaged { .. }) if bit / 8 < mark => {}
            Err(LogError::Version { .. }) if (8..12).contains(&(bit / 8)) => {}
            other => panic!("bit {bit}: {other:?}"),
        }
    }
}

#[test]
fn after_a_crash_damage_below_the_last_group_is_called_damage() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(dir.path(), settings()).unwrap();
    append_each(&log, &["first", "second", "third"]);
    let image = crash_image(dir.path());
    let file = segment_files(image.path()).remove(0);
    let whole = fs::read(&file).unwrap();
    let last_group = whole.len() - record::HEADER_BYTES - 5;
    for at in segment::HEADER_BYTES..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        fs::write(&file, bytes).unwrap();
        match reopen(image.path()) {
            Err(LogError::Damaged { .. }) if at < last_group => {}
            Ok(found) if at >= last_group => assert_eq!(found, [entry("first"), entry("second")]),
            other => panic!("byte {at}: {other:?}"),
        }
    }
}

#[test]
fn a_payload_cannot_pose_as_a_record() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(dir.path(), settings()).unwrap();
    append_each(&log, &["first"]);
    let mut posing = Vec::new();
    for seed in 0..64 {
        record::encode(&mut posing, &entry("x"), Position(9), Position(8), seed);
    }
    block_on(log.append_synced(vec![Entry { kind: EntryKind::AcceptedMessage, bytes: posing }])).unwrap();
    let image = crash_image(dir.path());
    let file = segment_files(image.path()).remove(0);
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() - 1]).unwrap();
    assert_eq!(reopen(image.path()).unwrap(), [entry("first")]);
}

#[test]
fn damage_or_a_gap_in_an_earlier_segment_is_called_damage() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(dir.path(), small_segments()).unwrap();
    append_each(&log, &["x".repeat(90).as_str(); 8]);
    assert!(log.stats().segments >= 3);
    for harm in [
        (|file: &Path| fs::write(file, &fs::read(file).unwrap()[..150]).unwrap()) as fn(&Path),
        |file| fs::remove_file(file).unwrap(),
        |file| fs::write(file, b"").unwrap(),
    ] {
        let image = crash_image(dir.path());
        harm(&segment_files(image.path())[1]);
        assert!(matches!(reopen(image.path()), Err(LogError::Damaged { .. })));
    }
}

#[test]
fn an_image_of_a_log_is_torn_and_read_as_its_files_are() {
    let groups = [vec![entry("first")], vec![entry("second"), entry("third")]];
    let mut image = image::SegmentImage::new(&NETWORK, Position(1), 5);
    image.append(&groups[0], Position(1), Position::NONE);
    image.append(&groups[1], Position(2), Position(1));
    let whole = image.bytes.clone();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(segment::file_name(Position(1)));
    for len in segment::HEADER_BYTES..=whole.len() {
        for harm in [0, 40, 70] {
            let mut bytes = whole[..len].to_vec();
            let harmed = len.saturating_sub(harm).max(segment::HEADER_BYTES);
            bytes[harmed..].fill(0);
            fs::write(&file, &bytes).unwrap();
            image.bytes = bytes;
            let read = image::recover(&NETWORK, std::slice::from_mut(&mut image));
            let read = read.map(|entries| entries.into_iter().map(|(_, entry)| entry).collect::<Vec<_>>());
            // A log that is opened and closed gets an end mark, which opening it cuts again.
            match (Log::open(dir.path(), settings()).map(|(_log, replay)| entries(replay)), read) {
                (Ok(found), Ok(expected)) => {
                    assert_eq!(found, expected, "{len} bytes, {harm} of them zero");
                    let good = fs::read(&file).unwrap();
                    assert_eq!(good[..good.len() - record::HEADER_BYTES], image.bytes);
                }
                (Err(LogError::Damaged { .. }), Err(LogError::Damaged { .. })) => {}
                other => panic!("{len} bytes, {harm} of them zero: {other:?}"),
            }
        }
    }
}

#[test]
fn a_segment_that_was_never_finished_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    append_each(&Log::open(dir.path(), settings()).unwrap().0, &["first"]);
    let leftover = dir.path().join("0000000000000002.new");
    fs::write(&leftover, b"LMQ").unwrap();
    assert_eq!(reopen(dir.path()).unwrap(), [entry("first")]);
    assert!(!leftover.exists());
}

#[test]
fn a_log_that_is_open_cannot_be_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(dir.path(), settings()).unwrap();
    assert!(matches!(Log::open(dir.path(), settings()), Err(LogError::InUse(_))));
    block_on(log.close()).unwrap();
    assert!(Log::open(dir.path(), settings()).is_ok());
    assert!(matches!(block_on(log.append(vec![entry("late")])), Err(LogError::Closed)));
    assert!(matches!(block_on(log.synced(Position(1))), Err(LogError::Closed)));
}

#[test]
fn a_log_of_another_network_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(Log::open(dir.path(), settings()).unwrap());
    let other = LogSettings { network: NetworkId([8; 32]), ..settings() };
    assert!(matches!(Log::open(dir.path(), other), Err(LogError::WrongNetwork { .. })));
}

#[test]
fn whole_segments_are_cut_only_below_what_every_holder_needs() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(dir.path(), small_segments()).unwrap();
    append_each(&log, &["x".repeat(90).as_str(); 9]);
    let before = segment_files(dir.path());
    log.set_low_mark(Holder::Consensus, Position(9));
    log.cut(Position(9));
    append_each(&log, &["after the cut"]);
    assert_eq!(log.low_mark(), Position(1));
    assert_eq!(segment_files(dir.path())[..before.len()], before, "ingress still needs all");

    log.set_low_mark(Holder::Ingress, Position(6));
    assert_eq!(log.low_mark(), Position(1), "the history still needs all");
    log.set_low_mark(Holder::History, Position(8));
    log.set_low_mark(Holder::Ingress, Position(2));
    assert_eq!(log.low_mark(), Position(6), "a mark never goes back");
    log.cut(Position(100));
    block_on(log.close()).unwrap();
    let (log, replay) = Log::open(dir.path(), small_segments()).unwrap();
    let first = replay.map(Result::unwrap).next().unwrap().0;
    assert!(first > Position(1) && first <= Position(6), "{first:?}");
    assert_eq!((log.first(), log.last()), (first, Position(10)));
}

#[test]
fn an_append_waits_while_the_queue_is_full_and_a_huge_one_has_it_for_itself() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(dir.path(), LogSettings { max_queued_bytes: 100, ..settings() }).unwrap();
    block_on(async {
        let appends = (0..20).map(|_| log.append(vec![entry(&"y".repeat(500))]));
        for appended in futures::future::join_all(appends).await {
            appended.unwrap();
        }
        log.synced(log.last()).await.unwrap();
    });
    assert_eq!(log.stats().groups, 20, "never two in the queue");
}

#[test]
fn an_append_that_is_given_up_while_it_waits_appends_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (go_on, gate) = std::sync::mpsc::channel();
    let observer: SyncObserver = Box::new(move |_| gate.recv().unwrap());
    let settings = LogSettings { max_queued_bytes: 100, observer: Some(observer), ..settings() };
    let (log, _) = Log::open(dir.path(), settings).unwrap();
    block_on(async {
        let full = entry(&"x".repeat(100));
        assert_eq!(log.append(vec![full.clone()]).await.unwrap(), Position(1));
        assert_eq!(log.stats().queued_bytes, 100);
        {
            let mut waiting = std::pin::pin!(log.append(vec![full]));
            assert!(futures::poll!(&mut waiting).is_pending());
        }
        go_on.send(()).unwrap();
        go_on.send(()).unwrap();
        assert_eq!(log.append_synced(vec![entry("next")]).await.unwrap(), Position(2));
    });
}

#[test]
fn an_entry_that_is_too_large_is_refused_and_the_log_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(dir.path(), settings()).unwrap();
    let huge = Entry { kind: EntryKind::Pbft, bytes: vec![0; MAX_ENTRY_BYTES + 1] };
    assert!(matches!(block_on(log.append(vec![huge])), Err(LogError::TooLarge { .. })));
    append_each(&log, &["fine"]);
}

#[test]
fn an_error_of_the_disk_reaches_everybody_and_is_final() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let (log, _) = Log::open(&path, LogSettings { segment_bytes: 1, ..settings() }).unwrap();
    append_each(&log, &["first"]);
    fs::remove_dir_all(&path).unwrap();
    block_on(async {
        let failed = log.failed();
        let position = log.append(vec![entry("lost")]).await.unwrap();
        assert!(matches!(log.synced(position).await, Err(LogError::Io { .. })));
        assert!(matches!(failed.await, LogError::Io { .. }));
        assert!(matches!(log.append(vec![entry("more")]).await, Err(LogError::Io { .. })));
        assert!(matches!(log.close().await, Err(LogError::Io { .. })));
        log.synced(Position(1)).await.unwrap();
    });
}

#[test]
fn a_directory_that_cannot_be_made_is_named_in_the_error() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), b"").unwrap();
    let error = Log::open(&dir.path().join("file"), settings()).unwrap_err().to_string();
    assert!(error.contains("file") && error.contains("check the disk"), "{error}");
}

#[test]
fn the_observer_hears_of_every_group() {
    let dir = tempfile::tempdir().unwrap();
    let heard = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&heard);
    let observer: SyncObserver = Box::new(move |report| {
        count.fetch_add(report.entries, Relaxed);
    });
    let (log, _) = Log::open(dir.path(), LogSettings { observer: Some(observer), ..settings() }).unwrap();
    append_each(&log, &["one", "two"]);
    assert_eq!(heard.load(Relaxed), 2);
}

/// One thing that may happen to a log.
#[derive(Debug, Clone)]
enum Step {
    /// A synced append of entries with these lengths.
    Append(Vec<usize>),
    /// Orderly stop and start.
    Restart,
    /// Killed, with these unfinished bytes at the end of the log.
    Crash(Vec<u8>),
    /// Everybody is done with all but the last `keep` entries.
    Cut {
        /// So many stay.
        keep: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => prop::collection::vec(0..300_usize, 1..4).prop_map(Step::Append),
        1 => Just(Step::Restart),
        1 => prop::collection::vec(any::<u8>(), 0..64).prop_map(Step::Crash),
        1 => (0..6_u64).prop_map(|keep| Step::Cut { keep }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn whatever_happens_the_log_holds_what_was_synced(steps in prop::collection::vec(step(), 1..24)) {
        let mut dir = tempfile::tempdir().unwrap();
        let (mut log, _) = Log::open(dir.path(), small_segments()).unwrap();
        let mut model: Vec<Entry> = Vec::new();
        let mut needed = Position(1);
        for (at, step) in steps.into_iter().enumerate() {
            match step {
                Step::Append(lengths) => {
                    let fill = u8::try_from(at).unwrap();
                    let new: Vec<_> = lengths.iter().map(|len| Entry { kind: EntryKind::Pbft, bytes: vec![fill; *len] }).collect();
                    let position = block_on(log.append_synced(new.clone())).unwrap();
                    model.extend(new);
                    prop_assert_eq!(position, Position(model.len() as u64));
                    continue;
                }
                Step::Cut { keep } => {
                    needed = needed.max(Position((model.len() as u64 + 1).saturating_sub(keep)));
                    log.set_low_mark(Holder::Ingress, needed);
                    log.set_low_mark(Holder::Consensus, needed);
                    log.cut(needed);
                    continue;
                }
                Step::Restart => drop(log),
                Step::Crash(torn) => {
                    // The copy may fall between two deletions of a cut; closing first is simpler.
                    drop(log);
                    let image = crash_image(dir.path());
                    let last = segment_files(image.path()).pop().unwrap();
                    let mut bytes = fs::read(&last).unwrap();
                    bytes.truncate(bytes.len() - record::HEADER_BYTES);
                    bytes.extend(torn);
                    fs::write(last, bytes).unwrap();
                    dir = image;
                }
            }
            let (opened, replay) = Log::open(dir.path(), small_segments()).unwrap();
            log = opened;
            let found: Vec<_> = replay.map(Result::unwrap).collect();
            prop_assert!(log.first() <= needed);
            prop_assert_eq!(log.last(), Position(model.len() as u64));
            let expected: Vec<_> = (log.first().0..).zip(&model[usize::try_from(log.first().0).unwrap() - 1..])
                .map(|(position, entry)| (Position(position), entry.clone())).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
