//! Alerts as somebody else raised them, and what the configuration says to do about each kind.
//!
//! An alert is a witness, never proof: nothing here, and nothing that follows from it, relaxes a guard.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::clock::WallTime;
use super::epoch::Epoch;
use super::ids::OperationId;

/// Whether it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AlertState {
    /// It goes on.
    Firing,
    /// It is over.
    Resolved,
}

/// One alert.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    /// The same for every post about the same thing: a hash of the labels.
    pub fingerprint: String,
    /// Whether it goes on.
    pub state: AlertState,
    /// What it is about.
    pub labels: BTreeMap<String, String>,
    /// For people.
    #[serde(default)]
    pub summary: Option<String>,
    /// When it began, on the clock of whoever raised it.
    pub starts_at: WallTime,
}

impl Alert {
    /// A label's value.
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The label `alertname`; empty where there is none.
    pub fn name(&self) -> &str {
        self.label("alertname").unwrap_or_default()
    }
}

/// What is done about an alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AlertAction {
    /// The primary is replaced, if the controller too finds it lost.
    Failover,
    /// The primary is moved without loss, if both sides are healthy.
    Switchover,
    /// A configured sequence is run.
    Sequence,
    /// The doctor looks at the cluster.
    DrCheck,
    /// A restore is rehearsed.
    Drill,
    /// The model is trained anew.
    Retrain,
    /// People are told.
    Notify,
    /// Nothing.
    Ignore,
}

impl AlertAction {
    /// Every action.
    pub const ALL: [AlertAction; 8] = [
        AlertAction::Failover,
        AlertAction::Switchover,
        AlertAction::Sequence,
        AlertAction::DrCheck,
        AlertAction::Drill,
        AlertAction::Retrain,
        AlertAction::Notify,
        AlertAction::Ignore,
    ];

    /// As the configuration writes it.
    pub fn label(self) -> &'static str {
        match self {
            AlertAction::Failover => "failover",
            AlertAction::Switchover => "switchover",
            AlertAction::Sequence => "sequence",
            AlertAction::DrCheck => "dr-check",
            AlertAction::Drill => "drill",
            AlertAction::Retrain => "retrain",
            AlertAction::Notify => "notify",
            AlertAction::Ignore => "ignore",
        }
    }
}

impl fmt::Display for AlertAction {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.label())
    }
}

/// Values that a label may have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum LabelValues {
    /// This one; `*`: any, if it has the label.
    One(String),
    /// One of these.
    AnyOf(Vec<String>),
}

impl LabelValues {
    /// True if `value` is among them.
    pub fn admit(&self, value: &str) -> bool {
        match self {
            LabelValues::One(wanted) => wanted == "*" || wanted == value,
            LabelValues::AnyOf(wanted) => wanted.iter().any(|wanted| wanted == value),
        }
    }
}

/// `[[webhook.route]]`: alerts with these labels, and what is done about them. The first route that fits counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AlertRoute {
    /// Labels that the alert must have, each with one of its values; none: every alert.
    #[serde(rename = "match", default)]
    pub labels: BTreeMap<String, LabelValues>,
    /// What is done.
    pub action: AlertAction,
    /// Which sequence, where a sequence is run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<String>,
}

impl AlertRoute {
    /// True if the alert has every label.
    pub fn fits(&self, alert: &Alert) -> bool {
        self.labels.iter().all(|(name, values)| alert.label(name).is_some_and(|value| values.admit(value)))
    }
}

/// What is done about alerts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlertPolicy {
    /// In their order.
    pub routes: Vec<AlertRoute>,
    /// What began longer ago moves nothing any more.
    pub max_age: Duration,
}

impl Default for AlertPolicy {
    fn default() -> Self {
        Self { routes: Vec::new(), max_age: Duration::from_secs(3600) }
    }
}

/// An alert that was accepted, as it is stored before the sender is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptedAlert {
    /// The alert.
    pub alert: Alert,
    /// What is to be done.
    pub action: AlertAction,
    /// Which sequence, where a sequence is run.
    #[serde(default)]
    pub sequence: Option<String>,
    /// The epoch in which it came.
    pub epoch: Epoch,
    /// When it came.
    pub received: WallTime,
    /// The token that brought it.
    pub who: String,
    /// What became of it; `None`: not handled yet.
    #[serde(default)]
    pub outcome: Option<String>,
    /// The operation that was begun.
    #[serde(default)]
    pub operation: Option<OperationId>,
}

impl AcceptedAlert {
    /// The same alert in the same epoch is the same wish: it is carried out once. Each sequence that it begins is a wish of its own.
    pub fn key(&self) -> String {
        let wish = format!("{}_{}_{}", self.alert.fingerprint, self.alert.starts_at.0, self.epoch.0);
        match &self.sequence {
            Some(sequence) => format!("{wish}_{sequence}"),
            None => wish,
        }
    }

    /// Who asks for what it asks for, in operations and events.
    pub fn origin(&self) -> String {
        format!("alert:{}", self.alert.fingerprint)
    }
}
