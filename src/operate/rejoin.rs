//! Rejoin: rewind, else reclone → start as a standby → streaming.
//!
//! A rewind that fails is not repeated: the ladder goes down to a new copy.

use std::time::Duration;

use super::{Effect, Next, Progress, Step, is_in_doubt, progress, until_done};
use crate::domain::command::Command;
use crate::domain::ids::NodeName;
use crate::domain::operation::{Operation, OperationStatus, StepName};
use crate::domain::policy::Policy;
use crate::domain::view::View;

/// A rewind copies what changed, a reclone everything: both are bounded by the agent's own progress, this bounds one silence.
const COPY_TIMEOUT: Duration = Duration::from_secs(6 * 3600);
const START_TIMEOUT: Duration = Duration::from_secs(120);

pub(super) fn next(operation: &Operation, node: &NodeName, reclone: bool, view: &View, _policy: &Policy) -> Next {
    let epoch = operation.epoch_before;
    let failed = |message| Next::End { status: OperationStatus::Failed, message };
    let Some(record) = view.record.as_ref().filter(|record| record.epoch == epoch && record.holder != *node) else {
        return failed(format!("the primary moved on from epoch {epoch}: it is tried again against the new one"));
    };
    if operation.cancel_requested && operation.journal.is_empty() {
        return Next::End { status: OperationStatus::Cancelled, message: "cancelled before it began".to_owned() };
    }
    // The ledger names what streams, perhaps before the start of it is reported as done; its data is not touched any more.
    let is_named = record.eligible.contains(node) || record.synchronous.contains(node);
    if is_named && operation.attempts(StepName::StartStandby) == 0 {
        return failed(format!("the ledger names {node}: it must not be touched"));
    }
    let (primary, primary_address) = (record.holder.clone(), record.holder_address.clone());
    let step = |name, command, timeout| Step {
        name,
        attempt: 1,
        epoch,
        effect: Effect::Command { node: node.clone(), command },
        timeout,
    };
    let rewind = step(
        StepName::Rewind,
        Command::Rewind { primary: primary.clone(), primary_address: primary_address.clone() },
        COPY_TIMEOUT,
    );
    let copy = step(
        StepName::Reclone,
        Command::Reclone { primary: primary.clone(), primary_address: primary_address.clone() },
        COPY_TIMEOUT,
    );
    let start = step(StepName::StartStandby, Command::StartStandby { primary, primary_address }, START_TIMEOUT);

    // Only a rewind that is known to have failed, or is never heard of again, is worth a full copy.
    let rewinds_max = if is_in_doubt(operation, StepName::Rewind) { 3 } else { 1 };
    let rewound = !reclone
        && !matches!(progress(operation, StepName::Rewind, epoch), Progress::Failed { attempts, .. } if attempts >= rewinds_max);
    // A node that was rewound and does not stream lacks WAL that the primary no longer has: only a copy helps.
    let fell_short = rewound
        && matches!(progress(operation, StepName::StartStandby, epoch), Progress::Failed { attempts, .. } if attempts >= 2);
    let copied = operation.attempts(StepName::Reclone) > 0;
    if is_named {
        // Started already: what is left is to hear of it.
    } else if rewound && !fell_short && !copied {
        if let Err(next) = until_done(operation, view.now, rewind, rewinds_max, failed) {
            return next;
        }
    } else if let Err(next) = until_done(operation, view.now, copy, 2, failed) {
        return next;
    }
    let attempts_max = if copied { 4 } else { 2 };
    match until_done(operation, view.now, start, attempts_max, failed) {
        Ok(_) => {
            Next::End { status: OperationStatus::Succeeded, message: format!("{node} streams from {}", record.holder) }
        }
        Err(next) => next,
    }
}
