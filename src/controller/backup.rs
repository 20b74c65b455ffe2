//! Backups, drills and restores as the controller's shell sees them: answers to people, the schedule, the state of the repository.
//!
//! The loop is never waited for by the repository: a task of its own asks agents, and begins operations by the same way as a person.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeZone as _;
use tokio::sync::{mpsc, oneshot};

use super::ControllerParts;
use super::event_loop::{Event, Glance};
use crate::api::wire::VerifiedBackup;
use crate::config::backup::{ControllerBackupSection, Job};
use crate::decide::alert;
use crate::decide::request::Request;
use crate::domain::backup::{BackupType, DrillMark, Repository, label_of, manifest_of};
use crate::domain::clock::{Moment, WallTime};
use crate::domain::epoch::Epoch;
use crate::domain::ids::{ClusterName, NodeName, OperationId};
use crate::domain::operation::{Operation, OperationKind, OperationStatus, StepName, StepState};
use crate::domain::readiness::{BackupFacts, RepositoryFacts};
use crate::domain::view::View;
use crate::ports::{Clock, ControlError, NodeControl, Store};
use crate::telemetry::backup_metrics::DrillFigures;
use crate::telemetry::event as telling;
use crate::telemetry::metrics::ControllerMetrics;

/// Between two looks at the schedule.
const TICK: Duration = Duration::from_secs(1);
/// One agent's answer about the repository, which may be on the other side of the world.
const LIST_TIMEOUT: Duration = Duration::from_secs(60);
/// The same where a person waits.
pub(super) const LIST_TIMEOUT_FOR_PEOPLE: Duration = Duration::from_secs(6);
/// A cluster that is not ready is asked again after this.
const READY_PAUSE: Duration = Duration::from_secs(5);
/// How many operations are looked through for what was verified, and for the last drill.
pub(super) const LOOKED_THROUGH: usize = 500;
/// Manifests of so many backups are compared; a journal must not grow without end.
const MANIFESTS_CARRIED: usize = 64;
/// Attempts at one scheduled job; then the next time of the schedule is waited for.
const ATTEMPTS_MAX: u32 = 5;

/// What an operation of these kinds is for, and what to expect of it.
pub(super) fn words(operation: &OperationKind) -> (String, Vec<String>) {
    match operation {
        OperationKind::Backup { node, backup_type } => (
            format!("{backup_type} backup of {node}"),
            vec!["it is read back afterwards; the cluster goes on".to_owned()],
        ),
        OperationKind::Drill { node, .. } => (
            format!("drill on {node}"),
            vec![
                "the newest backup is restored to a directory that nobody uses, checked, and removed".to_owned(),
                "the cluster goes on".to_owned(),
            ],
        ),
        OperationKind::Restore { node, target, into: Some(directory), .. } => (
            format!("copy in {directory} on {node}, restored to {target}"),
            vec!["the cluster goes on, and nothing of it is touched".to_owned()],
        ),
        OperationKind::Restore { from, node, target, into: None, .. } => (
            format!("restore of the cluster on {node} to {target}"),
            vec![
                format!("{from} is fenced: nobody can write until {node} has been restored and promoted"),
                "commits after the target are not in the restored data".to_owned(),
                "the data of every node are put aside, not removed: they take room until you remove them".to_owned(),
                "the other nodes are cloned anew".to_owned(),
            ],
        ),
        other => (other.label().to_owned(), Vec::new()),
    }
}

/// What the journals say of backups that were read back.
pub(super) fn verified(operations: &[Operation]) -> BTreeMap<String, VerifiedBackup> {
    let mut found = BTreeMap::new();
    for operation in operations {
        let Some(event) = operation.last(StepName::VerifyBackup) else { continue };
        let StepState::Succeeded { output } = &event.state else { continue };
        let note = output.note.clone().unwrap_or_default();
        if let Some(label) = label_of(&note) {
            let verified = VerifiedBackup { at: event.wall, operation: operation.id.0.clone(), note: note.clone() };
            found.insert(label.to_owned(), verified);
        }
    }
    found
}

/// SHA-256 of the manifests of those backups, by label: what a restore must find again.
pub(super) fn manifests<'a>(operations: impl Iterator<Item = &'a Operation>) -> BTreeMap<String, String> {
    let noted = operations.filter_map(|operation| operation.output(StepName::VerifyBackup)?.note.as_deref());
    noted.filter_map(|note| Some((label_of(note)?.to_owned(), manifest_of(note)?.to_owned()))).collect()
}

/// Those of them that a restore carries along: labels begin with the time, and nobody keeps more backups.
pub(super) fn newest_manifests(manifests: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    manifests.iter().rev().take(MANIFESTS_CARRIED).map(|(label, digest)| (label.clone(), digest.clone())).collect()
}

/// What the journals say of backups and drills, for the doctor. `operations` may be in any order.
pub(super) fn facts(operations: &[Operation]) -> BackupFacts {
    let newest = |is_wanted: fn(&OperationKind) -> bool| {
        let ended = |operation: &&Operation| is_wanted(&operation.kind) && operation.ended_wall.is_some();
        let counts = |operation: &&Operation| operation.status != OperationStatus::Cancelled;
        operations.iter().filter(ended).filter(counts).max_by_key(|operation| operation.ended_wall)
    };
    let failure = |operation: Option<&Operation>| {
        let failed = operation.filter(|operation| operation.status != OperationStatus::Succeeded)?;
        Some(failed.message.clone().unwrap_or_else(|| failed.status.label().to_owned()))
    };
    let success = |is_wanted: fn(&OperationKind) -> bool| {
        let good =
            |operation: &&Operation| is_wanted(&operation.kind) && operation.status == OperationStatus::Succeeded;
        operations.iter().filter(good).filter_map(|operation| operation.ended_wall).max()
    };
    let is_backup = |kind: &OperationKind| matches!(kind, OperationKind::Backup { .. });
    let is_drill = |kind: &OperationKind| matches!(kind, OperationKind::Drill { .. });
    BackupFacts {
        last_success: success(is_backup),
        last_failure: failure(newest(is_backup)),
        // The recovery point counts from the newest WAL, which has its own metric and alert.
        objective_seconds: None,
        last_drill: success(is_drill),
        last_drill_failure: failure(newest(is_drill)),
        repository: None,
    }
}

/// Adds what has just ended.
pub(super) fn remember(facts: &mut BackupFacts, operation: &Operation) {
    let fresh = self::facts(std::slice::from_ref(operation));
    match operation.kind {
        OperationKind::Backup { .. } => {
            facts.last_success = fresh.last_success.max(facts.last_success);
            if operation.status != OperationStatus::Cancelled {
                facts.last_failure = fresh.last_failure;
            }
        }
        OperationKind::Drill { .. } => {
            facts.last_drill = fresh.last_drill.max(facts.last_drill);
            if operation.status != OperationStatus::Cancelled {
                facts.last_drill_failure = fresh.last_drill_failure;
            }
        }
        _ => {}
    }
}

/// What a drill measured, by its journal.
pub(super) fn figures(operation: &Operation) -> Option<DrillFigures> {
    if operation.status != OperationStatus::Succeeded || !matches!(operation.kind, OperationKind::Drill { .. }) {
        return None;
    }
    let mark: DrillMark = operation.output(StepName::MarkLedger)?.note.as_deref()?.parse().ok()?;
    let began = operation.journal.iter().find(|event| event.step == StepName::RestoreCopy)?.wall;
    let checked = operation.last(StepName::CheckData)?.wall;
    Some(DrillFigures {
        rto_seconds: checked.since(began).as_secs_f64(),
        rpo_seconds: mark.rpo.as_secs_f64(),
        ended: operation.ended_wall?,
    })
}

/// What is told of an operation of these kinds when it has ended.
pub(super) fn told(operation: &Operation) -> Option<telling::Event> {
    let problem = || operation.message.clone().unwrap_or_else(|| operation.status.label().to_owned());
    let is_bad = !matches!(operation.status, OperationStatus::Succeeded | OperationStatus::Cancelled);
    match &operation.kind {
        OperationKind::Backup { node, .. } if is_bad => {
            Some(telling::Event::BackupFailed { node: node.clone(), problem: problem() })
        }
        OperationKind::Drill { node, .. } if is_bad => {
            Some(telling::Event::DrillFailed { node: node.clone(), problem: problem() })
        }
        OperationKind::Drill { node, .. } => figures(operation).map(|figures| telling::Event::DrillPassed {
            node: node.clone(),
            rto: Duration::from_secs_f64(figures.rto_seconds),
            rpo: Duration::from_secs_f64(figures.rpo_seconds),
        }),
        _ => None,
    }
}

/// Counts what ended.
pub(super) fn count(metrics: &ControllerMetrics, cluster: &ClusterName, operation: &Operation) {
    match (&operation.kind, operation.status) {
        (_, OperationStatus::Cancelled) => {}
        (OperationKind::Backup { backup_type, .. }, status) => {
            metrics.backups.ended(*backup_type, status == OperationStatus::Succeeded);
        }
        (OperationKind::Drill { .. }, _) => metrics.backups.show_drill(cluster, figures(operation)),
        _ => {}
    }
}

/// Asks the agents one after the other, the primary's first: what it says of the newest WAL nobody else knows.
pub(super) async fn list(
    nodes: &dyn NodeControl,
    view: &View,
    timeout: Duration,
) -> Result<(NodeName, Repository), Vec<ControlError>> {
    let holder = view.record.as_ref().map(|record| record.holder.clone());
    let heard = |name: &&NodeName| view.nodes.get(*name).is_some_and(|node| node.report.known().is_some());
    let mut names: Vec<&NodeName> = view.nodes.keys().filter(heard).collect();
    names.sort_by_key(|name| (Some(*name) != holder.as_ref(), (*name).clone()));
    let mut problems = Vec::new();
    for name in names {
        match nodes.backups(name, timeout).await {
            Ok(repository) => return Ok((name.clone(), repository)),
            Err(problem) => problems.push(problem),
        }
    }
    Err(problems)
}

/// A job of the schedule that is due.
struct Due {
    attempts: u32,
    not_before: Moment,
    running: Option<OperationId>,
}

/// The task that keeps the schedule and watches the repository.
pub(super) struct Keeper {
    section: ControllerBackupSection,
    cluster: ClusterName,
    clock: Arc<dyn Clock>,
    nodes: Arc<dyn NodeControl>,
    metrics: Arc<ControllerMetrics>,
    events: mpsc::Sender<Event>,
    due: BTreeMap<Job, Due>,
    scheduled_until: WallTime,
    epoch: Option<Epoch>,
    looked_at: Option<Moment>,
    violated_since: Option<Moment>,
}

impl Keeper {
    /// The keeper of a controller; `None` where backups are not configured.
    pub(super) fn new(parts: &ControllerParts, events: mpsc::Sender<Event>) -> Option<Self> {
        Some(Self {
            section: parts.backup.clone()?,
            cluster: parts.cluster.clone(),
            clock: parts.clock.clone(),
            nodes: parts.node_control.clone(),
            metrics: parts.metrics.clone(),
            events,
            due: BTreeMap::new(),
            scheduled_until: parts.clock.wall(),
            epoch: None,
            looked_at: None,
            violated_since: None,
        })
    }

    /// Runs as long as the loop does.
    pub(super) async fn run(mut self, store: Arc<dyn Store>) {
        // Dashboards go on where the last controller stopped.
        if let Ok(operations) = store.list_operations(&self.cluster, LOOKED_THROUGH).await
            && let Some(last) = operations.iter().find_map(figures)
        {
            self.metrics.backups.remember_drill(&self.cluster, last);
        }
        while !self.events.is_closed() {
            tokio::time::sleep(TICK).await;
            let Some(glance) = self.glance().await else { return };
            self.note_schedule();
            self.note_epoch(&glance.view);
            self.drive(&glance).await;
            self.look(&glance.view).await;
        }
    }

    async fn glance(&self) -> Option<Arc<Glance>> {
        let (reply, answer) = oneshot::channel();
        self.events.send(Event::Look { reply }).await.ok()?;
        answer.await.ok()
    }

    fn want(&mut self, job: Job) {
        let not_before = self.clock.now();
        self.due.entry(job).or_insert(Due { attempts: 0, not_before, running: None });
    }

    /// What the schedule has made due since it was last looked at. What was due while no controller led is not made up for.
    fn note_schedule(&mut self) {
        let now = self.clock.wall();
        let jobs: Vec<Job> = self
            .section
            .schedules
            .iter()
            .filter(|schedule| {
                next_time(&schedule.cron, &self.section.time_zone, self.scheduled_until).is_some_and(|at| at <= now)
            })
            .map(|schedule| schedule.job)
            .collect();
        self.scheduled_until = self.scheduled_until.max(now);
        jobs.into_iter().for_each(|job| self.want(job));
    }

    /// A new primary is a new timeline: what it wrote is restored sooner from a backup of its own.
    fn note_epoch(&mut self, view: &View) {
        let Some(record) = view.record.as_ref().filter(|record| record.holder_confirmed) else { return };
        let before = self.epoch.replace(record.epoch);
        if self.section.after_failover && before.is_some_and(|before| before < record.epoch) {
            self.want(Job::Incr);
        }
    }

    async fn drive(&mut self, glance: &Glance) {
        let now = self.clock.now();
        let jobs: Vec<Job> = self.due.keys().copied().collect();
        for job in jobs {
            let Some(due) = self.due.get_mut(&job) else { continue };
            if let Some(running) = &due.running {
                let found = glance.operations.iter().find(|operation| operation.id == *running);
                match found.map(|operation| operation.status) {
                    Some(status) if !status.is_final() => {}
                    Some(OperationStatus::Succeeded | OperationStatus::Cancelled) | None => drop(self.due.remove(&job)),
                    Some(_) if due.attempts >= ATTEMPTS_MAX => {
                        tracing::error!(?job, "a scheduled job is given up until its next time");
                        self.due.remove(&job);
                    }
                    Some(_) => (due.running, due.not_before) = (None, now.plus(self.section.retry_after)),
                }
                continue;
            }
            // It waits for the end of a pause: what is due is not forgotten.
            if now < due.not_before || alert::is_paused(&glance.view) {
                continue;
            }
            let request = match job.backup_type() {
                Some(backup_type) => Request::Backup { backup_type, from_standby: self.section.from_standby },
                None => Request::Drill,
            };
            let (reply, answer) = oneshot::channel();
            let ask = Event::Ask { request, origin: "schedule".to_owned(), dry_run: false, reply };
            if self.events.send(ask).await.is_err() {
                return;
            }
            let Ok((_, operation)) = answer.await else { return };
            match operation {
                Some(operation) => (due.running, due.attempts) = (Some(operation.id), due.attempts + 1),
                // It waits for a ready cluster.
                None => due.not_before = now.plus(READY_PAUSE),
            }
        }
    }

    /// Looks at the repository, and says when a total loss would cost too much.
    async fn look(&mut self, view: &View) {
        let now = self.clock.now();
        if self.looked_at.is_some_and(|at| now.since(at) < self.section.look_interval) {
            return;
        }
        self.looked_at = Some(now);
        let seen = list(self.nodes.as_ref(), view, LIST_TIMEOUT).await;
        let wall = self.clock.wall();
        let problem = match &seen {
            Ok((_, repository)) => violation(repository, wall, self.section.rpo),
            Err(problems) => {
                let words: Vec<String> = problems.iter().map(ToString::to_string).collect();
                Some(if words.is_empty() { "no agent is heard".to_owned() } else { words.join("; ") })
            }
        };
        let repository = seen.as_ref().ok().map(|(_, repository)| repository);
        self.metrics.backups.show_repository(&self.cluster, repository, problem.is_some());
        let found = match (repository, &problem) {
            (Some(repository), _) => {
                Ok(RepositoryFacts { backups: repository.backups.len(), continuity: repository.continuity.clone() })
            }
            (None, problem) => Err(problem.clone().unwrap_or_default()),
        };
        // The loop may have ended.
        let _ = self.events.send(Event::Repository(found)).await;
        let told = match (problem, self.violated_since) {
            (Some(problem), None) => {
                self.violated_since = Some(now);
                telling::Event::RpoViolated { problem }
            }
            (None, Some(since)) => {
                self.violated_since = None;
                telling::Event::RpoKept { lasted: now.since(since) }
            }
            _ => return,
        };
        // The loop may have ended.
        let _ = self.events.send(Event::Tell(Box::new(told))).await;
    }
}

/// Why a total loss would cost more than `rpo`.
fn violation(repository: &Repository, now: WallTime, rpo: Duration) -> Option<String> {
    if repository.backups.is_empty() {
        let problem = repository.problem.clone().unwrap_or_else(|| "there is no backup".to_owned());
        return Some(format!("nothing can be restored: {problem}"));
    }
    match repository.newest_wal_at {
        None => Some("nobody knows when WAL last arrived in the repository".to_owned()),
        Some(at) if now.since(at) > rpo => {
            Some(format!("the newest WAL in the repository is of {at}: see archive_command in PostgreSQL's log"))
        }
        Some(_) => None,
    }
}

/// The first time after `after` that a cron expression names in a time zone; `None` if there is none.
pub(super) fn next_time(cron: &str, time_zone: &str, after: WallTime) -> Option<WallTime> {
    let cron: croner::Cron = cron.parse().ok()?;
    let zone: chrono_tz::Tz = time_zone.parse().ok()?;
    let from = zone.timestamp_micros(after.0).single()?;
    let next = cron.find_next_occurrence(&from, false).ok()?;
    Some(WallTime(next.timestamp_micros()))
}

/// The type of a backup that nobody named.
pub(super) const TYPE_DEFAULT: BackupType = BackupType::Incr;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> WallTime {
        WallTime::try_from(text.to_owned()).expect("a time")
    }

    #[test]
    fn schedules_follow_the_clocks_of_their_time_zone() {
        let next = |cron: &str, zone: &str, after: &str| next_time(cron, zone, at(after));
        assert_eq!(next("30 2 * * *", "UTC", "2026-11-28T01:00:00Z"), Some(at("2026-11-28T02:30:00Z")));
        assert_eq!(next("30 2 * * *", "UTC", "2026-11-28T02:30:00Z"), Some(at("2026-11-29T02:30:00Z")), "not twice");
        assert_eq!(next("0 3 * * *", "Europe/Berlin", "2026-07-01T00:00:00Z"), Some(at("2026-07-01T01:00:00Z")));
        assert_eq!(next("0 3 * * *", "Europe/Berlin", "2026-12-01T00:00:00Z"), Some(at("2026-12-01T02:00:00Z")));
        // Half past two does not exist on the day on which the clocks are put forward.
        let spring = next("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z").expect("some time");
        assert!(spring > at("2026-03-29T00:00:00Z") && spring < at("2026-03-29T02:00:00Z"), "{spring}");
        assert_eq!(next("0 4 * * sun", "UTC", "2026-11-28T12:00:00Z"), Some(at("2026-11-29T04:00:00Z")));
    }

    #[test]
    fn an_old_or_unknown_end_of_the_wal_is_a_violation() {
        let set: crate::domain::backup::BackupSet = serde_json::from_value(serde_json::json!({
            "label": "20261128-143346F", "backup_type": "full", "began": "2026-11-28T14:33:46Z",
            "ended": "2026-11-28T14:33:53Z", "start_lsn": "0/2000028", "stop_lsn": "0/2000100",
            "first_segment": "000000010000000000000002", "last_segment": "000000010000000000000002",
            "database_bytes": 1, "repository_bytes": 1, "reference": [], "major_version": 15, "has_error": false
        }))
        .expect("a backup");
        let seen = |newest: Option<&str>| Repository {
            backups: vec![set.clone()],
            newest_wal_at: newest.map(at),
            ..Repository::default()
        };
        let (now, rpo) = (at("2026-11-28T15:00:00Z"), Duration::from_secs(300));
        assert_eq!(violation(&seen(Some("2026-11-28T14:58:00Z")), now, rpo), None);
        assert!(violation(&seen(Some("2026-11-28T14:50:00Z")), now, rpo).expect("old").contains("archive_command"));
        assert!(violation(&seen(None), now, rpo).is_some());
        assert!(violation(&Repository::default(), now, rpo).expect("empty").contains("nothing can be restored"));
    }
}
