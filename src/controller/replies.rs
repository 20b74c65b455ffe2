//! What an operator is told who asked for a change. Whether it is made is decided elsewhere.

use super::backup;
use crate::api::wire::{MutationReply, SCHEMA_VERSION};
use crate::decide::schedule::LATE_MAX;
use crate::domain::operation::{Operation, OperationKind};
use crate::domain::plan::{Intent, Plan, ReasonCode};
use crate::domain::timing::words;

/// The answer to a request that was not refused.
pub(super) fn reply(plan: Plan, operation: Option<Operation>, dry_run: bool) -> MutationReply {
    let (message, expect) = match &plan.intent {
        Intent::Start { operation: OperationKind::Switchover { from, to } } => (
            format!("switchover from {from} to {to}"),
            vec![
                "writes pause while the primary shuts down and the standby is promoted".to_owned(),
                "no commit is lost".to_owned(),
                format!("{from} comes back as a standby"),
            ],
        ),
        Intent::Start { operation: OperationKind::Failover { from, to, accept_data_loss, .. } } => (
            format!("failover from {from} to {to}"),
            vec![
                format!("{from} is fenced before {to} is promoted"),
                if *accept_data_loss {
                    "commits may be lost, see the reasons".to_owned()
                } else {
                    "no confirmed commit is lost".to_owned()
                },
            ],
        ),
        Intent::Start { operation: OperationKind::Rejoin { node, reclone } } => (
            format!("rejoin of {node}"),
            vec![if *reclone {
                format!("{node}'s data directory is replaced by a new copy")
            } else {
                format!("{node}'s own WAL beyond the primary's history is kept aside")
            }],
        ),
        Intent::Start { operation: OperationKind::Fence { node } } => (format!("fence of {node}"), Vec::new()),
        Intent::Start { operation: OperationKind::Sequence { name, .. } } => (format!("sequence {name}"), Vec::new()),
        Intent::Start { operation: OperationKind::Retrain { .. } } => (
            "retraining".to_owned(),
            vec![
                "a challenger is trained beside the controller, nice and within limits of memory and time".to_owned(),
                "it scores only if it is better than the model in use on samples that neither was trained on"
                    .to_owned(),
            ],
        ),
        Intent::Start { operation } => backup::words(operation),
        Intent::UpdateRecord { record } if plan.reasons.iter().any(|reason| reason.code == ReasonCode::Scheduled) => {
            match &record.scheduled {
                Some(scheduled) => (
                    format!("switchover scheduled for {}", scheduled.at),
                    vec![
                        format!(
                            "it begins then if nothing stands against it, and within {} if something did",
                            words(LATE_MAX)
                        ),
                        "a new primary or a later --at takes its place".to_owned(),
                    ],
                ),
                None => ("no switchover is scheduled any more".to_owned(), Vec::new()),
            }
        }
        Intent::UpdateRecord { .. } => ("the change is being stored".to_owned(), Vec::new()),
        Intent::Hold => ("nothing to do".to_owned(), Vec::new()),
    };
    let message = if dry_run { format!("would begin: {message}") } else { message };
    MutationReply { schema_version: SCHEMA_VERSION, operation, plan: Some(plan), expect, message }
}

/// The answer to a change that is no operation.
pub(super) fn done(message: String) -> MutationReply {
    MutationReply { schema_version: SCHEMA_VERSION, operation: None, plan: None, expect: Vec::new(), message }
}
