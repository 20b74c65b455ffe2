//! Reads by weight, applications that follow the primary's site, and drift, with a real HAProxy.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::http::StatusCode;
use axum::routing::get;
use rustix::process::Signal;
use stormglass::adapters::haproxy::HaproxyRouter;
use stormglass::domain::command::ProxyAssignment;
use stormglass::domain::ids::{Address, ApplicationName, NodeName, ServerName, SiteName};
use stormglass::domain::traffic::{Application, ApplicationServer, Backends, Member, ReadPolicy};
use stormglass::ports::traffic::{Arrangement, Settled, TrafficRouter};
use tokio::task::JoinSet;

use crate::harness::{self, FakeController, Lab, PATIENCE, assignment, until};
use crate::role::Running;

/// An HTTP server of an application: says its name, and is healthy until told otherwise.
struct Web {
    address: Address,
    is_healthy: Arc<AtomicBool>,
    _tasks: JoinSet<()>,
}

impl Web {
    fn start(lab: &Lab, name: &'static str) -> Self {
        let listener = harness::listener_on(lab.host);
        let address = harness::address_of(&listener);
        listener.set_nonblocking(true).expect("nonblocking");
        let listener = tokio::net::TcpListener::from_std(listener).expect("a runtime");
        let is_healthy = Arc::new(AtomicBool::new(true));
        let flag = Arc::clone(&is_healthy);
        let health = get(
            async move || {
                if flag.load(Ordering::SeqCst) { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
            },
        );
        let router = axum::Router::new().route("/", get(async move || name)).route("/health", health);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let _ended = axum::serve(listener, router).await;
        });
        Self { address, is_healthy, _tasks: tasks }
    }
}

fn site(name: &str) -> SiteName {
    SiteName::new(name).expect("valid")
}

fn shop(port: u16, servers: &[(&str, &str, &Web)]) -> Application {
    let servers = servers.iter().map(|(name, place, web)| ApplicationServer {
        name: ServerName::new(*name).expect("valid"),
        site: site(place),
        address: web.address.clone(),
    });
    Application {
        name: ApplicationName::new("shop").expect("valid"),
        port,
        check: "/health".to_owned(),
        servers: servers.collect(),
    }
}

async fn asked(client: &reqwest::Client, url: &str) -> Option<String> {
    let answer = client.get(url).timeout(Duration::from_secs(2)).send().await.ok()?;
    if answer.status() == StatusCode::OK { answer.text().await.ok() } else { None }
}

/// One connection is kept alive across requests.
fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().pool_max_idle_per_host(1).build().expect("client")
}

async fn settled(router: &HaproxyRouter) {
    until("the file follows", async || router.settle().await.expect("settles") == Settled::Done).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn applications_are_served_from_the_active_site_first_and_follow_it_without_a_reload() {
    let lab = Lab::new();
    let webs = [Web::start(&lab, "e1"), Web::start(&lab, "e2"), Web::start(&lab, "w1")];
    let port = harness::free_address(lab.host).port;
    let application = shop(port, &[("e1", "east", &webs[0]), ("e2", "east", &webs[1]), ("w1", "west", &webs[2])]);
    let (url, client) = (format!("http://{}:{port}/", lab.host), client());
    let from = |place: &str| Arrangement {
        active_site: Some(site(place)),
        applications: vec![application.clone()],
        ..lab.arrangement()
    };
    // Started without: the application comes with a reload, and no active site is known yet.
    let router = lab.router(Some(&lab.a.address)).await;
    let unknown = Arrangement { active_site: None, ..from("east") };
    router.arrange(&unknown).await.expect("arranged");
    settled(&router).await;
    router.arrange(&from("east")).await.expect("arranged");
    let reloads = lab.processes().await.reloads;
    let east = async || asked(&client, &url).await.is_some_and(|name| name.starts_with('e'));
    until("served from east", east).await;

    let begun = tokio::time::Instant::now();
    router.arrange(&from("west")).await.expect("arranged");
    println!("applications moved to the other site in {:?}", begun.elapsed());
    for _ in 0..10 {
        assert_eq!(asked(&client, &url).await.as_deref(), Some("w1"), "a connection that is kept alive follows too");
    }
    settled(&router).await;
    assert_eq!(lab.processes().await.reloads, reloads, "no reload is needed");
    let map = std::fs::read_to_string(lab.settings.map_file()).expect("written");
    assert_eq!(map, "active west\n");

    // The only server of the active site fails: the others take over, and give back.
    webs[2].is_healthy.store(false, Ordering::SeqCst);
    until("served by the backups", east).await;
    let seen = router.inspect().await.expect("inspected");
    let report = &seen.applications[0];
    assert_eq!((report.servers, report.servers_up), (3, 2));
    assert_eq!(report.served_from, Some(site("east")));
    webs[2].is_healthy.store(true, Ordering::SeqCst);
    until("served from west again", async || asked(&client, &url).await.as_deref() == Some("w1")).await;

    // A restart comes up on the active site.
    harness::kill(lab.processes().await.master, Signal::KILL);
    tokio::time::timeout(PATIENCE, router.exited()).await.expect("its end is noticed");
    let next = HaproxyRouter::new(lab.settings.clone());
    next.ensure_running(Some(&lab.a.address), &from("west")).await.expect("starts");
    assert_eq!(next.inspect().await.expect("inspected").active_site, Some(site("west")));
    until("served from west", async || asked(&client, &url).await.as_deref() == Some("w1")).await;
}

fn backends(lab: &Lab, active: &str, primary: &str, applications: Vec<Application>) -> Backends {
    let member = |node: &str, place: &str, server: &Address, agent: &Address| Member {
        node: NodeName::new(node).expect("valid"),
        site: site(place),
        address: Some(server.clone()),
        agent: Some(agent.clone()),
        serves_reads: node != primary,
    };
    Backends {
        active_site: Some(site(active)),
        members: vec![
            member("a", "site-a", &lab.a.address, &lab.agent_a.address),
            member("b", "site-b", &lab.b.address, &lab.agent_b.address),
        ],
        reads: ReadPolicy { max_lag_bytes: 4096, other_site_weight: 10 },
        applications,
    }
}

async fn weights(lab: &Lab) -> Vec<(String, String)> {
    let listed = lab.runtime().ask("test", "show servers state pg_read").await.unwrap_or_default();
    let words = listed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    words
        .filter(|words| words.get(1) == Some(&"pg_read"))
        .map(|words| (words[3].to_owned(), words[7].to_owned()))
        .collect()
}

fn pairs(a: &str, b: &str) -> Vec<(String, String)> {
    [("a", a), ("b", b)].map(|(name, weight)| (name.to_owned(), weight.to_owned())).to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_controllers_word_moves_reads_and_applications_and_drift_is_found_put_right_and_reported() {
    let mut lab = Lab::new();
    let webs = [Web::start(&lab, "a1"), Web::start(&lab, "b1")];
    let port = harness::free_address(lab.host).port;
    let application = shop(port, &[("a1", "site-a", &webs[0]), ("b1", "site-b", &webs[1])]);
    let (url, client) = (format!("http://{}:{port}/", lab.host), client());
    let controller = Arc::new(FakeController::default());
    let word = |epoch: u64, target: &Address, active: &str, primary: &str, lab: &Lab| ProxyAssignment {
        backends: Some(backends(lab, active, primary, vec![application.clone()])),
        ..assignment(epoch, epoch, Some(target), false)
    };
    let first = word(1, &lab.a.address, "site-a", "a", &lab);
    let second = word(2, &lab.b.address, "site-b", "b", &lab);
    *controller.answer.lock().expect("lock") = Some(first.clone());
    let role = Running::start(&mut lab, &controller, None);
    let traffic = async || role.report().await.traffic.unwrap_or_default();

    until("reads and applications are as told", async || {
        // The primary serves no reads; the only standby is in the other site.
        weights(&lab).await == pairs("0", "10") && asked(&client, &url).await.as_deref() == Some("a1")
    })
    .await;
    let file = std::fs::read_to_string(&lab.settings.config_file).expect("written");
    assert!(file.contains("GET /replica?lag=4096\n"), "{file}");
    until("it is settled", async || traffic().await.is_settled).await;
    assert!(traffic().await.haproxy_version.expect("said").starts_with("2."));

    *controller.answer.lock().expect("lock") = Some(second.clone());
    assert_eq!(role.assign(&second).await.error, None);
    until("they follow the primary", async || {
        weights(&lab).await == pairs("100", "0") && asked(&client, &url).await.as_deref() == Some("b1")
    })
    .await;
    until("it is settled", async || {
        let traffic = traffic().await;
        traffic.is_settled && traffic.active_site == Some(site("site-b"))
    })
    .await;
    assert_eq!(traffic().await.repairs, 0, "work under way is no drift");

    // Somebody sets weight and site by hand.
    let map = lab.settings.map_file().display().to_string();
    let by_hand = format!("set server pg_read/a weight 7;set map {map} active site-a");
    lab.runtime().ask("test", &by_hand).await.expect("answers");
    until("put right", async || {
        weights(&lab).await == pairs("100", "0") && asked(&client, &url).await.as_deref() == Some("b1")
    })
    .await;
    until("reported", async || {
        traffic().await.last_repair.is_some_and(|words| words.contains("a has weight 7") && words.contains("site-a"))
    })
    .await;

    // Somebody edits the file, and reloads.
    until("settled again", async || traffic().await.is_settled).await;
    let file = std::fs::read_to_string(&lab.settings.config_file).expect("written");
    let edited = file.replace("balance leastconn", "balance source");
    assert_ne!(edited, file);
    let former = lab.processes().await;
    std::fs::write(&lab.settings.config_file, &edited).expect("edited");
    harness::kill(former.master, Signal::USR2);
    until("the file is the agent's again, and loaded", async || {
        let present = std::fs::read_to_string(&lab.settings.config_file).expect("there");
        let reloads = lab.reloads().await.unwrap_or_default();
        present == file && reloads >= former.reloads + 2 && traffic().await.is_settled
    })
    .await;
    let repaired = traffic().await.last_repair.expect("told");
    assert!(repaired.contains("somebody else") || repaired.contains("is not what the agent wrote"), "{repaired}");
    let kept = std::fs::read_to_string(lab.settings.previous_file()).expect("the version before is kept");
    assert_eq!(kept, edited);
    assert_eq!(lab.connect().await.server, "B");
    role.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_haproxy_that_comes_back_with_an_old_file_is_put_right_and_its_clients_are_led_to_the_primary() {
    let mut lab = Lab::new();
    let controller = Arc::new(FakeController::default());
    *controller.answer.lock().expect("lock") = Some(assignment(1, 1, Some(&lab.a.address), false));
    let role = Running::start(&mut lab, &controller, None);
    until("led to a", async || role.report().await.write_target == Some(lab.a.address.clone())).await;
    until("it is settled", async || role.report().await.traffic.is_some_and(|traffic| traffic.is_settled)).await;
    let old = std::fs::read_to_string(&lab.settings.config_file).expect("written");
    assert_eq!(role.assign(&assignment(2, 2, Some(&lab.b.address), false)).await.error, None);
    *controller.answer.lock().expect("lock") = Some(assignment(2, 2, Some(&lab.b.address), false));
    until("the file follows", async || std::fs::read_to_string(&lab.settings.config_file).expect("there") != old).await;
    // The agent stops, the host comes back from a copy: old file, HAProxy started from it by somebody else.
    role.stop().await;
    std::fs::write(&lab.settings.config_file, &old).expect("restored");
    let master = lab.processes().await.master;
    harness::kill(master, Signal::KILL);
    until("it is gone", async || lab.master().await.is_none()).await;
    until("its workers are gone", async || stormglass::adapters::haproxy::process::running(&lab.settings).is_empty())
        .await;
    let mut child = stormglass::adapters::haproxy::process::start(&lab.settings).expect("starts");
    // A session that is being let in while the agent moves the server is cut like any other.
    let leads_to = async |who: &str| harness::served_by(&lab.settings.write).await.as_deref() == Some(who);
    until("it leads to the former primary", async || lab.master().await.is_some() && leads_to("A").await).await;
    let role = Running::start(&mut lab, &controller, None);
    let write = lab.settings.write.clone();
    until("it leads to the primary", async || harness::served_by(&write).await.as_deref() == Some("B")).await;
    until("the file too", async || {
        let file = std::fs::read_to_string(&lab.settings.config_file).expect("there");
        file.contains(&format!("  server primary {}\n", lab.b.address))
    })
    .await;
    role.stop().await;
    harness::kill(lab.processes().await.master, Signal::KILL);
    child.wait().await.expect("own child");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_reload_that_fails_the_file_is_what_haproxy_runs_with() {
    let lab = Lab::new();
    let router = lab.router(Some(&lab.a.address)).await;
    let web = Web::start(&lab, "e1");
    // `haproxy -c` binds nothing: that the port is taken shows at the reload.
    let taken = harness::listener_on(lab.host);
    let port = harness::address_of(&taken).port;
    let wanted = Arrangement {
        applications: vec![shop(port, &[("e1", "east", &web)])],
        active_site: Some(site("east")),
        ..lab.arrangement()
    };
    router.arrange(&wanted).await.expect("what the runtime API can do");
    let error = router.settle().await.expect_err("the port is taken").to_string();
    assert!(error.contains("the former worker goes on"), "{error}");
    router.redirect(&lab.b.address).await.expect("the runtime API works");
    assert_eq!(lab.connect().await.server, "B");
    let reloads = lab.processes().await.reloads;
    let again = router.settle().await.expect_err("said again").to_string();
    assert_eq!(error, again);
    assert_eq!(lab.processes().await.reloads, reloads, "and not tried twice a second");
    let file = std::fs::read_to_string(&lab.settings.config_file).expect("there");
    assert!(!file.contains("app_shop"), "a restart must come up: {file}");
    assert!(file.contains(&format!("  server primary {}\n", lab.b.address)), "and on the present primary: {file}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_haproxy_that_is_too_old_is_named_and_its_write_port_moved_all_the_same() {
    use std::os::unix::fs::PermissionsExt as _;

    let lab = Lab::new();
    drop(lab.router(Some(&lab.a.address)).await);
    let old = lab.directory.path().join("haproxy-2.2");
    std::fs::write(&old, "#!/bin/sh\necho 'HA-Proxy version 2.2.9-2+deb11u6 2024/01/01 - https://haproxy.org/'\n")
        .expect("written");
    std::fs::set_permissions(&old, std::fs::Permissions::from_mode(0o755)).expect("made executable");
    let mut settings = lab.settings.clone();
    settings.program = Some(old);
    let router = HaproxyRouter::new(settings);
    router.ensure_running(Some(&lab.b.address), &lab.arrangement()).await.expect("adopted as it is");
    router.redirect(&lab.b.address).await.expect("through the runtime API");
    assert_eq!(lab.connect().await.server, "B");
    let error = router.settle().await.expect_err("too old").to_string();
    assert!(error.contains("HAProxy 2.2.9-2+deb11u6 is older than 2.4") && error.contains("upgrade it"), "{error}");
}
