//! Which node has to be brought back as a standby, and how.
//!
//! An eligible or named standby is never rewound or recloned (trace `eligible_standby_recloned`): the ledger drops it first.

use super::first_epoch::is_primary_data;
use crate::domain::ids::NodeName;
use crate::domain::operation::{Operation, OperationKind, OperationStatus};
use crate::domain::plan::{Reason, ReasonCode};
use crate::domain::policy::Policy;
use crate::domain::record::ClusterRecord;
use crate::domain::report::PostgresState;
use crate::domain::view::View;

/// The next rejoin to start, or why there is none: what blocks the nodes that need one.
pub fn next(
    view: &View,
    record: &ClusterRecord,
    policy: &Policy,
    operations: &[Operation],
) -> Result<(OperationKind, Reason), Vec<Reason>> {
    let mut blocked = Vec::new();
    for node in view.nodes.keys().filter(|node| **node != record.holder) {
        let Some((reclone, reason)) = need(view, record, node) else { continue };
        if !policy.rejoin_automatically {
            blocked.push(reason);
            continue;
        }
        match guard(view, record, policy, operations, node) {
            Some(refusal) => blocked.push(refusal),
            None => return Ok((OperationKind::Rejoin { node: node.clone(), reclone }, reason)),
        }
    }
    Err(blocked)
}

/// Whether `node` must be brought back, and whether only a new copy will do.
pub fn need(view: &View, record: &ClusterRecord, node: &NodeName) -> Option<(bool, Reason)> {
    let report = view.report(node)?;
    if report.standing.operator_fenced || record.fenced.contains(node) {
        return None;
    }
    let because = |detail: String| Reason::about(node, ReasonCode::NeedsRejoin, detail);
    if report.standing.half_rejoined {
        return Some((true, because("a rewind or reclone is unfinished".to_owned())));
    }
    match report.postgres.state {
        PostgresState::NoData => Some((true, because("it has no data".to_owned()))),
        PostgresState::Stopped if report.postgres.damage.is_some() => {
            Some((true, because(report.postgres.damage.clone().unwrap_or_default())))
        }
        PostgresState::Stopped if is_primary_data(report) => Some((false, because("it was a primary".to_owned()))),
        PostgresState::Running => {
            let live = report.postgres.live.as_ref()?;
            let primary = view.report(&record.holder)?.postgres.live.as_ref().filter(|primary| !primary.in_recovery)?;
            if let Some(damage) = report.postgres.damage.as_ref().filter(|_| live.in_recovery) {
                return Some((true, because(damage.clone())));
            }
            let (timeline, position) = (live.history.timeline, live.flush_lsn);
            let diverged = live.in_recovery && !primary.history.contains(timeline, position);
            diverged.then(|| {
                (
                    false,
                    because(format!(
                        "timeline {timeline} at {position} diverged from timeline {}",
                        primary.history.timeline
                    )),
                )
            })
        }
        PostgresState::Stopped | PostgresState::Starting | PostgresState::Unresponsive => None,
    }
}

/// Why a rejoin of `node` must not start now.
pub fn guard(
    view: &View,
    record: &ClusterRecord,
    policy: &Policy,
    operations: &[Operation],
    node: &NodeName,
) -> Option<Reason> {
    if record.eligible.contains(node) || record.synchronous.contains(node) {
        return Some(Reason::about(node, ReasonCode::HoldsEveryConfirmedCommit, "the ledger still names it"));
    }
    let about_node =
        |operation: &&Operation| matches!(&operation.kind, OperationKind::Rejoin { node: other, .. } if other == node);
    if let Some(running) = operations.iter().filter(about_node).find(|operation| !operation.status.is_final()) {
        return Some(Reason::about(node, ReasonCode::OperationUnderWay, running.id.to_string()));
    }
    let brings_back =
        |operation: &&Operation| matches!(&operation.kind, OperationKind::Switchover { from, .. } if from == node);
    if let Some(running) = operations.iter().filter(brings_back).find(|operation| !operation.status.is_final()) {
        return Some(Reason::about(node, ReasonCode::OperationUnderWay, running.id.to_string()));
    }
    let failed = operations.iter().filter(about_node).find(|operation| {
        operation.status != OperationStatus::Succeeded
            && operation.ended_at.is_some_and(|ended| view.is_within(ended, policy.rejoin_retry_after))
    });
    failed.map(|operation| {
        Reason::about(node, ReasonCode::RetryLater, format!("operation {} failed a moment ago", operation.id))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::decide::tests::{edit, node, policy, record, view};

    #[test]
    fn a_standby_that_can_never_go_on_is_cloned_once_the_ledger_no_longer_names_it() {
        let named = record();
        let dropped = ClusterRecord { eligible: BTreeSet::new(), synchronous: BTreeSet::new(), ..record() };
        let mut view = view(&dropped);
        assert_eq!(next(&view, &dropped, &policy(), &[]), Err(Vec::new()), "nobody needs anything");
        edit(&mut view, "n2", |report| report.postgres.damage = Some("its WAL is gone".to_owned()));
        let (kind, why) = next(&view, &dropped, &policy(), &[]).expect("it is brought back");
        assert_eq!(kind, OperationKind::Rejoin { node: node("n2"), reclone: true });
        assert_eq!((why.code, why.detail.as_str()), (ReasonCode::NeedsRejoin, "its WAL is gone"));
        let refused = next(&view, &named, &policy(), &[]).expect_err("the ledger names it");
        assert_eq!(refused[0].code, ReasonCode::HoldsEveryConfirmedCommit);
        // Without a primary that answers there is nobody to copy from, and nobody whose word it is.
        edit(&mut view, "n1", |report| report.postgres.live = None);
        assert_eq!(next(&view, &dropped, &policy(), &[]), Err(Vec::new()));
    }
}
