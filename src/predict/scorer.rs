//! Scoring one node, sample by sample: [`NodeScorer`] remembers the node, the [`Model`] is shared.
//!
//! A new sample costs one step of the network. What never enters: what is no number, other nodes, time (rows come on the model's step;
//! whoever collects them says when one is missing by passing `None`s).

use super::drift::Drift;
use super::familiar::FamiliarSizes;
use super::forecaster::ForecasterState;
use super::levels::LevelHistory;
use super::model::Model;
use super::residuals::root_mean_square;
use super::samples::Samples;
use super::scaler::FeatureScale;
use super::scores::{COMPONENTS, ranking};

/// Weight of the newest row in the score for ranking while the score rises: two rows or three.
const ATTACK: f32 = 0.4;

/// The same while it falls, about ten rows: what was unusual a moment ago still is, and an incident that flickers is one.
const RELEASE: f32 = 0.1;

/// Weight of the newest row in the surprise: a single wild row counts for a little less than two in a row.
const SURPRISE_SMOOTHING: f32 = 0.7;

/// So many features are named as reasons at most.
const CONTRIBUTIONS_MAX: usize = 5;

/// What is said of a node after a sample.
#[derive(Debug, Clone, PartialEq)]
pub struct Assessment {
    /// Probability of trouble now or within the model's horizon, in [0, 1]; `None` while the model abstains.
    pub risk: Option<f64>,
    /// For ranking rows of one node: smoothed, at least 0, 1 is about usual.
    pub score: f64,
    /// How far the score of the last row or two lies above what is usual on this node, as a natural logarithm; 0 while the model abstains.
    pub surprise: f64,
    /// The surprise is large enough for an alarm.
    pub alarm: bool,
    /// Why nothing is said.
    pub abstains: Option<Abstention>,
    /// The features that drive the score, the largest share first; filled when the score is above what is usual.
    pub contributions: Vec<Contribution>,
}

/// Why a model says nothing of a node.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum Abstention {
    /// The sample has another number of features than the model.
    #[error("a sample has {found} features, the model wants {expected}")]
    Width {
        /// In the sample.
        found: usize,
        /// In the model.
        expected: usize,
    },
    /// The running means are not settled yet.
    #[error("{rows_missing} more samples are needed")]
    WarmingUp {
        /// How many.
        rows_missing: u64,
    },
    /// More than half of the features that usually vary are missing.
    #[error("only {present} of {expected} features have a value")]
    FewFeatures {
        /// Features with a value.
        present: usize,
        /// Features that vary on this node.
        expected: usize,
    },
    /// The node is unlike those that the model was trained on.
    #[error("everyday scores are {ratio:.0} times those of training: the model does not know this node")]
    Drift {
        /// Everyday score over that of training.
        ratio: f64,
    },
}

/// A feature's part in a score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Contribution {
    /// Index of the feature in the model's list.
    pub feature: usize,
    /// Its share of the squared residuals, 0–1.
    pub share: f64,
    /// How far it is from its forecast, in spreads of this node; positive means higher than forecast.
    pub deviation: f64,
}

/// What scoring remembers of one node.
#[derive(Debug, Clone)]
pub struct NodeScorer {
    scaler: Vec<FeatureScale>,
    varying: usize,
    state: ForecasterState,
    levels: [LevelHistory; COMPONENTS],
    familiar: FamiliarSizes,
    smoothed: Option<f32>,
    surprise: f32,
    rows_missed: u64,
    scaled: Vec<Option<f32>>,
    unfamiliar: Vec<f32>,
    centred: Vec<f32>,
}

impl NodeScorer {
    /// A node of which nothing is known: scaled as in training until [`NodeScorer::warm_up`].
    #[must_use]
    pub fn new(model: &Model) -> Self {
        let document = model.document();
        let calibration = &document.calibration;
        let memory_rows = (calibration.memory_seconds as f32 / document.step_seconds as f32).max(1.0);
        let mut scorer = Self {
            scaler: document.scaler.clone(),
            varying: 0,
            state: model.forecaster().start(),
            levels: calibration.levels(memory_rows),
            familiar: FamiliarSizes::new(document.features.len(), document.step_seconds),
            smoothed: None,
            surprise: 0.0,
            rows_missed: 0,
            scaled: Vec::with_capacity(document.features.len()),
            unfamiliar: Vec::with_capacity(document.features.len()),
            centred: Vec::with_capacity(model.forecaster().residual_count()),
        };
        scorer.count_varying();
        scorer
    }

    fn count_varying(&mut self) {
        self.varying = self.scaler.iter().filter(|scale| scale.spread > 0.0).count();
    }

    /// Learns from the node's own history what is usual for it, and forgets everything learnt before. A history of other columns, or
    /// one too short to settle the running means, changes nothing.
    pub fn warm_up(&mut self, model: &Model, history: &Samples) {
        let document = model.document();
        if history.features() != document.features.len() || (history.rows() as u64) < model.forecaster().settling_rows()
        {
            return;
        }
        *self = Self::new(model);
        for (feature, scale) in self.scaler.iter_mut().enumerate() {
            if let Some(own) = FeatureScale::of(&history.column(feature)) {
                *scale = own.at_least(*scale);
            }
        }
        self.count_varying();
        let mut row = Vec::new();
        for index in 0..history.rows() {
            history.read(index, &mut row);
            self.push(model, &row);
        }
    }

    /// Takes the next sample, one value a feature, and says what it means.
    pub fn push(&mut self, model: &Model, sample: &[Option<f32>]) -> Assessment {
        if sample.len() != self.scaler.len() {
            return self.abstain(Abstention::Width { found: sample.len(), expected: self.scaler.len() });
        }
        self.scaled.clear();
        self.scaled.extend(self.scaler.iter().zip(sample).map(|(scale, value)| scale.scale(*value)));
        let present = self.scaled.iter().flatten().count();
        if present == 0 || 2 * present < self.varying {
            self.rows_missed += 1;
            if self.rows_missed > model.forecaster().settling_rows() {
                // What came before so long a gap says nothing of what comes after it; what is usual stays known.
                self.state = model.forecaster().start();
                self.smoothed = None;
                self.surprise = 0.0;
            }
            return self.abstain(Abstention::FewFeatures { present, expected: self.varying });
        }
        self.rows_missed = 0;
        model.forecaster().advance(&mut self.state, &self.scaled);
        self.familiar.relate(self.state.values(), &mut self.unfamiliar);
        let settling = model.forecaster().settling_rows();
        if self.state.rows() <= settling {
            return self.abstain(Abstention::WarmingUp { rows_missing: settling + 1 - self.state.rows() });
        }
        self.assess(model)
    }

    fn assess(&mut self, model: &Model) -> Assessment {
        let scores = model.whitenings().scores(&self.state, &self.unfamiliar, self.varying, &mut self.centred);
        let halves = model.whitenings().half_scores(&self.state, &scores, &mut self.centred);
        let calibration = &model.document().calibration;
        let instant = calibration.surprise(&scores, &mut self.levels);
        self.surprise += SURPRISE_SMOOTHING * (instant - self.surprise);
        let surprise = self.surprise;
        self.levels.iter_mut().zip(scores).for_each(|(level, score)| level.add(score));
        let instant = ranking(&scores, &halves);
        let smoothed = self
            .smoothed
            .map_or(instant, |before| before + if instant > before { ATTACK } else { RELEASE } * (instant - before));
        self.smoothed = Some(smoothed);
        if let Some(drift) = self.drift(model).filter(|drift| drift.is_too_far()) {
            return self.abstain(Abstention::Drift { ratio: drift.ratio });
        }
        Assessment {
            risk: Some(calibration.risk(surprise)),
            score: f64::from(smoothed),
            surprise: f64::from(surprise),
            alarm: surprise >= calibration.alarm_surprise,
            abstains: None,
            contributions: if surprise > 0.0 { self.contributions() } else { Vec::new() },
        }
    }

    fn abstain(&self, why: Abstention) -> Assessment {
        Assessment {
            risk: None,
            score: f64::from(self.smoothed.unwrap_or(0.0)),
            surprise: 0.0,
            alarm: false,
            abstains: Some(why),
            contributions: Vec::new(),
        }
    }

    /// The features that drive the last score, the largest share first.
    #[must_use]
    pub fn contributions(&self) -> Vec<Contribution> {
        let residuals = self.state.residuals();
        let features = self.scaler.len();
        let total: f32 = residuals.iter().map(|residual| residual * residual).sum();
        if total <= 0.0 {
            return Vec::new();
        }
        let mut contributions: Vec<Contribution> = (0..features)
            .map(|feature| {
                let own: f32 =
                    residuals.iter().skip(feature).step_by(features).map(|residual| residual * residual).sum();
                Contribution { feature, share: f64::from(own / total), deviation: f64::from(residuals[feature]) }
            })
            .filter(|contribution| contribution.share > 0.0)
            .collect();
        contributions.sort_by(|left, right| right.share.total_cmp(&left.share));
        contributions.truncate(CONTRIBUTIONS_MAX);
        contributions
    }

    /// How this node's everyday scores compare with those of training; `None` until it was seen long enough.
    pub fn drift(&mut self, model: &Model) -> Option<Drift> {
        let level = &mut self.levels[0];
        let node = level.reference()?;
        Drift::between(model.document().calibration.references[0], node, level.rows())
    }

    /// How far off the forecasts of the last sample were: the root of the mean square over features and horizons, in spreads.
    #[must_use]
    pub fn forecast_error(&self) -> f64 {
        let residuals = self.state.residuals();
        let horizons = residuals.len() / self.scaler.len().max(1);
        f64::from(root_mean_square(residuals, horizons * self.varying))
    }

    /// How this node is scaled.
    #[must_use]
    pub fn scaler(&self) -> &[FeatureScale] {
        &self.scaler
    }
}
