//! The virtual disk of one node's log: the bytes that the log's own code writes, torn in a crash as
//! disks tear them, and read back by the code that opens real logs.
//!
//! What was synced stays. What was not is lost, or survives up to any byte, or sector by sector in
//! any order, or with foreign bytes behind it. Whatever is read back must be a prefix of what was
//! appended, with all that was synced: the disk itself checks that.

use std::collections::VecDeque;

use ledgermq::pbft::Pin;
use ledgermq::store::log::image::{self, SegmentImage};
use ledgermq::store::log::{Entry, Position};
use ledgermq::types::{Hash, NetworkId, SeqNum};

use crate::rng::Rng;

/// How many bytes reach the platters as one; small, so that small logs have many of them.
const SECTOR: usize = 64;

/// What the simulator knows of an entry without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// Of the core: by which hash the properties know it, and how long it is needed.
    Core { promise: Hash, sequence: SeqNum, pin: Option<Pin> },
    /// A message that the node took from its client, with its number.
    Accepted { number: u64 },
}

struct Kept {
    position: Position,
    entry: Entry,
    mark: Mark,
    /// Where its record ends in its segment.
    end: usize,
}

pub struct Disk {
    network: NetworkId,
    rng: Rng,
    /// A new segment is begun when the last one has so many bytes.
    pub segment_bytes: usize,
    segments: Vec<SegmentImage>,
    /// What should be there, to compare with what is read.
    kept: VecDeque<Kept>,
    last: Position,
    synced: Position,
    /// The next crash leaves so many bytes of what was not synced.
    pub tear_at: Option<usize>,
    /// How many bytes were not synced in the last crash.
    pub torn_of: Option<usize>,
}

/// What a crash left.
pub struct Wreck {
    /// Marks of entries that nobody was promised and that survived.
    pub survived: Vec<Mark>,
    /// Of those that did not.
    pub lost: Vec<Mark>,
}

impl Disk {
    pub fn new(network: NetworkId, rng: Rng) -> Self {
        let mut disk = Self {
            network,
            rng,
            segment_bytes: 8 << 10,
            segments: Vec::new(),
            kept: VecDeque::new(),
            last: Position::NONE,
            synced: Position::NONE,
            tear_at: None,
            torn_of: None,
        };
        disk.begin_segment();
        disk
    }

    fn begin_segment(&mut self) {
        let seed = self.rng.next() as u32;
        self.segments.push(SegmentImage::new(&self.network, self.last.next(), seed));
    }

    /// Appends a group of entries; gives the position of the last. Like the log, it begins a new
    /// segment only when all of the old one is on the platters.
    pub fn append(&mut self, entries: Vec<(Entry, Mark)>) -> Position {
        if self.current().bytes.len() >= self.segment_bytes && self.synced == self.last {
            self.begin_segment();
        }
        for (entry, mark) in entries {
            let (position, synced) = (self.last.next(), self.synced);
            let segment = self.segments.last_mut().unwrap();
            segment.append(std::slice::from_ref(&entry), position, synced);
            self.kept.push_back(Kept { position, entry, mark, end: segment.bytes.len() });
            self.last = position;
        }
        self.last
    }

    fn current(&self) -> &SegmentImage {
        self.segments.last().unwrap()
    }

    /// The position before the first entry that the log can still have.
    fn before_first(&self) -> Position {
        Position(self.segments[0].first.0 - 1)
    }

    /// Everything up to `position` is on the platters. Gives what is newly so.
    pub fn sync(&mut self, position: Position) -> Vec<Mark> {
        let before = self.synced;
        self.synced = before.max(position).min(self.last);
        let newly = self.kept.iter().filter(|kept| kept.position > before && kept.position <= self.synced);
        newly.map(|kept| kept.mark).collect()
    }

    /// Bytes of the last segment that are on the platters.
    fn synced_bytes(&self) -> usize {
        let first = self.current().first;
        let safe = self.kept.iter().rev().find(|kept| kept.position <= self.synced && kept.position >= first);
        safe.map_or(SegmentImage::HEADER_BYTES, |kept| kept.end)
    }

    /// Bytes that a crash may tear.
    pub fn unsynced_bytes(&self) -> usize {
        self.current().bytes.len() - self.synced_bytes()
    }

    /// Power is lost.
    ///
    /// # Errors
    /// If what the log's code reads is not what must be there.
    pub fn crash(&mut self) -> Result<Wreck, String> {
        self.tear();
        let found = self.read()?.len();
        let kept = self.kept.iter().map(|kept| (kept.position, kept.mark));
        let unsafe_ones: Vec<_> = kept.filter(|(position, _)| *position > self.synced).collect();
        self.kept.truncate(found);
        self.last = self.kept.back().map_or(self.before_first(), |kept| kept.position);
        self.synced = self.last;
        let (survived, lost): (Vec<_>, Vec<_>) =
            unsafe_ones.into_iter().partition(|(at, _)| *at <= self.last);
        let marks = |entries: Vec<(Position, Mark)>| entries.into_iter().map(|(_, mark)| mark).collect();
        Ok(Wreck { survived: marks(survived), lost: marks(lost) })
    }

    /// Does to what was not synced what a crash may do.
    fn tear(&mut self) {
        let safe = self.synced_bytes();
        let Self { segments, rng, tear_at, torn_of, .. } = self;
        let bytes = &mut segments.last_mut().unwrap().bytes;
        let torn = bytes.len() - safe;
        *torn_of = Some(torn);
        if let Some(left) = tear_at.take() {
            bytes.truncate(safe + left);
            return;
        }
        let any = safe + rng.index(torn + 1);
        match rng.below(5) {
            0 => bytes.truncate(safe),
            1 => {}
            2 => bytes.truncate(any),
            3 => {
                for at in safe..bytes.len() {
                    // The whole sector, from where it is not safe.
                    let begins = at == safe || at % SECTOR == 0;
                    if begins && rng.percent(50) {
                        let end = ((at / SECTOR + 1) * SECTOR).min(bytes.len());
                        bytes[at..end].fill(0);
                    }
                }
                bytes.truncate(any.max(safe + torn / 2));
            }
            _ => {
                bytes.truncate(any);
                let foreign = rng.below(200);
                bytes.extend((0..foreign).map(|_| rng.next() as u8));
            }
        }
    }

    /// Reads the log as the program does when it starts.
    ///
    /// # Errors
    /// If the log's code calls it damaged, or finds what was not written, or misses what was synced.
    pub fn read(&mut self) -> Result<Vec<Entry>, String> {
        let found = image::recover(&self.network, &mut self.segments).map_err(|error| error.to_string())?;
        let last = found.last().map_or(self.before_first(), |(position, _)| *position);
        if last < self.synced {
            return Err(format!("{:?} was synced and the log ends at {last:?}", self.synced));
        }
        let mut kept = self.kept.iter();
        for (position, entry) in &found {
            let written = kept.next().filter(|kept| kept.position == *position && kept.entry == *entry);
            written
                .ok_or_else(|| format!("the log reads something else at {position:?} than was written"))?;
        }
        Ok(found.into_iter().map(|(_, entry)| entry).collect())
    }

    /// Deletes the segments that have only entries which are on the platters and not needed.
    pub fn cut(&mut self, is_needed: impl Fn(&Mark) -> bool) {
        let synced = self.kept.iter().filter(|kept| kept.position <= self.synced);
        let newest = |pin: Pin| {
            let of_kind = |kept: &&Kept| matches!(kept.mark, Mark::Core { pin: Some(of), .. } if of == pin);
            synced.clone().rfind(of_kind).map(|kept| kept.position)
        };
        let needed = |kept: &&Kept| match kept.mark {
            // Of what belongs to no number, the newest is kept.
            Mark::Core { pin: Some(pin), .. } => newest(pin) == Some(kept.position),
            _ => is_needed(&kept.mark),
        };
        let from = synced.clone().find(needed).map_or(self.synced.next(), |kept| kept.position);
        let gone = self.segments.windows(2).take_while(|pair| pair[1].first <= from).count();
        self.segments.drain(..gone);
        let first = self.segments[0].first;
        self.kept.retain(|kept| kept.position >= first);
    }

    pub fn is_empty(&self) -> bool {
        self.last == Position::NONE
    }

    /// The log is gone.
    pub fn lose(&mut self) {
        let rng = self.rng.fork();
        *self = Self { segment_bytes: self.segment_bytes, ..Self::new(self.network, rng) };
    }
}
