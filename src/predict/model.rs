//! A model: the document and the weights, checked against each other once, then never changed.
//!
//! What lives here: [`Model`] and every reason to refuse one. What never enters: files, and the state of any node.

use sha2::{Digest, Sha256};

use super::document::{Architecture, ModelDocument, NetworkKind, SCHEMA_VERSION};
use super::forecaster::{Forecaster, Network};
use super::lstm::{Lstm, LstmError, LstmShape};
use super::residuals::Whitening;
use super::scores::{ResidualWhitening, Whitenings};
use super::weights::{self, NamedTensor, Tensors, WeightsError};

/// Largest number of features, units and rows that a document may ask for: a damaged one must not ask for all memory.
const SIZE_MAX: usize = 4096;

/// What the tensor of a whitening matrix is called.
const WHOLE: &str = "whitening";
/// The same of a half whitening; a model without one ranks by the size of its residuals instead.
const HALF: &str = "half_whitening";

/// Why a model cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// `model.json` is no such document.
    #[error("model.json cannot be read: {why}")]
    Document {
        /// What the parser said, with line and column.
        why: String,
    },
    /// A document of another layout.
    #[error(
        "model.json has schema version {found}, this program reads {SCHEMA_VERSION}: train the model again, or use the program that made it"
    )]
    Schema {
        /// Its version.
        found: u32,
    },
    /// The document contradicts itself.
    #[error("model.json: {what}")]
    Inconsistent {
        /// What does not fit.
        what: String,
    },
    /// The weights are not those that the document was written for.
    #[error(
        "weights.safetensors has SHA-256 {found}, model.json says {expected}: the file is damaged or belongs to another model; publish it again"
    )]
    Checksum {
        /// Of the bytes.
        found: String,
        /// In the document.
        expected: String,
    },
    /// The weights cannot be used.
    #[error("weights.safetensors: {0}")]
    Weights(WeightsError),
    /// The network cannot be made.
    #[error("weights.safetensors: {0}")]
    Network(LstmError),
}

/// A model that can score any number of nodes.
#[derive(Debug, Clone)]
pub struct Model {
    document: ModelDocument,
    forecaster: Forecaster,
    whitenings: Whitenings,
}

/// SHA-256 as hexadecimal digits.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Model {
    /// A model from its document and the bytes of its weights.
    ///
    /// # Errors
    /// [`ModelError`], whatever is wrong first.
    pub fn new(document: ModelDocument, weights: &[u8]) -> Result<Self, ModelError> {
        check(&document)?;
        let found = sha256(weights);
        if found != document.weights_sha256 {
            return Err(ModelError::Checksum { found, expected: document.weights_sha256 });
        }
        let tensors = weights::read(weights).map_err(ModelError::Weights)?;
        let network = network(&document, &tensors)?;
        let directions = document.features.iter().map(|feature| feature.direction).collect();
        let forecaster = Forecaster::new(&document.architecture, directions, network);
        let count = forecaster.residual_count();
        let whitenings = Whitenings {
            residuals: residual_whitening(&tensors, "residuals", count)?,
            plain: forecaster
                .has_network()
                .then(|| residual_whitening(&tensors, "plain_residuals", count))
                .transpose()?,
            levels: whitening(&tensors, "levels", WHOLE, document.features.len())?,
        };
        Ok(Self { document, forecaster, whitenings })
    }

    /// What `model.json` says.
    #[must_use]
    pub fn document(&self) -> &ModelDocument {
        &self.document
    }

    /// How it forecasts.
    #[must_use]
    pub fn forecaster(&self) -> &Forecaster {
        &self.forecaster
    }

    /// How residuals and values usually stray together.
    #[must_use]
    pub fn whitenings(&self) -> &Whitenings {
        &self.whitenings
    }
}

/// The bytes of `weights.safetensors`.
///
/// # Errors
/// [`ModelError::Weights`] if a tensor's values do not fill its shape.
pub fn weights_bytes(network: Option<&Network>, whitenings: &Whitenings) -> Result<Vec<u8>, ModelError> {
    let mut tensors = Tensors::new();
    if let Some(network) = network {
        network.lstm.add_tensors(&mut tensors, "lstm.");
        let units = network.lstm.shape().units;
        let outputs = network.head_bias.len();
        let weight = NamedTensor { shape: vec![outputs, units], values: network.head_weight.clone() };
        tensors.insert("head.weight".to_owned(), weight);
        tensors.insert("head.bias".to_owned(), NamedTensor { shape: vec![outputs], values: network.head_bias.clone() });
    }
    let mut add = |name: &str, kind: &str, whitening: &Whitening| {
        let (mean, matrix) = whitening.parts();
        let size = whitening.size();
        tensors.insert(format!("{name}.mean"), NamedTensor { shape: vec![size], values: mean.to_vec() });
        tensors.insert(format!("{name}.{kind}"), NamedTensor { shape: vec![size, size], values: matrix.to_vec() });
    };
    let residuals = [("residuals", Some(&whitenings.residuals)), ("plain_residuals", whitenings.plain.as_ref())];
    for (name, whitening) in residuals.into_iter().filter_map(|(name, whitening)| Some((name, whitening?))) {
        add(name, WHOLE, &whitening.whole);
        whitening.half.iter().for_each(|half| add(name, HALF, half));
    }
    add("levels", WHOLE, &whitenings.levels);
    weights::write(&tensors).map_err(ModelError::Weights)
}

fn check(document: &ModelDocument) -> Result<(), ModelError> {
    let inconsistent = |what: String| Err(ModelError::Inconsistent { what });
    if document.schema_version != SCHEMA_VERSION {
        return Err(ModelError::Schema { found: document.schema_version });
    }
    let features = document.features.len();
    if features == 0 || features > SIZE_MAX {
        return inconsistent(format!("{features} features, expected 1 to {SIZE_MAX}"));
    }
    for (index, feature) in document.features.iter().enumerate() {
        if document.features[..index].iter().any(|other| other.name == feature.name) {
            return inconsistent(format!("feature {:?} is there twice", feature.name));
        }
    }
    if document.scaler.len() != features {
        return inconsistent(format!("{} scales for {features} features", document.scaler.len()));
    }
    for (scale, feature) in document.scaler.iter().zip(&document.features) {
        if !scale.center.is_finite() || !scale.spread.is_finite() || scale.spread < 0.0 {
            return inconsistent(format!("the scale of feature {:?} is no number, or negative", feature.name));
        }
    }
    if document.step_seconds == 0 {
        return inconsistent("step_seconds is 0".to_owned());
    }
    let Architecture { network, baseline_rows, horizons } = &document.architecture;
    if horizons.is_empty() || horizons.windows(2).any(|pair| pair[0] >= pair[1]) || horizons[0] == 0 {
        return inconsistent(format!("horizons {horizons:?}: expected numbers of rows, ascending from 1"));
    }
    let units = match network {
        NetworkKind::None => 1,
        NetworkKind::Lstm { layers, units } => *layers.max(units),
    };
    if units > SIZE_MAX || horizons.iter().any(|horizon| *horizon > SIZE_MAX) || *baseline_rows == 0 {
        return inconsistent(format!("sizes of the architecture must lie between 1 and {SIZE_MAX}"));
    }
    document.calibration.check().map_err(|what| ModelError::Inconsistent { what })
}

fn network(document: &ModelDocument, tensors: &Tensors) -> Result<Option<Network>, ModelError> {
    let NetworkKind::Lstm { layers, units } = document.architecture.network else { return Ok(None) };
    let features = document.features.len();
    let shape = LstmShape { features: 2 * features, units, layers };
    let lstm = Lstm::from_tensors(shape, tensors, "lstm.").map_err(ModelError::Network)?;
    let outputs = document.architecture.horizons.len() * features;
    let take = |name, shape: &[usize]| weights::take(tensors, name, shape).map_err(ModelError::Weights);
    Ok(Some(Network {
        lstm,
        head_weight: take("head.weight", &[outputs, units])?.to_vec(),
        head_bias: take("head.bias", &[outputs])?.to_vec(),
    }))
}

fn residual_whitening(tensors: &Tensors, name: &str, size: usize) -> Result<ResidualWhitening, ModelError> {
    let has_half = tensors.contains_key(&format!("{name}.{HALF}"));
    let half = has_half.then(|| whitening(tensors, name, HALF, size)).transpose()?;
    Ok(ResidualWhitening { whole: whitening(tensors, name, WHOLE, size)?, half })
}

fn whitening(tensors: &Tensors, name: &str, kind: &str, size: usize) -> Result<Whitening, ModelError> {
    let take = |name: String, shape: &[usize]| weights::take(tensors, &name, shape).map_err(ModelError::Weights);
    let mean = take(format!("{name}.mean"), &[size])?;
    let matrix = take(format!("{name}.{kind}"), &[size, size])?;
    Ok(Whitening::from_parts(mean, matrix).expect("the shapes were checked"))
}
