//! A retraining as data: its stages, and what each run of the training program is told.

use std::fmt;

use super::clock::WallTime;
use super::ids::OperationId;

/// A part of a retraining that is run, journalled and resumed by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TrainStage {
    /// Samples are pulled from Prometheus, and split by time.
    Collect,
    /// A challenger is trained on the older part.
    Fit,
    /// Champion and challenger are judged on the newer part, and the better one is published.
    Publish,
}

impl fmt::Display for TrainStage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            TrainStage::Collect => "collect",
            TrainStage::Fit => "fit",
            TrainStage::Publish => "publish",
        })
    }
}

/// One run of the training program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainRun {
    /// Which part.
    pub stage: TrainStage,
    /// The operation: samples and challenger lie under its name.
    pub operation: OperationId,
    /// When the operation began: the end of the samples, and the challenger's version.
    pub begun: WallTime,
}
