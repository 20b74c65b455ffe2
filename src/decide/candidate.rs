//! Who may be promoted, in which order, and why not the others.
//!
//! Order: holds every confirmed commit (in `async`, where nobody confirms, that does not count), most WAL received, the lost primary's site, priority, name. The last makes it total,
//! so that two controllers that see the same never choose differently.

use std::cmp::Reverse;

use super::primary::Condition;
use crate::domain::ids::{NodeName, SiteName};
use crate::domain::lsn::{Lsn, Timeline};
use crate::domain::plan::{Loss, Reason, ReasonCode};
use crate::domain::policy::{DurabilityMode, Policy};
use crate::domain::record::ClusterRecord;
use crate::domain::report::{LiveReport, PostgresState, Report};
use crate::domain::view::View;

/// What is asked of a candidate.
#[derive(Debug, Clone, Default)]
pub struct Demand {
    /// Only this node.
    pub to: Option<NodeName>,
    /// Only nodes of this site.
    pub site: Option<SiteName>,
    /// A human accepts that commits are lost.
    pub accept_data_loss: bool,
}

impl Demand {
    /// What automatic failover asks.
    pub fn automatic() -> Self {
        Self::default()
    }
}

/// One node, assessed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assessment {
    /// The node.
    pub node: NodeName,
    /// Whether it may be promoted.
    pub promotable: bool,
    /// Why it ranks as it does, or why not.
    pub reasons: Vec<Reason>,
}

/// The choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Who.
    pub node: NodeName,
    /// Why.
    pub reasons: Vec<Reason>,
}

/// Every node but the holder: promotable ones first, best first; then the others by name.
pub fn assess(view: &View, record: &ClusterRecord, policy: &Policy, demand: &Demand) -> Vec<Assessment> {
    let mut ranked = Vec::new();
    let mut refused = Vec::new();
    for node in view.nodes.values().filter(|node| node.node != record.holder) {
        match examine(view, record, policy, demand, &node.node) {
            Ok((report, live)) => ranked.push((rank(view, record, policy, report, live), report, live)),
            Err(reasons) => refused.push(Assessment { node: node.node.clone(), promotable: false, reasons }),
        }
    }
    ranked.sort_by(|left, right| left.0.cmp(&right.0));
    let most = ranked.iter().map(|(_, _, live)| received(live)).max();
    ranked
        .into_iter()
        .map(|(_, report, live)| Assessment {
            node: report.node.clone(),
            promotable: true,
            reasons: merits(view, record, policy, report, live, most == Some(received(live))),
        })
        .chain(refused)
        .collect()
}

/// The best candidate, or every reason why there is none.
pub fn best(view: &View, record: &ClusterRecord, policy: &Policy, demand: &Demand) -> Result<Choice, Vec<Reason>> {
    let assessments = assess(view, record, policy, demand);
    match assessments.first() {
        Some(first) if first.promotable => Ok(Choice { node: first.node.clone(), reasons: first.reasons.clone() }),
        // Who asked for one node wants to know about that one.
        _ => Err(assessments
            .into_iter()
            .filter(|assessment| demand.to.as_ref().is_none_or(|wanted| *wanted == assessment.node))
            .flat_map(|assessment| assessment.reasons)
            .collect()),
    }
}

/// Bytes of WAL that `live` lacks of what the primary was last known to have flushed; `None` if that is unknown.
pub fn missing_bytes(view: &View, record: &ClusterRecord, live: &LiveReport) -> Option<u64> {
    let primary = view.last_live(&record.holder).filter(|primary| !primary.in_recovery)?;
    Some(primary.flush_lsn.bytes_after(live.flush_lsn))
}

/// What is lost if `to` is promoted, as far as anybody knows.
pub fn loss_of(view: &View, record: &ClusterRecord, policy: &Policy, to: &NodeName) -> Option<Loss> {
    let live = view.report(to)?.postgres.live.as_ref()?;
    let primary = view.last_live(&record.holder).filter(|primary| !primary.in_recovery);
    Some(Loss {
        node: to.clone(),
        missing_bytes: missing_bytes(view, record, live),
        flush_lsn: live.flush_lsn,
        last_commit_at: live.clock.last_commit_at,
        primary: record.holder.clone(),
        primary_flush_lsn: primary.map(|primary| primary.flush_lsn),
        primary_seen_at: primary.and_then(|primary| primary.clock.answered_at),
        holds_every_confirmed_commit: policy.durability != DurabilityMode::Async && record.eligible.contains(to),
    })
}

/// Whether the old primary itself is the last resort: down, with all its data, and nobody else may take over.
/// Not for a gray one: what it could not commit before, it cannot commit after a restart.
pub fn restart_in_place(view: &View, record: &ClusterRecord, condition: &Condition) -> Option<Reason> {
    if matches!(condition, Condition::Gray(_)) {
        return None;
    }
    let report = view.report(&record.holder)?;
    let able = !report.standing.operator_fenced
        && !report.standing.half_rejoined
        && !record.fenced.contains(&record.holder)
        && report.postgres.state != PostgresState::NoData;
    able.then(|| {
        Reason::about(&record.holder, ReasonCode::RestartInPlace, "nobody else may take over; it has every commit")
    })
}

fn examine<'view>(
    view: &'view View,
    record: &ClusterRecord,
    policy: &Policy,
    demand: &Demand,
    node: &NodeName,
) -> Result<(&'view Report, &'view LiveReport), Vec<Reason>> {
    let refuse = |code, detail: String| Err(vec![Reason::about(node, code, detail)]);
    let Some(report) = view.report(node) else {
        return refuse(ReasonCode::AgentSilent, "no report".to_owned());
    };
    if report.standing.operator_fenced || record.fenced.contains(node) {
        return refuse(ReasonCode::OperatorFenced, String::new());
    }
    if report.standing.half_rejoined {
        return refuse(ReasonCode::HalfRejoined, String::new());
    }
    let live = match &report.postgres.live {
        Some(live) if live.in_recovery && report.postgres.state == PostgresState::Running => live,
        _ => return refuse(ReasonCode::NotAStandby, format!("{:?}", report.postgres.state).to_lowercase()),
    };
    if live.system_identifier != record.system_identifier {
        let detail = format!("{}, not {}", live.system_identifier, record.system_identifier);
        return refuse(ReasonCode::OtherSystemIdentifier, detail);
    }

    let mut reasons = Vec::new();
    if demand.to.as_ref().is_some_and(|wanted| wanted != node) {
        reasons.push(Reason::about(node, ReasonCode::OperatorRequest, "another node was asked for"));
    }
    if demand.site.as_ref().is_some_and(|wanted| *wanted != report.site) {
        reasons.push(Reason::about(
            node,
            ReasonCode::OperatorRequest,
            format!("site {}, another was asked for", report.site),
        ));
    }
    if report.tags.no_failover || report.tags.failover_priority <= 0 {
        reasons.push(Reason::about(node, ReasonCode::TaggedNoFailover, ""));
    }
    if live.replay_paused {
        reasons.push(Reason::about(node, ReasonCode::ReplayBroken, "replay is paused"));
    }
    if let Some(diverged) = diverged(view, record, live) {
        reasons.push(Reason::about(node, ReasonCode::DivergedTimeline, diverged));
    }
    if !demand.accept_data_loss {
        reasons.extend(loss(view, record, policy, node, live));
    }
    if reasons.is_empty() { Ok((report, live)) } else { Err(reasons) }
}

/// Why promoting `node` may lose commits that count as confirmed.
fn loss(view: &View, record: &ClusterRecord, policy: &Policy, node: &NodeName, live: &LiveReport) -> Option<Reason> {
    let missing = missing_bytes(view, record, live);
    let amount = missing.map_or("by an unknown amount".to_owned(), |bytes| format!("{bytes} bytes behind"));
    match policy.durability {
        DurabilityMode::Sync | DurabilityMode::SyncStrict => (!record.eligible.contains(node)).then(|| {
            Reason::about(node, ReasonCode::NotEligible, format!("not known to hold every confirmed commit, {amount}"))
        }),
        DurabilityMode::Async => missing.is_none_or(|bytes| bytes > policy.max_lag_bytes).then(|| {
            Reason::about(node, ReasonCode::LagOverLimit, format!("{amount}, limit {}", policy.max_lag_bytes))
        }),
    }
}

/// Ancestry, not LSN alone (trace `longer_divergent_old_primary_counts_as_caught_up`).
fn diverged(view: &View, record: &ClusterRecord, live: &LiveReport) -> Option<String> {
    let primary = view.last_live(&record.holder).filter(|primary| !primary.in_recovery)?;
    let (timeline, position) = (live.history.timeline, live.flush_lsn);
    (!primary.history.contains(timeline, position))
        .then(|| format!("timeline {timeline} at {position} is not part of timeline {}", primary.history.timeline))
}

/// The newer history first: positions on an older timeline may lie beyond the point where it was left.
type Rank = (Reverse<bool>, bool, Reverse<(Timeline, Lsn)>, Reverse<bool>, Reverse<i32>, NodeName);

fn rank(view: &View, record: &ClusterRecord, policy: &Policy, report: &Report, live: &LiveReport) -> Rank {
    // In `async` the ledger says who was close, not who has most; it comes first only while nothing but the end of the lease, which
    // binds its members alone, can prove that the primary stopped.
    let decides =
        policy.durability != DurabilityMode::Async || view.report(&record.holder).is_none() && !is_fenced(view, record);
    (
        Reverse(decides && record.eligible.contains(&report.node)),
        // Who holds every confirmed commit may lack some bytes of another: no reason to prefer damage.
        policy.durability != DurabilityMode::Async && live.is_damaged(),
        Reverse(received(live)),
        Reverse(is_preferred_site(view, record, report)),
        Reverse(report.tags.failover_priority),
        report.node.clone(),
    )
}

fn received(live: &LiveReport) -> (Timeline, Lsn) {
    (live.history.timeline, live.flush_lsn)
}

fn is_fenced(view: &View, record: &ClusterRecord) -> bool {
    view.last_report(&record.holder).is_some_and(|report| report.standing.fence_confirmed == Some(record.epoch))
}

fn is_preferred_site(view: &View, record: &ClusterRecord, report: &Report) -> bool {
    view.nodes.get(&record.holder).is_some_and(|holder| holder.site == report.site)
}

fn merits(
    view: &View,
    record: &ClusterRecord,
    policy: &Policy,
    report: &Report,
    live: &LiveReport,
    has_most: bool,
) -> Vec<Reason> {
    let node = &report.node;
    let mut reasons = Vec::new();
    if policy.durability != DurabilityMode::Async && record.eligible.contains(node) {
        reasons.push(Reason::about(node, ReasonCode::HoldsEveryConfirmedCommit, format!("record {}", record.number)));
    }
    if has_most {
        reasons.push(Reason::about(node, ReasonCode::MostWalReceived, format!("received {}", live.flush_lsn)));
    }
    if live.is_damaged() {
        reasons.push(Reason::about(
            node,
            ReasonCode::ChecksumFailures,
            "another one is taken if it holds every commit",
        ));
    }
    if is_preferred_site(view, record, report) {
        reasons.push(Reason::about(node, ReasonCode::PreferredSite, report.site.to_string()));
    }
    if report.tags.failover_priority > 1 {
        reasons.push(Reason::about(node, ReasonCode::HigherPriority, report.tags.failover_priority.to_string()));
    }
    reasons
}
