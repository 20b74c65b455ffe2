//! Before there is a record: who gets the first epoch, or the next one after a lost store.
//!
//! Needs the word of every configured node (design, section 2): a node that is missing might be the primary. An operator's oath that
//! the missing ones are off takes the place of theirs, as when the only controller is lost with its site.

use std::cmp::Reverse;
use std::time::Duration;

use super::candidate::Demand;
use super::request::{Answer, known, nothing_moves};
use crate::domain::epoch::Epoch;
use crate::domain::lsn::Timeline;
use crate::domain::operation::{Operation, OperationKind};
use crate::domain::plan::{Intent, Plan, Reason, ReasonCode};
use crate::domain::policy::Policy;
use crate::domain::report::{PostgresState, Report};
use crate::domain::view::View;

/// The plan without a record.
pub fn plan(view: &View, policy: &Policy, operations: &[Operation]) -> Plan {
    let hold = |blocked_by| Plan { intent: Intent::Hold, reasons: Vec::new(), blocked_by, based_on: None, loss: None };
    if let Some(running) = super::moving(operations) {
        return hold(vec![Reason::new(ReasonCode::OperationUnderWay, running.id.to_string())]);
    }
    let missing: Vec<Reason> = view
        .nodes
        .values()
        .filter(|node| node.report.known().is_none())
        .map(|node| Reason::about(&node.node, ReasonCode::WaitingForEveryNode, "no report yet"))
        .collect();
    if !missing.is_empty() || view.nodes.is_empty() {
        return hold(missing);
    }
    if let Some(reason) = promotion_may_be_on_its_way(view, policy) {
        return hold(vec![reason]);
    }
    let claims: Vec<&Report> = view
        .nodes
        .values()
        .filter_map(|node| node.report.known())
        .filter(|report| is_primary_data(report) && !report.standing.half_rejoined)
        .collect();
    // After a lost store a former primary may be lying about, stopped: the one that writes under the highest lease is the primary.
    let leased: Vec<&&Report> = claims
        .iter()
        .filter(|report| report.standing.lease_epoch == Some(highest_epoch(view)) && is_running(report))
        .collect();
    // Or that wrote in it last: only who consented to an epoch is ever promoted in it.
    let consented: Vec<&&Report> =
        claims.iter().filter(|report| report.standing.consented == Some(highest_epoch(view))).collect();
    let leased = if leased.is_empty() && highest_epoch(view) > Epoch(0) { consented } else { leased };
    let primary = match (claims.as_slice(), leased.as_slice()) {
        ([], _) => {
            return hold(vec![Reason::new(
                ReasonCode::NoPrimaryData,
                "no node has data of a primary: initialise one with initdb, or restore a backup",
            )]);
        }
        ([only], _) => *only,
        (_, [leased]) => **leased,
        _ => {
            let reasons =
                claims.iter().map(|report| Reason::about(&report.node, ReasonCode::TwoPrimaries, position(report)));
            return hold(reasons.collect());
        }
    };
    // Whoever this product promotes consented, and is on the newest timeline. A newer one was promoted by hand, as when a site is
    // lost with its controller: its commits may count, and nothing here may undo them.
    if claims.iter().any(|other| timeline(other) > timeline(primary)) {
        let reasons =
            claims.iter().map(|report| Reason::about(&report.node, ReasonCode::TwoPrimaries, position(report)));
        return hold(reasons.collect());
    }
    let foreign: Vec<Reason> = view
        .nodes
        .values()
        .filter_map(|node| node.report.known())
        .filter_map(|report| {
            let other = system_identifier(report)?;
            (Some(&other) != system_identifier(primary).as_ref())
                .then(|| Reason::about(&report.node, ReasonCode::OtherSystemIdentifier, other))
        })
        .collect();
    if !foreign.is_empty() {
        return hold(foreign);
    }
    let operation = OperationKind::Failover {
        from: primary.node.clone(),
        to: primary.node.clone(),
        accept_data_loss: false,
        old_primary_is_off: false,
    };
    let why = Reason::about(&primary.node, ReasonCode::FirstEpoch, format!("epoch {}", highest_epoch(view).next()));
    Plan { intent: Intent::Start { operation }, reasons: vec![why], blocked_by: Vec::new(), based_on: None, loss: None }
}

/// The plan of an operator who swears that every node which was never heard is off, or why it is refused.
///
/// A node that holds a primary's data goes before any standby. Among standbys nobody remembers who confirmed the last commits: the one
/// with most WAL is taken, and loss must be accepted.
pub(super) fn by_hand(
    view: &View,
    policy: &Policy,
    operations: &[Operation],
    demand: &Demand,
    old_primary_is_off: bool,
) -> Answer {
    nothing_moves(operations)?;
    if let Some(to) = &demand.to {
        known(view, to)?;
    }
    let unheard = view.nodes.values().filter(|node| node.report.known().is_none());
    let mut missing: Vec<Reason> =
        unheard.map(|node| Reason::about(&node.node, ReasonCode::WaitingForEveryNode, "no report yet")).collect();
    if missing.is_empty() {
        let why = "every node has spoken, so the first epoch needs nobody's hand: see stormglass explain";
        return Err(vec![Reason::new(ReasonCode::WaitingForEveryNode, why)]);
    }
    if !old_primary_is_off {
        let why = "if those nodes are lost: switch them off for certain, then say --old-primary-is-off";
        missing.push(Reason::new(ReasonCode::LeaseMayRun, why));
        return Err(missing);
    }
    if let Some(reason) = promotion_may_be_on_its_way(view, policy) {
        return Err(vec![reason]);
    }
    let heard: Vec<&Report> = view.nodes.values().filter_map(|node| node.report.known()).collect();
    if let Some(other) = heard.iter().find(|report| system_identifier(report) != system_identifier(heard[0])) {
        let words = system_identifier(other).unwrap_or_else(|| "no data".to_owned());
        return Err(vec![Reason::about(&other.node, ReasonCode::OtherSystemIdentifier, words)]);
    }
    let claims: Vec<&&Report> = heard.iter().filter(|report| is_primary_data(report)).collect();
    let (chosen, mut reasons) = match claims.as_slice() {
        [] => most_advanced(view, &heard, demand)?,
        [only] => (**only, Vec::new()),
        _ => {
            let reasons =
                claims.iter().map(|report| Reason::about(&report.node, ReasonCode::TwoPrimaries, position(report)));
            return Err(reasons.collect());
        }
    };
    let wanted = demand.to.as_ref().is_none_or(|to| *to == chosen.node)
        && demand.site.as_ref().is_none_or(|site| *site == chosen.site);
    if !wanted {
        let why = format!("it holds a primary's data ({}), which comes first", position(chosen));
        return Err(vec![Reason::about(&chosen.node, ReasonCode::AlreadyPrimary, why)]);
    }
    let operation = OperationKind::Failover {
        from: chosen.node.clone(),
        to: chosen.node.clone(),
        accept_data_loss: demand.accept_data_loss,
        old_primary_is_off,
    };
    reasons.push(Reason::about(
        &chosen.node,
        ReasonCode::FirstEpoch,
        format!("epoch {}", highest_epoch(view).beyond_unheard()),
    ));
    Ok((Intent::Start { operation }, reasons))
}

/// The standby that received most, of those that `demand` names.
fn most_advanced<'view>(
    view: &View,
    heard: &[&'view Report],
    demand: &Demand,
) -> Result<(&'view Report, Vec<Reason>), Vec<Reason>> {
    let may = |report: &&&Report| {
        !report.standing.operator_fenced
            && !report.standing.half_rejoined
            && !report.tags.no_failover
            && report.tags.failover_priority > 0
            && demand.to.as_ref().is_none_or(|to| *to == report.node)
            && demand.site.as_ref().is_none_or(|site| *site == report.site)
    };
    let received = |report: &Report| report.postgres.live.as_ref().map(|live| (live.history.timeline, live.flush_lsn));
    let candidates = heard.iter().filter(may).filter_map(|report| Some((received(report)?, *report)));
    let Some((_, best)) =
        candidates.max_by_key(|(received, report)| (*received, report.tags.failover_priority, Reverse(&report.node)))
    else {
        let why = "no standby that was heard runs and may be promoted";
        return Err(vec![Reason::new(ReasonCode::NoCandidate, why)]);
    };
    let unheard = view.nodes.values().filter(|node| node.report.known().is_none()).map(|node| node.node.as_str());
    let words = format!(
        "{} at most; no record says who confirmed the last commits, and {} cannot be asked",
        position(best),
        unheard.collect::<Vec<_>>().join(", ")
    );
    let loss = Reason::about(&best.node, ReasonCode::WouldLoseCommits, words);
    if !demand.accept_data_loss {
        return Err(vec![loss, Reason::new(ReasonCode::WouldLoseCommits, "to accept that, say --accept-data-loss")]);
    }
    Ok((best, vec![loss]))
}

/// After a lost store: what the leader before had begun may still arrive, and what a node confirms after it reported is not in
/// its report. A promotion is over one lease after the consent, and consents end with that leader's own grants.
fn promotion_may_be_on_its_way(view: &View, policy: &Policy) -> Option<Reason> {
    let highest = highest_epoch(view);
    if highest == Epoch(0) {
        return None;
    }
    let is_open = |report: &Report| {
        let standing = &report.standing;
        standing.consented == Some(highest) && standing.fence_confirmed < Some(highest) && !is_primary_data(report)
    };
    let open = view.nodes.values().filter_map(|node| node.report.known()).find(|report| is_open(report));
    let lease = open.map_or(Duration::ZERO, |_| policy.timers.wait());
    if !view.is_within(view.leading_since, policy.new_leader_wait() + lease) {
        return None;
    }
    let words = format!("a promotion in epoch {highest} or later may have been begun before the store was lost");
    Some(match open {
        Some(report) => Reason::about(&report.node, ReasonCode::LeaseMayRun, words),
        None => Reason::new(ReasonCode::LeaseMayRun, words),
    })
}

/// The highest epoch that any agent stored: a new store goes on above it.
pub fn highest_epoch(view: &View) -> Epoch {
    view.nodes
        .values()
        .filter_map(|node| node.report.last_heard())
        .map(|report| report.standing.highest_epoch)
        .max()
        .unwrap_or_default()
}

/// True if the data directory is a primary's: running out of recovery, or stopped without `standby.signal` having ruled it.
pub fn is_primary_data(report: &Report) -> bool {
    if let Some(live) = &report.postgres.live {
        return !live.in_recovery;
    }
    report.postgres.state != PostgresState::NoData
        && report.postgres.control.as_ref().is_some_and(|control| {
            matches!(
                control.cluster_state.as_str(),
                "in production" | "shut down" | "shutting down" | "in crash recovery"
            )
        })
}

fn is_running(report: &Report) -> bool {
    matches!(report.postgres.state, PostgresState::Running | PostgresState::Unresponsive | PostgresState::Starting)
}

fn system_identifier(report: &Report) -> Option<String> {
    let live = report.postgres.live.as_ref().map(|live| live.system_identifier);
    live.or(report.postgres.control.as_ref().map(|control| control.system_identifier))
        .map(|identifier| identifier.to_string())
}

fn timeline(report: &Report) -> Option<Timeline> {
    let live = report.postgres.live.as_ref().map(|live| live.history.timeline);
    live.or(report.postgres.control.as_ref().map(|control| control.timeline))
}

fn position(report: &Report) -> String {
    match (&report.postgres.live, &report.postgres.control) {
        (Some(live), _) => format!("running, timeline {} at {}", live.history.timeline, live.flush_lsn),
        (None, Some(control)) => {
            format!("{}, timeline {} at {}", control.cluster_state, control.timeline, control.checkpoint)
        }
        (None, None) => "unknown position".to_owned(),
    }
}
