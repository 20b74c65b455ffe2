//! The HAProxy of this host and what its agent needs around it: the router itself, the verifying write, the word of the
//! nodes' agents, the controllers, and the little that the agent must not forget.
//!
//! Every call has an end. Which primary is right is decided by the caller, never here.

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::domain::command::ProxyAssignment;
use crate::domain::epoch::{Epoch, RecordNumber};
use crate::domain::ids::{Address, ClusterName};
use crate::domain::report::ProxyReport;

/// What went wrong with HAProxy or its files.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrafficError {
    /// Nothing listens on its socket.
    #[error("{action}: HAProxy does not run, nothing listens on {location}: {problem}")]
    NotRunning {
        /// Verb and object.
        action: &'static str,
        /// The socket.
        location: String,
        /// What the system said, and what to do.
        problem: String,
    },
    /// It took the connection and did not answer: perhaps done.
    #[error("{action}: no answer from HAProxy on {location} within {timeout:?}")]
    NoAnswer {
        /// Verb and object.
        action: &'static str,
        /// The socket.
        location: String,
        /// How long it was waited.
        timeout: Duration,
    },
    /// It refused, or a file or program failed.
    #[error("{action}: {problem}")]
    Failed {
        /// Verb and object.
        action: &'static str,
        /// What went wrong, where, and what to do.
        problem: String,
    },
}

/// Where the write port leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// New connections wait.
    Holding,
    /// New connections go there.
    Leads(Address),
    /// Its server was taken out of service by hand: new connections are closed.
    Closed,
}

/// How far [`TrafficRouter::settle`] came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    /// A restart of HAProxy, whoever does it, comes up on the last target.
    Done,
    /// The file is written; the running HAProxy takes it over later.
    Later {
        /// Why not now.
        reason: String,
    },
}

/// Leads clients to the primary.
#[async_trait]
pub trait TrafficRouter: Send + Sync {
    /// Brings the file up to date (`last`: the target before this process started; `None`: nobody yet, the write port holds)
    /// and sees to it that HAProxy runs: adopts the one that does, starts one if this agent may. Idempotent.
    async fn ensure_running(&self, last: Option<&Address>) -> Result<(), TrafficError>;

    /// Where the write port leads, asked from the running HAProxy.
    async fn route(&self) -> Result<Route, TrafficError>;

    /// Leads new connections to `target` at once and, if that is another primary than before, cuts the sessions to the
    /// former one. Connections that wait are served by `target`. The file follows with [`TrafficRouter::settle`].
    async fn redirect(&self, target: &Address) -> Result<(), TrafficError>;

    /// Makes new connections wait until the next redirect; open sessions stay.
    async fn hold(&self) -> Result<(), TrafficError>;

    /// The slow part of a redirect: the file, checked, and a reload while nobody waits. Call until it is done.
    async fn settle(&self) -> Result<Settled, TrafficError>;

    /// Returns when the HAProxy last seen running has ended; never, where none was seen.
    async fn exited(&self);
}

/// Makes a real write the way clients do.
#[async_trait]
pub trait WriteVerifier: Send + Sync {
    /// Commits one transaction through the write port and makes sure that it was made at `expect`.
    /// Tries again until `deadline` has passed; returns what was seen, or the last thing that went wrong.
    async fn verify_write(&self, expect: &Address, deadline: Duration) -> Result<String, String>;

    /// The same, tried once.
    async fn try_write(&self, expect: &Address, timeout: Duration) -> Result<String, String>;
}

/// Asks agents of database hosts.
#[async_trait]
pub trait NodeHealth: Send + Sync {
    /// `GET /primary` of the agent at `agent`: `Ok(true)` is 200, `Ok(false)` any other answer.
    async fn is_primary(&self, agent: &Address, timeout: Duration) -> Result<bool, String>;
}

/// The way to the controllers.
#[async_trait]
pub trait ProxyControllerLink: Send + Sync {
    /// Tells every controller; returns the first assignment that comes back, or why none did.
    async fn heartbeat(&self, report: &ProxyReport, timeout: Duration) -> Result<ProxyAssignment, String>;
}

/// What a proxy's agent stores before it answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProxyRecord {
    /// Whose proxy this is.
    pub cluster: ClusterName,
    /// Highest epoch seen.
    pub epoch: Epoch,
    /// Highest record number seen in that epoch.
    pub number: RecordNumber,
    /// The last primary.
    pub target: Option<Address>,
    /// New connections are to wait.
    pub hold: bool,
    /// The controller process that said so.
    #[serde(default)]
    pub leader: String,
    /// That process's number for it.
    #[serde(default)]
    pub sequence: u64,
}

/// Keeps the [`ProxyRecord`] across restarts.
#[async_trait]
pub trait ProxyMemory: Send + Sync {
    /// What was stored, or `None` on a new host.
    async fn load(&self) -> Result<Option<ProxyRecord>, TrafficError>;
    /// On disk when it returns `Ok`.
    async fn store(&self, record: &ProxyRecord) -> Result<(), TrafficError>;
}
