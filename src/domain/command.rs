//! What a controller tells agents: assignments (level-triggered) and commands (steps of operations).
//!
//! An agent refuses what names another cluster or a lower epoch than it has stored.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::backup::{BackupType, CopyPlace, DrillMark, RecoveryTarget, RestorePlan};
use super::clock::Moment;
use super::epoch::{Epoch, RecordNumber};
use super::ids::{Address, ClusterName, NodeName, OperationId, SystemIdentifier};
use super::lease::{Grant, LeaseTimers};
use super::lsn::Lsn;
use super::operation::StepName;
use super::report::{ProxyReport, Report};
use super::traffic::Backends;

/// HTTP header in which a controller says, in milliseconds, how long it waits for the end of a command.
pub const WAIT_HEADER: &str = "stormglass-wait-milliseconds";

/// What a node shall be, as of one record number. Sent with every heartbeat's answer and pushed on change;
/// an older number than the last one seen is ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The cluster.
    pub cluster: ClusterName,
    /// The data it is about.
    pub system_identifier: SystemIdentifier,
    /// Current epoch.
    pub epoch: Epoch,
    /// Record number.
    pub number: RecordNumber,
    /// What the node shall be.
    pub role: AssignedRole,
    /// Every other node of the cluster: each gets a physical slot on the primary.
    pub peers: BTreeSet<NodeName>,
    /// Standbys that hold every confirmed commit: what `/sync` answers from.
    #[serde(default)]
    pub eligible: BTreeSet<NodeName>,
    /// Standbys, and the base URLs of their agents, all of whose promises renew the holder's lease when no controller answers.
    /// `None` from a controller that does not know of promises: then nothing but a controller renews.
    #[serde(default)]
    pub renewers: Option<BTreeMap<NodeName, String>>,
}

/// Role in an [`Assignment`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "snake_case")]
pub enum AssignedRole {
    /// Holds, or is about to hold, the lease of the epoch.
    Primary {
        /// What `synchronous_standby_names` shall name.
        synchronous: BTreeSet<NodeName>,
        /// The number that its acknowledgement must carry.
        synchronous_number: RecordNumber,
        /// Block writers when `synchronous` is empty (`sync_strict`).
        block_when_alone: bool,
    },
    /// Streams from the primary.
    Standby {
        /// Who that is.
        primary: NodeName,
        /// Where it listens.
        primary_address: Address,
    },
    /// An operator fenced it: PostgreSQL stays down.
    Fenced,
}

/// Answer to a node's heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatReply {
    /// `None` before the first epoch: the node waits.
    pub assignment: Option<Assignment>,
    /// The lease, for the holder; counts from the report's `sent_at`.
    pub grant: Option<Grant>,
    /// Automatic operations are paused: stopping the agent service leaves PostgreSQL running.
    pub paused: bool,
    /// It is stored that the node's primary was left running: only now may the agent go.
    #[serde(default)]
    pub may_leave: bool,
    /// How far the primary had flushed by its last report: what `?lag=` of the health paths is measured against.
    #[serde(default)]
    pub primary_flush_lsn: Option<Lsn>,
}

/// Answer to a proxy's heartbeat, and the redirect that is pushed on change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyAssignment {
    /// The cluster.
    pub cluster: ClusterName,
    /// Epoch; a lower one than stored is ignored.
    pub epoch: Epoch,
    /// Record number; a lower one of the same epoch is ignored.
    pub number: RecordNumber,
    /// The primary; `None` before the first epoch.
    pub primary: Option<ProxyTarget>,
    /// New write connections wait (drain of a switchover, promotion under way).
    pub hold: bool,
    /// Which controller process says so.
    pub leader: String,
    /// Raised by that process with every change; of two from one leader, the lower one is late and ignored.
    pub sequence: u64,
    /// Reads and applications; `None` from a controller that says nothing of them: they stay as they are.
    #[serde(default)]
    pub backends: Option<Backends>,
}

/// A node that a proxy can lead to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyTarget {
    /// The node.
    pub node: NodeName,
    /// Where its PostgreSQL listens.
    pub address: Address,
}

/// A command as a step of an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandEnvelope {
    /// The cluster.
    pub cluster: ClusterName,
    /// The operation's epoch: the one it began in until it raised it, the new one after that.
    pub epoch: Epoch,
    /// The operation.
    pub operation: OperationId,
    /// The step.
    pub step: StepName,
    /// Which attempt at the step. Operation, step, epoch and attempt are the identity of the command: a repeated one is
    /// answered, not run again.
    pub attempt: u32,
    /// What to do.
    pub command: Command,
}

impl CommandEnvelope {
    /// Key of the command in `Report::tasks`.
    pub fn task_key(&self) -> String {
        format!("{}/{}/{}/{}", self.operation, self.step.label(), self.epoch, self.attempt)
    }
}

/// What an agent can be told to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Command {
    /// Make the node unable to write in the envelope's epoch, and confirm it. Gives the lease back.
    Fence,
    /// CHECKPOINT, so that the fast shutdown that follows is short.
    Checkpoint,
    /// Fast shutdown of a healthy primary: succeeds once no process is left, with the position of the shutdown record
    /// as output. Confirms the fence in the envelope's epoch.
    Demote {
        /// After this, immediate, then SIGKILL; the step then fails, fenced all the same.
        timeout: Duration,
    },
    /// Stop the WAL receiver and say what was received. `consent_to` also stores consent to be promoted in that epoch.
    Freeze {
        /// Set for the chosen candidate.
        consent_to: Option<Epoch>,
        /// The fence of this epoch's holder is confirmed, which replaces promises given in it and before.
        #[serde(default)]
        fence_confirmed: Option<Epoch>,
    },
    /// Become the primary of the envelope's epoch: promote a standby, or start a stopped former primary.
    /// Succeeds when the first write has been flushed.
    Promote {
        /// The lease.
        grant: Grant,
        /// What the lease counts from, on the agent's own clock: `sent_at` of the report with which it consented. A command that
        /// travels for long therefore shortens the lease and never lengthens it.
        counts_from: Moment,
        /// A standby must have received up to here (shutdown record of a switchover).
        required_lsn: Option<Lsn>,
        /// Writers wait from the first write on until a standby confirms (`sync_strict`).
        #[serde(default)]
        block_when_alone: bool,
    },
    /// Bring the data directory onto the primary's history: pg_rewind if it diverged, nothing if it did not.
    Rewind {
        /// The current primary.
        primary: NodeName,
        /// Where it listens.
        primary_address: Address,
    },
    /// Replace the data directory by a new base backup of the primary. The old one is kept aside until the new one streams.
    Reclone {
        /// The current primary.
        primary: NodeName,
        /// Where it listens.
        primary_address: Address,
    },
    /// Start as a standby of the primary; succeeds when it streams.
    StartStandby {
        /// The current primary.
        primary: NodeName,
        /// Where it listens.
        primary_address: Address,
    },
    /// Primary: make the repository ready for this database, and prove that its WAL arrives there.
    PrepareRepository,
    /// Take a backup from this node. The note begins with its label.
    Backup {
        /// How much it shall hold.
        backup_type: BackupType,
    },
    /// Read a backup and its WAL back from the repository. The note begins with its label and names the manifest's checksum.
    VerifyBackup {
        /// Which.
        label: String,
    },
    /// Find out, touching nothing, whether `target` can be reached here. The note is a [`RestorePlan`].
    CheckRestore {
        /// Up to where.
        target: RecoveryTarget,
        /// Where the copy would be.
        place: CopyPlace,
        /// SHA-256 of the manifests of backups as they were read back, by label; of others it is not known.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        manifests: BTreeMap<String, String>,
    },
    /// Restore a backup to a place beside the live data.
    RestoreCopy {
        /// What was found before.
        plan: RestorePlan,
        /// Where.
        place: CopyPlace,
    },
    /// Replay WAL in the restored copy, which only this agent reaches, until `target`, and end its recovery.
    RecoverCopy {
        /// Up to where.
        target: RecoveryTarget,
        /// Where the copy is.
        place: CopyPlace,
    },
    /// Primary: count the rows of the ledger's tables and have all WAL until then archived. The note is a [`DrillMark`].
    MarkLedger,
    /// Check the data of the recovered copy of a drill. The note says what was checked.
    CheckCopy {
        /// What the live cluster had when the drill began.
        mark: DrillMark,
    },
    /// Stop what runs on a copy, and remove it.
    RemoveCopy {
        /// Where it is.
        place: CopyPlace,
    },
    /// Stop PostgreSQL and put its data directory aside, under a name that the operation gives.
    SetAside,
    /// Put the data directory aside, and the recovered copy in its place.
    AdoptCopy,
    /// Proxy hosts: a real write through the write port, which must arrive at `expect`.
    VerifyWrite {
        /// Where the write must have been made.
        expect: Address,
    },
}

/// The holder of an epoch asks a standby not to be promoted for one lease, because no controller answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromiseRequest {
    /// The cluster.
    pub cluster: ClusterName,
    /// The data it is about.
    pub system_identifier: SystemIdentifier,
    /// The epoch whose lease is to be renewed.
    pub epoch: Epoch,
    /// Who holds it.
    pub holder: NodeName,
    /// Who is asked. Nobody else may answer in its place.
    pub standby: NodeName,
    /// Timers of the lease; the promise lasts [`LeaseTimers::promise`] from when it is given.
    pub timers: LeaseTimers,
}

/// The answer. A promise is on disk before it is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum PromiseReply {
    /// The standby will not be promoted for one promise from now.
    Promised,
    /// It promises nothing.
    Refused {
        /// Why, for people.
        reason: String,
    },
}

/// Answer of an agent to a command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CommandReply {
    /// How it stands.
    pub state: CommandState,
    /// The node's facts after it, so that the next decision need not wait for a heartbeat.
    pub report: Option<Box<Report>>,
}

/// Outcome of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum CommandState {
    /// Under way; ask again with the same envelope.
    Running {
        /// For people.
        progress: String,
    },
    /// Done.
    Succeeded {
        /// What later steps need.
        output: CommandOutput,
    },
    /// Not done, and nothing changed, or as the error says.
    Failed {
        /// What, where, what to do.
        error: String,
    },
    /// Refused by a guard of the agent: lower epoch, other cluster, fenced by an operator.
    Refused {
        /// Which and why.
        reason: String,
    },
}

/// What a command gives to the steps after it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CommandOutput {
    /// `Checkpoint`: where recovery would begin. `Demote`: the shutdown record. `Freeze`: received. `Promote`: first position of
    /// the new timeline.
    pub lsn: Option<Lsn>,
    /// `Rewind`: what was done (`in_place`, `rewound`). For people and history.
    pub note: Option<String>,
}

/// Answer of a proxy's agent to an assignment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyReply {
    /// `None` if the assignment is in force.
    pub error: Option<String>,
    /// Facts after it.
    pub report: ProxyReport,
}
