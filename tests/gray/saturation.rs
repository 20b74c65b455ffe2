//! Saturation alone is not death: the probes pass, and what strains the server is in the report.

use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use stormglass::adapters::control::TcpPrimaryProbe;
use stormglass::ports::postgres::Presence;
use stormglass::ports::{LocalPostgres, PrimaryProbe};
use tokio_postgres::{Client, NoTls};

use super::support::{Node, PATIENCE, Place};

async fn connect(node: &Node, user: &str) -> Result<Client, tokio_postgres::Error> {
    let address = &node.settings.address;
    let mut config = tokio_postgres::Config::new();
    config.host(&address.host).port(address.port).user(user).dbname("postgres");
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

#[tokio::test]
async fn exhausted_connections_leave_the_probes_the_reserved_ones() {
    let place = Place::new();
    let node = place.node_with("n1", &[("max_connections", "14")]);
    node.init();
    let hba = node.data().join("pg_hba.conf");
    let lines = std::fs::read_to_string(&hba).expect("written by init");
    std::fs::write(&hba, format!("{lines}host all application 127.0.0.0/8 trust\n")).expect("own file");
    node.postgres.secure_configuration().await.expect("secured");
    node.start_primary().await;
    node.sql("create role application login").await;
    node.postgres.probe_write(PATIENCE).await.expect("before");

    let mut clients = Vec::new();
    let refused = loop {
        match connect(&node, "application").await {
            Ok(client) => clients.push(client),
            Err(error) => break error,
        }
    };
    assert_eq!(refused.code().map(|code| code.code()), Some("53300"), "{refused:?}");
    assert!(clients.len() >= 5, "only {} clients came in", clients.len());
    for _ in 0..3 {
        node.postgres.probe_connect(PATIENCE).await.expect("a new connection, a reserved one");
        node.postgres.probe_write(PATIENCE).await.expect("over the held one");
        TcpPrimaryProbe.probe(&node.settings.address, PATIENCE).await.expect("it answers whoever knocks");
    }
    let connections = node.postgres.observe(PATIENCE).await.expect("over the held one").connections.expect("known");
    assert!(connections.used >= connections.allowed, "{connections:?}");
}

/// Sets a soft limit of a process of PostgreSQL's user, as that user: root may not everywhere. Returns what it was.
fn limit(node: &Node, pid: i32, resource: &str, soft: &str) -> String {
    let owner = std::fs::metadata(node.data()).expect("there");
    let run = |arguments: &[&str]| {
        let mut command = Command::new("prlimit");
        command.uid(owner.uid()).gid(owner.gid()).args(["--pid", &pid.to_string()]).args(arguments);
        let ran = command.output().expect("util-linux is installed");
        assert!(ran.status.success(), "prlimit {arguments:?}: {}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8_lossy(&ran.stdout).trim().to_owned()
    };
    let before = run(&[&format!("--{resource}"), "--noheadings", "--raw", "--output", "SOFT"]);
    run(&[&format!("--{resource}={soft}:")]);
    before
}

/// What the kernel does to a host with too many processes: nobody is started for a new connection, the others go on.
#[tokio::test]
async fn a_server_that_cannot_fork_passes_the_probes_and_one_that_cannot_accept_does_not() {
    let place = Place::new();
    let node = place.node("n1");
    node.init_primary().await;
    node.postgres.probe_write(PATIENCE).await.expect("before");
    let Presence::Running { postmaster } = node.postgres.presence().await else { panic!("it runs") };

    let processes = limit(&node, postmaster, "nproc", "0");
    connect(&node, "postgres").await.expect_err("nobody is started for it");
    for _ in 0..3 {
        node.postgres.probe_connect(PATIENCE).await.expect("it says itself that it cannot fork");
        node.postgres.probe_write(PATIENCE).await.expect("over the held one");
    }
    limit(&node, postmaster, "nproc", &processes);
    drop(connect(&node, "postgres").await.expect("as before"));

    // Without a descriptor for it the postmaster takes no connection at all: nobody can tell it from one that hangs.
    let descriptors = limit(&node, postmaster, "nofile", "0");
    let short = std::time::Duration::from_millis(500);
    node.postgres.probe_connect(short).await.expect_err("nobody answers");
    limit(&node, postmaster, "nofile", &descriptors);
    node.until("it answers again", async |node| node.postgres.probe_connect(PATIENCE).await.is_ok()).await;
}

#[tokio::test]
async fn a_lock_that_blocks_every_client_blocks_no_probe() {
    let place = Place::new();
    let node = place.node("n1");
    node.init_primary().await;
    node.sql("create table busy (number int)").await;
    let holder = connect(&node, "postgres").await.expect("connects");
    holder.batch_execute("begin; lock table busy in access exclusive mode").await.expect("locked");
    let mut blocked = Vec::new();
    for _ in 0..6 {
        let client = connect(&node, "postgres").await.expect("connects");
        blocked.push(tokio::spawn(async move { client.batch_execute("insert into busy values (1)").await }));
    }
    node.until("six clients wait for a lock", async |node| {
        let live = node.postgres.observe(PATIENCE).await.expect("answers");
        let waits = live.waits.expect("told");
        waits.waiting_for_locks == 6 && !waits.longest_lock_wait.is_zero() && waits.oldest_transaction.is_some()
    })
    .await;
    node.postgres.probe_connect(PATIENCE).await.expect("passes");
    node.postgres.probe_write(PATIENCE).await.expect("passes");
    assert!(blocked.iter().all(|client| !client.is_finished()), "the lock was not held");
    holder.batch_execute("commit").await.expect("released");
    for client in blocked {
        client.await.expect("not cancelled").expect("written");
    }
}

#[tokio::test]
async fn clients_that_wait_for_wal_to_be_flushed_are_counted_and_so_is_what_it_costs_them() {
    let place = Place::new();
    let node = place.node("n1");
    node.init_primary().await;
    node.sql("create table busy (number int)").await;
    let work = async |node: &Node| node.postgres.observe(PATIENCE).await.expect("answers").work.expect("told");
    let before = work(&node).await;
    assert_eq!(before.waiting_for_wal, 0, "nobody writes");
    let mut writers = tokio::task::JoinSet::<()>::new();
    for _ in 0..6 {
        let client = connect(&node, "postgres").await.expect("connects");
        // Who flushes sleeps before it does, and keeps the others waiting: what a slow disk does.
        client.batch_execute("set commit_delay = 100000; set commit_siblings = 0").await.expect("set");
        writers.spawn(async move {
            loop {
                client.batch_execute("insert into busy values (1)").await.expect("written");
            }
        });
    }
    node.until("a crowd waits for WAL", async |node| work(node).await.waiting_for_wal >= 3).await;
    node.until("each of some commits took a good part of a tenth of a second", async |node| {
        let now = work(node).await;
        let writes = now.writes.expect("told") - before.writes.expect("told");
        // PostgreSQL 13 does not tell what they took. A session says so once a second at most, without its last statement.
        let took = now.statement_milliseconds.zip(before.statement_milliseconds).map(|(now, before)| now - before);
        now.commits - before.commits >= 20 && writes >= 20 && took.is_none_or(|took| took >= 50 * writes)
    })
    .await;
    writers.shutdown().await;
}

#[tokio::test]
async fn a_damaged_page_is_counted_and_fails_no_probe() {
    let place = Place::new();
    let node = place.node("n1");
    node.init();
    let enabled = node.run("pg_checksums", &["--enable", "-D", &node.data().to_string_lossy()]);
    assert!(enabled.status.success(), "{}", String::from_utf8_lossy(&enabled.stderr));
    node.postgres.secure_configuration().await.expect("secured");
    node.start_primary().await;
    node.sql(
        "create table damaged as select number, repeat('x', 100) as filler from generate_series(1, 1000) as number",
    )
    .await;
    node.sql("checkpoint").await;
    let observed = async || node.postgres.observe(PATIENCE).await.expect("answers").upkeep.expect("told");
    assert_eq!(observed().await.checksum_failures, Some(0));

    let file = node.data().join(node.sql("select pg_relation_filepath('damaged')").await.expect("a table"));
    // Out of shared buffers with it: only what is read from disk is checked.
    node.postgres.stop_fast(PATIENCE).await.expect("stopped");
    let mut bytes = std::fs::read(&file).expect("own file");
    bytes[8192 - 200] ^= 0x5a;
    std::fs::write(&file, bytes).expect("own file");
    node.start_primary().await;

    let client = connect(&node, "postgres").await.expect("connects");
    let refused = client.query("select count(filler) from damaged", &[]).await.expect_err("the page is damaged");
    assert_eq!(refused.code().map(|code| code.code()), Some("XX001"), "{refused:?}");
    node.until("the failure is counted", async |_| observed().await.checksum_failures == Some(1)).await;
    node.postgres.probe_connect(PATIENCE).await.expect("passes");
    node.postgres.probe_write(PATIENCE).await.expect("passes");
}
