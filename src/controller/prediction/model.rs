//! The way to `predict`: a model from its files, held against the features that are collected, and its word as plain data.
//!
//! Nothing is decided here.

use crate::domain::feature::Feature;
use crate::domain::risk::{Driver, ModelName, Risk};
use crate::ports::metrics::{ModelFiles, Sample};
use crate::predict::{Abstention, Assessment, Model, ModelDocument, NodeScorer, Samples};

/// A model that fits the features and the step.
pub(super) struct Usable {
    /// Name and version.
    pub name: ModelName,
    model: Model,
    /// Where each of the model's features is in a sample, and its unit.
    columns: Vec<(usize, String)>,
    names: Vec<String>,
}

/// What is known of one node: its scorer, once it has learnt what is usual there; until then the samples to learn from.
pub(super) struct Scorer {
    scorer: NodeScorer,
    history: Option<Samples>,
    /// Samples to come that are not learnt from: as many as are, because what a node does at first, as a new primary or when it has just
    /// been set up, is no measure of what it does later.
    passed_over: usize,
}

impl Scorer {
    /// True once it knows what is usual.
    pub fn has_learnt(&self) -> bool {
        self.history.is_none()
    }

    /// How far off the forecasts of the last sample were, in spreads; `None` while it learns.
    pub fn forecast_error(&self) -> Option<f64> {
        self.history.is_none().then(|| self.scorer.forecast_error())
    }
}

/// Opens a model; an error says what is wrong with it.
pub(super) fn open(files: &ModelFiles, features: &[Feature], step_seconds: u32) -> Result<Usable, String> {
    let document = ModelDocument::from_json(&files.document).map_err(|error| error.to_string())?;
    if document.step_seconds != step_seconds {
        return Err(format!(
            "it was trained on a step of {} s, and predictor.step is {step_seconds}s: take the model for that step",
            document.step_seconds
        ));
    }
    let mut columns = Vec::new();
    for wanted in &document.features {
        let Some(place) = features.iter().position(|feature| feature.name == wanted.name) else {
            return Err(format!("it wants the feature {:?}, which is not among predictor.features", wanted.name));
        };
        columns.push((place, features[place].unit.clone()));
    }
    let names = document.features.iter().map(|feature| feature.name.clone()).collect();
    let name = ModelName { name: files.name.clone(), version: document.version.clone() };
    let model = Model::new(document, &files.weights).map_err(|error| error.to_string())?;
    Ok(Usable { name, model, columns, names })
}

/// The version that a document names.
pub(super) fn version(document: &str) -> Option<String> {
    let document: serde_json::Value = serde_json::from_str(document).ok()?;
    document.get("version")?.as_str().map(str::to_owned)
}

impl Usable {
    /// A scorer that has yet to learn.
    pub fn scorer(&self) -> Scorer {
        Scorer {
            scorer: NodeScorer::new(&self.model),
            history: Some(Samples::new(self.names.len())),
            passed_over: self.rows_to_learn(),
        }
    }

    /// Rows from which a scorer learns what is usual for its node.
    fn rows_to_learn(&self) -> usize {
        usize::try_from(self.model.forecaster().settling_rows()).unwrap_or(usize::MAX).saturating_add(1)
    }

    /// Rows after which a scorer without a history says something.
    pub fn rows_to_wait(&self) -> usize {
        2 * self.rows_to_learn()
    }

    /// Learns from what is known of the node.
    pub fn learn(&self, scorer: &mut Scorer, history: &[Sample]) {
        let Some(learnt) = &mut scorer.history else { return };
        for row in history {
            let row = self.columns(row);
            // Before Prometheus knew the node there is nothing to learn from.
            if learnt.rows() > 0 || row.iter().any(Option::is_some) {
                learnt.push(&row);
            }
        }
        self.finish_learning(scorer);
        if let Some(learnt) = &mut scorer.history {
            // Too few to learn from: they are the first ones, and count among those that are passed over.
            scorer.passed_over = scorer.passed_over.saturating_sub(learnt.rows());
            *learnt = Samples::new(self.names.len());
        }
    }

    fn finish_learning(&self, scorer: &mut Scorer) {
        if let Some(learnt) = scorer.history.take_if(|learnt| learnt.rows() >= self.rows_to_learn()) {
            scorer.scorer.warm_up(&self.model, &learnt);
        }
    }

    /// The model's word on the next row.
    pub fn score(&self, scorer: &mut Scorer, row: &Sample) -> Risk {
        let values = self.columns(row);
        if let Some(learnt) = &mut scorer.history {
            if scorer.passed_over > 0 {
                scorer.passed_over -= 1;
            } else {
                learnt.push(&values);
            }
            let missing = self.rows_to_learn().saturating_sub(learnt.rows()) + scorer.passed_over;
            self.finish_learning(scorer);
            return Risk {
                probability: None,
                score: 0.0,
                alarm: false,
                abstains: Some(format!("it learns what is usual: {missing} more samples are needed")),
                drifts: false,
                drivers: Vec::new(),
                model: self.name.clone(),
            };
        }
        let assessment = scorer.scorer.push(&self.model, &values);
        self.risk(&assessment, &values)
    }

    fn columns(&self, row: &Sample) -> Vec<Option<f32>> {
        self.columns.iter().map(|(place, _)| row.get(*place).copied().flatten()).collect()
    }

    fn risk(&self, assessment: &Assessment, values: &[Option<f32>]) -> Risk {
        let drivers = assessment.contributions.iter().filter_map(|part| {
            Some(Driver {
                feature: self.names.get(part.feature)?.clone(),
                value: values.get(part.feature).copied().flatten().map(f64::from),
                unit: self.columns.get(part.feature)?.1.clone(),
                share: part.share,
                deviation: part.deviation,
            })
        });
        let is_number = assessment.score.is_finite() && assessment.risk.is_none_or(|risk| (0.0..=1.0).contains(&risk));
        let abstains = match &assessment.abstains {
            Some(why) => Some(why.to_string()),
            None if is_number => None,
            None => Some("the model gives what is no risk: take another one".to_owned()),
        };
        Risk {
            probability: assessment.risk.filter(|_| abstains.is_none()),
            score: if assessment.score.is_finite() { assessment.score } else { 0.0 },
            alarm: assessment.alarm && abstains.is_none(),
            abstains,
            drifts: matches!(assessment.abstains, Some(Abstention::Drift { .. })),
            drivers: drivers.collect(),
            model: self.name.clone(),
        }
    }
}
