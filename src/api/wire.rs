//! JSON documents of the controller's API. Field names are a contract; `schema_version` is raised when one changes its meaning.
//!
//! Raw units (bytes, seconds), RFC 3339 in UTC, `null` for unknown: never a default in place of a fact.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use super::requests::{
    BackupRequest, DrillRequest, FailoverRequest, NodeRequest, PauseRequest, RestoreRequest, RetrainRequest,
    SequenceRequest, SwitchoverRequest,
};
use super::risk::{NodeRisk, PredictorStatus};
use crate::domain::backup::Repository;
use crate::domain::clock::WallTime;
use crate::domain::ids::{Address, NodeName};
use crate::domain::operation::Operation;
use crate::domain::plan::{Plan, Reason};
use crate::domain::traffic::TrafficReport;

/// Version of every document below.
pub const SCHEMA_VERSION: u32 = 1;

/// `GET /health`, `GET /ready`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Word {
    /// `ok`, `ready`.
    pub status: String,
}

impl Word {
    /// Wraps it.
    pub fn new(status: &str) -> Self {
        Self { status: status.to_owned() }
    }
}

/// One word for the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Writable, and as redundant as configured.
    Healthy,
    /// Writable, and one more loss may stop writes or lose data.
    Degraded,
    /// Nobody accepts writes.
    NoPrimary,
    /// The controller cannot tell.
    Unknown,
}

impl Health {
    /// Words for people.
    pub fn words(self) -> &'static str {
        match self {
            Health::Healthy => "healthy",
            Health::Degraded => "degraded",
            Health::NoPrimary => "no primary",
            Health::Unknown => "unknown",
        }
    }
}

/// `GET /api/v1/clusters/{cluster}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ClusterStatus {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The cluster.
    pub cluster: String,
    /// One word.
    pub health: Health,
    /// Who accepts writes; `null` if nobody.
    pub primary: Option<NodeName>,
    /// Since when.
    pub primary_since: Option<WallTime>,
    /// Its timeline.
    pub timeline: Option<u32>,
    /// Current epoch; 0 before the first.
    pub epoch: u64,
    /// Record number.
    pub record_number: u64,
    /// `sync`, `sync_strict` or `async`.
    pub durability: String,
    /// Standbys that hold every confirmed commit.
    pub eligible: Vec<NodeName>,
    /// What `synchronous_standby_names` shall hold.
    pub synchronous: Vec<NodeName>,
    /// In `sync`: since when commits are confirmed by the primary alone.
    pub alone_since: Option<WallTime>,
    /// `false` while paused.
    pub automation: bool,
    /// When the pause expires.
    pub paused_until: Option<WallTime>,
    /// A switchover that waits for its time.
    #[serde(default)]
    pub scheduled_switchover: Option<ScheduledStatus>,
    /// Every node.
    pub nodes: Vec<NodeStatus>,
    /// Every proxy.
    pub proxies: Vec<ProxyStatus>,
    /// The name that clients connect to; `null` where none is kept, or none was looked at yet.
    #[serde(default)]
    pub name: Option<NameStatus>,
    /// What would be promoted if the primary were lost now.
    pub failover_now: FailoverPreview,
    /// Operations under way.
    pub operations: Vec<Operation>,
    /// What an operator should look at.
    pub warnings: Vec<Warning>,
    /// Timers in force.
    pub timers: TimerStatus,
    /// The predictor; `null` where none is configured.
    #[serde(default)]
    pub predictor: Option<PredictorStatus>,
    /// The controller that answers.
    pub controller: String,
    /// Where there are several controllers, the one that leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<LeaderAddress>,
    /// When the answer was made.
    pub at: WallTime,
}

/// A switchover that waits for its time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ScheduledStatus {
    /// When it begins.
    pub at: WallTime,
    /// Who shall take over; `null`: the best candidate then.
    pub to: Option<NodeName>,
    /// Only candidates of this site.
    pub site: Option<String>,
    /// Who asked.
    pub asked_by: String,
}

/// The name that clients connect to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NameStatus {
    /// The name.
    pub name: String,
    /// Where it shall lead.
    pub wanted: Vec<String>,
    /// The site that this stands for.
    pub site: String,
    /// For how long resolvers may keep an answer, in seconds.
    pub ttl_seconds: u64,
    /// Every authoritative server that was asked leads there.
    pub agrees: bool,
    /// What is undone, and what to do.
    pub error: Option<String>,
    /// What each authoritative server answers.
    pub servers: Vec<NameServerStatus>,
}

/// What one authoritative server answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NameServerStatus {
    /// `host:port`.
    pub server: String,
    /// Where it leads the name; empty where there is no such record, or no answer.
    pub values: Vec<String>,
    /// Epoch in which that was written; `null` if unknown.
    pub epoch: Option<u64>,
    /// What is wrong with it.
    pub error: Option<String>,
}

/// A warning with the next command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Warning {
    /// What is wrong.
    pub message: String,
    /// What to do next: a command.
    pub next: Option<String>,
}

/// Timers of the lease protocol, in seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TimerStatus {
    /// Target.
    pub rto_seconds: f64,
    /// Length of a lease.
    pub lease_seconds: f64,
    /// Between renewals.
    pub renewal_interval_seconds: f64,
    /// For one renewal.
    pub request_timeout_seconds: f64,
    /// Kept for stopping PostgreSQL.
    pub stop_budget_seconds: f64,
    /// How long a leader waits for expiry.
    pub wait_seconds: f64,
    /// The last part of the stop budget, for SIGKILL.
    #[serde(default)]
    pub kill_budget_seconds: f64,
    /// Bound on how far clocks run apart during one lease.
    #[serde(default)]
    pub drift_seconds: f64,
    /// How long a standby's promise binds.
    #[serde(default)]
    pub promise_seconds: f64,
    /// For how long a deposed controller may believe that it leads; `null` with one controller.
    #[serde(default)]
    pub leadership_ttl_seconds: Option<f64>,
    /// What must hold between them, with its numbers.
    #[serde(default)]
    pub rules: Vec<TimerRule>,
    /// How long each class of fault stops the writers before a promotion begins.
    #[serde(default)]
    pub outages: Vec<ExpectedOutage>,
}

/// A rule that the timers must keep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TimerRule {
    /// In the words of the settings.
    pub rule: String,
    /// Left side, worked out.
    pub left_seconds: f64,
    /// Right side.
    pub right_seconds: f64,
    /// Whether it holds.
    pub holds: bool,
    /// The whole of it as `config check` prints it.
    pub statement: String,
}

/// How long one class of fault stops the writers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ExpectedOutage {
    /// What happens.
    pub fault: String,
    /// At most, before a promotion begins; `null`: no bound.
    pub at_most_seconds: Option<f64>,
    /// The whole of it as `config check` prints it.
    pub statement: String,
}

/// One node of [`ClusterStatus`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeStatus {
    /// The node.
    pub name: NodeName,
    /// Where it stands.
    pub site: String,
    /// Where its PostgreSQL listens.
    pub address: Option<Address>,
    /// `primary`, `standby` or `unknown`.
    pub role: String,
    /// `writable`, `streaming`, `replaying`, `starting`, `stopped`, `hung`, `fenced`, `rejoining`, `no data`, `unreachable`, …
    pub state: String,
    /// Its timeline.
    pub timeline: Option<u32>,
    /// Flushed (primary) or received (standby).
    pub flush_lsn: Option<String>,
    /// Written (primary) or replayed (standby).
    pub replay_lsn: Option<String>,
    /// Behind the primary's flush position, in bytes of WAL.
    pub lag_bytes: Option<u64>,
    /// `sync`, `quorum`, `async`, `potential`; `null` for the primary.
    pub sync_state: Option<String>,
    /// Holds every confirmed commit.
    pub eligible: bool,
    /// What is left of its lease; `null` if it holds none.
    pub lease_remaining_seconds: Option<f64>,
    /// Age of its last report; `null` if it never spoke.
    pub seen_seconds: Option<f64>,
    /// Calibrated probability of trouble; `null` without a model.
    pub risk: Option<f64>,
    /// Why it would or would not be promoted now.
    pub assessment: Vec<Reason>,
}

/// One proxy of [`ClusterStatus`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProxyStatus {
    /// The proxy.
    pub name: String,
    /// Where it stands.
    pub site: String,
    /// Where clients connect for writes.
    pub write_address: Option<Address>,
    /// Where that leads.
    pub write_target: Option<Address>,
    /// True if that is the primary.
    pub agrees: bool,
    /// What is wrong.
    pub error: Option<String>,
    /// True while new write connections wait.
    #[serde(default)]
    pub holding: bool,
    /// Reads, applications, HAProxy itself, as the proxy's agent sees them; `null` before its first look.
    #[serde(default)]
    pub traffic: Option<TrafficReport>,
}

/// What would happen if the primary were lost now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FailoverPreview {
    /// Who would be promoted; `null`: nobody.
    pub candidate: Option<NodeName>,
    /// Why, or why nobody.
    pub reasons: Vec<Reason>,
}

/// `GET …/backups`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BackupList {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The cluster.
    pub cluster: String,
    /// Whose agent looked.
    pub seen_by: NodeName,
    /// What it found.
    pub repository: Repository,
    /// What the journal says of backups that were taken by operations, by their label.
    pub verified: BTreeMap<String, VerifiedBackup>,
}

/// A backup that was read back after it was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VerifiedBackup {
    /// When.
    pub at: WallTime,
    /// By which operation.
    pub operation: String,
    /// What the agent said of it; names the manifest's checksum.
    pub note: String,
}

/// Answer to every mutation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MutationReply {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The operation that was begun; `null` for a dry run or where none is needed.
    pub operation: Option<Operation>,
    /// The very plan that was, or would be, stored.
    pub plan: Option<Plan>,
    /// What to expect, for people.
    pub expect: Vec<String>,
    /// A sentence.
    pub message: String,
}

/// `GET …/explain`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The cluster.
    pub cluster: String,
    /// What the controller would do now, and why.
    pub plan: Plan,
    /// For every node: could it be promoted, and why (not).
    pub nodes: Vec<NodeExplanation>,
    /// What witnesses beside its own agent last saw of the primary, and when.
    #[serde(default)]
    pub witnesses: Vec<Reason>,
}

/// One node of [`Explanation`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeExplanation {
    /// The node.
    pub node: NodeName,
    /// Would it be promoted if the primary were lost now?
    pub promotable: bool,
    /// Position among the promotable ones, from 1.
    pub rank: Option<u32>,
    /// Why, or why not.
    pub reasons: Vec<Reason>,
    /// What is expected of it; `null` where no predictor is configured.
    #[serde(default)]
    pub outlook: Option<NodeRisk>,
}

/// RFC 9457 problem document: every error of the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// `about:blank` or a path of the documentation.
    #[serde(rename = "type")]
    pub kind: String,
    /// Short, the same for every occurrence.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// This occurrence: what, where, what to do.
    pub detail: String,
    /// Reasons of a guard that refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<Reason>,
    /// Whom to ask instead, where another controller leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<Box<LeaderAddress>>,
}

/// The controller that leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeaderAddress {
    /// Its name.
    pub name: String,
    /// Base URL of its API.
    pub url: String,
}
