//! `degrade-primary` and `healthy-load`: faults that grow under load, with the predictor in mode `act` or, for the control, `observe`;
//! and the same load without a fault.
//!
//! One lab a part. What both parts together say is put together in `lab::prediction`.

pub(in crate::lab) mod baselines;
mod growth;
mod load;
pub(in crate::lab) mod samples;
mod squeeze;

use std::time::Duration;

use anyhow::{Context as _, bail};

use super::{audit_rows, recovery, restore_steps};
use crate::api::wire::ClusterStatus;
use crate::domain::clock::{Moment, WallTime};
use crate::domain::ids::NodeName;
use crate::domain::operation::{Operation, OperationKind};
use crate::domain::plan::ReasonCode;
use crate::lab::arguments::{Part, RunArguments, Scenario};
use crate::lab::client::{Client, Habits, Record};
use crate::lab::progress::Progress;
use crate::lab::report::{FaultReport, PredictionReport, REPORT_SCHEMA_VERSION, Report};
use crate::lab::up::Lab;
use crate::lab::{clock, ledger, naming, phases};
use growth::{Confinement, Growth};
use load::Load;
use samples::Incident;

/// Writers open a new connection after so many writes.
const WRITES_PER_CONNECTION: u64 = 40;
/// Steady writes before anything is measured.
const STEADY: Duration = Duration::from_secs(3);
const STEADY_PAUSE: Duration = Duration::from_millis(900);
const STEADY_TIMEOUT: Duration = Duration::from_secs(30);
/// So much longer the predictor may take until it is calm.
const LEARN_TIMEOUT: Duration = Duration::from_secs(130);
/// Scored and without an alarm before the fault begins.
const CALM: Duration = Duration::from_secs(5);
/// Load before the fault in the control, where nothing has to be learnt.
const CONTROL_WARM_UP: Duration = Duration::from_secs(12);
/// A growing fault takes everything in about this time.
const GROWS_FOR: Duration = Duration::from_secs(55);
/// After that it has done its work, or does none.
const GROWTH_PATIENCE: Duration = Duration::from_secs(35);
/// The way back to redundancy.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(45);
/// Between two looks at the controller.
const LOOK: Duration = Duration::from_millis(100);

/// Runs one part of `degrade-primary`, or `healthy-load`.
pub(super) async fn run(
    lab: &mut Lab,
    arguments: &RunArguments,
    seed: u64,
    progress: Progress,
) -> anyhow::Result<Report> {
    let first = recovery::wait_until_redundant(lab, clock::now().plus(STEADY_TIMEOUT)).await?;
    let primary = first.primary.clone().context("a redundant cluster has a primary")?;
    let name = format!("{}-{:x}", arguments.scenario.label(), uuid::Uuid::now_v7().as_u128());
    let node = lab.layout().node(&primary)?.clone();
    let step = progress.step("steady writes and varied load");
    let began = clock::now();
    // No proxy can keep a session of the application across a move of the primary; a transaction pool can.
    let pooled = arguments.scenario == Scenario::DegradePrimary;
    let habits = Habits { reconnect_after: Some(WRITES_PER_CONNECTION), pooled, ..Habits::default() };
    let client = Client::start_with(lab.layout(), &node.postgres, &name, habits).await?;
    let load = Load::start(lab.layout(), seed);
    client.steady(STEADY, STEADY_PAUSE, clock::now().plus(STEADY_TIMEOUT)).await?;
    step.done();
    if arguments.scenario == Scenario::HealthyLoad {
        return healthy(lab, arguments, seed, progress, client, load).await;
    }
    let part = arguments.part.unwrap_or(Part::Act);
    let fault = arguments.fault.context("a part of degrade-primary is about one fault")?;
    let grows_for = arguments.grows_for.unwrap_or(GROWS_FOR);
    let confinement = Confinement::of(lab, fault, &node, grows_for)?;
    let mut failures = Vec::new();
    if part == Part::Act {
        let step = progress.step("the predictor learns what is usual");
        let learnt_from = began.plus(arguments.learning_time().unwrap_or_default());
        match learn(lab, &primary, learnt_from).await {
            Ok(()) => step.done(),
            Err(error) => failures.push(format!("{error:#}")),
        }
    } else {
        tokio::time::sleep(arguments.duration.unwrap_or(CONTROL_WARM_UP)).await;
    }
    let before = lab.controller.status().await?;
    let step = progress.step(fault.words());
    let fault_at = clock::now();
    let growth = Growth::start(lab, fault, &node, grows_for, confinement).await?;
    let seen = watch(lab, &before, &client, part, fault_at.plus(grows_for + GROWTH_PATIENCE), fault_at).await;
    let stopped = growth.stop().await;
    let observed_until = clock::now();
    let history = history(lab).await;
    let decided = decision(&history, fault_at);
    if part == Part::Act && decided.is_none() {
        failures.push(format!("{}: the predictor did not move the primary: {}", fault.label(), seen));
    }
    step.done_as(&format!("{}: {seen}", fault.words()));
    let rules = match part {
        Part::Act => Vec::new(),
        Part::Control => baselines::fired(lab.layout(), &primary, before.at, observed_until.since(fault_at)).await,
    };
    let mut after = None;
    if part == Part::Act {
        let step = progress.step("redundant again, and writes flow");
        let deadline = clock::now().plus(RECOVERY_TIMEOUT);
        match recovery::wait_until_moved(lab, before.epoch, deadline).await {
            Ok(status) => after = Some(status),
            Err(error) => failures.push(format!("{}: {error:#}", fault.label())),
        }
        if let Err(error) = client.steady(STEADY, STEADY_PAUSE, clock::now().plus(STEADY_TIMEOUT)).await {
            failures.push(format!("{error:#}"));
        }
        step.done();
    }
    if let Err(error) = stopped {
        failures.push(format!("{}: {error:#}", fault.label()));
    }
    load.stop().await;
    if let Some(directory) = &arguments.samples {
        let incident = Incident { node: &primary, began: before.at };
        samples::write(lab.layout(), directory, clock::now().since(began), Some(incident)).await?;
    }
    // Read once more: the move and what followed from it have ended since.
    let history = self::history(lab).await;
    let decided = decision(&history, fault_at);
    let stopped_at = clock::now();
    let record = client.stop().await?;
    let rows = if part == Part::Act { audit_rows(lab, &name).await.ok() } else { None };
    let mut report = summarise(&Seen {
        arguments,
        seed,
        began,
        fault_at,
        stopped_at,
        before: &before,
        after: after.as_ref(),
        record: &record,
        history: &history,
        decided,
        part,
    });
    report.dns_answer = naming::answer(lab.layout()).await;
    if let Some(prediction) = report.faults.first_mut().and_then(|fault| fault.prediction.as_mut()) {
        prediction.baselines = rules;
    }
    let audit = rows.map(|rows| ledger::audit(&record.all(), &rows));
    (report.lost_commits, report.duplicate_commits) = (audit.map(|it| it.lost), audit.map(|it| it.duplicate));
    if part == Part::Act {
        if audit.is_none_or(|audit| audit.lost > 0 || audit.duplicate > 0) {
            failures.push("acknowledged commits are not all on the final primary once".to_owned());
        }
        if report.failed_commits > 0 || report.refused_connections > 0 || report.unanswered_connections > 0 {
            failures.push(format!("{}: the move cost clients of PgBouncer an error", fault.label()));
        }
        if record.troubles.iter().any(|at| *at >= fault_at) && report.failed_commits == 0 {
            failures.push(format!("{}: a commit took more than a second", fault.label()));
        }
        if report.two_writers {
            failures.push("a commit of an older timeline was acknowledged after the first of a newer one".to_owned());
        }
    }
    report.failures = failures;
    report.succeeded = report.failures.is_empty();
    Ok(report)
}

/// The same load, and nothing that fails: every alarm is a false one.
async fn healthy(
    lab: &mut Lab,
    arguments: &RunArguments,
    seed: u64,
    progress: Progress,
    client: Client,
    load: Load,
) -> anyhow::Result<Report> {
    let began = clock::now();
    let step = progress.step("varied load without a fault");
    let duration = arguments.duration.unwrap_or(Duration::from_secs(60));
    let mut look = tokio::time::interval(Duration::from_secs(1));
    while clock::now().since(began) < duration {
        look.tick().await;
        lab.reap();
    }
    step.done();
    let status = lab.controller.status().await?;
    let length = clock::now().since(began);
    let detectors = baselines::false_alarms(lab.layout(), status.at, length).await?;
    load.stop().await;
    if let Some(directory) = &arguments.samples {
        samples::write(lab.layout(), directory, length, None).await?;
    }
    let record = client.stop().await?;
    Ok(Report {
        schema_version: REPORT_SCHEMA_VERSION,
        scenario: arguments.scenario.label().to_owned(),
        seed,
        succeeded: true,
        acked_commits: record.all().len() as u64,
        failed_commits: record.failed,
        load_commits_per_second: ledger::rate_per_second(&record.proxied, began, clock::now()),
        new_primary: status.primary,
        epoch: Some(status.epoch),
        false_alarms: detectors,
        ..Report::default()
    })
}

/// Waits until every node is scored, and the primary has been calm for a moment; not before `earliest`.
async fn learn(lab: &mut Lab, primary: &NodeName, earliest: Moment) -> anyhow::Result<()> {
    let deadline = clock::now().max(earliest).plus(LEARN_TIMEOUT);
    let mut calm_since = None;
    loop {
        lab.reap();
        let status = lab.controller.status().await?;
        let scored = status.nodes.iter().all(|node| node.risk.is_some());
        let calm = status.nodes.iter().find(|node| node.name == *primary).and_then(|node| node.risk);
        let now = clock::now();
        if scored && calm.is_some_and(|risk| risk < 0.5) {
            if now.since(*calm_since.get_or_insert(now)) >= CALM && now >= earliest {
                return Ok(());
            }
        } else {
            calm_since = None;
        }
        if now > deadline {
            let why = status.predictor.and_then(|predictor| predictor.abstains);
            bail!(
                "the predictor does not score every node calmly: {}",
                why.unwrap_or_else(|| format!("risk {calm:?}"))
            );
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits until the primary has moved, or, in the control, a client was in trouble. Says which.
async fn watch(
    lab: &mut Lab,
    before: &ClusterStatus,
    client: &Client,
    part: Part,
    deadline: Moment,
    fault_at: Moment,
) -> &'static str {
    loop {
        lab.reap();
        if part == Part::Control && client.last_trouble().is_some_and(|at| at >= fault_at) {
            return "a commit failed or was slow";
        }
        if lab.controller.status().await.is_ok_and(|status| status.epoch > before.epoch) {
            return "the primary moved";
        }
        if clock::now() > deadline {
            return "nothing happened in time";
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn history(lab: &Lab) -> Vec<Operation> {
    let mut history = lab.controller.history().await.unwrap_or_default();
    history.extend(lab.controller.status().await.map(|status| status.operations).unwrap_or_default());
    history
}

/// The switchover that the prediction began.
fn decision(history: &[Operation], fault_at: Moment) -> Option<&Operation> {
    let is_predictive = |operation: &&Operation| {
        matches!(operation.kind, OperationKind::Switchover { .. })
            && operation.decided_at >= fault_at
            && operation.reasons.iter().any(|reason| reason.code == ReasonCode::PredictedTrouble)
    };
    history.iter().filter(is_predictive).min_by_key(|operation| operation.decided_at)
}

/// Everything that was seen of a part.
struct Seen<'s> {
    arguments: &'s RunArguments,
    seed: u64,
    began: Moment,
    fault_at: Moment,
    stopped_at: Moment,
    before: &'s ClusterStatus,
    after: Option<&'s ClusterStatus>,
    record: &'s Record,
    history: &'s [Operation],
    decided: Option<&'s Operation>,
    part: Part,
}

fn summarise(seen: &Seen<'_>) -> Report {
    let record = seen.record;
    let all = record.all();
    let trouble = record.troubles.iter().filter(|at| **at >= seen.fault_at).min().copied();
    let after_fault = |at: Moment| at.since(seen.fault_at).as_secs_f64();
    let decided_at = seen.decided.map(|operation| operation.decided_at);
    let prediction = PredictionReport {
        mode: if seen.part == Part::Act { "act" } else { "observe" }.to_owned(),
        decided_after_seconds: decided_at.map(after_fault),
        trouble_after_seconds: trouble.map(after_fault),
        moved_before_trouble: decided_at.map(|decided| trouble.is_none_or(|trouble| decided < trouble)),
        reasons: seen.decided.iter().flat_map(|one| &one.reasons).map(ToString::to_string).collect(),
        ..PredictionReport::default()
    };
    let fault = FaultReport {
        fault: seen.arguments.fault.map_or("none", |fault| fault.label()).to_owned(),
        write_outage_seconds: ledger::longest_gap(&record.proxied, seen.fault_at, seen.stopped_at, seen.stopped_at)
            .map(|gap| gap.as_secs_f64()),
        phases: seen.decided.map(|operation| phases::phases(operation, seen.fault_at)).unwrap_or_default(),
        steps: seen.decided.map(phases::steps).unwrap_or_default(),
        old_primary: seen.before.primary.clone(),
        new_primary: seen.after.and_then(|status| status.primary.clone()),
        epoch: seen.after.map(|status| status.epoch),
        prediction: Some(prediction),
        ..FaultReport::default()
    };
    Report {
        schema_version: REPORT_SCHEMA_VERSION,
        scenario: seen.arguments.scenario.label().to_owned(),
        seed: seen.seed,
        write_outage_seconds: fault.write_outage_seconds,
        phases: fault.phases.clone(),
        restore_sequence: restore_steps(seen.history, seen.fault_at, &seen.before.primary.iter().collect::<Vec<_>>()),
        acked_commits: all.len() as u64,
        failed_commits: record.failed,
        refused_connections: record.refused_connections,
        unanswered_connections: record.unanswered_connections,
        two_writers: ledger::two_writers(&all),
        old_primary: fault.old_primary.clone(),
        new_primary: fault.new_primary.clone(),
        epoch: fault.epoch,
        rejoined: seen
            .after
            .is_some_and(|status| seen.before.primary.as_ref().is_some_and(|node| recovery::serves(status, node))),
        load_commits_per_second: ledger::rate_per_second(&record.proxied, seen.began, seen.fault_at),
        client_errors: record.errors.clone(),
        faults: vec![fault],
        ..Report::default()
    }
}

/// Seconds since 1970.
fn unix_seconds(wall: WallTime) -> i64 {
    wall.0.div_euclid(1_000_000)
}
