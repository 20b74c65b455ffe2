//! View and policy in, plan out. Pure: no clock, no I/O, no randomness; the same view always gives the same plan.
//!
//! The controller calls [`decide`] on every event and carries the plan out; production, tests and simulation run this very code.

pub mod alert;
pub mod candidate;
pub mod doctor;
mod doctor_outside;
mod doctor_traffic;
pub mod early_warning;
pub mod explain;
pub mod first_epoch;
pub mod health;
pub mod lease;
pub mod membership;
pub mod primary;
pub mod rejoin;
mod repository;
pub mod request;
pub mod schedule;
pub mod sequence;
pub mod strain;
pub mod trend;
pub mod witnesses;

use crate::domain::operation::{Operation, OperationKind};
use crate::domain::plan::{Intent, Plan, Reason, ReasonCode};
use crate::domain::policy::{DurabilityMode, Policy, SyncScope};
use crate::domain::record::ClusterRecord;
use crate::domain::report::Report;
use crate::domain::view::View;
use crate::domain::witness;

use candidate::Demand;
use primary::Condition;

/// What to do next, and why. `operations` are those under way and the latest ended ones (for back-off).
pub fn decide(view: &View, policy: &Policy, operations: &[Operation]) -> Plan {
    let Some(record) = &view.record else {
        return first_epoch::plan(view, policy, operations);
    };
    let plan = |intent, reasons, blocked_by| Plan {
        intent,
        reasons,
        blocked_by,
        based_on: Some((record.epoch, record.number)),
        loss: None,
    };

    if let Some(reason) = store_outdated(view, record) {
        return plan(Intent::Hold, Vec::new(), vec![reason]);
    }
    if let Some((next, reason)) = bookkeeping(view, record, policy) {
        return plan(Intent::UpdateRecord { record: Box::new(next) }, vec![reason], Vec::new());
    }
    let condition = primary::condition(view, record, policy);
    if !record.holder_confirmed && condition == Condition::Writable {
        let confirmed = ClusterRecord { holder_confirmed: true, ..record.changed() };
        let why = Reason::about(&record.holder, ReasonCode::Healthy, "accepts writes in its epoch");
        return plan(Intent::UpdateRecord { record: Box::new(confirmed) }, vec![why], Vec::new());
    }
    // A primary that dies is not left dead because a switchover waits for its checkpoint: the failover cancels that one.
    let holds_up = |running: &&Operation| !(running.has_moved() || running.only_prepares() && condition.is_lost());
    if let Some(running) = moving(operations).filter(holds_up) {
        let why = Reason::new(ReasonCode::OperationUnderWay, format!("{} {}", running.kind.label(), running.id));
        return plan(Intent::Hold, vec![why], Vec::new());
    }

    if condition.is_lost() {
        let (intent, mut reasons, blocked_by) = failover(view, record, policy, operations, &condition);
        reasons.splice(0..0, condition.reasons(record));
        if matches!(intent, Intent::Start { .. }) {
            reasons.extend(witness::words(view, record));
        }
        return plan(intent, reasons, blocked_by);
    }
    if condition != Condition::Writable {
        return plan(Intent::Hold, condition.reasons(record), Vec::new());
    }

    let mut blocked_by = Vec::new();
    match membership::change(view, record, policy) {
        membership::Change::Store { record, reasons } => {
            return plan(Intent::UpdateRecord { record }, reasons, Vec::new());
        }
        membership::Change::Waiting(reasons) => blocked_by.extend(reasons),
        membership::Change::None => {
            if let Some((next, reason)) = membership::addresses(view, record) {
                return plan(Intent::UpdateRecord { record: Box::new(next) }, vec![reason], Vec::new());
            }
        }
    }
    if let Some(until) = paused(view, record) {
        blocked_by.push(until);
        return plan(Intent::Hold, condition.reasons(record), blocked_by);
    }
    match schedule::due(view, record, policy, operations) {
        Some(Ok((intent, reasons))) => return plan(intent, reasons, blocked_by),
        Some(Err(blocked)) => blocked_by.extend(blocked),
        None => {}
    }
    match rejoin::next(view, record, policy, operations) {
        Ok((operation, reason)) => plan(Intent::Start { operation }, vec![reason], blocked_by),
        Err(blocked) => {
            blocked_by.extend(blocked);
            match early_warning::consider(view, record, policy, operations) {
                None => plan(Intent::Hold, condition.reasons(record), blocked_by),
                Some(warned) => {
                    blocked_by.extend(warned.blocked_by);
                    plan(warned.intent, warned.reasons, blocked_by)
                }
            }
        }
    }
}

/// The operation that moves the primary at the moment; one that has moved it already, or only prepares to, if no other does.
pub fn moving(operations: &[Operation]) -> Option<&Operation> {
    let unfinished =
        operations.iter().filter(|operation| !operation.status.is_final() && operation.kind.moves_primary());
    unfinished.min_by_key(|operation| operation.has_moved() || operation.only_prepares())
}

fn failover(
    view: &View,
    record: &ClusterRecord,
    policy: &Policy,
    operations: &[Operation],
    condition: &Condition,
) -> (Intent, Vec<Reason>, Vec<Reason>) {
    if let Some(until) = paused(view, record) {
        return (Intent::Hold, Vec::new(), vec![until]);
    }
    let unheard = unheard(view, record, policy);
    let (to, reasons) = match candidate::best(view, record, policy, &Demand::automatic()) {
        Ok(choice) if unheard.is_empty() || record.eligible.contains(&choice.node) => (choice.node, choice.reasons),
        Ok(_) => return (Intent::Hold, Vec::new(), unheard),
        Err(_) if !unheard.is_empty() => return (Intent::Hold, Vec::new(), unheard),
        Err(mut refused) => {
            if let Some(reason) = candidate::restart_in_place(view, record, condition) {
                (record.holder.clone(), vec![reason])
            } else {
                refused
                    .insert(0, Reason::new(ReasonCode::NoCandidate, "nobody may be promoted without losing commits"));
                refused.extend(left_to_a_human(view, record, policy));
                return (Intent::Hold, Vec::new(), refused);
            }
        }
    };
    if let Condition::Gone(proof, _) = condition
        && !proof.suffices_for(record, &to)
    {
        let detail =
            format!("{} may have renewed its lease without it: only a fence proves that it stopped", record.holder);
        return (Intent::Hold, reasons, vec![Reason::about(&to, ReasonCode::NotEligible, detail)]);
    }
    // A target that failed a moment ago is not tried again at once; another target, or a new death, is never held up.
    let failed_lately = operations.iter().find(|operation| {
        matches!(&operation.kind, OperationKind::Failover { from, to: target, .. } if *from == record.holder && *target == to)
            && operation.status.is_final()
            && operation.epoch_after.unwrap_or(operation.epoch_before) == record.epoch
            && operation.ended_at.is_some_and(|ended| view.is_within(ended, policy.timers.lease))
    });
    if let Some(failed) = failed_lately {
        let why = Reason::about(&to, ReasonCode::RetryLater, format!("operation {} ended a moment ago", failed.id));
        return (Intent::Hold, reasons, vec![why]);
    }
    let operation =
        OperationKind::Failover { from: record.holder.clone(), to, accept_data_loss: false, old_primary_is_off: false };
    (Intent::Start { operation }, reasons, Vec::new())
}

/// Why a lost site is not left by itself, where that is what keeps the cluster without a primary.
fn left_to_a_human(view: &View, record: &ClusterRecord, policy: &Policy) -> Option<Reason> {
    let own = &view.nodes.get(&record.holder)?.site;
    let elsewhere = view.nodes.values().find(|node| node.site != *own && node.report.known().is_some())?;
    let applies = policy.durability != DurabilityMode::Async && policy.sync_scope == SyncScope::Local;
    (applies && !record.eligible.contains(&elsewhere.node)).then(|| {
        let detail = format!(
            "sync_scope is local: no standby outside site {own} confirms commits, so leaving that site is a human's decision; see \
             stormglass failover --site {} --accept-data-loss --dry-run",
            elsewhere.site
        );
        Reason::new(ReasonCode::NotEligible, detail)
    })
}

/// Standbys that a controller which has only just begun has never heard of: for a moment, the best one may be among them.
fn unheard(view: &View, record: &ClusterRecord, policy: &Policy) -> Vec<Reason> {
    if !view.is_within(view.leading_since, policy.report_stale_after) {
        return Vec::new();
    }
    view.nodes
        .values()
        .filter(|node| node.node != record.holder && node.report.last_heard().is_none())
        .map(|node| Reason::about(&node.node, ReasonCode::WaitingForEveryNode, "no report yet"))
        .collect()
}

/// Why nothing automatic happens, while a pause lasts.
fn paused(view: &View, record: &ClusterRecord) -> Option<Reason> {
    let until = record.paused_until.filter(|until| *until > view.wall)?;
    Some(Reason::new(ReasonCode::Paused, format!("until {until}")))
}

/// What the record must say before anything rests on it.
fn bookkeeping(view: &View, record: &ClusterRecord, policy: &Policy) -> Option<(ClusterRecord, Reason)> {
    let wait = policy.timers.wait();
    if !record.longest_wait.is_zero() && wait > record.longest_wait {
        let why = Reason::new(ReasonCode::LeaseMayRun, format!("leases of this epoch may take {wait:?} to run out"));
        return Some((ClusterRecord { longest_wait: wait, ..record.changed() }, why));
    }
    let standing = &view.report(&record.holder)?.standing;
    let left_running = standing.left_running || record.left_running && standing.lease_epoch != Some(record.epoch);
    (left_running != record.left_running).then(|| {
        let words = if left_running { "left running while paused" } else { "under its lease again" };
        let why = Reason::about(&record.holder, ReasonCode::LeaseMayRun, words);
        (ClusterRecord { left_running, ..record.changed() }, why)
    })
}

/// An agent that stored a higher epoch or record number than the store's record: the store came back from a copy (design,
/// section 2). Moved aside, it is made anew from the word of every node.
pub fn store_outdated(view: &View, record: &ClusterRecord) -> Option<Reason> {
    view.nodes.values().find_map(|node| outdated_by(record, node.report.last_heard()?))
}

fn outdated_by(record: &ClusterRecord, report: &Report) -> Option<Reason> {
    let standing = &report.standing;
    (standing.highest_epoch > record.epoch || standing.highest_number > record.number).then(|| {
        let detail = format!(
            "it stored epoch {} and record {}, the store says {} and {}: the store is older than the cluster; stop the \
             controller, move its store aside and start it, and it asks every node",
            standing.highest_epoch, standing.highest_number, record.epoch, record.number
        );
        Reason::about(&report.node, ReasonCode::StoreOutdated, detail)
    })
}

/// Every node that cannot be used at all: it knows more than the store, or holds another cluster's data.
pub fn unusable(view: &View, record: &ClusterRecord) -> Vec<Reason> {
    let other_data = |report: &Report| {
        let live = report.postgres.live.as_ref().map(|live| live.system_identifier);
        let own = live.or_else(|| report.postgres.control.as_ref().map(|control| control.system_identifier))?;
        (own != record.system_identifier).then(|| {
            let detail = format!("{own}, the cluster's is {}: point it at the right data", record.system_identifier);
            Reason::about(&report.node, ReasonCode::OtherSystemIdentifier, detail)
        })
    };
    let reports = view.nodes.values().filter_map(|node| node.report.last_heard());
    reports.flat_map(|report| [outdated_by(record, report), other_data(report)]).flatten().collect()
}

#[cfg(test)]
mod tests;
