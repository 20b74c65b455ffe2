//! Everything that is not Stormglass: hosts, their disks and clocks, the store's disk, the trace, and the virtual time.
//!
//! One lock, one thread, no real time: the same seed always gives the same history.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use stormglass::agent::AgentParts;
use stormglass::api::agent::AgentHandler;
use stormglass::config::AgentConfig;
use stormglass::domain::clock::{BootId, Moment};
use stormglass::domain::command::ProxyAssignment;
use stormglass::domain::epoch::Epoch;
use stormglass::domain::ids::{Address, ClusterName, NodeName, SiteName};
use stormglass::domain::policy::{DurabilityMode, SyncScope};
use stormglass::ports::agent::{HeldLease, Memory};
use tokio::task::JoinSet;

use super::checks::Ledger;
use super::controllers::Slot;
use super::mutants::Mutant;
use super::network::Network;
use super::random::Random;
use super::server::{Hang, Server};
use super::signal;
use super::store::StoreDisk;

/// How many database hosts there are.
pub const HOSTS: usize = 3;

/// How a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    Running,
    /// SIGSTOP.
    Paused,
    Dead,
}

/// A process as its ports see it: whatever it wants from outside waits while it is stopped, and for ever once it is dead.
/// So the tasks of a killed process can do no harm, and need not be found.
#[derive(Clone)]
pub struct Process(pub signal::Receiver<Life>);

impl Process {
    pub fn new() -> (signal::Sender<Life>, Self) {
        let (sender, receiver) = signal::channel(Life::Running);
        (sender, Self(receiver))
    }

    pub async fn pass(&self) {
        let mut life = self.0.clone();
        loop {
            let seen = life.get_and_update();
            match seen {
                Life::Running => return,
                Life::Dead => std::future::pending().await,
                Life::Paused if life.changed().await.is_err() => std::future::pending().await,
                Life::Paused => {}
            }
        }
    }

    pub fn is_dead(&self) -> bool {
        self.0.get() == Life::Dead || self.0.is_final()
    }
}

/// A running agent.
pub struct AgentProcess {
    pub life: signal::Sender<Life>,
    pub process: Process,
    /// `None` while it begins.
    pub handler: Option<Arc<dyn AgentHandler>>,
    pub loops: Option<JoinSet<()>>,
}

/// A guard's memory; gone with its host.
#[derive(Default)]
pub struct Guard {
    pub held: Option<HeldLease>,
    pub released: Option<Epoch>,
    pub fenced: Option<Epoch>,
    /// Kills PostgreSQL's processes one by one and is done then.
    pub killing_until: Option<u64>,
}

/// A database host.
pub struct Host {
    pub name: NodeName,
    pub up: bool,
    pub frozen: bool,
    pub thawed_at: Option<u64>,
    pub boots: u64,
    /// Microseconds of virtual time at boot.
    pub booted_at: u64,
    /// Its clock's error, in millionths.
    pub rate: i64,
    pub config: AgentConfig,
    pub agent: Option<AgentProcess>,
    pub guard: Guard,
    pub memory: Option<Memory>,
    pub server: Server,
    /// Nobody restarts the agent before this.
    pub agent_rests_until: u64,
    /// Since when it accepts writes without a lease.
    pub unleased_since: Option<u64>,
}

/// The proxy: leads to the node that the newest assignment names.
#[derive(Default)]
pub struct Proxy {
    pub assignment: Option<ProxyAssignment>,
    pub sequence: u64,
}

/// What kind of world it is.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// One with its own store, or three with etcd.
    pub controllers: usize,
    pub durability: DurabilityMode,
    /// Hosts stand in sites a, a, b.
    pub sync_scope: SyncScope,
    /// Only the control plane is attacked: a healthy primary must not be interrupted.
    pub gentle: bool,
    /// A promise of the outside that is broken here, so that a check must find it.
    pub mutant: Option<Mutant>,
}

impl Settings {
    pub fn draw(random: &mut Random) -> Self {
        let (durability, sync_scope) = match random.between(0, 9) {
            0..=2 => (DurabilityMode::Sync, SyncScope::Local),
            3 => (DurabilityMode::Sync, SyncScope::OtherSite),
            4..=5 => (DurabilityMode::Sync, SyncScope::EachSite),
            6 => (DurabilityMode::SyncStrict, SyncScope::Local),
            7 => (DurabilityMode::SyncStrict, SyncScope::EachSite),
            _ => (DurabilityMode::Async, SyncScope::Local),
        };
        let controllers = if random.percent(50) { 3 } else { 1 };
        Self { controllers, durability, sync_scope, gentle: random.percent(20), mutant: None }
    }
}

pub struct State {
    pub random: Random,
    pub settings: Settings,
    pub hosts: Vec<Host>,
    pub controllers: Vec<Slot>,
    pub store: StoreDisk,
    pub network: Network,
    pub proxy: Proxy,
    pub ledger: Ledger,
    pub trace: Vec<String>,
    /// The faults have begun.
    pub stormy: bool,
    /// How many there were.
    pub faults: usize,
    pub violation: Option<String>,
    now: u64,
}

pub struct World {
    state: Mutex<State>,
    origin: tokio::time::Instant,
}

pub fn cluster() -> ClusterName {
    ClusterName::new("main").expect("valid")
}

pub fn node(index: usize) -> NodeName {
    NodeName::new(format!("n{}", index + 1)).expect("valid")
}

pub fn site(index: usize) -> SiteName {
    SiteName::new(if index < 2 { "a" } else { "b" }).expect("valid")
}

pub fn address(index: usize) -> Address {
    Address::new(format!("10.0.0.{}", index + 1), 5432)
}

pub fn index_of(name: &str) -> Option<usize> {
    (0..HOSTS).find(|index| node(*index).as_str() == name)
}

pub fn index_at(wanted: &Address) -> Option<usize> {
    (0..HOSTS).find(|index| address(*index) == *wanted)
}

/// A clock's error in millionths: two of them run apart by no more than the drift bound during one lease.
fn draw_rate(random: &mut Random) -> i64 {
    i64::try_from(random.between(0, 16_000)).expect("small") - 8_000
}

impl World {
    /// `settings`: drawn if not given.
    pub fn new(seed: u64, settings: Option<Settings>) -> Arc<Self> {
        let mut random = Random::new(seed);
        let drawn = Settings::draw(&mut random);
        let settings = settings.unwrap_or(drawn);
        let mut hosts = Vec::new();
        for index in 0..HOSTS {
            hosts.push(Host {
                name: node(index),
                up: true,
                frozen: false,
                thawed_at: None,
                boots: 1,
                booted_at: 0,
                rate: draw_rate(&mut random),
                config: super::agents::config(index),
                agent: None,
                guard: Guard::default(),
                memory: None,
                server: Server::installed(index),
                agent_rests_until: random.between(0, 400_000),
                unleased_since: None,
            });
        }
        let controllers = (0..settings.controllers).map(|_| Slot::new(draw_rate(&mut random))).collect();
        if settings.mutant == Some(Mutant::ClockBeyondTheBound) {
            for host in &mut hosts {
                host.rate = -400_000;
            }
        }
        let state = State {
            random,
            settings,
            hosts,
            controllers,
            store: StoreDisk::default(),
            network: Network::default(),
            proxy: Proxy::default(),
            ledger: Ledger::default(),
            trace: Vec::new(),
            stormy: false,
            faults: 0,
            violation: None,
            now: 0,
        };
        Arc::new(Self { state: Mutex::new(state), origin: tokio::time::Instant::now() })
    }

    /// The world, with its clock set.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.now = u64::try_from(self.origin.elapsed().as_micros()).expect("short");
        state
    }

    pub fn note(&self, line: impl AsRef<str>) {
        self.lock().note(line.as_ref());
    }

    pub fn is_broken(&self) -> bool {
        self.lock().violation.is_some()
    }
}

impl State {
    /// Microseconds of virtual time.
    pub fn now(&self) -> u64 {
        self.now
    }

    pub fn note(&mut self, line: &str) {
        let mut text = String::with_capacity(line.len() + 12);
        let _ = write!(text, "{:>10.3} {line}", Duration::from_micros(self.now).as_secs_f64());
        self.trace.push(text);
    }

    /// The first broken rule ends the run.
    pub fn violate(&mut self, rule: &str) {
        if self.violation.is_none() {
            self.note(&format!("VIOLATION {rule}"));
            self.violation = Some(rule.to_owned());
        }
    }

    /// A host's own clock.
    pub fn clock(&self, host: usize) -> Moment {
        let host = &self.hosts[host];
        // The hosts had run for long when it all began; after a crash they are up in two seconds.
        let before = if host.boots == 1 { 100_000_000 } else { 2_000_000 };
        Moment(self.skewed(host.booted_at, host.rate) + before)
    }

    /// Microseconds since `from` on a clock that is wrong by `rate` millionths.
    pub fn skewed(&self, from: u64, rate: i64) -> u64 {
        let since = i64::try_from(self.now.saturating_sub(from)).expect("short");
        u64::try_from(since + since * rate / 1_000_000).expect("rates are small")
    }

    pub fn boot(&self, host: usize) -> BootId {
        BootId(format!("{}-{}", self.hosts[host].name, self.hosts[host].boots))
    }

    pub fn kill_agent(&mut self, host: usize, rests_micros: u64) {
        self.hosts[host].agent_rests_until = self.now + rests_micros;
        if let Some(agent) = self.hosts[host].agent.take() {
            agent.life.send_replace(Life::Dead);
        }
    }

    /// The power goes.
    pub fn crash_host(&mut self, host: usize) {
        self.kill_agent(host, u64::MAX / 2);
        self.kill_server(host, "power lost");
        self.hosts[host].guard = Guard::default();
        self.hosts[host].up = false;
    }

    /// A virtual machine that is not scheduled: agent, guard and PostgreSQL stand still, and go on later.
    pub fn freeze_host(&mut self, host: usize, frozen: bool) {
        let here = &mut self.hosts[host];
        here.frozen = frozen;
        if let Some(agent) = &here.agent {
            agent.life.send_replace(if frozen { Life::Paused } else { Life::Running });
        }
        if let Some(run) = here.server.run.as_mut() {
            run.hang = if frozen { Hang::All } else { Hang::No };
        }
        if !frozen {
            self.hosts[host].thawed_at = Some(self.now);
        }
    }

    pub fn boot_host(&mut self, host: usize) {
        let now = self.now;
        let agent_starts = now + self.random.between(200_000, 1_500_000);
        let host = &mut self.hosts[host];
        if !host.up {
            host.up = true;
            host.boots += 1;
            host.booted_at = now;
            host.agent_rests_until = agent_starts;
        }
    }
}

/// What an agent's process is made of, besides its host.
pub fn parts(world: &Arc<World>, host: usize, process: &Process) -> AgentParts {
    let port = super::agents::HostPort { world: world.clone(), host, process: process.clone() };
    AgentParts {
        backup: None,
        protection: tokio::sync::watch::channel(Default::default()).1,
        config: world.lock().hosts[host].config.clone(),
        clock: Arc::new(port.clone()),
        postgres: Arc::new(port.clone()),
        memory: Arc::new(port.clone()),
        controllers: Arc::new(port.clone()),
        peers: Arc::new(port.clone()),
        guard: Arc::new(port),
    }
}
