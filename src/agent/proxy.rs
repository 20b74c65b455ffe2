//! The agent of a proxy host: puts the controller's word into HAProxy, keeps it there, and follows the nodes' own word
//! while no controller answers.
//!
//! What HAProxy is told how is the router's; what is believed is in [`judge`]. HAProxy outlives this process.

pub mod judge;
pub mod metrics;
mod pooling;
mod role;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch::Receiver;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::api::agent::{Gate, proxy_router, serve};
use crate::api::entrance::Door;
use crate::config::agent::ProxySection;
use crate::domain::certificate::Protection;
use crate::domain::ids::{ClusterName, SiteName};
use crate::ports::Clock;
use crate::ports::traffic::{
    NodeHealth, Pooler, ProxyControllerLink, ProxyMemory, Settled, TrafficError, TrafficRouter, WriteVerifier,
};
use role::ProxyRole;

/// Between two heartbeats; changes are told at once.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(500);
/// Between two looks at HAProxy. Its end is noticed without looking.
const WATCH_INTERVAL: Duration = Duration::from_millis(250);
/// Between two writes of the agent's own through the write port.
const PATH_INTERVAL: Duration = Duration::from_millis(500);
/// A client that waits for longer than this for a commit calls that an outage.
const PATH_TIMEOUT: Duration = Duration::from_secs(1);
/// From a redirect until the file follows: the time in which a failover needs the processor for itself.
const SETTLE_AFTER: Duration = Duration::from_millis(500);

/// Everything that the role is made from.
pub struct ProxyParts {
    /// The cluster.
    pub cluster: ClusterName,
    /// Where the host stands.
    pub site: SiteName,
    /// `[proxy]`.
    pub section: ProxySection,
    /// Who may command.
    pub gate: Gate,
    /// How the port is protected, as it changes.
    pub protection: Receiver<Protection>,
    /// Identity of this process.
    pub incarnation: String,
    /// The host's clock.
    pub clock: Arc<dyn Clock>,
    /// HAProxy.
    pub router: Arc<dyn TrafficRouter>,
    /// For `VerifyWrite`; `None` without `[proxy.verify]`.
    pub verifier: Option<Arc<dyn WriteVerifier>>,
    /// PgBouncer; `None` without `[proxy.pgbouncer]`.
    pub pooler: Option<Arc<dyn Pooler>>,
    /// The nodes' agents.
    pub health: Arc<dyn NodeHealth>,
    /// The controllers.
    pub link: Arc<dyn ProxyControllerLink>,
    /// Survives restarts.
    pub memory: Arc<dyn ProxyMemory>,
    /// Where it is reached.
    pub door: Door,
}

/// Why the role cannot begin, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// What was stored cannot be read.
    #[error("load what this proxy has seen")]
    Memory(#[source] TrafficError),
    /// The stored state belongs elsewhere.
    #[error(
        "the state file of this proxy belongs to cluster {stored}, the configuration says {configured}: use another state_directory"
    )]
    OtherCluster {
        /// In the file.
        stored: ClusterName,
        /// In the configuration.
        configured: ClusterName,
    },
    /// A metric was registered twice.
    #[error("register the metrics")]
    Metrics(#[from] prometheus::Error),
    /// The HTTP server ended.
    #[error("serve the proxy agent's HTTP")]
    Serve(#[from] std::io::Error),
}

/// Runs until `shutdown` resolves. HAProxy and its connections are left as they are.
pub async fn run(parts: ProxyParts, shutdown: impl Future<Output = ()> + Send + 'static) -> Result<(), ProxyError> {
    let stored = parts.memory.load().await.map_err(ProxyError::Memory)?;
    if let Some(stored) = &stored
        && stored.cluster != parts.cluster
    {
        return Err(ProxyError::OtherCluster { stored: stored.cluster.clone(), configured: parts.cluster });
    }
    let (door, gate) = (parts.door.try_clone()?, parts.gate.clone());
    let role = Arc::new(ProxyRole::new(parts, stored)?);
    let served = serve(door, proxy_router(Arc::clone(&role) as _, gate), shutdown);
    tokio::select! {
        ended = served => ended.map_err(ProxyError::from),
        () = watch(&role) => Ok(()),
        () = tell(&role) => Ok(()),
        () = settle(&role) => Ok(()),
        () = check_path(&role) => Ok(()),
        () = role.pooling.keep() => Ok(()),
    }
}

/// Keeps HAProxy running and leading where it should.
async fn watch(role: &ProxyRole) {
    let mut ticks = interval(WATCH_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut answers = false;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = role.rearranged() => {}
            () = role.router().exited(), if answers => tracing::warn!("HAProxy has ended"),
        }
        answers = role.look().await;
    }
}

/// Heartbeats, at once on change.
async fn tell(role: &ProxyRole) {
    let mut ticks = interval(HEARTBEAT_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = role.changed() => {}
            () = role.pooling.changed() => {}
        }
        role.heartbeat(HEARTBEAT_INTERVAL).await;
    }
}

/// Makes the write that a client would make, again and again: a witness of the primary's life, and of the way to it.
async fn check_path(role: &ProxyRole) {
    let mut ticks = interval(PATH_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        role.check_path(PATH_TIMEOUT).await;
    }
}

/// Lets the file follow.
async fn settle(role: &ProxyRole) {
    loop {
        role.unsettled().await;
        let mut told = String::new();
        loop {
            sleep(SETTLE_AFTER).await;
            let orders = role.orders();
            match role.router().settle().await {
                Ok(Settled::Done) => break role.settled(orders),
                Ok(Settled::Later { reason }) => tracing::debug!(reason, "the reload of HAProxy waits"),
                // Once for each problem, not twice a second.
                Err(error) if error.to_string() == told => {}
                Err(error) => {
                    tracing::error!(%error, "a redirect could not be finished: a restart of HAProxy may come up on a former primary");
                    told = error.to_string();
                }
            }
            role.settle_problem((!told.is_empty()).then(|| told.clone()));
        }
    }
}
