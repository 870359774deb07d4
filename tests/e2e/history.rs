//! A node whose history takes nothing for a while: locked, or with a table that is gone. It goes on,
//! says so, holds its clients back when too much waits, and loses nothing, not even when it is killed.

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection as _, Executor as _, SqliteConnection};

use ledgermq::history::Location;

use crate::network::TestNetwork;
use crate::rows::{
    SMALLEST_BACKLOG, all_final, each_once, file_of, history_is, publish, publish_until_withheld,
};

async fn open(network: &TestNetwork) -> SqliteConnection {
    let Location::Sqlite(path) = file_of(network, 0) else { panic!("not a file") };
    SqliteConnection::connect_with(&SqliteConnectOptions::new().filename(path)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_a_killed_node_had_in_its_log_alone_are_written_once_after_its_restart() {
    let mut network = TestNetwork::start(1).await;
    let key = network.register("devices/iot").await;
    let gateway = network.gateway("devices/iot", &key, &[0]).await;
    all_final(&network, publish(&gateway, 3).await).await;
    each_once(&network, 0, &file_of(&network, 0), 3).await;

    // Success rests on the log alone; and a few are on their way when it is killed.
    let mut locked = open(&network).await;
    locked.execute("BEGIN IMMEDIATE").await.unwrap();
    all_final(&network, publish(&gateway, 10).await).await;
    history_is(&network, 0, false).await;
    let on_their_way = publish(&gateway, 3).await;
    network.kill(0).await;
    locked.execute("ROLLBACK").await.unwrap();
    network.spawn(0).await;
    all_final(&network, on_their_way).await;
    each_once(&network, 0, &file_of(&network, 0), 16).await;

    // The log has them all still: they are offered again, and stay as they are.
    network.kill(0).await;
    network.spawn(0).await;
    all_final(&network, publish(&gateway, 1).await).await;
    each_once(&network, 0, &file_of(&network, 0), 17).await;
    gateway.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_gone_holds_clients_back_and_is_told_and_nothing_is_lost() {
    let settings = [("history.max_backlog_bytes", SMALLEST_BACKLOG)];
    let mut network = TestNetwork::start_with(1, &settings).await;
    let key = network.register("devices/iot").await;
    let gateway = network.gateway("devices/iot", &key, &[0]).await;
    all_final(&network, publish(&gateway, 2).await).await;
    each_once(&network, 0, &file_of(&network, 0), 2).await;

    open(&network).await.execute("ALTER TABLE items RENAME TO taken_away").await.unwrap();
    let deliveries = publish_until_withheld(&network, 0, &gateway).await;
    let count = 2 + deliveries.len();
    assert!(deliveries.len() > 20, "{count} of 400 KiB fit into 16 MiB");
    let log = network.log(0);
    let told: Vec<_> = log.lines().filter(|line| line.contains("the history cannot be written")).collect();
    let what = ["no such table: items", "refuses what it is given", "nothing is lost"];
    assert!(what.iter().all(|what| told[0].contains(what)), "{}", told[0]);
    assert!(told.len() < 10, "not with each try:\n{}", told.join("\n"));
    assert!(network.local.is_running(0).unwrap());

    open(&network).await.execute("ALTER TABLE taken_away RENAME TO items").await.unwrap();
    all_final(&network, deliveries).await;
    history_is(&network, 0, true).await;
    each_once(&network, 0, &file_of(&network, 0), count).await;
    gateway.close().await;
}
