//! Scoring: beside the loop, and never in it. Every step it pulls samples, has the model score them, and sends its word.
//!
//! Whatever goes wrong here ends in a word about it, and in silence: the loop never waits for this task, and decides without it
//! exactly as if no predictor were configured.

mod model;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::event_loop::Event;
use super::retraining::Training;
use crate::domain::epoch::Epoch;
use crate::domain::feature::Feature;
use crate::domain::ids::NodeName;
use crate::domain::risk::{ModelName, Risk};
use crate::ports::Clock;
use crate::ports::metrics::{MetricSource, ModelStamp, ModelStore, Sample};
use crate::telemetry::metrics::ControllerMetrics;
use model::{Scorer, Usable};

/// So late a scrape may be and still be in the samples of its step, in seconds.
const LATE_SECONDS: i64 = 1;
/// Steps that are asked for again after a pause; what is older is a gap.
const STEPS_CAUGHT_UP: i64 = 60;
/// Steps of history from which a new scorer learns what is usual for its node.
const STEPS_OF_HISTORY: i64 = 600;

/// What predicts.
#[derive(Clone)]
pub struct Prediction {
    /// Where samples come from.
    pub source: Arc<dyn MetricSource>,
    /// Where models are.
    pub models: Arc<dyn ModelStore>,
    /// What the samples are, column by column.
    pub features: Arc<Vec<Feature>>,
    /// Seconds between two samples.
    pub step_seconds: u32,
    /// The model by configuration; else the one that was promoted; else the first that fits.
    pub model: Option<String>,
    /// How models are trained anew; `None`: they are not.
    pub training: Option<Training>,
}

/// The scoring task's word.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Word {
    /// A model scores from now on.
    Loaded(ModelName),
    /// A model cannot be used.
    Refused(String),
    /// Nothing is predicted.
    Abstains(String),
    /// The nodes at one step, in this epoch.
    Scored {
        /// Every node.
        risks: BTreeMap<NodeName, Risk>,
        /// The epoch for which the scorers have learnt what is usual.
        epoch: Epoch,
    },
}

/// What the task needs of the loop.
pub(super) struct Surroundings {
    pub prediction: Prediction,
    pub clock: Arc<dyn Clock>,
    pub metrics: Arc<ControllerMetrics>,
    pub events: mpsc::Sender<Event>,
    pub epochs: watch::Receiver<Epoch>,
}

struct Loaded {
    usable: Usable,
    stamp: ModelStamp,
    scorers: BTreeMap<NodeName, Scorer>,
}

/// Scores until the loop has ended.
pub(super) async fn run(surroundings: Surroundings) {
    let step = Duration::from_secs(surroundings.prediction.step_seconds.into());
    let mut task = Task { at: surroundings, loaded: None, refused: None, last_step: None, epoch: Epoch(0), told: None };
    let mut ticks = tokio::time::interval(step);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            () = task.at.events.closed() => return,
            _ = ticks.tick() => {}
        }
        if let Err(problem) = task.score().await {
            task.abstain(problem).await;
        }
    }
}

struct Task {
    at: Surroundings,
    loaded: Option<Loaded>,
    /// The stamp of a model that could not be used: it is said once.
    refused: Option<(String, Option<ModelStamp>)>,
    last_step: Option<i64>,
    epoch: Epoch,
    /// The last reason to abstain, so that it is said once.
    told: Option<String>,
}

impl Task {
    async fn tell(&self, word: Word) {
        // The loop only goes away at shutdown.
        let _ = self.at.events.send(Event::Predicted(word)).await;
    }

    async fn abstain(&mut self, problem: String) {
        if self.told.as_ref() != Some(&problem) {
            self.told = Some(problem.clone());
            self.tell(Word::Abstains(problem)).await;
        }
    }

    /// One step. An error is why nothing is predicted.
    async fn score(&mut self) -> Result<(), String> {
        self.load().await?;
        let step = i64::from(self.at.prediction.step_seconds);
        let now = self.at.clock.wall().0.div_euclid(1_000_000) - LATE_SECONDS;
        let newest = now.div_euclid(step) * step;
        let epoch = *self.at.epochs.borrow();
        if epoch != self.epoch {
            // What is usual for a primary is not what is usual for a standby: they learn anew, from now on.
            self.epoch = epoch;
            if let Some(loaded) = &mut self.loaded {
                loaded.scorers.clear();
            }
            self.last_step = self.last_step.map(|last| last.max(newest - step));
        }
        // A clock that was set back begins anew.
        let last = self.last_step.filter(|last| *last <= newest + STEPS_CAUGHT_UP * step);
        if last.is_some_and(|last| last >= newest) {
            return Ok(());
        }
        let is_new = self.loaded.as_ref().is_some_and(|loaded| loaded.scorers.is_empty());
        let learns = last.is_none() && is_new;
        let reach = if learns { STEPS_OF_HISTORY } else { STEPS_CAUGHT_UP };
        let first = last.map_or(newest - reach * step, |last| last + step).max(newest - reach * step);
        let samples = self.at.prediction.source.samples(first..=newest, self.at.prediction.step_seconds).await;
        let samples = samples.map_err(|error| error.to_string())?;
        self.last_step = Some(newest);
        let Some(loaded) = &mut self.loaded else { return Err("there is no model".to_owned()) };
        let began = self.at.clock.now();
        let mut risks = BTreeMap::new();
        for (node, rows) in &samples.nodes {
            let Some((row, history)) = rows.split_last() else { continue };
            let scorer = loaded.scorers.entry(node.clone()).or_insert_with(|| loaded.usable.scorer());
            learn_or_score(&loaded.usable, scorer, history, learns);
            risks.insert(node.clone(), loaded.usable.score(scorer, row));
        }
        self.at.metrics.observe_scoring(self.at.clock.now().since(began));
        let empty = samples.nodes.values().all(|rows| rows.last().is_none_or(|row| row.iter().all(Option::is_none)));
        if empty {
            let problem =
                "Prometheus has no samples of any node at this step: look at its targets, and for the label node";
            return Err(problem.to_owned());
        }
        if let Some(problem) = samples.problems.first() {
            tracing::debug!(problem, count = samples.problems.len(), "features that could not be had");
        }
        self.told = None;
        self.tell(Word::Scored { risks, epoch }).await;
        Ok(())
    }

    /// Loads the model that shall score, if it is another one or has changed. A broken one leaves the old one where it is.
    async fn load(&mut self) -> Result<(), String> {
        match self.load_changed().await {
            Ok(Some(loaded)) => {
                let name = loaded.usable.name.clone();
                // Another model learns what is usual from the same history.
                self.last_step = None;
                self.loaded = Some(loaded);
                self.refused = None;
                self.at.metrics.show_model(Some(&name));
                self.tell(Word::Loaded(name)).await;
                Ok(())
            }
            Ok(None) => Ok(()),
            Err((problem, stamp)) => {
                if self.refused.as_ref() != Some(&(problem.clone(), stamp.clone())) {
                    self.refused = Some((problem.clone(), stamp));
                    self.tell(Word::Refused(problem.clone())).await;
                }
                if self.loaded.is_some() { Ok(()) } else { Err(problem) }
            }
        }
    }

    async fn load_changed(&self) -> Result<Option<Loaded>, (String, Option<ModelStamp>)> {
        let prediction = &self.at.prediction;
        let fail = |error: crate::ports::metrics::ModelStoreError| (error.to_string(), None);
        let name = match chosen(prediction).await {
            Ok(name) => name,
            Err(problem) => return Err((problem, None)),
        };
        let stamp = prediction.models.stamp(&name).await.map_err(fail)?;
        let is_same = self.loaded.as_ref().is_some_and(|loaded| loaded.stamp == stamp);
        let was_refused = self.refused.as_ref().is_some_and(|(_, refused)| refused.as_ref() == Some(&stamp));
        if is_same {
            return Ok(None);
        }
        if was_refused {
            let problem = self.refused.as_ref().map(|(problem, _)| problem.clone()).unwrap_or_default();
            return Err((problem, Some(stamp)));
        }
        let files = prediction.models.read(&name).await.map_err(|error| (error.to_string(), Some(stamp.clone())))?;
        let usable = model::open(&files, &prediction.features, prediction.step_seconds);
        let usable = usable.map_err(|problem| (format!("model {name}: {problem}"), Some(stamp.clone())))?;
        Ok(Some(Loaded { usable, stamp, scorers: BTreeMap::new() }))
    }
}

/// What lies before the row that is scored: learnt from, or rows that were missed.
fn learn_or_score(usable: &Usable, scorer: &mut Scorer, history: &[Sample], learns: bool) {
    if learns {
        usable.learn(scorer, history);
    } else {
        for row in history {
            usable.score(scorer, row);
        }
    }
}

/// The model that shall score.
async fn chosen(prediction: &Prediction) -> Result<String, String> {
    if let Some(name) = &prediction.model {
        return Ok(name.clone());
    }
    if let Some(name) = prediction.models.promoted().await.map_err(|error| error.to_string())? {
        return Ok(name);
    }
    let names = prediction.models.names().await.map_err(|error| error.to_string())?;
    for name in &names {
        let fits = prediction
            .models
            .read(name)
            .await
            .is_ok_and(|files| model::open(&files, &prediction.features, prediction.step_seconds).is_ok());
        if fits {
            return Ok(name.clone());
        }
    }
    Err(format!(
        "no model for a step of {} s is in predictor.model_directory, which holds {}",
        prediction.step_seconds,
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    ))
}

/// What is wrong with a model, and its version; for the list of models.
pub(super) fn examine(
    files: &crate::ports::metrics::ModelFiles,
    prediction: &Prediction,
) -> (Option<String>, Option<String>) {
    let version = model::version(&files.document);
    (version, model::open(files, &prediction.features, prediction.step_seconds).err())
}
