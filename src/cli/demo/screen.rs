//! What the demo shows: a story in lines, and under it how far the work at hand is.
//!
//! The story goes to standard output, or to standard error with `--json`, where standard output is
//! the summary's alone. Progress is a bar on a terminal and a line every few seconds elsewhere.

use std::fmt::Display;
use std::io::{IsTerminal as _, stderr};
use std::time::Duration;

use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::cli::output;
use crate::clock::{SharedClock, SystemClock};

/// How often a line says how far the work is, where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Where the story is told.
pub(super) struct Screen {
    json: bool,
    clock: SharedClock,
}

impl Screen {
    pub(super) fn new(json: bool) -> Self {
        Self { json, clock: SystemClock::shared() }
    }

    /// Tells a line.
    pub(super) fn say(&self, line: impl Display) -> anyhow::Result<()> {
        if self.json {
            eprintln!("{line}");
            return Ok(());
        }
        output::line(line)
    }

    /// Shows how far work on `all` things is, until the answer is dropped.
    pub(super) fn progress(&self, all: usize, things: &'static str) -> Progress<'_> {
        let bar = stderr().is_terminal().then(|| bar(all));
        Progress { screen: self, all, things, bar, last_line: self.clock.monotonic() }
    }
}

fn bar(all: usize) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(all as u64), ProgressDrawTarget::stderr());
    match ProgressStyle::with_template("   {bar:30} {human_pos}/{human_len} {msg}, {eta} left") {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}

/// How far one piece of work is.
pub(super) struct Progress<'a> {
    screen: &'a Screen,
    all: usize,
    things: &'static str,
    bar: Option<ProgressBar>,
    last_line: Duration,
}

impl Progress<'_> {
    /// Shows that `done` things are done; `detail` says more.
    pub(super) fn show(&mut self, done: usize, detail: impl Display) -> anyhow::Result<()> {
        let Self { screen, all, things, .. } = self;
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{things}{detail}"));
            bar.set_position(done as u64);
            return Ok(());
        }
        let now = screen.clock.monotonic();
        if now - self.last_line >= LINE_EVERY {
            self.last_line = now;
            screen.say(format_args!("   {} of {} {things}{detail}", count(done), count(*all)))?;
        }
        Ok(())
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A number for people: 17,520.
pub(super) fn count(number: usize) -> HumanCount {
    HumanCount(number as u64)
}

/// A number of things.
pub(super) fn plural(number: usize, thing: &str) -> String {
    let s = if number == 1 { "" } else { "s" };
    format!("{} {thing}{s}", count(number))
}
