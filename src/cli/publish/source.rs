//! The file that is published, looked through before anything of it is sent.
//!
//! What is on the ledger stays there, so a file is sent only if all of it is right: each line is a message that
//! a node would take, and no column has numbers in some rows and texts in others, which is most often a cell
//! that means "not measured", or numbers with a decimal comma, which would be texts. The hash of its messages up to the last one that was taken up stands in the gateway's
//! state: the next run goes on there, whether the one before ended in the middle or the file has grown since.
//!
//! A pipe can be read but once: it is sent as it comes, lines that are no message are left out and counted, and
//! how far it came is not remembered.

use std::path::Path;

use anyhow::{Context as _, anyhow, bail};

use super::PublishArgs;
use super::tally::TOLD_PROBLEMS;
use crate::cli::arguments::wrong;
use crate::cli::output;
use crate::cli::readings::{CsvReadings, JsonLines, Message, ReadingsError};
use crate::device::body::Body;
use crate::gateway::Place;
use crate::history::audit::words::number;
use crate::types::{Hash, Stream};

pub(super) type Messages = Box<dyn Iterator<Item = Result<Message, ReadingsError>>>;

/// The place at the beginning of the file.
pub(super) fn beginning(stream: &Stream) -> Place {
    let mut hasher = blake3::Hasher::new_derive_key("ledgermq v1 published file");
    hasher.update(stream.as_str().as_bytes());
    let hash = Hash(*hasher.finalize().as_bytes());
    Place { hash, messages: 0, first: hash, last: hash }
}

/// The place behind the next message.
pub(super) fn behind(stream: &Stream, place: Place, body: &[u8]) -> Place {
    let hash = |before: Hash| {
        let mut hasher = blake3::Hasher::new_derive_key("ledgermq v1 message of a published file");
        hasher.update(&before.0).update(body);
        Hash(*hasher.finalize().as_bytes())
    };
    // As if it were the only one.
    let last = hash(beginning(stream).hash);
    let first = if place.messages == 0 { last } else { place.first };
    Place { hash: hash(place.hash), messages: place.messages + 1, first, last }
}

/// The last of these places that the file has.
///
/// # Errors
/// It cannot be read; or it has the first or the last message of what was taken up, and not all between them: who
/// changed a line that was sent, or goes on with a file that overlaps, must not have the others sent again unasked.
pub(super) fn taken(args: &PublishArgs, places: &[Place]) -> anyhow::Result<Place> {
    let (mut place, mut found) = (beginning(&args.stream), beginning(&args.stream));
    if places.is_empty() {
        // A pipe must not be opened, which takes its first bytes.
        return Ok(found);
    }
    let last = places.iter().map(|place| place.messages).max().unwrap_or_default();
    let mut overlap = None;
    let mut messages = open(args)?;
    while (place.messages < last || found.messages == 0)
        && let Some(message) = messages.next()
    {
        let message = match message {
            Ok(message) => message,
            Err(ReadingsError::Line { .. }) => continue,
            Err(error) => return Err(error.into()),
        };
        place = behind(&args.stream, place, &message.body);
        if places.contains(&place) {
            found = place;
        }
        let is_first = place.messages == 1 && places.iter().any(|other| other.first == place.first);
        if is_first || places.iter().any(|other| other.last == place.last) {
            overlap = Some(message.line);
        }
    }
    if let (0, Some(line)) = (found.messages, overlap) {
        bail!(
            "{}, line {line}, was taken up before, and lines about it were not, or not as they are now: were some \
             changed, or put before it? Nothing was sent. --again sends all of the file, also what is on the ledger \
             already; to send what is new alone, put it in a file of its own",
            args.source.path()?.display(),
        );
    }
    Ok(found)
}

/// The messages of the file, from its beginning.
pub(super) fn open(args: &PublishArgs) -> anyhow::Result<Messages> {
    match (&args.source.csv, &args.source.json_lines) {
        (Some(path), _) => Ok(Box::new(CsvReadings::open(path, &args.mapping.options(path))?)),
        (_, Some(path)) => Ok(Box::new(JsonLines::open(path, args.client.clone())?)),
        (None, None) => Err(wrong("give --csv FILE or --json-lines FILE")),
    }
}

/// Looks through the file, and counts its messages. None for what is no file and can be read only once.
pub(super) fn check(args: &PublishArgs) -> anyhow::Result<Option<u64>> {
    let path = args.source.path()?;
    let metadata = std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    if metadata.is_dir() {
        bail!("{} is a directory: give a file", path.display());
    }
    if !metadata.is_file() {
        return Ok(None);
    }
    let mut check = Check::new(args);
    match &args.source.csv {
        Some(path) => {
            let mut rows = CsvReadings::open(path, &args.mapping.options(path))?;
            rows.by_ref().try_for_each(|message| check.add(message))?;
            if let Some(doubt) = rows.doubt().filter(|_| !args.mixed_columns) {
                bail!(
                    "in {}, {doubt}; --mixed-columns publishes texts as texts. Nothing was sent",
                    path.display()
                );
            }
        }
        None => open(args)?.try_for_each(|message| check.add(message))?,
    }
    check.finish(path).map(Some)
}

/// Looks at one message after the other.
struct Check<'a> {
    args: &'a PublishArgs,
    messages: u64,
    wrong: u64,
}

impl<'a> Check<'a> {
    fn new(args: &'a PublishArgs) -> Self {
        Self { args, messages: 0, wrong: 0 }
    }

    /// An error if the file cannot be read any further.
    fn add(&mut self, message: Result<Message, ReadingsError>) -> anyhow::Result<()> {
        match message {
            Ok(message) => match Body::parse(&self.args.client, &message.body) {
                Ok(_) => self.messages += 1,
                Err(error) => self.problem(&format!("line {}: {error}", message.line)),
            },
            Err(error @ ReadingsError::Line { .. }) => self.problem(&error.to_string()),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// With --skip-invalid each is told when it is left out.
    fn problem(&mut self, problem: &str) {
        self.wrong += 1;
        if !self.args.skip_invalid && self.wrong <= TOLD_PROBLEMS {
            eprintln!("{}", output::plain(problem));
        }
    }

    fn finish(self, path: &Path) -> anyhow::Result<u64> {
        if self.wrong > 0 && !self.args.skip_invalid {
            let more = self.wrong.saturating_sub(TOLD_PROBLEMS);
            let more =
                if more > 0 { format!(" ({} more than those above)", number(more)) } else { String::new() };
            return Err(anyhow!(
                "{} of {} {} no message{more}, so nothing was sent: mend them, or leave them out with --skip-invalid",
                output::counted(self.wrong, "line"),
                path.display(),
                if self.wrong == 1 { "is" } else { "are" },
            ));
        }
        Ok(self.messages)
    }
}
