//! What is expected of nodes: by the model, and by their own agents' numbers.
//!
//! A series is there only while somebody can say.

use std::time::Duration;

use super::{ControllerMetrics, show_seconds};
use crate::domain::ids::{ClusterName, NodeName};
use crate::domain::risk::{ModelName, Resource};

impl ControllerMetrics {
    /// Shows what is expected of a node.
    pub fn show_risk(&self, cluster: &ClusterName, node: &NodeName, risk: Option<f64>, is_alarmed: bool) {
        let labels = [cluster.as_str(), node.as_str()];
        match risk {
            Some(risk) => self.risk.with_label_values(&labels).set(risk),
            // Fails where there was no series, which is what is wanted.
            None => drop(self.risk.remove_label_values(&labels)),
        }
        self.risk_alarm.with_label_values(&labels).set(is_alarmed.into());
    }

    /// Shows how long a resource of a node lasts; `None`: nobody can say, or beyond the horizon.
    pub fn show_exhaustion(&self, cluster: &ClusterName, node: &NodeName, resource: Resource, left: Option<Duration>) {
        show_seconds(&self.exhaustion, &[cluster.as_str(), node.as_str(), resource.label()], left);
    }

    /// Shows the model that scores; `None`: none does.
    pub fn show_model(&self, model: Option<&ModelName>) {
        self.model.reset();
        if let Some(model) = model {
            self.model.with_label_values(&[model.name.as_str(), model.version.as_str()]).set(1);
        }
    }
}
