//! A switchover that an operator planned for later: what may be planned, when its time has come, and when it is too late.
//!
//! Never knows a clock but the view's wall clock: people name hours, so here it decides when, never whether it is safe.

use std::time::Duration;

use super::candidate::Demand;
use super::request::{self, Answer};
use crate::domain::operation::{Operation, OperationKind};
use crate::domain::plan::{Intent, Reason, ReasonCode};
use crate::domain::policy::Policy;
use crate::domain::record::{ClusterRecord, ScheduledSwitchover};
use crate::domain::view::View;

/// What could not begin for so long after its time is forgotten: a move that nobody expects any more is worse than none.
pub const LATE_MAX: Duration = Duration::from_secs(300);

/// The record that remembers `scheduled`, or why it cannot be meant.
pub(super) fn remember(view: &View, record: &ClusterRecord, scheduled: &ScheduledSwitchover) -> Answer {
    let ScheduledSwitchover { at, to, site, .. } = scheduled;
    if *at <= view.wall {
        return Err(vec![Reason::new(ReasonCode::Scheduled, format!("{at} is past: it is {} here", view.wall))]);
    }
    if let Some(to) = to {
        request::known(view, to)?;
        if *to == record.holder {
            return Err(vec![Reason::about(to, ReasonCode::AlreadyPrimary, "")]);
        }
    }
    if let Some(site) = site
        && !view.nodes.values().any(|node| node.site == *site && node.node != record.holder)
    {
        let words = format!("no other node than the primary stands in site {site}");
        return Err(vec![Reason::new(ReasonCode::NoCandidate, words)]);
    }
    let next = ClusterRecord { scheduled: Some(scheduled.clone()), ..record.changed() };
    Ok((Intent::UpdateRecord { record: Box::new(next) }, vec![reason(scheduled)]))
}

/// The record that has forgotten it.
pub(super) fn forget(record: &ClusterRecord) -> Answer {
    match &record.scheduled {
        Some(scheduled) => Ok((without(record), vec![reason(scheduled)])),
        None => Err(vec![Reason::new(ReasonCode::Scheduled, "no switchover is")]),
    }
}

/// What is to be done about it now; `Err` with what holds it up. `None`: nothing yet.
pub(super) fn due(view: &View, record: &ClusterRecord, policy: &Policy, operations: &[Operation]) -> Option<Answer> {
    let scheduled = record.scheduled.as_ref().filter(|scheduled| scheduled.at <= view.wall)?;
    // It may have failed and left the primary where it was: it is not begun twice.
    if has_begun(scheduled, operations) || view.wall.since(scheduled.at) > LATE_MAX {
        return Some(Ok((without(record), vec![reason(scheduled)])));
    }
    let demand = Demand { to: scheduled.to.clone(), site: scheduled.site.clone(), accept_data_loss: false };
    let answer = request::switchover(view, record, policy, operations, &demand);
    Some(answer.map(|(intent, mut reasons)| {
        reasons.insert(0, reason(scheduled));
        (intent, reasons)
    }))
}

/// True once an operation did what was planned, or tried to.
pub fn has_begun(scheduled: &ScheduledSwitchover, operations: &[Operation]) -> bool {
    let why = reason(scheduled);
    let is_it = |operation: &Operation| {
        matches!(operation.kind, OperationKind::Switchover { .. }) && operation.reasons.contains(&why)
    };
    operations.iter().any(is_it)
}

fn without(record: &ClusterRecord) -> Intent {
    Intent::UpdateRecord { record: Box::new(ClusterRecord { scheduled: None, ..record.changed() }) }
}

fn reason(scheduled: &ScheduledSwitchover) -> Reason {
    Reason::new(ReasonCode::Scheduled, format!("for {}, by {}", scheduled.at, scheduled.who))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::decide;
    use crate::decide::tests::{node, operation, policy, record, view};
    use crate::domain::clock::WallTime;
    use crate::domain::operation::OperationStatus;

    const MINUTE: Duration = Duration::from_secs(60);

    fn scheduled() -> ScheduledSwitchover {
        ScheduledSwitchover { at: WallTime(0).plus(10 * MINUTE), to: None, site: None, who: "dba".to_owned() }
    }

    fn view_at(minutes: u32) -> (View, Policy) {
        let mut view = view(&ClusterRecord { scheduled: Some(scheduled()), ..record() });
        view.wall = WallTime(0).plus(minutes * MINUTE);
        (view, policy())
    }

    fn is_switchover(intent: &Intent) -> bool {
        matches!(intent, Intent::Start { operation: OperationKind::Switchover { .. } })
    }

    fn forgets(intent: &Intent) -> bool {
        matches!(intent, Intent::UpdateRecord { record } if record.scheduled.is_none())
    }

    #[test]
    fn it_begins_at_its_time_once_and_not_before() {
        let (view, policy) = view_at(9);
        assert!(!is_switchover(&decide(&view, &policy, &[]).intent));
        let (view, policy) = view_at(10);
        let plan = decide(&view, &policy, &[]);
        assert!(is_switchover(&plan.intent), "{plan:?}");
        assert_eq!(plan.reasons[0].to_string(), "scheduled (for 1970-01-01T00:10:00Z, by dba)");
        let Intent::Start { operation: kind } = plan.intent else { unreachable!("just seen") };
        let failed = Operation { reasons: plan.reasons, status: OperationStatus::Failed, ..operation(kind) };
        assert!(forgets(&decide(&view, &policy, &[failed]).intent), "it is not tried again");
    }

    #[test]
    fn what_could_not_begin_in_time_is_forgotten() {
        let (mut view, policy) = view_at(12);
        let record = view.record.as_mut().expect("there");
        record.paused_until = Some(WallTime(0).plus(13 * MINUTE));
        assert_eq!(decide(&view, &policy, &[]).intent, Intent::Hold, "paused");
        view.wall = WallTime(0).plus(14 * MINUTE);
        assert!(is_switchover(&decide(&view, &policy, &[]).intent), "late, and still expected");
        view.wall = WallTime(0).plus(16 * MINUTE);
        assert!(forgets(&decide(&view, &policy, &[]).intent));
    }

    #[test]
    fn a_new_primary_ends_it() {
        let record = ClusterRecord { scheduled: Some(scheduled()), ..record() };
        let address = record.holder_address.clone();
        assert_eq!(record.with_next_epoch(node("n2"), address, WallTime(1)).scheduled, None);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let (view, _) = view_at(5);
        let record = view.record.clone().expect("there");
        let refused = |scheduled| remember(&view, &record, &scheduled).expect_err("refused")[0].code;
        assert_eq!(refused(ScheduledSwitchover { at: view.wall, ..scheduled() }), ReasonCode::Scheduled);
        assert_eq!(refused(ScheduledSwitchover { to: Some(node("n1")), ..scheduled() }), ReasonCode::AlreadyPrimary);
        assert_eq!(refused(ScheduledSwitchover { to: Some(node("n9")), ..scheduled() }), ReasonCode::UnknownNode);
        let elsewhere = Some(crate::domain::ids::SiteName::new("nowhere").expect("valid"));
        assert_eq!(refused(ScheduledSwitchover { site: elsewhere, ..scheduled() }), ReasonCode::NoCandidate);
        assert_eq!(
            forget(&ClusterRecord { scheduled: None, ..record.clone() }).expect_err("none")[0].code,
            ReasonCode::Scheduled
        );
        assert!(forgets(&forget(&record).expect("there").0));
    }
}
