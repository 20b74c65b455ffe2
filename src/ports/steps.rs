//! How a controller carries out the steps of sequences that reach outside: programs, SQL, HTTP.

use std::time::Duration;

use async_trait::async_trait;

use crate::domain::sequence::StepRun;

/// Why a step did not succeed. The text says what, where and what to do next, and holds no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// It ended, and not well.
    #[error("{0}")]
    Failed(String),
    /// It may have taken effect.
    #[error("{0}")]
    Unknown(String),
}

/// Carries steps out.
///
/// A step may run twice: when its controller was lost, the next one runs it again under the same key. Dropping the future of
/// [`StepRunner::run`] ends whatever was started.
#[async_trait]
pub trait StepRunner: Send + Sync {
    /// What would be done, in words, with templates filled in and secrets as references.
    fn preview(&self, run: &StepRun) -> Result<String, StepError>;

    /// Whether what is there differs from what a Terraform stack describes. Changes nothing and takes no lock.
    async fn drifts(&self, stack: &str, program: &str, timeout: Duration) -> Result<bool, String> {
        let _nothing_is_run = (stack, program, timeout);
        Err("this controller runs no programs".to_owned())
    }

    /// Does it. The text is the output, bounded, without secrets; lines `output: name=value` are there for later steps.
    async fn run(&self, run: &StepRun) -> Result<String, StepError>;
}

/// For a controller without sequences.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoSteps;

#[async_trait]
impl StepRunner for NoSteps {
    fn preview(&self, run: &StepRun) -> Result<String, StepError> {
        Err(StepError::Failed(format!("this controller runs no steps, so not {}", run.step.name)))
    }

    async fn run(&self, run: &StepRun) -> Result<String, StepError> {
        self.preview(run)
    }
}
