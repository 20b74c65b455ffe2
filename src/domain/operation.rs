//! An operation: a plan under way, with its journal. The journal is the only memory of what was done.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::backup::{BackupType, RecoveryTarget};
use super::clock::{Moment, WallTime};
use super::command::CommandOutput;
use super::epoch::Epoch;
use super::evidence::Observation;
use super::ids::{ClusterName, NodeName, OperationId};
use super::plan::{Loss, Reason};
use super::risk::PrimaryRisks;
use super::sequence::SequenceStep;
use super::sequence_step::SequenceIndex;

/// Format of the journal. A changed list of steps is a new format: running operations are finished or refused,
/// never reinterpreted.
pub const JOURNAL_FORMAT: u32 = 4;

/// The oldest format that this version goes on with. One that is older, or newer than [`JOURNAL_FORMAT`], ends as stuck.
pub const JOURNAL_FORMAT_OLDEST: u32 = 1;

/// What is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "operation", rename_all = "snake_case")]
pub enum OperationKind {
    /// Unplanned: the primary is lost. `to` may be the old primary itself, restarted in a new epoch.
    Failover {
        /// The primary that was lost.
        from: NodeName,
        /// Who takes over.
        to: NodeName,
        /// An operator accepted the loss of commits that `to` lacks.
        accept_data_loss: bool,
        /// An operator swore that the old primary is off (lone holders only).
        old_primary_is_off: bool,
    },
    /// Planned, without loss.
    Switchover {
        /// The primary.
        from: NodeName,
        /// Who takes over.
        to: NodeName,
    },
    /// A former primary, a diverged or an empty node becomes a standby.
    Rejoin {
        /// Which.
        node: NodeName,
        /// Skip the rewind.
        reclone: bool,
    },
    /// An operator fences a node.
    Fence {
        /// Which.
        node: NodeName,
    },
    /// A list of steps that users wrote: after a failover, on an alert, by name.
    Sequence {
        /// Which.
        name: String,
        /// The operation that it follows.
        cause: Option<OperationId>,
        /// The primary when it began.
        primary: NodeName,
        /// As they were configured then; references to secrets, never secrets.
        steps: Vec<SequenceStep>,
        /// What their templates may name.
        variables: BTreeMap<String, String>,
    },
    /// A backup is taken and read back.
    Backup {
        /// From whom.
        node: NodeName,
        /// How much it holds.
        backup_type: BackupType,
    },
    /// A backup is restored where nobody uses it, checked and removed.
    Drill {
        /// On whose host.
        node: NodeName,
        /// SHA-256 of the manifests of backups as they were read back, by label; of others it is not known.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        manifests: BTreeMap<String, String>,
    },
    /// A model is trained anew, and published if it is better than the one that scores.
    Retrain {
        /// The primary when it began; nothing happens to it.
        node: NodeName,
        /// How long the training itself may take, in seconds.
        time_limit_seconds: u64,
    },
    /// The cluster begins anew from the repository; or, with `into`, a copy is made beside it that nobody uses.
    Restore {
        /// The primary before.
        from: NodeName,
        /// The primary afterwards.
        node: NodeName,
        /// Up to where.
        target: RecoveryTarget,
        /// Only a copy, in this directory of the node's host.
        into: Option<String>,
        /// SHA-256 of the manifests of backups as they were read back, by label; of others it is not known.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        manifests: BTreeMap<String, String>,
    },
}

impl OperationKind {
    /// Label in metrics and in the API.
    pub fn label(&self) -> &'static str {
        match self {
            OperationKind::Failover { .. } => "failover",
            OperationKind::Switchover { .. } => "switchover",
            OperationKind::Rejoin { .. } => "rejoin",
            OperationKind::Fence { .. } => "fence",
            OperationKind::Sequence { .. } => "sequence",
            OperationKind::Backup { .. } => "backup",
            OperationKind::Drill { .. } => "drill",
            OperationKind::Retrain { .. } => "retrain",
            OperationKind::Restore { .. } => "restore",
        }
    }

    /// True for the operations that move the primary: one at a time in a cluster.
    pub fn moves_primary(&self) -> bool {
        matches!(
            self,
            OperationKind::Failover { .. }
                | OperationKind::Switchover { .. }
                | OperationKind::Restore { into: None, .. }
        )
    }

    /// The node that the operation works on: the next primary, or the node that comes back.
    pub fn subject(&self) -> &NodeName {
        match self {
            OperationKind::Failover { to, .. } | OperationKind::Switchover { to, .. } => to,
            OperationKind::Rejoin { node, .. }
            | OperationKind::Fence { node }
            | OperationKind::Backup { node, .. }
            | OperationKind::Drill { node, .. }
            | OperationKind::Retrain { node, .. }
            | OperationKind::Restore { node, .. } => node,
            OperationKind::Sequence { primary, .. } => primary,
        }
    }
}

/// Every step of every operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepName {
    /// Make the old primary unable to write, and have it confirmed, or wait until its lease has certainly run out.
    Fence,
    /// Write everything dirty to disk before the clock runs.
    Checkpoint,
    /// New connections wait at the proxies.
    Drain,
    /// Fast shutdown of the primary.
    Demote,
    /// Raise the epoch by compare-and-swap.
    AdvanceEpoch,
    /// WAL receivers stopped, positions told, consent stored.
    Freeze,
    /// Point of no return.
    Promote,
    /// Write port of every proxy.
    Redirect,
    /// A real write through the client path.
    Verify,
    /// The name leads to the new primary's site, and a write through a proxy there arrives. Only where a name is kept.
    VerifyName,
    /// pg_rewind, if the node diverged.
    Rewind,
    /// New base backup.
    Reclone,
    /// Start as a standby and stream.
    StartStandby,
    /// Undo of a switchover: the old primary gets the next epoch.
    Reinstate,
    /// Undo of a drain: the write ports lead to the old primary again.
    Release,
    /// The repository is ready, and WAL arrives in it.
    CheckRepository,
    /// A backup is taken.
    Backup,
    /// The backup is read back.
    VerifyBackup,
    /// What a restore needs is there.
    Preflight,
    /// What the live cluster holds is noted, and archived.
    MarkLedger,
    /// A backup is restored to a place of its own.
    RestoreCopy,
    /// WAL is replayed there.
    RecoverCopy,
    /// Its data are checked.
    CheckData,
    /// It is removed.
    RemoveCopy,
    /// The data of the other nodes are put aside.
    SetAside,
    /// Samples are pulled from Prometheus.
    CollectSamples,
    /// A challenger is trained.
    FitModel,
    /// Champion and challenger are judged, and the better one is published.
    PublishModel,
    /// The restored data take the place of the node's own, which are put aside.
    AdoptCopy,
    /// A step of a sequence, by its place: `step_1`.
    #[serde(untagged)]
    Sequence(SequenceIndex),
}

impl StepName {
    /// Label in the journal, in metrics and in the API.
    pub fn label(self) -> &'static str {
        match self {
            StepName::Fence => "fence",
            StepName::Checkpoint => "checkpoint",
            StepName::Drain => "drain",
            StepName::Demote => "demote",
            StepName::AdvanceEpoch => "advance_epoch",
            StepName::Freeze => "freeze",
            StepName::Promote => "promote",
            StepName::Redirect => "redirect",
            StepName::Verify => "verify",
            StepName::VerifyName => "verify_name",
            StepName::Rewind => "rewind",
            StepName::Reclone => "reclone",
            StepName::StartStandby => "start_standby",
            StepName::Reinstate => "reinstate",
            StepName::Release => "release",
            StepName::Sequence(place) => place.label(),
            StepName::CheckRepository => "check_repository",
            StepName::Backup => "backup",
            StepName::VerifyBackup => "verify_backup",
            StepName::Preflight => "preflight",
            StepName::MarkLedger => "mark_ledger",
            StepName::RestoreCopy => "restore_copy",
            StepName::RecoverCopy => "recover_copy",
            StepName::CheckData => "check_data",
            StepName::RemoveCopy => "remove_copy",
            StepName::SetAside => "set_aside",
            StepName::AdoptCopy => "adopt_copy",
            StepName::CollectSamples => "collect_samples",
            StepName::FitModel => "fit_model",
            StepName::PublishModel => "publish_model",
        }
    }
}

impl fmt::Display for StepName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.label())
    }
}

/// State of one attempt at a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum StepState {
    /// Journalled before the effect.
    Started,
    /// Journalled after it.
    Succeeded {
        /// What later steps need.
        #[schema(value_type = Object)]
        output: CommandOutput,
    },
    /// Failed, with nothing changed or as the error says.
    Failed {
        /// What, where, what to do.
        error: String,
    },
    /// May have happened: observe, never assume.
    Unknown {
        /// Why nobody knows.
        error: String,
    },
}

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StepEvent {
    /// Which step.
    pub step: StepName,
    /// Counts from 1.
    pub attempt: u32,
    /// What happened.
    pub state: StepState,
    /// The epoch that the step carried.
    pub epoch: Epoch,
    /// On the clock of the controller that wrote it.
    pub at: Moment,
    /// For people.
    pub wall: WallTime,
}

/// How an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OperationStatus {
    /// Under way.
    Running,
    /// Being unwound.
    Undoing,
    /// Done.
    Succeeded,
    /// Ended without effect, or unwound.
    Failed,
    /// Refused by a guard before it changed anything.
    Refused,
    /// Neither forward nor back without an operator.
    Stuck,
    /// Ended by an operator before the point of no return.
    Cancelled,
}

impl OperationStatus {
    /// True once nothing more will happen.
    pub fn is_final(self) -> bool {
        !matches!(self, OperationStatus::Running | OperationStatus::Undoing)
    }

    /// Label in metrics and in the API.
    pub fn label(self) -> &'static str {
        match self {
            OperationStatus::Running => "running",
            OperationStatus::Undoing => "undoing",
            OperationStatus::Succeeded => "succeeded",
            OperationStatus::Failed => "failed",
            OperationStatus::Refused => "refused",
            OperationStatus::Stuck => "stuck",
            OperationStatus::Cancelled => "cancelled",
        }
    }
}

/// An operation with its whole journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Operation {
    /// [`JOURNAL_FORMAT`] of the controller that began it.
    pub format: u32,
    /// Identity.
    pub id: OperationId,
    /// The cluster.
    pub cluster: ClusterName,
    /// What.
    pub kind: OperationKind,
    /// How it stands.
    pub status: OperationStatus,
    /// `automatic`, or who asked.
    pub origin: String,
    /// Why it was begun.
    pub reasons: Vec<Reason>,
    /// Epoch when it began.
    pub epoch_before: Epoch,
    /// Epoch that it raised the cluster to, once it did.
    pub epoch_after: Option<Epoch>,
    /// An operator asked to stop it; honoured before the point of no return.
    pub cancel_requested: bool,
    /// When the trouble was first seen (failover) or the request arrived.
    pub detected_at: Moment,
    /// When the controller decided.
    pub decided_at: Moment,
    /// For people.
    pub begun_wall: WallTime,
    /// When it ended.
    pub ended_at: Option<Moment>,
    /// For people.
    pub ended_wall: Option<WallTime>,
    /// Why it ended as it did.
    pub message: Option<String>,
    /// Every line, oldest first.
    pub journal: Vec<StepEvent>,
    /// Which witness said what when, oldest first; at most [`super::evidence::OBSERVATIONS_MAX`]. For people: nothing rests on it.
    #[serde(default)]
    pub evidence: Vec<Observation>,
    /// What the model said of the primary, before and after. For people: nothing rests on it.
    #[serde(default)]
    pub risks: PrimaryRisks,
    /// What a promotion loses, as far as it was known at the decision. For people: nothing rests on it.
    #[serde(default)]
    pub loss: Option<Loss>,
}

impl Operation {
    /// The last line about `step`.
    pub fn last(&self, step: StepName) -> Option<&StepEvent> {
        self.journal.iter().rev().find(|event| event.step == step)
    }

    /// What people call a step: in a sequence, the name that they gave it.
    pub fn step_label(&self, step: StepName) -> &str {
        match (&self.kind, step) {
            (OperationKind::Sequence { steps, .. }, StepName::Sequence(place)) => {
                steps.get(place.index()).map_or(step.label(), |step| step.name.as_str())
            }
            _ => step.label(),
        }
    }

    /// Output of `step`, if it succeeded.
    pub fn output(&self, step: StepName) -> Option<&CommandOutput> {
        self.journal.iter().rev().find_map(|event| match &event.state {
            StepState::Succeeded { output } if event.step == step => Some(output),
            _ => None,
        })
    }

    /// True if `step` succeeded at least once.
    pub fn succeeded(&self, step: StepName) -> bool {
        self.output(step).is_some()
    }

    /// True if the last line about `step` is not an end.
    pub fn under_way(&self, step: StepName) -> bool {
        self.last(step).is_some_and(|event| event.state == StepState::Started)
    }

    /// True once the primary was moved and a write through the clients' path was tried: what is left holds up nobody.
    pub fn has_moved(&self) -> bool {
        self.epoch_after.is_some_and(|epoch| {
            self.journal.iter().any(|event| {
                event.step == StepName::Verify && event.epoch == epoch && event.state != StepState::Started
            })
        })
    }

    /// What an operation that ended without success left changed, in words; `None` if nothing was changed, or all of it was undone.
    /// An attempt whose outcome nobody knows counts as made.
    pub fn left_behind(&self) -> Option<String> {
        if !matches!(self.status, OperationStatus::Failed | OperationStatus::Cancelled) {
            return None;
        }
        let (from, to) = match &self.kind {
            OperationKind::Failover { from, to, .. } | OperationKind::Switchover { from, to } => (from, to),
            OperationKind::Fence { node } => return Some(format!("the fence of {node} is stored")),
            // A data directory that is half rejoined is never started, and the next rejoin begins anew.
            // What its steps did outside is theirs to undo.
            OperationKind::Sequence { .. } => return None,
            OperationKind::Rejoin { .. }
            | OperationKind::Backup { .. }
            | OperationKind::Drill { .. }
            | OperationKind::Retrain { .. } => return None,
            OperationKind::Restore { into: Some(directory), node, .. } => {
                let began = self.attempts(StepName::RestoreCopy) > 0;
                return began.then(|| format!("{directory} on {node} may hold a part of the copy"));
            }
            OperationKind::Restore { from, node, into: None, .. } => {
                if self.attempts(StepName::SetAside) + self.attempts(StepName::AdoptCopy) > 0 {
                    return Some("data directories were put aside, as the journal says".to_owned());
                }
                (from, node)
            }
        };
        if self.succeeded(StepName::Reinstate) {
            return None;
        }
        if let Some(epoch) = self.epoch_after {
            let promoted = match self.attempts(StepName::Promote) {
                _ if self.succeeded(StepName::Promote) => "was promoted",
                0 => "was not promoted",
                _ => "may have been promoted",
            };
            return Some(format!("epoch {epoch} was given to {to}, which {promoted}"));
        }
        // A fence that the view already shows is journalled without being asked for.
        let told_to_stop = self
            .journal
            .iter()
            .any(|event| matches!(event.step, StepName::Fence | StepName::Demote) && event.state == StepState::Started);
        told_to_stop.then(|| format!("{from} was told to stop, and stays fenced until it gets another epoch"))
    }

    /// True for a switchover that has not yet touched the writers: nothing but a checkpoint was asked for.
    pub fn only_prepares(&self) -> bool {
        matches!(self.kind, OperationKind::Switchover { .. })
            && self.status == OperationStatus::Running
            && self.attempts(StepName::Drain) == 0
    }

    /// Attempts at `step` so far.
    pub fn attempts(&self, step: StepName) -> u32 {
        self.journal.iter().filter(|event| event.step == step).map(|event| event.attempt).max().unwrap_or(0)
    }
}
