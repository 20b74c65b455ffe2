//! The data of all nodes are destroyed, and the cluster is brought back from the repository to a point in time.
//!
//! Lost is what was acknowledged before the target and is not there, and what was acknowledged after the restore and is not. What was
//! acknowledged between the target and the end of the data is gone as it was wished: nobody counts it.

use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::process::Signal;

use super::recovery::{wait, wait_until_redundant};
use super::{STEADY, STEADY_PAUSE, STEADY_TIMEOUT, audit_rows, restore_steps};
use crate::api::wire::{ClusterStatus, RestoreRequest};
use crate::domain::backup::BackupType;
use crate::domain::clock::{Moment, WallTime};
use crate::domain::ids::OperationId;
use crate::domain::operation::{Operation, OperationKind, OperationStatus};
use crate::lab::client::{Client, Session};
use crate::lab::clock;
use crate::lab::ledger::{self, Acknowledgement};
use crate::lab::process::postgres_family;
use crate::lab::progress::Progress;
use crate::lab::report::{FaultReport, REPORT_SCHEMA_VERSION, Report, RestoreReport};
use crate::lab::up::Lab;
use crate::lab::{naming, phases};

/// A small database is backed up, and restored, within this on a busy machine.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(120);
/// By then every agent has found out that its data are gone.
const DESTRUCTION_TIMEOUT: Duration = Duration::from_secs(30);
/// A failover that was begun meanwhile finds nobody and ends.
const ACCEPTED_TIMEOUT: Duration = Duration::from_secs(60);
/// Two nodes are cloned.
const CLONE_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);
/// Writes go on for so long between the target and the end.
const AFTER_TARGET: Duration = Duration::from_secs(1);

/// The moment to which the cluster is restored.
#[derive(Clone, Copy)]
struct Target {
    /// On the primary's clock.
    wall: WallTime,
    /// On this host's, at that time or a little before.
    at: Moment,
}

/// Runs the scenario.
pub(super) async fn run(lab: &mut Lab, seed: u64, progress: Progress) -> anyhow::Result<Report> {
    let before = wait_until_redundant(lab, clock::now().plus(STEADY_TIMEOUT)).await?;
    let primary = before.primary.clone().context("a redundant cluster has a primary")?;
    let name = format!("restore-{:x}", uuid::Uuid::now_v7().as_u128());
    let address = lab.layout().node(&primary)?.postgres.clone();
    let began = clock::now();
    let client = Client::start(lab.layout(), &address, &name).await?;
    client.steady(STEADY, STEADY_PAUSE, clock::now().plus(STEADY_TIMEOUT)).await?;

    let step = progress.step("full backup while the client writes");
    back_up(lab, BackupType::Full).await?;
    step.done();
    client.steady(STEADY, STEADY_PAUSE, clock::now().plus(STEADY_TIMEOUT)).await?;
    let target = target(lab).await?;
    tokio::time::sleep(AFTER_TARGET).await;
    let step = progress.step("WAL after the target is archived, and another backup made");
    back_up(lab, BackupType::Incr).await?;
    step.done();

    let step = progress.step("SIGKILL for every PostgreSQL, and rm -rf of every data directory");
    let destroyed_at = clock::now();
    destroy(lab).await?;
    step.done();
    let step = progress.step("restore to the target");
    let asked_at = clock::now();
    let operation = restore(lab, target).await?;
    let took = ended(&operation);
    step.done_as(&format!("restore to the target: {}", operation.message.clone().unwrap_or_default()));
    let step = progress.step("the other nodes are cloned");
    let healed = wait_until_redundant(lab, clock::now().plus(CLONE_TIMEOUT)).await;
    let healed_at = clock::now();
    step.done();
    let steady = client.steady(STEADY, STEADY_PAUSE, clock::now().plus(STEADY_TIMEOUT)).await;
    let stopped_at = clock::now();
    let record = client.stop().await?;
    let rows = audit_rows(lab, &name).await;
    let mut history = lab.controller.history().await.unwrap_or_default();
    history.retain(|one| one.id == operation.id || one.decided_at >= destroyed_at);

    let all = record.all();
    // What was acknowledged on the restored timeline did not come from the former data.
    let restored = healed.as_ref().ok().and_then(|status| status.timeline);
    let counts = |one: &&Acknowledgement| one.at <= target.at || Some(one.timeline) == restored;
    let counted: Vec<Acknowledgement> = all.iter().filter(counts).cloned().collect();
    let wished = all.len() - counted.len();
    let audit = rows.as_ref().ok().map(|rows| ledger::audit(&counted, rows));
    let after = healed.as_ref().ok();
    let outage = ledger::longest_gap(&record.proxied, destroyed_at, healed_at, stopped_at);
    let phases = phases::phases(&operation, asked_at);
    let fault = FaultReport {
        fault: "destroy-all-data".to_owned(),
        write_outage_seconds: outage.map(|gap| gap.as_secs_f64()),
        redundant_after_seconds: after.map(|_| healed_at.since(destroyed_at).as_secs_f64()),
        phases: phases.clone(),
        steps: phases::steps(&operation),
        old_primary: Some(primary.clone()),
        new_primary: after.and_then(|status| status.primary.clone()),
        epoch: after.map(|status| status.epoch),
        lease_renewals_by_standbys: None,
        prediction: None,
    };
    let names: Vec<_> = lab.layout().nodes.iter().map(|node| node.name.clone()).collect();
    let mut sequence = phases::steps(&operation);
    sequence.extend(restore_steps(&history, destroyed_at, &names.iter().collect::<Vec<_>>()));
    let before_target = all.iter().filter(|one| one.at <= target.at).count() as u64;
    let mut report = Report {
        schema_version: REPORT_SCHEMA_VERSION,
        scenario: "restore".to_owned(),
        seed,
        write_outage_seconds: fault.write_outage_seconds,
        phases,
        acked_commits: all.len() as u64,
        lost_commits: audit.map(|audit| audit.lost),
        duplicate_commits: audit.map(|audit| audit.duplicate),
        failed_commits: record.failed,
        refused_connections: record.refused_connections,
        unanswered_connections: record.unanswered_connections,
        two_writers: ledger::two_writers(&all),
        old_primary: Some(primary),
        new_primary: fault.new_primary.clone(),
        epoch: fault.epoch,
        rejoined: after.is_some_and(|status| names.iter().all(|node| super::recovery::serves(status, node))),
        restore_sequence: sequence,
        redundant_after_seconds: fault.redundant_after_seconds,
        load_commits_per_second: ledger::rate_per_second(&record.proxied, began, target.at),
        client_errors: record.errors.clone(),
        restore: Some(RestoreReport {
            target: target.wall,
            rto_seconds: took.map(|took| took.as_secs_f64()),
            commits_before_target: before_target,
            commits_after_target: wished as u64,
        }),
        faults: vec![fault],
        ..Report::default()
    };
    report.dns_answer = naming::answer(lab.layout()).await;
    report.failures = failures(&report, &before);
    report.failures.extend(healed.err().map(|error| format!("{error:#}")));
    report.failures.extend(steady.err().map(|error| format!("{error:#}")));
    report.failures.extend(rows.err().map(|error| format!("the restored primary could not be read: {error:#}")));
    report.succeeded = report.failures.is_empty();
    Ok(report)
}

fn failures(report: &Report, before: &ClusterStatus) -> Vec<String> {
    let mut failures = Vec::new();
    let mut must = |holds: bool, otherwise: &str| {
        if !holds {
            failures.push(otherwise.to_owned());
        }
    };
    let restore = report.restore.as_ref();
    must(restore.is_some_and(|it| it.commits_before_target > 0), "no commit was acknowledged before the target");
    must(restore.is_some_and(|it| it.commits_after_target > 0), "no commit was acknowledged between target and end");
    must(
        report.lost_commits == Some(0),
        "commits that were archived before the target, or made after the restore, are missing",
    );
    must(report.duplicate_commits == Some(0), "commits are there more than once");
    must(!report.two_writers, "a commit of an older timeline was acknowledged after the first of a newer one");
    must(report.rejoined, "a node did not come back");
    must(report.epoch > Some(before.epoch), "the epoch did not grow");
    failures
}

fn ended(operation: &Operation) -> Option<Duration> {
    Some(operation.ended_at?.since(operation.decided_at))
}

async fn back_up(lab: &mut Lab, backup_type: BackupType) -> anyhow::Result<()> {
    let deadline = clock::now().plus(OPERATION_TIMEOUT);
    let begun = lab.controller.backup(backup_type).await?.operation.context("no backup was begun")?;
    let ended = follow(lab, &begun.id, deadline).await?;
    if ended.status != OperationStatus::Succeeded {
        bail!("the {backup_type} backup ended as {}: {}", ended.status.label(), ended.message.unwrap_or_default());
    }
    Ok(())
}

async fn follow(lab: &mut Lab, id: &OperationId, deadline: Moment) -> anyhow::Result<Operation> {
    loop {
        lab.reap();
        let missing = match lab.controller.operation(id).await {
            Ok(operation) if operation.status.is_final() => return Ok(operation),
            Ok(operation) => format!("{} is {}", operation.kind.label(), operation.status.label()),
            Err(error) => format!("{error:#}"),
        };
        if clock::now() > deadline {
            bail!("operation {id} has not ended in time: {missing}");
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What the primary's clock says now.
async fn target(lab: &Lab) -> anyhow::Result<Target> {
    let proxy = lab.layout().proxies.first().context("the lab has no proxy")?;
    let session = Session::open(&proxy.write, "lab-target").await.map_err(|error| anyhow::anyhow!("{error}"))?;
    let at = clock::now();
    let question = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
    let rows = session.query(question).await.map_err(|error| anyhow::anyhow!("{error}"))?;
    let text = rows.first().and_then(|row| row.first()).context("the primary does not say what time it is")?;
    Ok(Target { wall: WallTime(text.parse().context("read the primary's time")?), at })
}

/// Kills and removes until every agent says that there are no data: some start PostgreSQL again meanwhile.
async fn destroy(lab: &mut Lab) -> anyhow::Result<()> {
    let deadline = clock::now().plus(DESTRUCTION_TIMEOUT);
    loop {
        for node in lab.layout().nodes.clone() {
            let data = node.data_directory();
            for process in postgres_family(lab.manifest.uid, &data) {
                process.identity.signal(Signal::KILL);
            }
            match std::fs::remove_dir_all(&data) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::debug!(%error, "removed in the next round");
                }
                _ => {}
            }
        }
        lab.reap();
        let is_gone = lab
            .controller
            .status()
            .await
            .is_ok_and(|status| status.nodes.iter().all(|node| node.state == "no data" || node.state == "fenced"));
        let is_removed = lab.layout().nodes.iter().all(|node| !node.data_directory().exists());
        if is_gone && is_removed {
            return Ok(());
        }
        if clock::now() > deadline {
            bail!("the data are not gone in time");
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Asks until nothing else is under way, and follows.
async fn restore(lab: &mut Lab, target: Target) -> anyhow::Result<Operation> {
    let deadline = clock::now().plus(ACCEPTED_TIMEOUT);
    let request = RestoreRequest { to_time: Some(target.wall), ..RestoreRequest::default() };
    let begun = loop {
        match lab.controller.restore(&request).await {
            Ok(reply) => break reply.operation.context("no restore was begun")?,
            Err(error) if clock::now() > deadline => return Err(error.context("the restore was not accepted in time")),
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    };
    debug_assert!(matches!(begun.kind, OperationKind::Restore { .. }));
    let ended = follow(lab, &begun.id, clock::now().plus(OPERATION_TIMEOUT)).await?;
    if ended.status != OperationStatus::Succeeded {
        bail!("the restore ended as {}: {}", ended.status.label(), ended.message.clone().unwrap_or_default());
    }
    // The data must be back before anything is concluded from them.
    wait(lab, clock::now().plus(CLONE_TIMEOUT), |status| match &status.primary {
        Some(_) => Ok(()),
        None => Err("there is no primary".to_owned()),
    })
    .await?;
    Ok(ended)
}
