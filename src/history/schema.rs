//! The tables of the history, in versions: each is SQL that brings the one before up to it.
//!
//! One text serves both databases. Where their words differ it has a placeholder:
//!
//! | | SQLite | PostgreSQL |
//! | --- | --- | --- |
//! | `{int}` | `INTEGER` | `BIGINT` |
//! | `{float}` | `REAL` | `DOUBLE PRECISION` |
//! | `{bytes}` | `BLOB` | `BYTEA` |
//! | `{clustered}` | `WITHOUT ROWID` | |
//!
//! Versions are never changed once they were released; what is to be different is a further one.
//! docs/HISTORY.md says what each column holds.

/// Which of the two databases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Sqlite,
    Postgres,
}

/// The versions, from 1 on.
const VERSIONS: &[&str] = &[V1];

/// The version that this program reads and writes.
pub(super) const VERSION: u32 = 1;

const V1: &str = "
CREATE TABLE nodes (
  id {int} NOT NULL PRIMARY KEY,
  node TEXT NOT NULL UNIQUE
);
CREATE TABLE messages (
  node {int} NOT NULL,
  number {int} NOT NULL,
  client TEXT NOT NULL,
  seq {int} NOT NULL,
  stream TEXT NOT NULL,
  event_time {int} NOT NULL,
  header_hash {bytes} NOT NULL,
  header {bytes} NOT NULL,
  signature {bytes} NOT NULL,
  client_key {bytes} NOT NULL,
  body {bytes} NOT NULL,
  decision {bytes} NOT NULL,
  PRIMARY KEY (node, number)
);
CREATE UNIQUE INDEX messages_by_seq ON messages (client, seq, node, header_hash);
CREATE TABLE items (
  node {int} NOT NULL,
  number {int} NOT NULL,
  item {int} NOT NULL,
  device TEXT NOT NULL,
  service TEXT NOT NULL,
  num {int} NOT NULL,
  event_time {int} NOT NULL,
  integer_value {int},
  float_value {float},
  text_value TEXT,
  boolean_value {int},
  unit TEXT,
  PRIMARY KEY (node, number, item)
) {clustered};
CREATE TABLE fates (
  node {int} NOT NULL,
  number {int} NOT NULL,
  fate TEXT NOT NULL,
  height {int},
  items {bytes},
  PRIMARY KEY (node, number)
) {clustered};
CREATE TABLE digests (
  node {int} NOT NULL,
  number {int} NOT NULL,
  first {int} NOT NULL,
  count {int} NOT NULL,
  content {bytes} NOT NULL,
  row_hashes {bytes} NOT NULL,
  height {int},
  PRIMARY KEY (node, number)
)
";

/// The table that every version has: `schema` and `network`.
pub(super) const META: &str = "CREATE TABLE ledgermq (name TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL)";

/// The statements that bring a database of version `from` (0: empty) up to [`VERSION`].
pub(super) fn upgrade(dialect: Dialect, from: u32) -> Vec<String> {
    let versions = VERSIONS.iter().skip(from as usize);
    let statements = versions.flat_map(|version| version.split(';')).map(str::trim);
    statements.filter(|statement| !statement.is_empty()).map(|statement| dialect.words(statement)).collect()
}

impl Dialect {
    fn words(self, statement: &str) -> String {
        let [int, float, bytes, clustered] = match self {
            Self::Sqlite => ["INTEGER", "REAL", "BLOB", "WITHOUT ROWID"],
            Self::Postgres => ["BIGINT", "DOUBLE PRECISION", "BYTEA", ""],
        };
        statement
            .replace("{int}", int)
            .replace("{float}", float)
            .replace("{bytes}", bytes)
            .replace("{clustered}", clustered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_that_of_the_last_upgrade() {
        assert_eq!(VERSIONS.len(), VERSION as usize);
        assert!(upgrade(Dialect::Postgres, VERSION).is_empty());
        for dialect in [Dialect::Sqlite, Dialect::Postgres] {
            let all = upgrade(dialect, 0);
            assert!(all.len() >= 6 && all.iter().all(|statement| !statement.contains(['{', '}', ';'])));
        }
    }
}
