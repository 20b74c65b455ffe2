//! Would the cluster survive the next fault? What was looked at, how it stands, and what to do about it.
//!
//! Plain data: the checks themselves are in `decide::doctor`, the words for a terminal in `cli`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::backup::Continuity;
pub use super::certificate::{CertificateFacts, Protection};
use super::clock::WallTime;

/// How one check stands, from good to bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// There is nothing to check: not configured, or not needed here. Does not count.
    NotApplicable,
    /// As it should be.
    Ok,
    /// The next fault is survived, perhaps more slowly or with less of a margin. Counts half.
    Warning,
    /// The next fault may not be survived.
    Failing,
}

impl Verdict {
    /// The word in documents.
    pub fn label(self) -> &'static str {
        match self {
            Verdict::NotApplicable => "not_applicable",
            Verdict::Ok => "ok",
            Verdict::Warning => "warning",
            Verdict::Failing => "failing",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Check {
    /// Stable name of the kind of check, such as `candidate`.
    pub check: String,
    /// The node, proxy or controller that it is about; `null`: the whole cluster.
    pub subject: Option<String>,
    /// How it stands.
    pub verdict: Verdict,
    /// What was found, with numbers.
    pub detail: String,
    /// The command to run next; `null` where there is nothing to do.
    pub next: Option<String>,
}

/// The whole examination.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Readiness {
    /// The cluster.
    pub cluster: String,
    /// True if nothing is failing.
    pub survives: bool,
    /// Share of the checks that pass, from 0 to 1; a warning counts half, what does not apply not at all.
    pub score: f64,
    /// Everything that was looked at, in a fixed order.
    pub checks: Vec<Check>,
    /// When.
    pub at: WallTime,
}

impl Readiness {
    /// Counts what was found.
    pub fn new(cluster: impl Into<String>, checks: Vec<Check>, at: WallTime) -> Self {
        let counted: Vec<f64> = checks
            .iter()
            .filter_map(|check| match check.verdict {
                Verdict::NotApplicable => None,
                Verdict::Ok => Some(1.0),
                Verdict::Warning => Some(0.5),
                Verdict::Failing => Some(0.0),
            })
            .collect();
        let score = if counted.is_empty() { 0.0 } else { counted.iter().sum::<f64>() / counted.len() as f64 };
        let survives = checks.iter().all(|check| check.verdict != Verdict::Failing);
        Self { cluster: cluster.into(), survives, score, checks, at }
    }

    /// The worst verdict.
    pub fn worst(&self) -> Verdict {
        self.checks.iter().map(|check| check.verdict).max().unwrap_or(Verdict::NotApplicable)
    }
}

/// What a check rests on that no report of an agent says: gathered by the shell, judged by `decide::doctor`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Circumstances {
    /// True where several controllers share a store and elect a leader.
    pub has_election: bool,
    /// Backups; `None`: none are configured.
    pub backup: Option<BackupFacts>,
    /// Names that follow the primary; `None`: none are configured.
    pub names: Option<NameFacts>,
    /// How this controller is protected from whoever listens on the way.
    pub protection: Protection,
    /// What it shows to its store, as it was read at start.
    pub store_certificates: Vec<CertificateFacts>,
    /// Names of the sequences that begin by themselves after a failover.
    pub sequences_after_failover: Vec<String>,
    /// Stacks that were compared with what they describe.
    pub stacks: Vec<StackFacts>,
    /// Channels of notifications; empty where none is configured.
    pub channels: Vec<ChannelFacts>,
}

/// One channel of notifications.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelFacts {
    /// Its name.
    pub name: String,
    /// Why its last message did not go out, if it did not.
    pub problem: Option<String>,
}

/// What is known of the backups.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BackupFacts {
    /// When the last backup that succeeded ended.
    pub last_success: Option<WallTime>,
    /// What the last one that failed said, if none succeeded since.
    pub last_failure: Option<String>,
    /// A backup older than this is a violation, in seconds; `None`: no target.
    pub objective_seconds: Option<u64>,
    /// When the last drill that succeeded ended.
    pub last_drill: Option<WallTime>,
    /// What the last drill that failed said, if none succeeded since.
    pub last_drill_failure: Option<String>,
    /// What was found when the repository was last looked at, or why it could not be; `None`: not looked at yet.
    pub repository: Option<Result<RepositoryFacts, String>>,
}

/// What is known of the repository.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RepositoryFacts {
    /// How many backups it holds.
    pub backups: usize,
    /// Whether the WAL goes on from the newest of them.
    pub continuity: Continuity,
}

/// What is known of the names that clients resolve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameFacts {
    /// Longest time to live among them, in seconds: for so long clients go where the primary was.
    pub ttl_seconds: u32,
    /// What is wrong with them.
    pub problem: Option<String>,
}

/// One stack of infrastructure, compared with what it describes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StackFacts {
    /// Name or directory.
    pub name: String,
    /// `Ok(true)`: it differs; an error: it could not be compared.
    pub drift: Result<bool, String>,
}
