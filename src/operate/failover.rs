//! Failover: fence → next epoch → freeze and consent → promote → redirect → verify.
//!
//! The order is the safety: nothing is promoted before the old primary certainly cannot write and the store has given the
//! epoch out. The first epoch of a cluster, and a restart in place, are failovers of a node to itself.

use std::collections::BTreeMap;
use std::time::Duration;

use super::moving::{named, next_epoch, swap, tail};
use super::{Effect, Next, Progress, Step, is_in_doubt, is_past_no_return, progress, still_to_wait};
use crate::domain::command::{Command, CommandOutput};
use crate::domain::epoch::{Epoch, RecordNumber};
use crate::domain::ids::NodeName;
use crate::domain::operation::{Operation, OperationKind, OperationStatus, StepName};
use crate::domain::plan::{Reason, ReasonCode};
use crate::domain::policy::{DurabilityMode, Policy};
use crate::domain::proof::{self, Proof};
use crate::domain::record::{ClusterRecord, Member};
use crate::domain::view::View;

/// How the note of a fence step ends that rests on the end of the lease and not on a confirmation.
const RUN_OUT: &str = "has certainly run out";

/// How often an agent that answers, and fails to fence, is asked again; the lease's expiry is waited for beside it.
const FENCE_PAUSE: Duration = Duration::from_millis(500);

pub(super) fn next(operation: &Operation, view: &View, policy: &Policy) -> Next {
    let OperationKind::Failover { from, to, old_primary_is_off, accept_data_loss } = &operation.kind else {
        unreachable!("dispatched by kind");
    };
    let before = operation.epoch_before;
    if operation.status == OperationStatus::Undoing {
        return give_back(operation, view, policy, from);
    }
    if operation.epoch_after.is_none()
        && !accept_data_loss
        && let Some(record) = view.record.as_ref().filter(|record| record.epoch == before)
        && lost_its_place(record, policy, to)
    {
        return Next::End {
            status: OperationStatus::Failed,
            message: format!("record {} no longer says that {to} holds every confirmed commit", record.number),
        };
    }
    if operation.cancel_requested && !may_have_risen(operation) {
        return Next::End {
            status: OperationStatus::Cancelled,
            message: "cancelled before the epoch was raised".to_owned(),
        };
    }
    // Once the store gave the next epoch out, its record speaks of the next holder: that one is not to be fenced.
    if let Some(record) = view.record.as_ref().filter(|record| record.epoch == before)
        && operation.epoch_after.is_none()
        && let Err(next) = fence(operation, view, record, policy, from, to, *old_primary_is_off)
    {
        return next;
    }
    let proposal = || match &view.record {
        Some(record) => next_epoch(view, policy, record, to),
        None => first_record(operation, view, policy, to),
    };
    let epoch = match swap(operation, view, policy, to, StepName::AdvanceEpoch, before, proposal) {
        Ok(epoch) => epoch,
        Err(next) => return next,
    };
    match tail(operation, view, policy, to, epoch, None) {
        Ok(()) => {
            let message = format!("{to} accepts writes in epoch {epoch}");
            let end = Next::End { status: OperationStatus::Succeeded, message };
            named(operation, view, policy, to, epoch, end)
        }
        Err(Next::End { status: OperationStatus::Failed, message })
            if from != to && !is_past_no_return(operation) && holds(view, to, epoch) && view.report(from).is_some() =>
        {
            Next::Undo { why: message }
        }
        Err(next) => next,
    }
}

fn holds(view: &View, node: &NodeName, epoch: Epoch) -> bool {
    view.record.as_ref().is_some_and(|record| record.epoch == epoch && record.holder == *node)
}

/// The epoch was given out and nobody was told to promote: the candidate wrote nothing and, without that command, never will.
/// The old primary, which is fenced and has every commit, gets the next one, so that it counts as a candidate again.
fn give_back(operation: &Operation, view: &View, policy: &Policy, from: &NodeName) -> Next {
    let why = operation.message.clone().unwrap_or_else(|| "undone".to_owned());
    let base =
        operation.journal.iter().rev().find(|event| event.step == StepName::AdvanceEpoch).map(|event| event.epoch);
    let base = base.unwrap_or(operation.epoch_before);
    let proposal = || match &view.record {
        Some(record) => next_epoch(view, policy, record, from),
        None => Err("the store has no record".to_owned()),
    };
    match swap(operation, view, policy, from, StepName::Reinstate, base, proposal) {
        Ok(epoch) => Next::End {
            status: OperationStatus::Failed,
            message: format!("{why}; epoch {epoch} was given back to {from}"),
        },
        Err(next) => next,
    }
}

/// The target was chosen on an older record, and a change of the ledger that was on its way then has landed since: others confirm
/// commits now. A swap that was made on the older record cannot land any more, so nothing is in doubt
/// (trace `failover_swap_overtaken_by_shrink_then_growth`).
fn lost_its_place(record: &ClusterRecord, policy: &Policy, to: &NodeName) -> bool {
    policy.durability != DurabilityMode::Async && record.holder != *to && !record.eligible.contains(to)
}

/// The epoch was raised, or nobody can tell: from here it only goes forward (trace `no_grant_while_epoch_swap_in_flight`).
pub(super) fn may_have_risen(operation: &Operation) -> bool {
    operation.epoch_after.is_some()
        || operation.under_way(StepName::AdvanceEpoch)
        || is_in_doubt(operation, StepName::AdvanceEpoch)
}

/// A lease that had run out when the step ended says nothing of a record that was changed since, and nothing to a controller that took
/// the operation over: the one before it may have granted again. Only a fence stays confirmed.
fn still_run_out(
    operation: &Operation,
    view: &View,
    record: &ClusterRecord,
    policy: &Policy,
    to: &NodeName,
) -> Result<(), Next> {
    let failed = |why: String| Err(Next::End { status: OperationStatus::Failed, message: why });
    let expires = proof::expiry(view, record, policy);
    match proof::proof(view, record, policy) {
        Ok(proof) if proof.suffices_for(record, to) => Ok(()),
        Ok(_) => failed(format!("record {} no longer names {to} among those whose promises renew", record.number)),
        Err(reason) if view.now < expires => Err(Next::Wait { until: expires, why: reason.to_string() }),
        // The swap may have landed: it is settled first, and the candidate outlives its promises before it consents.
        Err(_) if may_have_risen(operation) => Ok(()),
        Err(reason) => failed(format!("nothing was changed: {reason}")),
    }
}

/// Until it is proven that the old primary cannot write: ask its agent, and wait for the lease beside that.
pub(super) fn fence(
    operation: &Operation,
    view: &View,
    record: &ClusterRecord,
    policy: &Policy,
    from: &NodeName,
    to: &NodeName,
    old_primary_is_off: bool,
) -> Result<(), Next> {
    if let Progress::Done(output) = progress(operation, StepName::Fence, record.epoch) {
        let on_expiry = output.note.as_deref().is_some_and(|note| note.ends_with(RUN_OUT));
        return if on_expiry { still_run_out(operation, view, record, policy, to) } else { Ok(()) };
    }
    let satisfied = |note: String| {
        let output = CommandOutput { lsn: None, note: Some(note) };
        Err(Next::Satisfied { step: StepName::Fence, epoch: record.epoch, output })
    };
    let missing = match proof::proof(view, record, policy) {
        Ok(Proof::FenceConfirmed) => return satisfied(format!("{from} confirmed its fence in epoch {}", record.epoch)),
        Ok(proof) if proof.suffices_for(record, to) => {
            return satisfied(format!("the lease of {from} {RUN_OUT}"));
        }
        Ok(_) => Reason::about(
            from,
            ReasonCode::LeaseMayRun,
            format!("{to} is not eligible, so {from} may have renewed without it: only a fence proves that it stopped"),
        ),
        Err(reason) => reason,
    };
    // An oath stands for an agent that cannot be asked; one that answers fences.
    if old_primary_is_off && view.report(from).is_none() {
        return satisfied(format!("{} swore that {from} is off", operation.origin));
    }
    let run = |attempt| {
        Err(Next::Run(Box::new(Step {
            name: StepName::Fence,
            attempt,
            epoch: record.epoch,
            effect: Effect::Command { node: from.clone(), command: Command::Fence },
            timeout: policy.timers.lease,
        })))
    };
    match progress(operation, StepName::Fence, record.epoch) {
        Progress::Due(attempt) => run(attempt),
        Progress::Failed { attempts, at, .. }
            if still_to_wait(view.now, at, FENCE_PAUSE).is_none() && view.report(from).is_some() =>
        {
            run(attempts + 1)
        }
        Progress::Failed { .. } | Progress::Done(_) => Err(Next::Wait {
            until: view
                .now
                .plus(FENCE_PAUSE)
                .min(proof::expiry(view, record, policy).max(view.now.plus(Duration::from_millis(10)))),
            why: missing.to_string(),
        }),
    }
}

/// The record that begins a cluster's history in this store, above every epoch that any agent has seen.
fn first_record(operation: &Operation, view: &View, policy: &Policy, to: &NodeName) -> Result<ClusterRecord, String> {
    let report = view.report(to).ok_or_else(|| format!("{to} stopped reporting"))?;
    let live = report.postgres.live.as_ref().map(|live| live.system_identifier);
    let control = report.postgres.control.as_ref().map(|control| control.system_identifier);
    let system_identifier =
        live.or(control).ok_or_else(|| format!("{to} does not say which cluster its data belongs to"))?;
    let highest = view
        .nodes
        .values()
        .filter_map(|node| node.report.last_heard())
        .map(|report| report.standing.highest_epoch)
        .max()
        .unwrap_or(Epoch(0));
    let highest_number = view
        .nodes
        .values()
        .filter_map(|node| node.report.last_heard())
        .map(|report| report.standing.highest_number)
        .max()
        .unwrap_or(RecordNumber(0));
    let members = view
        .nodes
        .values()
        .filter_map(|node| node.report.last_heard())
        .map(|report| (report.node.clone(), Member { site: report.site.clone(), address: report.address.clone() }))
        .collect::<BTreeMap<_, _>>();
    // A node that was never heard, which only an operator's word lets happen, may know of more than those that were.
    let all_heard = view.nodes.values().all(|node| node.report.last_heard().is_some());
    let (epoch, number) = if all_heard {
        (highest.next(), highest_number.next())
    } else {
        (highest.beyond_unheard(), highest_number.beyond_unheard())
    };
    Ok(ClusterRecord {
        epoch,
        number,
        synchronous_number: number,
        members,
        holder_since: view.wall,
        longest_wait: policy.timers.wait(),
        ..ClusterRecord::first(
            operation.cluster.clone(),
            system_identifier,
            to.clone(),
            report.address.clone(),
            policy.durability,
        )
    })
}
