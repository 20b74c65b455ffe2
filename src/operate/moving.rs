//! The tail that failover, switchover and the undoing of a switchover share: consent, promote, redirect, verify.

use std::time::Duration;

use super::{Effect, Next, Progress, Step, is_in_doubt, progress, still_to_wait, until_done};
use crate::domain::clock::Moment;
use crate::domain::command::Command;
use crate::domain::epoch::Epoch;
use crate::domain::ids::NodeName;
use crate::domain::lease::Grant;
use crate::domain::lsn::{Lsn, Timeline};
use crate::domain::operation::{Operation, OperationKind, OperationStatus, StepName};
use crate::domain::policy::{DurabilityMode, Policy};
use crate::domain::record::ClusterRecord;
use crate::domain::report::PostgresState;
use crate::domain::view::View;

/// Crash recovery of a large primary that restarts in place can take long; the agent renews meanwhile.
const PROMOTE_TIMEOUT: Duration = Duration::from_secs(120);
const SWAP_TIMEOUT: Duration = Duration::from_secs(5);
/// With the pauses between them, about as long as a small crash recovery takes.
const FREEZE_ATTEMPTS_MAX: u32 = 15;
const FREEZE_TIMEOUT: Duration = Duration::from_secs(5);
const REDIRECT_TIMEOUT: Duration = Duration::from_secs(2);
const VERIFY_TIMEOUT: Duration = Duration::from_secs(5);
/// A leadership that has no time left for a lease is renewed, or lost, within moments.
const LEADERSHIP_PAUSE: Duration = Duration::from_millis(50);

/// Everything after the epoch was raised to `epoch` for `to`. `Err` is what to do now; `Ok`: all done.
pub(super) fn tail(
    operation: &Operation,
    view: &View,
    policy: &Policy,
    to: &NodeName,
    epoch: Epoch,
    required_lsn: Option<Lsn>,
) -> Result<(), Next> {
    let Some(record) = view.record.as_ref().filter(|record| record.epoch == epoch && record.holder == *to) else {
        return Err(Next::End {
            status: OperationStatus::Failed,
            message: format!("epoch {epoch} is not {to}'s any more: somebody else moved the cluster on"),
        });
    };
    let give_up = |why: String| Next::End { status: OperationStatus::Failed, message: why };

    let freeze = Step {
        name: StepName::Freeze,
        attempt: 1,
        epoch,
        effect: Effect::Freeze {
            candidate: to.clone(),
            others: other_standbys(view, to),
            fence_confirmed: fence_confirmed(operation, view),
        },
        timeout: FREEZE_TIMEOUT,
    };
    // A candidate that is heard may be in the middle of a restart; a silent one is not waited for.
    let attempts_max = if view.report(to).is_some() { FREEZE_ATTEMPTS_MAX } else { 1 };
    until_done(operation, view.now, freeze, attempts_max, give_up)?;

    // After the point of no return nobody else can be better any more.
    let promotion = progress(operation, StepName::Promote, epoch);
    let begun = operation.journal.iter().any(|event| event.step == StepName::Promote && event.epoch == epoch);
    if !matches!(promotion, Progress::Done(_)) {
        let counts_from = consent_sent_at(operation, view, policy, to, epoch)?;
        if !begun && let Some(better) = more_advanced(view, record, policy, to) {
            return Err(give_up(format!("{better} turned out to have received more than {to}")));
        }
        let Some(timers) = policy.timers_within(view.leads_for) else {
            let until = view.now.plus(LEADERSHIP_PAUSE);
            return Err(Next::Wait { until, why: "for this controller's leadership to be renewed".to_owned() });
        };
        let grant = Grant { epoch, number: record.number, timers };
        let block_when_alone = policy.durability == DurabilityMode::SyncStrict;
        let command = Command::Promote { grant, counts_from, required_lsn, block_when_alone };
        let effect = Effect::Command { node: to.clone(), command };
        let promote = Step { name: StepName::Promote, attempt: 1, epoch, effect, timeout: PROMOTE_TIMEOUT };
        until_done(operation, view.now, promote, 3, give_up)?;
    }

    let redirect =
        Step { name: StepName::Redirect, attempt: 1, epoch, effect: Effect::RedirectWrites, timeout: REDIRECT_TIMEOUT };
    let forgive = |why: String| Next::End {
        status: OperationStatus::Succeeded,
        message: format!("{to} accepts writes in epoch {epoch}, but {why}; the proxies' agents keep trying"),
    };
    until_done(operation, view.now, redirect, 20, forgive)?;
    let verify = Step {
        name: StepName::Verify,
        attempt: 1,
        epoch,
        effect: Effect::VerifyWrites { expect: record.holder_address.clone() },
        timeout: VERIFY_TIMEOUT,
    };
    until_done(operation, view.now, verify, 5, forgive)?;
    Ok(())
}

/// The epoch that the old primary left by a confirmed fence, as far as this controller heard.
fn fence_confirmed(operation: &Operation, view: &View) -> Option<Epoch> {
    let from = match &operation.kind {
        OperationKind::Failover { from, .. }
        | OperationKind::Switchover { from, .. }
        | OperationKind::Restore { from, .. } => from,
        _ => return None,
    };
    let confirmed = view.last_report(from)?.standing.fence_confirmed;
    confirmed.filter(|epoch| *epoch >= operation.epoch_before)
}

/// The moment, on the candidate's own clock, that its lease counts from: when it sent the report that shows its consent.
/// That report may be on its way, or this controller has only just begun to listen: it is waited for, not for long.
fn consent_sent_at(
    operation: &Operation,
    view: &View,
    policy: &Policy,
    to: &NodeName,
    epoch: Epoch,
) -> Result<Moment, Next> {
    if let Some(report) = view.last_report(to).filter(|report| report.standing.consented == Some(epoch)) {
        return Ok(report.sent_at);
    }
    let consented = operation.last(StepName::Freeze).map(|event| event.at).filter(|at| *at <= view.now);
    let since = consented.map_or(view.leading_since, |at| at.max(view.leading_since));
    Err(match still_to_wait(view.now, since, policy.report_stale_after) {
        Some(until) => Next::Wait { until, why: format!("for the report with which {to} consents to epoch {epoch}") },
        None => Next::End {
            status: OperationStatus::Failed,
            message: format!("{to} no longer stands by its consent to epoch {epoch}"),
        },
    })
}

/// In `async` mode the choice was made on reports that may have been old; now that receivers stand still, ask again
/// (rule 4d). In the synchronous modes the ledger decides, and WAL that nobody confirmed does not count.
fn more_advanced(view: &View, record: &ClusterRecord, policy: &Policy, to: &NodeName) -> Option<NodeName> {
    if policy.durability != DurabilityMode::Async {
        return None;
    }
    let own = received(view, record, to)?;
    let others = view.nodes.keys().filter(|node| *node != to);
    others
        .filter(|node| may_be_promoted(view, record, node))
        .find(|node| received(view, record, node).is_some_and(|(timeline, lsn)| timeline == own.0 && lsn > own.1))
        .cloned()
}

/// What a running standby of this cluster's data has received.
fn received(view: &View, record: &ClusterRecord, node: &NodeName) -> Option<(Timeline, Lsn)> {
    let report = view.report(node).filter(|report| report.postgres.state == PostgresState::Running)?;
    let live = report.postgres.live.as_ref().filter(|live| live.in_recovery)?;
    (live.system_identifier == record.system_identifier).then_some((live.history.timeline, live.flush_lsn))
}

/// Giving up for a better one is worth it only if that one would be promoted instead.
fn may_be_promoted(view: &View, record: &ClusterRecord, node: &NodeName) -> bool {
    view.report(node).is_some_and(|report| {
        let standing = &report.standing;
        let barred = standing.operator_fenced || standing.half_rejoined || record.fenced.contains(node);
        let tagged = report.tags.no_failover || report.tags.failover_priority <= 0;
        let paused = report.postgres.live.as_ref().is_some_and(|live| live.replay_paused);
        !barred && !tagged && !paused
    })
}

fn other_standbys(view: &View, to: &NodeName) -> Vec<NodeName> {
    view.nodes
        .values()
        .filter(|node| node.node != *to)
        .filter(|node| {
            node.report.known().is_some_and(|report| {
                report.postgres.state == PostgresState::Running
                    && report.postgres.live.as_ref().is_some_and(|live| live.in_recovery)
            })
        })
        .map(|node| node.node.clone())
        .collect()
}

/// The record that gives `to` the next epoch, or why it cannot be made.
pub(super) fn next_epoch(
    view: &View,
    policy: &Policy,
    record: &ClusterRecord,
    to: &NodeName,
) -> Result<ClusterRecord, String> {
    let address = view
        .last_report(to)
        .map(|report| report.address.clone())
        .or_else(|| record.members.get(to).map(|member| member.address.clone()))
        .ok_or_else(|| format!("nobody knows where {to} listens: start its agent"))?;
    let next = record.with_next_epoch(to.clone(), address, view.wall);
    Ok(ClusterRecord { longest_wait: policy.timers.wait(), ..next })
}

/// The swap as a step, or how it already ended. `Ok(epoch)` once the record names `to` as holder of a newer epoch.
pub(super) fn swap(
    operation: &Operation,
    view: &View,
    policy: &Policy,
    to: &NodeName,
    step: StepName,
    before: Epoch,
    proposal: impl FnOnce() -> Result<ClusterRecord, String>,
) -> Result<Epoch, Next> {
    let after = operation.epoch_after.filter(|after| *after > before);
    if let Some(epoch) = after {
        return Ok(epoch);
    }
    let failed = |message| Next::End { status: OperationStatus::Failed, message };
    let current = view.record.as_ref();
    match current {
        // The swap of an earlier attempt landed: the store says so, whatever became of its answer.
        Some(record)
            if record.epoch > before
                && record.holder == *to
                && operation.attempts(step) > 0
                && !record.holder_confirmed =>
        {
            return Err(Next::Satisfied { step, epoch: record.epoch, output: Default::default() });
        }
        Some(record) if record.epoch > before => {
            return Err(failed(format!("the cluster is in epoch {} already, this began in {before}", record.epoch)));
        }
        _ => {}
    }
    let record = match proposal() {
        Ok(record) => record,
        // A controller that has only just begun has not heard of everybody yet.
        Err(why) => {
            return Err(match still_to_wait(view.now, view.leading_since, policy.report_stale_after) {
                Some(until) => Next::Wait { until, why },
                None => failed(why),
            });
        }
    };
    let epoch = record.epoch;
    let expected = current.map(|current| current.number);
    let effect = Effect::Swap { expected, record: Box::new(record) };
    let swap = Step { name: step, attempt: 1, epoch, effect, timeout: SWAP_TIMEOUT };
    // A time-out is not an outcome (rule 4b): a swap that may still land is asked for until the store answers, never given up.
    let attempts_max = if is_in_doubt(operation, step) { u32::MAX } else { 5 };
    until_done(operation, view.now, swap, attempts_max, failed)?;
    Ok(epoch)
}
