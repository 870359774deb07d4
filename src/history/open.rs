//! Opening a history: connecting, looking whose it is and of which version, bringing it up to date.
//!
//! Whatever is not right is found before anything is written.

use std::sync::Once;
use std::time::Duration;

use sqlx::any::AnyConnectOptions;
use sqlx::{AnyConnection, AssertSqlSafe, ConnectOptions as _, Connection as _, Row as _};
use url::Url;

use super::audit::words::text;
use super::copying::unhurried;
use super::error::HistoryError;
use super::location::Location;
use super::schema::{self, Dialect};
use super::shape;
use super::untouched::Untouched;
use crate::types::NetworkId;

/// How long a connection may take to be made, and then any one statement or transaction: longer
/// than a busy server takes, shorter than anybody wants to wait for one that is gone.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// How long a look through whole tables may take, which only an audit does.
const SCAN_PATIENCE: Duration = Duration::from_secs(3600);

/// What a database says of itself; longer texts say nothing.
const META: &str = "SELECT name, CASE WHEN octet_length(value) > 256 THEN '' ELSE value END FROM ledgermq \
                    WHERE name IN ('schema', 'network') LIMIT 2";

static DRIVERS: Once = Once::new();

/// Bounds the time that something takes.
pub(super) async fn bounded<T>(work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    within(PATIENCE, work).await
}

/// The same for a look through whole tables.
pub(super) async fn bounded_scan<T>(
    work: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    within(SCAN_PATIENCE, work).await
}

async fn within<T>(
    patience: Duration,
    work: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    let late = |_| Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()));
    tokio::time::timeout(patience, work).await.unwrap_or_else(late)
}

/// A connection that reads, and what must stay for it.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) connection: AnyConnection,
    pub(super) untouched: Option<Untouched>,
}

/// Connects to write and checks; see the module.
pub(super) async fn open(location: &Location, network: &NetworkId) -> Result<AnyConnection, HistoryError> {
    location.create_file()?;
    let failed = |error: sqlx::Error| HistoryError::of(&location.to_string(), &error);
    let mut connection = connect(&location.connect_url()).await.map_err(failed)?;
    let found = bounded(look(&mut connection, location.dialect())).await.map_err(failed)?;
    let version = check(found, location, network)?;
    prepare(&mut connection, location.dialect()).await.map_err(failed)?;
    if version != Some(schema::VERSION) {
        let upgraded = bounded(upgrade(&mut connection, location, network)).await.map_err(failed)?;
        check(upgraded, location, network)?;
    }
    Ok(connection)
}

/// Connects to read, and checks; nothing is changed. All that is read is of one moment.
pub(super) async fn open_to_read(location: &Location, network: &NetworkId) -> Result<Reading, HistoryError> {
    let Location::Sqlite(path) = location else {
        return begin_to_read(location, network, None).await.map_err(|error| error.of(location));
    };
    let failed = |source| HistoryError::File { location: location.to_string(), source };
    let of = path.clone();
    let planned = unhurried(move |stopping| Untouched::plan(&of, stopping)).await.map_err(failed)??;
    let first = begin_to_read(location, network, Some(planned)).await;
    match first {
        Err(NotRead { error: Either::Sql(error), untouched: Some(untouched) })
            if untouched.would_help(&error) =>
        {
            let of = path.clone();
            let copied =
                unhurried(move |stopping| Untouched::copied(&of, stopping)).await.map_err(failed)??;
            begin_to_read(location, network, Some(copied)).await.map_err(|error| error.of(location))
        }
        first => first.map_err(|error| error.of(location)),
    }
}

/// Why a database was not read, and how it was tried.
struct NotRead {
    error: Either,
    untouched: Option<Untouched>,
}

enum Either {
    Sql(sqlx::Error),
    History(HistoryError),
}

impl NotRead {
    fn of(self, location: &Location) -> HistoryError {
        match self.error {
            Either::Sql(error) => HistoryError::of(&location.to_string(), &error),
            Either::History(error) => error,
        }
    }
}

async fn begin_to_read(
    location: &Location,
    network: &NetworkId,
    untouched: Option<Untouched>,
) -> Result<Reading, NotRead> {
    let url = untouched.as_ref().map_or_else(|| location.connect_url(), |untouched| untouched.url.clone());
    let begun = async {
        let mut connection = connect(&url).await?;
        let begin = match location.dialect() {
            Dialect::Sqlite => "BEGIN",
            Dialect::Postgres => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        };
        if location.dialect() == Dialect::Sqlite {
            // Nothing that somebody wrote into the schema is run.
            for pragma in ["PRAGMA trusted_schema = OFF", "PRAGMA cell_size_check = ON"] {
                sqlx::query(pragma).execute(&mut connection).await?;
            }
        }
        bounded(sqlx::query(begin).execute(&mut connection)).await?;
        let found = sound(&mut connection, location, network).await?;
        Ok((connection, found))
    };
    match begun.await {
        Ok((connection, Ok(()))) => Ok(Reading { connection, untouched }),
        Ok((_, Err(error))) => Err(NotRead { error: Either::History(error), untouched }),
        Err(error) => Err(NotRead { error: Either::Sql(error), untouched }),
    }
}

/// Whether it is a history that may be read: no table is read before it is known to be one.
async fn sound(
    connection: &mut AnyConnection,
    location: &Location,
    network: &NetworkId,
) -> Result<Result<(), HistoryError>, sqlx::Error> {
    let dialect = location.dialect();
    let refused = |detail| HistoryError::Refused { location: location.to_string(), detail };
    let nothing = bounded(tables(connection, dialect)).await?;
    if nothing.iter().any(|table| table == shape::META) {
        let meta = [shape::META.to_owned()];
        if let Some(strange) = bounded(shape::strange(connection, dialect, &meta)).await? {
            return Ok(Err(refused(strange)));
        }
    }
    let found = bounded(look(connection, dialect)).await?;
    match check(found, location, network) {
        Ok(Some(_)) => {}
        Ok(None) => return Ok(Err(HistoryError::Empty { location: location.to_string() })),
        Err(error) => return Ok(Err(error)),
    }
    let strange = bounded(shape::strange(connection, dialect, &shape::tables(dialect))).await?;
    Ok(strange.map_or(Ok(()), |strange| Err(refused(strange))))
}

async fn connect(url: &Url) -> Result<AnyConnection, sqlx::Error> {
    DRIVERS.call_once(|| {
        // Fails only if somebody in this process did so before, with the same drivers.
        let _done_before =
            sqlx::any::install_drivers(&[sqlx::sqlite::any::DRIVER, sqlx::postgres::any::DRIVER]);
    });
    let options = AnyConnectOptions::from_url(url)?.disable_statement_logging();
    bounded(options.connect()).await
}

/// What a database says of itself.
enum Found {
    /// It has no tables.
    Nothing,
    /// It has tables, and none of ours.
    Foreign,
    /// It is a history.
    History { schema: String, network: String },
}

/// The first tables, ours before others.
async fn tables(connection: &mut AnyConnection, dialect: Dialect) -> Result<Vec<String>, sqlx::Error> {
    let tables = match dialect {
        Dialect::Sqlite => {
            "SELECT substr(CAST(name AS TEXT), 1, 64) FROM sqlite_master WHERE type = 'table' \
             ORDER BY name <> 'ledgermq' LIMIT 64"
        }
        Dialect::Postgres => {
            "SELECT CAST(tablename AS TEXT) FROM pg_tables WHERE schemaname = current_schema() \
             ORDER BY tablename <> 'ledgermq' LIMIT 64"
        }
    };
    let rows = sqlx::query(tables).fetch_all(connection).await?;
    rows.iter().map(|row| row.try_get::<String, _>(0)).collect()
}

async fn look(connection: &mut AnyConnection, dialect: Dialect) -> Result<Found, sqlx::Error> {
    let tables = tables(connection, dialect).await?;
    if tables.is_empty() {
        return Ok(Found::Nothing);
    }
    if !tables.iter().any(|table| table == "ledgermq") {
        return Ok(Found::Foreign);
    }
    let (mut schema, mut network) = (String::new(), String::new());
    for row in sqlx::query(META).fetch_all(connection).await? {
        match row.try_get::<String, _>(0)?.as_str() {
            "schema" => schema = row.try_get(1)?,
            "network" => network = row.try_get(1)?,
            _ => {}
        }
    }
    Ok(Found::History { schema, network })
}

/// The version of a database that may be used; none if it is empty.
fn check(found: Found, location: &Location, network: &NetworkId) -> Result<Option<u32>, HistoryError> {
    let location = location.to_string();
    let (found_schema, found_network) = match found {
        Found::Nothing => return Ok(None),
        Found::Foreign => return Err(HistoryError::Foreign { location }),
        Found::History { schema, network } => (schema, network),
    };
    let no_such = |what: &str, found: &str| HistoryError::Altered {
        location: location.clone(),
        what: format!("{what} {}", text(found)),
    };
    if found_network.parse::<NetworkId>().is_err() {
        return Err(no_such("the network id", &found_network));
    }
    if found_network != network.to_string() {
        let (found, expected) = (found_network, *network);
        return Err(HistoryError::WrongNetwork { location, found, expected });
    }
    match found_schema.parse() {
        Ok(version) if (1..=schema::VERSION).contains(&version) => Ok(Some(version)),
        Ok(0) | Err(_) => Err(no_such("the schema version", &found_schema)),
        Ok(_) => Err(HistoryError::NewerSchema { location, found: found_schema, known: schema::VERSION }),
    }
}

/// How a connection writes: SQLite syncs its write-ahead log with each transaction, since the
/// node's own log forgets what is in the history.
async fn prepare(connection: &mut AnyConnection, dialect: Dialect) -> Result<(), sqlx::Error> {
    if dialect == Dialect::Sqlite {
        for pragma in
            ["PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL", "PRAGMA wal_autocheckpoint = 4000"]
        {
            sqlx::query(pragma).fetch_all(&mut *connection).await?;
        }
    }
    undo_from(connection, dialect, Undo::Memory).await
}

/// Where SQLite keeps what it needs to undo a statement that fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Undo {
    /// In memory: for statements that change a few pages. A file would be written for each of them.
    Memory,
    /// In a temporary file: for those that may change a whole table.
    File,
}

/// Not for within a transaction.
pub(super) async fn undo_from(
    connection: &mut AnyConnection,
    dialect: Dialect,
    undo: Undo,
) -> Result<(), sqlx::Error> {
    let pragma = match undo {
        Undo::Memory => "PRAGMA temp_store = MEMORY",
        Undo::File => "PRAGMA temp_store = FILE",
    };
    if dialect == Dialect::Sqlite {
        sqlx::query(pragma).execute(connection).await?;
    }
    Ok(())
}

/// Begins a transaction that will write: of two that do so at once, one waits here.
pub(super) const fn begin(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Sqlite => "BEGIN IMMEDIATE",
        Dialect::Postgres => "BEGIN",
    }
}

/// Brings the tables up to date, unless somebody else was faster. Nodes that share a database start
/// at the same time.
async fn upgrade(
    connection: &mut AnyConnection,
    location: &Location,
    network: &NetworkId,
) -> Result<Found, sqlx::Error> {
    let dialect = location.dialect();
    let mut transaction = connection.begin_with(begin(dialect)).await?;
    if dialect == Dialect::Postgres {
        sqlx::query("SELECT pg_advisory_xact_lock(5501937)").fetch_all(&mut *transaction).await?;
    }
    let found = look(&mut transaction, dialect).await?;
    let from = match &found {
        Found::Foreign => return Ok(found),
        Found::Nothing => 0,
        Found::History { schema, .. } => schema.parse().unwrap_or(u32::MAX),
    };
    if from >= schema::VERSION {
        return Ok(found);
    }
    if from == 0 {
        sqlx::query(schema::META).execute(&mut *transaction).await?;
        for (name, value) in [("schema", "0".to_owned()), ("network", network.to_string())] {
            let insert = sqlx::query("INSERT INTO ledgermq (name, value) VALUES ($1, $2)");
            insert.bind(name.to_owned()).bind(value).execute(&mut *transaction).await?;
        }
    }
    for statement in schema::upgrade(dialect, from) {
        sqlx::query(AssertSqlSafe(statement)).execute(&mut *transaction).await?;
    }
    let version = sqlx::query("UPDATE ledgermq SET value = $1 WHERE name = 'schema'");
    version.bind(schema::VERSION.to_string()).execute(&mut *transaction).await?;
    let found = look(&mut transaction, dialect).await?;
    transaction.commit().await?;
    tracing::info!(history = %location, from, to = schema::VERSION, "brought the history up to date");
    Ok(found)
}
