//! `model.json`: what a model is, which samples it wants, how it was trained, and how good it was found to be.
//!
//! What lives here: the document and its reading. What never enters: weights, files, scoring.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::calibration::Calibration;
use super::model::ModelError;
use super::scaler::FeatureScale;

/// The layout of `model.json` that this program reads and writes.
pub const SCHEMA_VERSION: u32 = 2;

/// Which way a feature moves when things go wrong; a move the other way never counts as trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// More is worse: latencies, used space.
    High,
    /// Less is worse: free space, cache hits.
    Low,
    /// Any departure from what is usual.
    #[default]
    Both,
}

impl Direction {
    /// The part of a departure that counts.
    #[must_use]
    pub fn bad_part(self, departure: f32) -> f32 {
        match self {
            Self::High => departure.max(0.0),
            Self::Low => departure.min(0.0),
            Self::Both => departure,
        }
    }
}

/// One column of a sample.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeatureDescription {
    /// Its name, as in `training/features.toml`.
    pub name: String,
    /// Its unit, for people; empty if unknown.
    #[serde(default)]
    pub unit: String,
    /// Which way is bad.
    #[serde(default)]
    pub direction: Direction,
    /// Training never takes its spread for less, in its unit: what stood still while a model learnt may move all the same. It is no part
    /// of the document, whose scales hold it already.
    #[serde(skip)]
    pub spread_min: Option<f32>,
}

/// What forecasts beside the running mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum NetworkKind {
    /// Nothing: the linear twin, whose forecast is the running mean itself.
    None,
    /// An LSTM with a linear head.
    Lstm {
        /// Layers.
        layers: usize,
        /// Units of each layer.
        units: usize,
    },
}

/// How forecasts are made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Architecture {
    /// The network.
    pub network: NetworkKind,
    /// Time constant of the running mean of each feature, in rows.
    pub baseline_rows: u32,
    /// How far ahead forecasts look, in rows, ascending.
    pub horizons: Vec<usize>,
}

/// What a model was trained on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingSpan {
    /// Where the samples came from, in words.
    pub source: String,
    /// Time of the first sample, RFC 3339, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<String>,
    /// Time of the last sample, RFC 3339, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<String>,
    /// Rows, all nodes together.
    pub rows: usize,
    /// Nodes.
    pub nodes: usize,
    /// Seed of everything random.
    pub seed: u64,
}

/// What alarms and risk of a model were calibrated on, and how it did there: every run judged by what was learnt on the others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CalibratedOn {
    /// Where the runs came from, in words.
    pub source: String,
    /// Figures of this model.
    pub own: CalibrationFigures,
    /// Figures of its linear twin on the same runs, with a threshold and a curve of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub twin: Option<CalibrationFigures>,
}

/// How a model did on runs that its threshold and its curve were not learnt on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CalibrationFigures {
    /// Time without a fault, all nodes together.
    pub node_days: f64,
    /// Alarms in that time; those closer than the horizon are one.
    pub false_alarms: u64,
    /// The most false alarms a node and day that are not unlikely after that count (95 %).
    pub false_alarms_per_node_day_upper_95: f64,
    /// Mean squared error of the risk.
    pub brier: f64,
    /// The same, had the mean share of trouble always been said.
    pub brier_of_mean: f64,
    /// Each fault.
    pub faults: Vec<FaultSeen>,
}

/// How a model did on a fault.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultSeen {
    /// Its name.
    pub fault: String,
    /// Runs with it.
    pub runs: usize,
    /// Of which there was an alarm in so many after the fault had begun.
    pub alarmed: usize,
    /// The shortest time from the alarm to the end of a run, which is the first failed or slow commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lead_seconds_min: Option<f64>,
}

/// `model.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelDocument {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Name of the model, that of its folder.
    pub name: String,
    /// Which training of that name.
    pub version: String,
    /// Seconds between samples; the model is of no use at another step.
    pub step_seconds: u32,
    /// What [`super::Assessment::risk`] looks ahead: trouble now, or within so many seconds.
    pub horizon_seconds: u32,
    /// Columns, in the order of a sample.
    pub features: Vec<FeatureDescription>,
    /// How forecasts are made.
    pub architecture: Architecture,
    /// How each column is scaled until a node's own history says better.
    pub scaler: Vec<FeatureScale>,
    /// From scores to risk.
    pub calibration: Calibration,
    /// What that was learnt on, where it was not shipped with the program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibrated_on: Option<CalibratedOn>,
    /// What it was trained on.
    pub training: TrainingSpan,
    /// SHA-256 of the training samples, hexadecimal.
    pub data_sha256: String,
    /// SHA-256 of `weights.safetensors`, hexadecimal.
    pub weights_sha256: String,
    /// Figures of the evaluation, by name.
    #[serde(default)]
    pub metrics: BTreeMap<String, f64>,
}

impl ModelDocument {
    /// Reads the text of `model.json`. The schema is judged first, so that a newer model is told from a damaged one.
    ///
    /// # Errors
    /// [`ModelError::Document`] or [`ModelError::Schema`].
    pub fn from_json(text: &str) -> Result<Self, ModelError> {
        #[derive(Deserialize)]
        struct Version {
            schema_version: u32,
        }
        let unreadable = |error: serde_json::Error| ModelError::Document { why: error.to_string() };
        let version: Version = serde_json::from_str(text).map_err(unreadable)?;
        if version.schema_version != SCHEMA_VERSION {
            return Err(ModelError::Schema { found: version.schema_version });
        }
        serde_json::from_str(text).map_err(unreadable)
    }

    /// The text of `model.json`.
    ///
    /// # Panics
    /// Never: every field has a JSON form.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("plain data has a JSON form");
        text.push('\n');
        text
    }
}
