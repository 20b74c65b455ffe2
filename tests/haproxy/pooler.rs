//! PgBouncer in transaction mode in front of the write port: what its clients see of a planned move, for real.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use stormglass::adapters::pgbouncer::{Pgbouncer, PgbouncerSettings};
use stormglass::config::agent::PgbouncerSection;
use stormglass::domain::ids::Address;
use stormglass::domain::traffic::PoolerReport;
use stormglass::ports::traffic::Pooler;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval};
use tokio_postgres::{Client, NoTls};

use crate::harness::{self, FakeController, Lab, PATIENCE, assignment, until};
use crate::role::Running;
use crate::verify::{self, Postgres};

/// Clients and their rhythm: 200 transactions a second together.
const CLIENTS: u64 = 8;
const RHYTHM: Duration = Duration::from_millis(40);
const BOUND: Duration = Duration::from_millis(500);

/// The PgBouncer of the proxy host. It refuses root as PostgreSQL does.
struct Bouncer {
    address: Address,
    server: Child,
    mark: PathBuf,
    directory: TempDir,
}

impl Bouncer {
    fn start(lab: &Lab) -> Self {
        let directory = tempfile::Builder::new().prefix("sg-pb-").tempdir_in("/tmp").expect("a directory");
        let address = harness::free_address(lab.host);
        let write = &lab.settings.write;
        let settings = format!(
            "[databases]\n* = host={} port={} user=postgres\n[pgbouncer]\nlisten_addr = {}\nlisten_port = {}\nunix_socket_dir =\n\
             auth_type = any\nadmin_users = operator\npool_mode = transaction\nmax_client_conn = 200\n\
             default_pool_size = 20\nserver_login_retry = 1\nlogfile = {}\npidfile =\n",
            write.host,
            write.port,
            address.host,
            address.port,
            directory.path().join("log").display(),
        );
        let file = directory.path().join("pgbouncer.ini");
        std::fs::write(&file, settings).expect("written");
        let mut command = Command::new("pgbouncer");
        command.arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if rustix::process::geteuid().is_root() {
            let (uid, gid) = verify::postgres_user();
            for path in [directory.path(), &file] {
                std::os::unix::fs::chown(path, Some(uid), Some(gid)).expect("root may");
            }
            command.uid(uid).gid(gid);
        }
        let server = command.spawn().expect("pgbouncer is installed");
        Self { address, server, mark: directory.path().join("paused"), directory }
    }

    fn section(&self) -> PgbouncerSection {
        PgbouncerSection {
            admin: self.address.clone(),
            user: "operator".to_owned(),
            password: None,
            databases: Vec::new(),
            pause_timeout: BOUND,
        }
    }

    fn pooler(&self) -> Arc<dyn Pooler> {
        Arc::new(Pgbouncer::new(PgbouncerSettings {
            admin: self.address.clone(),
            user: "operator".to_owned(),
            password: None,
            databases: Vec::new(),
            mark: self.mark.clone(),
        }))
    }

    fn signal(&self, signal: Signal) {
        harness::kill(i32::try_from(self.server.id()).expect("a pid fits"), signal);
    }

    async fn connect(&self) -> Result<Client, String> {
        let mut config = tokio_postgres::Config::new();
        config.host(&self.address.host).port(self.address.port).user("postgres").dbname("postgres");
        let (client, connection) = config.connect(NoTls).await.map_err(|error| words(&error))?;
        tokio::spawn(connection);
        Ok(client)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Bouncer {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        self.server.wait().expect("own child");
    }
}

fn words(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |said| said.message().to_owned())
}

async fn transaction(client: &Client) -> Result<(), String> {
    for statement in ["begin", "select pg_current_xact_id()", "commit"] {
        client.simple_query(statement).await.map_err(|error| words(&error))?;
    }
    Ok(())
}

/// Clients of PgBouncer that work until told to stop.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    transactions: AtomicU64,
    longest_milliseconds: AtomicU64,
}

fn work(bouncer: &Bouncer, load: &Arc<Load>) -> JoinSet<Result<(), String>> {
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let (address, load) = (bouncer.address.clone(), Arc::clone(load));
        clients.spawn(async move {
            let mut config = tokio_postgres::Config::new();
            config.host(&address.host).port(address.port).user("postgres").dbname("postgres");
            let (client, connection) = config.connect(NoTls).await.map_err(|error| words(&error))?;
            tokio::spawn(connection);
            let mut rhythm = interval(RHYTHM);
            while !load.stop.load(Ordering::SeqCst) {
                rhythm.tick().await;
                let begun = Instant::now();
                transaction(&client).await?;
                let took = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                load.longest_milliseconds.fetch_max(took, Ordering::SeqCst);
                load.transactions.fetch_add(1, Ordering::SeqCst);
            }
            Ok(())
        });
    }
    clients
}

struct Scene {
    lab: Lab,
    a: Postgres,
    b: Postgres,
    bouncer: Bouncer,
    controller: Arc<FakeController>,
}

impl Scene {
    /// Both servers accept, HAProxy leads to the first one, and PgBouncer serves.
    async fn set() -> (Self, Running) {
        let mut lab = Lab::new();
        let (a, b) = (Postgres::start(lab.host), Postgres::start(lab.host));
        let bouncer = Bouncer::start(&lab);
        lab.pooler = Some((bouncer.section(), bouncer.pooler()));
        let controller = Arc::new(FakeController::default());
        *controller.answer.lock().expect("lock") = Some(assignment(1, 1, Some(&a.address), false));
        let role = Running::start(&mut lab, &controller, None);
        for server in [&a, &b] {
            let direct =
                format!("host={} port={} user=postgres dbname=postgres", server.address.host, server.address.port);
            until("PostgreSQL accepts", async || tokio_postgres::connect(&direct, NoTls).await.is_ok()).await;
        }
        let scene = Self { lab, a, b, bouncer, controller };
        until("PgBouncer serves", async || match scene.bouncer.connect().await {
            Ok(client) => transaction(&client).await.is_ok(),
            Err(_) => false,
        })
        .await;
        (scene, role)
    }

    fn word(&self, epoch: u64, target: &Address, hold: bool) -> stormglass::domain::command::ProxyAssignment {
        let word = assignment(epoch, epoch, Some(target), hold);
        *self.controller.answer.lock().expect("lock") = Some(word.clone());
        word
    }
}

async fn pooler(role: &Running) -> PoolerReport {
    role.report().await.traffic.and_then(|traffic| traffic.pooler).expect("there is one")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switchover_costs_clients_of_pgbouncer_no_error() {
    let (mut scene, role) = Scene::set().await;
    let load = Arc::new(Load::default());
    let mut clients = work(&scene.bouncer, &load);
    until("transactions flow", async || load.transactions.load(Ordering::SeqCst) > 100).await;

    let begun = Instant::now();
    let held = role.assign(&scene.word(1, &scene.a.address.clone(), true)).await;
    assert!(held.report.holding && held.error.is_none(), "{held:?}");
    assert!(pooler(&role).await.is_paused);
    scene.a.stop_fast();
    let led = role.assign(&scene.word(2, &scene.b.address.clone(), false)).await;
    assert_eq!(led.error, None);
    println!("held for {:?}", begun.elapsed());
    let since = load.transactions.load(Ordering::SeqCst);
    until("transactions flow again", async || load.transactions.load(Ordering::SeqCst) > since + 100).await;
    load.stop.store(true, Ordering::SeqCst);
    while let Some(ended) = clients.join_next().await {
        ended.expect("no panic").unwrap_or_else(|error| panic!("a client saw {error}\n{}", scene.bouncer.log()));
    }
    let (count, longest) = (load.transactions.load(Ordering::SeqCst), load.longest_milliseconds.load(Ordering::SeqCst));
    println!("{count} transactions, the longest took {longest} ms, no error");
    assert!(!scene.bouncer.mark.exists());
    role.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_that_hangs_is_bounded_and_nothing_is_left_paused() {
    let (mut scene, mut role) = Scene::set().await;
    let (a, b) = (scene.a.address.clone(), scene.b.address.clone());

    // A transaction that does not end: the hold is answered within its bound, and taken back without a trace.
    let open = scene.bouncer.connect().await.expect("served");
    open.simple_query("begin; select 1").await.expect("begun");
    let begun = Instant::now();
    let held = role.assign(&scene.word(1, &a, true)).await;
    let took = begun.elapsed();
    println!("a hold with a transaction that does not end was answered after {took:?}");
    assert!(took >= BOUND && took < PATIENCE / 2, "{took:?}");
    assert!(held.report.holding);
    let problem = pooler(&role).await.problem.expect("said");
    assert!(problem.contains("transactions have not ended"), "{problem}");
    assert!(scene.bouncer.mark.exists());
    let released = role.assign(&scene.word(1, &a, false)).await;
    assert_eq!(released.error, None);
    open.simple_query("commit").await.expect("the open transaction was not touched");
    let other = scene.bouncer.connect().await.expect("served");
    transaction(&other).await.expect("others are let through");
    until("no mark is left", async || !scene.bouncer.mark.exists()).await;

    // The agent dies while PgBouncer is paused: the next one resumes it, though the hold stays.
    assert!(role.assign(&scene.word(1, &a, true)).await.report.holding);
    assert!(pooler(&role).await.is_paused);
    role.stop().await;
    scene.lab.pooler = Some((scene.bouncer.section(), scene.bouncer.pooler()));
    role = Running::start(&mut scene.lab, &scene.controller, None);
    until("resumed", async || !scene.bouncer.mark.exists()).await;
    assert_eq!(role.assign(&scene.word(2, &a, false)).await.error, None);
    transaction(&other).await.expect("served");

    // PgBouncer itself hangs: the move goes on within its bound, and what it reads when it wakes up is undone.
    scene.bouncer.signal(Signal::STOP);
    let begun = Instant::now();
    assert!(role.assign(&scene.word(2, &a, true)).await.report.holding);
    let led = role.assign(&scene.word(3, &b, false)).await;
    assert_eq!((led.error, led.report.write_target), (None, Some(b.clone())));
    println!("hold and redirect beside a stopped PgBouncer: {:?}", begun.elapsed());
    assert!(begun.elapsed() < PATIENCE / 2);
    until("it is told that it may still be paused", async || pooler(&role).await.problem.is_some()).await;
    scene.bouncer.signal(Signal::CONT);
    until("resumed", async || !scene.bouncer.mark.exists()).await;
    let third = scene.bouncer.connect().await.expect("served");
    tokio::time::timeout(PATIENCE, transaction(&third)).await.expect("in time").expect("served");
    until("nothing is wrong any more", async || pooler(&role).await == PoolerReport::default()).await;
    role.stop().await;
}
