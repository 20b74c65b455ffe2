//! The PostgreSQL adapter against real servers.
//!
//! What never enters: decisions; each test drives the port as an agent would.

mod support;

use std::time::Duration;

use rustix::process::Signal;
use stormglass::adapters::system::{boot_time, family};
use stormglass::domain::epoch::RecordNumber;
use stormglass::domain::loss::LostWal;
use stormglass::domain::lsn::Timeline;
use stormglass::ports::LocalPostgres;
use stormglass::ports::postgres::{PostgresError, Presence, RewindOutcome, StartMode};
use support::{Node, Noted, PATIENCE, Place, names};

#[tokio::test]
async fn only_the_agent_opens_postgresql() {
    let place = Place::new();
    let node = place.node("n1");
    assert_eq!(node.postgres.presence().await, Presence::NoData);
    assert_eq!(node.postgres.control_data().await.expect("no error"), None);
    node.init();
    assert_eq!(node.postgres.presence().await, Presence::Stopped);
    node.postgres.secure_configuration().await.expect("secured");

    let data = node.data().to_string_lossy().into_owned();
    let log = node.settings.log_file.to_string_lossy().into_owned();
    let by_hand = |verb: &str| {
        let ran = node.run("pg_ctl", &[verb, "-w", "-D", &data, "-l", &log]);
        assert!(ran.status.success(), "{}{}", String::from_utf8_lossy(&ran.stdout), node.log());
    };
    by_hand("start");
    assert!(node.client().await.is_err(), "a start by hand is open to clients");
    node.postgres.probe_write(PATIENCE).await.expect("the agent reaches it all the same");
    node.postgres.stop_fast(PATIENCE).await.expect("stops");

    let pid = node.start_primary().await;
    assert_eq!(node.postgres.presence().await, Presence::Running { postmaster: pid });
    node.client().await.expect("a start by the agent is open");
    by_hand("restart");
    assert!(node.client().await.is_err(), "a restart by hand is open to clients");
    let live = node.postgres.observe(PATIENCE).await.expect("answers");
    assert!(!live.in_recovery && live.history.timeline == Timeline(1) && live.history.forks.is_empty());
    assert!(live.connections.is_some_and(|connections| connections.used >= 1 && connections.allowed == 95));
    assert!(live.standbys.is_empty() && live.receiver.is_none() && live.synchronous.is_none());
    let control = node.postgres.control_data().await.expect("readable").expect("there");
    assert_eq!(control.system_identifier, live.system_identifier);
    assert_eq!(control.major_version, live.major_version);
    node.postgres.checkpoint(PATIENCE).await.expect("checkpoint");
    assert!(node.postgres.disk().await.expect("known").data_free_bytes > 0);
    let Presence::Running { postmaster } = node.postgres.presence().await else {
        panic!("it was started again by hand")
    };
    assert!(node.postgres.memory(postmaster).await.expect("known").available_bytes > 0);
    node.postgres.stop_fast(PATIENCE).await.expect("stops");
    assert!(node.postgres.control_data().await.expect("readable").expect("there").is_shut_down());
    node.postgres.stop_fast(PATIENCE).await.expect("stopping what is stopped is done at once");
}

#[tokio::test]
async fn a_start_that_fails_says_why() {
    let place = Place::new();
    let (node, bad) = (place.node("n1"), place.node_with("n2", &[("shared_bufers", "1MB")]));
    let mode = StartMode::Standby { upstream: None };
    let error = node.postgres.start(&mode).await.expect_err("no data");
    assert!(error.to_string().contains("clone the node first"), "{error}");

    bad.init();
    let error = bad.postgres.start(&mode).await.expect_err("bad parameter");
    assert!(error.to_string().contains("shared_bufers"), "{error}");

    node.init();
    let _taken = std::net::TcpListener::bind((node.settings.address.host.as_str(), node.settings.address.port))
        .expect("still free");
    let error = node.postgres.start(&mode).await.expect_err("port in use");
    assert!(error.to_string().contains("another server has the port"), "{error}");
    drop(_taken);

    // What is said before PostgreSQL has a log.
    std::fs::remove_file(&node.settings.log_file).expect("of the last try");
    std::fs::create_dir(&node.settings.log_file).expect("in the place of the log");
    let error = node.postgres.start(&mode).await.expect_err("no log");
    assert!(error.to_string().contains("Is a directory"), "{error}");
    std::fs::remove_dir(&node.settings.log_file).expect("empty");

    // A lock file whose number now belongs to somebody else.
    std::fs::write(node.data().join("postmaster.pid"), format!("{}\n", std::process::id())).expect("write");
    assert_eq!(node.postgres.presence().await, Presence::Stopped);
    node.start_primary().await;
    let error = node.postgres.start(&mode).await.expect_err("runs already");
    assert!(error.to_string().contains("runs already"), "{error}");
}

#[tokio::test]
async fn a_fence_leaves_nobody_not_even_orphans() {
    let place = Place::new();
    let node = place.node("n1");
    node.init_primary().await;
    let busy = node.client().await.expect("connects");
    tokio::spawn(async move { busy.simple_query("select count(*) from generate_series(1, 100000000000)").await });
    node.until("the backend is busy", async |node| {
        node.sql("select exists(select from pg_stat_activity where query like '%generate%' and pid <> pg_backend_pid() and state = 'active')").await.as_deref() == Some("t")
    })
    .await;

    let Presence::Running { postmaster } = node.postgres.presence().await else { panic!("it runs") };
    let family = node.family();
    // A postmaster killed alone leaves its children for a moment; stopped ones for as long as they are stopped.
    for pid in family::scan(&family).expect("/proc") {
        // A background worker may have ended since the scan.
        let _was_there = family::signal(&family, pid, Signal::STOP).expect("own process");
    }
    assert!(family::signal(&family, postmaster, Signal::KILL).expect("own process"));
    node.postgres.wait_for_exit(postmaster).await;
    assert_eq!(node.postgres.presence().await, Presence::Orphans);
    let error = node.postgres.start(&StartMode::Standby { upstream: None }).await.expect_err("orphans");
    assert!(error.to_string().contains("kill them first"), "{error}");

    let took = node.postgres.kill_family(PATIENCE).await.expect("killed");
    println!("a family with a busy backend was gone after {took:?}");
    assert_eq!(family::scan(&family).expect("/proc"), Vec::<i32>::new());
    assert_eq!(node.postgres.presence().await, Presence::Stopped);
    let error = node.postgres.probe_connect(PATIENCE).await.expect_err("it is gone");
    assert!(matches!(error, PostgresError::NotAccepting { .. }), "{error}");
    node.start_primary().await;
}

#[tokio::test]
async fn a_hung_postmaster_fails_the_probe_in_time_and_can_be_killed() {
    let place = Place::new();
    let node = place.node("n1");
    node.init_primary().await;
    node.postgres.probe_connect(PATIENCE).await.expect("healthy");
    let Presence::Running { postmaster } = node.postgres.presence().await else { panic!("it runs") };
    assert!(family::signal(&node.family(), postmaster, Signal::STOP).expect("own process"));
    let timeout = Duration::from_millis(200);
    let error = node.postgres.probe_connect(timeout).await.expect_err("hung");
    assert_eq!(error, PostgresError::NoAnswer { action: "probe with a new connection", timeout });
    node.postgres.probe_write(PATIENCE).await.expect("a backend that was there still answers");
    assert!(node.postgres.stop_fast(timeout).await.is_err(), "a stopped postmaster takes no signal");
    node.postgres.kill_family(PATIENCE).await.expect("killed");
    assert_eq!(node.postgres.presence().await, Presence::Stopped);
}

#[tokio::test]
async fn freeze_and_promote_are_quick_and_keep_everything() {
    let place = Place::new();
    let (first, second, third) = (place.node("n1"), place.node("n2"), place.node("n3"));
    first.init_primary().await;
    first.postgres.tend_slots(&names(&[&second, &third]), PATIENCE).await.expect("slots");
    second.join(&first).await;
    third.join(&first).await;
    first.sql("create table t as select generate_series(1, 1000) as n").await;
    second.caught_up(&first).await;
    let live = first.postgres.observe(PATIENCE).await.expect("answers");
    let mut seen: Vec<&str> = live.standbys.iter().map(|row| row.node.as_str()).collect();
    seen.sort();
    assert_eq!(seen, ["n2", "n3"]);

    first.postgres.kill_family(PATIENCE).await.expect("killed");
    let begin = boot_time();
    let received = second.postgres.follow(None, PATIENCE).await.expect("frozen");
    let frozen = boot_time();
    let fork = second.postgres.promote(false, PATIENCE).await.expect("promoted");
    let promoted = boot_time();
    second.postgres.probe_write(PATIENCE).await.expect("writable");
    let written = boot_time();
    println!("freeze {:?}, promote {:?}, first write {:?}", frozen - begin, promoted - frozen, written - promoted);
    assert!(fork >= received || received.bytes_after(fork) < 8192, "{fork} {received}");
    assert_eq!(second.sql("select count(*) from t").await.as_deref(), Some("1000"));
    let live = second.postgres.observe(PATIENCE).await.expect("answers");
    assert_eq!(live.history.timeline, Timeline(2));
    assert_eq!(live.history.forks.last().map(|last| last.switched_at), Some(fork));
    assert_eq!(second.postgres.promote(false, PATIENCE).await.expect("again"), fork, "a repeated command is answered");
    assert!(second.postgres.follow(None, PATIENCE).await.is_err(), "a primary follows nobody");

    third.postgres.follow(None, PATIENCE).await.expect("frozen");
    assert!(third.postgres.observe(PATIENCE).await.expect("answers").receiver.is_none());
    second.postgres.tend_slots(&names(&[&first, &third]), PATIENCE).await.expect("slots");
    third.postgres.follow(Some(&second.upstream()), PATIENCE).await.expect("follows");
    third.until("the third node streams", async |node| node.is_streaming().await).await;
    third.caught_up(&second).await;
    let live = third.postgres.observe(PATIENCE).await.expect("answers");
    assert_eq!(live.history.timeline, Timeline(2));
    assert_eq!(live.receiver.expect("streams").sender, Some(second.settings.address.clone()));
    third.postgres.follow(None, PATIENCE).await.expect("frozen");
    let history = third.postgres.observe(PATIENCE).await.expect("answers").history;
    assert_eq!(history.timeline, Timeline(2), "without a receiver, too, the timeline is known");
}

#[tokio::test]
async fn a_former_primary_comes_back() {
    let place = Place::new();
    let (first, second) = (place.node("n1"), place.node("n2"));
    first.init_primary().await;
    first.postgres.tend_slots(&names(&[&second]), PATIENCE).await.expect("slots");
    second.join(&first).await;
    first.sql("create table t(n int)").await;
    second.caught_up(&first).await;

    // The standby is promoted; the old primary goes on alone and then dies: its last rows are in no history but its own.
    second.postgres.follow(None, PATIENCE).await.expect("frozen");
    first.sql("insert into t select generate_series(1, 100)").await;
    second.postgres.promote(false, PATIENCE).await.expect("promoted");
    first.postgres.kill_family(PATIENCE).await.expect("killed");
    second.sql("insert into t values (-1)").await;
    let now = second.postgres.observe(PATIENCE).await.expect("answers").clock.answered_at.expect("a time");
    second.postgres.tend_slots(&names(&[&first]), PATIENCE).await.expect("slots");
    let noted = Noted::default();
    let outcome = first.postgres.rewind(&second.upstream(), &noted).await.expect("rewound");
    assert_eq!(outcome, RewindOutcome::Rewound);
    // One commit of a hundred rows, some seconds ago.
    let lost = LostWal::find(&noted.kept()).expect("it is counted");
    assert!(lost.bytes > 1_000 && lost.bytes < 1 << 20, "{lost}");
    let age = now.since(lost.last_commit_at.expect("a time"));
    assert!(age < PATIENCE, "{lost}, {age:?} ago");
    assert!(noted.kept().contains("it held 1 commit,"), "{}", noted.kept());
    let kept: Vec<_> = std::fs::read_dir(&first.settings.divergent_directory).expect("made").flatten().collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert!(std::fs::read_dir(kept[0].path()).expect("made").count() >= 1);
    assert_eq!(first.postgres.presence().await, Presence::Stopped);
    first.start_standby(Some(&second)).await;
    first.caught_up(&second).await;
    assert_eq!(first.sql("select array_agg(n)::text from t").await.as_deref(), Some("{-1}"));

    // A planned exchange: everything was received, nothing is to rewind.
    second.postgres.stop_fast(PATIENCE).await.expect("stops");
    let end = second.postgres.control_data().await.expect("readable").expect("there").checkpoint;
    first
        .until("the shutdown record arrived", async |node| {
            node.postgres.observe(PATIENCE).await.expect("answers").flush_lsn > end
        })
        .await;
    first.postgres.promote(false, PATIENCE).await.expect("promoted");
    first.postgres.tend_slots(&names(&[&second]), PATIENCE).await.expect("slots");
    assert_eq!(
        second.postgres.rewind(&first.upstream(), &Noted::default()).await.expect("checked"),
        RewindOutcome::NotNeeded
    );
    second.start_standby(Some(&first)).await;
    first.sql("insert into t values (-2)").await;
    second.caught_up(&first).await;

    // A killed primary whose WAL arrived in full needs no rewind either.
    first.postgres.kill_family(PATIENCE).await.expect("killed");
    second.postgres.promote(false, PATIENCE).await.expect("promoted");
    second.postgres.tend_slots(&names(&[&first]), PATIENCE).await.expect("slots");
    assert_eq!(
        first.postgres.rewind(&second.upstream(), &Noted::default()).await.expect("checked"),
        RewindOutcome::NotNeeded
    );
    first.start_standby(Some(&second)).await;
    second.sql("insert into t values (-3)").await;
    first.caught_up(&second).await;
    assert_eq!(first.sql("select count(*) from t").await.as_deref(), Some("3"));
}

#[tokio::test]
async fn debians_layout_is_closed_opened_cloned_and_rewound() {
    let place = Place::new();
    let (first, second) = (place.node_in_etc("n1"), place.node_in_etc("n2"));
    // Every node of Debian has its own files before it has data; a clone brings none.
    second.init();
    std::fs::remove_dir_all(second.data()).expect("made a moment ago");
    first.init_primary().await;
    assert!(!first.data().join("postgresql.conf").exists(), "the agent makes no second one");
    let file = first.settings.config_directory.clone().expect("set").join("postgresql.conf");
    assert_eq!(first.sql("show config_file").await.as_deref(), file.to_str());
    let restarted = first.run("pg_ctl", &["restart", "-w", "-D", &first.data().to_string_lossy(), "-l", "/dev/null"]);
    assert!(restarted.status.success(), "{}", String::from_utf8_lossy(&restarted.stderr));
    assert!(first.client().await.is_err(), "a restart by hand is open to clients");
    first.postgres.stop_fast(PATIENCE).await.expect("stops");
    first.start_primary().await;

    first.postgres.tend_slots(&names(&[&second]), PATIENCE).await.expect("slots");
    second.join(&first).await;
    assert!(!second.data().join("postgresql.conf").exists(), "the clone reads its own files");
    first.sql("create table t(n int)").await;
    second.caught_up(&first).await;
    second.postgres.follow(None, PATIENCE).await.expect("frozen");
    first.sql("insert into t values (1)").await;
    second.postgres.promote(false, PATIENCE).await.expect("promoted");
    first.postgres.kill_family(PATIENCE).await.expect("killed");
    second.sql("insert into t values (2)").await;
    second.postgres.tend_slots(&names(&[&first]), PATIENCE).await.expect("slots");
    assert_eq!(
        first.postgres.rewind(&second.upstream(), &Noted::default()).await.expect("rewound"),
        RewindOutcome::Rewound
    );
    first.start_standby(Some(&second)).await;
    first.caught_up(&second).await;
    assert_eq!(first.sql("select array_agg(n)::text from t").await.as_deref(), Some("{2}"));
}

#[tokio::test]
async fn another_clusters_data_is_never_touched() {
    let place = Place::new();
    let (ours, theirs) = (place.node("n1"), place.node("x1"));
    ours.init_primary().await;
    theirs.init_primary().await;
    ours.postgres.stop_fast(PATIENCE).await.expect("stops");
    for error in [
        ours.postgres.rewind(&theirs.upstream(), &Noted::default()).await.expect_err("another cluster"),
        ours.postgres.reclone(&theirs.upstream(), &Noted::default(), &|_| {}).await.expect_err("another cluster"),
    ] {
        assert!(error.to_string().contains("another cluster"), "{error}");
    }
    ours.start_primary().await;
}

#[tokio::test]
async fn a_control_file_that_is_damaged_is_named_and_nothing_is_read_from_it() {
    let place = Place::new();
    let node = place.node("n1");
    node.init();
    let file = node.data().join("global/pg_control");
    let whole = std::fs::read(&file).expect("own file");
    let mut flipped = whole.clone();
    flipped[40] ^= 1;
    let problem = async || match node.postgres.control_data().await {
        Err(PostgresError::Damaged { problem, .. }) => problem,
        other => panic!("not damaged: {other:?}"),
    };
    for (bytes, words) in [
        (vec![0x5a; 8192], "checksum"),
        (flipped, "checksum"),
        (whole[..100].to_vec(), "100 bytes"),
        (vec![], "0 bytes"),
    ] {
        std::fs::write(&file, bytes).expect("own file");
        assert!(problem().await.contains(words), "{words}: {}", problem().await);
    }
    std::fs::remove_file(&file).expect("own file");
    assert!(problem().await.contains("missing"));
    std::fs::write(&file, whole).expect("own file");
    assert!(node.postgres.control_data().await.expect("whole").expect("there").is_shut_down());
}

#[tokio::test]
async fn a_reclone_replaces_broken_data_and_survives_an_earlier_attempt() {
    let place = Place::new();
    let (first, second) = (place.node("n1"), place.node("n2"));
    first.init_primary().await;
    second.join(&first).await;
    second.postgres.kill_family(PATIENCE).await.expect("killed");
    std::fs::remove_file(second.data().join("global/pg_control")).expect("there");
    std::fs::create_dir(second.data().with_file_name("data.stormglass-new")).expect("create");
    std::fs::write(second.data().with_file_name("data.stormglass-new/junk"), "x").expect("write");
    let told = std::sync::Mutex::new(Vec::new());
    let tell = |what: String| told.lock().expect("not poisoned").push(what);
    second.postgres.reclone(&first.upstream(), &Noted::default(), &tell).await.expect("cloned");
    assert!(told.lock().expect("not poisoned").iter().any(|what| what.contains("100%")), "{told:?}");
    second.start_standby(Some(&first)).await;
    second.caught_up(&first).await;

    second.postgres.stop_fast(PATIENCE).await.expect("stops");
    first.postgres.kill_family(PATIENCE).await.expect("killed");
    let error =
        second.postgres.reclone(&first.upstream(), &Noted::default(), &|_| {}).await.expect_err("nobody to clone");
    assert!(error.to_string().contains("refused"), "{error}");
    second.start_standby(None).await;
}

#[tokio::test]
async fn names_are_acknowledged_once_commits_wait_for_them() {
    let place = Place::new();
    let (first, second, third) = (place.node("n1"), place.node("n2"), place.node("n3"));
    first.init_primary().await;
    second.join(&first).await;
    third.join(&first).await;
    let apply = async |nodes: &[&Node], number: u64, block: bool| {
        first.postgres.apply_synchronous(&names(nodes), RecordNumber(number), block, PATIENCE).await.expect("applied")
    };
    let begin = boot_time();
    let report = apply(&[&second, &third], 7, false).await;
    println!("synchronous names applied within {:?}", boot_time() - begin);
    assert_eq!((report.number, report.names.len()), (RecordNumber(7), 2));
    let live = first.postgres.observe(PATIENCE).await.expect("answers");
    assert_eq!(live.synchronous.as_ref(), Some(&report));
    assert!(live.flush_lsn <= report.barrier_lsn || live.flush_lsn.bytes_after(report.barrier_lsn) < 1 << 20);
    assert!(live.standbys.iter().any(|row| row.is_synchronous()), "{:?}", live.standbys);

    assert_eq!(apply(&[&second], 8, false).await.names, vec![second.name.clone()]);
    let priorities = "select string_agg(application_name || sync_priority, ' ' order by 1) from pg_stat_replication";
    assert_eq!(first.sql(priorities).await.as_deref(), Some("n21 n30"));

    // With the only named standby gone a commit waits, and the agent's own probe does not.
    second.postgres.kill_family(PATIENCE).await.expect("killed");
    let waits = async || {
        let client = first.client().await.expect("connects");
        let write = client.simple_query("select pg_logical_emit_message(true, 'test', '')");
        tokio::time::timeout(Duration::from_millis(300), write).await.is_err()
    };
    assert!(waits().await, "a commit did not wait");
    first.postgres.probe_write(PATIENCE).await.expect("waiting for a standby is no failure");
    apply(&[], 9, true).await;
    assert!(waits().await, "a commit went on alone");
    let report = apply(&[], 10, false).await;
    assert!(!waits().await, "a commit waits for nobody");
    assert_eq!(first.postgres.observe(PATIENCE).await.expect("answers").synchronous, Some(report));
    first.sql("alter system set synchronous_standby_names = 'meddler'").await;
    first.sql("select pg_reload_conf()").await;
    first
        .until("the acknowledgement is void", async |node| {
            node.postgres.observe(PATIENCE).await.expect("answers").synchronous.is_none()
        })
        .await;
    apply(&[], 11, false).await;
    assert!(
        third.postgres.apply_synchronous(&names(&[]), RecordNumber(12), false, PATIENCE).await.is_err(),
        "a standby"
    );
}

#[tokio::test]
async fn slots_follow_the_peers_and_the_role() {
    let place = Place::new();
    let (first, second, third) = (place.node("n-1"), place.node("n-2"), place.node("n-3"));
    first.init_primary().await;
    let slots = async |node: &Node| {
        node.sql("select coalesce(string_agg(slot_name, ' ' order by 1), '') from pg_replication_slots")
            .await
            .expect("text")
    };
    first.sql("select pg_create_physical_replication_slot('mine')").await;
    first.postgres.tend_slots(&names(&[&second, &third]), PATIENCE).await.expect("tended");
    assert_eq!(slots(&first).await, "mine stormglass_n_2 stormglass_n_3");
    first.postgres.tend_slots(&names(&[&second]), PATIENCE).await.expect("tended");
    assert_eq!(slots(&first).await, "mine stormglass_n_2");
    second.join(&first).await;
    second.sql("select pg_create_physical_replication_slot('stormglass_n_1', true)").await;
    second.postgres.tend_slots(&names(&[&first]), PATIENCE).await.expect("tended");
    assert_eq!(slots(&second).await, "", "a slot on a standby holds back WAL for nobody");
    second.postgres.reserve_slots(&names(&[&first, &third]), PATIENCE).await.expect("reserved");
    second.postgres.reserve_slots(&names(&[&first, &third]), PATIENCE).await.expect("again");
    assert_eq!(slots(&second).await, "stormglass_n_1 stormglass_n_3", "it may be promoted in a moment");
    second.postgres.tend_slots(&names(&[&first, &third]), PATIENCE).await.expect("tended");
    assert_eq!(slots(&second).await, "", "nothing came of it");
}

#[tokio::test]
async fn wal_that_the_primary_has_removed_is_told_from_wal_that_is_late() {
    let place = Place::new();
    let (first, second) = (place.node("n1"), place.node("n2"));
    first.init_primary().await;
    first.postgres.tend_slots(&names(&[&second]), PATIENCE).await.expect("slots");
    second.join(&first).await;
    second.caught_up(&first).await;
    let position = second.postgres.observe(PATIENCE).await.expect("answers").flush_lsn;
    let gone = async || second.postgres.wal_gone(&first.upstream(), position).await;
    second.postgres.stop_fast(PATIENCE).await.expect("stops");
    assert_eq!(gone().await, Ok(None), "nothing was written since");
    first.sql("create table t as select generate_series(1, 1000) as n").await;
    assert_eq!(gone().await, Ok(None), "it is all there");

    first.postgres.tend_slots(&names(&[]), PATIENCE).await.expect("no slot");
    for text in ["alter system set wal_keep_size = 0", "select pg_reload_conf()"] {
        first.sql(text).await;
    }
    for _ in 0..3 {
        first.sql("insert into t values (0)").await;
        first.sql("select pg_switch_wal()").await;
        first.sql("checkpoint").await;
    }
    let words = gone().await.expect("the primary answers").expect("it is gone");
    assert!(words.contains("is no longer on n1") && words.contains(&position.to_string()), "{words}");
    first.postgres.kill_family(PATIENCE).await.expect("killed");
    assert!(gone().await.is_err(), "who is not asked says nothing");
}
