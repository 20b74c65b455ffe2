//! The sentences of events: what happened, to whom, why, in words that need no knowledge of the code.
//!
//! Nothing parses them: machines use names, fields and metrics.

use std::fmt;
use std::time::Duration;

use super::event::{Event, StepOutcome};
use crate::domain::ids::NodeName;
use crate::domain::operation::OperationStatus;
use crate::domain::plan::{Intent, Reason};

impl fmt::Display for Event {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::ControllerStarted { controller, version } => {
                write!(formatter, "Controller {controller} (version {version}) keeps the cluster from now on.")
            }
            Event::PrimaryLost { node, reasons } => {
                write!(formatter, "Primary {node} is lost{}.", because(reasons))
            }
            Event::PrimaryEstablished { node, epoch } => {
                write!(formatter, "Node {node} is the primary in epoch {epoch} and accepts writes.")
            }
            Event::DecisionChanged { intent, reasons, blocked_by } => {
                let intent = match intent {
                    Intent::Hold => "to change nothing".to_owned(),
                    Intent::UpdateRecord { record } => format!("to store record {}", record.number),
                    Intent::Start { operation } => {
                        format!("to start a {} on {}", operation.label(), operation.subject())
                    }
                };
                write!(formatter, "The controller decided {intent}{}", because(reasons))?;
                if !blocked_by.is_empty() {
                    write!(formatter, "; more was blocked by: {}", list(blocked_by))?;
                }
                formatter.write_str(".")
            }
            Event::OperationBegan { kind, node, origin, reasons, .. } => {
                write!(formatter, "A {kind} of {node} began ({origin}){}.", because(reasons))
            }
            Event::StepEnded { kind, step, outcome, took, error, .. } => {
                let step = step.label().replace('_', " ");
                let took = seconds(*took);
                match outcome {
                    StepOutcome::Succeeded => write!(formatter, "Step {step} of the {kind} succeeded after {took}")?,
                    StepOutcome::Failed => write!(formatter, "Step {step} of the {kind} failed after {took}")?,
                    StepOutcome::Unknown => {
                        write!(formatter, "Step {step} of the {kind} has an unknown outcome after {took}")?;
                    }
                }
                ending(formatter, error.as_deref())
            }
            Event::OperationEnded { kind, node, outcome, took, message, .. } => {
                let took = seconds(*took);
                match outcome {
                    OperationStatus::Succeeded => write!(formatter, "The {kind} of {node} succeeded after {took}")?,
                    OperationStatus::Stuck => {
                        write!(formatter, "The {kind} of {node} is stuck after {took} and needs an operator")?;
                    }
                    other => write!(formatter, "The {kind} of {node} ended as {} after {took}", other.label())?,
                }
                ending(formatter, message.as_deref())
            }
            Event::NodeStateChanged { node, from, to } => {
                write!(formatter, "Node {node} changed from {from} to {to}.")
            }
            Event::AgentSilent { node, silent } => {
                write!(formatter, "The agent of {node} has not reported for {}.", seconds(*silent))
            }
            Event::AgentHeard { node } => write!(formatter, "The agent of {node} reports."),
            Event::NodeRefused { node, reason } => {
                write!(formatter, "Node {node} cannot be used")?;
                ending(formatter, Some(reason))
            }
            Event::MembershipChanged { synchronous, eligible } => write!(
                formatter,
                "Commits wait for {}; every confirmed commit is held by {}.",
                names(synchronous),
                names(eligible)
            ),
            Event::AloneBegan { node } => write!(
                formatter,
                "Primary {node} confirms commits alone: no standby holds them, and losing {node} would lose them."
            ),
            Event::AloneEnded { node, lasted } => write!(
                formatter,
                "Commits of primary {node} are confirmed by a standby again, after {}.",
                seconds(*lasted)
            ),
            Event::PausedUntil { until, who } => {
                write!(formatter, "Automatic operations are paused until {until}, as {who} asked.")
            }
            Event::Resumed { who: Some(who) } => {
                write!(formatter, "Automatic operations are on again, as {who} asked.")
            }
            Event::Resumed { who: None } => {
                formatter.write_str("Automatic operations are on again: the pause expired.")
            }
            Event::SwitchoverScheduled { at, node, site, who } => {
                write!(formatter, "A switchover is scheduled for {at}")?;
                if let Some(node) = node {
                    write!(formatter, ", to {node}")?;
                }
                if let Some(site) = site {
                    write!(formatter, ", in site {site}")?;
                }
                write!(formatter, " (asked for by {who}).")
            }
            Event::SwitchoverUnscheduled { at, reason } => {
                write!(formatter, "No switchover is scheduled for {at} any more: {reason}.")
            }
            Event::OperatorFenced { node, who } => {
                write!(formatter, "Node {node} is fenced, as {who} asked, until it is unfenced.")
            }
            Event::OperatorUnfenced { node, who } => write!(formatter, "Node {node} is unfenced, as {who} asked."),
            Event::FenceConfirmed { node, epoch } => {
                write!(formatter, "Node {node} can certainly not write any more in epoch {epoch}.")
            }
            Event::LeaseNotRenewed { node, reason } => {
                write!(formatter, "The lease of {node} was not renewed")?;
                ending(formatter, Some(reason))
            }
            Event::ProxyRedirected { proxy, to } => write!(formatter, "Proxy {proxy} leads writes to {to}."),
            Event::ProxyFailed { proxy, problem } => {
                write!(formatter, "Proxy {proxy} does not follow")?;
                ending(formatter, Some(problem))
            }
            Event::NameFollows { name, values, site } => {
                write!(formatter, "The name {name} leads to {}, as the primary is in site {site}.", values.join(", "))
            }
            Event::NameUndone { name, problem } => {
                write!(formatter, "The name {name} does not follow the primary yet")?;
                ending(formatter, Some(problem))
            }
            Event::RetrainingProgressed { progress, .. } => {
                write!(formatter, "The retraining goes on")?;
                ending(formatter, Some(progress))
            }
            Event::NotificationFailed { channel, problem } => {
                write!(formatter, "The notification channel {channel} does not take messages")?;
                ending(formatter, Some(problem))
            }
            Event::StrainBegan { reason } => {
                formatter.write_str("The cluster is under strain")?;
                ending(formatter, Some(&reason.to_string()))
            }
            Event::StrainEnded { node: Some(node), code } => {
                write!(formatter, "The strain on {node} is over: {}.", code.label().replace('_', " "))
            }
            Event::StrainEnded { node: None, code } => {
                write!(formatter, "The strain is over: {}.", code.label().replace('_', " "))
            }
            Event::BackupFailed { node, problem } => {
                write!(formatter, "The backup of {node} did not end well")?;
                ending(formatter, Some(problem))
            }
            Event::DrillFailed { node, problem } => {
                write!(
                    formatter,
                    "The drill on {node} did not end well, so nobody knows whether the cluster could be restored"
                )?;
                ending(formatter, Some(problem))
            }
            Event::DrillPassed { node, rto, rpo } => write!(
                formatter,
                "The drill on {node} ended well: restored and checked in {}, and a total loss would have cost {}.",
                seconds(*rto),
                seconds(*rpo)
            ),
            Event::RpoViolated { problem } => {
                formatter.write_str("A total loss would cost more than the cluster is promised")?;
                ending(formatter, Some(problem))
            }
            Event::RpoKept { lasted } => write!(
                formatter,
                "A total loss would cost no more than the cluster is promised, again after {}.",
                seconds(*lasted)
            ),
            Event::AlertAccepted { fingerprint, name, action } => {
                write!(formatter, "Alert {name} ({fingerprint}) was accepted for {action}.")
            }
            Event::AlertHandled { fingerprint, name, action, outcome, detail, .. } => {
                write!(formatter, "Alert {name} ({fingerprint}) asked for {action}, which was {outcome}")?;
                ending(formatter, Some(detail.as_str()).filter(|detail| !detail.is_empty()))
            }
            Event::RiskBegan { reason } => {
                formatter.write_str("Trouble is expected")?;
                ending(formatter, Some(&reason.to_string()))
            }
            Event::RiskEnded { node } => write!(formatter, "Trouble is no longer expected of {node}."),
            Event::ModelLoaded { model } => write!(formatter, "Model {model} scores from now on."),
            Event::ModelRefused { problem } => {
                formatter.write_str("A model cannot be used")?;
                ending(formatter, Some(problem))
            }
            Event::PredictorAbstains { problem } => {
                formatter.write_str("Nothing is predicted for the time being")?;
                ending(formatter, Some(problem))
            }
            Event::PredictorResumed { model } => write!(formatter, "Risks are predicted again, by model {model}."),
            Event::StoreFailed { problem } => {
                formatter.write_str("The store did not take a write")?;
                ending(formatter, Some(problem))
            }
        }
    }
}

fn because(reasons: &[Reason]) -> String {
    if reasons.is_empty() { String::new() } else { format!(" because of: {}", list(reasons)) }
}

fn list(reasons: &[Reason]) -> String {
    reasons.iter().map(Reason::to_string).collect::<Vec<_>>().join("; ")
}

fn names(nodes: &[NodeName]) -> String {
    if nodes.is_empty() {
        return "no standby".to_owned();
    }
    nodes.iter().map(NodeName::as_str).collect::<Vec<_>>().join(", ")
}

fn seconds(duration: Duration) -> String {
    format!("{:.3} s", duration.as_secs_f64())
}

/// The rest of a sentence: a colon and what went wrong, if anything did, and one full stop.
fn ending(formatter: &mut fmt::Formatter<'_>, detail: Option<&str>) -> fmt::Result {
    match detail.map(|detail| detail.trim().trim_end_matches('.')).filter(|detail| !detail.is_empty()) {
        Some(detail) => write!(formatter, ": {detail}."),
        None => formatter.write_str("."),
    }
}
