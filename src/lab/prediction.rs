//! `degrade-primary` as a whole: for each fault a control run without a predictor that acts, then the run with one; and what both
//! together say.
//!
//! Each run is a process of its own with its own lab; nothing is measured here.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::Context as _;

use super::arguments::{NamedFault, Part, RunArguments};
use super::place::{self, User};
use super::progress::Progress;
use super::report::Report;
use super::{disk, exit, volume};

/// Runs everything; `None` if this host cannot.
pub async fn run(arguments: &RunArguments, user: &User, progress: Progress) -> anyhow::Result<Option<Report>> {
    let seed = arguments.seed.unwrap_or_else(|| u64::from(uuid::Uuid::now_v7().as_u128() as u32));
    let faults = arguments.fault.map_or_else(|| NamedFault::GROWING.to_vec(), |fault| vec![fault]);
    let folder = place::temporary_directory().join(format!("stormglass-parts-{:x}", uuid::Uuid::now_v7().as_u128()));
    std::fs::create_dir(&folder).with_context(|| format!("make the directory {}", folder.display()))?;
    // Started by root, the parts are the user's, and their reports too.
    std::os::unix::fs::chown(&folder, Some(user.uid), Some(user.gid))
        .with_context(|| format!("give {} away", folder.display()))?;
    let mut whole: Option<Report> = None;
    let mut failures = Vec::new();
    for fault in faults {
        let mut parts = Vec::new();
        for part in arguments.part.map_or_else(|| vec![Part::Control, Part::Act], |part| vec![part]) {
            progress.line(&format!("{}: {}", fault.label(), words(part)));
            match run_part(arguments, user, fault, part, seed, &folder).await {
                Ok(None) => {
                    let _ = std::fs::remove_dir_all(&folder);
                    return Ok(None);
                }
                Ok(Some(report)) => parts.push(report),
                Err(error) => failures.push(format!("{}, {}: {error:#}", fault.label(), words(part))),
            }
        }
        let report = match parts.as_slice() {
            [control, act] => Some(together(control, act)),
            [alone] if arguments.part.is_some() => Some(alone.clone()),
            _ => None,
        };
        if let Some(report) = report {
            whole = Some(match whole {
                None => report,
                Some(before) => added(before, report),
            });
        }
    }
    let _ = std::fs::remove_dir_all(&folder);
    let mut report = whole.context(failures.join("; "))?;
    report.failures.extend(failures);
    report.succeeded = report.failures.is_empty();
    Ok(Some(report))
}

fn words(part: Part) -> &'static str {
    match part {
        Part::Act => "the predictor acts",
        Part::Control => "control run, the predictor only observes",
    }
}

async fn run_part(
    arguments: &RunArguments,
    user: &User,
    fault: NamedFault,
    part: Part,
    seed: u64,
    folder: &Path,
) -> anyhow::Result<Option<Report>> {
    let name = if part == Part::Act { "act" } else { "control" };
    let file: PathBuf = folder.join(format!("{}-{name}.json", fault.label()));
    let mut given: Vec<OsString> = ["lab", "run", "degrade-primary", "--output", "json", "--fault", fault.label()]
        .into_iter()
        .chain(["--part", name, "--seed"])
        .map(OsString::from)
        .collect();
    given.extend([seed.to_string().into(), "--report".into(), file.clone().into()]);
    if let Some(rto) = arguments.rto {
        given.extend(["--rto".into(), humantime::format_duration(rto).to_string().replace(' ', "").into()]);
    }
    for (option, time) in [("--grows-for", arguments.grows_for), ("--duration", arguments.duration)] {
        if let Some(time) = time {
            given.extend([option.into(), humantime::format_duration(time).to_string().replace(' ', "").into()]);
        }
    }
    if let Some(samples) = &arguments.samples {
        given.extend(["--samples".into(), samples.join(name).into()]);
    }
    let code = if fault.needs_disk() {
        disk::run_again(user, given, Stdio::null()).await?
    } else {
        volume::run_again(user, given, Stdio::null()).await?
    };
    if code == exit::USAGE {
        return Ok(None);
    }
    // A part that did not end well still leaves its report.
    let text = std::fs::read_to_string(&file).with_context(|| format!("it ended with {code} and left no report"))?;
    serde_json::from_str(&text).context("understand its report").map(Some)
}

/// The run that acted, with what would have happened without it.
fn together(control: &Report, act: &Report) -> Report {
    let mut report = act.clone();
    let trouble = control
        .faults
        .first()
        .and_then(|fault| fault.prediction.as_ref())
        .and_then(|prediction| prediction.trouble_after_seconds);
    let rules = control.faults.first().and_then(|fault| fault.prediction.as_ref()).map(|it| it.baselines.clone());
    let name = act.faults.first().map(|fault| fault.fault.clone()).unwrap_or_default();
    report.failures.extend(control.failures.iter().map(|failure| format!("control run: {failure}")));
    let Some(prediction) = report.faults.first_mut().and_then(|fault| fault.prediction.as_mut()) else {
        return report;
    };
    prediction.trouble_after_seconds = trouble;
    prediction.lead_seconds = prediction.decided_after_seconds.zip(trouble).map(|(decided, trouble)| trouble - decided);
    prediction.baselines = rules.unwrap_or_default();
    for rule in &mut prediction.baselines {
        rule.lead_seconds = rule.fires_after_seconds.zip(trouble).map(|(fires, trouble)| trouble - fires);
    }
    report.risk_lead_seconds = prediction.lead_seconds;
    let moved_in_time = prediction.moved_before_trouble;
    if trouble.is_none() {
        report
            .failures
            .push(format!("{name}: without a predictor no commit failed or was slow: the fault proves nothing"));
    } else if report.risk_lead_seconds.is_some_and(|lead| lead <= 0.0) {
        report.failures.push(format!("{name}: the decision came after the first trouble of the control run"));
    }
    if moved_in_time == Some(false) {
        report.failures.push(format!("{name}: a commit failed or was slow before the primary was moved"));
    }
    report
}

/// Two faults in one report: sums, and the worse of both.
fn added(mut one: Report, other: Report) -> Report {
    one.risk_lead_seconds = one.risk_lead_seconds.zip(other.risk_lead_seconds).map(|(left, right)| left.min(right));
    one.write_outage_seconds = one.write_outage_seconds.into_iter().chain(other.write_outage_seconds).reduce(f64::max);
    one.acked_commits += other.acked_commits;
    one.lost_commits = one.lost_commits.zip(other.lost_commits).map(|(left, right)| left + right);
    one.duplicate_commits = one.duplicate_commits.zip(other.duplicate_commits).map(|(left, right)| left + right);
    one.failed_commits += other.failed_commits;
    one.refused_connections += other.refused_connections;
    one.unanswered_connections += other.unanswered_connections;
    one.two_writers |= other.two_writers;
    one.rejoined &= other.rejoined;
    one.load_commits_per_second = one.load_commits_per_second.min(other.load_commits_per_second);
    one.new_primary = other.new_primary;
    one.epoch = other.epoch;
    one.phases = other.phases;
    one.restore_sequence.extend(other.restore_sequence);
    one.dns_answer = other.dns_answer.or(one.dns_answer);
    one.failures.extend(other.failures);
    one.faults.extend(other.faults);
    for (error, count) in other.client_errors {
        *one.client_errors.entry(error).or_default() += count;
    }
    one
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::report::{Baseline, FaultReport, PredictionReport};

    fn part(prediction: PredictionReport) -> Report {
        let fault =
            FaultReport { fault: "disk-filling".to_owned(), prediction: Some(prediction), ..FaultReport::default() };
        Report { lost_commits: Some(0), faults: vec![fault], ..Report::default() }
    }

    fn both(decided: Option<f64>, trouble: Option<f64>, in_time: Option<bool>) -> Report {
        let rule = Baseline { rule: "rule".to_owned(), fires_after_seconds: Some(40.0), lead_seconds: None };
        let control = part(PredictionReport {
            trouble_after_seconds: trouble,
            baselines: vec![rule],
            ..PredictionReport::default()
        });
        let act = part(PredictionReport {
            decided_after_seconds: decided,
            moved_before_trouble: in_time,
            ..PredictionReport::default()
        });
        together(&control, &act)
    }

    #[test]
    fn the_lead_is_measured_against_the_run_without_a_predictor() {
        let report = both(Some(12.0), Some(50.0), Some(true));
        assert_eq!((report.risk_lead_seconds, report.failures.len()), (Some(38.0), 0));
        let prediction = report.faults[0].prediction.as_ref().expect("there");
        assert_eq!(prediction.baselines[0].lead_seconds, Some(10.0));
    }

    #[test]
    fn too_late_and_no_trouble_at_all_are_no_success() {
        assert!(both(Some(60.0), Some(50.0), Some(true)).failures[0].contains("after the first trouble"));
        assert!(both(Some(10.0), None, Some(true)).failures[0].contains("proves nothing"));
        assert!(both(Some(10.0), Some(50.0), Some(false)).failures[0].contains("before the primary was moved"));
    }

    #[test]
    fn the_least_lead_of_all_faults_counts_and_one_without_is_none() {
        let (one, other) = (both(Some(12.0), Some(50.0), Some(true)), both(Some(30.0), Some(40.0), Some(true)));
        assert_eq!(added(one.clone(), other).risk_lead_seconds, Some(10.0));
        assert_eq!(added(one, both(None, Some(40.0), None)).risk_lead_seconds, None);
    }
}
