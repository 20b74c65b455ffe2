//! The local PostgreSQL as its agent handles it.
//!
//! Every call has an end: what can hang (SQL, a stalled disk) takes a timeout and fails; killing never waits for the disk.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;

use crate::domain::backup::WalSegment;
use crate::domain::epoch::RecordNumber;
use crate::domain::ids::{Address, NodeName, SystemIdentifier};
use crate::domain::lsn::{History, Lsn};
use crate::domain::report::{ControlData, DiskReport, LiveReport, MemoryReport, SynchronousReport};

/// What went wrong with PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PostgresError {
    /// It did not answer in time.
    #[error("{action}: no answer from PostgreSQL within {timeout:?}")]
    NoAnswer {
        /// Verb and object.
        action: &'static str,
        /// How long it was waited.
        timeout: Duration,
    },
    /// It answered with an error, or a program failed.
    #[error("{action}: {problem}")]
    Failed {
        /// Verb and object.
        action: &'static str,
        /// What went wrong, where, and what to do.
        problem: String,
    },
    /// Accepts no connection: not running, starting up or shutting down.
    #[error("{action}: PostgreSQL accepts no connection: {problem}")]
    NotAccepting {
        /// Verb and object.
        action: &'static str,
        /// What it said.
        problem: String,
    },
    /// The data are there and cannot be what PostgreSQL left: nothing but a new copy helps.
    #[error("{action}: {problem}")]
    Damaged {
        /// Verb and object.
        action: &'static str,
        /// Which file, and what is wrong with it.
        problem: String,
    },
}

/// What is on the data directory, found without SQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Presence {
    /// No data directory, or an empty one.
    NoData,
    /// Data without a running process.
    Stopped,
    /// A postmaster runs on it.
    Running {
        /// Its process id.
        postmaster: i32,
    },
    /// No postmaster, yet processes of it are left and may still commit.
    Orphans,
}

/// The primary that a standby follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// The primary.
    pub node: NodeName,
    /// Where it listens.
    pub address: Address,
}

/// How PostgreSQL is started. Only a start by the agent opens it to clients; what is on disk keeps it closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartMode {
    /// With `standby.signal`; `None` as upstream: recovers and waits.
    Standby {
        /// Whom to follow.
        upstream: Option<Upstream>,
    },
    /// Without `standby.signal`, open to clients; only ever under a lease. The names are in force before the first client.
    Primary {
        /// Initial `synchronous_standby_names`; empty: none.
        synchronous: BTreeSet<NodeName>,
        /// Block writers while `synchronous` is empty (`sync_strict`).
        block_when_alone: bool,
    },
    /// Without `standby.signal`, after a crash, under the lease that it had: standbys come in and clients do not, until
    /// [`LocalPostgres::open_to_clients`].
    Recovering {
        /// `synchronous_standby_names`, as they were.
        synchronous: BTreeSet<NodeName>,
    },
}

/// What a rewind did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RewindOutcome {
    /// The node's history is contained in the primary's: nothing to do.
    NotNeeded,
    /// pg_rewind brought it onto the primary's history.
    Rewound,
}

/// Who must know that the data directory is about to become neither the old nor the new one.
#[async_trait]
pub trait DataChange: Send + Sync {
    /// It begins; on an error it does not. Whoever remembers it must have it on disk when this returns.
    async fn begins(&self) -> Result<(), PostgresError>;

    /// WAL that the primary's history does not contain was kept aside: where, and which transactions it held. For people.
    fn kept(&self, _words: &str) {}
}

/// Brings a data directory from elsewhere than from the primary.
#[async_trait]
pub trait CopySource: Send + Sync {
    /// Makes the data directory one that replays onto `history`, the primary's, with as much WAL as there is; what is there already
    /// may be used. `change` is told once it is known that this can be done, before anything is changed. Returns words about it, and the
    /// WAL segment with which the primary must go on. An error says why it cannot.
    async fn bring(
        &self,
        system_identifier: SystemIdentifier,
        history: &History,
        change: &dyn DataChange,
        progress: &(dyn Fn(String) + Send + Sync),
    ) -> Result<(String, WalSegment), String>;
}

/// The local PostgreSQL.
#[async_trait]
pub trait LocalPostgres: Send + Sync {
    /// What is there, from the files and the process table alone; never touches SQL.
    async fn presence(&self) -> Presence;

    /// `pg_controldata`; `None` without data.
    async fn control_data(&self) -> Result<Option<ControlData>, PostgresError>;

    /// Makes what is on disk harmless and managed: closed to clients, private socket, the agent's include file. Idempotent; PostgreSQL may run.
    async fn secure_configuration(&self) -> Result<(), PostgresError>;

    /// Starts and returns the postmaster's process id as soon as it runs, without waiting for recovery.
    async fn start(&self, mode: &StartMode) -> Result<i32, PostgresError>;

    /// True if nothing is left of a PostgreSQL that ended because one of its processes crashed, as it does while commits wait for
    /// a standby: it may be started again under the lease that it had. False when in doubt.
    async fn ended_after_crash(&self) -> bool {
        false
    }

    /// True from a start in [`StartMode::Recovering`] until it was opened.
    async fn is_closed_to_clients(&self) -> bool {
        false
    }

    /// Lets clients in after [`StartMode::Recovering`]. Harmless if they are in already.
    async fn open_to_clients(&self, timeout: Duration) -> Result<(), PostgresError> {
        let _nobody_was_kept_out = timeout;
        Ok(())
    }

    /// Returns when the process has ended (pidfd; at once if it is gone already).
    async fn wait_for_exit(&self, postmaster: i32);

    /// Fast shutdown; returns when no process is left, or fails after `timeout` with PostgreSQL still stopping.
    async fn stop_fast(&self, timeout: Duration) -> Result<(), PostgresError>;

    /// Immediate shutdown request (SIGQUIT) without waiting.
    async fn stop_immediate(&self);

    /// SIGKILL for the whole family (found by user and working directory), until two scans in a row are empty.
    /// Processes in uninterruptible sleep with SIGKILL pending count as gone. Returns how long it took; an error names what is left.
    async fn kill_family(&self, timeout: Duration) -> Result<Duration, PostgresError>;

    /// Everything that SQL tells, over the agent's long-held connection.
    async fn observe(&self, timeout: Duration) -> Result<LiveReport, PostgresError>;

    /// Opens a new connection and asks `SELECT 1`.
    async fn probe_connect(&self, timeout: Duration) -> Result<(), PostgresError>;

    /// Commits a transaction with an xid that flushes WAL, under `synchronous_commit = local`; the deadline is the client's.
    async fn probe_write(&self, timeout: Duration) -> Result<(), PostgresError>;

    /// `CHECKPOINT`. Returns where recovery would begin after it: what was written since is not in the data files yet.
    async fn checkpoint(&self, timeout: Duration) -> Result<Lsn, PostgresError>;

    /// Points a running standby at `upstream`; `None` stops the WAL receiver and waits until it has stopped. Returns what was received.
    async fn follow(&self, upstream: Option<&Upstream>, timeout: Duration) -> Result<Lsn, PostgresError>;

    /// Triggers promotion and returns as soon as the server has left recovery; asks every few milliseconds itself.
    /// With `block_when_alone`, commits wait for a standby from the very first one on: that is in force, on disk and in every
    /// process, before promotion is triggered. Returns the first position of the new timeline.
    async fn promote(&self, block_when_alone: bool, timeout: Duration) -> Result<Lsn, PostgresError>;

    /// Sets `synchronous_standby_names`, waits until every process applies it, then reads the barrier position.
    async fn apply_synchronous(
        &self,
        names: &BTreeSet<NodeName>,
        number: RecordNumber,
        block_when_alone: bool,
        timeout: Duration,
    ) -> Result<SynchronousReport, PostgresError>;

    /// Primary: every peer has a physical slot, slots of others with our prefix are dropped.
    /// Standby: slots of ours that would hold back WAL are dropped.
    async fn tend_slots(&self, peers: &BTreeSet<NodeName>, timeout: Duration) -> Result<(), PostgresError>;

    /// Standby that may be promoted in a moment: every peer has a physical slot, which keeps WAL from the last restart point on. So a
    /// primary that crashed finds what it needs after its rewind, back to the last checkpoint that both have in common, although a
    /// promotion ends with a checkpoint. [`Self::tend_slots`] drops them again if nothing comes of it.
    async fn reserve_slots(&self, peers: &BTreeSet<NodeName>, timeout: Duration) -> Result<(), PostgresError>;

    /// Whether `upstream` has removed the WAL with which a standby at `position` would go on: why, in words; `None` if it is there, or not
    /// written yet.
    async fn wal_gone(&self, upstream: &Upstream, position: Lsn) -> Result<Option<String>, PostgresError> {
        let _nothing_is_removed = (upstream, position);
        Ok(None)
    }

    /// Brings a stopped data directory onto the upstream's history; divergent WAL is kept aside first.
    /// Afterwards configuration is secured again. `change` is told before the data is touched, and not if it is not.
    async fn rewind(&self, upstream: &Upstream, change: &dyn DataChange) -> Result<RewindOutcome, PostgresError>;

    /// Replaces the data directory by a base backup of `upstream`; divergent WAL is kept aside first, and the old data until the
    /// backup is complete. `change` is told before the data is touched; `progress` what happens, for people.
    async fn reclone(
        &self,
        upstream: &Upstream,
        change: &dyn DataChange,
        progress: &(dyn Fn(String) + Send + Sync),
    ) -> Result<(), PostgresError>;

    /// The same, with a copy from `source` in place of a base backup: the old data are used and not kept. Fails, with the data directory
    /// neither the old nor the new one, where the primary has no WAL any more with which the copy goes on. Returns words about the copy.
    async fn reclone_from(
        &self,
        upstream: &Upstream,
        source: &dyn CopySource,
        change: &dyn DataChange,
        progress: &(dyn Fn(String) + Send + Sync),
    ) -> Result<String, PostgresError> {
        let _no_files = (upstream, source, change, progress);
        Err(PostgresError::Failed { action: "bring a copy", problem: "this PostgreSQL cannot".to_owned() })
    }

    /// Renames the data directory of a stopped PostgreSQL, so that the node has no data. `name` tells operations apart; repeated under
    /// the same name it does nothing more. Returns where the data are; `None` if there were none.
    async fn set_aside(&self, name: &str) -> Result<Option<PathBuf>, PostgresError> {
        let _no_files = name;
        Err(PostgresError::Failed { action: "put the data aside", problem: "this PostgreSQL cannot".to_owned() })
    }

    /// The same, and puts the recovered, stopped copy in its place, closed to clients. Repeated, it finds it there.
    async fn adopt_copy(&self, copy: &Path, name: &str) -> Result<Option<PathBuf>, PostgresError> {
        let _no_files = (copy, name);
        Err(PostgresError::Failed { action: "adopt a restored copy", problem: "this PostgreSQL cannot".to_owned() })
    }

    /// Space left on the filesystems of data and WAL, without touching them for longer than a moment.
    async fn disk(&self) -> Option<DiskReport>;

    /// Memory left to the postmaster's process. Reads no disk. `None` where nobody can say, as in a simulation.
    async fn memory(&self, postmaster: i32) -> Option<MemoryReport> {
        let _no_process = postmaster;
        None
    }
}
