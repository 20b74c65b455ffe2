//! Switchover: checkpoint → hold new writes → fast shutdown → next epoch → consent → promote → redirect → verify → the old
//! primary comes back as a standby.
//!
//! Before the shutdown it is undone by letting the writers go on; after it, by giving the old primary the next epoch; after the
//! promotion it only goes forward. A requested fast shutdown cannot be withdrawn, hence the checkpoint before it.
//!
//! Away from a disk that was predicted to fail: hold new writes → fence → next epoch → …, to a standby that confirms every commit.

use std::time::Duration;

use super::moving::{named, next_epoch, swap, tail};
use super::{Effect, Next, Progress, Step, is_past_no_return, progress, still_to_wait, until_done};
use crate::domain::command::Command;
use crate::domain::epoch::Epoch;
use crate::domain::ids::NodeName;
use crate::domain::lsn::Lsn;
use crate::domain::operation::{Operation, OperationKind, OperationStatus, StepName};
use crate::domain::plan::ReasonCode;
use crate::domain::policy::Policy;
use crate::domain::view::View;

/// The checkpoint runs before anything stops, so it may take its time.
const CHECKPOINT_TIMEOUT: Duration = Duration::from_secs(300);
/// On a server that writes faster than its checkpoints, more of them help nobody.
const CHECKPOINTS_MAX: u32 = 3;
const HOLD_TIMEOUT: Duration = Duration::from_secs(2);
const BACK_TIMEOUT: Duration = Duration::from_secs(120);
/// Clients wait already, and a kill that did not end may have killed: it is asked for again before all is undone.
const FENCE_ATTEMPTS_MAX: u32 = 3;

pub(super) fn next(operation: &Operation, view: &View, policy: &Policy) -> Next {
    let OperationKind::Switchover { from, to } = &operation.kind else {
        unreachable!("dispatched by kind");
    };
    if operation.status == OperationStatus::Undoing {
        return undo(operation, view, policy, from);
    }
    if operation.cancel_requested && !is_past_no_return(operation) {
        return Next::Undo { why: "cancelled".to_owned() };
    }
    if let Some(epoch) = operation.epoch_after.filter(|_| operation.has_moved())
        && view.record.as_ref().is_some_and(|record| record.epoch > epoch)
    {
        let message =
            format!("{to} accepted writes in epoch {epoch}; the cluster has moved on since, {from} is not back yet");
        return Next::End { status: OperationStatus::Succeeded, message };
    }
    let before = operation.epoch_before;
    let step = |name, effect, timeout| Step { name, attempt: 1, epoch: before, effect, timeout };
    let command = |command| Effect::Command { node: from.clone(), command };
    let undo = |why| Next::Undo { why };

    let checkpoint = || step(StepName::Checkpoint, command(Command::Checkpoint), CHECKPOINT_TIMEOUT);
    let drain = step(StepName::Drain, Effect::HoldWrites, HOLD_TIMEOUT);
    let demote = step(
        StepName::Demote,
        command(Command::Demote { timeout: policy.switchover_timeout }),
        policy.switchover_timeout + Duration::from_secs(5),
    );
    let fence = step(StepName::Fence, command(Command::Fence), policy.timers.lease);
    let stopped = if leaves_a_slow_disk(operation, view, from, to) {
        until_done(operation, view.now, drain, 1, undo)
            .and_then(|_| confirms_still(operation, view, to))
            .and_then(|()| until_done(operation, view.now, fence, FENCE_ATTEMPTS_MAX, undo))
            .map(|_| None)
    } else {
        until_done(operation, view.now, checkpoint(), 1, undo)
            .and_then(|output| little_is_dirty(operation, view, policy, from, output.lsn, checkpoint()))
            .and_then(|_| until_done(operation, view.now, drain, 1, undo))
            .and_then(|_| until_done(operation, view.now, demote, 1, undo))
            .map(|output| output.lsn)
    };
    let required_lsn = match stopped {
        Ok(shutdown) => shutdown,
        Err(next) => return next,
    };
    if operation.attempts(StepName::AdvanceEpoch) == 0
        && let Err(next) = received(operation, view, policy, to, required_lsn)
    {
        return next;
    }
    let proposal = || match &view.record {
        Some(record) => next_epoch(view, policy, record, to),
        None => Err("the store has no record".to_owned()),
    };
    let advanced = swap(operation, view, policy, to, StepName::AdvanceEpoch, before, proposal);
    let moved = advanced.and_then(|epoch| tail(operation, view, policy, to, epoch, required_lsn).map(|()| epoch));
    match moved {
        Ok(epoch) => {
            let end = bring_back(operation, view, from, to, epoch);
            named(operation, view, policy, to, epoch, end)
        }
        // Until PostgreSQL may have been promoted, failing means undoing.
        Err(Next::End { status: OperationStatus::Failed, message }) if !is_past_no_return(operation) => {
            Next::Undo { why: message }
        }
        Err(next) => next,
    }
}

/// A prediction moves the primary away from a disk that hardly writes any more: every page of a checkpoint, and of the one at a
/// shutdown, would wait for that disk, and clients with it. A standby that confirms every commit needs neither; the old primary is
/// rewound afterwards. What the first step was, that way it goes on.
fn leaves_a_slow_disk(operation: &Operation, view: &View, from: &NodeName, to: &NodeName) -> bool {
    if let Some(first) = operation.journal.first() {
        return first.step != StepName::Checkpoint;
    }
    let names = |code: ReasonCode| {
        operation.reasons.iter().any(|reason| reason.code == code && reason.node.as_ref() == Some(from))
    };
    let is_slow = names(ReasonCode::SlowsDown) || names(ReasonCode::ProbeSlow);
    names(ReasonCode::PredictedTrouble) && is_slow && confirms(view, to)
}

/// Every commit that a client saw confirmed is there.
fn confirms(view: &View, to: &NodeName) -> bool {
    view.record.as_ref().is_some_and(|record| record.eligible.contains(to))
}

/// Nobody is killed for a standby that stopped confirming while writers were being held.
fn confirms_still(operation: &Operation, view: &View, to: &NodeName) -> Result<(), Next> {
    if operation.attempts(StepName::Fence) > 0 || confirms(view, to) {
        return Ok(());
    }
    Err(Next::Undo { why: format!("{to} does not confirm every commit any more") })
}

/// What the shutdown would have to write while clients wait is within its limit; another checkpoint may bring it there.
fn little_is_dirty(
    operation: &Operation,
    view: &View,
    policy: &Policy,
    from: &NodeName,
    redo: Option<Lsn>,
    again: Step,
) -> Result<(), Next> {
    let written = view.report(from).and_then(|report| report.postgres.live.as_ref()).map(|live| live.flush_lsn);
    let dirty_bytes = written.zip(redo).map_or(0, |(written, redo)| written.0.saturating_sub(redo.0));
    if operation.attempts(StepName::Drain) > 0 || dirty_bytes <= policy.switchover_max_dirty_bytes {
        return Ok(());
    }
    let attempts = operation.attempts(StepName::Checkpoint);
    if attempts < CHECKPOINTS_MAX {
        return Err(Next::Run(Box::new(Step { attempt: attempts + 1, ..again })));
    }
    Err(Next::Undo {
        why: format!(
            "{from} wrote {dirty_bytes} bytes of WAL since its checkpoint began, more than failover.switchover_max_dirty_bytes = {}: \
             its shutdown would keep clients waiting; try again when it writes less",
            policy.switchover_max_dirty_bytes
        ),
    })
}

/// Nobody gets the epoch who may lack a commit: what confirms every commit has them all, any other standby must first show that
/// the shutdown record arrived. Whoever holds an epoch is restarted in it, without being asked what it has.
fn received(
    operation: &Operation,
    view: &View,
    policy: &Policy,
    to: &NodeName,
    shutdown: Option<Lsn>,
) -> Result<(), Next> {
    let live = view.last_report(to).and_then(|report| report.postgres.live.as_ref());
    if confirms(view, to) || live.zip(shutdown).is_some_and(|(live, shutdown)| live.flush_lsn >= shutdown) {
        return Ok(());
    }
    let stopped = operation
        .last(StepName::Demote)
        .or_else(|| operation.last(StepName::Fence))
        .map(|event| event.at)
        .filter(|at| *at <= view.now);
    let since = stopped.map_or(view.leading_since, |at| at.max(view.leading_since));
    Err(match still_to_wait(view.now, since, policy.report_stale_after) {
        Some(until) => Next::Wait { until, why: format!("until {to} has the shutdown record") },
        None => Next::Undo { why: format!("{to} did not receive the shutdown record") },
    })
}

/// The old primary becomes a standby. Writes flow already: a failure here is told, and the automatic rejoin takes over.
fn bring_back(operation: &Operation, view: &View, from: &NodeName, to: &NodeName, epoch: Epoch) -> Next {
    let moved = format!("{to} accepts writes in epoch {epoch}");
    let Some(record) = &view.record else {
        return Next::End { status: OperationStatus::Succeeded, message: moved };
    };
    // What the ledger names streams already, and is not touched.
    if record.eligible.contains(from) || record.synchronous.contains(from) {
        return Next::End { status: OperationStatus::Succeeded, message: format!("{moved}, {from} streams from it") };
    }
    let (primary, primary_address) = (to.clone(), record.holder_address.clone());
    let rewind = Command::Rewind { primary: primary.clone(), primary_address: primary_address.clone() };
    let start = Command::StartStandby { primary, primary_address };
    let later = |why: String| Next::End {
        status: OperationStatus::Succeeded,
        message: format!("{moved}; {from} is not back yet: {why}"),
    };
    for (name, command) in [(StepName::Rewind, rewind), (StepName::StartStandby, start)] {
        let effect = Effect::Command { node: from.clone(), command };
        let step = Step { name, attempt: 1, epoch, effect, timeout: BACK_TIMEOUT };
        if let Err(next) = until_done(operation, view.now, step, 2, later) {
            return next;
        }
    }
    Next::End { status: OperationStatus::Succeeded, message: format!("{moved}, {from} streams from it") }
}

/// Back to the old primary: in its old epoch if it was never asked to stop, else in the next one.
fn undo(operation: &Operation, view: &View, policy: &Policy, from: &NodeName) -> Next {
    let why = operation.message.clone().unwrap_or_else(|| "undone".to_owned());
    let stuck = |problem: String| Next::End {
        status: OperationStatus::Stuck,
        message: format!("{why}; undoing it: {problem}"),
    };
    let end = |note: &str| Next::End {
        status: if operation.cancel_requested { OperationStatus::Cancelled } else { OperationStatus::Failed },
        message: format!("{why}; undone: {note}"),
    };
    let before = operation.epoch_before;
    let asked_to_stop = [StepName::Demote, StepName::Fence]
        .into_iter()
        .any(|step| !matches!(progress(operation, step, before), Progress::Due(_)) || operation.attempts(step) > 0);
    if !asked_to_stop {
        if operation.attempts(StepName::Drain) == 0 {
            return end("nothing had been changed");
        }
        let release = Step {
            name: StepName::Release,
            attempt: 1,
            epoch: before,
            effect: Effect::RedirectWrites,
            timeout: HOLD_TIMEOUT,
        };
        let forgive = |why: String| end(&format!("{from} never stopped, but {why}; the proxies' agents keep trying"));
        return match until_done(operation, view.now, release, 20, forgive) {
            Ok(_) => end(&format!("{from} never stopped")),
            Err(next) => next,
        };
    }
    // Nobody to give an epoch to: the record still says who may take over, and losing the primary is failover's matter.
    let is_unmoved = view.record.as_ref().is_some_and(|record| record.epoch == before);
    if is_unmoved && operation.attempts(StepName::AdvanceEpoch) == 0 && view.report(from).is_none() {
        return Next::End {
            status: OperationStatus::Failed,
            message: format!("{why}; {from} was lost meanwhile, which is failover's matter"),
        };
    }
    // The shutdown may still be under way: the node must have confirmed its fence before it is given a new epoch.
    // The epoch that it leaves: the record's, until the record shows that the old primary was given the next one.
    let base = match &view.record {
        Some(record) if record.epoch > before && record.holder == *from => Epoch(record.epoch.0 - 1),
        Some(record) => record.epoch,
        None => before,
    };
    let fence = Step {
        name: StepName::Fence,
        attempt: 1,
        epoch: base,
        effect: Effect::Command { node: from.clone(), command: Command::Fence },
        timeout: policy.timers.lease,
    };
    if let Err(next) = until_done(operation, view.now, fence, 20, stuck) {
        return next;
    }
    let proposal = || match &view.record {
        Some(record) => next_epoch(view, policy, record, from),
        None => Err("the store has no record".to_owned()),
    };
    let undone = swap(operation, view, policy, from, StepName::Reinstate, base, proposal)
        .and_then(|epoch| tail(operation, view, policy, from, epoch, None).map(|()| epoch));
    match undone {
        Ok(epoch) => end(&format!("{from} accepts writes again, in epoch {epoch}")),
        Err(Next::End { message, .. }) => stuck(message),
        Err(next) => next,
    }
}
