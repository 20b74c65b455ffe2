//! `stormglass-train calibrate`: the alarm threshold and the risk curve of a model, learnt on runs that it was not trained on.
//!
//! Some runs are healthy, in others a fault grows until commits fail. Every figure that is written down is of runs left out one at a
//! time: what judges a run was learnt on the others. What never enters: rows of the training; a threshold chosen by hand.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use clap::Args;
use stormglass::domain::rate::poisson_upper_95;
use stormglass::predict::calibration::{NetworkRole, RiskPoint};
use stormglass::predict::document::{CalibratedOn, CalibrationFigures, FaultSeen};
use stormglass::predict::{Model, ModelDocument, NetworkKind};

use crate::commands::read_for;
use crate::report::reliability::{self, Outcomes};
use crate::{card, pipeline, publish, table};

/// Thresholds that are tried: from this, in steps of that, so many.
const THRESHOLD_MIN: f32 = 0.2;
const THRESHOLD_STEP: f32 = 0.02;
const THRESHOLDS: u16 = 240;
/// A point of the curve that fewer rows speak for is not claimed: it takes the risk of the point before it.
const ROWS_OF_A_POINT_MIN: usize = 10;

/// Arguments of `calibrate`.
#[derive(Debug, Args)]
pub struct CalibrateArguments {
    /// Folder of the model, whose calibration and card are written anew
    #[arg(long)]
    pub model: PathBuf,
    /// Its linear twin, trained on the same samples: its figures go into the card
    #[arg(long)]
    pub twin: Option<PathBuf>,
    /// Samples of a node without a fault, one file a run
    #[arg(long, required = true, num_args = 1..)]
    pub healthy: Vec<PathBuf>,
    /// Samples of a node with a fault that grows; FILE.csv has FILE.labels.csv beside it: 1 in each row from its beginning on
    #[arg(long, required = true, num_args = 1.., value_name = "NAME=FILE", value_parser = fault)]
    pub fault: Vec<(String, PathBuf)>,
    /// Rows at the beginning of each run from which is learnt what is usual on the node
    #[arg(long, default_value_t = 120)]
    pub learn: usize,
    /// Where the runs came from, in words, for the card
    #[arg(long)]
    pub source: String,
}

fn fault(text: &str) -> Result<(String, PathBuf), String> {
    let parts = text.split_once('=').filter(|(name, file)| !name.is_empty() && !file.is_empty());
    parts.map(|(name, file)| (name.to_owned(), PathBuf::from(file))).ok_or_else(|| "expected NAME=FILE".to_owned())
}

/// What a model said of one run.
struct Run {
    fault: Option<String>,
    /// A surprise a row, with whether the fault was there; rows of which nothing was said are calm.
    outcomes: Outcomes,
}

/// What a threshold makes of runs.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Verdict {
    caught: u64,
    missed: u64,
    false_alarms: u64,
}

impl Verdict {
    fn event_f1(self) -> f64 {
        2.0 * self.caught as f64 / (2 * self.caught + self.missed + self.false_alarms).max(1) as f64
    }
}

impl Run {
    fn read(model: &Model, file: &Path, fault: Option<&str>, learn: usize) -> anyhow::Result<Self> {
        let samples = read_for(model, file)?;
        let rows = samples.rows();
        ensure!(
            rows > learn,
            "{}: {rows} rows, of which {learn} are learnt from: none is left to judge",
            file.display()
        );
        let labels = match fault {
            None => vec![false; rows],
            Some(_) => {
                let beside = file.with_extension("labels.csv");
                let labels = table::read_labels(&beside)?;
                ensure!(labels.len() == rows, "{}: {} labels for {rows} rows", beside.display(), labels.len());
                ensure!(labels[learn..].contains(&true), "{}: no row with a fault", beside.display());
                ensure!(!labels[..learn].contains(&true), "{}: the fault begins before row {learn}", beside.display());
                labels
            }
        };
        let mut surprises = Vec::with_capacity(rows - learn);
        pipeline::score(model, &samples.slice(0, learn), &samples.slice(learn, rows), |_, said| {
            surprises.push(said.surprise as f32);
        });
        let outcomes = Outcomes { surprises, trouble: labels[learn..].to_vec() };
        Ok(Self { fault: fault.map(str::to_owned), outcomes })
    }

    /// The first row with the fault and an alarm.
    fn caught(&self, threshold: f32) -> Option<usize> {
        let mut rows = self.outcomes.surprises.iter().zip(&self.outcomes.trouble);
        rows.position(|(surprise, trouble)| *trouble && *surprise >= threshold)
    }

    /// Alarms without the fault; those closer than `merge` rows are one.
    fn false_alarms(&self, threshold: f32, merge: usize) -> u64 {
        let mut last = None;
        let mut count = 0;
        for (row, (surprise, trouble)) in self.outcomes.surprises.iter().zip(&self.outcomes.trouble).enumerate() {
            if *surprise >= threshold && !trouble {
                count += u64::from(last.is_none_or(|last| row - last > merge));
                last = Some(row);
            }
        }
        count
    }

    fn verdict(&self, threshold: f32, merge: usize) -> Verdict {
        let caught = u64::from(self.caught(threshold).is_some());
        let missed = u64::from(self.fault.is_some()) - caught;
        Verdict { caught, missed, false_alarms: self.false_alarms(threshold, merge) }
    }
}

/// The threshold with the best event F1; of several the middle one of the longest row of them, as far as possible from both mistakes.
fn threshold<'runs>(runs: impl Iterator<Item = &'runs Run> + Clone, merge: usize) -> f32 {
    let at = |index: u16| THRESHOLD_MIN + THRESHOLD_STEP * f32::from(index);
    let worth = |index: u16| {
        let sum = runs.clone().map(|run| run.verdict(at(index), merge)).fold(Verdict::default(), |sum, one| Verdict {
            caught: sum.caught + one.caught,
            missed: sum.missed + one.missed,
            false_alarms: sum.false_alarms + one.false_alarms,
        });
        sum.event_f1()
    };
    let all: Vec<f64> = (0..THRESHOLDS).map(worth).collect();
    let best = all.iter().copied().fold(0.0, f64::max);
    let (mut longest, mut begin) = ((0, 0), 0);
    for index in 0..THRESHOLDS {
        if all[usize::from(index)] < best - 1e-12 {
            begin = index + 1;
        } else if index + 1 - begin > longest.1 - longest.0 {
            longest = (begin, index + 1);
        }
    }
    at(u16::midpoint(longest.0, longest.1.saturating_sub(1).max(longest.0)))
}

/// The curve of all runs; where hardly a row speaks for a point, it is level.
fn curve(outcomes: &[Outcomes]) -> Vec<RiskPoint> {
    let mut points = reliability::curve(outcomes.iter());
    for index in 1..points.len() {
        let low = f32::midpoint(points[index - 1].surprise, points[index].surprise);
        let beyond = outcomes.iter().flat_map(|one| &one.surprises).filter(|surprise| **surprise >= low).count();
        if beyond < ROWS_OF_A_POINT_MIN {
            points[index].risk = points[index - 1].risk;
        }
    }
    reliability::claimed(points)
}

/// Every run judged by what was learnt on the others.
fn figures(runs: &[Run], step_seconds: u32, merge: usize) -> CalibrationFigures {
    let mut faults: Vec<FaultSeen> = Vec::new();
    let (mut false_alarms, mut calm_rows) = (0, 0);
    for (index, run) in runs.iter().enumerate() {
        let others = runs.iter().enumerate().filter(|(other, _)| *other != index).map(|(_, run)| run);
        let threshold = threshold(others, merge);
        false_alarms += run.false_alarms(threshold, merge);
        calm_rows += run.outcomes.trouble.iter().filter(|trouble| !**trouble).count();
        let Some(name) = &run.fault else { continue };
        let place = faults.iter().position(|seen| seen.fault == *name).unwrap_or_else(|| {
            faults.push(FaultSeen { fault: name.clone(), runs: 0, alarmed: 0, lead_seconds_min: None });
            faults.len() - 1
        });
        let seen = &mut faults[place];
        seen.runs += 1;
        if let Some(row) = run.caught(threshold) {
            seen.alarmed += 1;
            let lead = (run.outcomes.trouble.len() - 1 - row) as f64 * f64::from(step_seconds);
            seen.lead_seconds_min = Some(seen.lead_seconds_min.map_or(lead, |least| least.min(lead)));
        }
    }
    let outcomes: Vec<Outcomes> = runs.iter().map(|run| run.outcomes.clone()).collect();
    let (brier, brier_of_mean) = reliability::brier(&reliability::leave_one_out(&outcomes));
    let node_days = calm_rows as f64 * f64::from(step_seconds) / 86_400.0;
    CalibrationFigures {
        node_days,
        false_alarms,
        false_alarms_per_node_day_upper_95: poisson_upper_95(false_alarms) / node_days,
        brier,
        brier_of_mean,
        faults,
    }
}

fn read_runs(model: &Model, arguments: &CalibrateArguments) -> anyhow::Result<Vec<Run>> {
    let healthy = arguments.healthy.iter().map(|file| Run::read(model, file, None, arguments.learn));
    let faulty = arguments.fault.iter().map(|(name, file)| Run::read(model, file, Some(name), arguments.learn));
    healthy.chain(faulty).collect()
}

/// A model in the role in which it does best on runs that were left out, with what it said of all.
fn best_role(
    mut document: ModelDocument,
    weights: &[u8],
    arguments: &CalibrateArguments,
) -> anyhow::Result<(ModelDocument, Vec<Run>, CalibrationFigures)> {
    let merge = (document.horizon_seconds / document.step_seconds).max(1) as usize;
    let roles: &[NetworkRole] = match document.architecture.network {
        NetworkKind::None => &[NetworkRole::Lowers],
        NetworkKind::Lstm { .. } => &[NetworkRole::Lowers, NetworkRole::Decides],
    };
    let mut best: Option<(ModelDocument, Vec<Run>, CalibrationFigures)> = None;
    for role in roles {
        document.calibration.network_role = *role;
        let model = Model::new(document.clone(), weights)?;
        let runs = read_runs(&model, arguments)?;
        let figures = figures(&runs, document.step_seconds, merge);
        // What is no better changes nothing: the careful role comes first.
        if best.as_ref().is_none_or(|(_, _, before)| event_f1(&figures) > event_f1(before)) {
            best = Some((document.clone(), runs, figures));
        }
    }
    best.context("no role was tried")
}

/// Of runs left out one at a time.
fn event_f1(figures: &CalibrationFigures) -> f64 {
    let caught = figures.faults.iter().map(|fault| fault.alarmed as u64).sum();
    let runs: u64 = figures.faults.iter().map(|fault| fault.runs as u64).sum();
    Verdict { caught, missed: runs - caught, false_alarms: figures.false_alarms }.event_f1()
}

/// Runs the command.
pub fn run(arguments: &CalibrateArguments) -> anyhow::Result<()> {
    let model = publish::read_model(&arguments.model)?;
    let weights = arguments.model.join(publish::WEIGHTS);
    let weights = std::fs::read(&weights).with_context(|| format!("read {}", weights.display()))?;
    let (mut document, runs, own) = best_role(model.document().clone(), &weights, arguments)?;
    let merge = |document: &ModelDocument| (document.horizon_seconds / document.step_seconds).max(1) as usize;
    let twin = arguments.twin.as_deref().map(publish::read_model).transpose()?;
    let twin = twin.map(|twin| {
        ensure!(
            twin.document().data_sha256 == document.data_sha256,
            "--twin: {} was trained on other samples",
            twin.document().name
        );
        Ok(figures(&read_runs(&twin, arguments)?, twin.document().step_seconds, merge(twin.document())))
    });
    let outcomes: Vec<Outcomes> = runs.iter().map(|run| run.outcomes.clone()).collect();
    document.calibration.alarm_surprise = threshold(runs.iter(), merge(&document));
    document.calibration.risk_curve = curve(&outcomes);
    document.calibrated_on = Some(CalibratedOn { source: arguments.source.clone(), own, twin: twin.transpose()? });
    publish::write_model(&arguments.model, &document, &weights, &card::render(&document))?;
    publish::read_model(&arguments.model)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calm rows, then a fault whose surprises reach `peak` in the second half; `scare` is the highest of the calm ones.
    fn run(fault: Option<&str>, scare: f32, peak: f32) -> Run {
        let mut surprises = vec![-0.3; 50];
        surprises[20] = scare;
        let mut trouble = vec![false; 50];
        if fault.is_some() {
            surprises.extend((0..20_u8).map(|row| peak * f32::from(row) / 19.0));
            trouble.extend([true; 20]);
        }
        Run { fault: fault.map(str::to_owned), outcomes: Outcomes { surprises, trouble } }
    }

    #[test]
    fn the_threshold_lies_midway_between_the_worst_scare_and_the_weakest_fault() {
        let runs = [run(None, 0.6, 0.0), run(Some("disk"), 0.4, 2.0), run(Some("leak"), 0.2, 3.0)];
        let found = threshold(runs.iter(), 5);
        assert!((found - 1.3).abs() < 0.03, "{found}");
    }

    #[test]
    fn a_run_is_judged_by_the_others_alone() {
        // The second scare is above what the other runs know of: it is a false alarm in the figures, though a threshold above it exists.
        let runs = [run(None, 0.5, 0.0), run(None, 2.0, 0.0), run(Some("disk"), 0.3, 3.0), run(Some("disk"), 0.3, 3.4)];
        let figures = figures(&runs, 1, 5);
        assert_eq!(figures.false_alarms, 1, "{figures:?}");
        assert_eq!(
            figures.faults,
            [FaultSeen {
                fault: "disk".to_owned(),
                runs: 2,
                alarmed: 2,
                lead_seconds_min: figures.faults[0].lead_seconds_min,
            }]
        );
        assert!(figures.faults[0].lead_seconds_min.is_some_and(|lead| lead < 19.0), "{figures:?}");
        assert!(figures.false_alarms_per_node_day_upper_95 > figures.false_alarms as f64 / figures.node_days);
    }

    #[test]
    fn alarms_without_a_fault_are_counted_once_for_each_horizon() {
        let mut calm = run(None, 3.0, 0.0);
        calm.outcomes.surprises[22] = 3.0;
        calm.outcomes.surprises[40] = 3.0;
        assert_eq!(calm.false_alarms(1.0, 5), 2);
    }

    #[test]
    fn what_hardly_a_row_speaks_for_is_not_claimed() {
        let mut outcomes = Outcomes { surprises: vec![-1.0; 100], trouble: vec![false; 100] };
        outcomes.surprises.extend([1.1; 30]);
        outcomes.trouble.extend((0..30).map(|row| row % 2 == 0));
        outcomes.surprises.extend([3.9; 3]);
        outcomes.trouble.extend([true; 3]);
        let points = curve(&[outcomes]);
        assert!(points.last().is_some_and(|last| last.risk < 0.6), "{points:?}");
        assert!(points.windows(2).all(|pair| pair[0].risk <= pair[1].risk));
    }
}
