//! The backup repository as an agent uses it: backups in, copies out.
//!
//! Every call has an end. A copy is made beside the live data and touches nothing of them; where it goes is decided by the caller.

use std::path::{Path, PathBuf};

use async_trait::async_trait;

use crate::domain::backup::{BackupType, DrillMark, RecoveryTarget, Repository, RestorePlan, WalSegment};
use crate::domain::ids::SystemIdentifier;
use crate::domain::lsn::{History, Lsn};
use crate::ports::postgres::DataChange;

/// What went wrong with the repository or with a copy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{action}: {problem}")]
pub struct BackupError {
    /// Verb and object.
    pub action: &'static str,
    /// What went wrong, where, and what to do.
    pub problem: String,
}

impl BackupError {
    /// With its words.
    pub fn new(action: &'static str, problem: impl ToString) -> Self {
        Self { action, problem: problem.to_string() }
    }
}

/// Where words about progress go.
pub type Progress<'a> = &'a (dyn Fn(String) + Send + Sync);

/// A backup as it was read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// SHA-256 of the manifest, in hexadecimal digits.
    pub manifest_sha256: String,
    /// Files that were read.
    pub files: u64,
}

/// The backup repository.
#[async_trait]
pub trait BackupRepository: Send + Sync {
    /// On a primary: makes the repository know this database, if it does not yet. Idempotent.
    async fn prepare(&self) -> Result<(), BackupError>;

    /// On a primary: proves that WAL arrives in the repository, by a segment that is switched for it.
    async fn prove_archiving(&self) -> Result<(), BackupError>;

    /// On a primary that was promoted: brings the WAL of earlier timelines that the former primary could not archive any more.
    /// Returns how many segments were missing.
    async fn fill_archive(&self) -> Result<usize, BackupError>;

    /// What is in it.
    async fn list(&self) -> Result<Repository, BackupError>;

    /// Takes a backup; from this standby, if it is one. Returns its label and words about it.
    async fn backup(&self, backup_type: BackupType, from_standby: bool) -> Result<(String, String), BackupError>;

    /// Reads a backup and its WAL back. An error names what is wrong with it.
    async fn verify(&self, label: &str) -> Result<Verified, BackupError>;

    /// An error if the manifest of a backup is not the one that was read back when it was taken. `recorded`: its SHA-256.
    async fn compare_manifest(&self, label: &str, recorded: &str) -> Result<(), BackupError>;

    /// Where copies of drills are made.
    fn scratch_directory(&self) -> PathBuf;

    /// Finds out, touching nothing, whether `target` can be reached by a copy in `directory`. `in_place`: the copy will take the place
    /// of the node's own data. `expected`: whose data the repository must hold.
    async fn plan(
        &self,
        target: &RecoveryTarget,
        directory: &Path,
        in_place: bool,
        expected: Option<SystemIdentifier>,
    ) -> Result<RestorePlan, BackupError>;

    /// Restores a backup into `directory`; what is there of an earlier attempt at the same is used.
    async fn restore(&self, label: &str, directory: &Path, progress: Progress<'_>) -> Result<(), BackupError>;

    /// Brings the node's own data directory, whose PostgreSQL is stopped, to the newest backup that lies on `history`, using what is there
    /// already, with all the WAL after it that the repository holds without a gap. `change` is told before anything is changed. Returns words about it, and the next segment.
    async fn bring_standby(
        &self,
        expected: SystemIdentifier,
        history: &History,
        change: &dyn DataChange,
        progress: Progress<'_>,
    ) -> Result<(String, WalSegment), BackupError>;

    /// Replays WAL in the copy until `target` and ends its recovery on a timeline of its own. Nobody but this process reaches it,
    /// and it archives nothing. With `stays`, it goes on running for [`BackupRepository::check`]; else it is shut down in order.
    /// Returns up to where it replayed.
    async fn recover(&self, directory: &Path, target: &RecoveryTarget, stays: bool) -> Result<Lsn, BackupError>;

    /// Checks the data of a running copy: every page and index, the ledger's rows, what the user asked for. Words about each.
    async fn check(&self, directory: &Path, mark: &DrillMark) -> Result<Vec<String>, BackupError>;

    /// Stops what runs on a copy and removes it. Idempotent.
    async fn remove(&self, directory: &Path) -> Result<(), BackupError>;

    /// A copy that is complete is somebody else's from now on: [`BackupRepository::remove`] leaves it alone.
    async fn release(&self, directory: &Path) -> Result<(), BackupError>;

    /// On a primary: counts the ledger's rows, and returns once the WAL until then is in the repository.
    async fn mark(&self) -> Result<DrillMark, BackupError>;
}
