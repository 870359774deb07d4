//! What can keep the history from being opened, written or read. Each message says what to do.

use crate::types::NetworkId;

/// The codes with which SQLite says that a file is damaged, and that it is no database.
const SQLITE_DAMAGED: [u32; 2] = [11, SQLITE_NO_DATABASE];
const SQLITE_NO_DATABASE: u32 = 26;

/// What is said of a file that is none of SQLite's.
const NO_DATABASE: &str = "it does not begin as a SQLite database does";

/// Those that may pass: busy, locked, no memory, read-only, I/O error, full, cannot open, protocol of locks.
const SQLITE_MAY_PASS: [u32; 8] = [5, 6, 7, 8, 10, 13, 14, 15];

/// PostgreSQL's classes of errors that may pass: connection, transaction state (a standby takes no
/// writes), authorization (its files are being changed), no such database (yet), rollback, resources
/// (the disk, too), not in the right state, operator, system, internal.
const POSTGRES_MAY_PASS: [&str; 10] = ["08", "25", "28", "3D", "40", "53", "55", "57", "58", "XX"];

/// A number that is taken, in SQLite (primary key, unique) and PostgreSQL: somebody else was faster, and
/// the next try takes another one.
const TAKEN: [&str; 3] = ["1555", "2067", "23505"];

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
    /// The database answers, and does not take what it is given or asked: a table or column is missing or of
    /// another type, a right was taken away.
    #[error(
        "the history {location} refuses what it is given: {detail}; its tables or rights are not as this program \
         made them: bring them back, or name an empty database in history.url and start again; nothing is lost"
    )]
    Refused {
        /// Where it is.
        location: String,
        /// What the database says.
        detail: String,
    },
    /// Rows are numbered one after the other, and somebody used up the numbers.
    #[error(
        "the history {location} has row {last}, and no number is left for those that follow: no node wrote it there. \
         ledgermq audit names it. Make a copy, which is evidence, and take away what has such a number from messages, \
         items, fates and digests; the node then goes on by itself, nothing is lost"
    )]
    NoNumber {
        /// Where it is.
        location: String,
        /// The highest number.
        last: i64,
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

/// What a statement fails with before the database sees it: this row has the last number.
#[derive(Debug, thiserror::Error)]
#[error("row {last} has the last number")]
pub(super) struct NoNumber {
    pub(super) last: i64,
}

impl HistoryError {
    /// Sorts an error of the database.
    pub(super) fn of(location: &str, error: &sqlx::Error) -> Self {
        let detail = match error {
            // Its own words, without its number for them.
            sqlx::Error::Database(database) => database.message().to_owned(),
            error => error.to_string(),
        };
        let location = location.to_owned();
        match error {
            sqlx::Error::Database(database) => match database.code() {
                Some(code) => Self::of_code(location, detail, &code),
                None => Self::Unavailable { location, detail },
            },
            sqlx::Error::Configuration(_) => Self::Url { what: format!("{location}: {detail}") },
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) | sqlx::Error::ColumnNotFound(_) => {
                // What the library says of it is in words of its own types.
                tracing::debug!(%detail, "a value cannot be read");
                Self::Altered { location, what: "a value of another kind than its column holds".to_owned() }
            }
            sqlx::Error::Encode(cause) => match cause.downcast_ref() {
                Some(NoNumber { last }) => Self::NoNumber { location, last: *last },
                None => Self::Refused { location, detail },
            },
            sqlx::Error::TypeNotFound { .. } => Self::Refused { location, detail },
            _ => Self::Unavailable { location, detail },
        }
    }

    /// Sorts what a database says: PostgreSQL's codes have five characters, SQLite's are numbers whose low byte is
    /// the kind.
    fn of_code(location: String, detail: String, code: &str) -> Self {
        let sqlite = code.parse().ok().filter(|_| code.len() < 5).map(|code: u32| code & 0xff);
        if sqlite.is_some_and(|code| SQLITE_DAMAGED.contains(&code)) {
            let detail = if sqlite == Some(SQLITE_NO_DATABASE) { NO_DATABASE.to_owned() } else { detail };
            return Self::Damaged { location, detail };
        }
        let may_pass = match sqlite {
            Some(code) => SQLITE_MAY_PASS.contains(&code),
            None => POSTGRES_MAY_PASS.iter().any(|class| code.starts_with(class)),
        };
        if may_pass || TAKEN.contains(&code) {
            Self::Unavailable { location, detail }
        } else {
            Self::Refused { location, detail }
        }
    }

    /// Whether the same may work later without anybody's doing anything here.
    pub const fn may_pass(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sort(code: &str) -> HistoryError {
        HistoryError::of_code("here".into(), "why".into(), code)
    }

    #[test]
    fn what_may_pass_is_told_from_what_somebody_has_to_mend() {
        // SQLite: busy, busy snapshot, full, a write error of the disk; PostgreSQL: shut down, disk full, no memory,
        // deadlock, read-only standby.
        for code in ["5", "517", "13", "778", "57P01", "53100", "53200", "40P01", "25006", "1555", "23505"] {
            assert!(sort(code).may_pass(), "{code}");
        }
        // SQLite: no such table, a constraint; PostgreSQL: no such table, no right, another type, out of range.
        for code in ["1", "1299", "42P01", "42501", "42804", "22003", "23502"] {
            assert!(matches!(sort(code), HistoryError::Refused { .. }), "{code}");
        }
        for code in ["11", "26", "267"] {
            assert!(matches!(sort(code), HistoryError::Damaged { .. }), "{code}");
        }
    }
}
