//! The controller's shell: hears reports, asks `decide` and `operate`, carries out what they say through ports.
//!
//! One task owns all state and never waits for anything outside; every effect runs in a task of its own and comes back as
//! an event. Decisions are made on every event. No rule about *what* to do lives here.

mod alerts;
mod audit;
mod backup;
mod clusters;
mod drive;
mod event_loop;
mod execute;
mod handler;
mod journal;
mod keeping;
pub mod leading;
mod models;
mod name;
mod notes;
pub mod notifications;
mod outlook;
mod pace;
pub mod prediction;
mod replies;
pub mod retraining;
mod sequences;
mod stacks;
mod state;
mod status;
mod tokens;
mod told;
mod watched;
mod witness;

use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use crate::config::backup::ControllerBackupSection;
use crate::domain::alert::AlertPolicy;
use crate::domain::certificate::Protection;
use crate::domain::ids::{ClusterName, NodeName, ProxyName, SiteName};
use crate::domain::operation::Operation;
use crate::domain::policy::Policy;
use crate::domain::readiness::Circumstances;
use crate::domain::record::ClusterRecord;
use crate::domain::traffic::TrafficDefinition;
use crate::ports::{Clock, NodeControl, PrimaryProbe, ProxyControl, Store, StoreError, Term};
use crate::telemetry::metrics::ControllerMetrics;

pub use clusters::Clusters;
pub use handler::ControllerHandle;
pub use keeping::{Definition, Kept, Workshop};
pub use name::KeptName;
pub use notifications::{KeptChannel, Notifications};
pub use prediction::Prediction;
pub use retraining::Training;
pub use sequences::Sequences;
pub use stacks::Stacks;
use watched::StoreWatch;

/// How many events may wait for the loop; a sender beyond that waits.
const EVENTS_WAITING_MAX: usize = 1024;
/// How many ended operations are kept in memory, for back-off and for display.
const ENDED_KEPT: usize = 20;
/// How many are looked through at the start, for the last one that a prediction began.
const ENDED_READ: usize = 500;

/// A node as the configuration names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfiguredNode {
    /// Name.
    pub name: NodeName,
    /// Where it stands.
    pub site: SiteName,
    /// Base URL of its agent, as other agents reach it too.
    pub agent: String,
}

/// What the configuration says about the ways in beside the API itself.
#[derive(Debug, Clone, Default)]
pub struct WaysIn {
    /// What is done about alerts.
    pub alerts: AlertPolicy,
}

/// Everything a controller needs.
pub struct ControllerParts {
    /// Name in answers, in the journal and in logs.
    pub name: String,
    /// The cluster it keeps.
    pub cluster: ClusterName,
    /// What it is configured as, for people.
    pub definition: Arc<Definition>,
    /// The operator's wishes.
    pub policy: Policy,
    /// What no agent reports, for the doctor.
    pub circumstances: Circumstances,
    /// How its API is protected, as it changes.
    pub protection: watch::Receiver<Protection>,
    /// Every configured node.
    pub nodes: Vec<ConfiguredNode>,
    /// Every configured proxy.
    pub proxies: Vec<ProxyName>,
    /// Reads and applications behind the proxies.
    pub traffic: TrafficDefinition,
    /// Clocks of this host.
    pub clock: Arc<dyn Clock>,
    /// The leadership under which it runs, and with it the memory.
    pub term: Arc<dyn Term>,
    /// Where the audit log is, if not in that memory: several clusters of one controller share a log.
    pub audit: Option<Arc<dyn Store>>,
    /// Agents of database hosts.
    pub node_control: Arc<dyn NodeControl>,
    /// Agents of proxy hosts.
    pub proxy_control: Arc<dyn ProxyControl>,
    /// The way to the primary's PostgreSQL itself.
    pub primary_probe: Arc<dyn PrimaryProbe>,
    /// The name that clients connect to, if one is kept.
    pub name_service: Option<KeptName>,
    /// Counters.
    pub metrics: Arc<ControllerMetrics>,
    /// What is done after a failover, on an alert or by name.
    pub sequences: Sequences,
    /// When backups and drills are made; `None`: only when somebody asks.
    pub backup: Option<ControllerBackupSection>,
    /// The ways in beside the API itself.
    pub ways: Arc<WaysIn>,
    /// Who is told what; empty: nobody is told anything.
    pub notifications: Notifications,
    /// What predicts; `None`: nothing does.
    pub prediction: Option<Prediction>,
}

/// What was stored when the controller began.
struct Remembered {
    record: Option<ClusterRecord>,
    operations: Vec<Operation>,
}

/// Loads the store, starts the loop, and returns the handle that the API speaks to. The loop ends when `shutdown` turns true.
pub async fn start(parts: ControllerParts, shutdown: watch::Receiver<bool>) -> Result<ControllerHandle, StoreError> {
    let (events, inbox) = mpsc::channel(EVENTS_WAITING_MAX);
    let watch = StoreWatch::new(parts.clock.clone(), parts.metrics.clone(), events.clone());
    let store = watch.over(parts.term.store());
    let record = store.load_record(&parts.cluster).await?;
    let mut operations = store.unfinished_operations(&parts.cluster).await?;
    let mut ended = store.list_operations(&parts.cluster, ENDED_READ).await?;
    ended.retain(|operation| operation.status.is_final());
    operations.extend(ended);
    if let Some(record) = &record {
        tracing::info!(epoch = %record.epoch, number = %record.number, holder = %record.holder, "record loaded");
    }
    for operation in operations.iter().filter(|operation| !operation.status.is_final()) {
        tracing::info!(operation = %operation.id, kind = operation.kind.label(), "operation resumed from its journal");
    }
    if let Some(keeper) = backup::Keeper::new(&parts, events.clone()) {
        tokio::spawn(keeper.run(store.clone()));
    }
    if let Some(keeper) = retraining::Keeper::new(&parts, events.clone()) {
        tokio::spawn(keeper.run(store.clone()));
    }
    let (alerts, accepted) = mpsc::channel(alerts::WAITING_MAX);
    let tokens = Arc::new(tokens::Tokens::load(store.as_ref()).await?);
    let (compared, stacks) = watch::channel(Vec::new());
    tokio::spawn(stacks::look(parts.sequences.stacks.clone(), parts.sequences.runner.clone(), compared));
    let channels = Arc::new(notifications::Standing::default());
    let outbox = notifications::Outbox::open(&parts, store.clone(), events.clone(), channels.clone());
    let handle = ControllerHandle::new(events.clone(), &parts, store, alerts, tokens, stacks, channels);
    let remembered = Remembered { record, operations };
    tokio::spawn(event_loop::run(parts, watch, remembered, outbox, events, inbox, shutdown.clone()));
    tokio::spawn(until(shutdown, alerts::work(handle.clone(), accepted)));
    Ok(handle)
}

/// Runs `work` until it ends or `shutdown` turns true.
async fn until(mut shutdown: watch::Receiver<bool>, work: impl Future<Output = ()>) {
    tokio::select! {
        () = work => {}
        // A sender that is gone asks for nothing else any more.
        _ = shutdown.wait_for(|stop| *stop) => {}
    }
}
