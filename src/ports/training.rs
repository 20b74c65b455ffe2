//! The training program, run beside the controller and never in it.

use async_trait::async_trait;

use super::steps::StepError;
use crate::domain::training::TrainRun;

/// Told what the program says while it runs.
pub type TellProgress<'a> = &'a (dyn Fn(String) + Send + Sync);

/// Runs the stages of a retraining.
///
/// A stage may run twice: when its controller was lost, the next one runs it again. Dropping the future of [`Trainer::run`] ends the
/// program.
#[async_trait]
pub trait Trainer: Send + Sync {
    /// Runs one stage to its end. The text says what came of it; no model that scores is touched before the last one succeeds.
    async fn run(&self, run: &TrainRun, progress: TellProgress<'_>) -> Result<String, StepError>;
}
