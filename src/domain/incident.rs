//! The report of an operation, for the people who read it the day after: what happened, when, why, what it cost.
//!
//! Made from journals alone, so that it says the same a year later. What nobody knows is `None`, never zero.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::clock::{Moment, WallTime};
use super::evidence::Observation;
use super::loss::LostWal;
use super::operation::{Operation, OperationKind, OperationStatus, StepEvent, StepName, StepState};
use super::plan::ReasonCode;

/// What an agent says of a former primary whose WAL the new one has in full.
pub const IN_PLACE: &str = "in_place";

/// Version of the document.
pub const INCIDENT_SCHEMA: u32 = 1;

/// One operation with what followed from it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct IncidentReport {
    /// [`INCIDENT_SCHEMA`].
    pub schema_version: u32,
    /// The operation.
    pub operation: String,
    /// The cluster.
    pub cluster: String,
    /// `failover`, `switchover`, ….
    pub kind: String,
    /// In words.
    pub title: String,
    /// How it ended, or stands.
    pub status: OperationStatus,
    /// `automatic`, or who asked.
    pub origin: String,
    /// When it was decided.
    pub began: WallTime,
    /// When it ended.
    pub ended: Option<WallTime>,
    /// Who was the primary before.
    pub old_primary: Option<String>,
    /// Who was to be it afterwards.
    pub new_primary: Option<String>,
    /// Epoch before and after.
    pub epoch_before: u64,
    /// Epoch that it raised the cluster to.
    pub epoch_after: Option<u64>,
    /// Why it was begun.
    pub reasons: Vec<String>,
    /// Why it ended as it did.
    pub message: Option<String>,
    /// What it left changed although it did not succeed.
    pub left_behind: Option<String>,
    /// Time without writes as the controller saw it: from the first sign of trouble until every proxy led to the new primary.
    pub rto_seconds: Option<f64>,
    /// WAL that is not in the new history, in bytes; 0: nothing that was confirmed. Counted once the old primary came back, before that what
    /// was known when it was decided. `null`: not known (yet).
    pub lost_bytes: Option<u64>,
    /// When the last commit was made that the new primary was known to have, on the old primary's clock.
    #[serde(default)]
    pub last_commit_kept: Option<WallTime>,
    /// When the last commit was made that it does not have, once the old primary came back with it.
    #[serde(default)]
    pub last_commit_lost: Option<WallTime>,
    /// What that number rests on.
    pub loss: String,
    /// From the first sign of trouble until the old primary was a standby again.
    pub redundancy_seconds: Option<f64>,
    /// Calibrated risk of the old primary before; `null` without a model.
    pub risk_before: Option<f64>,
    /// And of the new one afterwards.
    pub risk_after: Option<f64>,
    /// Where the time went.
    pub phases: Vec<Phase>,
    /// Every line of the journal.
    pub steps: Vec<Line>,
    /// Which witness said what when.
    pub witnesses: Vec<Observation>,
    /// Operations that followed from it.
    pub followed_by: Vec<Followed>,
    /// Steps of the sequences that followed.
    pub restore_sequence: Vec<SequenceLine>,
}

/// One phase, from the first start of a step to its last end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Phase {
    /// `detect_to_decide`, or the step.
    pub phase: String,
    /// After the first sign of trouble.
    pub began_seconds: f64,
    /// How long; `null` if it has not ended.
    pub seconds: Option<f64>,
}

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Line {
    /// After the first sign of trouble.
    pub at_seconds: f64,
    /// Which step.
    pub step: String,
    /// Counts from 1.
    pub attempt: u32,
    /// `started`, `succeeded`, `failed` or `unknown`.
    pub state: String,
    /// How long the attempt took.
    pub seconds: Option<f64>,
    /// Output or error.
    pub detail: Option<String>,
}

/// An operation that followed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Followed {
    /// Its id.
    pub operation: String,
    /// In words.
    pub title: String,
    /// How it ended.
    pub status: OperationStatus,
    /// How long it took.
    pub seconds: Option<f64>,
    /// Why it ended as it did, and what was done.
    pub detail: Option<String>,
}

/// One step of a sequence that followed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SequenceLine {
    /// The step's name.
    pub step: String,
    /// `succeeded`, `failed`, `unknown`, `running`.
    pub outcome: String,
    /// How long.
    pub seconds: Option<f64>,
    /// The last thing it said.
    pub detail: Option<String>,
}

/// Time since detection. Moments of another boot cannot be compared; then the wall clocks are the best there is.
pub fn offset(operation: &Operation, at: Moment, wall: WallTime) -> Duration {
    if at >= operation.detected_at { at.since(operation.detected_at) } else { wall.since(operation.begun_wall) }
}

/// How long the attempt that `event` ends took.
pub fn step_took(before: &[StepEvent], event: &StepEvent) -> Option<Duration> {
    if event.state == StepState::Started {
        return None;
    }
    let start = before
        .iter()
        .rev()
        .find(|it| it.step == event.step && it.attempt == event.attempt && it.state == StepState::Started)?;
    Some(if event.at >= start.at { event.at.since(start.at) } else { event.wall.since(start.wall) })
}

/// From detection to the end; `None` while it runs.
pub fn took(operation: &Operation) -> Option<Duration> {
    let (at, wall) = (operation.ended_at?, operation.ended_wall?);
    Some(offset(operation, at, wall))
}

/// `failover of n1 to n2`.
pub fn title(kind: &OperationKind) -> String {
    match kind {
        OperationKind::Failover { from, to, .. } if from == to => format!("failover of {from} in place"),
        OperationKind::Failover { from, to, .. } => format!("failover from {from} to {to}"),
        OperationKind::Switchover { from, to } => format!("switchover from {from} to {to}"),
        OperationKind::Sequence { name, .. } => format!("sequence {name}"),
        other => format!("{} of {}", other.label(), other.subject()),
    }
}

impl IncidentReport {
    /// The report of `operation`; `all` are the operations of its cluster, in any order.
    pub fn of(operation: &Operation, all: &[Operation]) -> Self {
        let (old, new) = match &operation.kind {
            OperationKind::Failover { from, to, .. } | OperationKind::Switchover { from, to } => (Some(from), Some(to)),
            _ => (None, None),
        };
        let followed = followed(operation, all);
        let Lost { bytes: lost_bytes, words: loss, last_commit_kept, last_commit_lost } = lost(operation, &followed);
        let back = followed.iter().find(|other| {
            matches!(&other.kind, OperationKind::Rejoin { node, .. } if Some(node) == old)
                && other.status == OperationStatus::Succeeded
        });
        let redundancy = back.and_then(|other| Some(offset(operation, other.ended_at?, other.ended_wall?)));
        Self {
            schema_version: INCIDENT_SCHEMA,
            operation: operation.id.to_string(),
            cluster: operation.cluster.to_string(),
            kind: operation.kind.label().to_owned(),
            title: title(&operation.kind),
            status: operation.status,
            origin: operation.origin.clone(),
            began: operation.begun_wall,
            ended: operation.ended_wall,
            old_primary: old.map(ToString::to_string),
            new_primary: new.map(ToString::to_string),
            epoch_before: operation.epoch_before.0,
            epoch_after: operation.epoch_after.map(|epoch| epoch.0),
            reasons: operation.reasons.iter().map(ToString::to_string).collect(),
            message: operation.message.clone(),
            left_behind: operation.left_behind(),
            rto_seconds: outage(operation).map(seconds),
            lost_bytes,
            last_commit_kept,
            last_commit_lost,
            loss,
            redundancy_seconds: redundancy.map(seconds),
            risk_before: operation.risks.before_per_mille.map(|risk| f64::from(risk) / 1000.0),
            risk_after: operation.risks.after_per_mille.map(|risk| f64::from(risk) / 1000.0),
            phases: phases(operation),
            steps: lines(operation),
            witnesses: operation.evidence.clone(),
            followed_by: followed.iter().map(|other| follow(other)).collect(),
            restore_sequence: followed.iter().flat_map(|other| sequence_lines(other)).collect(),
        }
    }
}

/// What followed: everything of the epoch that the operation raised, begun after it, until the primary moved again.
fn followed<'a>(operation: &Operation, all: &'a [Operation]) -> Vec<&'a Operation> {
    let Some(epoch) = operation.epoch_after else { return Vec::new() };
    let mut found: Vec<&Operation> = all
        .iter()
        .filter(|other| other.id != operation.id && other.epoch_before == epoch && !other.kind.moves_primary())
        .collect();
    found.sort_by_key(|other| other.begun_wall);
    found
}

/// Each step of a sequence once, as it ended or stands.
pub fn sequence_lines(operation: &Operation) -> Vec<SequenceLine> {
    let OperationKind::Sequence { steps, .. } = &operation.kind else { return Vec::new() };
    let line = |(index, step): (usize, &super::sequence::SequenceStep)| {
        let name = StepName::Sequence(super::sequence_step::SequenceIndex::new(index)?);
        let last = operation.last(name)?;
        let first = operation.journal.iter().find(|event| event.step == name)?;
        let (outcome, detail) = match &last.state {
            StepState::Started => ("running", None),
            StepState::Succeeded { output } => ("succeeded", output.note.clone()),
            StepState::Failed { error } => ("failed", Some(error.clone())),
            StepState::Unknown { error } => ("unknown", Some(error.clone())),
        };
        let is_over = last.state != StepState::Started;
        let spent = offset(operation, last.at, last.wall).saturating_sub(offset(operation, first.at, first.wall));
        let (outcome, seconds) = (outcome.to_owned(), is_over.then(|| seconds(spent)));
        Some(SequenceLine { step: step.name.clone(), outcome, seconds, detail })
    };
    steps.iter().enumerate().filter_map(line).collect()
}

fn follow(operation: &Operation) -> Followed {
    let notes = operation.journal.iter().filter_map(|event| match &event.state {
        // The steps of a sequence have a table of their own.
        StepState::Succeeded { output } if !matches!(event.step, StepName::Sequence(_)) => output.note.clone(),
        _ => None,
    });
    let detail: Vec<String> = operation.message.clone().into_iter().chain(notes).collect();
    Followed {
        operation: operation.id.to_string(),
        title: title(&operation.kind),
        status: operation.status,
        seconds: took(operation).map(seconds),
        detail: (!detail.is_empty()).then(|| detail.join("; ")),
    }
}

/// From the first sign of trouble, or in a switchover from when writers had to wait, until they were led to the new primary.
fn outage(operation: &Operation) -> Option<Duration> {
    if !operation.succeeded(StepName::Promote) {
        return None;
    }
    let ended = |step| {
        let last = operation.journal.iter().rev().find(|event| event.step == step && event.state != StepState::Started);
        last.map(|event| offset(operation, event.at, event.wall))
    };
    let until = ended(StepName::Redirect).or_else(|| ended(StepName::Promote))?;
    let from = match operation.kind {
        OperationKind::Switchover { .. } => {
            let waits = |event: &&StepEvent| matches!(event.step, StepName::Drain | StepName::Demote);
            let first = operation.journal.iter().find(waits)?;
            offset(operation, first.at, first.wall)
        }
        _ => Duration::ZERO,
    };
    Some(until.saturating_sub(from))
}

/// What an operation cost.
struct Lost {
    bytes: Option<u64>,
    words: String,
    last_commit_kept: Option<WallTime>,
    last_commit_lost: Option<WallTime>,
}

fn lost(operation: &Operation, followed: &[&Operation]) -> Lost {
    let nothing = |words: String| Lost { bytes: Some(0), words, last_commit_kept: None, last_commit_lost: None };
    let (from, to, accepted) = match &operation.kind {
        OperationKind::Failover { from, to, accept_data_loss, .. } => (from, to, *accept_data_loss),
        OperationKind::Switchover { .. } => {
            return nothing("a switchover waits until the new primary has everything".to_owned());
        }
        _ => return nothing("no primary was moved".to_owned()),
    };
    if !operation.succeeded(StepName::Promote) {
        return nothing("nobody was promoted".to_owned());
    }
    if from == to {
        return nothing("the primary went on with its own data".to_owned());
    }
    let came_back = followed.iter().find_map(|other| match &other.kind {
        OperationKind::Rejoin { node, .. } if node == from => {
            [StepName::Rewind, StepName::Reclone].into_iter().find_map(|step| other.output(step)?.note.as_deref())
        }
        _ => None,
    });
    let counted = came_back.and_then(|note| match note {
        IN_PLACE => Some(LostWal { bytes: 0, last_commit_at: None }),
        note => LostWal::find(note),
    });
    let kept = came_back.filter(|note| note.contains("divergent") || *note == IN_PLACE);
    let kept = kept.map_or_else(String::new, |note| match note {
        IN_PLACE => format!("; {from} came back: {to} has all that it wrote"),
        note => format!("; {from} came back: {note}"),
    });
    let is_complete = operation.reasons.iter().any(|reason| {
        reason.code == ReasonCode::HoldsEveryConfirmedCommit && reason.node.as_ref().is_none_or(|node| node == to)
    });
    if is_complete && !accepted {
        return nothing(format!("{to} held every confirmed commit when it was chosen{kept}"));
    }
    let said = operation.reasons.iter().find(|reason| reason.code == ReasonCode::WouldLoseCommits);
    let said = match (&operation.loss, said) {
        (Some(loss), _) => loss.to_string(),
        (None, Some(reason)) => reason.detail.clone(),
        (None, None) => format!("nothing says that {to} held every confirmed commit"),
    };
    let foreseen = operation.loss.as_ref().and_then(|loss| loss.missing_bytes);
    Lost {
        bytes: counted.map(|counted| counted.bytes).or(foreseen),
        words: format!("{said}{kept}"),
        last_commit_kept: operation.loss.as_ref().and_then(|loss| loss.last_commit_at),
        last_commit_lost: counted.and_then(|counted| counted.last_commit_at),
    }
}

fn phases(operation: &Operation) -> Vec<Phase> {
    let mut phases = vec![Phase {
        phase: "detect_to_decide".to_owned(),
        began_seconds: 0.0,
        seconds: Some(seconds(operation.decided_at.since(operation.detected_at))),
    }];
    let mut seen: Vec<StepName> = Vec::new();
    for event in &operation.journal {
        if seen.contains(&event.step) {
            continue;
        }
        seen.push(event.step);
        let ended = operation.journal.iter().rev().find(|it| it.step == event.step && it.state != StepState::Started);
        let began = offset(operation, event.at, event.wall);
        phases.push(Phase {
            phase: operation.step_label(event.step).to_owned(),
            began_seconds: seconds(began),
            seconds: ended.map(|end| seconds(offset(operation, end.at, end.wall).saturating_sub(began))),
        });
    }
    phases
}

fn lines(operation: &Operation) -> Vec<Line> {
    let line = |(index, event): (usize, &StepEvent)| {
        let (state, detail) = match &event.state {
            StepState::Started => ("started", None),
            StepState::Succeeded { output } => {
                let lsn = output.lsn.map(|lsn| format!("LSN {lsn}"));
                let parts: Vec<String> = lsn.into_iter().chain(output.note.clone()).collect();
                ("succeeded", (!parts.is_empty()).then(|| parts.join(", ")))
            }
            StepState::Failed { error } => ("failed", Some(error.clone())),
            StepState::Unknown { error } => ("unknown", Some(error.clone())),
        };
        Line {
            at_seconds: seconds(offset(operation, event.at, event.wall)),
            step: operation.step_label(event.step).to_owned(),
            attempt: event.attempt,
            state: state.to_owned(),
            seconds: step_took(&operation.journal[..index], event).map(seconds),
            detail,
        }
    };
    operation.journal.iter().enumerate().map(line).collect()
}

/// Microseconds are what the clock has.
fn seconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e6
}
