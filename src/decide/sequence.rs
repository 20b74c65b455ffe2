//! Which sequence begins by itself, and with which variables.

use std::collections::BTreeMap;

use crate::domain::ids::OperationId;
use crate::domain::operation::{Operation, OperationKind, OperationStatus};
use crate::domain::plan::{Intent, Plan, Reason, ReasonCode};
use crate::domain::sequence::{Sequence, Trigger};
use crate::domain::view::View;

/// The next sequence that a failover of the present epoch calls for, with that failover; `None`: nothing is due.
pub fn due<'a>(
    view: &View,
    operations: &'a [Operation],
    sequences: &'a [Sequence],
) -> Option<(&'a Sequence, &'a Operation)> {
    let record = view.record.as_ref()?;
    let moved = operations.iter().find(|operation| {
        let to_another = matches!(&operation.kind, OperationKind::Failover { from, to, .. } if from != to);
        to_another && operation.status == OperationStatus::Succeeded && operation.epoch_after == Some(record.epoch)
    })?;
    let begun = |sequence: &Sequence| {
        operations.iter().any(|other| {
            matches!(&other.kind, OperationKind::Sequence { name, cause, .. }
                if *name == sequence.name && cause.as_ref() == Some(&moved.id))
        })
    };
    let wanted = |sequence: &&Sequence| sequence.when.contains(&Trigger::AfterFailover) && !begun(sequence);
    sequences.iter().find(wanted).map(|sequence| (sequence, moved))
}

/// The operation that carries `sequence` out, or why it must not begin. `cause`: the failover that it follows.
pub fn plan(
    view: &View,
    operations: &[Operation],
    sequence: &Sequence,
    cause: Option<&Operation>,
    reason: Reason,
) -> Plan {
    let plan = |intent, reasons, blocked_by| Plan {
        intent,
        reasons,
        blocked_by,
        based_on: view.record.as_ref().map(|record| (record.epoch, record.number)),
        loss: None,
    };
    let Some(record) = &view.record else {
        let why = Reason::new(ReasonCode::WaitingForEveryNode, "there is no first epoch yet");
        return plan(Intent::Hold, Vec::new(), vec![why]);
    };
    let running = operations.iter().find(|other| {
        !other.status.is_final()
            && matches!(&other.kind, OperationKind::Sequence { name, .. } if *name == sequence.name)
    });
    if let Some(running) = running {
        let why = Reason::new(
            ReasonCode::OperationUnderWay,
            format!("sequence {} is operation {}", sequence.name, running.id),
        );
        return plan(Intent::Hold, Vec::new(), vec![why]);
    }
    // Without a cause the latest move of the primary is what templates speak of.
    let latest = || {
        let moves =
            operations.iter().filter(|other| other.kind.moves_primary() && other.status == OperationStatus::Succeeded);
        moves.max_by_key(|other| other.epoch_after)
    };
    let old_primary = cause.or_else(latest).and_then(|operation| match &operation.kind {
        OperationKind::Failover { from, to, .. } | OperationKind::Switchover { from, to } if from != to => Some(from),
        _ => None,
    });
    let site = |node| view.nodes.get(node).map(|node| node.site.to_string()).unwrap_or_default();
    let variables = [
        ("cluster", record.cluster.to_string()),
        ("epoch", record.epoch.to_string()),
        ("new_primary", record.holder.to_string()),
        ("primary_host", record.holder_address.host.clone()),
        ("primary_port", record.holder_address.port.to_string()),
        ("site", site(&record.holder)),
        ("old_primary", old_primary.map(ToString::to_string).unwrap_or_default()),
        ("old_site", old_primary.map(site).unwrap_or_default()),
    ];
    let operation = OperationKind::Sequence {
        name: sequence.name.clone(),
        cause: cause.map(|operation| OperationId(operation.id.0.clone())),
        primary: record.holder.clone(),
        steps: sequence.steps.clone(),
        variables: variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<BTreeMap<_, _>>(),
    };
    plan(Intent::Start { operation }, vec![reason], Vec::new())
}
