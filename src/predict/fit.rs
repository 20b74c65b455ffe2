//! What a model learns besides its network: scales, how residuals stray together, and what scores are usual.
//!
//! Pure and deterministic: the same samples and the same network give the same bytes. What never enters: gradients, randomness, files.

use super::calibration::Calibration;
use super::document::{Architecture, FeatureDescription, ModelDocument, SCHEMA_VERSION, TrainingSpan};
use super::familiar::FamiliarSizes;
use super::forecaster::{Forecaster, ForecasterState, Network};
use super::model::{ModelError, sha256, weights_bytes};
use super::samples::Samples;
use super::scaler::FeatureScale;
use super::scores::{COMPONENTS, Covariances};

/// What is known of a model before it is fitted.
#[derive(Debug, Clone, PartialEq)]
pub struct Outline {
    /// Name of the model.
    pub name: String,
    /// Which training of that name.
    pub version: String,
    /// Seconds between samples.
    pub step_seconds: u32,
    /// What risk looks ahead.
    pub horizon_seconds: u32,
    /// Columns.
    pub features: Vec<FeatureDescription>,
    /// How forecasts are made.
    pub architecture: Architecture,
    /// What it is trained on.
    pub training: TrainingSpan,
    /// SHA-256 of the samples.
    pub data_sha256: String,
}

/// Scales of training: of all nodes together, and of each alone.
#[derive(Debug, Clone, PartialEq)]
pub struct Scales {
    /// Of all nodes together.
    pub pooled: Vec<FeatureScale>,
    /// Of each node, in their order.
    pub own: Vec<Vec<FeatureScale>>,
}

impl Scales {
    /// Learns them. A feature without a single value has a spread of zero and is left out, and so is one that never changed.
    #[must_use]
    pub fn of(nodes: &[Samples]) -> Self {
        Self::of_features(nodes, &[])
    }

    /// The same for features of which it is said how far they stray at least.
    #[must_use]
    pub fn of_features(nodes: &[Samples], descriptions: &[FeatureDescription]) -> Self {
        let features = nodes.first().map_or(0, Samples::features);
        let nothing = FeatureScale { center: 0.0, spread: 0.0 };
        let mut own = vec![Vec::with_capacity(features); nodes.len()];
        let mut pooled = Vec::with_capacity(features);
        for feature in 0..features {
            let columns: Vec<Vec<f32>> = nodes.iter().map(|node| node.column(feature)).collect();
            let spread_min = descriptions.get(feature).and_then(|description| description.spread_min).unwrap_or(0.0);
            let all = FeatureScale::of(&columns.concat()).map_or(nothing, |scale| scale.no_narrower_than(spread_min));
            pooled.push(all);
            for (own, column) in own.iter_mut().zip(&columns) {
                own.push(FeatureScale::of(column).map_or(all, |scale| scale.at_least(all)));
            }
        }
        Self { pooled, own }
    }
}

/// Scales a row of samples in place of what `scaled` held.
pub fn scale_row(scales: &[FeatureScale], row: &[Option<f32>], scaled: &mut Vec<Option<f32>>) {
    scaled.clear();
    scaled.extend(scales.iter().zip(row).map(|(scale, value)| scale.scale(*value)));
}

/// Fits everything but the network and makes the document and the bytes of the weights.
///
/// # Errors
/// [`ModelError`] if the network does not fit the outline.
pub fn finish(
    outline: Outline,
    nodes: &[Samples],
    scales: &Scales,
    network: Option<Network>,
) -> Result<(ModelDocument, Vec<u8>), ModelError> {
    let step_seconds = outline.step_seconds;
    let directions = outline.features.iter().map(|feature| feature.direction).collect();
    let forecaster = Forecaster::new(&outline.architecture, directions, network.clone());
    let is_known =
        |(feature, scale): (&FeatureDescription, &FeatureScale)| feature.spread_min.is_some() && scale.spread > 0.0;
    let may_stray = outline.features.iter().zip(&scales.pooled).map(is_known).collect();
    let mut covariances = Covariances::new(&forecaster, may_stray);
    each_row(&forecaster, nodes, scales, step_seconds, |_, state, _| covariances.add(state));
    let whitenings = covariances.whitenings();

    let mut calibration = Calibration::shipped([0.0; COMPONENTS]);
    let mut histories = calibration.levels(f32::MAX);
    let mut centred = Vec::new();
    each_row(&forecaster, nodes, scales, step_seconds, |varying, state, unfamiliar| {
        let scores = whitenings.scores(state, unfamiliar, varying, &mut centred);
        histories.iter_mut().zip(scores).for_each(|(history, score)| history.add(score));
    });
    for (reference, history) in calibration.references.iter_mut().zip(&mut histories) {
        *reference = history.reference().unwrap_or(0.0);
    }
    let weights = weights_bytes(network.as_ref(), &whitenings)?;
    let document = ModelDocument {
        schema_version: SCHEMA_VERSION,
        name: outline.name,
        version: outline.version,
        step_seconds: outline.step_seconds,
        horizon_seconds: outline.horizon_seconds,
        features: outline.features,
        architecture: outline.architecture,
        scaler: scales.pooled.clone(),
        calibration,
        calibrated_on: None,
        training: outline.training,
        data_sha256: outline.data_sha256,
        weights_sha256: sha256(&weights),
        metrics: std::collections::BTreeMap::new(),
    };
    Ok((document, weights))
}

/// Calls `visit` with how many features vary, what is known after every settled row, and what is unfamiliar in it.
fn each_row(
    forecaster: &Forecaster,
    nodes: &[Samples],
    scales: &Scales,
    step_seconds: u32,
    mut visit: impl FnMut(usize, &ForecasterState, &[f32]),
) {
    let (mut row, mut scaled, mut unfamiliar) = (Vec::new(), Vec::new(), Vec::new());
    for (node, scales) in nodes.iter().zip(&scales.own) {
        let varying = scales.iter().filter(|scale| scale.spread > 0.0).count();
        let mut state = forecaster.start();
        let mut familiar = FamiliarSizes::new(scales.len(), step_seconds);
        for index in 0..node.rows() {
            node.read(index, &mut row);
            scale_row(scales, &row, &mut scaled);
            if scaled.iter().flatten().count() * 2 < varying {
                continue;
            }
            forecaster.advance(&mut state, &scaled);
            familiar.relate(state.values(), &mut unfamiliar);
            if state.rows() > forecaster.settling_rows() {
                visit(varying, &state, &unfamiliar);
            }
        }
    }
}
