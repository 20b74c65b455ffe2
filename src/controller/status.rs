//! Turns the view into the documents of the API. Reads, never decides.

use std::time::Duration;

use super::event_loop::Glance;
use super::name::NameSight;
use super::state::PredictorState;
use crate::api::risk::{NodeRisk, PredictorStatus, RiskDocument, SlowProbe, TimeLeft};
use crate::api::wire;
use crate::decide;
use crate::decide::candidate::{self, Demand};
use crate::domain::ids::NodeName;
use crate::domain::name::{NameRecord, NameRule, NameValue};
use crate::domain::plan::{Reason, ReasonCode};
use crate::domain::policy::Policy;
use crate::domain::record::ClusterRecord;
use crate::domain::report::{PostgresState, Report};
use crate::domain::risk::Risk;
use crate::domain::timing;
use crate::domain::view::{Fact, NodeView, View};
use crate::domain::witness;

/// The status document.
pub(super) fn document(
    glance: &Glance,
    cluster: &str,
    policy: &Policy,
    controller: &str,
    rule: Option<&NameRule>,
) -> wire::ClusterStatus {
    let view = &glance.view;
    let record = view.record.as_ref();
    let (health, wrong) = decide::health::health(view, policy);
    let accepting = matches!(health, decide::health::Health::Healthy | decide::health::Health::Degraded);
    let primary = record.filter(|_| accepting).map(|record| record.holder.clone());
    let live = record.and_then(|record| view.report(&record.holder)).and_then(|report| report.postgres.live.as_ref());
    let paused_until = record.and_then(|record| record.paused_until).filter(|until| *until > view.wall);
    let preview = match record.map(|record| candidate::best(view, record, policy, &Demand::automatic())) {
        Some(Ok(choice)) => wire::FailoverPreview { candidate: Some(choice.node), reasons: choice.reasons },
        Some(Err(reasons)) => wire::FailoverPreview { candidate: None, reasons },
        None => wire::FailoverPreview { candidate: None, reasons: Vec::new() },
    };
    wire::ClusterStatus {
        schema_version: wire::SCHEMA_VERSION,
        cluster: cluster.to_owned(),
        health: wire_health(health),
        primary,
        primary_since: record.map(|record| record.holder_since),
        timeline: live.map(|live| live.history.timeline.0),
        epoch: record.map_or(0, |record| record.epoch.0),
        record_number: record.map_or(0, |record| record.number.0),
        durability: policy.durability.label().to_owned(),
        eligible: record.map(|record| record.eligible.iter().cloned().collect()).unwrap_or_default(),
        synchronous: record.map(|record| record.synchronous.iter().cloned().collect()).unwrap_or_default(),
        alone_since: record.and_then(|record| record.alone_since),
        automation: paused_until.is_none(),
        paused_until,
        scheduled_switchover: record.and_then(|record| record.scheduled.as_ref()).map(|scheduled| {
            wire::ScheduledStatus {
                at: scheduled.at,
                to: scheduled.to.clone(),
                site: scheduled.site.as_ref().map(ToString::to_string),
                asked_by: scheduled.who.clone(),
            }
        }),
        nodes: view.nodes.values().map(|node| node_document(glance, node, policy)).collect(),
        proxies: view
            .proxies
            .values()
            .map(|proxy| {
                let report = proxy.report.last_heard();
                let target = proxy.report.known().and_then(|report| report.write_target.clone());
                wire::ProxyStatus {
                    name: proxy.proxy.to_string(),
                    site: report.map(|report| report.site.to_string()).unwrap_or_default(),
                    write_address: report.map(|report| report.write_address.clone()),
                    agrees: record.is_some_and(|record| target.as_ref() == Some(&record.holder_address)),
                    write_target: target,
                    error: report.and_then(|report| report.error.clone()),
                    holding: report.is_some_and(|report| report.holding),
                    traffic: report.and_then(|report| report.traffic.clone()),
                }
            })
            .collect(),
        name: rule.zip(glance.name.as_ref()).map(|(rule, sight)| name_document(rule, sight)),
        failover_now: preview,
        operations: glance.operations.iter().filter(|operation| !operation.status.is_final()).cloned().collect(),
        warnings: wrong
            .iter()
            .chain(&decide::strain::strains(view, policy))
            .chain(&alarms(view, policy))
            .map(|reason| warning(reason, cluster))
            .chain(rule.zip(glance.name.as_ref()).and_then(|(rule, sight)| name_warning(rule, sight, cluster)))
            .chain(glance.predictor.iter().flat_map(predictor_warnings))
            .collect(),
        timers: timers(policy),
        predictor: glance.predictor.as_ref().map(|predictor| predictor_status(predictor, policy)),
        controller: controller.to_owned(),
        leader: None,
        at: view.wall,
    }
}

fn name_document(rule: &NameRule, sight: &NameSight) -> wire::NameStatus {
    let texts = |values: &std::collections::BTreeSet<NameValue>| values.iter().map(ToString::to_string).collect();
    wire::NameStatus {
        name: rule.name.clone(),
        wanted: texts(&sight.record.values),
        site: sight.wanted.site.to_string(),
        ttl_seconds: rule.ttl.as_secs(),
        agrees: sight.problem.is_none(),
        error: sight.problem.clone(),
        servers: sight
            .answers
            .iter()
            .map(|answer| wire::NameServerStatus {
                server: answer.server.clone(),
                values: answer.answer.as_ref().map(|record| texts(&record.values)).unwrap_or_default(),
                epoch: answer.answer.as_ref().ok().and_then(NameRecord::epoch).map(|epoch| epoch.0),
                error: answer.answer.as_ref().err().map(ToString::to_string),
            })
            .collect(),
    }
}

fn name_warning(rule: &NameRule, sight: &NameSight, cluster: &str) -> Option<wire::Warning> {
    let problem = sight.problem.as_ref()?;
    let message = format!("the name {} does not follow the primary yet, and is tried again: {problem}", rule.name);
    Some(wire::Warning { message, next: Some(format!("stormglass events {cluster}")) })
}

/// The timers, what they prove and what they cost.
fn timers(policy: &Policy) -> wire::TimerStatus {
    let timers = &policy.timers;
    let rules = timing::inequalities(policy).into_iter().map(|rule| wire::TimerRule {
        rule: rule.rule.to_owned(),
        left_seconds: rule.left.as_secs_f64(),
        right_seconds: rule.right.as_secs_f64(),
        holds: rule.holds(),
        statement: rule.to_string(),
    });
    let outages = timing::outages(policy).into_iter().map(|outage| wire::ExpectedOutage {
        fault: outage.fault.to_owned(),
        at_most_seconds: outage.at_most.map(|most| most.as_secs_f64()),
        statement: outage.to_string(),
    });
    wire::TimerStatus {
        rto_seconds: policy.rto.as_secs_f64(),
        lease_seconds: timers.lease.as_secs_f64(),
        renewal_interval_seconds: timers.renewal_interval.as_secs_f64(),
        request_timeout_seconds: timers.request_timeout.as_secs_f64(),
        stop_budget_seconds: timers.stop_budget.as_secs_f64(),
        wait_seconds: timers.wait().as_secs_f64(),
        kill_budget_seconds: timers.kill_budget.as_secs_f64(),
        drift_seconds: timers.drift.as_secs_f64(),
        promise_seconds: timers.promise().as_secs_f64(),
        leadership_ttl_seconds: Some(policy.leadership_ttl.as_secs_f64()).filter(|ttl| *ttl > 0.0),
        rules: rules.collect(),
        outages: outages.collect(),
    }
}

/// The explanation document.
pub(super) fn explanation(glance: &Glance, cluster: &str, policy: &Policy) -> wire::Explanation {
    let view = &glance.view;
    let plan = decide::decide(view, policy, &glance.operations);
    let nodes = view.record.as_ref().map(|record| decide::explain::nodes(view, record, policy)).unwrap_or_default();
    let nodes = nodes.into_iter().map(|node| wire::NodeExplanation {
        outlook: glance.predictor.as_ref().map(|_| node_risk(view, policy, &node.node)),
        node: node.node,
        promotable: node.promotable,
        rank: node.rank,
        reasons: node.reasons,
    });
    wire::Explanation {
        schema_version: wire::SCHEMA_VERSION,
        cluster: cluster.to_owned(),
        plan,
        nodes: nodes.collect(),
        witnesses: view.record.as_ref().map(|record| witness::words(view, record)).unwrap_or_default(),
    }
}

/// What the predictor does at the moment.
fn predictor_status(predictor: &PredictorState, policy: &Policy) -> PredictorStatus {
    PredictorStatus {
        mode: policy.prediction.mode.label().to_owned(),
        model: predictor.model.clone(),
        abstains: predictor.abstains.clone(),
        refused_model: predictor.refused_model.clone(),
    }
}

fn predictor_warnings(predictor: &PredictorState) -> Vec<wire::Warning> {
    let warning = |words: &str, problem: &String| wire::Warning {
        message: format!("{words}: {problem}"),
        next: Some("stormglass model list".to_owned()),
    };
    let abstains = predictor.abstains.iter().map(|problem| warning("nothing is predicted", problem));
    let refused = predictor.refused_model.iter().filter(|problem| predictor.abstains.as_ref() != Some(*problem));
    abstains.chain(refused.map(|problem| warning("a model is not used", problem))).collect()
}

/// Of whom the model expects trouble.
fn alarms(view: &View, policy: &Policy) -> Vec<Reason> {
    view.nodes.keys().filter_map(|node| decide::early_warning::alarm(view, policy, node)).collect()
}

fn known_risk<'v>(view: &'v View, node: &NodeName) -> Option<&'v Risk> {
    view.outlooks.get(node)?.risk.known()
}

/// The document of risks.
pub(super) fn risks(glance: &Glance, cluster: &str, policy: &Policy) -> RiskDocument {
    RiskDocument {
        schema_version: wire::SCHEMA_VERSION,
        cluster: cluster.to_owned(),
        predictor: glance.predictor.as_ref().map(|predictor| predictor_status(predictor, policy)),
        nodes: glance.view.nodes.keys().map(|node| node_risk(&glance.view, policy, node)).collect(),
    }
}

fn node_risk(view: &View, policy: &Policy, node: &NodeName) -> NodeRisk {
    let outlook = view.outlooks.get(node).cloned().unwrap_or_default();
    let risk = outlook.risk.known();
    let age = match &outlook.risk {
        Fact::Known { age, .. } => Some(*age),
        Fact::Unknown { last: Some(_), for_duration } => Some(*for_duration),
        Fact::Unknown { last: None, .. } | Fact::Absent => None,
    };
    let seconds = |duration: Duration| duration.as_secs_f64();
    NodeRisk {
        node: node.clone(),
        risk: risk.and_then(|risk| risk.probability),
        score: risk.filter(|risk| risk.abstains.is_none()).map(|risk| risk.score),
        abstains: match (&outlook.risk, risk) {
            (_, Some(risk)) => risk.abstains.clone(),
            (Fact::Absent, None) => Some("no model has scored it yet".to_owned()),
            (_, None) => Some("its last score is too old".to_owned()),
        },
        age_seconds: age.map(seconds),
        alarmed_for_seconds: outlook.alarmed_for.map(seconds),
        drivers: risk.map(|risk| risk.drivers.clone()).unwrap_or_default(),
        exhaustions: outlook
            .exhaustions
            .iter()
            .map(|one| TimeLeft { resource: one.resource, left: one.left, seconds: seconds(one.remaining) })
            .collect(),
        slowdown: outlook
            .slowdown
            .map(|slow| SlowProbe { usual_seconds: seconds(slow.usual), now_seconds: seconds(slow.now) }),
        evidence: decide::early_warning::evidence(view, policy, node),
    }
}

fn node_document(glance: &Glance, node: &NodeView, policy: &Policy) -> wire::NodeStatus {
    let view = &glance.view;
    let record = view.record.as_ref();
    let report = node.report.last_heard();
    let live = report.and_then(|report| report.postgres.live.as_ref());
    let rejoining = glance.operations.iter().any(|operation| {
        !operation.status.is_final() && operation.kind.label() == "rejoin" && *operation.kind.subject() == node.node
    });
    let state = match (node.report.known(), report) {
        (Some(report), _) => state_words(report, record, rejoining),
        (None, Some(_)) => "unreachable".to_owned(),
        (None, None) => "never heard".to_owned(),
    };
    let assessment = record.filter(|record| record.holder != node.node).map(|record| {
        let all = candidate::assess(view, record, policy, &Demand::automatic());
        all.into_iter().find(|assessment| assessment.node == node.node).map(|assessment| assessment.reasons)
    });
    wire::NodeStatus {
        name: node.node.clone(),
        site: node.site.to_string(),
        address: report.map(|report| report.address.clone()),
        role: role_word(view, node).to_owned(),
        state,
        timeline: live.map(|live| live.history.timeline.0),
        flush_lsn: live.map(|live| live.flush_lsn.to_string()),
        replay_lsn: live.map(|live| live.replay_lsn.to_string()),
        lag_bytes: lag_bytes(view, node),
        sync_state: sync_state(view, node),
        eligible: record.is_some_and(|record| record.eligible.contains(&node.node)),
        lease_remaining_seconds: node
            .report
            .known()
            .and_then(|report| report.standing.lease_remaining)
            .map(|left| left.as_secs_f64()),
        seen_seconds: report_age(node).map(|age| age.as_secs_f64()),
        risk: known_risk(view, &node.node).and_then(|risk| risk.probability),
        assessment: assessment.flatten().unwrap_or_default(),
    }
}

/// One or two words for what a node does, by its own report.
pub(super) fn state_words(report: &Report, record: Option<&ClusterRecord>, rejoining: bool) -> String {
    let fenced = report.standing.operator_fenced || record.is_some_and(|record| record.fenced.contains(&report.node));
    if rejoining {
        return "rejoining".to_owned();
    }
    if fenced {
        return "fenced".to_owned();
    }
    let words = match report.postgres.state {
        PostgresState::NoData => "no data",
        PostgresState::Stopped => "stopped",
        PostgresState::Starting => "starting",
        PostgresState::Unresponsive => "hung",
        PostgresState::Running => match &report.postgres.live {
            None => "running",
            Some(live) if live.in_recovery => {
                if live.receiver.as_ref().is_some_and(|receiver| receiver.streaming) {
                    "streaming"
                } else {
                    "replaying"
                }
            }
            Some(_) if report.postgres.probes.write.failing_for.is_some() => "not writable",
            Some(_) if report.standing.lease_epoch.is_some() => "writable",
            Some(_) => "without lease",
        },
    };
    words.to_owned()
}

pub(super) fn role_word(view: &View, node: &NodeView) -> &'static str {
    if view.record.as_ref().is_some_and(|record| record.holder == node.node) {
        return "primary";
    }
    match node.report.last_heard().and_then(|report| report.postgres.live.as_ref()) {
        Some(live) if live.in_recovery => "standby",
        Some(_) | None => "unknown",
    }
}

pub(super) fn is_up(node: &NodeView) -> bool {
    node.report.known().is_some_and(|report| report.postgres.state == PostgresState::Running)
}

pub(super) fn lag_bytes(view: &View, node: &NodeView) -> Option<u64> {
    let record = view.record.as_ref().filter(|record| record.holder != node.node)?;
    let live = node.report.known()?.postgres.live.as_ref()?;
    // The primary's own row is of the same moment as its position: two nodes' reports never are.
    let by_primary = view.report(&record.holder).and_then(|report| {
        let primary = report.postgres.live.as_ref()?;
        let row = primary.standbys.iter().find(|row| row.node == node.node.as_str())?;
        Some(primary.flush_lsn.bytes_after(row.flush_lsn?))
    });
    by_primary.or_else(|| candidate::missing_bytes(view, record, live))
}

pub(super) fn report_age(node: &NodeView) -> Option<Duration> {
    match &node.report {
        Fact::Known { age, .. } => Some(*age),
        Fact::Unknown { last: Some(_), for_duration } => Some(*for_duration),
        Fact::Unknown { .. } | Fact::Absent => None,
    }
}

pub(super) fn health_label(health: decide::health::Health) -> &'static str {
    match health {
        decide::health::Health::Healthy => "healthy",
        decide::health::Health::Degraded => "degraded",
        decide::health::Health::NoPrimary => "no_primary",
        decide::health::Health::Unknown => "unknown",
    }
}

fn wire_health(health: decide::health::Health) -> wire::Health {
    match health {
        decide::health::Health::Healthy => wire::Health::Healthy,
        decide::health::Health::Degraded => wire::Health::Degraded,
        decide::health::Health::NoPrimary => wire::Health::NoPrimary,
        decide::health::Health::Unknown => wire::Health::Unknown,
    }
}

fn sync_state(view: &View, node: &NodeView) -> Option<String> {
    let record = view.record.as_ref()?;
    let live = view.report(&record.holder)?.postgres.live.as_ref()?;
    live.standbys.iter().find(|row| row.node == node.node.as_str()).map(|row| row.sync_state.clone())
}

fn warning(reason: &Reason, cluster: &str) -> wire::Warning {
    let next = match (&reason.node, reason.code) {
        (Some(node), ReasonCode::OperatorFenced) => Some(format!("stormglass unfence {cluster} {node}")),
        (Some(_), ReasonCode::AgentSilent) => None,
        _ => Some(format!("stormglass explain {cluster}")),
    };
    wire::Warning { message: reason.to_string(), next }
}
