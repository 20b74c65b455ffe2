//! The agent of a database host: owns the local PostgreSQL, its lease and its fence.
//!
//! A shell: what to move is decided by controllers; the agent alone decides to stop writing.

mod assignment;
mod backup;
mod commands;
mod fence;
pub mod guard;
mod handler;
mod heartbeat;
mod keeper;
pub mod lease;
mod local;
pub mod membership;
mod metrics;
mod observe;
pub mod promises;
pub mod proxy;
mod rejoin;
mod renewal;
mod restart;
pub mod start;
mod stranded;
mod tasks;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod watch;

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::watch::Receiver;
use tokio::task::JoinSet;

use crate::api::agent::{AgentHandler, Gate, node_router, serve};
use crate::api::entrance::Door;
use crate::config::AgentConfig;
use crate::config::agent::{AgentSection, PostgresqlSection};
use crate::domain::certificate::Protection;
use crate::domain::clock::Moment;
use crate::domain::lease::LeaseTimers;
use crate::domain::report::{Report, Tags};
use crate::ports::agent::{
    AgentMemory, ControllerLink, GuardEvent, GuardLink, Memory, MemoryError, PeerLink, StampedMoment,
};
use crate::ports::backup::BackupRepository;
use crate::ports::clock::Clock;
use crate::ports::postgres::{LocalPostgres, PostgresError};
use keeper::Keeper;
use local::Local;
use metrics::ProbeDurations;
use tasks::Tasks;

/// Timers before the first grant brought its own: those of the default target.
const RTO_BEFORE_GRANT: Duration = Duration::from_secs(5);

/// Everything that an agent is made of.
pub struct AgentParts {
    /// Settings; `[postgresql]` must be there.
    pub config: AgentConfig,
    /// The host's clocks.
    pub clock: Arc<dyn Clock>,
    /// The local PostgreSQL.
    pub postgres: Arc<dyn LocalPostgres>,
    /// Memory on disk.
    pub memory: Arc<dyn AgentMemory>,
    /// The way to the controllers.
    pub controllers: Arc<dyn ControllerLink>,
    /// The way to the standbys' agents.
    pub peers: Arc<dyn PeerLink>,
    /// The way to the guard.
    pub guard: Arc<dyn GuardLink>,
    /// The backup repository, where one is configured.
    pub backup: Option<Arc<dyn BackupRepository>>,
    /// How the health port is protected, as it changes.
    pub protection: Receiver<Protection>,
}

/// Where an agent is reached.
pub struct HealthPort {
    /// The socket, already bound.
    pub door: Door,
    /// Who may command.
    pub gate: Gate,
}

/// Why an agent could not begin, or ended.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The memory is not usable.
    #[error("begin with what the agent remembers")]
    Memory(#[from] MemoryError),
    /// The configuration of PostgreSQL could not be made safe.
    #[error("secure the configuration of PostgreSQL")]
    Secure(#[source] PostgresError),
    /// There is no `[postgresql]` section.
    #[error("the configuration has no [postgresql] section: add one, or [proxy] on a proxy host")]
    NoPostgresql,
    /// The health port failed.
    #[error("serve the health port")]
    Serve(#[source] std::io::Error),
    /// A metric could not be registered.
    #[error("register the metrics of the node")]
    Metrics(#[from] prometheus::Error),
}

/// How an agent ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The service was stopped: the guard ends too.
    Stopped,
    /// Only this process was asked to end: PostgreSQL goes on and the guard starts the next one.
    Replaced,
}

/// Runs the agent until the guard stops the service, or `shutdown` (SIGTERM to this process alone) resolves.
pub async fn run(
    parts: AgentParts,
    port: HealthPort,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<Ended, AgentError> {
    let mut tasks = JoinSet::new();
    let agent = begin(parts, &mut tasks).await?;
    // Health checks that came meanwhile wait in the socket's queue, and are answered from facts.
    agent.first_look().await;
    let routes = node_router(Arc::new(agent.clone()), port.gate);
    let served = serve(port.door, routes, std::future::pending());
    tokio::select! {
        result = served => {
            Err(AgentError::Serve(result.err().unwrap_or_else(|| std::io::Error::other("it was closed"))))
        }
        () = shutdown => Ok(Ended::Replaced),
        GuardEvent::Stop = agent.guard.next_event() => {
            agent.stop_service().await;
            Ok(Ended::Stopped)
        }
    }
}

/// Begins an agent without a health port, and returns what would answer there. It works for as long as `tasks` lives.
pub async fn spawn(parts: AgentParts, tasks: &mut JoinSet<()>) -> Result<Arc<dyn AgentHandler>, AgentError> {
    Ok(Arc::new(begin(parts, tasks).await?))
}

async fn begin(parts: AgentParts, tasks: &mut JoinSet<()>) -> Result<Arc<Agent>, AgentError> {
    let agent = Agent::new(parts).await?;
    agent.begin().await?;
    agent.spawn_loops(tasks);
    Ok(agent)
}

/// The agent, shared by its tasks.
pub(crate) struct Agent {
    section: AgentSection,
    settings: PostgresqlSection,
    tags: Tags,
    incarnation: String,
    clock: Arc<dyn Clock>,
    postgres: Arc<dyn LocalPostgres>,
    controllers: Arc<dyn ControllerLink>,
    peers: Arc<dyn PeerLink>,
    guard: Arc<dyn GuardLink>,
    backup: Option<Arc<dyn BackupRepository>>,
    protection: Receiver<Protection>,
    keeper: Keeper,
    local: Mutex<Local>,
    probe_durations: ProbeDurations,
    tasks: Tasks,
    /// One change of PostgreSQL at a time. A fence never waits for it.
    operating: tokio::sync::Mutex<()>,
    /// Held while a postmaster is being started, so that a fence kills what was on its way.
    starting: tokio::sync::Mutex<()>,
    heartbeat_wanted: Notify,
    observe_wanted: Notify,
    assignment_wanted: Notify,
    lease_changed: Notify,
}

impl Agent {
    async fn new(parts: AgentParts) -> Result<Arc<Self>, AgentError> {
        let settings = parts.config.postgresql.ok_or(AgentError::NoPostgresql)?;
        let section = parts.config.agent;
        let memory = match parts.memory.load()? {
            Some(memory) => memory,
            None => {
                let since = StampedMoment { boot: parts.clock.boot(), at: parts.clock.now() };
                let memory = Memory::new(section.cluster.clone(), settings.node.clone(), since);
                parts.memory.store(&memory).await?;
                memory
            }
        };
        let now = parts.clock.now();
        let mut local = Local { turned_at: now, ..Local::default() };
        if let Some(epoch) = memory.fence_confirmed {
            local.leases.bar(epoch);
        }
        let probe_durations = ProbeDurations::new(&section.cluster, &settings.node)?;
        Ok(Arc::new(Self {
            section,
            settings,
            tags: parts.config.tags,
            incarnation: uuid::Uuid::now_v7().to_string(),
            clock: parts.clock,
            postgres: parts.postgres,
            controllers: parts.controllers,
            peers: parts.peers,
            guard: parts.guard,
            backup: parts.backup,
            protection: parts.protection,
            keeper: Keeper::new(memory, parts.memory),
            local: Mutex::new(local),
            probe_durations,
            tasks: Tasks::default(),
            operating: tokio::sync::Mutex::new(()),
            starting: tokio::sync::Mutex::new(()),
            heartbeat_wanted: Notify::new(),
            observe_wanted: Notify::new(),
            assignment_wanted: Notify::new(),
            lease_changed: Notify::new(),
        }))
    }

    fn spawn_loops(self: &Arc<Self>, tasks: &mut JoinSet<()>) {
        macro_rules! spawn {
            ($($name:ident),+) => { $( let agent = self.clone(); tasks.spawn(async move { agent.$name().await }); )+ };
        }
        spawn!(
            heartbeat_loop,
            renewal_loop,
            lease_loop,
            observe_loop,
            connect_probe_loop,
            write_probe_loop,
            disk_loop,
            memory_loop,
            presence_loop,
            assignment_loop,
            repository_loop,
            stranded_loop
        );
        let agent = self.clone();
        tasks.spawn(async move { agent.keeper.write_behind().await });
    }

    fn local(&self) -> MutexGuard<'_, Local> {
        // Facts are overwritten by the next observation; a panic elsewhere must not stop the self-fence.
        self.local.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Moment {
        self.clock.now()
    }

    fn timers(&self) -> LeaseTimers {
        self.keeper.read(|memory| memory.timers).unwrap_or_else(|| LeaseTimers::for_rto(RTO_BEFORE_GRANT))
    }

    /// Everything that the agent knows, as one report with a number of its own.
    fn report(&self) -> Report {
        let (now, boot) = (self.now(), self.clock.boot());
        let mut local = self.local();
        local.sequence += 1;
        let mut tasks = self.tasks.report();
        if let Some(error) = &local.down_because {
            let state = crate::domain::report::TaskState::Failed { error: error.clone() };
            tasks.insert("postgresql".to_owned(), state);
        }
        Report {
            cluster: self.section.cluster.clone(),
            node: self.settings.node.clone(),
            site: self.section.site.clone(),
            address: self.settings.address.clone(),
            boot: boot.clone(),
            incarnation: self.incarnation.clone(),
            sequence: local.sequence,
            sent_at: now,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            standing: self.keeper.read(|memory| local.standing(memory, now, &boot)),
            postgres: local.postgres_report(now),
            tags: self.tags.clone(),
            tasks,
            protection: Some(self.protection.borrow().clone()),
        }
    }
}
