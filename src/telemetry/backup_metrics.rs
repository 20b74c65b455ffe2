//! Metrics of backups and drills. A value that is not known has no series.

use prometheus::{GaugeVec, IntCounterVec, IntGaugeVec, Registry};

use super::metrics::{
    BACKUP_FAILURES, BACKUP_LAST_SUCCESS, BACKUP_NEWEST_WAL, BACKUP_OPERATIONS, BACKUP_REACHABLE, BACKUP_RPO_VIOLATION,
    DRILL_FAILURES, DRILL_LAST_RPO, DRILL_LAST_RTO, DRILL_LAST_SUCCESS, counters, forget, gauges, options, register,
};
use crate::domain::backup::{BackupType, Repository};
use crate::domain::clock::WallTime;
use crate::domain::ids::ClusterName;

/// Every type.
const TYPES: [BackupType; 3] = [BackupType::Full, BackupType::Diff, BackupType::Incr];

/// Counters and gauges of one controller.
pub struct BackupMetrics {
    operations: IntCounterVec,
    failures: IntCounterVec,
    last_success: GaugeVec,
    newest_wal: GaugeVec,
    reachable: IntGaugeVec,
    rpo_violation: IntGaugeVec,
    drill_rto: GaugeVec,
    drill_rpo: GaugeVec,
    drill_last_success: GaugeVec,
    drill_failures: IntCounterVec,
}

/// What a drill measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DrillFigures {
    /// From the beginning of its restore until the data were checked, in seconds.
    pub rto_seconds: f64,
    /// Age of the newest WAL in the repository when it began, in seconds.
    pub rpo_seconds: f64,
    /// When it ended.
    pub ended: WallTime,
}

impl BackupMetrics {
    pub(super) fn new(registry: &Registry) -> Self {
        let seconds = |name: &str, labels: &[&str]| register(registry, GaugeVec::new(options(name), labels));
        let metrics = Self {
            operations: counters(registry, BACKUP_OPERATIONS, &["type"]),
            failures: counters(registry, BACKUP_FAILURES, &["type"]),
            last_success: seconds(BACKUP_LAST_SUCCESS, &["cluster", "type"]),
            newest_wal: seconds(BACKUP_NEWEST_WAL, &["cluster"]),
            reachable: gauges(registry, BACKUP_REACHABLE, &["cluster"]),
            rpo_violation: gauges(registry, BACKUP_RPO_VIOLATION, &["cluster"]),
            drill_rto: seconds(DRILL_LAST_RTO, &["cluster"]),
            drill_rpo: seconds(DRILL_LAST_RPO, &["cluster"]),
            drill_last_success: seconds(DRILL_LAST_SUCCESS, &["cluster"]),
            drill_failures: counters(registry, DRILL_FAILURES, &["cluster"]),
        };
        for one in TYPES {
            metrics.operations.with_label_values(&[one.label()]);
            metrics.failures.with_label_values(&[one.label()]);
        }
        metrics
    }

    /// A backup ended.
    pub fn ended(&self, backup_type: BackupType, succeeded: bool) {
        self.operations.with_label_values(&[backup_type.label()]).inc();
        if !succeeded {
            self.failures.with_label_values(&[backup_type.label()]).inc();
        }
    }

    /// What the repository was seen to hold; `None`: it could not be seen, and what was shown before stays.
    pub fn show_repository(&self, cluster: &ClusterName, repository: Option<&Repository>, is_rpo_violated: bool) {
        let cluster = cluster.as_str();
        self.reachable.with_label_values(&[cluster]).set(repository.is_some().into());
        self.rpo_violation.with_label_values(&[cluster]).set(is_rpo_violated.into());
        let Some(repository) = repository else { return };
        let seconds = |at: WallTime| at.0 as f64 / 1e6;
        for one in TYPES {
            let sets = repository.backups.iter().filter(|set| set.backup_type == one && !set.has_error);
            if let Some(newest) = sets.map(|set| set.ended).max() {
                self.last_success.with_label_values(&[cluster, one.label()]).set(seconds(newest));
            }
        }
        if let Some(at) = repository.newest_wal_at {
            self.newest_wal.with_label_values(&[cluster]).set(seconds(at));
        }
    }

    /// Takes out every series of a cluster that is kept no longer.
    pub(super) fn forget_cluster(&self, cluster: &str) {
        let seconds =
            [&self.last_success, &self.newest_wal, &self.drill_rto, &self.drill_rpo, &self.drill_last_success];
        seconds.into_iter().for_each(|gauges| forget(gauges, cluster));
        forget(&self.reachable, cluster);
        forget(&self.rpo_violation, cluster);
        forget(&self.drill_failures, cluster);
    }

    /// A drill ended: with figures, well.
    pub fn show_drill(&self, cluster: &ClusterName, figures: Option<DrillFigures>) {
        let failures = self.drill_failures.with_label_values(&[cluster.as_str()]);
        match figures {
            Some(figures) => self.remember_drill(cluster, figures),
            None => failures.inc(),
        }
    }

    /// The last one that went well, from before this controller began.
    pub fn remember_drill(&self, cluster: &ClusterName, figures: DrillFigures) {
        let labels = [cluster.as_str()];
        self.drill_rto.with_label_values(&labels).set(figures.rto_seconds);
        self.drill_rpo.with_label_values(&labels).set(figures.rpo_seconds);
        self.drill_last_success.with_label_values(&labels).set(figures.ended.0 as f64 / 1e6);
    }
}
