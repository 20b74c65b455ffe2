//! Settings of the way in for alerts.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::duration::DurationText;
use super::error::Violation;
use crate::domain::alert::{AlertAction, AlertPolicy, AlertRoute};

/// `[webhook]`: what is done about alerts that Alertmanager posts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct WebhookSection {
    /// What began longer ago moves nothing any more.
    #[serde(with = "super::duration")]
    #[schema(value_type = DurationText)]
    pub max_age: Duration,
    /// `[[webhook.route]]`, in their order.
    #[serde(rename = "route", skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<AlertRoute>,
}

impl Default for WebhookSection {
    fn default() -> Self {
        Self { max_age: AlertPolicy::default().max_age, routes: Vec::new() }
    }
}

impl WebhookSection {
    /// As the controller needs it.
    pub fn policy(&self) -> AlertPolicy {
        AlertPolicy { routes: self.routes.clone(), max_age: self.max_age }
    }

    /// The first rule that is broken; `sequences` are the names that there are.
    pub(super) fn violation(&self, sequences: &[&str], has_predictor: bool) -> Result<(), Violation> {
        if self.max_age.is_zero() {
            return Err(Violation::at("webhook.max_age", "must be more than 0s"));
        }
        for (index, route) in self.routes.iter().enumerate() {
            let key = |name: &str| format!("webhook.route.{index}.{name}");
            if route.action == AlertAction::Retrain && !has_predictor {
                return Err(Violation::at(
                    &key("action"),
                    "retrain needs [predictor]: nothing is predicted without it",
                ));
            }
            match (route.action, &route.sequence) {
                (AlertAction::Sequence, None) => {
                    return Err(Violation::at(&key("sequence"), "missing: name the sequence that is run"));
                }
                (AlertAction::Sequence, Some(name)) if !sequences.contains(&name.as_str()) => {
                    let known =
                        if sequences.is_empty() { "none is configured".to_owned() } else { sequences.join(", ") };
                    return Err(Violation::at(&key("sequence"), format!("there is no sequence {name:?}: {known}")));
                }
                (action, Some(_)) if action != AlertAction::Sequence => {
                    return Err(Violation::at(&key("sequence"), format!("{action} takes none: take it out")));
                }
                _ => {}
            }
            let moves = matches!(route.action, AlertAction::Failover | AlertAction::Switchover);
            if moves && route.labels.is_empty() {
                let problem = "missing: a route that moves the primary names the alerts it is for, as in \
                               { alertname = \"StormglassPrimaryLost\" }";
                return Err(Violation::at(&key("match"), problem));
            }
        }
        Ok(())
    }
}
