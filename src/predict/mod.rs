//! From samples to risk: pure arithmetic on numbers that others collected.
//!
//! What lives here, in the order in which a sample passes: [`samples`] a node's matrix, [`scaler`], [`forecaster`] (with [`lstm`]),
//! [`residuals`], [`familiar`], [`scores`], [`levels`], [`calibration`], [`drift`], and [`scorer`], which holds them together; [`document`] and [`model`] say what
//! a model is, `shipped_curve` what a new one takes surprise to mean, [`weights`] are named tensors from and to bytes, [`fit`] is training without its gradients.
//! What never enters: a clock, files, the network, `async`, randomness (a seed's numbers are passed in), and decisions.

pub mod calibration;
pub mod document;
pub mod drift;
pub mod familiar;
pub mod fit;
pub mod forecaster;
pub mod levels;
pub mod lstm;
pub mod model;
pub mod residuals;
pub mod samples;
pub mod scaler;
pub mod scorer;
pub mod scores;
mod shipped_curve;
mod symmetric;
#[cfg(test)]
mod tests;
pub mod weights;

pub use calibration::Calibration;
pub use document::{Architecture, Direction, FeatureDescription, ModelDocument, NetworkKind};
pub use model::{Model, ModelError};
pub use samples::Samples;
pub use scorer::{Abstention, Assessment, Contribution, NodeScorer};
