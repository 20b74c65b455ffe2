//! Metrics of a controller: names, labels, and the registry behind `/metrics`.
//!
//! Names are a contract (dashboards, alerts); base units, `_total` for counters. An unknown value has no series:
//! never a zero in place of a fact.

mod forget;
mod outlook;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    CounterVec, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use super::backup_metrics::BackupMetrics;
use super::event::{Event, StepOutcome};
use crate::domain::alert::AlertAction;
use crate::domain::certificate::CertificateFacts;
use crate::domain::clock::WallTime;
use crate::domain::epoch::{Epoch, RecordNumber};
use crate::domain::ids::{ClusterName, NodeName, ProxyName};
use crate::domain::operation::OperationStatus;
use crate::domain::plan::{Intent, Reason, ReasonCode};
pub(super) use forget::forget;

macro_rules! names {
    ($($constant:ident = $name:literal, $help:literal;)+) => {
        $(#[doc = $help] pub const $constant: &str = $name;)+

        /// Every metric with its help.
        pub const ALL: &[(&str, &str)] = &[$(($name, $help),)+];
    };
}

names! {
    BUILD_INFO = "stormglass_build_info", "Constant 1, labelled with the version.";
    CONTROLLER_STARTED = "stormglass_controller_start_timestamp_seconds", "When the controller began, in seconds since 1970.";
    CONTROLLER_LEADS = "stormglass_controller_leads", "1 while this controller leads; of several, one does.";
    CLUSTER_HEALTH = "stormglass_cluster_health", "1 for the health that the cluster has, 0 for the others.";
    EPOCH = "stormglass_epoch", "Number of the current right to accept writes; 0 before the first.";
    RECORD_NUMBER = "stormglass_record_number", "Number of the cluster's record, raised by every change.";
    ELIGIBLE_STANDBYS = "stormglass_eligible_standbys", "Standbys that hold every confirmed commit.";
    CONFIRMING_ALONE = "stormglass_confirming_alone", "1 while a primary in sync mode confirms commits without a standby.";
    CONFIRMING_ALONE_SECONDS = "stormglass_confirming_alone_seconds_total", "How long a primary in sync mode confirmed commits without a standby; how often is the event alone_began.";
    AUTOMATION_ENABLED = "stormglass_automation_enabled", "0 while automatic operations are paused.";
    NODE_UP = "stormglass_node_up", "1 if the node's PostgreSQL runs and answers, by its agent's word.";
    NODE_ROLE = "stormglass_node_role", "1 for the role that the node has, 0 for the others.";
    REPLICATION_LAG_BYTES = "stormglass_replication_lag_bytes", "WAL between the primary's flush position and the standby's, in bytes.";
    LEASE_REMAINING_SECONDS = "stormglass_lease_remaining_seconds", "What is left of the holder's lease.";
    REPORT_AGE_SECONDS = "stormglass_report_age_seconds", "Age of the last report of the node's agent.";
    PROXY_AGREES = "stormglass_proxy_agrees", "1 if the proxy's write port leads to the primary.";
    NAME_AGREES = "stormglass_name_agrees", "1 if every authoritative server leads the name to the primary's site.";
    STRAIN = "stormglass_strain", "1 while the strain lasts, 0 after it; `strain` is a code of `explain`.";
    READINESS = "stormglass_readiness_ratio", "Share of the checks of `stormglass doctor` that pass; a warning counts half.";
    CERTIFICATE_EXPIRY = "stormglass_certificate_expiry_timestamp_seconds", "When a certificate ends: the own one, and those of the authorities that count.";
    OPERATIONS = "stormglass_operations_total", "Operations that ended.";
    OPERATION_PHASE_SECONDS = "stormglass_operation_phase_seconds", "How long the steps of operations took.";
    OPERATION_SECONDS = "stormglass_operation_seconds", "From detection or request to the end of an operation that succeeded.";
    DECISION_REASONS = "stormglass_decision_reasons_total", "Reasons of decisions, counted when a decision changes.";
    EVENTS = "stormglass_events_total", "Events.";
    ALERTS = "stormglass_alerts_total", "Alerts that were handled: `begun`, `refused` or `told`.";
    NOTIFICATIONS = "stormglass_notifications_total", "Messages of each channel of notifications: `sent`, `retried`, `failed` (given up) or `dropped` (the queue was full).";
    DECISION_SECONDS = "stormglass_decision_seconds", "How long the controller took to decide.";
    RISK_RATIO = "stormglass_risk_ratio", "Calibrated probability of trouble within the model's horizon, 0 to 1; no series while nobody can say.";
    RISK_ALARM = "stormglass_risk_alarm", "1 while the model expects trouble of the node and has for long enough.";
    EXHAUSTION_SECONDS = "stormglass_exhaustion_seconds", "Time until nothing is left of the resource, if it goes on falling as by its agent's word; 0: nothing is. No series while it does not fall steadily, or lasts beyond the predictor's horizon.";
    MODEL_INFO = "stormglass_model_info", "Constant 1, labelled with the model that scores.";
    SCORING_SECONDS = "stormglass_scoring_seconds", "How long the samples of one step took to be scored, for all nodes.";
    STORE_SECONDS = "stormglass_store_seconds", "How long the store took, flush included.";
    BACKUP_OPERATIONS = "stormglass_backup_operations_total", "Backups that ended, however they did.";
    BACKUP_FAILURES = "stormglass_backup_failures_total", "Backups that did not end well.";
    BACKUP_LAST_SUCCESS = "stormglass_backup_last_success_timestamp_seconds", "When the newest backup in the repository was complete.";
    BACKUP_NEWEST_WAL = "stormglass_backup_newest_wal_timestamp_seconds", "When WAL last arrived in the repository.";
    BACKUP_REACHABLE = "stormglass_backup_repository_reachable", "1 if the repository could be read the last time.";
    BACKUP_RPO_VIOLATION = "stormglass_backup_rpo_violation", "1 while a total loss would cost more than backup.rpo.";
    DRILL_LAST_RTO = "stormglass_drill_last_rto_seconds", "From the beginning of the restore until the data were checked, in the last drill that went well.";
    DRILL_LAST_RPO = "stormglass_drill_last_rpo_seconds", "Age of the newest WAL in the repository when the last drill that went well began.";
    DRILL_LAST_SUCCESS = "stormglass_drill_last_success_timestamp_seconds", "When the last drill that went well ended.";
    DRILL_FAILURES = "stormglass_drill_failures_total", "Drills that did not end well.";
}

/// From a step that only sends a message to a base backup. The failover budget is 0.25 s, so it is finest below that.
const SECONDS: [f64; 18] =
    [0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 600.0];
/// Deciding is pure computing.
const DECISION_BUCKETS: [f64; 8] = [0.000_01, 0.000_03, 0.000_1, 0.000_3, 0.001, 0.003, 0.01, 0.1];

/// A sample costs microseconds, and a thousand nodes are scored at once.
const SCORING_BUCKETS: [f64; 8] = [0.000_03, 0.000_1, 0.000_3, 0.001, 0.003, 0.01, 0.03, 0.1];

const OPERATION_KINDS: [&str; 9] =
    ["failover", "switchover", "rejoin", "fence", "backup", "drill", "restore", "sequence", "retrain"];
const OTHER_INTENTS: [&str; 2] = ["hold", "update_record"];
const OUTCOMES: [OperationStatus; 5] = [
    OperationStatus::Succeeded,
    OperationStatus::Failed,
    OperationStatus::Refused,
    OperationStatus::Stuck,
    OperationStatus::Cancelled,
];
const ALERT_OUTCOMES: [&str; 3] = ["begun", "refused", "told"];
const ROLES: [&str; 3] = ["primary", "standby", "unknown"];
const HEALTHS: [&str; 4] = ["healthy", "degraded", "no_primary", "unknown"];

/// What the gauges of a cluster show.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterGauges<'a> {
    /// The cluster.
    pub cluster: &'a ClusterName,
    /// `healthy`, `degraded`, `no_primary` or `unknown`.
    pub health: &'a str,
    /// Current epoch.
    pub epoch: Epoch,
    /// Record number.
    pub number: RecordNumber,
    /// Size of the eligible set.
    pub eligible: usize,
    /// For how long the primary has confirmed commits without a standby although the mode is `sync`.
    pub alone_for: Option<Duration>,
    /// Automatic operations are on.
    pub is_automation_enabled: bool,
}

/// What the gauges of a node show.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeGauges<'a> {
    /// The node.
    pub node: &'a NodeName,
    /// `primary`, `standby` or `unknown`.
    pub role: &'a str,
    /// PostgreSQL runs and answers, by a report that is not stale.
    pub is_up: bool,
    /// `None` for the primary and where nobody knows.
    pub lag_bytes: Option<u64>,
    /// `None` if it holds no lease.
    pub lease_remaining: Option<Duration>,
    /// `None` if it never spoke.
    pub report_age: Option<Duration>,
}

/// What became of a message to people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotificationOutcome {
    /// It went out.
    Sent,
    /// An attempt failed, and another one follows.
    Retried,
    /// Refused for good, or no news any more.
    Failed,
    /// There was no room for it.
    Dropped,
}

impl NotificationOutcome {
    /// Every outcome.
    pub const ALL: [NotificationOutcome; 4] = [Self::Sent, Self::Retried, Self::Failed, Self::Dropped];

    /// Label of the metric.
    pub fn label(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Retried => "retried",
            Self::Failed => "failed",
            Self::Dropped => "dropped",
        }
    }
}

/// The controller's metrics. Each controller has its own registry, so that tests and the simulator can have many.
pub struct ControllerMetrics {
    registry: Registry,
    started: Gauge,
    leads: IntGaugeVec,
    health: IntGaugeVec,
    epoch: IntGaugeVec,
    record_number: IntGaugeVec,
    eligible: IntGaugeVec,
    confirming_alone: IntGaugeVec,
    alone_seconds: CounterVec,
    /// What was shown last: the counter grows by the difference, also while nothing ends.
    alone_shown: Mutex<BTreeMap<String, Duration>>,
    automation: IntGaugeVec,
    node_up: IntGaugeVec,
    node_role: IntGaugeVec,
    lag_bytes: IntGaugeVec,
    lease_remaining: GaugeVec,
    report_age: GaugeVec,
    proxy_agrees: IntGaugeVec,
    name_agrees: IntGaugeVec,
    strain: IntGaugeVec,
    readiness: GaugeVec,
    certificates: GaugeVec,
    operations: IntCounterVec,
    phases: HistogramVec,
    durations: HistogramVec,
    reasons: IntCounterVec,
    events: IntCounterVec,
    alerts: IntCounterVec,
    notifications: IntCounterVec,
    decisions: Histogram,
    store: HistogramVec,
    /// Backups and drills.
    pub backups: BackupMetrics,
    risk: GaugeVec,
    risk_alarm: IntGaugeVec,
    exhaustion: GaugeVec,
    model: IntGaugeVec,
    scoring: Histogram,
}

impl ControllerMetrics {
    /// A registry with every metric, counters at zero, so that their first increase is seen as one.
    pub fn new(version: &str) -> Self {
        let registry = Registry::new();
        let metrics = Self {
            started: register(&registry, Gauge::with_opts(options(CONTROLLER_STARTED))),
            leads: gauges(&registry, CONTROLLER_LEADS, &[]),
            health: gauges(&registry, CLUSTER_HEALTH, &["cluster", "health"]),
            epoch: gauges(&registry, EPOCH, &["cluster"]),
            record_number: gauges(&registry, RECORD_NUMBER, &["cluster"]),
            eligible: gauges(&registry, ELIGIBLE_STANDBYS, &["cluster"]),
            confirming_alone: gauges(&registry, CONFIRMING_ALONE, &["cluster"]),
            alone_seconds: register(&registry, CounterVec::new(options(CONFIRMING_ALONE_SECONDS), &["cluster"])),
            alone_shown: Mutex::default(),
            automation: gauges(&registry, AUTOMATION_ENABLED, &["cluster"]),
            node_up: gauges(&registry, NODE_UP, &["cluster", "node"]),
            node_role: gauges(&registry, NODE_ROLE, &["cluster", "node", "role"]),
            lag_bytes: gauges(&registry, REPLICATION_LAG_BYTES, &["cluster", "node"]),
            lease_remaining: seconds_gauges(&registry, LEASE_REMAINING_SECONDS),
            report_age: seconds_gauges(&registry, REPORT_AGE_SECONDS),
            proxy_agrees: gauges(&registry, PROXY_AGREES, &["cluster", "proxy"]),
            name_agrees: gauges(&registry, NAME_AGREES, &["cluster", "name"]),
            strain: gauges(&registry, STRAIN, &["cluster", "node", "strain"]),
            readiness: register(&registry, GaugeVec::new(options(READINESS), &["cluster"])),
            certificates: register(&registry, GaugeVec::new(options(CERTIFICATE_EXPIRY), &["subject"])),
            operations: counters(&registry, OPERATIONS, &["operation", "outcome"]),
            phases: histograms(&registry, OPERATION_PHASE_SECONDS, &["operation", "phase"]),
            durations: histograms(&registry, OPERATION_SECONDS, &["operation"]),
            reasons: counters(&registry, DECISION_REASONS, &["intent", "reason"]),
            events: counters(&registry, EVENTS, &["event", "severity"]),
            alerts: counters(&registry, ALERTS, &["action", "outcome"]),
            notifications: counters(&registry, NOTIFICATIONS, &["name", "outcome"]),
            decisions: register(
                &registry,
                Histogram::with_opts(histogram_options(DECISION_SECONDS).buckets(DECISION_BUCKETS.to_vec())),
            ),
            store: histograms(&registry, STORE_SECONDS, &["action"]),
            backups: BackupMetrics::new(&registry),
            risk: seconds_gauges(&registry, RISK_RATIO),
            risk_alarm: gauges(&registry, RISK_ALARM, &["cluster", "node"]),
            exhaustion: register(
                &registry,
                GaugeVec::new(options(EXHAUSTION_SECONDS), &["cluster", "node", "resource"]),
            ),
            model: gauges(&registry, MODEL_INFO, &["name", "version"]),
            scoring: register(
                &registry,
                Histogram::with_opts(histogram_options(SCORING_SECONDS).buckets(SCORING_BUCKETS.to_vec())),
            ),
            registry,
        };
        metrics.set_leading(false);
        gauges(&metrics.registry, BUILD_INFO, &["version"]).with_label_values(&[version]).set(1);
        for kind in OPERATION_KINDS {
            for outcome in OUTCOMES {
                metrics.operations.with_label_values(&[kind, outcome.label()]);
            }
        }
        for action in AlertAction::ALL {
            for outcome in ALERT_OUTCOMES {
                metrics.alerts.with_label_values(&[action.label(), outcome]);
            }
        }
        for intent in OPERATION_KINDS.into_iter().chain(OTHER_INTENTS) {
            for code in ReasonCode::ALL {
                metrics.reasons.with_label_values(&[intent, code.label()]);
            }
        }
        metrics
    }

    /// Shows the certificates in use, and none that was in use before.
    pub fn show_certificates(&self, certificates: &[CertificateFacts]) {
        self.certificates.reset();
        for certificate in certificates {
            let expires = certificate.expires.0 as f64 / 1e6;
            self.certificates.with_label_values(&[certificate.subject.as_str()]).set(expires);
        }
    }

    /// When the controller began.
    pub fn set_started(&self, wall: WallTime) {
        self.started.set(wall.0 as f64 / 1e6);
    }

    /// Whether this controller leads.
    pub fn set_leading(&self, leads: bool) {
        self.leads.with_label_values::<&str>(&[]).set(leads.into());
    }

    /// Shows a cluster.
    pub fn show_cluster(&self, facts: &ClusterGauges<'_>) {
        let cluster = facts.cluster.as_str();
        for health in HEALTHS {
            self.health.with_label_values(&[cluster, health]).set((health == facts.health).into());
        }
        self.epoch.with_label_values(&[cluster]).set(integer(facts.epoch.0));
        self.record_number.with_label_values(&[cluster]).set(integer(facts.number.0));
        self.eligible.with_label_values(&[cluster]).set(integer(facts.eligible as u64));
        self.confirming_alone.with_label_values(&[cluster]).set(facts.alone_for.is_some().into());
        self.count_alone(cluster, facts.alone_for);
        self.automation.with_label_values(&[cluster]).set(facts.is_automation_enabled.into());
    }

    /// A controller that begins while the primary is alone counts from then on: what was before is in its predecessor's counter.
    fn count_alone(&self, cluster: &str, alone_for: Option<Duration>) {
        let mut shown = self.alone_shown.lock().unwrap_or_else(PoisonError::into_inner);
        let now = alone_for.unwrap_or_default();
        let before = shown.insert(cluster.to_owned(), now).unwrap_or(now);
        let grown = now.saturating_sub(before);
        self.alone_seconds.with_label_values(&[cluster]).inc_by(grown.as_secs_f64());
    }

    /// Shows a node.
    pub fn show_node(&self, cluster: &ClusterName, facts: &NodeGauges<'_>) {
        let labels = [cluster.as_str(), facts.node.as_str()];
        self.node_up.with_label_values(&labels).set(facts.is_up.into());
        for role in ROLES {
            self.node_role.with_label_values(&[labels[0], labels[1], role]).set((role == facts.role).into());
        }
        match facts.lag_bytes {
            Some(lag) => self.lag_bytes.with_label_values(&labels).set(integer(lag)),
            // Fails where there was no series, which is what is wanted.
            None => drop(self.lag_bytes.remove_label_values(&labels)),
        }
        show_seconds(&self.lease_remaining, &labels, facts.lease_remaining);
        show_seconds(&self.report_age, &labels, facts.report_age);
    }

    /// Shows a proxy.
    pub fn show_proxy(&self, cluster: &ClusterName, proxy: &ProxyName, agrees: bool) {
        self.proxy_agrees.with_label_values(&[cluster.as_str(), proxy.as_str()]).set(agrees.into());
    }

    /// Shows the name that clients connect to.
    pub fn show_name(&self, cluster: &ClusterName, name: &str, agrees: bool) {
        self.name_agrees.with_label_values(&[cluster.as_str(), name]).set(agrees.into());
    }

    /// Shows that a strain lasts, or is over.
    pub fn show_strain(&self, cluster: &ClusterName, node: Option<&NodeName>, code: ReasonCode, lasts: bool) {
        let labels = [cluster.as_str(), node.map_or("", NodeName::as_str), code.label()];
        self.strain.with_label_values(&labels).set(lasts.into());
    }

    /// Shows how much of what a recovery rests on is in order.
    pub fn show_readiness(&self, cluster: &ClusterName, ratio: f64) {
        self.readiness.with_label_values(&[cluster.as_str()]).set(ratio);
    }

    /// One step was scored.
    pub fn observe_scoring(&self, took: Duration) {
        self.scoring.observe(took.as_secs_f64());
    }

    /// Counts an event, with what follows from it: operations, phases, reasons.
    pub fn count(&self, event: &Event) {
        self.events.with_label_values(&[event.name(), event.severity().label()]).inc();
        match event {
            Event::StepEnded { kind, step, outcome: StepOutcome::Succeeded, took, .. } => {
                self.phases.with_label_values(&[kind, step.label()]).observe(took.as_secs_f64());
            }
            Event::OperationEnded { kind, outcome, took, .. } => {
                self.operations.with_label_values(&[kind, outcome.label()]).inc();
                if *outcome == OperationStatus::Succeeded {
                    self.durations.with_label_values(&[kind]).observe(took.as_secs_f64());
                }
            }
            Event::DecisionChanged { intent, reasons, blocked_by } => {
                self.count_reasons(intent, reasons);
                self.count_reasons(intent, blocked_by);
            }
            Event::AlertHandled { action, outcome, .. } => {
                self.alerts.with_label_values(&[action, outcome]).inc();
            }
            _ => {}
        }
    }

    /// A phase that is no step: detect, decide.
    pub fn observe_phase(&self, operation: &str, phase: &str, took: Duration) {
        self.phases.with_label_values(&[operation, phase]).observe(took.as_secs_f64());
    }

    /// One run of the decision.
    pub fn observe_decision(&self, took: Duration) {
        self.decisions.observe(took.as_secs_f64());
    }

    /// One call of the store.
    pub fn observe_store(&self, action: &str, took: Duration) {
        self.store.with_label_values(&[action]).observe(took.as_secs_f64());
    }

    /// The text of `/metrics`.
    pub fn render(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_else(|error| {
            tracing::error!(%error, "render the metrics; this is a fault of the program");
            String::new()
        })
    }

    /// Shows the counters of a channel of notifications from zero on.
    pub fn show_channel(&self, name: &str) {
        for outcome in NotificationOutcome::ALL {
            self.notifications.with_label_values(&[name, outcome.label()]);
        }
    }

    /// Counts what became of a message.
    pub fn count_notification(&self, name: &str, outcome: NotificationOutcome) {
        self.notifications.with_label_values(&[name, outcome.label()]).inc();
    }

    fn count_reasons(&self, intent: &Intent, reasons: &[Reason]) {
        for reason in reasons {
            self.reasons.with_label_values(&[intent.label(), reason.code.label()]).inc();
        }
    }
}

fn integer(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn show_seconds(gauges: &GaugeVec, labels: &[&str], value: Option<Duration>) {
    match value {
        Some(value) => gauges.with_label_values(labels).set(value.as_secs_f64()),
        None => drop(gauges.remove_label_values(labels)),
    }
}

fn help(name: &str) -> &'static str {
    ALL.iter().find(|(known, _)| *known == name).map(|(_, help)| *help).expect("names and help come from one list")
}

pub(super) fn options(name: &str) -> Opts {
    Opts::new(name, help(name))
}

fn histogram_options(name: &str) -> HistogramOpts {
    HistogramOpts::new(name, help(name)).buckets(SECONDS.to_vec())
}

pub(super) fn register<C: Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<C>) -> C {
    let collector = made.expect("names, labels and buckets are constants that the tests have checked");
    registry.register(Box::new(collector.clone())).expect("every metric has a name of its own");
    collector
}

pub(super) fn gauges(registry: &Registry, name: &str, labels: &[&str]) -> IntGaugeVec {
    register(registry, IntGaugeVec::new(options(name), labels))
}

fn seconds_gauges(registry: &Registry, name: &str) -> GaugeVec {
    register(registry, GaugeVec::new(options(name), &["cluster", "node"]))
}

pub(super) fn counters(registry: &Registry, name: &str, labels: &[&str]) -> IntCounterVec {
    register(registry, IntCounterVec::new(options(name), labels))
}

fn histograms(registry: &Registry, name: &str, labels: &[&str]) -> HistogramVec {
    register(registry, HistogramVec::new(histogram_options(name), labels))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::risk::{ModelName, Resource};
    use crate::telemetry::backup_metrics::DrillFigures;

    fn node(name: &str) -> NodeName {
        NodeName::new(name).expect("valid")
    }

    fn cluster() -> ClusterName {
        ClusterName::new("main").expect("valid")
    }

    fn gauges_of<'a>(node: &'a NodeName, lag: Option<u64>) -> NodeGauges<'a> {
        NodeGauges {
            node,
            role: "standby",
            is_up: true,
            lag_bytes: lag,
            lease_remaining: Some(Duration::from_millis(1500)),
            report_age: Some(Duration::from_millis(20)),
        }
    }

    #[test]
    fn every_name_appears_once_it_has_a_value_and_no_other_does() {
        let metrics = ControllerMetrics::new("1.2.3");
        let (cluster, db1, proxy) = (cluster(), node("db1"), ProxyName::new("proxy1").expect("valid"));
        metrics.set_started(WallTime(1_795_000_000_000_000));
        metrics.show_cluster(&ClusterGauges {
            cluster: &cluster,
            health: "degraded",
            epoch: Epoch(3),
            number: RecordNumber(9),
            eligible: 1,
            alone_for: Some(Duration::from_secs(2)),
            is_automation_enabled: true,
        });
        metrics.show_node(&cluster, &gauges_of(&db1, Some(12)));
        metrics.show_proxy(&cluster, &proxy, true);
        metrics.show_strain(&cluster, Some(&db1), ReasonCode::LockPileUp, true);
        metrics.show_name(&cluster, "db.example.test", true);
        metrics.show_readiness(&cluster, 0.9);
        let facts = |subject: &str| CertificateFacts { subject: subject.to_owned(), expires: WallTime(7_000_000) };
        metrics.show_certificates(&[facts("controller c0")]);
        metrics.show_certificates(&[facts("controller c1")]);
        metrics.show_risk(&cluster, &db1, Some(0.25), false);
        metrics.show_exhaustion(&cluster, &db1, Resource::Memory, Some(Duration::from_secs(90)));
        metrics.show_model(Some(&ModelName { name: "lab".to_owned(), version: "1".to_owned() }));
        metrics.show_channel("dba");
        metrics.observe_scoring(Duration::from_micros(90));
        metrics.observe_phase("failover", "detect", Duration::from_millis(7));
        metrics.observe_decision(Duration::from_micros(40));
        metrics.observe_store("swap", Duration::from_millis(2));
        let ended = Event::OperationEnded {
            operation: crate::domain::ids::OperationId("op".to_owned()),
            kind: "failover",
            node: db1.clone(),
            outcome: OperationStatus::Succeeded,
            took: Duration::from_millis(180),
            message: None,
        };
        metrics.count(&ended);
        let set = serde_json::from_value(serde_json::json!({
            "label": "20261128-143346F", "backup_type": "full", "began": "2026-11-28T14:33:46Z",
            "ended": "2026-11-28T14:33:53Z", "start_lsn": "0/2000028", "stop_lsn": "0/2000100",
            "first_segment": "000000010000000000000002", "last_segment": "000000010000000000000002",
            "database_bytes": 1, "repository_bytes": 1, "reference": [], "major_version": 15, "has_error": false
        }))
        .expect("a backup");
        let repository = crate::domain::backup::Repository {
            backups: vec![set],
            newest_wal_at: Some(WallTime(5_000_000)),
            ..Default::default()
        };
        metrics.backups.show_repository(&cluster, Some(&repository), false);
        metrics.backups.show_drill(&cluster, None);
        let figures = DrillFigures { rto_seconds: 4.5, rpo_seconds: 1.0, ended: WallTime(9_000_000) };
        metrics.backups.show_drill(&cluster, Some(figures));
        metrics.backups.ended(crate::domain::backup::BackupType::Full, false);

        let text = metrics.render();
        for (name, _) in ALL {
            assert!(text.contains(&format!("# HELP {name} ")), "{name} is not rendered");
        }
        assert_eq!(text.matches("# HELP ").count(), ALL.len(), "a metric is missing from the list of names");
        assert!(!text.contains("controller c0"), "a certificate that is not in use any more");
        for line in [
            "stormglass_operations_total{operation=\"failover\",outcome=\"succeeded\"} 1",
            "stormglass_operations_total{operation=\"switchover\",outcome=\"failed\"} 0",
            "stormglass_cluster_health{cluster=\"main\",health=\"degraded\"} 1",
            "stormglass_node_role{cluster=\"main\",node=\"db1\",role=\"primary\"} 0",
            "stormglass_lease_remaining_seconds{cluster=\"main\",node=\"db1\"} 1.5",
            "stormglass_epoch{cluster=\"main\"} 3",
            "stormglass_certificate_expiry_timestamp_seconds{subject=\"controller c1\"} 7",
            "stormglass_backup_failures_total{type=\"full\"} 1",
            "stormglass_backup_newest_wal_timestamp_seconds{cluster=\"main\"} 5",
            "stormglass_drill_last_rto_seconds{cluster=\"main\"} 4.5",
            "stormglass_drill_failures_total{cluster=\"main\"} 1",
        ] {
            assert!(text.contains(line), "{line} is not in:\n{text}");
        }
        metrics.forget_cluster(&cluster);
        let left = metrics.render();
        assert!(!left.contains("cluster=\"main\""), "a cluster that is kept no longer is shown:\n{left}");
        assert!(left.contains("stormglass_operations_total{operation=\"failover\",outcome=\"succeeded\"} 1"));
    }

    #[test]
    fn time_alone_is_counted_while_it_lasts_and_not_twice() {
        let metrics = ControllerMetrics::new("1.2.3");
        let cluster = cluster();
        let show = |alone: Option<u64>| {
            metrics.show_cluster(&ClusterGauges {
                cluster: &cluster,
                health: "degraded",
                epoch: Epoch(3),
                number: RecordNumber(9),
                eligible: 0,
                alone_for: alone.map(Duration::from_secs),
                is_automation_enabled: true,
            });
            let text = metrics.render();
            let line = text.lines().find(|line| line.starts_with("stormglass_confirming_alone_seconds_total{"));
            line.and_then(|line| line.rsplit_once(' ')).map(|(_, value)| value.to_owned()).expect("it has a value")
        };
        assert_eq!(show(Some(60)), "0", "a controller that begins meanwhile");
        assert_eq!(show(Some(62)), "2");
        assert_eq!(show(None), "2");
        assert_eq!(show(Some(1)), "3", "from its beginning on");
        assert_eq!(show(Some(3)), "5");
    }

    #[test]
    fn what_is_unknown_has_no_series() {
        let metrics = ControllerMetrics::new("1.2.3");
        let db1 = node("db1");
        metrics.show_node(&cluster(), &gauges_of(&db1, Some(12)));
        assert!(metrics.render().contains("stormglass_replication_lag_bytes{"));
        metrics.show_node(&cluster(), &gauges_of(&db1, None));
        assert!(!metrics.render().contains("stormglass_replication_lag_bytes{"));
    }

    #[test]
    fn names_follow_the_convention() {
        for (name, help) in ALL {
            assert!(name.starts_with("stormglass_") && help.ends_with('.'), "{name}: {help}");
        }
    }
}
