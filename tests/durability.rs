//! What a confirmed commit is worth, on real servers: whom it waits for, and when nobody may see it yet.
//!
//! What never enters: decisions; each test drives the port as an agent would.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::process::Signal;
use stormglass::adapters::system::family;
use stormglass::domain::epoch::RecordNumber;
use stormglass::ports::LocalPostgres;
use stormglass::ports::postgres::{Presence, StartMode};
use support::{Node, PATIENCE, Place, names};

/// Clients that connect and write as fast as they can, and count the commits that returned.
struct Writers {
    confirmed: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Writers {
    fn start(node: &Node, count: usize) -> Self {
        let (confirmed, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let tasks = (0..count).map(|_| {
            let (confirmed, stop, config) = (confirmed.clone(), stop.clone(), node.client_config());
            tokio::spawn(async move {
                while !stop.load(Ordering::Acquire) {
                    let Ok((client, connection)) = config.connect(tokio_postgres::NoTls).await else {
                        tokio::task::yield_now().await;
                        continue;
                    };
                    tokio::spawn(connection);
                    // On a standby it fails, and is tried again on the same connection until the node is a primary.
                    while !stop.load(Ordering::Acquire) && !client.is_closed() {
                        match client.simple_query("insert into t values (1)").await {
                            Ok(_) => drop(confirmed.fetch_add(1, Ordering::AcqRel)),
                            Err(_) => tokio::task::yield_now().await,
                        }
                    }
                }
            })
        });
        Self { tasks: tasks.collect(), confirmed, stop }
    }

    fn confirmed(&self) -> u64 {
        self.confirmed.load(Ordering::Acquire)
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn waiting(node: &Node) -> usize {
    let question = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";
    node.sql(question).await.and_then(|count| count.parse().ok()).expect("a number")
}

#[tokio::test]
async fn in_strict_mode_a_promoted_standby_never_confirms_alone() {
    const WRITERS: usize = 8;
    let place = Place::new();
    let (first, second, third) = (place.node("n1"), place.node("n2"), place.node("n3"));
    first.init_primary().await;
    second.join(&first).await;
    third.join(&first).await;
    first.sql("create table t(n int)").await;
    second.caught_up(&first).await;
    third.caught_up(&first).await;
    first.postgres.kill_family(PATIENCE).await.expect("killed");

    let writers = Writers::start(&second, WRITERS);
    second.postgres.follow(None, PATIENCE).await.expect("frozen");
    second.postgres.promote(true, PATIENCE).await.expect("promoted");
    second.postgres.probe_write(PATIENCE).await.expect("the promotion's own write waits for nobody");
    second.until("every writer waits for a standby", async |node| waiting(node).await == WRITERS).await;
    assert_eq!(writers.confirmed(), 0, "a commit returned, and no standby had it");
    assert_eq!(second.sql("select count(*) from t").await.as_deref(), Some("0"), "what nobody confirmed is not seen");

    // A standby takes the place of nobody, and all of them return.
    second.make_slot(&third).await;
    third.postgres.follow(Some(&second.upstream()), PATIENCE).await.expect("follows");
    let third_only = names(&[&third]);
    second.postgres.apply_synchronous(&third_only, RecordNumber(3), true, PATIENCE).await.expect("applied");
    second.until("the commits return", async |_| writers.confirmed() >= WRITERS as u64).await;
    drop(writers);

    // The control: without the name that nobody has, the next promotion confirms alone at once.
    second.postgres.kill_family(PATIENCE).await.expect("killed");
    let writers = Writers::start(&third, WRITERS);
    third.postgres.promote(false, PATIENCE).await.expect("promoted");
    third.until("commits return alone", async |_| writers.confirmed() >= WRITERS as u64).await;
}

#[tokio::test]
async fn in_strict_mode_a_restarted_primary_never_confirms_alone() {
    const WRITERS: usize = 8;
    let place = Place::new();
    let node = place.node("n1");
    node.init_primary().await;
    node.sql("create table t(n int)").await;
    node.postgres.kill_family(PATIENCE).await.expect("killed");
    let writers = Writers::start(&node, WRITERS);
    let mode = StartMode::Primary { synchronous: Default::default(), block_when_alone: true };
    node.postgres.start(&mode).await.expect("starts");
    node.until("its own write succeeds", async |node| node.postgres.probe_write(PATIENCE).await.is_ok()).await;
    node.until("every writer waits for a standby", async |node| waiting(node).await == WRITERS).await;
    assert_eq!(writers.confirmed(), 0, "a commit returned, and no standby had it");
}

/// Kills one backend, as the kernel does when memory runs out.
async fn crash_a_backend(node: &Node) {
    let pid = node.sql("select pid from pg_stat_activity where query like 'insert into t%' limit 1").await;
    let pid: i32 = pid.expect("a backend").parse().expect("a process");
    assert!(family::signal(&node.family(), pid, Signal::KILL).expect("own process"));
}

#[tokio::test]
async fn after_a_crash_nobody_sees_what_no_standby_confirmed() {
    let place = Place::new();
    let (first, second) = (place.node("n1"), place.node("n2"));
    first.init_primary().await;
    second.join(&first).await;
    first.sql("create table t(n int)").await;
    second.caught_up(&first).await;
    first.postgres.apply_synchronous(&names(&[&second]), RecordNumber(3), false, PATIENCE).await.expect("applied");
    // The standby's disk hangs: it is there, and confirms nothing.
    second.postgres.follow(None, PATIENCE).await.expect("stops");
    let writers = Writers::start(&first, 1);
    first.until("a commit waits", async |node| waiting(node).await == 1).await;
    assert_eq!(first.sql("select count(*) from t").await.as_deref(), Some("0"));

    let Presence::Running { postmaster } = first.postgres.presence().await else { panic!("it runs") };
    crash_a_backend(&first).await;
    tokio::time::timeout(PATIENCE, first.postgres.wait_for_exit(postmaster))
        .await
        .expect("it does not start by itself");
    first.until("all of it ended", async |node| node.postgres.presence().await == Presence::Stopped).await;
    assert!(first.client().await.is_err(), "nobody reads what nobody confirmed");
    assert_eq!(writers.confirmed(), 0);
    drop(writers);

    // Under its lease its agent starts it again: standbys come in, clients do not.
    assert!(first.postgres.ended_after_crash().await, "it ended in order");
    let mode = StartMode::Recovering { synchronous: names(&[&second]) };
    first.postgres.start(&mode).await.expect("starts");
    assert!(first.postgres.is_closed_to_clients().await);
    first
        .until("it recovered", async |node| node.postgres.observe(PATIENCE).await.is_ok_and(|live| !live.in_recovery))
        .await;
    let recovered = first.postgres.observe(PATIENCE).await.expect("answers").flush_lsn;
    let refused = first.client().await.expect_err("clients are kept out");
    assert!(refused.as_db_error().is_some_and(|error| error.message().contains("no pg_hba.conf entry")), "{refused:?}");
    second.postgres.follow(Some(&first.upstream()), PATIENCE).await.expect("follows");
    first
        .until("the standby has what was recovered", async |node| {
            let live = node.postgres.observe(PATIENCE).await.expect("answers");
            live.standbys.iter().any(|row| row.node == "n2" && row.flush_lsn >= Some(recovered))
        })
        .await;
    assert!(first.client().await.is_err(), "still closed");
    first.postgres.open_to_clients(PATIENCE).await.expect("opens");
    assert!(!first.postgres.is_closed_to_clients().await);
    assert_eq!(first.sql("select count(*) from t").await.as_deref(), Some("1"), "and the standby has it");
    first.sql("insert into t values (2)").await;

    // From now on the user's own rules count, as ever.
    let hba = first.data().join("pg_hba.conf");
    let rules = std::fs::read_to_string(&hba).expect("readable");
    std::fs::write(&hba, format!("host all all 127.0.0.0/8 reject\n{rules}")).expect("write");
    first.postgres.apply_synchronous(&names(&[&second]), RecordNumber(4), false, PATIENCE).await.expect("reloads");
    assert!(first.client().await.is_err(), "the user's new rule");
    first.postgres.kill_family(PATIENCE).await.expect("killed");
    assert!(!first.postgres.ended_after_crash().await, "a killed postmaster is no crash of a child");

    second.postgres.promote(false, PATIENCE).await.expect("promoted");
    assert_eq!(second.sql("select count(*) from t").await.as_deref(), Some("2"));
}

#[tokio::test]
async fn while_the_ledger_names_nobody_a_crashed_primary_starts_by_itself() {
    let place = Place::new();
    let node = place.node("n1");
    node.init_primary().await;
    node.sql("create table t(n int)").await;
    node.postgres.apply_synchronous(&Default::default(), RecordNumber(3), false, PATIENCE).await.expect("applied");
    let busy = node.client().await.expect("connects");
    tokio::spawn(async move { busy.simple_query("insert into t select 1 from pg_sleep(3600)").await });
    let active = "select exists(select from pg_stat_activity where query like 'insert into t%')";
    node.until("the backend is busy", async |node| node.sql(active).await.as_deref() == Some("t")).await;
    let Presence::Running { postmaster } = node.postgres.presence().await else { panic!("it runs") };
    crash_a_backend(&node).await;
    node.until("it noticed", async |node| node.log().contains("all server processes terminated; reinitializing")).await;
    node.until("it is back", async |node| node.postgres.probe_write(PATIENCE).await.is_ok()).await;
    assert_eq!(node.postgres.presence().await, Presence::Running { postmaster });
}
