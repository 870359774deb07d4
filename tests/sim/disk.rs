//! The virtual disk of one node's log: what is appended is lost in a crash unless it was synced,
//! but for a prefix that happens to have reached the platters (a torn tail: the log cuts the
//! record that is half there).

/// Entries as bytes. Positions count from the log's very start and never move.
#[derive(Default)]
pub struct Disk {
    entries: Vec<Vec<u8>>,
    /// How many entries were cut from the front.
    cut: usize,
    synced: usize,
}

impl Disk {
    /// Appends an entry; gives the position after it.
    pub fn append(&mut self, entry: Vec<u8>) -> usize {
        self.entries.push(entry);
        self.end()
    }

    pub fn end(&self) -> usize {
        self.cut + self.entries.len()
    }

    /// Everything before `position` is on the platters. Gives what is newly so.
    pub fn sync(&mut self, position: usize) -> &[Vec<u8>] {
        let before = self.synced;
        self.synced = self.synced.max(position).min(self.end());
        &self.entries[before - self.cut..self.synced - self.cut]
    }

    /// Power is lost: of what was not synced, the first `survivors` entries happen to remain.
    pub fn crash(&mut self, survivors: usize) -> &[Vec<u8>] {
        let kept = (self.synced + survivors).min(self.end());
        self.entries.truncate(kept - self.cut);
        self.sync(kept)
    }

    pub fn unsynced(&self) -> usize {
        self.end() - self.synced
    }

    pub fn entries(&self) -> &[Vec<u8>] {
        &self.entries
    }

    /// What is on the platters.
    pub fn synced(&self) -> &[Vec<u8>] {
        &self.entries[..self.synced - self.cut]
    }

    /// Cuts so many synced entries from the front.
    pub fn cut(&mut self, count: usize) {
        assert!(count <= self.synced - self.cut, "only what is on the platters is cut");
        self.entries.drain(..count);
        self.cut += count;
    }

    pub fn lose(&mut self) {
        *self = Self::default();
    }
}
