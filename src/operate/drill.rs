//! Drill: what the live cluster holds is noted → preflight → restore → recover → check → remove.
//!
//! The copy is removed however it ends; the cluster is not touched.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Effect, Next, Progress, Step, progress, until_done};
use crate::domain::backup::{CopyPlace, DrillMark, RecoveryTarget, RestorePlan};
use crate::domain::command::Command;
use crate::domain::ids::NodeName;
use crate::domain::operation::{Operation, OperationStatus, StepName};
use crate::domain::view::View;

/// A segment has to arrive in the repository.
const MARK_TIMEOUT: Duration = Duration::from_secs(300);
/// Questions to the repository.
const PREFLIGHT_TIMEOUT: Duration = Duration::from_secs(900);
/// A large database.
pub(super) const COPY_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// Files are removed.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(3600);

pub(super) fn next(operation: &Operation, node: &NodeName, manifests: &BTreeMap<String, String>, view: &View) -> Next {
    match steps(operation, node, manifests, view) {
        Ok(message) => remove(operation, node, view, OperationStatus::Succeeded, message),
        Err(Next::End { status, message }) => remove(operation, node, view, status, message),
        Err(next) => next,
    }
}

fn steps(
    operation: &Operation,
    node: &NodeName,
    manifests: &BTreeMap<String, String>,
    view: &View,
) -> Result<String, Next> {
    let epoch = operation.epoch_before;
    let end = |status, message: String| Next::End { status, message };
    let failed = |message| end(OperationStatus::Failed, message);
    let Some(record) = view.record.as_ref().filter(|record| record.epoch == epoch) else {
        return Err(failed(format!("the primary moved on from epoch {epoch}: drill again")));
    };
    if operation.cancel_requested {
        return Err(end(OperationStatus::Cancelled, "cancelled between two steps".to_owned()));
    }
    let step = |name, node: &NodeName, command, timeout| Step {
        name,
        attempt: 1,
        epoch,
        effect: Effect::Command { node: node.clone(), command },
        timeout,
    };
    let read = |note: Option<&str>| note.unwrap_or_default().to_owned();

    let mark = step(StepName::MarkLedger, &record.holder, Command::MarkLedger, MARK_TIMEOUT);
    let mark = until_done(operation, view.now, mark, 2, failed)?;
    let mark: DrillMark = read(mark.note.as_deref()).parse().map_err(failed)?;
    let (target, place) = (RecoveryTarget::Latest, CopyPlace::Scratch);
    let preflight = Command::CheckRestore { target, place: place.clone(), manifests: manifests.clone() };
    let preflight = step(StepName::Preflight, node, preflight, PREFLIGHT_TIMEOUT);
    let plan = until_done(operation, view.now, preflight, 2, failed)?;
    let plan: RestorePlan = read(plan.note.as_deref()).parse().map_err(failed)?;
    let restore = Command::RestoreCopy { plan, place: place.clone() };
    until_done(operation, view.now, step(StepName::RestoreCopy, node, restore, COPY_TIMEOUT), 2, failed)?;
    let recover = Command::RecoverCopy { target, place };
    until_done(operation, view.now, step(StepName::RecoverCopy, node, recover, COPY_TIMEOUT), 2, failed)?;
    let check = step(StepName::CheckData, node, Command::CheckCopy { mark }, COPY_TIMEOUT);
    until_done(operation, view.now, check, 1, failed)?;
    Ok(format!("a copy was restored on {node} and its data are good"))
}

/// The end, once nothing of the copy is left. It may lie there from the step that failed.
fn remove(operation: &Operation, node: &NodeName, view: &View, status: OperationStatus, message: String) -> Next {
    let end = |message| Next::End { status, message };
    if operation.attempts(StepName::RestoreCopy) == 0 {
        return end(message);
    }
    // An agent refuses the epoch that the cluster has left meanwhile.
    let epoch = view.record.as_ref().map_or(operation.epoch_before, |record| record.epoch);
    if matches!(progress(operation, StepName::RemoveCopy, epoch), Progress::Done(_)) {
        return end(message);
    }
    let remove = Step {
        name: StepName::RemoveCopy,
        attempt: 1,
        epoch,
        effect: Effect::Command { node: node.clone(), command: Command::RemoveCopy { place: CopyPlace::Scratch } },
        timeout: REMOVE_TIMEOUT,
    };
    let left = message.clone();
    let give_up = |problem: String| end(format!("{left}; the copy is left on {node}: {problem}"));
    match until_done(operation, view.now, remove, 3, give_up) {
        Ok(_) => end(message),
        Err(next) => next,
    }
}
