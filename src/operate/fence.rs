//! Fence, asked for by an operator: the store knows it already, this waits for the confirmation.

use std::time::Duration;

use super::{Effect, Next, Step, until_done};
use crate::domain::command::Command;
use crate::domain::ids::NodeName;
use crate::domain::operation::{Operation, OperationStatus, StepName};
use crate::domain::view::View;

/// How soon to look again whether the store has it; its answer is an event of its own.
const STORED_LOOK: Duration = Duration::from_millis(100);

pub(super) fn next(operation: &Operation, node: &NodeName, view: &View) -> Next {
    // A fence that is confirmed before it is stored would be followed by a restart in place.
    if !view.record.as_ref().is_some_and(|record| record.fenced.contains(node)) {
        if operation.last(StepName::Fence).is_some() {
            let message = format!("{node} was unfenced before its agent confirmed the fence");
            return Next::End { status: OperationStatus::Cancelled, message };
        }
        return Next::Wait { until: view.now.plus(STORED_LOOK), why: "until the fence is stored".to_owned() };
    }
    let step = Step {
        name: StepName::Fence,
        attempt: 1,
        // A fence of the primary moves the cluster on; an agent refuses the epoch that it left.
        epoch: view.record.as_ref().map_or(operation.epoch_before, |record| record.epoch),
        effect: Effect::Command { node: node.clone(), command: Command::Fence },
        timeout: Duration::from_secs(5),
    };
    let failed = |why: String| Next::End {
        status: OperationStatus::Failed,
        message: format!("{why}; the fence is stored and takes effect when the agent of {node} is heard again"),
    };
    match until_done(operation, view.now, step, 10, failed) {
        Ok(_) => Next::End {
            status: OperationStatus::Succeeded,
            message: format!("{node} cannot accept writes until unfence"),
        },
        Err(next) => next,
    }
}
