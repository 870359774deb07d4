//! Where a history is: a SQLite file, or a PostgreSQL database.

use std::fmt;
use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use sqlx::ConnectOptions as _;
use sqlx::sqlite::SqliteConnectOptions;
use url::Url;

use super::error::HistoryError;
use super::schema::Dialect;

/// The name of the file in a node's data directory.
pub const FILE_NAME: &str = "history.sqlite";

/// Where a history is. Shown without the password.
#[derive(Clone, PartialEq, Eq)]
pub enum Location {
    /// A file.
    Sqlite(PathBuf),
    /// A server's database.
    Postgres(Url),
}

impl Location {
    /// What the setting `history.url` means: none is a file under `data_dir`.
    ///
    /// # Errors
    /// [`HistoryError::Url`].
    pub fn of_node(url: Option<&str>, data_dir: &Path) -> Result<Self, HistoryError> {
        match url {
            Some(url) => Self::parse(url),
            None => Ok(Self::Sqlite(data_dir.join("history").join(FILE_NAME))),
        }
    }

    /// A `postgres://` URL, a `sqlite:` URL, or a path.
    ///
    /// # Errors
    /// [`HistoryError::Url`].
    pub fn parse(text: &str) -> Result<Self, HistoryError> {
        if let Some(path) = text.strip_prefix("sqlite:") {
            return Ok(Self::Sqlite(path.strip_prefix("//").unwrap_or(path).into()));
        }
        if !text.contains("://") {
            return Ok(Self::Sqlite(text.into()));
        }
        let url = Url::parse(text).map_err(|error| HistoryError::Url { what: error.to_string() })?;
        match url.scheme() {
            "postgres" | "postgresql" if url.host_str().is_some() => Ok(Self::Postgres(url)),
            "postgres" | "postgresql" => Err(HistoryError::Url { what: "the URL names no host".to_owned() }),
            other => Err(HistoryError::Url { what: format!("{other} is no database that is supported") }),
        }
    }

    pub(super) const fn dialect(&self) -> Dialect {
        match self {
            Self::Sqlite(_) => Dialect::Sqlite,
            Self::Postgres(_) => Dialect::Postgres,
        }
    }

    /// The URL that sqlx connects to, to write.
    pub(super) fn connect_url(&self) -> Url {
        match self {
            Self::Sqlite(path) => SqliteConnectOptions::new().filename(path).to_url_lossy(),
            Self::Postgres(url) => url.clone(),
        }
    }

    /// Makes the file and its directory, which only their owner can read; SQLite gives the files that
    /// it makes beside it the same mode. Nothing to do where there is one.
    pub(super) fn create_file(&self) -> Result<(), HistoryError> {
        let Self::Sqlite(path) = self else { return Ok(()) };
        let failed = |source| HistoryError::File { location: self.to_string(), source };
        if let Some(dir) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        }
        let file = fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
        file.map(drop).map_err(failed)
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "{}", path.display()),
            Self::Postgres(url) => {
                let (host, port) = (url.host_str().unwrap_or_default(), url.port().unwrap_or(5432));
                write!(f, "postgres://{host}:{port}{}", url.path())
            }
        }
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_a_server_and_everything_else_a_file() {
        let file = |path: &str| Location::Sqlite(path.into());
        assert_eq!(Location::of_node(None, Path::new("d")).unwrap(), file("d/history/history.sqlite"));
        for same in ["/a b/h.sqlite", "sqlite:/a b/h.sqlite", "sqlite:///a b/h.sqlite"] {
            assert_eq!(Location::parse(same).unwrap(), file("/a b/h.sqlite"));
        }
        assert!(matches!(Location::parse("postgres://h/db").unwrap(), Location::Postgres(_)));
        for bad in ["mysql://h/db", "postgres://", "postgres:///db", "://"] {
            assert!(matches!(Location::parse(bad), Err(HistoryError::Url { .. })), "{bad}");
        }
    }

    #[test]
    fn a_password_is_not_shown() {
        let location = Location::parse("postgresql://me:secret@db:77/history?sslmode=require").unwrap();
        assert_eq!(format!("{location} {location:?}"), "postgres://db:77/history postgres://db:77/history");
    }
}
