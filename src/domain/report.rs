//! What an agent says about its node: facts it saw itself, and what it promised.
//!
//! Nothing here is inferred; a fact the agent could not learn is `None`, never a default.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::certificate::Protection;
use super::clock::{BootId, Moment, WallTime};
use super::epoch::{Epoch, RecordNumber};
use super::ids::{Address, ClusterName, NodeName, ProxyName, SiteName, SystemIdentifier};
use super::lsn::{History, Lsn, Timeline};
use super::traffic::TrafficReport;
use super::work::WorkReport;

/// Everything an agent says at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The cluster the agent is configured for.
    pub cluster: ClusterName,
    /// The node it speaks for.
    pub node: NodeName,
    /// Where the node stands.
    pub site: SiteName,
    /// Where clients and standbys reach its PostgreSQL.
    pub address: Address,
    /// Boot of the agent's host; moments below are void in another boot.
    pub boot: BootId,
    /// Identity of the agent's process; a change means that it was restarted.
    pub incarnation: String,
    /// Counts this incarnation's reports; a lower number than the last one heard is late and ignored.
    pub sequence: u64,
    /// The agent's clock when it sent the report. A grant in the answer counts from here.
    pub sent_at: Moment,
    /// Version of the agent.
    pub version: String,
    /// What the agent stored about epochs.
    pub standing: Standing,
    /// What it knows of its PostgreSQL.
    pub postgres: PostgresReport,
    /// Placement tags from the node's configuration.
    pub tags: Tags,
    /// Commands under way or finished lately: (operation/step) → state.
    #[serde(default)]
    pub tasks: BTreeMap<String, TaskState>,
    /// How its agent's port is protected; `None` from an agent that does not say.
    #[serde(default)]
    pub protection: Option<Protection>,
}

/// What an agent has on disk about its rights and promises (design, rules 3, 4 and 8).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Standing {
    /// Highest epoch it ever saw; it refuses commands of lower ones.
    pub highest_epoch: Epoch,
    /// Highest record number it ever saw.
    pub highest_number: RecordNumber,
    /// Epoch of the lease that it holds and that has not run out.
    pub lease_epoch: Option<Epoch>,
    /// What is left of that lease.
    pub lease_remaining: Option<Duration>,
    /// In this epoch, and all before, none of its processes can accept a write again.
    pub fence_confirmed: Option<Epoch>,
    /// Epoch in which it agreed to be promoted; it grants nothing in older ones.
    pub consented: Option<Epoch>,
    /// An operator fenced the node: PostgreSQL stays down until `unfence`.
    pub operator_fenced: bool,
    /// A rewind or reclone began and did not finish: the data directory must not be started.
    pub half_rejoined: bool,
    /// The service stops while the cluster is paused and leaves its primary running, without a lease.
    #[serde(default)]
    pub left_running: bool,
    /// Number of the record whose renewers the node, as holder of `highest_epoch`, has on disk: from then on it renews only with
    /// the promises of all of them, or from a controller. `None` while it knows none of this epoch, and renews alone.
    #[serde(default)]
    pub acknowledged: Option<RecordNumber>,
    /// The promise that it gave last, while it binds.
    #[serde(default)]
    pub promised: Option<Promised>,
    /// Who renewed its lease last, while it holds one.
    #[serde(default)]
    pub renewed_by: Option<Renewal>,
}

/// Who renews a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Renewal {
    /// The leading controller.
    Controller,
    /// No controller answers: every renewer promised not to be promoted meanwhile.
    Standbys,
    /// No controller answers, and nobody could be promoted without a fence: nobody is asked.
    Alone,
}

impl Renewal {
    /// All of them.
    pub const ALL: [Renewal; 3] = [Renewal::Controller, Renewal::Standbys, Renewal::Alone];

    /// As in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Renewal::Controller => "controller",
            Renewal::Standbys => "standbys",
            Renewal::Alone => "alone",
        }
    }
}

/// A promise not to be promoted, given to the holder of an epoch that no controller answered (design, rule 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promised {
    /// Whose holder it was given to.
    pub epoch: Epoch,
    /// For how much longer it binds, when the report was sent.
    pub remaining: Duration,
}

/// Placement rules of one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Tags {
    /// Never promote this node.
    pub no_failover: bool,
    /// Among equals the higher one is promoted. PostgreSQL habit: 0 or less means never.
    pub failover_priority: i32,
    /// Never name this node in `synchronous_standby_names`.
    pub no_sync: bool,
}

impl Default for Tags {
    fn default() -> Self {
        Self { no_failover: false, failover_priority: 1, no_sync: false }
    }
}

/// State of a long command that an agent runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum TaskState {
    /// Still running; `progress` is for people.
    Running {
        /// What it does at the moment.
        progress: String,
    },
    /// Done.
    Succeeded,
    /// Failed for this reason; nothing was half-applied unless `Standing::half_rejoined` says so.
    Failed {
        /// What, where, what to do.
        error: String,
    },
}

/// What the agent knows of its PostgreSQL.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PostgresReport {
    /// Is it there?
    pub state: PostgresState,
    /// Read from `pg_control` with `pg_controldata`; refreshed whenever PostgreSQL stops.
    pub control: Option<ControlData>,
    /// Why nothing but a new copy helps: `pg_control` cannot be what PostgreSQL left, or the primary no longer has the WAL with which the
    /// standby would go on.
    #[serde(default)]
    pub damage: Option<String>,
    /// Asked over SQL, while it runs and answers.
    pub live: Option<LiveReport>,
    /// The probes: they decide whether a running PostgreSQL is writable, hung or gray.
    pub probes: Probes,
    /// Space left for data and WAL.
    pub disk: Option<DiskReport>,
    /// Memory left to PostgreSQL, while it runs.
    #[serde(default)]
    pub memory: Option<MemoryReport>,
}

/// State of the local PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PostgresState {
    /// There is no data directory, or an empty one.
    NoData,
    /// No process runs on the data directory.
    Stopped,
    /// The postmaster runs and does not accept connections yet (recovery, start).
    Starting,
    /// Runs and answered the last question.
    Running,
    /// Runs and did not answer in time (SIGSTOP, stalled disk, accepts and never answers).
    Unresponsive,
}

/// What `pg_controldata` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlData {
    /// The cluster the data belongs to.
    pub system_identifier: SystemIdentifier,
    /// Database cluster state, as PostgreSQL words it (`shut down`, `in production`, …).
    pub cluster_state: String,
    /// Timeline of the latest checkpoint.
    pub timeline: Timeline,
    /// Latest checkpoint; after a clean shutdown the position of the shutdown record.
    pub checkpoint: Lsn,
    /// Major version, e.g. 15.
    pub major_version: u32,
}

impl ControlData {
    /// True after a clean shutdown of a primary.
    pub fn is_shut_down(&self) -> bool {
        self.cluster_state == "shut down"
    }
}

/// What a running PostgreSQL answers over SQL.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LiveReport {
    /// The cluster the data belongs to.
    pub system_identifier: SystemIdentifier,
    /// `pg_is_in_recovery()`.
    pub in_recovery: bool,
    /// Timeline and ancestry. On a standby the timeline that it replays or receives, the higher one.
    pub history: History,
    /// Postmaster's start, in seconds since 1970; for people.
    pub started_at_unix_seconds: Option<f64>,
    /// Major version, e.g. 15.
    pub major_version: u32,
    /// Primary: flushed on its own disk. Standby: received and flushed, or replayed if that is more.
    pub flush_lsn: Lsn,
    /// Primary: written. Standby: replayed.
    pub replay_lsn: Lsn,
    /// Standby: replay was paused by somebody.
    pub replay_paused: bool,
    /// Standby: the WAL receiver, if it runs.
    pub receiver: Option<ReceiverReport>,
    /// Primary: one row a connected standby.
    pub standbys: Vec<StandbyRow>,
    /// `synchronous_standby_names` as every process of PostgreSQL applies it.
    pub synchronous: Option<SynchronousReport>,
    /// Client connections in use and allowed.
    pub connections: Option<ConnectionReport>,
    /// Wall times, for people.
    #[serde(default)]
    pub clock: ClockReport,
    /// Sessions that keep others waiting.
    #[serde(default)]
    pub waits: Option<WaitReport>,
    /// Slots and archiving: what a recovery will rest on.
    #[serde(default)]
    pub upkeep: Option<UpkeepReport>,
    /// Primary: what its clients get done. Agents of older versions do not tell.
    #[serde(default)]
    pub work: Option<WorkReport>,
}

/// What must be in order before it is needed. It is shown; between candidates that hold the same, damage decides.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UpkeepReport {
    /// `pg_replication_slots`.
    pub slots: Vec<SlotReport>,
    /// `pg_stat_archiver`.
    pub archiver: Option<ArchiverReport>,
    /// Pages whose checksum was wrong when they were read, of all databases; `None` without data checksums.
    #[serde(default)]
    pub checksum_failures: Option<u64>,
}

impl LiveReport {
    /// True if a page of the data was found to be damaged.
    pub fn is_damaged(&self) -> bool {
        self.upkeep.as_ref().and_then(|upkeep| upkeep.checksum_failures).is_some_and(|pages| pages > 0)
    }
}

/// One replication slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotReport {
    /// Its name.
    pub name: String,
    /// Somebody streams from it.
    pub active: bool,
    /// `wal_status`, as PostgreSQL words it: `reserved`, `extended`, `unreserved`, `lost`.
    pub wal_status: Option<String>,
    /// WAL that it keeps from being removed; `None` on a standby, and where it keeps none.
    pub retained_bytes: Option<u64>,
}

/// The archiver of a primary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiverReport {
    /// `archive_mode` is not `off`.
    pub is_on: bool,
    /// Segments that it could not archive, since the statistics began.
    pub failed: u64,
    /// When it last archived one.
    pub last_archived_at: Option<WallTime>,
    /// When it last failed to.
    pub last_failed_at: Option<WallTime>,
    /// Which one that was.
    pub last_failed_wal: Option<String>,
}

/// Wall times as PostgreSQL tells them. They are shown and decide nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ClockReport {
    /// When it gave this answer.
    pub answered_at: Option<WallTime>,
    /// Standby: when the last commit that it replayed was made, on the primary's clock.
    pub last_commit_at: Option<WallTime>,
}

/// Sessions that wait, and that make others wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WaitReport {
    /// Clients that wait for a lock.
    pub waiting_for_locks: u32,
    /// For how long the one that waits longest has been at its statement.
    pub longest_lock_wait: Duration,
    /// Age of the oldest open transaction of a client.
    pub oldest_transaction: Option<Duration>,
}

/// `pg_stat_wal_receiver`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReceiverReport {
    /// The primary that it streams from.
    pub sender: Option<Address>,
    /// True while it streams.
    pub streaming: bool,
    /// Age of the last message from the sender.
    pub last_message_age: Option<Duration>,
}

/// One row of `pg_stat_replication`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StandbyRow {
    /// `application_name`, which is the node's name.
    pub node: String,
    /// `state`, as PostgreSQL words it.
    pub state: String,
    /// `sync_state`: async, potential, sync or quorum.
    pub sync_state: String,
    /// `flush_lsn`.
    pub flush_lsn: Option<Lsn>,
    /// `replay_lsn`.
    pub replay_lsn: Option<Lsn>,
}

impl StandbyRow {
    /// True if commits wait for this standby.
    pub fn is_synchronous(&self) -> bool {
        self.state == "streaming" && (self.sync_state == "sync" || self.sync_state == "quorum")
    }
}

/// Acknowledgement that a change of `synchronous_standby_names` is in force (design, rule 7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SynchronousReport {
    /// The record number that asked for it.
    pub number: RecordNumber,
    /// The standbys that commits wait for.
    pub names: Vec<NodeName>,
    /// The primary's insert position, read *after* the names were in force
    /// (trace `barrier_lsn_read_before_names_applied`).
    pub barrier_lsn: Lsn,
}

/// Client connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionReport {
    /// In use.
    pub used: u32,
    /// `max_connections` less the reserved ones.
    pub allowed: u32,
}

/// Results of the agent's own probes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Probes {
    /// Opens a new connection and asks `SELECT 1`.
    pub connect: Probe,
    /// Commits a transaction that flushes WAL, under `synchronous_commit = local`. Primaries only.
    pub write: Probe,
}

/// One probe's state.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Probe {
    /// Time since the last success; `None` before the first.
    pub last_success_age: Option<Duration>,
    /// Since when it fails without a success in between; `None` while it succeeds.
    pub failing_for: Option<Duration>,
    /// What the last failure said.
    pub last_error: Option<String>,
    /// How long the last success took.
    #[serde(default)]
    pub took: Option<Duration>,
    /// Of all of them, so that no report that is lost or comes late hides one.
    #[serde(default)]
    pub times: ProbeTimes,
}

/// Probes that passed or ran into their time limit, as counters: they grow for as long as a postmaster runs and is open to clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ProbeTimes {
    /// How many.
    pub count: u64,
    /// How long they took together.
    pub took: Duration,
}

impl ProbeTimes {
    /// One more, which took so long.
    pub fn and(self, took: Duration) -> Self {
        Self { count: self.count + 1, took: self.took + took }
    }

    /// How long those since `earlier` took on average; `None` if there was none. Counters that were set back count from zero.
    pub fn mean_since(self, earlier: Self) -> Option<Duration> {
        let earlier = if self.count < earlier.count || self.took < earlier.took { Self::default() } else { earlier };
        let count = u32::try_from(self.count - earlier.count).ok()?;
        (self.took - earlier.took).checked_div(count)
    }
}

/// Space left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskReport {
    /// Free for PostgreSQL on the data directory's filesystem.
    pub data_free_bytes: u64,
    /// Free for PostgreSQL on the WAL directory's filesystem.
    pub wal_free_bytes: u64,
}

/// Memory left to PostgreSQL: the host's, or that of a control group around it whose limit is nearer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryReport {
    /// What may still be taken; pages of files count, as the kernel gives them up.
    pub available_bytes: u64,
    /// Of so much: the host's memory, its commit limit, or the group's limit, whichever is nearest.
    pub total_bytes: u64,
}

/// What an agent on a proxy host says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyReport {
    /// The cluster served.
    pub cluster: ClusterName,
    /// The proxy.
    pub proxy: ProxyName,
    /// Where it stands.
    pub site: SiteName,
    /// Where clients connect for writes.
    pub write_address: Address,
    /// Counts this incarnation's reports.
    pub sequence: u64,
    /// Identity of the agent's process.
    pub incarnation: String,
    /// Where the write port leads; `None` if HAProxy does not answer.
    pub write_target: Option<Address>,
    /// New connections wait instead of being forwarded.
    pub holding: bool,
    /// Epoch of the last redirect that the agent stored.
    pub epoch: Epoch,
    /// What is wrong, for people.
    pub error: Option<String>,
    /// Whether a client's write gets through; `None` without `[proxy.verify]`, and while nothing is led anywhere.
    #[serde(default)]
    pub path: Option<PathReport>,
    /// The rest of what it serves; `None` from an agent that does not say, and before its first look.
    #[serde(default)]
    pub traffic: Option<TrafficReport>,
    /// How its agent's port is protected; `None` from an agent that does not say.
    #[serde(default)]
    pub protection: Option<Protection>,
}

/// The clients' way through a proxy: a new connection to the write port and a commit, made again and again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathReport {
    /// The primary that the writes were to reach.
    pub target: Address,
    /// How they went.
    pub check: Probe,
}
