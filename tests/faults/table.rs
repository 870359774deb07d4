//! Times to recover, as a table for people and as lines of JSON for programs.
//!
//! A time runs from the fault to the first message that a client published after it and has signed
//! success for: the first client that is served again, and the last of all of them.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use serde_json::json;

/// File that gets one line of JSON for each time, if set.
pub const JSON_FILE: &str = "FAULTS_JSON";

#[derive(Debug, Clone)]
pub struct Recovery {
    pub fault: String,
    /// The first client that has a new final message.
    pub first: Duration,
    /// The last client; none where some client cannot be served yet.
    pub all: Option<Duration>,
}

/// Prints the table of a test, and adds it to the file of JSON lines.
pub fn tell(recoveries: &[Recovery]) {
    let mut table =
        format!("{:62} {:>9} {:>9}\n", "time from the fault to a new final message", "first", "all");
    for Recovery { fault, first, all } in recoveries {
        let all = all.map(|all| format!("{:7.2} s", all.as_secs_f64())).unwrap_or_default();
        writeln!(table, "  {fault:60} {:7.2} s {all}", first.as_secs_f64()).unwrap();
    }
    println!("\n{table}");
    let Some(path) = std::env::var_os(JSON_FILE) else { return };
    let mut file = std::fs::File::options().create(true).append(true).open(path).unwrap();
    for Recovery { fault, first, all } in recoveries {
        let (first, all) = (first.as_millis(), all.map(|all| all.as_millis()));
        writeln!(file, "{}", json!({ "fault": fault, "first_final_ms": first, "all_clients_ms": all }))
            .unwrap();
    }
}
