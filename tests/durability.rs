//! What a confirmed commit is worth, on real servers: whom it waits for, when nobody may see it yet, and what becomes of data that
//! nobody confirmed when its node comes back.
//!
//! What never enters: decisions; each test drives the port as an agent would.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::process::Signal;
use stormglass::adapters::system::family;
use stormglass::domain::epoch::RecordNumber;
use stormglass::domain::ids::Address;
use stormglass::lab::client::{Session, WriteError};
use stormglass::lab::layout::{APPLICATION_ROLE, DATABASE};
use stormglass::ports::LocalPostgres;
use stormglass::ports::postgres::{Presence, RewindOutcome, StartMode};
use support::{Node, Noted, PATIENCE, Place, names};

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
    second.postgres.stop_fast(PATIENCE).await.expect("stops");
    assert!(!second.postgres.ended_after_crash().await, "a shutdown that somebody asked for is no crash");
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

#[tokio::test]
async fn a_cancelled_wait_warns_and_is_never_counted_as_confirmed() {
    let place = Place::new();
    let (first, second) = (place.node("n1"), place.node("n2"));
    first.init_primary().await;
    let hba = first.data().join("pg_hba.conf");
    let rules = std::fs::read_to_string(&hba).expect("readable");
    std::fs::write(&hba, format!("{rules}host {DATABASE} {APPLICATION_ROLE} 127.0.0.0/8 trust\n")).expect("write");
    first.sql("select pg_reload_conf()").await;
    first.sql(&format!("create role {APPLICATION_ROLE} login")).await;
    first.sql(&format!("create database {DATABASE} owner {APPLICATION_ROLE}")).await;
    second.join(&first).await;
    let Address { host, port } = first.settings.address.clone();
    let client = Session::open(&Address::new(host.as_str(), port), "ledger").await.expect("connects");
    client.execute("create table t(n int)").await.expect("confirmed");
    second.caught_up(&first).await;
    let live = second.postgres.observe(PATIENCE).await.expect("answers");
    assert!(
        live.clock.answered_at >= live.clock.last_commit_at && live.clock.last_commit_at.is_some(),
        "{:?}",
        live.clock
    );

    first.postgres.apply_synchronous(&names(&[&second]), RecordNumber(3), false, PATIENCE).await.expect("applied");
    client.execute("insert into t values (1)").await.expect("confirmed by the standby");
    second.postgres.follow(None, PATIENCE).await.expect("stops");
    let cancel = async {
        first.until("the commit waits", async |node| waiting(node).await == 1).await;
        first.sql("select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'").await
    };
    let (written, _) = tokio::join!(client.execute("insert into t values (2)"), cancel);
    assert!(matches!(written, Err(WriteError::Warned)), "the ledger's client took it for confirmed: {written:?}");
    let seen = client.query("select count(*) from t").await.expect("answers");
    assert_eq!(seen, [["2"]], "PostgreSQL shows it all the same");

    // And it may be lost: the standby, which has every confirmed commit, does not have it.
    first.postgres.kill_family(PATIENCE).await.expect("killed");
    second.postgres.promote(false, PATIENCE).await.expect("promoted");
    let client = Session::open(&second.settings.address, "ledger").await.expect("connects");
    assert_eq!(client.query("select n from t").await.expect("answers"), [["1"]]);
}

/// A primary `n1`, killed with its WAL received in full by `n2` and `n3`, both of which are then promoted: two timelines 2 from one
/// point.
async fn two_promotions(place: &Place) -> (Node, Node, Node) {
    let (first, second, third) = (place.node("n1"), place.node("n2"), place.node("n3"));
    first.init_primary().await;
    second.join(&first).await;
    third.join(&first).await;
    first.sql("create table t(n int)").await;
    second.caught_up(&first).await;
    third.caught_up(&first).await;
    first.postgres.kill_family(PATIENCE).await.expect("killed");
    let mut forks = Vec::new();
    for (node, row) in [(&second, 2), (&third, 3)] {
        node.postgres.follow(None, PATIENCE).await.expect("frozen");
        forks.push(node.postgres.promote(false, PATIENCE).await.expect("promoted"));
        node.sql(&format!("insert into t values ({row})")).await;
        node.postgres.checkpoint(PATIENCE).await.expect("checkpoint");
    }
    assert_eq!(forks[0], forks[1], "the test is about two forks at one point");
    (first, second, third)
}

#[tokio::test]
async fn two_promotions_that_took_the_same_number_are_not_one_history() {
    let place = Place::new();
    let (first, second, third) = two_promotions(&place).await;
    // A standby of the promotion that lost: it never wrote, and its WAL is not the other one's.
    third.make_slot(&first).await;
    first.postgres.rewind(&third.upstream(), &Noted::default()).await.expect("same history so far");
    first.start_standby(Some(&third)).await;
    first.caught_up(&third).await;
    first.postgres.stop_fast(PATIENCE).await.expect("stops");
    third.postgres.stop_fast(PATIENCE).await.expect("stops");

    for node in [&third, &first] {
        let change = Noted::default();
        let error = node.postgres.rewind(&second.upstream(), &change).await.expect_err("another history");
        assert!(error.to_string().contains("same number and different histories"), "{error}");
        assert!(!change.began(), "nothing was changed");
        node.postgres.reclone(&second.upstream(), &change, &|_| {}).await.expect("cloned");
        assert!(change.began());
        let kept = std::fs::read_dir(&node.settings.divergent_directory).expect("made").flatten();
        let kept: Vec<_> = kept.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        assert!(kept.len() == 1 && kept[0].contains("timeline-2"), "{kept:?}");
        second.make_slot(node).await;
        node.start_standby(Some(&second)).await;
        node.caught_up(&second).await;
        assert_eq!(node.sql("select array_agg(n)::text from t").await.as_deref(), Some("{2}"));
    }
}

/// pg_rewind leaves a node of PostgreSQL 15 with the WAL that its source has, and a promotion ends with a checkpoint, after which the
/// source needs none of what a primary that crashed long after its own checkpoint must replay.
#[tokio::test]
async fn a_primary_that_crashed_long_after_its_checkpoint_is_rewound_and_goes_on() {
    let place = Place::new();
    let (first, second) = (place.node("n1"), place.node("n2"));
    first.init_primary().await;
    second.join(&first).await;
    first.sql("create table t(n int)").await;
    second.sql("alter system set wal_keep_size = 0").await;
    second.sql("select pg_reload_conf()").await;
    first.sql("checkpoint").await;
    second.caught_up(&first).await;
    second.sql("checkpoint").await;
    for n in 1..=4 {
        first.sql(&format!("insert into t values ({n})")).await;
        first.sql("select pg_switch_wal()").await;
    }
    second.caught_up(&first).await;
    second.postgres.follow(None, PATIENCE).await.expect("frozen");
    second.postgres.reserve_slots(&[first.settings.node.clone()].into(), PATIENCE).await.expect("reserved");
    first.sql("insert into t values (-1)").await;
    first.postgres.kill_family(PATIENCE).await.expect("crashed");
    second.postgres.promote(false, PATIENCE).await.expect("promoted");
    for n in 5..=8 {
        second.sql(&format!("insert into t values ({n})")).await;
        second.sql("select pg_switch_wal()").await;
        second.sql("checkpoint").await;
    }

    assert_eq!(
        first.postgres.rewind(&second.upstream(), &Noted::default()).await.expect("rewound"),
        RewindOutcome::Rewound
    );
    first.start_standby(Some(&second)).await;
    first.caught_up(&second).await;
    assert_eq!(first.sql("select sum(n) from t").await.as_deref(), Some("36"));
}

#[tokio::test]
async fn a_rewind_that_is_killed_half_way_is_told_of_before_and_ends_in_a_new_copy() {
    let place = Place::new();
    // The kernel kills it at its first write beyond 4 KiB of a file.
    let first = place.node_where("n1", "pg_rewind", "ulimit -f 8; exec \"$REAL\" \"$@\"");
    let second = place.node("n2");
    first.init_primary().await;
    second.join(&first).await;
    first.sql("create table t(n int)").await;
    second.caught_up(&first).await;
    second.postgres.follow(None, PATIENCE).await.expect("frozen");
    first.sql("insert into t select generate_series(1, 10000)").await;
    second.postgres.promote(false, PATIENCE).await.expect("promoted");
    second.sql("insert into t select -n from generate_series(1, 10000) as n").await;
    first.postgres.stop_fast(PATIENCE).await.expect("stops");

    let change = Noted::default();
    let error = first.postgres.rewind(&second.upstream(), &change).await.expect_err("killed");
    assert!(change.began(), "the data directory changed, and nobody was told: {error}");
    let listed = |path: &std::path::Path| -> Vec<std::path::PathBuf> {
        let mut paths: Vec<_> = std::fs::read_dir(path).expect("made").flatten().map(|entry| entry.path()).collect();
        paths.sort();
        paths
    };
    let aside = listed(&first.settings.divergent_directory);
    assert_eq!(aside.len(), 1, "the divergent WAL was kept aside before: {aside:?}");
    let kept = || listed(&aside[0]).iter().map(|file| std::fs::read(file).expect("readable")).collect::<Vec<_>>();
    let before = kept();
    first.postgres.reclone(&second.upstream(), &change, &|_| {}).await.expect("cloned");
    assert!(kept() == before, "what was kept of the whole data stays as it was");
    second.make_slot(&first).await;
    first.start_standby(Some(&second)).await;
    first.caught_up(&second).await;
    assert_eq!(first.sql("select max(n) from t").await.as_deref(), Some("-1"));
}

#[tokio::test]
async fn a_copy_that_finds_no_space_leaves_the_old_data_as_it_was() {
    let place = Place::new();
    let first = place.node("n1");
    // No file may grow beyond 1 MiB: less than a segment of WAL.
    let second =
        place.node_where("n2", "pg_basebackup", "test -e \"${0%/*}/../full\" && ulimit -f 2048; exec \"$REAL\" \"$@\"");
    first.init_primary().await;
    second.join(&first).await;
    first.sql("create table t as select 1 as n").await;
    second.caught_up(&first).await;
    second.postgres.stop_fast(PATIENCE).await.expect("stops");
    std::fs::write(second.data().parent().and_then(|above| above.parent()).expect("home").join("full"), "")
        .expect("write");
    let change = Noted::default();
    second.postgres.reclone(&first.upstream(), &change, &|_| {}).await.expect_err("no space");
    assert!(!change.began(), "nothing was changed");
    assert_eq!(
        second.postgres.rewind(&first.upstream(), &change).await.expect("a standby still"),
        RewindOutcome::NotNeeded
    );
    second.start_standby(Some(&first)).await;
    assert_eq!(second.sql("select n from t").await.as_deref(), Some("1"));
}
