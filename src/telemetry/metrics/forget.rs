//! What happens to the series of a cluster that is kept no longer: an old value would be taken for a present one.
//!
//! Series without the label `cluster` are never touched.

use std::collections::HashMap;
use std::sync::PoisonError;

use prometheus::core::{Collector, MetricVec, MetricVecBuilder};

use super::ControllerMetrics;
use crate::domain::ids::ClusterName;

impl ControllerMetrics {
    /// Takes out every series of a cluster that is kept no longer. What it had counted is gone with it.
    pub fn forget_cluster(&self, cluster: &ClusterName) {
        let cluster = cluster.as_str();
        for gauges in [
            &self.health,
            &self.epoch,
            &self.record_number,
            &self.eligible,
            &self.confirming_alone,
            &self.automation,
            &self.node_up,
            &self.node_role,
            &self.lag_bytes,
            &self.proxy_agrees,
            &self.name_agrees,
            &self.strain,
            &self.risk_alarm,
        ] {
            forget(gauges, cluster);
        }
        for gauges in [&self.lease_remaining, &self.report_age, &self.readiness, &self.risk, &self.exhaustion] {
            forget(gauges, cluster);
        }
        forget(&self.alone_seconds, cluster);
        self.alone_shown.lock().unwrap_or_else(PoisonError::into_inner).remove(cluster);
        self.backups.forget_cluster(cluster);
    }
}

/// Takes out what has the label `cluster` with this value.
pub(in crate::telemetry) fn forget<T: MetricVecBuilder>(series: &MetricVec<T>, cluster: &str) {
    for family in series.collect() {
        for metric in family.get_metric() {
            let labels: HashMap<&str, &str> =
                metric.get_label().iter().map(|label| (label.name(), label.value())).collect();
            if labels.get("cluster") == Some(&cluster) {
                // Fails where somebody took it out meanwhile, which is what is wanted.
                drop(series.remove(&labels));
            }
        }
    }
}
