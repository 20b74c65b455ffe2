//! What an agent needs besides its PostgreSQL: a memory that survives it, controllers, and its guard.
//!
//! No implementation enters here.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::domain::clock::{BootId, Moment};
use crate::domain::command::{
    AssignedRole, Assignment, CommandState, HeartbeatReply, PromiseReply, PromiseRequest, ProxyAssignment,
};
use crate::domain::epoch::{Epoch, RecordNumber};
use crate::domain::ids::{Address, ClusterName, NodeName};
use crate::domain::lease::LeaseTimers;
use crate::domain::report::{ProxyReport, Report};

/// Format of [`Memory`]; raised when a field changes its meaning.
pub const MEMORY_FORMAT: u32 = 1;

/// How many finished commands are remembered. One operation has fewer steps than this.
const RESULTS_MAX: usize = 64;

/// What an agent must not forget: on disk before anything that rests on it is answered (design, rule 4).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// [`MEMORY_FORMAT`] of the writer.
    pub format: u32,
    /// The cluster; another cluster's memory is refused.
    pub cluster: ClusterName,
    /// The node; another node's memory is refused.
    pub node: NodeName,
    /// When this memory began. A node that lost its memory consents to nothing for one promise from here.
    pub memory_since: StampedMoment,
    /// Highest epoch ever seen; commands of lower ones are refused.
    pub highest_epoch: Epoch,
    /// Highest record number ever seen.
    pub highest_number: RecordNumber,
    /// In this epoch and all before it, nothing of this node can write again.
    pub fence_confirmed: Option<Epoch>,
    /// Epoch in which the node agreed to be promoted.
    pub consented: Option<Epoch>,
    /// The boot in which it agreed. A lease counts from the consent, so a promotion that arrives in another boot is refused.
    #[serde(default)]
    pub consented_boot: Option<BootId>,
    /// PostgreSQL stays down until an operator says otherwise.
    pub operator_fenced: bool,
    /// A rewind or reclone began and did not finish.
    pub half_rejoined: bool,
    /// The own lease, as last written; the guard knows it better.
    pub lease: Option<OwnLease>,
    /// The service was stopped while the cluster was paused: this epoch's primary was left running.
    pub left_running: Option<Epoch>,
    /// Timers of the last grant.
    pub timers: Option<LeaseTimers>,
    /// The last assignment taken.
    pub assignment: Option<Assignment>,
    /// The last promise not to be promoted, given to the holder of an epoch that no controller answered.
    #[serde(default)]
    pub promise: Option<Promise>,
    /// Finished commands by task key, oldest first.
    pub results: VecDeque<(String, CommandState)>,
}

/// A moment with the boot that gives it meaning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StampedMoment {
    /// The boot.
    pub boot: BootId,
    /// The moment in it.
    pub at: Moment,
}

/// A promise as its giver stores it. In another boot it binds for its whole length from the boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promise {
    /// Epoch whose holder it was given to.
    pub epoch: Epoch,
    /// Until when it binds.
    pub until: Moment,
    /// The boot in which `until` counts.
    pub boot: BootId,
    /// How long it was when it was given.
    pub length: Duration,
}

/// A lease as its holder stores it. Void in another boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnLease {
    /// Epoch granted in.
    pub epoch: Epoch,
    /// When it ends.
    pub deadline: Moment,
    /// The boot in which `deadline` counts.
    pub boot: BootId,
}

impl Memory {
    /// The memory of a node that remembers nothing.
    pub fn new(cluster: ClusterName, node: NodeName, memory_since: StampedMoment) -> Self {
        Self {
            format: MEMORY_FORMAT,
            cluster,
            node,
            memory_since,
            highest_epoch: Epoch(0),
            highest_number: RecordNumber(0),
            fence_confirmed: None,
            consented: None,
            consented_boot: None,
            operator_fenced: false,
            half_rejoined: false,
            lease: None,
            left_running: None,
            timers: None,
            assignment: None,
            promise: None,
            results: VecDeque::new(),
        }
    }

    /// True if a fence of `epoch` or a later one was confirmed: the node is never again authorised in it.
    pub fn is_fenced_in(&self, epoch: Epoch) -> bool {
        self.fence_confirmed.is_some_and(|confirmed| confirmed >= epoch)
    }

    /// True if the node was, or was about to be, the writer of the highest epoch that it knows.
    pub fn was_holder(&self) -> bool {
        let leased = self.lease.as_ref().is_some_and(|lease| lease.epoch == self.highest_epoch);
        let assigned = self
            .assignment
            .as_ref()
            .is_some_and(|last| last.epoch == self.highest_epoch && matches!(last.role, AssignedRole::Primary { .. }));
        leased || assigned
    }

    /// Confirms a fence; nothing older is ever unsaid, and what a newer epoch gave stays.
    pub fn confirm_fence(&mut self, epoch: Epoch) {
        self.fence_confirmed = self.fence_confirmed.max(Some(epoch));
        self.lease = self.lease.take().filter(|lease| lease.epoch > epoch);
        self.left_running = self.left_running.filter(|left| *left > epoch);
    }

    /// Remembers how a command ended and forgets the oldest.
    pub fn remember_result(&mut self, key: String, state: CommandState) {
        self.results.retain(|(known, _)| *known != key);
        self.results.push_back((key, state));
        while self.results.len() > RESULTS_MAX {
            self.results.pop_front();
        }
    }

    /// How the command with this key ended.
    pub fn result(&self, key: &str) -> Option<&CommandState> {
        self.results.iter().find(|(known, _)| known == key).map(|(_, state)| state)
    }

    /// Peers of the last assignment.
    pub fn peers(&self) -> BTreeSet<NodeName> {
        self.assignment.as_ref().map(|last| last.peers.clone()).unwrap_or_default()
    }

    /// The primary of the last assignment, if this node is to follow one.
    pub fn assigned_primary(&self) -> Option<(&NodeName, &Address)> {
        match &self.assignment.as_ref()?.role {
            AssignedRole::Standby { primary, primary_address } => Some((primary, primary_address)),
            AssignedRole::Primary { .. } | AssignedRole::Fenced => None,
        }
    }
}

/// Why the memory could not be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// It is there and says something that cannot be used; it is never ignored.
    #[error("the agent's state in {location} cannot be used: {problem}")]
    Unusable {
        /// File.
        location: String,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// Reading or writing failed.
    #[error("{action} the agent's state in {location}: {problem}")]
    Failed {
        /// Verb.
        action: &'static str,
        /// File.
        location: String,
        /// What went wrong.
        problem: String,
    },
}

/// Where [`Memory`] is kept.
#[async_trait]
pub trait AgentMemory: Send + Sync {
    /// `None` if there never was one. Blocks on the disk; called before anything else runs.
    fn load(&self) -> Result<Option<Memory>, MemoryError>;
    /// On disk, with its directory, before it returns `Ok`; whole or not at all.
    async fn store(&self, memory: &Memory) -> Result<(), MemoryError>;
}

/// Why no controller answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// A standby's agent did not answer.
    #[error("the agent of {peer} did not answer: {problem}")]
    Peer {
        /// Who.
        peer: NodeName,
        /// What went wrong.
        problem: String,
    },
    /// Nobody answered in time with authority.
    #[error("no controller answered: {problems}")]
    NoAnswer {
        /// One problem a controller.
        problems: String,
    },
}

/// The agent's way to its controllers.
#[async_trait]
pub trait ControllerLink: Send + Sync {
    /// Asks every controller at once; the first that answers with authority counts.
    async fn heartbeat(&self, report: &Report, timeout: Duration) -> Result<HeartbeatReply, LinkError>;
    /// The same for a proxy host.
    async fn proxy_heartbeat(&self, report: &ProxyReport, timeout: Duration) -> Result<ProxyAssignment, LinkError>;
}

/// The holder's way to the agents of its standbys.
#[async_trait]
pub trait PeerLink: Send + Sync {
    /// Asks the agent of `peer` at the base URL `agent` for a promise.
    async fn promise(
        &self,
        peer: &NodeName,
        agent: &str,
        request: &PromiseRequest,
        timeout: Duration,
    ) -> Result<PromiseReply, LinkError>;
}

/// A lease as the guard keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldLease {
    /// Epoch granted in.
    pub epoch: Epoch,
    /// When it ends.
    pub deadline: Moment,
    /// When the guard sends SIGKILL if it was neither renewed nor given back.
    pub kill_at: Moment,
}

/// What the guard says to its agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuardEvent {
    /// The service is being stopped.
    Stop,
}

/// The guard cannot be told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tell the guard: {0}")]
pub struct GuardError(pub String);

/// The agent's way to its guard.
#[async_trait]
pub trait GuardLink: Send + Sync {
    /// The lease that the guard held when the agent came; and the epoch that it fenced by itself.
    fn at_start(&self) -> (Option<HeldLease>, Option<Epoch>);
    /// Returns once the guard watches over this deadline.
    async fn hold(&self, held: HeldLease) -> Result<(), GuardError>;
    /// The lease of `epoch` was given back: PostgreSQL is fenced.
    fn release(&self, epoch: Epoch);
    /// The cluster is paused, or is not any more.
    fn paused(&self, paused: bool);
    /// The next thing that the guard says.
    async fn next_event(&self) -> GuardEvent;
}

/// SIGKILL for PostgreSQL's whole family of processes, by the guard: synchronous, without memory to allocate or files
/// of PostgreSQL's disks to touch.
pub trait KillFamily: Send {
    /// Returns once two scans in a row found nothing; an error names what is left.
    fn kill_family(&self, timeout: Duration) -> Result<Duration, String>;

    /// Learns who they are while they are still easy to find. Reads no disk.
    fn look(&self) {}
}

impl<F: Fn(Duration) -> Result<Duration, String> + Send> KillFamily for F {
    fn kill_family(&self, timeout: Duration) -> Result<Duration, String> {
        self(timeout)
    }
}
