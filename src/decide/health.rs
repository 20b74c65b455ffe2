//! One word for the cluster, and what an operator should look at.

use super::membership;
use super::primary::{self, Condition};
use crate::domain::plan::{Reason, ReasonCode};
use crate::domain::policy::{DurabilityMode, Policy};
use crate::domain::proof;
use crate::domain::view::View;

/// One word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Writable, and as redundant as configured.
    Healthy,
    /// Writable, and one more loss may stop writes or lose data.
    Degraded,
    /// Nobody accepts writes.
    NoPrimary,
    /// Nobody can tell.
    Unknown,
}

/// The word, and what is wrong.
pub fn health(view: &View, policy: &Policy) -> (Health, Vec<Reason>) {
    let Some(record) = &view.record else {
        let silent = view.nodes.values().filter(|node| node.report.known().is_none());
        let reasons =
            silent.map(|node| Reason::about(&node.node, ReasonCode::WaitingForEveryNode, "no report yet")).collect();
        return (Health::NoPrimary, reasons);
    };
    let condition = primary::condition(view, record, policy);
    let silent_holder = view.report(&record.holder).is_none();
    match condition {
        Condition::Writable => {}
        Condition::Uncertain(reasons) if silent_holder => {
            return match proof::renewed_by_standby(view, record) {
                // It lives and asks its standbys: only its way to this controller is lost.
                Some(renewed) => {
                    let silent = Reason::about(&record.holder, ReasonCode::AgentSilent, "no report");
                    (Health::Degraded, vec![silent, renewed])
                }
                None => (Health::Unknown, reasons),
            };
        }
        other => return (Health::NoPrimary, other.reasons(record)),
    }
    let mut wrong = Vec::new();
    if policy.durability != DurabilityMode::Async && record.eligible.is_empty() {
        wrong.push(Reason::new(ReasonCode::NotRedundant, "no standby holds every confirmed commit"));
    } else {
        wrong.extend(membership::scope_gap(view, record, policy));
    }
    let primary = view.report(&record.holder).and_then(|report| report.postgres.live.as_ref());
    for node in view.nodes.values().filter(|node| node.node != record.holder) {
        let streaming = primary.is_some_and(|live| {
            live.standbys.iter().any(|row| row.node == node.node.as_str() && row.state == "streaming")
        });
        if record.fenced.contains(&node.node) {
            wrong.push(Reason::about(&node.node, ReasonCode::OperatorFenced, "until unfence"));
        } else if node.report.known().is_none() {
            wrong.push(Reason::about(&node.node, ReasonCode::AgentSilent, "no report"));
        } else if !streaming {
            wrong.push(Reason::about(&node.node, ReasonCode::NotRedundant, "the primary does not stream to it"));
        }
    }
    for proxy in view.proxies.values() {
        match proxy.report.known() {
            None => wrong.push(Reason::new(ReasonCode::AgentSilent, format!("proxy {}: no report", proxy.proxy))),
            Some(report) if report.write_target.as_ref() != Some(&record.holder_address) => {
                wrong.push(Reason::new(
                    ReasonCode::NotRedundant,
                    format!("proxy {} does not lead to the primary", proxy.proxy),
                ));
            }
            Some(_) => {}
        }
    }
    (if wrong.is_empty() { Health::Healthy } else { Health::Degraded }, wrong)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::decide::tests::{edit, node, policy, record, view};
    use crate::domain::epoch::Epoch;
    use crate::domain::report::Promised;
    use crate::domain::view::Fact;

    #[test]
    fn a_primary_that_only_its_standbys_hear_is_degraded_and_not_unknown() {
        let mut view = view(&record());
        let holder = view.nodes.get_mut(&node("n1")).expect("there");
        let last = holder.report.last_heard().cloned();
        holder.report = Fact::Unknown { last: last.map(Into::into), for_duration: Duration::from_secs(2) };
        let promise = |epoch| Some(Promised { epoch: Epoch(epoch), remaining: Duration::from_secs(2) });
        for (standby, epoch, expected) in
            [("n3", 3, Health::Unknown), ("n2", 2, Health::Unknown), ("n2", 3, Health::Degraded)]
        {
            edit(&mut view, standby, |report| report.standing.promised = promise(epoch));
            let (health, reasons) = health(&view, &policy());
            assert_eq!(health, expected, "{standby} promised in epoch {epoch}");
            assert!(reasons.iter().any(|reason| reason.code == ReasonCode::AgentSilent), "{reasons:?}");
        }
        view.now = view.now.plus(Duration::from_secs(60));
        assert_eq!(health(&view, &policy()).0, Health::Degraded, "however long it lasts");
    }
}
