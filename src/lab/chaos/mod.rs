//! `lab chaos`: every fault once, then faults at random, on real components under load; the ledger decides.
//!
//! Between two faults the cluster must be whole again. What does not hold is said, and the logs are kept.

mod catalogue;
mod inject;
mod report;
mod rhythm;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;

pub use catalogue::{FAULTS, Fault, Needs};
pub use report::{ChaosReport, Outcome, Skipped};

use super::arguments::ChaosArguments;
use super::client::{self, Client, Record};
use super::ledger::{self, Acknowledgement};
use super::progress::Progress;
use super::random::Random;
use super::rescue::Rescue;
use super::scenario::{LOAD_MIN, UNDISTURBED, wait_until};
use super::up::{Kind, Lab, redundancy};
use super::wall_clock::Clocks;
use super::{clock, namespaces, place, volume};
use crate::api::wire::ClusterStatus;
use crate::domain::clock::Moment;
use crate::domain::operation::Operation;
use catalogue::Action;
use inject::{Scene, inject};
use report::CHAOS_SCHEMA_VERSION;

/// Steady writes before a fault, and after it.
const STEADY: Duration = Duration::from_secs(1);

/// A pause of this length between two commits is not steady.
const STEADY_PAUSE: Duration = Duration::from_millis(500);

/// Writes must flow by then.
const STEADY_TIMEOUT: Duration = Duration::from_secs(30);

/// A cluster that is not whole so long after a fault will not be.
const WHOLE_TIMEOUT: Duration = Duration::from_secs(90);

/// After a fault, before the controller's word on the cluster counts.
const NOTICED_AFTER: Duration = Duration::from_secs(1);

/// Within this time after the writes are steady the fault happens.
const FAULT_WINDOW_MILLISECONDS: u64 = 1000;

/// Longest time that one fault may take with everything around it; `flapping` and `starvation` come on top.
const FAULT_PATIENCE: Duration = Duration::from_secs(240);

/// For building a lab and taking it down.
const LAB_PATIENCE: Duration = Duration::from_secs(180);

/// Above the longest round trip of `starvation`, twice 200 ms, as docs/configuration.md asks for.
const SLOW_CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// What a lab of this run is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Everything that needs no preparation.
    Ordinary,
    /// Jumping clocks: a library stands between every process and the wall clock, and is out of the way elsewhere.
    Clocks,
    /// A bad network for as long as the run lasts: the proxies are set up for its round trips.
    Slow,
    /// Full disks: data lies in memory, where it would flatter every other fault.
    Volumes,
}

/// The document of `--list`.
pub fn catalogue() -> Vec<Fault> {
    FAULTS.to_vec()
}

/// For people.
pub fn listed() -> String {
    FAULTS.iter().map(|fault| format!("{:<24}{}\n", fault.name, fault.words)).collect()
}

/// One run.
struct Chaos<'run> {
    arguments: &'run ChaosArguments,
    uid: u32,
    progress: Progress,
    random: Random,
    has_namespaces: bool,
    report: ChaosReport,
}

/// Runs it. `None` if what was asked for does not exist.
pub async fn run(arguments: &ChaosArguments, uid: u32, progress: Progress) -> anyhow::Result<Option<ChaosReport>> {
    let unknown: Vec<&String> =
        arguments.only.iter().filter(|name| FAULTS.iter().all(|fault| fault.name != **name)).collect();
    if let Some(name) = unknown.first() {
        progress.line(&format!("there is no fault {name}: stormglass lab chaos --list shows all"));
        return Ok(None);
    }
    let seed = arguments.seed.unwrap_or_else(|| u64::from(uuid::Uuid::now_v7().as_u128() as u32));
    let mut chaos = Chaos {
        arguments,
        uid,
        progress,
        random: Random::new(seed),
        has_namespaces: namespaces::is_inside(),
        report: ChaosReport { schema_version: CHAOS_SCHEMA_VERSION, seed, ..ChaosReport::default() },
    };
    progress.line(&format!("seed {seed}"));
    tokio::select! {
        // Asked first, so that the signals are listened for before anything is made.
        biased;
        () = super::interrupted() => {
            progress.line("interrupted: the lab is taken down");
            chaos.report.interrupted = true;
        }
        result = chaos.stages() => result?,
    }
    chaos.report.conclude();
    Ok(Some(chaos.report))
}

impl Chaos<'_> {
    async fn stages(&mut self) -> anyhow::Result<()> {
        let mut chosen = Vec::new();
        for fault in FAULTS {
            let is_named = self.arguments.only.is_empty() || self.arguments.only.iter().any(|name| name == fault.name);
            let is_wanted = is_named && !self.arguments.random_only;
            if is_wanted && self.can(&fault) {
                chosen.push(fault);
            }
        }
        for stage in [Stage::Ordinary, Stage::Clocks, Stage::Slow, Stage::Volumes] {
            let mut faults: Vec<Fault> = chosen.iter().copied().filter(|fault| stage_of(fault) == stage).collect();
            // A cluster that one fault left broken is no place for the next one: that gets a new lab.
            while !faults.is_empty() {
                let done = self.in_lab(stage, &faults, false).await?;
                faults.drain(..done);
            }
        }
        if self.arguments.faults > 0 {
            let drawn: Vec<Fault> = FAULTS
                .into_iter()
                .filter(|fault| match self.arguments.only.is_empty() {
                    true => fault.is_drawn,
                    false => self.arguments.only.iter().any(|name| name == fault.name),
                })
                .filter(|fault| stage_of(fault) == Stage::Ordinary && self.has(fault.needs).is_ok())
                .collect();
            if drawn.is_empty() {
                self.report.failures.push("none of the named faults can be drawn here".to_owned());
                return Ok(());
            }
            let faults: Vec<Fault> =
                (0..self.arguments.faults).map(|_| drawn[self.random.below(drawn.len() as u64) as usize]).collect();
            let done = self.in_lab(Stage::Ordinary, &faults, true).await?;
            if done < faults.len() {
                self.report.failures.push(format!(
                    "after {done} of {} random faults the cluster was not whole any more (seed {})",
                    faults.len(),
                    self.report.seed
                ));
            }
        }
        Ok(())
    }

    /// True if this lab can do it; else it is said why not.
    fn can(&mut self, fault: &Fault) -> bool {
        match self.has(fault.needs) {
            Ok(()) => true,
            Err(reason) => {
                self.report.skipped.push(Skipped { fault: fault.name.to_owned(), reason });
                false
            }
        }
    }

    fn has(&self, needs: Needs) -> Result<(), String> {
        match needs {
            Needs::Nothing | Needs::Links => Ok(()),
            Needs::Namespaces if !self.has_namespaces => Err("hosts as network namespaces: run it as root".to_owned()),
            Needs::Volumes if !self.has_namespaces => {
                Err("needs root here; stormglass lab run disk-full does it without".to_owned())
            }
            Needs::Clocks => Clocks::find().map(|_| ()).map_err(|error| error.to_string()),
            Needs::Namespaces | Needs::Volumes => Ok(()),
        }
    }

    /// Builds a lab and injects faults until all are done or one of them leaves the cluster broken. Returns how many.
    async fn in_lab(&mut self, stage: Stage, faults: &[Fault], are_random: bool) -> anyhow::Result<usize> {
        let directory = place::run_directory();
        let patience = LAB_PATIENCE
            + FAULT_PATIENCE * faults.len() as u32
            + self.arguments.duration
            + Duration::from_secs(20) * self.arguments.flaps;
        let rescue = Rescue::arm_for(&directory, self.uid, patience);
        if stage == Stage::Volumes {
            place::create(&directory)?;
            volume::mount_all(&directory)?;
        }
        let kind = Kind {
            has_links: true,
            has_volumes: stage == Stage::Volumes,
            has_namespaces: self.has_namespaces,
            has_clocks: stage == Stage::Clocks,
            rto: self.arguments.rto,
            connect_timeout: (stage == Stage::Slow).then_some(SLOW_CONNECT_TIMEOUT),
            ..Kind::default()
        };
        let mut lab = Lab::build(&directory, self.uid, kind, self.progress).await?;
        let mut ledger: Vec<(String, Vec<Acknowledgement>)> = Vec::new();
        let mut done = 0;
        self.progress.line(&report::header());
        for fault in faults {
            done += 1;
            let (mut outcome, acknowledgements) = self.one(&mut lab, fault, done).await?;
            outcome.random = are_random;
            // How long writes stood still while everything starved is a question for the logs, also where all held.
            if !outcome.failures.is_empty() || fault.action == Action::Starve {
                self.keep_evidence(&lab, fault.name).await;
            }
            let is_broken = outcome.whole_after_seconds.is_none();
            self.report.faults.push(outcome);
            ledger.push(acknowledgements);
            if is_broken {
                break;
            }
        }
        self.audit(&lab, &ledger).await;
        rescue.finish(false)?;
        Ok(done)
    }

    async fn one(
        &mut self,
        lab: &mut Lab,
        fault: &Fault,
        number: usize,
    ) -> anyhow::Result<(Outcome, (String, Vec<Acknowledgement>))> {
        let before = wait_until(lab, clock::now().plus(WHOLE_TIMEOUT), redundancy).await?;
        let scene = Scene::of(lab, &before)?;
        let name = format!("{number}-{}-{:x}", fault.name, uuid::Uuid::now_v7().as_u128());
        let mut step = self.progress.step(fault.name);
        step.note("steady writes");
        let began = clock::now();
        let client = Client::start(lab.layout(), &scene.primary.postgres, &name).await?;
        client.steady(STEADY, STEADY_PAUSE, clock::now().plus(STEADY_TIMEOUT)).await?;
        tokio::time::sleep(Duration::from_millis(self.random.below(FAULT_WINDOW_MILLISECONDS))).await;

        step.note(fault.words);
        let mut at = clock::now();
        let mut failures = Vec::new();
        let healed = inject(lab, fault, &scene, self.arguments, &mut self.random, &mut at).await;
        let healed = healed.unwrap_or_else(|error| {
            failures.push(format!("{error:#}"));
            clock::now()
        });
        step.note("waiting until the cluster is whole again");
        // Nobody may take the moment before anybody noticed for the end.
        tokio::time::sleep(NOTICED_AFTER).await;
        let least = before.epoch + fault.moves.0;
        let whole = wait_until(lab, clock::now().plus(WHOLE_TIMEOUT), |status| match status.epoch < least {
            true => Err(format!("still in epoch {}", status.epoch)),
            false => redundancy(status),
        })
        .await;
        let whole_at = clock::now();
        if let Err(error) = &whole {
            failures.push(format!("{error:#}"));
        } else if let Err(error) = client.steady(STEADY, STEADY_PAUSE, clock::now().plus(STEADY_TIMEOUT)).await {
            failures.push(format!("{error:#}"));
        }
        let stopped_at = clock::now();
        let record = client.stop().await?;
        let after = lab.controller.status().await.ok();
        let all = record.all();
        let rows = match after.as_ref().and_then(|status| status.primary.as_ref()) {
            Some(primary) => client::rows(&lab.layout().node(primary)?.postgres, &name).await.ok(),
            None => None,
        };
        let audit = rows.map(|rows| ledger::audit(&all, &rows));
        let gap = |acknowledgements: &[Acknowledgement]| {
            ledger::longest_gap(acknowledgements, at, whole_at, stopped_at).map(|gap| gap.as_secs_f64())
        };
        let mut outcome = Outcome {
            fault: fault.name.to_owned(),
            lasted_seconds: healed.since(at).as_secs_f64(),
            write_outage_seconds: gap(&record.proxied),
            whole_after_seconds: whole.is_ok().then(|| whole_at.since(healed).as_secs_f64()),
            acked_commits: all.len() as u64,
            lost_commits: audit.map(|audit| audit.lost),
            two_writers: ledger::two_writers(&all),
            moves: after.as_ref().map_or(0, |status| status.epoch - before.epoch.min(status.epoch)),
            old_primary: before.primary.clone(),
            new_primary: after.as_ref().and_then(|status| status.primary.clone()),
            decisions: decisions(lab, at, after.as_ref()).await,
            load_commits_per_second: load(&record, began, at),
            bypass_outage_seconds: gap(&record.bypassing),
            client_errors: record.errors.clone(),
            ..Outcome::default()
        };
        failures.extend(check(fault, &outcome));
        outcome.failures = failures;
        step.done_as(&outcome.line());
        Ok((outcome, (name, all)))
    }

    /// Holds every acknowledgement of a lab against its last primary: a later fault may lose what an earlier one left.
    async fn audit(&mut self, lab: &Lab, ledger: &[(String, Vec<Acknowledgement>)]) {
        let primary = lab.controller.status().await.ok().and_then(|status| status.primary);
        let address = primary.and_then(|primary| lab.layout().node(&primary).ok()).map(|node| node.postgres.clone());
        let (mut lost, mut duplicate, mut is_whole) = (0, 0, address.is_some());
        for (run, acknowledgements) in ledger {
            let rows = match &address {
                Some(address) => client::rows(address, run).await.ok(),
                None => None,
            };
            match rows {
                Some(rows) => {
                    let audit = ledger::audit(acknowledgements, &rows);
                    lost += audit.lost;
                    duplicate += audit.duplicate;
                }
                None => is_whole = false,
            }
        }
        let all: Vec<Acknowledgement> = ledger.iter().flat_map(|(_, acks)| acks.iter().cloned()).collect();
        self.report.acked_commits += all.len() as u64;
        self.report.two_writers |= ledger::two_writers(&all);
        let is_first = self.report.faults.len() == ledger.len();
        let sum = |total: Option<u64>, count| if is_first { Some(count) } else { total.map(|total| total + count) };
        self.report.lost_commits = if is_whole { sum(self.report.lost_commits, lost) } else { None };
        self.report.duplicate_commits = if is_whole { sum(self.report.duplicate_commits, duplicate) } else { None };
        for (holds, otherwise) in [
            (is_whole, "the last primary of a lab could not be read".to_owned()),
            (lost == 0, format!("{lost} acknowledged commits are not on the last primary of their lab")),
            (duplicate == 0, format!("{duplicate} commits are there more than once")),
            (!self.report.two_writers, "two primaries acknowledged commits at the same time".to_owned()),
        ] {
            if !holds && !self.report.failures.contains(&otherwise) {
                self.report.failures.push(otherwise);
            }
        }
    }

    /// Copies the logs and the controller's history to where they outlive the lab.
    async fn keep_evidence(&self, lab: &Lab, fault: &str) {
        let place = place::temporary_directory().join(format!("stormglass-chaos-{}-{fault}", self.report.seed));
        let history = lab.controller.history().await.unwrap_or_default();
        let status = lab.controller.status().await.ok();
        let kept = keep(lab, &place, &history, status.as_ref());
        match kept {
            Ok(()) => self.progress.line(&format!("  the logs are in {}", place.display())),
            Err(error) => self.progress.line(&format!("  the logs could not be kept: {error:#}")),
        }
    }
}

fn keep(lab: &Lab, place: &Path, history: &[Operation], status: Option<&ClusterStatus>) -> anyhow::Result<()> {
    std::fs::create_dir_all(place).with_context(|| format!("make the directory {}", place.display()))?;
    copy_logs(&lab.layout().log_directory(), place, "")?;
    for node in &lab.layout().nodes {
        copy_logs(&node.directory.join("state/postgres-log"), place, &format!("{}-", node.name))?;
    }
    #[derive(Serialize)]
    struct Seen<'lab> {
        status: Option<&'lab ClusterStatus>,
        history: &'lab [Operation],
    }
    let text = serde_json::to_string_pretty(&Seen { status, history })?;
    std::fs::write(place.join("history.json"), text).context("write the history")
}

fn copy_logs(from: &Path, to: &Path, prefix: &str) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(from).with_context(|| format!("list {}", from.display()))? {
        let file = entry.with_context(|| format!("list {}", from.display()))?.path();
        if file.extension().is_some_and(|extension| extension == "log") {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            std::fs::copy(&file, to.join(format!("{prefix}{name}"))).context("copy a log")?;
        }
    }
    Ok(())
}

/// Which lab a fault happens in.
fn stage_of(fault: &Fault) -> Stage {
    match fault.needs {
        _ if fault.action == Action::Starve => Stage::Slow,
        Needs::Nothing | Needs::Links | Needs::Namespaces => Stage::Ordinary,
        Needs::Clocks => Stage::Clocks,
        Needs::Volumes => Stage::Volumes,
    }
}

fn load(record: &Record, began: Moment, at: Moment) -> f64 {
    // The first commits wait for connections.
    let first = record.proxied.iter().map(|ack| ack.at).min().unwrap_or(began);
    ledger::rate_per_second(&record.proxied, first, at)
}

/// What the controller did since `at`, in its own words; moves of the primary first.
async fn decisions(lab: &Lab, at: Moment, status: Option<&ClusterStatus>) -> Vec<String> {
    let mut history = lab.controller.history().await.unwrap_or_default();
    history.extend(status.map(|status| status.operations.clone()).unwrap_or_default());
    let mut seen = BTreeSet::new();
    history.retain(|operation| operation.decided_at >= at && seen.insert(operation.id.0.clone()));
    history.sort_by_key(|operation| (!operation.kind.moves_primary(), operation.decided_at));
    history
        .iter()
        .map(|operation| {
            let codes: Vec<&str> = operation.reasons.iter().map(|reason| reason.code.label()).collect();
            let why = if codes.is_empty() { String::new() } else { format!(" ({})", codes.join(", ")) };
            let moved = if operation.kind.moves_primary() { why } else { String::new() };
            format!("{} {}{moved}", operation.kind.label(), operation.status.label())
        })
        .collect()
}

/// Everything that must hold; what does not is said in a sentence.
fn check(fault: &Fault, outcome: &Outcome) -> Vec<String> {
    let mut failures = Vec::new();
    let mut must = |holds: bool, otherwise: String| {
        if !holds {
            failures.push(otherwise);
        }
    };
    must(outcome.acked_commits > 0, "no commit was acknowledged".to_owned());
    must(
        outcome.load_commits_per_second >= LOAD_MIN,
        format!("the client wrote only {:.0} commits a second before the fault", outcome.load_commits_per_second),
    );
    match outcome.lost_commits {
        Some(lost) => must(lost == 0, format!("{lost} acknowledged commits are lost")),
        None => must(false, "the primary could not be read".to_owned()),
    }
    must(!outcome.two_writers, "two primaries acknowledged commits at the same time".to_owned());
    let (least, most) = fault.moves;
    must(outcome.moves >= least, format!("the primary moved {} times instead of {least}", outcome.moves));
    must(outcome.moves <= most, format!("the primary moved {} times; {most} would be right", outcome.moves));
    let outage = outcome.write_outage_seconds.unwrap_or(f64::INFINITY);
    must(
        !fault.undisturbed || outage < UNDISTURBED.as_secs_f64(),
        format!("clients could not write for {outage:.3} s, and should not have noticed"),
    );
    failures
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good(fault: &Fault) -> Outcome {
        Outcome {
            acked_commits: 500,
            load_commits_per_second: 300.0,
            lost_commits: Some(0),
            moves: fault.moves.0,
            write_outage_seconds: Some(0.3),
            ..Outcome::default()
        }
    }

    #[test]
    fn every_fault_can_be_right_and_every_rule_can_be_broken() {
        for fault in FAULTS {
            assert_eq!(check(&fault, &good(&fault)), Vec::<String>::new(), "{}", fault.name);
            for (what, bad) in [
                ("silent", Outcome { acked_commits: 0, ..good(&fault) }),
                ("idle", Outcome { load_commits_per_second: 12.0, ..good(&fault) }),
                ("lost", Outcome { lost_commits: Some(1), ..good(&fault) }),
                ("unread", Outcome { lost_commits: None, ..good(&fault) }),
                ("two writers", Outcome { two_writers: true, ..good(&fault) }),
                ("too many moves", Outcome { moves: fault.moves.1 + 1, ..good(&fault) }),
            ] {
                assert!(!check(&fault, &bad).is_empty(), "{}: {what}", fault.name);
            }
            let slow = Outcome { write_outage_seconds: Some(5.0), ..good(&fault) };
            assert_eq!(check(&fault, &slow).is_empty(), !fault.undisturbed, "{}", fault.name);
        }
    }
}
