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
    /// A model that scores beside it, whose word nobody hears.
    pub challenger: Option<String>,
    /// How models are trained anew; `None`: they are not.
    pub training: Option<Training>,
}

/// What a model has said since it was loaded.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Tally {
    /// Samples of all nodes that it was given.
    pub samples: u64,
    /// Of which it said nothing of so many.
    pub silent: u64,
    /// Alarms that began.
    pub alarms: u64,
    /// Sum of the forecasts' errors in the others, in spreads.
    error_sum: f64,
    alarmed: BTreeMap<NodeName, bool>,
}

impl Tally {
    fn count(&mut self, node: &NodeName, risk: &Risk, error: Option<f64>) {
        self.samples += 1;
        match error.filter(|_| risk.abstains.is_none()) {
            Some(error) => self.error_sum += error,
            None => self.silent += 1,
        }
        let was_alarmed = self.alarmed.insert(node.clone(), risk.alarm).unwrap_or(false);
        self.alarms += u64::from(risk.alarm && !was_alarmed);
    }

    /// Mean error of the forecasts, in spreads; `None` before the first.
    pub fn forecast_error(&self) -> Option<f64> {
        let judged = self.samples - self.silent;
        (judged > 0).then(|| self.error_sum / judged as f64)
    }
}

/// A model with what it has said.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tallied {
    pub model: ModelName,
    pub tally: Tally,
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
        /// What the model has said so far, and after it the challenger.
        tallied: Vec<Tallied>,
    },
    /// The challenger cannot be used.
    ChallengerRefused(String),
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
    tally: Tally,
}

impl Loaded {
    /// What the model says of every node at the last of these rows.
    fn score(&mut self, nodes: &BTreeMap<NodeName, Vec<Sample>>, learns: bool) -> BTreeMap<NodeName, Risk> {
        let mut risks = BTreeMap::new();
        for (node, rows) in nodes {
            let Some((row, history)) = rows.split_last() else { continue };
            let scorer = self.scorers.entry(node.clone()).or_insert_with(|| self.usable.scorer());
            learn_or_score(&self.usable, scorer, history, learns);
            let risk = self.usable.score(scorer, row);
            self.tally.count(node, &risk, scorer.forecast_error());
            risks.insert(node.clone(), risk);
        }
        risks
    }

    /// Has every node's scorer learn anew what is usual, from these rows. One for which they are too few goes on as it is.
    fn learn_again(&mut self, nodes: &BTreeMap<NodeName, Vec<Sample>>) {
        for (node, rows) in nodes {
            let mut scorer = self.usable.scorer();
            self.usable.learn(&mut scorer, rows);
            if scorer.has_learnt() {
                self.scorers.insert(node.clone(), scorer);
            }
        }
    }

    fn tallied(&self) -> Tallied {
        Tallied { model: self.usable.name.clone(), tally: self.tally.clone() }
    }
}

/// Scores until the loop has ended.
pub(super) async fn run(surroundings: Surroundings) {
    let step = Duration::from_secs(surroundings.prediction.step_seconds.into());
    let mut task = Task {
        at: surroundings,
        loaded: None,
        refused: None,
        challenger: None,
        challenger_refused: None,
        last_step: None,
        epoch: Epoch(0),
        acquaintance: Acquaintance::default(),
        is_alarmed: false,
        told: None,
    };
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

/// How well the scorers know their nodes.
///
/// From few steps nobody knows what is usual. So they learn anew, from the newer half of what there is, whenever there is twice as much as
/// when they last learnt, up to [`STEPS_OF_HISTORY`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Acquaintance {
    /// The step with which it began.
    began: i64,
    /// Steps that there were when they last learnt.
    steps: i64,
}

impl Acquaintance {
    /// From which step on to learn at `newest`, if it is time to.
    fn learns_from(self, newest: i64, step: i64) -> Option<i64> {
        let known = newest.saturating_sub(self.began) / step;
        let is_due = (1..STEPS_OF_HISTORY).contains(&self.steps) && known >= 2 * self.steps;
        is_due.then(|| newest - (known / 2).min(STEPS_OF_HISTORY) * step)
    }
}

struct Task {
    at: Surroundings,
    loaded: Option<Loaded>,
    /// The stamp of a model that could not be used: it is said once.
    refused: Option<(String, Option<ModelStamp>)>,
    /// Scores beside it. What it says is counted, and goes no further.
    challenger: Option<Loaded>,
    challenger_refused: Option<(String, Option<ModelStamp>)>,
    last_step: Option<i64>,
    epoch: Epoch,
    acquaintance: Acquaintance,
    /// The model expected trouble of some node at the last step.
    is_alarmed: bool,
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
        self.load_challenger().await;
        let step = i64::from(self.at.prediction.step_seconds);
        let now = self.at.clock.wall().0.div_euclid(1_000_000) - LATE_SECONDS;
        let newest = now.div_euclid(step) * step;
        let epoch = *self.at.epochs.borrow();
        if epoch != self.epoch {
            // What is usual for a primary is not what is usual for a standby: they learn anew, from now on.
            self.epoch = epoch;
            for loaded in self.loaded.iter_mut().chain(&mut self.challenger) {
                loaded.scorers.clear();
            }
            self.last_step = self.last_step.map(|last| last.max(newest - step));
            self.acquaintance = Acquaintance { began: newest, steps: self.steps_to_wait() };
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
        if learns {
            let known = samples.nodes.values().map(|rows| known_rows(rows)).max().unwrap_or(0);
            let steps = known.max(self.steps_to_wait());
            self.acquaintance = Acquaintance { began: newest - known * step, steps };
        }
        let Some(loaded) = &mut self.loaded else { return Err("there is no model".to_owned()) };
        let began = self.at.clock.now();
        let risks = loaded.score(&samples.nodes, learns);
        let mut tallied = vec![loaded.tallied()];
        self.at.metrics.observe_scoring(self.at.clock.now().since(began));
        self.is_alarmed = risks.values().any(|risk| risk.alarm);
        if let Some(challenger) = &mut self.challenger {
            challenger.score(&samples.nodes, learns);
            tallied.push(challenger.tallied());
        }
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
        self.tell(Word::Scored { risks, epoch, tallied }).await;
        self.learn_again(newest).await;
        Ok(())
    }

    /// Has the scorers learn anew if it is time to, and never from a trouble that is under way. Without samples they go on as they are,
    /// and it is tried again at the next step.
    async fn learn_again(&mut self, newest: i64) {
        let step = i64::from(self.at.prediction.step_seconds);
        let Some(first) = self.acquaintance.learns_from(newest, step).filter(|_| !self.is_alarmed) else { return };
        match self.at.prediction.source.samples(first..=newest, self.at.prediction.step_seconds).await {
            Ok(samples) => {
                for loaded in self.loaded.iter_mut().chain(&mut self.challenger) {
                    loaded.learn_again(&samples.nodes);
                }
                self.acquaintance.steps = (newest - self.acquaintance.began) / step;
            }
            Err(error) => tracing::debug!(%error, "what is usual cannot be learnt anew yet"),
        }
    }

    /// Steps after which a scorer without a history says something.
    fn steps_to_wait(&self) -> i64 {
        self.loaded.as_ref().map_or(0, |loaded| i64::try_from(loaded.usable.rows_to_wait()).unwrap_or(i64::MAX / 2))
    }

    /// Loads the model that shall score, if it is another one or has changed. A broken one leaves the old one where it is.
    async fn load(&mut self) -> Result<(), String> {
        let name = chosen(&self.at.prediction).await;
        let changed = match name {
            Ok(name) => self.changed(&name, self.loaded.as_ref(), self.refused.as_ref()).await,
            Err(problem) => Err((problem, None)),
        };
        match changed {
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

    /// Loads the challenger, if there shall be one and it has changed. One that cannot be used is said once, and changes nothing else.
    async fn load_challenger(&mut self) {
        let Some(name) = self.at.prediction.challenger.clone() else { return };
        match self.changed(&name, self.challenger.as_ref(), self.challenger_refused.as_ref()).await {
            Ok(None) => {}
            Ok(Some(loaded)) => {
                self.challenger = Some(loaded);
                self.challenger_refused = None;
            }
            Err(problem) => {
                if self.challenger_refused.as_ref() != Some(&problem) {
                    self.tell(Word::ChallengerRefused(problem.0.clone())).await;
                    self.challenger_refused = Some(problem);
                }
            }
        }
    }

    /// The model `name`, if it is another one than `loaded` or has changed on disk.
    async fn changed(
        &self,
        name: &str,
        loaded: Option<&Loaded>,
        refused: Option<&(String, Option<ModelStamp>)>,
    ) -> Result<Option<Loaded>, (String, Option<ModelStamp>)> {
        let prediction = &self.at.prediction;
        let fail = |error: crate::ports::metrics::ModelStoreError| (error.to_string(), None);
        let stamp = prediction.models.stamp(name).await.map_err(fail)?;
        if loaded.is_some_and(|loaded| loaded.stamp == stamp) {
            return Ok(None);
        }
        if let Some((problem, _)) = refused.filter(|(_, refused)| refused.as_ref() == Some(&stamp)) {
            return Err((problem.clone(), Some(stamp)));
        }
        let files = prediction.models.read(name).await.map_err(|error| (error.to_string(), Some(stamp.clone())))?;
        let usable = model::open(&files, &prediction.features, prediction.step_seconds);
        let usable = usable.map_err(|problem| (format!("model {name}: {problem}"), Some(stamp.clone())))?;
        Ok(Some(Loaded { usable, stamp, scorers: BTreeMap::new(), tally: Tally::default() }))
    }
}

/// Rows since the first that holds anything.
fn known_rows(rows: &[Sample]) -> i64 {
    let empty = rows.iter().take_while(|row| row.iter().all(Option::is_none)).count();
    i64::try_from(rows.len() - empty).unwrap_or(i64::MAX)
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

#[cfg(test)]
mod tests;
