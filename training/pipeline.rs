//! From a table to a model, and from a model to scores: what every command does.
//!
//! What never enters: labels; test rows in a fit.

use std::path::Path;

use anyhow::{Context as _, ensure};
use indicatif::ProgressBar;
use stormglass::predict::document::TrainingSpan;
use stormglass::predict::fit::{Outline, Scales, finish};
use stormglass::predict::model::sha256;
use stormglass::predict::{
    Architecture, Assessment, FeatureDescription, Model, ModelDocument, NetworkKind, NodeScorer, Samples,
};

use crate::network::{Settings, Trainer};

/// Fewer rows than this, all nodes together, cannot be trained on.
pub const ROWS_MIN: usize = 200;
/// Of one node there must be so many at least: twice what the running means take to settle.
pub const ROWS_OF_A_NODE_MIN: usize = 140;
/// Chunks of the training are so short that they can begin in many places of the longest node.
const CHUNKS_OF_A_NODE_MIN: usize = 5;

/// A name for a model that is made.
#[derive(Debug, Clone)]
pub struct Naming {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// Seconds between samples.
    pub step_seconds: u32,
    /// Seconds that risk looks ahead.
    pub horizon_seconds: u32,
    /// Where the samples came from.
    pub source: String,
    /// First and last time, where known.
    pub span: Option<(String, String)>,
}

/// A model and what was seen while it was trained.
pub struct Fitted {
    /// `model.json`.
    pub document: ModelDocument,
    /// `weights.safetensors`.
    pub weights: Vec<u8>,
}

impl Fitted {
    /// The model itself.
    pub fn model(&self) -> anyhow::Result<Model> {
        Ok(Model::new(self.document.clone(), &self.weights)?)
    }
}

/// Trains on the rows of some nodes; with `is_linear` without a network.
pub fn fit(
    naming: &Naming,
    features: Vec<FeatureDescription>,
    nodes: &[Samples],
    settings: &Settings,
    is_linear: bool,
    checkpoint: Option<&Path>,
    bar: &ProgressBar,
) -> anyhow::Result<Fitted> {
    let rows: usize = nodes.iter().map(Samples::rows).sum();
    let longest = nodes.iter().map(Samples::rows).max().unwrap_or(0);
    ensure!(
        rows >= ROWS_MIN && longest >= ROWS_OF_A_NODE_MIN,
        "{}: {rows} rows are too few to train on: at least {ROWS_MIN} are needed, and {ROWS_OF_A_NODE_MIN} of one node, where the longest has {longest}",
        naming.source
    );
    let settings =
        &Settings { chunk_rows: settings.chunk_rows.min(longest / CHUNKS_OF_A_NODE_MIN), ..settings.clone() };
    let scales = Scales::of_features(nodes, &features);
    ensure!(
        scales.pooled.iter().any(|scale| scale.spread > 0.0),
        "{}: no column ever changes, there is nothing to learn",
        naming.source
    );
    let trained = if is_linear {
        None
    } else {
        Trainer::new(settings, nodes, &scales).map(|trainer| trainer.train(checkpoint, bar)).transpose()?
    };
    let network = match &trained {
        Some(_) => NetworkKind::Lstm { layers: settings.layers, units: settings.units },
        None => NetworkKind::None,
    };
    let outline = Outline {
        name: naming.name.clone(),
        version: naming.version.clone(),
        step_seconds: naming.step_seconds,
        horizon_seconds: naming.horizon_seconds,
        features,
        architecture: Architecture {
            network,
            baseline_rows: settings.baseline_rows,
            horizons: settings.horizons.clone(),
        },
        training: TrainingSpan {
            source: naming.source.clone(),
            first: naming.span.as_ref().map(|(first, _)| first.clone()),
            last: naming.span.as_ref().map(|(_, last)| last.clone()),
            rows,
            nodes: nodes.len(),
            seed: settings.seed,
        },
        data_sha256: digest(nodes),
    };
    let (loss_ratio, steps) = trained.as_ref().map_or((1.0, 0), |trained| (trained.loss_ratio, trained.steps));
    let (mut document, weights) = finish(outline, nodes, &scales, trained.map(|trained| trained.network))?;
    document.metrics.insert("held_out_loss_over_linear_twin".to_owned(), loss_ratio);
    document.metrics.insert("training_steps".to_owned(), f64::from(steps));
    Ok(Fitted { document, weights })
}

/// Features that are known by name only.
pub fn plain_features(columns: &[String]) -> Vec<FeatureDescription> {
    columns
        .iter()
        .map(|name| FeatureDescription {
            name: name.clone(),
            unit: String::new(),
            direction: Default::default(),
            spread_min: None,
        })
        .collect()
}

fn digest(nodes: &[Samples]) -> String {
    let mut row = Vec::new();
    let mut bytes = Vec::new();
    let mut digests = String::new();
    for node in nodes {
        bytes.clear();
        for index in 0..node.rows() {
            node.read(index, &mut row);
            row.iter().for_each(|value| bytes.extend_from_slice(&value.unwrap_or(f32::NAN).to_le_bytes()));
        }
        digests += &sha256(&bytes);
    }
    sha256(digests.as_bytes())
}

/// Scores rows in order after a warm-up on a history; `visit` is given each row's assessment.
pub fn score(model: &Model, history: &Samples, rows: &Samples, mut visit: impl FnMut(&NodeScorer, &Assessment)) {
    let mut scorer = NodeScorer::new(model);
    scorer.warm_up(model, history);
    let mut row = Vec::new();
    for index in 0..rows.rows() {
        rows.read(index, &mut row);
        let said = scorer.push(model, &row);
        visit(&scorer, &said);
    }
}

/// Writes numbers one a line, as a whole.
pub fn write_column(path: &Path, values: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let mut text = String::new();
    for value in values {
        text += &value;
        text.push('\n');
    }
    crate::publish::write_whole(path, text.as_bytes()).with_context(|| format!("write {}", path.display()))
}
