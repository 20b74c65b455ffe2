//! What the controller tells people: events as they happen, gauges a few times a second. Changes nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use super::event_loop::Controller;
use super::name::NameSight;
use super::{backup, status};
use crate::decide;
use crate::decide::doctor::{self, Patient};
use crate::domain::clock::Moment;
use crate::domain::ids::NodeName;
use crate::domain::operation::{Operation, StepName, StepState};
use crate::domain::plan::{Intent, Plan};
use crate::domain::policy::DurabilityMode;
use crate::domain::readiness::Circumstances;
use crate::domain::record::{ClusterRecord, ScheduledSwitchover};
use crate::domain::report::Report;
use crate::domain::risk::{ModelName, Resource};
use crate::domain::timing::words;
use crate::domain::view::View;
use crate::telemetry::event::{Event, StepOutcome};
use crate::telemetry::metrics::{ClusterGauges, NodeGauges};

/// A strain that has not been seen for so long is over.
const STRAIN_OVER_AFTER: Duration = Duration::from_secs(10);
/// Gauges are read every few seconds; after each turn they would cost as much as the decision.
const GAUGES_KEPT: Duration = Duration::from_millis(250);
/// Between two examinations for the gauge.
const EXAMINATION_INTERVAL: Duration = Duration::from_secs(2);

/// The beginning of an operation.
pub(super) fn began(operation: &Operation) -> Event {
    Event::OperationBegan {
        operation: operation.id.clone(),
        kind: operation.kind.label(),
        node: operation.kind.subject().clone(),
        origin: operation.origin.clone(),
        reasons: operation.reasons.clone(),
    }
}

/// The end of an operation.
pub(super) fn ended(operation: &Operation) -> Event {
    let ended = operation.ended_at.unwrap_or(operation.decided_at);
    Event::OperationEnded {
        operation: operation.id.clone(),
        kind: operation.kind.label(),
        node: operation.kind.subject().clone(),
        outcome: operation.status,
        took: ended.since(operation.detected_at),
        message: operation.message.clone(),
    }
}

impl Controller {
    /// This controller begins.
    pub(super) fn note_started(&self) {
        self.parts.metrics.set_started(self.parts.clock.wall());
        self.tell(&Event::ControllerStarted {
            controller: self.parts.name.clone(),
            version: env!("CARGO_PKG_VERSION"),
        });
    }

    pub(super) fn note_store_failed(&self, problem: String) {
        self.tell(&Event::StoreFailed { problem });
    }

    /// One event: log line, metric, stored row.
    pub(super) fn tell(&self, event: &Event) {
        event.log(&self.state.cluster);
        self.parts.metrics.count(event);
        let epoch = self.state.record.as_ref().map_or_else(Default::default, |record| record.epoch);
        let row = event.to_row(&self.state.cluster, epoch, self.parts.clock.wall());
        self.outbox.take(event, &self.state.cluster, epoch, row.wall);
        let store = self.store();
        tokio::spawn(async move {
            if let Err(error) = store.append_event(&row).await {
                tracing::warn!(%error, event = row.event, "event not stored");
            }
        });
    }

    pub(super) fn note_report(&self, before: Option<&Report>, after: &Report) {
        let record = self.state.record.as_ref();
        let words = |report| status::state_words(report, record, self.state.is_rejoining(&after.node));
        match before {
            None => self.tell(&Event::AgentHeard { node: after.node.clone() }),
            Some(before) if words(before) != words(after) => {
                self.tell(&Event::NodeStateChanged { node: after.node.clone(), from: words(before), to: words(after) })
            }
            Some(_) => {}
        }
        let confirmed = after.standing.fence_confirmed;
        if let Some(epoch) =
            confirmed.filter(|_| before.is_some_and(|before| before.standing.fence_confirmed != confirmed))
        {
            self.tell(&Event::FenceConfirmed { node: after.node.clone(), epoch });
        }
    }

    pub(super) fn note_trouble(&self, view: &View) {
        let Some(record) = view.record.as_ref().filter(|record| record.holder_confirmed) else { return };
        let condition = decide::primary::condition(view, record, &self.state.policy);
        self.tell(&Event::PrimaryLost { node: record.holder.clone(), reasons: condition.reasons(record) });
    }

    pub(super) fn note_plan(&self, plan: &Plan) {
        // Reasons carry ages and positions: a decision is another one when its kinds of reasons are.
        let kinds = |plan: &Plan| {
            let codes = |reasons: &[crate::domain::plan::Reason]| {
                reasons.iter().map(|reason| (reason.code, reason.node.clone())).collect::<Vec<_>>()
            };
            (plan.intent.label(), codes(&plan.reasons), codes(&plan.blocked_by))
        };
        let is_same = self.state.last_plan.as_ref().is_some_and(|last| kinds(last) == kinds(plan));
        if !is_same && !matches!(plan.intent, Intent::UpdateRecord { .. }) {
            self.tell(&Event::DecisionChanged {
                intent: plan.intent.clone(),
                reasons: plan.reasons.clone(),
                blocked_by: plan.blocked_by.clone(),
            });
        }
    }

    pub(super) fn note_record(&self, next: &ClusterRecord) {
        let before = self.state.record.as_ref();
        let now = self.parts.clock.wall();
        let changed =
            before.is_none_or(|before| before.synchronous != next.synchronous || before.eligible != next.eligible);
        if changed && self.state.policy.durability != DurabilityMode::Async {
            self.tell(&Event::MembershipChanged {
                synchronous: next.synchronous.iter().cloned().collect(),
                eligible: next.eligible.iter().cloned().collect(),
            });
        }
        match (before.and_then(|before| before.alone_since), next.alone_since) {
            (None, Some(_)) => self.tell(&Event::AloneBegan { node: next.holder.clone() }),
            (Some(since), None) => {
                self.tell(&Event::AloneEnded { node: next.holder.clone(), lasted: now.since(since) })
            }
            _ => {}
        }
        let scheduled = before.and_then(|before| before.scheduled.as_ref());
        match &next.scheduled {
            Some(now) if scheduled != Some(now) => self.tell(&Event::SwitchoverScheduled {
                at: now.at,
                node: now.to.clone(),
                site: now.site.clone(),
                who: now.who.clone(),
            }),
            None => {
                if let (Some(before), Some(scheduled)) = (before, scheduled) {
                    let reason = self.why_unscheduled(scheduled, before.epoch < next.epoch);
                    self.tell(&Event::SwitchoverUnscheduled { at: scheduled.at, reason });
                }
            }
            Some(_) => {}
        }
        if next.holder_confirmed && before.is_none_or(|before| before.epoch < next.epoch || !before.holder_confirmed) {
            self.tell(&Event::PrimaryEstablished { node: next.holder.clone(), epoch: next.epoch });
        }
    }

    /// Why nobody waits for `scheduled` any more.
    fn why_unscheduled(&self, scheduled: &ScheduledSwitchover, is_new_epoch: bool) -> String {
        if decide::schedule::has_begun(scheduled, &self.state.operations) {
            "it has begun".to_owned()
        } else if is_new_epoch {
            "another node is the primary since".to_owned()
        } else if self.parts.clock.wall() > scheduled.at {
            format!("it could not begin within {} of its time", words(decide::schedule::LATE_MAX))
        } else {
            "an operator took it back".to_owned()
        }
    }

    pub(super) fn note_began(&self, operation: &Operation) {
        self.tell(&began(operation));
    }

    pub(super) fn note_step(&self, operation: &Operation, step: StepName, state: &StepState, took: Duration) {
        let (outcome, error) = match state {
            StepState::Failed { error } => (StepOutcome::Failed, Some(error.clone())),
            StepState::Unknown { error } => (StepOutcome::Unknown, Some(error.clone())),
            StepState::Started | StepState::Succeeded { .. } => (StepOutcome::Succeeded, None),
        };
        let (id, kind) = (operation.id.clone(), operation.kind.label());
        self.tell(&Event::StepEnded { operation: id, kind, step, outcome, took, error });
    }

    pub(super) fn note_ended(&mut self, operation: &Operation) {
        if let Some(facts) = &mut self.state.backups {
            backup::remember(facts, operation);
        }
        self.tell(&ended(operation));
        backup::count(&self.parts.metrics, &self.state.cluster, operation);
        if let Some(event) = backup::told(operation) {
            self.tell(&event);
        }
        let label = operation.kind.label();
        self.parts.metrics.observe_phase(label, "detect_to_decide", operation.decided_at.since(operation.detected_at));
    }

    pub(super) fn note_fenced(&self, next: &ClusterRecord, who: &str) {
        let Some(before) = &self.state.record else { return };
        for node in next.fenced.difference(&before.fenced) {
            self.tell(&Event::OperatorFenced { node: node.clone(), who: who.to_owned() });
        }
        for node in before.fenced.difference(&next.fenced) {
            self.tell(&Event::OperatorUnfenced { node: node.clone(), who: who.to_owned() });
        }
    }

    pub(super) fn note_model(&self, model: ModelName) {
        self.tell(&Event::ModelLoaded { model });
    }

    pub(super) fn note_model_refused(&self, problem: String) {
        self.tell(&Event::ModelRefused { problem });
    }

    pub(super) fn note_abstains(&self, problem: String) {
        self.tell(&Event::PredictorAbstains { problem });
    }

    pub(super) fn note_resumed(&self, model: ModelName) {
        self.tell(&Event::PredictorResumed { model });
    }

    /// Shows what runs out, which needs no model.
    pub(super) fn note_exhaustions(&mut self, view: &View) {
        let left: BTreeMap<(NodeName, Resource), Duration> = view
            .outlooks
            .iter()
            // Of a node that says nothing now nobody knows where it is by now.
            .filter(|(node, _)| view.report(node).is_some())
            .flat_map(|(node, outlook)| {
                outlook.exhaustions.iter().map(|one| ((node.clone(), one.resource), one.remaining))
            })
            .collect();
        for (node, resource) in &self.state.shown_exhaustions {
            if !left.contains_key(&(node.clone(), *resource)) {
                self.parts.metrics.show_exhaustion(&self.state.cluster, node, *resource, None);
            }
        }
        for ((node, resource), remaining) in &left {
            self.parts.metrics.show_exhaustion(&self.state.cluster, node, *resource, Some(*remaining));
        }
        self.state.shown_exhaustions = left.into_keys().collect();
    }

    /// Tells of whom trouble is expected, once, and when it no longer is.
    pub(super) fn note_risks(&mut self, view: &View) {
        if self.state.predictor.is_none() {
            return;
        }
        for node in view.nodes.keys() {
            let alarm = decide::early_warning::alarm(view, &self.state.policy, node);
            let probability = view
                .outlooks
                .get(node)
                .and_then(|outlook| outlook.risk.known()?.probability)
                .filter(|probability| probability.is_finite());
            self.parts.metrics.show_risk(&self.state.cluster, node, probability, alarm.is_some());
            match alarm {
                Some(reason) if self.state.told_risks.insert(node.clone()) => self.tell(&Event::RiskBegan { reason }),
                None if self.state.told_risks.remove(node) => self.tell(&Event::RiskEnded { node: node.clone() }),
                _ => {}
            }
        }
    }

    /// Tells what strains the cluster, once; and its end once it has been over for a while, so that a load at the limit is no storm
    /// of events.
    pub(super) fn note_strains(&mut self, view: &View) {
        for reason in decide::strain::strains(view, &self.state.policy) {
            let key = (reason.code, reason.node.clone());
            if self.state.strains.insert(key, view.now).is_none() {
                self.parts.metrics.show_strain(&self.state.cluster, reason.node.as_ref(), reason.code, true);
                self.tell(&Event::StrainBegan { reason });
            }
        }
        let over = |at: Moment| view.now.since(at) >= STRAIN_OVER_AFTER;
        let ended: Vec<_> =
            self.state.strains.iter().filter(|(_, at)| over(**at)).map(|(key, _)| key.clone()).collect();
        self.state.strains.retain(|_, at| !over(*at));
        for (code, node) in ended {
            self.parts.metrics.show_strain(&self.state.cluster, node.as_ref(), code, false);
            self.tell(&Event::StrainEnded { node, code });
        }
    }

    /// Tells whoever keeps the name where it shall lead.
    pub(super) fn show_name(&self) {
        let wanted = self.state.name_wanted();
        self.names.send_if_modified(|shown| {
            let changed = wanted.is_some() && *shown != wanted;
            if changed {
                shown.clone_from(&wanted);
            }
            changed
        });
    }

    /// Takes in what was found of the name, and tells what changed.
    pub(super) fn name_seen(&mut self, sight: NameSight) {
        let Some(name) = self.parts.name_service.as_ref().map(|kept| kept.rule.name.clone()) else { return };
        let before = self.state.name.replace(sight.clone());
        let problem_before = before.as_ref().and_then(|before| before.problem.as_ref());
        self.parts.metrics.show_name(&self.state.cluster, &name, sight.problem.is_none());
        match &sight.problem {
            Some(problem) if problem_before != Some(problem) => {
                self.tell(&Event::NameUndone { name, problem: problem.clone() });
            }
            None if sight.written || problem_before.is_some() => self.tell(&Event::NameFollows {
                name,
                values: sight.record.values.iter().map(ToString::to_string).collect(),
                site: sight.wanted.site.clone(),
            }),
            _ => {}
        }
    }

    /// Looks at what a recovery rests on. The doctor reads everything, so it is not asked after every event.
    fn show_readiness(&mut self, view: &View) {
        if self.state.examined_at.is_some_and(|at| view.is_within(at, EXAMINATION_INTERVAL)) {
            return;
        }
        self.state.examined_at = Some(view.now);
        let protection = self.parts.protection.borrow().clone();
        self.parts.metrics.show_certificates(protection.certificates());
        let circumstances =
            Circumstances { backup: self.state.backups.clone(), protection, ..self.parts.circumstances.clone() };
        let readiness = doctor::examine(&Patient {
            view,
            policy: &self.state.policy,
            operations: &self.state.operations,
            circumstances: &circumstances,
            cluster: self.state.cluster.as_str(),
        });
        self.parts.metrics.show_readiness(&self.state.cluster, readiness.score);
    }

    /// Brings the gauges up to date, unless they were just before.
    pub(super) fn show_gauges(&mut self, view: &View) {
        if self.gauges_shown_at.is_some_and(|at| view.now < at.plus(GAUGES_KEPT)) {
            return;
        }
        self.gauges_shown_at = Some(view.now);
        let metrics = self.parts.metrics.clone();
        let (health, _) = decide::health::health(view, &self.state.policy);
        let record = view.record.as_ref();
        metrics.show_cluster(&ClusterGauges {
            cluster: &self.state.cluster,
            health: status::health_label(health),
            epoch: record.map_or_else(Default::default, |record| record.epoch),
            number: record.map_or_else(Default::default, |record| record.number),
            eligible: record.map_or(0, |record| record.eligible.len()),
            alone_for: record.and_then(|record| record.alone_since).map(|since| view.wall.since(since)),
            is_automation_enabled: record
                .is_none_or(|record| record.paused_until.is_none_or(|until| until <= view.wall)),
        });
        for node in view.nodes.values() {
            let report = node.report.last_heard();
            metrics.show_node(
                &self.state.cluster,
                &NodeGauges {
                    node: &node.node,
                    role: status::role_word(view, node),
                    is_up: status::is_up(node),
                    lag_bytes: status::lag_bytes(view, node),
                    lease_remaining: report.and_then(|report| report.standing.lease_remaining),
                    report_age: status::report_age(node),
                },
            );
        }
        self.show_readiness(view);
        for (proxy, facts) in &view.proxies {
            let agrees = facts.report.known().is_some_and(|report| {
                record.is_some_and(|record| report.write_target.as_ref() == Some(&record.holder_address))
            });
            metrics.show_proxy(&self.state.cluster, proxy, agrees);
        }
    }
}
