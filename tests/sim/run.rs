//! Runs many seeds at once, on as many threads as there are processors, and says how to repeat
//! what failed.

use std::cell::Cell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once, OnceLock};

/// A long campaign tells how far it is after so many seeds.
const PROGRESS: u64 = 10_000;

/// A seed that failed.
pub struct Failure {
    pub seed: u64,
    pub text: String,
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs one seed; a panic in it becomes a failure, and is not printed on the way.
fn attempt(seed: u64, run: impl FnOnce() -> u64) -> Result<u64, Failure> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !QUIET.get() || tracing() > 0 {
                loud(panic);
            }
        }));
    });
    QUIET.set(true);
    let outcome = catch_unwind(AssertUnwindSafe(run));
    QUIET.set(false);
    outcome.map_err(|panic| Failure { seed, text: text_of(&*panic) })
}

/// A number from the environment.
pub fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a number, not {text:?}")))
}

/// The seeds to run: `SIM_SEED` alone, or `SIM_SEEDS` of them (as many as `few` by default) from
/// `SIM_FIRST` on.
pub fn seeds(few: u64) -> Range<u64> {
    let first = number("SIM_FIRST").unwrap_or(0);
    match number("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => first..first + number("SIM_SEEDS").unwrap_or(few),
    }
}

/// SIM_TRACE: 1 for a line on every fault, 2 for one on every effect.
pub fn tracing() -> u64 {
    static TRACING: OnceLock<u64> = OnceLock::new();
    *TRACING.get_or_init(|| number("SIM_TRACE").unwrap_or_default())
}

/// The command that runs one seed of a test again.
pub fn command(test: &str, seed: u64) -> String {
    let release = if cfg!(debug_assertions) { "" } else { "--release " };
    format!("SIM_SEED={seed} cargo test {release}--test sim -- --exact {test} --nocapture")
}

/// The same as a line of a failure's message, if this thread is that of a test.
pub fn command_here(seed: u64) -> String {
    let line = |test: String| format!("\nrepeat with: {}", command(&test, seed));
    test_here().map(line).unwrap_or_default()
}

/// The test that this thread runs: the test harness names its threads so.
fn test_here() -> Option<String> {
    std::thread::current().name().filter(|name| name.contains("::")).map(str::to_owned)
}

/// Runs `run` for each seed, or for SIM_SEED alone; panics with the first failure and the command
/// that repeats it. With SIM_ALL=1 it goes on after failures, and lists them. `run` gives the number
/// of events that happened.
pub fn all(test: &str, seeds: Range<u64>, run: impl Fn(u64) -> u64 + Sync) {
    assert!(test_here().is_none_or(|name| name == test), "{test} is called otherwise");
    let seeds = number("SIM_SEED").map_or(seeds, |seed| seed..seed + 1);
    let (next, events) = (AtomicU64::new(seeds.start), AtomicU64::new(0));
    let failures: Mutex<Vec<Failure>> = Mutex::default();
    let to_the_end = number("SIM_ALL").is_some();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let work = || {
        while to_the_end || failures.lock().unwrap().is_empty() {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                break;
            }
            match attempt(seed, || run(seed)) {
                Ok(happened) => drop(events.fetch_add(happened, Ordering::Relaxed)),
                Err(failed) => failures.lock().unwrap().push(failed),
            }
            let done = seed + 1 - seeds.start;
            if done.is_multiple_of(PROGRESS) {
                println!("{test}: {done} seeds, {} failed", failures.lock().unwrap().len());
            }
        }
    };
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let failures = failures.into_inner().unwrap();
    for Failure { seed, text } in &failures {
        let first: Vec<&str> = text.lines().take(2).collect();
        eprintln!("seed {seed}: {}\n  {}", first.join(" "), command(test, *seed));
    }
    if let Some(Failure { seed, text }) = failures.first() {
        panic!("{text}\nrepeat with: {}", command(test, *seed));
    }
    let events = events.into_inner();
    println!("{test}: {} seeds, {events} events", seeds.end - seeds.start);
}

/// Why one run fails, if it does.
pub fn failure(seed: u64, run: impl FnOnce() -> u64) -> Option<Failure> {
    attempt(seed, run).err()
}

/// The first of `most` seeds with which `run` fails.
pub fn first_failure(most: u64, run: impl Fn(u64) -> u64) -> Option<Failure> {
    (0..most).find_map(|seed| attempt(seed, || run(seed)).err())
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}
