//! What became of the messages: counted, and told in words.

use std::io::{IsTerminal as _, stderr};
use std::time::Duration;

use anyhow::bail;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::cli::latency::{Latencies, Percentiles};
use crate::cli::output;
use crate::device::codes::ErrorCode;
use crate::gateway::{Ack, PublishError, Refusal};
use crate::history::audit::words::number;
use crate::types::MessageSeq;

/// So many problems are told one by one; the rest are counted.
pub(super) const TOLD_PROBLEMS: u64 = 10;

/// What became of a file.
#[derive(Debug, Default, Serialize)]
pub(super) struct Summary {
    /// Messages that are final.
    pub(super) messages: u64,
    /// Messages of this file that earlier runs took up: they are not sent again.
    pub(super) earlier: u64,
    /// Data items in them.
    items: u64,
    /// Those of them that are on the ledger.
    items_written: u64,
    /// The highest block that holds one; none if none does.
    height: Option<u64>,
    /// Messages that a node acknowledged, so that they are in its log, and that are not final: they
    /// still wait, or the ledger did not take them.
    acknowledged: u64,
    /// Messages that a node refused and did not keep.
    refused: u64,
    /// Messages of which no node has said anything: the next run sends them again.
    unknown: u64,
    /// Lines that are no message; with --skip-invalid they are left out, and not among the failed.
    invalid: u64,
    /// All of these that are not final.
    pub(super) failed: u64,
    /// From sending to the node's disk; none if nothing was measured.
    puback_ms: Option<Percentiles>,
    /// From sending to the ledger.
    final_ms: Option<Percentiles>,
    /// The run ended before some messages had their answer: the next one sends them.
    #[serde(skip)]
    has_more: bool,
    /// Some were refused, and the next run tries them again.
    #[serde(skip)]
    try_again: bool,
}

/// What is true of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// A node signed that it is final.
    Final,
    /// In a node's log, and not on the ledger as far as is known.
    Acknowledged,
    /// No node kept it.
    Refused,
    /// No node said anything.
    Unknown,
}

/// A PUBACK alone tells nothing once an error has come: what is refused for its content gets one, too.
fn fate(ack: &Result<Ack, PublishError>, has_puback: bool) -> Fate {
    match ack {
        Ok(_) => Fate::Final,
        Err(PublishError::Refused(refusal)) if refusal.was_accepted() => Fate::Acknowledged,
        Err(PublishError::Refused(_) | PublishError::Invalid(_)) => Fate::Refused,
        Err(PublishError::State(_) | PublishError::Closed) if has_puback => Fate::Acknowledged,
        Err(PublishError::State(_) | PublishError::Closed) => Fate::Unknown,
    }
}

/// Why a message is not final, for a person.
fn told(error: &PublishError, fate: Fate) -> String {
    let PublishError::Refused(refusal) = error else { return error.to_string() };
    let ahead = match refusal.code {
        ErrorCode::SeqTooOld | ErrorCode::SeqReused => {
            ": another copy of this client, with another --state, took later numbers; never run two of them"
        }
        _ => "",
    };
    match fate {
        Fate::Acknowledged => format!(
            "acknowledged by the node, in its log, and not taken by the ledger now ({}){ahead}; the node says: {}; \
             `/v1/records` tells whether it got there before",
            refusal.code, refusal.detail
        ),
        _ => format!("{error}{ahead}"),
    }
}

/// One message's way.
pub(super) struct Delivered {
    pub(super) line: u64,
    pub(super) ack: Result<Ack, PublishError>,
    pub(super) puback: Option<Duration>,
    pub(super) done: Duration,
}

/// Counts, and tells what went wrong.
pub(super) struct Tally {
    /// Lines that are no message are left out.
    skip_invalid: bool,
    /// The run ended before some messages had their answer.
    ended_early: bool,
    summary: Summary,
    /// Problems so far.
    told: u64,
    refusals: u64,
    puback: Latencies,
    done: Latencies,
    pub(super) progress: ProgressBar,
}

impl Tally {
    pub(super) fn new(skip_invalid: bool) -> Self {
        let progress = match stderr().is_terminal() {
            true => ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()),
            false => ProgressBar::hidden(),
        };
        let style =
            ProgressStyle::with_template("{spinner} {pos} messages on the ledger, {per_sec}, {elapsed}");
        let progress = match style {
            Ok(style) => progress.with_style(style),
            Err(_) => progress,
        };
        Self {
            skip_invalid,
            ended_early: false,
            summary: Summary::default(),
            told: 0,
            refusals: 0,
            puback: Latencies::default(),
            done: Latencies::default(),
            progress,
        }
    }

    pub(super) fn add(&mut self, delivered: Delivered) {
        let fate = fate(&delivered.ack, delivered.puback.is_some());
        let ack = match delivered.ack {
            Ok(ack) => ack,
            Err(error) => return self.not_final(&format!("line {}", delivered.line), &error, fate),
        };
        self.summary.messages += 1;
        self.summary.items += u64::from(ack.items);
        self.summary.items_written += ack.written.len() as u64;
        self.summary.height = self.summary.height.max(ack.height.map(|height| height.0));
        self.done.record(delivered.done);
        if let Some(puback) = delivered.puback {
            self.puback.record(puback);
        }
        self.progress.inc(1);
    }

    fn not_final(&mut self, what: &str, error: &PublishError, fate: Fate) {
        match fate {
            Fate::Final => {}
            Fate::Acknowledged => self.summary.acknowledged += 1,
            Fate::Refused => self.summary.refused += 1,
            Fate::Unknown => self.summary.unknown += 1,
        }
        self.refusals += u64::from(matches!(error, PublishError::Refused(_)));
        self.summary.try_again |=
            matches!(error, PublishError::Refused(refusal) if refusal.may_be_tried_again());
        self.problem(&format!("{what}: {}", told(error, fate)));
    }

    /// Messages that earlier runs left were refused in this one.
    pub(super) fn refused_of_earlier_runs(&mut self, refused: &[(MessageSeq, Refusal)]) {
        for (seq, refusal) in refused {
            let error = PublishError::Refused(refusal.clone());
            self.not_final(&format!("seq {seq}, of an earlier run"), &error, fate(&Err(error.clone()), true));
        }
    }

    /// How many messages were refused.
    pub(super) const fn refusals(&self) -> u64 {
        self.refusals
    }

    /// A line is no message.
    pub(super) fn invalid(&mut self, problem: &str) {
        self.summary.invalid += 1;
        self.summary.failed += u64::from(!self.skip_invalid);
        self.tell(problem);
    }

    /// Messages of the file that are not sent, since an earlier run took them up.
    pub(super) fn earlier(&mut self, messages: u64) {
        self.summary.earlier = messages;
    }

    /// A message that an earlier run took up is sent again, since it was refused then.
    pub(super) fn try_again(&mut self) {
        self.summary.earlier = self.summary.earlier.saturating_sub(1);
    }

    /// The run ends before so many messages have their answer, those of earlier runs included.
    pub(super) fn leave(&mut self, unfinished: usize, stored: u64) {
        let unfinished = u64::try_from(unfinished).unwrap_or(u64::MAX);
        let stored = stored.min(unfinished);
        self.summary.acknowledged += stored;
        self.summary.unknown += unfinished - stored;
        self.summary.failed += unfinished;
        self.ended_early |= unfinished > 0;
    }

    fn problem(&mut self, problem: &str) {
        self.summary.failed += 1;
        self.tell(problem);
    }

    fn tell(&mut self, problem: &str) {
        self.told += 1;
        match self.told {
            // A node may have had a say in it.
            ..=TOLD_PROBLEMS => self.progress.suspend(|| eprintln!("{}", output::plain(problem))),
            at if at == TOLD_PROBLEMS + 1 => {
                self.progress.suspend(|| eprintln!("further problems are counted"))
            }
            _ => {}
        }
    }

    pub(super) fn summary(self) -> Summary {
        self.progress.finish_and_clear();
        let measured = |times: &Latencies| (times.count() > 0).then(|| times.percentiles());
        let (puback_ms, final_ms) = (measured(&self.puback), measured(&self.done));
        Summary { puback_ms, final_ms, has_more: self.ended_early, ..self.summary }
    }
}

impl Summary {
    /// For a person.
    pub(super) fn print(&self) -> anyhow::Result<()> {
        let Self { messages, items, items_written, height, puback_ms, final_ms, invalid, failed, .. } = self;
        if *messages > 0 {
            let up_to = height.map(|height| format!(", up to block {height}")).unwrap_or_default();
            let are = if *messages == 1 { "message is" } else { "messages are" };
            output::line(format_args!(
                "{} {are} final, with {} of {} on the ledger{up_to}",
                number(*messages),
                number(*items_written),
                output::counted(*items, "item")
            ))?;
            if items_written < items {
                output::line("what the policies did not pick is in the history of the node that took it")?;
            }
        }
        if *invalid > 0 && *failed == 0 {
            let lines = output::counted(*invalid, "line");
            output::line(format_args!(
                "{lines} left out: publish what is in them, mended, in a file of its own"
            ))?;
        }
        if let Some(of) = puback_ms {
            output::line(format_args!(
                "on the node's disk after {:.1} ms (p50), {:.1} ms (p99), the wait for those before it included",
                of.p50, of.p99
            ))?;
        }
        if let Some(of) = final_ms {
            output::line(format_args!("final after {:.1} ms (p50), {:.1} ms (p99)", of.p50, of.p99))?;
        }
        Ok(())
    }

    /// An error if not all of the file is final.
    pub(super) fn conclude(&self) -> anyhow::Result<()> {
        let Self { acknowledged, refused, unknown, invalid, failed, .. } = self;
        let parts = [
            (acknowledged, "acknowledged by a node, in its log, and not final"),
            (refused, "refused by a node, which kept nothing of it"),
            (unknown, "without an answer"),
            (invalid, "no message"),
        ];
        let parts: Vec<String> = parts
            .iter()
            .filter(|(count, _)| **count > 0)
            .map(|(count, what)| format!("{} {what}", number(**count)))
            .collect();
        let left = "run the same command again: it sends what has no answer yet, and nothing twice";
        let refusals = "the same command tries again what was refused; if its content is wrong, publish it, mended, in a file of its own";
        let advice = match (self.has_more, self.try_again) {
            (true, true) => format!("; {left}; {refusals}"),
            (true, false) => format!("; {left}"),
            (false, true) => format!("; {refusals}"),
            (false, false) => String::new(),
        };
        match failed {
            0 => Ok(()),
            failed => {
                bail!("{} not final: {}{advice}", output::counted(*failed, "message"), parts.join("; "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::codes::ACCEPTED_BEFORE;
    use crate::gateway::Refusal;

    fn refused(code: ErrorCode, detail: &str) -> PublishError {
        PublishError::Refused(Refusal { code, detail: detail.to_owned() })
    }

    #[test]
    fn what_is_said_of_a_message_is_what_is_true_of_it() {
        let late = refused(ErrorCode::SeqTooOld, &format!("{ACCEPTED_BEFORE}the seq is too far below 300"));
        let found = fate(&Err(late.clone()), true);
        assert_eq!(found, Fate::Acknowledged);
        let said = told(&late, found);
        for words in ["acknowledged by the node, in its log", "seq_too_old", "another copy of this client"] {
            assert!(said.contains(words), "{words:?} is not in {said}");
        }
        assert!(!said.contains("not published") && !said.contains("refused the message"), "{said}");
        // Refused at the door: a PUBACK came, and says nothing.
        for code in [ErrorCode::SeqTooOld, ErrorCode::Malformed] {
            let early = refused(code, "no");
            assert_eq!(fate(&Err(early.clone()), true), Fate::Refused);
            assert!(told(&early, Fate::Refused).contains("the node refused the message"));
        }
        assert_eq!(fate(&Err(PublishError::Closed), true), Fate::Acknowledged);
        assert_eq!(fate(&Err(PublishError::Closed), false), Fate::Unknown);
    }

    #[test]
    fn messages_without_an_answer_are_counted_by_what_is_known() {
        let mut tally = Tally::new(false);
        tally.leave(5, 3);
        let summary = tally.summary();
        assert_eq!((summary.acknowledged, summary.unknown, summary.failed), (3, 2, 5));
        assert!(summary.puback_ms.is_none() && summary.final_ms.is_none(), "nothing was measured");
        let told = summary.conclude().unwrap_err().to_string();
        assert!(
            told.starts_with("5 messages not final: 3 acknowledged")
                && told.contains("2 without")
                && told.ends_with(
                    "run the same command again: it sends what has no answer yet, and nothing twice"
                ),
            "{told}"
        );
    }

    #[test]
    fn lines_that_are_left_out_on_purpose_are_no_failure() {
        for (skip, failed) in [(false, 1), (true, 0)] {
            let mut tally = Tally::new(skip);
            tally.invalid("line 3: no");
            let summary = tally.summary();
            assert_eq!((summary.invalid, summary.failed), (1, failed));
            assert_eq!(summary.conclude().is_ok(), skip);
        }
    }
}
