//! Backups, drills and restores as somebody, or the schedule, asks for them: on whose host, or the guards that refuse.
//!
//! Whether the repository can be reached is for the operation's own steps to find out.

use super::moving;
use super::primary::{self, Condition};
use crate::domain::backup::{BackupType, RecoveryTarget};
use crate::domain::ids::{NodeName, SiteName};
use crate::domain::operation::{Operation, OperationKind};
use crate::domain::plan::{Intent, Reason, ReasonCode};
use crate::domain::policy::Policy;
use crate::domain::record::ClusterRecord;
use crate::domain::report::PostgresState;
use crate::domain::view::View;

pub(super) type Answer = Result<(Intent, Vec<Reason>), Vec<Reason>>;

/// True for what uses the repository: one at a time.
fn uses_repository(kind: &OperationKind) -> bool {
    matches!(kind, OperationKind::Backup { .. } | OperationKind::Drill { .. } | OperationKind::Restore { .. })
}

fn repository_is_free(operations: &[Operation]) -> Result<(), Vec<Reason>> {
    let running = operations.iter().find(|it| !it.status.is_final() && uses_repository(&it.kind));
    running.map_or(Ok(()), |running| {
        let words = format!("{} {}: watch or cancel it first", running.kind.label(), running.id);
        Err(vec![Reason::new(ReasonCode::OperationUnderWay, words)])
    })
}

/// The cluster is ready: its primary accepts writes, and nothing moves it.
fn is_ready(view: &View, record: &ClusterRecord, policy: &Policy, operations: &[Operation]) -> Result<(), Vec<Reason>> {
    repository_is_free(operations)?;
    if let Some(running) = moving(operations) {
        let words = format!("{} {}: it is tried again afterwards", running.kind.label(), running.id);
        return Err(vec![Reason::new(ReasonCode::OperationUnderWay, words)]);
    }
    let condition = primary::condition(view, record, policy);
    if condition == Condition::Writable && record.holder_confirmed {
        return Ok(());
    }
    let why = "WAL must arrive in the repository meanwhile";
    let mut reasons = vec![Reason::about(&record.holder, ReasonCode::PrimaryNotHealthy, why)];
    if condition != Condition::Writable {
        reasons.extend(condition.reasons(record));
    }
    Err(reasons)
}

/// Standbys that run and stream, those that nobody waits for first.
fn streaming<'view>(view: &'view View, record: &'view ClusterRecord) -> Vec<&'view NodeName> {
    let rows = view.report(&record.holder).and_then(|report| report.postgres.live.as_ref());
    let streams = |node: &NodeName| {
        rows.is_some_and(|live| live.standbys.iter().any(|row| row.node == node.as_str() && row.state == "streaming"))
    };
    let mut names: Vec<&NodeName> = view
        .nodes
        .values()
        .filter(|node| node.node != record.holder && streams(&node.node))
        .filter(|node| node.report.known().is_some_and(|report| report.postgres.state == PostgresState::Running))
        .map(|node| &node.node)
        .collect();
    names.sort_by_key(|node| (record.eligible.contains(*node), (*node).clone()));
    names
}

/// A backup, from a standby where one streams and that is wanted.
pub(super) fn backup(
    view: &View,
    record: &ClusterRecord,
    policy: &Policy,
    operations: &[Operation],
    backup_type: BackupType,
    from_standby: bool,
) -> Answer {
    is_ready(view, record, policy, operations)?;
    let standby = streaming(view, record).first().copied().filter(|_| from_standby);
    let node = standby.unwrap_or(&record.holder).clone();
    Ok((Intent::Start { operation: OperationKind::Backup { node, backup_type } }, Vec::new()))
}

/// A drill, on a standby's host where there is one.
pub(super) fn drill(view: &View, record: &ClusterRecord, policy: &Policy, operations: &[Operation]) -> Answer {
    is_ready(view, record, policy, operations)?;
    let node = streaming(view, record).first().copied().unwrap_or(&record.holder).clone();
    Ok((Intent::Start { operation: OperationKind::Drill { node, manifests: Default::default() } }, Vec::new()))
}

/// A restore: the node that was the primary, where its agent is heard and it stands in the wanted site; else another one.
pub(super) fn restore(
    view: &View,
    record: &ClusterRecord,
    operations: &[Operation],
    target: RecoveryTarget,
    site: Option<&SiteName>,
    into: Option<String>,
) -> Answer {
    repository_is_free(operations)?;
    // A sequence that waits for redundancy would wait in vain, and stops by itself once the epoch is another one.
    let is_in_the_way = |it: &&Operation| !it.status.is_final() && !matches!(it.kind, OperationKind::Sequence { .. });
    if into.is_none()
        && let Some(running) = operations.iter().find(is_in_the_way)
    {
        let words = format!("{} {}: watch or cancel it first", running.kind.label(), running.id);
        return Err(vec![Reason::new(ReasonCode::OperationUnderWay, words)]);
    }
    let mut refused = Vec::new();
    let mut able = Vec::new();
    for node in view.nodes.values() {
        let name = &node.node;
        match node.report.known() {
            None => refused.push(Reason::about(name, ReasonCode::AgentSilent, "no report")),
            Some(_) if site.is_some_and(|site| node.site != *site) => {
                let words = format!("it stands in site {}", node.site);
                refused.push(Reason::about(name, ReasonCode::OperatorRequest, words));
            }
            Some(report) if into.is_none() && (report.standing.operator_fenced || record.fenced.contains(name)) => {
                refused.push(Reason::about(name, ReasonCode::OperatorFenced, "unfence it first"));
            }
            Some(report) if into.is_none() && report.tags.no_failover => {
                refused.push(Reason::about(name, ReasonCode::TaggedNoFailover, ""));
            }
            Some(_) => able.push(name),
        }
    }
    // A copy beside it costs the primary nothing, and a standby's host less.
    able.sort_by_key(|name| ((**name == record.holder) == into.is_some(), (*name).clone()));
    let Some(node) = able.first().copied().cloned() else {
        refused.insert(0, Reason::new(ReasonCode::NoCandidate, "no node can be restored"));
        return Err(refused);
    };
    let operation =
        OperationKind::Restore { from: record.holder.clone(), node, target, into, manifests: Default::default() };
    Ok((Intent::Start { operation }, Vec::new()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::tests::{edit, node, operation, policy, record, view};

    fn kind_of(answer: Answer) -> Result<OperationKind, ReasonCode> {
        match answer {
            Ok((Intent::Start { operation }, _)) => Ok(operation),
            Ok(other) => panic!("nothing else may come of it: {other:?}"),
            Err(reasons) => Err(reasons[0].code),
        }
    }

    fn backup_of(name: &str) -> OperationKind {
        OperationKind::Backup { node: node(name), backup_type: BackupType::Incr }
    }

    #[test]
    fn one_thing_at_a_time_uses_the_repository_and_only_a_ready_cluster_does() {
        let (record, policy) = (record(), policy());
        let ask = |view: &View, operations: &[Operation]| {
            kind_of(backup(view, &record, &policy, operations, BackupType::Incr, true))
        };
        let ready = view(&record);
        assert_eq!(ask(&ready, &[]), Ok(backup_of("n3")), "of the standby that nobody waits for");
        let moving = OperationKind::Switchover { from: node("n1"), to: node("n2") };
        let drill = OperationKind::Drill { node: node("n3"), manifests: Default::default() };
        for kind in [backup_of("n2"), drill.clone(), moving] {
            let refused = ask(&ready, &[operation(kind.clone())]);
            assert_eq!(refused, Err(ReasonCode::OperationUnderWay), "{kind:?}");
        }
        // What comes back, and a sequence that asks for the backup itself, are not in its way.
        let rejoin = OperationKind::Rejoin { node: node("n2"), reclone: false };
        assert_eq!(ask(&ready, &[operation(rejoin)]), Ok(backup_of("n3")));
        assert_eq!(kind_of(super::drill(&ready, &record, &policy, &[])), Ok(drill));
        let mut down = ready.clone();
        edit(&mut down, "n1", |report| {
            report.postgres.state = PostgresState::Stopped;
            report.postgres.live = None;
        });
        assert_eq!(ask(&down, &[]), Err(ReasonCode::PrimaryNotHealthy));
        let new = ClusterRecord { holder_confirmed: false, ..record.clone() };
        let refused = kind_of(backup(&ready, &new, &policy, &[], BackupType::Full, false));
        assert_eq!(refused, Err(ReasonCode::PrimaryNotHealthy), "its WAL may still be of nobody");
    }

    #[test]
    fn a_restore_waits_for_no_sequence_and_goes_where_it_is_asked_to() {
        let record = record();
        let ready = view(&record);
        let sequence = OperationKind::Sequence {
            name: "redundancy".to_owned(),
            cause: None,
            primary: node("n1"),
            steps: Vec::new(),
            variables: Default::default(),
        };
        let ask = |operations: &[Operation], site: Option<&str>| {
            let site = site.map(|site| SiteName::new(site).expect("valid"));
            match kind_of(restore(&ready, &record, operations, RecoveryTarget::Latest, site.as_ref(), None)) {
                Ok(OperationKind::Restore { node, .. }) => Ok(node),
                Ok(other) => panic!("{other:?}"),
                Err(code) => Err(code),
            }
        };
        assert_eq!(ask(&[], None), Ok(node("n1")));
        assert_eq!(ask(&[operation(sequence)], Some("a")), Ok(node("n1")));
        assert_eq!(ask(&[operation(backup_of("n3"))], None), Err(ReasonCode::OperationUnderWay));
        assert_eq!(ask(&[], Some("b")), Err(ReasonCode::NoCandidate), "nobody stands there");
    }
}
