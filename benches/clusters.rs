//! A thousand clusters of three nodes on one controller: what it needs while every agent reports once a second over a connection of its
//! own. `make bench-clusters`; `CLUSTERS` and `SECONDS` ask for less.
//!
//! The controller is the built program; agents are simulated, with the agent of `tests/sagas`, and obey as real ones do. Nothing is said
//! about PostgreSQL here.

#[path = "../tests/sagas/agent.rs"]
#[allow(dead_code, reason = "the sagas use the rest")]
mod agent;

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agent::{Agent, Postgres, cluster as main_cluster, node};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path as RoutePath, State};
use axum::http::header::HOST;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;
use stormglass::adapters::store::SqliteStore;
use stormglass::domain::command::{Assignment, CommandEnvelope, CommandReply, HeartbeatReply};
use stormglass::domain::report::StandbyRow;
use stormglass::domain::*;
use stormglass::ports::Store as _;
use tokio::net::TcpListener;

const PROGRAM: &str = env!("CARGO_BIN_EXE_stormglass");
/// Names of the nodes; the first one is the primary.
const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// Each agent reports so often: with the timers of `rto = "10s"`.
const BEAT: Duration = Duration::from_secs(1);
const RTO: &str = "10s";
/// How long the clusters may take until all of them are healthy.
const PATIENCE: Duration = Duration::from_secs(150);
/// What the controller may need.
const CORES_MAX: f64 = 1.0;
const BYTES_MAX: u64 = 500_000_000;

/// One cluster's nodes.
struct Cluster {
    number: usize,
    name: ClusterName,
    agents: [Agent; 3],
}

/// All that the agents share.
struct World {
    clusters: Vec<Mutex<Cluster>>,
    beats: AtomicU64,
    failures: AtomicU64,
    /// Beats at which a primary's lease had run out.
    lapsed: AtomicU64,
    waits: Mutex<Vec<Duration>>,
    is_measured: AtomicBool,
    last_failure: Mutex<String>,
}

fn now() -> Moment {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).expect("after the boot");
    Moment(seconds * 1_000_000 + u64::try_from(time.tv_nsec).expect("not negative") / 1_000)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cluster {
    fn new(number: usize) -> Self {
        let name = ClusterName::new(format!("c{number:04}")).expect("valid");
        let agents = NODES.map(|name| {
            let postgres = if name == NODES[0] { Postgres::Primary } else { Postgres::Standby };
            let mut agent = Agent::new(name, "a", postgres, Lsn(0x100_0000));
            agent.standing.highest_epoch = Epoch(1);
            agent.standing.highest_number = RecordNumber(1);
            if name == NODES[0] {
                agent.standing.consented = Some(Epoch(1));
            } else {
                agent.follows = Some(node(NODES[0]));
            }
            agent
        });
        Self { number, name, agents }
    }

    fn record(&self) -> ClusterRecord {
        ClusterRecord {
            holder_confirmed: true,
            ..ClusterRecord::first(
                self.name.clone(),
                agent::IDENTIFIER,
                node(NODES[0]),
                postgres_of(self.number, 0),
                DurabilityMode::Sync,
            )
        }
    }

    /// What the node at `place` says now. A primary has written since it spoke last, and its standbys have it.
    fn report(&mut self, place: usize) -> Report {
        let at = now();
        let mut rows = Vec::new();
        if place == 0 {
            let written = Lsn(self.agents[0].lsn.0 + 0x100);
            let named = self.agents[0].synchronous.clone().map_or_else(Vec::new, |applied| applied.names);
            for agent in &mut self.agents {
                agent.lsn = written;
            }
            rows.extend(self.agents[1..].iter().map(|standby| StandbyRow {
                node: standby.name.to_string(),
                state: "streaming".to_owned(),
                sync_state: if named.contains(&standby.name) { "sync" } else { "async" }.to_owned(),
                flush_lsn: Some(written),
                replay_lsn: Some(written),
            }));
        }
        let mut report = self.agents[place].report(at, rows, place > 0);
        report.cluster = self.name.clone();
        report.address = postgres_of(self.number, place);
        report
    }
}

/// The loopback address of an agent. An agent's URL has no path, so only the address tells one from another; all share a port.
fn host_of(number: usize, place: usize) -> Ipv4Addr {
    let octet = |value: usize| u8::try_from(value).expect("fewer than 62,500 clusters of three nodes");
    Ipv4Addr::new(127, octet(place + 1), octet(number / 250), octet(number % 250 + 1))
}

/// Where a node's PostgreSQL would listen: nobody does. A name in its place would be looked up, which is not what is measured.
fn postgres_of(number: usize, place: usize) -> Address {
    Address::new(host_of(number, place).to_string(), 5432)
}

/// Which cluster's agent, and which of its three, a request is for.
fn whose(headers: &HeaderMap) -> Option<(usize, usize)> {
    let (host, _port) = headers.get(HOST)?.to_str().ok()?.split_once(':')?;
    let [_, place, high, low] = host.parse::<Ipv4Addr>().ok()?.octets().map(usize::from);
    Some((high * 250 + low.checked_sub(1)?, place.checked_sub(1)?))
}

/// What the controller tells an agent.
async fn told(
    State(world): State<Arc<World>>,
    RoutePath(word): RoutePath<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let Some((number, place)) = whose(&headers) else { return StatusCode::NOT_FOUND.into_response() };
    let mut cluster = locked(&world.clusters[number]);
    match word.as_str() {
        "assignment" => match serde_json::from_slice::<Assignment>(&body) {
            Ok(assignment) => {
                cluster.agents[place].assigned(&assignment, true);
                axum::Json(json!({})).into_response()
            }
            Err(error) => (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
        },
        "command" => match serde_json::from_slice::<CommandEnvelope>(&body) {
            Ok(mut envelope) => {
                envelope.cluster = main_cluster();
                let state = cluster.agents[place].command(&envelope, now());
                let report = cluster.report(place);
                axum::Json(CommandReply { state, report: Some(Box::new(report)) }).into_response()
            }
            Err(error) => (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
        },
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

/// One agent, for ever.
async fn beat(world: Arc<World>, number: usize, place: usize, url: String, token: String) {
    // A connection of its own, as every agent has.
    let client = reqwest::Client::builder().no_proxy().tcp_nodelay(true).timeout(BEAT).build().expect("a client");
    let name = locked(&world.clusters[number]).name.clone();
    let address = format!("{url}/api/v1/clusters/{name}/heartbeat");
    // Agents do not report in step.
    let agents = world.clusters.len() * NODES.len();
    let offset = BEAT.mul_f64((number * NODES.len() + place) as f64 / agents as f64);
    let mut due = tokio::time::interval_at(tokio::time::Instant::now() + offset, BEAT);
    loop {
        due.tick().await;
        let report = locked(&world.clusters[number]).report(place);
        let sent_at = report.sent_at;
        let is_measured = world.is_measured.load(Ordering::Relaxed);
        if is_measured && place == 0 && report.standing.lease_remaining.is_none_or(|left| left.is_zero()) {
            world.lapsed.fetch_add(1, Ordering::Relaxed);
        }
        let answer = async {
            let answer = client.post(&address).bearer_auth(&token).json(&report).send().await?.error_for_status()?;
            answer.json::<HeartbeatReply>().await
        };
        match answer.await {
            Ok(reply) => {
                let mut cluster = locked(&world.clusters[number]);
                let agent = &mut cluster.agents[place];
                if let Some(assignment) = &reply.assignment {
                    agent.assigned(assignment, true);
                }
                if let Some(grant) = reply.grant.filter(|grant| agent.standing.consented == Some(grant.epoch)) {
                    agent.lease = Some((grant.epoch, sent_at.plus(grant.timers.lease)));
                }
                if is_measured {
                    world.beats.fetch_add(1, Ordering::Relaxed);
                    locked(&world.waits).push(now().since(sent_at));
                }
            }
            Err(error) => {
                if is_measured {
                    world.failures.fetch_add(1, Ordering::Relaxed);
                }
                *locked(&world.last_failure) = format!("{error:?}");
            }
        }
    }
}

/// A controller that ends with the bench.
struct Controller(Child);

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Controller {
    /// Processor time used so far, in seconds.
    fn processor_seconds(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0.id())).expect("it runs");
        let (_, after) = stat.rsplit_once(')').expect("the form of the kernel");
        let fields: Vec<&str> = after.split_whitespace().collect();
        let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().expect("a number")).sum();
        ticks as f64 / rustix::param::clock_ticks_per_second() as f64
    }

    /// The most memory that it has had so far, in bytes.
    fn most_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the form of the kernel");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }
}

fn number_of(variable: &str, otherwise: u64) -> u64 {
    #[expect(clippy::disallowed_methods, reason = "a bench has no arguments of its own")]
    let given = std::env::var(variable).ok();
    given.map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no whole number")))
}

/// Configurations and stores of all clusters, as they would be after months.
async fn lay_out(place: &Path, clusters: &[Mutex<Cluster>], listen: &str, agents_port: u16) -> PathBuf {
    let (configurations, data) = (place.join("clusters"), place.join("data"));
    fs::create_dir(&configurations).expect("made");
    fs::write(place.join("token"), "the-token-of-all-agents").expect("written");
    fs::write(place.join("admin"), "the-token-of-the-bench").expect("written");
    for (number, cluster) in clusters.iter().enumerate() {
        let (name, record) = {
            let cluster = locked(cluster);
            (cluster.name.clone(), cluster.record())
        };
        let nodes: String = (0..NODES.len())
            .map(|at| {
                let host = host_of(number, at);
                format!("[[node]]\nname = \"{}\"\nsite = \"a\"\nagent = \"http://{host}:{agents_port}\"\n", NODES[at])
            })
            .collect();
        let text = format!(
            "[controller]\nname = \"bench\"\nlisten = \"{listen}\"\ndata_directory = \"{data}\"\n\
             [cluster]\nname = \"{name}\"\n[failover]\nrto = \"{RTO}\"\n\
             [authentication]\nagent_token = \"file:{place}/token\"\nrequests_per_second = 100000\n\
             [[authentication.token]]\nname = \"bench\"\nrole = \"admin\"\nsecret = \"file:{place}/admin\"\n{nodes}",
            data = data.display(),
            place = place.display(),
        );
        fs::write(configurations.join(format!("{name}.toml")), text).expect("written");
        let directory = if number == 0 { data.clone() } else { data.join("clusters").join(name.as_str()) };
        fs::create_dir_all(&directory).expect("made");
        let store = SqliteStore::open(&directory.join("stormglass.db")).expect("a new store");
        store.swap_record(None, &record).await.expect("stored");
    }
    configurations
}

/// How many clusters are healthy by the controller's word.
async fn healthy(client: &reqwest::Client, url: &str) -> usize {
    let asked = client.get(format!("{url}/api/v1/clusters")).bearer_auth("the-token-of-the-bench").send().await;
    let Ok(answer) = asked else { return 0 };
    let Ok(list) = answer.json::<Vec<serde_json::Value>>().await else { return 0 };
    list.iter().filter(|status| status["health"] == "healthy").count()
}

fn main() {
    // `cargo test --benches` would run it as a test.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    tokio::runtime::Runtime::new().expect("a runtime").block_on(bench());
}

async fn bench() {
    let (count, seconds) = (number_of("CLUSTERS", 1_000) as usize, number_of("SECONDS", 60));
    let place = tempfile::tempdir().expect("a temporary directory");
    let world = Arc::new(World {
        clusters: (0..count).map(|number| Mutex::new(Cluster::new(number))).collect(),
        beats: AtomicU64::new(0),
        failures: AtomicU64::new(0),
        lapsed: AtomicU64::new(0),
        waits: Mutex::new(Vec::new()),
        is_measured: AtomicBool::new(false),
        last_failure: Mutex::new(String::new()),
    });
    let listener = TcpListener::bind("0.0.0.0:0").await.expect("a port");
    let agents_port = listener.local_addr().expect("bound").port();
    let routes = Router::new().route("/v1/{word}", post(told)).with_state(world.clone());
    tokio::spawn(async move { axum::serve(listener, routes).await });
    // The kernel chooses a port; nobody else takes it in the moment until the controller does.
    let listen = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("bound").to_string();
    let url = format!("http://{listen}");
    eprintln!("{count} clusters: configurations and stores");
    let configurations = lay_out(place.path(), &world.clusters, &listen, agents_port).await;
    let log = fs::File::create(place.path().join("controller.log")).expect("made");
    let mut command = Command::new(PROGRAM);
    command.args(["controller", "--config"]).arg(configurations).env("RUST_LOG", "warn");
    command.stdin(Stdio::null()).stdout(log.try_clone().expect("twice")).stderr(log);
    let controller = Controller(command.spawn().expect("started"));

    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let began = now();
    let log = || fs::read_to_string(place.path().join("controller.log")).unwrap_or_default();
    while client.get(format!("{url}/ready")).send().await.is_err() {
        assert!(now().since(began) < PATIENCE, "the controller does not answer\n{}", log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let started = now().since(began);
    eprintln!("the controller answers after {:.1} s", started.as_secs_f64());
    for number in 0..count {
        for at in 0..NODES.len() {
            tokio::spawn(beat(world.clone(), number, at, url.clone(), "the-token-of-all-agents".to_owned()));
        }
    }
    loop {
        let well = healthy(&client, &url).await;
        if well == count {
            break;
        }
        assert!(
            now().since(began) < PATIENCE,
            "{well} of {count} clusters are healthy; last failure: {}\n{}",
            locked(&world.last_failure),
            log().lines().rev().take(20).collect::<Vec<_>>().join("\n")
        );
        tokio::time::sleep(BEAT).await;
    }
    eprintln!("all are healthy after {:.1} s; measuring for {seconds} s", now().since(began).as_secs_f64());
    let (before, at) = (controller.processor_seconds(), now());
    world.is_measured.store(true, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    world.is_measured.store(false, Ordering::Relaxed);
    let lasted = now().since(at).as_secs_f64();
    let cores = (controller.processor_seconds() - before) / lasted;
    let bytes = controller.most_bytes();
    let well = healthy(&client, &url).await;
    let mut waits = std::mem::take(&mut *locked(&world.waits));
    waits.sort();
    let part = |part: f64| waits.get((waits.len().saturating_sub(1) as f64 * part) as usize).map(Duration::as_secs_f64);
    let (beats, failures) = (world.beats.load(Ordering::Relaxed), world.failures.load(Ordering::Relaxed));
    let lapsed = world.lapsed.load(Ordering::Relaxed);
    let holds = cores <= CORES_MAX && bytes <= BYTES_MAX && well == count && failures == 0 && lapsed == 0;
    let report = json!({
        "clusters": count, "nodes": count * NODES.len(), "seconds": lasted,
        "heartbeats_per_second": beats as f64 / lasted, "failed_heartbeats": failures, "lapsed_leases": lapsed,
        "heartbeat_p50_seconds": part(0.5), "heartbeat_p99_seconds": part(0.99), "heartbeat_max_seconds": part(1.0),
        "controller_cores": cores, "controller_bytes": bytes, "healthy_at_the_end": well, "start_seconds": started.as_secs_f64(),
        "cores_max": CORES_MAX, "bytes_max": BYTES_MAX, "holds": holds,
    });
    println!("{report:#}");
    drop(controller);
    assert!(
        holds,
        "more was needed than may be, or a cluster was not well; last failure: {}",
        locked(&world.last_failure)
    );
}
