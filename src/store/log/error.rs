//! What can go wrong with the log. Every one of these stops the node: a log that could not be
//! written may have promised what it does not hold.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::types::NetworkId;

/// Why the log could not be opened, or why it stopped.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LogError {
    /// The operating system refused; never tried again, since pages that failed to sync are lost.
    #[error("cannot {action} {}: {source}; check the disk (space, permissions, health), then start the node again", path.display())]
    Io {
        /// What was to be done.
        action: &'static str,
        /// With which file or directory.
        path: PathBuf,
        /// The operating system's answer.
        source: Arc<io::Error>,
    },
    /// Another process has the log open.
    #[error("the log in {} is in use by another process; stop that one first, or give this node its own data directory", .0.display())]
    InUse(PathBuf),
    /// Something that was durable has changed or is missing.
    #[error("the log is damaged: {} at byte {offset}: {detail}; the node cannot know what it promised there and does not start; see \"Damage\" in docs/STORAGE.md", path.display())]
    Damaged {
        /// The segment file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        detail: &'static str,
    },
    /// The log belongs to another ledger.
    #[error("the log {} belongs to network {found}, this node to {expected}; use the data directory that belongs to this genesis document", path.display())]
    WrongNetwork {
        /// The segment file.
        path: PathBuf,
        /// The network of this node.
        expected: NetworkId,
        /// The network that the segment names.
        found: NetworkId,
    },
    /// Written by a program of another version.
    #[error("the log {} has format {found}, this program reads format {expected}; start the program that wrote it", path.display())]
    Version {
        /// The segment file.
        path: PathBuf,
        /// The format of this program.
        expected: u32,
        /// The format that the segment names.
        found: u32,
    },
    /// An entry is longer than any may be.
    #[error("a log entry of {bytes} bytes; at most {limit} are allowed")]
    TooLarge {
        /// Bytes of the entry.
        bytes: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The operating system gave no random bytes for a new segment.
    #[error("the operating system gave no random bytes for a new log segment")]
    NoRandomness,
    /// The log was closed in order; nothing is appended any more.
    #[error("the log is closed")]
    Closed,
}

impl LogError {
    /// Wraps an error of the operating system, naming what was to be done with which file.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source: Arc::new(source) }
    }

    /// Damage in `path` at `offset`.
    pub(super) fn damaged(path: &Path, offset: usize, detail: &'static str) -> Self {
        Self::Damaged { path: path.to_owned(), offset: offset as u64, detail }
    }
}
