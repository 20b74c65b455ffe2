//! JSON documents about predictions and models. Field names are a contract, as in `wire`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::domain::ids::NodeName;
use crate::domain::plan::Reason;
use crate::domain::risk::{Driver, ModelName, Resource};

/// What the predictor does at the moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PredictorStatus {
    /// `observe`, `advise` or `act`.
    pub mode: String,
    /// The model that scores; `null` without one.
    pub model: Option<ModelName>,
    /// Why nothing is predicted; `null` while something is.
    pub abstains: Option<String>,
    /// Why a newer model was not taken; the old one goes on.
    #[serde(default)]
    pub refused_model: Option<String>,
}

/// `GET …/risk`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RiskDocument {
    /// [`super::wire::SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The cluster.
    pub cluster: String,
    /// The predictor; `null` where none is configured.
    pub predictor: Option<PredictorStatus>,
    /// Every node.
    pub nodes: Vec<NodeRisk>,
}

/// What is expected of one node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeRisk {
    /// The node.
    pub node: NodeName,
    /// Calibrated probability of trouble within the model's horizon; `null` while nobody can say.
    pub risk: Option<f64>,
    /// How unusual it is, for ranking; `null` while nobody can say.
    pub score: Option<f64>,
    /// Why the model says nothing of it.
    pub abstains: Option<String>,
    /// Age of the model's word, in seconds.
    pub age_seconds: Option<f64>,
    /// For how long the model's alarm has lasted; `null` without one.
    pub alarmed_for_seconds: Option<f64>,
    /// What drove the score, the greatest share first.
    pub drivers: Vec<Driver>,
    /// What runs out, by the word of the node's own agent, soonest first.
    pub exhaustions: Vec<TimeLeft>,
    /// A write probe that became slow.
    pub slowdown: Option<SlowProbe>,
    /// What else than the model speaks for trouble.
    pub evidence: Vec<Reason>,
}

/// A resource that runs out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TimeLeft {
    /// Of what.
    pub resource: Resource,
    /// Bytes or connections that are left.
    pub left: f64,
    /// Seconds until nothing is left, if it goes on like that.
    pub seconds: f64,
}

/// A probe that became slow, in seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SlowProbe {
    /// Median before.
    pub usual_seconds: f64,
    /// Several of the last ones took so long, or longer.
    pub now_seconds: f64,
}

/// `GET /api/v1/models`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ModelList {
    /// [`super::wire::SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Every model in the folder.
    pub models: Vec<ModelEntry>,
}

/// What a model has said since it was loaded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ModelFigures {
    /// Samples of all nodes that it was given.
    pub samples: u64,
    /// Of which it said nothing of so many.
    pub silent: u64,
    /// Alarms that began.
    pub alarms: u64,
    /// Mean error of its forecasts, in spreads of each node; `null` before the first.
    pub forecast_error: Option<f64>,
}

/// One model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ModelEntry {
    /// Name of its folder.
    pub name: String,
    /// Its version; `null` if it cannot be read.
    pub version: Option<String>,
    /// It scores now.
    pub scores: bool,
    /// It scores beside that one, as the challenger: its word counts for nothing.
    #[serde(default)]
    pub challenges: bool,
    /// What it has said since it was loaded, in this controller's memory; `null` if it does not score.
    #[serde(default)]
    pub figures: Option<ModelFigures>,
    /// It was promoted last.
    pub promoted: bool,
    /// What is wrong with it; `null` if the predictor can use it.
    pub problem: Option<String>,
    /// Its document, as it is; `null` if it cannot be read.
    pub document: Option<serde_json::Value>,
}

/// Body of `POST /api/v1/models/promote`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PromoteRequest {
    /// Name of the model's folder.
    pub name: String,
}
