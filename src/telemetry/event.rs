//! Every event that people can be told of: one variant each, from which log line, metric and stored row follow.
//!
//! Names are stable: alerts and scripts match them. The sentences are in `sentence` and may change.
//!
//! Length: one variant an event, and an arm of it in each function that tells events apart.

use std::time::Duration;

use crate::domain::clock::WallTime;
use crate::domain::epoch::Epoch;
use crate::domain::ids::{Address, ClusterName, NodeName, OperationId, ProxyName, SiteName};
use crate::domain::operation::{OperationStatus, StepName};
use crate::domain::plan::{Intent, Reason, ReasonCode};
use crate::domain::risk::ModelName;
use crate::domain::trail::EventRow;

/// How loud.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// As it should be.
    Info,
    /// Worth a look.
    Warning,
    /// A human must look.
    Error,
}

impl Severity {
    /// Label in rows and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }
}

/// How an attempt at a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepOutcome {
    /// Done.
    Succeeded,
    /// Not done.
    Failed,
    /// May have happened.
    Unknown,
}

impl StepOutcome {
    /// Word in sentences and metrics.
    pub fn label(self) -> &'static str {
        match self {
            StepOutcome::Succeeded => "succeeded",
            StepOutcome::Failed => "failed",
            StepOutcome::Unknown => "unknown",
        }
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A controller began to keep the cluster.
    ControllerStarted {
        /// Its name.
        controller: String,
        /// Its version.
        version: &'static str,
    },
    /// The primary accepts no writes any more.
    PrimaryLost {
        /// The primary.
        node: NodeName,
        /// How that is known.
        reasons: Vec<Reason>,
    },
    /// A node became the primary and accepts writes.
    PrimaryEstablished {
        /// The primary.
        node: NodeName,
        /// Its epoch.
        epoch: Epoch,
    },
    /// The decision is another one than the last time.
    DecisionChanged {
        /// What is to be done.
        intent: Intent,
        /// Why.
        reasons: Vec<Reason>,
        /// What kept it from more.
        blocked_by: Vec<Reason>,
    },
    /// An operation began.
    OperationBegan {
        /// The operation.
        operation: OperationId,
        /// `OperationKind::label`.
        kind: &'static str,
        /// The node that it works on.
        node: NodeName,
        /// `automatic`, or who asked.
        origin: String,
        /// Why.
        reasons: Vec<Reason>,
    },
    /// A step ended.
    StepEnded {
        /// The operation.
        operation: OperationId,
        /// `OperationKind::label`.
        kind: &'static str,
        /// The step.
        step: StepName,
        /// How.
        outcome: StepOutcome,
        /// How long it took.
        took: Duration,
        /// What went wrong.
        error: Option<String>,
    },
    /// An operation ended.
    OperationEnded {
        /// The operation.
        operation: OperationId,
        /// `OperationKind::label`.
        kind: &'static str,
        /// The node that it worked on.
        node: NodeName,
        /// How.
        outcome: OperationStatus,
        /// From its detection, or from the request, to its end.
        took: Duration,
        /// Why it ended so.
        message: Option<String>,
    },
    /// What the controller knows of a node changed.
    NodeStateChanged {
        /// The node.
        node: NodeName,
        /// Words of `NodeStatus::state`.
        from: String,
        /// The same.
        to: String,
    },
    /// A node's agent no longer speaks.
    AgentSilent {
        /// The node.
        node: NodeName,
        /// For how long.
        silent: Duration,
    },
    /// A node's agent speaks again, or for the first time.
    AgentHeard {
        /// The node.
        node: NodeName,
    },
    /// A node cannot be used: another cluster's data, a newer epoch than the store's.
    NodeRefused {
        /// The node.
        node: NodeName,
        /// Why, and what to do.
        reason: String,
    },
    /// The sets of standbys that commits wait for, and that hold every confirmed commit.
    MembershipChanged {
        /// Named in `synchronous_standby_names`.
        synchronous: Vec<NodeName>,
        /// Holding every confirmed commit.
        eligible: Vec<NodeName>,
    },
    /// In `sync` mode the primary confirms commits alone: losing it loses them.
    AloneBegan {
        /// The primary.
        node: NodeName,
    },
    /// Commits are confirmed by a standby again.
    AloneEnded {
        /// The primary.
        node: NodeName,
        /// How long they were not.
        lasted: Duration,
    },
    /// Automatic operations are off.
    PausedUntil {
        /// When they come back.
        until: WallTime,
        /// Who asked.
        who: String,
    },
    /// Automatic operations are on.
    Resumed {
        /// Who asked; `None`: the pause expired.
        who: Option<String>,
    },
    /// A switchover waits for its time.
    SwitchoverScheduled {
        /// When it begins.
        at: WallTime,
        /// Who shall take over, if that was said.
        node: Option<NodeName>,
        /// In which site, if that was said.
        site: Option<SiteName>,
        /// Who asked.
        who: String,
    },
    /// It does not any more.
    SwitchoverUnscheduled {
        /// When it was to begin.
        at: WallTime,
        /// Why.
        reason: String,
    },
    /// An operator keeps a node from writing.
    OperatorFenced {
        /// The node.
        node: NodeName,
        /// Who.
        who: String,
    },
    /// An operator let it go.
    OperatorUnfenced {
        /// The node.
        node: NodeName,
        /// Who.
        who: String,
    },
    /// A node can certainly not write any more in this epoch.
    FenceConfirmed {
        /// The node.
        node: NodeName,
        /// The epoch.
        epoch: Epoch,
    },
    /// The holder reported and its lease was not renewed.
    LeaseNotRenewed {
        /// The node.
        node: NodeName,
        /// Why.
        reason: String,
    },
    /// The write port of a proxy leads elsewhere now.
    ProxyRedirected {
        /// The proxy.
        proxy: ProxyName,
        /// Where to.
        to: Address,
    },
    /// A proxy is out of reach or refuses.
    ProxyFailed {
        /// The proxy.
        proxy: ProxyName,
        /// What went wrong.
        problem: String,
    },
    /// The name that clients connect to leads to the primary's site, at every server that was asked.
    NameFollows {
        /// The name.
        name: String,
        /// Where it leads.
        values: Vec<String>,
        /// The primary's site.
        site: SiteName,
    },
    /// It does not, or nobody can tell; tried again until it does. The database is not concerned.
    NameUndone {
        /// The name.
        name: String,
        /// What is undone, and what to do.
        problem: String,
    },
    /// Load strains a node, or a way to it is lost: a look is worth it, and nothing is moved.
    StrainBegan {
        /// What, where, how much.
        reason: Reason,
    },
    /// It is over.
    StrainEnded {
        /// The node, if it was about one.
        node: Option<NodeName>,
        /// What it was.
        code: ReasonCode,
    },
    /// A backup did not end well.
    BackupFailed {
        /// From whom.
        node: NodeName,
        /// Which step failed, why, what to do.
        problem: String,
    },
    /// A drill did not end well: what the repository holds may not be enough.
    DrillFailed {
        /// On whose host.
        node: NodeName,
        /// Which step failed, why, what to do.
        problem: String,
    },
    /// A drill ended well.
    DrillPassed {
        /// On whose host.
        node: NodeName,
        /// From the beginning of the restore until the data were checked.
        rto: Duration,
        /// Age of the newest WAL in the repository when it began.
        rpo: Duration,
    },
    /// A total loss would cost more than the cluster is promised.
    RpoViolated {
        /// What is known of the newest WAL and backup in the repository.
        problem: String,
    },
    /// It would not any more.
    RpoKept {
        /// For how long it would have.
        lasted: Duration,
    },
    /// An alert was stored, and is carried out next.
    AlertAccepted {
        /// Its fingerprint.
        fingerprint: String,
        /// The label `alertname`.
        name: String,
        /// What its route says.
        action: &'static str,
    },
    /// What an alert asked for was begun, refused or told.
    AlertHandled {
        /// Its fingerprint.
        fingerprint: String,
        /// The label `alertname`.
        name: String,
        /// What its route says.
        action: &'static str,
        /// `begun`, `refused` or `told`.
        outcome: &'static str,
        /// Why.
        detail: String,
        /// The operation that was begun.
        operation: Option<OperationId>,
    },
    /// The model expects trouble of a node, and has for long enough: a look is worth it.
    RiskBegan {
        /// What, how much, and what drove it.
        reason: Reason,
    },
    /// It does not any more.
    RiskEnded {
        /// The node.
        node: NodeName,
    },
    /// A model scores from now on.
    ModelLoaded {
        /// Name and version.
        model: ModelName,
    },
    /// A model cannot be used; the one before it, if there was one, goes on.
    ModelRefused {
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// Nothing is predicted for the time being; everything else goes on as without a predictor.
    PredictorAbstains {
        /// Why.
        problem: String,
    },
    /// Risks are predicted again.
    PredictorResumed {
        /// By which model.
        model: ModelName,
    },
    /// A retraining says how far it is.
    RetrainingProgressed {
        /// The operation.
        operation: OperationId,
        /// What it says.
        progress: String,
    },
    /// A channel of notifications began to fail: people are not told what they shall be told.
    NotificationFailed {
        /// The channel.
        channel: String,
        /// What went wrong.
        problem: String,
    },
    /// The store did not take a write: the controller grants nothing new until it does.
    StoreFailed {
        /// What went wrong, and what to do.
        problem: String,
    },
}

impl Event {
    /// The stable name.
    pub fn name(&self) -> &'static str {
        match self {
            Event::ControllerStarted { .. } => "controller_started",
            Event::PrimaryLost { .. } => "primary_lost",
            Event::PrimaryEstablished { .. } => "primary_established",
            Event::DecisionChanged { .. } => "decision_changed",
            Event::OperationBegan { .. } => "operation_began",
            Event::StepEnded { .. } => "step_ended",
            Event::OperationEnded { .. } => "operation_ended",
            Event::NodeStateChanged { .. } => "node_state_changed",
            Event::AgentSilent { .. } => "agent_silent",
            Event::AgentHeard { .. } => "agent_heard",
            Event::NodeRefused { .. } => "node_refused",
            Event::MembershipChanged { .. } => "membership_changed",
            Event::AloneBegan { .. } => "alone_began",
            Event::AloneEnded { .. } => "alone_ended",
            Event::PausedUntil { .. } => "paused_until",
            Event::Resumed { .. } => "resumed",
            Event::SwitchoverScheduled { .. } => "switchover_scheduled",
            Event::SwitchoverUnscheduled { .. } => "switchover_unscheduled",
            Event::OperatorFenced { .. } => "operator_fenced",
            Event::OperatorUnfenced { .. } => "operator_unfenced",
            Event::FenceConfirmed { .. } => "fence_confirmed",
            Event::LeaseNotRenewed { .. } => "lease_not_renewed",
            Event::ProxyRedirected { .. } => "proxy_redirected",
            Event::ProxyFailed { .. } => "proxy_failed",
            Event::NameFollows { .. } => "name_follows",
            Event::NameUndone { .. } => "name_undone",
            Event::BackupFailed { .. } => "backup_failed",
            Event::DrillFailed { .. } => "drill_failed",
            Event::DrillPassed { .. } => "drill_passed",
            Event::RpoViolated { .. } => "rpo_violated",
            Event::RpoKept { .. } => "rpo_kept",
            Event::AlertAccepted { .. } => "alert_accepted",
            Event::AlertHandled { .. } => "alert_handled",
            Event::RetrainingProgressed { .. } => "retraining_progressed",
            Event::NotificationFailed { .. } => "notification_failed",
            Event::StoreFailed { .. } => "store_failed",
            Event::RiskBegan { .. } => "risk_began",
            Event::RiskEnded { .. } => "risk_ended",
            Event::ModelLoaded { .. } => "model_loaded",
            Event::ModelRefused { .. } => "model_refused",
            Event::PredictorAbstains { .. } => "predictor_abstains",
            Event::PredictorResumed { .. } => "predictor_resumed",
            Event::StrainBegan { .. } => "strain_began",
            Event::StrainEnded { .. } => "strain_ended",
        }
    }

    /// How loud.
    pub fn severity(&self) -> Severity {
        match self {
            Event::NodeRefused { .. } | Event::StoreFailed { .. } | Event::DrillFailed { .. } => Severity::Error,
            Event::OperationEnded { outcome: OperationStatus::Stuck, .. } => Severity::Error,
            Event::OperationEnded { outcome: OperationStatus::Failed | OperationStatus::Refused, .. }
            | Event::PrimaryLost { .. }
            | Event::AgentSilent { .. }
            | Event::AloneBegan { .. }
            | Event::LeaseNotRenewed { .. }
            | Event::StrainBegan { .. }
            | Event::NameUndone { .. }
            | Event::BackupFailed { .. }
            | Event::RpoViolated { .. }
            | Event::RiskBegan { .. }
            | Event::ModelRefused { .. }
            | Event::PredictorAbstains { .. }
            | Event::NotificationFailed { .. }
            | Event::ProxyFailed { .. } => Severity::Warning,
            Event::AlertHandled { outcome, .. } if *outcome == "refused" => Severity::Warning,
            Event::StepEnded { outcome, .. } if *outcome != StepOutcome::Succeeded => Severity::Warning,
            _ => Severity::Info,
        }
    }

    /// The node, if it is about one.
    pub fn node(&self) -> Option<&NodeName> {
        match self {
            Event::PrimaryLost { node, .. }
            | Event::PrimaryEstablished { node, .. }
            | Event::OperationBegan { node, .. }
            | Event::OperationEnded { node, .. }
            | Event::NodeStateChanged { node, .. }
            | Event::AgentSilent { node, .. }
            | Event::AgentHeard { node }
            | Event::NodeRefused { node, .. }
            | Event::AloneBegan { node }
            | Event::AloneEnded { node, .. }
            | Event::OperatorFenced { node, .. }
            | Event::OperatorUnfenced { node, .. }
            | Event::FenceConfirmed { node, .. }
            | Event::BackupFailed { node, .. }
            | Event::DrillFailed { node, .. }
            | Event::DrillPassed { node, .. }
            | Event::LeaseNotRenewed { node, .. } => Some(node),
            Event::StrainBegan { reason } | Event::RiskBegan { reason } => reason.node.as_ref(),
            Event::RiskEnded { node } => Some(node),
            Event::StrainEnded { node, .. } => node.as_ref(),
            _ => None,
        }
    }

    /// The operation, if it is part of one.
    pub fn operation(&self) -> Option<&OperationId> {
        match self {
            Event::OperationBegan { operation, .. }
            | Event::StepEnded { operation, .. }
            | Event::RetrainingProgressed { operation, .. }
            | Event::OperationEnded { operation, .. } => Some(operation),
            Event::AlertHandled { operation, .. } => operation.as_ref(),
            _ => None,
        }
    }

    /// A full English sentence.
    pub fn sentence(&self) -> String {
        self.to_string()
    }

    /// The row that is stored.
    pub fn to_row(&self, cluster: &ClusterName, epoch: Epoch, wall: WallTime) -> EventRow {
        EventRow {
            event: self.name().to_owned(),
            severity: self.severity().label().to_owned(),
            wall,
            cluster: cluster.clone(),
            node: self.node().cloned(),
            operation: self.operation().cloned(),
            epoch,
            message: self.sentence(),
        }
    }

    /// Writes the log line.
    pub fn log(&self, cluster: &ClusterName) {
        let (event, cluster) = (self.name(), cluster.as_str());
        let node = self.node().map(NodeName::as_str);
        let operation = self.operation().map(|operation| operation.0.as_str());
        match self.severity() {
            Severity::Info => tracing::info!(event, cluster, node, operation, "{self}"),
            Severity::Warning => tracing::warn!(event, cluster, node, operation, "{self}"),
            Severity::Error => tracing::error!(event, cluster, node, operation, "{self}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeName {
        NodeName::new(name).expect("valid")
    }

    #[test]
    fn sentences_are_sentences() {
        let reason = Reason::about(&node("db1"), ReasonCode::PostgresDown, "postmaster ended");
        let operation = OperationId("0190".to_owned());
        let events = [
            Event::PrimaryLost { node: node("db1"), reasons: vec![reason.clone()] },
            Event::DecisionChanged { intent: Intent::Hold, reasons: vec![reason.clone()], blocked_by: vec![reason] },
            Event::StepEnded {
                operation: operation.clone(),
                kind: "failover",
                step: StepName::AdvanceEpoch,
                outcome: StepOutcome::Unknown,
                took: Duration::from_millis(12),
                error: Some("the store did not answer.".to_owned()),
            },
            Event::MembershipChanged { synchronous: vec![], eligible: vec![node("db2"), node("db3")] },
            Event::Resumed { who: None },
        ];
        for event in &events {
            let sentence = event.sentence();
            assert!(sentence.ends_with('.') && !sentence.ends_with(".."), "{sentence:?}");
            assert!(sentence.starts_with(|first: char| first.is_uppercase()), "{sentence:?}");
            assert!(!sentence.contains('\n'), "{sentence:?}");
        }
        assert_eq!(events[0].sentence(), "Primary db1 is lost because of: db1: postgres down (postmaster ended).");
        assert_eq!(
            events[2].sentence(),
            "Step advance epoch of the failover has an unknown outcome after 0.012 s: the store did not answer."
        );
        assert_eq!(events[3].sentence(), "Commits wait for no standby; every confirmed commit is held by db2, db3.");
    }

    #[test]
    fn a_row_has_what_the_event_is_about() {
        let event = Event::OperationEnded {
            operation: OperationId("0190".to_owned()),
            kind: "failover",
            node: node("db2"),
            outcome: OperationStatus::Stuck,
            took: Duration::from_secs(3),
            message: Some("nobody answers".to_owned()),
        };
        let row = event.to_row(&ClusterName::new("main").expect("valid"), Epoch(4), WallTime(5));
        assert_eq!((row.event.as_str(), row.severity.as_str()), ("operation_ended", "error"));
        assert_eq!((row.node, row.operation), (Some(node("db2")), Some(OperationId("0190".to_owned()))));
        assert_eq!(row.message, "The failover of db2 is stuck after 3.000 s and needs an operator: nobody answers.");
    }
}
