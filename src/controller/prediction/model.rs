//! The way to `predict`: a model from its files, held against the features that are collected, and its word as plain data.
//!
//! Nothing is decided here.

use crate::domain::feature::Feature;
use crate::domain::risk::{ModelName, Risk};
use crate::ports::metrics::{ModelFiles, Sample};

/// A model that fits the features and the step.
pub(super) struct Usable {
    /// Name and version.
    pub name: ModelName,
}

/// What is known of one node.
pub(super) struct Scorer {}

/// Opens a model; an error says what is wrong with it.
pub(super) fn open(files: &ModelFiles, features: &[Feature], step_seconds: u32) -> Result<Usable, String> {
    let _ = (features, step_seconds);
    let version = version(&files.document).ok_or_else(|| "model.json has no version".to_owned())?;
    Ok(Usable { name: ModelName { name: files.name.clone(), version } })
}

/// The version that a document names.
pub(super) fn version(document: &str) -> Option<String> {
    let document: serde_json::Value = serde_json::from_str(document).ok()?;
    document.get("version")?.as_str().map(str::to_owned)
}

impl Usable {
    pub fn scorer(&self) -> Scorer {
        Scorer {}
    }
    pub fn learn(&self, _scorer: &mut Scorer, _history: &[Sample]) {}
    pub fn score(&self, _scorer: &mut Scorer, _row: &Sample) -> Risk {
        Risk {
            probability: None,
            score: 0.0,
            alarm: false,
            abstains: Some("this version has no models yet".to_owned()),
            drivers: Vec::new(),
            model: self.name.clone(),
        }
    }
}
