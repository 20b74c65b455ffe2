//! The HAProxy of this host and what its agent needs around it: the router itself, the verifying write, the word of the
//! nodes' agents, the controllers, and the little that the agent must not forget.
//!
//! Every call has an end. Which primary is right is decided by the caller, never here.

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::domain::command::ProxyAssignment;
use crate::domain::epoch::{Epoch, RecordNumber};
use crate::domain::ids::{Address, ClusterName, NodeName, SiteName};
use crate::domain::report::ProxyReport;
use crate::domain::traffic::{Application, ApplicationReport, Backends};

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

/// Reads and applications as one proxy serves them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Arrangement {
    /// Every node, as this proxy reaches it.
    pub nodes: Vec<ReadServer>,
    /// A standby further behind serves no reads; `None`: as far as it likes.
    pub read_max_lag_bytes: Option<u64>,
    /// Applications are served from here first; `None`: nobody has said.
    pub active_site: Option<SiteName>,
    /// Every application.
    pub applications: Vec<Application>,
}

/// A node behind the ports that HAProxy checks itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadServer {
    /// The node.
    pub node: NodeName,
    /// Where its PostgreSQL listens.
    pub address: Address,
    /// Where its agent listens.
    pub agent: Address,
    /// Share of the reads, beside the others' weights; 0: none.
    pub weight: u8,
}

/// What [`TrafficRouter::inspect`] saw.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Inspection {
    /// HAProxy's version, in its own words.
    pub version: Option<String>,
    /// The site that applications are served from first.
    pub active_site: Option<SiteName>,
    /// The file says what is wanted, and the running HAProxy has read it.
    pub is_settled: bool,
    /// What differs, for people.
    pub drift: Vec<String>,
    /// What the agent cannot put right.
    pub problem: Option<String>,
    /// Every application.
    pub applications: Vec<ApplicationReport>,
}

/// Leads clients to the primary.
#[async_trait]
pub trait TrafficRouter: Send + Sync {
    /// Brings the file up to date (`last`: the target before this process started; `None`: nobody yet, the write port holds)
    /// and sees to it that HAProxy runs: adopts the one that does, starts one if this agent may. Idempotent.
    async fn ensure_running(&self, last: Option<&Address>, wanted: &Arrangement) -> Result<(), TrafficError>;

    /// Puts reads and applications right in the running HAProxy, as far as that can be done without a reload; the file and
    /// the rest follow with [`TrafficRouter::settle`].
    async fn arrange(&self, wanted: &Arrangement) -> Result<(), TrafficError>;

    /// Compares the file, the running HAProxy and what was last asked for; changes nothing.
    async fn inspect(&self) -> Result<Inspection, TrafficError>;

    /// Returns when no connection to the write port is between its acceptance by a server and that server's first answer,
    /// or when `within` is over: a server that shuts down would close such connections without a word.
    async fn quiet(&self, within: Duration);

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
    /// Reads and applications, as last told.
    #[serde(default)]
    pub backends: Option<Backends>,
}

/// The PgBouncer between the clients and the write port.
#[async_trait]
pub trait Pooler: Send + Sync {
    /// Holds new transactions back and waits until the open ones have ended and no connection to a server is left, `within` at
    /// most. An error after that does not take it back: transactions wait until [`Pooler::resume`].
    async fn pause(&self, within: Duration) -> Result<(), String>;

    /// Lets transactions through again. Idempotent; `Ok` only when it is certain.
    async fn resume(&self) -> Result<(), String>;

    /// True if a process of this host began a pause, now or before it was restarted, and none was resumed for certain.
    async fn may_be_paused(&self) -> bool;
}

/// Keeps the [`ProxyRecord`] across restarts.
#[async_trait]
pub trait ProxyMemory: Send + Sync {
    /// What was stored, or `None` on a new host.
    async fn load(&self) -> Result<Option<ProxyRecord>, TrafficError>;
    /// On disk when it returns `Ok`.
    async fn store(&self, record: &ProxyRecord) -> Result<(), TrafficError>;
}
