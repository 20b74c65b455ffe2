//! A real HAProxy with little servers behind it, for the tests in `haproxy.rs`.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use axum::http::StatusCode;
use axum::routing::get;
use rustix::process::{Pid, Signal, kill_process};
use stormglass::adapters::haproxy::process;
use stormglass::adapters::haproxy::socket::{MasterSocket, Processes, RuntimeSocket};
use stormglass::adapters::haproxy::{
    FileMemory, HaproxyRouter, HaproxySettings, HttpNodeHealth, PostgresWriteVerifier, VerifyCredentials,
};
use stormglass::adapters::system::SystemClock;
use stormglass::adapters::tls::Tls;
use stormglass::agent::proxy::ProxyParts;
use stormglass::api::agent::{Gate, serve};
use stormglass::api::entrance::Door;
use stormglass::config::agent::{PgbouncerSection, ProxyNode, ProxySection};
use stormglass::domain::command::{ProxyAssignment, ProxyTarget};
use stormglass::domain::epoch::{Epoch, RecordNumber};
use stormglass::domain::ids::{Address, ClusterName, NodeName, ProxyName, SiteName};
use stormglass::domain::report::ProxyReport;
use stormglass::domain::traffic::READ_WEIGHT;
use stormglass::ports::traffic::{Arrangement, Pooler, ProxyControllerLink, ReadServer};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// Far more than anything here takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);
pub const CONNECT_TIMEOUT: Duration = Duration::from_millis(20);
pub const TOKEN: &str = "agent-token";

/// Waits for a condition with a deadline.
pub async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let end = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < end, "never came: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// A loopback address that no other test and no outgoing connection uses, so that its free ports stay free.
fn own_host() -> Ipv4Addr {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let next = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    Ipv4Addr::new(127, 64 | (high & 0x3f), low, next[3])
}

pub fn listener_on(host: Ipv4Addr) -> TcpListener {
    TcpListener::bind((host, 0)).expect("a free port")
}

pub fn address_of(listener: &TcpListener) -> Address {
    let bound = listener.local_addr().expect("bound");
    Address::new(bound.ip().to_string(), bound.port())
}

pub fn free_address(host: Ipv4Addr) -> Address {
    address_of(&listener_on(host))
}

/// Greets every connection with its name and keeps it open.
pub struct Server {
    pub address: Address,
    pub sessions: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Server {
    pub fn start(listener: TcpListener, name: &'static str) -> Self {
        let address = address_of(&listener);
        listener.set_nonblocking(true).expect("nonblocking");
        let listener = tokio::net::TcpListener::from_std(listener).expect("a runtime");
        let sessions = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&sessions);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let count = Arc::clone(&count);
                open.spawn(async move {
                    count.fetch_add(1, Ordering::SeqCst);
                    let greeted = stream.write_all(name.as_bytes()).await;
                    if greeted.is_ok() {
                        let _closed = stream.read(&mut [0; 16]).await;
                    }
                    count.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { address, sessions, _tasks: tasks }
    }
}

/// Health paths of a node's agent.
pub struct FakeAgent {
    pub address: Address,
    pub is_primary: Arc<AtomicBool>,
    _tasks: JoinSet<()>,
}

impl FakeAgent {
    pub fn start(host: Ipv4Addr, is_primary: bool, tls: Option<&Tls>) -> Self {
        let listener = listener_on(host);
        let address = address_of(&listener);
        let door = Door::new(listener, tls.map(Tls::server));
        let is_primary = Arc::new(AtomicBool::new(is_primary));
        let answer =
            |wanted: bool| {
                let flag = Arc::clone(&is_primary);
                get(async move || {
                    if flag.load(Ordering::SeqCst) == wanted { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
                })
            };
        let router = axum::Router::new().route("/primary", answer(true)).route("/replica", answer(false));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let _ended = serve(door, router, std::future::pending()).await;
        });
        Self { address, is_primary, _tasks: tasks }
    }
}

/// A controller that answers what it is told to, or not at all.
#[derive(Default)]
pub struct FakeController {
    pub answer: Mutex<Option<ProxyAssignment>>,
    pub reports: Mutex<Vec<ProxyReport>>,
}

#[async_trait]
impl ProxyControllerLink for FakeController {
    async fn heartbeat(&self, report: &ProxyReport, _timeout: Duration) -> Result<ProxyAssignment, String> {
        self.reports.lock().expect("lock").push(report.clone());
        self.answer.lock().expect("lock").clone().ok_or_else(|| "silent".to_owned())
    }
}

/// Two nodes, their agents, and a place for HAProxy.
pub struct Lab {
    pub directory: TempDir,
    pub host: Ipv4Addr,
    pub settings: HaproxySettings,
    pub a: Server,
    pub b: Server,
    pub agent_a: FakeAgent,
    pub agent_b: FakeAgent,
    pub agent: Address,
    agent_listener: Option<TcpListener>,
    /// The PgBouncer of the proxy host, if the role is to have one.
    pub pooler: Option<(PgbouncerSection, Arc<dyn Pooler>)>,
}

impl Lab {
    pub fn new() -> Self {
        Self::with(None)
    }

    /// Agents that speak TLS, each with this certificate, and a HAProxy that believes `authorities`.
    pub fn secured(agents: &Tls, authorities: PathBuf) -> Self {
        Self::with(Some((agents, authorities)))
    }

    fn with(tls: Option<(&Tls, PathBuf)>) -> Self {
        let directory = tempfile::Builder::new().prefix("sg-").tempdir_in("/tmp").expect("a short path");
        let host = own_host();
        let (a, b) = (Server::start(listener_on(host), "A"), Server::start(listener_on(host), "B"));
        let (agents, authorities) = tls.unzip();
        let (agent_a, agent_b) = (FakeAgent::start(host, true, agents), FakeAgent::start(host, false, agents));
        // All at once: a port that is given back may be the next one given out.
        let agent_listener = listener_on(host);
        let agent = address_of(&agent_listener);
        let free: [TcpListener; 4] = std::array::from_fn(|_| listener_on(host));
        let [write, read, checked, stats] = free.each_ref().map(address_of);
        drop(free);
        let settings = HaproxySettings {
            name: ProxyName::new("proxy-a").expect("valid"),
            cluster: cluster(),
            stats_socket: directory.path().join("stats.sock"),
            master_socket: directory.path().join("master.sock"),
            config_file: directory.path().join("haproxy.cfg"),
            template: None,
            write,
            read,
            checked,
            stats,
            authorities,
            manage_process: true,
            program: None,
            connect_timeout: CONNECT_TIMEOUT,
            connections_max: 500,
            answer_timeout: Duration::from_secs(2),
        };
        Self {
            directory,
            host,
            settings,
            a,
            b,
            agent_a,
            agent_b,
            agent,
            agent_listener: Some(agent_listener),
            pooler: None,
        }
    }

    /// A router whose HAProxy runs and leads to `target`.
    pub async fn router(&self, target: Option<&Address>) -> HaproxyRouter {
        use stormglass::ports::traffic::TrafficRouter as _;
        let router = HaproxyRouter::new(self.settings.clone());
        router.ensure_running(target, &self.arrangement()).await.expect("haproxy starts");
        router
    }

    /// Both nodes, and nothing else.
    pub fn arrangement(&self) -> Arrangement {
        let node = |name: &str, address: &Address, agent: &Address| ReadServer {
            node: NodeName::new(name).expect("valid"),
            address: address.clone(),
            agent: agent.clone(),
            weight: READ_WEIGHT,
        };
        let nodes = [("a", &self.a, &self.agent_a), ("b", &self.b, &self.agent_b)];
        Arrangement {
            nodes: nodes.map(|(name, server, agent)| node(name, &server.address, &agent.address)).to_vec(),
            ..Arrangement::default()
        }
    }

    pub fn runtime(&self) -> RuntimeSocket {
        RuntimeSocket::new(&self.settings.stats_socket, PATIENCE)
    }

    /// The master's process, if it answers now.
    pub async fn master(&self) -> Option<i32> {
        let socket = MasterSocket::new(&self.settings.master_socket, PATIENCE);
        socket.processes("test").await.ok().map(|processes| processes.master)
    }

    /// How often it was reloaded, if it answers now.
    pub async fn reloads(&self) -> Option<u64> {
        let socket = MasterSocket::new(&self.settings.master_socket, PATIENCE);
        socket.processes("test").await.ok().map(|processes| processes.reloads)
    }

    pub async fn processes(&self) -> Processes {
        MasterSocket::new(&self.settings.master_socket, PATIENCE).processes("test").await.expect("master answers")
    }

    /// The parts of the role, with everything real but the controller.
    pub fn parts(&mut self, link: Arc<FakeController>, verify: Option<&str>) -> ProxyParts {
        let settings = &self.settings;
        let arrangement = self.arrangement();
        let nodes = arrangement.nodes.iter().map(|node| ProxyNode {
            name: node.node.clone(),
            address: node.address.clone(),
            server_address: None,
            agent: node.agent.clone(),
        });
        let section = ProxySection {
            name: settings.name.clone(),
            stats_socket: settings.stats_socket.clone(),
            master_socket: settings.master_socket.clone(),
            config_file: settings.config_file.clone(),
            template: None,
            write: settings.write.clone(),
            read: settings.read.clone(),
            checked: settings.checked.clone(),
            stats: settings.stats.clone(),
            nodes: nodes.collect(),
            manage_process: true,
            connect_timeout: settings.connect_timeout,
            verify: None,
            pgbouncer: self.pooler.as_ref().map(|(section, _)| section.clone()),
        };
        let credentials = verify.map(|user| VerifyCredentials {
            user: user.to_owned(),
            password: None,
            database: "postgres".to_owned(),
        });
        ProxyParts {
            cluster: cluster(),
            site: SiteName::new("site-a").expect("valid"),
            gate: Gate::token(TOKEN),
            protection: tokio::sync::watch::channel(Default::default()).1,
            incarnation: "test".to_owned(),
            clock: Arc::new(SystemClock::new().expect("clocks")),
            router: Arc::new(HaproxyRouter::new(settings.clone())),
            verifier: credentials
                .map(|credentials| Arc::new(PostgresWriteVerifier::new(&section.write, &credentials)) as Arc<_>),
            pooler: self.pooler.as_ref().map(|(_, pooler)| pooler.clone()),
            health: Arc::new(HttpNodeHealth::new(None).expect("client")),
            link,
            memory: Arc::new(FileMemory::new(self.directory.path().join("proxy.json"))),
            door: self.agent_listener.take().unwrap_or_else(|| rebind(&self.agent)).into(),
            section,
        }
    }

    pub fn connect(&self) -> impl Future<Output = Session> + Send + 'static {
        connect(self.settings.write.clone())
    }
}

fn rebind(address: &Address) -> TcpListener {
    let address: SocketAddr = address.to_string().parse().expect("literal");
    TcpListener::bind(address).expect("the former listener is closed")
}

impl Drop for Lab {
    fn drop(&mut self) {
        for pid in process::running(&self.settings) {
            let _gone_already = kill_process(Pid::from_raw(pid).expect("a pid"), Signal::KILL);
        }
    }
}

pub fn kill(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).expect("a pid"), signal).expect("own process");
}

/// Stops a process and waits until it stands still.
pub async fn freeze(pid: i32) {
    kill(pid, Signal::STOP);
    until("it stands still", async || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it exists");
        status.lines().any(|line| line.starts_with("State:\tT"))
    })
    .await;
}

pub fn cluster() -> ClusterName {
    ClusterName::new("main").expect("valid")
}

pub fn assignment(epoch: u64, number: u64, primary: Option<&Address>, hold: bool) -> ProxyAssignment {
    ProxyAssignment {
        cluster: cluster(),
        epoch: Epoch(epoch),
        number: RecordNumber(number),
        primary: primary
            .map(|address| ProxyTarget { node: NodeName::new("a").expect("valid"), address: address.clone() }),
        hold,
        leader: "c1".to_owned(),
        sequence: 0,
        backends: None,
    }
}

/// A client's session that a server has greeted.
pub struct Session {
    pub server: String,
    pub stream: TcpStream,
    pub greeted: Instant,
}

impl Session {
    /// Waits for the end of the session.
    pub async fn ended(mut self) {
        let read = timeout(PATIENCE, self.stream.read(&mut [0; 16])).await.expect("the session was not cut");
        assert!(matches!(read, Ok(0) | Err(_)), "a greeting and then nothing");
    }

    pub fn is_open(&self) -> bool {
        let read = self.stream.try_read(&mut [0; 16]);
        matches!(read, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    }
}

/// Connects and waits for the greeting; panics if it is refused or closed without one.
pub async fn connect(address: Address) -> Session {
    let whole = async {
        let mut stream = TcpStream::connect(address.to_string()).await.expect("not refused");
        let mut name = [0; 1];
        stream.read_exact(&mut name).await.expect("not closed without a greeting");
        Session { server: String::from_utf8_lossy(&name).into_owned(), stream, greeted: Instant::now() }
    };
    timeout(PATIENCE, whole).await.expect("served in time")
}

/// Who serves at `address` now; `None` if the connection is closed without a greeting.
pub async fn served_by(address: &Address) -> Option<String> {
    let mut stream = TcpStream::connect(address.to_string()).await.ok()?;
    let mut name = [0; 1];
    timeout(PATIENCE, stream.read_exact(&mut name)).await.expect("served in time").ok()?;
    Some(String::from_utf8_lossy(&name).into_owned())
}
