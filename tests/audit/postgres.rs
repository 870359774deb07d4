//! The audit of a history in PostgreSQL: the same as of one in SQLite.
//!
//! Needs Debian's package `postgresql` (feature `interop`).

use ledgermq::history::audit::{AuditVerdict, FindingKind, Part};
use ledgermq::history::{HistoryError, Location, SqlReader};
use sqlx::{Connection as _, Executor as _};

use crate::server::Server;
use crate::world::{World, all_told};

async fn tamper(server: &Server, sql: &'static str) {
    let mut connection = sqlx::PgConnection::connect(&server.url()).await.unwrap();
    connection.execute(sql).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_in_postgresql_is_audited_as_one_in_sqlite() {
    let mut server = Server::start();
    let location = Location::parse(&server.url()).unwrap();
    let world = World::ordinary_in(World::with_histories(2, |_| location.clone())).await;
    let clean = world.audit(0).await;
    assert_eq!((clean.verdict, clean.nodes[0].covered), (AuditVerdict::Clean, 12), "{clean:#?}");
    let altered = [
        ("UPDATE messages SET body = 'x' WHERE number = 2", 2, Part::Body),
        ("UPDATE messages SET signature = 'x' WHERE number = 3", 3, Part::Signature),
        ("UPDATE items SET unit = 'K' WHERE number = 4 AND item = 0", 4, Part::Items),
        ("UPDATE fates SET height = 1 WHERE number = 6", 6, Part::Fate),
        ("UPDATE messages SET decision = 'x' WHERE number = 8", 8, Part::Decision),
    ];
    for (sql, _, _) in altered {
        tamper(&server, sql).await;
    }
    let told = all_told(&world.audit(0).await);
    assert_eq!(told, altered.map(|(_, row, part)| (FindingKind::Altered, Some(row), vec![part])));
    tamper(
        &server,
        "DELETE FROM messages WHERE number = 10; UPDATE messages SET number = -1 WHERE number = 14",
    )
    .await;
    let told = all_told(&world.audit(0).await);
    assert!(told.contains(&(FindingKind::Deleted, Some(10), vec![])), "{told:?}");
    assert!(told.contains(&(FindingKind::Added, None, vec![Part::Place])), "{told:?}");
    for (sql, words) in [
        ("ALTER TABLE items ENABLE ROW LEVEL SECURITY", "table items has row security"),
        (
            "ALTER TABLE items DISABLE ROW LEVEL SECURITY; ALTER TABLE fates ADD COLUMN more TEXT",
            "table fates has other columns",
        ),
        (
            "ALTER TABLE messages RENAME TO real; CREATE VIEW messages AS SELECT * FROM real",
            "messages is a view",
        ),
    ] {
        tamper(&server, sql).await;
        let refused =
            SqlReader::open(location.clone(), &world.network).await.map(drop).unwrap_err().to_string();
        assert!(refused.contains(words), "{sql}: {refused}");
    }
    server.stop();
    let gone = SqlReader::open(location, &world.network).await;
    assert!(matches!(gone, Err(HistoryError::Unavailable { .. })));
}
