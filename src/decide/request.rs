//! What an operator asks for: a plan, or the guards that refuse it.
//!
//! `--dry-run` prints the very plan that would be carried out.

use super::candidate::{self, Demand};
use super::primary::{self, Condition};
use super::{first_epoch, moving, rejoin, repository, schedule};
use crate::domain::backup::{BackupType, RecoveryTarget};
use crate::domain::ids::{NodeName, SiteName};
use crate::domain::operation::{Operation, OperationKind};
use crate::domain::plan::{Intent, Loss, Plan, Reason, ReasonCode};
use crate::domain::policy::{DurabilityMode, Policy};
use crate::domain::proof;
use crate::domain::record::{ClusterRecord, ScheduledSwitchover};
use crate::domain::view::View;

/// What was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Move the primary, both sides healthy.
    Switchover {
        /// To this node.
        to: Option<NodeName>,
        /// To this site.
        site: Option<SiteName>,
    },
    /// The same, later.
    Schedule {
        /// When, and what.
        scheduled: ScheduledSwitchover,
    },
    /// Forget the one that is scheduled.
    Unschedule,
    /// Move the primary, which is lost.
    Failover {
        /// To this node.
        to: Option<NodeName>,
        /// To this site.
        site: Option<SiteName>,
        /// Confirmed commits may be lost.
        accept_data_loss: bool,
        /// The operator swears that the old primary is off.
        old_primary_is_off: bool,
    },
    /// Bring a node back.
    Rejoin {
        /// Which.
        node: NodeName,
        /// Skip the rewind.
        reclone: bool,
    },
    /// Keep a node unable to write.
    Fence {
        /// Which.
        node: NodeName,
    },
    /// Let it come back.
    Unfence {
        /// Which.
        node: NodeName,
    },
    /// Take a backup.
    Backup {
        /// How much it shall hold.
        backup_type: BackupType,
        /// From a standby, where one streams.
        from_standby: bool,
    },
    /// Restore a backup where nobody uses it, check it, remove it.
    Drill,
    /// Train a model anew.
    Retrain {
        /// How long the training itself may take, in seconds.
        time_limit_seconds: u64,
    },
    /// Begin anew from the repository.
    Restore {
        /// Up to where.
        target: RecoveryTarget,
        /// In this site.
        site: Option<SiteName>,
        /// Only a copy, in this directory.
        into: Option<String>,
    },
}

/// The plan for a request. `Intent::Hold` with `blocked_by` is a refusal.
pub fn plan(view: &View, policy: &Policy, operations: &[Operation], request: &Request) -> Plan {
    let based_on = view.record.as_ref().map(|record| (record.epoch, record.number));
    let Some(record) = &view.record else {
        return without_record(view, policy, operations, request);
    };
    if let Some(reason) = super::store_outdated(view, record) {
        return Plan { intent: Intent::Hold, reasons: Vec::new(), blocked_by: vec![reason], based_on, loss: None };
    }
    let answer = match request {
        Request::Switchover { to, site } => {
            let demand = Demand { to: to.clone(), site: site.clone(), accept_data_loss: false };
            switchover(view, record, policy, operations, &demand)
        }
        Request::Schedule { scheduled } => schedule::remember(view, record, scheduled),
        Request::Unschedule => schedule::forget(record),
        Request::Failover { to, site, accept_data_loss, old_primary_is_off } => {
            let demand = Demand { to: to.clone(), site: site.clone(), accept_data_loss: *accept_data_loss };
            failover(view, record, policy, operations, demand, *old_primary_is_off)
        }
        Request::Rejoin { node, reclone } => bring_back(view, record, policy, operations, node, *reclone),
        Request::Fence { node } => fence(view, record, operations, node),
        Request::Unfence { node } => unfence(view, record, node),
        Request::Backup { backup_type, from_standby } => {
            repository::backup(view, record, policy, operations, *backup_type, *from_standby)
        }
        Request::Drill => repository::drill(view, record, policy, operations),
        Request::Retrain { time_limit_seconds } => retrain(record, operations, *time_limit_seconds),
        Request::Restore { target, site, into } => {
            repository::restore(view, record, operations, *target, site.as_ref(), into.clone())
        }
    };
    match answer {
        Ok((intent, mut reasons)) => {
            reasons.insert(0, Reason::new(ReasonCode::OperatorRequest, ""));
            let loss = loss(view, record, policy, &intent);
            Plan { intent, reasons, blocked_by: Vec::new(), based_on, loss }
        }
        Err(blocked_by) => Plan { intent: Intent::Hold, reasons: Vec::new(), blocked_by, based_on, loss: None },
    }
}

/// Only a human's word takes the place of the nodes that a store without a record waits for.
fn without_record(view: &View, policy: &Policy, operations: &[Operation], request: &Request) -> Plan {
    let answer = match request {
        Request::Failover { to, site, accept_data_loss, old_primary_is_off } => {
            let demand = Demand { to: to.clone(), site: site.clone(), accept_data_loss: *accept_data_loss };
            first_epoch::by_hand(view, policy, operations, &demand, *old_primary_is_off)
        }
        _ => Err(vec![Reason::new(
            ReasonCode::WaitingForEveryNode,
            "the cluster has no first epoch yet: see stormglass explain",
        )]),
    };
    let (intent, reasons, blocked_by) = match answer {
        Ok((intent, mut reasons)) => {
            reasons.insert(0, Reason::new(ReasonCode::OperatorRequest, ""));
            (intent, reasons, Vec::new())
        }
        Err(blocked_by) => (Intent::Hold, Vec::new(), blocked_by),
    };
    Plan { intent, reasons, blocked_by, based_on: None, loss: None }
}

/// What an operator who accepts loss must know first.
fn loss(view: &View, record: &ClusterRecord, policy: &Policy, intent: &Intent) -> Option<Loss> {
    match intent {
        Intent::Start { operation: OperationKind::Failover { from, to, accept_data_loss: true, .. } } if from != to => {
            candidate::loss_of(view, record, policy, to)
        }
        _ => None,
    }
}

pub(super) type Answer = Result<(Intent, Vec<Reason>), Vec<Reason>>;

pub(super) fn known(view: &View, node: &NodeName) -> Result<(), Vec<Reason>> {
    if view.nodes.contains_key(node) {
        Ok(())
    } else {
        let names: Vec<&str> = view.nodes.keys().map(NodeName::as_str).collect();
        Err(vec![Reason::about(node, ReasonCode::UnknownNode, format!("the cluster has {}", names.join(", ")))])
    }
}

pub(super) fn nothing_moves(operations: &[Operation]) -> Result<(), Vec<Reason>> {
    match moving(operations) {
        Some(running) => Err(vec![Reason::new(
            ReasonCode::OperationUnderWay,
            format!("{} {}: watch or cancel it first", running.kind.label(), running.id),
        )]),
        None => Ok(()),
    }
}

/// The planned move that `demand` asks for, or every guard that refuses it.
pub(super) fn switchover(
    view: &View,
    record: &ClusterRecord,
    policy: &Policy,
    operations: &[Operation],
    demand: &Demand,
) -> Answer {
    nothing_moves(operations)?;
    if let Some(to) = &demand.to {
        known(view, to)?;
        if *to == record.holder {
            return Err(vec![Reason::about(to, ReasonCode::AlreadyPrimary, "")]);
        }
    }
    let condition = primary::condition(view, record, policy);
    if condition == Condition::Writable && !record.holder_confirmed {
        let why = "it was promoted a moment ago: ask again";
        return Err(vec![Reason::about(&record.holder, ReasonCode::PromotionUnfinished, why)]);
    }
    if condition != Condition::Writable {
        let mut reasons = vec![Reason::about(&record.holder, ReasonCode::PrimaryNotHealthy, "only failover can help")];
        reasons.extend(condition.reasons(record));
        return Err(reasons);
    }
    // A planned move waits for the shutdown record on the standby, so that any streaming standby loses nothing; the lag limit keeps it short.
    let lossless =
        Policy { durability: DurabilityMode::Async, max_lag_bytes: policy.switchover_max_lag_bytes, ..policy.clone() };
    let choice =
        candidate::best(view, record, policy, demand).or_else(|_| candidate::best(view, record, &lossless, demand))?;
    let streaming = view.report(&record.holder).and_then(|report| report.postgres.live.as_ref()).is_some_and(|live| {
        live.standbys.iter().any(|row| row.node == choice.node.as_str() && row.state == "streaming")
    });
    if !streaming {
        return Err(vec![Reason::about(&choice.node, ReasonCode::ReceiverFrozen, "the primary does not stream to it")]);
    }
    let operation = OperationKind::Switchover { from: record.holder.clone(), to: choice.node };
    Ok((Intent::Start { operation }, choice.reasons))
}

fn failover(
    view: &View,
    record: &ClusterRecord,
    policy: &Policy,
    operations: &[Operation],
    demand: Demand,
    old_primary_is_off: bool,
) -> Answer {
    nothing_moves(operations)?;
    if let Some(to) = &demand.to {
        known(view, to)?;
    }
    let condition = primary::condition(view, record, policy);
    if condition == Condition::Writable {
        return Err(vec![Reason::about(
            &record.holder,
            ReasonCode::PrimaryHealthy,
            "a switchover loses nothing: stormglass switchover",
        )]);
    }
    let accept_data_loss = demand.accept_data_loss;
    let in_place = demand.to.as_ref() == Some(&record.holder);
    let (to, mut reasons) = if in_place {
        let reason = candidate::restart_in_place(view, record, &condition).ok_or_else(|| condition.reasons(record))?;
        (record.holder.clone(), vec![reason])
    } else {
        let choice = candidate::best(view, record, policy, &demand)?;
        (choice.node, choice.reasons)
    };
    let agent_can_fence = view.report(&record.holder).is_some();
    let suffices = match proof::proof(view, record, policy) {
        Ok(proof) if proof.suffices_for(record, &to) => Ok(()),
        Ok(_) => {
            Err(Reason::about(&to, ReasonCode::NotEligible, "its promise was never needed for the lease to be renewed"))
        }
        // It runs out by itself for those whose promises could have renewed it, and for nobody else (rule 2).
        Err(_) if record.eligible.contains(&to) && !record.left_running => Ok(()),
        Err(reason) => Err(reason),
    };
    if let Err(reason) = suffices
        && !agent_can_fence
        && !old_primary_is_off
    {
        // Acceptance of data loss alone never suffices.
        return Err(vec![
            reason,
            Reason::about(
                &record.holder,
                ReasonCode::AgentSilent,
                "switch it off for certain, then say --old-primary-is-off",
            ),
        ]);
    }
    if accept_data_loss
        && let Some(loss) = candidate::loss_of(view, record, policy, &to).filter(|_| to != record.holder)
    {
        reasons.insert(0, Reason::about(&to, ReasonCode::WouldLoseCommits, loss.amount()));
    }
    let operation = OperationKind::Failover { from: record.holder.clone(), to, accept_data_loss, old_primary_is_off };
    Ok((Intent::Start { operation }, reasons))
}

fn bring_back(
    view: &View,
    record: &ClusterRecord,
    policy: &Policy,
    operations: &[Operation],
    node: &NodeName,
    reclone: bool,
) -> Answer {
    known(view, node)?;
    if *node == record.holder {
        return Err(vec![Reason::about(node, ReasonCode::AlreadyPrimary, "a primary cannot rejoin itself")]);
    }
    nothing_moves(operations)?;
    let condition = primary::condition(view, record, policy);
    if condition != Condition::Writable {
        return Err(condition.reasons(record));
    }
    if record.fenced.contains(node) {
        return Err(vec![Reason::about(node, ReasonCode::OperatorFenced, "unfence it first")]);
    }
    if view.report(node).is_none() {
        return Err(vec![Reason::about(node, ReasonCode::AgentSilent, "start its agent first")]);
    }
    let patient = Policy { rejoin_retry_after: std::time::Duration::ZERO, ..policy.clone() };
    if let Some(refusal) = rejoin::guard(view, record, &patient, operations, node) {
        return Err(vec![refusal]);
    }
    let operation = OperationKind::Rejoin { node: node.clone(), reclone };
    Ok((Intent::Start { operation }, Vec::new()))
}

/// One at a time; whatever else is under way goes on beside it.
fn retrain(record: &ClusterRecord, operations: &[Operation], time_limit_seconds: u64) -> Answer {
    let is_one = |it: &&Operation| !it.status.is_final() && matches!(it.kind, OperationKind::Retrain { .. });
    if let Some(running) = operations.iter().find(is_one) {
        let words = format!("retrain {}: watch or cancel it first", running.id);
        return Err(vec![Reason::new(ReasonCode::OperationUnderWay, words)]);
    }
    let operation = OperationKind::Retrain { node: record.holder.clone(), time_limit_seconds };
    Ok((Intent::Start { operation }, Vec::new()))
}

fn fence(view: &View, record: &ClusterRecord, operations: &[Operation], node: &NodeName) -> Answer {
    known(view, node)?;
    nothing_moves(operations)?;
    let mut next = record.changed();
    if !next.fenced.insert(node.clone()) {
        return Err(vec![Reason::about(node, ReasonCode::OperatorFenced, "it is fenced already")]);
    }
    Ok((
        Intent::UpdateRecord { record: Box::new(next) },
        vec![Reason::about(node, ReasonCode::OperatorFenced, "until unfence")],
    ))
}

fn unfence(view: &View, record: &ClusterRecord, node: &NodeName) -> Answer {
    known(view, node)?;
    let mut next = record.changed();
    if !next.fenced.remove(node) {
        return Err(vec![Reason::about(node, ReasonCode::OperatorRequest, "it is not fenced")]);
    }
    Ok((Intent::UpdateRecord { record: Box::new(next) }, Vec::new()))
}
