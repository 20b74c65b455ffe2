//! Where time series come from, and where models are kept.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use async_trait::async_trait;

use crate::domain::ids::NodeName;

/// Values of every feature at one step, in the order of the catalogue; `None` is a gap.
pub type Sample = Vec<Option<f32>>;

/// What was asked, on a fixed step.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Samples {
    /// One matrix `[time, feature]` for each node that was asked for, oldest first.
    pub nodes: BTreeMap<NodeName, Vec<Sample>>,
    /// Features that could not be had, with the reason: gaps in every matrix.
    pub problems: Vec<String>,
}

/// Why there are no samples at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("ask {location} for samples: {problem}")]
pub struct MetricError {
    /// Base URL.
    pub location: String,
    /// What went wrong, and what to do.
    pub problem: String,
}

/// Time series of nodes.
#[async_trait]
pub trait MetricSource: Send + Sync {
    /// The samples of all nodes at every `step_seconds` from the first to the last second since 1970, both included.
    async fn samples(&self, seconds: RangeInclusive<i64>, step_seconds: u32) -> Result<Samples, MetricError>;
}

/// A model as it lies in its folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFiles {
    /// Name of the folder.
    pub name: String,
    /// The text of `model.json`.
    pub document: String,
    /// The content of `weights.safetensors`.
    pub weights: Vec<u8>,
}

/// Changes whenever a model on disk does; without a meaning otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelStamp(pub String);

/// Why a model cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{action} {location}: {problem}")]
pub struct ModelStoreError {
    /// Verb and object.
    pub action: &'static str,
    /// File or folder.
    pub location: String,
    /// What went wrong, and what to do.
    pub problem: String,
}

/// The folder of models.
#[async_trait]
pub trait ModelStore: Send + Sync {
    /// Names of all models, sorted.
    async fn names(&self) -> Result<Vec<String>, ModelStoreError>;
    /// The model that was promoted last; `None` if none ever was.
    async fn promoted(&self) -> Result<Option<String>, ModelStoreError>;
    /// What tells whether the model on disk is still the one that was read.
    async fn stamp(&self, name: &str) -> Result<ModelStamp, ModelStoreError>;
    /// Reads a model.
    async fn read(&self, name: &str) -> Result<ModelFiles, ModelStoreError>;
    /// Makes `name` the model that scores.
    async fn promote(&self, name: &str) -> Result<(), ModelStoreError>;
    /// Makes the one before it the model that scores again, and returns its name.
    async fn roll_back(&self) -> Result<String, ModelStoreError>;
}
