//! What can keep the history from being opened, written or read. Each message says what to do.

use crate::types::NetworkId;

/// The code with which SQLite says that a file is damaged, and that it is no database.
const SQLITE_DAMAGED: [&str; 2] = ["11", "26"];

/// Why the history cannot be used. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The setting is no address of a database.
    #[error("{what}; set history.url to postgres://user:password@host/database, or to none for SQLite")]
    Url {
        /// What is wrong with it; no password.
        what: String,
    },
    /// The file or its directory cannot be used.
    #[error("cannot use the history {location}: {source}; check the path, its owner and the disk")]
    File {
        /// The file.
        location: String,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// The database cannot be reached, is locked, or has no room. It may be back later.
    #[error(
        "the history {location} is not available: {detail}; start it, free it or make room, nothing is lost"
    )]
    Unavailable {
        /// Where it is.
        location: String,
        /// What the database says.
        detail: String,
    },
    /// The file is damaged or something else.
    #[error(
        "the history {location} is damaged or no database: {detail}; keep the file for examination, move it aside \
         with its -wal and -shm files and start the node, which makes a new one"
    )]
    Damaged {
        /// Where it is.
        location: String,
        /// What the database says.
        detail: String,
    },
    /// Another program's tables, or none of ours.
    #[error("the database {location} is not a history of LedgerMQ: name an empty database in history.url")]
    Foreign {
        /// Where it is.
        location: String,
    },
    /// The database has no tables and was opened to be read.
    #[error("the database {location} is empty: there is no history in it; check the path")]
    Empty {
        /// Where it is.
        location: String,
    },
    /// The history of another ledger.
    #[error(
        "the history {location} belongs to network {found}, the genesis document to {expected}: name another \
         database in history.url, or use the right genesis document"
    )]
    WrongNetwork {
        /// Where it is.
        location: String,
        /// Whose it is.
        found: String,
        /// Whose it should be.
        expected: NetworkId,
    },
    /// Made by a newer version of this program.
    #[error(
        "the history {location} has schema {found}, this program knows schema {known}: use the newer program that \
         made it"
    )]
    NewerSchema {
        /// Where it is.
        location: String,
        /// Its version.
        found: String,
        /// The highest that is known.
        known: u32,
    },
    /// Something that was read is not what was once written there.
    #[error("the history {location} has {what} that nobody wrote so: it was altered; run ledgermq audit")]
    Altered {
        /// Where it is.
        location: String,
        /// What is not as it was.
        what: String,
    },
    /// The program is about to end.
    #[error("reading the history was interrupted: {detail}")]
    Interrupted {
        /// By what.
        detail: String,
    },
}

impl HistoryError {
    /// Sorts an error of the database.
    pub(super) fn of(location: &str, error: &sqlx::Error) -> Self {
        let (location, detail) = (location.to_owned(), error.to_string());
        if let sqlx::Error::Database(database) = error
            && let Some(code) = database.code()
            && SQLITE_DAMAGED.contains(&code.as_ref())
        {
            return Self::Damaged { location, detail };
        }
        match error {
            sqlx::Error::Configuration(_) => Self::Url { what: format!("{location}: {detail}") },
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) | sqlx::Error::ColumnNotFound(_) => {
                Self::Altered { location, what: detail }
            }
            _ => Self::Unavailable { location, detail },
        }
    }

    /// Whether the same may work later without anybody's doing anything here.
    pub const fn may_pass(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}
