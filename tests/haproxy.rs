//! The HAProxy of a proxy host, driven for real: what clients see during redirects, holds, gaps, reloads and crashes.

#[path = "haproxy/backends.rs"]
mod backends;
#[path = "haproxy/harness.rs"]
mod harness;
#[path = "haproxy/pooler.rs"]
mod pooler;
#[path = "haproxy/role.rs"]
mod role;
#[path = "haproxy/secured.rs"]
mod secured;
#[path = "support/pki.rs"]
mod support;
#[path = "haproxy/verify.rs"]
mod verify;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use harness::{CONNECT_TIMEOUT, Lab, PATIENCE, Session, until};
use rustix::process::Signal;
use stormglass::adapters::haproxy::{HaproxyRouter, HaproxySettings};
use stormglass::domain::ids::Address;
use stormglass::ports::traffic::{Route, Settled, TrafficError, TrafficRouter};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

async fn settled(router: &dyn TrafficRouter) {
    until("the file follows", async || router.settle().await.expect("settles") == Settled::Done).await;
}

async fn waiting(lab: &Lab, count: usize) -> JoinSet<Session> {
    let mut clients = JoinSet::new();
    for _ in 0..count {
        clients.spawn(lab.connect());
    }
    let runtime = lab.runtime();
    until("connections wait at HAProxy", async || {
        let listed = runtime.ask("test", "show sess").await.expect("answers");
        // `scb=[8,…`, before HAProxy 2.6 `s1=[8,…`: connected to a server.
        let is_served = |line: &str| line.contains("scb=[8,") || line.contains("s1=[8,");
        listed.lines().filter(|line| line.contains("be=pg_write") && !is_served(line)).count() == count
    })
    .await;
    clients
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_moves_new_connections_and_cuts_sessions_to_the_former_primary() {
    let lab = Lab::new();
    let router = lab.router(Some(&lab.a.address)).await;
    let in_old_worker = lab.connect().await;
    assert_eq!(in_old_worker.server, "A");
    // A reload leaves that session in an old worker.
    let other = changed(&lab, 2);
    other.ensure_running(Some(&lab.a.address), &lab.arrangement()).await.expect("adopts");
    settled(&other).await;
    assert_eq!(lab.processes().await.old_workers.len(), 1);
    assert!(in_old_worker.is_open(), "a reload cuts nobody");
    let in_worker = lab.connect().await;

    let begun = Instant::now();
    other.redirect(&lab.b.address).await.expect("redirects");
    println!("redirect with an old worker: {:?}", begun.elapsed());
    in_old_worker.ended().await;
    in_worker.ended().await;
    assert_eq!(lab.connect().await.server, "B");
    assert_eq!(other.route().await, Ok(Route::Leads(lab.b.address.clone())));
    drop(router);
}

/// The same HAProxy with another setting, as after an edit of the agent's configuration: its file asks for a reload.
fn changed(lab: &Lab, times: u32) -> HaproxyRouter {
    HaproxyRouter::new(HaproxySettings { connect_timeout: CONNECT_TIMEOUT * times, ..lab.settings.clone() })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_redirect_cuts_nobody() {
    let lab = Lab::new();
    let router = lab.router(Some(&lab.a.address)).await;
    let session = lab.connect().await;
    router.redirect(&lab.a.address).await.expect("redirects");
    router.hold().await.expect("holds");
    router.redirect(&lab.a.address).await.expect("releases");
    assert_eq!(lab.connect().await.server, "A");
    assert!(session.is_open());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_keeps_sessions_and_makes_new_connections_wait_until_the_redirect() {
    let lab = Lab::new();
    let router = lab.router(Some(&lab.a.address)).await;
    let session = lab.connect().await;
    router.hold().await.expect("holds");
    assert_eq!(router.route().await, Ok(Route::Holding));
    let clients = waiting(&lab, 50).await;
    assert!(session.is_open(), "a hold cuts nobody");
    assert_eq!(lab.a.sessions.load(Ordering::SeqCst), 1, "a held connection reached the former primary");
    assert!(matches!(router.settle().await, Ok(Settled::Later { .. }) | Ok(Settled::Done)));

    let begun = Instant::now();
    router.redirect(&lab.b.address).await.expect("redirects");
    let took = begun.elapsed();
    let mut waits: Vec<Duration> = Vec::new();
    for client in clients.join_all().await {
        assert_eq!(client.server, "B");
        waits.push(client.greeted.duration_since(begun));
    }
    waits.sort();
    println!("redirect {took:?}; held connections served after {:?} (median), {:?} (last)", waits[25], waits[49]);
    session.ended().await;
}

/// A client that waits in vain connects again; what it left behind would go on trying beside it, and be more with each attempt.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_gives_up_waiting_is_let_go() {
    let lab = Lab::new();
    let router = lab.router(Some(&lab.a.address)).await;
    router.hold().await.expect("holds");
    let mut impatient = Vec::new();
    for _ in 0..20 {
        let address = (lab.settings.write.host.as_str(), lab.settings.write.port);
        let mut client = tokio::net::TcpStream::connect(address).await.expect("accepted");
        // As PostgreSQL's clients do: they speak first.
        client.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).await.expect("sent");
        impatient.push(client);
    }
    let runtime = lab.runtime();
    let count = async || {
        let listed = runtime.ask("test", "show sess").await.expect("answers");
        listed.lines().filter(|line| line.contains("be=pg_write") && !line.contains("scb=[8,")).count()
    };
    until("twenty wait", async || count().await == 20).await;
    drop(impatient.split_off(5));
    until("only those that still wait are left", async || count().await == 5).await;
    router.redirect(&lab.b.address).await.expect("redirects");
    for mut client in impatient {
        let mut name = [0; 1];
        tokio::time::timeout(PATIENCE, client.read_exact(&mut name)).await.expect("in time").expect("served");
        assert_eq!(&name, b"B");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_known_yet_means_that_connections_wait() {
    let lab = Lab::new();
    let router = lab.router(None).await;
    assert_eq!(router.route().await, Ok(Route::Holding));
    let clients = waiting(&lab, 5).await;
    router.redirect(&lab.a.address).await.expect("redirects");
    for client in clients.join_all().await {
        assert_eq!(client.server, "A");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_primary_is_gone_connections_wait_and_none_is_refused() {
    let mut lab = Lab::new();
    let router = lab.router(Some(&lab.a.address)).await;
    let former = std::mem::replace(&mut lab.a, harness::Server::start(harness::listener_on(lab.host), "C"));
    let gone = former.address.to_string();
    drop(former);
    until("the primary refuses", async || tokio::net::TcpStream::connect(&gone).await.is_err()).await;
    let clients = waiting(&lab, 100).await;
    // A reload now would leave them with an address that can no longer be changed.
    let changed = changed(&lab, 2);
    changed.ensure_running(Some(&lab.b.address), &lab.arrangement()).await.expect("adopts");
    assert!(matches!(changed.settle().await, Ok(Settled::Later { .. })), "no reload while connections wait");
    router.redirect(&lab.b.address).await.expect("redirects");
    for client in clients.join_all().await {
        assert_eq!(client.server, "B");
    }
}

/// Connects again and again until told to stop; every connection must be served.
fn keep_connecting(lab: &Lab, stop: Arc<AtomicBool>) -> JoinHandle<usize> {
    let write = lab.settings.write.clone();
    tokio::spawn(async move {
        let mut served = 0;
        while !stop.load(Ordering::SeqCst) {
            assert_eq!(harness::connect(write.clone()).await.server, "A");
            served += 1;
        }
        served
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn reloads_keep_sessions_and_refuse_nobody() {
    let lab = Lab::new();
    drop(lab.router(Some(&lab.a.address)).await);
    let session = lab.connect().await;
    let stop = Arc::new(AtomicBool::new(false));
    let clients = keep_connecting(&lab, Arc::clone(&stop));
    for round in 1..=3 {
        let router = changed(&lab, round + 1);
        router.ensure_running(Some(&lab.a.address), &lab.arrangement()).await.expect("adopts");
        settled(&router).await;
        assert_eq!(lab.processes().await.reloads, u64::from(round));
    }
    stop.store(true, Ordering::SeqCst);
    let served = clients.await.expect("every connection was served");
    assert!(served > 0);
    assert!(session.is_open());
    println!("{served} connections during 3 reloads, none refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_comes_up_on_the_new_primary() {
    let lab = Lab::new();
    let router = lab.router(Some(&lab.a.address)).await;
    router.redirect(&lab.b.address).await.expect("redirects");
    settled(&router).await;
    let file = std::fs::read_to_string(&lab.settings.config_file).expect("written");
    assert!(file.contains(&format!("  server primary {}\n", lab.b.address)), "{file}");

    harness::kill(lab.processes().await.master, Signal::KILL);
    tokio::time::timeout(PATIENCE, router.exited()).await.expect("its end is noticed");
    // Another agent process, which starts it from the file and redirects nothing.
    let next = lab.router(Some(&lab.b.address)).await;
    assert_eq!(next.route().await, Ok(Route::Leads(lab.b.address.clone())));
    assert_eq!(lab.connect().await.server, "B");
    harness::kill(lab.processes().await.master, Signal::KILL);
    tokio::time::timeout(PATIENCE, next.exited()).await.expect("its end is noticed");
    drop(lab.router(None).await);
    let file = std::fs::read_to_string(&lab.settings.config_file).expect("written");
    assert!(file.contains("  server primary 127.0.0.1:1\n"), "an agent that remembers nothing holds: {file}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_starts_a_dead_haproxy_on_the_new_primary() {
    let lab = Lab::new();
    let router = lab.router(Some(&lab.a.address)).await;
    harness::kill(lab.processes().await.master, Signal::KILL);
    tokio::time::timeout(PATIENCE, router.exited()).await.expect("its end is noticed");
    router.redirect(&lab.b.address).await.expect("by the file");
    assert_eq!(lab.connect().await.server, "B");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_socket_is_an_error_in_time() {
    let lab = Lab::new();
    let mut settings = lab.settings.clone();
    settings.answer_timeout = Duration::from_millis(200);
    let silent = tokio::net::UnixListener::bind(&settings.stats_socket).expect("binds");
    let accepting = tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((stream, _)) = silent.accept().await {
            kept.push(stream);
        }
    });
    let router = HaproxyRouter::new(settings);
    let begun = Instant::now();
    let error = router.redirect(&lab.a.address).await.expect_err("nobody answers").to_string();
    assert!(begun.elapsed() < Duration::from_secs(5), "took {:?}", begun.elapsed());
    assert!(error.contains("no answer from HAProxy on") && error.contains("stats.sock within 200ms"), "{error}");
    assert!(error.contains("restart HAProxy"), "{error}");
    let hold = router.hold().await.expect_err("nobody answers");
    assert!(matches!(hold, TrafficError::NoAnswer { .. }), "{hold}");
    accepting.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_worker_is_replaced_through_the_file() {
    let lab = Lab::new();
    let mut settings = lab.settings.clone();
    settings.answer_timeout = Duration::from_millis(300);
    let router = HaproxyRouter::new(settings);
    router.ensure_running(Some(&lab.a.address), &lab.arrangement()).await.expect("starts");
    let frozen = lab.processes().await.workers[0];
    harness::freeze(frozen).await;
    let begun = Instant::now();
    let outcome = router.redirect(&lab.b.address).await;
    println!("redirect past a frozen worker: {:?} in {:?}", outcome, begun.elapsed());
    outcome.expect("the new worker leads to the new primary");
    // Nobody is given to the frozen one any more.
    for _ in 0..20 {
        assert_eq!(lab.connect().await.server, "B");
    }
    assert_eq!(router.route().await, Ok(Route::Leads(lab.b.address.clone())));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_haproxy_refuses_never_replaces_the_one_in_force() {
    let lab = Lab::new();
    drop(lab.router(Some(&lab.a.address)).await);
    let before = std::fs::read_to_string(&lab.settings.config_file).expect("written");
    let template = lab.directory.path().join("own.template");
    std::fs::write(
        &template,
        "global\n  stats socket {{stats_socket}}\nlisten x\n  bind {{write}}\n  sever {{write_target}}\n",
    )
    .expect("writes");
    let mut settings = lab.settings.clone();
    settings.template = Some(template);
    let router = HaproxyRouter::new(settings);
    // HAProxy runs, and is adopted and moved all the same; what is wrong with the file is said again and again.
    router.ensure_running(Some(&lab.b.address), &lab.arrangement()).await.expect("adopted as it is");
    router.redirect(&lab.b.address).await.expect("through the runtime API");
    assert_eq!(lab.connect().await.server, "B");
    let error = router.settle().await.expect_err("invalid").to_string();
    assert!(error.contains("the file in force stays") && error.contains("sever"), "{error}");
    assert_eq!(std::fs::read_to_string(&lab.settings.config_file).expect("still there"), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_named() {
    let lab = Lab::new();
    let taken = std::net::TcpListener::bind(lab.settings.write.to_string()).expect("free");
    let router = HaproxyRouter::new(lab.settings.clone());
    let error = router.ensure_running(None, &lab.arrangement()).await.expect_err("in use").to_string();
    assert!(error.contains("start HAProxy") && error.contains(&lab.settings.write.to_string()), "{error}");
    drop(taken);
}

#[tokio::test(flavor = "multi_thread")]
async fn checked_and_read_ports_follow_the_agents_word() {
    let lab = Lab::new();
    let _router = lab.router(None).await;
    // Until its first check a server counts as up, and whom it served is cut when it turns out not to be.
    let serves = async |address: &Address, name: &str| harness::served_by(address).await.as_deref() == Some(name);
    until("checks have run", async || {
        serves(&lab.settings.checked, "A").await && serves(&lab.settings.read, "B").await
    })
    .await;
    // Nobody is primary for a while: connections wait instead of being closed.
    lab.agent_a.is_primary.store(false, Ordering::SeqCst);
    let runtime = lab.runtime();
    until("the check has noticed", async || {
        let states = runtime.ask("test", "show stat").await.expect("answers");
        states.lines().any(|line| line.starts_with("pg_checked,BACKEND") && line.contains(",DOWN,"))
    })
    .await;
    let client = tokio::spawn(harness::connect(lab.settings.checked.clone()));
    until("it waits", async || runtime.ask("test", "show sess").await.expect("answers").contains("fe=pg_checked_port"))
        .await;
    lab.agent_b.is_primary.store(true, Ordering::SeqCst);
    assert_eq!(client.await.expect("served").server, "B");
    // Once both call themselves primary no standby is left for reads: they go to a primary instead of nowhere.
    lab.agent_a.is_primary.store(true, Ordering::SeqCst);
    until("reads are served without a standby", async || {
        let statistics = runtime.ask("test", "show stat").await.expect("answers");
        let has_no_standby =
            statistics.lines().any(|line| line.starts_with("pg_read,BACKEND") && line.contains(",DOWN,"));
        has_no_standby && harness::served_by(&lab.settings.read).await.is_some()
    })
    .await;
}
