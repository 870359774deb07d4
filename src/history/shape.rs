//! Whether the tables of a history are those that a node made, before anything is read of them.
//!
//! Who may write a database may put a view, a virtual table or a generated column in the place of a table: reading
//! it would run what they wrote, which may never end, and show an audit something else than others see. So
//! a table counts only if it is as `schema` makes it; SQLite's own text of it must be the same, and PostgreSQL's
//! catalog must have a plain table with the same columns and nothing that changes what is read or written.
//! Further tables, views and indexes of other names are nobody's business.

use sqlx::{AnyConnection, AssertSqlSafe, Row as _};

use super::schema::{self, Dialect};

/// Objects that are looked at: more than a sound database has of these names.
const OBJECTS: u32 = 64;

/// Longer than the text of any table of ours.
const MAX_SQL_BYTES: u32 = 16 * 1024;

/// The table that says which version the others are of.
pub(super) const META: &str = "ledgermq";

/// What of the tables is not as a node makes it. `names`: those that are looked at, all of which must be there.
pub(super) async fn strange(
    connection: &mut AnyConnection,
    dialect: Dialect,
    names: &[String],
) -> Result<Option<String>, sqlx::Error> {
    for name in names {
        let strange = match dialect {
            Dialect::Sqlite => strange_in_sqlite(connection, name).await?,
            Dialect::Postgres => strange_in_postgres(connection, name).await?,
        };
        if strange.is_some() {
            return Ok(strange);
        }
    }
    Ok(None)
}

/// The tables of this version, but for [`META`].
pub(super) fn tables(dialect: Dialect) -> Vec<String> {
    schema::upgrade(dialect, 0).iter().filter_map(|statement| table_of(statement)).collect()
}

fn table_of(statement: &str) -> Option<String> {
    statement.strip_prefix("CREATE TABLE ")?.split_whitespace().next().map(str::to_owned)
}

fn statement_of(dialect: Dialect, name: &str) -> String {
    let statements = schema::upgrade(dialect, 0).into_iter().chain([schema::META.to_owned()]);
    statements.into_iter().find(|statement| table_of(statement).as_deref() == Some(name)).unwrap_or_default()
}

async fn strange_in_sqlite(
    connection: &mut AnyConnection,
    name: &str,
) -> Result<Option<String>, sqlx::Error> {
    let objects = format!(
        "SELECT CAST(type AS TEXT), substr(CAST(name AS TEXT), 1, 64), CASE WHEN octet_length(sql) > {MAX_SQL_BYTES} \
         THEN '' ELSE CAST(sql AS TEXT) END FROM sqlite_master WHERE lower(name) = $1 OR \
         (lower(tbl_name) = $1 AND type = 'trigger') ORDER BY type DESC LIMIT {OBJECTS}"
    );
    let objects = sqlx::query(AssertSqlSafe(objects)).bind(name.to_owned()).fetch_all(connection).await?;
    let mut is_there = false;
    for object in &objects {
        let (kind, found, sql): (String, String, String) = (
            object.try_get(0)?,
            object.try_get(1)?,
            object.try_get::<Option<String>, _>(2)?.unwrap_or_default(),
        );
        if kind == "trigger" {
            return Ok(Some(format!("table {name} has a trigger, {found:?}, which no node makes")));
        }
        if kind != "table" {
            return Ok(Some(format!("{name} is a {kind} and no table")));
        }
        if words_of(&sql) != words_of(&statement_of(Dialect::Sqlite, name)) {
            let what = if words_of(&sql).starts_with("CREATE VIRTUAL") {
                "a virtual table"
            } else {
                "made otherwise"
            };
            return Ok(Some(format!("table {name} is not as a node makes it: it is {what}")));
        }
        is_there = true;
    }
    Ok((!is_there).then(|| format!("table {name} is not there")))
}

/// A statement with one space between words, and a table's name without the quotes that SQLite puts around it
/// when it was renamed, and renamed back.
fn words_of(sql: &str) -> String {
    let sql = sql.split_whitespace().collect::<Vec<_>>().join(" ");
    match sql.strip_prefix("CREATE TABLE \"").and_then(|rest| rest.split_once('"')) {
        Some((name, rest)) => format!("CREATE TABLE {name} {}", rest.trim_start()),
        None => sql,
    }
}

async fn strange_in_postgres(
    connection: &mut AnyConnection,
    name: &str,
) -> Result<Option<String>, sqlx::Error> {
    let table = "SELECT CAST(c.relkind AS TEXT), c.relrowsecurity, \
                 EXISTS (SELECT 1 FROM pg_catalog.pg_rewrite r WHERE r.ev_class = c.oid), \
                 EXISTS (SELECT 1 FROM pg_catalog.pg_inherits i WHERE c.oid IN (i.inhparent, i.inhrelid)), \
                 EXISTS (SELECT 1 FROM pg_catalog.pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal) \
                 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                 WHERE n.nspname = current_schema() AND c.relname = $1";
    let table = sqlx::query(table).bind(name.to_owned()).fetch_optional(&mut *connection).await?;
    let Some(table) = table else { return Ok(Some(format!("table {name} is not there"))) };
    let kind: String = table.try_get(0)?;
    if kind != "r" {
        let kind = match kind.as_str() {
            "v" => "a view",
            "m" => "a materialized view",
            "f" => "a foreign table",
            "p" => "a partitioned table",
            _ => "something else",
        };
        return Ok(Some(format!("{name} is {kind} and no plain table")));
    }
    for (at, what) in [(1, "row security"), (2, "a rule"), (3, "tables that inherit"), (4, "a trigger")] {
        if table.try_get(at)? {
            return Ok(Some(format!("table {name} has {what}, which no node makes")));
        }
    }
    let columns = format!(
        "SELECT CAST(a.attname AS TEXT), pg_catalog.format_type(a.atttypid, a.atttypmod), a.attgenerated <> '' \
         FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = current_schema() AND \
         c.relname = $1 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum LIMIT {OBJECTS}"
    );
    let rows = sqlx::query(AssertSqlSafe(columns)).bind(name.to_owned()).fetch_all(connection).await?;
    let mut found = Vec::new();
    for row in &rows {
        let (column, kind): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        if row.try_get(2)? {
            return Ok(Some(format!("column {column} of table {name} is generated")));
        }
        found.push((column, kind.to_uppercase()));
    }
    let is_ours = found == columns_of(&statement_of(Dialect::Postgres, name));
    Ok((!is_ours).then(|| format!("table {name} has other columns than a node makes")))
}

/// Names and types of a table's columns.
fn columns_of(statement: &str) -> Vec<(String, String)> {
    let Some((_, inside)) = statement.split_once('(') else { return Vec::new() };
    let column = |text: &str| {
        let (name, rest) = text.trim().split_once(' ')?;
        let kinds = ["BIGINT", "TEXT", "BYTEA", "DOUBLE PRECISION"];
        let kind = kinds.into_iter().find(|kind| rest.starts_with(kind))?;
        Some((name.to_owned(), kind.to_owned()))
    };
    inside.split(',').filter_map(column).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_and_columns_are_those_of_the_schema() {
        assert_eq!(tables(Dialect::Sqlite), ["nodes", "messages", "items", "fates", "digests"]);
        let columns = |name: &str| columns_of(&statement_of(Dialect::Postgres, name));
        assert_eq!(
            tables(Dialect::Postgres).iter().map(|name| columns(name).len()).collect::<Vec<_>>(),
            [2, 12, 12, 5, 7]
        );
        assert_eq!(columns(META), [("name".into(), "TEXT".into()), ("value".into(), "TEXT".into())]);
        assert_eq!(columns("items")[8], ("float_value".into(), "DOUBLE PRECISION".into()));
    }
}
