//! A history whose disk is full, and PostgreSQL that goes away under load: seen by real clients of a real
//! node.

use ledgermq::gateway::Gateway;
use ledgermq::history::Location;
use sqlx::{Connection as _, Executor as _, PgConnection};

use crate::full_disk::SmallDisk;
use crate::network::TestNetwork;
use crate::rows::{
    SMALLEST_BACKLOG, all_final, each_once, file_of, history_is, publish, publish_until_withheld,
};
use crate::server::Server;
use crate::turn;

const CLIENT: &str = "devices/iot";

async fn gateway(network: &mut TestNetwork) -> Gateway {
    let key = network.register(CLIENT).await;
    network.gateway(CLIENT, &key, &[0]).await
}

/// The disk of the history is full, that of the log is not.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_the_history_holds_clients_back_and_when_there_is_room_nothing_is_missing() {
    let _turn = turn().await;
    let mut network = TestNetwork::create(1, &[("history.max_backlog_bytes", SMALLEST_BACKLOG)]);
    let disk = SmallDisk::mount(&network.local.node_dir(0).join("data/history"), "160m");
    network.spawn_all().await;
    let gateway = gateway(&mut network).await;
    let mut count = 5;
    all_final(&network, publish(&gateway, 5).await).await;
    for _round in 0..2 {
        each_once(&network, 0, &file_of(&network, 0), count).await;
        disk.fill();
        let deliveries = publish_until_withheld(&network, 0, &gateway).await;
        count += deliveries.len();
        assert!(network.local.is_running(0).unwrap(), "the node goes on");
        let log = network.log(0);
        let told = log.lines().find(|line| line.contains("the history cannot be written")).unwrap();
        assert!(told.contains("make room") && told.contains("full"), "{told}");
        disk.make_room();
        all_final(&network, deliveries).await;
        history_is(&network, 0, true).await;
    }
    each_once(&network, 0, &file_of(&network, 0), count).await;
    gateway.close().await;
    network.local.stop_all().await.unwrap();
}

/// A role of the database that has the rights that a node needs, and no more.
async fn node_role(server: &Server) -> String {
    let mut admin = PgConnection::connect(&server.url()).await.unwrap();
    for statement in ["CREATE ROLE node LOGIN", "GRANT CREATE, USAGE ON SCHEMA public TO node"] {
        admin.execute(statement).await.unwrap();
    }
    server.url().replace("ledger@", "node@")
}

async fn sql(server: &Server, statement: &'static str) {
    PgConnection::connect(&server.url()).await.unwrap().execute(statement).await.unwrap();
}

async fn on_postgresql(url: &str) -> TestNetwork {
    let settings = [("history.max_backlog_bytes", SMALLEST_BACKLOG), ("history.url", url)];
    let mut network = TestNetwork::create(1, &settings);
    network.spawn_all().await;
    network
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_get_no_puback_while_postgresql_is_gone_and_too_much_waits_and_nothing_is_lost() {
    let _turn = turn().await;
    let mut server = Server::start();
    let location = Location::parse(&server.url()).unwrap();
    let mut network = on_postgresql(&server.url()).await;
    let gateway = gateway(&mut network).await;
    let mut count = 5;
    all_final(&network, publish(&gateway, 5).await).await;
    for end in [Server::kill as fn(&mut Server), Server::stop] {
        each_once(&network, 0, &location, count).await;
        // Some are on their way to the database when it goes.
        let mut deliveries = publish(&gateway, 10).await;
        end(&mut server);
        deliveries.extend(publish_until_withheld(&network, 0, &gateway).await);
        count += deliveries.len();
        server.start_again();
        all_final(&network, deliveries).await;
        history_is(&network, 0, true).await;
    }
    each_once(&network, 0, &location, count).await;

    // Killed with rows that the database never saw: the log has them.
    server.kill();
    let deliveries = publish(&gateway, 10).await;
    all_final(&network, deliveries).await;
    network.kill(0).await;
    server.start_again();
    network.spawn(0).await;
    each_once(&network, 0, &location, count + 10).await;
    gateway.close().await;
    network.local.stop_all().await.unwrap();
}

/// Errors that no patience mends: a right that was taken away, a column of another type.
#[tokio::test(flavor = "multi_thread")]
async fn what_postgresql_refuses_holds_clients_back_until_somebody_mends_it() {
    let _turn = turn().await;
    let server = Server::start();
    let location = Location::parse(&server.url()).unwrap();
    let url = node_role(&server).await;
    let mut network = on_postgresql(&url).await;
    let gateway = gateway(&mut network).await;
    let mut count = 5;
    all_final(&network, publish(&gateway, 5).await).await;
    let troubles = [
        ("REVOKE INSERT ON messages FROM node", "GRANT INSERT ON messages TO node", "permission denied"),
        (
            "ALTER TABLE items ALTER COLUMN num TYPE DATE USING DATE '2000-01-01' + num::integer",
            "ALTER TABLE items ALTER COLUMN num TYPE BIGINT USING num - DATE '2000-01-01'",
            "is of type date but expression is of type bigint",
        ),
        (
            "ALTER TABLE fates RENAME TO taken_away",
            "ALTER TABLE taken_away RENAME TO fates",
            "does not exist",
        ),
    ];
    for (harm, mend, words) in troubles {
        each_once(&network, 0, &location, count).await;
        let before = network.log(0).len();
        sql(&server, harm).await;
        let deliveries = publish_until_withheld(&network, 0, &gateway).await;
        count += deliveries.len();
        let log = network.log(0)[before..].to_owned();
        let told = log.lines().find(|line| line.contains("the history cannot be written")).unwrap();
        assert!(told.contains(words) && told.contains("refuses what it is given"), "{words}: {told}");
        sql(&server, mend).await;
        all_final(&network, deliveries).await;
        history_is(&network, 0, true).await;
    }
    each_once(&network, 0, &location, count).await;
    gateway.close().await;
    network.local.stop_all().await.unwrap();

    // A node does not start with it, and says why.
    sql(&server, "REVOKE SELECT ON ledgermq FROM node").await;
    let refused = network.run_node(0, &[("history.url", url.as_str())]).await;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("permission denied") && said.contains("bring them back"), "{said}");
}
