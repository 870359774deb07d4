//! The runs of the checker, and the table in the document that they are compared with.

use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;

use ledgermq::clock::{Clock as _, SystemClock};
use stateright::{Checker, CheckerBuilder, Model};

use crate::bounds::{Bounds, REPLICAS};
use crate::protocol::Protocol;

/// Any sequence number among many, any number of different proposals, two views, each action by
/// itself.
fn any_number(byzantine: usize) -> Bounds {
    Bounds::any_number(byzantine, 2)
}

/// Two sequence numbers and two requests, two views.
fn two_numbers(byzantine: usize) -> Bounds {
    Bounds::two_numbers(byzantine, 2).eagerly()
}

/// Any sequence number among many, three views.
fn three_views(byzantine: usize) -> Bounds {
    Bounds::any_number(byzantine, 3).eagerly()
}

pub fn checker(model: Protocol) -> CheckerBuilder<Protocol> {
    model.checker().threads(std::thread::available_parallelism().map_or(1, NonZeroUsize::get))
}

/// Checks all states of a run with each replica as the faulty one.
fn check(run: &str, bounds: fn(usize) -> Bounds) {
    let mut other = Vec::new();
    for byzantine in 0..REPLICAS {
        let begun = SystemClock::new();
        let checked = checker(Protocol::new(bounds(byzantine))).spawn_bfs().join();
        checked.assert_properties();
        let (states, steps) = (checked.unique_state_count(), checked.state_count());
        println!(
            "{run}: replica {byzantine} is faulty: {states} states, {steps} steps, {:?}",
            begun.monotonic()
        );
        if documented(run, byzantine) != Some((states, steps)) {
            other.push(format!("| {run} | {byzantine} | {states} | {steps} |"));
        }
    }
    assert!(other.is_empty(), "docs/MODEL.md has other numbers than these:\n{}", other.join("\n"));
}

/// States and steps that docs/MODEL.md has for a run: the third and fourth cell of its row.
fn documented(run: &str, byzantine: usize) -> Option<(usize, usize)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/MODEL.md");
    let text = fs::read_to_string(path).unwrap();
    let rows = text.lines().map(|line| line.split('|').map(str::trim).collect::<Vec<_>>());
    let mut found =
        rows.filter(|cells| cells.len() > 5 && cells[1] == run && cells[2] == byzantine.to_string());
    let row = found.next()?;
    let number = |cell: &str| cell.replace(',', "").parse().ok();
    Some((number(row[3])?, number(row[4])?))
}

#[test]
fn no_two_correct_replicas_disagree_at_any_number_in_two_views() {
    check("any number, two views", any_number);
}

#[test]
fn no_two_correct_replicas_disagree_on_two_requests_at_two_numbers_in_two_views() {
    check("two numbers, two views", two_numbers);
}

#[test]
#[ignore = "takes minutes; docs/MODEL.md has the command"]
fn no_two_correct_replicas_disagree_at_any_number_in_three_views() {
    check("any number, three views", three_views);
}

/// For people: states and actions in a browser. Ends with Ctrl-C.
#[test]
#[ignore = "serves until it is stopped"]
fn explore() {
    let byzantine = std::env::var("FAULTY").map_or(0, |text| text.parse().unwrap());
    let address = std::env::var("EXPLORER").unwrap_or_else(|_| "localhost:3000".into());
    println!("replica {byzantine} is faulty; open http://{address}");
    checker(Protocol::new(any_number(byzantine))).serve(address);
}
