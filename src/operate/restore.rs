//! Restore: preflight → the old primary fenced → a copy restored and recovered beside the live data → every node's data aside, the copy
//! in its place → next epoch → consent → promote → redirect → verify. The other nodes are cloned anew by rejoins that follow.
//!
//! The live data are not touched before the copy is complete, and never removed. Before they are put aside it unwinds by removing the
//! copy: the old primary, which has all its data, goes on. After that it only goes forward, and can be begun again.

use std::time::Duration;

use super::drill::COPY_TIMEOUT;
use super::failover::{fence, may_have_risen};
use super::moving::{next_epoch, swap, tail};
use super::{Effect, Next, Progress, Step, progress, until_done};
use crate::domain::backup::{CopyPlace, RecoveryTarget, RestorePlan};
use crate::domain::command::Command;
use crate::domain::ids::NodeName;
use crate::domain::operation::{Operation, OperationKind, OperationStatus, StepName};
use crate::domain::policy::Policy;
use crate::domain::view::View;

/// An agent that answers, and cannot fence, needs somebody who looks at its host.
const FENCE_ATTEMPTS_MAX: u32 = 20;
/// Questions to the repository.
const PREFLIGHT_TIMEOUT: Duration = Duration::from_secs(900);
/// Files are removed.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(3600);
/// PostgreSQL is stopped, and directories are renamed.
const ASIDE_TIMEOUT: Duration = Duration::from_secs(120);

pub(super) fn next(operation: &Operation, view: &View, policy: &Policy) -> Next {
    let OperationKind::Restore { from, node, target, into, .. } = &operation.kind else {
        unreachable!("dispatched by kind");
    };
    match into {
        Some(directory) => beside(operation, view, node, target, directory),
        None if operation.status == OperationStatus::Undoing => unwind(operation, view, node),
        None => in_place(operation, view, policy, from, node, target),
    }
}

/// True once a data directory may have been put aside.
pub(super) fn is_past_no_return(operation: &Operation) -> bool {
    operation.attempts(StepName::SetAside) + operation.attempts(StepName::AdoptCopy) > 0 || may_have_risen(operation)
}

fn command(operation: &Operation, name: StepName, node: &NodeName, command: Command, timeout: Duration) -> Step {
    let effect = Effect::Command { node: node.clone(), command };
    Step { name, attempt: 1, epoch: operation.epoch_before, effect, timeout }
}

/// Preflight, restore, recover: what both kinds have in common. `Err` is what to do now.
fn preflight(
    operation: &Operation,
    view: &View,
    node: &NodeName,
    target: &RecoveryTarget,
    place: &CopyPlace,
) -> Result<RestorePlan, Next> {
    let failed = |message| Next::End { status: OperationStatus::Failed, message };
    let manifests = match &operation.kind {
        OperationKind::Restore { manifests, .. } => manifests.clone(),
        _ => Default::default(),
    };
    let check = Command::CheckRestore { target: *target, place: place.clone(), manifests };
    let check = command(operation, StepName::Preflight, node, check, PREFLIGHT_TIMEOUT);
    let plan = until_done(operation, view.now, check, 1, failed)?;
    plan.note.as_deref().unwrap_or_default().parse().map_err(failed)
}

fn copy(
    operation: &Operation,
    view: &View,
    node: &NodeName,
    target: &RecoveryTarget,
    place: &CopyPlace,
    plan: RestorePlan,
    give_up: impl Fn(String) -> Next,
) -> Result<(), Next> {
    let restore = Command::RestoreCopy { plan, place: place.clone() };
    let restore = command(operation, StepName::RestoreCopy, node, restore, COPY_TIMEOUT);
    until_done(operation, view.now, restore, 3, &give_up)?;
    let recover = Command::RecoverCopy { target: *target, place: place.clone() };
    let recover = command(operation, StepName::RecoverCopy, node, recover, COPY_TIMEOUT);
    until_done(operation, view.now, recover, 2, &give_up)?;
    Ok(())
}

fn in_place(
    operation: &Operation,
    view: &View,
    policy: &Policy,
    from: &NodeName,
    node: &NodeName,
    target: &RecoveryTarget,
) -> Next {
    let before = operation.epoch_before;
    let place = CopyPlace::Beside;
    if operation.cancel_requested && !is_past_no_return(operation) {
        return Next::Undo { why: "cancelled before any data were put aside".to_owned() };
    }
    let unwound = |why: String| Next::Undo { why };
    if operation.epoch_after.is_none() {
        let plan = match preflight(operation, view, node, target, &place) {
            Ok(plan) => plan,
            Err(next) => return next,
        };
        // Once the store gave the next epoch out, its record speaks of the next holder: that one is not to be fenced.
        if let Some(record) = view.record.as_ref().filter(|record| record.epoch == before)
            && let Err(next) = fence(operation, view, record, policy, from, node, false)
        {
            return match next {
                Next::End { message, .. } => Next::Undo { why: message },
                // Unlike a failover, nobody is worse off without it.
                _ if operation.attempts(StepName::Fence) >= FENCE_ATTEMPTS_MAX => {
                    Next::Undo { why: format!("{from} cannot be fenced: see the journal") }
                }
                next => next,
            };
        }
        if let Err(next) = copy(operation, view, node, target, &place, plan, unwound) {
            return next;
        }
        if let Err(next) = put_in_place(operation, view, node) {
            return next;
        }
    }
    let proposal = || match &view.record {
        Some(record) => next_epoch(view, policy, record, node),
        None => Err("the store has no record".to_owned()),
    };
    let epoch = match swap(operation, view, policy, node, StepName::AdvanceEpoch, before, proposal) {
        Ok(epoch) => epoch,
        Err(next) => return next,
    };
    match tail(operation, view, policy, node, epoch, None) {
        Ok(()) => Next::End {
            status: OperationStatus::Succeeded,
            message: format!(
                "{node} accepts writes in epoch {epoch}, restored to {target}; the other nodes are cloned from it, and the former data \
                 lie aside as the journal says"
            ),
        },
        Err(next) => next,
    }
}

/// The data of every node that is heard go aside: none of them fits to the restored ones. Then the copy takes its place.
fn put_in_place(operation: &Operation, view: &View, node: &NodeName) -> Result<(), Next> {
    let failed = |why: String| Next::End {
        status: OperationStatus::Failed,
        message: format!(
            "{why}; no data were removed: see the journal for where they lie, and begin the restore again"
        ),
    };
    let others = view.nodes.values().filter(|other| other.node != *node && other.report.known().is_some());
    let aside = Step {
        name: StepName::SetAside,
        attempt: 1,
        epoch: operation.epoch_before,
        effect: Effect::Each { nodes: others.map(|other| other.node.clone()).collect(), command: Command::SetAside },
        timeout: ASIDE_TIMEOUT,
    };
    until_done(operation, view.now, aside, 5, failed)?;
    let adopt = command(operation, StepName::AdoptCopy, node, Command::AdoptCopy, ASIDE_TIMEOUT);
    until_done(operation, view.now, adopt, 5, failed)?;
    Ok(())
}

/// Nothing was put aside: the copy goes, and the old primary is started again by the next decision.
fn unwind(operation: &Operation, view: &View, node: &NodeName) -> Next {
    let why = operation.message.clone().unwrap_or_else(|| "undone".to_owned());
    let status = if operation.cancel_requested { OperationStatus::Cancelled } else { OperationStatus::Failed };
    let end = |note: &str| Next::End { status, message: format!("{why}; no data were changed{note}") };
    let is_done = matches!(progress(operation, StepName::RemoveCopy, operation.epoch_before), Progress::Done(_));
    if is_done || operation.attempts(StepName::RestoreCopy) == 0 {
        return end("");
    }
    let remove = Command::RemoveCopy { place: CopyPlace::Beside };
    let remove = command(operation, StepName::RemoveCopy, node, remove, REMOVE_TIMEOUT);
    let give_up = |problem: String| end(&format!("; the copy is left on {node}: {problem}"));
    match until_done(operation, view.now, remove, 3, give_up) {
        Ok(_) => end(""),
        Err(next) => next,
    }
}

/// Only a copy: nothing else is asked of anybody.
fn beside(operation: &Operation, view: &View, node: &NodeName, target: &RecoveryTarget, directory: &str) -> Next {
    let failed = |message| Next::End { status: OperationStatus::Failed, message };
    if operation.cancel_requested {
        let message = format!("cancelled between two steps; what was restored lies in {directory} on {node}");
        return Next::End { status: OperationStatus::Cancelled, message };
    }
    let place = CopyPlace::Into { directory: directory.to_owned() };
    let done = preflight(operation, view, node, target, &place)
        .and_then(|plan| copy(operation, view, node, target, &place, plan, failed));
    match done {
        Ok(()) => Next::End {
            status: OperationStatus::Succeeded,
            message: format!("a copy, restored to {target}, lies in {directory} on {node}, stopped"),
        },
        Err(next) => next,
    }
}
