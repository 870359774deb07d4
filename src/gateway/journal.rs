//! The gateway's memory on disk: which numbers it has used, and which messages are not acknowledged.
//!
//! ```text
//! journal   magic "LMQGATE1", then frames
//! frame     length u32 BE ‖ CRC32 of the payload u32 BE ‖ payload: canonical Vec<Entry>
//! ```
//!
//! A number must never be signed twice, so a message is on disk before it is sent. One thread writes:
//! whatever has queued up meanwhile becomes one frame and one fdatasync, so that many messages share
//! the cost. That a message is done need not be on disk at once: sending it again is harmless.
//!
//! A frame torn by a crash can only be the last, since the next one is written after it is on disk;
//! it is cut off. A frame that does not check with a good one after it is damage, and is refused with what to do. The
//! file is rewritten without what is done when it is opened and whenever it has grown too large.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bincode::{Decode, Encode};
use tokio::sync::mpsc;

use crate::codec;
use crate::types::{ClientId, Hash, MessageSeq, NetworkId, Stream};

const MAGIC: &[u8; 8] = b"LMQGATE1";
const FILE: &str = "journal";
const NEW_FILE: &str = "journal.new";
const LOCK_FILE: &str = "lock";
const FRAME_HEAD: usize = 8;
/// A frame closes when it has this many bytes; one message more fits.
const FRAME_TARGET: usize = 4 * 1024 * 1024;
/// Shortest payload: the number of entries, none.
const MIN_FRAME: usize = 8;
/// Longest frame that is read: the target, and the largest message there is.
const MAX_FRAME: usize = 32 * 1024 * 1024;
/// A file longer than this, and longer than twice what is live, is rewritten.
const REWRITE_ABOVE: u64 = 16 * 1024 * 1024;
/// So many sources are remembered; the one not used for longest goes first.
const MAX_SOURCES: usize = 64;
/// So many refused messages of sources are remembered, to be tried again; about 4 MiB of the file.
pub const MAX_REFUSALS: usize = 100_000;
/// Entries queued for the writer; the session stops taking messages when it is full.
const QUEUE: usize = 1_024;

/// A message that was signed.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(super) struct Stored {
    pub(super) seq: MessageSeq,
    pub(super) stream: Stream,
    /// BLAKE3 of the header, as acks name it.
    pub(super) header: Hash,
    /// Content in the clear (PROTOCOL.md section 6); encrypted anew for each payload key.
    pub(super) content: Vec<u8>,
}

/// A place behind a message of a source that can be read again, such as a file. It is on disk with that message,
/// in one write, so that after any end of the process the source goes on exactly behind its last message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Place {
    /// The hash of the source up to here.
    pub hash: Hash,
    /// How many messages it has up to here.
    pub messages: u64,
    /// The hash of the first message. A source that begins with it, or has the last one, and is not the same up to
    /// here was changed, or overlaps.
    pub first: Hash,
    /// The hash of the last message.
    pub last: Hash,
}

/// Where a message of a source stands in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// It is taken up for the first time: the places before and behind it.
    New(Place, Place),
    /// It was refused, and is tried again: the hash of the source up to it.
    Again(Hash),
}

impl Origin {
    /// The hash of the source up to the message.
    pub(super) const fn hash(&self) -> Hash {
        match self {
            Self::New(_, behind) => behind.hash,
            Self::Again(hash) => *hash,
        }
    }
}

/// What the journal tells.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(super) enum Entry {
    /// Whose journal this is; the first entry.
    Owner { network: NetworkId, client: ClientId },
    /// Numbers below this one are used or given up.
    Next(MessageSeq),
    /// A message that is to be sent until it is done.
    Message(Arc<Stored>),
    /// The message was acknowledged or finally refused.
    Done(MessageSeq),
    /// A message that is to be sent until it is done, and the places before and behind it in its source.
    MessageOf(Arc<Stored>, Place, Place),
    /// How far a source was taken up.
    Place(Place),
    /// A message of a source that was taken up before, and the hash of the source up to it.
    MessageAgain(Arc<Stored>, Hash),
    /// The message was refused; if it is one of a source, it may be tried again.
    Refused(MessageSeq),
    /// The message of a source that ends at this hash was refused.
    Refusal(Hash),
}

impl Entry {
    /// A message that is to be sent until it is done.
    pub(super) const fn of(message: Arc<Stored>, origin: Option<Origin>) -> Self {
        match origin {
            None => Self::Message(message),
            Some(Origin::New(before, behind)) => Self::MessageOf(message, before, behind),
            Some(Origin::Again(hash)) => Self::MessageAgain(message, hash),
        }
    }

    const fn message(&self) -> Option<&Arc<Stored>> {
        match self {
            Self::Message(message) | Self::MessageOf(message, _, _) | Self::MessageAgain(message, _) => {
                Some(message)
            }
            _ => None,
        }
    }

    /// Whether it may be lost: then a message is sent once more than it has to be, with the same number.
    const fn is_end_of_message(&self) -> bool {
        matches!(self, Self::Done(_) | Self::Refused(_))
    }
}

/// What a journal held when it was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Remembered {
    /// The next number to use; `None` for a client without a past here.
    pub(super) next: Option<MessageSeq>,
    pub(super) messages: BTreeMap<MessageSeq, Arc<Stored>>,
    /// How far each source was taken up, the one used last behind.
    pub(super) places: Vec<Place>,
    /// Of which source the messages are: its hash up to them.
    pub(super) origins: BTreeMap<MessageSeq, Hash>,
    /// Messages of sources that were refused, each by the hash of its source up to it.
    pub(super) refusals: BTreeSet<Hash>,
}

impl Remembered {
    fn apply(&mut self, entry: &Entry) {
        match entry {
            Entry::Owner { .. } => {}
            Entry::Next(next) => self.next = Some(*next),
            Entry::Message(message) => self.add(message),
            Entry::MessageOf(message, before, behind) => {
                self.add_of(message, behind.hash);
                self.places.retain(|place| place != before);
                self.note(*behind);
            }
            Entry::MessageAgain(message, hash) => self.add_of(message, *hash),
            Entry::Done(seq) => {
                self.messages.remove(seq);
                self.origins.remove(seq);
            }
            Entry::Refused(seq) => {
                self.messages.remove(seq);
                if let Some(hash) = self.origins.remove(seq) {
                    self.refuse(hash);
                }
            }
            Entry::Place(place) => self.note(*place),
            Entry::Refusal(hash) => self.refuse(*hash),
        }
    }

    fn add_of(&mut self, message: &Arc<Stored>, hash: Hash) {
        self.add(message);
        self.origins.insert(message.seq, hash);
        self.refusals.remove(&hash);
    }

    fn refuse(&mut self, hash: Hash) {
        if self.refusals.len() < MAX_REFUSALS {
            self.refusals.insert(hash);
        }
    }

    fn add(&mut self, message: &Arc<Stored>) {
        self.next = Some(message.seq.next());
        self.messages.insert(message.seq, Arc::clone(message));
    }

    fn note(&mut self, place: Place) {
        self.places.retain(|there| *there != place);
        if self.places.len() >= MAX_SOURCES {
            self.places.remove(0);
        }
        self.places.push(place);
    }

    fn entries(&self, network: NetworkId, client: ClientId) -> Vec<Entry> {
        let mut entries = vec![Entry::Owner { network, client }];
        entries.extend(self.messages.values().map(|message| {
            Entry::of(Arc::clone(message), self.origins.get(&message.seq).copied().map(Origin::Again))
        }));
        entries.extend(self.places.iter().copied().map(Entry::Place));
        entries.extend(self.refusals.iter().copied().map(Entry::Refusal));
        entries.extend(self.next.map(Entry::Next));
        entries
    }
}

/// Why the journal cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum JournalError {
    /// The operating system refused.
    #[error("cannot use {path}: {reason}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        reason: String,
    },
    /// The thread that writes has ended without a word.
    #[error("nothing writes to {path} any more; start again")]
    Ended {
        /// The directory.
        path: PathBuf,
    },
    /// Another process uses the directory.
    #[error("{path} is in use by another process; a client id and its state belong to one process")]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The state is another client's or another network's.
    #[error("{path} holds the state of {client} in network {network}; choose another directory (--state)")]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        client: ClientId,
        /// Which network's.
        network: NetworkId,
    },
    /// The bytes are not what was written.
    #[error(
        "{path} is damaged at byte {offset}; move the directory away: the client goes on with higher numbers, \
         and what was not acknowledged yet is in the damaged file"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: u64,
    },
}

/// What the writer has to say.
#[derive(Debug)]
pub(super) enum Written {
    /// This message is on disk.
    Message(MessageSeq),
    /// Nothing more will be written.
    Failed(JournalError),
}

/// The gateway's memory. On disk, it is the way to the writer's thread, which ends when this is dropped
/// and the queue is empty.
#[derive(Debug)]
pub(super) enum Journal {
    OnDisk {
        queue: mpsc::Sender<Entry>,
    },
    /// Nothing is kept: a message is as safe as it gets at once.
    InMemory {
        written: mpsc::Sender<Written>,
    },
}

impl Journal {
    /// Opens or begins the journal in `directory`. What is written is told to `written`, which must be
    /// drained for the writer to go on.
    pub(super) fn open(
        directory: &Path,
        network: NetworkId,
        client: &ClientId,
        written: mpsc::Sender<Written>,
    ) -> Result<(Self, Remembered), JournalError> {
        let (writer, remembered) = Writer::open(directory, network, client)?;
        let (queue, entries) = mpsc::channel(QUEUE);
        std::thread::Builder::new()
            .name("gateway-journal".to_owned())
            .spawn(move || writer.run(entries, &written))
            .map_err(|error| io(directory, &error))?;
        Ok((Self::OnDisk { queue }, remembered))
    }

    /// A memory that ends with the process. `written` must have room for a whole window of messages.
    pub(super) const fn in_memory(written: mpsc::Sender<Written>) -> Self {
        Self::InMemory { written }
    }

    /// Queues an entry; waits while the queue is full. An error means that the writer has ended, which
    /// it has told.
    pub(super) async fn write(&self, entry: Entry) -> Result<(), ()> {
        match (self, entry) {
            (Self::OnDisk { queue }, entry) => queue.send(entry).await.map_err(|_| ()),
            (Self::InMemory { written }, entry) => match entry.message() {
                Some(message) => written.send(Written::Message(message.seq)).await.map_err(|_| ()),
                None => Ok(()),
            },
        }
    }
}

struct Writer {
    directory: PathBuf,
    network: NetworkId,
    client: ClientId,
    file: File,
    length: u64,
    live: Remembered,
    /// Held until the end.
    _lock: File,
}

impl Writer {
    fn open(
        directory: &Path,
        network: NetworkId,
        client: &ClientId,
    ) -> Result<(Self, Remembered), JournalError> {
        std::fs::create_dir_all(directory).map_err(|error| io(directory, &error))?;
        let lock = lock(directory)?;
        let path = directory.join(FILE);
        let live = match File::open(&path) {
            Ok(file) => read(&path, file, directory, network, client)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Remembered::default(),
            Err(error) => return Err(io(&path, &error)),
        };
        let (file, length) = rewrite(directory, &live.entries(network, client.clone()))?;
        let remembered = live.clone();
        let directory = directory.to_owned();
        let client = client.clone();
        Ok((Self { directory, network, client, file, length, live, _lock: lock }, remembered))
    }

    fn run(mut self, mut entries: mpsc::Receiver<Entry>, written: &mpsc::Sender<Written>) {
        while let Some(first) = entries.blocking_recv() {
            let mut frame = vec![first];
            let mut bytes = size(&frame[0]);
            while bytes < FRAME_TARGET
                && let Ok(entry) = entries.try_recv()
            {
                bytes += size(&entry);
                frame.push(entry);
            }
            if let Err(error) = self.append(&frame) {
                // Nobody listens any more if this fails.
                let _ = written.blocking_send(Written::Failed(error));
                return;
            }
            for entry in frame {
                if let Some(message) = entry.message()
                    && written.blocking_send(Written::Message(message.seq)).is_err()
                {
                    return;
                }
            }
        }
    }

    fn append(&mut self, frame: &[Entry]) -> Result<(), JournalError> {
        for entry in frame {
            self.live.apply(entry);
        }
        let bytes = encode(frame);
        let path = self.directory.join(FILE);
        self.file.write_all(&bytes).map_err(|error| io(&path, &error))?;
        if !frame.iter().all(Entry::is_end_of_message) {
            self.file.sync_data().map_err(|error| io(&path, &error))?;
        }
        self.length += bytes.len() as u64;
        let live: usize = self.live.messages.values().map(|message| message.content.len()).sum();
        if self.length > REWRITE_ABOVE && self.length > 2 * live as u64 {
            let entries = self.live.entries(self.network, self.client.clone());
            (self.file, self.length) = rewrite(&self.directory, &entries)?;
        }
        Ok(())
    }
}

/// About what the entry takes in a frame.
fn size(entry: &Entry) -> usize {
    256 + entry.message().map_or(0, |message| message.content.len())
}

fn encode(entries: &[Entry]) -> Vec<u8> {
    let payload = codec::encode(&entries.to_vec());
    let mut bytes = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes().to_vec();
    bytes.extend(crc32fast::hash(&payload).to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Writes a new file, makes it durable and puts it in the old one's place.
fn rewrite(directory: &Path, entries: &[Entry]) -> Result<(File, u64), JournalError> {
    let (new, path) = (directory.join(NEW_FILE), directory.join(FILE));
    let mut bytes = MAGIC.to_vec();
    let mut frame = Vec::new();
    let mut frame_bytes = 0;
    for entry in entries {
        frame_bytes += size(entry);
        frame.push(entry.clone());
        if frame_bytes >= FRAME_TARGET {
            bytes.extend(encode(&std::mem::take(&mut frame)));
            frame_bytes = 0;
        }
    }
    bytes.extend(encode(&frame));
    let write = || {
        let mut file = File::create(&new)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        std::fs::rename(&new, &path)?;
        File::open(directory)?.sync_all()?;
        let mut file = OpenOptions::new().read(true).write(true).open(&path)?;
        file.seek(SeekFrom::End(0))?;
        Ok(file)
    };
    let file = write().map_err(|error: std::io::Error| io(&path, &error))?;
    Ok((file, bytes.len() as u64))
}

fn read(
    path: &Path,
    mut file: File,
    directory: &Path,
    network: NetworkId,
    client: &ClientId,
) -> Result<Remembered, JournalError> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(|error| io(path, &error))?;
    let damaged = |offset: usize| JournalError::Damaged { path: path.to_owned(), offset: offset as u64 };
    let mut rest = bytes.strip_prefix(MAGIC).ok_or_else(|| damaged(0))?;
    let mut live = Remembered::default();
    let mut owner = None;
    while !rest.is_empty() {
        let offset = bytes.len() - rest.len();
        let Some((payload, after)) = frame(rest) else {
            if (1..rest.len()).any(|later| frame(&rest[later..]).is_some()) {
                return Err(damaged(offset));
            }
            break;
        };
        let entries: Vec<Entry> = codec::decode::<MAX_FRAME, _>(payload).map_err(|_| damaged(offset))?;
        for entry in entries {
            if let Entry::Owner { network, client } = &entry {
                owner = Some((*network, client.clone()));
            }
            live.apply(&entry);
        }
        rest = after;
    }
    let (its_network, its_client) = owner.ok_or_else(|| damaged(MAGIC.len()))?;
    // Of whom the network never knew anything, such as of an id with a wrong letter, there is nothing to keep.
    if (its_network, &its_client) != (network, client) && live != Remembered::default() {
        let (client, network) = (its_client, its_network);
        return Err(JournalError::Foreign { path: directory.to_owned(), client, network });
    }
    if !rest.is_empty() {
        tracing::warn!(path = %path.display(), bytes = rest.len(), "cut off what a crash left unfinished");
    }
    Ok(live)
}

/// The payload of the frame that begins here, if it is whole and its checksum holds, and what follows.
fn frame(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (head, rest) = bytes.split_at_checked(FRAME_HEAD)?;
    let (length, crc) = head.split_at(4);
    let length = usize::try_from(u32::from_be_bytes(length.try_into().ok()?)).ok()?;
    if !(MIN_FRAME..=MAX_FRAME).contains(&length) {
        return None;
    }
    let (payload, after) = rest.split_at_checked(length)?;
    (crc32fast::hash(payload).to_be_bytes() == crc).then_some((payload, after))
}

fn lock(directory: &Path) -> Result<File, JournalError> {
    let path = directory.join(LOCK_FILE);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|error| io(&path, &error))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| JournalError::InUse { path: directory.to_owned() })?;
    Ok(file)
}

fn io(path: &Path, error: &std::io::Error) -> JournalError {
    JournalError::Io { path: path.to_owned(), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NETWORK: NetworkId = NetworkId([1; 32]);

    fn client() -> ClientId {
        ClientId::new("devices/iot").unwrap()
    }

    fn message(seq: u64) -> Entry {
        Entry::Message(Arc::new(Stored {
            seq: MessageSeq(seq),
            stream: Stream::new("env").unwrap(),
            header: Hash([u8::try_from(seq).unwrap(); 32]),
            content: vec![7; 100],
        }))
    }

    fn open(directory: &Path) -> Result<(Writer, Remembered), JournalError> {
        Writer::open(directory, NETWORK, &client())
    }

    fn seqs(remembered: &Remembered) -> Vec<u64> {
        remembered.messages.keys().map(|seq| seq.0).collect()
    }

    #[test]
    fn what_is_not_done_is_remembered_and_numbers_never_come_back() {
        let directory = tempfile::tempdir().unwrap();
        let (mut writer, remembered) = open(directory.path()).unwrap();
        assert_eq!(remembered, Remembered::default());
        writer.append(&[Entry::Next(MessageSeq(5))]).unwrap();
        writer.append(&[message(5), message(6), message(7)]).unwrap();
        writer.append(&[Entry::Done(MessageSeq(6)), Entry::Done(MessageSeq(7))]).unwrap();
        drop(writer);
        for _ in 0..2 {
            let (_, remembered) = open(directory.path()).unwrap();
            assert_eq!(remembered.next, Some(MessageSeq(8)));
            assert_eq!(seqs(&remembered), [5]);
        }
    }

    fn place(hash: u8, messages: u64) -> Place {
        Place { hash: Hash([hash; 32]), messages, first: Hash([1; 32]), last: Hash([hash; 32]) }
    }

    #[test]
    fn a_source_goes_on_behind_its_last_message_whenever_the_process_ends() {
        let directory = tempfile::tempdir().unwrap();
        let of = |seq, before, behind| match message(seq) {
            Entry::Message(message) => Entry::MessageOf(message, before, behind),
            other => other,
        };
        let (mut writer, _) = open(directory.path()).unwrap();
        let one = [of(1, place(0, 0), place(1, 1)), of(2, place(1, 1), place(2, 2))];
        writer.append(&one).unwrap();
        writer.append(&[of(3, place(0, 0), place(9, 1)), Entry::Done(MessageSeq(2))]).unwrap();
        let whole = writer.length;
        writer.append(&[of(4, place(2, 2), place(3, 3))]).unwrap();
        drop(writer);
        let path = directory.path().join(FILE);
        let bytes = std::fs::read(&path).unwrap();
        for length in [usize::try_from(whole).unwrap(), bytes.len() - 1, bytes.len()] {
            std::fs::write(&path, &bytes[..length]).unwrap();
            let found = open(directory.path()).unwrap().1;
            let is_whole = length == bytes.len();
            assert_eq!(found.messages.contains_key(&MessageSeq(4)), is_whole, "cut at {length}");
            let expected = if is_whole { [place(9, 1), place(3, 3)] } else { [place(2, 2), place(9, 1)] };
            assert_eq!(found.places, expected, "cut at {length}: message and place come together");
        }
        let (mut writer, _) = open(directory.path()).unwrap();
        for source in 10..10 + u8::try_from(MAX_SOURCES).unwrap() {
            writer.append(&[Entry::Place(place(source, 1))]).unwrap();
        }
        assert_eq!((writer.live.places.len(), writer.live.places[0]), (MAX_SOURCES, place(10, 1)));
    }

    #[test]
    fn what_of_a_source_was_refused_is_remembered_until_it_is_tried_again() {
        let directory = tempfile::tempdir().unwrap();
        let stored = |seq| Arc::clone(message(seq).message().unwrap());
        let refusals = || open(directory.path()).unwrap().1.refusals.into_iter().collect::<Vec<_>>();
        let [one, two, three] = [1, 2, 3].map(|at| Hash([at; 32]));
        let (mut writer, _) = open(directory.path()).unwrap();
        for at in 1..=3 {
            let origin = Origin::New(place(at - 1, u64::from(at) - 1), place(at, u64::from(at)));
            writer.append(&[Entry::of(stored(u64::from(at)), Some(origin))]).unwrap();
        }
        writer.append(&[Entry::of(stored(4), None), Entry::Refused(MessageSeq(4))]).unwrap();
        writer.append(&[Entry::Refused(MessageSeq(1)), Entry::Done(MessageSeq(3))]).unwrap();
        drop(writer);
        assert_eq!(refusals(), [one]);
        // The second was on its way while the process ended.
        let (mut writer, _) = open(directory.path()).unwrap();
        writer.append(&[Entry::Refused(MessageSeq(2)), Entry::Refusal(three)]).unwrap();
        drop(writer);
        assert_eq!(refusals(), [one, two, three]);
        let (mut writer, _) = open(directory.path()).unwrap();
        writer.append(&[Entry::of(stored(5), Some(Origin::Again(two)))]).unwrap();
        drop(writer);
        assert_eq!(refusals(), [one, three], "on its way again");
        let (mut writer, remembered) = open(directory.path()).unwrap();
        assert_eq!((seqs(&remembered), remembered.places), (vec![5], vec![place(3, 3)]));
        writer.append(&[Entry::Refused(MessageSeq(5))]).unwrap();
        drop(writer);
        assert_eq!(refusals(), [one, two, three]);
    }

    #[test]
    fn a_tail_cut_at_any_byte_loses_only_the_last_frame() {
        let directory = tempfile::tempdir().unwrap();
        let (mut writer, _) = open(directory.path()).unwrap();
        writer.append(&[message(1)]).unwrap();
        let whole = writer.length;
        writer.append(&[message(2), message(3)]).unwrap();
        drop(writer);
        let path = directory.path().join(FILE);
        let bytes = std::fs::read(&path).unwrap();
        for length in whole..bytes.len() as u64 {
            std::fs::write(&path, &bytes[..usize::try_from(length).unwrap()]).unwrap();
            assert_eq!(seqs(&open(directory.path()).unwrap().1), [1], "cut at {length}");
        }
    }

    #[test]
    fn a_flipped_bit_before_the_last_frame_is_damage() {
        let directory = tempfile::tempdir().unwrap();
        let (mut writer, _) = open(directory.path()).unwrap();
        let start = usize::try_from(writer.length).unwrap();
        writer.append(&[message(1)]).unwrap();
        let end = usize::try_from(writer.length).unwrap();
        writer.append(&[message(2)]).unwrap();
        drop(writer);
        let path = directory.path().join(FILE);
        let bytes = std::fs::read(&path).unwrap();
        for position in start..end {
            let mut damaged = bytes.clone();
            damaged[position] ^= 1;
            std::fs::write(&path, &damaged).unwrap();
            let error = open(directory.path()).err().unwrap();
            assert!(matches!(error, JournalError::Damaged { .. }), "{position}: {error}");
        }
    }

    #[test]
    fn one_process_at_a_time_and_one_client_only() {
        let directory = tempfile::tempdir().unwrap();
        let (writer, _) = open(directory.path()).unwrap();
        assert!(matches!(open(directory.path()), Err(JournalError::InUse { .. })));
        drop(writer);
        let other = ClientId::new("devices/two").unwrap();
        // Nothing was ever sent: the state is nobody's.
        drop(Writer::open(directory.path(), NETWORK, &other).unwrap());
        let (mut writer, _) = open(directory.path()).unwrap();
        writer.append(&[message(1), Entry::Done(MessageSeq(1))]).unwrap();
        drop(writer);
        let error = Writer::open(directory.path(), NETWORK, &other).err().unwrap();
        assert!(matches!(error, JournalError::Foreign { .. }), "{error}");
    }

    #[test]
    fn a_grown_file_is_rewritten_without_what_is_done() {
        let directory = tempfile::tempdir().unwrap();
        let (mut writer, _) = open(directory.path()).unwrap();
        let big = |seq| {
            Entry::Message(Arc::new(Stored {
                seq: MessageSeq(seq),
                stream: Stream::new("env").unwrap(),
                header: Hash([0; 32]),
                content: vec![7; 1024 * 1024],
            }))
        };
        for seq in 1..=40 {
            writer.append(&[big(seq), Entry::Done(MessageSeq(seq))]).unwrap();
            assert!(writer.length < REWRITE_ABOVE + 2 * 1024 * 1024);
        }
        drop(writer);
        let (_, remembered) = open(directory.path()).unwrap();
        assert_eq!((remembered.next, seqs(&remembered)), (Some(MessageSeq(41)), vec![]));
    }

    #[tokio::test]
    async fn a_memory_without_disk_tells_of_messages_at_once() {
        let (tell, mut told) = mpsc::channel(4);
        let journal = Journal::in_memory(tell);
        for entry in [Entry::Next(MessageSeq(1)), message(1), Entry::Done(MessageSeq(1))] {
            journal.write(entry).await.unwrap();
        }
        drop(journal);
        assert!(matches!(told.recv().await, Some(Written::Message(MessageSeq(1)))));
        assert!(told.recv().await.is_none(), "nothing else is told, and the end is");
    }

    #[tokio::test]
    async fn the_thread_tells_what_is_on_disk_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let (tell, mut told) = mpsc::channel(4);
        let (journal, _) = Journal::open(directory.path(), NETWORK, &client(), tell).unwrap();
        for seq in 1..=3 {
            journal.write(message(seq)).await.unwrap();
        }
        for seq in 1..=3 {
            let written = told.recv().await.unwrap();
            assert!(matches!(written, Written::Message(MessageSeq(s)) if s == seq), "{written:?}");
        }
    }
}
