//! Runs one scenario in a lab that is ready: steady writes, a fault, the way back to redundancy, the audit.
//!
//! A scenario that does not end well still ends with a report: what was seen is worth most then.

mod controller;
pub(in crate::lab) mod degrade;
mod faults;
mod ladder;
mod recovery;
mod restore;
mod several;
mod site;

use std::time::Duration;

use anyhow::Context as _;

use super::application;
use super::arguments::{NamedFault, RunArguments, Scenario};
use super::client::held::{HeldClients, HeldTally};
use super::client::{self, Client, Habits, Record};
use super::clock;
use super::ledger::{self, Rows};
use super::naming;
use super::phases;
use super::progress::Progress;
use super::random::Random;
use super::report::{FaultReport, REPORT_SCHEMA_VERSION, Report};
use super::up::Lab;
use crate::api::wire::ClusterStatus;
use crate::domain::clock::Moment;
use crate::domain::ids::NodeName;
use crate::domain::operation::{Operation, OperationKind};
use faults::Fault;
pub(in crate::lab) use faults::halves;
pub(in crate::lab) use recovery::wait as wait_until;

/// Steady writes before the first fault, and after the last.
const STEADY: Duration = Duration::from_secs(3);

/// A pause of this length between two commits is not steady.
const STEADY_PAUSE: Duration = Duration::from_millis(500);

/// Proxies follow the primary's site by then.
const APPLICATION_TIMEOUT: Duration = Duration::from_secs(10);

/// Writes must flow by then.
const STEADY_TIMEOUT: Duration = Duration::from_secs(30);

/// Within this time after the warm-up the fault happens.
const FAULT_WINDOW_MILLISECONDS: u64 = 1000;

/// The load that the client promises, in commits a second.
pub(in crate::lab) const LOAD_MIN: f64 = 100.0;

/// Clients may notice nothing longer than this where nothing may happen to them.
pub(in crate::lab) const UNDISTURBED: Duration = Duration::from_secs(1);

/// What one fault did.
struct Injected {
    fault: Fault,
    at: Moment,
    /// When the cluster was redundant again; `None` if it was not in time.
    healed: Option<Moment>,
    before: ClusterStatus,
    after: Option<ClusterStatus>,
    /// How often the standbys renewed the primary's lease while no controller answered; `None` where one did.
    renewals: Option<u64>,
}

/// Runs `arguments.scenario` with `seed`.
pub async fn run(lab: &mut Lab, arguments: &RunArguments, seed: u64, progress: Progress) -> anyhow::Result<Report> {
    if matches!(arguments.scenario, Scenario::DegradePrimary | Scenario::HealthyLoad) {
        return degrade::run(lab, arguments, seed, progress).await;
    }
    if arguments.scenario == Scenario::Restore {
        return restore::run(lab, seed, progress).await;
    }
    let mut random = Random::new(seed);
    let mut failures = Vec::new();
    let first = recovery::wait_until_redundant(lab, clock::now().plus(STEADY_TIMEOUT)).await?;
    let primary = first.primary.clone().context("a redundant cluster has a primary")?;
    let name = format!("{}-{:x}", arguments.scenario.label(), uuid::Uuid::now_v7().as_u128());
    let address = lab.layout().node(&primary)?.postgres.clone();

    let step = progress.step("steady writes through HAProxy");
    let began = clock::now();
    let client = Client::start_with(
        lab.layout(),
        &address,
        &name,
        Habits { by_name: arguments.is_by_name(), ..Habits::default() },
    )
    .await?;
    client.steady(STEADY, STEADY_PAUSE, clock::now().plus(STEADY_TIMEOUT)).await?;
    step.done_as(&format!("steady writes through HAProxy: {} commits", client.acknowledgements()));

    // Who comes through PgBouncer, or anew, is to notice nothing of a move that is held.
    let held = if arguments.held { Some(HeldClients::start(lab.layout(), &name)?) } else { None };
    if held.is_some() {
        client.steady(STEADY, STEADY_PAUSE, clock::now().plus(STEADY_TIMEOUT)).await?;
    }
    let mut injected = Vec::new();
    for fault in chosen_faults(arguments, &mut random) {
        tokio::time::sleep(Duration::from_millis(random.below(FAULT_WINDOW_MILLISECONDS))).await;
        let mut step = progress.step(fault.words());
        let (outcome, trouble) = faults::inject(lab, fault, &client, &mut step).await?;
        match &trouble {
            Some(trouble) => failures.push(trouble.clone()),
            None => step.done_as(&outcome.words()),
        }
        let is_over = trouble.is_some();
        injected.push(outcome);
        if is_over {
            break;
        }
    }
    let step = progress.step("writes flow again");
    match client.steady(STEADY, STEADY_PAUSE, clock::now().plus(STEADY_TIMEOUT)).await {
        Ok(()) => step.done(),
        Err(error) => failures.push(format!("{error:#}")),
    }
    let stopped_at = clock::now();
    let held = match held {
        Some(held) => Some(held.stop().await?),
        None => None,
    };
    let record = client.stop().await?;
    let step = progress.step("audit of every acknowledged commit");
    let rows = audit_rows(lab, &name).await;
    let mut history = lab.controller.history().await.unwrap_or_default();
    // Where something hangs, the operation that is still under way says the most.
    history.extend(lab.controller.status().await.map(|status| status.operations).unwrap_or_default());
    step.done();
    if let Err(error) = &rows {
        failures.push(format!("the final primary could not be read: {error:#}"));
    }
    let mut report =
        summarise(arguments.scenario, seed, &injected, &record, rows.ok().as_ref(), &history, began, stopped_at);
    report.dns_answer = naming::answer(lab.layout()).await;
    if arguments.is_by_name() {
        report.dns_ttl_wait_seconds = site::ttl_wait_seconds(&injected, &record, stopped_at);
        failures.extend(site::misled(lab.layout(), &report));
    }
    failures.extend(application_elsewhere(lab, &mut report).await);
    if let Some(held) = held {
        failures.extend(noticed(&held));
        report.longest_statement_seconds = Some(held.pooled.longest_seconds);
        report.failed_new_connections = Some(held.newcomers.errors);
        report.pool_errors = Some(held.pooled.errors);
        report.refused_connections += held.newcomers.refused_connections + held.pooled.refused_connections;
        report.held = Some(held);
    }
    report.failures.splice(0..0, failures);
    report.succeeded = report.failures.is_empty();
    Ok(report)
}

/// The application is to be served from the primary's site, at every proxy that answers.
async fn application_elsewhere(lab: &Lab, report: &mut Report) -> Option<String> {
    let primary = lab.layout().node(report.new_primary.as_ref()?).ok()?.site.to_string();
    let deadline = clock::now().plus(APPLICATION_TIMEOUT);
    loop {
        report.application_served_from = application::served_from(lab.layout()).await.into_iter().collect();
        let sites: Vec<&String> = report.application_served_from.values().flatten().collect();
        if lab.layout().application_port.is_none() || !sites.is_empty() && sites.iter().all(|site| **site == primary) {
            return None;
        }
        if clock::now() > deadline {
            let served = serde_json::to_string(&report.application_served_from).unwrap_or_default();
            return Some(format!("the application is not served from the primary's site {primary}: {served}"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What clients noticed of a move who were to notice nothing.
fn noticed(held: &HeldTally) -> Vec<String> {
    let mut failures = Vec::new();
    for (who, tally) in [("clients of PgBouncer", &held.pooled), ("newcomers at HAProxy", &held.newcomers)] {
        if tally.errors > 0 {
            failures.push(format!("{who} saw {} errors", tally.errors));
        }
        if tally.served == 0 {
            failures.push(format!("{who} were not served at all"));
        }
    }
    failures
}

fn chosen_faults(arguments: &RunArguments, random: &mut Random) -> Vec<Fault> {
    match arguments.scenario {
        Scenario::KillPrimary => vec![Fault::KillPrimary],
        Scenario::HangPrimary => match arguments.fault {
            Some(NamedFault::All) => vec![Fault::HangAll],
            Some(NamedFault::Postmaster) => vec![Fault::HangPostmaster],
            Some(NamedFault::Agent) => vec![Fault::HangAgent],
            _ => vec![Fault::HangAll, Fault::HangPostmaster],
        },
        Scenario::Switchover if arguments.to_site => vec![Fault::SwitchSite, Fault::SwitchSite],
        Scenario::Switchover => vec![Fault::Switchover { held: arguments.held }],
        Scenario::AgentCrash => vec![Fault::KillAgent, Fault::KillGuard],
        Scenario::ControllerCrash if arguments.controllers > 1 => several::ALL.map(Fault::Control).to_vec(),
        Scenario::ControllerCrash if arguments.during_failover => {
            let step = controller::STEPS[random.below(controller::STEPS.len() as u64) as usize];
            vec![Fault::KillPrimaryAndController, Fault::KillControllerDuringFailover { step }]
        }
        Scenario::ControllerCrash => vec![Fault::KillController],
        Scenario::PartitionPrimary => vec![Fault::PartitionPrimary],
        Scenario::PartitionController => vec![Fault::CutPrimaryFromController, Fault::CutController],
        Scenario::DiskFull => vec![Fault::FillDisk],
        Scenario::HostLost => vec![Fault::LoseHost],
        Scenario::LoseSite => vec![Fault::LoseSite { with_controller: arguments.with_controller }],
        // These have a course of their own.
        Scenario::DegradePrimary | Scenario::HealthyLoad => Vec::new(),
        Scenario::RejoinLadder => ladder::ALL.map(Fault::Ladder).to_vec(),
        // It has a way of its own.
        Scenario::Restore => Vec::new(),
    }
}

async fn audit_rows(lab: &Lab, run: &str) -> anyhow::Result<Rows> {
    let status = lab.controller.status().await?;
    let primary = status.primary.context("there is no primary")?;
    client::rows(&lab.layout().node(&primary)?.postgres, run).await
}

#[expect(clippy::too_many_arguments, reason = "everything that was seen goes into one report")]
fn summarise(
    scenario: Scenario,
    seed: u64,
    injected: &[Injected],
    record: &Record,
    rows: Option<&Rows>,
    history: &[Operation],
    began: Moment,
    stopped_at: Moment,
) -> Report {
    let all = record.all();
    let audit = rows.map(|rows| ledger::audit(&all, rows));
    let faults: Vec<FaultReport> = injected.iter().map(|one| describe(one, record, history, stopped_at)).collect();
    let worst = faults.iter().max_by(|one, other| {
        one.write_outage_seconds.unwrap_or(0.0).total_cmp(&other.write_outage_seconds.unwrap_or(0.0))
    });
    let last = injected.last().and_then(|one| one.after.as_ref());
    let fault_at = injected.first().map_or(stopped_at, |one| one.at);
    let former: Vec<&NodeName> = injected.iter().filter_map(|one| one.before.primary.as_ref()).collect();
    let mut report = Report {
        schema_version: REPORT_SCHEMA_VERSION,
        scenario: scenario.label().to_owned(),
        seed,
        write_outage_seconds: worst.and_then(|fault| fault.write_outage_seconds),
        phases: worst.map(|fault| fault.phases.clone()).unwrap_or_default(),
        acked_commits: all.len() as u64,
        lost_commits: audit.map(|audit| audit.lost),
        duplicate_commits: audit.map(|audit| audit.duplicate),
        failed_commits: record.failed,
        refused_connections: record.refused_connections,
        unanswered_connections: record.unanswered_connections,
        two_writers: ledger::two_writers(&all),
        old_primary: injected.first().and_then(|one| one.before.primary.clone()),
        new_primary: last.and_then(|status| status.primary.clone()),
        epoch: last.map(|status| status.epoch),
        rejoined: last.is_some_and(|status| former.iter().all(|node| recovery::serves(status, node))),
        restore_sequence: restore_steps(history, fault_at, &former),
        redundant_after_seconds: faults.iter().filter_map(|fault| fault.redundant_after_seconds).reduce(f64::max),
        load_commits_per_second: ledger::rate_per_second(&record.proxied, began, fault_at),
        client_errors: record.errors.clone(),
        faults,
        ..Report::default()
    };
    report.failures = check(&report, injected);
    report
}

fn describe(one: &Injected, record: &Record, history: &[Operation], stopped_at: Moment) -> FaultReport {
    let healed = one.healed.unwrap_or(stopped_at);
    let movement = one.fault.moves_primary().then(|| phases::movement(history, one.at, healed)).flatten();
    FaultReport {
        fault: one.fault.label().to_owned(),
        write_outage_seconds: ledger::longest_gap(&record.proxied, one.at, healed, stopped_at)
            .map(|gap| gap.as_secs_f64()),
        redundant_after_seconds: one.healed.map(|healed| healed.since(one.at).as_secs_f64()),
        phases: movement.map(|operation| phases::phases(operation, one.at)).unwrap_or_default(),
        steps: movement.map(phases::steps).unwrap_or_default(),
        old_primary: one.before.primary.clone(),
        new_primary: one.after.as_ref().and_then(|status| status.primary.clone()),
        epoch: one.after.as_ref().map(|status| status.epoch),
        lease_renewals_by_standbys: one.renewals,
        prediction: None,
    }
}

/// Steps of every operation after the fault that brought a former primary back, and of the sequences that followed a failover.
fn restore_steps(history: &[Operation], fault_at: Moment, former: &[&NodeName]) -> Vec<phases::StepTime> {
    let mut operations: Vec<&Operation> = history
        .iter()
        .filter(|operation| operation.decided_at >= fault_at)
        .filter(|operation| match &operation.kind {
            OperationKind::Rejoin { node, .. } => former.contains(&node),
            OperationKind::Sequence { .. } => true,
            _ => false,
        })
        .collect();
    operations.sort_by_key(|operation| operation.decided_at);
    operations.into_iter().flat_map(phases::steps).collect()
}

/// Everything that must hold; what does not is said in a sentence.
fn check(report: &Report, injected: &[Injected]) -> Vec<String> {
    let mut failures = Vec::new();
    let mut must = |holds: bool, otherwise: String| {
        if !holds {
            failures.push(otherwise);
        }
    };
    must(report.acked_commits > 0, "no commit was acknowledged".to_owned());
    must(
        report.load_commits_per_second >= LOAD_MIN,
        format!("the client wrote only {:.0} commits a second before the fault", report.load_commits_per_second),
    );
    if let Some(lost) = report.lost_commits {
        must(lost == 0, format!("{lost} acknowledged commits are not on the final primary"));
    }
    if let Some(duplicate) = report.duplicate_commits {
        must(duplicate == 0, format!("{duplicate} commits are there more than once"));
    }
    must(
        !report.two_writers,
        "a commit of an older timeline was acknowledged after the first of a newer one".to_owned(),
    );
    must(report.rejoined, "a former primary did not come back as a standby".to_owned());
    for one in injected {
        let Some(after) = &one.after else { continue };
        let (was, is) = (&one.before.primary, &after.primary);
        if one.fault.moves_primary() {
            must(after.epoch > one.before.epoch, format!("{}: the epoch did not grow", one.fault.label()));
            must(is.is_some(), format!("{}: there is no primary", one.fault.label()));
        } else {
            must(was == is, format!("{}: the primary changed", one.fault.label()));
            must(after.epoch == one.before.epoch, format!("{}: the epoch changed", one.fault.label()));
        }
        if matches!(one.fault, Fault::Switchover { .. } | Fault::SwitchSite | Fault::LoseSite { .. }) {
            must(was != is, "the primary did not move".to_owned());
        }
    }
    for (fault, one) in report.faults.iter().zip(injected) {
        let outage = fault.write_outage_seconds.unwrap_or(f64::INFINITY);
        must(
            one.fault.moves_primary() || outage < UNDISTURBED.as_secs_f64(),
            format!("{}: clients could not write for {outage:.3} s", fault.fault),
        );
    }
    failures
}
