//! Labelled series of the report, and a run of the product on one.
//!
//! What never enters: labels into a run.

use std::path::Path;

use anyhow::{Context as _, ensure};
use indicatif::ProgressBar;
use stormglass::predict::Samples;

use crate::benchmark;
use crate::network::Settings;
use crate::pipeline::{self, Naming};
use crate::table::{Table, read_labels};

/// Share of a NAB file that is training; by NAB's convention it is not scored.
const NAB_TRAINING: f64 = 0.15;

/// A series with its incidents.
pub struct Series {
    /// Its name.
    pub name: String,
    /// Seconds between rows.
    pub step_seconds: u32,
    /// Training rows.
    pub train: Samples,
    /// Test rows.
    pub test: Samples,
    /// An incident in the test row.
    pub labels: Vec<bool>,
}

/// What the product said of a series.
pub struct Run {
    /// Scores for ranking.
    pub scores: Vec<f64>,
    /// Its own alarms.
    pub alarms: Vec<bool>,
    /// Surprise, 0 where it abstained.
    pub surprises: Vec<f32>,
    /// The threshold of its alarms.
    pub threshold: f32,
}

/// The machines of a folder like SMD's.
pub fn smd(folder: &Path) -> anyhow::Result<Vec<Series>> {
    benchmark::machines(folder)?
        .into_iter()
        .map(|machine| {
            let train = Table::read(&machine.train)?;
            let test = Table::read(&machine.test)?.with_columns(&train.columns, &machine.test.display().to_string())?;
            let labels = read_labels(&folder.join("labels").join(format!("{}.csv", machine.name)))?;
            ensure!(
                labels.len() == test.samples.rows(),
                "{}: {} labels for {} rows",
                machine.name,
                labels.len(),
                test.samples.rows()
            );
            Ok(Series { name: machine.name, step_seconds: 60, train: train.samples, test: test.samples, labels })
        })
        .collect()
}

/// The files of a folder like NAB's.
pub fn nab(folder: &Path) -> anyhow::Result<Vec<Series>> {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .with_context(|| format!("read the folder {}", folder.display()))?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "csv"))
        .collect();
    files.sort();
    let mut all = Vec::new();
    for file in files {
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let samples = Table::read(&file)?.samples;
        let labels = read_labels(&folder.join("labels").join(format!("{name}.csv")))?;
        ensure!(labels.len() == samples.rows(), "{name}: {} labels for {} rows", labels.len(), samples.rows());
        let split = (samples.rows() as f64 * NAB_TRAINING) as usize;
        if !labels[split..].contains(&true) {
            continue;
        }
        all.push(Series {
            name,
            step_seconds: 300,
            train: samples.slice(0, split),
            test: samples.slice(split, samples.rows()),
            labels: labels[split..].to_vec(),
        });
    }
    Ok(all)
}

impl Series {
    /// Trains on the training rows and scores the test rows in order.
    pub fn run(&self, seed: u64, is_linear: bool, steps: Option<u32>) -> anyhow::Result<Run> {
        let naming = Naming {
            name: self.name.clone(),
            version: "1".to_owned(),
            step_seconds: self.step_seconds,
            horizon_seconds: 900,
            source: self.name.clone(),
            span: None,
        };
        let columns: Vec<String> = (0..self.train.features()).map(|column| format!("m{column:02}")).collect();
        let nodes = std::slice::from_ref(&self.train);
        let mut settings = Settings::shipped(seed);
        settings.steps = steps.unwrap_or(settings.steps);
        let features = pipeline::plain_features(&columns);
        let fitted = pipeline::fit(&naming, features, nodes, &settings, is_linear, None, &ProgressBar::hidden())?;
        let model = fitted.model()?;
        let threshold = model.document().calibration.alarm_surprise;
        let mut run = Run { scores: Vec::new(), alarms: Vec::new(), surprises: Vec::new(), threshold };
        pipeline::score(&model, &self.train, &self.test, |_, said| {
            run.scores.push(said.score);
            run.alarms.push(said.alarm);
            run.surprises.push(said.surprise as f32);
        });
        Ok(run)
    }
}
