//! Backup: the repository ready and WAL arriving → backup → read back.
//!
//! It changes nothing of the cluster, and ends where the primary moves on: the schedule begins another one.

use std::time::Duration;

use super::{Effect, Next, Step, until_done};
use crate::domain::backup::{BackupType, label_of};
use crate::domain::command::Command;
use crate::domain::ids::NodeName;
use crate::domain::operation::{Operation, OperationStatus, StepName};
use crate::domain::view::View;

/// One small exchange with the repository, and a WAL segment that has to arrive there.
const CHECK_TIMEOUT: Duration = Duration::from_secs(600);
/// A large database over a slow line; bounds one silence of the agent only where it still answers.
const BACKUP_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

pub(super) fn next(operation: &Operation, node: &NodeName, backup_type: BackupType, view: &View) -> Next {
    let epoch = operation.epoch_before;
    let end = |status, message: String| Next::End { status, message };
    let failed = |message| end(OperationStatus::Failed, message);
    let Some(record) = view.record.as_ref().filter(|record| record.epoch == epoch) else {
        return failed(format!("the primary moved on from epoch {epoch}: another backup follows the new one"));
    };
    if operation.cancel_requested {
        return end(OperationStatus::Cancelled, "cancelled between two steps; the cluster is as it was".to_owned());
    }
    let step = |name, node: &NodeName, command, timeout| Step {
        name,
        attempt: 1,
        epoch,
        effect: Effect::Command { node: node.clone(), command },
        timeout,
    };
    let ready = step(StepName::CheckRepository, &record.holder, Command::PrepareRepository, CHECK_TIMEOUT);
    if let Err(next) = until_done(operation, view.now, ready, 2, failed) {
        return next;
    }
    let backup = step(StepName::Backup, node, Command::Backup { backup_type }, BACKUP_TIMEOUT);
    let made = match until_done(operation, view.now, backup, 2, failed) {
        Ok(made) => made,
        Err(next) => return next,
    };
    let Some(label) = made.note.as_deref().and_then(label_of) else {
        return failed(format!("the agent of {node} did not say what the backup is called"));
    };
    let verify = Command::VerifyBackup { label: label.to_owned() };
    let verify = step(StepName::VerifyBackup, node, verify, BACKUP_TIMEOUT);
    match until_done(operation, view.now, verify, 2, failed) {
        Ok(_) => {
            end(OperationStatus::Succeeded, format!("backup {label} of {node} is in the repository and was read back"))
        }
        Err(next) => next,
    }
}
