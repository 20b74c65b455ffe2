//! A step of a sequence that is an operation of its own: begun once, however often it is asked for, and waited for.
//!
//! Whether it may begin is the planner's to say, as for everybody who asks; nothing here relaxes a guard.

use tokio::sync::oneshot;

use super::{Done, LOOK_AGAIN, Outside, succeeded};
use crate::controller::event_loop::Event;
use crate::decide::request::Request;
use crate::domain::operation::{Operation, OperationStatus, StepState};
use crate::operate::Step;
use crate::operate::sequence::Errand;

/// Begins what is wanted, or finds what an earlier controller began, and waits for its end.
pub(super) async fn run(outside: &Outside, step: &Step, what: Errand, origin: &str) -> Done {
    let deadline = outside.clock.now().plus(step.timeout);
    loop {
        let Some(found) = look(outside, what, origin).await else {
            return Done::plain(StepState::Unknown { error: "this controller's term ended".to_owned() });
        };
        let state = match &found {
            Ok(operation) if operation.status.is_final() => Some(outcome(operation)),
            _ if outside.clock.now() < deadline => None,
            Ok(operation) => {
                let (kind, id) = (operation.kind.label(), &operation.id);
                let seconds = step.timeout.as_secs();
                let error = format!(
                    "{kind} {id} goes on after {seconds} s: give the step a longer timeout; stormglass operation watch {id}"
                );
                Some(StepState::Failed { error })
            }
            Err(refused) => {
                let error = format!("not begun within {} s: {refused}", step.timeout.as_secs());
                Some(StepState::Failed { error })
            }
        };
        if let Some(state) = state {
            return Done::plain(state);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

fn outcome(operation: &Operation) -> StepState {
    let kind = operation.kind.label();
    let message = operation.message.clone().unwrap_or_default();
    match operation.status {
        OperationStatus::Succeeded => {
            succeeded(Some(format!("{kind} {}: {message}\noutput: operation={}", operation.id, operation.id)))
        }
        status => StepState::Failed { error: format!("{kind} {} {}: {message}", operation.id, status.label()) },
    }
}

/// The operation; `Err`: the guards that refused it. `None`: the loop is gone.
async fn look(outside: &Outside, what: Errand, origin: &str) -> Option<Result<Operation, String>> {
    let (reply, answer) = oneshot::channel();
    outside.events.send(Event::Look { reply }).await.ok()?;
    let glance = answer.await.ok()?;
    if let Some(begun) = glance.operations.iter().find(|operation| operation.origin == origin) {
        return Some(Ok(begun.clone()));
    }
    let request = match what {
        Errand::Backup(backup_type) => Request::Backup { backup_type, from_standby: outside.backups_from_standby },
        Errand::Drill => Request::Drill,
    };
    let (reply, answer) = oneshot::channel();
    outside.events.send(Event::Ask { request, origin: origin.to_owned(), dry_run: false, reply }).await.ok()?;
    let (plan, operation) = answer.await.ok()?;
    let refused = || plan.blocked_by.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    Some(operation.ok_or_else(refused))
}
